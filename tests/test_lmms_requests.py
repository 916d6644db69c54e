"""Check that no question of a task is answered without what it is about, and that one line names it."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
from PIL import Image

from rcblib.evaluate.lmms.plugin import ModelArguments
from rcblib.evaluate.lmms.requests import read_question
from rcblib.evaluate.lmms.tasks import utils
from rcblib.mllm import adapter_for
from rcblib.records import ImageError, ParameterError


@pytest.fixture(scope="module")
def adapter():
    return adapter_for(*tiny.tiny_llava())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return pictures and videos as tasks have them on disk."""
    folder = tmp_path_factory.mktemp("shown")
    first, second = tiny.random_images(2)
    first.save(folder / "no_suffix", "PNG")
    several = {"pages.tif": "TIFF", "moves.gif": "GIF", "two_views.jpg": "MPO"}
    for name, form in several.items():
        first.copy().save(folder / name, form, save_all=True, append_images=[second.copy()])
    first.save(folder / "photo.jpg")
    (folder / "broken.jpg").write_bytes((folder / "photo.jpg").read_bytes()[:300])
    (folder / "text.jpg").write_text("no picture")
    (folder / "text.mp4").write_text("no video")
    (folder / "nothing").mkdir()
    (folder / "frames.jpg").mkdir()
    for i, frame in enumerate((first, second)):
        frame.save(folder / "frames.jpg" / f"{i}.png")
    return folder


def read(adapter, shown, document=None, **options):
    request = SimpleNamespace(args=("Is it ?", {}, shown, 7, "some_task", "test"))
    return read_question(adapter, request, {} if document is None else document, 4, **options)


def refused(adapter, shown, document=None):
    with pytest.raises(ImageError) as error:
        read(adapter, shown, document)
    line = str(error.value)
    assert line.startswith("task 'some_task', document 7: ") and "\n" not in line
    return line.removeprefix("task 'some_task', document 7: ")


@pytest.mark.parametrize(
    "row",
    [
        {"image": None},
        {"images": None},
        {"images": [None, None]},
        {"images": [Image.new("RGB", (8, 8)), None]},
        {"video": None},
        {"video": ""},
        {"picture": Image.new("RGB", (8, 8))},
    ],
)
def test_a_row_of_a_local_task_without_its_image_is_refused(adapter, row):
    assert refused(adapter, utils.images, row).startswith("visual: got None; accepted: PIL images, or paths")


@pytest.mark.parametrize("nothing", [[], [[]], (), None])
def test_a_task_that_shows_nothing_is_answered_only_where_that_is_wanted(adapter, nothing):
    assert refused(adapter, lambda row: nothing) == (
        "visual: got 'nothing'; accepted: an image or a video; questions without one with the model argument "
        "text_only=True"
    )
    assert read(adapter, lambda row: nothing, text_only=True).shape == (0, ())
    assert read(adapter, None).shape == (0, ()), "a task without doc_to_visual is one of texts"


def test_text_only_is_a_model_argument():
    assert ModelArguments.read({"pretrained": "some/model", "text_only": True}).text_only
    assert not ModelArguments.read({"pretrained": "some/model"}).text_only
    with pytest.raises(ParameterError, match="^text_only: got 'yes'; accepted: true or false"):
        ModelArguments.read({"pretrained": "some/model", "text_only": "yes"})


def test_files_of_answers_that_cannot_be_written_are_refused_before_a_model_is_loaded(tmp_path):
    (tmp_path / "file").touch()
    for name, place in (("counts_file", tmp_path), ("answers_folder", tmp_path / "file")):
        with pytest.raises(
            ParameterError, match=f"^{name}: got '{place}'; accepted: one that can be written; it is"
        ):
            ModelArguments.read({"pretrained": "some/model", name: str(place)})


@pytest.mark.parametrize(
    ("shown", "named"),
    [
        (lambda row: [row["image"].convert("RGB")], "AttributeError: 'NoneType' object has no attribute"),
        (lambda row: [row["picture"]], "KeyError: 'picture'"),
        (lambda row: sys.exit("video path:/no/such does not exist"), "SystemExit: video path:/no/such"),
        ("image", "visual: got 'nothing'"),
        (lambda row: row["image"], "visual: got 'nothing'"),
        (lambda row: [3], "visual: got 'int'; accepted: PIL images"),
        (lambda row: [{"bytes": b"", "path": None}], "visual: got 'dict'"),
        (lambda row: b"", "visual: got 'bytes'"),
        (lambda row: [np.zeros((8, 8, 3), np.uint8)], "visual: got 'ndarray'; accepted: PIL images"),
        (lambda row: [""], "visual: got ''"),
        (lambda row: [Image.new("RGB", (0, 0))], "image: got 0 x 0 px; accepted: at least one pixel"),
        (lambda row: [Image.new("F", (8, 8))], "image: got values of mode 'F'"),
        (lambda row: ["none.jpg"], "visual: 'none.jpg' does not exist"),
        (lambda row: ["none.mp4"], "visual: 'none.mp4' does not exist"),
        (lambda row: [Path("none")], "visual: 'none' does not exist"),
    ],
)
def test_what_a_task_cannot_show_is_named(adapter, shown, named):
    assert refused(adapter, shown, {"image": None}).startswith(named)


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("broken.jpg", "image: 'broken.jpg' cannot be read"),
        ("text.jpg", "image: 'text.jpg' cannot be read"),
        ("text.mp4", "video: 'text.mp4' "),
        ("nothing", "folder: got "),
    ],
)
def test_files_that_cannot_be_read_are_named(adapter, folder, name, named):
    assert refused(adapter, lambda row: [folder / name]).startswith(named)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("photo.jpg", (1, ())),
        ("no_suffix", (1, ())),
        ("two_views.jpg", (1, ())),
        ("pages.tif", (1, ())),
        ("moves.gif", (0, (2,))),
        ("frames.jpg", (0, (2,))),
    ],
)
def test_photos_are_told_from_videos_by_what_they_hold(folder, name, shape):
    adapter = adapter_for(*tiny.tiny_onevision())
    assert read(adapter, lambda row: [str(folder / name)]).shape == shape


def test_a_question_that_is_no_text_is_refused(adapter):
    request = SimpleNamespace(args=(None, {}, lambda row: Image.new("RGB", (8, 8)), 7, "some_task", "test"))
    with pytest.raises(ParameterError, match="^context: got None; accepted: the text of a question$"):
        read_question(adapter, request, {}, 4)
