"""Check that the project's own files agree with each other: environments, notebooks, workflow, what is tracked."""

import ast
import functools
import importlib
import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import rcblib
from tools.notebook_list import read_notebook_list

REPOSITORY = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


def requirements(lines):
    """Map the name of each requirement to its range of versions."""
    return {canonicalize_name(line.name): line.specifier for line in map(Requirement, lines)}


def pins(lines):
    """Map the names of exact requirements to their versions; every other line is an error."""
    found = {}
    for line in map(Requirement, lines):
        (exact,) = line.specifier
        assert exact.operator == "==" and not line.extras and line.marker is None, line
        assert canonicalize_name(line.name) not in found, f"{line.name} is pinned twice"
        found[canonicalize_name(line.name)] = exact.version
    return found


HARDWARE_EXTRAS = {"gpu", "lmms"}
"""Extras that need hardware, or serve what needs it, which the build does without; `all` leaves them out."""


def direct_requirements(without=()):
    """Return the core requirements and those of every extra that names packages itself."""
    lines = list(PROJECT["dependencies"])
    for extra, more in PROJECT["optional-dependencies"].items():
        if extra not in {"all", *without}:
            lines += more
    return requirements(lines)


def constraint_pins():
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return pins(line for line in lines if line and not line.startswith("#"))


def environment_pip_lines():
    environment = yaml.safe_load((REPOSITORY / "environment.yml").read_text(encoding="utf-8"))
    (section,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    return environment, section


def test_every_direct_requirement_is_pinned_inside_its_range():
    pinned = constraint_pins()
    for name, ranges in direct_requirements().items():
        assert name in pinned, f"{name} is not in constraints.txt"
        assert pinned[name] in ranges, f"{name}=={pinned[name]} is outside {ranges}"


def test_every_requirement_has_a_lower_and_an_upper_bound():
    for name, ranges in direct_requirements().items():
        operators = sorted(part.operator for part in ranges)
        assert operators in (["=="], ["<", ">="]), f"{name}: {ranges}"


def test_constraints_hold_everything_that_the_requirements_pull_in():
    from importlib.metadata import PackageNotFoundError, requires

    pinned, waiting, seen = constraint_pins(), list(direct_requirements(HARDWARE_EXTRAS)), set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        assert name in pinned, f"{name} is not in constraints.txt"
        try:
            lines = requires(name) or []
        except PackageNotFoundError:
            pytest.skip(f"{name} is not installed; the whole environment is needed")
        for requirement in map(Requirement, lines):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(canonicalize_name(requirement.name))


def test_extra_all_holds_the_other_extras():
    extras = set(PROJECT["optional-dependencies"]) - {"all", *HARDWARE_EXTRAS}
    (line,) = PROJECT["optional-dependencies"]["all"]
    assert Requirement(line).extras == extras


def test_conda_environment_pins_the_direct_requirements_as_the_constraints_do():
    environment, section = environment_pip_lines()
    assert section[0] == "-c constraints.txt"
    assert section[-1] == "-e ."
    pinned = constraint_pins()
    assert pins(section[1:-1]) == {name: pinned[name] for name in direct_requirements(HARDWARE_EXTRAS)}
    (python,) = (entry for entry in environment["dependencies"] if str(entry).startswith("python="))
    assert python.removeprefix("python=") in SpecifierSet(PROJECT["requires-python"])


def test_version_is_stated_once_and_cited():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert "version" in PROJECT["dynamic"]
    assert citation["version"] == rcblib.__version__
    assert citation["license"] == "Apache-2.0"
    assert citation["references"][0]["identifiers"][0]["value"] == "arXiv:2503.20540"


def imported_packages(folder):
    """Collect the top-level packages that the modules of a folder import."""
    found = {}
    for path in sorted((REPOSITORY / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            for name in names:
                found.setdefault(name.split(".")[0], path.relative_to(REPOSITORY))
    return found


def test_the_library_imports_declared_packages_only():
    extras = PROJECT["optional-dependencies"]
    declared = set(
        requirements(
            [
                *PROJECT["dependencies"],
                *extras["notebooks"],
                *extras["video"],
                *extras["heif"],
                *extras["lmms"],
            ]
        )
    )
    distributions = packages_distributions()
    for package, path in imported_packages("rcblib").items():
        if package in ("rcblib", "google") or package in sys.stdlib_module_names:
            continue  # google is Colab's own, and only there
        providers = {canonicalize_name(name) for name in distributions.get(package, [package])}
        assert providers & declared, f"{path} imports {package}, which pyproject.toml does not require"


def tracked_files():
    command = ["git", "-C", str(REPOSITORY), "ls-files", "-z"]
    try:
        answer = subprocess.run(command, capture_output=True, check=False)
    except OSError:
        pytest.skip("git is not installed")
    if answer.returncode:
        pytest.skip("not a git checkout")
    return [name for name in answer.stdout.decode().split("\0") if name]


def test_no_two_classes_share_a_name():
    found = {}
    for name in tracked_files():
        if name.endswith(".py") and name.startswith(("rcblib/", "worlds/", "benchmarks/")):
            tree = ast.parse((REPOSITORY / name).read_text(encoding="utf-8"))
            for node in tree.body:
                if isinstance(node, ast.ClassDef) and node.name[0] != "_":
                    found.setdefault(node.name, []).append(name)
    assert {name: files for name, files in found.items() if len(files) > 1} == {}


def test_no_file_is_longer_than_400_lines():
    folders = ("rcblib", "worlds", "tools", "benchmarks")
    paths = [path for folder in folders for path in (REPOSITORY / folder).rglob("*.py")]
    long = {path.name for path in paths if len(path.read_text(encoding="utf-8").splitlines()) > 400}
    assert paths and not long


def test_the_readme_says_what_every_folder_holds():
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    folders = {name.split("/")[0] for name in tracked_files() if "/" in name and name[0] != "."}
    assert {folder for folder in folders if f"`{folder}/`" not in text} == set()


def exists(name):
    """Tell whether a dotted name is a module, or something that a module holds."""
    parts = name.split(".")
    for n_parts in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:n_parts]))
        except ModuleNotFoundError:
            continue
        try:
            return functools.reduce(getattr, parts[n_parts:], found) is not None
        except AttributeError:
            return False
    return False


