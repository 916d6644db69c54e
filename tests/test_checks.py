"""Errors that say in one line what was given and what is accepted."""

import numpy as np
import pytest
import torch

from rcblib.records import ParameterError
from rcblib.tensors.checks import check_features, check_grid, check_integer, check_positions


def test_checks_return_plain_values():
    assert type(check_integer("n", np.int64(3), 0)) is int
    assert check_grid([3, np.int64(4)], 12) == (3, 4)
    assert check_positions("positions", torch.tensor([2, 0]), 3) == [2, 0]
    assert check_positions("positions", np.array([2, 0]), 3) == [2, 0]
    assert check_positions("positions", range(3), 3) == [0, 1, 2]
    check_features("tokens", torch.zeros(2, 3, 4, dtype=torch.bfloat16), "(..., n_tokens, d)")


@pytest.mark.parametrize(
    "positions", [[3], [-1], [0.0], ["0"], 0, torch.tensor([True, False, True]), torch.tensor([[0, 1]])]
)
def test_positions_outside_or_of_another_kind_are_refused(positions):
    with pytest.raises(ParameterError, match="^positions: got"):
        check_positions("positions", positions, 3)
