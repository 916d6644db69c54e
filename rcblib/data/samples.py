"""Load the pictures of a sample, and tell it from another of the same id."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import PIL.Image

from rcblib.data.base import AnySample
from rcblib.data.photos import check_on_error, together
from rcblib.records import ImageError, ImageId, ParameterError, Sample
from rcblib.runs.errors import in_one_line
from rcblib.tensors.pictures import as_rgb


def as_samples(given: Any) -> list[AnySample]:
    """Return what is given as samples as a list of them.

    Raises
    ------
    ParameterError
        If it is one sample, or what people take for samples: a path, paths, pictures.
    """
    is_many = hasattr(given, "__iter__") or hasattr(given, "__getitem__")
    is_one = isinstance(given, str | bytes) or not is_many
    samples = [given] if is_one else list(given)
    strangers = [type(sample).__name__ for sample in samples if not isinstance(sample, AnySample)]
    if strangers or is_one:
        accepted = "an iterable of samples, such as `PhotoFolder(folder)` or `CocoDataset(folder)`"
        raise ParameterError("samples", strangers[0] if strangers else "one sample", accepted)
    return samples


def by_picture(sample: AnySample) -> list[Sample]:
    """Return what is known of each picture of a sample."""
    if isinstance(sample, Sample):
        return [sample]
    objects = sample.objects or [None] * sample.n_images
    return [
        Sample(sample.image_id, lambda i=i: sample.load()[i], *size, objects=own, source=sample.source)
        for i, (size, own) in enumerate(zip(sample.sizes, objects, strict=True))
    ]


def sample_identity(sample: AnySample) -> dict[str, Any]:
    """Return what tells a sample from another of the same id: its source, file name, pixels and objects.

    Raises
    ------
    ImageError
        If an image cannot be read.
    """
    is_single = isinstance(sample, Sample)
    pixels = hashlib.sha256()
    for picture in load_pictures(sample):
        pixels.update(b"" if is_single else f"{picture.size}".encode())
        pixels.update(picture.tobytes())
    objects = None
    if sample.objects is not None:
        objects = hashlib.sha256()
        for i, known in enumerate(by_picture(sample)):
            objects.update(b"" if is_single else f"{i}".encode())
            for item in known.objects:
                counts = item.rle["counts"]
                objects.update(
                    item.category.encode() + (counts.encode() if isinstance(counts, str) else counts)
                )
    return {
        "image_id": sample.image_id,
        **({} if is_single else {"kind": sample.kind}),
        "source": sample.source,
        "file_name": sample.file_name,
        "pixels": pixels.hexdigest()[:12],
        "objects": objects and objects.hexdigest()[:12],
    }


def identified(
    samples: Sequence[AnySample],
    on_error: str = "stop",
    limit: Callable[[int, int], str] | None = None,
    *,
    are_some_of_many: bool = False,
) -> tuple[dict[ImageId, dict[str, Any]], dict[ImageId, str]]:
    """Load every sample once to see that all can be used.

    Parameters
    ----------
    samples : sequence of Sample or SequenceSample
        At least one.
    on_error : {"stop", "skip"}
        Whether one that cannot be used stops all.
    limit : callable, optional
        Says of a picture's width and height which limit they break; empty text where none.
    are_some_of_many : bool
        Whether other runs look at further samples, so that it is no error if of these none is left.

    Returns
    -------
    tuple
        Id to `sample_identity` of those that can be used, and id to the reason of the others.

    Raises
    ------
    ImageError
        Naming all that cannot be used, if one is to stop the run, or if none is left.

    Warns
    -----
    UserWarning
        Naming all that are left out.
    """
    check_on_error(on_error)
    identities: dict[ImageId, dict[str, Any]] = {}
    errors: dict[ImageId, ImageError] = {}
    for sample in samples:
        try:
            if limit:
                _check_limit(sample, limit)
            identities[sample.image_id] = sample_identity(sample)
        except ImageError as error:
            errors[sample.image_id] = error
    return identities, _left_out(errors, len(samples), on_error, are_some_of_many)


def usable(
    samples: Sequence[AnySample], limit: Callable[[int, int], str] | None = None
) -> tuple[Sequence[AnySample], dict[ImageId, str]]:
    """Load every sample once; return those that can be used, and id to the reason of the others, as `identified`."""
    return _without(samples, identified(samples, "skip", limit)[1])


def fitting(
    samples: Sequence[AnySample], limit: Callable[[int, int], str]
) -> tuple[Sequence[AnySample], dict[ImageId, str]]:
    """Return the samples within a limit, and id to the reason of the others, as `usable`; nothing is loaded."""
    errors = {}
    for sample in samples:
        try:
            _check_limit(sample, limit)
        except ImageError as error:
            errors[sample.image_id] = error
    return _without(samples, _left_out(errors, len(samples), "skip"))


def _check_limit(sample: AnySample, limit: Callable[[int, int], str]) -> None:
    for size in {(known.width, known.height) for known in by_picture(sample)}:
        if broken := limit(*size):
            raise ImageError(f"image: {_name(sample)!r} is {_by(size)} px; {broken}")


def _left_out(
    errors: Mapping[ImageId, ImageError], n_samples: int, on_error: str, may_be_all: bool = False
) -> dict[ImageId, str]:
    """Say what is left out and why; raise where it stops the run, or leaves none."""
    if errors and (on_error == "stop" or len(errors) == n_samples and not may_be_all):
        raise together(errors.values(), n_samples)
    if errors:
        warnings.warn(f"left out: {together(errors.values(), n_samples)}", stacklevel=4)
    return {image_id: str(error) for image_id, error in errors.items()}


def _without(
    samples: Sequence[AnySample], skipped: dict[ImageId, str]
) -> tuple[Sequence[AnySample], dict[ImageId, str]]:
    if skipped:
        samples = [sample for sample in samples if sample.image_id not in skipped]
    return samples, skipped


def load_pictures(sample: AnySample) -> list[PIL.Image.Image]:
    """Load all photos or frames of a sample upright and as RGB.

    Raises
    ------
    ImageError
        Naming the sample, if one cannot be read, or they are of another number or size than the sample says, or than
        its masks: those of a photo that was annotated lying on its side would be laid over the wrong patches.
    """
    noun = "image" if isinstance(sample, Sample) else "images"
    name = _name(sample)
    try:
        pictures = [as_rgb(picture) for picture in sample.images]
    except ImageError as error:
        if repr(name) in str(error):
            raise
        raise ImageError(f"{noun}: {name!r}: {str(error).partition(': ')[2]}") from None
    except Exception as error:  # whatever a dataset's loader raises
        reason = f"{type(error).__name__}: {in_one_line(error)}"
        raise ImageError(f"{noun}: {name!r} cannot be read ({reason})") from error
    if len(pictures) != sample.n_images:
        raise ImageError(f"{noun}: {name!r} has {len(pictures)}; accepted: {sample.n_images}, as it says")
    check_sizes(sample, pictures)
    return pictures


def check_sizes(sample: AnySample, pictures: Sequence[PIL.Image.Image]) -> None:
    """Raise an `ImageError` where pictures, as they are upright, are not of the size of a sample and its masks."""
    for known, picture in zip(by_picture(sample), pictures, strict=True):
        sizes = [(known.width, known.height), *(item.rle["size"][::-1] for item in known.objects or ())]
        other = next((size for size in sizes if tuple(size) != picture.size), None)
        if other is not None:
            what = "its record says" if other is sizes[0] else "it has a mask of"
            accepted = "annotations of the photo as it is upright"
            raise ImageError(
                f"image: {_name(sample)!r} is {_by(picture.size)} px, {what} {_by(other)}; accepted: {accepted}"
            )


def _name(sample: AnySample) -> str:
    return sample.file_name or f"image {sample.image_id}"


def _by(size: Sequence[int]) -> str:
    width, height = size
    return f"{width} x {height}"
