"""Check that nothing unpickles, evaluates text or calls a shell; that downloads are verified; that data stays text."""

import ast
import html
import json
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from packaging.requirements import Requirement
from PIL import Image

from rcblib.codebook.codebook import Codebook
from rcblib.notebook.begin import begin
from rcblib.reading.figures.maps import outlined_objects
from rcblib.reading.figures.patches import patches_gallery
from rcblib.reading.labels import as_written
from worlds.photographs.parts import FILES

REPOSITORY = Path(__file__).resolve().parents[1]
SHA256 = re.compile(r"[0-9a-f]{64}")

# Code

FORBIDDEN = {
    *("eval", "exec", "__import__", "os.system", "os.popen", "os.startfile", "pty.spawn", "tempfile.mktemp"),
    *(
        "subprocess.getoutput",
        "subprocess.getstatusoutput",
        "yaml.load",
        "yaml.full_load",
        "yaml.unsafe_load",
    ),
    *(
        "pandas.read_pickle",
        "marshal.load",
        "marshal.loads",
        "shelve.open",
        "torch.hub.load",
        "torch.jit.load",
    ),
    *(
        "urllib.request.urlopen",
        "urllib.request.urlretrieve",
        "requests.get",
        "torch.hub.download_url_to_file",
    ),
}
UNPICKLERS = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "jsonpickle"}
NEEDED = {"torch.load": ("weights_only", True), "numpy.load": ("allow_pickle", False)}
"""What has to be said where the default may change, or has been another."""
SAFE = {
    "shell": False,
    "trust_remote_code": False,
    "weights_only": True,
    "allow_pickle": False,
    "verify": True,
}
"""The only values that these arguments may have."""


def unsafe_calls(source):
    """List the calls in some source that could run what a file or a parameter holds, or fetch without a check."""
    tree = ast.parse(source)
    names, found = {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name.split(".")[0]: alias.asname and alias.name or alias.name.split(".")[0]
                      for alias in node.names}  # fmt: skip
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        written = ast.unparse(node.func)
        first, _, rest = written.partition(".")
        name = ".".join(filter(None, (names.get(first, first), rest)))
        given_values = {word.arg: getattr(word.value, "value", ...) for word in node.keywords}
        is_bad = name in FORBIDDEN or (name.split(".")[0] in UNPICKLERS and not name.endswith("dumps"))
        is_bad |= any(key in given_values and given_values[key] is not safe for key, safe in SAFE.items())
        is_bad |= (
            name in NEEDED and given_values.get(NEEDED[name][0], not NEEDED[name][1]) is not NEEDED[name][1]
        )
        is_bad |= name.endswith(".extractall")
        found += [f"line {node.lineno}: {written}"] if is_bad else []
    return found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.loads(b'')",
        "from pickle import load as read\nread(file)",
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "import torch\ntorch.load(path, weights_only=flag)",
        "import numpy as np\nnp.load(path)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import joblib\njoblib.load(path)",
        "import yaml\nyaml.load(text)",
        "import pandas as pd\npd.read_pickle(path)",
        "eval(text)",
        "import os\nos.system(command)",
        "import subprocess\nsubprocess.run(command, shell=True)",
        "from subprocess import run\nrun(command, shell=is_text)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "from urllib.request import urlopen\nurlopen(address)",
        "import zipfile\nzipfile.ZipFile(path).extractall()",
    ],
)
def test_unsafe_calls_are_found(source):
    assert len(unsafe_calls(source)) == 1


def test_safe_calls_are_let_be():
    source = (
        "import numpy as np, torch, yaml, subprocess, pickle\ntorch.load(path, weights_only=True)\n"
        "np.load(path, allow_pickle=False)\nyaml.safe_load(text)\nsubprocess.run(['ls', name], check=True)\n"
        "model.eval()\nre.compile(text)\nsafetensors.torch.load(data)\nexcept_ = pickle.UnpicklingError"
    )
    assert unsafe_calls(source) == []


