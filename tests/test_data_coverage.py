"""What share of every patch objects cover."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from picture_files import masks_of
from PIL import Image

from rcblib.data.coco import CocoDataset
from rcblib.data.coverage import object_coverage, patch_overlaps, visible_box
from rcblib.records import ParameterError, Sample, SceneObject
from worlds.datasets import SceneDataset
from worlds.scenes.coco import encode_mask


def sample_of(size, boxes):
    """Return a sample of `(width, height)` with rectangles `(category, x, y, width, height)`."""
    objects = []
    for category, x, y, width, height in boxes:
        mask = np.zeros((size[1], size[0]), bool)
        mask[y : y + height, x : x + width] = True
        objects.append(SceneObject(category, (x, y, width, height), encode_mask(mask), float(mask.sum())))
    return Sample(0, lambda: Image.new("RGB", size), *size, objects=tuple(objects))


def test_patch_overlaps_of_a_line_and_of_a_part_of_it():
    thirds = [[2 / 3, 1 / 3, 0.0, 0.0], [0.0, 1 / 3, 2 / 3, 0.0]]
    np.testing.assert_allclose(patch_overlaps(4, 2, 0.0, 3.0), thirds)
    np.testing.assert_allclose(patch_overlaps(4, 1, 0.5, 2.5), [[0.25, 0.5, 0.25, 0.0]])
    np.testing.assert_allclose(patch_overlaps(2, 4, 0, 2), [[1, 0], [1, 0], [0, 1], [0, 1]])
    np.testing.assert_allclose(patch_overlaps(97, 12, 0, 97).sum(1), 1)


def test_patches_beyond_the_line_have_fewer_pixels_or_none():
    expected = [[0, 0, 0], [0.5, 0, 0], [0, 0.5, 0.5], [0, 0, 0]]
    np.testing.assert_allclose(patch_overlaps(3, 4, -3.0, 5.0)[[0, 1, 2, 3]], expected)
    np.testing.assert_allclose(patch_overlaps(3, 2, 2.0, 6.0), [[0, 0, 0.5], [0, 0, 0]])


@given(st.integers(1, 20), st.integers(1, 9))
def test_patches_share_out_every_pixel_of_the_line(n_pixels, n_patches):
    overlaps = patch_overlaps(n_pixels, n_patches, 0, n_pixels)
    assert ((overlaps >= 0) & (overlaps <= 1 + 1e-12)).all()
    np.testing.assert_allclose(overlaps.sum(0), n_patches / n_pixels)


def test_coverage_of_known_rectangles():
    sample = sample_of(
        (12, 12), [("cat", 0, 0, 4, 4), ("dog", 4, 0, 2, 4), ("cat", 4, 0, 1, 4), ("dog", 0, 10, 12, 2)]
    )
    found = object_coverage(sample, 3, 3)
    assert found.share.dtype == torch.float32
    assert found.share.tolist() == [1, 0.5, 0, 0, 0, 0, 0.5, 0.5, 0.5]
    assert found.category == ("cat", "dog", None, None, None, None, "dog", "dog", "dog")


def test_equal_shares_go_to_the_category_listed_first_and_overlaps_count_once():
    sample = sample_of((4, 4), [("dog", 0, 0, 4, 2), ("cat", 0, 0, 4, 2), ("cat", 0, 0, 2, 2)])
    found = object_coverage(sample, 1, 1)
    assert found.share.tolist() == [0.5]
    assert found.category == ("dog",)


def test_objects_of_a_category_add_up_before_categories_are_compared():
    sample = sample_of((10, 10), [("dog", 0, 0, 10, 4), ("cat", 0, 4, 5, 6), ("cat", 5, 4, 5, 6)])
    assert object_coverage(sample, 1, 1).category == ("cat",)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 50))
def test_coverage_adds_up_to_the_area_of_all_masks(height, width, index):
    sample = SceneDataset("train", 1, start=index)[0]
    found = object_coverage(sample, height, width)
    assert found.share.shape == (height * width,)
    assert 0 <= found.share.min() <= found.share.max() <= 1
    covered = float(found.share.sum()) * 96 * 96 / (height * width)
    assert covered == pytest.approx(sum(item.area for item in sample.objects), rel=1e-5)
    union = np.any(masks_of(sample), axis=0)
    # Each pixel as `height` x `width` equal pieces, so that every patch is a whole number of pieces: 96 of 96 * 96.
    pieces = np.repeat(np.repeat(union, height, 0), width, 1).reshape(height, 96, width, 96)
    np.testing.assert_allclose(found.share, pieces.mean((1, 3)).reshape(-1), atol=1e-6)
    for share, category in zip(found.share.tolist(), found.category, strict=True):
        assert (category is not None) == (share > 0)
        assert category is None or category in {item.category for item in sample.objects}


def test_coverage_of_polygons(coco):
    sample = CocoDataset(coco, "train2014")[0]
    whole = object_coverage(sample, 3, 4, box=(0, 0, 40, 30))
    assert whole.share.tolist() == pytest.approx([1, 0.5, 0, 0, 0.5, 0, 0, 0, 0, 0, 1, 1], abs=0.06)
    assert whole.category[0] in {"dog", "person"}
    assert whole.category[10:] == ("person", "person")
    # What the model sees is the middle: columns 5 to 35.
    middle = object_coverage(sample, 3, 3)
    assert middle.share.tolist()[8] == pytest.approx(1)
    assert middle.share.tolist()[7] == pytest.approx(0.5)


def test_no_objects_and_no_annotation_are_two_things():
    found = object_coverage(sample_of((8, 8), []), 2, 2)
    assert found.share.tolist() == [0, 0, 0, 0]
    assert found.category == (None,) * 4
    with pytest.raises(ParameterError, match="sample: got 'image 3 without annotation'"):
        object_coverage(Sample(3, lambda: None, 8, 8), 2, 2)


def test_patches_that_reach_beyond_the_image_are_covered_by_their_share_of_it():
    """A region of 12 x 8 pixels, its left third and a quarter of its height outside, in six patches of 4 x 4."""
    sample = sample_of((8, 8), [("cat", 0, 0, 8, 8)])
    found = object_coverage(sample, 2, 3, (-4, -2, 8, 6))
    np.testing.assert_allclose(found.share.reshape(2, 3), [[0, 0.5, 0.5], [0, 1, 1]])
    assert found.category == (None, "cat", "cat", None, "cat", "cat")


@pytest.mark.parametrize(
    "box",
    [
        (8, 0, 9, 8),
        (-1, 0, 0, 8),
        (0, -9, 8, 0),
        (4, 0, 4, 8),
        (0, 5, 8, 3),
        (0, 0, float("nan"), 8),
        (0, float("nan"), 8, 8),
        (0, 0, 8, float("inf")),
        (float("-inf"), 0, 8, 8),
    ],
)
def test_boxes_that_miss_the_image_are_errors(box):
    with pytest.raises(ParameterError, match="box: got"):
        object_coverage(sample_of((8, 8), []), 2, 2, box)


def test_the_visible_box_is_the_central_square():
    assert visible_box(640, 480) == (80, 0, 560, 480)
    assert visible_box(480, 641) == (0, 80.5, 480, 560.5)
    assert visible_box(96, 96) == visible_box(96, 96, 96) == visible_box(96, 96, 336) == (0, 0, 96, 96)
    assert visible_box(640, 480, 336) == pytest.approx((80, 0, 560, 480))
    with pytest.raises(ParameterError, match="width: got 0"):
        visible_box(0, 10)


@given(st.integers(1, 900), st.integers(1, 900), st.integers(1, 400))
def test_the_visible_box_is_a_square_inside_the_image(width, height, size):
    """As exactly as the processor's rounding of the longer side to whole pixels lets it."""
    left, top, right, bottom = visible_box(width, height, size)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    short, long = sorted((width, height))
    sides = sorted((right - left, bottom - top), key=lambda side: side != short)
    assert sides == [short, pytest.approx(size * long / (size * long // short))]


@pytest.mark.parametrize("resized", [336, 384, 300], ids="shorter side to {}".format)
@pytest.mark.parametrize("size", [(640, 427), (427, 640), (500, 333), (800, 350), (333, 500)])
def test_the_visible_box_is_what_clips_processor_crops(size, resized):
    """A bright rectangle with known edges comes out of the real processor where the box says."""
    from transformers import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(
        size={"shortest_edge": resized}, crop_size={"height": 336, "width": 336}
    )
    width, height = size
    sample = sample_of(size, [("cat", width // 3, height // 4, width // 3, height // 2)])
    mask = np.repeat(masks_of(sample)[0][..., None] * np.uint8(255), 3, 2)
    pixels = processor(
        Image.fromarray(mask), do_normalize=False, resample=Image.Resampling.BILINEAR, return_tensors="np"
    ).pixel_values[0][0]
    expected = torch.from_numpy(pixels.reshape(24, 14, 24, 14).mean((1, 3)).reshape(-1))
    found = object_coverage(sample, 24, 24, visible_box(width, height, resized, 336)).share
    torch.testing.assert_close(found, expected.float(), atol=0.02, rtol=0)
