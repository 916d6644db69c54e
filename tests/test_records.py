"""Samples of one image and of several."""

import pickle

import numpy as np
import pytest
import torch

from rcblib.mllm.reduced import Reduced
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


@pytest.mark.parametrize(
    ("positions", "rows", "message"),
    [
        ([0, 1], None, "positions: got 'list'; accepted: ascending int64 numbers of 4 tokens, from Own"),
        (torch.tensor([0.0, 1.0]), None, "positions: got"),
        (torch.tensor([0, 1], dtype=torch.int32), None, "positions: got"),
        (torch.tensor([True, False]), None, "positions: got"),
        (torch.tensor(1), None, r"positions: got \[1\]"),
        (torch.tensor([1, 0]), None, "positions: got"),
        (torch.tensor([1, 1]), None, "positions: got"),
        (torch.tensor([-1, 1]), None, "positions: got"),
        (torch.tensor([1, 4]), None, "positions: got"),
        (torch.tensor([0, 1]), torch.zeros(1, 3), r"rows: got \(1, 3\); accepted: \(2, 3\), from Own"),
        (torch.tensor([0, 1]), torch.zeros(2, 5), r"rows: got \(2, 5\); accepted: \(2, 3\), from Own"),
        (torch.tensor([0, 1]), [[0.0] * 3] * 2, "rows: got 'list'"),
        (torch.tensor([0]), torch.tensor([[0, torch.nan, 0]]), "rows: got 'NaN or infinity.*, from Own"),
        (torch.tensor([0]), torch.tensor([[0, torch.inf, 0]]), "rows: got 'NaN or infinity.*, from Own"),
    ],
)
def test_what_a_method_returns_is_checked_in_one_line(positions, rows, message):
    with pytest.raises(ParameterError, match=message):
        Reduced(positions, rows).check(4, 3, "Own")


def test_a_choice_of_tokens_with_and_without_rows_is_accepted():
    Reduced(torch.tensor([], dtype=torch.int64)).check(4, 3, "Own")
    Reduced(torch.tensor([0, 3])).check(4, 3, "Own")
    Reduced(torch.tensor([0, 3]), torch.zeros(2, 3, dtype=torch.float16)).check(4, 3, "Own")


def test_an_error_is_one_line_whatever_was_given_and_survives_another_process():
    error = ParameterError("positions", np.zeros(100, bool), "numbers")
    assert "\n" not in str(error) and str(error).startswith("positions: got array([False, False")
    assert len(str(ParameterError("text", "x" * 10_000, "less"))) < 450
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is ParameterError and str(again) == str(error)
