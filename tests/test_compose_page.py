"""Compose pages of small notebooks: places, tabs, what is folded, and what stands once."""

import base64
import re

import nbformat
import pandas as pd
import pytest
import yaml

from rcblib.reading.answers import NOTHING, answer_of
from rcblib.records import ParameterError
from tools.compose_page import Run, compose

PICTURE = b"\x89PNG a picture"


def words(text, *tags, name):
    return nbformat.v4.new_markdown_cell(text, id=name, metadata={"tags": list(tags)})


def code(text, *tags, name, outputs=(), **metadata):
    return nbformat.v4.new_code_cell(
        text, id=name, metadata={"tags": list(tags), **metadata}, outputs=list(outputs)
    )


def shows(**data):
    kinds = {"markdown": "text/markdown", "html": "text/html", "png": "image/png", "plain": "text/plain"}
    return nbformat.v4.new_output("display_data", data={kinds[kind]: value for kind, value in data.items()})


def prints(text, name="stdout"):
    return nbformat.v4.new_output("stream", name=name, text=text)


def glues(name, value):
    data = {"application/papermill.record/text/plain": repr(value)}
    return nbformat.v4.new_output("display_data", data=data, metadata={"scrapbook": {"name": name}})


def run_on(model, score, further=()):
    """Return a run of a notebook of which the score is told in words, by a picture, and printed."""
    figure = {"figure": {"caption": "What it found."}}
    picture = shows(png=base64.b64encode(PICTURE + model.encode()).decode(), plain="<Figure>")
    picture.metadata["image/png"] = {"alt": f'A curve of "{model}": it rises # to {score}.'}
    cells = [
        words("# A title\n\n**Claim.** It rises.\n\n**Answer.** {glue:text}`score` of all.", name="title"),
        code("n: int = 1  # how many", "parameters", name="parameters"),
        code("import numpy", name="imports", outputs=[prints("numpy 2\n")]),
        words("## Method\n\nWith $a$.", "method", name="method"),
        code("a = 1", name="computes"),
        words("The score is {glue:text}`score`.\n\nIt is the same for all.", "experiment", name="scores"),
        code(
            "table", "scroll-output", name="table", outputs=[prints(f"{model} 1/1\n"), shows(html="<b>7</b>")]
        ),
        words("## All of them\n\nOne by one.", "fold", "experiment", name="details"),
        code("listed", name="listed", outputs=[shows(plain="1, 2")]),
        words("## Limits\n\nFew images.", "limits", name="limits"),
        words("It rises:", "answer", name="best"),
        code(
            "show_figure(figure)",
            name="best-figure",
            mystnb=figure,
            outputs=[prints("noise", "stderr"), picture, glues("score", score)],
        ),
        words("## Reading\n\nWell.", "reading", name="reading"),
        *further,
    ]
    return Run(
        model,
        model,
        model.title(),
        cells,
        f"Recorded {model}.",
        f"papermill -p model {model}",
    )


@pytest.fixture
def page():
    return compose("example", [run_on("small", "0.5"), run_on("large", "0.7")])


def tabs_of(text):
    return re.findall(r"(?s):::::::\{tab-set\}\n.*?\n:::::::\n", text)


def test_cells_stand_by_their_place_and_what_is_the_same_stands_once(page):
    order = [
        "# A title",
        "It rises:",
        "0.5 of all.",
        "## Reading",
        "## Method",
        "The score is 0.5",
        "## Limits",
        "## Appendix",
    ]
    at = [page.text.index(text) for text in order]
    assert at == sorted(at)
    for text in (
        "**Claim.** It rises.",
        "With $a$.",
        "It is the same for all.",
        "show_figure(figure)",
        "<b>7</b>",
    ):
        assert page.text.count(text) == 1, text


def test_what_differs_is_in_tabs_that_change_together(page):
    tabs = tabs_of(page.text)
    for both in tabs:
        assert re.findall(r"\{tab-item\} (\w+)\n:sync: (\w+)", both) == [
            ("Small", "small"),
            ("Large", "large"),
        ]
        assert ":sync-group: model" in both
    (told,) = [both for both in tabs if "The score is" in both]
    assert "The score is 0.5." in told and "The score is 0.7." in told and "same for all" not in told
    # Answer, picture and what was run where, one below the other, are one set of tabs, and its code follows.
    (best,) = [both for both in tabs if "```{figure}" in both]
    assert "**Answer.** 0.7 of all." in best and "*Recorded small.*" in best and "*Recorded large.*" in best
    assert page.text[page.text.index(best) + len(best) :].lstrip().startswith('<details class="folded-code">')


