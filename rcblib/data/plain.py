"""Offer a few photographs that are there without a download: as they were taken, nothing is known of them."""

from __future__ import annotations

from functools import partial
from importlib.resources import files
from pathlib import Path

from rcblib.data.base import Dataset, check_limit
from rcblib.data.photos import plain_name, read_image, upright_sizes
from rcblib.records import ParameterError, Sample
from rcblib.runs.provenance import project_path

SAMPLE = "sample"
"""Name of the sample, as for a folder of images."""

PLAIN_FOLDER = "data/photographs/plain"
"""Where the photographs of a checkout lie, below its root."""


def sample_paths() -> list[Path]:
    """List the files of the sample: two that come with scikit-learn, then those of a checkout, where there is one."""
    # Real files, as scikit-learn is never installed as an archive.
    with_sklearn = Path(str(files("sklearn.datasets"))) / "images"
    paths = sorted(with_sklearn.glob("*.jpg"))
    try:
        return paths + sorted(project_path(PLAIN_FOLDER).glob("*.jpg"))
    except ParameterError:
        return paths


class SamplePhotos(Dataset[Sample]):
    """Read the photographs that are there without a download: scikit-learn's two, then four of a checkout.

    An image's id is its file name, as of any photo.

    Parameters
    ----------
    n : int, optional
        Use the first `n`, or all if there are fewer.

    Raises
    ------
    ImageError
        If one cannot be read.
    ParameterError
        If `n` is below 1.

    Source: ``sklearn.datasets.load_sample_images`` (china.jpg by danielbuechele, flower.jpg by vultilion, CC BY 2.0);
    of the others ``data/photographs/licences.csv`` says it.
    """

    def __init__(self, n: int | None = None):
        self._sizes = upright_sizes(sample_paths()[: check_limit(n)])
        self.paths = list(self._sizes)

    def __len__(self) -> int:
        return len(self.paths)

    def _sample(self, index: int) -> Sample:
        path = self.paths[index]
        name = plain_name(path)
        load = partial(read_image, path)
        return Sample(name, load, *self._sizes[path], source=f"photos/{SAMPLE}", file_name=name)
