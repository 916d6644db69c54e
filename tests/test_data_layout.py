"""Layouts of folders in COCO's format, and what names of splits mean in them."""

import warnings
from pathlib import Path

import pytest
from messages import one_line
from picture_files import save_picture, write_json

from rcblib.data.coco import CocoDataset
from rcblib.data.layout import annotation_files, resolve_split
from rcblib.data.opening import open_dataset, open_images
from rcblib.data.photos import PhotoFolder
from rcblib.records import ImageError, ParameterError

SQUARE = [[0, 0, 20, 0, 20, 20, 0, 20]]


def write_split(annotations, images, names, kind="instances", prefix=""):
    """Write an annotation file and its images; an object or a caption each."""
    known = [
        {"id": k + 1, "file_name": prefix + name, "width": 40, "height": 30} for k, name in enumerate(names)
    ]
    own = {"segmentation": SQUARE, "category_id": 1} if kind == "instances" else {"caption": "a picture"}
    content = {
        "images": known,
        "annotations": [{"id": 9, "image_id": k + 1} | own for k in range(len(names))],
    }
    if kind == "instances":
        content["categories"] = [{"id": 1, "name": "cat"}]
    write_json(annotations, content)
    for k, name in enumerate(names):
        save_picture(images / name, seed=k)


LAYOUTS = {
    "unpacked": ("annotations/instances_val2017.json", "val2017", "", "val2017"),
    "images beside annotations": ("annotations/instances_val2017.json", "images/val2017", "", "val2017"),
    "images in one folder": ("annotations/instances_val2014.json", "images", "", "val2014"),
    "images in the folder": ("annotations/instances_train2017.json", ".", "", "train2017"),
    "images named by role": ("annotations/instances_val2017.json", "val", "", "val2017"),
    "images in images, by role": ("annotations/instances_val2017.json", "images/val", "", "val2017"),
    "annotations in the folder": ("instances_val2017.json", "val2017", "", "val2017"),
    "names with their folder": ("annotations/instances_val2017.json", "val2017", "val2017/", "val2017"),
    "names of another machine": (
        "annotations/instances_val2017.json",
        "val2017",
        "/srv/photos/",
        "val2017",
    ),
    "names of Windows": ("result.json", "images", "..\\images\\", "result"),
    "archives in folders": (
        "annotations_2017/annotations/instances_val2017.json",
        "val2017/val2017",
        "",
        "val2017",
    ),
    "annotations elsewhere": ("labels/instances_val2017.json", "val2017", "", "val2017"),
    "one file beside images": ("annotations.json", ".", "", "annotations"),
    "one file, images in images": ("labels.json", "images", "", "labels"),
    "one file, images in data": ("labels.json", "data", "", "labels"),
    "one file of a tool": ("annotations/anything_of_mine.json", "images", "", "anything_of_mine"),
    "a folder a split": ("valid/_annotations.coco.json", "valid", "", "valid"),
    "a folder a split, with data": ("validation/labels.json", "validation/data", "", "validation"),
}


