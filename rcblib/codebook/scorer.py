"""Predict what probing would say of a visual token from the token alone: two linear heads, fitted on probed tokens."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.linalg import solve
from scipy.stats import rankdata

from rcblib.codebook.criterion import CodebookCriterion
from rcblib.codebook.pooling import ProbedImage
from rcblib.records import ParameterError
from rcblib.runs.errors import in_one_line
from rcblib.runs.files import atomic_write, to_plain
from rcblib.runs.paths import user_path
from rcblib.runs.provenance import project_root, provenance
from rcblib.tensors.divergence import combined_influence

HEADS = ("single", "context")
"""What is predicted: the rank of the top-1 probability of the single-token input, and that of the influence."""

PENALTY = 0.01
"""Ridge of `fit_scorer`, as a part of the tokens' mean variance: of 0.0001 to 0.1 the held-out fit hardly differs."""

_FILE, _CARD = "scorer.safetensors", "README.md"


@dataclass(frozen=True, eq=False)
class Scorer:
    """Hold two linear heads on visual tokens at length 1.

    Attributes
    ----------
    weights : torch.Tensor
        ``(2, d_model)``, a row for each of `HEADS`.
    offsets : torch.Tensor
        ``(2,)``.
    family : str
        Model family whose visual tokens are scored; ``""`` where unknown.
    metadata : dict
        What JSON can hold: model, config of the probing, provenance, and how well tokens are told.

    Raises
    ------
    ParameterError
        Where the weights have another shape, or a value that is not finite.
    """

    weights: torch.Tensor
    offsets: torch.Tensor
    family: str = ""
    metadata: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self):
        object.__setattr__(self, "metadata", to_plain(self.metadata))
        shapes = tuple(self.weights.shape), tuple(self.offsets.shape)
        if self.weights.ndim != 2 or shapes != ((2, shapes[0][-1]), (2,)):
            raise ParameterError("weights", shapes, "(2, d_model) weights and (2,) offsets")
        if not (torch.isfinite(self.weights).all() and torch.isfinite(self.offsets).all()):
            raise ParameterError("weights", "NaN or infinite values", "finite values")

    def __eq__(self, other: object) -> bool:
        """Tell whether another scorer holds the same."""
        if not isinstance(other, Scorer):
            return NotImplemented
        same = torch.equal(self.weights, other.weights) and torch.equal(self.offsets, other.offsets)
        return same and (self.family, self.metadata) == (other.family, other.metadata)

    def __hash__(self) -> int:
        """Hash what is quickly read."""
        return hash((self.family, self.weights.shape))

    def check_fits(self, family: str, d_model: int) -> None:
        """Raise a `ParameterError` where tokens have another width, or a known other family."""
        width = self.weights.shape[1]
        if width != d_model:
            raise ParameterError("scorer", f"weights of width {width}", f"the model's width, {d_model}")
        if self.family and family and self.family != family:
            raise ParameterError(
                "scorer", f"one of family {self.family!r}", f"one of the model's, {family!r}"
            )

    def predict(self, tokens: torch.Tensor) -> torch.Tensor:
        """Predict both ranks of tokens.

        Parameters
        ----------
        tokens : torch.Tensor
            ``(n_tokens, d_model)``.

        Returns
        -------
        torch.Tensor
            ``(n_tokens, 2)`` float32; about 0 for the token that says least of all, about 1 for the one that says most.
        """
        unit = F.normalize(tokens.float(), dim=-1)
        return unit @ self.weights.to(unit).T + self.offsets.to(unit)

    def save_pretrained(self, folder: str | os.PathLike) -> Path:
        """Write ``scorer.safetensors`` and a card into a folder, and return it."""
        from safetensors.torch import save

        folder = user_path(folder, "folder")
        facts = {"family": self.family, "metadata": self.metadata}
        tensors = {"weights": self.weights.contiguous(), "offsets": self.offsets.contiguous()}
        atomic_write(folder / _FILE, save(tensors, {"scorer": json.dumps(facts)}))
        atomic_write(folder / _CARD, self._card())
        return folder

    def _card(self) -> str:
        known = self.metadata
        fits = ", ".join(
            f"{name} {known['correlation'][name]:.2f}" for name in HEADS if "correlation" in known
        )
        return f"""---
license: apache-2.0
tags: [multimodal, visual-tokens, token-pruning]
---
# Scorer of visual tokens of {known.get("model") or "an unnamed model"}

Two linear heads on a visual token of length 1 predict what probing says of it: how surely it speaks alone (rank of the
single-token input's top-1 probability) and how much the model feels its absence (rank of the influence). Fitted by
`python -m rcblib scorer` on {known.get("n_tokens", "an unknown number of")} probed tokens of
{known.get("n_images", "an unknown number of")} images, ridge penalty {known.get("penalty")}.
Rank correlation with what was probed, on images left out of the fit in turn: {fits or "not recorded"}.

```python
from rcblib.pruners import PRUNERS

pruner = PRUNERS["distilled"].make({{"scorer": "<this folder>", "retain_ratio": 0.2}})
with pruner(model):
    model.generate(**inputs)
```
"""

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike) -> Scorer:
        """Read what `save_pretrained` wrote: a folder, or the name of one that the project ships.

        Raises
        ------
        ParameterError
            Where there is none, or it is damaged.
        """
        from safetensors import SafetensorError, safe_open

        path = _find(name_or_path)
        try:
            with safe_open(path, "pt") as opened:
                facts = json.loads(opened.metadata()["scorer"])
                weights, offsets = opened.get_tensor("weights"), opened.get_tensor("offsets")
            return cls(weights, offsets, facts["family"], facts["metadata"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ParameterError(
                "scorer", str(name_or_path), f"a whole {_FILE} ({in_one_line(error)})"
            ) from None


def load_scorer(scorer: str | os.PathLike | Scorer) -> Scorer:
    """Return a scorer as it is, or load it as `Scorer.from_pretrained` does."""
    if isinstance(scorer, Scorer):
        return scorer
    if not isinstance(scorer, str | os.PathLike) or not str(scorer):
        raise ParameterError("scorer", scorer, "a Scorer, a name or a folder")
    return Scorer.from_pretrained(scorer)


def fit_scorer(
    images: Iterable[ProbedImage],
    *,
    penalty: float = PENALTY,
    n_folds: int = 5,
    k_region: float = CodebookCriterion.k_region,
    k_global: float = CodebookCriterion.k_global,
    family: str = "",
    metadata: Mapping[str, Any] | None = None,
) -> Scorer:
    """Fit a scorer to what was probed, by ridge regression in closed form.

    Tokens are read image by image and only their ``(d_model, d_model)`` products are held, so memory does not grow
    with the number of images.

    Parameters
    ----------
    images : iterable of ProbedImage
        Two at least.
    penalty : float
        Added to each variance, as a part of their mean; above 0.
    n_folds : int
        Images are left out in so many turns to measure how well tokens are told; at most as many as images.
    k_region, k_global : float
        Weights of both divergences in the influence.
    family, metadata
        Kept with the scorer.

    Returns
    -------
    Scorer
        ``metadata["correlation"]``: Spearman's between what is predicted of images left out and what was probed.
    """
    images = list(images)
    if len(images) < 2:
        raise ParameterError("images", len(images), "at least two probed images")
    if not penalty > 0:
        raise ParameterError("penalty", penalty, "more than 0")
    top1, region, global_ = (
        np.concatenate(values) for values in zip(*(own.signals for own in images), strict=True)
    )
    influence = combined_influence(region, global_, k_region, k_global)
    ranks = np.stack([rankdata(top1), rankdata(influence)], axis=1) / len(top1)
    ends = np.cumsum([len(own.rows) for own in images])
    folds = np.arange(len(images)) % min(n_folds, len(images))
    moments = [_Moments.of([], [])] * (folds.max() + 1)
    for own, end, fold in zip(images, ends, folds, strict=True):
        moments[fold] = moments[fold] + _Moments.of(_unit(own), ranks[end - len(own.rows) : end])
    whole = sum(moments[1:], moments[0])
    predicted = np.empty_like(ranks)
    for fold, left_out in enumerate(moments):
        weights, offsets = (whole - left_out).ridge(penalty)
        for number in np.flatnonzero(folds == fold):
            rows = slice(ends[number] - len(images[number].rows), ends[number])
            predicted[rows] = _unit(images[number]) @ weights.T + offsets
    correlation = {
        name: float(np.corrcoef(rankdata(predicted[:, k]), rankdata(ranks[:, k]))[0, 1])
        for k, name in enumerate(HEADS)
    }
    weights, offsets = whole.ridge(penalty)
    facts = {"n_images": len(images), "n_tokens": len(ranks), "penalty": penalty, "correlation": correlation}
    return Scorer(
        torch.tensor(weights, dtype=torch.float32),
        torch.tensor(offsets, dtype=torch.float32),
        family,
        facts | {"provenance": provenance()} | dict(metadata or {}),
    )


@dataclass(frozen=True)
class _Moments:
    """Sum what a ridge regression needs: number, sums and products of tokens and of what is told of them."""

    n: float
    of_tokens: np.ndarray
    of_ranks: np.ndarray
    products: np.ndarray
    both: np.ndarray

    @classmethod
    def of(cls, tokens: Any, ranks: Any) -> _Moments:
        if not len(tokens):
            return cls(0, *[np.zeros(())] * 4)
        return cls(len(tokens), tokens.sum(0), ranks.sum(0), tokens.T @ tokens, tokens.T @ ranks)

    def _with(self, other: _Moments, sign: int) -> _Moments:
        return _Moments(
            *(own + sign * its for own, its in zip(vars(self).values(), vars(other).values(), strict=True))
        )

    def __add__(self, other: _Moments) -> _Moments:
        return self._with(other, 1)

    def __sub__(self, other: _Moments) -> _Moments:
        return self._with(other, -1)

    def ridge(self, penalty: float) -> tuple[np.ndarray, np.ndarray]:
        """Return ``(2, d_model)`` weights and ``(2,)`` offsets."""
        mean, mean_rank = self.of_tokens / self.n, self.of_ranks / self.n
        covariance = self.products / self.n - np.outer(mean, mean)
        shrunk = covariance + penalty * np.trace(covariance) / len(mean) * np.eye(len(mean))
        weights = solve(shrunk, self.both / self.n - np.outer(mean, mean_rank), assume_a="pos").T
        return weights, mean_rank - weights @ mean


def _unit(image: ProbedImage) -> np.ndarray:
    return F.normalize(image.read().double(), dim=-1).numpy()


def _find(name_or_path: str | os.PathLike) -> Path:
    path = user_path(name_or_path, "scorer")
    if (path / _FILE).is_file():
        return path / _FILE
    try:
        shipped = {own.parent.name: own for own in sorted((project_root() / "scorers").glob(f"*/{_FILE}"))}
    except ParameterError:  # the library without the project
        shipped = {}
    if str(name_or_path) not in shipped:
        accepted = f"a folder with {_FILE}, or one of {', '.join(shipped) or 'none that is shipped'}"
        raise ParameterError("scorer", str(name_or_path), accepted)
    return shipped[str(name_or_path)]
