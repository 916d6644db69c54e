import json
import pickle
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from rcblib.data.choices import read_options
from rcblib.data.coco import CocoDataset
from rcblib.data.coverage import object_coverage, visible_box
from rcblib.data.opening import images_for, open_dataset, open_images
from rcblib.data.photos import PhotoFolder, PhotoGroup, as_rgb, read_image
from rcblib.data.questions import POPE_SUBSETS, TASKS, questions_for
from rcblib.data.video import VideoFile, _upright_frame
from rcblib.records import ImageError, ParameterError, Sample, SceneObject, SequenceSample
from rcblib.tensors.geometry import patch_coverage
from worlds.datasets import SAMPLE_SIZES, GroupDataset, SceneDataset, VideoDataset, write_sample
from worlds.scenes.coco import encode_mask, export_coco
from worlds.scenes.generator import SceneConfig, generate_scene
from worlds.scenes.groups import GROUP_KINDS, generate_group, group_questions
from worlds.scenes.video import VIDEO_KINDS, generate_video, video_questions

SHIPPED = Path(__file__).resolve().parents[1] / "data" / "scenes"


def plain(sample):
    """Return what a sample says, without the function that loads it."""
    names = ("image_id", "width", "height", "captions", "objects", "source", "file_name")
    return {name: getattr(sample, name) for name in names}


def save_picture(path, size=(40, 30), seed=0, **settings):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path, **settings)
    return path


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


# Scenes


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


# The sample that comes with the project


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


# COCO proper

TRIANGLE = [[0.0, 0.0, 20.0, 0.0, 0.0, 20.0]]
TWO_PARTS = [[0, 0, 10, 0, 10, 10, 0, 10], [20, 20, 40, 20, 40, 30, 20, 30]]


@pytest.fixture
def coco(tmp_path):
    """Write a folder as COCO's archives and the Karpathy file unpack, with two images a year's half."""
    crowd = np.zeros((30, 40), bool)
    crowd[5:15, 10:30] = True
    uncompressed = {"size": [30, 40], "counts": [305, 10] + [20, 10] * 19 + [315]}
    annotations = {
        "train2014": [
            dict(
                image_id=9, category_id=18, segmentation=TRIANGLE, area=200.0, bbox=[0, 0, 20, 20], iscrowd=0
            ),
            dict(
                image_id=9, category_id=1, segmentation=TWO_PARTS, area=300.0, bbox=[0, 0, 40, 30], iscrowd=0
            ),
            dict(
                image_id=4,
                category_id=1,
                segmentation=uncompressed,
                area=200,
                bbox=[10, 5, 20, 10],
                iscrowd=1,
            ),
        ],
        "val2014": [
            dict(
                image_id=7,
                category_id=1,
                segmentation={"size": [30, 40], "counts": encode_mask(crowd)["counts"].decode()},
                area=200,
                iscrowd=0,
            )
        ],
    }
    ids = {"train2014": [9, 4], "val2014": [7, 5]}
    categories = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]
    for name, found in annotations.items():
        images = [
            {"id": i, "file_name": f"COCO_{name}_{i:012d}.jpg", "width": 40, "height": 30} for i in ids[name]
        ]
        records = [{"id": number, **record} for number, record in enumerate(found)]
        instances = {"images": images, "annotations": records, "categories": categories}
        write_json(tmp_path / "annotations" / f"instances_{name}.json", instances)
        captions = [
            {"id": 10 * i + j, "image_id": i, "caption": f"A picture {i}. \n"}
            for i in ids[name]
            for j in range(5)
        ]
        write_json(
            tmp_path / "annotations" / f"captions_{name}.json", {"images": images, "annotations": captions}
        )
        for image in images:
            save_picture(tmp_path / name / image["file_name"], seed=image["id"])
    order = [
        ("val2014", 5, "test"),
        ("train2014", 4, "train"),
        ("val2014", 7, "restval"),
        ("train2014", 9, "train"),
    ]
    split_records = [
        {
            "filepath": name,
            "filename": f"COCO_{name}_{i:012d}.jpg",
            "cocoid": i,
            "split": split,
            "sentences": [{"raw": f" Karpathy {i}\n", "tokens": []}],
        }
        for name, i, split in order
    ]
    write_json(tmp_path / "dataset_coco.json", {"dataset": "coco", "images": split_records})
    return tmp_path


