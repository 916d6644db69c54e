"""Run the benchmarks on small models: each prints what it compares."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

from benchmarks import clustering, memory, neighbours, pooling, probing, pruning
from benchmarks.processes import Measured
from rcblib.mllm import adapter_for
from rcblib.pruners.registry import PRUNERS
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
    verdicts = [line for line in lines if "x, at least" in line]
    for row, line in zip(rows, verdicts, strict=True):
        assert row["ratio"] == pytest.approx(row["released_ms"] / row["probe_ms"])
        assert f"at least {row['target']}x" in line
        assert ("falls short: " in line) == (row["ratio"] < row["target"])
        assert 0 < row["floor_ms"] and row["n_compared"] == 4
        assert row["difference"] < 1e-4


def test_half_precision_is_compared_with_the_released_procedure_in_float32_and_needs_no_weights(capsys):
    """As on a GPU, where full size is filled with random weights."""
    few = ["--positions", "1", "--repeats", "1", "--sharing", "always", "--released-dtype", "float32"]
    probing.main(["--model", "llava-scenes", "--random", "--dtype", "bfloat16", *few])
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("144 visual tokens") and first.endswith("torch.bfloat16")
    ratios = [line for line in lines if "bfloat16 against float32" in line and "x, at least" in line]
    rounded = [line for line in lines if "more values off by 0.02" in line]
    assert len(ratios) == len(rounded) == 3
    assert all("%, at most 5%: met" in line for line in rounded)


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


def here(prepare, work, *given):
    """Do the work of a benchmark in this process, as the libraries need not be imported again."""
    return Measured(work(prepare(*given)), 0.5, 2**21, 2**20)


def test_forms_of_clustering_are_compared_as_points_become_more(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(clustering, "measured", here)
    monkeypatch.setattr(clustering, "ROWS", 70)
    monkeypatch.setitem(clustering.FORMS, "Ward", (clustering.FORMS["Ward"][0], 100))
    monkeypatch.setattr(clustering, "SPEED_POINTS", 300)
    clustering.main(["--sizes", "100", "300", "--width", "16", "--output", str(tmp_path / "o.json")])
    results = read_json(tmp_path / "o.json")
    table = pd.DataFrame(results["clustering"])
    assert table.groupby("n")["form"].apply(list).to_dict() == {
        100: list(clustering.FORMS),
        300: [name for name in clustering.FORMS if name != "Ward"],
    }
    exact = table["form"].isin(["plain", "plain, by rows"])
    assert (table.loc[exact, "same_labels"] == 1).all() and (table.loc[exact, "rand_index"] == 1).all()
    assert (table.loc[table["form"] == "k-means", "rand_index"] < 1).all()
    assert [target["value"] for target in results["targets"]] == [
        None,
        100,
        1,
    ]  # 50,000 points were not among them
    assert "clustering up to 300: labels as in the plain form" in capsys.readouterr().out


def test_a_gpu_has_a_target_of_its_own(monkeypatch, capsys):
    found = Measured((np.zeros(80, int), 2**30), 7.0, 2**21, 2**20)
    monkeypatch.setattr(clustering, "measured", lambda *given: found)
    monkeypatch.setattr(clustering, "GPU_POINTS", 80)
    clustering.main(["--device", "cuda", "--sizes", "80", "--width", "8", "--forms", "blockwise"])
    assert (
        "clustering 80 x 8 on a GPU" in (said := capsys.readouterr().out) and "7 s, at most 60 s: met" in said
    )


def test_ways_to_find_neighbours_are_compared_by_what_they_change(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(neighbours, "measured", here)
    monkeypatch.setattr(neighbours, "N_CLUSTERS", 12)
    ways = {name: way for name, way in neighbours.WAYS.items() if way[0] in ("torch", "sklearn")}
    ways["the first five"] = ("torch", lambda points: torch.arange(5).repeat(len(points), 1).numpy())
    monkeypatch.setattr(neighbours, "WAYS", ways | {"none": ("no_such_package", None)})
    model = tiny.save(tmp_path / "model", *tiny.tiny_llava())
    neighbours.main(["--model", str(model), "--n-images", "4", "--output", str(tmp_path / "o.json")])
    results = read_json(tmp_path / "o.json")
    table = pd.DataFrame(results["neighbours"]).set_index("way")
    complete = table.drop("the first five")
    assert len(complete) == 2 and (complete["recall"] == 1).all()
    assert (complete[["changed_labels", "changed_prototypes"]] == 0).all(axis=None)
    assert table.loc["the first five", "recall"] < 0.5 and table.loc["the first five", "changed_labels"] > 0
    assert (table["n_prototypes"] > 0).all() and results["targets"][0]["value"] == 100
    assert "none: left out, as no_such_package is not installed" in capsys.readouterr().out


@pytest.mark.parametrize("name", [name for name in neighbours.WAYS if name.startswith("faiss")])
def test_other_libraries_find_neighbours(name):
    pytest.importorskip("faiss")
    points = clustering.points_of(400, 8)
    found = torch.from_numpy(neighbours.WAYS[name][1](points).astype(np.int64))
    exact = neighbours.nearest(points, 5, 5).indices
    assert (found[:, :, None] == exact[:, None, :]).any(2).float().mean() > 0.8


def test_codebooks_from_files_are_compared_as_images_become_more(tmp_path, monkeypatch):
    monkeypatch.setattr(pooling, "measured", here)
    monkeypatch.setattr(
        pooling, "CRITERION", replace(pooling.CRITERION, min_images=3, n_prototype_clusters=4)
    )
    pooling.main(
        ["--sizes", "12", "8", "--width", "16", "--repeats", "2", "--output", str(tmp_path / "o.json")]
    )
    results = read_json(tmp_path / "o.json")
    table = pd.DataFrame(results["pooling"])
    assert (
        table["form"].tolist() == list(pooling.FORMS) * 2 and table["n_images"].tolist() == [8] * 3 + [12] * 3
    )
    assert table["same"].all() and (table["n_prototypes"] > 0).all()
    assert [target["value"] for target in results["targets"]] == [0, 100]


def test_every_pruner_is_timed_beside_the_unpruned_and_a_plain_model(tmp_path, capsys):
    model = tiny.save(tmp_path / "model", *tiny.tiny_llava())
    pruning.main([
        "--model", str(model), "--retain-ratio", "0.5", "--repeats", "1", "--batch-size", "1", "2", "--new", "2",
        "--output", str(tmp_path / "o.json"),
    ])  # fmt: skip
    written = read_json(tmp_path / "o.json")
    table = pd.DataFrame(written["pruning"]).set_index(["method", "batch_size"]).sort_index()
    left_out = written["settings"]["left_out"]
    assert set(table.index.unique("method")) | set(left_out) == {method.label for method in PRUNERS.values()}
    assert {PRUNERS[name].label for name in ("codebook", "random", "cls_most", "oracle")}.isdisjoint(left_out)
    for size in (1, 2):
        whole, drawn = (table.loc[(PRUNERS[name].label, size)] for name in ("all", "random"))
        assert drawn["n_prompt"] == whole["n_prompt"] - 18
        assert whole["kv_cache_mib"] / whole["n_prompt"] == drawn["kv_cache_mib"] / drawn["n_prompt"]
        assert whole[["speed_up", "first_token_speed_up", "end_to_end_speed_up"]].tolist() == [1, 1, 1]
        assert drawn["select_share"] == pytest.approx(drawn["select_ms"] / whole["prefill_ms"])
        assert drawn["end_to_end_ms"] == pytest.approx(drawn["first_token_ms"] + drawn["decode_ms"])
        assert 0 < drawn["peak_mib"] <= whole["peak_mib"]
    both = table.loc[PRUNERS["all"].label, "kv_cache_mib"]
    assert both[2] == 2 * both[1]
    share, speed = written["targets"]
    own = table.loc[(PRUNERS["codebook"].label, 1)]
    assert share["value"] == pytest.approx(100 * own["select_share"])
    assert (share["limit"], share["kind"]) == (5, "at most")
    assert (speed["value"], speed["limit"]) == (own["prefill_speed"], 0.9)
    said = capsys.readouterr().out
    assert all(f"left out: {label}: {why}" in said for label, why in left_out.items())


@pytest.mark.parametrize("asked", [["qwen2_5_vl"], ["llava-scenes", "--random"]])
def test_models_with_random_weights_are_pruned_by_random_prototypes(tmp_path, asked):
    output = tmp_path / "o.json"
    pruning.main([
        "--model", *asked, "--pruner", "codebook", "--retain-ratio", "0.25", "--repeats", "1", "--new", "2",
        "--output", str(output),
    ])  # fmt: skip
    whole, kept = read_json(output)["pruning"]
    assert kept["method"] == PRUNERS["codebook"].label
    assert whole["n_prompt"] - kept["n_prompt"] == 0.75 * 144
