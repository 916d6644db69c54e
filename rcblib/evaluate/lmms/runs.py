"""Run lmms-eval with and without pruning, on its own tasks or on local ones, and turn what it reports into results."""

from __future__ import annotations

import gc
import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from rcblib.codebook.files import embedded_codebooks
from rcblib.evaluate.lmms.plugin import MODEL_NAME, ModelArguments, RcbModel
from rcblib.evaluate.lmms.tasks.utils import CAPTIONS
from rcblib.mllm.loading import model_folder
from rcblib.pruners.registry import find_method
from rcblib.records import ParameterError, Question, Sample, SequenceSample, UnsupportedModelError
from rcblib.runs.digest import code_digest, digest_of
from rcblib.runs.files import atomic_write, config_hash, file_sha256, read_json, to_plain, write_json
from rcblib.runs.paths import user_path

TASKS_FOLDER = Path(__file__).resolve().parent / "tasks"
"""Task files that come with the library, for lmms-eval's ``include_path``."""

MAIN_METRICS = {
    "mme": "mme_perception_score",
    "nocaps_val": "nocaps_CIDEr",
    "flickr30k_test": "flickr_CIDEr",
    "seedbench": "seed_image",
}
"""Metric that stands for a task where it is not the first of its task file."""

FULL = "full"
"""Name of the setting that keeps all visual tokens."""

GREEDY = "temperature=0,do_sample=False"
"""Generation settings of the paper: the most probable word, every time."""

_IMAGE_KEYS = ("image_id", "image_source", "img_id")

_LARGE = 2**28

_NAME = re.compile(r"[a-z][a-z0-9_]*")


def missing_packages() -> list[str]:
    """List what evaluation with lmms-eval needs and this environment lacks."""
    return [
        name
        for name, module in (("lmms-eval", "lmms_eval"), ("datasets", "datasets"))
        if not find_spec(module)
    ]


def write_task(
    folder: str | Path,
    name: str,
    samples: Sequence[Sample | SequenceSample],
    questions: Sequence[Question],
    max_new_tokens: int = 32,
) -> Path:
    """Write questions as a task of lmms-eval: a task file, and a Hugging Face dataset beside it.

    Parameters
    ----------
    folder : path-like
        Where both go; it is what ``include_path`` is given. Frames of videos are written there too.
    name : str
        Name of the task: small letters, digits and underscores.
    samples : sequence of Sample or SequenceSample
        Images, several images that are asked about together, or videos, all of one kind.
    questions : sequence of Question
        Each about one of the samples.
    max_new_tokens : int
        Longest answer in tokens.

    Returns
    -------
    pathlib.Path
        The task file.

    Raises
    ------
    ParameterError
        If the name cannot be used, there are no questions, one is about an unknown sample or wants a caption, or
        samples are of several kinds.
    UnsupportedModelError
        If the package ``datasets`` is not installed.

    Notes
    -----
    Documents are in the order of the questions. Scores are those of `rcblib.evaluate.grid.evaluate`.
    """
    if not _NAME.fullmatch(name):
        raise ParameterError("name", name, "small letters, digits and underscores, a letter first")
    by_id = {sample.image_id: sample for sample in samples}
    kinds = sorted({sample.kind for sample in samples})
    if not questions or len(kinds) != 1:
        raise ParameterError(
            "samples", f"{len(questions)} questions, kinds {kinds}", "questions about one kind"
        )
    strangers = [q.image_id for q in questions if q.image_id not in by_id or q.task == "caption"]
    if strangers:
        accepted = "questions about the samples that are scored one by one"
        raise ParameterError("questions", f"about {strangers[:5]}, or captions", accepted)
    if find_spec("datasets") is None:
        raise UnsupportedModelError("datasets is not installed: pip install 'rcblib[lmms]'")
    import datasets

    folder = user_path(folder, "folder").resolve()
    asked = list(dict.fromkeys(question.image_id for question in questions))
    if kinds == ["video"]:
        shown = {i: _write_frames(folder / f"{name}_frames" / str(i), by_id[i]) for i in asked}
        column, feature = "video", datasets.Value("string")
    elif kinds == ["images"]:
        shown = {i: list(by_id[i].images) for i in asked}
        column, feature = "images", datasets.Sequence(datasets.Image())
    else:
        shown = {i: by_id[i].images[0] for i in asked}
        column, feature = "image", datasets.Image()
    texts = ("task", "subset", "question", "answer")
    rows = {
        "question_id": list(range(len(questions))),
        "image_id": [question.image_id for question in questions],
        column: [shown[question.image_id] for question in questions],
        **{key: [getattr(q, "text" if key == "question" else key) for q in questions] for key in texts},
    }
    identifier = datasets.Value("string" if isinstance(asked[0], str) else "int64")
    features = datasets.Features(
        {"question_id": datasets.Value("int64"), "image_id": identifier, column: feature}
        | {key: datasets.Value("string") for key in texts}
    )
    data = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"test": data}).save_to_disk(folder / f"{name}_data")
    path = folder / f"{name}.yaml"
    atomic_write(path, _task_file(name, folder / f"{name}_data", max_new_tokens))
    return path