def test_pictures_are_files_with_caption_and_alternative_text(page):
    assert page.pictures == {
        "example/best-figure-small-0.png": PICTURE + b"small",
        "example/best-figure-large-0.png": PICTURE + b"large",
    }
    (first, _) = re.findall(r"```\{figure\} (\S+)\n(.*?)\n\n(.*?)\n```", page.text, flags=re.DOTALL)
    assert first[0] == "example/best-figure-small-0.png" and first[2] == "What it found."
    options = yaml.safe_load(first[1].replace("\n:", "\n").removeprefix(":"))
    assert options["alt"] == 'A curve of "small": it rises # to 0.5.'


def test_code_details_parameters_and_what_was_printed_are_folded(page):
    open_part = re.sub(r"(?s)<details.*?</details>", "", re.sub(r"(?s)## Appendix.*", "", page.text))
    for text in ("import numpy", "show_figure(figure)", "One by one.", "1, 2", "small 1/1", "papermill"):
        assert text in page.text and text not in open_part, text
    assert "<summary>All of them</summary>" in page.text and "## All of them" not in page.text
    for title in ("Run it yourself", "Parameters, imports and versions", "What the runs printed"):
        assert f"<summary>{title}</summary>" in page.text.split("## Appendix")[1]
    assert "noise" not in page.text
    assert "<../../results/executed/large.ipynb>" in page.text


def test_one_run_needs_no_tabs():
    text = compose("example", [run_on("small", "0.5")]).text
    assert "tab-set" not in text and "The score is 0.5." in text


def test_a_notebook_without_places_keeps_its_order():
    cells = [words(f"# Title\n\n{number}", name=f"c{number}") for number in range(3)]
    text = compose("plain", [Run("plain", "small", "Small", cells)]).text
    assert re.findall(r"(?m)^\d$", text.split("## Appendix")[0]) == ["0", "1", "2"]


def page_with(output, origin=""):
    """Return the text of a page of one cell that has one output."""
    cells = [words("# T", name="t"), code("x", name="x", outputs=[output])]
    return compose("plain", [Run("plain", "small", "Small", cells, origin)]).text


def test_tables_are_in_words():
    table = (
        '<table><tr><th class="a"> image_id</th><th>cls_similarity</th><th>made_up</th><th>as it is</th></tr>'
        "<tr><td>my_photo</td><td>yes_no</td><td>llava-next-scenes</td><td>0.5</td></tr>"
        "<tr><td>codebook, max_cosine</td><td>NaN</td><td>False</td><td>None of it</td></tr></table>"
    )
    cells = [words("# T", name="t"), code("x", name="x", outputs=[shows(html=table)])]
    text = compose("plain", [Run("plain", "small", "Small", cells)]).text
    assert '<th class="a">image</th><th>similarity to [CLS]</th><th>made up</th><th>as it is</th>' in text
    assert "<td>codebook, largest cosine</td><td>–</td><td>no</td><td>None of it</td>" in text
    assert "<td>my_photo</td><td>yes/no</td><td>LLaVA-NeXT-scenes</td><td>0.5</td>" in text


@pytest.mark.parametrize("shown", [pd.DataFrame.to_html, lambda frame: frame.style.to_html()])
def test_an_index_is_named_in_the_row_of_the_other_heads(shown):
    frame = pd.DataFrame({"C1": [1, 2], "C2": [3, 4]}, index=pd.Index(["a", "b"], name="model"))
    cells = [words("# T", name="t"), code("x", name="x", outputs=[shows(html=shown(frame))])]
    text = compose("plain", [Run("plain", "small", "Small", cells)]).text
    heads = re.findall(r"<th\b[^>]*>([^<]*)</th>", text.split("<thead>")[1].split("</thead>")[0])
    assert heads == ["model", "C1", "C2"] and text.count("<tr") == 3
    both = pd.DataFrame([[1, 2]], columns=pd.Index(["C1", "C2"], name="claim"), index=frame.index[:1])
    text = page_with(shows(html=shown(both)))
    assert "model ↓ claim →</th>" in text and text.count("<tr") == 2


