"""Keys of stored numbers change with the code that the numbers depend on, and with nothing else."""

import functools
import importlib
import inspect
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import nbformat
import pytest
import tiny
import warm
from nbclient import NotebookClient
from test_probe import samples_of

import rcblib.__main__ as command_line
from rcblib.evaluate.grid import Session, evaluate_grid
from rcblib.probe.config import ProbeConfig
from rcblib.probe.store import probe_dataset, read_probe, shared_probe
from rcblib.pruners import RandomPruner
from rcblib.pruners.base import Pruner
from rcblib.records import Question
from rcblib.runs import digest as digests
from rcblib.runs.digest import code_digest, digest_of, imported_modules
from tools.record import BY_OPTION, COMMANDS

ROOT = Path(__file__).parents[1]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Make a package whose digest is taken anew at every call."""
    folder = tmp_path / "methods"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(**files):
        for name, text in files.items():
            (folder / f"{name}.py").write_text(text)
        for cached in (digests._read, digests._has_source, digests._module_of, digests._is_improvised):
            cached.cache_clear()
        return code_digest("methods.a")

    write(
        __init__="",
        a="from methods.b import f\n\ndef g(x):\n    return f(x)\n",
        b="def f(x):\n    return x\n",
    )
    return write


def test_statements_count_and_words_do_not(package):
    before = package()
    assert package() == before and len(before) == 12
    described = '"""Say."""\n\nfrom methods.b import f  # why\n\ndef g(x: int) -> int:\n    """Do."""\n'
    described += "    return f(x)\n"
    assert package(a=described) == before
    for_checkers = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from methods.c import T\n"
    with_checkers = package(a=for_checkers + described)  # `c` does not exist
    assert with_checkers == package(a=for_checkers.replace(".c", ".d") + described)
    assert package(a=described.replace("f(x)", "f(x) + 1")) != before


@pytest.mark.parametrize(
    "statement",
    [
        "from methods.b import f",
        "import methods.b",
        "from methods import b",
        "from . import b",
        "from .b import f",
    ],
)
def test_what_is_imported_counts_also_inside_functions(package, statement):
    package(a=f"def g(x):\n    {statement}\n    return x\n")
    assert imported_modules("methods.a") == {"methods.a", "methods.b"}
    before = package()
    assert package(b="def f(x):\n    return -x\n") != before


def test_a_module_without_source_is_an_error():
    with pytest.raises(ModuleNotFoundError, match="rcblib.absent"):
        code_digest("rcblib.absent")


def test_imports_of_the_library_are_followed():
    probing = imported_modules("rcblib.probe.run")
    assert {"rcblib.tensors.divergence", "rcblib.mllm.llava", "rcblib.records"} <= probing
    assert not any(
        name.startswith(("rcblib.reading", "rcblib.evaluate", "rcblib.pruners")) for name in probing
    )
    assert "rcblib.evaluate.metrics" in imported_modules("rcblib.evaluate.grid")
    assert "rcblib.scenes" not in imported_modules("worlds.held_out") > {"rcblib.evaluate.grid"}


def test_a_public_name_leads_to_its_module(package):
    package(a="from rcblib import keep_indices, probe\n")
    assert {"rcblib.tensors.scoring", "rcblib.probe.run"} <= imported_modules("methods.a")


def test_versions_of_what_computes_count_where_it_is_imported(package, monkeypatch):
    package(a="import torch\n")
    before, without = code_digest("methods.a"), code_digest("methods.b")
    monkeypatch.setattr(digests.importlib.metadata, "version", lambda name: "99.1.3")
    assert code_digest("methods.a") != before and code_digest("methods.b") == without
    newer = code_digest("methods.a")
    monkeypatch.setattr(digests.importlib.metadata, "version", lambda name: "99.1.4")
    assert code_digest("methods.a") == newer


NOTEBOOK = """
import rcblib.runs.files as files
from rcblib.records import ParameterError
from rcblib.runs.digest import digest_of
import functools
SCALE = [1.0]

def helper(x):
    return x

@functools.cache
def cached(x):
    return x * 11

def listed(x):
    return x * 12

def tabled(x):
    return x * 13

def bound(x, by):
    return x * by * 14

class Helper:
    factor = 15

    def __init__(self, by):
        self.by = by

    def __call__(self, x):
        return x * self.by * 16

def decorated(function):
    @functools.wraps(function)
    def inner(x):
        return function(x) * 17
    return inner

@decorated
def wrapped(x):
    return x * 18

LISTED, TABLED = [listed, {lambda x: x * 23}], {"tabled": (tabled, 19)}
BOUND, HELPER = functools.partial(bound, by=20), Helper(by=21)

class Mine:
    "Keep."
    share = 0.5

    @property
    def half(self):
        return self.share / 2

    @functools.lru_cache
    def kept(self, x):
        return x * 22

    def others(self, x):
        return cached(x), LISTED[0](x), TABLED["tabled"][0](x), BOUND(x), HELPER(x), wrapped(x)

    def score(self, view, scale=3):
        return [helper(x) * SCALE[0] for x in view]

