"""Annotation files in COCO's format: ids of any type, and masks that are damaged."""

import copy
import json
import math
import warnings

import numpy as np
import pytest
from messages import one_line
from picture_files import masks_of, save_picture, write_json
from pycocotools import mask as coco_mask

from rcblib.data.coco import CocoDataset
from rcblib.data.masks import run_lengths
from rcblib.records import ImageError, ParameterError

SQUARE = [0, 0, 20, 0, 20, 20, 0, 20]
UNCOMPRESSED = {"size": [30, 40], "counts": [305, 10] + [20, 10] * 19 + [315]}
COMPRESSED = {"size": [30, 40], "counts": coco_mask.encode(np.asfortranarray(np.eye(30, 40, dtype=np.uint8)))}
COMPRESSED["counts"] = COMPRESSED["counts"]["counts"].decode()


def instances(ids=(1, 2), owners=None, masks=None, **fields):
    """Describe images with an object each."""
    owners = ids if owners is None else owners
    masks = masks or [[SQUARE]] * len(owners)
    return {
        "images": [
            {"id": own, "file_name": f"{k}.png", "width": 40, "height": 30} for k, own in enumerate(ids)
        ],
        "annotations": [
            {"id": 100 + k, "image_id": own, "category_id": 3, "segmentation": mask} | fields
            for k, (own, mask) in enumerate(zip(owners, masks, strict=True))
        ],
        "categories": [{"id": 3, "name": "cat"}],
    }


@pytest.fixture
def folder(tmp_path):
    for number in range(3):
        save_picture(tmp_path / "val" / f"{number}.png", seed=number)
    return tmp_path


def opened(folder, content, **settings):
    write_json(folder / "annotations" / "instances_val.json", content)
    return list(CocoDataset(folder, "val", **settings))


def refused(folder, content, error=ParameterError, **settings):
    with pytest.raises(error) as caught:
        opened(folder, content, **settings)
    return one_line(caught)


def names_of(samples):
    return [[item.category for item in sample.objects] for sample in samples]


# Ids


@pytest.mark.parametrize(
    ("ids", "owners", "read"),
    [
        ((1, 2), ("1", "2"), [1, 2]),
        (("1", "2"), (1, 2), [1, 2]),
        ((1, 2), (1.0, 2.0), [1, 2]),
        ((1.0, 2.0), ("1", 2), [1, 2]),
        ((1, 2), ("001", "0002"), [1, 2]),
        ((1, 2), ("1.0", " 2\n"), [1, 2]),
        ((1, -2), ("+1", "-2.00"), [1, -2]),
        (("000001", "000002"), (1, 2), ["000001", "000002"]),
        (("a.png", "ü/2"), ("a.png", "ü/2"), ["a.png", "ü/2"]),
        (("a", 2), ("a", "2"), ["a", "2"]),
        ((2**63, 5), (str(2**63), 5), [str(2**63), "5"]),
        ((-(2**70), 5), (-(2**70), 5), [str(-(2**70)), "5"]),
        ((2**63 - 1, -7), (2**63 - 1, -7), [2**63 - 1, -7]),
        (("1", "01"), ("1", "01"), ["1", "01"]),
    ],
)
def test_ids_that_differ_in_type_alone_are_the_same(folder, ids, owners, read):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        samples = opened(folder, instances(ids, owners))
    assert [sample.image_id for sample in samples] == read
    assert [type(sample.image_id) for sample in samples] == [type(own) for own in read]
    assert names_of(samples) == [["cat"], ["cat"]]
    assert len({sample.image_id for sample in samples}) == 2


@pytest.mark.parametrize("value", [None, True, 1.5, math.nan, math.inf, "", " ", [1], {"a": 1}])
def test_what_is_no_id_is_refused_by_name(folder, value):
    message = refused(folder, instances((value, 2), (2, 2)))
    assert f"instances_val.json: an image with id {value!r}" in message.replace("\\'", "'")
    assert message.endswith("; accepted: whole numbers or text")
    message = refused(folder, instances((1, 2), (1, value)))
    assert "instances_val.json: the image of an annotation with id" in message
    message = refused(folder, instances() | {"categories": [{"id": value, "name": "cat"}]})
    assert "instances_val.json: a category with id" in message