def masks_of(sample):
    return [coco_mask.decode(dict(item.rle)).astype(bool) for item in sample.objects]


def test_coco_masks_of_every_kind_are_read(coco, capsys):
    train, val = CocoDataset(coco, "train2014"), CocoDataset(coco, "val2014")
    assert capsys.readouterr().out == ""
    assert [sample.image_id for sample in train] == [9, 4]
    dog, person = train[0].objects
    assert (dog.category, dog.box, dog.area, dog.color) == ("dog", (0, 0, 20, 20), 200, None)
    triangle, two_parts = masks_of(train[0])
    assert triangle.shape == (30, 40)
    assert triangle.sum() == pytest.approx(200, abs=20)
    assert not triangle[:, 21:].any()
    expected = np.zeros((30, 40), bool)
    expected[:10, :10] = expected[20:30, 20:40] = True
    assert (two_parts == expected).all()
    assert person.category == "person"
    expected = np.zeros((30, 40), bool)
    expected[5:15, 10:30] = True
    assert (masks_of(train[1])[0] == expected).all()
    assert (masks_of(val[0])[0] == expected).all()
    # Without a box in the file it is the mask's; an image without annotations has no objects.
    assert val[0].objects[0].box == (10, 5, 20, 10)
    assert val[1].objects == ()
    assert train[0].captions == ("A picture 9.",) * 5
    assert train[0].source == "coco/train2014"
    assert (
        np.asarray(train[0].image) == np.asarray(Image.open(coco / "train2014" / train[0].file_name))
    ).all()


def test_karpathy_splits_keep_the_order_of_their_file(coco):
    assert [sample.image_id for sample in CocoDataset(coco, "train")] == [4, 9]
    assert [sample.image_id for sample in CocoDataset(coco, "train", 1)] == [4]
    assert [sample.image_id for sample in CocoDataset(coco, "train", with_restval=True)] == [4, 7, 9]
    assert [sample.image_id for sample in CocoDataset(coco, "restval")] == [7]
    (sample,) = CocoDataset(coco, "test", with_restval=True)
    assert (sample.image_id, sample.captions, sample.objects) == (5, ("Karpathy 5",), ())
    assert sample.source == "coco/test"
    with pytest.raises(ParameterError, match="split: got 'val'; accepted: a split with images"):
        CocoDataset(coco, "val")


def test_karpathy_objects_come_from_both_annotation_files(coco):
    samples = list(CocoDataset(coco, "train", with_restval=True))
    assert [[item.category for item in sample.objects] for sample in samples] == [
        ["person"],
        ["person"],
        ["dog", "person"],
    ]
    assert samples[1].image.tobytes() == Image.open(coco / "val2014" / samples[1].file_name).tobytes()


def test_coco_without_objects_or_instances(coco):
    (sample,) = CocoDataset(coco, "test", with_objects=False)
    assert sample.objects is None
    assert (sample.width, sample.height) == (40, 30)
    (coco / "annotations" / "instances_val2014.json").unlink()
    assert CocoDataset(coco, "val2014")[0].objects is None
    assert CocoDataset(coco, "test")[0].objects is None
    (coco / "annotations" / "captions_train2014.json").unlink()
    assert CocoDataset(coco, "train2014")[0].captions == ()


