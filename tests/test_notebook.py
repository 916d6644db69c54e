"""What every notebook begins with: parameters, place, seeds, provenance, and Colab's ways."""

import random
import sys
import types
from pathlib import Path

import nbformat
import papermill
import pytest
import torch

from rcblib.notebook import begin, install_on_colab
from rcblib.records import ParameterError

REPOSITORY = Path(__file__).resolve().parents[1]


def namespace(**values):
    return {"__annotations__": {name: type(value) for name, value in values.items()}, **values}


def test_begin_seeds_reports_and_moves_to_the_project(capsys, monkeypatch):
    monkeypatch.chdir(REPOSITORY / "notebooks")
    draws = []
    for _ in range(2):
        config = begin(namespace(seed=5, results_folder="results"))
        draws.append((random.random(), torch.rand(1).item()))
    assert draws[0] == draws[1]
    assert vars(config) == {"seed": 5, "results_folder": "results"}
    assert Path.cwd() == REPOSITORY
    printed = capsys.readouterr().out
    assert f"torch {torch.__version__}" in printed and f"{torch.get_num_threads()} threads, seed 5" in printed
    assert "git_commit" in printed
    begin(namespace(name="without a seed"))
    with pytest.raises(ParameterError, match="^sed: got 1"):
        begin({**namespace(seed=5), "sed": 1})


@pytest.mark.parametrize(
    ("given", "kept", "mounted"),
    [
        ("results", "/content/results", []),
        ("drive/MyDrive/kept", "/content/drive/MyDrive/kept", ["/content/drive"]),
        ("/content/drive/MyDrive/kept", "/content/drive/MyDrive/kept", ["/content/drive"]),
        ("drives", "/content/drives", []),
        ("/elsewhere", "/elsewhere", []),
    ],
)
def test_drive_is_mounted_exactly_when_the_results_are_to_lie_on_it(given, kept, mounted, monkeypatch):
    colab = types.ModuleType("google.colab")
    colab.drive, found = types.SimpleNamespace(mount=lambda place: found.append(place)), []
    monkeypatch.chdir(REPOSITORY)
    assert begin(namespace(results_folder=given)).results_folder == given
    monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    assert begin(namespace(results_folder=given)).results_folder == kept
    assert found == mounted


def test_nothing_is_installed_elsewhere_than_on_colab():
    assert not install_on_colab("lmms")


def test_papermill_misspelling_ends_in_one_clear_line(tmp_path):
    new = nbformat.v4
    declared = "from rcblib.runs.parameters import Count\n\nn_images: Count = 2  # images to probe"
    cells = [
        new.new_code_cell(declared, metadata={"tags": ["parameters"]}),
        new.new_code_cell("from rcblib.notebook import begin\n\nconfig = begin(globals())"),
        new.new_code_cell("print(config.n_images)"),
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new.new_notebook(cells=cells, metadata=kernel), tmp_path / "in.ipynb")

    def execute(**given):
        papermill.execute_notebook(
            tmp_path / "in.ipynb", tmp_path / "out.ipynb", given, cwd=REPOSITORY, progress_bar=False
        )
        return nbformat.read(tmp_path / "out.ipynb", 4).cells[-1].outputs[0]["text"]

    assert execute(n_images=7) == "7\n"
    for given, message in (
        (
            {"n_image": 7},
            "n_image: got 7; accepted: no parameter of this name; known: n_images (did you mean",
        ),
        ({"n_images": 0}, "n_images: got 0; accepted: an integer, >= 1"),
    ):
        with pytest.raises(papermill.PapermillExecutionError) as error:
            execute(**given)
        assert error.value.ename == "ParameterError"
        assert error.value.evalue.startswith(message)
