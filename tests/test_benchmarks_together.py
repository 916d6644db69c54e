"""Run benchmarks one after the other, each in a process of its own, and record what they measured."""

import argparse
import importlib
import math
import os
import shlex
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import __main__ as everything
from benchmarks import clustering, processes, results
from benchmarks.machine import Speed, speed
from benchmarks.processes import Ran, measured, run_apart
from rcblib.records import ParameterError
from rcblib.runs.digest import code_digest
from rcblib.runs.files import read_json

SPEED = Speed(9e10, 1.8e11, 2)
MADE = {"cpu": "a processor", "gpu": "none", "date": "2026", "git_commit": "0"}


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
    def run(module, words):
        if module == "first":
            Path(words[-1]).write_text(words[0])
        return Ran(2 * (module == "second"), 30.0, 0.25)

    monkeypatch.setattr(everything, "run_apart", run)
    monkeypatch.setattr(everything, "speed", lambda: SPEED)
    monkeypatch.setattr(everything, "CPU", {"one": ("first", "{}"), "two": ("second", "")})
    everything.main(["--only", "one", "--output", str(tmp_path / "new" / "folder")])
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["one.json"]
    assert (tmp_path / "new" / "folder" / "one.json").read_text() == "{}"
    said = capsys.readouterr().out
    assert "one: {}" in said and "30 s, others had 25% of the cores" in said
    assert everything.main(["--output", str(tmp_path)]) == 2  # one that could not run, beside one that could
    told = read_json(tmp_path / "run.json")
    assert told["run"] == [
        {"part": "one", "status": 0, "seconds": 30.0, "others": 0.25},
        {"part": "two", "status": 2, "seconds": 30.0, "others": 0.25},
    ]
    assert 0 < told["targets"][0]["value"] < 1 and told["product"] == SPEED._asdict()
    everything.main(["--only", "one", "--output", str(tmp_path)])
    assert not (tmp_path / "run.json").exists()  # what is there now is not of one run


@pytest.mark.parametrize("listed", [everything.CPU, everything.GPU], ids=["cpu", "gpu"])
def test_every_part_is_a_command_that_takes_its_words(listed, monkeypatch):
    """Nothing runs: what a command would do is left out."""
    taken = []
    for name, (module, words) in listed.items():
        command = importlib.import_module(f"benchmarks.{module}")
        monkeypatch.setattr(command, "run_command", lambda prog, work: taken.append(prog) or 0)
        assert command.main([*shlex.split(words), "--output", f"{name}.json"]) == 0
    assert taken == [module for module, _ in listed.values()]


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

    def run(module, words):
        return Ran(measure(words) if module == "measure" else 0, 30.0, 0.0)

    monkeypatch.setattr(everything, "run_apart", run)
    monkeypatch.setattr(everything, "speed", lambda: SPEED)
    monkeypatch.setattr(everything, "provenance", lambda: MADE | {"git_dirty": False})
    monkeypatch.setattr(everything, "CPU", {"one": ("measure", ""), "two": ("none", "")})
    monkeypatch.setattr(everything, "project_root", lambda: tmp_path / "project")
    monkeypatch.setattr(results, "project_root", lambda: tmp_path / "project")
    output = ["--output", str(tmp_path / "results")]
    assert everything.main(output) == 0
    said = capsys.readouterr().out.split("2 of 4 targets are met\n")[1].splitlines()
    assert [line.split(", at ")[1] for line in said] == [
        "least 10x: met", "most 2 GB: falls short: all is held", "least 2: falls short",
        "most 15 min: met",
    ]  # fmt: skip
    assert results.recorded("one") is None and results.target_table(["one"]).empty
    assert everything.main([*output, "--record"]) == 0
    read = results.recorded("one")
    assert read["probing"] == [{"row": 1.5}] and read["settings"] == {"seed": 3}
    assert read["code"] == code_digest("benchmarks.probing")
    table = results.target_table(["one", "two", "run"])
    assert table["met"].tolist() == [True, False, False, True] and set(table["cpu"]) == {"a processor"}
    assert everything.main([*output, "--record", "--only", "one"]) == 0
    assert results.recorded("run") is None
    measure([str(tmp_path / "results" / "one.json")], dirty=True)
    assert everything.main([*output, "--record"]) == 2
    assert "record: got 'results with uncommitted changes: one'" in capsys.readouterr().err


def test_a_target_has_a_side():
    with pytest.raises(ParameterError, match="kind: got 'above'"):
        results.Target("speed", 1, 2, "above")


def test_work_is_measured_in_a_process_of_its_own():
    labels, seconds, peak, grown = measured(clustering._drawn, clustering._clustered, "plain", 300, 16, "cpu")
    assert labels[0].tolist() == clustering.blockwise(clustering.points_of(300, 16)).tolist()
    assert seconds > 0 and 0 <= grown < peak


def _nothing(n_bytes):
    return n_bytes


def _touch(n_bytes):
    return int(np.ones(n_bytes, np.uint8).sum())


def test_memory_is_that_of_the_work_whatever_this_process_holds():
    n_bytes = 2**26
    alone = measured(_nothing, _touch, n_bytes)
    held = np.ones(2**28, np.uint8)
    beside = measured(_nothing, _touch, n_bytes)
    assert alone.result == beside.result == n_bytes and held.all()
    assert alone.grown_bytes == pytest.approx(
        n_bytes, rel=0.25
    )  # the peak before may be above what was left of it
    assert abs(alone.peak_bytes - beside.peak_bytes) < 2**23  # a 32nd of what is held


@pytest.mark.parametrize(("words", "status"), [
    (["--sizes", "8"], 2), (["--no-such-option"], 2), (["--help"], 0),
])  # fmt: skip
def test_a_part_runs_in_a_process_of_its_own_and_ends_as_alone(words, status):
    ran = run_apart("scale", words)
    assert ran.status == status and ran.seconds > 0 <= ran.others <= 1


def test_work_of_this_process_is_told_from_that_of_others():
    busy, used, start = processes._busy(), processes._used(os.getpid()), time.process_time()
    while time.process_time() - start < 0.5:
        pass
    assert processes._used(os.getpid()) - used == pytest.approx(0.5, abs=0.1)
    assert processes._busy() - busy > 0.4


def test_the_speed_of_products_is_measured_on_one_thread_and_on_all(monkeypatch):
    monkeypatch.setattr("benchmarks.machine.SIZE", 64)
    found = speed()
    assert found.one > 0 < found.every and found.n_threads == torch.get_num_threads()
    assert str(SPEED) == "matrix product: 90 GFLOP/s on one thread, 180 on 2, 2.00 times as fast"
