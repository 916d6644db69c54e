"""Drop visual tokens of training sequences without knowing what is on them: at random, by window, by likeness."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from rcblib.mllm import Adapter
from rcblib.mllm.prompt import VisualRows
from rcblib.pruners import split_by_view
from rcblib.records import EncodedImage, ParameterError, VisualView
from rcblib.tensors.clustering import dpc_knn

N_CLUSTERS = (2, 16)
"""Fewest and most clusters that a grid's tokens are divided into."""

N_NEIGHBOURS = 5
"""Of DPC-KNN, as the method has it."""


def keep_scattered(views: Sequence[VisualView], rng: np.random.Generator) -> torch.Tensor:
    """Keep tokens of all views at random: from one to all, as many as a squared uniform share says."""
    n_tokens = sum(view.n_tokens for view in views)
    n_kept = max(1, round(n_tokens * rng.random() ** 2))
    return torch.from_numpy(np.sort(rng.permutation(n_tokens)[:n_kept]))


def keep_window(views: Sequence[VisualView], rng: np.random.Generator) -> torch.Tensor:
    """Keep a window of each grid, or what surrounds it: any sides, any place."""
    inside, kept = rng.random() < 0.5, []
    for view in views:
        mask = np.zeros(view.grid, bool)
        (top, bottom), (left, right) = (np.sort(rng.integers(0, side, 2)) for side in view.grid)
        mask[top : bottom + 1, left : right + 1] = True
        kept.append(mask.ravel() == inside)
    return torch.from_numpy(np.concatenate(kept)).nonzero().flatten()


def keep_alike(views: Sequence[VisualView], rng: np.random.Generator) -> torch.Tensor:
    """Keep some clusters of like tokens of each grid whole, and drop the others whole (DPC-KNN on the LLM's rows)."""
    return _keep_clusters(views, rng, lambda sizes: np.ones(len(sizes)))


def keep_rare(views: Sequence[VisualView], rng: np.random.Generator) -> torch.Tensor:
    """Keep clusters of like tokens, the larger the less likely: what fills a grid goes, as a codebook would have it."""
    return _keep_clusters(views, rng, lambda sizes: sizes / sizes.mean())


def _keep_clusters(
    views: Sequence[VisualView],
    rng: np.random.Generator,
    exponents: Callable[[np.ndarray], np.ndarray],
) -> torch.Tensor:
    """Keep each cluster of a grid with the chance u ** exponent, u drawn uniformly for the grid."""
    kept = []
    for view in views:
        most = min(N_CLUSTERS[1], view.n_tokens)
        n_clusters = int(rng.integers(min(N_CLUSTERS[0], most), most + 1))
        labels = dpc_knn(view.tokens.float(), n_clusters, min(N_NEIGHBOURS, view.n_tokens)).cpu()
        sizes = torch.bincount(labels, minlength=n_clusters).numpy()
        chances = rng.random() ** exponents(sizes)
        kept.append(torch.from_numpy(rng.random(n_clusters) < chances)[labels])
    return torch.cat(kept).nonzero().flatten()


KINDS: dict[str, Callable[[Sequence[VisualView], np.random.Generator], torch.Tensor]] = {
    "scattered": keep_scattered,
    "window": keep_window,
    "alike": keep_alike,
    "rare": keep_rare,
}
"""How tokens are chosen: views of an image -> positions among the tokens of all of them, ascending."""


