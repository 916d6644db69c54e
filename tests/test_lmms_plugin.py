"""Check the model for lmms-eval against `evaluate`, through lmms-eval's own evaluator, on tasks that lie on disk."""

import json
import socket
import tomllib
import weakref
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tiny
import warm
from families import FAMILIES

from rcblib.codebook.codebook import Codebook
from rcblib.data.questions import questions_for
from rcblib.evaluate.grid import evaluate
from rcblib.evaluate.lmms import plugin as lmms_plugin
from rcblib.evaluate.lmms import runs as lmms_runs
from rcblib.evaluate.lmms.answers import AnswerFile
from rcblib.evaluate.lmms.plugin import ModelArguments, RcbModel
from rcblib.evaluate.lmms.requests import ended, generation_settings, write_prompt
from rcblib.evaluate.lmms.runs import MAIN_METRICS, TASKS_FOLDER, missing_packages, run_tasks, write_task
from rcblib.evaluate.lmms.tasks import utils
from rcblib.mllm import adapter_for, load_model
from rcblib.pruners import CodebookPruner, RandomPruner, registry
from rcblib.pruners.registry import Method
from rcblib.reading.benchmarks import score_results
from rcblib.records import ImageError, ParameterError, Question, SequenceSample, UnsupportedModelError
from rcblib.runs.files import write_json
from worlds.datasets import SceneDataset

REPOSITORY = Path(__file__).resolve().parents[1]
MODEL = "llava-scenes"
with_lmms_eval = pytest.mark.skipif(
    bool(missing_packages()), reason=f"not installed: {', '.join(missing_packages())}"
)


# Without lmms-eval


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "pretrained: got None"),
        (
            {"pretrained": MODEL, "retain_ration": 0.2},
            r"retain_ration: got 0.2; .*did you mean retain_ratio\?",
        ),
        ({"pretrained": MODEL, "pruner": "best"}, "pruner: got 'best'; accepted: one of 'all', 'codebook'"),
        ({"pretrained": MODEL, "retain_ratio": 0.2}, "retain_ratio: got 0.2; accepted: none with the pruner"),
        ({"pretrained": MODEL, "pruner": "codebook"}, "codebook: got None; accepted: a codebook"),
        ({"pretrained": MODEL, "pruner": "random"}, "retain_ratio: got None; accepted: a share"),
        (
            {"pretrained": MODEL, "pruner": "cls_most", "retain_ratio": 0.2, "codebook": MODEL},
            "codebook: got 'llava-scenes'; accepted: none with the pruner 'cls_most'",
        ),
        ({"pretrained": MODEL, "batch_size": "auto"}, "batch_size: got 'auto'; accepted: an integer"),
        ({"pretrained": MODEL, "layout": "loose"}, "layout: got 'loose'"),
        ({"pretrained": MODEL, "seed": -1}, "seed: got -1"),
        ({"pretrained": MODEL, "pruner": "__import__('os')"}, "pruner: got"),
    ],
)
def test_a_wrong_model_argument_is_one_line(given, message):
    with pytest.raises(ParameterError, match=f"^{message}") as caught:
        ModelArguments.read(given)
    assert "\n" not in str(caught.value)


def test_arguments_are_read_as_lmms_eval_writes_them():
    read = ModelArguments.read(
        {
            "pretrained": MODEL,
            "batch_size": "4",
            "codebook": "None",
            "device_map": None,
            "retain_ratio": "None",
        }
    )
    assert (read.batch_size, read.parameters) == (4, {})


@pytest.mark.parametrize(
    ("given", "kind", "settings"),
    [
        ({"pruner": "random", "retain_ratio": 0.5, "seed": 3}, "RandomPruner", {"seed": 3}),
        ({"pruner": "cls_least", "retain_ratio": 1}, "ClsSimilarityPruner", {"keep": "least"}),
        (
            {"pruner": "codebook", "codebook": MODEL, "max_similarity": 0.3, "scope": "image"},
            "CodebookPruner",
            {"scope": "image", "rule": "max_cosine"},
        ),
    ],
)
def test_every_pruner_is_made(given, kind, settings):
    pruner = ModelArguments.read({"pretrained": MODEL, **given}).make_pruner()
    assert type(pruner).__name__ == kind
    assert {name: getattr(pruner, name) for name in settings} == settings


def test_a_codebook_takes_one_budget():
    both = {"pruner": "codebook", "codebook": MODEL, "max_similarity": 0.3, "retain_ratio": 0.2}
    with pytest.raises(ParameterError):
        ModelArguments.read({"pretrained": MODEL, **both}).make_pruner()