def test_names_of_code_in_text_exist():
    assert exists("rcblib.records.Sample.n_images") and not exists("rcblib.records.Nothing")
    named = re.compile(r"[`<]((?:rcblib|worlds|benchmarks)(?:\.[A-Za-z]\w*)+)[`>(]")
    problems = set()
    for path in map(Path, tracked_files()):
        if path.suffix in (".md", ".ipynb", ".py") and path.parts[0] != "tests":
            text = (REPOSITORY / path).read_text(encoding="utf-8")
            problems |= {f"{path}: {name}" for name in named.findall(text) if not exists(name)}
    assert problems == set()


EXAMPLES = {"data/expected/single_tokens.json", "notebooks/single_tokens.ipynb"}
"""Files that a reader makes, on the page on adding a notebook."""


def missing_paths(text, root):
    """Find paths of the project that do not exist; of one with ``<name>`` or ``*`` in it, what stands before that."""
    folders = "rcblib|worlds|tools|data|notebooks|benchmarks|workflow|scripts|codebooks|scorers|tests"
    found = re.findall(rf"(?<![\w/.~<>$}}-])(?:{folders})/[\w./*<>-]+", text)
    named = {re.split(r"[^/]*[<*]", path)[0].rstrip(".") for path in found}
    return {path for path in named if not (root / path).exists()}


def test_paths_that_do_not_exist_are_found(tmp_path):
    (tmp_path / "data/models").mkdir(parents=True)
    text = "`data/models/<name>/a.json`, `data/*.yml`, `results/x`, [](../data/gone) and ~/data/mine: "
    assert missing_paths(text, tmp_path) == set()
    assert missing_paths(f"{text} `data/gone.yml`. See tools/<name>.py", tmp_path) == {
        "data/gone.yml",
        "tools/",
    }


def test_paths_of_the_project_that_pages_and_notebooks_name_exist():
    pages = [*NOTEBOOKS, REPOSITORY / "README.md", REPOSITORY / "data/README.md"]
    pages += [path for ending in ("md", "yml") for path in (REPOSITORY / "book").glob(f"*.{ending}")]
    problems = {path.name: missing_paths(path.read_text(encoding="utf-8"), REPOSITORY) for path in pages}
    assert len(problems) > 40
    assert {name: found - EXAMPLES for name, found in problems.items() if found - EXAMPLES} == {}


def machine_paths(text):
    """Find absolute paths of somebody's machine: below a home, a temporary folder or the like."""
    # Put together from parts, so that this file does not hold what it looks for.
    roots = "|".join(["home/\\w", "root/", "tmp/", "work/", "opt/", "Users/\\w", "mnt/", "content/drive"])
    return re.findall(rf"(?<![\w.~/>)}}\]-])/(?:{roots})[\w./-]*", text)


