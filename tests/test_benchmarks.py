"""Run the benchmarks on small models: each prints what it compares."""

import argparse
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

from benchmarks import __main__ as everything
from benchmarks import clustering, memory, probing, pruning, results
from rcblib.mllm import adapter_for
from rcblib.pruners.registry import PRUNERS
from rcblib.records import ParameterError
from rcblib.runs.digest import code_digest
from rcblib.runs.files import read_json


def test_memory_is_recorded_as_computed_and_as_measured_with_provenance(tmp_path):
    model = tiny.save(tmp_path / "model", *tiny.tiny_next())
    size = ["--height", "40", "--width", "90", "--text", "8", "--new", "2"]
    memory.main(["--model", str(model), "--random", *size, "--output", str(tmp_path / "o.json")])
    results = read_json(tmp_path / "o.json")
    assert {"torch", "gpu", "git_commit"} <= set(results["provenance"])
    assert [row["what"] for row in results["memory"]] == ["weights", "encode", "probe", "generate"]
    assert all(row["measured"] > 0 < row["computed"] for row in results["memory"])


def test_probing_is_timed_beside_the_released_procedure_and_agrees(tmp_path, capsys):
    model = tiny.save(tmp_path / "model", *tiny.tiny_llava())
    probing.main([
        "--model", str(model), "--positions", "4", "--repeats", "1", "--output", str(tmp_path / "o.json"),
    ])  # fmt: skip
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("36 visual tokens, ")
    results = read_json(tmp_path / "o.json")
    assert {"torch", "gpu", "git_commit"} <= set(results["provenance"])
    rows = results["probing"]
    assert [row["level"] for row in rows] == list(probing.LEVELS.values())
    verdicts = [line for line in lines[3:] if ": probing" in line]
    for row, line in zip(rows, verdicts, strict=True):
        assert row["ratio"] == pytest.approx(row["released_ms"] / row["probe_ms"])
        assert f"at least {row['target']}x" in line
        assert ("falls short: " in line) == (row["ratio"] < row["target"])
        assert 0 < row["floor_ms"] and row["n_compared"] == 4
        assert row["difference"] < 1e-4


def test_full_size_needs_no_weights(capsys):
    few = ["--positions", "1", "--repeats", "1"]
    probing.main(["--model", "llava-scenes", "--random", "--dtype", "bfloat16", *few])
    assert "144 visual tokens" in (said := capsys.readouterr().out) and "bfloat16" in said


@pytest.mark.parametrize(("options", "said"), [
    (["--only", "nonsense"], "--only: got nonsense; accepted: probing-embedded"),
    (["--gpu"], "--gpu: got a machine without a GPU"),
])  # fmt: skip
def test_wrong_options_of_all_benchmarks_end_in_one_line(options, said, capsys):
    if "--gpu" in options and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(SystemExit):
        everything.main(options)
    assert said in capsys.readouterr().err


def test_all_benchmarks_write_a_file_each(tmp_path, monkeypatch, capsys):
    listed = {
        "one": (lambda words: Path(words[-1]).write_text(words[0]) - 2, "{}"),
        "two": (lambda words: 2, ""),
    }
    monkeypatch.setattr(everything, "CPU", listed)
    everything.main(["--only", "one", "--output", str(tmp_path / "new" / "folder")])
    assert (tmp_path / "new" / "folder" / "one.json").read_text() == "{}"
    assert "one: {}" in capsys.readouterr().out
    assert everything.main(["--output", str(tmp_path)]) == 2  # one that could not run, beside one that could


def test_targets_of_all_parts_are_told_in_one_table_and_recorded_where_pages_read_them(
    tmp_path, monkeypatch, capsys
):
    def measure(words, dirty=False):
        options = argparse.Namespace(output=Path(words[-1]), seed=3)
        monkeypatch.setattr(results, "provenance", lambda: MADE | {"git_dirty": dirty})
        targets = [results.Target("speed", 12.0, 10, "at least", "x", "never said")]
        targets += [results.Target("memory", 3.0, 2, "at most", " GB", "all is held")]
        targets += [results.Target("chance", math.nan, 2)]
        results.write_measured("probing", pd.DataFrame({"row": [1.5]}), options, targets)
        return 0

    monkeypatch.setattr(everything, "CPU", {"one": (measure, ""), "two": (lambda words: 0, "")})
    monkeypatch.setattr(everything, "project_root", lambda: tmp_path / "project")
    monkeypatch.setattr(results, "project_root", lambda: tmp_path / "project")
    output = ["--output", str(tmp_path / "results")]
    assert everything.main(output) == 0
    said = capsys.readouterr().out.split("1 of 3 targets are met\n")[1].splitlines()
    assert [line.split(", at ")[1] for line in said] == [
        "least 10x: met", "most 2 GB: falls short: all is held", "least 2: falls short",
    ]  # fmt: skip
    assert results.recorded("one") is None and results.target_table(["one"]).empty
    assert everything.main([*output, "--record"]) == 0
    read = results.recorded("one")
    assert read["probing"] == [{"row": 1.5}] and read["settings"] == {"seed": 3}
    assert read["code"] == code_digest("benchmarks.probing")
    table = results.target_table(["one", "two"])
    assert table["met"].tolist() == [True, False, False] and set(table["cpu"]) == {"a processor"}
    measure([str(tmp_path / "results" / "one.json")], dirty=True)
    assert everything.main([*output, "--record"]) == 2
    assert "record: got 'results with uncommitted changes: one'" in capsys.readouterr().err