@pytest.mark.parametrize("missing", ["id", "image_id"])
def test_a_missing_id_is_named(folder, missing):
    content = instances()
    del (content["images"] if missing == "id" else content["annotations"])[1][missing]
    assert f"instances_val.json with a record without {missing!r}" in refused(folder, content)
    content = instances()
    for annotation in content["annotations"]:
        del annotation["id"]  # nothing needs it
    assert names_of(opened(folder, content)) == [["cat"], ["cat"]]


def test_annotations_without_their_image_are_counted_or_refused(folder):
    with pytest.warns(
        UserWarning,
        match=r"instances_val.json: 2 of 3 annotations belong to no image of the file, first of image 8",
    ):
        samples = opened(folder, instances((1, 2), (8, 2, "x")))
    assert names_of(samples) == [[], ["cat"]]
    message = refused(folder, instances((1, 2), (8, "b")))
    assert "2 of 2 annotations belong to no image of the file, first of image 8" in message
    assert message.endswith("accepted: annotations of the listed images")
    assert names_of(opened(folder, instances((1, 2), ()))) == [[], []]


def test_captions_are_joined_as_annotations_are(folder):
    captions = [{"id": k, "image_id": own, "caption": f"of {own}"} for k, own in enumerate(("1", 2.0, 1))]
    path = folder / "annotations" / "captions_val.json"
    write_json(path, {"images": instances()["images"], "annotations": captions})
    assert [sample.captions for sample in opened(folder, instances())] == [("of 1", "of 1"), ("of 2.0",)]
    write_json(path, {"images": [], "annotations": [{"id": 1, "image_id": 5, "caption": "of 5"}]})
    assert "captions_val.json: 1 of 1 annotations belong to no image" in refused(folder, instances())
    write_json(path, {"images": [], "annotations": [{"id": 1, "image_id": 1, "caption": None}]})
    assert "captions_val.json with a caption None" in refused(folder, instances())


def test_the_same_record_twice_counts_once_and_another_of_its_id_is_refused(folder):
    content = instances()
    content["images"].append({**content["images"][0], "id": "1", "license": 4})  # of another file merged in
    content["annotations"].append(copy.deepcopy(content["annotations"][0]))
    with pytest.warns(UserWarning, match="there twice") as told:
        samples = opened(folder, content)
    assert [str(warning.message) for warning in told if warning.category is UserWarning] == [
        "instances_val.json: 1 image records are there twice, first 1; each counts once",
        "instances_val.json: 1 annotations are there twice; each counts once",
    ]
    assert names_of(samples) == [["cat"], ["cat"]]
    message = refused(folder, instances((1, "1"), (1, 1)))
    assert "instances_val.json: id 1 of two images, '0.png' of 40 x 30 and '1.png' of 40 x 30" in message
    content = instances()
    content["annotations"][1]["id"] = 100  # an object of its own all the same
    assert names_of(opened(folder, content)) == [["cat"], ["cat"]]
    content["categories"].append({"id": "3", "name": "dog"})
    assert "category 3 named 'dog'" in refused(folder, content)


def test_categories_are_joined_by_id_and_must_be_there(folder):
    assert names_of(opened(folder, instances(category_id="3"))) == [["cat"], ["cat"]]
    for given in (4, None, "x", True):
        message = refused(folder, instances(category_id=given))
        assert "object 100 of image 1 of no category (2 of 2 objects are damaged)" in message
    content = instances()
    del content["annotations"][1]["category_id"]
    assert "object 101 of image 2 of no category" in refused(folder, content)
    with pytest.warns(UserWarning, match="left out instances_val.json: object 101 of image 2 of no category"):
        assert names_of(opened(folder, content, on_error="skip")) == [["cat"], []]
    assert "without 'name'" in refused(folder, instances() | {"categories": [{"id": 3}]})
    assert "category 3 named 5" in refused(folder, instances() | {"categories": [{"id": 3, "name": 5}]})


def test_what_tools_keep_beside_the_format_is_no_answer(folder):
    content = instances(color="#1c3f57") | {"info": {"source": ["a tool"]}}
    content["images"][0]["backdrop"] = {"a": 1}
    first, second = opened(folder, content)
    assert first.objects[0].color is None and first.backdrop is None
    assert first.source == "coco/val"
    content["annotations"][0]["color"], content["info"] = "red", None
    content["images"][0]["backdrop"] = "a road"
    (first, *_) = opened(folder, content)
    assert (first.objects[0].color, first.backdrop) == ("red", "a road")


