"""Pruners that only tests register: they merge tokens, drop them inside the LLM, or make pictures smaller."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from rcblib.codebook.scorer import Scorer
from rcblib.mllm.layers import dropping
from rcblib.pruners import Budget, Pruner, Reduced, tokens_of


@dataclass(frozen=True)
class Merging(Pruner):
    """Keep evenly strided tokens, each the mean of itself and of the tokens that are most similar to it."""

    retain_ratio: float

    def reduce(self, views, context=None):
        tokens = tokens_of(views)
        n_kept = max(round(len(tokens) * self.retain_ratio), 1)
        positions = torch.arange(n_kept) * len(tokens) // n_kept
        similarity = F.normalize(tokens, dim=-1) @ F.normalize(tokens[positions], dim=-1).T
        similarity[positions, torch.arange(n_kept)] = 2.0  # a target stays its own
        group = F.one_hot(similarity.argmax(-1), n_kept).to(tokens)
        return Reduced(positions, group.T @ tokens / group.sum(0)[:, None])


@dataclass(frozen=True)
class LastAttention(Pruner):
    """Keep in front of a layer what the last prompt token attends to most in the layer before, as FastV does."""

    retain_ratio: float
    layer: int = 1
    form: str = "gathered"

    def inside(self, adapter, spans):
        budget = Budget(retain_ratio=self.retain_ratio)

        def choose(state):
            last = state.attention.mean(0)[-1]
            return [Reduced(budget.keep(last[span.to(last.device)])) for span in state.spans]

        return dropping(
            adapter.language_model, spans, choose, (self.layer,), form=self.form, n_attention_rows=1
        )


@dataclass(frozen=True)
class First(Pruner):
    """Keep the first tokens: a share of its own, or a count."""

    share: float | None = None
    count: int | None = None

    def budget(self):
        return Budget(retain_ratio=self.share, count=self.count)

    def score(self, views, context=None):
        return -torch.arange(float(len(tokens_of(views))))


@dataclass(frozen=True)
class Smaller(Pruner):
    """Process pictures of half their width and height, and keep all tokens of these."""

    retain_ratio: float = 1.0

    def score(self, views, context=None):
        return torch.zeros(len(tokens_of(views)))

    def resize(self, pictures, adapter):
        return [picture.resize((picture.width // 2, picture.height // 2)) for picture in pictures]


def scorer_for(adapter):
    """Return a scorer of a model's tokens, of drawn weights."""
    weights = torch.randn(2, adapter.d_model, generator=torch.Generator().manual_seed(0))
    return Scorer(weights, torch.tensor([0.5, 0.5]), adapter.family)
