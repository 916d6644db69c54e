"""Say on the page on efficiency which targets the recorded benchmarks reach, and what one run of all of them took."""

from __future__ import annotations

import pandas as pd

from benchmarks.__main__ import CPU, GPU
from benchmarks.machine import Speed
from benchmarks.probing import LEVELS
from benchmarks.probing import TARGETS as PROBING
from benchmarks.pruning import LEAST_SPEED, MOST_SELECTION
from benchmarks.results import WHOLE, recorded, target_table
from rcblib.reading.labels import label_of
from tools.write_parts import table


def run_text() -> str:
    """Say what one run of all parts took, where they were recorded so, and what else the machine did."""
    if (found := recorded(WHOLE["cpu"])) is None:
        return ""
    run = pd.DataFrame(found["run"])
    minutes, product = found["targets"][0]["value"], Speed(**found["product"])
    longest = run.loc[run["seconds"].idxmax()]
    others = (run["others"] * run["seconds"]).sum() / run["seconds"].sum()
    return (
        f" All {len(run)} parts were measured in one run of {minutes:.1f} minutes, each in a process of "
        f"its own; the longest is {longest['part']} with {longest['seconds']:.0f} s. Other processes had {others:.1%} "
        f"of the cores meanwhile; {product}."
    )


def targets_text() -> str:
    """Write every target with what was recorded, then those of a GPU, which were never run."""
    rows = []
    found = target_table([*CPU, WHOLE["cpu"]])
    for target in found.to_dict("records"):
        value = "not measured" if pd.isna(target["value"]) else f"{target['value']:.3g}{target['unit']}"
        verdict = "met" if target["met"] else f"short{': ' * bool(target['why'])}{target['why']}"
        what = ", ".join(label_of(part) for part in target["what"].split(", "))
        rows.append([what, f"{target['kind']} {target['limit']:.3g}{target['unit']}", value, verdict])
    missing = [part for part in CPU if recorded(part) is None]
    done = target_table([*GPU, WHOLE["gpu"]])
    if done.empty:
        for what, least in zip(LEVELS.values(), PROBING["cuda"], strict=True):
            rows.append([f"{what}, LLaVA-1.5-7B on a GPU", f"at least {least}x", "–", "never run"])
        most = 100 * MOST_SELECTION["cuda"]
        rows.append(["selection over prefill, LLaVA-1.5-7B on a GPU", f"at most {most:g}%", "–", "never run"])
        plain = "pruned prefill over a plain one, LLaVA-1.5-7B on a GPU"
        rows.append([plain, f"at least {LEAST_SPEED:g}x", "–", "never run"])
    for target in done.to_dict("records"):
        rows.append([f"{target['what']}, {target['gpu']}", f"{target['kind']} {target['limit']:.3g}{target['unit']}",
                     f"{target['value']:.3g}{target['unit']}", "met" if target["met"] else "short"])  # fmt: skip
    n_met = int(found["met"].sum()) if len(found) else 0
    said = f"{n_met} of {len(found)} targets on the CPU are met."
    said += run_text()
    if missing:
        said += f" Not recorded: {', '.join(missing)}."
    return f"{said}\n\n{table(['what', 'target', 'measured', ''], rows)}"
