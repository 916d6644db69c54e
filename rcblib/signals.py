"""Name every signal of a visual token once: its column, what readers call it, its unit, direction and price.

`SIGNALS` is what probing measures (in this order), and what tables, figures and pages call it. One more signal is one
more entry: `register` it with the function that computes it, and it has a column, an axis, a colour and a place in
every table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from rcblib.records import ParameterError

NEEDS = {
    "cls_similarity": "a [CLS] row in the vision encoder",
    "cls_attention": "attention maps of a vision encoder with [CLS]",
    "received_attention": "attention maps of the vision encoder",
    "keys": "keys of the vision encoder",
    "hidden_states": "hidden states of the vision encoder",
    "text_attention": "attention maps of the LLM",
    "masks": "annotated objects",
}
"""What a signal may ask for, in words; the first five are encoder signals, as `VisualView.signals` names them."""

WITHOUT_UNIT = frozenset({"", "probability", "cosine", "share", "rank", "word", "token id", "yes or no"})
"""Units that an axis does not print, because the label says as much."""


@dataclass(frozen=True)
class Signal:
    """Describe one signal of a visual token.

    Attributes
    ----------
    name : str
        Column of the probe table; ``<layer>`` stands for the number of a layer where each has a column.
    label : str
        What readers call it.
    unit : str
        ``"nats"``, ``"probability"``, ``"cosine"``, ``"share"``, ...
    higher : str
        What a high value says; empty where values are not ordered, such as words.
    keep : {"high", "low", ""}
        Which end means that the token is worth keeping.
    needs : tuple of str
        Names of `NEEDS`; where a model or an input does not have them there is no column, or nothing in it.
    cost : str
        What measuring it takes beyond reading the image once.
    symbol : str
        In formulas, without dollar signs.
    short : str
        Label for small plots; `label` where empty.
    color : str
        In figures; a neutral one where empty.
    compute : callable, optional
        Takes the `rcblib.probe.context.ProbedView` and returns one value a probed position, in their order (with
        ``<layer>`` in the name: one row a layer); ``None`` only where a need is not met. Without it the signal
        is derived from others.
    """

    name: str
    label: str
    unit: str = ""
    higher: str = ""
    keep: str = ""
    needs: tuple[str, ...] = ()
    cost: str = "nothing"
    symbol: str = ""
    short: str = ""
    color: str = ""
    compute: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        unknown = sorted(set(self.needs) - set(NEEDS))
        if unknown:
            raise ParameterError(f"needs of {self.name}", unknown, f"some of {', '.join(NEEDS)}")
        if self.keep not in ("high", "low", ""):
            raise ParameterError(f"keep of {self.name}", self.keep, "high, low, or nothing")

    @property
    def axis_label(self) -> str:
        """Return the label with its unit, where that is one."""
        return self.label if self.unit in WITHOUT_UNIT else f"{self.label} ({self.unit})"

    def names(self, column: str) -> bool:
        """Tell whether a column is this signal's, or that of one layer of it."""
        return re.fullmatch(re.escape(self.name).replace("<layer>", r"\d+"), column) is not None


SIGNALS: dict[str, Signal] = {}
"""Name to signal: what is measured, in the order of the columns, then what is derived."""


def register(name: str, label: str, **rest: Any) -> Signal:
    """Add a signal to the table; see `Signal` for the arguments.

    Raises
    ------
    ParameterError
        If there is a signal of this name, or a value is none of those accepted.
    """
    if name in SIGNALS:
        raise ParameterError("name", name, f"one that no signal has; taken: {', '.join(SIGNALS)}")
    SIGNALS[name] = Signal(name, label, **rest)
    return SIGNALS[name]


def signal_of(column: str) -> Signal | None:
    """Return the signal that a column of a probe table holds; ``None`` where it holds none."""
    return SIGNALS.get(column) or next((each for each in SIGNALS.values() if each.names(column)), None)


def check_measured(columns: Iterable[str], wanted: Iterable[str]) -> None:
    """Raise where a signal that is wanted ought to be in a table and is not.

    A signal may be missing where it has needs that this model or input did not meet: then no other signal with the
    same needs is in the table either.

    Raises
    ------
    ParameterError
        If a name is no signal and no column, or its column is missing.
    """
    columns = list(columns)
    met = {need for column in columns if (found := signal_of(column)) for need in found.needs}
    for name in wanted:
        if name in columns:
            continue
        signal = SIGNALS.get(name)
        if signal is None or set(signal.needs) <= met:
            raise ParameterError("frame", columns, f"the column {name} too")


_SINGLE, _REGION, _GLOBAL, _CLS = "#de8f05", "#029e73", "#cc78bc", "#ca9161"
_LAST, _QUESTION = "#0173b2", "#5ba3cf"
_MAPS = "one pass of the whole input, with attention maps"


