"""Frozen dataclasses that cross stages, and the errors of the project."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import PIL.Image
    import torch

ONE_WORD_QUESTION = "What does this image show? You must provide a single word that best describes the image."


class ParameterError(ValueError):
    """Report a parameter outside the accepted values: its name, what was given, what is accepted."""

    def __init__(self, parameter: str, given: Any, accepted: str):
        super().__init__(f"{parameter}: got {given!r}; accepted: {accepted}")


class UnsupportedModelError(ValueError):
    """Report a model that cannot be found or whose family has no adapter."""


class CodebookError(ValueError):
    """Report a codebook that is damaged or does not fit the model."""


class ChecksumError(CodebookError):
    """Report a file whose sha256 differs from the registered one."""


class ImageError(ValueError):
    """Report an image, or a folder of images, that cannot be used."""


@dataclass(frozen=True)
class SceneObject:
    """Describe one object of an image, with the mask that says which pixels it covers.

    Attributes
    ----------
    category : str
        Name of the category, as the questions use it.
    box : tuple of float
        ``(x, y, width, height)`` in pixels, COCO's order.
    rle : Mapping
        COCO run-length encoding of the mask (``size`` and compressed ``counts``), as pycocotools writes it.
    area : float
        Pixels covered.
    color : str or None
        Name of the colour where it is known (embedded scenes), else ``None``.
    """

    category: str
    box: tuple[float, float, float, float]
    rle: Mapping[str, Any]
    area: float
    color: str | None = None

    @property
    def center(self) -> tuple[float, float]:
        """Return the middle `(x, y)` of the box in pixels."""
        x, y, width, height = self.box
        return x + width / 2, y + height / 2


@dataclass(frozen=True)
class Sample:
    """Hold one image with what is known of it; every dataset yields these.

    Attributes
    ----------
    image_id : int
        Identifier, unique inside its dataset.
    load : callable
        Returns the image as RGB ``PIL.Image``; called once per use so that datasets stay lazy.
    width, height : int
        Size in pixels.
    captions : tuple of str
        Reference captions; empty where there are none.
    objects : tuple of SceneObject or None
        Annotated objects; ``None`` where no annotation exists (own photos).
    source : str
        Where the sample comes from: ``"scenes/<split>"``, ``"coco/<split>"`` or ``"photos"``.
    file_name : str
        File name inside its dataset.
    """

    image_id: int
    load: Callable[[], PIL.Image.Image]
    width: int
    height: int
    captions: tuple[str, ...] = ()
    objects: tuple[SceneObject, ...] | None = None
    source: str = "photos"
    file_name: str = ""

    @property
    def image(self) -> PIL.Image.Image:
        """Load the image (RGB)."""
        return self.load()


@dataclass(frozen=True)
class Question:
    """Pose one question about one image, with the answer that counts as right.

    Attributes
    ----------
    image_id : int
        The `Sample` it is about.
    task : str
        Question family: ``one_word``, ``caption``, ``yes_no``, ``color``, ``count``, ``position`` or ``digit``.
    text : str
        What is asked, without chat template.
    answer : str
        The reference answer; for ``caption`` a reference caption.
    subset : str
        Finer label inside a task, such as POPE's ``random``, ``popular``, ``adversarial``.
    """

    image_id: int
    task: str
    text: str
    answer: str
    subset: str = ""


@dataclass(frozen=True)
class VisualView:
    """Hold the visual tokens of one grid: an image, a tile of it, or a video frame.

    Attributes
    ----------
    tokens : torch.Tensor
        ``(n_tokens, d_model)`` rows that enter the LLM, after the connector, in raster order.
    grid : tuple of int
        ``(height, width)`` in tokens; their product is ``n_tokens``.
    cls_similarity : torch.Tensor or None
        ``(n_tokens,)`` cosine of each patch row to the [CLS] row of the selected hidden state; ``None`` without [CLS].
    cls_attention : torch.Tensor or None
        ``(n_tokens,)`` attention from [CLS] to each patch, mean over heads, at the layer that makes the selected
        hidden state; ``None`` without [CLS] or where it was not asked for.
    kind : str
        ``"image"``, ``"tile"`` or ``"frame"``.
    """

    tokens: torch.Tensor
    grid: tuple[int, int]
    cls_similarity: torch.Tensor | None = None
    cls_attention: torch.Tensor | None = None
    kind: str = "image"

    @property
    def n_tokens(self) -> int:
        """Count the tokens of this view."""
        return self.tokens.shape[0]


@dataclass(frozen=True)
class EncodedImage:
    """Hold everything the vision side says about one image: one view, or a base view and tiles."""

    views: tuple[VisualView, ...]
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tokens(self) -> torch.Tensor:
        """Return the tokens of the only view; an error where there are several."""
        if len(self.views) != 1:
            raise ParameterError("views", len(self.views), "exactly one view; use .views for tiles or frames")
        return self.views[0].tokens
