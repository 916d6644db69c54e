"""Say what the data of an explorer are: a manifest, and for each picture and model an exhibit.

The same for every model: any number of views of any size, any signals, methods and up to six budgets. What was not
measured is said: tokens that were not probed, methods that could not be run, answers that were not recorded.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rcblib.reading.explorer.packing import N_BITS, unpack_integers

VERSION = "rcb-explorer/4"
NOT_RECORDED = -1

Letters = Annotated[str, Field(pattern="^[A-Za-z0-9_-]*$")]
Codes = Annotated[str, Field(pattern="^([.]?[A-Za-z0-9_-]{2})*$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Numbers(_Part):
    """Numbers as `rcblib.reading.explorer.packing.pack_numbers` writes them."""

    low: float
    high: float
    power: Literal[1, 2] = 1
    codes: Codes


class View(_Part):
    """One grid of tokens: a picture, a tile of it, or a frame.

    Attributes
    ----------
    label : str
        What readers call it.
    box : tuple of float, optional
        Left, top, right and bottom edge of a tile as shares of the picture before it.
    """

    kind: Literal["image", "tile", "frame"]
    rows: Annotated[int, Field(ge=1)]
    columns: Annotated[int, Field(ge=1)]
    label: str
    box: tuple[float, float, float, float] | None = None


Near = tuple[int, int, int, float]
"""A token of another picture that is near to a prototype: number of its picture, view, position, and cosine."""


class Asked(_Part):
    """A question, its right answer (empty where nobody knows it), and every text that was answered, with its score."""

    text: str
    answer: str
    texts: list[str]
    scores: list[float | None]

    @model_validator(mode="after")
    def _as_many(self) -> Asked:
        if len(self.texts) != len(self.scores):
            raise ValueError("as many scores as texts")
        return self


class Exhibit(_Part):
    """One picture as one model sees it. Tokens are numbered through all views.

    Attributes
    ----------
    probed : str
        A letter a token: ``"1"`` where it was probed, else ``"0"``.
    words, word_ids, word_probabilities
        The words; and for each token five numbers among them, likeliest first, with their probabilities.
    signals : dict
        Name, as in the manifest, to a number a token.
    objects, object_ids
        Names of objects, and for each token the one that covers most of its patch.
    prototypes, prototype_ids, near, near_images
        Numbers of prototypes in the codebook; for each token the nearest of them; for each of them tokens near to it,
        and the keys of their pictures in the manifest.
    answers : dict
        Method to ``"removed"`` or ``"replaced"`` to one list a budget of one number a question: which of its texts was
        answered, or -1.
    kept : dict
        Method to one text, or one a question where the choice depends on it, of a letter a token
        (`rcblib.reading.explorer.packing.pack_choices`).
    """

    version: Literal["rcb-explorer/4"] = VERSION
    model: str
    image: str
    views: list[View]
    probed: Annotated[str, Field(pattern="^[01]*$")]
    words: list[str]
    word_ids: Codes
    word_probabilities: Numbers
    signals: dict[str, Numbers]
    objects: list[str]
    object_ids: Codes
    prototypes: list[int] = []
    prototype_ids: Codes = ""
    near: list[list[Near]] = []
    near_images: list[str] = []
    questions: list[Asked]
    answers: dict[str, dict[Literal["removed", "replaced"], list[list[int]]]]
    kept: dict[str, list[Letters]]

    @model_validator(mode="after")
    def _fits(self) -> Exhibit:
        n = sum(view.rows * view.columns for view in self.views)
        lengths = {
            "probed": (len(self.probed), n),
            "word_ids": (_n(self.word_ids), _n(self.word_probabilities.codes)),
            "words of a token": (_n(self.word_ids) % max(n, 1), 0),
            "object_ids": (_n(self.object_ids), n),
            "prototype_ids": (_n(self.prototype_ids) or n, n),
            "near": (len(self.near), len(self.prototypes)),
        }
        lengths |= {name: (_n(own.codes), n) for name, own in self.signals.items()}
        lengths |= {
            f"kept of {name}, {k}": (len(text), n)
            for name, own in self.kept.items()
            for k, text in enumerate(own)
        }
        for name, by_how in self.answers.items():
            for how, budgets in by_how.items():
                for k, own in enumerate(budgets):
                    lengths[f"answers of {name}, {how}, budget {k}"] = (len(own), len(self.questions))
        wrong = {name: pair for name, pair in lengths.items() if pair[0] != pair[1]}
        if wrong:
            name, (found, wanted) = next(iter(wrong.items()))
            raise ValueError(f"{name}: got {found}; accepted: {wanted}")
        return self


def _n(codes: str) -> int:
    return len(unpack_integers(codes))


class ShownMethod(_Part):
    """A registered pruner, and what kind it is, in words."""

    name: str
    label: str
    kind: str
    paper: str = ""


class Layer(_Part):
    """What a layer shows, in words: `more` says what a token is more of than others of a lower value."""

    name: str
    label: str
    more: str
    unit: str = ""


class Model(_Part):
    """A model, and where the numbers about it come from, a line each."""

    name: str
    title: str
    family: str
    question: str
    codebook: str = ""
    origin: list[str]
    unfit: dict[str, str] = {}


class Seen(_Part):
    """How a model sees a picture: the name of its `Pictures`, and its grids, rows by columns."""

    pictures: str
    grids: list[tuple[int, int]]


class Image(_Part):
    """A picture: its key, which names its files, its title, and how each model sees it."""

    key: str
    title: str
    group: str
    models: dict[str, Seen]


class Manifest(_Part):
    """What there is to see; `tour` holds a title and a text for each of the steps that the script shows."""

    version: Literal["rcb-explorer/4"] = VERSION
    budgets: Annotated[list[float], Field(min_length=1, max_length=N_BITS)]
    methods: list[ShownMethod]
    signals: list[Layer]
    models: list[Model]
    images: list[Image]
    tour: list[tuple[str, str]] = []
    thumbs: str = ""


class ShownView(_Part):
    """What one view of a picture covers, as an image inside an address."""

    source: str
    width: int
    height: int


class Pictures(_Part):
    """All views of a picture, in the order of the exhibit's."""

    version: Literal["rcb-explorer/4"] = VERSION
    views: list[ShownView]
