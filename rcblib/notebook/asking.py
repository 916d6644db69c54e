"""Draw the questions that a notebook asks about its images, and leave out of means what a gate does not let pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from rcblib.data.questions import default_tasks, questions_for
from rcblib.evaluate.gates import ANSWERS, part_of
from rcblib.evaluate.grid import evaluate
from rcblib.notebook.opening import objects_known
from rcblib.reading.gate_results import PASSED, read_gates_file
from rcblib.reading.gates import tasks_work
from rcblib.reading.labels import label_of
from rcblib.records import ONE_WORD_QUESTION, ParameterError, Question, Sample
from rcblib.runs.provenance import project_path
from rcblib.runs.records import read_written


def draw_questions(config: Any, model: Any, processor: Any, samples: Sequence[Sample]) -> list[Question]:
    """Draw questions of every family that images have, or of own photos ask one word.

    Parameters
    ----------
    config : dataclass
        With ``tasks``, ``n_questions`` and ``n_yes_no`` a family, ``seed``, ``batch_size`` and ``max_new_tokens``.
    model, processor
        For images without known answers: what the unpruned model says counts as right.
    samples : sequence of Sample
        What is asked about.

    Returns
    -------
    list of Question
        As many a family as asked for, or all there are; of a family without questions none, and a line says so.
    """
    if objects_known(samples):
        tasks = config.tasks or default_tasks(samples)
        return [question for task in tasks for question in _of_family(config, samples, task)]
    asked = [Question(sample.image_id, "one_word", ONE_WORD_QUESTION, "") for sample in samples]
    settings = {"batch_size": config.batch_size, "max_new_tokens": config.max_new_tokens}
    said = evaluate(model, processor, asked, samples, **settings)["prediction"]
    print(
        "These images have no known answers: scores are the agreement with the unpruned model's one-word answers."
    )
    return [replace(question, answer=answer) for question, answer in zip(asked, said, strict=True)]


def _of_family(config: Any, samples: Sequence[Sample], task: str) -> list[Question]:
    try:
        every = questions_for(samples, [task], seed=config.seed)
    except ParameterError as error:
        print(f"no questions of {task}: {error}")
        return []
    wanted = config.n_yes_no if task == "yes_no" else config.n_questions
    return every if len(every) <= wanted else questions_for(samples, [task], wanted, config.seed)


def tasks_that_count(gates: str, asked: Sequence[str], seed: int) -> list[str]:
    """Return the tasks that count in means, and say in a line which of those asked do not.

    Parameters
    ----------
    gates : str
        Table of ``python -m rcblib gates``, recorded or not: tasks that fail G1 are left out, by name. Empty for all.
    asked : sequence of str
        Tasks, in order.
    seed : int
        Of the draws by which G1 is judged.

    Returns
    -------
    list of str
        In the order given; all of them where none passes, and a line says so.
    """
    if not gates:
        return list(asked)
    table, _ = read_written(gates)
    limits, *_ = read_gates_file(project_path("data/gates.yml"))
    judged, able = tasks_work(part_of(table, ANSWERS), limits, generator=np.random.default_rng(seed))
    for task in asked:
        failed = [str(each) for each in judged if each.task == task and each.verdict != PASSED]
        if task not in able:
            why = "; ".join(failed) or f"{label_of(task)}, which was not asked"
            print(f"left out of means by gate G1: {why}")
    if not set(able) & set(asked):
        print(
            "No task passes: the means below are over all of them, and show nothing but how this is measured."
        )
    return [task for task in asked if task in able] or list(asked)


def overview(questions: Sequence[Question]) -> pd.DataFrame:
    """Lay out what is asked: one row a family, with how many questions about how many images, and the first of them."""
    asked = pd.DataFrame([vars(question) for question in questions])
    return asked.groupby("task", sort=False).agg(
        questions=("text", "size"),
        images=("image_id", "nunique"),
        example=("text", "first"),
        answer=("answer", "first"),
    )
