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
        prompt = _Prompt(arguments, settings.value("pad_token_id"), settings.value("eos_token_id"))
        settings.check_max_length(prompt.length)
        keeps_positions = self.keeps_positions(adapter)
        if keeps_positions and settings.value("use_cache") is False:
            # Without a cache, transformers takes gaps in position ids for borders between packed sequences.
            raise ParameterError("use_cache", False, "True, with the position_ids policy 'kept'")

        images = adapter.encode_pixels(arguments, self.needs)
        rows = self._prune(adapter, images, prompt)
        cut = prompt.cut(with_positions=keeps_positions)
        n_cut = cut["input_ids"].shape[1]
        generation_config, arguments = settings.shortened(prompt.length - n_cut)
        arguments = {name: value for name, value in arguments.items() if name not in adapter.pixel_inputs}
        arguments |= cut | adapter.generation_inputs(rows)
        return prompt.restore(original(generation_config=generation_config, **arguments), n_cut)

    @torch.no_grad()
    def _prune(self, adapter: Adapter, images: list[EncodedImage], prompt: _Prompt) -> list[torch.Tensor]:
        """Select in every image and video, cut the other placeholders, return the rows that are left."""
        spans = []
        for modality, token_id in (("image", adapter.image_token_id), ("video", adapter.video_token_id)):
            own = [image for image in images if image.is_video == (modality == "video")]
            if token_id is None or not own:
                continue
            places, counts = prompt.places(token_id), [adapter.n_placeholders(image) for image in own]
            if len(places) != sum(counts):
                accepted = f"{sum(counts)}, one for each visual token and newline of {len(own)} {modality}s"
                raise ParameterError("input_ids", f"{len(places)} {modality} placeholders", accepted)
            spans += zip(places.split(counts), own, strict=True)
            prompt.rename(token_id, adapter.image_token_id)
        rows = []
        for places, image in sorted(spans, key=lambda span: int(span[0][0])):
            kept = self.select_image(image, self._image_index(), prompt.text(places), adapter)
            arranged = image.arranged(self.layout)
            image_rows, positions = adapter.gather(arranged, kept)
            prompt.keep(places, positions, *adapter.row_positions(arranged))
            rows.append(image_rows)
            starts = [0, *itertools.accumulate(view.n_tokens for view in arranged.views)]
            self.kept.append(torch.cat([own + start for own, start in zip(kept, starts, strict=False)]))
            self.kept_by_view.append(tuple(kept))
            self.n_tokens.append(len(places))
            self.n_retained.append(len(image_rows))
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
        # How often a column is taken, and how many positions the full prompt has for it: not both 1 where an image is
        # read in another layout, whose rows then all stand in the first of its columns.
        self.copies = mask.to(input_ids.device).bool().long()
        self.extents = self.copies.clone()
        self.offsets: list[tuple[int, torch.Tensor]] = []

    def places(self, token_id: int) -> torch.Tensor:
        """Return the flat places of all placeholders of a kind, prompt after prompt, on the CPU."""
        is_there = self.columns["attention_mask"].bool()
        return ((self.input_ids == token_id) & is_there).flatten().nonzero().flatten().cpu()

    def text(self, places: torch.Tensor) -> torch.Tensor:
        """Return the token ids of the prompt that holds the flat places of an image, without padding."""
        row = int(places[0]) // self.length
        if row != int(places[-1]) // self.length:
            raise ParameterError(
                "input_ids", "an image spread over two prompts", "all its placeholders in one"
            )
        return self.input_ids[row][self.columns["attention_mask"][row].bool()]

    def rename(self, token_id: int, new_id: int) -> None:
        """Let placeholders of one kind pass for those of another, in what is cut out but not in what is restored."""
        if token_id != new_id:
            ids = self.columns["input_ids"]
            self.columns["input_ids"] = torch.where(ids == token_id, new_id, ids)

    def keep(
        self, places: torch.Tensor, positions: torch.Tensor, offsets: torch.Tensor, n_positions: int
    ) -> None:
        """Keep some of an image's rows, by ascending number, at its flat places.

        `offsets` and `n_positions` of all its rows are those of `Adapter.row_positions`.
        """
        places = places.to(self.copies.device)
        copies, extents = self.copies.view(-1), self.extents.view(-1)
        copies[places] = 0
        if offsets.shape == (1, len(places)):
            copies[places[positions.to(places.device)]] = 1
            return
        extents[places] = 0
        copies[places[0]], extents[places[0]] = len(positions), n_positions
        self.offsets.append((int(places[0]), offsets[:, positions]))

    def cut(self, with_positions: bool) -> dict[str, torch.Tensor]:
        """Return the columns that are left, ``(n_prompts, n_left of the longest)``, padded on the left."""
        flat = torch.arange(self.copies.numel(), device=self.copies.device)
        taken = flat.repeat_interleave(self.copies.flatten())  # (n_left of all prompts,)
        n_left = self.copies.sum(-1)
        longest = int(n_left.max())
        filled = torch.arange(longest, device=n_left.device) >= longest - n_left[:, None]
        cut = {}
        for name, column in self.columns.items():
            padding = self.pad_token_id if name == "input_ids" else 0
            cut[name] = column.new_full(filled.shape, padding)
            cut[name][filled] = column.flatten()[taken]
        if with_positions:
            positions = (self.extents.cumsum(-1) - self.extents).flatten()[taken]
            n_axes = len(self.offsets[0][1]) if self.offsets else 1
            positions = positions.repeat(n_axes, 1)
            for place, offsets in self.offsets:
                positions[:, taken == place] += offsets.to(positions)
            position_ids = positions.new_zeros(n_axes, *filled.shape)
            position_ids[:, filled] = positions
            cut["position_ids"] = position_ids[0] if n_axes == 1 else position_ids
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