# Masks

DAMAGED = [
    ([[0, 0, math.nan, 0, 20, 20]], "a polygon of NaN or infinity"),
    ([[0, 0, math.inf, 0, 20, 20]], "a polygon of NaN or infinity"),
    ([SQUARE, [0, 0, -math.inf, 0, 20, 20]], "a polygon of NaN or infinity"),
    ([[0, 0, 20, 20]], "a polygon of 4 numbers"),
    ([[5, 5]], "a polygon of 2 numbers"),
    ([[0, 0, 20, 0, 20, 20, 5]], "a polygon of 7 numbers"),
    ([[]], "a polygon of 0 numbers"),
    ([SQUARE, []], "a polygon of 0 numbers"),
    ([], "without segmentation"),
    ({}, "without segmentation"),
    (None, "without segmentation"),
    ("", "without segmentation"),
    ("0 0 20 0 20 20", "with a segmentation of type str"),
    (7, "with a segmentation of type int"),
    (SQUARE, "with a segmentation that is no list of polygons"),
    ([[[0, 0], [20, 0], [20, 20], [0, 20], [1, 1], [2, 2]]], "a polygon that is no list of numbers"),
    ([["0", "0", "20", "0", "20", "20"]], "a polygon that is no list of numbers"),
    ([[0, 0, None, 0, 20, 20]], "a polygon that is no list of numbers"),
    ([[0, 0, True, 0, 20, 20]], "a polygon that is no list of numbers"),
    ([[0, 0, 1e12, 0, 20, 20]], "a polygon far outside the image of 40 x 30"),
    ([[0, 0, 10**400, 0, 20, 20]], "a polygon of NaN or infinity"),
    ([[-50000, 0, 20, 0, 20, 20]], "a polygon far outside the image of 40 x 30"),
    ([[0, 0, 0.5, 0, 0.5, 0.9], [0.1, 0.1, 1, 0.5, 0.5, 1]], "a polygon in the first pixel, as of fractions"),
    ([UNCOMPRESSED], "with a segmentation that is no list of polygons"),
    ({"size": [40, 30], "counts": UNCOMPRESSED["counts"]}, "with a mask of (40, 30) where the image is (30, 40)"),
    ({"counts": UNCOMPRESSED["counts"]}, "with a mask of None where"),
    ({"size": 30, "counts": UNCOMPRESSED["counts"]}, "with a mask of 30 where"),
    ({"size": [30, 40]}, "with run lengths that are none"),
    ({"size": [30, 40], "counts": [1200.5]}, "with run lengths that are none"),
    ({"size": [30, 40], "counts": [1210, -10]}, "with run lengths that are none"),
    ({"size": [30, 40], "counts": [100, 100]}, "with run lengths of 200 pixels where the image has 1200"),
    ({"size": [30, 40], "counts": [2**40]}, f"with run lengths of {2**40} pixels where the image has 1200"),
    ({"size": [30, 40], "counts": "not run lengths"}, "with run lengths that are none"),
    ({"size": [30, 40], "counts": "oooooooooooo"}, "with run lengths that are none"),
    ({"size": [30, 40], "counts": COMPRESSED["counts"][:-3]}, "with run lengths"),
    ({"size": [30, 40], "counts": "ü"}, "with run lengths that are none"),
]  # fmt: skip


