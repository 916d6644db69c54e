"""Drawn scenes, groups and videos as datasets, and the sample that comes with the project."""

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from picture_files import arrays
from PIL import Image
from pycocotools import mask as coco_mask

from rcblib.data.choices import read_options
from rcblib.data.coco import CocoDataset
from rcblib.data.questions import questions_for
from rcblib.records import ParameterError
from worlds.datasets import SAMPLE_SIZES, GroupDataset, SceneDataset, VideoDataset, write_sample
from worlds.scenes.coco import export_coco
from worlds.scenes.generator import SceneConfig, generate_scene
from worlds.scenes.groups import GROUP_KINDS, generate_group, group_questions
from worlds.scenes.video import VIDEO_KINDS, generate_video, video_questions

SHIPPED = Path(__file__).resolve().parents[1] / "data" / "scenes"


def plain(sample):
    """Return what a sample says, without the function that loads it."""
    names = ("image_id", "width", "height", "captions", "objects", "source", "file_name")
    return {name: getattr(sample, name) for name in names}


def test_scenes_are_drawn_on_demand():
    dataset = SceneDataset("validation", 6, seed=3, start=10)
    assert len(dataset) == 6
    assert [sample.image_id for sample in dataset] == [10, 11, 12, 13, 14, 15]
    assert dataset[-1].image_id == 15
    assert [sample.image_id for sample in dataset[1:5:2]] == [11, 13]
    with pytest.raises(IndexError):
        dataset[6]
    scene = generate_scene(3, 12, "validation")
    sample = dataset[2]
    assert (np.asarray(sample.image) == scene.pixels).all()
    assert [item.category for item in sample.objects] == [item.category for item in scene.objects]
    assert sample.source == "scenes/validation"
    assert sample.file_name == "validation_3_000012.png"


def test_a_scene_sample_holds_no_pixels_and_travels_to_other_processes():
    sample = SceneDataset("train", 1, config=SceneConfig(sizes=((120, 120),)))[0]
    packed = pickle.dumps(sample)
    assert len(packed) < 5000
    assert (np.asarray(pickle.loads(packed).image) == np.asarray(sample.image)).all()
    assert sample.image.size == (120, 120)


