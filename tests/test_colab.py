"""Imitate Colab in a bare environment: stamped notebooks, their set-up cell, and results that outlive the machine.

The environment is a new one that sees the packages installed here but not the library; pip is told by its own
variables to leave the network alone. What Colab adds, a mounted Drive, is a module that only notes what it is asked.
"""

import ast
import json
import os
import subprocess
import sys
import sysconfig
import time
import tomllib
import types
import venv
from pathlib import Path

import nbformat
import psutil
import pytest
import tiny
import yaml

from rcblib.notebook.begin import install_on_colab
from tools import check_site, stamp_notebooks
from tools.notebook_list import read_notebook_list

REPOSITORY = Path(__file__).resolve().parents[1]
GITHUB = "https://github.com/example/name"
OTHER = "https://example.org/group/name"
OPENED = "https://colab.research.google.com/github/example/name/blob/colab/notebooks"
PAGES = [entry.run for entry in read_notebook_list(REPOSITORY / "workflow" / "notebooks.yml").notebooks]


def tagged(notebook, tag):
    (cell,) = (cell for cell in notebook.cells if tag in cell.metadata.get("tags", []))
    return cell


def literals(source):
    """Return the parameters that a cell declares."""
    nodes = (node for node in ast.parse(source).body if isinstance(node, ast.AnnAssign))
    return {node.target.id: ast.literal_eval(node.value) for node in nodes}


def read(path):
    return nbformat.read(path, as_version=4)


# Stamping


@pytest.fixture
def stamped(tmp_path):
    return {
        path.stem: read(path) for path in stamp_notebooks.stamp_project(REPOSITORY, tmp_path, GITHUB, "v1")
    }


def test_every_page_has_a_stamped_copy_that_is_clean_and_differs_in_nothing_else(stamped):
    assert list(stamped) == PAGES
    assert len({tagged(copy, "setup").source for copy in stamped.values()}) == 1  # so one is tried below
    for entry in read_notebook_list(REPOSITORY / "workflow" / "notebooks.yml").notebooks:
        copy, source = stamped[entry.run], read(REPOSITORY / "notebooks" / f"{entry.name}.ipynb")
        nbformat.validate(copy)
        assert copy.metadata == source.metadata
        assert all(not cell.outputs for cell in copy.cells if cell.cell_type == "code")
        lines = copy.cells[0].source.split("\n")
        assert lines[0].startswith(source.cells[0].source.split("\n")[0])
        assert lines[2].endswith(f"({OPENED}/{entry.run}.ipynb)")
        set_up = tagged(copy, "setup")
        assert copy.cells.index(set_up) == copy.cells.index(tagged(copy, "parameters")) - 1
        assert f'\nREPOSITORY = "{GITHUB}"\nREVISION = "v1"\n' in set_up.source
        assert "hide-input" in set_up.metadata.tags
        declared = tagged(copy, "parameters").source
        assert "data/recorded/" not in declared  # else no other model could run
        here, there = (literals(tagged(each, "parameters").source) for each in (copy, source))
        if "quantization" in here:
            assert (here["quantization"], here["batch_size"]) == ("auto", 8)
        if entry.reads:  # at the size for trying, in the numbers that the GPU has
            assert here.get("dtype", "auto") == "auto"
            sizes = ("n_images", "n_questions")
            assert [here.get(name) for name in sizes] == [there.get(name) for name in sizes]
        copy.cells.remove(set_up)
        assert len(copy.cells) == len(source.cells)
        if not entry.settings and "quantization" not in declared:
            assert [cell.source for cell in copy.cells[1:]] == [cell.source for cell in source.cells[1:]]


def test_sources_stay_as_they_are_and_know_no_address(tmp_path):
    paths = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
    before = [path.read_bytes() for path in paths]
    stamp_notebooks.stamp_project(REPOSITORY, tmp_path, GITHUB, "main")
    assert [path.read_bytes() for path in paths] == before
    for path in paths:
        assert not any("setup" in cell.metadata.get("tags", []) for cell in read(path).cells)
        assert "Open in Colab" not in path.read_text(encoding="utf-8")
        assert "REPOSITORY" not in path.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="the folder of the sources; accepted: another folder"):
        stamp_notebooks.stamp_project(REPOSITORY, REPOSITORY / "notebooks", GITHUB, "main")


