"""Fixtures that several test modules share, and how long the checks take that draw their inputs."""

from pathlib import Path

import hypothesis
import numpy as np
import pytest
from findings import Findings
from picture_files import save_picture, write_json

from worlds.scenes.coco import encode_mask

REPOSITORY = Path(__file__).resolve().parents[1]

# The same examples in every run: what fails once fails for everybody.
for name, n_examples in {"quick": 40, "long": 500}.items():
    hypothesis.settings.register_profile(
        name, derandomize=True, deadline=None, database=None, max_examples=n_examples
    )
hypothesis.settings.load_profile("quick")


def pytest_addoption(parser):
    """Ask for the long form: ``make faults``."""
    parser.addoption(
        "--points",
        type=int,
        default=1,
        help="points at which each fault strikes, and a measure of how many damaged inputs are tried",
    )
    parser.addoption("--findings", type=Path, help="JSON file for what was tried and survived")


def pytest_configure(config):
    """Gather what the tests of faults find."""
    config.findings = Findings()


def pytest_sessionfinish(session):
    """Write what was found, where a file was asked for."""
    if path := session.config.getoption("--findings"):
        session.config.findings.write(path)


@pytest.fixture(scope="session")
def n_points(request) -> int:
    """Return at how many points a fault strikes: few in ``make test``."""
    return request.config.getoption("--points")


@pytest.fixture(scope="session")
def findings(request):
    """Return where a test says what it tried and what was survived."""
    return request.config.findings


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """Return the folder of reference data beside the repository, or skip where it is absent."""
    folder = REPOSITORY.parent / "shared"
    if not (folder / "parity").is_dir():
        pytest.skip("reference folder ../shared is not present")
    return folder


@pytest.fixture(scope="session")
def explored(tmp_path_factory):
    """Explore two drawn scenes, and write their page."""
    from explored import make_explored

    return make_explored(tmp_path_factory.mktemp("explorer"))


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
