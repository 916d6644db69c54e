"""What every notebook begins with: parameters, place, seeds, provenance, and Colab's ways."""

import random
import re
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import nbformat
import papermill
import pytest
import tiny
import torch
import warm
from picture_files import cut, save_picture

from benchmarks.checkpoints import checkpoint_config
from benchmarks.footprint import CARDS
from rcblib.codebook.codebook import Codebook
from rcblib.data.skipped import skipped_in
from rcblib.mllm import adapter_for
from rcblib.mllm.fingerprint import model_fingerprint
from rcblib.mllm.fitting import fitting_quantization
from rcblib.notebook import opening
from rcblib.notebook.begin import begin, install_on_colab
from rcblib.notebook.opening import objects_known, open_codebook, open_model, open_samples
from rcblib.records import ImageError, ParameterError
from rcblib.runs.files import read_json
from rcblib.runs.parameters import notebook_config

REPOSITORY = Path(__file__).resolve().parents[1]
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
COLAB = str(Path("/", "content"))


@pytest.fixture(scope="module")
def pair():
    return tiny.tiny_llava()


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
    assert f"torch {torch.__version__.partition('+')[0]}" in printed
    assert f"{torch.get_num_threads()} threads, seed 5" in printed
    assert "git_commit" in printed
    begin(namespace(name="without a seed"))
    with pytest.raises(ParameterError, match="^sed: got 1"):
        begin({**namespace(seed=5), "sed": 1})


@pytest.mark.parametrize(
    ("given", "kept", "mounted"),
    [
        ("results", f"{COLAB}/results", []),
        ("drive/MyDrive/kept", f"{COLAB}/drive/MyDrive/kept", [f"{COLAB}/drive"]),
        (f"{COLAB}/drive/MyDrive/kept", f"{COLAB}/drive/MyDrive/kept", [f"{COLAB}/drive"]),
        ("drives", f"{COLAB}/drives", []),
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


def test_damaged_photos_are_left_out_of_a_notebook_that_says_so_and_kept_on_record(tmp_path, pair):
    for number in range(3):
        save_picture(tmp_path / "photos" / f"{number}.png", (64, 48), number)
    cut(tmp_path / "photos" / "1.png")
    given = {"images": str(tmp_path / "photos"), "split": "test", "n_images": 3}
    given["results_folder"] = str(tmp_path / "results")
    config = notebook_config(namespace(**given))
    with pytest.raises(ImageError, match="'1.png' cannot be read"):
        open_samples(config, adapter_for(*pair))
    config = notebook_config(namespace(**given, on_error="skip"))
    with pytest.warns(UserWarning, match="left out: image: '1.png' cannot be read"):
        _, samples = open_samples(config, adapter_for(*pair))
    assert [sample.image_id for sample in samples] == ["0.png", "2.png"]
    assert list(skipped_in(tmp_path / "results")) == ["1.png"]


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem
)
def test_every_notebook_takes_the_splits_of_a_coco_folder_by_their_own_names(path, coco, pair):
    (cell,) = [c for c in nbformat.read(path, 4).cells if "parameters" in c.metadata.get("tags", [])]
    given = {}
    exec(cell.source, given)
    if "images" not in given:
        return  # about the drawn world alone, or about several images
    for split, ids in (("val2014", [7, 5]), ("train2014", [9, 4]), ("test", [5])):
        config = notebook_config(given | {"images": str(coco), "split": split})
        _, samples = open_samples(config, adapter_for(*pair))
        assert [sample.image_id for sample in samples] == ids[: config.n_images]


def test_images_without_a_single_object_are_no_ground_to_compare_with():
    bare, one = (SimpleNamespace(objects=objects) for objects in ((), ("cat",)))
    unknown = SimpleNamespace(objects=None)
    assert objects_known([bare, one]) and objects_known([one])
    assert (
        not objects_known([bare, bare]) and not objects_known([one, unknown]) and not objects_known([unknown])
    )


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


def test_auto_stands_for_the_codebook_that_the_authors_released_for_a_checkpoint(monkeypatch):
    opened = []
    monkeypatch.setattr(opening, "load_codebook", lambda name: opened.append(name) or 1 / 0)
    for model in ("llava-hf/llava-1.5-7b-hf", "llava-hf/llava-onevision-qwen2-7b-ov-hf", "folder/of-mine"):
        with pytest.raises(ZeroDivisionError):
            open_codebook(SimpleNamespace(model=model, codebook="auto"), None)
    assert opened == ["llava-1.5-7b", "llava-onevision-7b", "of-mine"]


def test_weights_are_stored_as_the_card_allows(monkeypatch, tmp_path):
    checkpoint_config("llava-hf/llava-1.5-7b-hf").save_pretrained(tmp_path)
    assert fitting_quantization(tmp_path, "cpu") == "" and fitting_quantization(tmp_path) == ""  # no GPU here
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for card, chosen in {"T4 16 GB": "4bit", "L4 24 GB": "", "A100 40 GB": ""}.items():
        properties = SimpleNamespace(total_memory=CARDS[card])
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, held=properties: held)
        assert fitting_quantization(tmp_path) == fitting_quantization(tmp_path, "cuda:0") == chosen
    assert fitting_quantization(tmp_path, device_map="auto") == ""
    with pytest.raises(ParameterError, match="device: got 'card'; accepted: 'auto', or"):
        fitting_quantization(tmp_path, "card")


