"""Check what the page on efficiency says of recorded benchmarks."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import tiny

from benchmarks import pruning, results
from benchmarks.operations import answer_bytes, encoding_operations, prefill_operations, selection_operations
from benchmarks.weights import ModelShape
from rcblib.pruners.registry import PRUNERS
from rcblib.records import ParameterError
from tools import efficiency_targets, make_efficiency
from tools.page_limits import alternative_text_is_poor

REPOSITORY = Path(__file__).resolve().parents[1]
LABELS = [PRUNERS[name].label for name in ("all", "codebook", "random")]

SHAPE = ModelShape(
    {"vision": 70, "connector": 30, "embeddings": 40, "layers": 1000, "head": 0, "rest": 0},
    (1000,), 2, 4, 8, 2, 1, 2, 10, 6, 8, 5, 12, 3, 5,
)  # fmt: skip


MADE = {
    "date": "2026-01-02T00:00:00", "cpu": "A processor", "n_threads": 2, "gpu": "none", "torch": "2",
    "git_commit": "abc", "transformers": "5",
}  # fmt: skip


def row(method, ratio, size, prefill, **changes):
    """Return one row of a benchmark whose other steps take 10 ms for preparing, 20 to encode and 60 for the answer."""
    whole = 100.0 * size
    own = {"process_ms": 10.0, "encode_ms": 20.0, "select_ms": 1.0, "prefill_ms": prefill, "decode_ms": 60.0}
    own |= {key: changes.pop(key) for key in list(changes) if key in own}
    first = sum(own.values()) - own["decode_ms"]
    n_prompt = 120 if ratio is None else 20 + 100 * ratio
    return own | {
        "method": method, "retain_ratio": ratio, "batch_size": size, "n_prompt": n_prompt, "first_token_ms": first,
        "end_to_end_ms": first + own["decode_ms"], "tokens_per_second": 250.0, "kv_cache_mib": n_prompt / 10,
        "peak_mib": 30.0, "select_share": own["select_ms"] / whole, "speed_up": whole / prefill,
        "first_token_speed_up": (31 + whole) / first, "end_to_end_speed_up": (91 + whole) / (first + 60),
    }  # fmt: skip


@pytest.fixture
def records(tmp_path, monkeypatch):
    """Record every part of the page, each alike, and one target that is met and one that is not."""
    monkeypatch.setattr(results, "project_root", lambda: tmp_path)
    folder = tmp_path / results.RECORDED
    folder.mkdir(parents=True)
    rows = []
    for size in (1, 4):
        rows.append(row(LABELS[0], None, size, 100.0 * size))
        rows += [row(LABELS[1], ratio, size, (40 + 60 * ratio) * size) for ratio in (0.1, 0.2, 0.5)]
        rows.append(row(LABELS[2], 0.2, size, 52.0 * size, select_ms=90.0))
    targets = [
        results.Target("fast", 2.0, 1.0, unit="x"),
        results.Target("small", 9, 5, "at most", "%", "large"),
    ]
    for part in {**make_efficiency.MODELS, **make_efficiency.METHODS}:
        named = targets if part == make_efficiency.SMALL else []
        content = {"pruning": rows, "targets": [vars(own) for own in named], "settings": {"new": 16}}
        (folder / f"{part}.json").write_text(json.dumps(content | {"provenance": MADE}), encoding="utf-8")
    return {
        part: make_efficiency.Recorded(part) for part in {**make_efficiency.MODELS, **make_efficiency.METHODS}
    }


def lines_of(text, first):
    """Return the cells of a Markdown table's lines that begin with something."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return [cells for cells in rows if cells[0] == first]


def test_gains_stand_beside_the_most_that_they_could_be(records):
    name = make_efficiency.MODELS[make_efficiency.LARGE]
    one, four = lines_of(make_efficiency.times_text(records), name)
    assert one[1:] == ["1", "1.92", "1.58", "1.34", "2.10", "3.0", "30.0\u00a0→\u00a030.0"]
    assert four[1:] == ["4", "1.92", "1.80", "1.64", "5.40", "3.0", "30.0\u00a0→\u00a030.0"]
    answer = make_efficiency.answer_text(records)
    assert "**1.9** times as fast, first token 1.6 times as soon, the whole answer 1.34 times" in answer


def test_limits_are_told_in_numbers(records):
    told = make_efficiency.limits_text(records)
    assert "25% of the rows take 46% of the prefill's time" in told
    assert "1, 16, 64 and 256 tokens is 1.58, 1.34, 1.14, 1.04" in told
    assert "random tokens (LLaVA-1.5, photographs, 0.76)" in told
    assert "codebook (LLaVA-1.5" not in told


def test_methods_are_listed_with_what_choosing_costs(records):
    (cells,) = lines_of(make_efficiency.methods_text(records), "random tokens")
    assert cells[1:] == ["90.0\u00a0(90%),\u00a00.76"] * len(make_efficiency.METHODS)


def test_targets_are_told_met_or_not_and_a_gpu_never_run(records):
    told = efficiency_targets.targets_text()
    assert told.startswith("1 of 2 targets on the CPU are met. Not recorded: ")
    assert lines_of(told, "fast") == [["fast", "at least 1x", "2x", "met"]]
    assert lines_of(told, "small") == [["small", "at most 5%", "9%", "short: large"]]
    never = [line for line in told.splitlines() if line.endswith("| never run |")]
    assert len(never) == 5 and all("on a GPU" in line for line in never)


