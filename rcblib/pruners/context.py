"""Say what a method may look at: the views that share a budget, and what else is known of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rcblib.mllm import Adapter
from rcblib.records import ParameterError, VisualView

QUESTION = "question"
"""Need of a method whose choice depends on the prompt; all other needs are signals of the vision encoder."""

COVERAGE, OTHER_TOKENS, OTHER_COVERAGE = "object_coverage", "other_tokens", "other_coverage"

OF_SAMPLES = frozenset({COVERAGE, OTHER_TOKENS, OTHER_COVERAGE})
"""Needs that an evaluation meets from what is known of its samples, and no encoder does: the share of each patch that
objects cover; the tokens of another image at the same places, and its coverage there."""


@dataclass(frozen=True)
class PruningContext:
    """Hold what a method may look at besides the views that share a budget.

    Attributes
    ----------
    image_index, view_index : int
        Images and videos seen before this one since the context was entered; views of it before the first given.
    adapter : Adapter or None
        The model, for methods that need more of it.
    prompt_ids : torch.Tensor or None
        ``(n_prompt,)`` token ids of the prompt that the image belongs to, placeholders included, padding not; for
        methods that need ``"question"`` only.
    """

    image_index: int = 0
    view_index: int = 0
    adapter: Adapter | None = None
    prompt_ids: torch.Tensor | None = None

    @property
    def question_ids(self) -> torch.Tensor:
        """Return the token ids behind the prompt's last placeholder, where a question stands after what it is about."""
        if self.prompt_ids is None or self.adapter is None:
            raise ParameterError("needs", "no question", f"{QUESTION!r} among what the method needs")
        ids = (self.adapter.image_token_id, self.adapter.video_token_id)
        placeholders = self.prompt_ids.new_tensor([own for own in ids if own is not None])
        return self.prompt_ids[int(torch.isin(self.prompt_ids, placeholders).nonzero()[-1]) + 1 :]

    @property
    def question(self) -> str:
        """Return `question_ids` as text, without the template's special tokens; the processor must be known."""
        if self.adapter is None or self.adapter.processor is None:
            raise ParameterError("processor", None, "the model's processor, given to the pruner's context")
        text = self.adapter.processor.tokenizer.decode(self.question_ids, skip_special_tokens=True)
        return text.strip()


def tokens_of(views: tuple[VisualView, ...]) -> torch.Tensor:
    """Return the tokens of some views, ``(n_tokens of all, d_model)``, view after view."""
    return views[0].tokens if len(views) == 1 else torch.cat([view.tokens for view in views])


def signal_of(views: tuple[VisualView, ...], name: str) -> torch.Tensor:
    """Return a signal of the tokens of some views, view after view.

    Raises
    ------
    ParameterError
        If a view has none of that name.
    """
    if any(name not in view.signals for view in views):
        raise ParameterError("views", "views without it", f"views with the signal {name!r}")
    return torch.cat([view.signals[name] for view in views])


def connected(context: PruningContext | None, states: torch.Tensor) -> torch.Tensor:
    """Return the rows that the model's connector makes of ``(n, d_vision)`` hidden states, such as merged ones.

    Raises
    ------
    ParameterError
        Outside of a pruner's context, where no model is known.
    """
    if context is None or context.adapter is None:
        raise ParameterError("context", None, "a pruner's context, whose model has a connector")
    return context.adapter.connect(states)
