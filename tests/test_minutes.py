"""What notebooks are calculated to take on a card with a 7B checkpoint."""

from pathlib import Path

import pytest

from benchmarks import footprint
from benchmarks.checkpoints import CHECKPOINTS
from benchmarks.minutes import CARDS, USED, Card, answering_on, probing_on
from benchmarks.operations import encoding_operations, prefill_operations, probing_operations
from benchmarks.weights import weight_bytes
from tools import make_minutes
from tools.make_memory import Jobs

REPOSITORY = Path(__file__).resolve().parents[1]
SLOW = Card(operations=1e12, bandwidth=float("inf"), storage="half")
NARROW = Card(operations=float("inf"), bandwidth=1e9, storage="4bit")


@pytest.fixture(scope="module")
def job():
    return Jobs(CHECKPOINTS[0])


def test_probing_takes_its_operations_at_the_share_of_the_peak(job):
    asked = {"n_images": 3, "n_text": 64, "batch_size": 8}
    found = probing_on(SLOW, job.shape, job.n_visual, job.n_grids, **asked)
    levels = probing_operations(job.shape, job.n_visual, (32, 32), is_shared=False)
    once = encoding_operations(job.shape, 1) + sum(levels.values())
    assert found.seconds == pytest.approx(3 * once / (1e12 * USED))
    # The global level alone: each of 576 windows is a prompt of 640 rows, read whole.
    assert found.seconds > 3 * 576 * 2 * job.shape.parameters["layers"] * 576 / (1e12 * USED)
    sixth = probing_on(SLOW, job.shape, job.n_visual, job.n_grids, **asked, share=1 / 6)
    assert sixth.seconds == pytest.approx(found.seconds / 6, rel=0.001)
    assert found.footprint == job.probing("half", 8)


def test_answering_reads_prompts_and_moves_the_weights_for_each_token(job):
    asked = {"n_images": 0, "n_questions": 16, "n_text": 64, "n_new": 32}
    read = answering_on(SLOW, job.shape, 576, 1, **asked, ratios=[1.0, 0.25], batch_size=8)
    prompts = prefill_operations(job.shape, 640) + prefill_operations(job.shape, 208)
    assert read.seconds == pytest.approx(16 * prompts / (1e12 * USED))
    weights = weight_bytes(job.shape, "4bit")
    for n in (1, 16):
        moved = answering_on(NARROW, job.shape, 576, 1, **asked, ratios=[1.0], batch_size=n)
        cache = footprint.cache_bytes(job.shape, "4bit", 640 + 16, n)  # half of the answer, on average
        once = weights["layers"] + weights["head"] + cache
        assert moved.seconds == pytest.approx(16 / n * 32 * once / (1e9 * USED))
    assert read.footprint == footprint.generation(job.shape, "half", 576, n_text=64, n_new=32, batch_size=8)


def test_the_table_is_of_the_copies_that_colab_opens_and_fits_a_t4(job):
    text = make_minutes.minutes_table({CHECKPOINTS[0]: job}, REPOSITORY)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]
    assert rows[0][0].count(".ipynb)") == 3 and len(rows) == 3  # three notebooks probe the same
    for _, model, t4, t4_memory, a100, a100_memory in rows:
        assert model == "`llava-1.5-7b-hf`" and float(t4) > float(a100) > 0
        assert float(t4_memory) < 14.56 - 1 and 13 < float(a100_memory) < 39.39 - 1
    asked = make_minutes.declared("token_centric", REPOSITORY)
    assert (asked["n_images"], asked["positions"], asked["batch_size"]) == (2, "all", 8)
    assert {"T4 16 GB", "A100 40 GB"} == set(CARDS) <= set(footprint.CARDS)


def test_what_does_not_fit_has_no_minutes(job, monkeypatch):
    monkeypatch.setitem(make_minutes.MEMORIES, "T4 16 GB", 6 * 2**30)
    rows = make_minutes.minutes_table({CHECKPOINTS[0]: job}, REPOSITORY).splitlines()[2:]
    assert all("| – | too little |" in row for row in rows)


def test_the_page_says_that_it_is_calculated():
    page = (REPOSITORY / "book" / "colab.md").read_text(encoding="utf-8")
    assert "```{include} _build/scale/minutes.md\n```\n\nCalculated, not measured" in page
