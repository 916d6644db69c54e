"""Choose tokens and cut prompts step by step, and keep the log of what was kept."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from rcblib.mllm import Adapter
from rcblib.mllm.caches import CachedPrompts, cached_prompts, given_cache
from rcblib.mllm.given import GivenPrompts, PlacedImage
from rcblib.mllm.layer_state import Spans
from rcblib.mllm.placement import module_device
from rcblib.mllm.prompt import VisualRows
from rcblib.mllm.reduced import Reduced
from rcblib.mllm.versions import READS_IMAGES_IN_CHUNKS
from rcblib.pruners.settings import Settings
from rcblib.records import EncodedImage, ParameterError, VisualView
from rcblib.tensors.checks import check_features

if TYPE_CHECKING:
    import PIL.Image

_AT_WORK: ContextVar[bool] = ContextVar("at_work", default=False)


def is_at_work() -> bool:
    """Tell whether a context calls the model itself, here."""
    return _AT_WORK.get()


@contextmanager
def at_work() -> Iterator[None]:
    """Let calls of the model inside the ``with`` block be the model's own."""
    before = _AT_WORK.set(True)
    try:
        yield
    finally:
        _AT_WORK.reset(before)


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
    prompts : GivenPrompts
        The prompts as given.
    cached : CachedPrompts
        What the cache holds when they have been read.
    """

    arguments: dict[str, Any]
    spans: Spans
    images: range
    prompts: GivenPrompts
    cached: CachedPrompts


class PruningSteps:
    """Do the steps of pruned generation, and note what was kept.

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
    sizes : list of torch.Tensor or None
        For each of these images and videos how many tokens each row is made of, ``(n_kept,)`` int64, where the method
        merges tokens and tells.
    n_tokens : list of int
        For each of these images and videos the rows that the LLM reads of it without pruning: visual tokens and
        newlines. Tokens of padding, which the model never reads, are not among them.
    n_retained : list of float
        The rows that the LLM reads of it, as the mean over its layers. With ``"flatten"``, which reads tokens of
        padding where they survive, there can be more than there were.
    is_used : bool
        Whether prompts to prune have reached the context, an error or not.
    """

    def __init__(
        self,
        pruner: Any,
        adapter: Adapter,
        image_indices: tuple[int, ...] | None = None,
        models: Sequence[Any] = (),
    ):
        self.pruner, self.adapter, self._models = pruner, adapter, tuple(models)
        self.kept: list[torch.Tensor] = []
        self.kept_by_view: list[tuple[torch.Tensor, ...]] = []
        self.sizes: list[torch.Tensor | None] = []
        self.n_tokens: list[int] = []
        self.n_retained: list[float] = []
        self.is_open, self.is_used, self.has_resized = True, False, False
        self._lock = threading.RLock()  # threads that have taken `generate` along choose tokens in turn
        self._image_indices = image_indices
        self._handed_in: list[tuple[EncodedImage, int | None]] = []
        self._chosen: dict[int, Reduced] = {}

    def close(self) -> None:
        """Let go of the model and of everything on its device; what was kept stays."""
        with self._lock:
            self.is_open, self.adapter, self._models = False, None, ()
            self._handed_in, self._chosen = [], {}

    def check_open(self) -> None:
        """Raise where the context has been left."""
        if not self.is_open:
            accepted = "a call inside of it; take `model.generate` anew"
            raise ParameterError("generate", "a call in a pruner's context that has been left", accepted)

    def is_of(self, model: Any) -> bool:
        """Tell whether it is a model of the context, or what that is wrapped in."""
        return any(own is model for own in self._models)

    def resize(self, pictures: Sequence[PIL.Image.Image]) -> list[PIL.Image.Image]:
        """Return the pictures of one question to process instead of those given; the method's `resize`."""
        self.has_resized = True
        return self.pruner.resize(pictures, self.adapter)

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

    def prepare(
        self, arguments: dict[str, Any], settings: Settings | None = None, *, is_generating: bool = True
    ) -> Prepared:
        """Choose tokens, and cut the others out of prompts.

        Parameters
        ----------
        arguments : dict
            ``input_ids`` and ``attention_mask``, and pixels where no images were handed in; with ``past_key_values``
            that a context returned, the prompts go on from what they hold.
        settings : optional
            Where padding and end tokens are looked up.
        is_generating : bool
            Whether it is for `generate`, which finds position ids by itself where rows are numbered anew.

        Returns
        -------
        Prepared
        """
        with self._lock, at_work():
            # Taken also where this raises: they are not the next prompts'.
            handed_in, self._handed_in = self._handed_in, []
            self.check_open()
            self.is_used = True
            return self._prepare(arguments, settings, handed_in, is_generating)

    def _prepare(
        self,
        arguments: dict[str, Any],
        settings: Settings | None,
        handed_in: list[tuple[EncodedImage, int | None]],
        is_generating: bool,
    ) -> Prepared:
        cached = cached_prompts(given_cache(arguments))
        has_lengths = settings is not None
        settings = settings or Settings(self.adapter.model.generation_config, None, arguments)
        end_ids = (settings.value("pad_token_id"), settings.value("eos_token_id"))
        prompts = GivenPrompts(arguments, *end_ids, cached)
        if has_lengths:
            settings.check_max_length(prompts.input_ids.shape[1])
        adapter, keeps = self.adapter, self.pruner.keeps_positions(self.adapter)
        if (keeps or cached is not None) and settings.value("use_cache") is False:
            # Without a cache, transformers takes gaps in position ids for borders between packed sequences.
            raise ParameterError("use_cache", False, "True, with the position_ids policy 'kept'")
        if (size := settings.value("prefill_chunk_size")) and not READS_IMAGES_IN_CHUNKS:
            raise ParameterError(
                "prefill_chunk_size", size, "None before transformers 5.23, which reads images so"
            )
        if cached is not None and (self.pruner.acts_inside or self.pruner.reads_prompt):
            name, accepted = type(self.pruner).__name__, "none, as its choice depends on the whole prompt"
            raise ParameterError("past_key_values", f"a cache of prompts before, with {name}", accepted)
        given, first = self._images(arguments, handed_in), len(self.kept)
        numbers = {id(image): number for image, number in given}
        images = [image for image, _ in given]
        placed = prompts.place(images, adapter.n_placeholders, adapter.image_token_id, adapter.video_token_id)
        batch = prompts.filled([self._prune(own, numbers[id(own.image)]) for own in placed])
        left = prompts.cut(batch, adapter.image_token_id)
        positions = None
        if keeps or not is_generating or cached is not None:
            positions = prompts.position_ids(batch, left["attention_mask"], adapter.n_position_axes, keeps)
            own = positions if adapter.n_position_axes > 1 else positions[0]
            left["position_ids"] = own.to(prompts.input_ids.device)
        if placed:
            left |= adapter.generation_inputs(batch.visual_rows())
        to_cache = prompts.to_cache(batch, positions if keeps else None)
        return Prepared(left, prompts.spans(batch), range(first, len(self.kept)), prompts, to_cache)

    @contextmanager
    def reading(self, prepared: Prepared) -> Iterator[None]:
        """Let the LLM read prepared prompts inside the ``with`` block, methods inside it at work."""
        with at_work(), self.pruner.inside(self.adapter, prepared.spans) as counts:
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
        if has_pixels and self.pruner.resizes and not self.has_resized:
            name = type(self.pruner).__name__
            accepted = f"pixels of pictures that went through the context's resize, as {name} asks for"
            raise ParameterError("generate", "pixels", accepted)
        if not has_pixels:
            return []
        images = self.adapter.encode_pixels(arguments, needs=self.pruner.signals)
        for view in (view for image in images for view in image.views):
            check_features("visual tokens", view.tokens, "(n_tokens, d_model)")
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
        self.sizes.append(reduced.sizes)
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
    if len(views) == 1:
        return [positions]
    ends = list(itertools.accumulate(view.n_tokens for view in views))
    cuts = torch.searchsorted(positions, torch.tensor(ends[:-1], dtype=positions.dtype)).tolist()
    return [own - start for own, start in zip(positions.tensor_split(cuts), [0, *ends], strict=False)]
