"""Check that the page of methods says of every registered method what its class says and does."""

import re
from pathlib import Path

import pytest
from families import FAMILIES

from rcblib.mllm import adapter_for
from rcblib.pruners import PRUNERS
from tools import make_methods
from tools.make_methods import ENCODERS, NOTES, acts, notes_of, parameters_of, serves

REPOSITORY = Path(__file__).resolve().parents[1]
ENCODER_OF = {
    "llava": "CLIP",
    "llava with SigLIP": "SigLIP",
    "llava with DINOv2": "DINOv2",
    "llava_next": "CLIP",
    "llava_next with DINOv2": "DINOv2",
    "llava_onevision": "SigLIP",
    "qwen2_5_vl": "Qwen2.5-VL",
}


@pytest.mark.parametrize("name", PRUNERS)
def test_every_method_says_its_rule_its_cost_and_when_it_fails(name):
    told = notes_of(PRUNERS[name].kind)
    assert {"Rule", "Cost", "Fails", "Source"} <= told.keys() <= set(NOTES)
    for text in told.values():
        assert ":math:" not in text and "``" not in text and text.count("$") % 2 == 0


def test_published_code_is_named_with_its_commit():
    for name, method in PRUNERS.items():
        if method.paper.startswith("arXiv"):
            source = notes_of(method.kind)["Source"]
            assert "/" in source and "commit " in source, name


def test_the_page_includes_every_part():
    page = (REPOSITORY / "book/methods.md").read_text(encoding="utf-8")
    for name in ("names", "encoders", "rules"):
        assert f"```{{include}} _build/methods/{name}.md\n```" in page
    workflow = (REPOSITORY / "workflow/Snakefile").read_text(encoding="utf-8")
    assert re.search(r'(?m)^PARTS = \[.*"methods"', workflow) and "tools.make_{part}" in workflow


def test_tables_have_a_line_for_every_method():
    for text in (make_methods.names_text(PRUNERS), make_methods.encoders_text(PRUNERS)):
        rows = [line for line in text.splitlines() if line.startswith(("| `", "| [`"))]
        assert len(rows) == len(PRUNERS) and len({row.count("|") for row in rows}) == 1
        for name, row in zip(PRUNERS, rows, strict=True):
            assert f"`{name}`" in row
    rules = make_methods.rules_text(PRUNERS)
    assert rules.count("\n### ") + rules.startswith("### ") == len(PRUNERS)


def test_where_methods_act_is_read_off_their_classes():
    found = {name: acts(PRUNERS[name]) for name in ("random", "tome", "downsampled", "fastv")}
    assert found == {
        "random": "tokens",
        "tome": "tokens, merged",
        "downsampled": "the picture",
        "fastv": "layers of the LLM",
    }
    assert parameters_of(PRUNERS["fastv"]) == ["form=gathered", "layer=2"]
    assert parameters_of(PRUNERS["cdpruner"]) == ["text_tower"]


@pytest.mark.parametrize("family", FAMILIES)
def test_encoders_of_the_page_offer_what_models_do(family):
    """What is marked as served is what models' own checks let pass, which the contract runs."""
    adapter = adapter_for(*FAMILIES[family].build())
    signals, has_clip = ENCODERS[ENCODER_OF[family]]
    assert signals == adapter.offers
    assert has_clip == (getattr(adapter.model.config.vision_config, "model_type", "") == "clip_vision_model")
    for name in ("vispruner", "received_attention", "divprune", "cdpruner"):
        assert serves(PRUNERS[name], signals, has_clip) == (
            PRUNERS[name].needs - {"question"} <= adapter.offers
        ) & (has_clip or name != "cdpruner")
