"""Adapt LLaVA-OneVision: SigLIP without [CLS]; one image in tiles, several images as one grid each, video."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch

from rcblib.mllm.frames import LlavaOnevisionProcessor
from rcblib.mllm.tiles import TiledAdapter
from rcblib.records import EncodedImage, ParameterError, UnsupportedModelError, VisualView


class LlavaOnevisionAdapter(TiledAdapter):
    """Read and feed LLaVA-OneVision-type models.

    An image alone in its prompt is read as a reduced image and tiles; if its tiles hold more tokens than nine of
    them, and a fifth more, they are resampled together, and a tile's view is its part of the result. Of several
    images in a prompt each is one grid and a newline, if the processor was told that they belong together: it takes
    images in one flat list for images of as many prompts. Frames of a video are pooled to half the side; one newline
    follows the last.

    Raises
    ------
    UnsupportedModelError
        As other LLaVA-type models; also if the vision encoder is not SigLIP.

    Notes
    -----
    The word whose embedding replaces a token is id 151643 with Qwen2, ``<|endoftext|>``, which it pads with.
    """

    family = "llava_onevision"
    processor_class = LlavaOnevisionProcessor
    preset_token_id = 151643
    pixel_inputs = (
        "pixel_values", "image_sizes", "batch_num_images", "pixel_values_videos", "image_sizes_videos",
    )  # fmt: skip

    def __init__(self, model: Any, processor: Any = None):
        super().__init__(model, processor)
        if self.has_cls:
            tower = model.config.vision_config.model_type
            raise UnsupportedModelError(
                f"vision encoder: got {tower}; supported: siglip_vision_model with LLaVA-OneVision"
            )

    def complete_processor(self) -> None:
        """Say how tokens are counted; see `LlavaTypeAdapter.complete_processor`."""
        self.processor.vision_feature_select_strategy = self.model.config.vision_feature_select_strategy
        self.processor.num_image_tokens = self.side**2
        self.processor.vision_aspect_ratio = self.model.config.vision_aspect_ratio

    def _resampled(self, height: int, width: int) -> tuple[int, int]:
        setting = self.model.config.vision_aspect_ratio
        prefix, _, n_largest = setting.rpartition("_")
        if prefix != "anyres_max" or not n_largest.isdigit():
            raise UnsupportedModelError(
                f"vision_aspect_ratio: got {setting!r}; supported: 'anyres_max_<number>'"
            )
        ratio = math.sqrt(height * width / (int(n_largest) * self.side**2))
        return (int(height // ratio), int(width // ratio)) if ratio > 1.1 else (height, width)

    @torch.no_grad()
    def encode_pixels(
        self, model_inputs: Mapping[str, Any], needs: Collection[str] = ()
    ) -> list[EncodedImage]:
        """Run the vision encoder and the connector once on all tiles, once on all frames; see `Adapter.encode_pixels`.

        Notes
        -----
        Source: the last used hidden state, as the checkpoint says. Where tiles are resampled, a token's signals are
        those of the patch at its middle. Frames are pooled bilinearly to half the side, rounded up (27 x 27 to 14 x
        14), after the connector, and have no signals.
        """
        images, videos = (model_inputs.get(name) for name in ("pixel_values", "pixel_values_videos"))
        if images is None and videos is None:
            raise ParameterError("pixel_values", None, "pixel_values, pixel_values_videos, or both")
        encoded = []
        if images is not None:
            grouped = model_inputs.get("batch_num_images")
            n_images = len(self._sizes(model_inputs))
            counts = [1] * n_images if grouped is None else torch.as_tensor(grouped).tolist()
            if sum(counts) != n_images:
                raise ParameterError("batch_num_images", counts, f"counts that add up to {n_images} images")
            is_tiled = [count == 1 for count in counts for _ in range(count)]
            encoded += self._encode_images(model_inputs, is_tiled, needs, batch_num_images=counts)
        if videos is not None:
            encoded += self._encode_videos(model_inputs)
        return encoded

    def _encode_videos(self, model_inputs: Mapping[str, Any]) -> list[EncodedImage]:
        pixels = self._pixels(
            model_inputs, "pixel_values_videos", 5
        )  # (n_videos, n_frames, 3, height, width)
        output = self.model.get_video_features(pixel_values_videos=pixels, return_dict=True)
        side = math.ceil(self.side / 2)
        end = self.side * self.patch_size / self.model.config.vision_config.image_size
        videos = []
        for rows in output.pooler_output:
            frames = rows[:-1].unflatten(0, (pixels.shape[1], side**2))
            views = tuple(
                VisualView(tokens, (side, side), kind="frame", region=(0.0, 0.0, end, end))
                for tokens in frames
            )
            videos.append(EncodedImage(views, self._with_newline(len(rows) - 1)))
        return videos