def _write_frames(folder: Path, sample: SequenceSample) -> str:
    """Write the frames of a video as pictures, and return their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, frame in enumerate(sample.images):
        frame.save(folder / f"{i:04d}.png")
    return str(folder)


def _task_file(name: str, data: Path, max_new_tokens: int) -> str:
    """Return the text of a task file; JSON writes what YAML reads as the same text."""
    functions = "rcblib.evaluate.lmms.tasks.utils"
    return "\n".join(
        [
            f"task: {name}",
            f"dataset_path: {json.dumps(str(data))}",
            "dataset_kwargs:",
            "  load_from_disk: true",
            "test_split: test",
            "output_type: generate_until",
            f"doc_to_visual: !function {functions}.images",
            f"doc_to_text: !function {functions}.question",
            'doc_to_target: "answer"',
            "generation_kwargs:",
            "  until: []",
            f"  max_new_tokens: {max_new_tokens}",
            "  temperature: 0",
            "  do_sample: false",
            f"process_results: !function {functions}.score",
            "metric_list:",
            "  - metric: score",
            "    aggregation: mean",
            "    higher_is_better: true",
            "metadata:",
            "  - version: 1.0",
            "",
        ]
    )


def run_tasks(
    tasks: Sequence[str],
    arguments: Mapping[str, Any],
    *,
    include_path: Sequence[str | Path] = (),
    limit: int | None = None,
    folder: str | Path | None = None,
    name: str = FULL,
    gen_kwargs: str = GREEDY,
) -> pd.DataFrame:
    """Run tasks of lmms-eval with one setting of the model, through lmms-eval's own evaluator.

    Parameters
    ----------
    tasks : sequence of str
        Names of tasks or groups.
    arguments : Mapping
        Arguments of the model, as `rcblib.evaluate.lmms.plugin.ModelArguments` lists them.
    include_path : sequence of path-like
        Folders with further task files, besides `TASKS_FOLDER`.
    limit : int, optional
        Questions a task, the first ones; all by default.
    folder : path-like, optional
        Where the table of each task is kept when it is finished, as ``<name>/<task>.json``; a later call with the same
        arguments, limit and generation settings reads it, as long as the method that they name, the files of tasks,
        local models and codebooks, the code and lmms-eval's version are the same. Until then its answers are kept one
        by one, so that a call that was cut off is taken up where it ended. What a task writes out for a judge is kept
        beside it, as ``<name>/<task>.captions.json``.
    name : str
        Name of the setting.
    gen_kwargs : str
        Generation settings, as ``key=value,...``, that take the place of a task's own. By default every answer is the
        greedy one, also where a task would draw it at random, as Mantis-Eval's file does.

    Returns
    -------
    pandas.DataFrame
        One row a question and task: ``setting``, ``task``, ``metric``, ``value`` (that of the whole task, as lmms-eval
        reports it; NaN where a task writes answers out and scores none), ``doc_id``, ``image`` (of questions about the
        same image the same, where the task says so), ``prediction``, ``score`` (of the question; NaN where the task
        scores all answers together only) and ``n_visual_tokens``, ``n_retained``.

    Raises
    ------
    ParameterError
        If a task is unknown or an argument wrong, before any work.
    UnsupportedModelError
        If lmms-eval is not installed.
    """
    if missing := missing_packages():
        raise UnsupportedModelError(f"{' and '.join(missing)} not installed: pip install 'rcblib[lmms]'")
    checked = ModelArguments.read(arguments)
    folder = None if folder is None else user_path(folder, "folder")
    include_path = [user_path(place, "include_path") for place in include_path]
    if not tasks or len(set(tasks)) < len(tasks):
        raise ParameterError("tasks", list(tasks), "names of tasks, each once")
    files = _state([TASKS_FOLDER, *include_path, *_own_files(checked)])
    code = code_digest("rcblib.evaluate.lmms.plugin", "rcblib.evaluate.lmms.tasks.utils")
    code += digest_of(find_method(checked.pruner).kind)
    wanted, kept, tables = {}, {}, {}
    for task in tasks:
        wanted[task] = to_plain(
            {
                "task": task,
                "arguments": dict(arguments),
                "pruner": checked.make_pruner().description(),
                "limit": limit,
                "gen_kwargs": gen_kwargs,
                "files": files,
                "code": code,
                "lmms_eval": version("lmms_eval"),
            }
        )
        if folder is not None:
            kept[task] = folder / name / f"{task}.json"
            content = read_json(kept[task]) if kept[task].is_file() else {}
            if content.get("wanted") == wanted[task]:
                tables[task] = pd.DataFrame(content["rows"]).astype({"score": float, "value": float})
    remaining = [task for task in tasks if task not in tables]
    if remaining:
        from lmms_eval.evaluator import simple_evaluate

        manager = _task_manager(remaining, include_path)
        answers = None
        if folder is not None:
            answers = folder / name / f"answers-{config_hash({'files': files})}"
        model = RcbModel(**{"answers_folder": answers and str(answers), **arguments})
    try:
        for task in remaining:
            report = simple_evaluate(
                model=model,
                tasks=[task],
                task_manager=manager,
                limit=limit,
                batch_size=checked.batch_size,
                bootstrap_iters=0,
                log_samples=True,
                gen_kwargs=gen_kwargs,
                verbosity="WARNING",
                process_docs_parallel=1,
            )
            counts = model.all_counts()
            if report is None:  # the first process of a parallel run has it
                continue
            tables[task] = _rows(report, counts, name)
            if folder is not None:
                samples = (
                    sample for own in report["samples"].values() for sample in own
                )  # a group has several
                captions = [sample[CAPTIONS] for sample in samples if CAPTIONS in sample]
                if captions:
                    facts = {"setting": name, "arguments": to_plain(dict(arguments))}
                    write_json(kept[task].with_suffix(".captions.json"), {**facts, "captions": captions})
                write_json(kept[task], {"wanted": wanted[task], "rows": tables[task].to_dict("records")})
        if remaining and answers is not None and model.rank == 0:
            shutil.rmtree(answers, ignore_errors=True)  # the tables have them
    finally:
        # lmms-eval's functions and their caller refer to one another: the next model must not be loaded beside this.
        model = report = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return pd.concat(
        [tables[task] for task in tasks if task in tables] or [pd.DataFrame()], ignore_index=True
    )


def _task_manager(tasks: Sequence[str], include_path: Sequence[str | Path]) -> Any:
    """Return lmms-eval's list of tasks, which has those wanted."""
    from lmms_eval.tasks import TaskManager

    folders = [str(TASKS_FOLDER), *map(str, include_path)]
    # lmms-eval reads some two thousand task files of its own; local tasks do without.
    for with_its_own in (False, True):
        manager = TaskManager(
            "WARNING", include_path=folders, include_defaults=with_its_own, model_name=MODEL_NAME
        )
        unknown = [task for task in tasks if task not in manager.all_tasks]
        if not unknown:
            return manager
    raise ParameterError(
        "tasks", unknown, "names of lmms-eval's tasks or groups, or of task files of one's own"
    )