def test_a_method_whose_parameter_is_a_model_argument_is_refused(monkeypatch):
    @dataclass(frozen=True)
    class Frames(RandomPruner):
        n_frames: int = 2

    monkeypatch.setitem(lmms_plugin.PRUNERS, "frames", Method("frames", Frames, "frames"))
    given = {"pretrained": MODEL, "pruner": "frames", "retain_ratio": 0.5, "n_frames": 4}
    with pytest.raises(
        ParameterError, match="pruner: got 'frames'; accepted: a method without .* 'n_frames'"
    ):
        ModelArguments.read(given)


def test_without_lmms_eval_a_model_says_what_to_install(monkeypatch):
    monkeypatch.setattr(lmms_plugin, "lmms", None)
    with pytest.raises(
        UnsupportedModelError, match=r"^lmms-eval is not installed: pip install 'rcblib\[lmms\]'$"
    ):
        RcbModel(pretrained=MODEL)


def test_generation_settings_are_greedy_unless_a_task_asks_for_more():
    settings, until = generation_settings(
        {"temperature": 0.0, "top_p": 1.0, "until": "\n\n", "max_new_tokens": 9}
    )
    assert settings == {
        "max_new_tokens": 9, "num_beams": 1, "do_sample": False, "temperature": None, "top_p": None, "top_k": None,
    }  # fmt: skip
    assert until == ["\n\n"]
    sampled, _ = generation_settings({"temperature": 0.2, "do_sample": True})
    assert (sampled["do_sample"], sampled["temperature"]) == (True, 0.2)
    assert generation_settings({"temperature": 0.2, "do_sample": False})[0]["do_sample"] is False
    with pytest.warns(UserWarning, match="image_aspect_ratio"):
        generation_settings({"image_aspect_ratio": "original"})
    with pytest.raises(ParameterError, match="^until: "):
        generation_settings({"until": [1]})


def test_an_answer_ends_before_the_first_of_the_texts_that_end_it():
    assert ended("\n\nyes\n\nno STOP", ["STOP", "\n\n"]) == "yes"
    assert ended("yes", []) == "yes"


def test_images_stand_where_the_text_marks_their_places():
    adapter = adapter_for(*tiny.tiny_llava())
    assert write_prompt(adapter, "Is it red ?", 2, 0) == adapter.prompt("Is it red ?", 2)
    assert "Is <image> or <image> red ?" in write_prompt(adapter, "Is <image> or <image> red ?", 2, 0)
    with pytest.raises(
        ParameterError, match="^context: got '1 places marked <image>'; accepted: none, or one"
    ):
        write_prompt(adapter, "Is <image> red ?", 2, 0)


class Around:
    """Stand in for the adapter of a family whose template writes more than a placeholder for an image."""

    family = "around"
    processor = SimpleNamespace(image_token="<pad>")

    def prompt(self, question, n_images=1, n_videos=0):
        return f"<|user|>{'<|begin|><pad><|end|>' * n_images}{question}<|answer|>"


def test_what_a_template_writes_around_a_placeholder_goes_with_it():
    image = "<|begin|><pad><|end|>"
    assert write_prompt(Around(), "Is it red ?", 2, 0) == f"<|user|>{image}{image}Is it red ?<|answer|>"
    assert write_prompt(Around(), "<image> or <image> ?", 2, 0) == f"<|user|>{image} or {image} ?<|answer|>"


def test_numbers_of_images_decide_random_choices(tmp_path):
    model, processor = tiny.tiny_llava()
    pictures = tiny.random_images(2)
    prompts = [adapter_for(model, processor).prompt("What is on it ?")] * 2
    inputs = processor(text=prompts, images=pictures, return_tensors="pt", padding=True)
    settings = {"max_new_tokens": 1, "do_sample": False}
    pruner = RandomPruner(0.25)
    with pruner(model):
        model.generate(**inputs, **settings)
    first, second = pruner.kept
    with pruner(model, image_indices=[1, 0]):
        model.generate(**inputs, **settings)
    assert pruner.kept[0].equal(second) and pruner.kept[1].equal(first)
    with pytest.raises(ParameterError, match="^image_indices: got '1 numbers and one more image'"):
        with pruner(model, image_indices=[1]):
            model.generate(**inputs, **settings)
    assert not hasattr(model.generate, "pruner")


