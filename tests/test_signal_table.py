"""Check the table of signals: what it says, where it is repeated, and that one entry is all that a signal takes."""

import re
from functools import partial
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import tiny
import torch

from rcblib import probe
from rcblib.mllm import adapter_for
from rcblib.probe.config import ProbeConfig
from rcblib.probe.store import probe_dataset
from rcblib.reading.labels import label_of
from rcblib.records import ParameterError, Sample
from rcblib.signals import NEEDS, SIGNALS, check_measured, register, signal_of

BOOK = Path(__file__).resolve().parents[1] / "book"
NOTATION = (BOOK / "notation.md").read_text(encoding="utf-8")
PAGE = (BOOK / "adding_a_signal.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def own_table():
    """Take back what a test adds to the table."""
    before = dict(SIGNALS)
    yield
    SIGNALS.clear()
    SIGNALS.update(before)
    plt.close("all")


@pytest.fixture(scope="module")
def pair():
    return tiny.tiny_llava()


@pytest.fixture(scope="module")
def image():
    return tiny.random_images(1)[0]


def test_every_measured_signal_says_what_it_is():
    for name, signal in SIGNALS.items():
        assert signal.name == name and signal.label and "_" not in signal.label
        assert signal.keep == "" or signal.higher
        assert set(signal.needs) <= set(NEEDS)
    labels = [signal.label for signal in SIGNALS.values()]
    assert len(set(labels)) == len(labels)


def test_signals_that_are_compared_differ_in_colour():
    compared = ["attention_last", "attention_question", "top1_probability", "region_divergence", "entropy"]
    compared += ["global_divergence", "cls_similarity", "cls_attention", "object_coverage", "influence"]
    compared += ["recognised", "certainty", "random_numbers"]
    assert len({SIGNALS[name].color for name in compared}) == len(compared)
    for level in ("region", "global"):
        pair = [SIGNALS[f"{level}_divergence"], SIGNALS[f"{level}_divergence_textbook"]]
        assert pair[0].color == pair[1].color and pair[0].label != pair[1].label


def test_columns_are_found_by_name_and_by_layer():
    assert signal_of("influence") is SIGNALS["influence"]
    assert signal_of("attention_last_layer_17") is SIGNALS["attention_last_layer_<layer>"]
    assert signal_of("attention_last") is SIGNALS["attention_last"]
    assert signal_of("attention_last_layer_x") is None and signal_of("image_id") is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "influence"}, "name: got 'influence'"),
        ({"needs": ("magic",)}, "needs of new: got \\['magic'\\]"),
        ({"keep": "both"}, "keep of new: got 'both'"),
    ],
)
def test_an_entry_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ParameterError, match=message):
        register(**{"name": "new", "label": "new", **changes})


def test_a_missing_column_is_named_unless_the_model_cannot_have_it():
    columns = ["image_id", "top1_probability", "cls_rank"]
    check_measured(columns, ["top1_probability", "attention_last", "object_coverage"])
    for missing in ("entropy", "cls_similarity", "no_such"):
        with pytest.raises(ParameterError, match=f"the column {missing} too"):
            check_measured(columns, [missing])


def test_probing_measures_the_table_and_nothing_else(pair, image):
    table = probe(*pair, image, positions=[0, 5])
    places = ["image_id", "view", "token", "position", "row", "column"]
    found = list(dict.fromkeys(signal_of(name).name for name in table.columns[len(places) :]))
    assert list(table.columns[: len(places)]) == places
    assert found == [name for name, signal in SIGNALS.items() if signal.compute]


def test_the_notation_states_direction_and_symbol_of_each_signal():
    rows = [line for line in NOTATION.splitlines() if line.startswith("|")]
    for name, signal in SIGNALS.items():
        if signal.symbol:
            (row,) = [line for line in rows if f"`{name}`" in line and f"${signal.symbol}$" in line]
            assert f"higher = {signal.higher}" in row


