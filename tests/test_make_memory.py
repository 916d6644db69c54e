"""Check the tables on memory."""

from pathlib import Path

from benchmarks.checkpoints import CHECKPOINTS, QWEN, empty_model, narrow_config
from tools import make_memory

REPOSITORY = Path(__file__).resolve().parents[1]


def cells(text):
    """Return the cells of a Markdown table, header first, without the rule below it."""
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines()]
    return [rows[0], *rows[2:]]


def test_tables_are_written_in_markdown():
    assert make_memory.table(["a", "b"], [["x", 1]]) == "| a | b |\n| --- | ---: |\n| x | 1 |\n"
    assert (
        make_memory.table(["a", "b", "c"], [[1, "at most", "2 x"]]).splitlines()[1] == "| --- | --- | ---: |"
    )
    assert make_memory.gib(3 * 2**29) == "1.5"


def test_a_t4_holds_7b_in_4_bit():
    jobs = {CHECKPOINTS[0]: make_memory.Jobs(CHECKPOINTS[0])}
    written = make_memory.cards_table(jobs).split("**")  # a table a job, below its title in bold
    fits = {}
    for title, text in zip(written[1::2], written[2::2], strict=True):
        header, row = cells(text.strip())
        assert header[:2] == ["model", "T4 16 GB"]
        fits[title] = row[1].replace("\u00a0", " ").split(" / ")  # at 16 bit, at 4 bit
    assert fits["Answering"][0] == "–"
    assert int(fits["Answering"][1]) >= 8
    assert int(fits["Probing, without attention"][1]) >= 32
    assert len(fits) == 3
    (_, parts) = cells(make_memory.parts_table(jobs))
    assert parts[0] == "`llava-1.5-7b-hf`" and parts[5] == "7.06"


def test_qwen_stands_beside_the_paper_s_checkpoints():
    assert make_memory.EVERY == (*CHECKPOINTS, QWEN)
    jobs = {QWEN: make_memory.Jobs(QWEN)}
    (_, prompt) = cells(make_memory.prompts_table(jobs))
    # 480 x 640 pixels are 34 x 46 patches of 14, which merge by fours; no tile, and a cache as OneVision's LLM has it.
    assert prompt[:4] == ["`Qwen2.5-VL-7B-Instruct`", "1", str(34 * 46 // 4), "56"]
    assert empty_model(narrow_config(QWEN)).config.vision_config.depth == 2


def test_every_table_is_included_in_the_page():
    page = (REPOSITORY / "book" / "memory.md").read_text(encoding="utf-8")
    for name in ("parts", "prompts", "cards", "processors", "check"):
        assert f"```{{include}} _build/memory/{name}.md\n```" in page
