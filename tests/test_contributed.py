"""Contributions: what a form holds, that nothing else gets in, and what the page shows of them."""

import json
import re
import sys
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from rcblib.__main__ import main
from rcblib.records import ParameterError
from rcblib.runs.contributed import (
    FILE,
    FOLDER,
    MOST_BYTES,
    gather,
    read_contributions,
    read_submission,
    write_submission,
)
from rcblib.runs.results import note_used, write_results
from tools import make_elsewhere

REPOSITORY = Path(__file__).resolve().parents[1]
VALUE = "runs.token_centric.results.recognised.value"
RESULTS = {
    "recognised": {"value": 0.25, "n": 40, "interval": [0.125, 0.5], "n_clusters": 4, "level": 0.95},
    "seconds": {"value": 3, "n": 1, "unit": "s"},
    "verdict": {"value": "holds <b>", "n": 4, "why": "text"},
}


@pytest.fixture
def results(tmp_path):
    """Write a notebook's results as it would."""
    place = Path("/", "home", "someone", "pictures of mine")
    config = {"model": str(place / "model"), "images": f"coco:{place}", "budgets": [0.1, 0.2], "seed": 0}
    note_used("models", str(place / "model"), "0123456789ab")
    write_results(tmp_path / "results" / "token_centric.json", RESULTS, config)
    (tmp_path / "results" / "other.json").write_text("{}", encoding="utf-8")
    return tmp_path / "results"


def spoiled(path, **changes):
    """Write a submission again with entries changed, named by their place."""
    content = json.loads(path.read_text(encoding="utf-8"))
    for place, value in changes.items():
        *way, last = place.split("__")
        entry = content
        for part in way:
            entry = entry[part]
        entry[last] = value
    path.write_text(json.dumps(content), encoding="utf-8")


def test_a_form_is_written_from_a_run_and_says_no_place_on_the_machine(results, tmp_path, capsys):
    folder = tmp_path / "handed in"
    command = ["submit", str(results), "--name", "mine-on-t4", "--remark", "a line", "--folder", str(folder)]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "2 numbers of token_centric" in told and f"adds {FOLDER}/mine-on-t4/" in told
    (submission,) = read_contributions(folder)
    run = submission.runs["token_centric"]
    assert (submission.remark, set(run.results)) == ("a line", {"recognised", "seconds"})  # verdicts stay
    assert run.results["recognised"].interval == (0.125, 0.5) and run.results["seconds"].unit == "s"
    assert run.config["model"] == "model" and run.config["images"] == "pictures of mine"
    assert run.models["model"] == "0123456789ab"
    assert run.provenance.python == sys.version.split()[0] and len(run.code) == 12
    written = (folder / "mine-on-t4" / FILE).read_text(encoding="utf-8")
    assert "someone" not in written and "<" not in written
    assert main(command) == 2  # a name is taken once
    assert capsys.readouterr().err.endswith("name: got 'mine-on-t4'; accepted: one that is not there yet\n")


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"remark": "<script>alert(1)</script>"}, "remark"),
        ({"remark": "[a](javascript:b) `{include}`"}, "remark"),
        ({"remark": "two\nlines"}, "remark"),
        ({"remark": "ends\n"}, "remark"),
        ({"remark": "x" * 121}, "remark"),
        ({"name": "../up"}, "name"),
        ({"format": 2}, "format"),
        ({"more": 1}, "more"),
        ({"runs": {}}, "runs"),
        ({"runs__token_centric__code": "import os"}, "runs.token_centric.code"),
        ({"runs__token_centric__provenance__gpu": "T4 | x"}, "runs.token_centric.provenance.gpu"),
        ({"runs__token_centric__provenance__date": "yesterday"}, "runs.token_centric.provenance.date"),
        ({"runs__token_centric__results": {"<b>": {"value": 1, "n": 1}}}, "runs.token_centric.results"),
        ({"runs__token_centric__results__recognised__value": "1"}, VALUE),
        ({"runs__token_centric__results__recognised__n": -1}, "runs.token_centric.results.recognised.n"),
        ({"runs__token_centric__results__recognised__value": float("nan")}, VALUE),
        ({"runs__token_centric__results__recognised__value": 10**400}, VALUE),
        ({"runs__token_centric__config": {"a": [[1]]}}, "runs.token_centric.config"),
    ],
)  # fmt: skip
def test_what_is_no_plain_data_is_refused_in_a_line_that_does_not_repeat_it(
    results, tmp_path, changes, where
):
    path = write_submission(tmp_path, gather([results], "mine"))
    assert read_submission(path.parent).name == "mine"
    spoiled(path, **changes)
    with pytest.raises(ParameterError, match=rf"^submission mine: got '{re.escape(where)}") as error:
        read_submission(path.parent)
    assert "\n" not in str(error.value) and "<" not in str(error.value)


