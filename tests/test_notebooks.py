"""Check the notebooks' form, and execute some of them on a user's own model and photos."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pandas as pd
import papermill as papermill_api
import pytest
import tiny
import torch
import warm
from papermill.exceptions import PapermillExecutionError
from tiny_qwen import tiny_qwen

from rcblib.codebook.codebook import Codebook
from rcblib.codebook.scorer import Scorer
from rcblib.runs.parameters import notebook_config
from tools.compose_page import PLACES
from tools.notebook_list import read_notebook_list
from tools.page_limits import alternative_text_is_poor

REPOSITORY = Path(__file__).resolve().parents[1]
PATHS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
NAMED = ["divprune", "tome", "pyramiddrop:layers=1"]
"""Methods that a notebook is asked for, as the command line takes them."""
ON_PHOTOS = ("token_centric", "context_centric", "intermediate_states")
"""Notebooks that run top to bottom on photos without masks or questions."""
SCREEN = 45  # lines that fit on one


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=4)


def tagged(notebook, tag):
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


# Form


def test_there_are_notebooks():
    assert {*ON_PHOTOS} <= {path.stem for path in PATHS}


def test_a_notebook_is_clean_and_valid(path, notebook):
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None, cell.id
    assert "papermill" not in notebook.metadata


def test_the_first_cells_say_what_the_notebook_is_about_leaves_out_and_how_it_runs(path, notebook):
    (parameters,) = tagged(notebook, "parameters")
    first, *others = notebook.cells[: notebook.cells.index(parameters)]
    assert all(cell.cell_type == "markdown" for cell in (first, *others))
    assert first.source.startswith("# ")
    assert "**Claim" in first.source or "**What this is" in first.source
    told = "\n".join(cell.source for cell in others)
    assert "**Scope cuts.**" in told and f"papermill notebooks/{path.stem}.ipynb" in told


def test_every_cell_of_text_has_a_place_on_the_page_and_the_page_begins_with_an_answer(path, notebook):
    places = [
        [tag for tag in cell.metadata.get("tags", []) if tag in PLACES]
        for cell in notebook.cells
        if cell.cell_type == "markdown"
    ]
    assert all(len(tags) == 1 for tags in places) and places[0] == ["answer"]
    assert "{glue:text}`answer`" in notebook.cells[0].source
    assert sum('glue("answer", ' in cell.source for cell in notebook.cells) == 1


def test_parameters_are_annotated_literals_one_a_line_each_explained(notebook):
    (cell,) = tagged(notebook, "parameters")
    assert cell is next(cell for cell in notebook.cells if cell.cell_type == "code")
    statements = [node for node in ast.parse(cell.source).body if not isinstance(node, ast.ImportFrom)]
    for statement in statements:
        line = cell.source.splitlines()[statement.lineno - 1]
        assert isinstance(statement, ast.AnnAssign) and statement.lineno == statement.end_lineno, line
        ast.literal_eval(statement.value)
        assert "  # " in line, f"unexplained: {line}"


def test_papermill_lists_every_parameter_with_its_type_and_meaning(path, notebook):
    (cell,) = tagged(notebook, "parameters")
    declared = [node for node in ast.parse(cell.source).body if isinstance(node, ast.AnnAssign)]
    listed = papermill_api.inspect_notebook(str(path))
    assert list(listed) == [node.target.id for node in declared]
    for node in declared:
        found = listed[node.target.id]
        assert found["inferred_type_name"] == ast.unparse(node.annotation) and found["help"]


def test_a_notebook_begins_right_after_its_imports_and_its_defaults_are_accepted(notebook):
    (parameters,) = tagged(notebook, "parameters")
    following = notebook.cells[notebook.cells.index(parameters) + 1]
    statements = ast.parse(following.source).body
    begins = [ast.unparse(node) for node in statements].index("config = begin(globals())")
    assert all(isinstance(node, ast.Import | ast.ImportFrom) for node in statements[:begins])
    namespace = {}
    exec(parameters.source, namespace)
    config = notebook_config(namespace)
    declared = {node.target.id for node in ast.parse(parameters.source).body if hasattr(node, "target")}
    assert vars(config) == {name: namespace[name] for name in declared}


def test_functions_fit_on_a_screen(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "code":
            for node in ast.walk(ast.parse(cell.source)):
                if isinstance(node, ast.FunctionDef):
                    assert node.end_lineno - node.lineno < SCREEN, node.name


def test_figures_have_captions_and_say_what_they_show_with_numbers_of_the_run(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "code":
            shown = cell.metadata.get("mystnb", {})
            assert "plt.show()" not in cell.source, f"{cell.id}: show_figure gives a figure its words"
            assert bool(shown.get("figure", {}).get("caption")) == ("show_figure(" in cell.source), cell.id
            assert "alt" not in shown.get("image", {}), f"{cell.id}: words that no run has made"


def says_what_it_shows(executed):
    """Assert that the alternative text of every picture is made of the run; return how many there are."""
    pictures = [
        (cell, output)
        for cell in executed.cells
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", {})
    ]
    for cell, output in pictures:
        alt, caption = output.metadata["image/png"]["alt"], cell.metadata["mystnb"]["figure"]["caption"]
        assert not alternative_text_is_poor(alt, caption), (cell.id, alt)
    return len(pictures)


def test_results_go_where_the_workflow_expects_them(path, notebook):
    source = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert "write_results(" in source
    assert f"{{config.results_folder}}/{path.stem}.json" in source


def test_the_workflow_lists_every_notebook():
    listed = read_notebook_list(REPOSITORY / "workflow" / "notebooks.yml").notebooks
    assert sorted({notebook.name for notebook in listed}) == [path.stem for path in PATHS]


# Execution


def papermill(name, output, **parameters):
    """Execute a notebook from the root of the repository; return the exit status and the error of the command line."""
    given = {key: str(value) if isinstance(value, Path) else value for key, value in parameters.items()}
    try:
        warm.execute(REPOSITORY / "notebooks" / f"{name}.ipynb", output, given, REPOSITORY)
    except PapermillExecutionError as error:
        return SimpleNamespace(returncode=1, stderr=str(error))
    return SimpleNamespace(returncode=0, stderr="")


def papermill_command(name, output, **parameters):
    """Execute a notebook in a process of its own, as a user would from the root of the repository."""
    command = [sys.executable, "-m", "papermill", f"notebooks/{name}.ipynb", str(output), "--no-progress-bar"]
    command += [part for key, value in parameters.items() for part in ("-p", key, str(value))]
    environment = os.environ | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(REPOSITORY),
        "HF_HUB_OFFLINE": "1",
    }
    return subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=400
    )


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Save a random model and a few photos, as a user has them."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "photos").mkdir()
    for number, image in enumerate(tiny.random_images(3, size=(64, 48))):
        image.save(folder / "photos" / f"{number}.jpg")
    tiny.save_tiny_llava(folder / "model")
    return {
        "model": folder / "model",
        "images": folder / "photos",
        "results_folder": folder / "results",
        "n_images": 2,
    }


@pytest.mark.parametrize("name", ON_PHOTOS)
def test_a_notebook_runs_on_own_photos_with_a_model_of_ones_own(name, own, tmp_path):
    done = papermill(name, tmp_path / "out.ipynb", **own)
    assert done.returncode == 0, done.stderr[-3000:]
    executed = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    outputs = [output for cell in executed.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "2 from" in printed and "tokens      6 x 6, each" in printed
    assert "what compares tokens with the objects beneath them is skipped" in printed
    assert "Outside its world" not in printed  # this model is of no embedded world
    assert says_what_it_shows(executed) >= 2
    written = json.loads((own["results_folder"] / f"{name}.json").read_text(encoding="utf-8"))
    assert written["config"]["model"] == str(own["model"])
    assert not any("recognis" in result or "area" in result for result in written["results"])
    correlated = [result for name, result in written["results"].items() if name.startswith("spearman")]
    assert correlated and all(result["n"] == 72 for result in correlated)
    assert len(list((own["results_folder"] / "probe").iterdir())) == 1  # all notebooks share what was probed


def test_a_notebook_runs_on_coco_in_the_folder_where_papermill_was_called(own, coco, tmp_path):
    given = {"images": "..", "split": "val2014", "results_folder": "mine"}
    (tmp_path / "here").mkdir()
    notebook = REPOSITORY / "notebooks" / "token_centric.ipynb"
    warm.execute(notebook, tmp_path / "out.ipynb", {"model": str(own["model"])} | given, tmp_path / "here")
    written = json.loads((tmp_path / "here" / "mine" / "token_centric.json").read_text(encoding="utf-8"))
    assert written["config"]["images"] == str(coco) and written["config"]["split"] == "val2014"
    assert written["results"]["entropy_on_objects"]["n"] > 0


@pytest.mark.parametrize("name", ["token_centric", "intermediate_states"])
def test_a_notebook_runs_with_tiles_and_without_a_cls(name, own, tmp_path):
    model = tiny.save(tmp_path / "model", *tiny.tiny_onevision())
    settings = {"model": model, "results_folder": tmp_path / "results"}
    done = papermill(name, tmp_path / "out.ipynb", **own | settings)
    assert done.returncode == 0, done.stderr[-3000:]
    executed = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    assert says_what_it_shows(executed) >= 2
    outputs = [output for cell in executed.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "tokens      " in printed and " + " in printed.split("tokens      ")[1].splitlines()[0]
    written = json.loads((tmp_path / "results" / f"{name}.json").read_text(encoding="utf-8"))
    assert not any("cls" in result for result in written["results"])
    shown = "".join(output["data"].get("text/plain", "") for output in outputs if "data" in output)
    assert "cls_rank" not in shown and "cls_similarity" not in shown


@pytest.mark.parametrize("name", [*ON_PHOTOS, "pruned_inference", "budgets"])
def test_a_notebook_runs_with_photos_of_grids_of_their_own_and_a_family_beyond_the_papers(name, tmp_path):
    model, processor = tiny_qwen(max_pixels=28 * 28 * 30)
    (tmp_path / "photos").mkdir()
    for size in ((140, 112), (112, 168)):  # 4 x 5 and 6 x 4 tokens
        tiny.random_images(1, size=size)[0].save(tmp_path / "photos" / f"{size[0]}.png")
    width = model.config.get_text_config().hidden_size
    prototypes = torch.randn(4, width, generator=torch.Generator().manual_seed(0))
    Codebook(prototypes, family="qwen2_5_vl").save_pretrained(tmp_path / "codebook")
    own = {"codebook": tmp_path / "codebook", "max_new_tokens": 2}
    if name == "budgets":
        own |= {"methods": ["random", "codebook", "divprune", "downsampled", "pooled"], "budgets": [0.2, 0.5]}
    else:
        own |= {"methods": NAMED}
    done = papermill(
        name,
        tmp_path / "out.ipynb",
        model=tiny.save(tmp_path / "model", model, processor),
        images=tmp_path / "photos",
        results_folder=tmp_path / "results",
        **{} if name in ON_PHOTOS else own,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    says_what_it_shows(nbformat.read(tmp_path / "out.ipynb", as_version=4))
    written = json.loads((tmp_path / "results" / f"{name}.json").read_text(encoding="utf-8"))
    assert written["config"]["images"] == str(tmp_path / "photos")
    if name == "pruned_inference":
        assert {f"{own.partition(':')[0]}_relative_score_retain_20" for own in NAMED} <= written[
            "results"
        ].keys()
    elif name == "budgets":
        assert written["results"]["codebook_relative_retain_20"]["value"] is not None
        assert written["results"]["downsampled_relative_retain_50"]["n"] == 2
        assert not any("oracle" in result for result in written["results"])  # no masks are known
    else:
        (table,) = (tmp_path / "results" / "probe").glob("*/140.png-*.parquet")
        assert len(pd.read_parquet(table)) == 20


def test_own_photos_and_an_own_clip_are_asked_about_together(tmp_path):
    model, processor = tiny.tiny_onevision()
    width = model.config.text_config.hidden_size
    photos = tiny.random_images(5, size=(64, 48))
    (tmp_path / "photos").mkdir()
    for number, image in enumerate(photos[:2]):
        image.save(tmp_path / "photos" / f"{number}.jpg")
    photos[0].save(tmp_path / "clip.gif", save_all=True, append_images=photos[1:], duration=100)
    prototypes = torch.randn(4, width, generator=torch.Generator().manual_seed(0))
    Codebook(prototypes, family="llava_onevision").save_pretrained(tmp_path / "codebook")
    done = papermill(
        "images_and_video",
        tmp_path / "out.ipynb",
        model=tiny.save(tmp_path / "model", model, processor),
        codebook=tmp_path / "codebook",
        groups=f"group:{tmp_path / 'photos'}",
        videos=tmp_path / "clip.gif",
        n_frames=3,
        max_new_tokens=2,
        results_folder=tmp_path / "results",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert says_what_it_shows(nbformat.read(tmp_path / "out.ipynb", as_version=4)) >= 2
    written = json.loads((tmp_path / "results" / "images_and_video.json").read_text(encoding="utf-8"))
    assert written["results"]["multi_image_unpruned"]["value"] == 1  # compared with what it says itself
    assert written["results"]["video_unpruned"]["value"] == 1
    assert 0 <= written["results"]["video_random_relative_score_retain_20"]["value"] <= 1
    assert not any("shuffled" in result or "guessing" in result for result in written["results"])
    executed = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    outputs = [output for cell in executed.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "Own pictures have no known answers." in printed
    assert "On several images, with 10% of the tokens," in str(outputs[-1])


@pytest.mark.parametrize(
    ("execute", "changes", "message"),
    [
        (papermill_command, {"n_image": 3}, "n_image: got 3; accepted: no parameter of this name; known: "),
        (
            papermill,
            {"images": "no_such_folder"},
            "images: got 'no_such_folder', which is no folder; accepted: ",
        ),
    ],
    ids=["misspelt", "missing folder"],
)
def test_a_wrong_parameter_ends_in_one_clear_line_before_any_work(execute, changes, message, own, tmp_path):
    parameters = {**own, "results_folder": tmp_path / "results", **changes}
    failed = execute("token_centric", tmp_path / "out.ipynb", **parameters)
    assert failed.returncode != 0
    last = [line for line in failed.stderr.splitlines() if line.strip()][-1]
    assert last.split(": ", 1)[1].startswith(message), failed.stderr[-3000:]
    assert not (tmp_path / "results").exists()


def test_all_methods_are_compared_on_coco_with_a_model_of_ones_own(own, coco, tmp_path):
    model, processor = tiny.tiny_llava()
    width = model.config.get_text_config().hidden_size
    prototypes = torch.randn(4, width, generator=torch.Generator().manual_seed(0))
    Codebook(prototypes, family="llava").save_pretrained(tmp_path / "codebook")
    Scorer(torch.randn(2, width), torch.ones(2)).save_pretrained(tmp_path / "scorer")
    done = papermill(
        "budgets",
        tmp_path / "out.ipynb",
        model=own["model"],
        codebook=tmp_path / "codebook",
        scorer=tmp_path / "scorer",
        images=coco,
        split="train2014",
        tasks=["caption", "yes_no"],
        budgets=[0.2, 0.5],
        max_new_tokens=2,
        results_folder=tmp_path / "results",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    written = json.loads((tmp_path / "results" / "budgets.json").read_text(encoding="utf-8"))
    assert written["config"]["images"] == str(coco)
    for name in (
        "codebook",
        "random",
        "distilled",
        "visionzip",
        "downsampled",
        "divprune",
        "oracle",
        "anti_oracle",
    ):
        assert written["results"][f"{name}_relative_retain_20"]["n"] > 0
    executed = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    outputs = [output for cell in executed.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "left out    FastV: " in printed  # it drops in front of a third layer, of two
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