def test_a_copy_for_colab_holds_a_small_model_as_it_is(capsys):
    given = {
        "model": "llava-scenes",
        "device": "cpu",
        "dtype": "auto",
        "device_map": "",
        "quantization": "auto",
    }
    open_model(notebook_config(namespace(**given)))
    assert "4-bit" not in capsys.readouterr().out


PAGE = REPOSITORY / "book/adding_a_notebook.md"


def notebook_of_the_page():
    """Put the page's cells together in its order; the first of code are the parameters."""
    cells = re.findall(r"^```(markdown|python)\n(.*?)\n```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    new = nbformat.v4
    notebook = new.new_notebook(metadata={"kernelspec": KERNEL})
    for kind, source in cells:
        make = new.new_markdown_cell if kind == "markdown" else new.new_code_cell
        notebook.cells.append(make(source))
    next(cell for cell in notebook.cells if cell.cell_type == "code").metadata["tags"] = ["parameters"]
    return notebook


def test_the_lines_before_the_first_experiment_are_as_many_as_the_page_says():
    title, scope, run, *code = notebook_of_the_page().cells
    assert title.source.startswith("# ") and "**Claim" in title.source and "**Scope cuts.**" in scope.source
    assert "papermill" in run.source
    before = [cell.source for cell in code if not cell.source.startswith("probing = ")]
    assert len(before) == 3
    n_lines = sum(1 for source in before for line in source.splitlines() if line)
    said = f"; {n_lines} lines stand before the first experiment"
    assert said in PAGE.read_text(encoding="utf-8").replace("\n", " ")
    assert n_lines <= 25


def test_the_notebook_of_the_page_runs_and_refuses_what_the_page_says(tmp_path):
    (tmp_path / "photos").mkdir()
    for number, image in enumerate(tiny.random_images(2, size=(64, 48))):
        image.save(tmp_path / "photos" / f"{number}.jpg")
    tiny.save_tiny_llava(tmp_path / "model")
    own = {name: str(tmp_path / folder) for name, folder in
           (("model", "model"), ("images", "photos"), ("results_folder", "results"))}  # fmt: skip
    nbformat.write(notebook_of_the_page(), tmp_path / "in.ipynb")
    assert set(papermill.inspect_notebook(tmp_path / "in.ipynb")) > {*own, "n_images", "seed"}

    def execute(**given):
        places = tmp_path / "in.ipynb", tmp_path / "out.ipynb"
        warm.execute(*places, own | given, REPOSITORY / "notebooks")

    for given in ({"n_image": 4}, {"n_images": 0}):
        with pytest.raises(papermill.PapermillExecutionError) as error:
            execute(**given)
        assert error.value.ename == "ParameterError"
        assert f"\n{error.value.evalue}\n" in PAGE.read_text(encoding="utf-8")
        assert not (tmp_path / "results").exists()
    execute(n_images=2)
    written = read_json(tmp_path / "results/single_tokens.json")
    assert written["results"]["top1_probability"]["n"] == 32
    assert written["config"].items() > (own | {"n_images": 2, "seed": 0}).items()
