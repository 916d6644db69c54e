"""Paths as people write them, in the library, on the command line and in notebooks."""

import dataclasses
from pathlib import Path

import pandas as pd
import pytest
import tiny
import torch
from messages import one_line
from picture_files import animation, grey_frames, save_picture

from rcblib.__main__ import main
from rcblib.codebook.codebook import Codebook, load_codebook
from rcblib.codebook.criterion import CodebookCriterion
from rcblib.data.opening import open_dataset, open_images
from rcblib.data.photos import read_image
from rcblib.mllm.loading import model_folder
from rcblib.notebook.paths import handed_over, settle_paths
from rcblib.probe.inputs import opened
from rcblib.reading.gate_results import read_gates_file
from rcblib.records import ImageError, ParameterError
from rcblib.runs.files import file_sha256, read_json, read_table, write_json, write_table
from rcblib.runs.parameters import InputPath, NameOrPath, OutputFolder, notebook_config
from rcblib.runs.paths import user_path
from rcblib.runs.provenance import project_root
from rcblib.runs.results import cached_table, write_results
from worlds.scenes.coco import export_coco
from worlds.scenes.generator import generate_scene

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Make a home and a data folder of one's own, and work elsewhere."""
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("DATA_OF_MINE", str(home))
    monkeypatch.delenv("UNSET", raising=False)
    monkeypatch.chdir(here)
    return home


SPELLINGS = ("~", "$DATA_OF_MINE", "${DATA_OF_MINE}", "~/../home", "$HOME/.")


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_home_and_variables_are_read_as_a_shell_does(home, spelling):
    for given in (f"{spelling}/a/b", Path(f"{spelling}/a/b")):
        assert user_path(given).resolve() == home / "a" / "b"


def test_what_needs_no_change_stays_as_it_is(home):
    for given in ("a/b", "", ".", "/a/b", "a/~b", "5$", "a$", "$5", "it's $"):
        assert user_path(given) == Path(given)
    (home / "US$A").mkdir()
    assert user_path("~/US$A/new/file") == home / "US$A/new/file"
    assert user_path(home / "US$A" / "$B") == home / "US$A" / "$B"
    Path("~").mkdir()  # what a program makes that does not read it
    assert user_path("~/a") == home / "a"


@pytest.mark.parametrize(
    "given", ["$UNSET/a", "a/${UNSET}", "~/$UNSET", "b$UNSET.json", "~nobody-of-this-name/a"]
)
def test_an_unset_variable_and_an_unknown_user_end_in_one_line(home, given):
    with pytest.raises(ParameterError) as error:
        user_path(given, "folder")
    assert one_line(error).startswith(f"folder: got {given!r}; accepted: a path")
    assert "$UNSET" in given.replace("{", "").replace("}", "") or "there is no user" in str(error.value)


def test_every_function_of_the_library_that_takes_a_path_reads_it_so(home):
    save_picture(home / "photos/1.png")
    animation(home / "clip.gif", grey_frames())
    export_coco([generate_scene(0, 0, "test")], "~/drawn", "test")
    assert open_dataset("~/drawn", "test")[0].source == "scenes/test"
    for prefix in ("", "coco:"):
        assert len(open_images(f"{prefix}$HOME/drawn", "test")) == 1
    assert open_dataset("~/photos")[0].file_name == "1.png"
    assert open_dataset("group:$DATA_OF_MINE/photos")[0].n_images == 1
    assert open_dataset("video:~/clip.gif", n_frames=2)[0].n_images == 2
    assert open_dataset(Path("~/clip.gif"), n_frames=3)[0].n_images == 3
    assert opened("~/photos/1.png", None)[0][0].size == (40, 30)
    assert read_image(Path("$HOME/photos/1.png")).size == (40, 30)

    Codebook(torch.eye(3)).save_pretrained("~/book")
    assert len(load_codebook("$HOME/book")) == len(Codebook.from_pretrained(Path("~/book"))) == 3
    write_json("~/criterion.json", {**dataclasses.asdict(CodebookCriterion.from_preset("llava-1.5-7b"))})
    assert CodebookCriterion.from_preset("~/criterion.json") == CodebookCriterion.from_preset("llava-1.5-7b")
    (home / "model").mkdir()
    assert model_folder("~/model") == model_folder(Path("$HOME/model")) == home / "model"

    assert len(file_sha256("~/criterion.json")) == 64
    frame = pd.DataFrame({"a": [1]})
    write_table("~/table.parquet", frame, {})
    assert read_table("$HOME/table.parquet")[0].equals(frame)
    assert cached_table("~/cache", "name", {}, "", lambda: frame).equals(frame)
    write_results("${HOME}/results/a.json", {"a": {"value": 1, "n": 1}}, {})
    assert read_json("~/results/a.json")["results"]["a"]["value"] == 1
    (home / "gates.yml").write_bytes((REPOSITORY / "data/gates.yml").read_bytes())
    assert read_gates_file("~/gates.yml") == read_gates_file(REPOSITORY / "data/gates.yml")
    assert sorted(path.name for path in Path().iterdir()) == []


