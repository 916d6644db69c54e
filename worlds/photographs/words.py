"""Teach a connector to say words and places: from captions alone, then once more from labels that it gives itself.

No mask is used anywhere: a caption says which nouns an image shows, and what is behind them, not where.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

FEATURE_SCALE = 0.5
"""Standard deviation of the encoder's hidden state -2, which the connector's first layer divides by."""


@dataclass(frozen=True)
class WordsConfig:
    """Set both steps; the defaults are those that were used.

    Attributes
    ----------
    n_steps, batch_size, learning_rate
        Of the first step: images a batch; AdamW with a cosine to zero.
    sharpness : float
        Factor of the cosine inside the log-sum-exp over an image's patches.
    norm_weight : float
        Weight of the squared distance of a row's norm to that of the words.
    n_again, batch_again, sharpness_again : int, int, float
        Of the second step: patches with a word a batch, each word as often (a third as many patches without), factor of
        the cosine.
    distance_weight, background_weight : float
        Of the second step: squared distance to the word's embedding, of patches without a word to zero; to either the
        patch's `PlaceCode` is added.
    """

    n_steps: int = 500
    batch_size: int = 64
    learning_rate: float = 2e-3
    sharpness: float = 20.0
    norm_weight: float = 0.05
    n_again: int = 2500
    batch_again: int = 384
    sharpness_again: float = 15.0
    distance_weight: float = 0.5
    background_weight: float = 0.15


PLACE_SHARE = 0.2
"""Norm of a place code at an edge of the picture, along either axis, as a share of a word's norm."""


class PlaceCode:
    """Say in the LLM's own words where in a picture a row stands: along "right" minus "left", "bottom" minus "top".

    The encoder knows a patch's place (a linear read-out explains more than 90 % of it); this is how the LLM is told.

    Parameters
    ----------
    axes : torch.Tensor
        ``(2, d_model)``: embeddings of " right" minus " left" and of " bottom" minus " top".
    norm : float
        Mean norm of a word's embedding.
    """

    def __init__(self, axes: torch.Tensor, norm: float):
        self.axes = PLACE_SHARE * norm * F.normalize(axes, dim=-1)

    def __call__(self, side: int) -> torch.Tensor:
        """Return ``(side * side, d_model)`` rows in raster order, from minus one to one along each axis."""
        along = torch.linspace(-1, 1, side)
        y, x = torch.meshgrid(along, along, indexing="ij")
        return torch.stack([x.flatten(), y.flatten()], dim=-1) @ self.axes


class Connector(nn.Module):
    """Map encoder rows to rows of the LLM: Linear, GELU, Linear, named as in `LlavaMultiModalProjector`."""

    def __init__(self, d_encoder: int, d_model: int):
        super().__init__()
        self.linear_1 = nn.Linear(d_encoder, d_model)
        self.linear_2 = nn.Linear(d_model, d_model)
        with torch.no_grad():
            self.linear_1.weight /= FEATURE_SCALE

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return ``(..., d_model)`` for features ``(..., d_encoder)``."""
        return self.linear_2(F.gelu(self.linear_1(features)))


def train_words(
    features: torch.Tensor, named: torch.Tensor, words: torch.Tensor, config: WordsConfig, seed: int
) -> Connector:
    """Train a connector on which words captions name (multiple-instance learning).

    Parameters
    ----------
    features : torch.Tensor
        ``(n_images, n_patches, d_encoder)``, any float type.
    named : torch.Tensor
        Boolean ``(n_images, n_words)``: the words of each image's captions.
    words : torch.Tensor
        ``(n_words, d_model)`` embeddings of the words.
    config : WordsConfig
        Length and weights.
    seed : int
        Of the initial weights and the order of images.

    Returns
    -------
    Connector

    Notes
    -----
    An image's score for a word is the log-sum-exp over its patches of `sharpness` times the cosine to its embedding;
    each word of its captions is set against all words that are not in them.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        connector = Connector(features.shape[-1], words.shape[-1])
    unit, norm = F.normalize(words, dim=-1), words.norm(dim=-1).mean()
    optimizer = torch.optim.AdamW(connector.parameters(), lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.n_steps)
    for step in range(config.n_steps):
        chosen = torch.randint(len(features), (config.batch_size,), generator=generator)
        rows = connector(features[chosen].float())
        cosine = F.normalize(rows, dim=-1) @ unit.T
        scores = torch.logsumexp(config.sharpness * cosine, dim=1)
        present = named[chosen]
        absent = scores.masked_fill(present, -torch.inf).logsumexp(1, keepdim=True)
        loss = F.softplus(absent - scores)[present].mean()
        loss = loss + config.norm_weight * (rows.norm(dim=-1) - norm).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == config.n_steps - 1:
            print(f"words {step}/{config.n_steps}: loss {loss.item():.3f}", flush=True)
    return connector


@torch.no_grad()
def own_labels(
    connector: Connector, features: torch.Tensor, named: torch.Tensor, words: torch.Tensor
) -> torch.Tensor:
    """Label each patch with its nearest word where its image's captions name that, else with -1.

    Returns
    -------
    torch.Tensor
        int64 ``(n_images, n_patches)``.
    """
    unit, labels = F.normalize(words, dim=-1), []
    for rows, present in zip(features.split(64), named.split(64), strict=True):
        nearest = (F.normalize(connector(rows.float()), dim=-1) @ unit.T).argmax(-1)
        labels.append(nearest.where(present.gather(1, nearest), torch.tensor(-1)))
    return torch.cat(labels)


def label_again(
    connector: Connector,
    features: torch.Tensor,
    labels: torch.Tensor,
    words: torch.Tensor,
    places: PlaceCode,
    config: WordsConfig,
    seed: int,
) -> None:
    """Train the connector on labels of its own, so that its rows become the words that they ranked first.

    Parameters
    ----------
    connector : Connector
        From `train_words`; changed in place.
    features : torch.Tensor
        ``(n_images, n_patches, d_encoder)``.
    labels : torch.Tensor
        From `own_labels`.
    words : torch.Tensor
        ``(n_words, d_model)``.
    places : PlaceCode
        What is added for where a patch stands.

    Notes
    -----
    Cross-entropy over the words, and the squared distance to the word and the place: directions that only rank words
    say nothing to an LLM. Every word is drawn as often. Patches without a label are pulled towards their place alone.
    """
    generator = torch.Generator().manual_seed(seed)
    n_patches = features.shape[1]
    flat, labels, unit = features.flatten(0, 1), labels.flatten(), F.normalize(words, dim=-1)
    place = places(math.isqrt(n_patches))
    told, untold = torch.nonzero(labels >= 0)[:, 0], torch.nonzero(labels < 0)[:, 0]
    often = 1 / torch.bincount(labels[told])[labels[told]]
    optimizer = torch.optim.AdamW(connector.parameters(), lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.n_again)
    for step in range(config.n_again):
        some = told[torch.multinomial(often, config.batch_again, replacement=True, generator=generator)]
        rest = untold[torch.randint(len(untold), (config.batch_again // 3,), generator=generator)]
        rows = connector(flat[some].float())
        target = labels[some]
        loss = F.cross_entropy(config.sharpness_again * F.normalize(rows, dim=-1) @ unit.T, target)
        loss = (
            loss
            + config.distance_weight
            * (rows - words[target] - place[some % n_patches]).square().sum(-1).mean()
        )
        empty = connector(flat[rest].float()) - place[rest % n_patches]
        loss = loss + config.background_weight * empty.square().sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 500 == 0 or step == config.n_again - 1:
            print(f"own labels {step}/{config.n_again}: loss {loss.item():.3f}", flush=True)
