"""Names and folders, and the datasets that they open."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from picture_files import animation, cut, grey_frames

from rcblib.data.opening import folder_of, images_for, open_dataset, open_images, open_noted
from rcblib.data.photos import PhotoFolder
from rcblib.data.skipped import skipped_in
from rcblib.data.video import VideoFile
from rcblib.records import ImageError, ParameterError
from worlds.datasets import SceneDataset

SHIPPED = Path(__file__).resolve().parents[1] / "data" / "scenes"


def test_a_name_or_folder_opens_its_dataset(coco, tmp_path):
    assert isinstance(open_dataset("scenes", n=3), SceneDataset)
    assert open_dataset("scenes", "test", 3, seed=4)[0].file_name == "test_4_000000.png"
    assert open_dataset("scenes", n=3)[0].source == "scenes/validation"
    assert open_dataset(f"coco:{coco}", "val2014", 1)[0].image_id == 7
    assert open_dataset(coco, "train", 1)[0].image_id == 4
    assert open_dataset(SHIPPED, "test")[0].source == "scenes/test"
    photos = open_dataset(str(coco / "val2014"), "validation", 9)
    assert isinstance(photos, PhotoFolder)
    assert len(photos) == 2
    assert open_dataset("groups", "test", 3, seed=4)[2].file_name == "test_4_000002"
    assert open_dataset("videos", n=3, n_frames=6)[0].n_images == 6
    assert open_dataset(f"group:{coco / 'val2014'}")[0].n_images == 2
    assert isinstance(open_dataset(animation(tmp_path / "clip.gif", grey_frames())), VideoFile)


def test_names_that_open_nothing(tmp_path):
    with pytest.raises(
        ImageError,
        match="images: got 'nowhere', which is no folder; accepted: 'groups', 'large-scenes', 'photographs', ",
    ):
        open_dataset("nowhere")
    with pytest.raises(ImageError, match="without any photo"):
        open_dataset(tmp_path)
    with pytest.raises(ImageError, match="does not exist"):
        open_dataset(f"coco:{tmp_path / 'nowhere'}")
    with pytest.raises(ParameterError, match="n: got None"):
        open_dataset("scenes")
    with pytest.raises(ParameterError, match="split: got 'val'; accepted: train, validation, test"):
        open_dataset("scenes", "val", 3)


def test_damaged_images_of_any_dataset_are_left_out_and_noted_beside_the_results(coco, tmp_path):
    results, lost = tmp_path / "results", coco / "val2014" / "COCO_val2014_000000000005.jpg"
    whole = lost.read_bytes()
    cut(lost)
    settings = {"split": "val2014", "n": None, "seed": 0}
    stopping, _ = open_noted(results, coco, **settings, on_error="stop")
    assert len(stopping) == 2 and not results.exists()
    with pytest.warns(UserWarning, match=f"left out: image: '{lost.name}' cannot be read"):
        skipping, left_out = open_noted(results, coco, **settings, on_error="skip")
    assert [sample.image_id for sample in skipping] == [7]
    assert list(skipped_in(results)) == list(left_out) == [5]
    lost.write_bytes(whole)
    assert len(open_noted(results, coco, **settings, on_error="skip")[0]) == 2
    assert skipped_in(results) == {}
    lost.unlink()
    with pytest.warns(UserWarning, match="1 of 2 are missing"):
        open_noted(results, coco, **settings, on_error="skip")
    assert skipped_in(results) == {lost.name: f"{lost.name!r} is missing"}
    worlds, _ = open_noted(results, "groups", "test", 2, seed=0, on_error="skip")
    assert worlds.questions() and len(worlds) == 2  # what only a dataset can do stays


def test_worlds_are_opened_by_name_with_their_own_sizes():
    small, large = (open_dataset(name, "validation", 5) for name in ("scenes", "large-scenes"))
    assert {(sample.width, sample.height) for sample in small} == {(96, 96)}
    assert max(sample.width for sample in large) == 192


def test_images_are_those_of_the_models_world_unless_named():
    embedded = SimpleNamespace(config=SimpleNamespace(rcb_world="large-scenes"))
    other = SimpleNamespace(config=SimpleNamespace())
    assert images_for("auto", embedded) == "large-scenes"
    assert images_for("auto", other) == "photographs"
    assert images_for("folder", embedded) == "folder"


def test_the_sample_needs_no_download_and_is_longer_in_a_checkout(monkeypatch, tmp_path):
    sample = open_dataset("sample")
    assert [photo.image_id for photo in sample[:3]] == ["china.jpg", "flower.jpg", "astronaut.jpg"]
    assert len(sample) == 6 and len(open_dataset("sample", "test", 1)) == 1
    for photo in sample:
        assert photo.image.size == (photo.width, photo.height) and photo.image.mode == "RGB"
        assert photo.objects is None and photo.source == "photos/sample"
    assert folder_of("sample") is None
    monkeypatch.setenv("RCB_ROOT", str(tmp_path))  # the library without the project
    assert [photo.image_id for photo in open_dataset("sample")] == ["china.jpg", "flower.jpg"]
    with pytest.raises(ImageError, match="'sample', 'scenes', 'videos', 'coco:<folder>'"):
        open_dataset("sampel")


def test_only_single_images_are_opened_as_images(tmp_path):
    assert [sample.image_id for sample in open_images("scenes", "test", 2)] == [0, 1]
    with pytest.raises(ParameterError, match="images: got 'videos: a video'; accepted: single images"):
        open_images("videos", "test", 1)
    with pytest.raises(ParameterError, match="groups: several images in one prompt"):
        open_images("groups", "test", 1)
