"""Load the pictures of a sample, and tell it from another of the same id."""

from __future__ import annotations

import hashlib
from typing import Any

import PIL.Image

from rcblib.data.base import AnySample
from rcblib.data.photos import as_rgb
from rcblib.records import ImageError, Sample


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


def load_pictures(sample: AnySample) -> list[PIL.Image.Image]:
    """Load all photos or frames of a sample as RGB, or raise an `ImageError` that names it."""
    noun = "image" if isinstance(sample, Sample) else "images"
    name = sample.file_name or f"{noun.removesuffix('s')} {sample.image_id}"
    try:
        pictures = [as_rgb(picture) for picture in sample.images]
    except ImageError:
        raise
    except Exception as error:  # whatever a dataset's loader raises
        raise ImageError(f"{noun}: {name!r} cannot be read ({type(error).__name__}: {error})") from error
    if len(pictures) != sample.n_images:
        raise ImageError(f"{noun}: {name!r} has {len(pictures)}; accepted: {sample.n_images}, as it says")
    return pictures
