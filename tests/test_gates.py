"""Check each gate on tables of which the answer is known, and what gates make of each other."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from rcblib.data.pixels import PIXEL_SIGNALS
from rcblib.evaluate.gates import BACKGROUND, OBJECTS, ORACLE, SHUFFLED, UNPRUNED
from rcblib.reading.gate_results import GateResult, gate_grid, gate_states, read_gates
from rcblib.reading.gates import (
    background_is_redundant,
    judge_gates,
    pixels_do_not_tell,
    prototypes_recur,
    pruning_can_succeed,
    signal_is_stable,
    tasks_work,
    tokens_speak,
)
from rcblib.records import ParameterError

CONTENT = yaml.safe_load(
    (Path(__file__).resolve().parents[1] / "data" / "gates.yml").read_text(encoding="utf-8")
)
LIMITS = read_gates(CONTENT)[0]
N = 100


@pytest.fixture
def generator():
    return np.random.default_rng(2)


def asked(method, right, task="count", ratio=1.0):
    """Write a hundred answers of a task whose best constant answer is right for a quarter, the first `right` right."""
    return pd.DataFrame(
        {
            "method": method,
            "retain_ratio": ratio,
            "max_similarity": np.nan,
            "settings": "",
            "seed": pd.NA,
            "image_id": range(N),
            "task": task,
            "subset": "",
            "question": "?",
            "score": (np.arange(N) < right).astype(float),
            "guess": (np.arange(N) % 4 == 0).astype(float),
        }
    )


def answers(unpruned=95, shuffled=25, background=94, objects=25, oracle=90, task="count"):
    return pd.concat(
        [
            asked(UNPRUNED, unpruned, task),
            asked(SHUFFLED, shuffled, task),
            asked(BACKGROUND, background, task),
            asked(OBJECTS, objects, task),
            asked(ORACLE, oracle, task, 0.2),
            asked(ORACLE, 30, task, 0.1),
        ],
        ignore_index=True,
    )


def test_a_task_works_if_it_needs_the_image_and_no_other(generator):
    frame = pd.concat(
        [answers(task="count"), answers(unpruned=60, task="position"), answers(shuffled=60, task="yes_no")]
    )
    results, tasks = tasks_work(frame, LIMITS, generator=generator)
    assert tasks == ["count"]
    by_task = {(each.task, each.side): each for each in results}
    assert by_task["count", "at least"].value == pytest.approx((0.95 - 0.25) / 0.75)
    assert by_task["position", "at least"].verdict == "failed"  # 0.47
    assert by_task["yes_no", "at most"].verdict == "failed"
    assert gate_states(results)["G1"] == ("passed", "")
    only_bad = [each for each in results if each.task != "count"]
    assert gate_states(only_bad)["G1"][0] == "failed"


@pytest.mark.parametrize(
    ("changed", "verdicts"),
    [
        ({}, ["passed", "passed"]),
        ({"background": 97}, ["failed", "passed"]),  # better by 0.02 is a change too
        ({"background": 80}, ["failed", "passed"]),
        ({"objects": 50}, ["passed", "failed"]),
    ],
)
def test_background_and_objects_are_swapped(changed, verdicts, generator):
    results = background_is_redundant(answers(**changed), ["count"], LIMITS, generator=generator)
    assert [each.verdict for each in results] == verdicts
    assert results[0].value == pytest.approx(abs(changed.get("background", 94) - 95) / 100)
    assert results[0].low <= results[0].value <= results[0].high


def test_the_oracle_has_to_reach_the_bound_of_the_claim_at_its_budget(generator):
    found = pruning_can_succeed(answers(), ["count"], 0.2, 0.9, generator=generator)
    assert found.value == pytest.approx((0.90 - 0.25) / (0.95 - 0.25))
    assert (found.verdict, found.retain_ratio) == ("passed", 0.2)
    assert pruning_can_succeed(answers(), ["count"], 0.2, 0.95, generator=generator).verdict == "failed"
    low = pruning_can_succeed(answers(), ["count"], 0.1, 0.9, generator=generator)
    assert low.verdict == "failed"
    missing = pruning_can_succeed(answers(), ["count"], 0.05, 0.9, generator=generator)
    assert (missing.verdict, missing.why) == ("not measured", "not asked at this budget")
    states = [gate_states([found, low], ratio)["G3"][0] for ratio in (0.2, 0.1)]
    assert states == ["passed", "failed"]


def test_without_a_task_that_works_nothing_follows(generator):
    results = background_is_redundant(answers(), [], LIMITS, generator=generator)
    results.append(pruning_can_succeed(answers(), [], 0.2, 0.9, generator=generator))
    assert {each.verdict for each in results} == {"not measured"}
    assert {each.why for each in results} == {"no task passes G1"}


def tokens(n_images=12, n_each=36, seed=0, **columns):
    """Write tokens of which the first six of an image lie wholly on an object, and the rest on nothing."""
    rng = np.random.default_rng(seed)
    place = np.tile(np.arange(n_each), n_images)
    on_object = place < 6
    frame = pd.DataFrame(
        {
            "image_id": np.repeat(np.arange(n_images), n_each),
            "view": 0,
            "position": place,
            "object_coverage": on_object.astype(float),
            "top1_word": np.where(on_object, "cat", rng.choice(["sky", "grass", "road"], len(place))),
            "top1_probability": np.where(on_object, 0.8, 0.1),
            "entropy": np.where(on_object, 1.0, 2.0),
            "influence": np.where(on_object, 0.1, 0.0001),
            "named": on_object & (place % 2 == 0),
            **{name: rng.random(len(place)) for name in PIXEL_SIGNALS},
        }
    )
    return frame.assign(**columns)


def test_the_best_pixel_baseline_counts(generator):
    plain = tokens()
    found = pixels_do_not_tell(plain, LIMITS, generator=generator)
    assert found.verdict == "passed" and 0.45 < found.value < 0.65
    given_away = plain.assign(pixel_edges=plain["object_coverage"] + 0.1 * plain["pixel_edges"])
    found = pixels_do_not_tell(given_away, LIMITS, generator=generator)
    assert (found.verdict, found.value) == ("failed", 1.0)
    assert "edges" in found.about and "edges" in str(found)
    # An image that is brighter as a whole gives nothing away inside it.
    bright = plain.assign(pixel_contrast=plain["image_id"].astype(float))
    assert pixels_do_not_tell(bright, LIMITS, generator=generator).verdict == "passed"
    assert (
        pixels_do_not_tell(tokens(object_coverage=0.0), LIMITS, generator=generator).verdict == "not measured"
    )


def test_one_word_for_all_background_is_no_signal(generator):
    spread, overlap = signal_is_stable(tokens(), LIMITS, generator=generator)
    assert spread.verdict == "passed" and 0.3 < spread.value < 0.45
    assert overlap.verdict == "not measured"
    same = tokens(top1_word="cross")
    assert signal_is_stable(same, LIMITS, generator=generator)[0].verdict == "failed"


def test_low_information_sets_of_two_seeds_overlap(generator):
    criterion = {"tau_p": 0.15, "tau_jsd": 0.002}
    first, second = tokens(), tokens(seed=1)
    _, found = signal_is_stable(first, LIMITS, other=second, criterion=criterion, generator=generator)
    assert (found.value, found.verdict) == (1.0, "passed")
    share = ((first["top1_probability"] < 0.15) & (first["influence"] < 0.002)).mean()
    assert 0 < share < 1 and found.by_chance == pytest.approx(
        share / (2 - share)
    )  # of two random sets as large
    fewer = second.assign(top1_probability=second["top1_probability"].mask(second["position"] > 20, 0.5))
    _, found = signal_is_stable(first, LIMITS, other=fewer, criterion=criterion, generator=generator)
    assert found.value == pytest.approx(15 / 30)
    assert found.verdict == "failed"
    higher = second.assign(top1_probability=second["top1_probability"] + 0.2)  # the same order, none below
    _, found = signal_is_stable(first, LIMITS, other=higher, criterion=criterion, generator=generator)
    assert found.value == 0 and found.about.startswith("(1.00 at the other’s own levels, 0.")
    bare = second.drop(columns="influence")
    _, found = signal_is_stable(first, LIMITS, other=bare, criterion=criterion, generator=generator)
    assert found.verdict == "not measured" and np.isnan(found.by_chance)


def test_every_cluster_has_to_recur():
    selection = {"selection": {"n_images": 100, "images_per_cluster": [47, 11]}}
    assert prototypes_recur(selection, LIMITS).verdict == "passed"
    selection["selection"]["images_per_cluster"] = [47, 10]
    found = prototypes_recur(selection, LIMITS)
    assert (found.verdict, found.value, found.n) == ("failed", 0.1, 2)
    assert prototypes_recur({}, LIMITS).verdict == "not measured"


def test_tokens_on_objects_name_them_and_are_surer(generator):
    named, surer = tokens_speak(tokens(), LIMITS, generator=generator)
    assert (named.value, named.verdict) == (0.5, "passed")
    assert (surer.value, surer.verdict) == (-1.0, "passed")
    named, surer = tokens_speak(tokens(named=False, entropy=1.0), LIMITS, generator=generator)
    assert named.verdict == surer.verdict == "failed"
    assert named.high > 0  # none of 72 is no proof of zero
    nothing = tokens_speak(tokens(object_coverage=0.5), LIMITS, generator=generator)
    assert {each.verdict for each in nothing} == {"not measured"}


def test_all_gates_of_a_table():
    table = pd.concat([answers().assign(part="answers"), tokens().assign(part="tokens")], ignore_index=True)
    codebook = {
        "criterion": {"tau_p": 0.15, "tau_jsd": 0.002},
        "selection": {"n_images": 100, "images_per_cluster": [50]},
    }
    results, tasks = judge_gates(table, LIMITS, {0.2: 0.9, 0.1: 0.9}, codebook=codebook, other=table)
    assert tasks == ["count"]
    states = {gate: state for gate, (state, _) in gate_states(results, 0.2).items()}
    assert states == dict.fromkeys(["G1", "G2", "G3", "G4", "G5", "G6", "G7"], "passed")
    assert gate_states(results, 0.1)["G3"][0] == "failed"
    assert gate_states(results, 0.1)["G3"][1] == "oracle at 10% 0.0714 (≥\u202f0.9)"
    assert gate_states(results, 0.2, "videos") == {
        gate: ("passed", "") if gate in ("G5", "G6") else ("not measured", "not measured") for gate in states
    }
    again, _ = judge_gates(table, LIMITS, {0.2: 0.9, 0.1: 0.9}, codebook=codebook, other=table)
    assert again == results


def test_gates_of_several_models_stand_side_by_side():
    cat, dog = (
        GateResult("G5", "commonest word", v, v, v, "below", 0.5, about=w)
        for v, w in ((0.9, "cat"), (0.3, "dog"))
    )
    bare = GateResult("G5", "overlap", np.nan, np.nan, np.nan, "at least", 0.8, why="one seed")
    first = GateResult("G1", "yes/no", 0.7, 0.6, 0.8, "at least", 0.6)
    grid = gate_grid({"a": [bare, cat, first], "b": [dog]})
    assert grid.index.tolist() == [
        ("G1", "yes/no", "≥\u202f0.6"),
        ("G5", "overlap", "≥\u202f0.8"),
        ("G5", "commonest word", "<\u202f0.5"),
    ]
    assert grid["a"].tolist() == ["0.70 [0.60, 0.80] ✓", "? one seed", "0.90 [0.90, 0.90] ✗ cat"]
    assert grid["b"].tolist() == ["–", "–", "0.30 [0.30, 0.30] ✓ dog"]


def test_a_gate_that_fails_and_lacks_a_part_has_failed():
    results = [
        GateResult("G5", "one", 0.9, 0.8, 1.0, "below", 0.5),
        GateResult("G5", "two", np.nan, np.nan, np.nan, "at least", 0.8, why="one seed"),
    ]
    assert gate_states(results)["G5"] == ("failed", "one 0.9 (<\u202f0.5)")
    assert gate_states(results[1:])["G5"] == ("not measured", "one seed")


def test_the_file_of_gates_is_checked():
    limits, declared, seeds = read_gates(CONTENT)
    assert (limits.least_score, limits.most_area, limits.least_named) == (0.6, 0.8, 0.4)
    assert "supervision" in declared["llava-scenes", "C1"]
    assert seeds and not set(seeds) & {name for further in seeds.values() for name in further}
    assert read_gates(CONTENT | {"seeds": {"a": ["a-seed-1"]}})[2] == {"a": ["a-seed-1"]}
    for wrong in (
        {},
        CONTENT | {"more": 1},
        CONTENT | {"limits": {**CONTENT["limits"], "G4": {}}},
        CONTENT | {"limits": {**CONTENT["limits"], "G4": {"most_area": "0.8"}}},
        CONTENT | {"declared": [{"models": []}]},
    ):
        with pytest.raises(ParameterError):
            read_gates(wrong)
