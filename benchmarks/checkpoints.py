"""Describe the four checkpoints of the paper, and one of Qwen2.5-VL, by their settings: shapes need no download."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    LlavaOnevisionConfig,
    PreTrainedConfig,
    Qwen2_5_VLConfig,
    Qwen2Config,
    Qwen2VLImageProcessorPil,
    SiglipVisionConfig,
)
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from rcblib.mllm.loading import adapter_for, model_source
from rcblib.records import ParameterError, UnsupportedModelError

CLIP_L_336 = dict(
    image_size=336, patch_size=14, hidden_size=1024, intermediate_size=4096, num_hidden_layers=24,
    num_attention_heads=16, projection_dim=768,
)  # fmt: skip
"""CLIP ViT-L/14 at 336 px (openai/clip-vit-large-patch14-336)."""

SIGLIP_SO400M_384 = dict(
    image_size=384, patch_size=14, hidden_size=1152, intermediate_size=4304, num_hidden_layers=26,
    num_attention_heads=16, vision_use_head=False,
)  # fmt: skip
"""SigLIP so400m/14 at 384 px (google/siglip-so400m-patch14-384) without its last layer and its head."""

VICUNA_7B = dict(
    hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=32, max_position_embeddings=4096, rms_norm_eps=1e-5, vocab_size=32064,
)  # fmt: skip
"""Vicuna-7B v1.5 (lmsys/vicuna-7b-v1.5); placeholders added, then padded to a multiple of 64 words."""

VICUNA_13B = VICUNA_7B | dict(
    hidden_size=5120,
    intermediate_size=13824,
    num_hidden_layers=40,
    num_attention_heads=40,
    num_key_value_heads=40,
)
"""Vicuna-13B v1.5 (lmsys/vicuna-13b-v1.5)."""

LLAMA_3_8B = dict(
    hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=8, max_position_embeddings=8192, rms_norm_eps=1e-5, vocab_size=128320,
)  # fmt: skip
"""Llama-3-8B-Instruct (meta-llama/Meta-Llama-3-8B-Instruct), its vocabulary padded the same way."""

QWEN_2_7B = dict(
    hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
    num_key_value_heads=4, max_position_embeddings=32768, rms_norm_eps=1e-6, vocab_size=152000,
)  # fmt: skip
"""Qwen2-7B-Instruct (Qwen/Qwen2-7B-Instruct), its vocabulary as in the checkpoint."""

CHECKPOINTS = (
    "llava-hf/llava-1.5-7b-hf",
    "llava-hf/llava-1.5-13b-hf",
    "llava-hf/llama3-llava-next-8b-hf",
    "llava-hf/llava-onevision-qwen2-7b-ov-hf",
)
"""Hugging Face ids of the checkpoints that the paper uses; the 13B one is its second size."""

QWEN = "Qwen/Qwen2.5-VL-7B-Instruct"
"""A checkpoint of the family that counts positions on three axes and reads pictures of any size; not the paper's."""


