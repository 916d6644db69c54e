"""Frozen dataclasses that cross stages, and the errors of the project."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import PIL.Image
    import torch

ImageId = int | str
"""Type of what tells an image from the others of its dataset."""

ONE_WORD_QUESTION = "What does this image show? You must provide a single word that best describes the image."


class ParameterError(ValueError):
    """Report a parameter outside the accepted values: its name, what was given, what is accepted.

    What to do then: :doc:`/what_can_go_wrong`.
    """

    def __init__(self, parameter: str, given: Any, accepted: str):
        shown = " ".join(repr(given).split())  # of an array it has lines
        super().__init__(f"{parameter}: got {shown:.400}; accepted: {accepted}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).__new__, (type(self), str(self))  # from another process it comes as it was


class UnsupportedModelError(ValueError):
    """Report a model that cannot be found or whose family has no adapter; see :doc:`/what_can_go_wrong`."""


class CodebookError(ValueError):
    """Report a codebook that is damaged or does not fit the model; see :doc:`/what_can_go_wrong`."""


class ChecksumError(CodebookError):
    """Report a file whose sha256 differs from the registered one; see :doc:`/what_can_go_wrong`."""


class ImageError(ValueError):
    """Report an image, or a folder of images, that cannot be used; see :doc:`/what_can_go_wrong`."""


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
    image_id : int or str
        Identifier, unique inside its dataset; of what is read from a file of one's own, its name.
    load : callable
        Returns the image as RGB ``PIL.Image``; called once per use so that datasets stay lazy.
    width, height : int
        Size in pixels.
    captions : tuple of str
        Reference captions; empty where there are none.
    objects : tuple of SceneObject or None
        Annotated objects; ``None`` where no annotation exists (own photos).
    source : str
        Where the sample comes from: ``"scenes/<split>"``, ``"coco/<split>"`` or ``"photos/<folder>"``.
    file_name : str
        File name inside its dataset.
    backdrop : str or None
        What is behind the objects, in a word, where it is known and asked for.
    background : str
        Kind of what is behind the objects, for comparisons between kinds; empty where it is not known.
    without : callable or None
        Returns the image drawn again without one of its `objects`, given its number, all else being the same, or with
        all of them, given ``None``; there is none where it cannot be drawn again.
    """

    image_id: ImageId
    load: Callable[[], PIL.Image.Image]
    width: int
    height: int
    captions: tuple[str, ...] = ()
    objects: tuple[SceneObject, ...] | None = None
    source: str = "photos"
    file_name: str = ""
    backdrop: str | None = None
    background: str = ""
    without: Callable[[int | None], PIL.Image.Image] | None = None

    @property
    def image(self) -> PIL.Image.Image:
        """Load the image (RGB)."""
        return self.load()

    @property
    def images(self) -> tuple[PIL.Image.Image, ...]:
        """Load the image as a tuple of one, as `SequenceSample.images`."""
        return (self.load(),)

    @property
    def kind(self) -> str:
        """Return ``"image"``, as `SequenceSample.kind`."""
        return "image"

    @property
    def n_images(self) -> int:
        """Return 1, as `SequenceSample.n_images`."""
        return 1


@dataclass(frozen=True)
class SequenceSample:
    """Hold several images that are asked about together, or the frames of a video.

    Attributes
    ----------
    image_id : int or str
        Identifier, unique inside its dataset; of what is read from a file of one's own, its name.
    load : callable
        Returns all images, in order, as RGB ``PIL.Image``; called once per use so that datasets stay lazy.
    kind : str
        ``"images"`` or ``"video"``.
    sizes : tuple of (int, int)
        ``(width, height)`` of every image in pixels; the same for all frames of a video.
    objects : tuple of tuple of SceneObject, or None
        Annotated objects of every image; ``None`` where no annotation exists (own photos and videos).
    source : str
        Where the sample comes from: ``"groups/<split>"``, ``"videos/<split>"``, ``"photos"`` or ``"video"``.
    file_name : str
        File or folder name inside its dataset.
    """

    image_id: ImageId
    load: Callable[[], tuple[PIL.Image.Image, ...]]
    kind: str
    sizes: tuple[tuple[int, int], ...]
    objects: tuple[tuple[SceneObject, ...], ...] | None = None
    source: str = "photos"
    file_name: str = ""

    def __post_init__(self) -> None:
        if self.kind not in ("images", "video"):
            raise ParameterError("kind", self.kind, "images, video")
        if not self.sizes:
            raise ParameterError("sizes", self.sizes, "the size of one image at least")
        if self.objects is not None and len(self.objects) != len(self.sizes):
            raise ParameterError("objects", f"those of {len(self.objects)} images", f"{len(self.sizes)}")

    @property
    def images(self) -> tuple[PIL.Image.Image, ...]:
        """Load the images (RGB)."""
        return self.load()

    @property
    def n_images(self) -> int:
        """Count the images or frames."""
        return len(self.sizes)

    @property
    def width(self) -> int:
        """Return the width of the first image in pixels."""
        return self.sizes[0][0]

    @property
    def height(self) -> int:
        """Return the height of the first image in pixels."""
        return self.sizes[0][1]


@dataclass(frozen=True)
class Question:
    """Pose one question about one image or several, with the answer that counts as right.

    Attributes
    ----------
    image_id : int or str
        The `Sample` or `SequenceSample` it is about.
    task : str
        Question family: ``one_word``, ``caption``, ``yes_no``, ``color``, ``count``, ``position``, ``digit``,
        ``larger``, ``left`` or ``backdrop``; of several images ``multi_image`` or ``video``.
    text : str
        What is asked, without chat template.
    answer : str
        The reference answer; for ``caption`` a reference caption, for multiple choice the letter.
    subset : str
        Finer label inside a task, such as POPE's ``random``, ``popular``, ``adversarial``, or the kind of question
        about several images.
    """

    image_id: ImageId
    task: str
    text: str
    answer: str
    subset: str = ""


