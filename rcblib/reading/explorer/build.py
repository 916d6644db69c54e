"""Put an exhibit together from the tables of probing and of the explorer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rcblib.data.base import AnySample
from rcblib.evaluate.explored import ALL, ANSWERS, KEPT, N_WORDS, NEIGHBOURS, REMOVED, TOKENS
from rcblib.probe.results import ProbeResults
from rcblib.reading.explorer.packing import NOTHING, pack_choices, pack_integers, pack_numbers
from rcblib.reading.explorer.schema import NOT_RECORDED, Asked, Exhibit, Layer, Near, Numbers, View
from rcblib.records import ImageId, ParameterError, VisualView
from rcblib.runs.records import Record
from rcblib.signals import SIGNALS

GROUPS = {
    "scenes": "drawn scene",
    "large-scenes": "large drawn scene",
    "photographs": "photograph",
    "photos/plain": "plain photograph",
    "photos": "photo",
}
"""Source of samples to what readers call one."""

GROWING = frozenset({"nats", "share"})
"""Units whose small values are many: written in steps that grow."""

PROBED = (
    "entropy",
    "region_divergence",
    "global_divergence",
    "cls_similarity",
    "cls_attention",
    "object_coverage",
)
"""Signals of a probe table that are shown where they are there."""

REDUNDANCY = {
    "redundancy_max_cosine": Layer(
        name="redundancy_max_cosine",
        label="redundancy, closest prototype",
        more="more redundant",
        unit="cosine",
    ),
    "redundancy_double_softmax": Layer(
        name="redundancy_double_softmax", label="redundancy, double softmax", more="more redundant"
    ),
    "redundancy_single_softmax": Layer(
        name="redundancy_single_softmax", label="redundancy, single softmax", more="more redundant"
    ),
}


@dataclass(frozen=True)
class Source:
    """Hold what was measured of some pictures with one model, and how they are called.

    Attributes
    ----------
    table, facts
        As `rcblib.evaluate.explored.explore` returns them.
    probed : ProbeResults
        Of the same model and, among others, the shown images.
    samples : Mapping
        Image id to sample.
    adapter : Adapter
        Of the model.
    title : str
        What readers call the model.
    codebook : str
        Its name.
    images : str
        Name of the dataset, where samples of two are called the same.
    """

    table: pd.DataFrame
    facts: Mapping[str, Any]
    probed: ProbeResults
    samples: Mapping[ImageId, AnySample]
    adapter: Any
    title: str = ""
    codebook: str = ""
    images: str = ""

    def __post_init__(self):
        here, there = (
            own["model_fingerprint"] for own in (self.facts["description"], self.probed.description)
        )
        if here != there:
            raise ParameterError("probed", f"a run of the model {there}", f"one of the same model, {here}")
        if strangers := [i for i in self.shown if i not in set(self.probed.table["image_id"])]:
            raise ParameterError(
                "probed", f"no rows of images {strangers[:5]}", "a run of all images that are shown"
            )

        keys = [self.key(image_id) for image_id in self.shown]
        if len(set(keys)) < len(keys):
            raise ParameterError("shown", sorted(keys), "names that differ in letters or digits")

    @property
    def shown(self) -> list[ImageId]:
        """Return the images of the table that were measured in full."""
        return sorted(self.table.loc[self.table["part"] == TOKENS, "image_id"].unique().tolist())

    @property
    def model(self) -> str:
        """Return the model's name, without folders."""
        return str(self.facts["description"]["model"]).rstrip("/").rpartition("/")[2]

    @property
    def group(self) -> str:
        """Return the kind of pictures in words."""
        source = self.images if self.images in GROUPS else self.samples[self.shown[0]].source
        return GROUPS.get(source) or GROUPS.get(source.partition("/")[0], "picture")

    @property
    def origin(self) -> list[str]:
        """Say when, on what and by which code the numbers were made, a line each for tokens and answers."""
        return [
            f"{what}: {Record(what, facts, Path()).origin(facts['description']['code'])}".replace(
                " (that of today)", ""
            )
            for what, facts in (
                (f"scores of tokens, {self.group}", self.probed.facts),
                (f"words, kept tokens and answers, {self.group}", self.facts),
                *((f"more methods, {self.group}", facts) for facts in self.facts.get("more", [])),
            )
        ]

    @property
    def budgets(self) -> list[float]:
        """Return the shares of tokens that were kept, ascending, and at last all of them."""
        return sorted({1.0, *self.table["retain_ratio"].dropna().tolist()})

    def signals(self) -> list[Layer]:
        """Return what layers there are."""
        told = [
            Layer(name=name, label=SIGNALS[name].label, more=SIGNALS[name].higher, unit=SIGNALS[name].unit)
            for name in PROBED
            if name in self.probed.table and self.probed.table[name].notna().any()
        ]
        return told + [own for name, own in REDUNDANCY.items() if name in self.table]

    def key(self, image_id: ImageId) -> str:
        """Return the key of a picture, from letters, digits and hyphens."""
        text = f"{self.group}-{image_id}".lower()
        return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in text)


