"""List the pruners by name: for the command line, lmms-eval, the notebooks and the page of methods."""

from __future__ import annotations

import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

import pydantic

from rcblib.codebook.codebook import Codebook, load_codebook
from rcblib.codebook.scorer import Scorer, load_scorer
from rcblib.pruners.all import AllTokens
from rcblib.pruners.anti_oracle import AntiOraclePruner
from rcblib.pruners.base import Pruner
from rcblib.pruners.cdpruner import CDPruner, LlmCDPruner
from rcblib.pruners.cls_attention import ClsAttentionPruner
from rcblib.pruners.cls_similarity import ClsSimilarityPruner
from rcblib.pruners.codebook import CodebookPruner
from rcblib.pruners.codebook_fewer import DistinctCodebookPruner, MedoidCodebookPruner
from rcblib.pruners.context import QUESTION
from rcblib.pruners.distilled import DistilledPruner
from rcblib.pruners.divprune import DivPrune
from rcblib.pruners.downsampled import DownsampledPruner
from rcblib.pruners.fastv import FastV
from rcblib.pruners.holov import HoloV
from rcblib.pruners.oracle import OraclePruner
from rcblib.pruners.pooled import PooledPruner
from rcblib.pruners.prumerge import PruMerge, PruMergePlus
from rcblib.pruners.pyramiddrop import PyramidDrop
from rcblib.pruners.random import RandomPruner
from rcblib.pruners.received_attention import ReceivedAttentionPruner
from rcblib.pruners.sparsevlm import SparseVLM
from rcblib.pruners.strided import StridedPruner
from rcblib.pruners.tome import ToMe
from rcblib.pruners.visionzip import VisionZip
from rcblib.pruners.vispruner import ReceivedVisPruner, VisPruner
from rcblib.records import ParameterError

BASELINES = ("random", "cls_most", "cls_least")

_ALIASES = {"none": "all"}
_WORDS = {"retain_ratio": "a share", "codebook": "a codebook", "scorer": "a scorer"}
_LOADERS = {Codebook: load_codebook, Scorer: load_scorer}


