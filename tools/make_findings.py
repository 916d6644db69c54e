"""Write what was found, for the start page and the page on claims: every number from a result, with its controls.

Claims are judged by the rules of ``data/claims.yml`` as their notebook judges them; words that no result gives, such
as the paper's evidence and what would change a verdict, stand in ``book/what_we_found.yml``. The pages
``book/intro.md`` and ``book/what_we_found.md`` include what is written to ``book/_build/findings/``.

    python -m tools.make_findings
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from rcblib.evaluate.gates import TOKENS, part_of
from rcblib.evaluate.guessing import kinds_of
from rcblib.pruners.every import BY_CHANCE
from rcblib.reading.claim_lines import (
    NOTHING,
    asked_words,
    claim_lines,
    difference_words,
    failed_gates,
    is_on_pruning,
    relative_words,
    rival_words,
    rules_alone,
    said_numbers,
    settings_of,
)
from rcblib.reading.claims import Claim
from rcblib.reading.comparison import ALL_TOKENS
from rcblib.reading.labels import label_of
from rcblib.reading.verdicts import GATES_STAGE, PRUNING_STAGE, Evidence
from rcblib.records import ParameterError
from rcblib.runs.files import read_json
from tools.headlines import CONTROLS, Headline
from tools.judged import Judged, judge
from tools.write_parts import table, write_parts

ROOT = Path(__file__).resolve().parents[1]

PHOTOGRAPHS, SCENES, DROPPED = "llava-photographs", "llava-scenes", "llava-scenes-dropped"
DRAWN = (SCENES, "llava-next-scenes", "llava-onevision-scenes")
STATES, TRUTH = "intermediate_states", "signals_against_truth"
SPEED, EVERY_SPEED = "pruning-photographs-budgets", "pruning-photographs"
"""Times of the codebook over budgets, and of all methods, random tokens among them."""

CODEBOOK, SHARE = "codebook", 0.2
"""The method of the findings on pruning, and the share of the visual tokens that it keeps."""

PIXELS = "area_of_coverage_pixel_median_distance"
"""How well the pixel baseline of gate G4 finds objects on the images of another page."""

DECIDED = ("holds", "does not hold", "undecided")

ALONE = {"holds": "yes", "does not hold": "no", "undecided": "open", "not measured": NOTHING}
"""What the rules of a claim would say without gates, in a word."""


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


def counted_words(judged: Judged, model: str) -> str:
    """Say how many of the questions about test images count, and of how many kinds: those that pass G1."""
    answers = judged.models[model].tables[PRUNING_STAGE, "images"]
    kinds = kinds_of(answers[answers["method"] == ALL_TOKENS])
    counted = judged.models[model].tasks["images"]
    n = judged.result(model, PRUNING_STAGE, "score_unpruned")["n"]
    return (
        f"{n} of {len(kinds)} questions, those of the {len(counted)} of {kinds.nunique()} kinds that pass G1,"
    )


def on_photographs(judged: Judged) -> Headline:
    """Tell what a fifth of the tokens keeps on photographs."""
    own = scores(judged, PHOTOGRAPHS)
    relative = judged.result(PHOTOGRAPHS, PRUNING_STAGE, f"relative_retain_{SHARE * 100:g}")
    low, high = relative["interval"]
    headline = {
        "above": f"On photographs {SHARE:.0%} of the tokens keep what random tokens lose, if the codebook picks them.",
        "below": "On photographs the codebook scores worse than random tokens.",
        "neither": "On photographs the codebook is not seen to score better than random tokens.",
    }[side_of_random(judged, PHOTOGRAPHS)]
    return Headline(
        headline,
        f"Score {own[CODEBOOK]}, which is {relative['value']:.0%} [{low:.0%}, {high:.0%}] of what the unpruned "
        "model has above guessing.",
        own,
        f"{counted_words(judged, PHOTOGRAPHS)} on composed photographs, one small model of pretrained parts: "
        "[](notebooks/pruned_inference.ipynb).",
    )


def on_scenes(judged: Judged) -> Headline:
    """Tell the same of each model of drawn scenes, and of an LLM that saw fewer tokens in training."""
    sides = {model: side_of_random(judged, model) for model in DRAWN}
    said = {
        "above": "better than random tokens with",
        "below": "worse with",
        "neither": "not seen to differ with",
    }
    parts = [
        f"{words} {' and '.join(label_of(model) for model in DRAWN if sides[model] == side)}"
        for side, words in said.items()
        if side in sides.values()
    ]
    own, dropped = [scores(judged, model) for model in DRAWN], scores(judged, DROPPED)
    differences = []
    for model in DRAWN:
        found = judged.result(model, PRUNING_STAGE, f"above_random_retain_{SHARE * 100:g}")
        low, high = found["interval"]
        differences.append(f"{found['value']:+.2f} [{low:+.2f}, {high:+.2f}]")
    together = {name: " · ".join(each[name] for each in own) for name in (CODEBOOK, *CONTROLS)}
    n = [str(judged.result(model, PRUNING_STAGE, "score_unpruned")["n"]) for model in DRAWN]
    return Headline(
        f"On drawn scenes the codebook scores {', '.join(parts)}.",
        f"Scores of {', '.join(map(label_of, DRAWN))}: {together[CODEBOOK]}; of what lies above guessing, its share "
        f"minus that of random tokens {' · '.join(differences)}. {label_of(SCENES)} with an LLM that met fewer tokens "
        f"in training: {dropped[CODEBOOK]}, random tokens {dropped['random']}.",
        together,
        f"{' · '.join(n)} questions on drawings: [](notebooks/claims.ipynb).",
    )


def shares_below(judged: Judged, of: str) -> dict[str, str]:
    """Write which share of some tokens each state puts into the lower half of their image, with its interval."""
    found = {
        name: judged.result(PHOTOGRAPHS, STATES, f"{name}_low_share_of_{of}") for name in ("cls", "attention")
    }
    return {
        name: f"{each['value']:.0%} [{each['interval'][0]:.0%}, {each['interval'][1]:.0%}]"
        for name, each in found.items()
    }


def is_as_by_chance(judged: Judged, name: str, of: str) -> bool:
    """Tell whether a state puts as many of some tokens into the lower half as random numbers would."""
    low, high = judged.result(PHOTOGRAPHS, STATES, f"{name}_low_share_of_{of}")["interval"]
    return bool(low <= by_chance(judged, of) <= high)


def by_chance(judged: Judged, of: str) -> float:
    """Return the share of some tokens that random numbers put into the lower half, in the mean over all draws."""
    return float(judged.result(PHOTOGRAPHS, STATES, f"cls_reliability_for_{of}")["random"])


def pixels_words(judged: Judged) -> str:
    """Say how well pixels alone find objects: on the validation images of the gate, and on those of another page."""
    area = judged.gate(PHOTOGRAPHS, "best pixel baseline")
    tokens = part_of(judged.models[PHOTOGRAPHS].tables[GATES_STAGE, "images"], TOKENS)
    told = (
        f"area {area.value:.2f} on {tokens['image_id'].nunique()} validation images; {area.bounds} would pass"
    )
    other = judged.models[PHOTOGRAPHS].results.get(TRUTH, {}).get(PIXELS)
    if not other:
        return told
    low, high = other["interval"]
    return f"{told}; {other['value']:.2f} [{low:.2f}, {high:.2f}] on {other['n']} others"


def signals(judged: Judged) -> Headline:
    """Tell how the two intermediate states that the paper criticises rank tokens that matter."""
    kinds = ("recognisable", "influential")
    alone, missed = (shares_below(judged, of) for of in kinds)
    is_better = [
        judged.result(PHOTOGRAPHS, STATES, f"attention_low_share_of_{of}")["interval"][1]
        < by_chance(judged, of)
        for of in kinds
    ]
    headline = (
        "On photographs similarity to [CLS] ranks tokens no better than random numbers; attention does better."
        if all(is_as_by_chance(judged, "cls", of) for of in kinds) and all(is_better)
        else "On photographs similarity to [CLS] and attention differ from what the paper says of them."
    )
    states = {claim.name: claim for claim in judged.claims if claim.source == STATES}
    verdicts = [f"{name} {rules_alone(judged.models[PHOTOGRAPHS], claim)}" for name, claim in states.items()]
    cls = judged.result(PHOTOGRAPHS, STATES, "cls_low_share_of_recognisable")
    score = judged.result(PHOTOGRAPHS, GATES_STAGE, "score_unpruned")
    guessing = judged.value(PHOTOGRAPHS, GATES_STAGE, "score_guessing")
    return Headline(
        headline,
        f"In the lower half of their image lie, by [CLS] and by attention, {alone['cls']} and {alone['attention']} of "
        f"the tokens that are recognised alone, {missed['cls']} and {missed['attention']} of the most influential. By "
        f"the rules alone {', '.join(verdicts)}; a gate stops both: colour finds the objects as well "
        f"({pixels_words(judged)}), so that a good signal proves little.",
        {
            "unpruned": f"score {score['value']:.2f}", "guessing": f"{guessing:.2f}",
            "random": f"{by_chance(judged, kinds[0]):.0%}", "oracle": "0%",
        },
        f"{cls['n']} recognised tokens of {cls['n_clusters']} photographs: [](notebooks/intermediate_states.ipynb).",
    )  # fmt: skip


def seeds(judged: Judged) -> Headline:
    """Tell whether two trainings of one model agree on which tokens say little."""
    overlap = judged.gate(PHOTOGRAPHS, "overlap of two seeds")
    headline = (
        "Two trainings of one model agree on which tokens say little."
        if overlap.verdict == "passed"
        else "Two trainings of one model hardly agree on which tokens say little."
    )
    tokens = part_of(judged.models[PHOTOGRAPHS].tables[GATES_STAGE, "images"], TOKENS)
    n_images = tokens.dropna(subset="influence")["image_id"].nunique()
    return Headline(
        headline,
        f"Their sets overlap (intersection over union) by {overlap.value:.2f} [{overlap.low:.2f}, {overlap.high:.2f}], "
        f"and by {overlap.matched:.2f} where each has levels of its own; {overlap.bound:g} was asked for. So that "
        "pruning works does not show why it works.",
        {"random": f"sets {overlap.by_chance:.2f}", "oracle": "1"},
        f"{overlap.n} tokens of {n_images} photographs that either of them calls so: [](notebooks/claims.ipynb).",
    )


def timed(root: Path, part: str) -> tuple[Mapping[str, Any], pd.DataFrame]:
    """Return recorded times, and their rows with `SHARE` of the tokens by method and questions at once."""
    content = read_json(root / f"data/recorded/benchmarks/{part}.json")
    rows = pd.DataFrame(content["pruning"]).query("retain_ratio == @SHARE")
    return content, rows.set_index(["method", "batch_size"])


def speed(root: Path) -> Headline:
    """Tell what a fifth of the tokens saves in time, for answers of different lengths and sizes of a batch."""
    content, rows = timed(root, SPEED)
    other, every = timed(root, EVERY_SPEED)
    sizes = content["settings"]["batch_size"]
    own = rows.loc[[(CODEBOOK, size) for size in sizes]]
    first, *_ = own.to_dict("records")
    prefill = " and ".join(f"{each:.1f}" for each in own["speed_up"])
    whole = " and ".join(f"{each:.2f}" for each in own["end_to_end_speed_up"])
    (size,) = other["settings"]["batch_size"]
    short = {name: every.loc[(name, size), "end_to_end_speed_up"] for name in (CODEBOOK, BY_CHANCE)}
    new = other["settings"]["new"]
    return Headline(
        "Pruning speeds up the reading of a prompt more than a whole answer.",
        f"With {SHARE:.0%} of the tokens and {' or '.join(map(str, sizes))} questions at once the prefill is {prefill} "
        f"times as fast, an answer of {content['settings']['new']} tokens {whole} times; one of {new} tokens "
        f"{short[CODEBOOK]:.2f} times, the first token {first['first_token_speed_up']:.2f} times.",
        {"unpruned": "1", "random": f"{short[BY_CHANCE]:.2f} ({new} tokens)"},
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
        f"{', '.join(decided) or 'none'} could be decided: checks that were set before the photographs were measured, "
        f"and after a first round on drawn scenes, stop {'the others' if decided else 'all of them'}.\n"
    )


def claim_table(judged: Judged, claim: Claim) -> str:
    """Write a claim's numbers and verdicts, one line a model, and below them which method was the best other.

    Of the reasons only the gates that failed are told.
    """
    lines = claim_lines(judged.models.values(), claim, judged.verdicts).fillna(NOTHING)
    rows, rivals = [], []
    for model, line in lines.iterrows():
        each = judged.models[model]
        numbers = said_numbers(each, claim)
        if numbers["random"] == NOTHING:
            continue
        failed = ", ".join(failed_gates(each, claim))
        verdict = line["verdict"].removesuffix(" here")
        (first, number), *rest = columns_of(each, claim, numbers).items()
        row = {"model": label_of(model), first: number}
        row |= {"verdict": f"{verdict} ({failed})" if failed else verdict}
        row |= {"rules alone": ALONE[rules_alone(each, claim)]}
        rows.append(row | dict(rest) | {"n": asked_words(each, claim)})
        if rival := rival_words(each, claim):
            rivals.append(f"{row['model']}: {rival}")
    if not rows:
        return "Not measured yet.\n"
    told = f"\nThe other method, and the share of rows. {'; '.join(rivals)}.\n" if rivals else ""
    return table(list(rows[0]), [list(row.values()) for row in rows]) + told


def columns_of(each: Evidence, claim: Claim, numbers: Mapping[str, str]) -> dict[str, str]:
    """Return the numbers that a claim is read by: a share, a difference, or scores, and of few what is kept."""
    if not is_on_pruning(claim):
        head = (
            f"in the lower half (random {first_of(numbers['random'])}, perfect {first_of(numbers['oracle'])})"
        )
        return {head: numbers["low share"]}
    if compared := difference_words(each, claim):
        return {"difference": compared}
    scores_of = ("codebook", "random", "oracle", "guessing", "unpruned")
    is_of_few = len({rule.data for rule in claim.rules}) > 1
    kept = {"kept above guessing": relative_words(each, claim)} if is_of_few else {}
    return kept | {name: numbers[name] for name in scores_of}


def first_of(numbers: str) -> str:
    """Return the first of numbers that stand beside each other."""
    return numbers.split("\u202f")[0]


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
            f"{found}\n**Why.** {own['why']} **Would change it.** {own['change']}\n"
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
    judged = judge(root, [PHOTOGRAPHS], [TRUTH])
    parts = {
        "findings": findings_text(judged, root),
        "summary": summary_text(judged),
        "claims": claims_text(judged, read_words(root)),
    }
    write_parts(root / "book/_build/findings", parts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