def test_coco_files_may_lie_elsewhere(coco, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    annotations = coco / "annotations"
    (annotations / "instances_val2014.json").rename(elsewhere / "mine.json")
    dataset = CocoDataset(elsewhere, instances=elsewhere / "mine.json", images=coco / "val2014")
    assert [sample.image_id for sample in dataset] == [7, 5]
    assert dataset.source == "coco/custom"
    (coco / "dataset_coco.json").rename(elsewhere / "karpathy.json")
    dataset = CocoDataset(coco, "train", karpathy=elsewhere / "karpathy.json")
    assert [sample.image_id for sample in dataset] == [4, 9]


def test_a_split_needs_no_name_where_there_is_one(tmp_path):
    export_coco([generate_scene(0, 1, "test")], tmp_path, "test")
    assert CocoDataset(tmp_path)[0].image_id == 1


def change_instances(folder, change):
    path = folder / "annotations" / "instances_val2014.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: d.pop("categories"),
            "instances: got 'instances_val2014.json'; accepted: a JSON file with lists",
        ),
        (lambda d: d["annotations"][0].pop("segmentation"), "object 0 without segmentation"),
        (lambda d: d["annotations"][0].pop("image_id"), "with a record without 'image_id'"),
        (lambda d: d["annotations"][0].update(category_id=99), "object 0 of no category"),
        (lambda d: d["images"][0].pop("file_name"), "with a record without 'file_name'"),
    ],
)
def test_damaged_annotations_are_named_at_once(coco, change, message):
    change_instances(coco, change)
    with pytest.raises(ParameterError) as error:
        CocoDataset(coco, "val2014")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_mask_of_another_size_is_an_error(coco):
    change_instances(coco, lambda d: d["images"][0].update(width=41))
    with pytest.raises(ParameterError, match=r"a mask of \(30, 40\) for object 0.*\(30, 41\)"):
        CocoDataset(coco, "val2014")[0]


def test_wrong_coco_inputs_end_in_one_line(coco):
    with pytest.raises(ParameterError) as error:
        CocoDataset(coco, "val2017")
    known = "train2014, val2014, train (Karpathy), restval (Karpathy), val (Karpathy), test (Karpathy)"
    assert str(error.value) == f"split: got 'val2017'; accepted: {known}"
    with pytest.raises(ParameterError, match="split: got None"):
        CocoDataset(coco)
    with pytest.raises(ParameterError, match="n: got 0"):
        CocoDataset(coco, "val2014", 0)
    with pytest.raises(ImageError, match="folder: got .*nowhere.*does not exist"):
        CocoDataset(coco / "nowhere", "val2014")
    with pytest.raises(ImageError, match="which is a file"):
        CocoDataset(coco / "dataset_coco.json", "val2014")
    with pytest.raises(ParameterError, match="instances: got 'none.json'"):
        CocoDataset(coco, instances=coco / "none.json")
    with pytest.raises(ParameterError, match="karpathy together with instances"):
        CocoDataset(coco, "train", karpathy=coco / "dataset_coco.json", instances=coco / "none.json")
    with pytest.raises(ParameterError, match="no annotations"):
        CocoDataset(coco / "val2014", "train2014")
    (coco / "annotations" / "captions_val2014.json").write_text("{")
    with pytest.raises(ParameterError, match="captions_val2014.json"):
        CocoDataset(coco, "val2014")
    next((coco / "train2014").glob("*9.jpg")).unlink()
    with pytest.raises(ImageError, match="1 of 2 are missing, first 'COCO_train2014_000000000009.jpg'"):
        CocoDataset(coco, "train2014")


def test_karpathy_images_must_be_annotated_where_annotations_exist(coco):
    path = coco / "dataset_coco.json"
    path.write_text(path.read_text().replace('"cocoid": 4', '"cocoid": 44'))
    with pytest.raises(ParameterError, match="no image 44"):
        CocoDataset(coco, "train")
    path.write_text(path.read_text().replace('"cocoid"', '"id"'))
    with pytest.raises(ParameterError, match="dataset_coco.json with a record without 'cocoid'"):
        CocoDataset(coco, "train")