def test_a_folder_holds_one_small_file_of_its_own_name_and_nothing_else(results, tmp_path):
    path = write_submission(tmp_path / "in", gather([results], "mine"))
    whole = path.read_bytes()
    path.write_bytes(whole + b" " * MOST_BYTES)
    with pytest.raises(ParameterError, match="mine: too large'; accepted: at most"):
        read_submission(path.parent)
    path.write_bytes(b"[" * 100_000)
    with pytest.raises(ParameterError, match=f"submission mine: got '{FILE}'"):
        read_submission(path.parent)
    path.write_bytes(whole)
    moved = path.parent.rename(path.parent.with_name("other"))
    with pytest.raises(ParameterError, match="other: named mine'; accepted: the name of its folder"):
        read_submission(moved)
    moved.rename(path.parent)
    (path.parent / "setup.py").write_text("raise SystemExit", encoding="utf-8")
    with pytest.raises(ParameterError, match="accepted: a folder with submission.json and nothing else"):
        read_contributions(tmp_path / "in")
    (path.parent / "setup.py").unlink()
    path.rename(tmp_path / "elsewhere.json")
    path.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(ParameterError, match="and nothing else"):
        read_submission(path.parent)


@pytest.mark.parametrize(
    ("files", "line"),
    [
        (["other.json"], "results: got 'other.json'; accepted: the JSON files in results/ that notebooks"),
        ([], "results: got 'no file of results'; accepted: "),
        (
            ["token_centric.json", "token_centric.json"],
            "results: got 'token_centric twice'; accepted: one of",
        ),
    ],
)
def test_only_results_of_notebooks_are_handed_in(results, files, line):
    with pytest.raises(ParameterError, match=f"^{line}"):
        gather([results / name for name in files], "mine")
    with pytest.raises(ParameterError, match="^submission submission: got 'name'"):
        gather([results], "Mine!")


def test_results_of_two_models_are_not_handed_in_as_one(results):
    note_used("models", "other", "0123456789ac")
    write_results(results / "claims.json", RESULTS, {"seed": 0})  # of no model of its own
    gather([results], "mine")
    write_results(results / "budgets.json", RESULTS, {"model": "other", "seed": 0})
    with pytest.raises(ParameterError, match="^results: got 'of model, other'; accepted: those of one model"):
        gather([results], "mine")


def test_all_contributions_that_are_here_are_sound():
    for submission in read_contributions(REPOSITORY / FOLDER):
        assert submission.runs and all(run.results for run in submission.runs.values())


def rendered(markdown):
    return MarkdownIt("commonmark").enable("table").render(markdown)


def test_the_page_tells_where_numbers_are_from_and_shows_them_beside_this_build(results, tmp_path):
    write_submission(
        tmp_path / FOLDER, gather([results], "mine-on-t4", "a line_with_ *none*".replace("*", ""))
    )
    (tmp_path / "results" / "token_centric.json").write_text(
        json.dumps({"results": {"recognised": {"value": 0.5, "n": 80, "interval": None}}}), encoding="utf-8"
    )
    assert make_elsewhere.main(tmp_path) == 0
    page = rendered((tmp_path / "book/_build/elsewhere/contributions.md").read_text(encoding="utf-8"))
    assert "<h2>mine-on-t4</h2>" in page and "<p>a line_with_ none</p>" in page
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in page.split("<tr>")]
    assert ["token_centric: recognised", "0.25 [0.125, 0.5]", "40", "0.5", "80"] in cells
    assert ["token_centric: seconds (s)", "3", "1", "–", "–"] in cells
    assert "model (0123456789ab)" in page


def test_the_page_says_so_where_there_is_none(tmp_path):
    assert make_elsewhere.page_of([], tmp_path) == make_elsewhere.NONE_YET
    assert "Nobody has handed in a result yet" in make_elsewhere.NONE_YET


def test_no_text_of_a_page_is_markup_even_if_the_schema_let_it_through():
    told = "<script>x</script> | `a` {b}`c` [d](javascript:e) **f** $g$ \\h # i ![j](k) ~~l~~ https://m.n"
    page = rendered(f"| a | b |\n| --- | --- |\n| {make_elsewhere.escaped(told)} | 1 |\n")
    assert page.count("<td>") == 2
    (cell,) = re.findall(r"<td>(.*?)</td>\n<td>1</td>", page, re.S)
    assert "<" not in cell and cell.replace("&lt;", "<").replace("&gt;", ">") == told
