"""Define what every model family offers to probing and pruning, and what they share."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import PIL.Image
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from rcblib.mllm.language import LanguageSide
from rcblib.mllm.prompt import VisualRows
from rcblib.records import NEWLINE, EncodedImage, ImageError, ParameterError, UnsupportedModelError
from rcblib.tensors.pictures import as_rgb


class Adapter(LanguageSide):
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
    processor_class : type, optional
        Processor that stands in for the one of `transformers`, where that needs what need not be installed.
    offers : frozenset of str
        Signals of the vision encoder that `encode_pixels` can add to views. Views whose tokens are pooled from several
        of the encoder's, such as frames of OneVision's videos, have none of them.
    """

    pixel_inputs: ClassVar[tuple[str, ...]] = ("pixel_values",)
    processor_class: ClassVar[Any] = None
    offers: frozenset[str] = frozenset()

    @property
    def has_cls(self) -> bool:
        """Tell whether the vision encoder has a [CLS] row."""
        return "cls_similarity" in self.offers

    def complete_processor(self) -> None:
        """Tell a loaded processor what it needs to write as many placeholders as the model makes rows.

        By default nothing: its own files say it all.
        """

    @property
    def frame_side(self) -> int | None:
        """Count the tokens along a side of the frame that the encoder gets; ``None`` where pictures have any size."""
        return None

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
            - ``"last_cls_attention"``, ``"last_keys"``: ``(n_tokens,)`` and ``(n_tokens, d_vision)`` the same as above
              in the encoder's last layer, with all heads taken as one.

        Returns
        -------
        list of EncodedImage
            One per image, in order, then one per video. Tokens are those of the model's own
            ``get_image_features`` and ``get_video_features``, in its dtype and on its device; signals are float32
            on the CPU.
        """

    def connect(self, states: torch.Tensor) -> torch.Tensor:
        """Return the rows ``(n, d_model)`` that the connector makes of ``(n, d_vision)`` states, such as merged ones.

        They are of the signal ``"hidden_states"``; families without it raise an `UnsupportedModelError`.
        """
        raise UnsupportedModelError(
            f"connector: the model's family, {self.family!r}, has none for single states"
        )

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
        ImageError
            If the processor takes no picture of that shape.
        """
        processor = self._require_processor()
        if kind == "video":
            frames = self._checked_frames(pictures)
            return processor.video_processor([frames], return_tensors="pt")
        if kind not in ("image", "images"):
            raise ParameterError("kind", kind, "image, images, video")
        images = checked_pictures("images", pictures)
        for image in images:
            if broken := self.size_limit(*image.size):
                raise ImageError(f"image: got one of {image.width} x {image.height} px; {broken}")
        return processor.image_processor([images] if kind == "images" else images, return_tensors="pt")

    def size_limit(self, width: int, height: int) -> str:
        """Say which limit of the processor a picture of a size breaks, without making anything of its pixels.

        Parameters
        ----------
        width, height : int
            Of the upright picture, in pixels.

        Returns
        -------
        str
            What is accepted; empty where the picture is.
        """
        settings = self._require_processor().image_processor
        shortest = (dict(settings.size) if settings.size else {}).get("shortest_edge")
        most = 2 * (PIL.Image.MAX_IMAGE_PIXELS or math.inf)
        if shortest is None or shortest**2 * max(width, height) <= most * min(width, height):
            return ""
        return (
            f"accepted: sides of at most {int(most / shortest**2)} to 1, as the processor makes the shorter one "
            f"{shortest} px long"
        )

    def grid_of(self, width: int, height: int) -> tuple[int, int] | None:
        """Return ``(rows, columns)`` of the tokens of a photo where they depend on its size, else ``None``.

        Families that cut photos into tiles read the whole photo in a grid that is always the same.
        """
        return None

    def _checked_frames(self, frames: Sequence[PIL.Image.Image]) -> list[PIL.Image.Image]:
        """Return the frames of a video as RGB, or raise where they are no video that the family takes."""
        if self.video_token_id is None:
            raise UnsupportedModelError(f"video: the model's family, {self.family!r}, takes images only")
        frames = checked_pictures("frames", frames)
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

    def gather(
        self,
        image: EncodedImage,
        kept: Sequence[torch.Tensor],
        rows: Sequence[torch.Tensor | None] | None = None,
    ) -> VisualRows:
        """Collect the kept tokens of an image as the LLM reads them; every newline stays.

        Parameters
        ----------
        image : EncodedImage
            What `encode_pixels` returned, in either layout (`EncodedImage.arranged`).
        kept : sequence of torch.Tensor
            ``(n_kept,)`` ascending positions for each view.
        rows : sequence of torch.Tensor or None, optional
            For each view ``(n_kept, d_model)`` rows that are read instead of its kept tokens, such as means of several,
            ``None`` where the tokens themselves are.

        Returns
        -------
        VisualRows
            ``(n_kept of all views and newlines, d_model)``, in reading order, where they are in the whole image: an
            input of `first_token_logits`.

        Raises
        ------
        ParameterError
            If there are rows of more or fewer views than the image has, or of another shape.
        """
        rows = [None] * len(image.views) if rows is None else rows
        if len(rows) != len(image.views):
            raise ParameterError("views", f"{len(rows)} views", f"{len(image.views)}, as the image has")
        pieces, numbers, n_before = [], [], 0
        for view, chosen, given in zip(image.views, kept, rows, strict=True):
            shape = (len(chosen), view.tokens.shape[1])
            if given is not None and given.shape != shape:
                raise ParameterError("views", tuple(given.shape), f"the view's {shape}")
            device = view.tokens.device
            pieces.append(view.tokens[chosen.to(device)] if given is None else given.to(view.tokens))
            numbers.append(chosen.cpu() + n_before)
            n_before += view.n_tokens
        read, tokens = torch.cat(pieces), torch.cat(numbers)
        offsets, n_positions = self.row_positions(image)
        if image.packing is None:
            return VisualRows(read, offsets[:, tokens], n_positions, tokens, image.n_rows)
        # Each kept token's row among those read, and last, where the number of newlines points, that of the newline.
        place = torch.full((image.n_tokens + 1,), -1)
        place[tokens] = torch.arange(len(tokens))
        place[NEWLINE] = len(tokens)
        rows_read = place[image.packing.order]
        numbers = (rows_read >= 0).nonzero().flatten()
        if image.packing.newline is not None:
            read = torch.cat([read, image.packing.newline.to(read)[None]])
        gathered = read[rows_read[numbers].to(read.device)]
        return VisualRows(gathered, offsets[:, numbers], n_positions, numbers, image.n_rows)

    def assemble(self, image: EncodedImage, views: Sequence[torch.Tensor | None] | None = None) -> VisualRows:
        """Collect all rows that the LLM reads of an image, some tokens replaced.

        Parameters
        ----------
        image : EncodedImage
            What `encode_pixels` returned, in either layout.
        views : sequence of torch.Tensor or None, optional
            For each view ``(n_tokens, d_model)`` tokens that take the place of its own, ``None`` where its own stay.

        Returns
        -------
        VisualRows
            ``(n_rows, d_model)``, newlines included: an input of `first_token_logits`.

        Raises
        ------
        ParameterError
            If there are more or fewer views than the image has, or one has another shape.

        Notes
        -----
        Tokens on their own, without newlines, are ``image.views[i].tokens[positions]``.
        """
        return self.gather(image, [torch.arange(view.n_tokens) for view in image.views], views)

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


def checked_pictures(parameter: str, pictures: Sequence[PIL.Image.Image]) -> list[PIL.Image.Image]:
    """Return PIL images upright and as RGB; a `ParameterError` if there is none, or something else among them."""
    pictures = list(pictures)
    strangers = [type(picture).__name__ for picture in pictures if not isinstance(picture, PIL.Image.Image)]
    if not pictures or strangers:
        raise ParameterError(parameter, strangers or pictures, "one or more PIL images")
    return [as_rgb(picture) for picture in pictures]