def code_of(path):
    """Return a file's code; of a notebook that of all its cells, where magics would be no code."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    cells = json.loads(text)["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def test_no_code_unpickles_evaluates_or_calls_a_shell():
    folders = ("rcblib", "worlds", "tools", "benchmarks", "scripts", "notebooks")
    paths = [
        path
        for name in folders
        for path in (REPOSITORY / name).rglob("*")
        if path.suffix in (".py", ".ipynb")
    ]
    found = {path.name: calls for path in paths if (calls := unsafe_calls(code_of(path)))}
    assert len(paths) > 150
    called = {name: [call.split(": ")[1] for call in calls] for name, calls in found.items()}
    assert called == {
        "digest.py": ["marshal.loads"],  # byte code that Python itself has left of the library, and would run
        "make_messages.py": ["exec"],  # situations of the page of messages, which are the project's own files
    }


# Downloads


def test_every_download_is_named_with_its_checksum():
    sources = yaml.safe_load((REPOSITORY / "worlds/photographs/sources.yml").read_text(encoding="utf-8"))
    used = {
        (e["package"], file)
        for kind in ("backgrounds", "plain")
        for e in sources[kind]
        for file in e["files"]
    }
    for name, package in sources["packages"].items():
        sums = package["files"].values() if "files" in package else [package["sha256"]]
        assert all(SHA256.fullmatch(digest) for digest in sums), name
        if "files" in package:
            assert {file for owner, file in used if owner == name} == set(package["files"])
    assert all(SHA256.fullmatch(digest) for _, digest in FILES.values())
    lines = (REPOSITORY / "photographs-parts.txt").read_text(encoding="utf-8").splitlines()
    for line in (line for line in lines if not line.startswith("#")):
        requirement, digest = line.split(" --hash=sha256:")
        assert SHA256.fullmatch(digest) and str(Requirement(requirement).specifier).startswith("==")
    registry = json.loads((REPOSITORY / "codebooks/registry.json").read_text(encoding="utf-8"))
    for part in (entry[key] for entry in registry.values() for key in ("file", "image_ids")):
        assert part["address"].startswith("https://")
        assert (part["sha256"] is None) == (part["size"] is None)


@pytest.mark.parametrize("name", ["Makefile", "tools/set_up_cell.py"])
def test_wheels_that_are_data_are_installed_by_their_hashes(name):
    lines = (REPOSITORY / name).read_text(encoding="utf-8").splitlines()
    (install,) = [line for line in lines if "photographs-parts.txt" in line and "-r" in line]
    assert "--require-hashes" in install and "--no-deps" in install


def test_the_github_workflow_audits_what_is_pinned():
    jobs = yaml.safe_load((REPOSITORY / ".github/workflows/tests.yml").read_text(encoding="utf-8"))["jobs"]
    commands = [step.get("run", "") for job in jobs.values() for step in job["steps"]]
    assert any("pip-audit --requirement constraints.txt" in command for command in commands)


# Text of users, files and models


HOSTILE = "<script>alert(1)</script> | **b** $x$ & [a](javascript:b) <image> `c` \\ {name}"


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=40))
def test_any_text_is_shown_on_a_page_as_it_is_written(text):
    shown = MarkdownIt("commonmark").enable("table").render(f"say “{as_written(text)}” often")
    assert html.unescape(shown) == f"<p>say “{' '.join(text.split())}” often</p>\n"


def test_hostile_text_is_shown_as_it_is_written():
    shown = MarkdownIt("commonmark", {"html": True}).enable("table").render(as_written(HOSTILE))
    assert "<script" not in shown and "<a" not in shown and "<strong" not in shown
    assert html.unescape(shown) == f"<p>{HOSTILE}</p>\n"


def test_tables_of_a_notebook_escape_what_they_show(monkeypatch, capsys):
    monkeypatch.setenv("RCB_ROOT", str(REPOSITORY))
    monkeypatch.chdir(REPOSITORY)
    with pd.option_context("styler.format.escape", None):
        begin({"__annotations__": {"seed": int}, "seed": 0})
        frame = pd.DataFrame({"word": [HOSTILE]})
        assert "<script" not in frame.style.hide().to_html() and "<script" not in frame.to_html()


def test_notebooks_that_format_tables_of_text_escape_it():
    """A format of one's own takes the place of the default, so it has to say so where a column is text."""
    for path in (REPOSITORY / "notebooks").glob("*.ipynb"):
        for call in re.findall(r"\.style\.hide\(\)\.format\((?:precision|forms).*\)", code_of(path)):
            assert 'escape="html"' in call, f"{path.name}: {call}"


def test_the_card_of_a_codebook_keeps_names_in_their_cell(tmp_path):
    metadata = {"model": f"{HOSTILE}\n# Title", "source": HOSTILE, "criterion": {"name": HOSTILE}}
    Codebook(torch.ones(2, 4), family="<b>|x", metadata=metadata).save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "<script" not in card and "\n# Title" not in card and "<b>" not in card
    rows = [line for line in card.splitlines() if line.startswith("| model family")]
    assert rows == [r"| model family | &lt;b&gt;\|x |"]


def test_captions_are_no_formulas():
    picture = Image.fromarray(np.zeros((12, 12, 3), np.uint8))
    figure, axes = plt.subplots()
    outlined_objects(axes, picture, [], r"costs $5 \frac{ and $6")
    figure.canvas.draw()
    plt.close(figure)
    figure = patches_gallery([[picture]], row_labels=[r"$\x$"], captions=[[r"$\frac{$"]])
    figure.canvas.draw()
    plt.close(figure)
