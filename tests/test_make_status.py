"""Tables of the pages on a build's runs and on scale, from results as runs leave them."""

import dataclasses
import re
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from benchmarks.operations import probing_operations, reading_operations
from benchmarks.scale import growth
from benchmarks.weights import ModelShape
from rcblib.runs.files import write_json, write_table
from tools import make_status
from tools.notebook_list import Notebook, NotebookList, Recorded, Stage

REPOSITORY = Path(__file__).resolve().parents[1]
MADE = {
    "date": "2026-01-02T03:04:05+00:00",
    "git_commit": "c0ffee123",
    "git_dirty": False,
    "cpu": "a processor",
    "gpu": "none",
    "torch": "2.0",
}


@pytest.fixture
def build(tmp_path):
    """Leave what a build of two stages and two notebooks does, of which one was not run."""
    recorded = Stage("gates", "gates", "big", {"model": "big"}, recorded=Recorded())
    listed = NotebookList(
        (), (Stage("probing", "probe", "", {"model": "m"}), recorded), (Notebook("a"), Notebook("b"))
    )
    table = pd.DataFrame({"image_id": [1]})
    write_table(tmp_path / "results/probing.parquet", table, {"provenance": [MADE]})
    write_table(
        tmp_path / "results/big/gates.first.parquet", table, {"provenance": [MADE | {"torch": "2.1"}]}
    )
    write_json(tmp_path / "results/a.json", {"provenance": MADE | {"git_dirty": True}})
    write_json(
        tmp_path / "data/recorded/big/gates.json",
        {"provenance": [MADE], "seconds": 600.0, "samples": {"1": "x"}},
    )
    (tmp_path / "results/logs").mkdir()
    (tmp_path / "results/logs/probing.tsv").write_text(
        "s\th:m:s\tmax_rss\n90.0\t0:01:30\t2048.0\n", encoding="utf-8"
    )
    return make_status.parts_of(listed, tmp_path)


def test_every_run_has_a_line_with_what_it_took(build):
    lines = build["runs"].splitlines()[2:]
    assert lines == [
        '| `probing` | probe | 1.5 | 2.00 | <span class="whole">2026-01-02 03:04</span> | c0ffee1 |',
        '| `gates-big` | gates | – | – | <span class="whole">2026-01-02 03:04</span> | c0ffee1 |',
        '| `a` | notebook | – | – | <span class="whole">2026-01-02 03:04</span> | c0ffee1 with changes |',
        "| `b` | notebook | – | – | – | – |",
        "| all |  | 1.5 | 2.00 |  |  |",
    ]


def test_versions_are_told_once_and_others_with_their_runs(build):
    assert "| torch | 2.0 | 2.1 (`gates-big`) |" in build["versions"]
    assert "| cpu | a processor | – |" in build["versions"]


def test_what_was_recorded_and_what_was_never_run_is_told(build):
    assert (
        '| `big/gates` | 10.0 | 1 | a processor | <span class="whole">2026-01-02</span> | c0ffee1 |'
        in build["recorded"]
    )
    assert "left nothing here: `b`." in build["absent"]
    for kind in ("GPU", "published checkpoint", "photograph of COCO", "public benchmark"):
        assert f"- **No {kind}** was used" in build["never"]
    assert "from 4 runs (2 minutes together" in build["effort"]


def test_what_was_run_after_all_is_named(tmp_path):
    checkpoint = next(iter(make_status.CHECKPOINTS))
    options = {"model": checkpoint, "images": "coco:photos", "tasks": "pope", "retain_ratios": [0.2]}
    facts = {"provenance": [MADE | {"gpu": "A card"}], "stage": {"options": options}}
    write_json(tmp_path / "data/recorded/large/pruning.json", facts)
    told = make_status.never_run(pd.DataFrame({"made": [[]]}), tmp_path)
    assert "No " not in told and "never judged" not in told
    for name in ("large", "llava-next-photographs"):
        (tmp_path / "data/models" / name).mkdir(parents=True)
    shipped = make_status.never_run(pd.DataFrame({"made": [[]]}), tmp_path)
    assert shipped == told + "- **Shipped, and never judged:** LLaVA-NeXT-photographs.\n"
    for text in (
        "**GPU:** A card",
        make_status.short(checkpoint),
        "coco:photos",
        "**public benchmark:** pope",
    ):
        assert text in told


