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
    "last_cls_attention": "attention of the encoder's last layer, with [CLS]",
    "last_keys": "keys of the encoder's last layer",
    "text_attention": "attention maps of the LLM",
    "masks": "annotated objects",
}
"""What a signal may ask for, in words; the first seven are encoder signals, as `VisualView.signals` names them."""

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


_ALONE = {"cost": "one pass of one token a position", "color": "#de8f05"}
_WINDOW = {"cost": "one pass of nine tokens a window", "color": "#029e73"}
_WHOLE = {"cost": "one pass of the whole input", "color": "#cc78bc"}
_NO_TARGET = _WINDOW | {"cost": "one pass of nine tokens a position, and one a window"}
_NO_WINDOW = _WHOLE | {"cost": "one pass of the whole input a window, and one more"}
_CLS = {"needs": ("cls_similarity",), "color": "#ca9161"}
_ATTENTION = {"unit": "share", "higher": "more attended", "keep": "high"}
_MAPS = {"needs": ("text_attention",), "cost": "one pass of the whole input, with attention maps"}
_LAST, _QUESTION = (_ATTENTION | _MAPS | {"color": color} for color in ("#0173b2", "#5ba3cf"))


def _register_answers(level: str, prefix: str, of: str, shared: dict, sure: dict, unsure: dict) -> None:
    """Add what the first word of the answer says at one level of input; the last three hold what is more to say."""
    unit, add = {"unit": "word"} | shared, register
    add(f"{prefix}top1_word", f"first word{of}", compute=lambda v: v.top1(level)[0], **unit)
    unit = {"unit": "token id"} | shared
    add(f"{prefix}top1_id", f"token of the first word{of}", compute=lambda v: v.top1(level)[1], **unit)
    unit = {"unit": "probability", "higher": "surer"} | shared | sure
    add(f"{prefix}top1_probability", f"top-1 probability{of}", compute=lambda v: v.top1(level)[2], **unit)
    unit = {"unit": "nats", "higher": "less sure"} | shared | unsure
    add(f"{prefix}entropy", f"entropy{of}", compute=lambda v: v.entropy(level), **unit)
    unit = {"unit": "yes or no"} | shared
    add(f"{level}_article", f"article first{of}", compute=lambda v: v.article(level), **unit)


_P1 = {"keep": "high", "symbol": "p_1(i)", "short": "$p_1$ alone"}
_E = {"keep": "low", "symbol": "E(i)", "color": "#5e3c99"}
_register_answers("single", "", "", _ALONE, _P1, _E)
_register_answers("region", "region_", " of the window", _WINDOW, {}, {})
_register_answers("global", "global_", " of the whole input", _WHOLE, {}, {})
for _level, _without, _shared in (("region", "target", _NO_TARGET), ("global", "window", _NO_WINDOW)):
    register(
        f"{_level}_ablated_article",
        f"article first without the {_without}",
        unit="yes or no",
        compute=lambda v, level=_level: v.article(level, ablated=True),
        **_shared,
    )
for _form, _suffix in (("released", ""), ("textbook", "textbook")):
    for _level, _to, _shared in (
        ("region", "its neighbours", _NO_TARGET),
        ("global", "the image", _NO_WINDOW),
    ):
        register(
            "_".join(filter(None, (_level, "divergence", _suffix))),
            ", ".join(filter(None, (f"{_level} divergence", _suffix))),
            unit="nats",
            higher=f"matters more to {_to}",
            keep="high",
            symbol="" if _suffix else rf"D_{{\mathrm{{{_level}}}}}(i)",
            compute=lambda v, level=_level, form=_form: v.divergence(level, form),
            **_shared,
        )
register(
    "influence",
    "combined influence",
    unit="nats",
    higher="matters more",
    keep="high",
    cost="as the two divergences",
    symbol="J(i)",
    color="#d55e00",
    compute=lambda v: v.influence(),
)
register(
    "cls_similarity",
    "similarity to [CLS]",
    unit="cosine",
    higher="more similar",
    keep="high",
    symbol=r"s^{\mathrm{cls}}_i",
    short="[CLS] similarity",
    compute=lambda v: v.encoder("cls_similarity"),
    **_CLS,
)
register(
    "cls_rank",
    "rank by similarity to [CLS]",
    unit="rank",
    higher="less similar",
    keep="low",
    compute=lambda v: v.cls_rank(),
    **_CLS,
)
register(
    "cls_attention",
    "[CLS] attention",
    needs=("cls_attention",),
    cost="attention maps of one layer of the vision encoder",
    symbol=r"a^{\mathrm{cls}}_i",
    color="#56b4e9",
    compute=lambda v: v.encoder("cls_attention"),
    **_ATTENTION,
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
    compute=lambda v: v.covered(),
)
register("object_category", "object beneath", unit="word", needs=("masks",), compute=lambda v: v.category())
for _rows, _of, _shared in (
    ("last", "the last prompt token", _LAST),
    ("question", "the question", _QUESTION),
):
    register(
        f"attention_{_rows}_layer_<layer>",
        f"attention of {_of}, one layer",
        symbol=rf"a^{{\mathrm{{{_rows}}}}}_{{\ell, i}}",
        compute=lambda v, rows=_rows: v.text_attention(rows),
        **_shared,
    )

# Derived from the columns above when tables are read.
register("attention_last", "attention of the last prompt token", short="attention, last", **_LAST)
register("attention_question", "attention of the question", short="attention, question", **_QUESTION)
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