@pytest.mark.parametrize(("mask", "fault"), DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_mask_is_named_before_it_is_decoded(folder, mask, fault):
    content = instances((1, 2), (1, 2, 2), [[SQUARE], mask, [SQUARE]])
    message = refused(folder, content)
    assert message.startswith("instances: got ") and "instances_val.json: object 101 of image 2 " in message
    assert fault in message and "(1 of 3 objects are damaged)" in message
    assert message.endswith("on_error='skip' leaves others out")
    with pytest.warns(
        UserWarning, match="left out instances_val.json: object 101 of image 2 .*1 of 3 objects"
    ):
        samples = opened(folder, content, on_error="skip")
    assert names_of(samples) == [["cat"], ["cat"]]
    assert len(opened(folder, content, n=1)) == 1  # its image is not used
    content["annotations"] = content["annotations"][1:2]
    with pytest.warns(
        UserWarning, match="1 of 1 objects .* none is left: these images count as not annotated"
    ):
        samples = opened(folder, content, on_error="skip")
    assert [sample.objects for sample in samples] == [None, None]


@pytest.mark.parametrize(
    ("mask", "n_pixels"),
    [
        ([SQUARE], 400),
        ([[-0.5, -0.5, 20, 0, 20, 20, 0, 20.4]], 400),
        ([[20, 10, 60, 10, 60, 20, 20, 20]], 200),
        ([[-30, -20, -10, -20, -10, -5]], 0),
        ([SQUARE, [30, 0, 40, 0, 40, 10, 30, 10]], 500),
        (UNCOMPRESSED, 200),
        (COMPRESSED, 30),
        ({"size": [30, 40], "counts": [1200]}, 0),
        ({"size": [30, 40], "counts": [0, 1200]}, 1200),
    ],
)
def test_sound_masks_are_read_whether_crowds_or_not(folder, mask, n_pixels):
    for crowd in (0, 1, None):
        samples = opened(folder, instances((1,), (1,), [mask], iscrowd=crowd))
        assert abs(masks_of(samples[0])[0].sum() - n_pixels) <= 20 * (n_pixels > 0)
    assert samples[0].objects[0].rle["size"] == [30, 40]


@pytest.mark.parametrize(
    "mask",
    [
        [[5, 5, 5, 5, 5, 5]],
        [[0, 0, 10, 10, 20, 20], [3, 0, 3, 9, 3, 4]],
        [[50, 0, 60, 0, 60, 20]],
        {"size": [30, 40], "counts": [1200]},
        {"size": [30, 40], "counts": [0] * 1000 + [1200]},
    ],
)
def test_masks_of_no_pixel_are_counted_and_named(folder, mask):
    told = "^instances: 1 of 2 masks cover no pixel, first of instances_val.json: object 101 of image 2$"
    with pytest.warns(UserWarning, match=told):
        samples = opened(folder, instances((1, 2), (1, 2), [[SQUARE], mask]))
    assert not masks_of(samples[1])[0].any()
    assert (samples[1].objects[0].box, samples[1].objects[0].area) == ((0, 0, 0, 0), 0)


def test_runs_of_no_pixel_leave_the_box_as_it_is(folder):
    counts = [0, 0, 0, *UNCOMPRESSED["counts"][:2], 0, 0, *UNCOMPRESSED["counts"][2:]]
    masks = [UNCOMPRESSED, UNCOMPRESSED | {"counts": counts[1:]}]
    first, second = opened(folder, instances(masks=masks))
    assert first.objects[0].box == second.objects[0].box == (10, 5, 20, 10)


def test_run_lengths_are_those_that_were_encoded():
    generator = np.random.default_rng(0)
    for shape in ((1, 1), (3, 700), (30, 40)):
        for share in (0.01, 0.5, 1.0):
            mask = np.asfortranarray(generator.random(shape) < share).astype(np.uint8)
            flat = mask.flatten(order="F")
            edges = np.flatnonzero(np.diff(flat, prepend=0))
            expected = np.diff([0, *edges, flat.size]).tolist()
            assert run_lengths(coco_mask.encode(mask)["counts"].decode()) == expected


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"bbox": [0, 0, 1]}, "with a bbox that is not four finite numbers"),
        ({"bbox": [0, 0, math.nan, 1]}, "with a bbox that is not four finite numbers"),
        ({"bbox": "0 0 1 1"}, "with a bbox that is not four finite numbers"),
        ({"bbox": [20, 20, -5, 5]}, "with a bbox or area below 0, or outside the image of 40 x 30"),
        ({"bbox": [100, 100, 5, 5]}, "with a bbox or area below 0, or outside the image of 40 x 30"),
        ({"area": -400}, "with a bbox or area below 0, or outside the image of 40 x 30"),
        ({"area": math.nan}, "with an area that is no finite number"),
        ({"area": "400"}, "with an area that is no finite number"),
    ],
)
def test_boxes_and_areas_must_be_numbers_where_they_are_given(folder, fields, fault):
    assert f"object 100 of image 1 {fault}" in refused(folder, instances(**fields))
    (first, _) = opened(folder, instances(bbox=None, area=None))
    assert first.objects[0].box == (0, 0, 20, 20) and first.objects[0].area == 400


