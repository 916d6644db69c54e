"""Qwen2.5-VL at any width, with its real template and processor and a stand-in tokenizer."""

import itertools

import tiny
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)

from rcblib.mllm.qwen2_5_vl import Qwen2_5_VLProcessor

TEMPLATE = (
    "{% for turn in messages %}{% if loop.first and turn['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ turn['role'] }}\n{% for part in turn['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Conversation form of the checkpoints."""

SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
)  # fmt: skip
REAL_IDS = dict(zip(SPECIAL, (151643, 151644, 151645, 151652, 151653, 151655, 151656), strict=True))
TINY_IDS = {word: i for i, word in enumerate(SPECIAL)}

TINY_VISION = dict(
    depth=2, hidden_size=32, intermediate_size=48, num_heads=4, out_hidden_size=48, fullatt_block_indexes=[1]
)
TINY_TEXT = dict(
    hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1,
    max_position_embeddings=512, rope_parameters={"rope_type": "default", "mrope_section": [2, 3, 3]},
)  # fmt: skip
"""Heads of 16 values: two rotated pairs by time, three by height, three by width."""

REAL_VISION = dict(
    depth=32, hidden_size=1280, intermediate_size=3420, num_heads=16, out_hidden_size=3584, window_size=112,
    fullatt_block_indexes=[7, 15, 23, 31], tokens_per_second=2,
)  # fmt: skip
REAL_TEXT = dict(
    vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
    num_key_value_heads=4, max_position_embeddings=128000,
    rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
)  # fmt: skip
"""LLM of Qwen2.5-VL-7B."""


def stand_in_tokenizer(ids):
    words = tiny.WORDS + ["user", "assistant", "system", "helpful", "."]
    free = (i for i in itertools.count() if i not in ids.values())
    vocabulary = ids | dict(zip(dict.fromkeys(words), free, strict=False))
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<|endoftext|>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), behavior="removed", invert=True)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(ids)})
    return tokenizer


def build(vision, text, ids, max_pixels=28 * 28 * 9):
    config = Qwen2_5_VLConfig(
        vision_config=vision,
        text_config=dict(
            bos_token_id=ids["<|endoftext|>"],
            eos_token_id=ids["<|im_end|>"],
            pad_token_id=ids["<|endoftext|>"],
            **text,
        ),
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    model = tiny.endless(
        Qwen2_5_VLForConditionalGeneration(config), {"bos": ids["<|im_start|>"], "pad": ids["<|endoftext|>"]}
    )
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessorPil(min_pixels=28 * 28 * 4, max_pixels=max_pixels),
        stand_in_tokenizer(ids),
        chat_template=TEMPLATE,
    )
    return model, processor


def tiny_qwen(max_pixels=28 * 28 * 9):
    """Build a random model of 80 words; photos have `max_pixels` or fewer, 28 x 28 of them a token."""
    return build(TINY_VISION, TINY_TEXT | {"vocab_size": 80}, TINY_IDS, max_pixels)
