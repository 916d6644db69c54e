"""Fixtures that several test modules share."""

from pathlib import Path

import numpy as np
import pytest
from picture_files import save_picture, write_json

from worlds.scenes.coco import encode_mask

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """Return the folder of reference data beside the repository, or skip where it is absent."""
    folder = REPOSITORY.parent / "shared"
    if not (folder / "parity").is_dir():
        pytest.skip("reference folder ../shared is not present")
    return folder


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
