"""Run the solutions of the exercises that pages pose: each holds code that checks what its words say."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = ("method", "released_code", "peers")

SOLUTION = re.compile(
    r"^\*\*(\d)\.\*\* (.+?)\n\n:::\{dropdown\} Solution\n(.+?)\n:::$", re.MULTILINE | re.DOTALL
)


def exercises(page):
    """Return number, question and solution of every exercise of a page."""
    text = (REPOSITORY / f"book/{page}.md").read_text(encoding="utf-8").partition("\n## Exercises\n")[2]
    return SOLUTION.findall(text)


EVERY = [
    pytest.param(solution, id=f"{page}-{number}") for page in PAGES for number, _, solution in exercises(page)
]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_poses_three_exercises_each_with_a_folded_solution(page):
    found = exercises(page)
    assert [number for number, *_ in found] == ["1", "2", "3"]
    for _, question, solution in found:
        assert "?" in question and "```python" in solution


@pytest.mark.parametrize("solution", EVERY)
def test_a_solution_is_right(solution):
    (code,) = re.findall(r"```python\n(.+?)```", solution, re.DOTALL)
    assert "\nassert " in f"\n{code}"
    exec(compile(code, "solution", "exec"), {})