@dataclass(frozen=True)
class Dropping:
    """Say in which shares of the training sequences tokens are dropped, and how.

    No mask, no label and no answer is looked at.

    Attributes
    ----------
    shares : dict of str to float
        Share of the sequences for each of `KINDS`; the rest keep all tokens.
    kept_positions : float
        Share of the sequences in which what is left stays at the positions it had; in the others it is numbered anew,
        as pruners do by default. Where nothing is dropped it is the same.
    """

    shares: dict[str, float] = field(
        default_factory=lambda: {"scattered": 0.35, "window": 0.15, "alike": 0.2}
    )
    kept_positions: float = 0.5

    def __post_init__(self) -> None:
        if set(self.shares) - set(KINDS):
            raise ParameterError("shares", self.shares, f"shares of {', '.join(KINDS)}")
        if min(self.shares.values(), default=0) < 0 or sum(self.shares.values()) > 1:
            raise ParameterError("shares", self.shares, "shares of at least 0 that add up to 1 at most")
        if not 0 <= self.kept_positions <= 1:
            raise ParameterError("kept_positions", self.kept_positions, "a share in [0, 1]")

    def kind(self, rng: np.random.Generator) -> str:
        """Draw how the tokens of one sequence are chosen: one of `KINDS`, or ``"all"``."""
        kinds = [*self.shares, "all"]
        return str(rng.choice(kinds, p=[*self.shares.values(), 1 - sum(self.shares.values())]))

    def draw(
        self, adapter: Adapter, images: Sequence[EncodedImage], rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Choose the tokens of the images, or the video, of one sequence.

        Returns
        -------
        rows : torch.Tensor
            ``(n_rows, d_model)`` what the LLM reads, newlines included; of every image at least one token.
        offsets : torch.Tensor
            ``(n_rows,)`` int64: where it reads them, from the beginning of the first image.
        n_positions : int
            How far behind that the text goes on.
        """
        kind = self.kind(rng)
        visual = [_kept(adapter, image, kind, rng) for image in images]
        rows = torch.cat([each.rows for each in visual])
        if rng.random() >= self.kept_positions:
            return rows, torch.arange(len(rows)), len(rows)
        starts = np.cumsum([0, *(each.n_positions for each in visual)])
        pairs = zip(visual, starts, strict=False)
        return rows, torch.cat([each.offsets[0] + start for each, start in pairs]), int(starts[-1])


def left_positions(views: Sequence[VisualView], kind: str, rng: np.random.Generator) -> torch.Tensor:
    """Choose by one of `KINDS` which tokens of an image are left, ascending; at least one is."""
    positions = KINDS[kind](views, rng)
    return (
        positions if len(positions) else torch.from_numpy(rng.integers(0, sum(v.n_tokens for v in views), 1))
    )


def _kept(adapter: Adapter, image: EncodedImage, kind: str, rng: np.random.Generator) -> VisualRows:
    """Collect what is left of an image."""
    if kind == "all":
        return adapter.assemble(image)
    return adapter.gather(image, split_by_view(image.views, left_positions(image.views, kind, rng)))


@dataclass(frozen=True)
class VisualBatch:
    """Hold the visual rows of a batch's sequences, which may have different numbers of them.

    Attributes
    ----------
    rows : torch.Tensor
        ``(n_sequences, n_rows, d_model)``, padded on the right.
    is_there : torch.Tensor
        ``(n_sequences, n_rows)`` bool; false where there is padding.
    offsets : torch.Tensor
        ``(n_sequences, n_rows)`` int64: where the LLM reads each row, from the beginning of the image.
    n_positions : torch.Tensor
        ``(n_sequences,)`` int64: how far behind that the text goes on.
    """

    rows: torch.Tensor
    is_there: torch.Tensor
    offsets: torch.Tensor
    n_positions: torch.Tensor

    @classmethod
    def whole(cls, rows: torch.Tensor) -> VisualBatch:
        """Take sequences of which nothing was dropped, ``(n_sequences, n_rows, d_model)``."""
        n, n_rows = rows.shape[:2]
        offsets = torch.arange(n_rows, device=rows.device).expand(n, -1)
        there = torch.ones(n, n_rows, dtype=torch.bool, device=rows.device)
        return cls(rows, there, offsets, torch.full((n,), n_rows, device=rows.device))

    @classmethod
    def of(cls, drawn: Sequence[tuple[torch.Tensor, torch.Tensor, int]]) -> VisualBatch:
        """Pad what `Dropping.draw` gave for each sequence."""
        rows, offsets, n_positions = zip(*drawn, strict=True)
        device = rows[0].device
        padded = pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(each) for each in rows], device=device)
        there = torch.arange(padded.shape[1], device=device) < lengths[:, None]
        places = pad_sequence(offsets, batch_first=True).to(device)
        return cls(padded, there, places, torch.tensor(n_positions, device=device))
