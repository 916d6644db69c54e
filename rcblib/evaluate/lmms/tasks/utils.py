"""Functions that the task files of lmms-eval name: what is shown, what is asked, what comes of an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from rcblib.data.choices import read_options
from rcblib.evaluate.metrics import score_predictions
from rcblib.runs.files import write_json

CAPTIONS = "captions"
"""The metric of a task that writes captions out and scores nothing."""


def images(doc: Mapping[str, Any]) -> list[Any]:
    """Return what an answer is about: images, or the path of a video.

    Parameters
    ----------
    doc : Mapping
        A row with ``image`` (one image), ``images`` (several) or ``video`` (the path of a file, or of a folder of
        frames).

    Returns
    -------
    list
        PIL images, or one path; ``None`` in the place of an image that the row lacks, which is not answered.
    """
    if doc.get("video"):
        return [doc["video"]]
    several = doc.get("images")
    return [doc.get("image")] if several is None else list(several)


def question(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Mapping[str, str] | None = None) -> str:
    """Return the question, between the texts that the task file puts before and behind it."""
    texts = lmms_eval_specific_kwargs or {}
    return f"{texts.get('pre_prompt', '')}{doc['question']}{texts.get('post_prompt', '')}"


def score(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Score an answer by the rule of its task.

    Parameters
    ----------
    doc : Mapping
        A row with ``task``, ``question`` and ``answer``, as `rcblib.evaluate.lmms.runs.write_task` writes it.
    results : sequence of str
        The answer, alone.

    Returns
    -------
    dict
        ``score`` in [0, 1]; higher is better. It is that of `rcblib.evaluate.metrics.score_predictions`, as in
        `rcblib.evaluate.grid.evaluate`.
    """
    row = {"task": doc["task"], "prediction": results[0], "answer": doc["answer"]}
    return {
        "score": float(score_predictions(pd.DataFrame([row]), options=[read_options(doc["question"])])[0])
    }


def caption(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Keep a caption beside what was asked, for a judge; nothing is scored.

    Returns
    -------
    dict
        ``captions``: the row's ``question_id`` or ``image_id`` (``None`` without), ``question``, ``caption``, and as
        ``reference`` the row's ``answer``.
    """
    identity = next(
        (doc[name] for name in ("question_id", "image_id", "id") if doc.get(name) is not None), None
    )
    kept = {"id": identity, "question": doc.get("question"), "caption": results[0]}
    return {CAPTIONS: {**kept, "reference": doc.get("answer")}}


def write_captions(results: Sequence[Mapping[str, Any]], args: Any = None) -> int:
    """Write captions as JSON, for a judge of one's choice.

    Parameters
    ----------
    results : sequence of Mapping
        What `caption` returned for each image.
    args : argparse.Namespace, optional
        lmms-eval's command line. The file goes to ``submissions`` below its output path (the working directory
        without one), under a name that holds date and time, so that settings run after each other stay apart.
        Without a command line nothing is written here: `rcblib.evaluate.lmms.runs.run_tasks` keeps captions itself.

    Returns
    -------
    int
        How many captions there are. lmms-eval shows it in the place of a score; it is none.
    """
    if args is not None:
        folder = Path(getattr(args, "output_path", None) or ".") / "submissions"
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        facts = {name: str(getattr(args, name, "")) for name in ("model", "model_args", "tasks", "limit")}
        write_json(folder / f"dc100_en_captions_{now}.json", {**facts, "captions": list(results)})
    return len(results)