def test_stamping_again_changes_nothing_and_a_new_address_replaces_the_old(tmp_path, stamped):
    once = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "gone.ipynb").write_text("{}", encoding="utf-8")
    stamp_notebooks.stamp_project(REPOSITORY, tmp_path, GITHUB, "v1")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == once
    for page, notebook in stamped.items():
        assert stamp_notebooks.stamp(notebook, page, GITHUB, "v1") == notebook
        moved = stamp_notebooks.stamp(notebook, page, "https://github.com/example/other", "v1")
        assert "example/name" not in nbformat.writes(moved)
        assert moved.cells[0].source.count("Open in Colab") == 1


def test_other_hosts_get_an_address_but_no_badge(tmp_path):
    for path in stamp_notebooks.stamp_project(REPOSITORY, tmp_path, OTHER, "main"):
        assert f'\nREPOSITORY = "{OTHER}"\n' in tagged(read(path), "setup").source
        assert "colab.research" not in path.read_text(encoding="utf-8")
    assert stamp_notebooks.launch_folder(OTHER) is None
    assert stamp_notebooks.launch_folder("https://github.com.example.org/a/b") is None
    assert stamp_notebooks.launch_folder(GITHUB) == OPENED


@pytest.mark.parametrize(
    ("repository", "branch", "message"),
    [
        ("", "main", "repository: got ''; accepted: "),
        (GITHUB, "", "branch: got ''; accepted: "),
        (GITHUB, "--upload-pack=x", "branch: got '--upload-pack=x'; accepted: "),
        ("https://user:secret@example.org/name", "main", "with credentials; accepted: one without"),
    ],
)
def test_unusable_addresses_are_refused_before_anything_is_written(tmp_path, repository, branch, message):
    with pytest.raises(ValueError, match=message) as raised:
        stamp_notebooks.stamp_project(REPOSITORY, tmp_path / "copies", repository, branch)
    assert "secret" not in str(raised.value)
    assert not (tmp_path / "copies").exists()


def example(parameters="n: int = 1  # number"):
    new, kernel = nbformat.v4, {"name": "python3", "display_name": "Python 3", "language": "python"}
    declared = new.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    cells = [new.new_markdown_cell("# Title\n\nText."), declared]
    return new.new_notebook(cells=cells, metadata={"kernelspec": kernel})


def test_the_parameters_of_a_page_are_written_into_its_copy():
    notebook = example('n: int = 1  # number\nname: str = "ä"  # ä text\nlist_: list = [1, 2]  # more')
    stamp_notebooks.set_parameters(notebook, {"name": 'b"c', "list_": [3.5], "n": 20})
    assert tagged(notebook, "parameters").source.splitlines() == [
        "n: int = 20  # number",
        'name: str = "b\\"c"  # ä text',
        "list_: list = [3.5]  # more",
    ]
    with pytest.raises(ValueError, match="m: got no parameter of this name; accepted: n, name, list_"):
        stamp_notebooks.set_parameters(notebook, {"m": 1})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda notebook: notebook.cells.pop(1), "got 0 cells tagged parameters; accepted: one"),
        (lambda notebook: notebook.cells.append(notebook.cells[1]), "got 2 cells tagged parameters"),
        (
            lambda notebook: notebook.cells[0].update(source="Text."),
            "first cell: got 'Text.'; accepted: Markdown",
        ),
    ],
    ids=["no parameters", "parameters twice", "no title"],
)
def test_a_notebook_that_cannot_be_stamped_is_an_error(spoil, message):
    notebook = example()
    spoil(notebook)
    with pytest.raises(ValueError, match=message):
        stamp_notebooks.stamp(notebook, "example", GITHUB, "main")


def test_the_tool_stamps_the_web_address_of_any_git_address(tmp_path, capsys):
    arguments = ["--branch", "v1", "--to", str(tmp_path), "--repository"]
    assert stamp_notebooks.main([*arguments, "git@github.com:example/name.git"]) == 0
    assert f'"{GITHUB}"' in tagged(read(tmp_path / "claims.ipynb"), "setup").source
    assert capsys.readouterr().out == f"stamped {len(PAGES)} notebooks\n"
    assert stamp_notebooks.main([*arguments, OTHER]) == 0
    assert "no badges: Colab opens notebooks of GitHub only" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        stamp_notebooks.main([*arguments, ""])
    assert "repository: got ''; accepted: " in capsys.readouterr().err


