"""Say in a sentence or two, with numbers, what each experiment found: the head of its page.

The sentences are made of the results that a notebook writes, so they follow the numbers of every model, and say *not
clearly* where an interval leaves it open. No number is typed. The notebook glues them as its ``answer``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rcblib.reading.claims import interval_side
from rcblib.records import ParameterError

NOTHING = "Nothing of this was measured here."
"""The answer of a run that had nothing to tell, such as one without masks."""


class Found:
    """Read results by name, and write them into sentences.

    Parameters
    ----------
    results : mapping
        As `rcblib.runs.results.write_results` takes them.
    config : object
        The notebook's parameters.
    """

    def __init__(self, results: Mapping[str, Mapping[str, Any]], config: Any) -> None:
        self.results = results
        self.config = config

    def __contains__(self, name: str) -> bool:
        return self.results.get(name, {}).get("value") is not None

    def value(self, name: str) -> Any:
        """Return the value itself."""
        return self.results[name]["value"]

    def percent(self, name: str) -> str:
        """Write a share with its interval, as ``38% [30, 46]``."""
        interval = self.results[name].get("interval")
        ends = f" [{interval[0] * 100:.0f}, {interval[1] * 100:.0f}]" if interval else ""
        return f"{self.value(name):.0%}{ends}"

    def number(self, name: str) -> str:
        """Write a number with its interval, as ``0.64 [0.59, 0.69]``."""
        interval = self.results[name].get("interval")
        ends = f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else ""
        return f"{self.value(name):.2f}{ends}"

    def side(self, name: str, reference: float) -> str:
        """Return ``above``, ``below`` or ``undecided``, by the interval."""
        low, high = self.results[name].get("interval") or (float("nan"), float("nan"))
        return interval_side(low, high, reference)

    def beside(self, name: str, other: str, words: tuple[str, str, str]) -> str:
        """Choose among words for higher, lower and not clearly different, as intervals do not overlap or do."""
        (low, high), (other_low, other_high) = (self.results[each]["interval"] for each in (name, other))
        return words[0] if low > other_high else words[1] if high < other_low else words[2]

    def budgets(self, method: str) -> list[int]:
        """Return the budgets, in percent, for which there is a relative score of a method."""
        start = f"{method}_relative_score_retain_"
        return sorted(int(name.removeprefix(start)) for name in self.results if name.startswith(start))


def answer_of(name: str, results: Mapping[str, Mapping[str, Any]], config: Any = None) -> str:
    """Return what the notebook of that name found; `NOTHING` where a result that its sentences need is missing.

    Parameters
    ----------
    name : str
        Stem of the notebook.
    results : mapping
        Name to ``{"value": ..., "n": ..., "interval": [low, high] or None}``, as the notebook writes them.
    config : object
        The notebook's parameters.

    Raises
    ------
    ParameterError
        If there are no sentences for the notebook: those of the others are made by themselves.
    """
    if name not in ANSWERS:
        raise ParameterError("name", name, f"one of {', '.join(ANSWERS)}")
    needed, say = ANSWERS[name]
    found = Found(results, config)
    return say(found) if results and all(each in found for each in needed.split()) else NOTHING


def _token_centric(found: Found) -> str:
    tells = {"above": "tells", "below": "tells the wrong way round", "undecided": "does not clearly tell"}
    said = (
        "Shown alone, a token on an object says what lies beneath it in "
        f"{found.percent('recognised_on_objects')} of cases, and how surely it speaks "
        f"{tells[found.side('area_top1_probability', 0.5)]} objects from background (area under the "
        f"ROC curve {found.number('area_top1_probability')}; 0.5 is chance)."
    )
    if "recognised_lower_half" in found:
        said += (
            f" Of the half least similar to [CLS] {found.percent('recognised_lower_half')} are "
            f"recognised, of the other half {found.percent('recognised_upper_half')}."
        )
    return said


def _context_centric(found: Found) -> str:
    more = {"above": "more", "below": "less", "undecided": "about equally"}
    whole, near = "area_global_divergence", "area_region_divergence"
    return (
        f"Leaving a token out of the whole image changes the answer {more[found.side(whole, 0.5)]} "
        f"where an object lies beneath it (area under the ROC curve {found.number(whole)}; 0.5 is "
        f"chance); leaving it out of the nine around it changes it {more[found.side(near, 0.5)]} "
        f"there ({found.number(near)})."
    )


def _intermediate_states(found: Found) -> str:
    signals = {"cls": "similarity to [CLS]", "attention": "attention to text"}
    told = [
        f"{said} {found.number(f'{key}_reliability_for_recognisable')}"
        for key, said in signals.items()
        if f"{key}_reliability_for_recognisable" in found
    ]
    return (
        "As a guide to the tokens that can be recognised alone, where 1 is perfect and 0 is random "
        f"numbers, there is {', and '.join(told)}."
    )


def _build_codebook(found: Found) -> str:
    words = ("more than", "less than", "about as much as")
    compared = found.beside("coverage_of_prototypes", "coverage_of_probed", words)
    return (
        f"{found.value('n_prototypes'):,} of {found.results['low_information_share']['n']:,} probed "
        f"tokens become redundant prototypes, from {found.value('n_prototype_images'):,} of "
        f"{found.results['n_prototypes']['n']:,} images. Objects cover "
        f"{found.percent('coverage_of_prototypes')} of a prototype's patch, {compared} of a token's "
        f"at large ({found.percent('coverage_of_probed')}); masks had no part in the choice."
    )


def _prototypes(found: Found) -> str:
    kept, by_chance = "codebook_object_patches_kept", "random_object_patches_kept"
    compared = found.beside(kept, by_chance, ("more than", "less than", "about as many as"))
    said = (
        f"With {found.config.retain:.0%} of the tokens the codebook keeps {found.percent(kept)} of "
        f"the patches on objects, {compared} random choice ({found.percent(by_chance)})"
    )
    if "cls_most_object_patches_kept" in found:
        said += f"; similarity to [CLS] keeps {found.percent('cls_most_object_patches_kept')}"
    return said + "."


def _pruned_inference(found: Found) -> str:
    budgets = found.budgets("codebook")
    words = {"above": "more than", "below": "less than", "undecided": "not clearly different from"}
    is_corrected = all(f"codebook_above_guessing_retain_{percent}" in found for percent in budgets)
    kept, said = (
        ("above_guessing", "score above guessing") if is_corrected else ("relative_score", "full score")
    )
    told = []
    for percent in sorted({20, budgets[0]} & set(budgets), reverse=True):
        name, by_chance = (f"{method}_{kept}_retain_{percent}" for method in ("codebook", "random"))
        difference = f"codebook_minus_random_retain_{percent}"  # of the same questions
        compared = words[found.side(difference, 0) if difference in found else "undecided"]
        told.append(
            f"with {percent}% of the tokens the codebook keeps {found.percent(name)} of the {said}, {compared} random "
            f"tokens ({found.percent(by_chance)})"
        )
    sentence = "; ".join(told)
    if "kinds_that_count" in found:
        kinds = found.results["kinds_that_count"]
        n_asked = sum(own["n"] for name, own in found.results.items() if name.startswith("unpruned_"))
        sentence += (
            f". That is of {found.results[f'codebook_relative_score_retain_{budgets[0]}']['n']:,} of {n_asked:,} "
            f"questions, those of the {kinds['value']} of {kinds['n']} kinds that count"
        )
    return f"{sentence[0].upper()}{sentence[1:]}."


def _images_and_video(found: Found) -> str:
    told = [
        f"on {said} {found.percent(f'{kind}_relative_score_retain_20')} (random tokens "
        f"{found.percent(f'{kind}_random_relative_score_retain_20')}, guessing without any picture "
        f"{found.percent(f'{kind}_relative_score_guessing')})"
        for kind, said in (("multi_image", "several images"), ("video", "video"))
    ]
    return f"With 20% of the tokens the codebook keeps, of the full score, {' and '.join(told)}."


def _real_benchmarks(found: Found) -> str:
    task = next(name.split("_relative_score")[0] for name in found.results if "_relative_score" in name)
    told = [
        f"{found.percent(f'{task}_relative_score_retain_{percent}')} with {percent}% of the tokens"
        for percent in reversed(found.budgets(task))
    ]
    n = found.results[f"{task}_score_full"]["n"]
    return (
        f"Through lmms-eval, on {n:,} answers of the task `{task}`, the model keeps of its full score "
        f"{' and '.join(told)}."
    )


def _merge_shards(found: Found) -> str:
    same = "byte for byte the table" if found.value("same_bytes") else "not the table"
    return (
        f"{found.value('n_shards')} shards, put together, give {found.value('n_rows'):,} rows: {same} "
        "of one run without shards."
    )


def _photographs(found: Found) -> str:
    return (
        "The noun nearest to a token on an object is that object's in "
        f"{found.percent('named_on_objects')} of cases, before any LLM has read it; how near it is "
        f"tells objects from background (area {found.number('area_nearest_noun')}; 0.5 is chance), "
        f"which similarity to [CLS] does not do as well ({found.number('area_cls_similarity')})."
        if found.beside("area_nearest_noun", "area_cls_similarity", ("more", "", "")) == "more"
        else f"The noun nearest to a token on an object is that object's in "
        f"{found.percent('named_on_objects')} of cases."
    )


def _embedded_world(found: Found) -> str:
    return (
        f"The model names the dominant object of {found.percent('score_one_word')} of new scenes "
        f"({found.percent('shuffled_one_word')} where it is shown another one), and a single token "
        f"names the object beneath it in {found.percent('named_one')} of cases "
        f"({found.percent('named_by_chance_one')} by chance)."
    )


def _train_embedded(found: Found) -> str:
    return (
        f"The shipped model saw {found.value('shipped_scenes'):,} scenes in "
        f"{found.value('shipped_minutes'):.0f} minutes, on a CPU; packing several scenes into one "
        f"sequence changes no logit by more than {found.value('packed_difference'):.0e}."
    )


ANSWERS: dict[str, tuple[str, Callable[[Found], str]]] = {
    "token_centric": ("recognised_on_objects area_top1_probability", _token_centric),
    "context_centric": ("area_global_divergence area_region_divergence", _context_centric),
    "intermediate_states": ("attention_reliability_for_recognisable", _intermediate_states),
    "build_codebook": ("n_prototypes coverage_of_prototypes coverage_of_probed", _build_codebook),
    "prototypes": ("codebook_object_patches_kept random_object_patches_kept", _prototypes),
    "pruned_inference": (
        "codebook_relative_score_retain_20 random_relative_score_retain_20",
        _pruned_inference,
    ),
    "images_and_video": (
        "multi_image_relative_score_guessing video_relative_score_guessing",
        _images_and_video,
    ),
    "real_benchmarks": ("", _real_benchmarks),
    "merge_shards": ("same_bytes n_shards", _merge_shards),
    "photographs": ("named_on_objects area_nearest_noun area_cls_similarity", _photographs),
    "embedded_world": ("score_one_word shuffled_one_word named_one named_by_chance_one", _embedded_world),
    "train_embedded": ("shipped_scenes shipped_minutes packed_difference", _train_embedded),
}
"""The results that a notebook's sentences need, and what makes them."""