def test_captions_are_written_and_not_scored(tmp_path):
    doc = {"question_id": "7", "question": "Describe it.", "answer": "A cat."}
    rows = [utils.caption(doc, ["A dog."])["captions"]]

    class Arguments:
        output_path = tmp_path
        model_args = "pretrained=this"

    assert utils.write_captions(rows, Arguments) == utils.write_captions(rows, Arguments) == 1
    first, second = (json.loads(path.read_text("utf-8")) for path in (tmp_path / "submissions").iterdir())
    assert first == second and first["model_args"] == "pretrained=this"
    assert first["captions"] == [
        {"id": "7", "question": "Describe it.", "caption": "A dog.", "reference": "A cat."}
    ]


def rows(scores, value, **columns):
    n = len(scores)
    return pd.DataFrame(
        {"setting": "x", "task": "t", "metric": "m", "value": value, "doc_id": range(n), "image": range(n)}
        | {"prediction": "", "score": scores, "n_visual_tokens": 10, "n_retained": 10}
        | columns
    )


def test_results_have_intervals_where_questions_make_up_the_score():
    full, less = rows([1.0, 1, 0, 1], 75.0), rows([1.0, 0, 0, 1], 50.0, n_retained=2)
    results = score_results(full, {"retain_20": less}, generator=np.random.default_rng(0))
    assert results["t_score_full"]["value"] == 75 and results["t_score_full"]["n"] == 4
    assert results["t_relative_score_retain_20"]["value"] == pytest.approx(2 / 3)
    assert results["t_relative_score_retain_20"]["interval"] is not None
    assert results["t_retained_retain_20"]["value"] == pytest.approx(0.2)
    whole = score_results(
        rows([np.nan] * 2, 0.8), {"retain_20": rows([np.nan] * 2, 0.6)}, generator=np.random.default_rng(0)
    )
    assert whole["t_score_full"] == {"value": 0.8, "n": 2, "metric": "m"}
    assert whole["t_relative_score_retain_20"]["value"] == pytest.approx(0.75)
    assert "interval" not in whole["t_relative_score_retain_20"]
    with pytest.raises(ParameterError, match="^retain_20: got '3 questions of t'"):
        score_results(full, {"retain_20": rows([1.0] * 3, 1.0)}, generator=np.random.default_rng(0))


# With lmms-eval


@pytest.fixture(scope="module")
def scenes():
    return list(SceneDataset("test", 6))


@pytest.fixture(scope="module")
def questions(scenes):
    """Return one question an image, so that its number is that of its document."""
    asked = questions_for(scenes, ["yes_no", "one_word"], seed=1)
    by_image = {}
    for question in asked:
        if question.task == ("yes_no", "one_word")[question.image_id % 2]:
            by_image.setdefault(question.image_id, question)
    return [by_image[i] for i in sorted(by_image)]


@pytest.fixture(scope="module")
def local(tmp_path_factory, scenes, questions):
    folder = tmp_path_factory.mktemp("tasks")
    write_task(folder, "scenes_local", scenes, questions)
    return folder


def arguments(**more):
    return {"pretrained": MODEL, "device": "cpu", "dtype": "float32", "batch_size": 4, **more}


PRUNERS = {
    "codebook": {"pruner": "codebook", "codebook": MODEL, "retain_ratio": 0.2},
    "random": {"pruner": "random", "retain_ratio": 0.1, "seed": 5},
    "everything": {"pruner": "codebook", "codebook": MODEL, "retain_ratio": 1.0},
}


@with_lmms_eval
def test_answers_and_scores_are_those_of_evaluate(local, scenes, questions, tmp_path):
    model, processor = load_model(MODEL, "cpu", "float32")
    codebook = Codebook.from_pretrained(MODEL)
    pruners = {
        "none": None,
        "codebook": CodebookPruner(codebook, retain_ratio=0.2),
        "random": RandomPruner(0.1, seed=5),
        "everything": None,
    }
    tables = {}
    for name, pruner in pruners.items():
        found = run_tasks(["scenes_local"], arguments(**PRUNERS.get(name, {})), include_path=[local])
        expected = evaluate(model, processor, questions, scenes, pruner)
        assert found["prediction"].tolist() == expected["prediction"].tolist(), name
        assert found["score"].tolist() == expected["score"].tolist(), name
        assert found["value"].iloc[0] == pytest.approx(expected["score"].mean())
        assert found["n_visual_tokens"].tolist() == [144] * len(questions)
        assert found["n_retained"].tolist() == expected["n_retained"].tolist(), name
        tables[name] = found
    assert tables["codebook"]["n_retained"].tolist() == [29] * len(questions)
    assert tables["everything"]["prediction"].tolist() == tables["none"]["prediction"].tolist()
    results = score_results(
        tables["none"], {"retain_20": tables["codebook"]}, generator=np.random.default_rng(0)
    )
    assert results["scenes_local_score_full"]["interval"] is not None


