"""Execute the page about adding a pruner as it stands."""

import re
from pathlib import Path

import pytest
import tiny
import torch

from rcblib.data.questions import questions_for
from rcblib.evaluate.lmms.runs import missing_packages, write_task
from rcblib.mllm import adapter_for, load_model
from rcblib.pruners import PRUNERS
from rcblib.records import VisualView
from worlds.datasets import SceneDataset

MODEL = "llava-scenes"
PAGE = (Path(__file__).resolve().parents[1] / "book" / "adding_a_pruner.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture(scope="module")
def names():
    """Return what the page's code calls by name; its method is registered until the end of the module."""
    samples = list(SceneDataset("test", 2))
    model, processor = load_model(MODEL, "cpu", "float32")
    prompt = adapter_for(model, processor).prompt("What does this image show ?")
    inputs = processor(text=[prompt], images=[samples[0].image], return_tensors="pt")
    questions = questions_for(samples, ["yes_no"], 2, seed=1)
    found = {"__name__": "page", "name": MODEL, "model": model, "processor": processor, "inputs": inputs}
    found |= {"samples": samples, "questions": questions}
    exec(compile(BLOCKS[0], "adding_a_pruner.md", "exec"), found)
    yield found
    del PRUNERS["segment_means"]


def test_the_stated_count_of_lines_is_that_of_the_class():
    (method,) = re.findall(r"@dataclass.*?(?=\n\n\nregister)", BLOCKS[0], flags=re.DOTALL)
    lines = [line for line in method.splitlines() if line.strip()]
    stated = int(re.search(r"in (\d+) lines", PAGE)[1])
    assert len(lines) == stated <= 15


def test_segments_become_their_means(names):
    """Five tokens in two segments: three and two."""
    tokens = torch.tensor([[1.0, 0], [2, 0], [6, 3], [4, 4], [0, 2]])
    reduced = names["SegmentMeans"](retain_ratio=0.4).reduce((VisualView(tokens, (1, 5)),))
    assert reduced.positions.tolist() == [0, 3]
    assert reduced.rows.tolist() == [[3, 1], [2, 3]]


def test_the_page_generates_evaluates_and_times_it(names, capsys):
    exec(compile(BLOCKS[1], "adding_a_pruner.md", "exec"), names)
    n_all = int((names["inputs"]["input_ids"] == names["model"].config.image_token_id).sum())
    assert capsys.readouterr().out == f"[{n_all}] [{round(n_all * 0.2)}]\n"
    exec(compile(BLOCKS[2], "adding_a_pruner.md", "exec"), names)
    fed = names["answers"].groupby(["method", "retain_ratio"])["n_retained"].unique()
    assert fed["means of segments"].map(list).to_dict() == {
        0.1: [round(n_all * 0.1)],
        0.4: [round(n_all * 0.4)],
    }
    assert names["times"]["n_retained"].tolist() == [n_all, round(n_all * 0.1), round(n_all * 0.4)]


@pytest.mark.skipif(bool(missing_packages()), reason="lmms-eval is not installed")
def test_the_page_runs_it_in_lmms_eval(names, tmp_path):
    samples, questions = names["samples"], names["questions"]
    by_image = {question.image_id: question for question in questions}
    write_task(tmp_path, "scenes_page", samples, list(by_image.values()))
    names |= {"tasks": ["scenes_page"], "folders": [tmp_path]}
    exec(compile(BLOCKS[3], "adding_a_pruner.md", "exec"), names)
    assert (names["table"]["n_retained"] == (names["table"]["n_visual_tokens"] * 0.2).round()).all()
    assert len(names["table"]) == len(by_image)


def test_the_page_s_method_inside_the_llm_drops_rows_there():
    model, processor = tiny.tiny_llava()
    found = {"__name__": "page", **vars(__import__("rcblib.pruners", fromlist=["x"])), "torch": torch}
    exec(compile("from dataclasses import dataclass\n" + BLOCKS[4], "adding_a_pruner.md", "exec"), found)
    prompt = adapter_for(model, processor).prompt("What does this image show ?")
    inputs = processor(text=[prompt], images=tiny.random_images(1), return_tensors="pt")
    for share, expected in ((0.25, (36 + 9) / 2), (1.0, 36)):
        with found["LastTokenAttention"](share)(model) as pruned:
            output = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        assert pruned.n_retained == [expected]
    assert torch.equal(output, model.generate(**inputs, max_new_tokens=4, do_sample=False))