def test_the_project_and_downloads_may_lie_at_home(home, monkeypatch):
    monkeypatch.setenv("RCB_ROOT", "~")
    assert project_root() == home
    monkeypatch.setenv("RCB_ROOT", "$UNSET/rcb")
    with pytest.raises(ParameterError, match="RCB_ROOT: got .*UNSET/rcb"):
        project_root()


def test_options_of_the_command_line_are_read_so_before_any_work(home, capsys):
    save_picture(home / "photos/1.png")
    tiny.save_tiny_llava(home / "model")
    command = [
        "probe",
        "--model=~/model",
        "--images=~/photos",
        "--device=cpu",
        "--positions=6",
        "--no-attention",
    ]
    assert main([*command, "--folder=$DATA_OF_MINE/found", "--table=~/all.parquet"]) == 0
    assert len(read_table(home / "all.parquet")[0]) == 1
    assert (home / "found" / "probe.json").is_file()
    capsys.readouterr()
    for option in ("--folder=$UNSET/found", "--table=$UNSET/all.parquet", "--folder=~nobody-of-this-name"):
        with pytest.raises(SystemExit) as ended:
            main([*command, "--folder=~/again", option])
        assert ended.value.code == 2
        printed = capsys.readouterr().err
        assert printed.count("\n") == 1 and option.partition("=")[2] in printed
    for option in (
        "--model=$UNSET/model",
        "--images=coco:$UNSET/photos",
        "--images=group:~nobody-of-this-name/a",
    ):
        assert main([*command, "--folder=~/again", option]) == 2
        printed = capsys.readouterr().err
        assert printed.count("\n") == 1 and "; accepted: a path" in printed
    assert not (home / "again").exists()
    assert sorted(path.name for path in Path().iterdir()) == []


# Notebooks


HINTS = {
    "model": NameOrPath, "images": NameOrPath, "claims": InputPath, "probed": InputPath,
    "results_folder": OutputFolder, "split": str,
}  # fmt: skip
DECLARED = {
    "model": "llava-scenes", "images": "auto", "claims": "data/claims.yml", "probed": "",
    "results_folder": "results", "split": "test",
}  # fmt: skip


@pytest.fixture
def project(home):
    """Make a project and a folder elsewhere, both with data."""
    root = home / "project"
    for folder in (root / "data", Path.cwd() / "data", root / "notebooks", root / "shipped"):
        folder.mkdir(parents=True)
    (root / "data/claims.yml").touch()
    return root


def settled(project, here, declared=(), **given):
    values = DECLARED | dict(declared) | given
    config = notebook_config({"__annotations__": HINTS, **values})
    return vars(settle_paths(config, HINTS, set(given), Path(here).resolve(), project))


def test_what_a_notebook_declares_counts_from_the_project(project):
    for here in (project, project / "notebooks", "."):
        assert settled(project, here) == DECLARED
        mine = {"images": "data", "results_folder": "mine", "probed": "kept"}
        assert settled(project, here, mine) == DECLARED | mine