def test_machine_paths_are_recognised():
    slash = "/"
    for path in ("home/ann/x.py", "tmp/out", "work/main", "root/.cache", "opt/env/bin"):
        assert machine_paths(f"see {slash}{path}") == [f"{slash}{path}"]
    for before, path in (
        ("https://host", "work/x"),
        ("book", "tmp/x"),
        ("a", "work/b"),
        ("{ROOT}", "opt/x"),
        ("..", "work/x"),
    ):
        assert machine_paths(f"{before}{slash}{path}") == []


def test_tracked_text_names_no_path_of_a_machine():
    problems = []
    for name in tracked_files():
        path = REPOSITORY / name
        if not path.is_file() or path.stat().st_size > 2_000_000:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        problems += [f"{name}: {found}" for found in machine_paths(text)]
    assert problems == []


def test_generated_folders_are_not_tracked():
    generated = ("book/_build/", "book/api/", "book/notebooks/", "results/", ".snakemake/")
    assert [name for name in tracked_files() if name.startswith(generated)] == []


def notebook_problems(notebook):
    """List what a source notebook should not carry: outputs, counts, run metadata, or no parameters cell."""
    problems = []
    n_parameters = 0
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] != "code":
            continue
        n_parameters += "parameters" in cell["metadata"].get("tags", [])
        if cell["outputs"]:
            problems.append(f"cell {number} has outputs")
        if cell["execution_count"] is not None:
            problems.append(f"cell {number} has an execution count")
        if {"execution", "papermill"} & set(cell["metadata"]):
            problems.append(f"cell {number} has metadata of a run")
    if "papermill" in notebook["metadata"]:
        problems.append("metadata of a run")
    if n_parameters != 1:
        problems.append(f"{n_parameters} cells tagged parameters")
    return problems


def test_a_clean_notebook_passes_and_an_executed_one_does_not():
    clean = {
        "cell_type": "code",
        "outputs": [],
        "execution_count": None,
        "metadata": {"tags": ["parameters"]},
    }
    text = {"cell_type": "markdown", "metadata": {}}
    assert notebook_problems({"cells": [text, clean], "metadata": {}}) == []
    executed = clean | {"outputs": [{"output_type": "stream"}], "execution_count": 3}
    executed["metadata"] = {"execution": {}, "tags": []}
    assert notebook_problems({"cells": [executed], "metadata": {"papermill": {}}}) == [
        "cell 0 has outputs",
        "cell 0 has an execution count",
        "cell 0 has metadata of a run",
        "metadata of a run",
        "0 cells tagged parameters",
    ]


def test_source_notebooks_carry_no_outputs():
    problems = {
        path.name: notebook_problems(json.loads(path.read_text(encoding="utf-8"))) for path in NOTEBOOKS
    }
    assert {name: found for name, found in problems.items() if found} == {}


def test_the_workflow_lists_every_notebook():
    runs = read_notebook_list(REPOSITORY / "workflow/notebooks.yml").notebooks
    assert sorted({run.name for run in runs}) == [path.stem for path in NOTEBOOKS]


def test_expectations_belong_to_notebooks():
    runs = read_notebook_list(REPOSITORY / "workflow/notebooks.yml").notebooks
    folder = REPOSITORY / "data/expected"
    found = {Path("results") / path.relative_to(folder) for path in folder.rglob("*.json")}
    assert found <= {Path(run.results) for run in runs}


def test_the_table_of_contents_names_pages_that_exist():
    toc = yaml.safe_load((REPOSITORY / "book/_toc.yml").read_text(encoding="utf-8"))
    entries = [toc["root"]] + [
        entry["file"]
        for part in toc["parts"]
        for chapter in part["chapters"]
        for entry in [chapter, *chapter.get("sections", [])]
        if "file" in entry
    ]
    written = {path.stem for path in (REPOSITORY / "book").glob("*.md")}
    packages = {
        ".".join(path.parent.relative_to(REPOSITORY).parts)
        for folder in ("rcblib", "worlds", "benchmarks")
        for path in (REPOSITORY / folder).rglob("__init__.py")
    }
    assert sorted(entries) == sorted(written | {f"api/{package}" for package in packages})


def test_ci_script_can_be_run():
    assert (REPOSITORY / ".ci/run").stat().st_mode & 0o111
    text = (REPOSITORY / ".ci/run").read_text(encoding="utf-8")
    assert text.startswith("#!/usr/bin/env bash\n") and "set -euo pipefail" in text