@pytest.mark.parametrize("size", [None, 0, -40, "wide", 40.5, True, math.nan])
def test_an_image_needs_a_size(folder, size):
    content = instances()
    content["images"][1]["width"] = size
    assert f"instances_val.json: image 2 of width {size!r}" in refused(folder, content).replace("\\'", "'")
    content["images"][1]["width"] = 40.0
    assert opened(folder, content)[1].width == 40


def test_records_that_are_none_end_in_one_line(folder):
    for key in ("images", "annotations", "categories"):
        for record in (None, 3, "text", [1]):
            content = instances()
            content[key].append(record)
            assert f"instances_val.json: {key} that are no records" in refused(folder, content)
    path = folder / "annotations" / "instances_val.json"
    for text in ("", "[]", "[" * 100_000, '{"images": [' + "1" * 5000 + "]}", "{" * 10):
        path.write_text(text)
        with pytest.raises(ParameterError) as error:
            CocoDataset(folder, "val")
        assert len(one_line(error)) < 400
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(instances()).encode())  # as Windows writes it
    assert len(CocoDataset(folder, "val")) == 2
    path.write_bytes(json.dumps(instances()).encode("utf-16"))
    with pytest.raises(ParameterError, match="instances_val.json"):
        CocoDataset(folder, "val")


def test_missing_images_can_be_left_out(folder):
    (folder / "val" / "0.png").unlink()
    message = refused(folder, instances((1, 2, 3), ()), ImageError)
    assert "1 of 3 are missing, first '0.png'" in message and "on_error='skip'" in message
    with pytest.warns(UserWarning, match="images: 1 of 3 are missing, first '0.png'; they are left out"):
        samples = opened(folder, instances((1, 2, 3), ()), on_error="skip")
    assert [sample.image_id for sample in samples] == [2, 3]
    with pytest.warns(UserWarning, match="left out"):
        assert CocoDataset(folder, "val", on_error="skip").skipped == {"0.png": "'0.png' is missing"}
    with pytest.warns(UserWarning, match="1 of 2 are missing"):
        (sample,) = opened(folder, instances((1, 2, 3), ()), on_error="skip", n=1)
    assert sample.image_id == 2
    for number in (1, 2):
        (folder / "val" / f"{number}.png").unlink()
    assert "3 of 3 are missing" in refused(folder, instances((1, 2, 3), ()), ImageError, on_error="skip")
    assert "on_error: got 'drop'; accepted: stop, skip" in refused(folder, instances(), on_error="drop")


# Annotations that are sound and of something else


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"segmentation": [[0, 0, 60, 0, 60, 40, 0, 40]]}, "masks reach beyond their image"),
        ({"bbox": [10, 10, 20, 20]}, "boxes .x, y, width, height. are not those of their masks"),
        ({"bbox": [0, 0, 1, 1]}, "boxes .x, y, width, height. are not those of their masks"),
    ],
)
def test_masks_and_boxes_of_other_pictures_are_counted(folder, fields, told):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened(folder, instances(bbox=[0, 0, 20, 20]))
    with pytest.warns(
        UserWarning, match=f"^instances: 2 of 2 {told}, first of instances_val.json: object 100"
    ):
        opened(folder, instances(**fields))


def test_a_file_that_annotates_no_object_says_so(folder):
    with pytest.warns(UserWarning, match="^instances_val.json: no object is annotated: nothing covers"):
        samples = opened(folder, instances() | {"annotations": []})
    assert names_of(samples) == [[], []]


def test_captions_of_other_images_under_the_same_ids_are_refused(folder):
    images = [own | {"file_name": f"train/{1 - k}.png"} for k, own in enumerate(instances()["images"])]
    captions = [{"id": 1, "image_id": 1, "caption": "of the other"}]
    path = folder / "annotations" / "captions_val.json"
    write_json(path, {"images": images, "annotations": captions})
    line = refused(folder, instances())
    assert (
        "2 of 2 ids of other images than in the instances, first 1, 'train/1.png' instead of '0.png'" in line
    )
