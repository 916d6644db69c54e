"""Check that the contracts of import-linter cover every module and catch a wrong import."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import grimp
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
RULES = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]


WRONG_IMPORTS = {
    ("rcblib/records.py", "from rcblib.probe import run"): "rcblib.records -> rcblib.probe.run",
    ("rcblib/tensors/geometry.py", "import rcblib.pruners"): "rcblib.tensors.geometry -> rcblib.pruners",
    ("rcblib/tensors/divergence.py", "def f():\n    import rcblib.mllm"): "tensors.divergence -> rcblib.mllm",
    ("rcblib/mllm/llava.py", "from ..probe.run import probe"): "rcblib.mllm.llava -> rcblib.probe.run",
    ("rcblib/data/coco.py", "from rcblib.mllm import load_model"): "rcblib.data.coco -> rcblib.mllm",
    ("rcblib/probe/run.py", "import rcblib.codebook.build"): "rcblib.probe.run -> rcblib.codebook.build",
    ("rcblib/evaluate/metrics.py", "import worlds.scenes"): "rcblib.evaluate.metrics -> worlds.scenes",
    ("worlds/datasets.py", "import tools.check_site"): "worlds.datasets -> tools.check_site",
    ("worlds/datasets.py", "import worlds.training.loop"): "worlds.datasets -> worlds.training.loop",
    ("rcblib/probe/run.py", "import transformers"): "rcblib.probe.run -> transformers",
    (
        "rcblib/probe/store.py",
        "def f():\n    from transformers import x",
    ): "rcblib.probe.store -> transformers",
    ("worlds/datasets.py", "from transformers import AutoModel"): "worlds.datasets -> transformers",
    ("rcblib/probe/run.py", "from rcblib import build_codebook"): "rcblib.probe.run -> rcblib (",
    ("rcblib/tensors/clustering.py", "import rcblib.tensors.scoring"): "made acyclic by removing",
    ("rcblib/tensors/scoring.py", "import rcblib.tensors.clustering"): "made acyclic by removing",
}
UNLISTED = ("rcblib/surprise.py", "rcblib/new_room/__init__.py", "worlds/another.py")


@pytest.fixture
def copied(tmp_path):
    """Copy the packages and the contracts into a folder of their own."""
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    for package in RULES["root_packages"]:
        shutil.copytree(
            REPOSITORY / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    return tmp_path


def broken(root):
    """Return what `lint-imports` says of a folder; empty where it passes."""
    command = [Path(sys.executable).parent / "lint-imports", "--no-cache", "--no-logo"]
    environment = os.environ | {"PYTHONPATH": str(root), "COLUMNS": "200"}
    answer = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert (answer.returncode != 0) == ("BROKEN" in answer.stdout), answer.stdout + answer.stderr
    return answer.stdout if answer.returncode else ""


def test_the_code_keeps_the_contracts(copied):
    assert broken(copied) == ""


def test_wrong_imports_are_caught(copied):
    for path, line in WRONG_IMPORTS:
        with open(copied / path, "a", encoding="utf-8") as file:
            file.write(f"\n{line}\n")
    said = broken(copied)
    assert [message for message in WRONG_IMPORTS.values() if message not in said] == []


def test_unlisted_rooms_are_caught(copied):
    for path in UNLISTED:
        (copied / path).parent.mkdir(exist_ok=True)
        (copied / path).touch()
    said = broken(copied)
    assert all(f"- {name}\n" in said for name in ("rcblib.surprise", "rcblib.new_room", "worlds.another"))


def test_every_module_is_looked_at():
    packages = RULES["root_packages"]
    graph = grimp.build_graph(*packages, cache_dir=None)
    files = [path.relative_to(REPOSITORY) for name in packages for path in (REPOSITORY / name).rglob("*.py")]
    names = {".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in files}
    assert graph.modules >= names
