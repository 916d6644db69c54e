"""Measure which tokens of an image are needed, by masks and by interventions, beside every signal that claims to know.

The truth is of three kinds. *Coverage*: a token lies on an object. *Swapping*: the right answer becomes less likely
when another image's background takes the token's place. *Removal*: the token lies on an object without which, when the
picture is drawn again, the right answer becomes less likely.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from rcblib.codebook.codebook import Codebook
from rcblib.codebook.scorer import Scorer
from rcblib.data.base import AnySample
from rcblib.data.pixels import PIXEL_SIGNALS, pixel_signals
from rcblib.data.samples import identified, load_pictures
from rcblib.evaluate.interventions import Answer, Donors, coverage_of, removal_falls, swap_falls
from rcblib.evaluate.ranks import view_ranks
from rcblib.evaluate.token_scores import (
    REPEATED,
    codebook_rules,
    method_scores,
    pruner_at,
    rankable,
    token_measures,
)
from rcblib.evaluate.tokens import check_masked
from rcblib.mllm import Adapter, adapter_for
from rcblib.mllm.fingerprint import model_fingerprint, model_name, processor_settings
from rcblib.probe.config import ProbeConfig
from rcblib.probe.inputs import places_of
from rcblib.probe.pictures import view_pictures
from rcblib.probe.run import probe_input
from rcblib.pruners.registry import Method
from rcblib.records import EncodedImage, ImageId, ParameterError, Question
from rcblib.runs.digest import code_digest
from rcblib.runs.files import config_hash, to_plain
from rcblib.runs.parameters import AtLeast, Count, checked
from rcblib.runs.records import is_record, read_record, sample_hash, table_facts
from rcblib.runs.results import cached_unit
from rcblib.runs.shards import Shard

TOKENS, SWAPPED, REMOVED = "tokens", "swapped", "removed"
"""Parts of the table: a row a token, a row a question and token, a row a question and object."""

KEYS = ("part", "task", "question", "view", "position", "object")
"""Columns that tell a row from the others of its image."""

UNFIT_TASKS = ("caption", "backdrop")
"""Families that are not asked: captions have many right answers, and what is behind objects is no redundancy."""


@checked
class TruthConfig:
    """Say what is asked, and which tokens are looked at.

    Attributes
    ----------
    n_questions : int
        Questions about each image, of different families as far as there are; those whose answer is no are left out, as
        no object is needed for it.
    positions : str or tuple of int
        Tokens of each view, as `ProbeConfig` takes them.
    n_side : int
        Positions along each side for ``"grid"``.
    rerender : bool
        Whether pictures are drawn again without objects too.
    ranks : bool
        Whether signals and scores are given as ranks inside their view (`rcblib.evaluate.ranks`), without the methods
        that repeat another column, and ``own_fall`` of swaps only where the model's own word is another than the right
        one: all that comparisons inside views read, in a third of the room.
    seed : int
        Draws the questions.
    sharing : {"auto", "always", "never"}
        Of what inputs begin with, as in `ProbeConfig`.
    batch_size : int
        Inputs per forward pass at most; changes results by rounding only.
    """

    n_questions: Count = 4
    positions: str | tuple[int, ...] = "all"
    n_side: Count = 8
    rerender: bool = False
    ranks: bool = False
    seed: AtLeast[0] = 0
    sharing: str = "auto"
    batch_size: Count = 64


def measure_truth(
    model: Any,
    processor: Any,
    questions: Sequence[Question],
    samples: Sequence[AnySample],
    config: TruthConfig | None = None,
    codebook: Codebook | None = None,
    scorer: Scorer | None = None,
    *,
    folder: str | os.PathLike,
    shard: Shard | None = None,
    skipped: Mapping[ImageId, str] | None = None,
    progress: bool = True,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Measure what each token is needed for, and every signal of it, image by image.

    Parameters
    ----------
    model, processor : transformers.PreTrainedModel, transformers.ProcessorMixin
        As `load_model` returns them.
    questions : sequence of Question
        All that may be asked about the samples; of each image a few are.
    samples : sequence of Sample
        Single images with masks, two at least. Shards are given all of them: tokens are swapped with those of others.
    config : TruthConfig, optional
        What is asked, and of which tokens.
    codebook : Codebook, optional
        Of the model; without it its rules are no columns.
    scorer : Scorer, optional
        Of the model; without it the pruner that is distilled from probing is no column.
    folder : path-like
        Where each finished image is kept; a run that was stopped goes on there.
    shard : Shard, optional
        Which of the images; by default all.
    skipped : Mapping, optional
        Id or file name to the reason of each image that was left out.
    progress : bool
        Whether to print a line an image.

    Returns
    -------
    table : pandas.DataFrame
        ``part`` tells three kinds of rows apart, and columns of one are empty in the others. ``"tokens"``: one a token,
        with the signals of `rcblib.signals.SIGNALS`, of `PIXEL_SIGNALS` and of `token_measures`, and ``score_<method>``
        of every method that ranks tokens; ``background`` (the kind that the sample knows),
        ``object_share`` (of the image, that the object beneath covers); and the truth: ``object_coverage``;
        ``swap_fall`` and ``swap_change``, the means over questions of a swap's fall and of its size, whichever way it
        goes; and, where pictures were drawn again, ``removal_fall``: the mean over questions of what each object's
        removal takes, summed over the shares of the patch that the objects cover. ``"swapped"``: `swap_falls`, one a
        question and token. ``"removed"``: `removal_falls`, one a question and object. Falls are in nats; higher =
        needed more.
    facts : dict
        As `rcblib.runs.records.table_facts` gives them, with ``left_out``: methods that rank no token here, and why.

    Raises
    ------
    ParameterError
        Before any work: if samples are no single images with masks, or fewer than two, no question fits, or pictures
        are to be drawn again that cannot be.

    Warns
    -----
    UserWarning
        Of a model in half precision, whose rounding hides what single tokens change.
    """
    run = _Run(model, processor, questions, samples, config, codebook, scorer)
    code, shard = code_digest(__name__), shard or Shard()
    chosen = shard.of_images(run.samples, skipped or {})
    frames, units = [], []
    for number, image_id in enumerate(chosen, 1):
        own = {"sample": run.identities[image_id], "questions": list(map(to_plain, run.asked[image_id]))}
        table, made = cached_unit(
            folder, "truth", run.description | own, code, lambda i=image_id: run.of_image(i)
        )
        frames.append(table)
        units.append(made)
        if progress:
            print(f"truth of image {number} of {len(chosen)}, {made['seconds']:.0f} s", flush=True)
    table = pd.concat(frames, ignore_index=True)
    keys = [name for name in KEYS if name in table]
    hashes = {image_id: sample_hash(run.identities[image_id]) for image_id in chosen}
    facts = table_facts(run.description | {"code": code}, keys, hashes, units)
    return table, facts | shard.share(run.samples, skipped or {}) | {"left_out": run.left_out}