LAYOUTS = ("packed", "flatten")
"""Ways in which the tokens of an image's views become the rows that the LLM reads; see `EncodedImage.arranged`."""

NEWLINE = -1
"""Stands for a newline embedding among the rows of a `Packing`."""


@dataclass(frozen=True)
class VisualView:
    """Hold the visual tokens of one grid: an image, a tile of it, or a video frame.

    Attributes
    ----------
    tokens : torch.Tensor
        ``(n_tokens, d_model)`` rows that enter the LLM, after the connector, in raster order.
    grid : tuple of int
        ``(height, width)`` in tokens; their product is ``n_tokens``.
    signals : Mapping
        Name to ``(n_tokens,)`` or ``(n_tokens, d)`` values, float32 on the CPU: what the vision encoder says about each
        token, as far as it was asked for and exists (`Adapter.encode_pixels`).
    kind : str
        ``"image"``, ``"tile"`` or ``"frame"``.
    region : tuple of float or None
        ``(left, top, right, bottom)`` of the photo that the grid covers, as fractions of its sides; below 0 or above
        1 where a token at the edge sees padding. ``None`` where the encoder was not told the photo's size.
    """

    tokens: torch.Tensor
    grid: tuple[int, int]
    signals: Mapping[str, torch.Tensor] = field(default_factory=dict)
    kind: str = "image"
    region: tuple[float, float, float, float] | None = None

    @property
    def n_tokens(self) -> int:
        """Count the tokens of this view."""
        return self.tokens.shape[0]


@dataclass(frozen=True)
class Packing:
    """Say in which order the tokens of some views, and newlines, are read.

    Attributes
    ----------
    order : torch.Tensor
        ``(n_rows,)`` int64 on the CPU: for each row that the LLM reads its number among the tokens of all views, one
        view after the other, or `NEWLINE`. Every token is read once.
    newline : torch.Tensor or None
        ``(d_model,)`` embedding of the newline; ``None`` where `order` has none.
    """

    order: torch.Tensor
    newline: torch.Tensor | None = None


@dataclass(frozen=True)
class EncodedImage:
    """Hold everything the vision side says about one image, or one video.

    Attributes
    ----------
    views : tuple of VisualView
        The image; or the image reduced to one grid, then its tiles, row by row; or the frames of a video. Tokens that
        the LLM never reads, such as those of padding, are in none of them, so a tile at the edge may be smaller.
    packing : Packing or None
        How the tokens are read; ``None``: all views one after the other, without newlines.
    whole : tuple of VisualView or None
        The views before padding was cut off or anything was resampled, for the flatten layout; ``None`` where that is
        `views`.
    """

    views: tuple[VisualView, ...]
    packing: Packing | None = None
    whole: tuple[VisualView, ...] | None = None

    @property
    def tokens(self) -> torch.Tensor:
        """Return the tokens of the only view; an error where there are several."""
        if len(self.views) != 1:
            raise ParameterError("views", len(self.views), "exactly one view; use .views for tiles or frames")
        return self.views[0].tokens

    @property
    def is_video(self) -> bool:
        """Tell whether the views are frames."""
        return self.views[0].kind == "frame"

    @property
    def n_tokens(self) -> int:
        """Count the visual tokens of all views."""
        return sum(view.n_tokens for view in self.views)

    @property
    def n_rows(self) -> int:
        """Count the rows that the LLM reads, newlines included."""
        return self.n_tokens if self.packing is None else len(self.packing.order)

    def arranged(self, layout: str) -> EncodedImage:
        """Return the image with views and packing of a layout.

        Parameters
        ----------
        layout : {"packed", "flatten"}
            ``"packed"``, as the model itself reads an image: the reduced image, then the tiles line by line across
            all of them, without padding, each line ended by a newline embedding. ``"flatten"``: all tiles whole,
            padding included and nothing resampled, one after the other, with one newline embedding at the end.
            The two differ for images with tiles only.

        Raises
        ------
        ParameterError
            If the layout is unknown.

        Notes
        -----
        Source: the released ``high_info_patch_flatten`` mode, whose tokens pass by the code that removes padding and
        sets newlines, because they come as one flat sequence.
        """
        if layout not in LAYOUTS:
            raise ParameterError("layout", layout, f"one of {LAYOUTS}")
        if layout == "packed" or self.whole is None:
            return self
        n_tokens = sum(view.n_tokens for view in self.whole)
        order = self.packing.order.new_tensor([*range(n_tokens), NEWLINE])
        return EncodedImage(self.whole, Packing(order, self.packing.newline))

    def to(self, device: Any) -> EncodedImage:
        """Return the image with tokens and newline on a device; itself, if they are there."""
        if all(view.tokens.device == device for view in (*self.views, *(self.whole or ()))):
            return self

        def moved(views: tuple[VisualView, ...]) -> tuple[VisualView, ...]:
            return tuple(replace(view, tokens=view.tokens.to(device)) for view in views)

        packing = self.packing
        if packing is not None and packing.newline is not None:
            packing = replace(packing, newline=packing.newline.to(device))
        views = moved(self.views)
        if self.whole is None or self.whole is self.views:
            return EncodedImage(views, packing, self.whole and views)
        return EncodedImage(views, packing, moved(self.whole))
