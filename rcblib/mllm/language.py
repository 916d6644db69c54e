"""Talk to the LLM of a model: write prompts, read the logits and the attention that follow from given visual rows."""

from __future__ import annotations

import threading
from abc import ABC
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from jinja2 import TemplateError

from rcblib.mllm.hooks import hooked
from rcblib.mllm.placement import module_device
from rcblib.mllm.prefix import SharedPrefix
from rcblib.mllm.prompt import AssembledPrompt, Batch, Prompt, VisualRows
from rcblib.records import ParameterError, UnsupportedModelError
from rcblib.runs.errors import in_one_line
from rcblib.tensors.checks import check_integer

OneVisual = torch.Tensor | VisualRows
"""Rows that take the place of one placeholder; those of a bare tensor ``(n_i, d_model)`` are read in order."""

_SWITCHING = threading.RLock()

VisualInput = OneVisual | Sequence[OneVisual]
"""Rows for a prompt with one image, or for each image of the prompt."""


class LanguageSide(ABC):
    """Hold what is the same for every LLM that takes embedded rows: half of an `Adapter`.

    Parameters
    ----------
    model, processor
        As in `Adapter`.
    """

    family: ClassVar[str]
    preset_token_id: ClassVar[int]
    n_position_axes: ClassVar[int] = 1

    def __init__(self, model: Any, processor: Any = None):
        self.model = model
        self.processor = processor

    @property
    def d_model(self) -> int:
        """Return the width of the LLM, hence of a visual token."""
        return self.model.config.get_text_config().hidden_size

    @property
    def n_vocab(self) -> int:
        """Count the entries of the LLM's vocabulary."""
        return self.model.config.get_text_config().vocab_size

    @property
    def image_token_id(self) -> int:
        """Return the id of the placeholder that stands for visual tokens in a prompt."""
        return self.model.config.image_token_id

    @property
    def video_token_id(self) -> int | None:
        """Return the id of the placeholder that stands for a video in a prompt; ``None`` for a family without."""
        return getattr(self.model.config, "video_token_id", None)

    @property
    def replacement_token_id(self) -> int:
        """Return the id of the word whose embedding replaces a token that is left out.

        What the model's config says as ``replacement_token_id``, for a family's architecture around another LLM. Else
        the family's preset, as for all released checkpoints, not what a converted tokenizer calls its padding token.
        Where the vocabulary ends before the preset, as that of an embedded model does, the padding id of the config.

        Raises
        ------
        UnsupportedModelError
            If the config says something else than an id, or the vocabulary is too small and the config names no
            padding.
        """
        config = self.model.config
        own = getattr(config, "replacement_token_id", None)
        if own is not None and (type(own) is not int or not 0 <= own < self.n_vocab):
            raise UnsupportedModelError(
                f"replacement_token_id: got {own!r} in the config; accepted: an id, 0 to {self.n_vocab - 1}"
            )
        if own is None and self.preset_token_id < self.n_vocab:
            own = self.preset_token_id
        for named in (config.get_text_config(), config):
            own = getattr(named, "pad_token_id", None) if own is None else own
        if own is None:
            raise UnsupportedModelError(
                f"pad_token_id: got none in the config, and a vocabulary of {self.n_vocab} words; accepted: an id, or "
                f"more words than the preset's id, {self.preset_token_id}"
            )
        return own

    def replacement_embedding(self) -> torch.Tensor:
        """Return the LLM's word embedding of `replacement_token_id`.

        Returns
        -------
        torch.Tensor
            ``(d_model,)``, in the model's dtype and on its device.

        Notes
        -----
        Source: the released pad embeddings. It takes a visual token's place after the connector, as it is.
        """
        return self.embed([self.replacement_token_id])[0].detach()

    def prompt(self, question: str, n_images: int = 1, n_videos: int = 0) -> str:
        """Write a question about some images and videos in the model's chat template, ready for the answer.

        Parameters
        ----------
        question : str
            What is asked.
        n_images, n_videos : int
            Images and videos before the question.

        Returns
        -------
        str
            One placeholder an image or video; the processor or `first_token_logits` expands it.

        Raises
        ------
        ParameterError
            If there is no processor or no chat template, or the family takes no videos.
        """
        if n_videos and self.video_token_id is None:
            raise ParameterError("n_videos", n_videos, f"0, as the family {self.family!r} takes images only")
        content = [{"type": "image"}] * n_images + [{"type": "video"}] * n_videos
        content += [{"type": "text", "text": question}]
        processor = self._require_processor()
        template = getattr(processor, "chat_template", None) or processor.tokenizer.chat_template
        if template is None:
            raise ParameterError("processor", "no chat template", "a processor saved with a chat template")
        try:
            return processor.apply_chat_template(
                [{"role": "user", "content": content}], chat_template=template, add_generation_prompt=True
            )
        except TemplateError as error:
            given = f"a chat template that fails ({in_one_line(error)})"
            raise ParameterError("processor", given, "one whose template writes a user's message") from None

    def prompt_ids(self, prompt: str) -> list[int]:
        """Tokenize a prompt, one placeholder an image or video.

        A template that writes the first token itself gets no second one.
        """
        tokenizer = self._require_processor().tokenizer
        return tokenizer(prompt, add_special_tokens=self.wants_first_token(prompt))["input_ids"]

    def read_prompt(self, prompt: str) -> Prompt:
        """Tokenize a prompt and find its placeholders, one column an image or video."""
        return Prompt.of(self.prompt_ids(prompt), (self.image_token_id, self.video_token_id))

    def wants_first_token(self, prompt: str) -> bool:
        """Tell whether the tokenizer has to put its first token before a prompt, which the template has not done."""
        first = self._require_processor().tokenizer.bos_token
        return first is None or not prompt.startswith(first)

    def embed(self, ids: Sequence[int] | torch.Tensor) -> torch.Tensor:
        """Return the word embeddings of ids, ``(n, d_model)``."""
        embedding = self.model.get_input_embeddings()
        return embedding(torch.as_tensor(ids, dtype=torch.long, device=module_device(embedding)))

    @torch.no_grad()
    def first_token_logits(
        self,
        prompt: str,
        visual: Sequence[VisualInput],
        *,
        batch_size: int | None = None,
        answer_prefix: Sequence[Sequence[int]] | None = None,
        prefix: SharedPrefix | None = None,
    ) -> torch.Tensor:
        """Compute the logits of the next token after a prompt, for many sets of visual rows.

        Parameters
        ----------
        prompt : str
            From `prompt`: a placeholder for each image and video.
        visual : sequence
            One entry per input: rows that take the place of the placeholder, any number of them, or a sequence with
            rows for each placeholder. `VisualRows` are read where they say; a tensor ``(n_i, d_model)`` one row after
            the other. A tensor ``(n, n_tokens, d_model)`` will do.
        batch_size : int, optional
            Inputs per forward pass at most, by default as many as fit into memory; half as many where it does not
            suffice, and so on. It changes the result by rounding only: inputs are sorted by length, and what is still
            shorter than its batch is padded on the left, masked, and numbered from its first row.
        answer_prefix : sequence of sequences of int, optional
            For each input the token ids of an answer already begun, such as an article.
        prefix : SharedPrefix, optional
            From `shared_prefix`, to share the beginnings of inputs with other calls too; else inputs share them with
            each other, in half precision nothing (see `SharedPrefix`). Inputs of one length share most where they come
            in the order of what differs first.

        Returns
        -------
        torch.Tensor
            ``(n, n_vocab)`` float32 on the CPU, in the order of `visual`.

        Raises
        ------
        ParameterError
            If the prompt has another number of placeholders than an input has tensors, a width differs, the
            number of prefixes is another, or `batch_size` is below 1.
        """
        if batch_size is not None:
            check_integer("batch_size", batch_size, 1)
        prefixes = [()] * len(visual) if answer_prefix is None else answer_prefix
        if len(prefixes) != len(visual):
            raise ParameterError(
                "answer_prefix", len(prefixes), f"{len(visual)} prefixes, one for each input"
            )
        asked = self.read_prompt(prompt)
        inputs = [
            (asked.followed_by(prefix) if len(prefix) else asked).filled(self._as_images(entry))
            for entry, prefix in zip(visual, prefixes, strict=True)
        ]
        prefix = self.shared_prefix() if prefix is None else prefix
        return prefix.first_logits(inputs, batch_size)

    def shared_prefix(self, sharing: str = "auto", compiled: bool = False) -> SharedPrefix:
        """Return an empty store of what the inputs of several calls begin with; of the model as it is.

        Parameters
        ----------
        sharing, compiled
            As in `SharedPrefix`.
        """
        return SharedPrefix(self.model, self.language_model.layers, self.embed, sharing, compiled)

    @torch.no_grad()
    def text_to_image_attention(self, prompt: str, visual: VisualInput) -> dict[str, torch.Tensor]:
        """Read how much the text attends to each visual row, in every layer of the LLM.

        Parameters
        ----------
        prompt : str
            From `prompt`.
        visual : VisualInput
            Rows for the image of the prompt, or a sequence with rows for each, as in `first_token_logits`.

        Returns
        -------
        dict of torch.Tensor
            ``last``: the row of the last prompt token; ``question``: the mean of the rows of all text
            tokens after the last visual token. Both ``(n_layers, n_rows)``, mean over heads, float32 on
            the CPU; in [0, 1], higher = more attended. The prompt's text takes the rest of each row's sum
            of 1.

        Raises
        ------
        ParameterError
            As `first_token_logits`; and if there is no image, or no text after it.
        """
        asked = self.read_prompt(prompt).filled(self._as_images(visual))
        is_visual = asked.is_visual
        places = is_visual.nonzero().flatten()  # on the CPU, as layers may lie on several devices
        if len(places) == 0 or is_visual[-1]:
            raise ParameterError("prompt", prompt, "a prompt with visual tokens and text after them")
        first_question = int(places[-1]) + 1
        maps = []

        def keep_text_rows(_module: Any, _arguments: Any, output: tuple[torch.Tensor, ...]) -> None:
            attention = output[1][0, :, first_question:, places].float().mean(0)  # (n_question, n_visual)
            maps.append(attention.cpu())

        with _eager_attention(self.language_model) as layers:
            with hooked({layer.self_attn: keep_text_rows for layer in layers}):
                self.next_token_logits([asked])
        by_layer = torch.stack(maps)  # (n_layers, n_question, n_visual)
        return {"last": by_layer[:, -1], "question": by_layer.mean(1)}

    def next_token_logits(self, prompts: Sequence[AssembledPrompt]) -> torch.Tensor:
        """Return ``(n, n_vocab)`` logits after some prompts, in one forward pass, on the model's device."""
        batch = Batch(prompts)
        embeds = batch.padded(prompt.embeds(self.embed) for prompt in prompts)
        output = self.model(
            inputs_embeds=embeds,
            attention_mask=batch.attention_mask.to(embeds.device),
            position_ids=batch.position_ids.to(embeds.device),
            use_cache=False,
            logits_to_keep=1,
        )
        return output.logits[:, -1]

    @property
    def language_model(self) -> Any:
        """Return the decoder that reads the rows, with its ``layers``."""
        return self.model.model.language_model

    def _require_processor(self) -> Any:
        if self.processor is None:
            raise ParameterError("processor", None, "the model's processor, from load_model")
        return self.processor

    def _as_images(self, visual: VisualInput) -> list[VisualRows]:
        """Return checked rows for each placeholder."""
        given = [visual] if isinstance(visual, OneVisual) else list(visual)
        images = []
        for each in given:
            rows = each.rows if isinstance(each, VisualRows) else each
            if rows.ndim != 2 or rows.shape[1] != self.d_model:
                raise ParameterError("visual", tuple(rows.shape), f"(n_tokens, {self.d_model})")
            is_placed = isinstance(each, VisualRows)
            images.append(each if is_placed else VisualRows.in_order(rows, self.n_position_axes))
        return images


@contextmanager
def _eager_attention(language_model: Any) -> Iterator[Any]:
    """Switch an LLM to the attention that returns its weights, yield its layers, and switch back.

    One thread at a time, so that what is put back is what was there; others meanwhile get the same up to rounding.
    """
    with _SWITCHING:
        before = language_model.config._attn_implementation
        language_model.set_attn_implementation("eager")
        try:
            yield language_model.layers
        finally:
            language_model.set_attn_implementation(before)
