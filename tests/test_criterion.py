"""Limits of the criterion, strict and in double precision, and the criteria of the paper."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from messages import one_line

from rcblib.codebook.criterion import FAMILY_PRESETS, PRESETS, CodebookCriterion
from rcblib.records import ParameterError

REPOSITORY = Path(__file__).resolve().parents[1]


def test_presets_are_those_of_the_method_page():
    expected = {
        "llava-1.5-7b": (0.15, 0.002, 8, 8, 64, 64),
        "llava-1.5-13b-script": (0.077, 0.0018, 8, 8, 64, 64),
        "llava-next-8b": (0.10, 0.002, 8, 8, 64, 64),
        "llava-onevision-7b": (0.08, 0.0018, 8, 3, 24, 16),
    }
    fields = ("tau_p", "tau_jsd", "n_clusters", "cluster_size_max", "n_prototype_clusters", "min_images")
    assert {n: tuple(getattr(c, f) for f in fields) for n, c in PRESETS.items()} == expected
    assert {(c.k_region, c.k_global) for c in PRESETS.values()} == {(1, 16)}


def test_every_family_has_a_preset():
    assert set(FAMILY_PRESETS.values()) <= set(PRESETS)


def test_the_method_page_prints_the_presets():
    page = (REPOSITORY / "book" / "method.md").read_text(encoding="utf-8")
    table = page[page.index("| preset |") :].split("\n\n", 1)[0]
    (_, *names), _, *rows = (
        [cell.strip(" `") for cell in row.split("|")[1:-1]] for row in table.splitlines()
    )
    printed = {row[0].split("`")[0]: row[1:] for row in rows}
    assert names == list(PRESETS)
    for field in ("tau_p", "tau_jsd", "n_clusters", "cluster_size_max", "n_prototype_clusters", "min_images"):
        assert [float(value) for value in printed[field]] == [getattr(c, field) for c in PRESETS.values()]


def test_influence_weighs_region_and_global():
    criterion = CodebookCriterion(k_region=2, k_global=16)
    assert criterion.influence([0.5, 0.0], torch.tensor([0.25, -0.125])).tolist() == [5.0, -2.0]


def test_equality_with_a_limit_is_not_low_information():
    criterion = CodebookCriterion(tau_p=0.15, tau_jsd=0.002, k_region=1, k_global=0)
    below_p, below_jsd = np.nextafter(0.15, 0), np.nextafter(0.002, 0)
    top1 = [0.15, below_p, 0.0, below_p]
    region = [0.0, below_jsd, 0.002, 0.003]
    assert criterion.low_information(top1, region, [0, 0, 0, 0]).tolist() == [False, True, False, False]


def test_comparison_is_in_double_precision():
    # 0.15 in float32 is 0.15000000596: not below the limit, although float32 holds the limit itself as equal.
    criterion = CodebookCriterion(tau_p=0.15)
    single = torch.tensor([0.15, 0.1499999], dtype=torch.float32)
    assert criterion.low_information(single, [0, 0], [0, 0]).tolist() == [False, True]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tau_p", 0),
        ("tau_p", 1.1),
        ("tau_p", float("nan")),
        ("tau_p", "2e-3"),
        ("tau_jsd", 0.0),
        ("tau_jsd", float("inf")),
        ("k_region", -1),
        ("n_clusters", 0),
        ("n_clusters", 2.5),
        ("cluster_size_max", 0),
        ("cluster_size_max", True),
        ("n_prototype_clusters", -3),
        ("min_images", -1),
    ],
)
def test_criterion_out_of_range(field, value):
    with pytest.raises(ParameterError) as error:
        CodebookCriterion(**{field: value})
    assert one_line(error).startswith(f"{field}: got {value!r}; accepted: ")


def test_criterion_without_weights():
    with pytest.raises(ParameterError, match="k_region, k_global"):
        CodebookCriterion(k_region=0, k_global=0)


def test_criterion_from_preset_and_file(tmp_path):
    assert CodebookCriterion.from_preset("llava-next-8b") is PRESETS["llava-next-8b"]
    path = tmp_path / "embedded.json"
    path.write_text(json.dumps({"tau_p": 0.3, "min_images": 5}))
    assert CodebookCriterion.from_preset(path) == CodebookCriterion(tau_p=0.3, min_images=5)
    path.write_text(json.dumps({"tau_q": 0.3}))
    with pytest.raises(ParameterError, match="did you mean tau_p"):
        CodebookCriterion.from_preset(path)
    with pytest.raises(ParameterError, match="llava-1.5-13b-script"):
        CodebookCriterion.from_preset("llava")
