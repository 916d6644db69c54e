"""Check the control that reads smaller pictures: what the encoder is shown, and which tokens look at it."""

import PIL.Image
import pytest
import tiny
import torch
from families import FAMILIES

from rcblib.mllm import adapter_for
from rcblib.pruners import PRUNERS
from rcblib.pruners.downsampled import lies_on_picture, seen_box
from rcblib.records import ParameterError, VisualView


def smaller(ratio):
    return PRUNERS["downsampled"].make({"retain_ratio": ratio})


def red(size):
    return PIL.Image.new("RGB", size, (255, 0, 0))


def test_a_fixed_frame_holds_the_smaller_picture_in_its_corner():
    adapter = adapter_for(*tiny.tiny_llava())
    (frame,) = smaller(0.25).resize([red((24, 24))], adapter)
    mean = tuple(round(255 * value) for value in adapter.processor.image_processor.image_mean)
    assert frame.size == (24, 24)
    shown = {place: frame.getpixel(place) for place in ((0, 0), (11, 11), (12, 11), (11, 12), (23, 23))}
    assert [colour == (255, 0, 0) for colour in shown.values()] == [True, True, False, False, False]
    assert set(shown.values()) == {(255, 0, 0), mean}
    pixels = adapter.preprocess([frame], "image")["pixel_values"][0]
    assert pixels[:, 12:].abs().max() < 0.02 and pixels[:, :12, :12].abs().min() > 1


@pytest.mark.parametrize(("ratio", "side"), [(0.25, 3), (0.5, 4), (0.1, 2), (0.001, 1), (0.9, 6)])
def test_the_picture_s_side_is_a_whole_number_of_tokens(ratio, side):
    model, processor = tiny.tiny_llava()
    adapter = adapter_for(model, processor)
    with smaller(ratio)(model, processor) as pruned:
        inputs = processor(
            text=[adapter.prompt("What is it ?")], images=pruned.resize([red((40, 31))]), return_tensors="pt"
        )
        model.generate(**inputs, max_new_tokens=1, do_sample=False)
    block = (torch.arange(side)[:, None] * 6 + torch.arange(side)).flatten()
    assert torch.equal(pruned.kept[0], block)


def test_of_a_cropped_picture_the_part_that_is_seen_gets_smaller():
    """A picture of 40 x 31 px is cropped to its middle 31 x 31, whose left half is red and right half blue."""
    adapter = adapter_for(*tiny.tiny_llava())
    picture = red((40, 31))
    picture.paste((0, 0, 255), (20, 0, 40, 31))
    left, top, right, bottom = seen_box(adapter, 40, 31)
    assert (top, bottom) == (0, 31) and right - left == pytest.approx(31, abs=1.5)
    (frame,) = smaller(0.25).resize([picture], adapter)
    pixels = adapter.preprocess([frame], "image")["pixel_values"][0]  # (3, 24, 24)
    reds, blues = pixels[0, :10] > 1, pixels[2, :10] > 1
    assert reds[:, 1:5].all() and blues[:, 8:11].all() and not reds[:, 8:].any() and not blues[:, :4].any()


def test_families_of_any_size_read_fewer_tokens():
    model, processor = FAMILIES["qwen2_5_vl"].build()
    adapter, picture = adapter_for(model, processor), red((84, 84))
    (small,) = smaller(0.5).resize([picture], adapter)
    assert small.size == (59, 59)
    whole, few = adapter.encode([picture])[0], adapter.encode([small])[0]
    assert few.n_tokens == 4 < whole.n_tokens == 9
    reduced = smaller(0.5).reduce_image(few, adapter=adapter)
    assert torch.equal(reduced.positions, torch.arange(4))


@pytest.mark.parametrize("family", ["llava_next", "llava_onevision"])
def test_tokens_of_tiles_are_those_that_look_at_the_picture(family):
    """Ask token by token whether its middle is on the smaller picture, which lies in the frame's corner."""
    adapter = adapter_for(*FAMILIES[family].build())
    for size in FAMILIES[family].sizes:
        image = adapter.encode([red(size)])[0]
        reduced = smaller(0.25).reduce_image(image, adapter=adapter)
        scale = smaller(0.25).scale(adapter)
        expected, n_before = [], 0
        for view in image.views:
            left, top, right, bottom = view.region
            height, width = view.grid
            for i in range(view.n_tokens):
                row, column = divmod(i, width)
                x = left + (column + 0.5) * (right - left) / width
                y = top + (row + 0.5) * (bottom - top) / height
                if 0 <= x < scale and 0 <= y < scale:
                    expected.append(n_before + i)
            n_before += view.n_tokens
        assert reduced.positions.tolist() == expected and 0.1 < len(expected) / n_before < 0.4


def test_a_token_lies_on_a_picture_where_its_middle_does():
    view = VisualView(torch.zeros(4, 1), (2, 2), region=(-0.5, 0.0, 0.5, 1.0))
    assert lies_on_picture(view, 0.5).tolist() == [False, True, False, False]
    assert lies_on_picture(view, 1.0).tolist() == [False, True, False, True]  # the left column lies outside


def test_everything_and_nothing():
    adapter = adapter_for(*tiny.tiny_llava())
    picture = red((40, 31))
    assert smaller(1.0).resize([picture], adapter) == [picture]
    with pytest.raises(ParameterError, match=r"retain_ratio: got 0\.0; accepted: a number above 0"):
        smaller(0.0)
    with pytest.raises(ParameterError, match="context: got None"):
        smaller(0.5).select((VisualView(torch.zeros(4, 1), (2, 2)),))
