"""Run every registered method by its name: from the command line, on the clock, and as lmms-eval's model."""

import dataclasses
from types import SimpleNamespace

import pandas as pd
import pytest
import tiny
from pruner_examples import scorer_for
from tiny_clip import text_tower

from rcblib.__main__ import main
from rcblib.codebook.codebook import Codebook
from rcblib.data.opening import open_images
from rcblib.data.questions import questions_for
from rcblib.evaluate.lmms.plugin import ModelArguments, RcbModel
from rcblib.evaluate.lmms.runs import missing_packages
from rcblib.evaluate.timing import latency_and_memory
from rcblib.mllm import adapter_for
from rcblib.pruners import PRUNERS, read_pruner
from rcblib.runs.files import read_table

SHARE = 0.5
OWN = {"fastv": {"layer": 1}, "sparsevlm": {"layers": "1"}, "pyramiddrop": {"layers": "1"}}
FROM_TABLES = [name for name in PRUNERS if name not in ("all", "oracle", "anti_oracle")]
"""Methods that need no masks; the others are among those of the command line."""


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """Return a saved model, a codebook of its tokens, two scenes and a question about each."""
    folder = tmp_path_factory.mktemp("setting")
    model, processor = tiny.tiny_llava()
    tiny.save(folder / "model", model, processor)
    scenes = list(open_images("scenes", "test", 2))
    adapter = adapter_for(model, processor)
    tokens = adapter.encode([scenes[0].image])[0].tokens
    Codebook(
        tokens[::3].clone(), (), "llava", metadata={"clusters": [i % 4 for i in range(12)]}
    ).save_pretrained(folder / "codebook")
    scorer_for(adapter).save_pretrained(folder / "scorer")
    asked = questions_for(scenes, ["count"], 2, seed=0)
    return SimpleNamespace(folder=folder, model=model, processor=processor, scenes=scenes, questions=asked)


def settings_of(name, setting):
    """Return what a method is given by name, as text and numbers."""
    parameters = PRUNERS[name].parameters
    settings = dict(OWN.get(name, {}))
    if "codebook" in parameters:
        settings["codebook"] = str(setting.folder / "codebook")
    if "scorer" in parameters:
        settings["scorer"] = str(setting.folder / "scorer")
    if "text_tower" in parameters:
        settings["text_tower"] = text_tower().name
    if "retain_ratio" in parameters:
        settings["retain_ratio"] = SHARE
    return settings


@pytest.fixture(scope="module")
def table(setting):
    """Return what the command line writes of all methods."""
    named = []
    for name in PRUNERS:
        if name != "all":
            given = settings_of(name, setting)
            given.pop("retain_ratio", None)
            named += ["--pruner", f"{name}:" + ",".join(f"{key}={value}" for key, value in given.items())]
    options = "--images scenes --split test --n-images 2 --tasks count --n-per-task 2".split()
    options += ["--retain-ratio", str(SHARE), "--max-new-tokens", "2", *named]
    options += ["--folder", str(setting.folder / "kept"), "--table", str(setting.folder / "all.parquet")]
    assert main(["evaluate", "--model", str(setting.folder / "model"), *options]) == 0
    return read_table(setting.folder / "all.parquet")[0]


def test_the_command_line_runs_all(table):
    labels = {method.label for method in PRUNERS.values()}
    assert set(table["method"]) == labels and len(table) == 2 * len(labels)
    fed = table.groupby("method")["n_retained"].mean()
    exceptional = {
        "all": 36,
        "pooled": 9,  # three by three blocks
        "downsampled": 16,  # four by four of six by six
        "fastv": 27,  # one layer of two
        "pyramiddrop": 27,
    }
    for name, method in PRUNERS.items():
        if name in ("prumerge_plus", "sparsevlm"):
            assert 1 < fed[method.label] < 36
        else:
            assert fed[method.label] == exceptional.get(name, 18), name


def test_all_are_timed(table, setting):
    pruners = {
        PRUNERS[name].label: PRUNERS[name].make(settings_of(name, setting), family="llava")
        for name in FROM_TABLES
    }
    arguments = (setting.model, setting.processor, setting.questions[:1], setting.scenes, pruners)
    times = latency_and_memory(*arguments, n_repeats=1, n_warmup=0, max_new_tokens=2)
    assert times["method"].tolist() == list(pruners)
    expected = table[table["image_id"] == setting.questions[0].image_id].set_index("method")["n_retained"]
    for row in times.itertuples():
        assert row.n_retained == expected[row.method], row.method


def test_one_line_makes_the_same_method_as_values_do(setting):
    for name in FROM_TABLES:
        given = settings_of(name, setting)
        method, read = read_pruner(f"{name}:" + ",".join(f"{key}={value}" for key, value in given.items()))
        made = method.make(read)
        assert made == PRUNERS[name].make(given) and dataclasses.is_dataclass(made)
    assert read_pruner("pyramiddrop:layers=8+16+24,retain_ratio=0.1")[0] is PRUNERS["pyramiddrop"]
    made = PRUNERS["pyramiddrop"].make({"layers": "8+16+24", "retain_ratio": "0.125"})
    assert made.schedule(32) == {8: 0.5, 16: 0.25, 24: 0.125}


@pytest.mark.skipif(bool(missing_packages()), reason="lmms-eval is not installed")
@pytest.mark.parametrize("name", FROM_TABLES)
def test_lmms_eval_s_model_answers_as_the_command_line(name, table, setting):
    arguments = {
        "pretrained": str(setting.folder / "model"),
        "device": "cpu",
        "dtype": "float32",
        "pruner": name,
    }
    arguments |= settings_of(name, setting)
    assert ModelArguments.read(arguments).pruner == name
    model = RcbModel(**arguments)
    scenes = sorted(setting.scenes, key=lambda own: own.image_id)
    numbers = {scene.image_id: i for i, scene in enumerate(scenes)}
    model.task_dict["scenes"] = {"test": [{"picture": scene.image} for scene in scenes]}
    asked = table[table["method"] == PRUNERS[name].label]

    def request(row):
        place = (numbers[row.image_id], "scenes", "test")
        shown = (row.question, {"max_new_tokens": 2}, lambda document: [document["picture"]])
        return SimpleNamespace(args=shown + place, metadata={})

    requests = [request(row) for row in asked.itertuples()]
    assert model.generate_until(requests) == asked["prediction"].tolist()
    counts = pd.DataFrame(model.counts).set_index("doc_id").loc[[numbers[i] for i in asked["image_id"]]]
    assert counts["n_retained"].tolist() == asked["n_retained"].tolist()
    assert (counts["n_visual_tokens"] == 36).all()
