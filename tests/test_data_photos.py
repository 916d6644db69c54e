"""Photos, and folders of them."""

import numpy as np
import pytest
from picture_files import cut, save_picture
from PIL import Image, ImageFile

from rcblib.data.photos import PhotoFolder, PhotoGroup, as_rgb, read_image
from rcblib.records import ImageError, ParameterError


def test_photos_come_sorted_with_their_upright_size(tmp_path):
    save_picture(tmp_path / "b.png", (50, 20))
    turned = Image.Exif()
    turned[0x0112] = 6
    save_picture(tmp_path / "a.JPG", (40, 30), exif=turned)
    Image.new("LA", (8, 9)).save(tmp_path / "c.png")
    (tmp_path / "notes.txt").write_text("no photo")
    save_picture(tmp_path / ".hidden.png")
    save_picture(tmp_path / "more" / "d.png")
    photos = PhotoFolder(tmp_path)
    assert [sample.file_name for sample in photos] == ["a.JPG", "b.png", "c.png"]
    assert [(sample.width, sample.height) for sample in photos] == [(30, 40), (50, 20), (8, 9)]
    for i, sample in enumerate(photos):
        assert sample.image.size == (sample.width, sample.height)
        assert sample.image.mode == "RGB"
        assert (sample.image_id, sample.objects, sample.captions) == (i, None, ())
        assert sample.source == "photos"
    assert read_image(tmp_path / "a.JPG", upright=False).size == (40, 30)
    assert len(PhotoFolder(tmp_path, 2)) == 2
    assert len(PhotoFolder(tmp_path, 20)) == 3


def test_folders_without_photos_are_errors(tmp_path):
    with pytest.raises(ImageError, match="without any photo; accepted: a folder with photos"):
        PhotoFolder(tmp_path)
    with pytest.raises(ImageError, match="does not exist"):
        PhotoFolder(tmp_path / "nowhere")
    with pytest.raises(ParameterError, match="n: got -1"):
        PhotoFolder(tmp_path, -1)


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "bmp", "tiff"])
@pytest.mark.parametrize(
    "damage", [cut, lambda path: path.write_text("no image"), lambda path: path.write_bytes(b"")]
)
@pytest.mark.parametrize("filled_up", [False, True], ids=["as it is", "after lmms-eval"])
def test_a_damaged_photo_is_named_before_any_is_used(tmp_path, suffix, damage, filled_up, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", filled_up)
    save_picture(tmp_path / f"a.{suffix}", (200, 200))
    damage(save_picture(tmp_path / f"b.{suffix}", (200, 200)))
    with pytest.raises(ImageError, match=rf"^image: 'b.{suffix}' cannot be read \(.*\)$"):
        PhotoFolder(tmp_path)
    assert len(PhotoFolder(tmp_path, 1)) == 1
    assert ImageFile.LOAD_TRUNCATED_IMAGES is filled_up


def test_a_photo_that_vanishes_later_is_an_image_error(tmp_path):
    path = save_picture(tmp_path / "a.png")
    (sample,) = PhotoFolder(tmp_path)
    path.unlink()
    with pytest.raises(ImageError, match="image: 'a.png' cannot be read"):
        sample.load()


def test_the_photos_of_a_folder_are_one_group_in_natural_order(tmp_path):
    for number in (10, 9, 1):
        save_picture(tmp_path / f"view {number}.png", (20 + number, 30), seed=number)
    (sample,) = PhotoGroup(tmp_path)
    assert (sample.kind, sample.source, sample.file_name) == ("images", "photos", tmp_path.name)
    assert sample.sizes == ((21, 30), (29, 30), (30, 30))
    assert [image.size for image in sample.images] == list(sample.sizes)
    assert sample.objects is None
    assert PhotoGroup(tmp_path, 2)[0].n_images == 2
    cut(tmp_path / "view 10.png")
    with pytest.raises(ImageError, match=r"^image: 'view 10.png' cannot be read \(.*\)$"):
        PhotoGroup(tmp_path)
    with pytest.raises(ImageError, match="does not exist"):
        PhotoGroup(tmp_path / "nowhere")


def test_grey_values_of_16_bits_are_scaled_and_unknown_ranges_refused(tmp_path):
    values = np.array([[0, 257, 32896], [65535, 256, 514]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    image = read_image(tmp_path / "deep.png")
    assert image.mode == "RGB"
    assert np.asarray(image)[..., 0].tolist() == [[0, 1, 128], [255, 0, 2]]
    for values in (np.ones((2, 2), np.float32), np.ones((2, 2), np.int32)):
        picture = Image.fromarray(values)
        picture.save(tmp_path / "unknown.tif")
        with pytest.raises(ImageError, match="'unknown.tif' cannot be read .*mode '[FI]'; accepted: 8 bits"):
            read_image(tmp_path / "unknown.tif")
        with pytest.raises(ImageError, match="^image: got values of mode '[FI]'"):
            as_rgb(picture)