@with_lmms_eval
def test_the_entry_point_names_a_model_that_lmms_eval_runs(local, questions, tmp_path):
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.models import MODEL_REGISTRY_V2
    from lmms_eval.tasks import TaskManager

    declared = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ((name, target),) = declared["entry-points"]["lmms_eval.models"].items()
    module, function = target.split(":")
    MODEL_REGISTRY_V2.register_manifest(getattr(import_module(module), function)(), overwrite=True)
    counts = tmp_path / "counts.json"
    settings = arguments(**PRUNERS["codebook"], counts_file=str(counts))
    settings.pop("batch_size")
    report = simple_evaluate(
        model=name,
        model_args=",".join(f"{key}={value}" for key, value in settings.items()),
        batch_size="2",
        tasks=["scenes_local"],
        task_manager=TaskManager(include_path=str(local), include_defaults=False),
        limit=3,
        bootstrap_iters=0,
    )
    assert report["n-samples"]["scenes_local"]["effective"] == 3
    written = json.loads(counts.read_text(encoding="utf-8"))
    assert written["model_arguments"]["codebook"] == MODEL
    assert written["answers"] == [
        {"task": "scenes_local", "split": "test", "doc_id": i, "n_visual_tokens": 144, "n_retained": 29}
        for i in range(3)
    ]


def sequences(kind):
    pictures = [tuple(tiny.random_images(3, seed=i)) for i in range(2)]
    return [
        SequenceSample(i, lambda own=own: own, kind, tuple(picture.size for picture in own))
        for i, own in enumerate(pictures)
    ]


@with_lmms_eval
@pytest.mark.parametrize(
    ("family", "kind"),
    [("llava_onevision", "images"), ("llava_onevision", "video"), ("llava with DINOv2", "images")],
)
def test_several_images_and_videos_are_answered_as_evaluate_does(family, kind, tmp_path):
    folder = tiny.save(tmp_path / "model", *FAMILIES[family].build())
    samples = sequences(kind)
    asked = [
        Question(sample.image_id, "multi_image", "What does this image show ?", "a") for sample in samples
    ]
    write_task(tmp_path, "sequences", samples, asked, max_new_tokens=4)
    model, processor = load_model(folder, "cpu", "float32")
    for given, pruner in (({}, None), ({"pruner": "random", "retain_ratio": 0.3}, RandomPruner(0.3))):
        found = run_tasks(
            ["sequences"],
            {"pretrained": str(folder), "device": "cpu", "batch_size": 2, **given},
            include_path=[tmp_path],
        )
        expected = evaluate(model, processor, asked, samples, pruner, max_new_tokens=4)
        assert found["n_visual_tokens"].tolist() == expected["n_visual_tokens"].tolist()
        assert found["n_retained"].tolist() == expected["n_retained"].tolist()
        if pruner is None:  # of several images the numbers, and so the random tokens, are others
            assert found["prediction"].tolist() == expected["prediction"].tolist()


@with_lmms_eval
def test_detailed_captions_are_written_for_a_judge(scenes, tmp_path, monkeypatch):
    import datasets

    pictures = [scene.image for scene in scenes[:2]]
    data = datasets.Dataset.from_dict(
        {
            "question_id": ["0", "1"],
            "image": pictures,
            "question": ["what does this image show ?"] * 2,
            "answer": [scene.captions[0] for scene in scenes[:2]],
        },
        features=datasets.Features(
            {"question_id": datasets.Value("string"), "image": datasets.Image()}
            | dict.fromkeys(("question", "answer"), datasets.Value("string"))
        ),
    )
    datasets.DatasetDict({"test": data}).save_to_disk(tmp_path / "data")
    lines = [
        f"include: {json.dumps(str(TASKS_FOLDER / 'dc100_en_captions.yaml'))}",
        "task: dc100_stand_in",
        f"dataset_path: {json.dumps(str(tmp_path / 'data'))}",
        "dataset_kwargs:",
        "  load_from_disk: true",
    ]
    (tmp_path / "stand_in.yaml").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RCB_ROOT", str(REPOSITORY))
    task, folder, tables = "dc100_stand_in", tmp_path / "results", {}
    for name, more in (("full", {}), ("retain_1", {"pruner": "random", "retain_ratio": 0.01})):
        tables[name] = run_tasks([task], arguments(**more), include_path=[tmp_path], folder=folder, name=name)
        written = json.loads((folder / name / f"{task}.captions.json").read_text(encoding="utf-8"))
        assert written["setting"] == name and written["arguments"]["pretrained"] == MODEL
        assert [row["caption"] for row in written["captions"]] == tables[name]["prediction"].tolist()
        assert all(row["caption"] for row in written["captions"])
        assert [row["reference"] for row in written["captions"]] == [
            scene.captions[0] for scene in scenes[:2]
        ]
    assert not (tmp_path / "submissions").exists()
    assert tables["full"]["value"].isna().all()
    # How many captions there are is no score: nothing is said but the share of tokens.
    results = score_results(
        tables["full"], {"retain_1": tables["retain_1"]}, generator=np.random.default_rng(0)
    )
    assert list(results) == [f"{task}_retained_retain_1"]
    assert results[f"{task}_retained_retain_1"]["value"] == 1 / 144


