"""What a codebook accepts, and which models it fits."""

import dataclasses

import pytest
import torch
from codebook_examples import sample_codebook
from messages import one_line

from rcblib.codebook.codebook import Codebook
from rcblib.records import CodebookError


@pytest.mark.parametrize(
    ("keywords", "text"),
    [
        ({"prototypes": torch.ones(5)}, "got (5,)"),
        ({"prototypes": torch.ones(0, 4)}, "got (0, 4)"),
        ({"prototypes": torch.ones(5, 4, dtype=torch.int64)}, "torch.int64"),
        ({"prototypes": [[1.0]]}, "got list"),
        ({"prototypes": torch.tensor([[1.0, float("nan")], [1.0, 2.0]])}, "1 of 2 rows hold NaN"),
        ({"prototypes": torch.ones(3, 4), "image_ids": (1, 2)}, "got 2 for 3 prototypes"),
        ({"prototypes": torch.ones(3, 4), "positions": (1, 2)}, "positions: got 2 for 3"),
        ({"prototypes": torch.ones(1, 4), "positions": (1.5,)}, "positions: got (1.5,); accepted: integers"),
        ({"prototypes": torch.ones(1, 4), "positions": ("a",)}, "positions: got ('a',); accepted: integers"),
        ({"prototypes": torch.ones(1, 4), "positions": 3}, "positions: got 3"),
        ({"prototypes": torch.ones(1, 4), "image_ids": (1.5,)}, "image_ids: got 1.5"),
        ({"prototypes": torch.ones(1, 4), "family": None}, "family: got None"),
    ],
)
def test_codebook_validation(keywords, text):
    with pytest.raises(CodebookError) as error:
        Codebook(**keywords)
    assert text in one_line(error)


def test_codebook_is_detached_and_frozen():
    codebook = Codebook(torch.ones(2, 3, requires_grad=True))
    assert not codebook.prototypes.requires_grad
    assert (len(codebook), codebook.d_model, codebook.image_ids) == (2, 3, ())
    assert repr(codebook) == "Codebook(2 x 3, family='', of unnamed model)"
    with pytest.raises(dataclasses.FrozenInstanceError):
        codebook.family = "llava"


def test_codebook_of_another_width_or_family():
    codebook = sample_codebook()
    codebook.check_fits("llava", 4)
    codebook.check_fits("", 4)
    Codebook(torch.ones(2, 4)).check_fits("llava", 4)
    with pytest.raises(CodebookError) as error:
        codebook.check_fits("llava", 4096)
    assert one_line(error) == "codebook: prototypes of width 4 do not fit visual tokens of width 4096"
    with pytest.raises(CodebookError) as error:
        codebook.check_fits("llava_onevision", 4)
    assert "'llava'" in one_line(error) and "'llava_onevision'" in one_line(error)
