"""Check that the library works installed from a wheel, away from the project, and says what only the project has."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

SCRIPT = """
import json, sys, warnings
import torch
import rcblib, worlds
from rcblib.__main__ import main
from rcblib.codebook.codebook import Codebook, load_codebook
from rcblib.codebook.criterion import CodebookCriterion
from rcblib.data.opening import open_dataset
from rcblib.evaluate.lmms.runs import TASKS_FOLDER
from rcblib.mllm import load_model
from rcblib.pruners import CodebookPruner
from rcblib.reading.published import published_random_tokens

def told(act, *arguments):
    try:
        return repr(act(*arguments))
    except ValueError as error:
        return str(error)

warnings.simplefilter("ignore")
torch.save(torch.ones(3, 4), "my own.pt")
Codebook(torch.ones(2, 4)).save_pretrained("folder")
json.dump(
    {
        "places": [rcblib.__file__, worlds.__file__, str(TASKS_FOLDER)],
        "own": [len(load_codebook(name)) for name in ("my own.pt", "folder")],
        "pruner": len(CodebookPruner("my own.pt", max_similarity=0.4).codebook),
        "preset": CodebookCriterion.from_preset("llava-1.5-7b").n_clusters,
        "scenes": len(open_dataset("scenes", None, 2)),
        "lines": {
            "released": told(load_codebook, "llava-1.5-7b"),
            "from_released": told(Codebook.from_released, "llava-1.5-7b"),
            "hub": told(load_codebook, "owner/name"),
            "embedded": told(load_codebook, "llava-scenes"),
            "model": told(load_model, "llava-scenes"),
            "assembled": told(load_model, "llava-photographs"),
            "photographs": told(open_dataset, "photographs", "test", 2),
            "published": told(published_random_tokens),
        },
        "info": main(["info"]),
    },
    open("found.json", "w"),
)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Return a folder where the wheel is unpacked, as ``pip install --no-deps --target`` leaves it."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in ("rcblib", "worlds"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    build = "import setuptools.build_meta as b, sys; b.build_wheel(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", build, str(site)], cwd=source, capture_output=True, check=True, timeout=120
    )
    (wheel,) = site.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    wheel.unlink()
    return site


def run(site, folder, *arguments):
    kept = {name: value for name, value in os.environ.items() if name != "RCB_ROOT"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=kept | {"PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_every_file_that_the_code_reads_is_in_the_wheel(site):
    """Whatever lies beside the modules, and is no module, is read by one of them."""
    for package in ("rcblib", "worlds"):
        beside = {
            path.relative_to(REPOSITORY) for path in (REPOSITORY / package).rglob("*") if path.is_file()
        }
        wanted = {path for path in beside if "__pycache__" not in path.parts}
        assert not [str(path) for path in wanted if not (site / path).is_file()]


def test_the_wheel_brings_the_command_and_what_it_offers(site):
    (description,) = site.glob("*.dist-info")
    points = PathDistribution(description).entry_points
    declared = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for group, own in declared["entry-points"].items():
        assert {point.name for point in points.select(group=group)} == set(own)
    assert [point.value for point in points.select(group="console_scripts")] == ["rcblib.__main__:main"]


def test_the_library_works_without_the_project_and_says_what_it_lacks(site, tmp_path):
    done = run(site, tmp_path, "-c", SCRIPT)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert all(Path(place).is_relative_to(site) for place in found["places"])
    assert (found["own"], found["pruner"], found["preset"], found["scenes"]) == ([3, 2], 3, 8, 2)
    for name, line in found["lines"].items():
        assert "\n" not in line and "of a checkout of the project, whose folder RCB_ROOT names" in line, name
    assert "'owner/name' is no folder" in found["lines"]["hub"]
    assert "data/models/llava-photographs: got 'none'" in found["lines"]["assembled"]
    assert found["info"] == 0
    assert "project: none; data/ and codebooks/: that of a checkout" in done.stdout