def test_what_papermill_is_given_counts_from_where_it_was_called(project):
    here = Path.cwd()
    own = settled(project, here, images="data", results_folder="results", probed="kept", model="./data")
    assert own["images"] == own["model"] == str(here / "data")
    assert (own["results_folder"], own["probed"]) == (str(here / "results"), str(here / "kept"))
    assert own["claims"] == "data/claims.yml"
    assert settled(project, here, images="coco:data")["images"] == f"coco:{here / 'data'}"
    assert settled(project, here, images="../here/data")["images"] == str(here / "data")
    # In the project, and from a folder of it, they stay short.
    own = settled(project, project / "notebooks", images="../data", results_folder="../results/a")
    assert (own["images"], own["results_folder"]) == ("data", "results/a")
    own = settled(project, project, images="data", results_folder="results/a", claims="data/claims.yml")
    assert (own["images"], own["results_folder"], own["claims"]) == ("data", "results/a", "data/claims.yml")
    # What is there in the project alone is found from elsewhere too.
    assert settled(project, here, images="shipped", claims="data/claims.yml")["images"] == "shipped"
    assert settled(project, here, claims="data/claims.yml")["claims"] == "data/claims.yml"


def test_names_stay_names_and_what_is_missing_stays_as_given(project):
    here = Path.cwd()
    for name in ("scenes", "llava-scenes", "auto"):
        (here / name).mkdir()
        assert settled(project, here, images=name, model=name)["images"] == name
    given = {"images": "nowhere", "model": "llava-hf/llava-1.5-7b-hf"}
    assert settled(project, here, **given) == DECLARED | given


def test_home_and_variables_in_parameters(project, home):
    own = settled(
        project, ".", images="video:~/clip.gif", results_folder="$HOME/kept", probed="${HOME}/a.parquet"
    )
    assert own["images"] == f"video:{home}/clip.gif"
    assert (own["results_folder"], own["probed"]) == (f"{home}/kept", f"{home}/a.parquet")
    for name in ("images", "results_folder", "probed"):
        with pytest.raises(ParameterError) as error:
            settled(project, ".", **{name: "$UNSET/a"})
        assert one_line(error).startswith(f"{name}: got '$UNSET/a'; accepted: a path whose variables are set")


def test_parameters_are_handed_over_by_plain_assignments_after_their_declaration():
    declared = 'images: NameOrPath = "auto"\nmodel: NameOrPath = "a"\n'
    injected = '# Parameters\nimages = "photos"\n'
    assert handed_over({}) == handed_over({"In": ["", declared]}) == set()
    assert handed_over({"In": ["", declared, injected]}) == {"images"}
    assert handed_over({"In": ["", declared, injected, "%%bash\nls $HOME", "x, y = 1, 2"]}) == {"images"}
    assert handed_over({"In": ["", declared, injected, declared]}) == set()  # run again in a session


@pytest.mark.parametrize(
    "given", ["a" * 300, "a/" * 3000, "é" * 200, "a\0b", "\ud800"], ids=lambda given: repr(given[:9])
)
def test_a_path_that_no_system_can_look_up_is_one_line(given):
    for door in (user_path, open_dataset, model_folder, load_codebook):
        with pytest.raises(ParameterError, match="accepted: a path that can be looked up") as error:
            door(given)
        assert len(one_line(error)) < 300


def test_an_empty_path_is_not_the_folder_one_is_in(capsys):
    with pytest.raises(ImageError, match="^images: got '', which is no folder"):
        open_dataset("")
    with pytest.raises(SystemExit):
        main(["probe", "--model", "none", "--images", "scenes", "--folder", ""])
    assert "argument --folder: got an empty path; accepted: . for the folder" in capsys.readouterr().err


def test_a_link_in_a_circle_is_one_line(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "a")
    with pytest.raises(ParameterError, match="accepted: a path that can be looked up"):
        user_path(tmp_path / "a" / "b")
