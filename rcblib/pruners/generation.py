"""Answer calls of a model inside of a pruner's context: what `generate` and the forward do with fewer visual tokens."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from rcblib.mllm.caches import (
    CachedPrompts,
    cached_prompts,
    caches_of,
    check_room,
    given_cache,
    mark_answered,
    reading_cache,
)
from rcblib.mllm.calls import plain_generate
from rcblib.mllm.given import GivenPrompts
from rcblib.mllm.placement import outside_llm
from rcblib.pruners.settings import Settings
from rcblib.pruners.steps import PruningSteps, at_work
from rcblib.records import ParameterError

_REFUSED = (
    "inputs_embeds", "mm_encoder_outputs", "position_ids", "negative_prompt_ids", "assistant_model",
    "custom_generate", "vision_feature_layer", "vision_feature_select_strategy", "vision_aspect_ratio",
)  # fmt: skip
"""Arguments of a call that bring images or prompts past the pruner, or a second model to prune."""


class Pruned(PruningSteps):
    """Follow one pruner's context: what was kept, and the steps of pruned generation.

    The model's `generate` and forward, called inside the context, take all steps by themselves; `generate` here does so
    from anywhere, such as another thread. Who has encoded the images hands them in before (`hand_in`); who takes time
    does `prepare` and `reading` by hand.

    Attributes
    ----------
    n_without_images : int
        Calls that came without images, and went through.
    """

    n_without_images = 0

    def generate(self, *arguments: Any, **named: Any) -> Any:
        """Do what the model's `generate` does, with fewer visual tokens; also in a thread that did not enter.

        Raises
        ------
        ParameterError
            If the context has been left.
        """
        self.check_open()
        return self.answer_generate(plain_generate(self.adapter.model), arguments, named)

    def answer_generate(self, plain: Callable[..., Any], arguments: tuple, named: dict[str, Any]) -> Any:
        """Do what `plain`, a model's own `generate`, does, with fewer visual tokens."""
        self.check_open()
        named = self._by_name("generate", arguments, named)
        config = named.pop("generation_config", None)
        if "inputs" in named:
            named["input_ids"] = named.pop("inputs")
        self._check_arguments("generate", named)
        settings = Settings(self.adapter.model.generation_config, config, named)
        cache = given_cache(named)
        if not self._has_images(named) and self._cached(cache) is None:
            self.n_without_images += 1
            with at_work():
                output = plain(generation_config=config, **named)
            self._note_plain(named, settings, caches_of(cache, output), output)
            return output
        prepared = self.prepare(named, settings)
        n_given, n_left = prepared.prompts.input_ids.shape[1], prepared.spans.n_columns
        config, rest = settings.shortened(n_given - n_left)
        check_room(cache, settings.n_columns(n_left, n_given))
        n_each = 1 if (settings.value("num_beams") or 1) > 1 else settings.value("num_return_sequences") or 1
        rest = self._without_pixels(rest) | prepared.prompts.as_seen(rest, n_left, n_each)
        with self.reading(prepared), reading_cache(cache):
            output = plain(generation_config=config, **rest | prepared.arguments)
            for own in caches_of(cache, output):
                mark_answered(own, prepared.cached, _sequences(output)[:, n_left:], self._refusal(settings))
        return prepared.prompts.restore(output, n_left)

    def answer_forward(self, plain: Callable[..., Any], arguments: tuple, named: dict[str, Any]) -> Any:
        """Do what `plain`, a model's own forward, does, with fewer visual tokens; logits are of what is left."""
        self.check_open()
        named = self._by_name("forward", arguments, named)
        has_images = self._has_images(named) or "mm_encoder_outputs" in named
        if not has_images and "input_ids" not in named:
            return plain(**named)  # rows that are no prompt
        cache = given_cache(named)
        cached = self._cached(cache)
        if not has_images and cached is None:
            self.n_without_images += 1
            output = plain(**named)
            self._note_plain(named, None, caches_of(cache, output), output)
            return output
        self._check_arguments("forward", named)
        self._check_trained()
        ids, n_cached = named.get("input_ids"), 0 if cached is None else cached.n_cached
        if isinstance(ids, torch.Tensor) and "attention_mask" not in named:  # the forward infers no padding
            before = [] if cached is None else [cached.mask.to(ids)]
            named["attention_mask"] = torch.cat([*before, torch.ones_like(ids)], 1)
        prepared = self.prepare(named, is_generating=False)
        check_room(cache, prepared.spans.n_columns)
        by_column = {"input_ids", "position_ids", *prepared.prompts.others}
        new = {
            name: value[..., n_cached:] if name in by_column else value
            for name, value in prepared.arguments.items()
        }
        with self.reading(prepared), reading_cache(cache):
            output = plain(**self._without_pixels(named) | new)
            for own in caches_of(cache, output):
                mark_answered(own, prepared.cached, ids[:, :0], self._refusal())
        return output

    def _by_name(self, method: str, arguments: tuple, named: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of one of the model's methods under their names."""
        names = list(inspect.signature(getattr(type(self.adapter.model), method)).parameters)[1:]
        named = dict(zip(names, arguments, strict=False)) | named
        return {name: value for name, value in named.items() if value is not None}

    def _cached(self, cache: Any) -> CachedPrompts | None:
        """Return what the cache of a call holds, as `cached_prompts`."""
        try:
            return cached_prompts(cache)
        except ParameterError:
            self._refuse()
            raise

    def _refuse(self) -> None:
        """Forget the images that were handed in for a call that is refused."""
        self.is_used, self._handed_in = True, []

    def _has_images(self, arguments: dict[str, Any]) -> bool:
        return bool(self._handed_in) or any(name in arguments for name in self.adapter.pixel_inputs)

    def _without_pixels(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in arguments.items() if name not in self.adapter.pixel_inputs}

    def _check_arguments(self, call: str, arguments: dict[str, Any]) -> None:
        """Raise where an argument brings images or prompts past the pruner."""
        refused = [name for name in _REFUSED if name in arguments]
        if isinstance(arguments.get("logits_to_keep"), torch.Tensor):
            refused.append("logits_to_keep that are columns of the whole prompt")
        if refused:
            self._refuse()
            accepted = "token ids, attention mask, pixels and settings inside a pruner's context"
            raise ParameterError(call, ", ".join(refused), accepted)

    def _check_trained(self) -> None:
        """Raise in a step of training whose gradients would go on from pruned tokens to what made them."""
        model = self.adapter.model
        if not (model.training and torch.is_grad_enabled()):
            return
        parts = {name: model.get_submodule(name) for name in outside_llm(model)}
        parts = {name: part for name, part in parts.items() if part is not model.get_output_embeddings()}
        trained = [name for name, part in parts.items() if any(w.requires_grad for w in part.parameters())]
        if trained:
            self._refuse()
            accepted = "that of the LLM alone; no gradient reaches these: requires_grad_(False), or eval()"
            raise ParameterError("forward", f"training of {', '.join(trained)}", accepted)

    def _refusal(self, settings: Settings | None = None) -> str:
        """Say why prompts cannot go on from the cache of a call; empty where they can."""
        if self.pruner.acts_inside:
            return f"whose rows {type(self.pruner).__name__} dropped inside the LLM"
        if settings is not None and (settings.value("num_beams") or 1) > 1:
            return "of beam search, whose rows are not those of the sequences"
        return ""

    def _note_plain(
        self, arguments: dict[str, Any], settings: Settings | None, caches: list[Any], output: Any
    ) -> None:
        """Say what caches hold of prompts without images, so that a prompt with some can go on from them."""
        ids, mask = arguments.get("input_ids"), arguments.get("attention_mask")
        if not caches or not isinstance(ids, torch.Tensor) or ids.ndim != 2:
            return
        is_whole = mask is None or mask.shape == ids.shape and bool((mask == 1).all())
        if settings is None and not (is_whole and "position_ids" not in arguments):
            return  # where the forward read the rows is not what a pruner's context counts
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids) if settings is None else mask}
        names = ("pad_token_id", "eos_token_id")
        prompts = GivenPrompts(given, *(settings and settings.value(name) for name in names))
        cached = prompts.as_given(self.pruner.keeps_positions(self.adapter))
        new_ids = ids[:, :0] if settings is None else _sequences(output)[:, ids.shape[1] :]
        for own in caches:
            mark_answered(own, cached, new_ids, self._refusal(settings))


def _sequences(output: Any) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output.sequences