def _own_files(arguments: ModelArguments) -> list[Path]:
    """List the folders or files of the model and the codebook, where they are on this machine."""
    folder = model_folder(arguments.pretrained)
    named = [] if folder is None else [folder]
    codebook = arguments.parameters.get("codebook")
    if codebook is not None:
        named.append(embedded_codebooks().get(codebook, user_path(codebook)))
    return [path for path in named if path.exists()]


def _state(places: Sequence[str | Path]) -> dict[str, str]:
    """Return name and content of the files in some folders; of large files size and time in place of content."""
    found = {}
    for place in map(Path, places):
        paths = [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]
        paths = [path for path in paths if path.parent.name != "__pycache__"]
        # What `datasets` writes beside the rows differs from run to run.
        for path in sorted(path for path in paths if path.name not in ("state.json", "dataset_info.json")):
            status = path.stat()
            is_large = status.st_size > _LARGE
            name = path.relative_to(place.parent).as_posix()
            found[name] = f"{status.st_size} {status.st_mtime_ns}" if is_large else file_sha256(path)
    return found


def _rows(report: Mapping[str, Any], counts: Sequence[Mapping[str, Any]], name: str) -> pd.DataFrame:
    """Lay out what lmms-eval reports, one row a question."""
    counted = {(count["task"], count["doc_id"]): count for count in counts}
    rows = []
    for task, samples in report["samples"].items():
        metric, value = _main_value(task, report)
        for sample in sorted(
            samples, key=lambda sample: sample["doc_id"]
        ):  # processes report one after the other
            count = counted.get((task, sample["doc_id"]), {})
            doc = sample.get("doc", {})
            image = next((doc[key] for key in _IMAGE_KEYS if doc.get(key) is not None), sample["doc_id"])
            rows.append(
                {
                    "setting": name,
                    "task": task,
                    "metric": metric,
                    "value": value,
                    "doc_id": sample["doc_id"],
                    "image": str(image),
                    "prediction": str(sample["filtered_resps"][0]),
                    "score": _question_score(sample.get(metric)),
                    "n_visual_tokens": count.get("n_visual_tokens"),
                    "n_retained": count.get("n_retained"),
                }
            )
    return pd.DataFrame(rows)


def _main_value(task: str, report: Mapping[str, Any]) -> tuple[str, float]:
    """Return the metric that stands for a task, and its value; NaN where it is no number, or no score."""
    listed = [entry["metric"] for entry in report["configs"][task].get("metric_list", [])]
    metric = MAIN_METRICS.get(task, listed[0] if listed else "")
    values = [value for key, value in report["results"][task].items() if key.split(",")[0] == metric]
    is_number = metric != CAPTIONS and bool(values) and isinstance(values[0], int | float | np.number)
    return metric, float(values[0]) if is_number else math.nan


def _question_score(found: Any) -> float:
    """Return the score of one question where the task gives one."""
    if isinstance(found, Mapping):
        found = found.get("score", found.get("correct"))
    return float(found) if isinstance(found, bool | int | float | np.number) else math.nan
