"""Prune what a model generates: the context that all of its users enter, and the steps that happen inside."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from rcblib.mllm import Adapter, adapter_for
from rcblib.mllm.layers import Spans
from rcblib.mllm.placement import module_device
from rcblib.mllm.prompt import GeneratePrompts, PlacedImage, VisualRows
from rcblib.mllm.versions import READS_IMAGES_IN_CHUNKS
from rcblib.records import EncodedImage, ParameterError, Reduced, VisualView

if TYPE_CHECKING:
    import PIL.Image

_REFUSED = (
    "inputs_embeds", "mm_encoder_outputs", "cache", "past_key_values", "position_ids", "negative_prompt_ids",
    "assistant_model", "custom_generate", "vision_feature_layer", "vision_feature_select_strategy",
    "vision_aspect_ratio",
)  # fmt: skip
"""Arguments of `generate` that bring images or prompts past the pruner, or a second model to prune."""


@contextmanager
def pruning(
    pruner: Any, model: Any, processor: Any = None, image_indices: Sequence[int] | None = None
) -> Iterator[Pruned]:
    """Prune what a model generates inside the ``with`` block; see `Pruner.__call__`."""
    adapter = adapter_for(model, processor)
    pruner.check(adapter)
    original = model.generate
    if hasattr(original, "pruner") or (pruner.log is not None and pruner.log.is_open):
        raise ParameterError(
            "model", "a pruner inside a pruner's context", "one pruner for a model at a time"
        )
    pruned = Pruned(pruner, adapter, None if image_indices is None else tuple(image_indices))

    @functools.wraps(original)
    def generate(inputs: Any = None, generation_config: Any = None, **arguments: Any) -> Any:
        return pruned.generate(original, inputs, generation_config, arguments)

    generate.pruner = pruner
    own = vars(model).get("generate")
    object.__setattr__(pruner, "_log", pruned)  # no field: neither compared nor part of the method
    model.generate = generate
    try:
        yield pruned
    finally:
        pruned.close()
        if own is None:
            del model.generate
        else:
            model.generate = own


@dataclass(frozen=True)
class Prepared:
    """Hold pruned prompts.

    Attributes
    ----------
    arguments : dict
        What `generate`, or the model's forward, takes: the prompts that are left, padded on the left, and their rows.
    spans : Spans
        Where the visual rows are in them.
    images : range
        Places of their images in the lists of `Pruned`.
    prompts : GeneratePrompts
        The prompts as given.
    """

    arguments: dict[str, Any]
    spans: Spans
    images: range
    prompts: GeneratePrompts


class Pruned:
    """Follow one pruner's context: what was kept, and the steps of pruned generation.

    `generate` inside the context takes all steps by itself. Who has encoded the images hands them in before
    (`hand_in`); who takes time does `prepare` and `reading` by hand.

    Attributes
    ----------
    pruner : Pruner
        The method.
    adapter : Adapter or None
        The model's, as long as the context is entered.
    kept : list of torch.Tensor
        For each image and video since the context was entered, in prompt order: ``(n_kept,)`` ascending positions
        among its visual tokens, view after view, int64, on the CPU.
    kept_by_view : list of tuple of torch.Tensor
        The same for each view by itself: positions in its grid.
    n_tokens : list of int
        For each of these images and videos the rows that the LLM reads of it without pruning: visual tokens and
        newlines. Tokens of padding, which the model never reads, are not among them.
    n_retained : list of float
        The rows that the LLM reads of it, as the mean over its layers. With ``"flatten"``, which reads tokens of
        padding where they survive, there can be more than there were.
    """

    def __init__(self, pruner: Any, adapter: Adapter, image_indices: tuple[int, ...] | None = None):
        self.pruner, self.adapter = pruner, adapter
        self.kept: list[torch.Tensor] = []
        self.kept_by_view: list[tuple[torch.Tensor, ...]] = []
        self.n_tokens: list[int] = []
        self.n_retained: list[float] = []
        self.is_open, self.has_resized = True, False
        self._image_indices = image_indices
        self._handed_in: list[tuple[EncodedImage, int | None]] = []
        self._chosen: dict[int, Reduced] = {}

    def close(self) -> None:
        """Let go of the model and of everything on its device; what was kept stays."""
        self.is_open, self.adapter = False, None
        self._handed_in, self._chosen = [], {}

    def resize(self, pictures: Sequence[PIL.Image.Image]) -> list[PIL.Image.Image]:
        """Return the pictures of one question to process instead of those given; the method's `resize`."""
        self.has_resized = True
        return self.pruner.resize(pictures)

    def hand_in(self, images: Sequence[EncodedImage], image_indices: Sequence[int] | None = None) -> None:
        """Give the images and videos of the next prompts, so that they are not encoded again.

        Parameters
        ----------
        images : sequence of EncodedImage
            In prompt order, with the signals that the method needs, of pictures that the method resized if it does.
        image_indices : sequence of int, optional
            Their numbers. Where the method does not read the prompt, its choice for a number is made once.
        """
        indices = [None] * len(images) if image_indices is None else image_indices
        self._handed_in = [*self._handed_in, *zip(images, indices, strict=True)]

    def generate(self, original: Any, inputs: Any, generation_config: Any, arguments: dict[str, Any]) -> Any:
        """Do what `original`, a model's `generate`, does, with fewer visual tokens."""
        arguments = {name: value for name, value in arguments.items() if value is not None}
        if inputs is not None:
            arguments["input_ids"] = inputs
        refused = [name for name in _REFUSED if name in arguments]
        if refused:
            self._handed_in = []
            accepted = "token ids, attention mask, pixels and generation settings inside a pruner's context"
            raise ParameterError("generate", ", ".join(refused), accepted)
        if not (self._handed_in or any(name in arguments for name in self.adapter.pixel_inputs)):
            return original(generation_config=generation_config, **arguments)
        settings = _Settings(self.adapter.model.generation_config, generation_config, arguments)
        prepared = self.prepare(arguments, settings)
        n_given, n_left = prepared.prompts.input_ids.shape[1], prepared.spans.n_columns
        generation_config, rest = settings.shortened(n_given - n_left)
        rest = {name: value for name, value in rest.items() if name not in self.adapter.pixel_inputs}
        with self.reading(prepared):
            output = original(generation_config=generation_config, **rest | prepared.arguments)
        return prepared.prompts.restore(output, n_left)

    def prepare(self, arguments: dict[str, Any], settings: _Settings | None = None) -> Prepared:
        """Choose tokens, and cut the others out of prompts.

        Parameters
        ----------
        arguments : dict
            ``input_ids`` and ``attention_mask``, and pixels where no images were handed in.
        settings : optional
            Where padding and end tokens are looked up.

        Returns
        -------
        Prepared
        """
        is_generating = settings is not None
        handed_in, self._handed_in = (
            self._handed_in,
            [],
        )  # also where this raises: they are not the next prompts'
        settings = settings or _Settings(self.adapter.model.generation_config, None, arguments)
        prompts = GeneratePrompts(arguments, settings.value("pad_token_id"), settings.value("eos_token_id"))
        if is_generating:
            settings.check_max_length(prompts.input_ids.shape[1])
        keeps_positions = self.pruner.keeps_positions(self.adapter)
        if keeps_positions and settings.value("use_cache") is False:
            # Without a cache, transformers takes gaps in position ids for borders between packed sequences.
            raise ParameterError("use_cache", False, "True, with the position_ids policy 'kept'")
        if (size := settings.value("prefill_chunk_size")) and not READS_IMAGES_IN_CHUNKS:
            raise ParameterError(
                "prefill_chunk_size", size, "None before transformers 5.23, which reads images so"
            )
        adapter, given, first = self.adapter, self._images(arguments, handed_in), len(self.kept)
        images = [image for image, _ in given]
        numbers = {id(image): number for image, number in given}
        placed = prompts.place(images, adapter.n_placeholders, adapter.image_token_id, adapter.video_token_id)
        batch = prompts.filled([self._prune(own, numbers[id(own.image)]) for own in placed])
        left = prompts.cut(batch, adapter.image_token_id) | adapter.generation_inputs(batch.visual_rows())
        if keeps_positions:
            left["position_ids"] = batch.position_ids.to(prompts.input_ids.device)
        return Prepared(left, batch.spans, range(first, len(self.kept)), prompts)

    @contextmanager
    def reading(self, prepared: Prepared) -> Iterator[None]:
        """Let the LLM read prepared prompts inside the ``with`` block, methods inside it at work."""
        with self.pruner.inside(self.adapter.language_model, prepared.spans) as counts:
            yield
        if counts is not None:
            self.n_retained[prepared.images.start : prepared.images.stop] = counts.means

    def _images(
        self, arguments: dict[str, Any], handed_in: list[tuple[EncodedImage, int | None]]
    ) -> list[tuple[EncodedImage, int | None]]:
        """Return the images and videos of prompts with their numbers, handed in or encoded."""
        has_pixels = any(name in arguments for name in self.adapter.pixel_inputs)
        if handed_in:
            if has_pixels:
                raise ParameterError("generate", "pixels", "none of images that were handed in")
            device = module_device(self.adapter.model.get_input_embeddings())
            return [(image.to(device), index) for image, index in handed_in]
        if self.pruner.resizes and not self.has_resized:
            name = type(self.pruner).__name__
            accepted = f"pixels of pictures that went through the context's resize, as {name} asks for"
            raise ParameterError("generate", "pixels", accepted)
        images = self.adapter.encode_pixels(arguments, needs=self.pruner.signals)
        return [(image, None) for image in images]

    @torch.no_grad()
    def _prune(self, placed: PlacedImage, index: int | None) -> VisualRows:
        """Reduce an image or video, note what was kept, and return the rows that are left."""
        reduced = self._reduce(placed.image, index, placed.prompt_ids)
        arranged = placed.image.arranged(self.pruner.layout)
        kept = split_by_view(arranged.views, reduced.positions)
        new = None if reduced.rows is None else reduced.rows.split([len(own) for own in kept])
        rows = self.adapter.gather(arranged, kept, new)
        self.kept.append(reduced.positions)
        self.kept_by_view.append(tuple(kept))
        self.n_tokens.append(self.adapter.n_placeholders(placed.image))
        self.n_retained.append(len(rows))
        return rows

    def _reduce(self, image: EncodedImage, index: int | None, prompt_ids: torch.Tensor) -> Reduced:
        """Ask the method about an image; once for each number where it does not read the prompt."""
        is_known = index is not None and not self.pruner.reads_prompt
        if is_known and index in self._chosen:
            return self._chosen[index]
        number = self._image_index() if index is None else index
        reduced = self.pruner.reduce_image(image, number, prompt_ids, self.adapter)
        if is_known:
            self._chosen[index] = reduced
        return reduced

    def _image_index(self) -> int:
        """Return the number of the next image of the context."""
        n_before = len(self.kept)
        if self._image_indices is None:
            return n_before
        if n_before >= len(self._image_indices):
            accepted = "one number for each image and video of the context"
            raise ParameterError("image_indices", f"{n_before} numbers and one more image", accepted)
        return self._image_indices[n_before]


def split_by_view(views: Sequence[VisualView], positions: torch.Tensor) -> list[torch.Tensor]:
    """Split ascending positions among the tokens of all views into positions in each."""
    ends = list(itertools.accumulate(view.n_tokens for view in views))
    cuts = torch.searchsorted(positions, torch.tensor(ends[:-1], dtype=positions.dtype)).tolist()
    return [own - start for own, start in zip(positions.tensor_split(cuts), [0, *ends], strict=False)]


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
