"""Vary one choice of the codebook's recipe at a time, and ask what the codebook then knows of the truth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from rcblib.codebook.build import build_codebook_from_pool
from rcblib.codebook.clustered import ProbedImages
from rcblib.codebook.codebook import Codebook
from rcblib.codebook.criterion import CodebookCriterion
from rcblib.reading.column_means import mean_intervals
from rcblib.reading.truth import MIN_COVERAGE, RankedViews, positives
from rcblib.records import CodebookError, ImageId, ParameterError

FORMS = ("released", "textbook")

GLOBAL_WEIGHTS, REGION_WEIGHTS = (0.0, 1.0, 4.0, 16.0, 64.0), (0.0, 1.0, 16.0)
QUANTILES = (0.1, 0.3, 0.5, 0.8, 1.0)
PROTOTYPE_CLUSTERS, NEIGHBOURS = (16, 32, 64, 128), (2, 3, 5, 10)
MIN_IMAGE_SHARES = (0.0, 0.02, 0.05, 0.13, 0.25)
TRAINING_SHARES = (0.05, 0.1, 0.25, 0.5, 1.0)

PROTOTYPES, TOKENS_INSTEAD = "prototypes of the recipe's codebook", "probed tokens instead"
"""Choices of `drawn_books`."""

PROTOTYPE_COUNTS = (3, 10, 30, 100, 300)


@dataclass(frozen=True)
class CodebookRecipe:
    """Say how a codebook is made of probed images.

    Attributes
    ----------
    criterion : CodebookCriterion
        Its two thresholds do not count: they are quantiles of what was probed, so that a changed weight or form changes
        which tokens are low-information, not how many.
    tau_p_quantile, tau_jsd_quantile : float
        Quantiles of the top-1 probability and of the influence, in [0, 1]; with 1 the threshold excludes nothing.
    form : {"released", "textbook"}
        Of the divergence.
    n_images : int, optional
        The first so many images; all by default.
    backgrounds : tuple of str, optional
        Kinds of background that images are taken from; all by default.
    """

    criterion: CodebookCriterion
    tau_p_quantile: float = 0.3
    tau_jsd_quantile: float = 0.5
    form: str = "released"
    n_images: int | None = None
    backgrounds: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ParameterError("form", self.form, f"one of {FORMS}")


@dataclass(frozen=True)
class Variant:
    """Name a recipe by the choice that it varies; `is_reference` where it is the recipe that all vary."""

    choice: str
    value: str
    recipe: CodebookRecipe
    is_reference: bool = False


def variants(reference: CodebookRecipe, n_images: int, backgrounds: Iterable[str] = ()) -> list[Variant]:
    """List the recipes that differ from a reference in one choice.

    Parameters
    ----------
    reference : CodebookRecipe
        Such as the paper's.
    n_images : int
        Images that were probed.
    backgrounds : iterable of str
        Kinds of background among them; of each kind alone a codebook is made.
    """
    base = reference.criterion
    share = base.min_images / n_images

    def of(**changes: object) -> CodebookRecipe:
        return replace(reference, criterion=replace(base, **changes))

    everything = base.n_clusters * 10**6
    listed = {
        "weight of the global divergence": {f"{w:g}": of(k_global=w) for w in GLOBAL_WEIGHTS},
        "weight of the region divergence": {f"{w:g}": of(k_region=w) for w in REGION_WEIGHTS},
        "form of the divergence": {form: replace(reference, form=form) for form in FORMS},
        "threshold of the probability": {
            _percent(q): replace(reference, tau_p_quantile=q) for q in QUANTILES
        },
        "threshold of the influence": {
            _percent(q): replace(reference, tau_jsd_quantile=q) for q in QUANTILES
        },
        "clustering of each image": {
            "on": reference,
            "off": of(n_clusters=1, cluster_size_max=everything),
        },
        "clusters of prototypes": {str(n): of(n_prototype_clusters=n) for n in PROTOTYPE_CLUSTERS},
        "neighbours in DPC-KNN": {str(k): of(n_neighbours=k) for k in NEIGHBOURS},
        "share of images that a cluster must exceed": {
            _percent(s): of(min_images=int(s * n_images)) for s in MIN_IMAGE_SHARES
        },
        "training images": {
            str(n): replace(of(min_images=int(share * n)), n_images=n)
            for n in dict.fromkeys(max(2, round(s * n_images)) for s in TRAINING_SHARES)
        },
    }
    kinds = sorted(set(backgrounds))
    if len(kinds) > 1:
        listed["backgrounds of training images"] = {
            kind: replace(of(min_images=int(base.min_images / len(kinds))), backgrounds=(kind,))
            for kind in kinds
        }
    return [
        Variant(choice, value, recipe, recipe == reference)
        for choice, by_value in listed.items()
        for value, recipe in by_value.items()
    ]


def make_codebook(
    recipe: CodebookRecipe,
    probed: ProbedImages,
    backgrounds: Mapping[ImageId, str] | None = None,
    *,
    family: str = "",
) -> Codebook:
    """Build a codebook by a recipe, the one that `rcblib.codebook.build.build_codebook_by_image` would build.

    Parameters
    ----------
    recipe : CodebookRecipe
        How.
    probed : ProbedImages
        Of what.
    backgrounds : Mapping, optional
        Image id to the kind of its background, for recipes that ask for some.
    family : str
        The model's.

    Raises
    ------
    CodebookError
        If nothing recurs.
    ParameterError
        If a recipe asks for backgrounds that no image has, or more images than there are.
    """
    ids = list(probed)
    if recipe.backgrounds is not None:
        ids = [i for i in ids if (backgrounds or {}).get(i) in recipe.backgrounds]
    if not ids or (recipe.n_images or 0) > len(ids):
        given = recipe.backgrounds if not ids else recipe.n_images
        raise ParameterError("recipe", given, f"what the {len(probed)} probed images have")
    ids = ids[: recipe.n_images]
    form = "_textbook" if recipe.form == "textbook" else ""
    table, rows = probed.table, probed.rows(ids)
    divergences = [table[f"{name}_divergence{form}"].to_numpy(float) for name in ("region", "global")]
    top1 = table["top1_probability"].to_numpy(float)
    influence = recipe.criterion.influence(*divergences)
    criterion = replace(
        recipe.criterion,
        tau_p=_threshold(top1[rows], recipe.tau_p_quantile, most=1.0),
        tau_jsd=max(_threshold(influence[rows], recipe.tau_jsd_quantile), 1e-12),
    )
    pool, generator = probed.pool(ids, criterion, criterion.low_information(top1, *divergences))
    return build_codebook_from_pool(pool, criterion, generator, family=family)


def drawn_books(
    book: Codebook,
    probed: pd.DataFrame,
    tokens: Mapping[ImageId, torch.Tensor],
    *,
    generator: np.random.Generator,
) -> dict[tuple[str, str], Codebook]:
    """Draw some of a codebook's prototypes, and in place of all of them tokens that no signal chose.

    Parameters
    ----------
    book : Codebook
        Of the recipe that is varied.
    probed, tokens
        As for `make_codebook`; without the column ``"object_coverage"`` masks choose nothing.
    generator : numpy.random.Generator
        Draws.

    Returns
    -------
    dict
        Choice and value to a codebook. Of `PROTOTYPES`: so many of them, where it has more. Of `TOKENS_INSTEAD`, as
        many as it has, or as there are: ``"any"``, and by masks ``"without an object"`` (the oracle) and
        ``"on objects"`` (the reverse).
    """
    found = {}
    for n in PROTOTYPE_COUNTS:
        if n < len(book):
            chosen = torch.from_numpy(np.sort(generator.permutation(len(book))[:n]))
            found[PROTOTYPES, str(n)] = Codebook(book.prototypes[chosen], family=book.family)
    groups = {"any": probed}
    if "object_coverage" in probed:
        groups["without an object"] = probed[probed["object_coverage"] == 0]
        groups["on objects"] = probed[probed["object_coverage"] >= MIN_COVERAGE]
    for name, rows in groups.items():
        drawn = rows.iloc[np.sort(generator.permutation(len(rows))[: len(book)])]
        if len(drawn):
            own = [tokens[i][k].float() for i, k in zip(drawn["image_id"], drawn["token"], strict=True)]
            found[TOKENS_INSTEAD, name] = Codebook(torch.stack(own), family=book.family)
    return found


def judge_codebooks(
    books: Mapping[tuple[str, str], Codebook | str],
    tokens: pd.DataFrame,
    visual: Mapping[ImageId, torch.Tensor],
    reference: tuple[str, str],
    *,
    generator: np.random.Generator,
    truths: Sequence[str] = ("coverage", "change"),
) -> pd.DataFrame:
    """Measure what codebooks know of the truth, and how much more or less than a reference knows.

    Parameters
    ----------
    books : Mapping
        Choice and value to a codebook, or to why there is none.
    tokens : pandas.DataFrame
        Part ``"tokens"`` of the table of `rcblib.evaluate.truth.measure_truth`, of other images than the codebooks'.
    visual : Mapping
        Image id to its visual tokens.
    reference : tuple of str
        Key of the codebook that others are compared with.
    generator : numpy.random.Generator
        Of the bootstrap over images.
    truths : sequence of str
        Of `rcblib.reading.truth.TRUTHS`; those that were not measured are left out.

    Returns
    -------
    pandas.DataFrame
        One row a codebook and truth: ``choice``, ``variant``, ``truth``, ``value`` (area under the ROC curve inside
        images), ``low``, ``high``; ``difference`` from the reference on the same images with ``difference_low`` and
        ``difference_high``; ``n_prototypes``, ``n_images``, and ``reason`` where there is none.
    """
    columns = _similarities(
        {k: book for k, book in books.items() if isinstance(book, Codebook)}, tokens, visual
    )
    if reference not in columns:
        raise ParameterError("reference", reference, f"one of {list(columns)}")
    numbered = {str(number): key for number, key in enumerate(columns)}
    scores = pd.DataFrame({number: columns[key] for number, key in numbered.items()}, index=tokens.index)
    scored = pd.concat([tokens, scores], axis=1)
    found, known = [], {name: own for name, own in positives(tokens).items() if name in truths}
    ranked = RankedViews(scored, list(numbered))
    of_reference = list(columns).index(reference)
    for truth, positive in known.items():
        values = ranked.values(positive)
        areas = values.pivot(index="image_id", columns="signal", values="area")[list(numbered)].to_numpy()
        both = np.concatenate([areas, areas - areas[:, [of_reference]]], axis=1)
        estimates = mean_intervals(both, generator=generator)
        for key, book in books.items():
            row = {"choice": key[0], "variant": key[1], "truth": truth, "n_images": len(areas)}
            if not isinstance(book, Codebook):
                found.append(row | {"n_prototypes": 0, "reason": book})
                continue
            own = list(columns).index(key)
            area, apart = estimates[own], estimates[len(columns) + own]
            found.append(
                row
                | {"value": area.value, "low": area.low, "high": area.high, "n_prototypes": len(book)}
                | {"difference": apart.value, "difference_low": apart.low, "difference_high": apart.high}
            )
    return pd.DataFrame(found)


def _similarities(
    books: Mapping[tuple[str, str], Codebook], tokens: pd.DataFrame, visual: Mapping[ImageId, torch.Tensor]
) -> dict[tuple[str, str], np.ndarray]:
    """Return, for each codebook, the largest cosine of each token to a prototype, negative: higher = keep.

    Codebooks of one recipe share most of their prototypes. Each is compared once; the largest cosine is taken first
    over prototypes that the same codebooks hold, then over those of each codebook.
    """
    groups = tokens.groupby("image_id", sort=False).indices
    if not books or not groups:
        return {key: np.empty(len(tokens)) for key in books}
    like = visual[next(iter(groups))].float()
    unit = [book.unit_prototypes.like(like).numpy() for book in books.values()]
    each = np.ascontiguousarray(np.concatenate(unit))
    whole = each.view(np.dtype((np.void, each.dtype.itemsize * each.shape[1]))).ravel()
    _, first, which = np.unique(whole, return_index=True, return_inverse=True)
    holds = np.zeros((len(first), len(books)), dtype=bool)
    for number, own in enumerate(np.split(which, np.cumsum([len(rows) for rows in unit])[:-1])):
        holds[own, number] = True
    kinds, kind = np.unique(holds, axis=0, return_inverse=True)
    order = np.argsort(kind.ravel(), kind="stable")
    starts = np.searchsorted(kind.ravel()[order], np.arange(len(kinds)))
    directions = torch.from_numpy(each[first[order]])
    found = {key: np.empty(len(tokens)) for key in books}
    for image_id, at in groups.items():
        own = visual[image_id].float()[tokens["token"].to_numpy()[at]]
        cosines = F.normalize(own, dim=-1) @ directions.T
        largest = np.maximum.reduceat(cosines.numpy(), starts, axis=1)
        for number, key in enumerate(books):
            found[key][at] = -largest[:, kinds[:, number]].max(1)
    return found


def make_all(
    listed: Sequence[Variant],
    probed: ProbedImages,
    backgrounds: Mapping[ImageId, str] | None = None,
    *,
    family: str = "",
) -> dict[tuple[str, str], Codebook | str]:
    """Build the codebooks of all variants, or say in their place why not; arguments as `make_codebook`."""
    made: dict[CodebookRecipe, Codebook | str] = {}
    for variant in listed:
        if variant.recipe not in made:
            try:
                made[variant.recipe] = make_codebook(variant.recipe, probed, backgrounds, family=family)
            except (CodebookError, ParameterError) as error:
                made[variant.recipe] = str(error)
    return {(variant.choice, variant.value): made[variant.recipe] for variant in listed}


def _threshold(values: Iterable[float], quantile: float, most: float = np.inf) -> float:
    """Return the quantile; for 1 what lies above every value, as thresholds are strict."""
    values = np.asarray(values, dtype=float)
    if quantile >= 1:
        return float(min(most, np.nextafter(values.max(), np.inf)))
    return float(np.quantile(values, quantile))


def _percent(share: float) -> str:
    return f"{share:.0%}"