@dataclass(frozen=True)
class Method:
    """Describe a registered pruner.

    Attributes
    ----------
    name : str
        As commands and model arguments write it.
    kind : type
        Its class.
    label : str
        For readers of tables and figures.
    paper : str
        Where it comes from.
    settings : Mapping
        Parameters that the name fixes.
    """

    name: str
    kind: type[Pruner]
    label: str
    paper: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def needs(self) -> frozenset[str]:
        """Return what the method looks at besides tokens; see `Pruner`."""
        return self.kind.needs

    @property
    def parameters(self) -> dict[str, Any]:
        """Return the parameters that are free, with their defaults; `dataclasses.MISSING` where one must be given."""
        kinds, free = typing.get_type_hints(self.kind), {}
        for entry in fields(self.kind):
            if entry.init and entry.name not in self.settings:
                default = entry.default if entry.default_factory is MISSING else entry.default_factory()
                # A field that a class declares anew inherits the default of its base.
                is_open = default is None and type(None) not in typing.get_args(kinds[entry.name])
                free[entry.name] = MISSING if is_open else default
        return free

    def make(self, settings: Mapping[str, Any] | None = None, *, family: str | None = None) -> Pruner:
        """Make the pruner.

        Parameters
        ----------
        settings : Mapping
            Parameters by name, as values or as text; a codebook also as what `load_codebook` takes. ``None`` stands
            for the default.
        family : str, optional
            The model's, for settings that go with it.

        Raises
        ------
        ParameterError
            On an unknown name, a missing or a wrong value.
        """
        given = {name: value for name, value in (settings or {}).items() if value is not None}
        self.check(given)
        kinds = typing.get_type_hints(self.kind)
        values = {name: _read(name, value, kinds[name]) for name, value in given.items()}
        if family is not None:
            values = self.kind.defaults(family, values) | values
        return self.kind(**values, **self.settings)

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raise a `ParameterError` where a name is no parameter of the method, or one that must be given is missing."""
        for name, value in settings.items():
            if name not in self.parameters:
                accepted = (
                    f"none with the pruner {self.name!r}, whose parameters are {', '.join(self.parameters)}"
                )
                raise ParameterError(name, value, accepted)
        for name, default in self.parameters.items():
            if default is MISSING and name not in settings:
                raise ParameterError(
                    name, None, f"{_WORDS.get(name, 'a value')} with the pruner {self.name!r}"
                )

    def waits_for_ratio(self, settings: Mapping[str, Any]) -> bool:
        """Tell whether the method with some settings waits for a share of tokens: declares one, or lacks a budget."""
        name = "retain_ratio"
        if name not in self.parameters or settings.keys() & {name, "max_similarity"}:
            return False
        # A field that a class declares anew is another one than its base's.
        if self.kind.__dataclass_fields__[name] is not Pruner.__dataclass_fields__[name]:
            return True
        try:
            self.make(settings)
        except ParameterError:
            return True
        return False


PRUNERS: dict[str, Method] = {}
"""Registered methods by name."""


def register(
    name: str, kind: type[Pruner], label: str = "", paper: str = "", **settings: Any
) -> type[Pruner]:
    """Make a pruner known by name to the command line, lmms-eval and everything that lists methods.

    Parameters
    ----------
    name : str
        Letters, digits and underscores.
    kind : type
        A frozen dataclass derived from `Pruner`.
    label : str
        For readers; by default the name in words.
    paper : str
        Where the method comes from.
    **settings
        Parameters that the name fixes.

    Returns
    -------
    type
        `kind`.

    Raises
    ------
    ParameterError
        On a name that is taken by another class, or is none; a class of another kind; a setting that is no parameter.
    """
    if not name.isidentifier() or name in _ALIASES:
        raise ParameterError("name", name, f"letters, digits and underscores, not {', '.join(_ALIASES)}")
    # A subclass that is no dataclass itself inherits the fields of its base, and may differ from it in what is none.
    is_method = isinstance(kind, type) and issubclass(kind, Pruner) and "__dataclass_params__" in vars(kind)
    if not is_method:
        raise ParameterError(
            "kind", getattr(kind, "__name__", kind), "a frozen dataclass derived from Pruner"
        )
    if name in PRUNERS and _place(PRUNERS[name].kind) != _place(kind):
        raise ParameterError("name", name, f"a name that is free; {PRUNERS[name].kind.__name__} has this one")
    accepted = [entry.name for entry in fields(kind) if entry.init]
    for unknown in settings.keys() - set(accepted):
        raise ParameterError(
            unknown, settings[unknown], f"parameters of {kind.__name__}: {', '.join(accepted)}"
        )
    PRUNERS[name] = Method(name, kind, label or name.replace("_", " "), paper, settings)
    return kind


def _place(kind: type) -> tuple[str, str]:
    """Say where a class is defined; where it is defined anew, as in a notebook, it is the same method."""
    return kind.__module__, kind.__qualname__


def find_method(name: str) -> Method:
    """Return a registered method; ``"none"`` is ``"all"``.

    Raises
    ------
    ParameterError
        On an unknown name.
    """
    method = PRUNERS.get(_ALIASES.get(name, name))
    if method is None:
        raise ParameterError("pruner", name, f"one of {', '.join(map(repr, PRUNERS))}")
    return method


def baseline_pruners(
    retain_ratios: Sequence[float], n_seeds: int = 1, offers: Collection[str] | None = None
) -> dict[str, list[Pruner]]:
    """Make the methods that a codebook is compared with unless others are named, for `evaluate_grid`.

    Parameters
    ----------
    retain_ratios : sequence of float
        Shares of tokens to keep.
    n_seeds : int
        Draws at each share where something is drawn, seeded 0, 1, …
    offers : collection of str, optional
        What a model's vision encoder offers (`Adapter.offers`); methods that need more are left out.

    Returns
    -------
    dict
        Label to pruners, by share and seed.
    """
    methods = [PRUNERS[name] for name in BASELINES]
    made = {}
    for method in methods:
        if offers is None or method.needs <= {QUESTION, *offers}:
            seeds = [{"seed": seed} for seed in range(n_seeds)] if "seed" in method.parameters else [{}]
            made[method.label] = [
                method.make({"retain_ratio": ratio} | seed) for ratio in retain_ratios for seed in seeds
            ]
    return made


def read_pruner(text: str) -> tuple[Method, dict[str, str]]:
    """Read a method and its parameters from one line of text.

    Parameters
    ----------
    text : str
        ``"name"`` or ``"name:parameter=value,parameter=value"``, such as ``"random:retain_ratio=0.2,seed=1"``.

    Returns
    -------
    method : Method
    settings : dict
        For `Method.make`.

    Raises
    ------
    ParameterError
        On an unknown name, or text of another form.
    """
    name, _, rest = text.partition(":")
    method = find_method(name.strip())
    pairs = [part.partition("=") for part in rest.split(",") if part]
    if not all(sign for _, sign, _ in pairs):
        raise ParameterError("pruner", text, "name:parameter=value,parameter=value")
    return method, {key.strip(): value.strip() for key, _, value in pairs}


def _read(name: str, value: Any, kind: Any) -> Any:
    """Return a parameter as its type asks for it."""
    if kind in _LOADERS:
        return _LOADERS[kind](value)
    if isinstance(value, str) and any(
        typing.get_origin(own) is tuple for own in (kind, *typing.get_args(kind))
    ):
        value = value.split("+")  # as commas stand between parameters
    try:
        return pydantic.TypeAdapter(kind, config={"arbitrary_types_allowed": True}).validate_python(value)
    except pydantic.ValidationError as error:
        told = error.errors()[0]["msg"]
        raise ParameterError(name, value, told[0].lower() + told[1:]) from None


register("all", AllTokens, "all tokens")
register("codebook", CodebookPruner, "codebook", "the paper")
register("random", RandomPruner, "random tokens", "the release's baseline")
register("cls_most", ClsSimilarityPruner, "most similar to [CLS]", "the release's baseline", keep="most")
register("cls_least", ClsSimilarityPruner, "least similar to [CLS]", "the release's baseline", keep="least")
register("codebook_distinct", DistinctCodebookPruner, "codebook without copies", "a variant of this project")
register("codebook_medoids", MedoidCodebookPruner, "codebook's medoids", "a variant of this project")
register("distilled", DistilledPruner, "distilled from probing", "this project")
register("strided", StridedPruner, "evenly strided", "a control")
register("pooled", PooledPruner, "pooled 2 x 2", "a control")
register("downsampled", DownsampledPruner, "smaller picture", "a control, arXiv 2510.07143")
register("cls_attention", ClsAttentionPruner, "[CLS] attention (FasterVLM)", "arXiv 2412.01818")
register(
    "received_attention", ReceivedAttentionPruner, "received attention", "as VisPruner's code for SigLIP"
)
register("vispruner", VisPruner, "VisPruner", "arXiv 2412.01818")
register("vispruner_received", ReceivedVisPruner, "VisPruner, received attention", "its code for SigLIP")
register("divprune", DivPrune, "DivPrune", "arXiv 2503.02175")
register("cdpruner", CDPruner, "CDPruner", "arXiv 2506.10967")
register("cdpruner_llm", LlmCDPruner, "CDPruner, word embeddings", "OpenVINO GenAI's port of CDPruner")
register("visionzip", VisionZip, "VisionZip", "arXiv 2412.04467")
register("prumerge", PruMerge, "PruMerge", "arXiv 2403.15388")
register("prumerge_plus", PruMergePlus, "PruMerge+", "arXiv 2403.15388")
register("tome", ToMe, "ToMe after the connector", "arXiv 2210.09461")
register("holov", HoloV, "HoloV", "arXiv 2510.02912")
register("fastv", FastV, "FastV", "arXiv 2403.06764")
register("sparsevlm", SparseVLM, "SparseVLM", "arXiv 2410.04417")
register("pyramiddrop", PyramidDrop, "PyramidDrop", "arXiv 2410.17247")
register("oracle", OraclePruner, "oracle by masks", "a bound: it knows the masks")
register("anti_oracle", AntiOraclePruner, "anti-oracle by masks", "a bound: it knows the masks")
