"""Check the page on what can go wrong: its situations end in what it says, and no message of the library is missing."""

import json
import re
from pathlib import Path

import pytest
import yaml
from findings import tested

from rcblib import records
from tools import make_messages
from tools.make_messages import ERRORS, LIBRARY, Message, messages, outcome, read_groups, told_at

REPOSITORY = Path(__file__).resolve().parents[1]
GROUPS = read_groups()
SITUATIONS = [
    pytest.param(own, id=f"{g['name']}-{i}") for g in GROUPS for i, own in enumerate(g["situations"])
]
EXAMPLE = """
def check(n, name):
    accepted = f"at least {n}"
    if n:
        raise ParameterError("count", n, accepted)
    raise CodebookError(f"codebook: {name} is none")

def made(n) -> ParameterError:
    return ParameterError(name, n, "a | b")

def tell(n):
    warnings.warn("rule: passed over", stacklevel=2)
    raise made(n)
"""


@pytest.fixture(scope="module")
def names():
    return make_messages.surroundings()


@pytest.fixture(scope="module")
def known():
    return messages()


@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_situation_ends_in_one_line_that_stands_in_the_library(situation, names, known):
    found = outcome(situation["code"], names)
    assert found.kind in (*ERRORS, "Warning"), found
    assert f"{found.kind}: {found.text}".startswith(situation["says"])
    assert "\n" not in found.text and "\x1b" not in found.text and len(found.text) < 500
    assert told_at(found, known) is not None, found
    assert situation["means"].endswith(".") and situation["do"].endswith(".")


def test_every_message_is_in_one_group(known):
    listed = [module for group in GROUPS for module in group["modules"]]
    assert len(listed) == len(set(listed))
    assert {message.module for message in known} - set(listed) == set()
    there = {".".join(path.relative_to(LIBRARY).with_suffix("").parts) for path in LIBRARY.rglob("*.py")}
    assert set(listed) <= there
    assert all(group["situations"] for group in GROUPS)
    text = ""
    for group in GROUPS:
        own = [message for message in known if message.module in group["modules"]]
        assert set(group["do"]) == {message.kind for message in own if message.kind}
        assert all(told.endswith(".") for told in group["do"].values())
        text += make_messages.list_text(own, group["do"])
    for message in known:
        assert not message.kind or f"| `{message.kind}` | {make_messages._code(message.about)} |" in text


def test_the_page_includes_every_part():
    page = (REPOSITORY / "book/what_can_go_wrong.md").read_text(encoding="utf-8")
    for group in GROUPS:
        assert (
            f"(wrong-{group['name']})=\n## {group['title']}\n\n```{{include}} _build/messages/{group['name']}.md\n```"
            in page
        )
    for name in ("numbers", "precision", "faults"):
        assert f"```{{include}} _build/messages/{name}.md\n```" in page
    toc = yaml.safe_load((REPOSITORY / "book/_toc.yml").read_text(encoding="utf-8"))
    assert {"file": "what_can_go_wrong"} in [c for part in toc["parts"] for c in part["chapters"]]


def test_every_group_and_the_page_it_is_about_lead_to_each_other():
    for group in GROUPS:
        page = (REPOSITORY / f"book/{group['page']}.md").read_text(encoding="utf-8")
        assert f"(wrong-{group['name']})" in page, group["name"]
    for kind in ERRORS:
        assert ":doc:`/what_can_go_wrong`" in getattr(records, kind).__doc__


def test_messages_are_read_from_source(tmp_path):
    (tmp_path / "a.py").write_text(EXAMPLE, encoding="utf-8")
    assert messages(tmp_path) == [
        Message("a", 5, 5, "ParameterError", "count", "at least …"),
        Message("a", 6, 6, "CodebookError", "codebook", "… is none"),
        Message("a", 9, 9, "ParameterError", "…", "a | b"),
        Message("a", 12, 12, "Warning", "rule", "passed over"),
        Message("a", 13, 13, "", "…", "…"),
    ]
    do = dict.fromkeys(("ParameterError", "CodebookError", "Warning"), "Correct it.")
    text = make_messages.list_text(messages(tmp_path), do)
    assert "- `CodebookError`: Correct it.\n" in text
    assert "5 places" in text and "| `ParameterError` | `…` | `a / b` |" in text


def test_a_situation_that_ends_well_or_warns_is_told(names):
    assert outcome("x = 1", names).kind == ""
    found = outcome("import warnings; warnings.warn('rule: odd')", names)
    assert (found.kind, found.text) == ("Warning", "rule: odd")
    assert outcome("Path('new').mkdir(); raise ValueError(Path.cwd())", names).text == "…"


def test_what_faults_struck_is_named_by_hashes():
    recorded = json.loads((REPOSITORY / "data/recorded/faults.json").read_text(encoding="utf-8"))
    hashes = [recorded["code"], *recorded["models"].values(), *tested()["models"].values()]
    assert all(re.fullmatch("[0-9a-f]{12}", each) for each in hashes)
    assert tested().keys() == {"code", "models"} <= recorded.keys()


def test_faults_are_added_up(tmp_path):
    assert make_messages.faults_text(tmp_path / "faults.json") == "No campaign has been recorded yet.\n"
    rows = [
        {"kind": "kill", "tried": 20, "survived": 20, "what": "the same bytes"},
        {"kind": "full disk", "tried": 3, "survived": 2, "what": "one line"},
    ]
    content = {"made": {"date": "2026-11-30T09:00:00"}, "rows": rows}
    (tmp_path / "faults.json").write_text(json.dumps(content), encoding="utf-8")
    text = make_messages.faults_text(tmp_path / "faults.json")
    assert text.startswith("Of 23 inputs and faults tried, 22 were survived. It was recorded on 2026-11-30.")
    assert "| kill | 20 | 20 | the same bytes |" in text


def test_changed_decisions_stand_beside_each_other(tmp_path):
    made = {"date": "2026-11-30T09:00:00", "cpu": "a CPU"}
    for model, n_changed in (("a", 1), ("b", 0)):
        rows = [
            {"format": f, "decision": "word", "n": 8, "changed": n_changed} for f in ("float16", "bfloat16")
        ]
        content = {"made": made, "model": model, "n_images": 2, "rows": rows}
        (tmp_path / f"{model}.json").write_text(json.dumps(content), encoding="utf-8")
    header, _, row, _, told = make_messages.precision_text(sorted(tmp_path.glob("*"))).splitlines()
    assert header == "| decision | a, float16 | a, bfloat16 | b, float16 | b, bfloat16 |"
    assert row == "| word | 1 of 8 (12.5%) | 1 of 8 (12.5%) | 0 of 8 (0.0%) | 0 of 8 (0.0%) |"
    assert told.startswith("Recorded of 2 images on a on 2026-11-30 (a CPU); 2 images on b")
