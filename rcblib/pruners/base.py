"""Prune visual tokens inside `generate`, whatever the method that scores them."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from rcblib.mllm import Adapter, adapter_for
from rcblib.records import EncodedImage, ParameterError, VisualView
from rcblib.scoring import keep_indices

POSITION_IDS = ("renumbered", "kept")

_REFUSED = (
    "inputs_embeds", "mm_encoder_outputs", "past_key_values", "position_ids", "negative_prompt_ids",
    "assistant_model", "custom_generate", "vision_feature_layer", "vision_feature_select_strategy",
)  # fmt: skip
"""Arguments of `generate` that bring images or prompts past the pruner, or a second model to prune."""


@dataclass(frozen=True)
class PruningContext:
    """Hold what a method may look at besides the tokens of a view.

    Attributes
    ----------
    view : VisualView
        The grid, kind and [CLS] signals of the tokens; signals as the method's `needs_cls_similarity` and
        `needs_cls_attention` ask for them.
    image_index, view_index : int
        Images seen before this one since the context was entered; views of the image before this one.
    prompt_ids : torch.Tensor
        ``(n_prompt,)`` token ids of the prompt that the image belongs to, placeholders included, padding not.
    adapter : Adapter
        The model, for methods that need more of it.
    """

    view: VisualView
    image_index: int
    view_index: int
    prompt_ids: torch.Tensor
    adapter: Adapter


@dataclass(kw_only=True)
class Pruner:
    """Prune visual tokens between vision encoder and LLM: ``with pruner(model): model.generate(**inputs)``.

    A method is a dataclass that overrides `score`, or `select` where tokens are chosen jointly. Inside the
    context `generate` encodes the images once, keeps some tokens of each, cuts the placeholders of the
    prompt to match, and returns sequences as without pruning: the prompt as given, then the new tokens.
    Prompts without images pass through. The model is left as it was, also after an error. Retaining
    everything gives the unpruned model's tokens.

    Parameters
    ----------
    retain_ratio : float or None
        Share of an image's tokens to keep, in [0, 1]; ``round(n_tokens * retain_ratio)`` of them, half to
        even.
    position_ids : {"renumbered", "kept"}
        Positions of the shortened prompt: numbered anew, as the release does, or those that the tokens had in
        the full prompt, the answer continuing after it.

    Attributes
    ----------
    kept : list of torch.Tensor
        For each image since the context was entered, in prompt order: ``(n_kept,)`` ascending positions
        among its visual tokens, int64, on the CPU.
    n_tokens : list of int
        For each of these images, how many tokens it had.

    Notes
    -----
    At least one token of an image survives: where the budget keeps none, the least redundant one stays,
    with a warning (the release then feeds an empty image).

    A streamer, stopping criteria and logits processors see the shortened prompt; so do attentions and hidden
    states that `generate` returns. Lengths (``max_length``, ``min_length``) count the prompt as given. Beam
    search and several returned sequences work. Inputs that bring images past the pruner, such as
    ``inputs_embeds``, are refused.
    """

    retain_ratio: float | None = None
    position_ids: str = "renumbered"
    kept: list[torch.Tensor] = field(default_factory=list, init=False, repr=False, compare=False)
    n_tokens: list[int] = field(default_factory=list, init=False, repr=False, compare=False)
    _entered: bool = field(default=False, init=False, repr=False, compare=False)

    needs_cls_similarity: ClassVar[bool] = False
    needs_cls_attention: ClassVar[bool] = False
    # Where the choice does not depend on the prompt, an evaluation makes it once for all questions about an image.
    reads_prompt: ClassVar[bool] = True

    def __post_init__(self):
        if self.position_ids not in POSITION_IDS:
            raise ParameterError("position_ids", self.position_ids, f"one of {POSITION_IDS}")
        keep_indices(torch.zeros(1), **self.budget())

    def score(self, tokens: torch.Tensor, context: PruningContext | None = None) -> torch.Tensor:
        """Score the tokens of one view.

        Parameters
        ----------
        tokens : torch.Tensor
            ``(n_tokens, d_model)`` rows that would enter the LLM, in raster order.
        context : PruningContext, optional
            What else is known; ``None`` outside of `generate`.

        Returns
        -------
        torch.Tensor
            ``(n_tokens,)``; higher = more redundant, dropped first.
        """
        raise NotImplementedError(f"{type(self).__name__} overrides neither score nor select")

    def budget(self) -> dict[str, Any]:
        """Return the arguments by which `keep_indices` turns scores into positions."""
        return {"retain_ratio": self.retain_ratio}

    def check(self, adapter: Adapter) -> None:
        """Raise where the method does not fit the model; called before anything is generated."""
        if not adapter.has_cls and (self.needs_cls_similarity or self.needs_cls_attention):
            raise ParameterError("model", "a vision encoder without [CLS]", f"one with [CLS] for {self!r}")

    def select(self, tokens: torch.Tensor, context: PruningContext | None = None) -> torch.Tensor:
        """Choose the tokens of one view that survive.

        Parameters
        ----------
        tokens : torch.Tensor
            ``(n_tokens, d_model)``.
        context : PruningContext, optional
            As in `score`.

        Returns
        -------
        torch.Tensor
            ``(n_kept,)`` int64 positions, ascending, at least one.
        """
        scores = self.score(tokens, context)
        kept = keep_indices(scores, **self.budget())
        if len(kept) == 0:
            warnings.warn(
                f"{type(self).__name__} keeps none of {len(tokens)} visual tokens; the least redundant stays",
                stacklevel=2,
            )
            kept = scores.argmin().reshape(1)
        return kept

    @contextmanager
    def __call__(self, model: Any, processor: Any = None) -> Iterator[Pruner]:
        """Prune what `model` generates inside the ``with`` block.

        Parameters
        ----------
        model : transformers.PreTrainedModel
            A model of a supported family.
        processor : transformers.ProcessorMixin, optional
            Handed to methods that need it.

        Yields
        ------
        Pruner
            This object, with `kept` emptied.

        Raises
        ------
        UnsupportedModelError
            If the family has no adapter.
        ParameterError
            If the model, or this pruner, is already inside a pruner's context, or the method does not fit.
        """
        adapter = adapter_for(model, processor)
        self.check(adapter)
        original = model.generate
        if self._entered or hasattr(original, "pruner"):
            raise ParameterError(
                "model", "a pruner inside a pruner's context", "one pruner for a model at a time"
            )

        @functools.wraps(original)
        def generate(inputs: Any = None, generation_config: Any = None, **arguments: Any) -> Any:
            return self._generate(adapter, original, inputs, generation_config, arguments)

        generate.pruner = self
        own = vars(model).get("generate")
        self.kept, self.n_tokens, self._entered = [], [], True
        model.generate = generate
        try:
            yield self
        finally:
            self._entered = False
            if own is None:
                del model.generate
            else:
                model.generate = own

    def _generate(
        self, adapter: Adapter, original: Any, inputs: Any, generation_config: Any, arguments: dict[str, Any]
    ) -> Any:
        """Do what `generate` does, with fewer visual tokens."""
        arguments = {name: value for name, value in arguments.items() if value is not None}
        if inputs is not None:
            arguments["input_ids"] = inputs
        refused = [name for name in _REFUSED if name in arguments]
        if refused:
            accepted = "token ids, attention mask, pixels and generation settings inside a pruner's context"
            raise ParameterError("generate", ", ".join(refused), accepted)
        if not any(name in arguments for name in adapter.pixel_inputs):
            return original(generation_config=generation_config, **arguments)

        settings = _Settings(adapter.model.generation_config, generation_config, arguments)
        prompt = _Prompt(arguments, settings.value("pad_token_id"), settings.value("eos_token_id"))
        settings.check_max_length(prompt.length)
        if self.position_ids == "kept" and settings.value("use_cache") is False:
            # Without a cache, transformers takes gaps in position ids for borders between packed sequences.
            raise ParameterError("use_cache", False, "True, with the position_ids policy 'kept'")

        images = adapter.encode_pixels(
            arguments, cls_similarity=self.needs_cls_similarity, cls_attention=self.needs_cls_attention
        )
        rows = self._prune(adapter, images, prompt)
        cut = prompt.cut(with_positions=self.position_ids == "kept")
        n_cut = cut["input_ids"].shape[1]
        generation_config, arguments = settings.shortened(prompt.length - n_cut)
        arguments = {name: value for name, value in arguments.items() if name not in adapter.pixel_inputs}
        arguments |= cut | adapter.generation_inputs(rows)
        return prompt.restore(original(generation_config=generation_config, **arguments), n_cut)

    @torch.no_grad()
    def _prune(self, adapter: Adapter, images: list[EncodedImage], prompt: _Prompt) -> list[torch.Tensor]:
        """Select in every image, mark its other placeholders for removal, return the rows that are left."""
        places = prompt.places(adapter.image_token_id)
        counts = [adapter.n_placeholders(image) for image in images]
        if len(places) != sum(counts):
            raise ParameterError(
                "input_ids", f"{len(places)} image placeholders", f"{sum(counts)}, one for each visual token"
            )
        rows = []
        for image, own in zip(images, places.split(counts), strict=True):
            prompt_ids = prompt.text(own)
            kept = [
                self.select(view.tokens, PruningContext(view, len(self.kept), i, prompt_ids, adapter))
                for i, view in enumerate(image.views)
            ]
            image_rows, positions = adapter.gather(image, kept)
            survives = torch.zeros(len(own), dtype=torch.bool)
            survives[positions] = True
            prompt.drop(own[~survives])
            rows.append(image_rows)
            self.kept.append(positions)
            self.n_tokens.append(len(own))
        return rows


class _Settings:
    """Look generation settings up where `generate` does, and count lengths on the prompt as given."""

    def __init__(self, defaults: Any, generation_config: Any, arguments: dict[str, Any]):
        self.defaults, self.generation_config, self.arguments = defaults, generation_config, arguments

    def value(self, name: str) -> Any:
        """Return a setting: the argument's value, else the given config's, else the model's."""
        if name in self.arguments:
            return self.arguments[name]
        given = getattr(self.generation_config, name, None)
        return getattr(self.defaults, name, None) if given is None else given

    def check_max_length(self, n_prompt: int) -> None:
        """Raise where ``max_length`` leaves no room for an answer."""
        limit = self.value("max_length")
        if self.value("max_new_tokens") is None and limit is not None and limit <= n_prompt:
            raise ParameterError("max_length", limit, f"more than the {n_prompt} tokens of the prompt")

    def shortened(self, n_dropped: int) -> tuple[Any, dict[str, Any]]:
        """Return config and arguments whose lengths count a prompt that is shorter by `n_dropped`."""
        config, arguments = copy.deepcopy(self.generation_config), dict(self.arguments)
        for name, by_new_tokens in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
            length = self.value(name)
            if not length or self.value(by_new_tokens) is not None:
                continue
            length = max(length - n_dropped, 0)
            if config is None or name in arguments:
                arguments[name] = length
            else:
                setattr(config, name, length)
        return config, arguments