def _register_answers(
    level: str, prefix: str, what: str, cost: str, color: str, **alone: dict[str, str]
) -> None:
    """Add what the first answer word says at one level of input; `alone` holds more of some signals, by column."""

    def add(name: str, label: str, compute: Callable[[Any], Any], **rest: str) -> None:
        more = {"cost": cost, "color": color, **rest, **alone.get(name, {})}
        register(name, **{"label": label, "compute": compute, **more})

    add(f"{prefix}top1_word", f"first word of {what}", lambda view: view.top1(level)[0], unit="word")
    add(
        f"{prefix}top1_id",
        f"first word of {what}, as token",
        lambda view: view.top1(level)[1],
        unit="token id",
    )
    add(
        f"{prefix}top1_probability",
        f"top-1 probability of {what}",
        lambda view: view.top1(level)[2],
        unit="probability",
        higher="surer",
    )
    add(f"{prefix}entropy", f"entropy of {what}", lambda v: v.entropy(level), unit="nats", higher="less sure")
    add(f"{level}_article", f"article first, {what}", lambda view: view.article(level), unit="yes or no")


def _register_divergence(level: str, form: str, what: str, cost: str, **rest: str) -> None:
    """Add the divergence of one level in one form."""
    register(
        f"{level}_divergence" + ("_textbook" if form == "textbook" else ""),
        f"{level} divergence" + (", textbook" if form == "textbook" else ""),
        unit="nats",
        higher=f"matters more to {what}",
        keep="high",
        cost=cost,
        compute=lambda view: view.divergence(level, form),
        **rest,
    )


_register_answers(
    "single",
    "",
    "the token alone",
    "one pass of one token a position",
    _SINGLE,
    top1_probability={
        "label": "top-1 probability",
        "keep": "high",
        "symbol": "p_1(i)",
        "short": "$p_1$ alone",
    },
    entropy={"label": "entropy", "keep": "low", "symbol": "E(i)", "color": "#5e3c99"},
)
_register_answers("region", "region_", "the window", "one pass of nine tokens a window", _REGION)
_register_answers("global", "global_", "the whole input", "one pass of the whole input", _GLOBAL)
_WITHOUT_TARGET = "one pass of nine tokens a position, and one a window"
_WITHOUT_WINDOW = "one pass of the whole input a window, and one more"
for _level, _cost in (("region", _WITHOUT_TARGET), ("global", _WITHOUT_WINDOW)):
    register(
        f"{_level}_ablated_article",
        f"article first, {_level} level without the target",
        unit="yes or no",
        cost=_cost,
        compute=lambda view, level=_level: view.article(level, ablated=True),
    )
_SYMBOL = r"D_{\mathrm{%s}}(i)"
for _form in ("released", "textbook"):
    _more = {"region": {}, "global": {}}
    if _form == "released":
        _more = {level: {"symbol": _SYMBOL % level} for level in _more}
    _register_divergence("region", _form, "its neighbours", _WITHOUT_TARGET, color=_REGION, **_more["region"])
    _register_divergence("global", _form, "the image", _WITHOUT_WINDOW, color=_GLOBAL, **_more["global"])
register(
    "influence",
    "combined influence",
    unit="nats",
    higher="matters more",
    keep="high",
    cost="as the two divergences",
    symbol="J(i)",
    color="#d55e00",
    compute=lambda view: view.influence(),
)
register(
    "cls_similarity",
    "similarity to [CLS]",
    unit="cosine",
    higher="more similar",
    keep="high",
    needs=("cls_similarity",),
    symbol=r"s^{\mathrm{cls}}_i",
    short="[CLS] similarity",
    color=_CLS,
    compute=lambda view: view.encoder("cls_similarity"),
)
register(
    "cls_rank",
    "rank by similarity to [CLS]",
    unit="rank",
    higher="less similar",
    keep="low",
    needs=("cls_similarity",),
    color=_CLS,
    compute=lambda view: view.cls_rank(),
)
register(
    "cls_attention",
    "[CLS] attention",
    unit="share",
    higher="more attended",
    keep="high",
    needs=("cls_attention",),
    cost="attention maps of one layer of the vision encoder",
    symbol=r"a^{\mathrm{cls}}_i",
    color="#56b4e9",
    compute=lambda view: view.encoder("cls_attention"),
)
register(
    "object_coverage",
    "covered by objects",
    unit="share",
    higher="more covered",
    needs=("masks",),
    symbol="o_i",
    short="coverage",
    color="#949494",
    compute=lambda view: view.covered(),
)
register(
    "object_category", "object beneath", unit="word", needs=("masks",), compute=lambda view: view.category()
)
_ATTENTION = (("last", "the last prompt token", _LAST), ("question", "the question", _QUESTION))
for _rows, _whose, _color in _ATTENTION:
    register(
        f"attention_{_rows}_layer_<layer>",
        f"attention of {_whose}, one layer",
        unit="share",
        higher="more attended",
        keep="high",
        needs=("text_attention",),
        cost=_MAPS,
        symbol=rf"a^{{\mathrm{{{_rows}}}}}_{{\ell, i}}",
        color=_color,
        compute=lambda view, rows=_rows: view.text_attention(rows),
    )

# Derived from the columns above when tables are read.
for _rows, _whose, _color in _ATTENTION:
    register(
        f"attention_{_rows}",
        f"attention of {_whose}",
        unit="share",
        higher="more attended",
        keep="high",
        needs=("text_attention",),
        cost="as one layer",
        short=f"attention, {_rows}",
        color=_color,
    )
register(
    "recognised",
    "share recognised",
    unit="share",
    higher="more often named",
    keep="high",
    needs=("masks",),
    color="#8c2d04",
)
register("certainty", "certainty", unit="minus entropy", higher="surer", keep="high", color="#5e4fa2")
register("random_numbers", "random numbers", higher="nothing", color="#8a8a8a")
