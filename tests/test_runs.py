"""Hashes, provenance, atomic files, cached tables, results."""

import dataclasses
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from messages import one_line

from rcblib.records import ParameterError
from rcblib.runs import provenance as provenance_module
from rcblib.runs.errors import in_one_line
from rcblib.runs.files import (
    atomic_path,
    atomic_write,
    config_hash,
    file_sha256,
    read_json,
    read_table,
    to_plain,
    write_json,
    write_table,
)
from rcblib.runs.provenance import project_root, provenance
from rcblib.runs.results import cached_table, loaded_code, note_used, results_table, write_results

REPOSITORY = Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Parameters:
    model: str
    n_images: int = 24
    budgets: tuple[float, ...] = (0.1, 0.2)


def test_plain_values():
    value = {
        1: (np.float32(0.5), np.int64(3), True, None),
        "array": np.arange(2),
        "tensor": torch.tensor([[1.5, math.nan]]),
        "path": Path("a") / "b",
        "config": Parameters("scenes"),
    }
    plain = to_plain(value)
    assert plain["1"] == [0.5, 3, True, None] and plain["array"] == [0, 1]
    assert plain["tensor"] == [[1.5, None]] and plain["path"] == "a/b"
    assert plain["config"]["budgets"] == [0.1, 0.2]
    for unfit in (math.inf, object(), {1, 2}):
        with pytest.raises(ParameterError):
            to_plain(unfit)


def test_hash_depends_on_values_only():
    digest = config_hash({"a": 1, "b": [0.1, 0.2]})
    assert digest == config_hash({"b": (0.1, 0.2), "a": 1})
    assert len(digest) == 12 and set(digest) <= set("0123456789abcdef")
    # sha256 of the canonical text, so the same in any process and version.
    assert config_hash({"a": 1}) == "015abd7f5cc5"
    different = [{"a": 2, "b": [0.1, 0.2]}, {"a": 1, "b": [0.2, 0.1]}, {"a": 1}, {"a": "1", "b": [0.1, 0.2]}]
    assert len({digest, *map(config_hash, different)}) == 5
    assert config_hash(Parameters("scenes")) == config_hash(dataclasses.asdict(Parameters("scenes")))


