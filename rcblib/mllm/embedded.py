"""Build the embedded models from configs, all plain `transformers` classes: tokenizer, processor, CLIP pair, LLaVA."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

SPECIAL_TOKENS = {"pad": "<pad>", "bos": "<s>", "eos": "</s>", "unk": "<unk>", "image": "<image>"}
PAD_ID, BOS_ID, EOS_ID, UNK_ID, IMAGE_ID = range(5)

# LLaVA-1.5's conversation form, without the system sentence, as the converted Hugging Face checkpoints have it.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: {% else %}ASSISTANT: {% endif %}"
    "{% for content in message['content'] if content['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for content in message['content'] if content['type'] == 'text' %}{{ content['text'] }} {% endfor %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def build_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Build a lower-casing word tokenizer whose vocabulary is every word of `texts`, in alphabetical order.

    The five special tokens come first: padding is id 0, as in LLaVA-1.5, so that leave-one-out replaces by its row.
    """
    words = sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower())})
    vocabulary = {token: i for i, token in enumerate([*SPECIAL_TOKENS.values(), *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL_TOKENS["unk"]))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), behavior="removed", invert=True)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS_ID)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=SPECIAL_TOKENS["pad"],
        bos_token=SPECIAL_TOKENS["bos"],
        eos_token=SPECIAL_TOKENS["eos"],
        unk_token=SPECIAL_TOKENS["unk"],
        extra_special_tokens={"image_token": SPECIAL_TOKENS["image"]},
        padding_side="left",
        model_max_length=2048,
    )


def build_processor(tokenizer: PreTrainedTokenizerFast, image_size: int, patch_size: int) -> LlavaProcessor:
    """Build LLaVA-1.5's processor: resize the shorter side, crop the centre, normalise as CLIP does."""
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def build_clip(n_vocab: int, vision: dict, text: dict, projection: int) -> CLIPModel:
    """Build the CLIP pair whose vision half becomes the embedded model's encoder.

    Parameters
    ----------
    n_vocab : int
        Size of the tokenizer's vocabulary.
    vision, text : dict
        Settings of `CLIPVisionConfig` and `CLIPTextConfig`.
    projection : int
        Width of the space in which images and captions are compared.
    """
    config = CLIPConfig(
        vision_config=vision,
        text_config={
            **text,
            "vocab_size": n_vocab,
            "bos_token_id": BOS_ID,
            "eos_token_id": EOS_ID,
            "pad_token_id": PAD_ID,
        },
        projection_dim=projection,
    )
    return CLIPModel(config)


def build_llm(n_vocab: int, text: dict) -> LlamaForCausalLM:
    """Build the Llama decoder alone, as it starts before it has seen a pixel."""
    return LlamaForCausalLM(_llama_config(n_vocab, text))


def build_llava(n_vocab: int, vision: dict, text: dict) -> LlavaForConditionalGeneration:
    """Build a LLaVA-1.5-type model: CLIP vision encoder, two-layer GELU connector, Llama decoder, all untrained."""
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision),
        text_config=_llama_config(n_vocab, text),
        image_token_index=IMAGE_ID,
        projector_hidden_act="gelu",
        vision_feature_select_strategy="default",
        vision_feature_layer=-2,
        image_seq_length=(vision["image_size"] // vision["patch_size"]) ** 2,
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id = EOS_ID
    model.generation_config.pad_token_id = PAD_ID
    model.generation_config.bos_token_id = BOS_ID
    return model


def _llama_config(n_vocab: int, text: dict) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=n_vocab,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        tie_word_embeddings=True,
        **text,
    )