def test_one_run_of_all_parts_is_told_beside_what_else_ran(records):
    assert efficiency_targets.run_text() == ""
    run = [{"part": "one", "status": 0, "seconds": 60.0, "others": 0.1}]
    run.append({"part": "two", "status": 0, "seconds": 180.0, "others": 0.02})
    target = vars(results.Target("all parts, one after the other", 4.5, 15, "at most", " min"))
    product = {"one": 9e10, "every": 1.62e11, "n_threads": 2}
    content = {"run": run, "product": product, "targets": [target], "provenance": MADE}
    (results.project_root() / results.RECORDED / "run.json").write_text(json.dumps(content), encoding="utf-8")
    told = efficiency_targets.targets_text()
    assert told.startswith(
        "2 of 3 targets on the CPU are met. All 2 parts were measured in one run of 4.5 minutes, "
    )
    assert "the longest is two with 180 s. Other processes had 4.0% of the cores" in told
    assert "90 GFLOP/s on one thread, 162 on 2, 1.80 times as fast." in told
    assert lines_of(told, "all parts, one after the other")[0][1:] == ["at most 15 min", "4.5 min", "met"]


def test_a_part_that_was_not_recorded_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "project_root", lambda: tmp_path)
    with pytest.raises(
        ParameterError, match="pruning-next: got 'no recorded result'; accepted: .*pruning-next.json"
    ):
        make_efficiency.Recorded("pruning-next")


def test_figures_are_drawn(records, tmp_path):
    for name, draw in {"times": make_efficiency.draw_times, "gains": make_efficiency.draw_gains}.items():
        draw(records, tmp_path / "figure.png")
        assert (tmp_path / "figure.png").stat().st_size > 10_000
        text = make_efficiency.figure_text(name, records)
        said = json.loads(re.search(":alt: (.*)", text)[1])
        assert f"_build/efficiency/{name}.png" in text and not alternative_text_is_poor(said)
        number = records[make_efficiency.LARGE].row(make_efficiency.CODEBOOK, make_efficiency.SHARE)
        shown = number["end_to_end_ms"] if name == "times" else number["speed_up"]
        assert (f"{shown:,.0f} ms" if name == "times" else f"prefill {shown:.2f}") in said


def test_without_a_record_the_page_says_how_to_make_one(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "project_root", lambda: tmp_path)
    monkeypatch.setattr(make_efficiency, "FOLDER", tmp_path / "parts")
    monkeypatch.setattr(make_efficiency, "CHECKPOINTS", ())
    assert make_efficiency.main() == 0
    written = {path.stem: path.read_text(encoding="utf-8") for path in (tmp_path / "parts").glob("*.md")}
    assert set(written) == {*make_efficiency.RECORDED_TEXTS, "targets", "counts"}
    assert written["answer"].startswith("Not recorded yet: pruning-scenes-budgets, ") and not written["times"]


def test_what_is_recorded_is_what_this_code_reads_and_caches(records, tmp_path, monkeypatch):
    model = tiny.save(tmp_path / "model", *tiny.tiny_llava())
    output = tmp_path / results.RECORDED / f"{make_efficiency.SMALL}.json"
    pruning.main([
        "--model", str(model), "--pruner", "codebook", "--retain-ratio", "0.2", "--repeats", "1", "--new", "2",
        "--output", str(output),
    ])  # fmt: skip
    recorded = make_efficiency.Recorded(make_efficiency.SMALL)
    assert "read the same rows and cached the same bytes as recorded" in make_efficiency.again_text(recorded)
    recorded.table["kv_cache_mib"] += 1
    with pytest.raises(ParameterError, match="kv_cache_mib: got .*; accepted: '?.*, as recorded"):
        make_efficiency.again_text(recorded)


def test_every_part_is_included_in_the_page():
    page = (REPOSITORY / "book/efficiency.md").read_text(encoding="utf-8")
    for name in (*make_efficiency.RECORDED_TEXTS, "targets", "counts"):
        assert page.count(f"```{{include}} _build/efficiency/{name}.md\n```") == 1


def test_operations_known_by_hand():
    assert prefill_operations(SHAPE, 3) == 2 * 1000 * 3 + 4 * 2 * 2 * 2 * 6 + 2 * 10 * 4
    assert encoding_operations(SHAPE, 2) == 2 * 5 * (2 * 100 + 4 * 3 * 6 * 5)
    in_windows = dataclasses.replace(
        SHAPE, n_seen=2, n_merged=5
    )  # of two rows; the connector reads one row in five
    assert encoding_operations(in_windows) == 5 * (2 * (70 + 6) + 4 * 3 * 6 * 2)
    assert selection_operations(SHAPE, 7, 11) == 2 * 7 * 11 * 4
    assert answer_bytes(SHAPE, "half", 3, 2) == (2 * (1000 + 40), 2 * 2 * 1 * 2 * 2 * 3 * 2)


def test_recorded_methods_are_registered():
    labels = {method.label for method in PRUNERS.values()}
    parts = {*make_efficiency.MODELS, *make_efficiency.METHODS}
    found = {part: own for part in parts if (own := results.recorded(part)) is not None}
    assert found
    for own in found.values():
        assert {row["method"] for row in own["pruning"]} | set(own["settings"]["left_out"]) <= labels
