"""Check what is said below commands of the how-to pages: none is missing, and what was recorded is what they show."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from rcblib.records import ParameterError
from rcblib.runs.files import read_json
from tools import make_steps, steps
from tools.steps import RECORDS, Block, Step, blocks_of, commands_of, read_steps, run_here, stale

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = ("laptop", "cluster", "colab", "checkpoints")
LISTED = read_steps(REPOSITORY)

PAGE = """# A page

```bash
echo one  # says so
for i in 2 3; do
    echo $i \\
        more
done
```

1. In a list:

   ```python
   name = "<name>"
   name.upper()
   ```

```{include} not/code.md
```
"""
LIST = """
page:
  first:
    - {command: echo one, lines: 1, most_seconds: 20}
    - {command: for i, lines: 1, most_seconds: 20}
  second:
    - {command: name =, given: {<name>: me}, lines: 1, most_seconds: 20}
"""


@pytest.fixture
def project(tmp_path):
    """Make a checkout of a project with one page."""
    for name, text in (("book/page.md", PAGE), ("book/steps.yml", LIST), ("workflow/notebooks.yml", "{}")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    who = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    for arguments in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "Begin"]):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True)
    return tmp_path


def test_every_command_of_the_pages_is_listed_and_its_part_stands_below_its_block():
    assert set(LISTED) == set(PAGES)  # `read_steps` itself refuses a page that shows other commands
    for page in PAGES:
        text = (REPOSITORY / f"book/{page}.md").read_text(encoding="utf-8")
        assert f"```{{include}} _build/steps/{page}.md\n```" in text
        blocks = re.findall(
            r"(?ms)^( *)```(?:bash|python)\n.*?^\1```\n\n\1```\{include\} _build/steps/([\w-]+)\.md$", text
        )
        assert [name for _, name in blocks] == [f"{page}-{block.name}" for block in LISTED[page]]
        assert LISTED[page] and all(block.steps for block in LISTED[page])


@pytest.mark.parametrize("page", PAGES)
def test_what_was_recorded_is_what_the_page_shows(page):
    path = REPOSITORY / RECORDS / f"{page}.json"
    if not run_here(LISTED[page]):
        assert not path.exists()
        return
    recorded = read_json(path)
    assert stale(page, LISTED[page], recorded) == ""
    assert recorded["seconds"] == pytest.approx(sum(each["seconds"] for each in recorded["steps"]), abs=0.1)
    most = {step.command: step for _, step in run_here(LISTED[page])}
    for each in recorded["steps"]:
        step = most[each["command"]]
        assert 0 < each["cpu_seconds"] <= step.most_seconds
        assert each["printed"] and step.lines <= steps.KEPT
        assert not re.search("Traceback|Error|Killed", " ".join(each["printed"]))


def test_recording_takes_minutes_only():
    files = [read_json(path) for path in (REPOSITORY / RECORDS).glob("*.json")]
    assert 0 < sum(each["cpu_seconds"] for recorded in files for each in recorded["steps"]) <= 6 * 60


def test_what_is_not_run_says_why_in_a_sentence():
    every = [step for blocks in LISTED.values() for block in blocks for step in block.steps]
    reasons = {step.not_run for step in every if step.not_run}
    assert len(reasons) > 5 and all(re.fullmatch(r"[A-Z].*\.", why, re.DOTALL) for why in reasons)


def test_commands_are_read_as_the_page_shows_them():
    assert blocks_of(PAGE) == [
        ("bash", ["echo one", "for i in 2 3; do\n    echo $i more\ndone"]),
        ("python", ['name = "<name>"\nname.upper()']),
    ]
    assert commands_of("bash", "# a remark\na#b 1   # told\n\nc") == ["a#b 1", "c"]


def test_a_page_that_shows_another_command_than_its_list_is_one_line(project):
    assert [step.command for block in read_steps(project)["page"] for step in block.steps][0] == "echo one"
    (project / "book/page.md").write_text(PAGE.replace("echo one", "echo 1"), encoding="utf-8")
    with pytest.raises(
        ParameterError, match=r"^book/steps.yml: got 'echo one'; accepted: 'echo 1', which page.md shows$"
    ):
        read_steps(project)
    (project / "book/page.md").write_text(f"{PAGE}\n```bash\nmore\n```\n", encoding="utf-8")
    with pytest.raises(ParameterError, match="2 blocks of page"):
        read_steps(project)
    (project / "book/page.md").write_text(PAGE.replace("done\n", "done\nmore\n"), encoding="utf-8")
    with pytest.raises(ParameterError, match="got 'nothing'; accepted: 'more'"):
        read_steps(project)


@pytest.mark.parametrize("ways", [{}, {"lines": 2}, {"lines": 2, "most_seconds": 1, "not_run": "Why."}])
def test_a_step_is_run_in_one_way(ways):
    with pytest.raises(ParameterError, match="lines and most_seconds, or not_run, or record"):
        Step("echo", **ways)


def test_recording_runs_the_very_commands_and_the_parts_tell_of_them(project):
    assert stale("page", read_steps(project)["page"], None).startswith(
        "page: 'echo one' was not recorded as it is now"
    )
    assert make_steps.parts_of(project)["page"] == "No command of this page has been recorded yet.\n"
    make_steps.record_all([], project)
    recorded = json.loads((project / RECORDS / "page.json").read_text(encoding="utf-8"))
    assert [each["printed"] for each in recorded["steps"]] == [["one"], ["2 more", "3 more"], ["ME"]]
    assert recorded["provenance"]["cpu"] and re.fullmatch("[0-9a-f]{12}", recorded["code"])
    assert stale("page", read_steps(project)["page"], recorded) == ""
    parts = make_steps.parts_of(project)
    assert "by the code of today" in parts["page"] and recorded["provenance"]["cpu"] in parts["page"]
    took = r"- `echo one`: recorded, \d\.\d s of processor time on .* \(\d\.\d s by the clock\)\. It ends with\n\n"
    assert re.match(rf"{took}  ```text\n  one\n", parts["page-first"])
    assert "with `me` for `<name>`" in parts["page-second"] and parts["page-second"].startswith("Recorded, ")
    assert parts["page-second"].endswith("\n\n```text\nME\n```\n")

    for path in (project / "book/page.md", project / "book/steps.yml"):
        path.write_text(path.read_text(encoding="utf-8").replace("echo one", "echo two"), encoding="utf-8")
    told = stale("page", read_steps(project)["page"], recorded)
    assert told == "page: 'echo two' was not recorded as it is now: python -m tools.make_steps record page"
    assert (
        "- `echo two`: not recorded since the command was changed.\n"
        in make_steps.parts_of(project)["page-first"]
    )


def test_a_command_that_fails_or_takes_too_long_records_nothing(project, capsys, monkeypatch):
    text = (project / "book/page.md").read_text(encoding="utf-8")
    busy = "for ((i = 0; i < 200000; i++)); do true; done"
    for command, told, most in (
        ("echo one; false", "got 'status 1'; accepted: 0; it said: one", 20),
        ("echo one; sleep 30 | cat", "got 'no end'; accepted: one within 0.5 s", 0.05),
        (f"echo one; {busy}", "accepted: at most 0.01 s", 0.01),
    ):
        monkeypatch.setattr(steps, "PATIENCE", 10 if "sleep" in command else 100_000)
        listed = LIST.replace(
            "echo one, lines: 1, most_seconds: 20", f"echo one, lines: 1, most_seconds: {most}"
        )
        (project / "book/steps.yml").write_text(listed, encoding="utf-8")
        (project / "book/page.md").write_text(text.replace("echo one", command), encoding="utf-8")
        assert make_steps.main(["record", "page"], project) == 2
        assert told in capsys.readouterr().err
    assert not (project / RECORDS).exists()
    assert make_steps.main(["record", "none"], project) == 2
    assert "page: got 'none'; accepted: page" in capsys.readouterr().err


def test_what_was_printed_is_shortened_as_a_terminal_shows_it(tmp_path):
    printed = f"first\n\x1b[32m 10%\r100%\x1b[0m\r\n\nwrote {tmp_path}/out/a.json in {tmp_path}\n"
    printed += f"{Path.home()}/b {'x' * 200}\n"
    lines = steps.shortened(printed, tmp_path)
    assert lines[:3] == ["first", "100%", "wrote out/a.json in ."]
    assert lines[3].startswith("~/b xxx") and len(lines[3]) == steps.LONGEST
    assert len(steps.shortened("line\n" * 99, tmp_path)) == steps.KEPT
    bars = ["a", "Loading it:  50%| 1/2", "Loading it: 100%| 2/2", "Other: 100%", "b", "Executing: 0%"]
    assert steps.without_progress(bars) == [bars[0], *bars[2:]]


def test_a_run_of_its_own_is_told_from_its_record():
    block = Block("cluster", "bash", (Step("make slurm", record="data/recorded/slurm.json"),))
    recorded = read_json(REPOSITORY / "data/recorded/slurm.json")
    text = make_steps.block_text(block, {}, REPOSITORY)
    assert text.startswith(
        f"Recorded, {recorded['seconds'] / 60:.1f} min on {recorded['provenance']['cpu']}."
    )
    assert "\n".join(recorded["steps"]) in text


def test_neighbours_that_are_not_run_for_one_reason_are_told_of_once():
    block = Block(
        "all", "bash", (Step("a", not_run="Why."), Step("b", not_run="Why."), Step("c", not_run="Else."))
    )
    assert (
        make_steps.block_text(block, {}, REPOSITORY)
        == "- `a`, `b`: not run here. Why.\n\n- `c`: not run here. Else.\n"
    )
    long = make_steps.named(Step(f"papermill {'x' * 40} {'y' * 80}", not_run="Why."))
    assert long == f"`papermill {'x' * 40} …`"


def test_the_build_writes_the_parts():
    workflow = (REPOSITORY / "workflow/Snakefile").read_text(encoding="utf-8")
    assert re.search(r'(?m)^PARTS = \[.*"steps"', workflow) and "tools.make_{part}" in workflow