def test_the_notation_lists_all_signals():
    lines = ["| column | in words | unit | a high value says | keep | needs | price |", "|---" * 7 + "|"]
    for signal in SIGNALS.values():
        if signal.higher:
            needs = ", ".join(NEEDS[need] for need in signal.needs) or "–"
            cells = [signal.label, signal.unit or "–", signal.higher, signal.keep or "–", needs, signal.cost]
            lines.append(f"| `{signal.name}` | {' | '.join(cells)} |")
    assert "\n".join(lines) in NOTATION


def test_the_page_is_run_as_it_stands(pair, image):
    model, processor = pair
    names = {"model": model, "processor": processor, "image": image, "generator": np.random.default_rng(0)}
    for block in BLOCKS:
        exec(compile(block, "adding_a_signal.md", "exec"), names)
    tokens = adapter_for(*pair).encode([image])[0].tokens
    expected = torch.linalg.vector_norm(tokens.double(), dim=1).numpy()
    np.testing.assert_allclose(names["table"]["feature_norm"], expected, rtol=1e-5)
    assert names["axes"].get_xlabel() == label_of("feature_norm") == "length of the token"
    again = probe(model, processor, image, batch_size=3)
    np.testing.assert_array_equal(again["feature_norm"], names["table"]["feature_norm"])
    view = adapter_for(*pair).encode([image], needs={"received_attention"})[0].views[0]
    np.testing.assert_array_equal(again["attention_received"], view.signals["received_attention"])


def test_a_signal_takes_as_many_lines_as_the_page_says():
    stated, without_import = map(int, re.findall(r"(\d+) lines", PAGE))
    lines = [line for line in BLOCKS[0].splitlines() if line]
    assert stated == len(lines)
    assert without_import == sum("import" not in line for line in lines)


def test_values_that_are_not_one_a_position_are_refused(pair, image):
    register("short", "too short", compute=lambda probed: probed.tokens[1:, 0])
    with pytest.raises(ParameterError, match=r"short: got 'shape \(1,\)'; accepted: one value a position: 2"):
        probe(*pair, image, positions=[0, 5])


def test_a_signal_may_be_absent_only_where_a_need_is_not_met(pair, image):
    register("gone", "absent", needs=("cls_similarity", "text_attention"), compute=lambda probed: None)
    with pytest.raises(
        ParameterError, match="signal gone: got None; accepted: a value a position, as all it needs"
    ):
        probe(*pair, image, positions=[0])
    assert "gone" not in probe(*pair, image, positions=[0], attention=False)
    assert "gone" not in probe(*tiny.tiny_onevision(), image, positions=[0])


def test_stored_probing_is_repeated_where_a_signal_of_ones_own_is_another(pair, image, tmp_path, capsys):
    sample, config = Sample(3, lambda: image, *image.size), ProbeConfig(positions=(0, 5), attention=False)

    def column():
        return probe_dataset(*pair, [sample], config, tmp_path, progress=False).table.get("own")

    def write_in_notebook(form, factor):
        compute = {
            "lambda": f"lambda probed: {factor} * probed.tokens[:, 0]",
            "scaled": f"partial(lambda by, probed: by * probed.tokens[:, 0], {factor})",
        }
        cell = f"register('own', 'own signal', compute={compute[form]})"
        exec(cell, {"__name__": "a_notebook", "register": register, "partial": partial})

    assert column() is None
    write_in_notebook("lambda", 1.0)
    first = column()
    assert "1 of 1 images were probed by other code" in capsys.readouterr().out
    del SIGNALS["own"]
    write_in_notebook("lambda", 2.0)
    np.testing.assert_array_equal(column(), 2 * first)
    capsys.readouterr()
    column()
    assert capsys.readouterr().out == ""
    del SIGNALS["own"]
    write_in_notebook("scaled", 2.0)
    np.testing.assert_array_equal(column(), 2 * first)
    del SIGNALS["own"]
    write_in_notebook("scaled", 3.0)
    np.testing.assert_array_equal(column(), 3 * first)