def test_a_target_has_a_side():
    with pytest.raises(ParameterError, match="kind: got 'above'"):
        results.Target("speed", 1, 2, "above")


MADE = {"cpu": "a processor", "gpu": "none", "date": "2026", "git_commit": "0"}


def test_the_released_procedure_encodes_twice_and_generates_eight_tokens():
    adapter = adapter_for(*tiny.tiny_llava())
    (image,) = tiny.random_images(1, (40, 31))
    setting, calls = probing.Setting(adapter, image, 2), Counter()
    handles = [
        adapter.model.model.vision_tower.register_forward_hook(lambda *_: calls.update(["encoded"])),
        adapter.language_model.register_forward_hook(lambda *_: calls.update(["read"])),
    ]
    logits = setting.released(setting.inputs(7)["single"][0])
    for handle in handles:
        handle.remove()
    assert calls == {"encoded": 2, "read": 8}
    plain = setting.plain(setting.inputs(7)["single"][0])  # no article here
    torch.testing.assert_close(logits, plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("option", ["--quantization=4bit", "--height=tall"])
def test_wrong_options_of_memory_end_before_any_work(option, capsys):
    with pytest.raises(SystemExit):
        memory.main(["--model", "llava-scenes", "--random", option])
    assert option.split("=")[0] in capsys.readouterr().err


def test_forms_of_clustering_are_compared_as_points_become_more(tmp_path, capsys, monkeypatch):
    def here(name, n, width):
        return np.asarray(clustering.FORMS[name](clustering.points_of(n, width))), 0.5, 2**20

    monkeypatch.setattr(clustering, "measured", here)
    monkeypatch.setitem(clustering.LARGEST, "Ward", 100)
    clustering.main(["--sizes", "100", "300", "--width", "16", "--output", str(tmp_path / "o.json")])
    table = pd.DataFrame(read_json(tmp_path / "o.json")["clustering"])
    assert table.groupby("n")["form"].apply(list).to_dict() == {
        100: ["blockwise", "plain", "k-means", "Ward"],
        300: ["blockwise", "plain", "k-means"],
    }
    assert (table.loc[table["form"] == "plain", "same_labels"] == 1).all()
    assert (table.loc[table["form"] == "k-means", "rand_index"] < 1).all()
    assert len(capsys.readouterr().out.splitlines()) == len(table)


def test_a_form_is_measured_in_a_process_of_its_own():
    labels, took, peak = clustering.measured("plain", 300, 16)
    assert labels.tolist() == clustering.FORMS["blockwise"](clustering.points_of(300, 16)).tolist()
    assert took > 0 <= peak  # no more than the imports needed, with so few points


def test_pruned_generation_is_timed_beside_the_unpruned_and_a_plain_model(tmp_path, capsys):
    model = tiny.save(tmp_path / "model", *tiny.tiny_llava())
    pruning.main([
        "--model", str(model), "--n-images", "1", "--retain-ratio", "0.5", "--repeats", "1",
        "--output", str(tmp_path / "o.json"),
    ])  # fmt: skip
    table = pd.DataFrame(read_json(tmp_path / "o.json")["pruning"]).set_index("method")
    assert list(table.index) == ["all tokens", *(
        PRUNERS[name].label for name in ("random", "cls_most", "cls_least")
    )]  # fmt: skip
    whole = table.loc["all tokens"]
    assert (table["n_prompt"].iloc[1:] == whole["n_prompt"] - 18).all()
    assert whole["speed_up"] == 1 and whole["select_share"] == pytest.approx(
        whole["select_ms"] / whole["prefill_ms"]
    )
    assert (table[["encode_ms", "select_ms", "prefill_ms", "prefill_speed", "kv_cache_mib"]] > 0).all(
        axis=None
    )
    said = capsys.readouterr().out
    assert ("prefill below 0.9: none" in said) == (table["prefill_speed"] >= 0.9).all()
