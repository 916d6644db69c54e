"""Build randomly initialised LLaVA models as `transformers` would save them; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)

WORDS = (
    "USER ASSISTANT : What does this image show ? You must provide a single word that best describes the . "
    "Is there A an cat dog bird apple red green blue yes no How many are in and of on left right Describe"
).split()

VICUNA_TEMPLATE = (
    "{% for turn in messages %}{{ turn['role'] | upper }}: "
    "{% for part in turn['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in turn['content'] if part['type'] == 'text' %}{{ part['text'] }} {% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
"""Conversation form of the converted LLaVA-1.5 checkpoints."""

TINY_VISION = dict(
    image_size=24,
    patch_size=4,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
)
TINY_TEXT = dict(
    hidden_size=40, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
)

REAL_VISION = dict(
    image_size=336, patch_size=14, hidden_size=1024, intermediate_size=4096, num_hidden_layers=24,
    num_attention_heads=16, projection_dim=768,
)  # fmt: skip
"""Vision encoder of LLaVA-1.5: CLIP ViT-L/14 at 336 px, 24 x 24 = 576 patches."""

REAL_TEXT = dict(
    hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=32, max_position_embeddings=4096, rms_norm_eps=1e-5,
)  # fmt: skip
"""LLM of LLaVA-1.5-7B."""

REAL_IDS = {"unk": 0, "bos": 1, "eos": 2, "image": 32000, "pad": 32001}
REAL_N_VOCAB = 32064
TINY_IDS = {"pad": 0, "bos": 1, "eos": 2, "unk": 3, "image": 4}


def stand_in_tokenizer(ids: dict[str, int]) -> PreTrainedTokenizerFast:
    """Build a word tokenizer whose special tokens have the given ids."""
    special = {name: f"<{name}>" for name in ids} | {"bos": "<s>", "eos": "</s>"}
    free = (i for i in range(3, 10**6) if i not in ids.values())
    vocabulary = {special[name]: i for name, i in ids.items()} | dict(
        zip(dict.fromkeys(WORDS), free, strict=False)
    )
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=special["unk"]))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), behavior="removed", invert=True)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", ids["bos"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{f"{name}_token": special[name] for name in ("unk", "bos", "eos", "pad")},
        extra_special_tokens={"image_token": special["image"]},
    )


def stand_in_processor(image_size: int, patch_size: int, ids: dict[str, int]) -> LlavaProcessor:
    """Build LLaVA-1.5's processor around the stand-in tokenizer."""
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=stand_in_tokenizer(ids),
        patch_size=patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=VICUNA_TEMPLATE,
    )


def llava_config(vision: dict, text: dict, ids: dict[str, int], n_vocab: int) -> LlavaConfig:
    """Return a LLaVA-1.5 config; of the pieces only sizes are free."""
    return LlavaConfig(
        vision_config=CLIPVisionConfig(**vision),
        text_config=LlamaConfig(
            vocab_size=n_vocab,
            bos_token_id=ids["bos"],
            eos_token_id=ids["eos"],
            pad_token_id=ids["pad"],
            **text,
        ),
        image_token_index=ids["image"],
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
    )


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Draw weights so large that answers depend on every input; the usual ones give near-constant logits."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=1.5 * parameter[0].numel() ** -0.5, generator=generator)
            elif "norm" not in name:
                parameter.normal_(std=0.3, generator=generator)


def tiny_llava(seed: int = 0) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Build a LLaVA of 6 x 6 = 36 tokens; it never ends an answer, so that lengths are known."""
    config = llava_config(TINY_VISION, TINY_TEXT, TINY_IDS, n_vocab=64)
    model = LlavaForConditionalGeneration(config).eval()
    randomise(model, seed)
    model.generation_config.update(bos_token_id=1, eos_token_id=None, pad_token_id=0)
    processor = stand_in_processor(TINY_VISION["image_size"], TINY_VISION["patch_size"], TINY_IDS)
    processor.tokenizer.padding_side = "left"
    return model, processor


def tiny_llava_without_cls() -> LlavaForConditionalGeneration:
    """Build the tiny LLaVA with SigLIP, which has no [CLS], as vision encoder."""
    config = LlavaConfig(
        vision_config=SiglipVisionConfig(**TINY_VISION),
        text_config=llava_config(TINY_VISION, TINY_TEXT, TINY_IDS, n_vocab=64).text_config,
        image_token_index=TINY_IDS["image"],
        vision_feature_select_strategy="full",
    )
    return LlavaForConditionalGeneration(config).eval()


def reduced_llava_15() -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Build LLaVA-1.5 with its real settings (336 px, 576 tokens, ids, template), narrow and shallow."""
    config = llava_config(
        REAL_VISION | dict(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4),
        REAL_TEXT
        | dict(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
        ),
        REAL_IDS,
        REAL_N_VOCAB,
    )
    model = LlavaForConditionalGeneration(config).eval()
    randomise(model)
    processor = stand_in_processor(336, 14, REAL_IDS)
    processor.tokenizer.padding_side = "left"
    return model, processor


def save_tiny_llava(folder: Path, seed: int = 0) -> Path:
    """Save a tiny model and its processor to a folder, as `save_pretrained` writes them."""
    model, processor = tiny_llava(seed)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def random_images(n: int, size: tuple[int, int] = (40, 31), seed: int = 0) -> list[PIL.Image.Image]:
    """Draw images of noise, ``(width, height)`` pixels."""
    generator = np.random.default_rng(seed)
    return [
        PIL.Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
        for _ in range(n)
    ]