@with_lmms_eval
def test_one_model_is_gone_before_the_next_is_loaded(local, monkeypatch):
    loaded = []

    def load_alone(*given, **more):
        assert not [reference for reference in loaded if reference() is not None]
        model, processor = load_model(*given, **more)
        loaded.append(weakref.ref(model))
        return model, processor

    monkeypatch.setattr(lmms_plugin, "load_model", load_alone)
    for more in ({}, PRUNERS["codebook"], {}):
        run_tasks(["scenes_local"], arguments(**more), include_path=[local], limit=2)
    assert len(loaded) == 3 and loaded[-1]() is None


@with_lmms_eval
def test_finished_settings_are_read_and_wrong_input_is_one_line(local, tmp_path, monkeypatch):
    import lmms_eval.tasks

    wanted = {"include_path": [local], "limit": 2, "folder": tmp_path}
    first = run_tasks(["scenes_local"], arguments(), **wanted)
    kept = tmp_path / "full" / "scenes_local.json"
    content = json.loads(kept.read_text(encoding="utf-8"))
    content["rows"][0]["prediction"] = "from the file"
    write_json(kept, content)
    again = run_tasks(["scenes_local"], arguments(), **wanted)
    assert again["prediction"].tolist() == ["from the file", *first["prediction"].tolist()[1:]]
    with monkeypatch.context() as edited:
        edited.setattr(lmms_runs, "code_digest", lambda *modules: "of other code")
        again = run_tasks(["scenes_local"], arguments(), **wanted)
        assert again["prediction"].tolist() == first["prediction"].tolist()
    write_json(kept, content)
    again = run_tasks(["scenes_local"], arguments(batch_size=1), **wanted)
    assert again["prediction"].tolist() == first["prediction"].tolist()
    # As if lmms-eval had no tasks of its own, which take long to list.
    manager = lmms_eval.tasks.TaskManager
    monkeypatch.setattr(
        lmms_eval.tasks,
        "TaskManager",
        lambda *given, **more: manager(*given, **{**more, "include_defaults": False}),
    )
    with pytest.raises(ParameterError, match=r"^tasks: got \['no_such_task'\]"):
        run_tasks(["no_such_task"], arguments())
    with pytest.raises(ParameterError, match=r"^tasks: got \['scenes_local', 'scenes_local'\]; accepted: "):
        run_tasks(["scenes_local"] * 2, arguments())
    with pytest.raises(UnsupportedModelError, match="^model: got 'no such model'"):
        run_tasks(["scenes_local"], {"pretrained": "no such model"}, include_path=[local])