def test_the_shipped_sample_is_what_the_command_writes(tmp_path):
    write_sample(tmp_path)
    files = sorted(path.relative_to(SHIPPED) for path in SHIPPED.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert len(files) == sum(SAMPLE_SIZES.values()) + 4
    for name in files:
        if name.suffix == ".json":
            assert (SHIPPED / name).read_bytes() == (tmp_path / name).read_bytes()
        else:
            assert Image.open(SHIPPED / name).tobytes() == Image.open(tmp_path / name).tobytes()
    assert sum((SHIPPED / name).stat().st_size for name in files) < 1.5e6


def test_the_sample_is_written_byte_for_byte_the_same_again(tmp_path):
    for folder in ("one", "other"):
        export_coco([generate_scene(1, i, "test") for i in range(5)], tmp_path / folder, "test")
    files = [path for path in (tmp_path / "one").rglob("*") if path.is_file()]
    assert len(files) == 7
    for path in files:
        assert path.read_bytes() == (tmp_path / "other" / path.relative_to(tmp_path / "one")).read_bytes()


@pytest.mark.parametrize("split", SAMPLE_SIZES)
def test_the_shipped_sample_reads_as_the_scenes_it_was_made_of(split):
    shipped = CocoDataset(SHIPPED, split)
    drawn = SceneDataset(split, SAMPLE_SIZES[split], seed=2503)
    assert len(shipped) == len(drawn)
    for one, other in zip(shipped, drawn, strict=True):
        assert plain(one) == plain(other)
        assert one.image.tobytes() == other.image.tobytes()
    assert questions_for(shipped) == questions_for(drawn)


def check_drawn(sample, scenes):
    """Compare a sample with the scenes that it was made of."""
    assert sample.n_images == len(scenes) == len(sample.objects)
    assert sample.sizes == ((96, 96),) * len(scenes)
    assert (sample.width, sample.height) == (96, 96)
    for pixels, objects, scene in zip(arrays(sample), sample.objects, scenes, strict=True):
        assert (pixels == scene.pixels).all()
        assert [(o.category, o.color) for o in objects] == [(o.category, o.color) for o in scene.objects]
        for item, drawn in zip(objects, scene.objects, strict=True):
            assert (coco_mask.decode(dict(item.rle)) == drawn.full_mask(96, 96)).all()
    packed = pickle.dumps(sample)
    assert len(packed) < 1000 * (1 + sum(map(len, sample.objects)))
    assert all((a == b).all() for a, b in zip(arrays(pickle.loads(packed)), arrays(sample), strict=True))


def test_groups_are_drawn_on_demand():
    dataset = GroupDataset("validation", 4, seed=3, start=10)
    assert [sample.image_id for sample in dataset] == [10, 11, 12, 13]
    assert [sample.image_id for sample in dataset[1:3]] == [11, 12]
    sample = dataset[2]
    assert (sample.kind, sample.source) == ("images", "groups/validation")
    assert sample.file_name == "validation_3_000012"
    check_drawn(sample, generate_group(3, 12, "validation").scenes)
    assert all(sample.n_images == 3 for sample in GroupDataset("test", 5, n_images=3))


def test_videos_are_drawn_on_demand():
    dataset = VideoDataset("test", 3, 5, seed=2, start=7)
    sample = dataset[-1]
    assert (sample.image_id, sample.kind, sample.source) == (9, "video", "videos/test")
    check_drawn(sample, generate_video(2, 9, "test", 5).frames)
    assert VideoDataset("test", 1)[0].n_images == 16


@pytest.mark.parametrize(
    ("dataset", "kinds", "ask"),
    [
        (GroupDataset("test", 60, seed=1), GROUP_KINDS, lambda i: (group_questions, generate_group(1, i, "test"))),
        (VideoDataset("test", 60, seed=1), VIDEO_KINDS, lambda i: (video_questions, generate_video(1, i, "test"))),
    ],
    ids=["groups", "videos"],
)  # fmt: skip
def test_questions_about_several_images(dataset, kinds, ask):
    asked = dataset.questions(n_per_kind=20)
    assert Counter(question.subset for question in asked) == dict.fromkeys(kinds, 20)
    assert list(dict.fromkeys(question.subset for question in asked)) == list(kinds)
    for kind in kinds:
        ids = [question.image_id for question in asked if question.subset == kind]
        assert ids == sorted(ids)
    assert dataset.questions(kinds[1], 20) == [q for q in asked if q.subset == kinds[1]]
    assert dataset.questions(n_per_kind=20, seed=1) != asked
    everything = dataset.questions()
    assert set(asked) < set(everything)
    for index in (0, 59):
        function, what = ask(index)
        expected = function(what, np.random.default_rng([0, index]))
        assert {q for q in everything if q.image_id == index} == set(expected)
    assert all(question.answer in read_options(question.text) for question in everything)


def test_wrong_questions_about_several_images_are_named():
    dataset = VideoDataset("test", 4)
    with pytest.raises(ParameterError, match=r"kinds: got \['ordering'\]; accepted: direction, appear"):
        dataset.questions(["ordering", "count"])
    with pytest.raises(ParameterError, match="n_per_kind: got 9; accepted: at most 8 for count"):
        dataset.questions("count", 9)
    with pytest.raises(ParameterError, match="n_per_kind: got 0"):
        dataset.questions(n_per_kind=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GroupDataset("dev", 1), "split: got 'dev'"),
        (lambda: GroupDataset("test", 0), "n: got 0"),
        (lambda: GroupDataset("test", 1, n_images=5), "n_images: got 5; accepted: an integer from 2 to 4"),
        (lambda: VideoDataset("test", 1, 3), "n_frames: got 3; accepted: an integer at least 4"),
        (lambda: VideoDataset("test", 1, start=-1), "start: got -1"),
    ],
)
def test_numbers_of_groups_and_videos_out_of_range(make, message):
    with pytest.raises(ParameterError, match=f"^{message}"):
        make()


@pytest.mark.parametrize(("name", "value"), [("n", 0), ("n", 2.5), ("seed", -1), ("start", -1)])
def test_scene_numbers_out_of_range(name, value):
    with pytest.raises(ParameterError, match=f"^{name}: got {value}"):
        SceneDataset("test", **{"n": 1, name: value})
