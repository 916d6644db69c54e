"""Samples of one image and of several."""

import pytest

from rcblib.records import ParameterError, SequenceSample
from worlds.datasets import SceneDataset


def test_one_image_is_handled_as_several_are():
    sample = SceneDataset("test", 1)[0]
    assert (sample.kind, sample.n_images) == ("image", 1)
    (image,) = sample.images
    assert image.tobytes() == sample.image.tobytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "photos"}, "kind: got 'photos'; accepted: images, video"),
        ({"sizes": ()}, r"sizes: got \(\); accepted: the size of one image"),
        ({"objects": ((),)}, "objects: got 'those of 1 images'; accepted: 2"),
    ],
)
def test_samples_of_several_images_are_consistent(change, message):
    settings = {"image_id": 0, "load": tuple, "kind": "images", "sizes": ((4, 4), (4, 4))}
    with pytest.raises(ParameterError, match=message):
        SequenceSample(**{**settings, **change})
