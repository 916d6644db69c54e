"""Adapt LLaVA-1.5: a vision encoder with or without [CLS], two-layer connector, one grid of tokens an image.

What LLaVA-NeXT and LLaVA-OneVision have in common with it is here too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch

from rcblib.mllm.base import Adapter
from rcblib.mllm.encoder import HAS_CLS, EncoderSignals
from rcblib.mllm.placement import module_device
from rcblib.records import EncodedImage, ParameterError, UnsupportedModelError, VisualView

_ANY_SIZE = ("dinov2",)
"""Vision encoders that place the patches of pictures of any size."""


class LlavaTypeAdapter(Adapter):
    """Share what all LLaVA models have: the patches of one hidden state of a vision encoder, and a connector.

    Raises
    ------
    UnsupportedModelError
        If the vision encoder is not in `rcblib.mllm.encoder.HAS_CLS`, its [CLS] itself enters the LLM, or features of
        several layers are joined.
    """

    def __init__(self, model: Any, processor: Any = None):
        super().__init__(model, processor)
        config = model.config
        tower, strategy = config.vision_config.model_type, config.vision_feature_select_strategy
        strategies = {kind: "default" if has_cls else "full" for kind, has_cls in HAS_CLS.items()}
        if strategies.get(tower) != strategy:
            supported = ", ".join(f"{kind} with {own!r}" for kind, own in strategies.items())
            raise UnsupportedModelError(
                f"vision encoder: got {tower} with vision_feature_select_strategy={strategy!r}; supported: {supported}"
            )
        n_layers, layer = config.vision_config.num_hidden_layers, config.vision_feature_layer
        if not isinstance(layer, int) or not (-n_layers <= layer <= -1 or 1 <= layer <= n_layers):
            raise UnsupportedModelError(
                f"vision_feature_layer: got {layer}; supported: one hidden state that a layer makes, "
                f"1 to {n_layers} or {-n_layers} to -1"
            )
        self.signals = EncoderSignals(model.model.vision_tower, layer, HAS_CLS[tower])
        self.offers = self.signals.offers

    @property
    def patch_size(self) -> int:
        """Return the side of a token in pixels."""
        return self.model.config.vision_config.patch_size

    @property
    def side(self) -> int:
        """Count the tokens along a side of the picture that the encoder gets."""
        return self.model.config.vision_config.image_size // self.patch_size

    @property
    def frame_side(self) -> int:
        """Return `side`; see `Adapter.frame_side`."""
        return self.side

    @torch.no_grad()
    def connect(self, states: torch.Tensor) -> torch.Tensor:
        """Return the rows that the connector makes of hidden states; see `Adapter.connect`."""
        connector = self.model.model.multi_modal_projector
        return connector(states.to(module_device(connector), next(connector.parameters()).dtype))

    def complete_processor(self) -> None:
        """Say how tokens are counted, which files of older snapshots lack: processors then count wrong, or fail."""
        self.processor.vision_feature_select_strategy = self.model.config.vision_feature_select_strategy
        self.processor.patch_size = self.patch_size
        self.processor.num_additional_image_tokens = int(self.has_cls)

    def _pixels(self, model_inputs: Mapping[str, Any], name: str, n_dimensions: int) -> torch.Tensor:
        """Return pixels on the encoder's device, or raise where they are something else."""
        pixels = model_inputs.get(name)
        if not isinstance(pixels, torch.Tensor) or pixels.ndim != n_dimensions or 0 in pixels.shape:
            given = tuple(pixels.shape) if isinstance(pixels, torch.Tensor) else type(pixels).__name__
            raise ParameterError(name, given, f"a tensor of {n_dimensions} dimensions, none of them empty")
        side, size = self.model.config.vision_config.image_size, tuple(pixels.shape[-2:])
        if self.model.config.vision_config.model_type not in _ANY_SIZE and size != (side, side):
            accepted = (
                f"{side} x {side} px, as the vision encoder takes them; the processor's settings say the size"
            )
            raise ParameterError(name, f"pictures of {size[1]} x {size[0]} px", accepted)
        return pixels.to(module_device(self.model.model.vision_tower))


class LlavaAdapter(LlavaTypeAdapter):
    """Read and feed LLaVA-1.5-type models: one grid of tokens an image.

    Notes
    -----
    The word whose embedding replaces a token is id 0, as in the released pad embedding: Vicuna's ``<unk>``. With
    another LLM the model's config may name another.
    """

    family = "llava"
    preset_token_id = 0

    @torch.no_grad()
    def encode_pixels(
        self, model_inputs: Mapping[str, Any], needs: Collection[str] = ()
    ) -> list[EncodedImage]:
        """Run the vision encoder and the connector once; see `Adapter.encode_pixels`.

        Notes
        -----
        Source: hidden state -2, patch rows (LLaVA-1.5); signals by `EncoderSignals`.
        """
        pixels = self._pixels(model_inputs, "pixel_values", 4)
        grid = (pixels.shape[-2] // self.patch_size, pixels.shape[-1] // self.patch_size)
        with self.signals.reading(needs) as reading:
            output = self.model.get_image_features(pixel_values=pixels, return_dict=True)
        signals = reading.signals(output.hidden_states)
        return [
            EncodedImage((VisualView(tokens, grid, own),))
            for tokens, own in zip(output.pooler_output, signals, strict=True)
        ]
