"""Pictures upright, as RGB with 8 bits a channel."""

import io

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from rcblib.records import ImageError
from rcblib.tensors.pictures import as_rgb, is_sideways

CORNERS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)

UPRIGHT = {
    1: CORNERS,
    2: CORNERS[:, ::-1],
    3: CORNERS[::-1, ::-1],
    4: CORNERS[::-1],
    5: CORNERS.transpose(1, 0, 2),
    6: np.rot90(CORNERS, -1),
    7: CORNERS[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(CORNERS),
}
"""What is to be seen of `CORNERS`, stored under each orientation."""


def stored(picture, kind="PNG", orientation=1, **settings):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    picture.save(file, kind, exif=exif, **settings)
    return Image.open(io.BytesIO(file.getvalue()))


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_every_orientation_is_read_upright_once(kind, orientation):
    image = stored(Image.fromarray(CORNERS), kind, orientation, lossless=True)
    assert is_sideways(image) == (orientation > 4)
    upright = as_rgb(image)
    assert (np.asarray(upright) == UPRIGHT[orientation]).all()
    assert as_rgb(upright) is upright  # what says how to turn it is gone
    assert (np.asarray(as_rgb(ImageOps.exif_transpose(image))) == UPRIGHT[orientation]).all()
    # Converted by hand, a picture still carries its orientation.
    assert (np.asarray(as_rgb(image.convert("RGB"))) == UPRIGHT[orientation]).all()


@pytest.mark.parametrize("value", [0, 9, 77])
def test_an_orientation_that_is_none_turns_nothing(value):
    assert as_rgb(stored(Image.new("RGB", (3, 2)), "JPEG", value)).size == (3, 2)


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II*\0", b"Exif\0\0MM\0*" + b"\xff" * 40, b"no exif"])
def test_damaged_exif_leaves_whole_pixels_as_they_are(exif):
    image = Image.new("RGB", (3, 2), (1, 2, 3))
    image.info["exif"] = exif
    assert as_rgb(image).getpixel((2, 1)) == (1, 2, 3)


def test_every_way_to_store_a_colour_is_read():
    red = Image.new("RGB", (3, 2), (255, 0, 0))
    palette = red.quantize(2)
    palette.info["transparency"] = 0
    for image in (
        red.convert("RGBA"), red.convert("CMYK"), red.convert("YCbCr"), red.convert("HSV"), palette,
        stored(red.convert("CMYK"), "JPEG", quality=100), stored(palette, "GIF"),
    ):  # fmt: skip
        found = as_rgb(image)
        assert found.mode == "RGB" and not found.info
        np.testing.assert_allclose(found.getpixel((1, 1)), (255, 0, 0), atol=3)
    for mode in ("1", "L", "LA", "I;16"):
        assert as_rgb(Image.new(mode, (1, 1))).getpixel((0, 0)) == (0, 0, 0)
    assert as_rgb(Image.new("LAB", (2, 2))).mode == "RGB"


def test_of_several_frames_it_is_the_one_at_which_the_picture_stands():
    file = io.BytesIO()
    frames = [Image.new("RGB", (4, 4), (grey,) * 3) for grey in (0, 120, 240)]
    frames[0].save(file, "PNG", save_all=True, append_images=frames[1:])
    image = Image.open(file)
    assert as_rgb(image).getpixel((0, 0)) == (0, 0, 0)
    image.seek(2)
    assert as_rgb(image).getpixel((0, 0)) == (240, 240, 240)


def test_an_object_that_cannot_be_decoded_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)
    Image.effect_noise((64, 64), 50).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    with pytest.raises(ImageError, match=r"^image: cannot be read \(.*\)$"):
        as_rgb(Image.open(io.BytesIO(content[: len(content) // 2])))
    with pytest.raises(ImageError, match="^image: got 0 x 3 px; accepted: at least one pixel$"):
        as_rgb(Image.new("L", (0, 3)))
    with Image.open(tmp_path / "a.png") as image:
        pass
    with pytest.raises(ImageError, match=r"^image: 'a.png' cannot be read \(.*\)$"):
        as_rgb(image)


def test_what_a_reader_says_in_several_lines_is_told_in_one(monkeypatch):
    def load():
        raise ValueError("no pixels\nsee the manual")

    image = Image.new("L", (4, 4))
    monkeypatch.setattr(image, "load", load)
    with pytest.raises(ImageError, match=r"^image: cannot be read \(no pixels see the manual\)$"):
        as_rgb(image)
