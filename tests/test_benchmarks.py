"""Run the benchmarks on small models: each prints what it compares."""

import re

import pytest
import tiny

from benchmarks import memory, probing
from rcblib.runs.files import read_json


def test_memory_is_recorded_as_computed_and_as_measured_with_provenance(tmp_path):
    model = tiny.save(tmp_path / "model", *tiny.tiny_next())
    size = ["--height", "40", "--width", "90", "--text", "8", "--new", "2"]
    memory.main(["--model", str(model), "--random", *size, "--output", str(tmp_path / "o.json")])
    results = read_json(tmp_path / "o.json")
    assert {"torch", "gpu", "git_commit"} <= set(results["provenance"])
    assert set(results["bytes"]) == {"weights", "encode", "probe", "generate"}
    assert all(entry["measured"] > 0 < entry["computed"] for entry in results["bytes"].values())


def test_probing_is_timed_beside_plain_runs(tmp_path, capsys):
    model = tiny.save(tmp_path / "model", *tiny.tiny_llava())
    probing.main(["--model", str(model), "--positions", "1", "--repeats", "1"])
    first, *rows = capsys.readouterr().out.splitlines()
    assert first.startswith("36 visual tokens, ")
    times = {row[:12].strip(): re.findall(r"[\d.]+", row) for row in rows}
    assert list(times) == ["as released", "one by one", "batched"]
    assert times["as released"][1] == "1.0"
    assert all(float(number) > 0 for numbers in times.values() for number in numbers)


@pytest.mark.parametrize("option", ["--quantization=4bit", "--height=tall"])
def test_wrong_options_of_memory_end_before_any_work(option, capsys):
    with pytest.raises(SystemExit):
        memory.main(["--model", "llava-scenes", "--random", option])
    assert option.split("=")[0] in capsys.readouterr().err