@with_lmms_eval
def test_tables_of_other_settings_of_a_name_or_other_versions_are_not_read(local, tmp_path, monkeypatch):
    monkeypatch.setitem(registry.PRUNERS, "own_share", None)  # so that it goes when the test ends
    monkeypatch.setattr(lmms_runs, "TASKS_FOLDER", tmp_path / "tasks")
    (tmp_path / "tasks").mkdir()
    asked, answer = [], RcbModel.generate_until
    monkeypatch.setattr(RcbModel, "generate_until", lambda *given: asked.append(1) or answer(*given))

    def n_asked(seed=1):
        del registry.PRUNERS["own_share"]
        registry.register("own_share", RandomPruner, seed=seed)
        before = len(asked)
        given = arguments(pruner="own_share", retain_ratio=0.5)
        run_tasks(["scenes_local"], given, include_path=[local], limit=2, folder=tmp_path)
        return len(asked) - before

    assert (n_asked(), n_asked()) == (1, 0)
    assert (n_asked(seed=2), n_asked(seed=2)) == (1, 0)
    (tmp_path / "tasks" / "__pycache__").mkdir()
    (tmp_path / "tasks" / "__pycache__" / "utils.pyc").write_bytes(b"as Python leaves it")
    assert n_asked(seed=2) == 0
    (tmp_path / "tasks" / "utils.py").write_text("SCALE = 2")
    assert n_asked(seed=2) == 1
    monkeypatch.setattr(lmms_runs, "version", lambda name: "99")
    assert (n_asked(seed=2), n_asked(seed=2)) == (1, 0)


@with_lmms_eval
def test_kept_answers_are_those_of_one_processor(local, tmp_path, monkeypatch):
    def made_with(mean):
        def load_dimmed(*given, **more):
            model, processor = load_model(*given, **more)
            processor.image_processor.image_mean = [mean] * 3
            return model, processor

        monkeypatch.setattr(lmms_plugin, "load_model", load_dimmed)
        return RcbModel(**arguments(), answers_folder=str(tmp_path))._kept._made_with

    assert made_with(0.1) == made_with(0.1) != made_with(0.2)


@with_lmms_eval
def test_tasks_that_were_finished_before_a_failure_are_kept(local, scenes, questions, tmp_path, monkeypatch):
    write_task(tmp_path / "tasks", "scenes_other", scenes[:2], questions[:2])
    both, places = ["scenes_local", "scenes_other"], [local, tmp_path / "tasks"]
    expected = run_tasks(both, arguments(), include_path=places)
    assert expected["task"].tolist() == [both[0]] * len(questions) + [both[1]] * 2
    answer, asked = RcbModel.generate_until, []

    def fail_at_the_second(self, requests):
        asked.append(len(requests))
        if len(asked) == 2:
            raise RuntimeError("lost")
        return answer(self, requests)

    monkeypatch.setattr(RcbModel, "generate_until", fail_at_the_second)
    with pytest.raises(RuntimeError, match="lost"):
        run_tasks(both, arguments(), include_path=places, folder=tmp_path)
    found = run_tasks(both, arguments(), include_path=places, folder=tmp_path)
    assert asked == [len(questions), 2, 2]
    pd.testing.assert_frame_equal(found, expected)
    group = "group: scenes_group\ntask:\n  - scenes_local\n  - scenes_other\n"
    (tmp_path / "tasks" / "scenes_group.yaml").write_text(group, encoding="utf-8")
    together = run_tasks(["scenes_group"], arguments(), include_path=places, folder=tmp_path)
    pd.testing.assert_frame_equal(together, expected)
    again = run_tasks(["scenes_group"], arguments(), include_path=places, folder=tmp_path)
    pd.testing.assert_frame_equal(again, expected)


@with_lmms_eval
def test_a_template_that_begins_the_text_itself_is_not_begun_twice(local, monkeypatch):
    firsts = []

    def load_with_such_a_template(*given, **more):
        model, processor = load_model(*given, **more)
        processor.chat_template = "<s>" + processor.chat_template
        generate = model.generate

        def watched(input_ids, **arguments):
            firsts.append((input_ids == model.config.text_config.bos_token_id).sum(-1).tolist())
            return generate(input_ids=input_ids, **arguments)

        model.generate = watched
        return model, processor

    plain = run_tasks(["scenes_local"], arguments(), include_path=[local], limit=2)
    monkeypatch.setattr(lmms_plugin, "load_model", load_with_such_a_template)
    found = run_tasks(["scenes_local"], arguments(), include_path=[local], limit=2)
    assert sum(firsts, []) == [1, 1]
    pd.testing.assert_frame_equal(found, plain)


