"""Select redundant prototypes among probed tokens: small clusters of an image that recur across images."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from rcblib.codebook.codebook import Codebook, image_identifiers
from rcblib.codebook.criterion import CodebookCriterion, as_doubles
from rcblib.codebook.pooling import (
    Pool,
    ProbedImage,
    clusters,
    pool_on_disk,
    pool_tokens,
)
from rcblib.records import CodebookError, ImageId, ParameterError
from rcblib.runs.provenance import provenance


def build_codebook(
    tokens: torch.Tensor,
    image_ids: Sequence[ImageId],
    top1: Any,
    region: Any,
    global_: Any,
    criterion: CodebookCriterion,
    generator: torch.Generator | None = None,
    *,
    positions: Sequence[int] | None = None,
    views: Sequence[int] | None = None,
    family: str = "",
    metadata: Mapping[str, Any] | None = None,
) -> Codebook:
    """Select redundant prototypes: low-information tokens in small clusters that recur across images.

    Parameters
    ----------
    tokens : torch.Tensor
        ``(n_tokens, d_model)`` every probed visual token of every image.
    image_ids : sequence
        ``(n_tokens,)`` image of each token; the rows of an image need not be adjacent.
    top1 : array-like
        ``(n_tokens,)`` top-1 probability of the single-token input, in [0, 1].
    region, global_ : array-like
        ``(n_tokens,)`` leave-one-out divergences in nats, released form.
    criterion : CodebookCriterion
        Limits and cluster counts.
    generator : torch.Generator, optional
        Draws DPC-KNN's tie-breaking noise; ``None`` means none.
    positions : sequence of int, optional
        ``(n_tokens,)`` grid position of each token, kept with the prototypes.
    views : sequence of int, optional
        ``(n_tokens,)`` number of each token's grid in its image, where an image has several (tiles, frames): stage 1
        then clusters every grid by itself. Kept as ``metadata["views"]``.
    family : str
        Model family, kept with the codebook.
    metadata : Mapping, optional
        Further facts for ``Codebook.metadata``, such as ``model`` and ``config``.

    Returns
    -------
    Codebook
        Prototypes by stage-2 cluster in order of first appearance, inside it by image, then by stage-1
        cluster in order of first appearance, then as given. ``metadata["selection"]`` counts tokens after
        each stage and names the ``rows`` of `tokens` that were kept.

    Raises
    ------
    ParameterError
        Before any work: on lengths that disagree, values that are not finite, an image with too few tokens,
        or too few images.
    CodebookError
        Where too few tokens pass stage 1, or no cluster recurs in enough images; with the counts of each
        stage.

    Source: section 4 of the paper and its released clustering script.
    Differs: the script adds a position's m tied tokens m² times (quirk 48); here every token counts once, also one that
    two views of an image share because it is read twice, as a whole and as a tile. The script knows no views; that
    grids are clustered one by one follows from their being pruned one by one.
    """
    start = time.perf_counter()
    images = _checked_images(tokens, image_ids, top1, region, global_, criterion, positions, views)
    pooled = pool_tokens(images, criterion, generator)
    return _selected(pooled, criterion, generator, family, metadata, start)


def build_codebook_by_image(
    images: Iterable[ProbedImage],
    criterion: CodebookCriterion,
    generator: torch.Generator | None = None,
    *,
    pool: str | os.PathLike = "",
    device: str | torch.device = "cpu",
    family: str = "",
    metadata: Mapping[str, Any] | None = None,
) -> Codebook:
    """Select redundant prototypes of more images than memory holds: the codebook of `build_codebook`, to the last bit.

    Each image is read, clustered and let go. What it adds to the pool is kept in memory, or in files, which the
    clustering of the pool reads block by block: then memory grows by a kilobyte for each pooled token, whatever its
    width, and by nothing for the others.

    Parameters
    ----------
    images : iterable of ProbedImage
        One after the other; `ProbedImage.from_table` makes them of a probed image's table.
    criterion, generator
        As for `build_codebook`.
    pool : path-like
        Folder for the pooled tokens. A run that was killed goes on there with the first images that it lacks; what was
        pooled by another criterion, seed, model or code is pooled anew. Empty: they stay in memory.
    device : str or torch.device
        Where the pool is clustered.
    family, metadata
        As for `build_codebook`. Of a pool in files `metadata` says of which model and probing the tokens are.

    Returns
    -------
    Codebook

    Raises
    ------
    ParameterError
        As `build_codebook`, but of an image only when it is its turn, and of too few images at the end.
    CodebookError
        As `build_codebook`.
    """
    start = time.perf_counter()
    _check_criterion(criterion)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):  # of a name, of a build without the device
        raise ParameterError("device", str(device), "a device that this machine has") from None
    if pool:
        source = {"family": family, "metadata": metadata or {}}
        pooled = pool_on_disk(images, criterion, generator, pool, source, device)
    else:
        pooled = pool_tokens(images, criterion, generator)
        pooled = dataclasses.replace(pooled, tokens=pooled.tokens.to(device))
    _check_number(pooled.counts["n_images"], criterion)
    return _selected(pooled, criterion, generator, family, metadata, start)


def build_codebook_from_pool(
    pool: Pool,
    criterion: CodebookCriterion,
    generator: torch.Generator | None = None,
    *,
    family: str = "",
    metadata: Mapping[str, Any] | None = None,
) -> Codebook:
    """Select redundant prototypes of what was pooled already: stage 2 of `build_codebook` alone.

    Parameters
    ----------
    pool : Pool
        Redundant tokens of all images, in memory.
    criterion, family, metadata
        As for `build_codebook`.
    generator : torch.Generator, optional
        In the state that pooling left it in.

    Raises
    ------
    ParameterError
        On too few images.
    CodebookError
        As `build_codebook`.
    """
    start = time.perf_counter()
    _check_criterion(criterion)
    _check_number(pool.counts["n_images"], criterion)
    return _selected(pool, criterion, generator, family, metadata, start)


def _selected(
    pool: Pool,
    criterion: CodebookCriterion,
    generator: torch.Generator | None,
    family: str,
    metadata: Mapping[str, Any] | None,
    start: float,
) -> Codebook:
    """Keep the clusters of the pool that recur across images (stage 2); say how long all took since `start`."""
    counts = (
        f"{pool.counts['n_tokens']} tokens of {pool.counts['n_images']} images, "
        f"{pool.counts['n_low_information']} low-information (top-1 probability < {criterion.tau_p}, influence < "
        f"{criterion.tau_jsd}), {len(pool.image_ids)} of them in clusters of at most {criterion.cluster_size_max}"
    )
    n_needed = max(criterion.n_prototype_clusters, criterion.n_neighbours)
    if len(pool.image_ids) < n_needed:
        raise CodebookError(
            f"no codebook: {counts}; {criterion.n_prototype_clusters} prototype clusters need {n_needed}"
        )
    kept: list[int] = []
    of_cluster: list[int] = []
    images_per_cluster: list[int] = []
    most_images = 0
    settings = criterion.n_prototype_clusters, criterion.n_neighbours
    for members in clusters(pool.tokens, *settings, generator):
        n_images = len({pool.image_ids[row] for row in members})
        most_images = max(most_images, n_images)
        if n_images > criterion.min_images:
            kept += members
            of_cluster += [len(images_per_cluster)] * len(members)
            images_per_cluster.append(n_images)
    if not kept:
        raise CodebookError(
            f"no codebook: {counts}; of {criterion.n_prototype_clusters} prototype clusters none draws from "
            f"more than {criterion.min_images} images, the widest from {most_images}"
        )
    numbers = {name: [values[row] for row in kept] for name, values in pool.numbers.items()}
    selection = {
        **{name: pool.counts[name] for name in ("n_images", "n_tokens", "n_low_information")},
        "n_after_stage_1": len(pool.image_ids),
        "n_clusters_kept": len(images_per_cluster),
        "images_per_cluster": images_per_cluster,
        "rows": numbers["rows"],
    }
    return Codebook(
        pool.tokens[torch.tensor(kept)].detach().cpu(),
        tuple(pool.image_ids[row] for row in kept),
        family,
        tuple(numbers["positions"]) if "positions" in numbers else None,
        {
            "criterion": dataclasses.asdict(criterion),
            "n_neighbours": criterion.n_neighbours,
            "selection": selection,
            "clusters": of_cluster,
            **({"views": numbers["views"]} if "views" in numbers else {}),
            "provenance": provenance() | {"seconds": round(time.perf_counter() - start, 3)},
            **(metadata or {}),
        },
    )


def _check_criterion(criterion: Any) -> None:
    if not isinstance(criterion, CodebookCriterion):
        raise ParameterError("criterion", criterion, "a CodebookCriterion")


def _check_number(n_images: int, criterion: CodebookCriterion) -> None:
    if n_images <= criterion.min_images:
        raise ParameterError(
            "min_images", criterion.min_images, f"fewer than the {n_images} images that the tokens come from"
        )


def _checked_images(
    tokens: Any,
    image_ids: Any,
    top1: Any,
    region: Any,
    global_: Any,
    criterion: CodebookCriterion,
    positions: Any,
    views: Any,
) -> list[ProbedImage]:
    """Check everything `build_codebook` is given; return the images by first appearance."""
    _check_criterion(criterion)
    if not isinstance(tokens, torch.Tensor) or tokens.ndim != 2 or not tokens.is_floating_point():
        given = tuple(getattr(tokens, "shape", ())) or type(tokens).__name__
        raise ParameterError("tokens", given, "a floating-point tensor (n_tokens, d_model)")
    if not bool(torch.isfinite(tokens).all()):
        n_broken = int((~torch.isfinite(tokens)).any(dim=1).sum())
        raise ParameterError("tokens", f"{n_broken} rows with NaN or infinite values", "finite values")
    image_ids = image_identifiers(image_ids)
    signals = (as_doubles(top1), as_doubles(region), as_doubles(global_))
    named = {"image_ids": image_ids, "top1": signals[0], "region": signals[1], "global_": signals[2]}
    optional = {"positions": positions, "views": views}
    named |= {name: values for name, values in optional.items() if values is not None}
    for name, values in named.items():
        if len(values) != len(tokens) or getattr(values, "ndim", 1) != 1:
            raise ParameterError(name, f"{len(values)} values", f"one for each of the {len(tokens)} tokens")
    rows_of: dict[ImageId, list[int]] = {}
    for row, image_id in enumerate(image_ids):
        rows_of.setdefault(image_id, []).append(row)
    given = [None if values is None else np.asarray(values) for values in (positions, views)]
    images = []
    for image_id, rows in rows_of.items():
        of_image = [None if values is None else values[rows] for values in given]
        own = tuple(values[rows] for values in signals)
        images.append(ProbedImage(image_id, lambda rows=rows: tokens[rows], np.asarray(rows), own, *of_image))
        images[-1].check(criterion)
    _check_number(len(images), criterion)
    return images
