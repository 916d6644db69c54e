"""Write the parts of the page on efficiency: what recorded benchmarks say of pruned inference, targets, and counts.

Times are read from ``data/recorded/benchmarks/``; rows read and bytes cached, which follow from the models alone, are
computed again and must be as recorded. ``book/efficiency.md`` includes what comes to ``book/_build/efficiency/``.

    python -m tools.make_efficiency
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns

from benchmarks.checkpoints import CHECKPOINTS, empty_model, picture_rows
from benchmarks.operations import answer_bytes, encoding_operations, prefill_operations, selection_operations
from benchmarks.pruning import N_PROTOTYPES, Run, compare
from benchmarks.results import RECORDED, recorded
from benchmarks.weights import ModelShape
from rcblib.data.opening import open_dataset
from rcblib.mllm import load_model
from rcblib.pruners.registry import PRUNERS
from rcblib.reading.figures import use_style
from rcblib.reading.figures.style import CYCLE, MUTED
from rcblib.records import ParameterError
from rcblib.runs.command import run_command
from tools.efficiency_targets import targets_text
from tools.make_memory import HEIGHT, N_TEXT, WIDTH, short
from tools.write_parts import table, write_parts

ROOT = Path(__file__).resolve().parents[1]

FOLDER = ROOT / "book" / "_build" / "efficiency"

SMALL, LARGE = "pruning-scenes-budgets", "pruning-photographs-budgets"

MODELS = {
    SMALL: "LLaVA-1.5, drawn scenes",
    "pruning-next": "LLaVA-NeXT, drawn scenes",
    "pruning-onevision": "LLaVA-OneVision, drawn scenes",
    "pruning-qwen": "Qwen2.5-VL, random weights",
    LARGE: "LLaVA-1.5, photographs",
}
"""What pages call the model of each recorded part that tells of the codebook."""

METHODS = {
    "pruning-scenes": MODELS[SMALL],
    **{part: name for part, name in MODELS.items() if part not in (SMALL, LARGE)},
    "pruning-photographs": MODELS[LARGE],
}
"""The same of the parts that have all methods."""

SHARE = 0.2
"""Share of the visual tokens that stay, in tables of one budget."""

ALL, CODEBOOK = PRUNERS["all"].label, PRUNERS["codebook"].label

STEPS = {
    "process_ms": "preparing the pixels",
    "encode_ms": "vision encoder",
    "select_ms": "choosing tokens",
    "prefill_ms": "prefill",
    "decode_ms": "the other tokens of the answer",
}

GAINS = {"speed_up": "prefill", "first_token_speed_up": "first token", "end_to_end_speed_up": "whole answer"}


RECORDED_TEXTS = (
    "answer", "times_figure", "provenance", "times", "gains_figure", "limits", "methods", "again",
)  # fmt: skip
"""Parts of the page that hold what was recorded, in its order."""

CAPTIONS = {
    "times": "Where the time goes, from pixels to an answer of 16 tokens, one question at a time.",
    "gains": "Gains against the share of tokens that stay; above 1 pruning is faster than not to prune.",
}
"""What stands below a figure."""


class Recorded:
    """Hold what one part of the benchmarks recorded."""

    def __init__(self, part: str):
        found = recorded(part)
        if found is None:
            raise ParameterError(
                part, "no recorded result", f"{RECORDED}/{part}.json, as `make bench` writes it"
            )
        self.settings, self.made = found["settings"], found["provenance"]
        self.table = pd.DataFrame(found["pruning"])
        self.table["share"] = self.table["retain_ratio"].fillna(1.0)

    def row(self, method: str, share: float = 1.0, batch_size: int = 1) -> Mapping[str, Any]:
        """Return a method's row."""
        own = self.table[(self.table["method"] == method) & (self.table["batch_size"] == batch_size)]
        return own[own["share"] == share].iloc[0].to_dict()

    def codebook(self, batch_size: int = 1) -> pd.DataFrame:
        """Return the codebook's rows, fewest tokens first, and the unpruned model's as the share of 1."""
        own = self.table[self.table["method"].isin([ALL, CODEBOOK])]
        return own[own["batch_size"] == batch_size].sort_values("share")


