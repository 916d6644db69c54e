"""Check the import-direction check on small sources, and the library with it."""

import re
from pathlib import Path

import pytest

from tools.check_imports import Rules, check_module, check_package, main, read_rules

REPOSITORY = Path(__file__).resolve().parents[1]
RULES = Rules(
    package="rcblib",
    layers=(("records",), ("geometry", "figures", "metrics"), ("mllm", "datasets"), ("probe",)),
    beside={"figures": ("geometry",)},
    only={"transformers": ("mllm",)},
)


def problems(source, path="rcblib/probe.py"):
    return check_module(source, Path(path), RULES)


def test_the_library_follows_its_layers():
    assert check_package(REPOSITORY, read_rules(REPOSITORY / "pyproject.toml")) == []


def test_the_table_of_modules_is_that_of_the_layers():
    page = (REPOSITORY / "book" / "architecture.md").read_text(encoding="utf-8")
    table = {unit: int(row) for row, unit in re.findall(r"^\| (\d+) \| `(\w+)` \|", page, re.MULTILINE)}
    layers = read_rules(REPOSITORY / "pyproject.toml").layers
    rows = {unit: number for number, row in enumerate(layers, 1) for unit in row if unit[0] != "_"}
    assert table == rows


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("from rcblib.records import Sample", "rcblib/probe.py"),
        ("import rcblib.geometry as g", "rcblib/probe.py"),
        ("from rcblib import geometry", "rcblib/probe.py"),
        ("from .geometry import window", "rcblib/probe.py"),
        ("from ..records import Sample", "rcblib/mllm/llava.py"),
        ("from .base import Adapter\nfrom rcblib.mllm.base import Adapter", "rcblib/mllm/llava.py"),
        ("from rcblib.geometry import window", "rcblib/figures.py"),
        ("import transformers\nfrom transformers import AutoModel", "rcblib/mllm/llava.py"),
        ("from rcblib import __version__", "rcblib/records.py"),
        ("import torch, numpy.linalg", "rcblib/records.py"),
        ("from rcblib.probe import probe", "rcblib/__init__.py"),
        ("name = import_module(chosen)", "rcblib/records.py"),
    ],
)
def test_imports_from_rows_above_pass(source, path):
    assert problems(source, path) == []


@pytest.mark.parametrize(
    ("source", "path", "message"),
    [
        (
            "x = 1\nfrom rcblib.probe import probe",
            "rcblib/geometry.py",
            "geometry.py:2: geometry imports probe",
        ),
        ("from rcblib.metrics import f1", "rcblib/geometry.py", "imports metrics, a module beside it"),
        ("from rcblib.figures import style", "rcblib/geometry.py", "imports figures, a module beside it"),
        ("from rcblib import probe", "rcblib/records.py", "imports probe, a module below it"),
        ("from ..probe import probe", "rcblib/mllm/llava.py", "mllm imports probe, a module below it"),
        ("from .. import datasets", "rcblib/mllm/llava.py", "mllm imports datasets, a module beside it"),
        ("def f():\n    import rcblib.probe", "rcblib/records.py", "records.py:2: records imports probe"),
        ("if TYPE_CHECKING:\n    from rcblib.probe import P", "rcblib/records.py", "records.py:2"),
        ("import transformers", "rcblib/probe.py", "imports transformers; only mllm may"),
        ("from transformers import A, B", "rcblib/probe.py", "imports transformers; only mllm may"),
        (
            "def f():\n    from transformers.utils import x",
            "rcblib/probe.py",
            "probe.py:2: imports transformers",
        ),
        ("importlib.import_module('transformers')", "rcblib/probe.py", "imports transformers"),
        ("from rcblib import build_codebook", "rcblib/probe.py", "import from the module that defines it"),
        ("x = 1", "rcblib/surprise.py", "module 'surprise' is in no row"),
        ("x = 1", "rcblib/new_part/thing.py", "module 'new_part' is in no row"),
    ],
)
def test_other_imports_are_reported(source, path, message):
    (line,) = problems(source, path)
    assert message in line


def repository(folder, layers, **modules):
    (folder / "rcblib").mkdir()
    (folder / "pyproject.toml").write_text(
        f'[tool.check_imports]\npackage = "rcblib"\nlayers = {layers}\n', encoding="utf-8"
    )
    for name, source in modules.items():
        (folder / "rcblib" / f"{name}.py").write_text(source, encoding="utf-8")
    return folder


def test_the_command_fails_on_a_wrong_import_and_passes_without(tmp_path, capsys):
    root = repository(tmp_path, '[["a"], ["b"]]', a="import rcblib.b", b="import rcblib.a")
    assert main([str(root)]) == 1
    assert capsys.readouterr().out == "rcblib/a.py:1: a imports b, a module below it\n"
    (root / "rcblib" / "a.py").write_text("")
    assert main([str(root)]) == 0


def test_a_module_listed_twice_is_an_error(tmp_path):
    root = repository(tmp_path, '[["a"], ["b", "a"]]')
    with pytest.raises(ValueError, match=r"\['a'\] listed more than once"):
        read_rules(root / "pyproject.toml")


def test_rules_about_unlisted_modules_are_an_error(tmp_path):
    root = repository(tmp_path, '[["a"]]')
    with open(root / "pyproject.toml", "a", encoding="utf-8") as file:
        file.write('[tool.check_imports.only]\ntransformers = ["b"]\n')
    with pytest.raises(ValueError, match=r"\['b'\] not among the layers"):
        read_rules(root / "pyproject.toml")