SHAPE = ModelShape(
    {"vision": 10, "connector": 5, "embeddings": 80, "layers": 1000, "head": 80, "rest": 0},
    (1000,), 2, 8, 16, 2, 2, 4, 10, 4, 8, 9, 27, 1, 9,
)  # fmt: skip


def test_operations_of_rows_behind_others_add_up_to_those_of_all():
    head = 2 * 10 * 8
    whole = reading_operations(SHAPE, 0, 30)
    parts = reading_operations(SHAPE, 0, 12) + reading_operations(SHAPE, 12, 18)
    assert whole == parts - head == 2 * 1000 * 30 + 4 * 2 * 2 * 4 * 15 * 31 + head


def test_the_last_layer_ends_with_the_rows_that_are_asked_for():
    behind = 8 * 2 * 4 + 3 * 8 * 16  # numbers of its last matrix behind attention, and of the MLP
    assert reading_operations(SHAPE, 5, 7) - reading_operations(SHAPE, 5, 7, 1) == 2 * behind * 6


def test_the_global_level_reads_half_of_the_picture_on_average():
    large = dataclasses.replace(SHAPE, parameters=SHAPE.parameters | {"layers": 10**8})
    parts = probing_operations(large, 100, (1, 1))
    assert parts["single"] == 100 * reading_operations(large, 1, 2, 1)
    assert parts["region"] == 200 * reading_operations(large, 1, 10, 1)
    rows = sum(range(2, 102)) + 102  # from each position on, with a row of text; and the whole picture
    assert parts["global"] == pytest.approx(2 * 10**8 * rows, rel=1e-3)
    few = probing_operations(large, 100, (1, 1), firsts=[0, 50])
    assert few["region"] == 102 * reading_operations(large, 1, 10, 1)
    assert few["global"] == pytest.approx(2 * 10**8 * (102 + 101 + 51), rel=1e-3)
    whole = probing_operations(large, 100, (1, 1), is_shared=False)
    assert whole["global"] == 101 * reading_operations(large, 0, 102, 1) and whole["single"] > parts["single"]


def test_growth_in_proportion_has_slope_one():
    table = pd.DataFrame({"n_images": [2, 4, 8], "seconds": [1.0, 2.0, 4.0], "n_files": [5, 5, 5]})
    assert growth(table, "seconds").slope == pytest.approx(1)
    assert growth(table, "seconds").per_image == 0.5
    assert growth(table, "n_files").slope == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("page", ["scale", "status"])
def test_every_table_is_included_in_a_page_and_written_by_the_tool(page):
    pages = (REPOSITORY / "book" / f"{name}.md" for name in (page, "intro", "colab"))
    text = "".join(path.read_text(encoding="utf-8") for path in pages)
    included = set(re.findall(rf"_build/{page}/(\w+)\.md", text))
    source = (REPOSITORY / "tools" / f"make_{page}.py").read_text(encoding="utf-8")
    written = set(re.findall(r'^        "(\w+)": \w+\(', source, flags=re.MULTILINE))
    assert included == written


def test_commits_that_the_history_does_not_hold_are_named(tmp_path):
    def git(*words):
        told = ["-c", "user.name=a", "-c", "user.email=a@example.org", *words]
        return subprocess.run(
            ["git", "-C", str(tmp_path), *told], capture_output=True, text=True, check=True
        ).stdout

    write_json(tmp_path / "data/recorded/a.json", {"provenance": [MADE | {"git_commit": "f" * 40}]})
    assert make_status.unknown_commits(tmp_path) == ""  # where there is no history, nothing is said of it
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "one")
    known = git("rev-parse", "HEAD").strip()
    write_json(tmp_path / "data/recorded/b.json", {"provenance": [MADE | {"git_commit": known}]})
    assert make_status.unknown_commits(tmp_path).startswith("Of 2 commits 1 are not in the history")
    assert "`fffffff`" in make_status.unknown_commits(tmp_path) and known[
        :7
    ] not in make_status.unknown_commits(tmp_path)
    (tmp_path / "data/recorded/a.json").unlink()
    assert make_status.unknown_commits(tmp_path) == ""