def provenance_text(parts: Mapping[str, Recorded]) -> str:
    """Say when and where the times were taken."""
    made = [part.made for part in parts.values()]
    dates = sorted(own["date"][:10] for own in made)
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    machines = sorted({f"{own['cpu']}, {own['n_threads']} threads, GPU: {own['gpu']}" for own in made})
    versions = sorted({f"torch {own['torch']}, transformers {own['transformers']}" for own in made})
    commits = sorted({str(own["git_commit"])[:10] for own in made})
    return (
        f"**Recorded** on {when}; {'; '.join(machines)}; {'; '.join(versions)}; commit {', '.join(commits)}. "
        "The fastest of rounds in which all methods, the unpruned and a plain model took turns.\n"
    )


def answer_text(parts: Mapping[str, Recorded]) -> str:
    """Answer the page's question in a few sentences."""
    told = []
    for part in (LARGE, SMALL):
        whole, own = parts[part].row(ALL), parts[part].row(CODEBOOK, SHARE)
        told.append(
            f"{MODELS[part]}: prefill **{own['speed_up']:.1f}** times as fast, first token "
            f"{own['first_token_speed_up']:.1f} times as soon, the whole answer {own['end_to_end_speed_up']:.2f} "
            f"times, as the prefill is {whole['prefill_ms'] / whole['end_to_end_ms']:.0%} of that time without pruning"
        )
    return (
        f"With {SHARE:.0%} of the visual tokens, one question at a time: {'; '.join(told)}. So pruning pays where the "
        "prefill is long beside everything else, and the table below says for whom it is. The key-value cache shrinks "
        "with the rows, always.\n"
    )


def times_text(parts: Mapping[str, Recorded]) -> str:
    """Write what pruning by the codebook gains for each model and batch size, beside the most that it could."""
    rows = []
    for part, name in MODELS.items():
        for size in sorted(parts[part].table["batch_size"].unique()):
            whole, own = parts[part].row(ALL, batch_size=size), parts[part].row(CODEBOOK, SHARE, size)
            share = whole["prefill_ms"] / whole["end_to_end_ms"]
            rows.append([
                name, size, f"{own['speed_up']:.2f}", f"{own['first_token_speed_up']:.2f}",
                f"{own['end_to_end_speed_up']:.2f}", f"{1 / (1 - share):.2f}",
                f"{whole['kv_cache_mib'] / own['kv_cache_mib']:.1f}",
                f"{whole['peak_mib']:.1f} → {own['peak_mib']:.1f}",
            ])  # fmt: skip
    header = ["model", "at once", *GAINS.values(), "bound", "cache", "peak (MiB)"]
    return table(header, rows)


def limits_text(parts: Mapping[str, Recorded]) -> str:
    """Say where pruning does not pay, from the numbers."""
    small, large = parts[SMALL], parts[LARGE]
    lines = []
    for part, own in ((SMALL, small), (LARGE, large)):
        rows = own.codebook()
        least, whole = rows.iloc[0], rows.iloc[-1]
        lines.append(
            f"{MODELS[part]}: {least['n_prompt'] / whole['n_prompt']:.0%} of the rows take "
            f"{least['prefill_ms'] / whole['prefill_ms']:.0%} of the prefill's time"
        )
    fixed = (
        f"**Short prompts and small models.** A call has a price that no pruning lowers. {'; '.join(lines)}."
    )
    whole, own = large.row(ALL), large.row(CODEBOOK, SHARE)
    n_more = large.settings["new"] - 1
    longer = [
        (whole["first_token_ms"] + n / n_more * whole["decode_ms"])
        / (own["first_token_ms"] + n / n_more * own["decode_ms"])
        for n in (0, 15, 63, 255)
    ]
    decode = (
        "**Long answers.** Each further token costs what it did, as the weights are read once more and the cache "
        f"is small beside them: {own['tokens_per_second']:.1f} tokens a second, {whole['tokens_per_second']:.1f} "
        f"unpruned. On photographs the gain of an answer of 1, 16, 64 and 256 tokens is "
        f"{', '.join(f'{gain:.2f}' for gain in longer)} at the measured speeds."
    )
    shares = ", ".join(
        f"{own['encode_ms'] / own['first_token_ms']:.0%} ({MODELS[part]})"
        for part in MODELS
        for own in [parts[part].row(ALL)]
    )
    encoder = (
        "**The encoder.** It sees the whole picture whatever stays. Its share of the time to the first token, "
        f"unpruned: {shares}. Where it also needs the most memory, the peak does not fall any further."
    )
    slow = [
        f"{row['method']} ({name}, {row['first_token_speed_up']:.2f})"
        for part, name in METHODS.items()
        for row in parts[part].table.to_dict("records")
        if row["batch_size"] == 1 and row["share"] == SHARE and row["first_token_speed_up"] < 1
    ]
    costly = (
        "**Choosing that costs more than it saves.** At "
        f"{SHARE:.0%}, one question at a time, the first token comes later than without pruning by: "
        f"{'; '.join(slow) or 'no method, on no model'}."
    )
    return "".join(f"- {text}\n" for text in (fixed, decode, encoder, costly))


