"""Say for readers what code calls by a name: signals, methods, rules, tasks, quantities and models."""

from __future__ import annotations

import html
import re
from dataclasses import replace

from rcblib.signals import SIGNALS, signal_of

NAMES = {
    "max_cosine": "largest cosine",
    "single_softmax": "softmax over prototypes",
    "double_softmax": "softmax over tokens and prototypes",
    "yes_no": "yes/no",
    "one_word": "one word",
    "vision_masked": "vision, masked",
    "vision_full": "vision, full",
    "symbols_coarse": "symbols, coarse",
    "symbols_fine": "symbols, fine",
    "qwen2_5_vl": "Qwen2.5-VL",
    "color": "colour",
    "multi_image": "several images",
    "larger": "which is larger",
    "left": "which is further left",
    "backdrop": "what is behind",
    "same_different": "same or different",
    "color_change": "change of colour",
    "covered": "coverage of the patch (%)",
    "n_on_object": "tokens on objects of 9",
    "log10": "logarithm of",
    "tau_p": r"$\tau_p$",
    "tau_jsd": r"$\tau_{\mathrm{jsd}}$",
}
"""What is neither a signal nor a registered pruner, and reads badly with blanks for underscores."""

COLUMNS = {
    "image_id": "image",
    "top1_word": "likeliest word",
    "region_top1_word": "likeliest word, region",
    "global_top1_word": "likeliest word, global",
    "object_category": "object",
    "cls_rank": "rank by [CLS]",
    "lower_half": "in the lower half",
    "on_object": "on an object",
    "low_share": "share in the lower half",
    "n_visual_tokens": "visual tokens",
    "n_retained": "tokens that stay",
    "retain_ratio": "share that stays",
    "max_similarity": "cut-off of similarity",
    "rank_correlation": "rank correlation",
    "kept_overlap": "overlap of what is kept",
    "precision_low": "precision, lowest",
    "precision_high": "precision, highest",
    "tau_p": "threshold of the probability",
    "tau_jsd": "threshold of the influence",
    "k_region": "weight of the region divergence",
    "k_global": "weight of the global divergence",
    "n_clusters": "clusters of each image",
    "cluster_size_max": "largest cluster that stays",
    "n_prototype_clusters": "clusters of prototypes",
    "min_images": "images that a cluster must exceed",
    "n_neighbours": "neighbours in DPC-KNN",
    "n_cpus": "CPU cores",
    "n_threads": "threads",
    "git_commit": "commit",
    "git_dirty": "changes not committed",
}
"""What columns of tables are called for readers, beside signals."""

SHORT = {
    "top1_probability": "top-1 probability",
    "attention_last": "attention, last token",
}
"""Labels for small plots, where the signal's own are symbols or say too little."""

_SPELLING = {"llava": "LLaVA", "next": "NeXT", "onevision": "OneVision", "7b": "7B", "13b": "13B"}

_SNAKE = re.compile(r"\$[^$]*\$|[A-Za-z0-9]+(?:_[A-Za-z0-9<>]+)+")  # formulas, which stay, and code names

_KEPT = re.compile(r"retain_(\d+(?:\.\d+)?)")
"""Name of a setting that keeps so many per cent of the tokens."""

_VALUES = {"color": "colour", "NaN": "–", "nan": "–", "None": "–", "True": "yes", "False": "no"}

_CELL = re.compile(
    r"(<t[hd]\b[^>]*>)\s*(codebook, )?([a-z][a-z0-9]*(?:_[a-z0-9]+)+|llava-[a-z0-9.-]+|"
    + "|".join(_VALUES)
    + r")\s*(</t[hd]>)"
)
"""A cell that holds nothing but a code name, maybe that of the codebook's rule, or a value that only code calls so."""


def label_of(name: object, *, unit: bool = False, short: bool = False) -> str:
    """Return what readers call something.

    Parameters
    ----------
    name : object
        Name of a signal, rule, task, quantity or model, or a text in which such names occur.
    unit : bool
        Whether a signal's unit is added, as on an axis.
    short : bool
        Whether a signal's label for small plots is taken.

    Returns
    -------
    str
        Its label; a name without one with blanks for underscores.
    """
    text = str(name)
    signal = signal_of(text)
    if signal is not None:
        shown = replace(signal, label=SHORT.get(text) or signal.short or signal.label) if short else signal
        return shown.axis_label if unit else shown.label
    if text in NAMES:
        return NAMES[text]
    if kept := _KEPT.fullmatch(text):
        return f"{kept[1]}% kept"
    if text.startswith("llava-"):
        return "-".join(_SPELLING.get(part, part) for part in text.split("-"))
    if _SNAKE.fullmatch(text) and "$" not in text:
        inside = next((n for n in sorted(SIGNALS, key=len, reverse=True) if f"_{n}_" in f"_{text}_"), None)
        if inside is None:
            return text.replace("_", " ")
        parts = text.partition(inside)
        return " ".join(label_of(part.strip("_")) for part in parts if part.strip("_"))
    return _SNAKE.sub(lambda found: found[0] if "$" in found[0] else label_of(found[0], short=short), text)


def table_in_words(html_of_table: str) -> str:
    """Return a table of a notebook as HTML, with words for the code names that head it or fill a cell.

    A heading loses every code name; of other cells those that are known, since data may have underscores of their own.
    What is not there is a dash, and what is true or not "yes" or "no".
    """

    def told(cell: re.Match[str]) -> str:
        opening, method, name, closing = cell.groups()
        if name in _VALUES:
            return opening + _VALUES[name] + closing if opening.startswith("<td") and not method else cell[0]
        is_known = (
            name in NAMES or name in COLUMNS or signal_of(name) is not None or name.startswith("llava-")
        )
        if not is_known and not opening.startswith("<th"):
            return cell[0]
        return (
            opening + (method or "") + html.escape(COLUMNS.get(name) or label_of(name), quote=False) + closing
        )

    return _CELL.sub(told, html_of_table)


def as_written(text: object) -> str:
    """Return text, such as a word of a model or a name of a file, so that a page shows it letter by letter.

    Markdown, HTML and formulas are escaped; it stays in one line.
    """
    shown = html.escape(" ".join(str(text).split()), quote=False)
    return re.sub(r"([\\`*_{}\[\]()#+\-.!|~$])", r"\\\1", shown)


def method_label(name: object) -> str:
    """Return what readers call a pruning method, registered or not."""
    from rcblib.pruners.registry import PRUNERS  # late, as it takes torch and figures do not

    return PRUNERS[str(name)].label if str(name) in PRUNERS else label_of(name)