def shared_truth(
    model: Any,
    processor: Any,
    questions: Sequence[Question],
    samples: Sequence[AnySample],
    config: TruthConfig | None = None,
    codebook: Codebook | None = None,
    scorer: Scorer | None = None,
    *,
    folder: str | os.PathLike,
) -> pd.DataFrame:
    """Return the table of `measure_truth`, measured here or read from a recorded table in the folder's place.

    Raises
    ------
    ParameterError
        As `measure_truth`; also if a record is damaged, or of other settings, images or another model.
    """
    if not is_record(folder):
        own = model, processor, questions, samples, config, codebook, scorer
        table, _ = measure_truth(*own, folder=folder)
        return table
    run, record = _Run(model, processor, questions, samples, config, codebook, scorer), read_record(folder)
    record.check(run.description, {i: sample_hash(identity) for i, identity in run.identities.items()})
    print(record.origin(code_digest(__name__)), flush=True)
    return record.table


def chosen_questions(
    questions: Sequence[Question], n_questions: int, seed: int = 0
) -> dict[ImageId, list[Question]]:
    """Choose a few questions about each image, of different families as far as there are.

    Returns
    -------
    dict
        Image id to questions; images without any that fits are left out. What is asked about an image does not depend
        on the others.
    """
    fit: dict[ImageId, dict[tuple[str, str], Question]] = {}
    for question in questions:
        if question.task not in UNFIT_TASKS and question.answer.lower() != "no":
            fit.setdefault(question.image_id, {}).setdefault((question.task, question.text), question)
    chosen = {}
    for image_id, own in fit.items():
        digits = [ord(character) for character in str(image_id)]
        rng = np.random.default_rng([seed, *digits])
        drawn = [list(own.values())[i] for i in rng.permutation(len(own))]
        turn = pd.DataFrame({"task": [question.task for question in drawn]}).groupby("task").cumcount()
        chosen[image_id] = [drawn[i] for i in np.argsort(turn, kind="stable")[:n_questions]]
    return chosen