def methods_text(parts: Mapping[str, Recorded]) -> str:
    """Write what choosing costs with each method on each model, and how much sooner the first token is there."""
    cells: dict[str, dict[str, str]] = {}
    for part, name in METHODS.items():
        own = parts[part].table
        for row in own[(own["batch_size"] == 1) & own["share"].isin([1.0, SHARE])].to_dict("records"):
            if row["method"] != ALL:
                cells.setdefault(row["method"], {})[name] = (
                    f"{row['select_ms']:.1f} ({row['select_share']:.0%}), {row['first_token_speed_up']:.2f}"
                )
    rows = [[method, *(own.get(name, "–") for name in METHODS.values())] for method, own in cells.items()]
    return table(["method", *METHODS.values()], rows)


def counts_text() -> str:
    """Write operations and bytes of the checkpoints at full size, from their settings alone."""
    rows = []
    for name in CHECKPOINTS:
        model = empty_model(name)
        shape = ModelShape.from_model(model)
        n_grids, n_visual = picture_rows(model, HEIGHT, WIDTH)
        whole = prefill_operations(shape, n_visual + N_TEXT)
        kept = [prefill_operations(shape, round(n_visual * share) + N_TEXT) for share in (0.5, SHARE, 0.1)]
        encode = encoding_operations(shape, n_grids)
        match = selection_operations(shape, n_visual, N_PROTOTYPES)
        weights, cache = answer_bytes(shape, "half", n_visual + N_TEXT)
        rows.append([
            short(name), n_visual, f"{encode / 1e12:.1f}", f"{whole / 1e12:.1f}",
            " / ".join(f"{own / 1e12:.1f}" for own in kept), f"{(encode + whole) / (encode + kept[1]):.1f}",
            f"{match / whole:.3%}", f"{cache / weights:.1%}", f"{weights / cache:.0f}",
        ])  # fmt: skip
    header = [
        "model", "rows of the picture", "encoder (10¹²)", "prefill (10¹²)", f"at 50 / {SHARE * 100:.0f} / 10 %",
        f"first token at {SHARE * 100:.0f} %", "matching", "cache over weights", "questions at which they are equal",
    ]  # fmt: skip
    return table(header, rows)


def again_text(part: Recorded) -> str:
    """Time one setting again, and compare what does not depend on the machine with the record."""
    model, processor = load_model(part.settings["model"])
    samples = list(open_dataset(part.settings["images"], n=1))
    run = Run(
        model, processor, samples, part.settings["codebook"], [SHARE], part.settings["new"], ["codebook"]
    )
    found = compare(run, [1], 5).set_index("method")
    for method, share in ((ALL, 1.0), (CODEBOOK, SHARE)):
        known, now = part.row(method, share), found.loc[method]
        for name in ("n_prompt", "kv_cache_mib"):
            if known[name] != now[name]:
                raise ParameterError(f"{SMALL}, {method}: {name}", now[name], f"{known[name]}, as recorded")
    known, now = part.row(CODEBOOK, SHARE), found.loc[CODEBOOK]
    gains = "; ".join(f"{what} {now[name]:.1f} (recorded {known[name]:.1f})" for name, what in GAINS.items())
    return (
        f"This build read the same rows and cached the same bytes as recorded. It timed {MODELS[SMALL]} once more, "
        f"beside whatever else it did: {gains}.\n"
    )


