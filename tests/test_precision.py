"""Check what is counted as a decision that half precision changes, and what was recorded."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import precision
from rcblib.codebook.criterion import CodebookCriterion
from rcblib.runs.digest import code_digest

RECORDED = sorted((Path(__file__).resolve().parents[1] / "data/recorded/precision").glob("*.json"))
DECISIONS = [
    "kept below a cut-off",
    "kept by share, max cosine",
    "kept by share, double softmax",
    "kept by share, single softmax",
    "cluster",
    "first word",
    "says little",
]
CRITERION = CodebookCriterion(tau_p=0.5, tau_jsd=0.1, k_region=1.0, k_global=1.0)


def facts(seed):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(40, 8, generator=generator)
    return {
        "tokens": tokens,
        "word": np.array(["cat", "dog", "red"]),
        "top1": np.array([0.4, 0.4, 0.6]),
        "region": np.array([0.01, 0.2, 0.01]),
        "global": np.zeros(3),
    }


def counted(exact, rounded):
    prototypes = torch.randn(6, 8, generator=torch.Generator().manual_seed(9))
    rows = precision.changed(exact, rounded, prototypes, CRITERION)
    assert [row["decision"] for row in rows] == DECISIONS
    assert [row["n"] for row in rows] == [40 * len(exact)] * 5 + [3 * len(exact)] * 2
    return [row["changed"] for row in rows]


def test_points_are_moved_only_where_no_naming_of_the_clusters_explains_it():
    labels = np.array([0, 0, 0, 1, 1, 2])
    assert precision.n_moved(labels, labels) == 0
    assert precision.n_moved(labels, np.array([2, 2, 2, 0, 0, 1])) == 0
    assert precision.n_moved(labels, np.array([2, 2, 0, 0, 0, 1])) == 1
    assert precision.n_moved(labels, np.zeros(6, int)) == 3


def test_equal_measurements_change_nothing_and_every_difference_is_counted():
    both = [facts(0), facts(1)]
    assert counted(both, both) == [0] * 7
    other = facts(0) | {"word": np.array(["cat", "bird", "red"]), "top1": np.array([0.6, 0.4, 0.4])}
    assert counted(both, [other, both[1]]) == [0, 0, 0, 0, 0, 1, 2]
    turned = facts(0) | {"tokens": -facts(0)["tokens"]}
    assert min(counted([facts(0)], [turned])[:4]) >= 8


def test_a_model_is_compared_with_itself_in_float32():
    found = precision.compared("llava-scenes", 1, [40, 90])
    assert [row["format"] for row in found["rows"]] == ["float16"] * 7 + ["bfloat16"] * 7
    assert [row["n"] for row in found["rows"]] == [144] * 5 + [2] * 2 + [144] * 5 + [2] * 2
    assert found["made"]["torch"] and found["n_images"] == 1
    assert set(found["fingerprints"]) == {"float32", *precision.FORMATS}
    assert len(set(found["fingerprints"].values())) == 3 and found["code"] and found["codebook"]


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_what_was_recorded_is_complete(path):
    recorded = json.loads(path.read_text(encoding="utf-8"))
    assert recorded["model"] == path.stem and recorded["made"]["date"]
    assert [(row["format"], row["decision"]) for row in recorded["rows"]] == [
        (name, decision) for name in precision.FORMATS for decision in DECISIONS
    ]
    assert all(0 <= row["changed"] <= row["n"] for row in recorded["rows"])
    assert (
        recorded["code"]
        and recorded["codebook"]
        and set(recorded["fingerprints"]) == {"float32", *precision.FORMATS}
    )


def test_the_command_takes_positions_and_names_the_code_behind_its_numbers(tmp_path):
    """As a command the module has another name, which no file answers to."""
    output = tmp_path / "precision.json"
    command = [sys.executable, "-m", "benchmarks.precision", "--model", "llava-scenes", "--n-images", "1"]
    command += ["--positions", "40,90", "--output", str(output)]
    subprocess.run(command, check=True, capture_output=True)
    written = json.loads(output.read_text(encoding="utf-8"))
    assert written["positions"] == [40, 90] and written["code"] == code_digest("benchmarks.precision")


def test_the_models_of_the_page_were_recorded():
    assert [path.stem for path in RECORDED] == ["llava-photographs", "llava-scenes"]