@pytest.mark.parametrize("shown", [pd.DataFrame.to_html, lambda frame: frame.style.to_html()])
def test_a_table_has_no_count_of_its_rows_and_no_digits_that_nobody_reads(shown):
    frame = pd.DataFrame({"value": [0.866025, 144.0], "interval": ["0.93 [0.77, 0.94]", "-1 [-1.5, 2e-5]"]})
    text = page_with(shows(html=shown(frame)))
    heads = re.findall(r"<th\b[^>]*>([^<]*)</th>", text)
    assert heads == ["value", "interval"] and text.count("<tr") == 3
    assert ">0.866<" in text and ">144<" in text
    assert ">0.93 [0.77,\u00a00.94]<" in text and ">-1 [-1.5,\u00a02e-5]<" in text
    assert 'text_html"' in text
    frame.index = pd.Index([3, 5], name="image")  # says something
    assert re.findall(r"<th\b[^>]*>([^<]*)</th>", page_with(shows(html=shown(frame))))[0] == "image"


def test_a_long_table_scrolls_and_code_in_a_cell_is_code():
    text = page_with(shows(html=pd.DataFrame({"stage": ["`words-0`"] * 40}).to_html()))
    assert 'class="output text_html long"' in text and text.count("<td><code>words-0</code></td>") == 40


def test_printed_lines_about_records_are_in_the_appendix_where_the_page_says_it_by_itself():
    printed = prints("probing: recorded: 2026-01-02, a CPU\n\x1b[32m5 tokens\x1b[0m\n")
    for origin, says in (("Probing, recorded.", False), ("", True)):
        text = page_with(printed, origin)
        shown, log = text.split("## Appendix")
        assert "```text\n" in shown and "5 tokens\n" in shown and ("recorded: 2026" in shown) == says
        assert ("recorded: 2026" in log) != says and "\x1b" not in text


def test_what_is_to_be_folded_has_a_heading_and_runs_have_the_same_cells():
    with pytest.raises(
        ParameterError, match="cell of text to fold: got 'No heading'; accepted: one that begins with"
    ):
        compose("example", [run_on("small", "0.5", [words("No heading", "fold", name="bad")])])
    with pytest.raises(ParameterError, match="runs: got 'different cells of example'"):
        compose("example", [run_on("small", "0.5"), run_on("large", "0.7", [words("More", name="more")])])


def estimate(value, low, high, n=40):
    return {"value": value, "interval": [low, high], "n": n}


def test_answers_follow_the_numbers_and_leave_open_what_an_interval_leaves_open():
    results = {"recognised_on_objects": estimate(0.384, 0.301, 0.456)}
    for area, said in (
        (
            estimate(0.64, 0.59, 0.69),
            "tells objects from background (area under the ROC curve 0.64 [0.59, 0.69]",
        ),
        (estimate(0.36, 0.31, 0.41), "tells the wrong way round objects"),
        (estimate(0.52, 0.45, 0.59), "does not clearly tell objects"),
    ):
        text = answer_of("token_centric", results | {"area_top1_probability": area})
        assert "in 38% [30, 46] of cases" in text and said in text and "[CLS]" not in text
    assert answer_of("token_centric", {}) == NOTHING == answer_of("real_benchmarks", {})
    scored = {
        "pope_score_full": {"value": 0.9, "n": 1200},
        "pope_relative_score_retain_20": {"value": 0.96, "n": 1200},
    }
    assert answer_of("real_benchmarks", scored) == (
        "Through lmms-eval, on 1,200 answers of the task `pope`, the model keeps of its full score 96% with 20% of the "
        "tokens."
    )
    with pytest.raises(ParameterError, match="name: got 'unknown'; accepted: one of token_centric, "):
        answer_of("unknown", results)


def test_the_codebook_is_compared_with_random_tokens_on_the_same_questions():
    results = {
        "codebook_relative_score_retain_20": estimate(0.78, 0.72, 0.88),
        "random_relative_score_retain_20": estimate(0.67, 0.62, 0.76),
        "codebook_minus_random_retain_20": estimate(0.11, 0.05, 0.17),
    }
    said = answer_of("pruned_inference", results)
    assert "78% [72, 88] of the full score, more than random tokens (67% [62, 76])" in said
    results["codebook_minus_random_retain_20"] = estimate(0.02, -0.05, 0.17)
    assert "not clearly different from random" in answer_of("pruned_inference", results)
    corrected = {"codebook": estimate(0.7, 0.6, 0.8), "random": estimate(0.5, 0.4, 0.6)}
    results |= {f"{name}_above_guessing_retain_20": found for name, found in corrected.items()}
    results |= {f"unpruned_{kind}": {"value": 0.9, "n": 50} for kind in ("count", "digit")}
    said = answer_of("pruned_inference", results | {"kinds_that_count": {"value": 1, "n": 2}})
    assert (
        "70% [60, 80] of the score above guessing, not clearly different from random tokens (50% [40, 60])"
        in said
    )
    assert said.endswith("That is of 40 of 100 questions, those of the 1 of 2 kinds that count.")