def with_more(
    table: pd.DataFrame, facts: Mapping[str, Any], more: pd.DataFrame, more_facts: Mapping[str, Any]
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Add methods that were asked about the same images later, as `explore` with ``more`` does, or in another way.

    Of what both tables hold, the first one's rows stay.

    Raises
    ------
    ParameterError
        If the model is another, or images are missing in either.
    """
    for name in ("model_fingerprint", "shown"):
        ours, theirs = facts["description"][name], more_facts["description"][name]
        if ours != theirs:
            raise ParameterError("recorded", f"{name} {theirs}", f"that of the first table, {ours}")
    asked, known = (
        pd.MultiIndex.from_frame(own[["part", "method", "how"]].fillna("")) for own in (more, table)
    )
    new = more[more["part"].isin([ANSWERS, KEPT]) & (more["method"] != ALL) & ~asked.isin(known)]
    told = {
        "methods": facts["methods"] | more_facts["methods"],
        "unfit": {**more_facts.get("unfit", {}), **facts.get("unfit", {})},
        "more": [*facts.get("more", []), more_facts],
    }
    return pd.concat([table, new], ignore_index=True), {**facts, **told}


def shown_views(views: Sequence[VisualView]) -> list[View]:
    """Name the grids of a picture: the whole, tiles by where they lie, frames by number."""
    boxes = [view.region if view.kind == "tile" else None for view in views]
    names = [view.kind if box is None else _where(box) for view, box in zip(views, boxes, strict=True)]
    count = Counter(names)
    told: list[View] = []
    for number, (view, box, name) in enumerate(zip(views, boxes, names, strict=True)):
        label = "whole picture" if name == "image" else name
        if count[name] > 1:
            label = f"{name.replace('image', 'picture')} {names[:number].count(name) + 1}"
        rows, columns = view.grid
        told.append(View(kind=view.kind, rows=rows, columns=columns, label=label, box=box))
    return told


def _where(box: tuple[float, float, float, float]) -> str:
    """Say where a tile lies in its picture, or that it holds all of it, as the only tile does."""
    left, top, right, bottom = box
    if min(right - left, bottom - top) > 0.9:
        return "tile of the whole picture"
    parts = [
        low if (start + end) / 2 < 0.4 else high if (start + end) / 2 > 0.6 else ""
        for start, end, low, high in ((top, bottom, "upper", "lower"), (left, right, "left", "right"))
    ]
    return " ".join([*(filter(None, parts) if any(parts) else ["middle"]), "tile"])


def exhibit_of(source: Source, image_id: ImageId, views: Sequence[VisualView]) -> Exhibit:
    """Return the exhibit of an image.

    Parameters
    ----------
    source : Source
        What was measured.
    image_id : int or str
        One of those shown.
    views : sequence of VisualView
        All views of it, for their grids.
    """
    table = source.table[source.table["image_id"] == image_id]
    parts = dict(iter(table.groupby("part")))
    grids = shown_views(views)
    starts = np.cumsum([0, *(view.n_tokens for view in views)])
    n_tokens = int(starts[-1])

    def laid_out(rows: pd.DataFrame, name: str) -> list[Any]:
        found: list[Any] = [None] * n_tokens
        at = starts[rows["view"].to_numpy(dtype=int)] + rows["position"].to_numpy(dtype=int)
        for place, value in zip(at.tolist(), rows[name].tolist(), strict=True):
            found[place] = None if pd.isna(value) else value
        return found

    def numbers(rows: pd.DataFrame, name: str, unit: str) -> Numbers:
        power = 2 if unit in GROWING else 1
        values = [np.nan if value is None else value for value in laid_out(rows, name)]
        low, high, codes = pack_numbers(values, power)
        return Numbers(low=low, high=high, power=power, codes=codes)

    probed = source.probed.table[source.probed.table["image_id"] == image_id]
    words_of = parts[TOKENS]
    words, word_ids = _numbered([laid_out(words_of, f"word_{k + 1}") for k in range(N_WORDS)])
    shares = [[p or np.nan for p in laid_out(words_of, f"probability_{k + 1}")] for k in range(N_WORDS)]
    low, high, codes = pack_numbers(np.array(shares).T.flatten(), 1)
    objects, object_ids = _numbered([laid_out(probed, "object_category")])
    signals = {
        own.name: numbers(words_of if own.name in REDUNDANCY else probed, own.name, own.unit)
        for own in source.signals()
    }
    prototypes: list[int] = []
    prototype_ids, near, near_images = "", [], []
    if "prototype" in words_of:
        nearest = [None if p is None else int(p) for p in laid_out(words_of, "prototype")]
        prototypes = sorted({p for p in nearest if p is not None})
        prototype_ids = pack_integers([None if p is None else prototypes.index(p) for p in nearest])
        near, near_images = _near(source, parts.get(NEIGHBOURS), prototypes)
    asked, answers = _answers(parts[ANSWERS], source.budgets)
    return Exhibit(
        model=source.model,
        image=source.key(image_id),
        views=grids,
        probed="".join("0" if value is None else "1" for value in laid_out(probed, "position")),
        words=words,
        word_ids=word_ids,
        word_probabilities=Numbers(low=low, high=high, codes=codes),
        signals=signals,
        objects=objects,
        object_ids=object_ids,
        prototypes=prototypes,
        prototype_ids=prototype_ids,
        near=near,
        near_images=near_images,
        questions=asked,
        answers=answers,
        kept=dict(_kept(parts.get(KEPT), source.budgets, [own.text for own in asked], n_tokens)),
    )


def _numbered(columns: Sequence[Sequence[str | None]]) -> tuple[list[str], str]:
    """Return the distinct texts, and the number of each, row by row."""
    flat = [text for row in zip(*columns, strict=True) for text in row]
    texts = list(dict.fromkeys(text for text in flat if text is not None))
    if len(texts) > NOTHING:
        raise ParameterError(
            "views", f"{len(texts)} different words", f"at most {NOTHING}: fewer views or positions"
        )
    number = {text: i for i, text in enumerate(texts)}
    return texts, pack_integers([number.get(text) for text in flat])


def _near(
    source: Source, rows: pd.DataFrame | None, prototypes: Sequence[int]
) -> tuple[list[list[Near]], list[str]]:
    """Return the tokens of other pictures that are near to each prototype, and the keys of these pictures."""
    if rows is None:
        return [[] for _ in prototypes], []
    number: dict[str, int] = {}
    near: dict[int, list[Near]] = {prototype: [] for prototype in prototypes}
    for row in rows.sort_values("place", kind="stable").itertuples():
        at = number.setdefault(source.key(row.other_image), len(number))
        token = at, int(row.other_view), int(row.other_position), round(float(row.similarity), 4)
        near[int(row.prototype)].append(token)
    return list(near.values()), list(number)


def _answers(
    rows: pd.DataFrame, budgets: Sequence[float]
) -> tuple[list[Asked], dict[str, dict[str, list[list[int]]]]]:
    """Return the questions with all texts that were answered, and which each method answered at each budget.

    Where all tokens stay every method reads what is read without it: what one was not asked there is answered so.
    """
    first = rows[rows["method"] == ALL]
    texts: dict[str, dict[str, float | None]] = {text: {} for text in first["question"]}
    number = {text: i for i, text in enumerate(texts)}
    answers: dict[str, dict[str, list[list[int]]]] = {}
    for row in rows.itertuples():
        own = texts[row.question]
        own.setdefault(row.prediction, None if pd.isna(row.score) else float(row.score))
        by_budget = answers.setdefault(row.method, {}).setdefault(
            row.how, [[NOT_RECORDED] * len(texts) for _ in budgets]
        )
        said = list(own).index(row.prediction)
        for k, budget in enumerate(budgets):
            if budget == row.retain_ratio or row.method == ALL:
                by_budget[k][number[row.question]] = said
    for k, budget in enumerate(budgets):
        for by_how in answers.values() if budget == 1 else ():
            for own in by_how.values():
                if all(said == NOT_RECORDED for said in own[k]):
                    own[k] = list(answers[ALL][REMOVED][k])
    asked = [
        Asked(
            text=text,
            answer=first.loc[first["question"] == text, "answer"].iloc[0],
            texts=list(own),
            scores=list(own.values()),
        )
        for text, own in texts.items()
    ]
    return asked, answers


def _kept(
    rows: pd.DataFrame | None, budgets: Sequence[float], questions: Sequence[str], n_tokens: int
) -> Iterator[tuple[str, list[str]]]:
    """Yield each method whose choice is known with its packed choices, one a question where they depend on it."""
    for method, own in () if rows is None else rows.groupby("method", sort=False):
        # Layouts that read padding number other tokens than the views have.
        if own["kept"].str.len().ne(n_tokens).any():
            continue
        each = [""] if (own["question"] == "").all() else questions
        found = []
        for question in each:
            of_question = own[own["question"] == question].set_index("retain_ratio")["kept"]
            choices = [
                [letter == "1" for letter in of_question[budget]]
                if budget in of_question.index
                else ([True] * n_tokens if budget == 1 else None)
                for budget in budgets
            ]
            found.append(pack_choices(choices))
        yield method, found
