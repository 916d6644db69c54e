"""Check that what pages, docstrings and notebooks say is supported is what the registries hold."""

import ast
import json
import re
from pathlib import Path

import pytest
import yaml

from rcblib.mllm.loading import ADAPTERS
from rcblib.pruners.registry import PRUNERS
from tools import make_support
from tools.make_support import COUNTED, FAMILIES

REPOSITORY = Path(__file__).resolve().parents[1]

NAMES = {
    "LLaVA-1.5": r"LLaVA-1\.5", "LLaVA-NeXT": r"(?:LLaVA-)?NeXT\b", "LLaVA-OneVision": r"OneVision",
    "Qwen2.5-VL": r"Qwen2\.5-VL",
}  # fmt: skip
"""How texts name each family."""

OF_OTHERS = r"paper|released|release\b|authors|preset|trained|drawn|min_images"
"""What says that a list of families is about the paper, or about models that come along."""

LIKE_FAMILIES = r"\b(?:Qwen[\d.]*-?VL|InternVL|Idefics|PaliGemma|Molmo|MiniGPT|BLIP|Llama-[\d.]+-Vision)"

COUNT = (
    r"\b(\d+|two|three|four|five|six|seven|eight|nine|ten|\w+teen|twenty\S*) (?:registered |pruning |model )?"
)
COUNT += r"(families|pruners|methods)\b"

ELSEWHERE = {"book/peers.md": "LLMC+", "notebooks/photographs.ipynb": "Count = 16"}
"""Sentences with numbers that are about something else: what they begin with or hold, by file."""


def docstrings(path):
    """Yield the docstrings of a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield ast.get_docstring(node) or ""


def texts():
    """Yield file and text of everything that readers are told."""
    for path in [
        *sorted(REPOSITORY.glob("book/*.md")),
        REPOSITORY / "README.md",
        REPOSITORY / "data/README.md",
    ]:
        yield path, path.read_text(encoding="utf-8")
    for path in sorted(REPOSITORY.glob("notebooks/*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            yield path, "".join(cell["source"])
    for package in ("rcblib", "worlds", "benchmarks"):
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            for text in docstrings(path):
                yield path, text


@pytest.fixture(scope="module")
def sentences():
    """Split all texts at the ends of sentences, cells and paragraphs."""
    return [
        (path.relative_to(REPOSITORY).as_posix(), " ".join(sentence.split()))
        for path, text in texts()
        for sentence in re.split(r"(?<=[.!?;])\s+|\n\n|\n\|", text)
    ]


def incomplete(sentence):
    """Return the families that a list of families lacks; nothing where a sentence is no such list."""
    named = {label for label, pattern in NAMES.items() if re.search(pattern, sentence)}
    is_list = len(named) > 2 and not re.search(OF_OTHERS, sentence)
    return sorted(set(NAMES) - named) if is_list else []


def test_what_readers_call_a_family_is_known_for_every_adapter():
    assert list(FAMILIES) == list(ADAPTERS)
    assert set(NAMES) == set(FAMILIES.values())


def test_lists_of_families_are_complete(sentences):
    assert {text: lack for _, text in sentences if (lack := incomplete(text))} == {}
    assert incomplete("LLaVA-1.5, LLaVA-NeXT and Qwen2.5-VL are read.") == ["LLaVA-OneVision"]


def test_no_page_names_a_family_without_an_adapter(sentences):
    elsewhere = ("book/peers.md", "book/adding_a_family.md", "rcblib/pruners/cdpruner.py")  # others' work
    found = {
        name for path, text in sentences if path not in elsewhere for name in re.findall(LIKE_FAMILIES, text)
    }
    assert found <= set(FAMILIES.values())


def test_pages_name_registered_methods(sentences):
    asked = r"(?:\bpruner=|--pruner |-p pruner )[\"']?(\w+)"
    named = {name for _, text in sentences for name in re.findall(asked, text)}
    own = {name for _, text in sentences for name in re.findall(r"\bregister\(\"(\w+)\"", text)}
    assert named - own - {"name"} <= set(PRUNERS) and named


def test_numbers_of_families_and_methods_are_substituted_not_typed(sentences):
    typed = [
        (path, text)
        for path, text in sentences
        if re.search(COUNT, text) and not path.startswith(("rcblib", "worlds", "benchmarks", "book/adding"))
    ]
    assert [(path, text) for path, text in typed if ELSEWHERE.get(path, "\0") not in text] == []


def test_substitutions_that_pages_use_exist(sentences):
    used = {name for _, text in sentences for name in re.findall(r"\{\{ (\w+) \}\}", text)}
    known = make_support.substitutions()
    assert used <= set(known) and {"families", "n_methods"} <= used
    assert known["families"] == "LLaVA-1.5, LLaVA-NeXT, LLaVA-OneVision and Qwen2.5-VL"
    assert known["n_families"] == len(ADAPTERS)
    assert known["n_methods"] == len(PRUNERS) - sum("oracle" in name or name == "all" for name in PRUNERS)


def test_what_is_here_is_counted_or_shown_by_a_test():
    peers = yaml.safe_load((REPOSITORY / "book/peers.yml").read_text(encoding="utf-8"))
    for own in peers.values():
        for feature, row in own["rows"].items():
            assert row["here"] in COUNTED or (REPOSITORY / f"tests/{row['here']}.py").is_file(), feature
            assert len(row["others"]) == len(own["columns"]), feature
    text = make_support.peers_text(peers["methods"], REPOSITORY)
    assert "| looks at the question | 5 methods do |" in text  # two by its words, three inside the LLM
    harnesses = make_support.peers_text(peers["harnesses"], REPOSITORY)
    assert f"| {make_support.n_published()} published, {make_support.n_methods()} with controls" in harnesses
    published = {"codebook", "cls_attention", "vispruner", "divprune", "cdpruner", "visionzip", "prumerge"}
    published |= {"prumerge_plus", "tome", "holov", "fastv", "sparsevlm", "pyramiddrop"}
    assert make_support.n_published() == len(published & set(PRUNERS)) == len(published)
    assert f"| several images; video | {make_support.substitutions()['video_families']} |" in text


def test_pages_include_every_table_and_the_build_writes_them():
    pages = "".join(path.read_text(encoding="utf-8") for path in REPOSITORY.glob("book/*.md"))
    assert set(re.findall(r"_build/support/(\w+)\.md", pages)) == {"families", "methods", "harnesses"}
    workflow = (REPOSITORY / "workflow/Snakefile").read_text(encoding="utf-8")
    assert re.search(r'(?m)^PARTS = \[.*"support"', workflow) and "tools.make_{part}" in workflow