@pytest.mark.parametrize("kind", ["instances", "captions"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_usual_layout_opens_by_its_own_name_and_by_none(tmp_path, layout, kind):
    annotations, images, prefix, split = LAYOUTS[layout]
    annotations = annotations.replace("instances", kind)
    write_split(tmp_path / annotations, tmp_path / images, ("COCO_val2014_1.png", "2.png"), kind, prefix)
    for asked in (split, None):
        dataset = open_dataset(tmp_path, asked)
        assert isinstance(dataset, CocoDataset) and len(dataset) == 2
        assert (dataset.split, dataset[0].source) == (split, f"coco/{split}")
        assert dataset[0].image.size == (40, 30)
        found = [len(sample.objects or sample.captions) for sample in dataset]
        assert found == [1, 1]
    assert open_dataset(f"coco:{tmp_path}", split)[1].image_id == 2


@pytest.mark.parametrize(
    ("names", "asked", "meant"),
    [
        (("train2017", "val2017"), "validation", "val2017"),
        (("train2017", "val2017"), "val", "val2017"),
        (("train2017", "val2017"), "Validation", "val2017"),
        (("train2017", "val2017"), "train", "train2017"),
        (("train2017", "val2017"), "val2017", "val2017"),
        (("train", "valid", "test"), "validation", "valid"),
        (("train", "valid", "test"), "test", "test"),
        (("train2014", "val2014", "test2015"), "test", "test2015"),
        (("val", "val2017"), "validation", "val"),
        (("lvis_v1_train", "lvis_v1_val"), "validation", "lvis_v1_val"),
        (("train2014", "val2014", "train2017", "val2017"), "val2014", "val2014"),
        (("minival2014", "val2014"), "validation", "val2014"),
    ],
)
def test_a_name_means_the_only_split_of_its_role(names, asked, meant):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve_split(dict.fromkeys(names, {}), None, asked) == (meant, False)


@pytest.mark.parametrize(
    ("names", "asked", "meant"),
    [
        (("train2017", "val2017"), "test", "val2017"),
        (("val2017",), "test", "val2017"),
        (("default",), "test", "default"),
        (("default",), "validation", "default"),
        (("train2017",), "validation", "train2017"),
    ],
)
def test_what_stands_in_for_a_split_that_is_not_annotated_is_told(names, asked, meant):
    with pytest.warns(UserWarning, match=f"^split: the folder has no '{asked}'; its '{meant}' is taken$"):
        assert resolve_split(dict.fromkeys(names, {}), None, asked) == (meant, False)


@pytest.mark.parametrize(
    ("names", "asked"),
    [
        (("val2017",), "train"),
        (("val2017",), "val2014"),
        (("val2017",), "minival"),
        (("val2014", "val2017"), "validation"),
        (("train2014", "train2017"), "test"),
        (("val2014", "val2017"), None),
        (("val2017",), ""),
        (("val2017",), 5),
    ],
)
def test_other_names_end_in_one_line_that_lists_those_there_are(names, asked):
    with pytest.raises(ParameterError) as error:
        resolve_split(dict.fromkeys(names, {}), None, asked)
    assert one_line(error) == f"split: got {asked!r}; accepted: {', '.join(names)}"


def test_karpathys_splits_come_before_roles(coco):
    assert CocoDataset(coco, "test").split == "test"
    assert CocoDataset(coco, "train").split == "train"
    with pytest.raises(ParameterError, match="split: got 'validation'; accepted: a split with images"):
        CocoDataset(coco, "validation")  # Karpathy's val, which is empty here


def test_instances_and_captions_of_a_split_belong_together(tmp_path):
    for kind in ("instances", "captions"):
        write_split(tmp_path / f"annotations/{kind}_val2017.json", tmp_path / "val2017", ("1.png",), kind)
    write_json(tmp_path / "annotations/person_keypoints_val2017.json", {"images": [], "annotations": []})
    (sample,) = open_images(tmp_path, "validation")
    assert (sample.captions, sample.objects[0].category) == (("a picture",), "cat")


def test_folders_of_photos_stay_folders_of_photos(tmp_path):
    save_picture(tmp_path / "1.png")
    write_json(tmp_path / "metadata.json", {"images": ["1.png"], "made_with": "a camera"})
    write_json(tmp_path / "more/settings.json", {"annotations": "none", "images": "none"})
    (tmp_path / "empty.json").touch()
    (tmp_path / "folder.json").mkdir()
    assert isinstance(open_dataset(tmp_path, "val2017"), PhotoFolder)
    assert annotation_files(tmp_path) == ({}, None)


def test_an_annotation_file_stands_for_its_split(tmp_path):
    for split in ("train2017", "val2017"):
        write_split(tmp_path / f"annotations/instances_{split}.json", tmp_path / split, (f"{split}.png",))
    for prefix in ("", "coco:"):
        (sample,) = open_images(f"{prefix}{tmp_path}/annotations/instances_val2017.json", "test")
        assert (sample.file_name, sample.source) == ("val2017.png", "coco/val2017")
    write_split(tmp_path / "own/result.json", tmp_path / "own/images", ("1.png",))
    assert open_images(tmp_path / "own/result.json")[0].file_name == "1.png"
    write_json(tmp_path / "annotations/person_keypoints_val2017.json", {})
    with pytest.raises(
        ParameterError, match="split: got 'person_keypoints_val2017'; accepted: train2017, val2017"
    ):
        open_dataset(tmp_path / "annotations/person_keypoints_val2017.json")


def test_datasets_beside_each_other_are_not_mixed(tmp_path):
    for name in ("one", "two"):
        write_split(
            tmp_path / name / "annotations/instances_val.json", tmp_path / name / "val", (f"{name}.png",)
        )
    assert annotation_files(tmp_path) == ({}, None)
    (tmp_path / "two/annotations/instances_val.json").rename(tmp_path / "two/annotations/instances_val2.json")
    assert [open_images(tmp_path, split)[0].file_name for split in ("val", "val2")] == ["one.png", "two.png"]


def test_a_file_name_from_an_address_as_lvis_writes_it(tmp_path):
    write_split(tmp_path / "lvis_v1_val.json", tmp_path / "train2017", ("000391895.png",))
    content = {
        "images": [
            {"id": 1, "coco_url": "http://example.org/train2017/000391895.png", "width": 40, "height": 30}
        ],
        "annotations": [{"id": 9, "image_id": 1, "segmentation": SQUARE, "category_id": 1}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    write_json(tmp_path / "lvis_v1_val.json", content)
    assert open_images(tmp_path, "validation")[0].image.size == (40, 30)


def test_missing_images_say_where_they_are_looked_for(tmp_path):
    write_split(tmp_path / "annotations/instances_val2017.json", tmp_path / "pictures", ("1.png",))
    with pytest.raises(ImageError) as error:
        CocoDataset(tmp_path)
    assert (
        "1 of 1 are missing, first '1.png'; accepted: images in val2017/, images/val2017/ or images/"
        in one_line(error)
    )


def test_the_shipped_samples_open_by_their_names():
    data = Path(__file__).resolve().parents[1] / "data"
    assert [sample.source for sample in open_images(data / "scenes", "validation", 1)] == [
        "scenes/validation"
    ]