# Photos


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


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "bmp", "tiff"])
@pytest.mark.parametrize(
    "damage", [cut, lambda path: path.write_text("no image"), lambda path: path.write_bytes(b"")]
)
def test_a_damaged_photo_is_named_before_any_is_used(tmp_path, suffix, damage):
    save_picture(tmp_path / f"a.{suffix}", (200, 200))
    damage(save_picture(tmp_path / f"b.{suffix}", (200, 200)))
    with pytest.raises(ImageError, match=rf"^image: 'b.{suffix}' cannot be read \(.*\)$"):
        PhotoFolder(tmp_path)
    assert len(PhotoFolder(tmp_path, 1)) == 1


def test_a_photo_that_vanishes_later_is_an_image_error(tmp_path):
    path = save_picture(tmp_path / "a.png")
    (sample,) = PhotoFolder(tmp_path)
    path.unlink()
    with pytest.raises(ImageError, match="image: 'a.png' cannot be read"):
        sample.load()


# Several images and videos


def arrays(sample):
    return [np.asarray(image) for image in sample.images]


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


def test_one_image_is_handled_as_several_are():
    sample = SceneDataset("test", 1)[0]
    assert (sample.kind, sample.n_images) == ("image", 1)
    (image,) = sample.images
    assert image.tobytes() == sample.image.tobytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "photos"}, "kind: got 'photos'; accepted: images, video"),
        ({"sizes": ()}, r"sizes: got \(\); accepted: the size of one image"),
        ({"objects": ((),)}, "objects: got 'those of 1 images'; accepted: 2"),
    ],
)
def test_samples_of_several_images_are_consistent(change, message):
    settings = {"image_id": 0, "load": tuple, "kind": "images", "sizes": ((4, 4), (4, 4))}
    with pytest.raises(ParameterError, match=message):
        SequenceSample(**{**settings, **change})


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


GREYS = [20 * i for i in range(11)]
"""Brightness of the frames of test clips, by which they are told apart."""


def grey_frames(size=(32, 24)):
    return [Image.new("RGB", size, (grey,) * 3) for grey in GREYS]


def greys_of(sample):
    return [round(float(pixels.mean()) / 20) * 20 for pixels in arrays(sample)]


def film(path, frames):
    av = pytest.importorskip("av", reason="the package av is not installed")
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = *frames[0].size, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    return path


def animation(path, frames):
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, loop=0)
    return path


def frame_folder(path, frames):
    path.mkdir()
    for i, frame in enumerate(frames):
        frame.save(path / f"frame{i}.png")
    return path


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("clip.mp4", film),
        ("clip.avi", film),
        ("clip.gif", animation),
        ("clip.webp", animation),
        ("clip.png", animation),
        ("clip", frame_folder),
    ],
)
def test_a_video_is_read_as_evenly_spaced_frames(tmp_path, name, write):
    path = write(tmp_path / name, grey_frames())
    for n_frames, chosen in ((1, [0]), (2, [0, 200]), (4, [0, 60, 120, 200]), (11, GREYS), (16, GREYS)):
        (sample,) = VideoFile(path, n_frames)
        assert (sample.kind, sample.source, sample.file_name) == ("video", "video", name)
        assert sample.sizes == ((32, 24),) * len(chosen)
        assert greys_of(sample) == chosen
        assert all(image.mode == "RGB" for image in sample.images)
    assert sample.objects is None
    assert open_dataset(f"video:{path}", n_frames=2)[0].n_images == 2


