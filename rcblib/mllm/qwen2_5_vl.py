"""Adapt Qwen2.5-VL: images of any size as one grid each, without [CLS], at positions on three axes."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any

import torch
import transformers

from rcblib.mllm.base import Adapter
from rcblib.mllm.placement import module_device
from rcblib.mllm.processors import PilProcessor
from rcblib.records import EncodedImage, ParameterError, UnsupportedModelError, VisualView


class Qwen2_5_VLProcessor(PilProcessor, transformers.Qwen2_5_VLProcessor):
    """Process text and images for Qwen2.5-VL without torchvision, which its processor needs for videos.

    It bears the name of the class in `transformers`, which a saved folder carries.
    """

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None):
        super().__init__(image_processor, tokenizer, chat_template=chat_template)


class Qwen25VLAdapter(Adapter):
    """Read and feed Qwen2.5-VL-type models, images only.

    The processor resizes an image to whole multiples of 28 px, as near to its size and shape as the limits on the
    number of pixels allow; the connector merges patches of 14 px by two and two. One grid of tokens an image, larger
    for larger images, nothing cut off and no newlines.

    The LLM counts positions on three axes: time, height, width. A token of text has the same number on all three; a
    visual token stands at the image's beginning plus ``(0, row, column)``; the text behind an image goes on
    ``max(height, width)`` after its beginning. Pruning leaves every token that survives, and all text, where it was in
    the full prompt, so that retaining everything is plain `generate`. With ``position_ids="renumbered"`` rows and
    columns are forgotten: what survives is numbered one after the other, the same on all axes, as the model itself
    numbers a prompt whose grids it is not told. Retaining everything then is not plain `generate`, but the model on a
    prompt numbered like text.

    Notes
    -----
    The word whose embedding replaces a token is id 151643, ``<|endoftext|>``, which Qwen2.5 pads with.

    Differs: the release does not cover this family. Videos are refused; the model would merge frames in pairs.
    """

    family = "qwen2_5_vl"
    processor_class = Qwen2_5_VLProcessor
    preset_token_id = 151643
    pixel_inputs = (
        "pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw", "second_per_grid_ts",
    )  # fmt: skip
    n_position_axes = 3

    @property
    def video_token_id(self) -> None:
        """Return ``None``: videos are not supported, although the model has a placeholder for them."""
        return None

    def size_limit(self, width: int, height: int) -> str:
        """Say that a picture is longer than the processor takes; see `Adapter.size_limit`."""
        try:
            self.grid_of(width, height)
        except ValueError as error:
            return f"accepted by its processor: {error}"
        return ""

    def grid_of(self, width: int, height: int) -> tuple[int, int]:
        """Return ``(rows, columns)`` of the tokens of a photo; see `Adapter.grid_of`."""
        processor = self._require_processor().image_processor
        side, size = processor.patch_size * processor.merge_size, processor.size
        resize = inspect.getmodule(type(processor)).smart_resize
        rows, columns = resize(height, width, side, size["shortest_edge"], size["longest_edge"])
        return rows // side, columns // side

    @torch.no_grad()
    def encode_pixels(
        self, model_inputs: Mapping[str, Any], needs: Collection[str] = ()
    ) -> list[EncodedImage]:
        """Run the vision encoder and the connector once on all images; see `Adapter.encode_pixels`.

        Raises
        ------
        UnsupportedModelError
            If there is a video.
        ParameterError
            If patches and grids do not fit together.

        Notes
        -----
        Source: tokens after the merger, in raster order. No signals are read.
        """
        if model_inputs.get("pixel_values_videos") is not None:
            raise UnsupportedModelError(f"video: the model's family, {self.family!r}, takes images only")
        pixels, grids = self._patches(model_inputs)
        device = module_device(self.model.model.visual)
        output = self.model.get_image_features(
            pixel_values=pixels.to(device), image_grid_thw=grids.to(device), return_dict=True
        )
        merge = self.model.config.vision_config.spatial_merge_size
        images = []
        for tokens, (_, height, width) in zip(output.pooler_output, grids.tolist(), strict=True):
            grid = (height // merge, width // merge)
            images.append(EncodedImage((VisualView(tokens, grid, region=(0.0, 0.0, 1.0, 1.0)),)))
        return images

    def _patches(self, model_inputs: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ``(n_patches of all images, n_values)`` pixels and ``(n_images, 3)`` grids, checked."""
        pixels, grids = (model_inputs.get(name) for name in ("pixel_values", "image_grid_thw"))
        if not isinstance(pixels, torch.Tensor) or pixels.ndim != 2 or 0 in pixels.shape:
            given = tuple(pixels.shape) if isinstance(pixels, torch.Tensor) else type(pixels).__name__
            raise ParameterError(
                "pixel_values", given, "a tensor (n_patches of all images, values of a patch)"
            )
        if grids is None:
            raise ParameterError("image_grid_thw", None, "time, height and width in patches of every image")
        grids = torch.as_tensor(grids)
        merge = self.model.config.vision_config.spatial_merge_size
        fits = grids.ndim == 2 and grids.shape[1] == 3 and bool((grids > 0).all())
        fits = fits and bool((grids[:, 0] == 1).all()) and not bool((grids[:, 1:] % merge).any())
        if not fits or int(grids.prod(-1).sum()) != len(pixels):
            accepted = (
                f"(1, height, width) of every image, multiples of {merge}, {len(pixels)} patches in all"
            )
            raise ParameterError("image_grid_thw", grids.tolist(), accepted)
        return pixels, grids

    def row_positions(self, image: EncodedImage) -> tuple[torch.Tensor, int]:
        """Say where on the three axes the LLM reads the tokens of an image; see `Adapter.row_positions`."""
        height, width = image.views[0].grid
        cells = torch.arange(height * width)
        offsets = torch.stack([torch.zeros_like(cells), cells // width, cells % width])
        return offsets, max(height, width)