def draw_times(parts: Mapping[str, Recorded], path: Path) -> None:
    """Draw where the time to the end of an answer goes, without pruning and with."""
    figure, axes = plt.subplots(figsize=(8.4, 4.6))
    names, line = [], 0.0
    for part, name in MODELS.items():
        whole = parts[part].row(ALL)
        for label, row in (("all tokens", whole), (f"{SHARE:.0%} kept", parts[part].row(CODEBOOK, SHARE))):
            left = 0.0
            for number, step in enumerate(STEPS):
                width = row[step] / whole["end_to_end_ms"]
                own = {"label": STEPS[step]} if not names else {}
                axes.barh(line, width, left=left, height=0.8, color=f"C{number}", **own)
                left += width
            axes.text(left + 0.01, line, f"{row['end_to_end_ms']:,.0f} ms", va="center")
            names.append((line, f"{name}, {label}" if label == "all tokens" else label))
            line += 0.9
        line += 0.6
    axes.set_yticks([place for place, _ in names], [text for _, text in names])
    axes.invert_yaxis()
    axes.set_xlabel("share of the time of an unpruned answer of 16 tokens", loc="right")
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.set_xlim(0, 1.18)
    axes.legend(loc="upper center", bbox_to_anchor=(0.3, -0.14), ncols=3)
    figure.savefig(path)
    plt.close(figure)


def draw_gains(parts: Mapping[str, Recorded], path: Path) -> None:
    """Draw how much faster things are against the share of tokens that stay."""
    figure, both = plt.subplots(1, 2, figsize=(9.4, 3.3), sharex=True, sharey=True)
    for axes, part in zip(both, (SMALL, LARGE), strict=True):
        gains = pd.concat(
            own.assign(gain=own[name], **{"speed of": what, "questions at once": str(size)})
            for size in sorted(parts[part].table["batch_size"].unique())
            for own in [parts[part].codebook(size)]
            for name, what in GAINS.items()
        )
        sns.lineplot(
            gains.reset_index(), x="share", y="gain", hue="speed of", style="questions at once", markers=True,
            palette=CYCLE[: len(GAINS)], legend=axes is both[1], ax=axes,
        )  # fmt: skip
        axes.axhline(1, color=MUTED, linewidth=0.9)
        axes.set_title(MODELS[part])
        axes.set_xlabel("share of visual tokens kept", loc="right")
    both[0].set_ylabel("times as fast as with all tokens")
    sns.move_legend(both[1], "center left", bbox_to_anchor=(1, 0.5), title=None)
    figure.savefig(path)
    plt.close(figure)


def main() -> int:
    """Write the parts and the figures."""
    return run_command("make_efficiency", _write)


def _write() -> None:
    parts = dict.fromkeys([*MODELS, *METHODS])
    if missing := [part for part in parts if recorded(part) is None]:
        told = f"Not recorded yet: {', '.join(missing)}. `make bench` and `python -m benchmarks --record` do so.\n"
        texts = dict.fromkeys(RECORDED_TEXTS, "") | {"answer": told}
    else:
        texts = recorded_texts({part: Recorded(part) for part in parts})
    write_parts(FOLDER, texts | {"targets": targets_text(), "counts": counts_text()})


def recorded_texts(parts: Mapping[str, Recorded]) -> dict[str, str]:
    """Write what recorded results say, with their figures."""
    use_style()
    FOLDER.mkdir(parents=True, exist_ok=True)
    draw_times(parts, FOLDER / "times.png")
    draw_gains(parts, FOLDER / "gains.png")
    texts = (
        answer_text(parts), figure_text("times", parts), provenance_text(parts), times_text(parts),
        figure_text("gains", parts), limits_text(parts), methods_text(parts), again_text(parts[SMALL]),
    )  # fmt: skip
    return dict(zip(RECORDED_TEXTS, texts, strict=True))


def figure_text(name: str, parts: Mapping[str, Recorded]) -> str:
    """Show a figure on the page; in place of one that cannot be seen stands what it shows of both models."""
    told = []
    for part in (SMALL, LARGE):
        whole, own = parts[part].row(ALL), parts[part].row(CODEBOOK, SHARE)
        if name == "times":
            told.append(
                f"{MODELS[part]}: {own['end_to_end_ms']:,.0f} ms an answer instead of {whole['end_to_end_ms']:,.0f}, "
                f"of which the prefill took {whole['prefill_ms'] / whole['end_to_end_ms']:.0%}"
            )
        else:
            gains = ", ".join(f"{what} {own[gain]:.2f}" for gain, what in GAINS.items())
            told.append(f"{MODELS[part]}: {gains} times as fast")
    said = f"With {SHARE:.0%} of the tokens, {'; '.join(told)}."
    alternative = json.dumps(said, ensure_ascii=False)
    return f"```{{figure}} _build/efficiency/{name}.png\n:alt: {alternative}\n:class: drawn\n\n{CAPTIONS[name]}\n```\n"


if __name__ == "__main__":
    sys.exit(main())
