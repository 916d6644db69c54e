"""Define what every model family offers to probing and pruning, and what they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import PIL.Image
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from rcblib.mllm.placement import module_device
from rcblib.records import NEWLINE, EncodedImage, ParameterError, UnsupportedModelError
from rcblib.tensors.geometry import check_integer

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
    preset_token_id : int
        The word whose embedding replaces a token that is left out, in the family's checkpoints.
    pixel_inputs : tuple of str
        Arguments of `generate` that hold images and videos.
    n_position_axes : int
        How many numbers say where the LLM reads a row, as `row_positions` gives them.
    offers : frozenset of str
        Signals of the vision encoder that `encode_pixels` can add to views. Views whose tokens are pooled from several
        of the encoder's, such as frames of OneVision's videos, have none of them.
    """

    family: ClassVar[str]
    preset_token_id: ClassVar[int]
    pixel_inputs: ClassVar[tuple[str, ...]] = ("pixel_values",)
    n_position_axes: ClassVar[int] = 1
    offers: frozenset[str] = frozenset()

    def __init__(self, model: Any, processor: Any = None):
        self.model = model
        self.processor = processor

    @property
    def has_cls(self) -> bool:
        """Tell whether the vision encoder has a [CLS] row."""
        return "cls_similarity" in self.offers

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

        It is the family's preset, not what a converted tokenizer calls its padding token. Where the vocabulary ends
        before it, as that of an embedded model does, it is the padding id of the model's config.

        Raises
        ------
        UnsupportedModelError
            If the vocabulary is too small and the config names no padding.
        """
        if self.preset_token_id < self.n_vocab:
            return self.preset_token_id
        config = self.model.config
        padding = getattr(config.get_text_config(), "pad_token_id", None)
        padding = getattr(config, "pad_token_id", None) if padding is None else padding
        if padding is None:
            raise UnsupportedModelError(
                f"pad_token_id: got none in the config, and a vocabulary of {self.n_vocab} words; accepted: an id, or "
                f"more words than the preset's id, {self.preset_token_id}"
            )
        return padding

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
        return self._embed([self.replacement_token_id])[0].detach()

    @abstractmethod
    def encode_pixels(
        self, model_inputs: Mapping[str, Any], needs: Collection[str] = ()
    ) -> list[EncodedImage]:
        """Run the vision encoder and the connector once on what the processor made of some images.

        Parameters
        ----------
        model_inputs : Mapping
            What `generate` takes; the entries `pixel_inputs` are read.
        needs : collection of str
            Signals to add to the views; what the encoder does not have (`offers`) is left out. All are of the layer
            that makes the hidden state which the connector gets, or of that state, in the encoder's width; *patches*
            are its rows but [CLS]:

            - ``"cls_similarity"``: ``(n_tokens,)`` cosine of each patch and [CLS], in [-1, 1].
            - ``"cls_attention"``: ``(n_tokens,)`` attention from [CLS] to each patch, mean over heads; sums to less
              than 1, as a part goes to [CLS] itself.
            - ``"received_attention"``: ``(n_tokens,)`` attention that each patch receives from a patch, mean over
              patches and heads; sums to 1, with a [CLS] to less.
            - ``"keys"``: ``(n_tokens, d_head)`` keys of each patch, mean over heads.
            - ``"hidden_states"``: ``(n_tokens, d_vision)`` the state of each patch, before the connector.

        Returns
        -------
        list of EncodedImage
            One per image, in order, then one per video. Tokens are those of the model's own
            ``get_image_features`` and ``get_video_features``, in its dtype and on its device; signals are float32
            on the CPU.
        """

    def encode(
        self, images: Sequence[PIL.Image.Image], needs: Collection[str] = (), one_prompt: bool = False
    ) -> list[EncodedImage]:
        """Preprocess images and run the vision encoder and the connector once on all of them.

        Parameters
        ----------
        images : sequence of PIL.Image.Image
            At least one.
        needs : collection of str
            As in `encode_pixels`.
        one_prompt : bool
            Whether the images stand in one prompt. Some families then give each of several images fewer tokens; for
            the others, and for a single image, it makes no difference.

        Returns
        -------
        list of EncodedImage
            One per image, as `encode_pixels` returns them.

        Raises
        ------
        ParameterError
            If `images` is empty or holds something else than PIL images.
        """
        return self.encode_input(images, "images" if one_prompt else "image", needs)

    def encode_video(self, frames: Sequence[PIL.Image.Image], needs: Collection[str] = ()) -> EncodedImage:
        """Preprocess the frames of a video and run the vision encoder and the connector once on all of them.

        Parameters
        ----------
        frames : sequence of PIL.Image.Image
            At least one, all of one size, in order of time; all of them are used.
        needs : collection of str
            As in `encode_pixels`.

        Returns
        -------
        EncodedImage
            One view for each frame, of kind ``"frame"``, holding the tokens as they enter the LLM, after pooling.

        Raises
        ------
        UnsupportedModelError
            If the family takes no videos.
        ParameterError
            If there are no frames, one is no PIL image, or their sizes differ.
        """
        return self.encode_input(frames, "video", needs)[0]

    def encode_input(
        self, pictures: Sequence[PIL.Image.Image], kind: str, needs: Collection[str] = ()
    ) -> list[EncodedImage]:
        """Preprocess pictures as their kind asks for and run the vision encoder and the connector once on all of them.

        Parameters
        ----------
        pictures, kind
            As in `preprocess`.
        needs : collection of str
            As in `encode_pixels`.

        Returns
        -------
        list of EncodedImage
            One for each placeholder: every image, or the video.

        Raises
        ------
        UnsupportedModelError, ParameterError
            As `preprocess`.
        """
        return self.encode_pixels(self.preprocess(pictures, kind), needs)

    def preprocess(self, pictures: Sequence[PIL.Image.Image], kind: str) -> Mapping[str, Any]:
        """Let the processor make of pictures what `encode_pixels` takes.

        Parameters
        ----------
        pictures : sequence of PIL.Image.Image
            At least one; frames of a video have one size and come in order of time.
        kind : {"image", "images", "video"}
            As `Sample.kind` and `SequenceSample.kind` have it: images each of a prompt of its own, images that stand
            in one prompt, or the frames of one video.

        Raises
        ------
        UnsupportedModelError
            If the family takes no videos.
        ParameterError
            If the kind is another one, there are no pictures, one is no PIL image, or frames differ in size.
        """
        processor = self._require_processor()
        if kind == "video":
            frames = self._checked_frames(pictures)
            return processor.video_processor([frames], return_tensors="pt")
        if kind not in ("image", "images"):
            raise ParameterError("kind", kind, "image, images, video")
        images = checked_pictures("images", pictures)
        return processor.image_processor([images] if kind == "images" else images, return_tensors="pt")

    def _checked_frames(self, frames: Sequence[PIL.Image.Image]) -> list[PIL.Image.Image]:
        """Return the frames of a video as RGB, or raise where they are no video that the family takes."""
        if self.video_token_id is None:
            raise UnsupportedModelError(f"video: the model's family, {self.family!r}, takes images only")
        frames = [frame.convert("RGB") for frame in checked_pictures("frames", frames)]
        sizes = sorted({frame.size for frame in frames})
        if len(sizes) > 1:
            raise ParameterError("frames", f"frames of sizes {sizes}", "frames of one size")
        return frames

    def n_placeholders(self, image: EncodedImage) -> int:
        """Count the placeholders that stand for an image or a video in a prompt, newlines included."""
        return image.n_rows

    def token_rows(self, image: EncodedImage) -> torch.Tensor:
        """Return where the LLM reads each visual token.

        Returns
        -------
        torch.Tensor
            ``(n_tokens of all views,)`` int64 on the CPU: for each token, view after view, its row among those of
            `assemble`; a signal by row, such as `text_to_image_attention`, taken there is a signal by token.
        """
        rows = torch.arange(image.n_tokens)
        if image.packing is not None:
            read = (image.packing.order != NEWLINE).nonzero().flatten()
            rows[image.packing.order[read]] = read
        return rows

    def gather(self, image: EncodedImage, kept: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Collect the kept tokens of an image as the LLM reads them; every newline stays.

        Parameters
        ----------
        image : EncodedImage
            What `encode_pixels` returned, in either layout (`EncodedImage.arranged`).
        kept : sequence of torch.Tensor
            ``(n_kept,)`` ascending positions for each view.

        Returns
        -------
        rows : torch.Tensor
            ``(n_kept of all views and newlines, d_model)``, in reading order.
        positions : torch.Tensor
            As many positions among all of the image's rows, ascending, on the CPU.
        """
        survives, n_before = torch.zeros(image.n_tokens, dtype=torch.bool), 0
        for view, chosen in zip(image.views, kept, strict=True):
            survives[chosen.cpu() + n_before] = True
            n_before += view.n_tokens
        tokens = torch.cat([view.tokens for view in image.views])
        if image.packing is None:
            positions = survives.nonzero().flatten()
            return tokens[positions.to(tokens.device)], positions
        order, newline = image.packing.order, image.packing.newline
        positions = ((order == NEWLINE) | survives[order]).nonzero().flatten()
        order = order[positions].to(tokens.device)
        rows = tokens[order]  # a newline's number takes the last token, which is replaced
        if newline is not None:
            rows[order == NEWLINE] = newline.to(rows)
        return rows, positions

    def assemble(
        self, image: EncodedImage, views: Sequence[torch.Tensor | None] | None = None
    ) -> torch.Tensor:
        """Collect all rows that the LLM reads of an image, some tokens replaced.

        Parameters
        ----------
        image : EncodedImage
            What `encode_pixels` returned, in either layout.
        views : sequence of torch.Tensor or None, optional
            For each view ``(n_tokens, d_model)`` tokens that take the place of its own, ``None`` where its own stay.

        Returns
        -------
        torch.Tensor
            ``(n_rows, d_model)``, newlines included: an input of `first_token_logits`.

        Raises
        ------
        ParameterError
            If there are more or fewer views than the image has, or one has another shape.

        Notes
        -----
        Tokens on their own, without newlines, are ``image.views[i].tokens[positions]``.
        """
        if views is not None:
            if len(views) != len(image.views):
                raise ParameterError("views", f"{len(views)} views", f"{len(image.views)}, as the image has")
            for own, given in zip(image.views, views, strict=True):
                if given is not None and given.shape != own.tokens.shape:
                    raise ParameterError("views", tuple(given.shape), f"the view's {tuple(own.tokens.shape)}")
            replaced = (
                own if given is None else replace(own, tokens=given)
                for own, given in zip(image.views, views, strict=True)
            )
            image = replace(image, views=tuple(replaced))
        return self.gather(image, [torch.arange(view.n_tokens) for view in image.views])[0]

    def row_positions(self, image: EncodedImage) -> tuple[torch.Tensor, int]:
        """Say at which positions the LLM reads the rows of an image or video.

        Parameters
        ----------
        image : EncodedImage
            What `encode_pixels` returned, in either layout.

        Returns
        -------
        offsets : torch.Tensor
            ``(n_axes, n_rows)`` int64 on the CPU: for each row of `assemble` its position on every axis that the LLM
            counts on, from the position at which the image begins. Most count on one axis, row after row.
        n_positions : int
            How far behind its beginning the text after it goes on.
        """
        return torch.arange(image.n_rows)[None], image.n_rows

    def given_positions(self, rows: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Say at which positions `first_token_logits` puts rows that take the place of one placeholder.

        Returns
        -------
        tuple
            As `row_positions`.
        """
        return torch.arange(len(rows))[None], len(rows)

    def generation_inputs(self, rows: Sequence[torch.Tensor]) -> dict[str, Any]:
        """Name the arguments by which `generate` takes rows instead of pixels.

        Parameters
        ----------
        rows : sequence of torch.Tensor
            ``(n_i, d_model)`` for each image and video, in the order of the prompts. All of their placeholders must be
            `image_token_id`: `generate` takes videos only if they have as many rows each, so here they go in as
            images, which makes no difference to the LLM.
        """
        return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=list(rows))}}

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
            From `prompt`: a placeholder for each image and video.
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
        ids = self.prompt_ids(prompt)
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
            positions = [self._positions(ids, inputs[i], len(prefixes[i])) for i in batch]
            logits[batch] = self._next_token_logits(rows, positions).float().cpu()
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
        ids = self.prompt_ids(prompt)
        images = self._as_images(ids, visual)
        rows, is_visual = self._splice(ids, self._embed(ids), images)
        places = is_visual.nonzero().flatten()  # on the CPU, as layers may lie on several devices
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
                self._next_token_logits([rows], [self._positions(ids, images)])
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

    def prompt_ids(self, prompt: str) -> list[int]:
        """Tokenize a prompt, one placeholder an image or video.

        A template that writes the first token itself gets no second one.
        """
        tokenizer = self._require_processor().tokenizer
        return tokenizer(prompt, add_special_tokens=self.wants_first_token(prompt))["input_ids"]

    def wants_first_token(self, prompt: str) -> bool:
        """Tell whether the tokenizer has to put its first token before a prompt, which the template has not done."""
        first = self._require_processor().tokenizer.bos_token
        return first is None or not prompt.startswith(first)

    def _embed(self, ids: Sequence[int]) -> torch.Tensor:
        """Return the word embeddings of ids, ``(n, d_model)``."""
        embedding = self.model.get_input_embeddings()
        return embedding(torch.as_tensor(ids, dtype=torch.long, device=module_device(embedding)))

    def _places(self, ids: Sequence[int]) -> list[int]:
        """Return where the placeholders of images and videos are."""
        return [i for i, token in enumerate(ids) if token in (self.image_token_id, self.video_token_id)]

    def _as_images(self, ids: list[int], visual: VisualTokens) -> list[torch.Tensor]:
        """Return one tensor for each placeholder among `ids`, checked."""
        images = [visual] if isinstance(visual, torch.Tensor) else list(visual)
        n_places = len(self._places(ids))
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
        for place, image in zip(self._places(ids), images, strict=True):
            pieces += [text[start:place], image.to(text)]
            is_visual += [False] * (place - start) + [True] * len(image)
            start = place + 1
        pieces.append(text[start:])
        is_visual += [False] * (len(ids) - start)
        return torch.cat(pieces), torch.tensor(is_visual)

    def _positions(self, ids: list[int], images: list[torch.Tensor], n_after: int = 0) -> torch.Tensor:
        """Return the positions of the rows that `_splice` returns and of `n_after` more, ``(n_axes, n_rows)``."""
        pieces, start, n_seen = [], 0, 0
        for place, image in zip(self._places(ids), images, strict=True):
            offsets, n_positions = self.given_positions(image)
            n_text = place - start
            pieces += [torch.arange(n_text).expand(len(offsets), -1) + n_seen, offsets + n_seen + n_text]
            start, n_seen = place + 1, n_seen + n_text + n_positions
        n_axes = len(pieces[-1]) if pieces else 1
        rest = torch.arange(len(ids) - start + n_after) + n_seen
        return torch.cat([*pieces, rest.expand(n_axes, -1)], dim=1)

    def _next_token_logits(
        self, rows: list[torch.Tensor], positions: list[torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Return ``(n, n_vocab)`` logits after ``(length_i, d_model)`` inputs, padded on the left.

        Their positions are ``(n_axes, length_i)``; one after the other where none are given.
        """
        if positions is None:
            positions = [torch.arange(len(row))[None] for row in rows]
        longest = max(map(len, rows))
        embeds = rows[0].new_zeros(len(rows), longest, rows[0].shape[1])
        mask = torch.zeros(len(rows), longest, dtype=torch.long, device=embeds.device)
        position_ids = mask.new_zeros(len(positions[0]), *mask.shape)
        for i, row in enumerate(rows):
            embeds[i, longest - len(row) :] = row
            mask[i, longest - len(row) :] = 1
            position_ids[:, i, longest - len(row) :] = positions[i]
        output = self.model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=position_ids[0] if len(position_ids) == 1 else position_ids,
            use_cache=False,
            logits_to_keep=1,
        )
        return output.logits[:, -1]


def checked_pictures(parameter: str, pictures: Sequence[PIL.Image.Image]) -> list[PIL.Image.Image]:
    """Return PIL images as a list, or raise a `ParameterError` if there is none, or something else among them."""
    pictures = list(pictures)
    strangers = [type(picture).__name__ for picture in pictures if not isinstance(picture, PIL.Image.Image)]
    if not pictures or strangers:
        raise ParameterError(parameter, strangers or pictures, "one or more PIL images")
    return pictures


@contextmanager
def _eager_attention(language_model: Any) -> Iterator[Any]:
    """Switch an LLM to the attention that returns its weights, yield its layers, and switch back."""
    before = language_model.config._attn_implementation
    language_model.set_attn_implementation("eager")
    try:
        yield language_model.layers
    finally:
        language_model.set_attn_implementation(before)
