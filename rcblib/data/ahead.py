"""Load the pictures of one sample while another is worked on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import PIL.Image

from rcblib.data.base import AnySample
from rcblib.data.samples import load_pictures


def loaded_ahead(samples: Sequence[AnySample]) -> Iterator[tuple[AnySample, list[PIL.Image.Image]]]:
    """Yield samples in order, with their pictures as `load_pictures` returns them; a thread is one sample ahead.

    Raises
    ------
    ImageError
        As `load_pictures`, when the sample's turn has come.
    """
    with ThreadPoolExecutor(1, "pictures") as thread:
        coming = thread.submit(load_pictures, samples[0]) if samples else None
        for number, sample in enumerate(samples, 1):
            pictures = coming.result()
            if number < len(samples):
                coming = thread.submit(load_pictures, samples[number])
            yield sample, pictures