print(digest_of(Mine))
"""
BY_PARTIAL = NOTEBOOK.replace("print(digest_of(Mine))", "print(digest_of(BOUND))")


def _digests_in_sessions(texts):
    """Run every code as a session without a file does, in copies of one with torch; return what they print."""
    session = f"""
import os, torch
for text in {texts!r}:
    if not os.fork():
        exec(text)
        os._exit(print(end='', flush=True) or 0)
    assert os.wait()[1] == 0
"""
    command = [sys.executable, "-c", session]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def test_a_class_of_a_notebook_is_known_by_what_it_does():
    changes = [
        ("* SCALE", "/ SCALE"),
        ("SCALE = [1.0]", "SCALE = [2.0]"),
        ("scale=3", "scale=4"),
        ("self.share / 2", "self.share / 3"),
        ("    return x\n", "    return -x\n"),
        ("= 0.5", "= 0.25"),
    ]
    changes += [(f"{n}", f"{n + 100}") for n in range(11, 24)]
    changed = [NOTEBOOK.replace(old, new) for old, new in changes]
    before, again, said_otherwise, *after = _digests_in_sessions(
        [NOTEBOOK, NOTEBOOK, NOTEBOOK.replace("Keep.", "Keep them."), *changed]
    )
    assert len(before) == 12 and before == again == said_otherwise
    for (old, _), digest in zip(changes, after, strict=True):
        assert digest != before, old


def test_a_partial_is_known_by_its_function_and_arguments(package):
    changed = [BY_PARTIAL.replace(old, new) for old, new in (("14", "15"), ("by=20", "by=21"), ("13", "14"))]
    before, other_function, other_argument, unrelated = _digests_in_sessions([BY_PARTIAL, *changed])
    assert before == unrelated and len({before, other_function, other_argument}) == 3
    package()
    a = importlib.import_module("methods.a")
    before = digest_of(functools.partial(a.g, x=1))
    assert before != digest_of(functools.partial(a.g, x=2)) and digest_of(a.g) == code_digest("methods.a")


@pytest.mark.parametrize("writes_byte_code", [True, False])
@pytest.mark.parametrize("asked_before", [True, False])
@pytest.mark.parametrize("elsewhere", [True, False])
def test_code_that_was_edited_since_it_was_loaded_is_not_named(
    tmp_path, writes_byte_code, asked_before, elsewhere
):
    """An edit of a constant, then of a function, seen by another process or not; only reloading makes it known."""
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods/__init__.py").touch()
    file = tmp_path / "methods/a.py"
    file.write_text("SHARE = 1\n\ndef f(x):\n    return x * SHARE\n")
    session = f"""
import importlib, os, subprocess, sys
from pathlib import Path
import methods.a
from rcblib.records import ParameterError
from rcblib.runs.digest import code_digest

def digest():
    try:
        return code_digest("methods.a")
    except ParameterError as error:
        assert str(error).startswith("code: got 'methods.a, edited since it was loaded'; accepted: "), error
        return None

def edit(old, new):
    file = Path(methods.a.__file__)
    file.write_text(file.read_text().replace(old, new))
    if {elsewhere}:
        subprocess.run([sys.executable, "-c", "import methods.a"], check=True)

found = [digest()] if {asked_before} else []
edit("* SHARE", "* SHARE + 100")
assert digest() is None and digest() is None
importlib.reload(methods.a)
found.append(digest())
edit("SHARE = 1", "# Say.\\nSHARE = 1")
found.append(digest())
assert found[-2] == found[-1]
edit("SHARE = 1", "SHARE = 1000")
assert digest() is None
importlib.reload(methods.a)
found.append(digest())
assert None not in found and len(set(found)) == 2 + {asked_before}, found
"""
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    environment |= {"PYTHONDONTWRITEBYTECODE": "" if writes_byte_code else "1"}
    subprocess.run([sys.executable, "-c", session], check=True, env=environment)


def test_a_constant_edited_before_it_is_asked_for_shows_by_the_byte_code(tmp_path):
    (tmp_path / "own_method.py").write_text("SHARE = 1\n")
    session = """
