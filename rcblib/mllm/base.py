"""Define what every model family offers to probing and pruning, and what they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import PIL.Image
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from rcblib.geometry import check_integer
from rcblib.records import EncodedImage, ParameterError

VisualTokens = torch.Tensor | Sequence[torch.Tensor]
"""``(n_i, d_model)`` rows for a prompt with one image, or one such tensor for each image of the prompt."""


class Adapter(ABC):
    """Read visual tokens off a model and feed it chosen ones.

    A family adds `encode_pixels` and its class attributes; the rest is the same for every LLM that takes
    embedded rows.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The model; never changed for longer than a call.
    processor : transformers.ProcessorMixin, optional
        Its processor; needed for `encode`, `prompt`, `first_token_logits` and `text_to_image_attention`.

    Attributes
    ----------
    family : str
        Name of the model family, as codebooks carry it.
    replacement_token_id : int
        The word whose embedding replaces a token that is left out: the family's preset, not what a converted
        tokenizer calls its padding token.
    pixel_inputs : tuple of str
        Arguments of `generate` that hold the images.
    has_cls : bool
        Whether the vision encoder has a [CLS] row.
    """

    family: ClassVar[str]
    replacement_token_id: ClassVar[int]
    pixel_inputs: ClassVar[tuple[str, ...]] = ("pixel_values",)
    has_cls: bool

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
        return self.model.get_input_embeddings().weight[self.replacement_token_id].detach().clone()

    @abstractmethod
    def encode_pixels(
        self, model_inputs: Mapping[str, Any], *, cls_similarity: bool = True, cls_attention: bool = False
    ) -> list[EncodedImage]:
        """Run the vision encoder and the connector once on what the processor made of some images.

        Parameters
        ----------
        model_inputs : Mapping
            What `generate` takes; the entries `pixel_inputs` are read.
        cls_similarity, cls_attention : bool
            Signals to add to the views; left out where the encoder has no [CLS].

        Returns
        -------
        list of EncodedImage
            One per image, in order. Tokens are those of the model's own ``get_image_features``, in its
            dtype and on its device; signals are float32 on the CPU.
        """

    def encode(self, images: Sequence[PIL.Image.Image], *, attention: bool = False) -> list[EncodedImage]:
        """Preprocess images and run the vision encoder and the connector once on all of them.

        Parameters
        ----------
        images : sequence of PIL.Image.Image
            At least one.
        attention : bool
            Whether to add the attention from [CLS].

        Returns
        -------
        list of EncodedImage
            One per image, as `encode_pixels` returns them.

        Raises
        ------
        ParameterError
            If `images` is empty or holds something else than PIL images.
        """
        images = list(images)
        strangers = [type(image).__name__ for image in images if not isinstance(image, PIL.Image.Image)]
        if not images or strangers:
            raise ParameterError("images", strangers or images, "one or more PIL images")
        model_inputs = self._require_processor().image_processor(images, return_tensors="pt")
        return self.encode_pixels(model_inputs, cls_attention=attention)

    def n_placeholders(self, image: EncodedImage) -> int:
        """Count the placeholders that stand for an image in a prompt."""
        return sum(view.n_tokens for view in image.views)

    def gather(self, image: EncodedImage, kept: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Collect the kept tokens of an image as the LLM reads them.

        Parameters
        ----------
        image : EncodedImage
            What `encode_pixels` returned.
        kept : sequence of torch.Tensor
            ``(n_kept,)`` ascending positions for each view.

        Returns
        -------
        rows : torch.Tensor
            ``(n_kept of all views, d_model)``.
        positions : torch.Tensor
            As many positions among the image's placeholders, ascending, on the CPU.
        """
        rows, positions, n_before = [], [], 0
        for view, chosen in zip(image.views, kept, strict=True):
            rows.append(view.tokens[chosen.to(view.tokens.device)])
            positions.append(chosen.cpu() + n_before)
            n_before += view.n_tokens
        return torch.cat(rows), torch.cat(positions)

    def generation_inputs(self, rows: Sequence[torch.Tensor]) -> dict[str, Any]:
        """Name the arguments by which `generate` takes each image's ``(n_i, d_model)`` rows, not pixels."""
        return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=list(rows))}}

    def prompt(self, question: str, n_images: int = 1) -> str:
        """Write a question about some images in the model's chat template, ready for the answer.

        Parameters
        ----------
        question : str
            What is asked.
        n_images : int
            Images before the question.

        Returns
        -------
        str
            One placeholder an image; the processor or `first_token_logits` expands it.
        """
        content = [{"type": "image"}] * n_images + [{"type": "text", "text": question}]
        processor = self._require_processor()
        template = getattr(processor, "chat_template", None) or processor.tokenizer.chat_template
        if template is None:
            raise ParameterError("processor", "no chat template", "a processor saved with a chat template")
        return processor.apply_chat_template(
            [{"role": "user", "content": content}], chat_template=template, add_generation_prompt=True
        )

    @torch.no_grad()
    def first_token_logits(
        self,
        prompt: str,
        visual: Sequence[VisualTokens],
        *,
        batch_size: int = 16,
        answer_prefix: Sequence[Sequence[int]] | None = None,
    ) -> torch.Tensor:
        """Compute the logits of the next token after a prompt, for many sets of visual tokens.

        Parameters
        ----------
        prompt : str
            From `prompt`: a placeholder for each image.
        visual : sequence
            One entry per input: ``(n_i, d_model)`` rows that take the place of the placeholder, any number of
            them, or one such tensor for each placeholder. A tensor ``(n, n_tokens, d_model)`` will do.
        batch_size : int
            Inputs per forward pass. It changes the result by rounding only: inputs are sorted by length, and
            what is still shorter than its batch is padded on the left, masked, and numbered from its first
            row.
        answer_prefix : sequence of sequences of int, optional
            For each input the token ids of an answer already begun, such as an article.

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
        check_integer("batch_size", batch_size, 1)
        prefixes = [()] * len(visual) if answer_prefix is None else answer_prefix
        if len(prefixes) != len(visual):
            raise ParameterError(
                "answer_prefix", len(prefixes), f"{len(visual)} prefixes, one for each input"
            )
        ids = self._prompt_ids(prompt)
        inputs = [self._as_images(ids, entry) for entry in visual]
        text = self._embed(ids)
        lengths = [
            sum(map(len, images)) + len(prefix) for images, prefix in zip(inputs, prefixes, strict=True)
        ]
        order = sorted(range(len(inputs)), key=lengths.__getitem__)

        logits = torch.empty(len(inputs), self.n_vocab)
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            rows = [
                torch.cat([self._splice(ids, text, inputs[i])[0], self._embed(prefixes[i])]) for i in batch
            ]
            logits[batch] = self._next_token_logits(rows).float().cpu()
        return logits

    @torch.no_grad()
    def text_to_image_attention(self, prompt: str, visual: VisualTokens) -> dict[str, torch.Tensor]:
        """Read how much the text attends to each visual token, in every layer of the LLM.

        Parameters
        ----------
        prompt : str
            From `prompt`.
        visual : VisualTokens
            ``(n_tokens, d_model)`` rows, or one such tensor for each image of the prompt.

        Returns
        -------
        dict of torch.Tensor
            ``last``: the row of the last prompt token; ``question``: the mean of the rows of all text
            tokens after the last visual token. Both ``(n_layers, n_tokens)``, mean over heads, float32 on
            the CPU; in [0, 1], higher = more attended. The prompt's text takes the rest of each row's sum
            of 1.

        Raises
        ------
        ParameterError
            As `first_token_logits`; and if there is no image, or no text after it.
        """
        ids = self._prompt_ids(prompt)
        rows, is_visual = self._splice(ids, self._embed(ids), self._as_images(ids, visual))
        places = is_visual.nonzero().flatten().to(rows.device)
        if len(places) == 0 or is_visual[-1]:
            raise ParameterError("prompt", prompt, "a prompt with visual tokens and text after them")
        first_question = int(places[-1]) + 1
        maps = []

        def keep_text_rows(_module: Any, _arguments: Any, output: tuple[torch.Tensor, ...]) -> None:
            attention = output[1][0, :, first_question:, places].float().mean(0)  # (n_question, n_visual)
            maps.append(attention.cpu())

        with _eager_attention(self._language_model()) as layers:
            handles = [layer.self_attn.register_forward_hook(keep_text_rows) for layer in layers]
            try:
                self._next_token_logits([rows])
            finally:
                for handle in handles:
                    handle.remove()
        by_layer = torch.stack(maps)  # (n_layers, n_question, n_visual)
        return {"last": by_layer[:, -1], "question": by_layer.mean(1)}

    def _language_model(self) -> Any:
        return self.model.model.language_model

    def _require_processor(self) -> Any:
        if self.processor is None:
            raise ParameterError("processor", None, "the model's processor, from load_model")
        return self.processor

    def _prompt_ids(self, prompt: str) -> list[int]:
        """Tokenize a prompt; a template that writes the first token itself gets no second one."""
        tokenizer = self._require_processor().tokenizer
        begun = tokenizer.bos_token is not None and prompt.startswith(tokenizer.bos_token)
        return tokenizer(prompt, add_special_tokens=not begun)["input_ids"]

    def _embed(self, ids: Sequence[int]) -> torch.Tensor:
        """Return the word embeddings of ids, ``(n, d_model)``."""
        embedding = self.model.get_input_embeddings()
        return embedding(torch.as_tensor(ids, dtype=torch.long, device=embedding.weight.device))

    def _as_images(self, ids: list[int], visual: VisualTokens) -> list[torch.Tensor]:
        """Return one tensor for each placeholder among `ids`, checked."""
        images = [visual] if isinstance(visual, torch.Tensor) else list(visual)
        n_places = ids.count(self.image_token_id)
        if len(images) != n_places:
            raise ParameterError(
                "visual",
                f"tokens of {len(images)} images",
                f"{n_places}, one for each placeholder in the prompt",
            )
        for image in images:
            if image.ndim != 2 or image.shape[1] != self.d_model:
                raise ParameterError("visual", tuple(image.shape), f"(n_tokens, {self.d_model})")
        return images

    def _splice(
        self, ids: list[int], text: torch.Tensor, images: list[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put each image's rows where its placeholder is; tell which rows of the result are visual."""
        pieces, is_visual, start = [], [], 0
        places = [i for i, token in enumerate(ids) if token == self.image_token_id]
        for place, image in zip(places, images, strict=True):
            pieces += [text[start:place], image.to(text)]
            is_visual += [False] * (place - start) + [True] * len(image)
            start = place + 1
        pieces.append(text[start:])
        is_visual += [False] * (len(ids) - start)
        return torch.cat(pieces), torch.tensor(is_visual)

    def _next_token_logits(self, rows: list[torch.Tensor]) -> torch.Tensor:
        """Return ``(n, n_vocab)`` logits after ``(length_i, d_model)`` inputs, padded on the left."""
        longest = max(map(len, rows))
        embeds = rows[0].new_zeros(len(rows), longest, rows[0].shape[1])
        mask = torch.zeros(len(rows), longest, dtype=torch.long, device=embeds.device)
        for i, row in enumerate(rows):
            embeds[i, longest - len(row) :] = row
            mask[i, longest - len(row) :] = 1
        output = self.model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            use_cache=False,
            logits_to_keep=1,
        )
        return output.logits[:, -1]


@contextmanager
def _eager_attention(language_model: Any) -> Iterator[Any]:
    """Switch an LLM to the attention that returns its weights, yield its layers, and switch back."""
    before = language_model.config._attn_implementation
    language_model.set_attn_implementation("eager")
    try:
        yield language_model.layers
    finally:
        language_model.set_attn_implementation(before)
