"""Write what was found, for the start page and the page on claims: every number from a result, with its controls.

Claims are judged by the rules of ``data/claims.yml`` as their notebook judges them; words that no result gives, such
as the paper's evidence and what would change a verdict, stand in ``book/what_we_found.yml``. The pages
``book/intro.md`` and ``book/what_we_found.md`` include what is written to ``book/_build/findings/``.

    python -m tools.make_findings
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from rcblib.reading.claim_lines import (
    NOTHING,
    claim_lines,
    claim_numbers,
    failed_gates,
    is_on_pruning,
    joined,
    settings_of,
)
from rcblib.reading.claims import Claim, read_claims
from rcblib.reading.gate_results import GateResult, read_gates_file
from rcblib.reading.labels import label_of
from rcblib.reading.verdicts import GATES_STAGE, PRUNING_STAGE, Evidence, collect, verdict_table, weigh_all
from rcblib.records import ParameterError
from rcblib.runs.files import read_json
from tools.write_parts import table, write_parts

ROOT = Path(__file__).resolve().parents[1]

PHOTOGRAPHS, SCENES, DROPPED = "llava-photographs", "llava-scenes", "llava-scenes-dropped"
STATES = "intermediate_states"
SPEED = "pruning-photographs-budgets"

CODEBOOK, SHARE = "codebook", 0.2
"""The method of the findings on pruning, and the share of the visual tokens that it keeps."""

DECIDED = ("holds", "does not hold", "undecided")

CONTROLS = ("unpruned", "guessing", "random", "oracle")


@dataclass(frozen=True)
class Headline:
    """Hold a finding: what it says, what was measured beside which controls, and what it rests on.

    Attributes
    ----------
    headline : str
        One sentence; which one follows from the numbers.
    measured : str
        What was measured, with its number.
    controls : dict
        Each of `CONTROLS` that has a meaning here, to its number.
    rests : str
        Samples, model and page.
    """

    headline: str
    measured: str
    controls: Mapping[str, str]
    rests: str

    def text(self, number: int) -> str:
        """Write it as an item of a list."""
        controls = "; ".join(f"{name} {self.controls[name]}" for name in CONTROLS if name in self.controls)
        return f"{number}. **{self.headline}** {self.measured} Controls: {controls}. *{self.rests}*\n"


@dataclass(frozen=True)
class Judged:
    """Hold all that was measured, weighed, and the verdicts on it."""

    claims: Sequence[Claim]
    models: Mapping[str, Evidence]
    verdicts: pd.DataFrame

    def result(self, model: str, source: str, name: str) -> Mapping[str, Any]:
        """Return one result of a model.

        Raises
        ------
        ParameterError
            If it was not measured.
        """
        found = self.models[model].results.get(source, {}).get(name) if model in self.models else None
        if not found or found.get("value") is None:
            raise ParameterError(f"{source} of {model}", name, "a result that was measured")
        return found

    def value(self, model: str, source: str, name: str) -> float:
        """Return the value of a result."""
        return float(self.result(model, source, name)["value"])

    def gate(self, model: str, what: str) -> GateResult:
        """Return a measured condition of a gate by what it measures, or how that begins."""
        for each in self.models[model].gates if model in self.models else ():
            if each.what.startswith(what) and each.verdict != "not measured":
                return each
        raise ParameterError(f"gates of {model}", what, "a condition that was measured")


def judge(root: Path) -> Judged:
    """Apply the rules to what lies in ``results/`` and ``data/recorded/`` of a project."""
    claims = read_claims(yaml.safe_load((root / "data/claims.yml").read_text(encoding="utf-8")))
    limits, declared, seeds = read_gates_file(root / "data/gates.yml")
    notebooks = {claim.source for claim in claims if not any(rule.retain_ratio for rule in claim.rules)}
    measured = collect(root / "results", root / "data/recorded", sorted(notebooks), [PHOTOGRAPHS])
    models = weigh_all(measured, claims, limits, seeds)
    return Judged(claims, models, verdict_table(models.values(), claims, declared))


def scores(judged: Judged, model: str) -> dict[str, str]:
    """Write a model's scores on test images with `SHARE` of the tokens, the codebook's and those of the controls."""
    end = f"retain_{SHARE * 100:g}"
    names = {CODEBOOK: f"score_{end}", "unpruned": "score_unpruned", "guessing": "score_guessing"}
    names |= {name: f"score_{name}_{end}" for name in ("random", "oracle")}
    return {name: f"{judged.value(model, PRUNING_STAGE, result):.2f}" for name, result in names.items()}


def side_of_random(judged: Judged, model: str) -> str:
    """Say whether the codebook is above random tokens, below them, or neither."""
    low, high = judged.result(model, PRUNING_STAGE, f"above_random_retain_{SHARE * 100:g}")["interval"]
    return "above" if low > 0 else "below" if high < 0 else "neither"


def on_photographs(judged: Judged) -> Headline:
    """Tell what a fifth of the tokens keeps on photographs."""
    own = scores(judged, PHOTOGRAPHS)
    relative = judged.result(PHOTOGRAPHS, PRUNING_STAGE, f"relative_retain_{SHARE * 100:g}")
    low, high = relative["interval"]
    headline = {
        "above": f"On photographs {SHARE:.0%} of the tokens keep what random tokens lose, if the codebook picks them.",
        "below": "On photographs the codebook picks worse than chance.",
        "neither": "On photographs the codebook is not seen to pick better than chance.",
    }[side_of_random(judged, PHOTOGRAPHS)]
    return Headline(
        headline,
        f"Score {own[CODEBOOK]}, which is {relative['value']:.0%} [{low:.0%}, {high:.0%}] of what the unpruned "
        "model has above guessing.",
        own,
        f"{relative['n']} questions on composed photographs, one small model of pretrained parts: "
        "[](notebooks/pruned_inference.ipynb).",
    )


def on_scenes(judged: Judged) -> Headline:
    """Tell the same of drawn scenes, where the LLM never saw fewer tokens in training, and where it did."""
    own, dropped = scores(judged, SCENES), scores(judged, DROPPED)
    side = side_of_random(judged, SCENES)
    headline = {
        "above": "On drawn scenes the codebook picks better than chance.",
        "below": "On drawn scenes the codebook picks worse than chance.",
        "neither": "On drawn scenes the codebook is not seen to pick better than chance.",
    }[side]
    return Headline(
        headline,
        f"Score {own[CODEBOOK]}. An LLM that met fewer tokens in training gets {dropped[CODEBOOK]}, with random tokens "
        f"{dropped['random']}: what pruning costs is the LLM's doing, too.",
        own,
        f"{judged.result(SCENES, PRUNING_STAGE, 'score_unpruned')['n']} questions on drawings: "
        "[](notebooks/pruned_inference.ipynb).",
    )


def signals(judged: Judged) -> Headline:
    """Tell how the two intermediate states that the paper criticises rank tokens that are recognised alone."""
    cls, attention, random = (
        judged.result(PHOTOGRAPHS, STATES, f"{name}_low_share_of_recognisable")
        for name in ("cls", "attention", "random")
    )
    low, high = cls["interval"]
    headline = (
        "On photographs similarity to [CLS] is no better than random numbers, and attention is much better."
        if low <= random["value"] <= high and attention["interval"][1] < random["value"]
        else "On photographs similarity to [CLS] and attention differ from what the paper says of them."
    )
    area = judged.gate(PHOTOGRAPHS, "best pixel baseline")
    score = judged.result(PHOTOGRAPHS, GATES_STAGE, "score_unpruned")
    guessing = judged.value(PHOTOGRAPHS, GATES_STAGE, "score_guessing")
    return Headline(
        headline,
        f"Of the tokens that are recognised alone, {cls['value']:.0%} [{low:.0%}, {high:.0%}] lie in the lower half "
        f"of their image by [CLS], {attention['value']:.0%} by attention. No verdict follows, since a patch's colour "
        f"gives objects away as well (area {area.value:.2f}).",
        {
            "unpruned": f"score {score['value']:.2f}", "guessing": f"{guessing:.2f}",
            "random": f"{random['value']:.0%}", "oracle": "0%",
        },
        f"{cls['n']} recognised tokens of photographs: [](notebooks/intermediate_states.ipynb).",
    )  # fmt: skip


def seeds(judged: Judged) -> Headline:
    """Tell whether two trainings of one model agree on which tokens say little."""
    overlap = judged.gate(PHOTOGRAPHS, "overlap of two seeds")
    headline = (
        "Two trainings of one model agree on which tokens say little."
        if overlap.verdict == "passed"
        else "Two trainings of one model hardly agree on which tokens say little."
    )
    return Headline(
        headline,
        f"Their sets overlap (intersection over union) by {overlap.value:.2f} [{overlap.low:.2f}, {overlap.high:.2f}] "
        f"where {overlap.bound:g} was asked for beforehand; so that pruning works does not show why it works.",
        {"random": f"sets {overlap.by_chance:.2f}", "oracle": "1"},
        f"{overlap.n} tokens of photographs that either of them calls so: [](notebooks/claims.ipynb).",
    )


def speed(root: Path) -> Headline:
    """Tell what a fifth of the tokens saves in time."""
    content = read_json(root / f"data/recorded/benchmarks/{SPEED}.json")
    rows = pd.DataFrame(content["pruning"]).query("batch_size == 1")
    own = rows[(rows["method"] == CODEBOOK) & (rows["retain_ratio"] == SHARE)].iloc[0]
    unpruned = rows[rows["retain_ratio"].isna()].iloc[0]
    return Headline(
        "Pruning speeds up the reading of a prompt, and hardly the answer.",
        f"With {SHARE:.0%} of the tokens the prefill is {own['speed_up']:.1f} times as fast, a whole answer "
        f"{own['end_to_end_speed_up']:.2f} times.",
        {"unpruned": f"{unpruned['speed_up']:.0f}"},
        f"Photographs' model, {content['provenance']['cpu']}, GPU {content['provenance']['gpu']}: [](efficiency.md).",
    )


def findings_text(judged: Judged, root: Path) -> str:
    """Write all findings as a list."""
    every = [on_photographs(judged), on_scenes(judged), signals(judged), seeds(judged), speed(root)]
    return "\n".join(finding.text(number) for number, finding in enumerate(every, 1))


def summary_text(judged: Judged) -> str:
    """Say in one paragraph what was found, on what, how many claims that decides, and what was not run."""
    end = f"retain_{SHARE * 100:g}"
    kept, random = (
        judged.value(PHOTOGRAPHS, PRUNING_STAGE, f"relative_{name}{end}") for name in ("", "random_")
    )
    of_claim = judged.verdicts.groupby("claim")["verdict"]
    decided = [name for name, verdicts in of_claim if verdicts.isin(DECIDED).any()]
    return (
        f"**In short:** on photographs, {SHARE:.0%} of the visual tokens, chosen by the paper's codebook, keep "
        f"{kept:.0%} of the score above guessing; random ones keep {random:.0%}. That comes from small models; "
        f"[what was not run](not-run) are the published checkpoints. Of {of_claim.ngroups} claims of the paper "
        f"{', '.join(decided) or 'none'} could be decided: checks set beforehand stop "
        f"{'the others' if decided else 'all of them'}.\n"
    )


def claim_table(judged: Judged, claim: Claim) -> str:
    """Write a claim's numbers and verdicts, one line a model, and below them which method was the best other.

    Of the reasons only the gates that failed are told.
    """
    lines = claim_lines(judged.models.values(), claim, judged.verdicts).fillna(NOTHING)
    own, asked = ("codebook", "random") if is_on_pruning(claim) else ("low share", "low share")
    rows, rivals = [], []
    for model, line in lines.iterrows():
        numbers = claim_numbers(judged.models[model], claim)
        if all(number is None for number in numbers[asked]):
            continue
        failed = ", ".join(failed_gates(judged.models[model], claim))
        row = {"model": label_of(model), "score": joined(numbers[own])}
        row |= {"verdict": f"{line['verdict']} ({failed})" if failed else line["verdict"]}
        row |= {name: joined(numbers[name]) for name in ("random", "oracle", "guessing", "unpruned")}
        rows.append(row)
        if line.get("best other", NOTHING) != NOTHING:
            rivals.append(f"{row['model']}: {line['best other']}")
    if not rows:
        return "Not measured yet.\n"
    told = f"\nThe best other method. {'; '.join(rivals)}.\n" if rivals else ""
    return table(list(rows[0]), [list(row.values()) for row in rows]) + told


def claims_text(judged: Judged, words: Mapping[str, Mapping[str, str]]) -> str:
    """Write a section a claim."""
    by_name = {claim.name: claim for claim in judged.claims}
    parts = []
    for name, own in words.items():
        claim = by_name.get(name)
        found = (
            claim_table(judged, claim)
            if claim
            else "No rule has been written for it yet, so there is no verdict.\n"
        )
        settings = f" Numbers: {' · '.join(settings_of(claim))}." if claim else ""
        parts.append(
            f"## {name}: {own['title']}\n\n**The paper.** {own['paper']}\n\n**Our test.** {own['test']}{settings}\n\n"
            f"{found}\n**Why.** {own['why']} **What would change our mind.** {own['change']}\n"
        )
    return "\n".join(parts)


def read_words(root: Path) -> dict[str, dict[str, str]]:
    """Read the words that no result gives.

    Raises
    ------
    ParameterError
        If a claim lacks an entry, or holds another one.
    """
    words = yaml.safe_load((root / "book/what_we_found.yml").read_text(encoding="utf-8"))
    for name, own in words.items():
        if set(own) != {"title", "paper", "test", "why", "change"}:
            raise ParameterError(name, sorted(own), "title, paper, test, why and change")
    return {name: {key: text.strip() for key, text in own.items()} for name, own in words.items()}


def main(root: Path = ROOT) -> int:
    """Write the parts of both pages."""
    judged = judge(root)
    parts = {
        "findings": findings_text(judged, root),
        "summary": summary_text(judged),
        "claims": claims_text(judged, read_words(root)),
    }
    write_parts(root / "book/_build/findings", parts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