from pathlib import Path
import own_method
from rcblib.runs.digest import code_digest
Path(own_method.__file__).write_text("SHARE = 1000\\n")
code_digest("own_method")
"""
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "PYTHONDONTWRITEBYTECODE": ""}
    ended = subprocess.run([sys.executable, "-c", session], env=environment, capture_output=True, text=True)
    assert "code: got 'own_method, edited since it was loaded'" in ended.stderr


def test_stages_depend_on_all_that_their_commands_import():
    own = {
        "probe": ["_probe"],
        "evaluate": ["_evaluate", "_asking", "_questions"],
        "gates": ["_gates", "_asking", "_questions"],
        "truth": ["_truth", "_asking", "_questions"],
        "explorer": ["_explorer"],
    }
    assert own.keys() == COMMANDS.keys()
    for command, listed in COMMANDS.items():
        functions = [getattr(command_line, name) for name in ("_samples", "_model", *own[command])]
        source = "\n".join(textwrap.dedent(inspect.getsource(function)) for function in functions)
        covered = imported_modules(*listed)
        by_option = imported_modules(*sum(BY_OPTION.values(), []))
        assert digests.modules_in(source) <= covered | by_option and command_line.__name__ in covered
    # The command itself counts, not what its other subcommands need.
    assert "rcblib.pruners.random" not in imported_modules(*COMMANDS["probe"])


def test_a_class_of_a_kernel_is_known_by_its_cell():
    cells = [
        "from rcblib.runs.digest import digest_of",
        "class Mine:\n    def score(self, views, context):\n        return 1",
        "print(digest_of(Mine))",
        "class Mine:\n    def score(self, views, context):\n        return 2",
        "print(digest_of(Mine))",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    with warm.kernels():
        executed = NotebookClient(notebook, kernel_name="python3").execute()
    before, after = (executed.cells[i].outputs[0]["text"].strip() for i in (2, 4))
    assert len(before) == len(after) == 12 and before != after


def test_classes_of_files_are_known_by_their_modules(package):
    class Local(Pruner):
        pass

    assert digest_of(Pruner) == code_digest("rcblib.pruners.base")
    assert digest_of(Local) == code_digest(__name__)
    assert digest_of(type(None)) == digest_of(object) != digest_of(Session)


@pytest.fixture
def edited(tmp_path, monkeypatch):
    """Let digests be of a copy of the library, and return a function that edits a file of the copy."""
    shutil.copytree(ROOT / "rcblib", tmp_path / "rcblib", ignore=shutil.ignore_patterns("__pycache__"))
    real = digests.module_file

    def of_copy(module):
        file = real(module)
        is_own = file is not None and file.is_relative_to(ROOT / "rcblib")
        return tmp_path / file.relative_to(ROOT) if is_own else file

    def edit(path, words_only=False):
        file = tmp_path / "rcblib" / path
        content = file.read_text()
        edited = (
            content.replace('"""', '"""In other words: ', 1)
            if words_only
            else f"{content}\nEDITED = {content!r}\n"
        )
        file.write_text(edited)
        digests._read.cache_clear()

    monkeypatch.setattr(digests, "module_file", of_copy)
    digests._read.cache_clear()
    yield edit
    digests._read.cache_clear()


def test_an_edit_of_the_divergence_makes_the_next_probing_compute_again(edited, tmp_path, capsys):
    pair, samples, folder = tiny.tiny_llava(), samples_of(2), tmp_path / "probed"
    config = ProbeConfig(positions=(0,), attention=False)

    def n_probed(n_samples=2):
        results = probe_dataset(*pair, samples[:n_samples], config, folder)
        assert len(results.tokens) == n_samples
        printed = capsys.readouterr().out
        return sum(line.startswith("probing: image") for line in printed.splitlines()), printed

    assert n_probed()[0] == 2 and n_probed()[0] == 0
    edited("tensors/divergence.py", words_only=True)
    assert n_probed()[0] == 0
    before = code_digest("rcblib.probe.run")
    edited("tensors/divergence.py")
    n, printed = n_probed(1)
    assert n == 1 and "1 of 1 images were probed by other code: again" in printed
    assert read_probe(folder).table["image_id"].unique().tolist() == [
        10
    ]  # never mixed with the other's old numbers
    assert n_probed()[0] == 1 and len(read_probe(folder).tokens) == 2
    assert read_probe(folder).description["code"] == code_digest("rcblib.probe.run") != before


def test_shared_probing_of_other_code_has_another_folder(edited, tmp_path):
    pair, samples, config = tiny.tiny_llava(), samples_of(1), ProbeConfig(positions=(0,), attention=False)
    for _ in range(2):
        shared_probe(*pair, samples, config, tmp_path, progress=False)
        edited("probe/run.py")
    assert len(list((tmp_path / "probe").iterdir())) == 2


def test_an_edit_of_a_pruner_makes_the_next_evaluation_of_it_compute_again(edited, tmp_path):
    pair, samples = tiny.tiny_llava(), samples_of(2)
    questions = [Question(sample.image_id, "color", "Which?", "red") for sample in samples]

    def n_tables(**pruners):
        options = {"max_new_tokens": 1, "folder": tmp_path / "tables", "progress": False}
        evaluate_grid(*pair, questions, samples, pruners, **options)
        return len(list((tmp_path / "tables").iterdir()))

    every = {"all": None, "random": RandomPruner(0.5)}
    assert n_tables(**every) == 2 and n_tables(**every) == 2
    module = RandomPruner.__module__.removeprefix("rcblib.").replace(".", "/") + ".py"
    edited(module, words_only=True)
    assert n_tables(**every) == 2
    edited(module)
    assert n_tables(all=None) == 2 and n_tables(**every) == 3
    edited("evaluate/metrics.py")
    assert n_tables(**every) == 5