@pytest.mark.parametrize("name", ["clip.gif", "clip.webp", "clip.mp4", "clip.txt"])
@pytest.mark.parametrize("content", [b"", b"no video" * 40])
def test_a_damaged_video_is_named_before_it_is_used(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    reason = r"(cannot be read \(.*\)|needs the package av: pip install 'rcblib\[video\]')"
    with pytest.raises(ImageError, match=rf"^video: '{name}' {reason}$"):
        VideoFile(path)


def test_a_video_cut_short_is_an_error_where_frames_are_lost(tmp_path):
    cut(animation(tmp_path / "clip.webp", grey_frames()))
    with pytest.raises(ImageError, match="^video: 'clip.webp' cannot be read"):
        VideoFile(tmp_path / "clip.webp")


def test_frames_are_turned_as_the_film_says():
    """A quarter turn clockwise, as phones held upright write it: the left of what is stored comes out on top."""
    stored = np.zeros((10, 20, 3), np.uint8)
    stored[:, :5] = 255
    frame = SimpleNamespace(rotation=-90, to_image=lambda: Image.fromarray(stored))
    turned = np.asarray(_upright_frame(frame))
    assert turned.shape == (20, 10, 3)
    assert (turned[:5] == 255).all()
    assert not turned[5:].any()
    frame.rotation = 0
    assert (np.asarray(_upright_frame(frame)) == stored).all()


def test_a_film_without_frames(tmp_path):
    av = pytest.importorskip("av", reason="the package av is not installed")
    with av.open(tmp_path / "sound.wav", "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(ImageError, match="^video: 'sound.wav' has no frames$"):
        VideoFile(tmp_path / "sound.wav")


@pytest.mark.parametrize(("name", "write"), [("clip.mp4", film), ("clip.gif", animation)])
def test_a_video_file_is_its_frames_where_single_images_are_asked_for(tmp_path, name, write):
    path = write(tmp_path / name, grey_frames())
    (clip,) = VideoFile(path, 4)
    frames = open_images(path, "test", 4)
    assert [(frame.image_id, frame.file_name) for frame in frames] == [
        (i, f"{name}, frame {i + 1} of 4") for i in range(4)
    ]
    for frame, expected in zip(frames, clip.images, strict=True):
        assert (frame.width, frame.height) == expected.size
        assert np.array_equal(np.asarray(frame.image), np.asarray(expected))
    assert len(open_images(path)) == len(GREYS)
    with pytest.raises(ParameterError, match="^n_frames: got 0"):
        open_images(path, n=0)


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


def test_a_film_without_the_package_that_decodes_it(tmp_path, monkeypatch):
    (tmp_path / "clip.mp4").write_bytes(b"anything")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ImageError, match=r"^video: 'clip.mp4' needs the package av: pip install 'rcblib\[video\]'$"
    ):
        VideoFile(tmp_path / "clip.mp4")


def test_videos_that_are_no_videos(tmp_path):
    with pytest.raises(ImageError, match="^video: '.*nowhere.mp4' does not exist; accepted: a video file or"):
        VideoFile(tmp_path / "nowhere.mp4")
    with pytest.raises(ImageError, match="without any photo"):
        VideoFile(tmp_path)
    save_picture(tmp_path / "a.png", (20, 30))
    assert VideoFile(tmp_path)[0].n_images == 1
    save_picture(tmp_path / "b.png", (30, 20))
    with pytest.raises(ImageError, match=r"are of several sizes \(20x30, 30x20\)$"):
        VideoFile(tmp_path)
    with pytest.raises(ParameterError, match="n_frames: got 0"):
        VideoFile(tmp_path, 0)


# Names


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
        match="images: got 'nowhere', which is no folder; accepted: 'groups', 'large-scenes', 'scenes', 'videos', ",
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


@pytest.mark.parametrize(("name", "value"), [("n", 0), ("n", 2.5), ("seed", -1), ("start", -1)])
def test_scene_numbers_out_of_range(name, value):
    with pytest.raises(ParameterError, match=f"^{name}: got {value}"):
        SceneDataset("test", **{"n": 1, name: value})


# Questions


@pytest.fixture(scope="module")
def scene_samples():
    return list(SceneDataset("validation", 120, seed=1))


def test_families_get_the_same_number_of_questions(scene_samples):
    asked = questions_for(scene_samples, n_per_task=30)
    assert Counter(question.task for question in asked) == dict.fromkeys(TASKS, 30)
    assert list(dict.fromkeys(question.task for question in asked)) == list(TASKS)
    assert len(set(asked)) == len(asked)
    for task in TASKS:
        images = [question.image_id for question in asked if question.task == task]
        assert images == sorted(images)


def test_yes_no_questions_are_balanced_over_samplings_and_answers(scene_samples):
    for wanted, found in ((60, 60), (61, 66), (600, 600), (1, 6)):
        asked = questions_for(scene_samples, "yes_no", wanted)
        assert Counter((q.subset, q.answer) for q in asked) == {
            (subset, answer): found // 6 for subset in POPE_SUBSETS for answer in ("yes", "no")
        }
        present = {s.image_id: {item.category for item in s.objects} for s in scene_samples}
        for question in asked:
            assert (question.text.split()[3] in present[question.image_id]) == (question.answer == "yes")
        by_subset = [
            [(q.image_id, q.text) for q in asked if q.subset == subset and q.answer == "yes"]
            for subset in POPE_SUBSETS
        ]
        assert by_subset[0] == by_subset[1] == by_subset[2]


def test_all_questions_there_are(scene_samples):
    asked = questions_for(scene_samples)
    counts = Counter(question.task for question in asked)
    assert counts["caption"] == counts["count"] == 120
    assert counts["yes_no"] == 720
    assert counts["one_word"] <= 120 < counts["color"]
    first = {sample.image_id: sample.captions[0] for sample in scene_samples}
    assert all(first[q.image_id] == q.answer for q in asked if q.task == "caption")


def test_a_family_does_not_depend_on_the_others_and_follows_the_seed(scene_samples):
    asked = questions_for(scene_samples, ["digit", "yes_no"], 24, seed=5)
    assert asked == questions_for(scene_samples, ["digit"], 24, seed=5) + questions_for(
        scene_samples, ["yes_no"], 24, seed=5
    )
    assert asked != questions_for(scene_samples, ["digit", "yes_no"], 24, seed=6)


def test_questions_about_coco_leave_out_what_is_unknown(coco):
    samples = list(CocoDataset(coco, "train2014")) + list(CocoDataset(coco, "val2014"))
    asked = questions_for(samples)
    assert {question.task for question in asked} == {"one_word", "caption", "yes_no", "count", "position"}
    assert 5 not in {question.image_id for question in asked}
    with pytest.raises(ParameterError, match="tasks: got 'color'"):
        questions_for(samples, ["color"])


def test_wrong_questions_are_named(scene_samples):
    few = scene_samples[:10]
    with pytest.raises(ParameterError, match=r"tasks: got \['colour'\]; accepted: one_word"):
        questions_for(few, ["color", "colour"])
    with pytest.raises(ParameterError, match="tasks"):
        questions_for(few, [])
    with pytest.raises(ParameterError, match="n_per_task: got 0"):
        questions_for(few, n_per_task=0)
    with pytest.raises(ParameterError, match="n_per_task: got 11; accepted: at most 10 for caption"):
        questions_for(few, ["caption"], 11)
    n_categories = sum(len({item.category for item in sample.objects}) for sample in few)
    with pytest.raises(ParameterError, match=f"at most {6 * n_categories} for yes_no"):
        questions_for(few, ["yes_no"], 6 * n_categories + 1)
    assert len(questions_for(few, ["yes_no"], 6 * n_categories)) == 6 * n_categories
    with pytest.raises(ParameterError, match="samples: got 'none'"):
        questions_for([])
    with pytest.raises(ParameterError, match="image id more than once"):
        questions_for([few[0], few[0]])
    bare = Sample(77, lambda: None, 10, 10)
    with pytest.raises(
        ParameterError, match="samples: got 'several images, or a video'; accepted: single images"
    ):
        questions_for(GroupDataset("test", 2))
    with pytest.raises(ParameterError, match="image 77 without annotation"):
        questions_for([*few, bare])


# Coverage


def sample_of(size, boxes):
    """Return a sample of `(width, height)` with rectangles `(category, x, y, width, height)`."""
    objects = []
    for category, x, y, width, height in boxes:
        mask = np.zeros((size[1], size[0]), bool)
        mask[y : y + height, x : x + width] = True
        objects.append(SceneObject(category, (x, y, width, height), encode_mask(mask), float(mask.sum())))
    return Sample(0, lambda: Image.new("RGB", size), *size, objects=tuple(objects))


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
@settings(deadline=None, max_examples=40)
def test_coverage_adds_up_to_the_area_of_all_masks(height, width, index):
    sample = SceneDataset("train", 1, start=index)[0]
    found = object_coverage(sample, height, width)
    assert found.share.shape == (height * width,)
    assert 0 <= found.share.min() <= found.share.max() <= 1
    covered = float(found.share.sum()) * 96 * 96 / (height * width)
    assert covered == pytest.approx(sum(item.area for item in sample.objects), rel=1e-5)
    union = np.any(masks_of(sample), axis=0)
    torch.testing.assert_close(found.share, patch_coverage(union, height, width))
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


@pytest.mark.parametrize("box", [(8, 0, 9, 8), (-1, 0, 0, 8), (0, -9, 8, 0), (4, 0, 4, 8), (0, 5, 8, 3)])
def test_boxes_that_miss_the_image_are_errors(box):
    with pytest.raises(ParameterError, match="box: got"):
        object_coverage(sample_of((8, 8), []), 2, 2, box)


def test_the_visible_box_is_the_central_square():
    assert visible_box(640, 480) == (80, 0, 560, 480)
    assert visible_box(480, 640) == (0, 80, 480, 560)
    assert visible_box(96, 96) == visible_box(96, 96, 96) == visible_box(96, 96, 336) == (0, 0, 96, 96)
    assert visible_box(640, 480, 336) == pytest.approx((80, 0, 560, 480))
    with pytest.raises(ParameterError, match="width: got 0"):
        visible_box(0, 10)


@given(st.integers(1, 900), st.integers(1, 900), st.integers(1, 400))
@settings(deadline=None)
def test_the_visible_box_is_a_square_inside_the_image(width, height, size):
    """As exactly as the processor's rounding of the longer side to whole pixels lets it."""
    left, top, right, bottom = visible_box(width, height, size)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    short, long = sorted((width, height))
    sides = sorted((right - left, bottom - top), key=lambda side: side != short)
    assert sides == [short, pytest.approx(size * long / (size * long // short))]


@pytest.mark.parametrize("size", [(640, 427), (427, 640), (500, 333), (800, 350), (333, 500)])
def test_the_visible_box_is_what_clips_processor_crops(size):
    """A bright rectangle with known edges comes out of the real processor where the box says."""
    from transformers import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    width, height = size
    sample = sample_of(size, [("cat", width // 3, height // 4, width // 3, height // 2)])
    mask = np.repeat(masks_of(sample)[0][..., None] * np.uint8(255), 3, 2)
    pixels = processor(
        Image.fromarray(mask), do_normalize=False, resample=Image.Resampling.BILINEAR, return_tensors="np"
    ).pixel_values[0][0]
    expected = torch.from_numpy(pixels.reshape(24, 14, 24, 14).mean((1, 3)).reshape(-1))
    found = object_coverage(sample, 24, 24, visible_box(width, height, 336)).share
    torch.testing.assert_close(found, expected.float(), atol=0.02, rtol=0)


def test_worlds_are_opened_by_name_with_their_own_sizes():
    small, large = (open_dataset(name, "validation", 5) for name in ("scenes", "large-scenes"))
    assert {(sample.width, sample.height) for sample in small} == {(96, 96)}
    assert max(sample.width for sample in large) == 192


def test_images_are_those_of_the_models_world_unless_named():
    embedded = SimpleNamespace(config=SimpleNamespace(rcb_world="large-scenes"))
    other = SimpleNamespace(config=SimpleNamespace())
    assert images_for("auto", embedded) == "large-scenes"
    assert images_for("auto", other) == "scenes"
    assert images_for("folder", embedded) == "folder"


def test_only_single_images_are_opened_as_images(tmp_path):
    assert [sample.image_id for sample in open_images("scenes", "test", 2)] == [0, 1]
    with pytest.raises(ParameterError, match="images: got 'videos: a video'; accepted: single images"):
        open_images("videos", "test", 1)
    with pytest.raises(ParameterError, match="groups: several images in one prompt"):
        open_images("groups", "test", 1)