def checkpoint_config(name: str) -> PreTrainedConfig:
    """Build the config of one of `CHECKPOINTS`, or of `QWEN`, from its known settings.

    Parameters
    ----------
    name : str
        A Hugging Face id.

    Raises
    ------
    ParameterError
        If it is none of them.

    Notes
    -----
    Source: the ``config.json`` of each checkpoint, and of the encoder and the LLM that it names. Word and output
    embeddings are separate in all of them.
    """
    if name == QWEN:
        # Its encoder: 32 layers, four of which attend to the whole picture, and the others in windows of 112 pixels.
        return Qwen2_5_VLConfig(
            vision_config=dict(
                depth=32, hidden_size=1280, intermediate_size=3420, num_heads=16, out_hidden_size=3584, patch_size=14,
                spatial_merge_size=2, temporal_patch_size=2, window_size=112, fullatt_block_indexes=[7, 15, 23, 31],
            ),
            text_config=QWEN_2_7B | {"vocab_size": 152064},
            tie_word_embeddings=False,
        )  # fmt: skip
    common = {"tie_word_embeddings": False, "projector_hidden_act": "gelu"}
    if name == CHECKPOINTS[3]:
        return LlavaOnevisionConfig(
            vision_config=SiglipVisionConfig(**SIGLIP_SO400M_384),
            text_config=Qwen2Config(**QWEN_2_7B),
            image_token_index=151646,
            video_token_index=151647,
            image_grid_pinpoints=[[384 * i, 384 * j] for i in range(1, 7) for j in range(1, 7)],
            vision_aspect_ratio="anyres_max_9",
            vision_feature_select_strategy="full",
            vision_feature_layer=-1,
            **common,
        )
    clip = CLIPVisionConfig(**CLIP_L_336)
    common |= {"vision_feature_layer": -2, "vision_feature_select_strategy": "default"}
    if name == CHECKPOINTS[2]:
        return LlavaNextConfig(
            vision_config=clip,
            text_config=LlamaConfig(**LLAMA_3_8B),
            image_token_index=128256,
            image_grid_pinpoints=[[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
            **common,
        )
    if name in CHECKPOINTS[:2]:
        text = VICUNA_7B if name == CHECKPOINTS[0] else VICUNA_13B
        return LlavaConfig(
            vision_config=clip, text_config=LlamaConfig(**text), image_token_index=32000, **common
        )
    raise ParameterError("name", name, ", ".join((*CHECKPOINTS, QWEN)))


def narrow_config(name: str) -> PreTrainedConfig:
    """Build the config of one of `CHECKPOINTS`, or of `QWEN`, narrower and shallower, so that its model fits anywhere.

    The LLM is 256 wide with three layers and keeps the ratio of its MLP, and how many heads share keys and values; the
    encoder is 64 wide with two layers. Pictures, tiles and the vocabulary stay as they are.

    Parameters
    ----------
    name : str
        As for `checkpoint_config`, and so are errors.
    """
    config = checkpoint_config(name)
    text, vision = config.text_config, config.vision_config
    ratio, n_shared = text.hidden_size / 256, text.num_attention_heads // text.num_key_value_heads
    text.intermediate_size = round(text.intermediate_size / ratio)
    text.hidden_size, text.num_hidden_layers, text.head_dim = 256, 3, 64
    text.num_attention_heads, text.num_key_value_heads = 4, max(4 // n_shared, 1)
    vision.hidden_size, vision.intermediate_size = 64, 256
    if name == QWEN:
        # Of 32 pairs of numbers in a head a quarter turns with time, the rest with height and width, as at full size.
        text.rope_parameters = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]}
        vision.num_heads, vision.depth, vision.fullatt_block_indexes, vision.out_hidden_size = 2, 2, [1], 256
    else:
        vision.num_attention_heads, vision.num_hidden_layers = 2, 2
    return config


def n_patches(height: int, width: int) -> int:
    """Count the patches that Qwen2.5-VL's processor cuts a picture into, as it is set by default."""
    return Qwen2VLImageProcessorPil().get_number_of_image_patches(height, width)


def empty_model(name_or_config: str | Path | PreTrainedConfig) -> Any:
    """Build a model on PyTorch's meta device: every shape, no weight.

    Parameters
    ----------
    name_or_config : str, path-like or PreTrainedConfig
        One of `CHECKPOINTS` or `QWEN`, for which nothing is downloaded; what `load_model` takes; or a config.

    Raises
    ------
    UnsupportedModelError
        As `load_model`.
    """
    config = name_or_config
    if isinstance(config, str) and config in (*CHECKPOINTS, QWEN):
        config = checkpoint_config(config)
    elif not isinstance(config, PreTrainedConfig):
        config = AutoConfig.from_pretrained(model_source(config), trust_remote_code=False)
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config).eval()


def picture_rows(model: Any, height: int, width: int) -> tuple[int, int]:
    """Count what a picture takes in the encoder and in the prompt.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A LLaVA-type model; one on the meta device will do.
    height, width : int
        Of the picture, in pixels.

    Returns
    -------
    n_grids : int
        Times that the encoder runs: reduced image and tiles.
    n_rows : int
        Rows that the LLM reads, newlines included.

    Raises
    ------
    UnsupportedModelError
        If the model's vision encoder reads pictures of any size, so that it has no tile.
    """
    config = model.config
    tile = getattr(config.vision_config, "image_size", None)
    if tile is None:
        raise UnsupportedModelError(
            f"model_type: got {config.model_type!r}; supported here: families whose vision encoder has one image size"
        )
    pinpoints = getattr(config, "image_grid_pinpoints", None)
    adapter = adapter_for(model)
    if not pinpoints:
        return 1, math.prod([adapter.side] * 2)
    n_grids = image_size_to_num_patches([height, width], pinpoints, tile)
    pixels = torch.empty(1, n_grids, 3, tile, tile, device="meta")
    with torch.device("meta"):
        shape = model if model.device.type == "meta" else type(model)(config).eval()
    inputs = {"pixel_values": pixels, "image_sizes": torch.tensor([[height, width]])}
    return n_grids, adapter_for(shape).encode_pixels(inputs)[0].n_rows