@with_lmms_eval
def test_a_run_that_is_cut_off_asks_only_what_is_left(local, questions, tmp_path, monkeypatch):
    settings = arguments(**PRUNERS["codebook"], batch_size=2)
    expected = run_tasks(["scenes_local"], settings, include_path=[local])
    answer, asked = RcbModel._answer, []

    def cut_off_at_the_third_batch(self, adapter, batch):
        asked.append(len(batch))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return answer(self, adapter, batch)

    monkeypatch.setattr(RcbModel, "_answer", cut_off_at_the_third_batch)
    with pytest.raises(KeyboardInterrupt):
        run_tasks(["scenes_local"], settings, include_path=[local], folder=tmp_path)
    (kept,) = (tmp_path / "full").glob("answers-*/answers.0.jsonl")
    lines = kept.read_text(encoding="utf-8")
    # As if the process had been killed while it wrote: the fourth answer is there in part.
    kept.write_text(lines[:-9], encoding="utf-8")
    found = run_tasks(["scenes_local"], settings, include_path=[local], folder=tmp_path)
    assert len(questions) == 5 and asked == [2, 2, 1, 2]
    pd.testing.assert_frame_equal(found, expected)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["scenes_local.json"]


def test_kept_answers_are_those_of_the_same_request_and_settings(tmp_path):
    def request(context="Is it ?", settings=None, doc_id=0):
        return SimpleNamespace(args=(context, settings or {"until": []}, None, doc_id, "task", "test"))

    files = [AnswerFile(tmp_path, {"pruner": "none"}, number) for number in range(2)]
    assert files[0].read() == {}
    count = {"doc_id": np.int64(0), "n_retained": 3}
    for i, file in enumerate(files):
        file.append([{"key": file.key(request(doc_id=i)), "answer": f"Zwölf\n{i}", "count": count}])
    expected = {files[0].key(request(doc_id=i)): {"answer": f"Zwölf\n{i}", "count": count} for i in range(2)}
    assert files[0].read() == files[1].read() == expected
    other = AnswerFile(tmp_path, {"pruner": "random"})
    assert other.key(request()) not in other.read()
    for changed in (request("Is she ?"), request(settings={"until": ["."]}), request(doc_id=2)):
        assert files[0].key(changed) not in expected


@with_lmms_eval
def test_answers_are_greedy_where_a_task_would_draw_them(local, tmp_path):
    text = (local / "scenes_local.yaml").read_text(encoding="utf-8")
    assert "temperature: 0\n  do_sample: false" in text
    drawn = text.replace("temperature: 0\n  do_sample: false", "temperature: 50\n  do_sample: true")
    (tmp_path / "drawn.yaml").write_text(
        drawn.replace("task: scenes_local", "task: scenes_drawn"), encoding="utf-8"
    )
    greedy = run_tasks(["scenes_local"], arguments(), include_path=[local])
    for kwargs, is_greedy in (({}, True), ({"gen_kwargs": ""}, False)):
        found = run_tasks(["scenes_drawn"], arguments(), include_path=[tmp_path], **kwargs)
        assert (found["prediction"].tolist() == greedy["prediction"].tolist()) == is_greedy


@with_lmms_eval
def test_a_model_in_parts_answers_as_a_whole_one(local, tmp_path, monkeypatch):
    accelerate = pytest.importorskip("accelerate")
    whole = run_tasks(["scenes_local"], arguments(), include_path=[local])

    def load_in_parts(*given, **more):
        model, processor = load_model(*given, **more)
        places = {"model.vision_tower": "disk", "model.multi_modal_projector": "cpu"}
        places |= {"model.language_model": "cpu", "lm_head": "cpu"}
        accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=tmp_path, force_hooks=True)
        assert model.device.type == "meta"
        return model, processor

    monkeypatch.setattr(lmms_plugin, "load_model", load_in_parts)
    parts = run_tasks(["scenes_local"], arguments(), include_path=[local])
    pd.testing.assert_frame_equal(parts, whole)