def declare_project(folder, name="rcblib"):
    """Write a pyproject.toml."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pyproject.toml").write_text(f'[project]\nname = "{name}"\n')


def test_project_root(tmp_path, monkeypatch):
    monkeypatch.delenv("RCB_ROOT", raising=False)
    declare_project(tmp_path)
    declare_project(tmp_path / "notebooks", name="other")
    monkeypatch.chdir(tmp_path / "notebooks")
    assert project_root() == tmp_path
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("RCB_ROOT", str(tmp_path / "elsewhere"))
    assert project_root() == tmp_path / "elsewhere"
    monkeypatch.setenv("RCB_ROOT", str(tmp_path / "absent"))
    with pytest.raises(ParameterError, match="^RCB_ROOT"):
        project_root()


def test_project_root_from_the_library(tmp_path, monkeypatch):
    monkeypatch.delenv("RCB_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    assert project_root() == REPOSITORY
    (tmp_path / "pyproject.toml").write_text("no [toml")
    monkeypatch.setattr(provenance_module, "__file__", str(tmp_path / "rcblib" / "runs" / "provenance.py"))
    with pytest.raises(ParameterError, match="RCB_ROOT"):
        project_root()


def git(folder, *arguments):
    """Run git in a folder."""
    identity = ["-c", "user.name=Someone", "-c", "user.email=someone@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_provenance(tmp_path, monkeypatch):
    monkeypatch.setenv("RCB_ROOT", str(tmp_path))
    facts = provenance()
    assert facts["git_commit"] is None and facts["git_dirty"] is None
    assert torch.__version__.startswith(facts["torch"]) and facts["numpy"] == np.__version__
    assert facts["n_threads"] == torch.get_num_threads() and facts["cpu"]
    assert pd.Timestamp(facts["date"]).tz is not None
    assert not any(str(value).startswith("/") for value in facts.values())
    git(tmp_path, "init", "-q")
    (tmp_path / "file").write_text("one")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-qm", "Add a file")
    facts = provenance()
    assert facts["git_commit"] == git(tmp_path, "rev-parse", "HEAD") and facts["git_dirty"] is False
    (tmp_path / "file").write_text("two")
    assert provenance()["git_dirty"] is True
    # A project copied into another repository has no commit of its own.
    (tmp_path / "copy").mkdir()
    monkeypatch.setenv("RCB_ROOT", str(tmp_path / "copy"))
    assert provenance()["git_commit"] is None


def names(folder):
    """List everything in a folder."""
    return sorted(path.name for path in folder.iterdir())


def test_atomic_write(tmp_path):
    atomic_write(tmp_path / "new" / "file.txt", "tokéns")
    atomic_write(tmp_path / "new" / "file.txt", b"\x00\x01")
    assert (tmp_path / "new" / "file.txt").read_bytes() == b"\x00\x01"
    assert names(tmp_path / "new") == ["file.txt"]
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "new" / "file.txt").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_interrupted_write_keeps_the_earlier_file(tmp_path, error):
    atomic_write(tmp_path / "file", "earlier")
    with pytest.raises(error), atomic_path(tmp_path / "file") as temporary:
        temporary.write_text("half of")
        raise error
    assert (tmp_path / "file").read_text() == "earlier" and names(tmp_path) == ["file"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_write_leaves_no_partial_file(tmp_path):
    code = (
        "import sys, time\nfrom rcblib.runs.files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('half of'); print('written', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "file")],
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert process.stdout.readline() == b"written\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not (tmp_path / "file").exists()


def test_json_round_trip(tmp_path):
    write_json(tmp_path / "a.json", {"n": np.int64(3), "interval": [math.nan, 0.5], "word": "café"})
    assert read_json(tmp_path / "a.json") == {"n": 3, "interval": [None, 0.5], "word": "café"}
    assert "café" in (tmp_path / "a.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("content", ['{"a": ', "[" * 100_000, "9" * 10_000, "\xff\xfe"])
def test_what_is_no_json_is_one_line(tmp_path, content):
    (tmp_path / "b.json").write_text(content, encoding="latin-1")
    with pytest.raises(ParameterError, match="b.json") as error:
        read_json(tmp_path / "b.json")
    one_line(error)


def frame():
    """A table of several types."""
    return pd.DataFrame(
        {"position": [0, 1], "word": ["dog", None], "jsd": [0.25, math.nan], "kept": [True, False]}
    )


def test_sha256_of_a_file(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_sha256(tmp_path / "file") == digest


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError("cut off\n  at byte 3\n"), "cut off at byte 3"),
        (EOFError(), "EOFError"),
        (OSError("x" * 300), "x" * 198 + " …"),
    ],
)
def test_an_error_of_others_is_told_in_one_line(error, line):
    assert in_one_line(error) == line


def test_table_round_trip(tmp_path):
    metadata = {"config": Parameters("scenes"), "n": 2}
    write_table(tmp_path / "t.parquet", frame(), metadata)
    table, found = read_table(tmp_path / "t.parquet")
    pd.testing.assert_frame_equal(table, frame(), check_dtype=False)
    assert table["position"].dtype == "int64" and table["kept"].dtype == "bool"
    assert found == {"config": to_plain(Parameters("scenes")), "n": 2}
    frame().to_parquet(tmp_path / "other.parquet")
    assert read_table(tmp_path / "other.parquet")[1] == {}


def test_unreadable_table(tmp_path):
    write_table(tmp_path / "t.parquet", frame(), {})
    data = (tmp_path / "t.parquet").read_bytes()
    for content in (b"", b"no parquet", data[: len(data) // 2]):
        (tmp_path / "t.parquet").write_bytes(content)
        with pytest.raises(ParameterError, match="t.parquet") as error:
            read_table(tmp_path / "t.parquet")
        one_line(error)
    with pytest.raises(FileNotFoundError):
        read_table(tmp_path / "absent.parquet")


def test_cached_table_computes_once_per_config(tmp_path):
    calls = []

    def compute():
        calls.append(time.time())
        return frame()

    first = cached_table(tmp_path, "signals", {"n": 1}, "c0de", compute)
    second = cached_table(tmp_path, "signals", {"n": 1}, "c0de", compute)
    pd.testing.assert_frame_equal(first, second)
    assert len(calls) == 1
    cached_table(tmp_path, "signals", {"n": 2}, "c0de", compute)
    cached_table(tmp_path, "others", {"n": 1}, "c0de", compute)
    cached_table(tmp_path, "signals", {"n": 1}, "0ther", compute)
    assert len(calls) == 4
    path = tmp_path / f"signals-{config_hash({'config': {'n': 1}, 'code': 'c0de'})}.parquet"
    metadata = read_table(path)[1]
    assert metadata["config"] == {"n": 1} and metadata["code"] == "c0de"
    assert torch.__version__.startswith(metadata["provenance"]["torch"])
    path.write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="computing it again"):
        pd.testing.assert_frame_equal(cached_table(tmp_path, "signals", {"n": 1}, "c0de", compute), first)
    assert len(calls) == 5 and len(names(tmp_path)) == 4


def test_cached_table_after_an_error_holds_nothing(tmp_path):
    def fail():
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        cached_table(tmp_path, "signals", {}, "c0de", fail)
    assert names(tmp_path) == []


def test_results(tmp_path):
    results = {
        "auc": {"value": np.float64(0.87), "n": 60, "interval": (0.85, 0.9)},
        "images": {"value": 60, "n": 60, "unit": "images"},
    }
    note_used("models", "a model", "0123")
    write_results(tmp_path / "r.json", results, Parameters("scenes"))
    content = read_json(tmp_path / "r.json")
    assert content["results"] == {
        "auc": {"value": 0.87, "n": 60, "interval": [0.85, 0.9]},
        "images": {"value": 60, "n": 60, "interval": None, "unit": "images"},
    }
    assert content["config"]["n_images"] == 24
    assert content["config_hash"] == config_hash(Parameters("scenes"))
    assert content["provenance"]["python"]
    assert content["models"] == {"a model": "0123"} and content["codebooks"] == {}
    assert content["code"] == loaded_code() and len(content["code"]) == 12
    assert content["seconds"] >= 0 and "seed" in content


def test_a_results_table_is_text_without_missing_values():
    results = {
        "auc_of_all": {"value": np.float64(0.87654), "n": 14400, "interval": (0.85, 0.9)},
        "images": {"value": 60, "n": 60.0, "interval": None},
        "verdict": {"value": "holds", "n": 2},
        "undefined": {"value": None, "n": 0},
    }
    table = results_table(results)
    assert list(table.columns) == ["value", "interval", "n"]
    assert table.loc["auc of all"].tolist() == ["0.8765", "[0.85, 0.9]", "14,400"]
    assert table.loc["images"].tolist() == ["60", "", "60"]
    assert table["value"].tolist()[2:] == ["holds", ""]
    assert "unit" in results_table({"loss": {"value": 0.5, "n": 1, "unit": "nats"}}).columns


@pytest.mark.parametrize(
    "result",
    [
        0.5,
        {"value": 1},
        {"n": 1},
        {"value": 1, "n": 1, "interval": [1]},
        {"value": 1, "n": 1, "interval": [2, 1]},
    ],
)
def test_results_without_n_or_interval(tmp_path, result):
    with pytest.raises(ParameterError) as error:
        write_results(tmp_path / "r.json", {"auc": result}, {})
    assert one_line(error).startswith("results['auc']")
    assert names(tmp_path) == []
