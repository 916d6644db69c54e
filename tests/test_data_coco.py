"""Folders in COCO's format."""

import json

import numpy as np
import pytest
from messages import one_line
from picture_files import masks_of, write_json
from PIL import Image
from pycocotools import mask as coco_mask

from rcblib.data.coco import CocoDataset
from rcblib.data.coverage import object_coverage
from rcblib.data.samples import load_pictures
from rcblib.records import ImageError, ParameterError
from worlds.scenes.coco import export_coco
from worlds.scenes.generator import generate_scene


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


@pytest.fixture
def phone(tmp_path):
    """Return what writes a folder of one photo as phones store it: 60 x 40, marked on its upper left as it is seen."""

    def write(orientation, record=(40, 60), mask=None):
        seen = np.zeros((*(record if mask is None else mask)[::-1],), np.uint8)
        seen[:10, :20] = 1
        rle = coco_mask.encode(np.asfortranarray(seen))
        exif = Image.Exif()
        exif[0x0112] = orientation
        upright = Image.new("RGB", (40, 60) if orientation > 4 else (60, 40))
        upright.paste((255, 0, 0), (0, 0, 20, 10))
        back = {1: None, 3: "ROTATE_180", 6: "ROTATE_90", 8: "ROTATE_270"}[orientation]
        stored = upright.transpose(Image.Transpose[back]) if back else upright
        (tmp_path / "val").mkdir(exist_ok=True)
        stored.save(tmp_path / "val" / "phone.png", exif=exif)
        rle = {"size": list(rle["size"]), "counts": rle["counts"].decode()}
        annotation = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": rle, "iscrowd": 1}
        data = {
            "images": [{"id": 1, "file_name": "phone.png", "width": record[0], "height": record[1]}],
            "categories": [{"id": 1, "name": "mark"}],
            "annotations": [annotation],
        }
        write_json(tmp_path / "annotations" / "instances_val.json", data)
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("orientation", "record"), [(1, (60, 40)), (3, (60, 40)), (6, (40, 60)), (8, (40, 60))]
)
def test_masks_lie_on_the_photo_as_it_is_upright(phone, orientation, record):
    (sample,) = CocoDataset(phone(orientation, record))
    (picture,) = load_pictures(sample)
    assert picture.size == (sample.width, sample.height) == record
    (mask,) = masks_of(sample)
    assert (mask == (np.asarray(picture)[..., 0] > 127)).all()
    assert object_coverage(sample, 6, 4, (0, 0, *record)).share[0] == 1


@pytest.mark.parametrize(
    ("orientation", "record"), [(6, (60, 40)), (8, (60, 40)), (1, (40, 60)), (6, (41, 60))]
)
def test_a_record_of_the_photo_lying_on_its_side_is_refused(phone, orientation, record):
    (sample,) = CocoDataset(phone(orientation, record))
    upright = "60 x 40" if orientation == 1 else "40 x 60"
    with pytest.raises(ImageError) as error:
        load_pictures(sample)
    assert str(error.value) == (
        f"image: 'phone.png' is {upright} px, its record says {record[0]} x {record[1]}; accepted: annotations of "
        "the photo as it is upright"
    )


def test_without_instances_the_size_is_the_upright_one(phone):
    folder = phone(6)
    annotations = folder / "annotations" / "instances_val.json"
    data = json.loads(annotations.read_text())
    annotations.unlink()
    captions = [{"id": 1, "image_id": 1, "caption": "A mark."}]
    write_json(folder / "annotations" / "captions_val.json", data | {"annotations": captions})
    (sample,) = CocoDataset(folder)
    assert load_pictures(sample)[0].size == (sample.width, sample.height) == (40, 60)


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
        (lambda d: d["annotations"][0].pop("segmentation"), "object 0 of image 7 without segmentation"),
        (lambda d: d["annotations"][0].pop("image_id"), "with a record without 'image_id'"),
        (lambda d: d["annotations"][0].update(category_id=99), "object 0 of image 7 of no category"),
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
    with pytest.raises(ParameterError, match=r"image 7 with a mask of \(30, 40\) where .* \(30, 41\)"):
        CocoDataset(coco, "val2014")


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sentences": ["a"]}, "sentences"),
        ({"sentences": {"raw": "a"}}, "sentences"),
        ({"sentences": [{"raw": 3}]}, "a caption 3"),
        ({"filepath": ["a"]}, "filepath"),
        ({"filename": None}, "filename"),
    ],
)
def test_karpathy_records_of_other_kinds_end_in_one_line(coco, change, message):
    path = coco / "dataset_coco.json"
    content = json.loads(path.read_text())
    content["images"][1] |= change
    write_json(path, content)
    with pytest.raises(ParameterError, match="^karpathy: got") as error:
        CocoDataset(coco, "train")
    assert message in one_line(error)


def test_a_karpathy_image_that_is_there_twice_counts_once(coco):
    path = coco / "dataset_coco.json"
    content = json.loads(path.read_text())
    write_json(path, content | {"images": [*content["images"], content["images"][1]]})
    with pytest.warns(UserWarning, match="1 image records are there twice"):
        assert [sample.image_id for sample in CocoDataset(coco, "train")] == [4, 9]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"height": 2**70}, "of height 1180591620717411303424"), ({"file_name": "a" * 300}, "are missing")],
)
def test_sizes_and_names_beyond_any_image_end_in_one_line(coco, change, message):
    path = coco / "annotations" / "instances_train2014.json"
    content = json.loads(path.read_text())
    content["images"][0] |= change
    write_json(path, content)
    (coco / "annotations" / "captions_train2014.json").unlink()
    with pytest.raises((ParameterError, ImageError)) as error:
        CocoDataset(coco, "train2014")
    assert message in one_line(error)