def part_of(table: pd.DataFrame, part: str) -> pd.DataFrame:
    """Return the rows of one part of a table of `measure_truth`, without the columns that are empty in it."""
    rows = table[table["part"] == part].drop(columns="part").dropna(axis="columns", how="all")
    whole = {name: int for name in ("view", "token", "position", "row", "column", "object") if name in rows}
    return rows.astype(whole).reset_index(drop=True)  # missing values of other parts have made them floats


def _check_samples(samples: Sequence[AnySample], config: TruthConfig) -> None:
    check_masked(samples)
    for sample in samples:
        if config.rerender and sample.without is None:
            given = f"True, with image {sample.image_id} of {sample.source}, which cannot be drawn again"
            raise ParameterError("rerender", given, "False, or images of a world that draws them")


class _Run:
    """Hold what all images of a run share, and measure them one by one."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        questions: Sequence[Question],
        samples: Sequence[AnySample],
        config: TruthConfig | None,
        codebook: Codebook | None,
        scorer: Scorer | None,
    ):
        self.config = config = config or TruthConfig()
        self.adapter = adapter = adapter_for(model, processor)
        _check_samples(samples, config)
        self.asked = chosen_questions(questions, config.n_questions, config.seed)
        self.samples = {each.image_id: each for each in samples if each.image_id in self.asked}
        if not self.samples:
            accepted = (
                f"questions of other families than {', '.join(UNFIT_TASKS)}, with another answer than no"
            )
            raise ParameterError("questions", f"{len(questions)}, none that fits", accepted)
        if model.dtype.itemsize < 4:
            warnings.warn(
                f"dtype: {model.dtype} rounds by more than what a single token changes; float32 does not",
                stacklevel=3,
            )
        given = {"distilled": {"scorer": scorer}} if scorer is not None else {}
        methods, left_out = rankable(adapter, given)
        repeated = {name: why for name, why in REPEATED.items() if name in methods} if config.ranks else {}
        left_out |= repeated
        self.methods: dict[str, tuple[Method, Mapping[str, object]]] = {
            name: (method, given.get(name, {})) for name, method in methods.items() if name not in repeated
        }
        self.distilled = None
        if scorer is not None:
            scorer.check_fits(adapter.family, adapter.d_model)
            self.distilled = pruner_at(methods["distilled"], 0.5, given["distilled"], adapter)
        if codebook is not None:
            codebook.check_fits(adapter.family, adapter.d_model)
            self.methods |= codebook_rules(adapter, codebook)
        self.left_out = {
            name: why for name, why in left_out.items() if name not in {"codebook", *self.methods}
        }
        names = ("positions", "n_side", "sharing", "batch_size")
        self.probing = ProbeConfig(**{name: getattr(config, name) for name in names})
        self.donors = Donors(adapter, self.samples)
        self.identities, _ = identified(list(self.samples.values()), limit=adapter.size_limit)
        described = {name: value for name, value in to_plain(config).items() if name != "batch_size"}
        if not config.ranks:
            del described["ranks"]
        prototypes = codebook and codebook.prototypes_hash()
        self.description = {
            "model": model_name(adapter.model),
            "model_fingerprint": model_fingerprint(adapter.model),
            **processor_settings(processor),
            "config": described,
            "codebook": prototypes,
            "scorer": self.distilled and self.distilled.description()["scorer"],
            "images": config_hash({"samples": list(self.identities.values())}),
        }

    def of_image(self, image_id: ImageId) -> pd.DataFrame:
        """Return all rows of one image."""
        sample, questions, adapter = self.samples[image_id], self.asked[image_id], self.adapter
        pictures = load_pictures(sample)
        tokens, _ = probe_input(adapter, pictures, sample.kind, sample, self.probing)
        needs = {need for method, _ in self.methods.values() for need in method.needs} & adapter.offers
        image = adapter.encode_input(pictures, sample.kind, needs=needs)[0]
        columns = self._scores(image, questions, self.donors.ids.index(image_id))
        measures = token_measures(adapter, image, self.distilled)
        columns |= {name: values.numpy() for name, values in measures.items()}
        shown = view_pictures(adapter.processor, pictures[0], image.views)
        of_views = [pixel_signals(*each) for each in zip(shown, (v.grid for v in image.views), strict=True)]
        columns |= {name: np.concatenate([own[name] for own in of_views]) for name in PIXEL_SIGNALS}
        read_at = tokens["token"].to_numpy()
        tokens = tokens.assign(**{name: values[read_at] for name, values in columns.items()})
        if self.config.ranks:
            tokens = view_ranks(tokens)
        swapped = self._swapped(sample, image, tokens, questions)
        changes = swapped.assign(swap_fall=swapped["fall"], swap_change=swapped["fall"].abs())
        means = changes.groupby(["view", "position"])[["swap_fall", "swap_change"]].mean().reset_index()
        tokens = tokens.merge(means, on=["view", "position"], how="left")
        parts = [swapped.assign(part=SWAPPED)]
        if self.config.rerender:
            removed = pd.DataFrame(list(removal_falls(adapter, sample, questions, self._answer)))
            falls = removed.groupby("object")["fall"].mean()
            beneath = _object_shares(adapter, sample, image)
            tokens["removal_fall"] = sum(falls[k] * shares for k, shares in beneath.items())[read_at]
            parts.append(removed.assign(part=REMOVED))
        area: dict[str, float] = {}
        for item in sample.objects:
            area[item.category] = area.get(item.category, 0) + item.area / (sample.width * sample.height)
        tokens["object_share"] = tokens["object_category"].map(area)
        tokens["background"] = sample.background or sample.backdrop or "unknown"
        table = pd.concat([tokens.assign(part=TOKENS), *parts], ignore_index=True)
        return table.assign(image_id=image_id)

    def _answer(self, question: Question, rows: Any) -> Answer:
        return Answer(self.adapter, question, rows, self.config.batch_size, self.config.sharing)

    def _swapped(
        self, sample: AnySample, image: EncodedImage, tokens: pd.DataFrame, questions: Sequence[Question]
    ) -> pd.DataFrame:
        """Return the rows of all questions: each sees other donors."""
        positions = {int(view): rows["position"].tolist() for view, rows in tokens.groupby("view")}
        rows, places, parts = self.adapter.assemble(image), places_of([image]), []
        for turn, question in enumerate(questions):
            donors = self.donors.rows(sample.image_id, places, turn)
            answer = self._answer(question, rows)
            falls = swap_falls(self.adapter, image, answer, donors, positions)
            intact = {"log_probability": float(answer.intact[0])}
            if self.config.ranks and answer.is_own:
                falls["own_fall"] = np.nan
            parts.append(falls.assign(task=question.task, question=question.text, **intact))
        return pd.concat(parts, ignore_index=True)

    def _scores(
        self, image: EncodedImage, questions: Sequence[Question], index: int
    ) -> dict[str, np.ndarray]:
        """Return every method's score of the tokens of all views."""
        prompts = [self.adapter.prompt(question.text) for question in questions]
        return {
            f"score_{name}": method_scores(self.adapter, image, prompts, method, settings, index).numpy()
            for name, (method, settings) in self.methods.items()
        }


def _object_shares(adapter: Adapter, sample: AnySample, image: EncodedImage) -> dict[int, np.ndarray]:
    """Return the share of each patch that each object covers, by its number, view after view."""
    return {
        number: np.concatenate(
            [coverage_of(adapter, replace(sample, objects=(item,)), view).numpy() for view in image.views]
        )
        for number, item in enumerate(sample.objects)
    }
