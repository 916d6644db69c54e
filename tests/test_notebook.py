"""What every notebook begins with: parameters, place, seeds, provenance, and Colab's ways."""

import random
import sys
import types
from pathlib import Path

import nbformat
import papermill
import pytest
import tiny
import torch

from rcblib.codebook.codebook import Codebook
from rcblib.mllm.fingerprint import model_fingerprint
from rcblib.notebook.begin import begin, install_on_colab
from rcblib.notebook.opening import open_codebook, open_model, open_samples
from rcblib.records import ParameterError
from rcblib.runs.parameters import notebook_config

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


def test_what_the_parameters_name_is_opened_and_told(tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    for number, image in enumerate(tiny.random_images(2, size=(64, 48))):
        image.save(tmp_path / "photos" / f"{number}.jpg")
    tiny.save_tiny_llava(tmp_path / "model")
    given = {"model": str(tmp_path / "model"), "device": "cpu", "dtype": "auto", "device_map": ""}
    given |= {"quantization": "", "codebook": str(tmp_path / "codebook"), "images": str(tmp_path / "photos")}
    config = notebook_config(namespace(**given, split="test", n_images=2))
    model, _, adapter = open_model(config)
    prototypes = torch.randn(4, adapter.d_model, generator=torch.Generator().manual_seed(0))
    for fingerprint, warned in ((model_fingerprint(model), 0), ("of others", 1)):
        book = Codebook(prototypes, family="llava", metadata={"model_fingerprint": fingerprint})
        book.save_pretrained(tmp_path / "codebook")
        named, opened = open_codebook(config, adapter)
        assert named == config and torch.equal(opened.prototypes, prototypes)
        assert capsys.readouterr().out.count("made with other weights") == warned
    config, samples = open_samples(config, adapter)
    assert [sample.image.size for sample in samples] == [(64, 48)] * 2
    printed = capsys.readouterr().out
    assert f"images      2 from {config.images}, the first 64 x 48 px" in printed
    assert f"tokens      6 x 6, each of width {adapter.d_model}" in printed
    assert "These images have no masks" in printed and "Outside its world" not in printed


def test_auto_stands_for_the_codebook_and_the_images_of_the_models_own_world(capsys):
    given = {"model": "llava-scenes", "device": "cpu", "dtype": "auto", "device_map": "", "quantization": ""}
    config = notebook_config(namespace(**given, codebook="auto", images="auto", split="test", n_images=1))
    _, _, adapter = open_model(config)
    config, book = open_codebook(config, adapter)
    config, samples = open_samples(config, adapter)
    assert (config.codebook, config.images, len(samples)) == ("llava-scenes", "scenes", 1)
    assert book.family == "llava"
    printed = capsys.readouterr().out
    assert printed.startswith("model       llava-scenes: llava, ")
    assert "no masks" not in printed and "other weights" not in printed


def test_papermill_misspelling_ends_in_one_clear_line(tmp_path):
    new = nbformat.v4
    declared = "from rcblib.runs.parameters import Count\n\nn_images: Count = 2  # images to probe"
    cells = [
        new.new_code_cell(declared, metadata={"tags": ["parameters"]}),
        new.new_code_cell("from rcblib.notebook.begin import begin\n\nconfig = begin(globals())"),
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