def test_what_colab_installs_leaves_its_kernel_alone():
    """Replacing IPython or ipykernel under Colab's kernel breaks it, so no extra of the set-up cell asks for them."""
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = extras["optional-dependencies"]
    assert set(extras["kernel"]) < set(extras["notebooks"])
    kept = {"ipykernel", "ipython", "jupyterlab", "papermill"}
    assert {line.split(">=")[0] for line in set(extras["notebooks"]) - set(extras["kernel"])} == kept


@pytest.mark.parametrize("on_colab", [True, False])
def test_the_notebook_of_benchmarks_installs_what_runs_them_on_colab(on_colab, monkeypatch):
    notebook = read(REPOSITORY / "notebooks" / "real_benchmarks.ipynb")
    (cell,) = (cell for cell in notebook.cells if cell.id == "data")
    first, _, _ = cell.source.partition("folder = ")
    commands, missing = [], [["lmms-eval"], []]
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append((command, check)))
    if on_colab:
        monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    exec(first, {"missing_packages": lambda: missing.pop(0), "install_on_colab": install_on_colab})
    pip = [sys.executable, "-m", "pip", "install", "-q", "-e", f"{REPOSITORY}[lmms]"]
    assert commands == ([(pip, True)] if on_colab else [])
    assert len(missing) == (0 if on_colab else 1)


def test_the_pages_workflow_puts_the_copies_on_the_branch_that_badges_name(tmp_path):
    """Run the step of the workflow in a checkout whose origin is a folder, twice."""
    text = (REPOSITORY / ".github/workflows/pages.yml").read_text(encoding="utf-8")
    job = yaml.safe_load(text)["jobs"]["notebooks"]
    assert job["permissions"] == {"contents": "write"}
    checkout = tmp_path / "checkout"
    subprocess.run(["git", "init", "-q", "--bare", tmp_path / "origin"], check=True)
    subprocess.run(["git", "clone", "-q", tmp_path / "origin", checkout], check=True, capture_output=True)
    (checkout / ".gitignore").write_text("launch/\n*.ipynb\n", encoding="utf-8")
    stamp_notebooks.stamp_project(REPOSITORY, checkout / "launch/notebooks", GITHUB, "main")
    given = {"GITHUB_ACTOR": "actor", "GITHUB_SHA": "0" * 40, "RUNNER_TEMP": str(tmp_path)}
    for _ in range(2):
        command = ["bash", "-euo", "pipefail", "-c", job["steps"][-1]["run"]]
        done = subprocess.run(
            command, cwd=checkout, env=os.environ | given, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    held = git(tmp_path / "origin", "ls-tree", "-r", "--name-only", stamp_notebooks.LAUNCH_BRANCH)
    assert held.splitlines() == sorted(f"notebooks/{page}.ipynb" for page in PAGES)
    assert git(tmp_path / "origin", "for-each-ref", "--format=%(refname)") == "refs/heads/colab"


def test_a_page_of_the_book_shows_the_badge_where_an_address_is_known(tmp_path):
    pytest.importorskip("sphinx")
    book = tmp_path / "book"
    (book / "notebooks").mkdir(parents=True)
    (book / "_static").mkdir()
    picture = "_static/open_in_colab.svg"
    (book / picture).write_bytes((REPOSITORY / "book" / picture).read_bytes())
    (book / "index.md").write_text("# Book\n\n```{toctree}\nnotebooks/example\n```\n", encoding="utf-8")
    nbformat.write(example(), book / "notebooks/example.ipynb")
    before = (book / "notebooks/example.ipynb").read_bytes()
    (book / "conf.py").write_text(
        f"import sys\nsys.path.insert(0, {str(REPOSITORY / 'tools')!r})\n"
        "extensions = ['myst_nb', 'sphinx.ext.autodoc', 'book_extension']\nnb_execution_mode = 'off'\n",
        encoding="utf-8",
    )
    for folder, n_badges in ((OPENED, 1), ("", 0)):
        command = [sys.executable, "-m", "sphinx", "-q", "-W", "-D", f"launch_folder={folder}"]
        built = subprocess.run(
            [*command, book, tmp_path / "html"], capture_output=True, text=True, check=False
        )
        assert built.returncode == 0, built.stderr
        page = (tmp_path / "html/notebooks/example.html").read_text(encoding="utf-8")
        assert page.count(f'href="{OPENED}/example.ipynb"') == n_badges
        assert page.count('alt="Open in Colab"') == n_badges
        assert "colab" not in (tmp_path / "html/index.html").read_text(encoding="utf-8")
        assert check_site.check_site(tmp_path / "html") == []
    assert (book / "notebooks/example.ipynb").read_bytes() == before


# The set-up cell


def git(folder, *arguments):
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    command = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    """Make a repository of the working tree, with one commit that a notebook may belong to and a later one."""
    listing = ["git", "-C", str(REPOSITORY), "ls-files", "-co", "--exclude-standard", "-z"]
    try:
        found = subprocess.run(listing, capture_output=True, check=True).stdout.decode()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no git checkout to clone from")
    folder = tmp_path_factory.mktemp("origin")
    for name in filter(None, found.split("\0")):
        if (REPOSITORY / name).is_file():  # not deleted since it was added
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((REPOSITORY / name).read_bytes())
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "The project")
    git(folder, "tag", "v1")
    (folder / "later.txt").write_text("later", encoding="utf-8")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "Something later")
    return folder


