"""What came out of a notebook beside what the embedded model gave."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tiny

from rcblib.data.opening import open_images
from rcblib.notebook.beside import NO_RECORD, SAME_RECORD, beside_embedded, embedded_record
from rcblib.probe.config import ProbeConfig
from rcblib.probe.store import probe_dataset
from rcblib.records import ParameterError

LIVE = SimpleNamespace(probed="", evaluated="")
ASKED = ["image_id", "task", "question"]


@pytest.fixture(scope="module")
def samples():
    return open_images("photographs", "test", 2)


def test_numbers_of_a_model_stand_beside_those_of_the_same_pictures(samples, tmp_path):
    model, processor = tiny.tiny_llava()
    config = ProbeConfig(positions=[0, 3], attention=False)
    table = probe_dataset(model, processor, samples, config, tmp_path, progress=False).table
    recorded = embedded_record("probing").table
    recorded = recorded[recorded["image_id"].isin([0, 1])]
    found = beside_embedded(table, samples, LIVE, "probing", ["top1_probability", "entropy", "missing"])
    assert found.columns.name == "llava-photographs, the same 2 pictures"
    assert list(found["number"]) == ["top1_probability", "entropy"]
    assert list(found["n here"]) == [4, 4] and list(found["n embedded"]) == [len(recorded)] * 2
    for line in found.to_dict("records"):
        for column, frame in (("here", table), ("embedded", recorded)):
            assert line[column].startswith(f"{frame[line['number']].mean():.3f} [")


def test_of_the_same_pictures_only_what_was_asked_of_both_is_compared(samples):
    recorded = embedded_record("pruning").table
    first = recorded[recorded["image_id"] == 0]
    strange = first.assign(question="Another?", score=0.0)
    ours = pd.concat([first, strange, first.assign(method="of mine")])
    found = beside_embedded(ours, samples, LIVE, "pruning", ["score"], ["method", "retain_ratio"], ASKED)
    assert set(found["method"]) == set(
        first["method"]
    )  # a method that was not recorded has nothing beside it
    assert (found["here"] == found["embedded"]).all() and (found["intervals"] == "overlap").all()
    assert (found["n here"] == found["n embedded"]).all()


def test_other_pictures_are_compared_as_such(samples):
    others = open_images("scenes", "test", 1)  # of the same id
    recorded = embedded_record("probing").table
    ours = pd.DataFrame({"image_id": [0, 0, 1], "entropy": [1e6, 1e6, 1e6 + 2]})
    found = beside_embedded(ours, others, LIVE, "probing", ["entropy"])
    assert found.columns.name.endswith("other pictures")
    assert found["n embedded"].item() == len(recorded) and found["intervals"].item() == "apart"
    assert np.isnan(pd.to_numeric(found["here"], errors="coerce")).all()  # a mean with its interval, as text
    with pytest.raises(ParameterError, match="^values: got .*'no such'.*; accepted: columns of both tables"):
        beside_embedded(ours, others, LIVE, "probing", ["no such"])


def test_a_record_has_nothing_beside_it_and_without_a_checkout_there_is_none(samples, monkeypatch, tmp_path):
    path = embedded_record("probing").path
    shown = beside_embedded(
        pd.DataFrame(), samples, SimpleNamespace(probed=str(path)), "probing", ["entropy"]
    )
    assert shown.data == SAME_RECORD
    monkeypatch.setenv("RCB_ROOT", str(tmp_path))
    assert beside_embedded(pd.DataFrame(), samples, LIVE, "probing", ["entropy"]).data == NO_RECORD
