"""Photos, and folders of them."""

import dataclasses
import os
import re
import threading

import numpy as np
import pytest
from picture_files import cut, save_picture
from PIL import Image, ImageFile

from rcblib.data.ahead import loaded_ahead
from rcblib.data.photos import PhotoFolder, PhotoGroup, read_image, readable
from rcblib.records import ImageError, ParameterError
from rcblib.tensors.pictures import as_rgb


def test_photos_come_sorted_with_their_upright_size(tmp_path):
    save_picture(tmp_path / "b.png", (50, 20))
    turned = Image.Exif()
    turned[0x0112] = 6
    save_picture(tmp_path / "a.JPG", (40, 30), exif=turned)
    Image.new("LA", (8, 9)).save(tmp_path / "c.png")
    (tmp_path / "notes.txt").write_text("no photo")
    save_picture(tmp_path / ".hidden.png")
    save_picture(tmp_path / "more" / "d.png")
    with pytest.warns(UserWarning, match=r"passed over: 2 \('more/', 'notes.txt'\) and 1 hidden$"):
        photos = PhotoFolder(tmp_path)
    assert [sample.file_name for sample in photos] == ["a.JPG", "b.png", "c.png"]
    assert [(sample.width, sample.height) for sample in photos] == [(30, 40), (50, 20), (8, 9)]
    for sample in photos:
        assert sample.image.size == (sample.width, sample.height)
        assert sample.image.mode == "RGB"
        assert (sample.image_id, sample.objects, sample.captions) == (sample.file_name, None, ())
        assert sample.source == f"photos/{tmp_path.name}"


def test_as_many_photos_are_used_as_asked_for(tmp_path):
    for name in "abc":
        save_picture(tmp_path / f"{name}.png")
    assert len(PhotoFolder(tmp_path, 2)) == 2
    assert len(PhotoFolder(tmp_path, 20)) == 3


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp", "avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_of_a_photo_is_that_of_what_is_read(tmp_path, suffix, orientation):
    turned = Image.Exif()
    turned[0x0112] = orientation
    save_picture(tmp_path / f"a.{suffix}", (60, 40), exif=turned)
    (sample,) = PhotoFolder(tmp_path)
    assert sample.image.size == (sample.width, sample.height) == ((40, 60) if orientation > 4 else (60, 40))


def test_a_photo_s_id_stays_when_others_come_and_go(tmp_path):
    for name in ("b.png", "d.png", os.fsdecode(b"caf\xe9.png")):
        save_picture(tmp_path / name)
    before = {sample.image_id for sample in PhotoFolder(tmp_path)}
    assert before == {"b.png", "d.png", "caf\\xe9.png"}
    save_picture(tmp_path / "a.png")
    assert {sample.image_id for sample in PhotoFolder(tmp_path)} == before | {"a.png"}
    (tmp_path / "b.png").unlink()
    assert {sample.image_id for sample in PhotoFolder(tmp_path)} == before - {"b.png"} | {"a.png"}


def test_a_photo_is_loaded_while_another_is_worked_on(tmp_path):
    for name in "abcd":
        save_picture(tmp_path / f"{name}.png")
    begun, workers = [], set()

    def reading(sample):
        def read():
            begun.append(sample.file_name)
            workers.add(threading.get_ident())
            return sample.image

        return dataclasses.replace(sample, load=read)

    samples, seen = [reading(sample) for sample in PhotoFolder(tmp_path)], []
    (tmp_path / "d.png").unlink()
    with pytest.raises(ImageError, match="'d.png'"):
        for sample, pictures in loaded_ahead(samples):
            assert pictures[0].size == (sample.width, sample.height)
            seen.append(sample.file_name)
            assert len(begun) <= len(seen) + 1  # one ahead, so that memory does not grow with images
    assert seen == ["a.png", "b.png", "c.png"]
    assert len(workers) == 1 and threading.get_ident() not in workers
    assert list(loaded_ahead([])) == []


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


def test_no_thread_fills_photos_up_while_another_reads(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    first, second = readable("a.png"), readable("b.png")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    second.__exit__(None, None, None)
    assert ImageFile.LOAD_TRUNCATED_IMAGES


def test_all_damaged_photos_are_named_in_one_line(tmp_path):
    for name in "abcdef":
        save_picture(tmp_path / f"{name}.png", (64, 64))
    cut(tmp_path / "b.png")
    (tmp_path / "d.png").write_bytes(b"")
    (tmp_path / "f.png").write_text("no photo")
    for opened in (PhotoFolder, PhotoGroup):
        with pytest.raises(ImageError) as error:
            opened(tmp_path)
        assert re.fullmatch(
            r"images: 3 of 6 cannot be used: 'b.png' cannot be read \(.*\); 'd.png' cannot be read \(.*\); "
            r"'f.png' cannot be read \(.*\)",
            str(error.value),
        )
    photos = PhotoFolder(tmp_path, on_error="skip")
    assert [sample.image_id for sample in photos] == ["a.png", "c.png", "e.png"]
    assert list(photos.skipped) == ["b.png", "d.png", "f.png"]
    assert "truncated" in photos.skipped["b.png"]
    few = PhotoFolder(tmp_path, 2, on_error="skip")
    assert ([sample.image_id for sample in few], list(few.skipped)) == (["a.png", "c.png"], ["b.png"])
    with pytest.raises(ParameterError, match="on_error: got 'ignore'; accepted: stop, skip"):
        PhotoFolder(tmp_path, on_error="ignore")
    for name in "ace":
        (tmp_path / f"{name}.png").unlink()
    with pytest.raises(ImageError, match="images: 3 of 3 cannot be used"):
        PhotoFolder(tmp_path, on_error="skip")


def test_a_photo_of_too_many_pixels_is_one_line(tmp_path, monkeypatch):
    save_picture(tmp_path / "a.png", (64, 64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(
        ImageError, match=r"'a.png' cannot be read \(Image size \(4096 pixels\) exceeds limit of 2000"
    ):
        PhotoFolder(tmp_path)


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
    assert sample.image_id == tmp_path.name
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