@pytest.fixture(scope="module")
def published(origin, tmp_path_factory):
    """Stamp the notebooks with the address of that repository, at its first commit."""
    folder = tmp_path_factory.mktemp("published")
    stamp_notebooks.stamp_project(REPOSITORY, folder, str(origin), git(origin, "rev-parse", "v1"))
    return folder


class Machine:
    """A machine as Colab lends it: packages but not the library, and an empty folder to work in."""

    def __init__(self, folder):
        self.content = folder / "content"
        self.content.mkdir(parents=True)
        self.project = self.content / "redundancy-codebook"
        venv.create(folder / "env", with_pip=False, symlinks=True)
        self.python = folder / "env/bin/python"
        self.folder = folder
        asked = [str(self.python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        own = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
        here = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
        # Links of editable installations are not followed from here, so the library stays out of sight.
        Path(own, "packages.pth").write_text("\n".join(here), encoding="utf-8")
        colab = folder / "colab/google/colab"
        colab.mkdir(parents=True)
        (colab / "__init__.py").write_text("", encoding="utf-8")
        (colab / "drive.py").write_text("MOUNTED = []\nmount = MOUNTED.append\n", encoding="utf-8")
        # Colab's kernel has its own package imported before the first cell.
        (folder / "colab/sitecustomize.py").write_text("import google.colab\n", encoding="utf-8")

    def environment(self, colab):
        own = {name: value for name, value in os.environ.items() if not name.startswith(("RCB_", "PYTHON"))}
        own |= {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        own |= {"PIP_NO_BUILD_ISOLATION": "0"}  # pip reads its own negations the other way round
        own |= {"HF_HUB_OFFLINE": "1", "PIP_ROOT_USER_ACTION": "ignore"}
        return own | ({"PYTHONPATH": str(self.folder / "colab")} if colab else {})

    def run(self, code, colab=False):
        """Run a program in the working folder; it lies elsewhere, so that nothing beside it can be imported."""
        script = self.folder / "script.py"
        script.write_text(code, encoding="utf-8")
        where = {"cwd": self.content, "env": self.environment(colab)}
        return subprocess.run([self.python, script], **where, capture_output=True, text=True, timeout=300)

    def set_up(self, notebook, times=1, colab=False, results_folder="results"):
        """Execute the set-up cell, as often as asked, the parameters, and `begin`; tell what came of it."""
        cells = [tagged(notebook, tag).source for tag in ("setup", "parameters")]
        done = self.run(
            "import json, os, sys\n"
            f"cells, here = {cells!r}, {{'__name__': '__main__'}}\n"
            f"for _ in range({times}):\n"
            "    exec(cells[0], here)\n"
            "exec(cells[1], here)\n"
            f"here['results_folder'] = {results_folder!r}\n"
            "import rcblib\n"
            "from rcblib.notebook.begin import begin\n"
            "config = begin(here)\n"
            "drive = sys.modules.get('google.colab.drive')\n"
            "facts = {'library': rcblib.__file__, 'folder': os.getcwd(), 'results': config.results_folder}\n"
            "print(json.dumps(facts | {'mounted': drive.MOUNTED if drive else []}))\n",
            colab,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    def papermill(self, path, parameters, colab=False):
        """Start a notebook from the working folder and return the process."""
        command = [
            self.python,
            "-m",
            "papermill",
            path.name,
            "out.ipynb",
            "--no-progress-bar",
            "-k",
            "python3",
        ]
        for name, value in parameters.items():
            command += ["-p", name, str(value)]
        (self.content / path.name).write_bytes(path.read_bytes())
        return subprocess.Popen(
            command, cwd=self.content, env=self.environment(colab), stderr=subprocess.PIPE, text=True
        )


@pytest.fixture
def machine(tmp_path):
    machine = Machine(tmp_path / "machine")
    assert machine.run("import torch, rcblib").stderr.endswith("No module named 'rcblib'\n")
    return machine


def test_the_set_up_cell_fetches_and_installs_the_project_once(machine, published, origin):
    notebook = read(published / "claims.ipynb")
    # As an interrupted first attempt may leave it.
    git(machine.content, "init", "-q", machine.project.name)
    (machine.project / "pyproject.toml").write_text("half", encoding="utf-8")
    facts = machine.set_up(notebook, times=2)
    assert facts == {
        "library": str(machine.project / "rcblib/__init__.py"),
        "folder": str(machine.project),
        "results": "results",
        "mounted": [],
    }
    assert git(machine.project, "rev-parse", "HEAD") == git(origin, "rev-parse", "v1")
    assert not (machine.project / "later.txt").exists()
    assert git(machine.project, "status", "--porcelain") == ""

    # After a restart of the kernel nothing is fetched, nor can it be.
    moved = stamp_notebooks.stamp(notebook, "claims", str(origin / "gone"), "main")
    assert machine.set_up(moved) == facts

    # On Colab a relative folder lies beside the notebook, here on Drive; tests/test_notebook.py has the others.
    found = machine.set_up(notebook, colab=True, results_folder="drive/MyDrive/kept")
    assert found["folder"] == str(machine.project)
    on_drive = str(Path("/content", "drive"))
    assert (found["results"], found["mounted"]) == (f"{on_drive}/MyDrive/kept", [on_drive])


def test_an_unpublished_notebook_says_that_the_library_is_missing(machine):
    notebook = read(REPOSITORY / "notebooks/claims.ipynb")
    failed = machine.run("\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code"))
    assert failed.returncode == 1
    assert failed.stderr.endswith("ModuleNotFoundError: No module named 'rcblib'\n")
    assert list(machine.content.iterdir()) == []


# Whole notebooks


def finish(process):
    _, error = process.communicate(timeout=400)
    assert process.returncode == 0, error[-3000:]


def test_a_notebook_runs_top_to_bottom_and_a_lost_machine_loses_nothing_finished(tmp_path, published):
    """Kill the machine while it probes; another one goes on from the folder that both have mounted."""
    for number, image in enumerate(tiny.random_images(4, size=(64, 48))):
        (tmp_path / "photos").mkdir(exist_ok=True)
        image.save(tmp_path / "photos" / f"{number}.jpg")
    tiny.save_tiny_llava(tmp_path / "model")
    kept = tmp_path / "mounted/results"
    parameters = {"model": tmp_path / "model", "images": tmp_path / "photos", "results_folder": kept}
    parameters |= {"n_images": 4, "batch_size": 1}

    first = Machine(tmp_path / "first")
    process = first.papermill(published / "token_centric.ipynb", parameters, colab=True)
    deadline = time.monotonic() + 240
    while not (finished := sorted(kept.glob("probe/*/*.parquet"))):
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()[-3000:]
        time.sleep(0.02)
    for child in psutil.Process(process.pid).children(recursive=True):
        child.kill()
    process.kill()
    process.communicate()
    assert not list(kept.glob("*.json"))
    written = {path: path.stat().st_mtime_ns for path in finished}

    second = Machine(tmp_path / "second")
    finish(second.papermill(published / "token_centric.ipynb", parameters, colab=True))
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert len(list(kept.glob("probe/*/*.parquet"))) == 4
    assert json.loads((kept / "token_centric.json").read_text(encoding="utf-8"))["results"]
    finish(second.papermill(published / "claims.ipynb", {"results_folder": kept}, colab=True))
    assert json.loads((kept / "claims.json").read_text(encoding="utf-8"))["results"]
    # Nothing is left on the machine itself that a lost connection would take with it.
    assert git(second.project, "status", "--porcelain", "--ignored", "--untracked-files=all", "results") == ""
    assert {path.name for path in second.content.iterdir()} == {
        second.project.name, "token_centric.ipynb", "claims.ipynb", "out.ipynb",
    }  # fmt: skip