def in_two_processes(script):
    """Run a script in two processes that know of each other as torchrun lets them, on the CPU; return what they print.

    Each is a copy of one that has imported torch already, which torchrun's would not be.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true", **meeting}
    files = [script.with_suffix(f".{rank}.txt") for rank in range(2)]
    processes = [
        warm.start(
            warm.run_script, script, file, folder=REPOSITORY, RANK=str(rank), LOCAL_RANK=str(rank), **group
        )
        for rank, file in enumerate(files)
    ]
    for process in processes:
        process.join(540)
        process.kill()
    printed = "".join(file.read_text(encoding="utf-8") for file in files)
    assert [process.exitcode for process in processes] == [0, 0], printed
    return printed.splitlines()


@with_lmms_eval
def test_several_processes_share_the_questions_and_give_the_answers_of_one(local, tmp_path):
    settings = arguments(**PRUNERS["codebook"], counts_file=str(tmp_path / "counts.json"))
    script = tmp_path / "run.py"
    script.write_text(
        "from rcblib.evaluate.lmms.runs import run_tasks\n"
        f"table = run_tasks(['scenes_local'], {settings}, include_path=[{str(local)!r}], folder={str(tmp_path)!r})\n"
        "print('rows', len(table), flush=True)\n",
        encoding="utf-8",
    )
    printed = in_two_processes(script)
    assert sorted(line for line in printed if line.startswith("rows")) == ["rows 0", "rows 5"]
    rows = json.loads((tmp_path / "full" / "scenes_local.json").read_text(encoding="utf-8"))["rows"]
    one = run_tasks(["scenes_local"], arguments(**PRUNERS["codebook"]), include_path=[local])
    for column in ("doc_id", "prediction", "score", "n_visual_tokens", "n_retained"):
        assert [row[column] for row in rows] == one[column].tolist()
    files = [tmp_path / f"counts.{number}.json" for number in range(2)]
    counts = [json.loads(path.read_text(encoding="utf-8"))["answers"] for path in files]
    # None twice, though 5 is odd and lmms-eval asks every process as often.
    assert [[count["doc_id"] for count in part] for part in counts] == [[0, 2, 4], [1, 3]]


@with_lmms_eval
def test_a_process_whose_answers_are_all_cached_does_not_keep_the_other_waiting(local, tmp_path):
    script = tmp_path / "run.py"
    script.write_text(
        "from lmms_eval.evaluator import simple_evaluate\n"
        "from lmms_eval.tasks import TaskManager\n"
        "from rcblib.evaluate.lmms.plugin import RcbModel\n"
        f"model = RcbModel(**{arguments()})\n"
        "for limit in (1, 2):\n"
        "    report = simple_evaluate(\n"
        "        model=model, tasks=['scenes_local'], limit=limit, bootstrap_iters=0, batch_size=2,\n"
        f"        task_manager=TaskManager(include_path={str(local)!r}, include_defaults=False),\n"
        f"        use_cache={str(tmp_path / 'cache')!r},\n"
        "    )\n"
        "    asked = [count['doc_id'] for count in model.counts]\n"
        "    print('asked', limit, model.rank, asked, flush=True)\n",
        encoding="utf-8",
    )
    printed = sorted(line for line in in_two_processes(script) if line.startswith("asked"))
    assert printed == ["asked 1 0 [0]", "asked 1 1 []", "asked 2 0 [0]", "asked 2 1 [1]"]


@with_lmms_eval
def test_a_task_is_written_from_questions_that_can_be_scored(scenes, tmp_path):
    question = Question(scenes[0].image_id, "yes_no", "Is there a cat in the image ?", "no", "popular")
    with pytest.raises(ParameterError, match="^name: "):
        write_task(tmp_path, "../task", scenes, [question])
    with pytest.raises(ParameterError, match="^samples: "):
        write_task(tmp_path, "task", scenes, [])
    with pytest.raises(ParameterError, match="^questions: "):
        write_task(tmp_path, "task", scenes, [Question(-1, "yes_no", "Is it ?", "no")])


@with_lmms_eval
def test_what_cannot_be_answered_ends_in_one_line(local):
    from lmms_eval.api.instance import Instance

    model = RcbModel(**arguments())
    with pytest.raises(ParameterError, match="^output_type: got 'loglikelihood or multiple_choice'"):
        model.loglikelihood([])
    with pytest.raises(ParameterError, match="^output_type: got 'generate_until_multi_round'"):
        model.generate_until_multi_round([])
    model.task_dict = {"task": {"test": [{"image": None, "question": "Is it ?"}]}}
    request = Instance(
        "generate_until",
        ("Is it ?", {"max_new_tokens": 1}, utils.images, 0, "task", "test"),
        0,
        {"task": "task", "doc_id": 0, "repeats": 1},
    )
    with pytest.raises(ImageError, match="^task 'task', document 0: visual: got None"):
        model.generate_until([request])
    assert not model.counts


@with_lmms_eval
def test_main_metrics_are_metrics_of_tasks_that_lmms_eval_has():
    import lmms_eval.tasks
    from lmms_eval.utils import load_yaml_config

    folder = Path(lmms_eval.tasks.__file__).parent
    found = {}
    for name in ("mme", "nocaps", "flickr30k", "seedbench"):
        for path in (folder / name).glob("*.yaml"):
            config = load_yaml_config(str(path), mode="simple")
            if isinstance(config.get("task"), str):
                found[config["task"]] = {entry["metric"] for entry in config.get("metric_list", [])}
    for task, metric in MAIN_METRICS.items():
        assert metric in found[task], task