class _Prompt:
    """Hold what a batch of prompts has one column a token of, while placeholders are cut out of it.

    Masked columns go too; what is left is padded on the left.
    """

    def __init__(self, arguments: dict[str, Any], pad_token_id: Any, eos_token_id: Any):
        input_ids = arguments.get("input_ids")
        if not isinstance(input_ids, torch.Tensor) or input_ids.ndim != 2:
            raise ParameterError("input_ids", type(input_ids).__name__, "a tensor (n_prompts, n_tokens)")
        end_ids = [eos_token_id] if isinstance(eos_token_id, int) else eos_token_id or []
        self.input_ids = input_ids
        self.length = input_ids.shape[1]
        self.pad_token_id = pad_token_id if pad_token_id is not None else next(iter(end_ids), 0)
        mask = arguments.get("attention_mask")
        if mask is None:
            # As `generate` infers it: padding is what looks like padding, unless that also ends answers.
            inferable = pad_token_id is not None and pad_token_id not in end_ids
            mask = (input_ids != pad_token_id).long() if inferable else torch.ones_like(input_ids)
        if mask.shape != input_ids.shape:
            raise ParameterError(
                "attention_mask", tuple(mask.shape), f"the shape of input_ids, {tuple(input_ids.shape)}"
            )
        self.columns = {
            name: value
            for name, value in arguments.items()
            if isinstance(value, torch.Tensor) and value.shape == input_ids.shape
        }
        self.columns["attention_mask"] = mask.to(input_ids.device)
        self.survives = mask.to(input_ids.device, torch.bool).clone(memory_format=torch.contiguous_format)

    def places(self, image_token_id: int) -> torch.Tensor:
        """Return the flat places of all placeholders, prompt after prompt, on the CPU."""
        return ((self.input_ids == image_token_id) & self.survives).flatten().nonzero().flatten().cpu()

    def text(self, places: torch.Tensor) -> torch.Tensor:
        """Return the token ids of the prompt that holds the flat places of an image, without padding."""
        row = int(places[0]) // self.length
        if row != int(places[-1]) // self.length:
            raise ParameterError(
                "input_ids", "an image spread over two prompts", "all its placeholders in one"
            )
        return self.input_ids[row][self.columns["attention_mask"][row].bool()]

    def drop(self, places: torch.Tensor) -> None:
        """Mark flat places for removal."""
        self.survives.view(-1)[places.to(self.survives.device)] = False

    def cut(self, with_positions: bool) -> dict[str, torch.Tensor]:
        """Return the columns that are left, ``(n_prompts, n_left of the longest)``, padded on the left."""
        columns = dict(self.columns)
        if with_positions:
            columns["position_ids"] = (columns["attention_mask"].long().cumsum(-1) - 1).clamp(min=0)
        n_left = self.survives.sum(-1)
        longest = int(n_left.max())
        filled = torch.arange(longest, device=n_left.device) >= longest - n_left[:, None]
        cut = {}
        for name, column in columns.items():
            padding = self.pad_token_id if name == "input_ids" else 0
            cut[name] = column.new_full(filled.shape, padding)
            cut[name][filled] = column[self.survives]
        return cut

    def restore(self, output: Any, n_cut: int) -> Any:
        """Put the prompts as given back in front of the new tokens."""
        sequences = output if isinstance(output, torch.Tensor) else output.sequences
        n_each = sequences.shape[0] // self.input_ids.shape[0]
        given = self.input_ids.repeat_interleave(n_each, 0).to(sequences)
        restored = torch.cat([given, sequences[:, n_cut:]], dim=1)
        if isinstance(output, torch.Tensor):
            return restored
        output.sequences = restored
        return output
