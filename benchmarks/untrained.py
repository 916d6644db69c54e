"""Build a model with random weights of a family that no embedded one stands for: Qwen2.5-VL."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessorPil

from rcblib.mllm.qwen2_5_vl import Qwen2_5_VLProcessor
from worlds.models import BOS_ID, CHAT_TEMPLATE, EOS_ID, IMAGE_ID, PAD_ID, build_tokenizer
from worlds.scenes.language import all_texts

N_QWEN_TOKENS = 144
"""Visual tokens that its processor makes of every picture, as many as LLaVA-1.5's form has here."""


def small_qwen() -> tuple[Any, Any]:
    """Build a Qwen2.5-VL of the drawn scenes' widths and depth, whose processor makes 12 x 12 tokens of a square."""
    config = Qwen2_5_VLConfig(
        vision_config=dict(
            depth=6, hidden_size=128, intermediate_size=256, num_heads=4, out_hidden_size=128,
            fullatt_block_indexes=[2, 5],
        ),
        text_config=dict(
            vocab_size=len(tokenizer := build_tokenizer(all_texts())), hidden_size=128, intermediate_size=384,
            num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4, bos_token_id=BOS_ID,
            eos_token_id=EOS_ID, pad_token_id=PAD_ID,
            rope_parameters={"rope_type": "default", "mrope_section": [4, 6, 6]},
        ),
        image_token_id=IMAGE_ID,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    n_pixels = 28**2 * N_QWEN_TOKENS
    pixels = Qwen2VLImageProcessorPil(min_pixels=n_pixels, max_pixels=n_pixels)
    return model, Qwen2_5_VLProcessor(pixels, tokenizer, chat_template=CHAT_TEMPLATE)
