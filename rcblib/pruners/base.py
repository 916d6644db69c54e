"""Prune visual tokens inside `generate`, whatever the method that scores them."""

from __future__ import annotations

import copy
import functools
import itertools
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch

from rcblib.mllm import Adapter, adapter_for
from rcblib.mllm.prompt import GeneratePrompts, PlacedImage, VisualRows
from rcblib.records import LAYOUTS, EncodedImage, ParameterError, VisualView
from rcblib.tensors.scoring import keep_indices

POSITION_IDS = ("auto", "renumbered", "kept")
SCOPES = ("tile", "image", "video")

_REFUSED = (
    "inputs_embeds", "mm_encoder_outputs", "past_key_values", "position_ids", "negative_prompt_ids",
    "assistant_model", "custom_generate", "vision_feature_layer", "vision_feature_select_strategy",
    "vision_aspect_ratio",
)  # fmt: skip
"""Arguments of `generate` that bring images or prompts past the pruner, or a second model to prune."""


@dataclass(frozen=True)
class PruningContext:
    """Hold what a method may look at besides the tokens of a view.

    Attributes
    ----------
    view : VisualView
        The grid, kind and signals of the tokens; signals as the method's `needs` asks for them. Views that share a
        budget come as one, whose grid is ``(1, n_tokens)``.
    image_index, view_index : int
        Images and videos seen before this one since the context was entered; views of it before this one.
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
    everything, packed, gives the unpruned model's tokens; with a model that counts positions on several
    axes only where they are kept, as by default.

    Parameters
    ----------
    retain_ratio : float or None
        Share of the tokens to keep, in [0, 1]; ``round(n_tokens * retain_ratio)`` of each set that `scope` says,
        half to even. Newlines are not counted.
    position_ids : {"auto", "renumbered", "kept"}
        Positions of the shortened prompt: numbered anew, as the release does, or those that the tokens had in
        the full prompt, the answer continuing after it. With ``"flatten"`` the full prompt is the one that has all
        tokens in that layout. With a model that counts positions on several axes, ``"kept"`` keeps a token's position
        on each; ``"renumbered"`` numbers all that is left one after the other, the same on every axis, which forgets
        where in the photo a token was. ``"auto"`` is ``"kept"`` for such a model, else ``"renumbered"``.
    layout : {"packed", "flatten"}
        How what survives of an image with tiles is read. ``"packed"``: in the model's own order, with every newline;
        padding is no token and is never kept. ``"flatten"``, as in the release: tile after tile, tokens of padding
        among them, and one newline at the end. Other images, and videos, are the same in both.
    scope : {"tile", "image", "video"}
        On which tokens a budget is applied, and softmaxes over tokens taken. ``"tile"``, as in the release: each grid
        by itself: the reduced image, each tile, each frame. ``"image"``: all grids of an image together; a frame is
        one image. ``"video"``: also all frames of a video together.

    Attributes
    ----------
    kept : list of torch.Tensor
        For each image and video since the context was entered, in prompt order: ``(n_kept,)`` ascending positions
        among its visual tokens, view after view, int64, on the CPU.
    kept_by_view : list of tuple of torch.Tensor
        The same for each view by itself: positions in its grid.
    n_tokens, n_retained : list of int
        For each of these images and videos the rows that the LLM reads of it without and with pruning. These are
        visual tokens and newlines; tokens of padding, which the model never reads, are in neither number unless
        ``"flatten"`` retains them, so that it can retain more rows than there were.

    Notes
    -----
    At least one token of an image or video survives: where the budget keeps none, the least redundant one stays,
    with a warning (the release then feeds an empty image). A tile or frame among others may lose all.

    Logits processors see a video's placeholders as those of an image.

    A streamer, stopping criteria and logits processors see the shortened prompt; so do attentions and hidden
    states that `generate` returns. Lengths (``max_length``, ``min_length``) count the prompt as given. Beam
    search and several returned sequences work. Inputs that bring images past the pruner, such as
    ``inputs_embeds``, are refused.
    """

    retain_ratio: float | None = None
    position_ids: str = "auto"
    layout: str = "packed"
    scope: str = "tile"
    kept: list[torch.Tensor] = field(default_factory=list, init=False, repr=False, compare=False)
    kept_by_view: list[tuple[torch.Tensor, ...]] = field(
        default_factory=list, init=False, repr=False, compare=False
    )
    n_tokens: list[int] = field(default_factory=list, init=False, repr=False, compare=False)
    n_retained: list[int] = field(default_factory=list, init=False, repr=False, compare=False)
    _entered: bool = field(default=False, init=False, repr=False, compare=False)
    _image_indices: tuple[int, ...] | None = field(default=None, init=False, repr=False, compare=False)

    # Signals of the vision encoder, as `Adapter.encode_pixels` names them.
    needs: ClassVar[frozenset[str]] = frozenset()
    # Where the choice does not depend on the prompt, an evaluation makes it once for all questions about an image.
    reads_prompt: ClassVar[bool] = True

    def __post_init__(self):
        choices = {"position_ids": POSITION_IDS, "layout": LAYOUTS, "scope": SCOPES}
        for name, accepted in choices.items():
            if getattr(self, name) not in accepted:
                raise ParameterError(name, getattr(self, name), f"one of {accepted}")
        keep_indices(torch.zeros(1), **self.budget())

    def score(self, tokens: torch.Tensor, context: PruningContext | None = None) -> torch.Tensor:
        """Score the tokens of one view, or of several that share a budget.

        Parameters
        ----------
        tokens : torch.Tensor
            ``(n_tokens, d_model)`` rows that would enter the LLM, in raster order, view after view.
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

    def description(self) -> dict[str, Any]:
        """Return everything by which this method differs from others, as plain values, to name results by."""
        own = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.init}
        return {"class": type(self).__name__} | own

    def keeps_positions(self, adapter: Adapter) -> bool:
        """Tell whether tokens keep the positions that they had in the full prompt of a model."""
        return self.position_ids == "kept" or self.position_ids == "auto" and adapter.n_position_axes > 1

    def check(self, adapter: Adapter) -> None:
        """Raise where the method does not fit the model; called before anything is generated."""
        missing = sorted(self.needs - adapter.offers)
        if missing:
            accepted = f"one that offers {', '.join(sorted(self.needs))} for {self!r}"
            raise ParameterError("model", f"a vision encoder without {', '.join(missing)}", accepted)

    def select(self, tokens: torch.Tensor, context: PruningContext | None = None) -> torch.Tensor:
        """Choose the tokens of one view, or of several that share a budget, that survive.

        Parameters
        ----------
        tokens : torch.Tensor
            ``(n_tokens, d_model)``.
        context : PruningContext, optional
            As in `score`.

        Returns
        -------
        torch.Tensor
            ``(n_kept,)`` int64 positions, ascending; none of them if the budget says so.
        """
        return keep_indices(self.score(tokens, context), **self.budget())

    def select_image(
        self,
        image: EncodedImage,
        image_index: int = 0,
        prompt_ids: torch.Tensor | None = None,
        adapter: Adapter | None = None,
    ) -> list[torch.Tensor]:
        """Choose the tokens of an image or video that survive, set by set as `scope` says.

        Parameters
        ----------
        image : EncodedImage
            What the adapter returned; it is taken in this pruner's layout.
        image_index, prompt_ids, adapter
            As in `PruningContext`.

        Returns
        -------
        list of torch.Tensor
            For each view of ``image.arranged(layout)``: ``(n_kept,)`` int64 positions, ascending, on the CPU; at least
            one in all. `Adapter.gather` makes the LLM's rows of them.
        """
        image = image.arranged(self.layout)
        prompt_ids = torch.empty(0, dtype=torch.long) if prompt_ids is None else prompt_ids

        def context(views: tuple[VisualView, ...], first: int) -> PruningContext:
            return PruningContext(_joined(views), image_index, first, prompt_ids, adapter)

        together = self.scope == "video" or (self.scope == "image" and not image.is_video)
        sets = [image.views] if together else [(view,) for view in image.views]
        chosen = []
        for first, views in enumerate(sets):  # as many views as sets, or one set
            own = context(views, first)
            chosen.append(self.select(own.view.tokens, own).cpu())
        if sum(map(len, chosen)) == 0:
            warnings.warn(
                f"{type(self).__name__} keeps none of {image.n_tokens} visual tokens; the least redundant stays",
                stacklevel=2,
            )
            together, whole = True, context(image.views, 0)
            chosen = [self.score(whole.view.tokens, whole).argmin().reshape(1).cpu()]
        return _by_view(image.views, chosen[0]) if together else chosen

    @contextmanager
    def __call__(
        self, model: Any, processor: Any = None, *, image_indices: Sequence[int] | None = None
    ) -> Iterator[Pruner]:
        """Prune what `model` generates inside the ``with`` block.

        Parameters
        ----------
        model : transformers.PreTrainedModel
            A model of a supported family.
        processor : transformers.ProcessorMixin, optional
            Handed to methods that need it.
        image_indices : sequence of int, optional
            Number of each image and video of the context, in prompt order, as methods see it
            (`PruningContext.image_index`); by default 0, 1, 2, … Numbers that go with the images make a random choice
            independent of how a run is cut into contexts and processes.

        Yields
        ------
        Pruner
            This object, with `kept` emptied.

        Raises
        ------
        UnsupportedModelError
            If the family has no adapter.
        ParameterError
            If the model, or this pruner, is already inside a pruner's context, or the method does not fit. Inside the
            context, if there are more images than `image_indices`.
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
        self.kept, self.kept_by_view, self.n_tokens, self.n_retained = [], [], [], []
        self._image_indices = None if image_indices is None else tuple(image_indices)
        self._entered = True
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
        prompts = GeneratePrompts(arguments, settings.value("pad_token_id"), settings.value("eos_token_id"))
        n_given = prompts.input_ids.shape[1]
        settings.check_max_length(n_given)
        keeps_positions = self.keeps_positions(adapter)
        if keeps_positions and settings.value("use_cache") is False:
            # Without a cache, transformers takes gaps in position ids for borders between packed sequences.
            raise ParameterError("use_cache", False, "True, with the position_ids policy 'kept'")

        images = adapter.encode_pixels(arguments, self.needs)
        placed = prompts.place(images, adapter.n_placeholders, adapter.image_token_id, adapter.video_token_id)
        batch = prompts.filled([self._prune(adapter, image) for image in placed])
        generation_config, arguments = settings.shortened(n_given - batch.n_columns)
        arguments = {name: value for name, value in arguments.items() if name not in adapter.pixel_inputs}
        arguments |= prompts.cut(batch, adapter.image_token_id)
        if keeps_positions:
            arguments["position_ids"] = batch.position_ids.to(prompts.input_ids.device)
        arguments |= adapter.generation_inputs(batch.visual_rows())
        return prompts.restore(original(generation_config=generation_config, **arguments), batch.n_columns)

    @torch.no_grad()
    def _prune(self, adapter: Adapter, placed: PlacedImage) -> VisualRows:
        """Select in an image or video, note what was kept, and return the rows that are left."""
        kept = self.select_image(placed.image, self._image_index(), placed.prompt_ids, adapter)
        arranged = placed.image.arranged(self.layout)
        rows = adapter.gather(arranged, kept)
        starts = [0, *itertools.accumulate(view.n_tokens for view in arranged.views)]
        self.kept.append(torch.cat([own + start for own, start in zip(kept, starts, strict=False)]))
        self.kept_by_view.append(tuple(kept))
        self.n_tokens.append(adapter.n_placeholders(placed.image))
        self.n_retained.append(len(rows))
        return rows

    def _image_index(self) -> int:
        """Return the number of the next image of the context."""
        n_before = len(self.kept)
        if self._image_indices is None:
            return n_before
        if n_before >= len(self._image_indices):
            accepted = "one number for each image and video of the context"
            raise ParameterError("image_indices", f"{n_before} numbers and one more image", accepted)
        return self._image_indices[n_before]


def _joined(views: tuple[VisualView, ...]) -> VisualView:
    """Return views that share a budget as one."""
    if len(views) == 1:
        return views[0]
    tokens = torch.cat([view.tokens for view in views])
    signals = {name: torch.cat([view.signals[name] for view in views]) for name in views[0].signals}
    return VisualView(tokens, (1, len(tokens)), signals, views[0].kind)


def _by_view(views: tuple[VisualView, ...], positions: torch.Tensor) -> list[torch.Tensor]:
    """Split ascending positions among the tokens of all views into positions in each."""
    split, start = [], 0
    for view in views:
        inside = (positions >= start) & (positions < start + view.n_tokens)
        split.append(positions[inside] - start)
        start += view.n_tokens
    return split


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
