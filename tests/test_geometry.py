import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rcblib.records import ParameterError
from rcblib.tensors.geometry import (
    cosine_to_cls,
    evenly_spaced,
    paper_ranks,
    pool_frames,
    rank_by_cls,
    window,
)

SIDES = st.integers(3, 30)


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (7, [0, 1, 2, 6, 7, 8, 12, 13, 14]),
        (0, [0, 1, 2, 6, 7, 8, 12, 13, 14]),
        (5, [3, 4, 5, 9, 10, 11, 15, 16, 17]),
        (18, [12, 13, 14, 18, 19, 20, 24, 25, 26]),
        (35, [21, 22, 23, 27, 28, 29, 33, 34, 35]),
    ],
)
def test_window_is_shifted_inwards_at_borders(index, expected):
    assert window(index, 6, 6) == expected


def test_window_on_a_grid_that_is_not_square():
    assert window(4, 3, 5) == [2, 3, 4, 7, 8, 9, 12, 13, 14]


def test_window_of_other_sizes():
    assert window(5, 4, 4, size=1) == [5]
    assert window(5, 4, 4, size=4) == list(range(16))
    assert window(5, 3, 4, size=2) == [0, 1, 4, 5]


@given(SIDES, SIDES, st.data())
def test_window_has_nine_ascending_cells_around_the_target(height, width, data):
    index = data.draw(st.integers(0, height * width - 1))
    cells = window(index, height, width)
    assert len(set(cells)) == 9
    assert cells == sorted(cells)
    assert 0 <= cells[0]
    assert cells[-1] < height * width
    assert index in cells
    row, column = divmod(index, width)
    assert {abs(cell // width - row) for cell in cells} <= {0, 1, 2}
    assert {abs(cell % width - column) for cell in cells} <= {0, 1, 2}
    if 0 < row < height - 1 and 0 < column < width - 1:
        assert cells[4] == index


@pytest.mark.parametrize(
    ("arguments", "parameter"),
    [
        ((0, 2, 6), "height"),
        ((0, 6, 2), "width"),
        ((36, 6, 6), "index"),
        ((-1, 6, 6), "index"),
        ((1.0, 6, 6), "index"),
        ((True, 6, 6), "index"),
        ((0, 6, 6, 0), "size"),
        ((0, 6, 6, 7), "height"),
    ],
)
def test_window_refuses(arguments, parameter):
    with pytest.raises(ParameterError, match=f"^{parameter}: got .*; accepted: an integer"):
        window(*arguments)


def test_cosine_and_rank_of_known_rows():
    hidden = torch.tensor([[2.0, 0.0], [0.0, 3.0], [5.0, 0.0], [1.0, 1.0], [-1.0, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(cosine_to_cls(hidden), torch.tensor([0.0, 1.0, 0.5**0.5, -1.0, 0.0]))
    assert rank_by_cls(hidden).tolist() == [1, 2, 0, 4, 3]


def test_equal_cosines_rank_by_position():
    row = torch.randn(48, generator=torch.Generator().manual_seed(0))
    scales = torch.tensor([1.0, 1.0, 0.5, 3.0, 1.7, 1.0, 40.0])
    hidden = torch.cat([row.roll(1)[None], scales[:, None] * row])
    assert rank_by_cls(hidden).tolist() == list(range(7))


@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_rank_is_a_permutation_that_follows_its_rows(n_tokens, seed):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(1 + n_tokens, 8, generator=generator)
    order = rank_by_cls(hidden)
    assert sorted(order.tolist()) == list(range(n_tokens))
    assert (cosine_to_cls(hidden)[order].diff() <= 0).all()
    shuffle = torch.randperm(n_tokens, generator=generator)
    shuffled = torch.cat([hidden[:1], hidden[1:][shuffle]])
    assert (shuffle[rank_by_cls(shuffled)] == order).all()


def test_half_precision_is_ranked_as_its_float32_values():
    hidden = torch.randn(200, 32, generator=torch.Generator().manual_seed(1)).half()
    assert (rank_by_cls(hidden) == rank_by_cls(hidden.float())).all()


@pytest.mark.parametrize(
    "hidden",
    [
        torch.zeros(4),
        torch.zeros(1, 8),
        torch.zeros(2, 4, 8),
        torch.zeros(4, 8, dtype=torch.long),
        torch.full((4, 8), float("nan")),
        np.zeros((4, 8)),
    ],
)
def test_rank_by_cls_refuses(hidden):
    with pytest.raises(ParameterError, match="^hidden: got"):
        rank_by_cls(hidden)


def test_paper_ranks_of_576_tokens():
    groups = [(1, 24), (37, 44), (73, 80), (145, 152), (217, 224), (289, 296), (361, 368), (433, 440)]
    groups += [(505, 512), (569, 576)]
    expected = [rank - 1 for first, last in groups for rank in range(first, last + 1)]
    assert len(expected) == 96
    assert paper_ranks(576) == expected


def test_paper_ranks_of_a_quarter_as_many_tokens():
    expected = [*range(6), 9, 10, 18, 19, 36, 37, 54, 55, 72, 73, 90, 91, 108, 109, 126, 127, 142, 143]
    assert paper_ranks(144) == expected


@given(st.integers(1, 3000))
def test_paper_ranks_are_distinct_and_reach_both_ends(n_tokens):
    ranks = paper_ranks(n_tokens)
    assert ranks == sorted(set(ranks))
    assert ranks[0] == 0
    assert ranks[-1] == n_tokens - 1
    assert abs(len(ranks) - n_tokens / 6) <= 10


@pytest.mark.parametrize("n_tokens", [0, -576, 576.0, "576", None])
def test_paper_ranks_refuses(n_tokens):
    with pytest.raises(ParameterError, match="^n_tokens: got .*at least 1"):
        paper_ranks(n_tokens)


def test_evenly_spaced_gives_the_papers_64_positions():
    lines = [1, 4, 7, 10, 13, 16, 19, 22]
    assert evenly_spaced(24, 24) == [24 * row + column for row in lines for column in lines]


def test_evenly_spaced_on_a_full_grid_is_every_position():
    assert evenly_spaced(8, 8) == list(range(64))
    assert evenly_spaced(3, 9, n_side=3) == [1, 4, 7, 10, 13, 16, 19, 22, 25]


@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_evenly_spaced_is_ascending_inside_and_regular(height, width, data):
    n_side = data.draw(st.integers(1, min(height, width)))
    positions = evenly_spaced(height, width, n_side)
    assert len(positions) == n_side**2
    assert positions == sorted(set(positions))
    assert 0 <= positions[0]
    assert positions[-1] < height * width
    rows = np.unique([position // width for position in positions])
    assert np.ptp(np.diff(rows)) <= 1 if n_side > 1 else True
    assert abs(rows[0] - (height - 1 - rows[-1])) <= 1


@pytest.mark.parametrize(("height", "width", "parameter"), [(7, 24, "height"), (24, 7, "width")])
def test_evenly_spaced_refuses_a_small_grid(height, width, parameter):
    with pytest.raises(ParameterError, match=f"^{parameter}: got 7; accepted: an integer at least 8"):
        evenly_spaced(height, width)


def test_pooling_an_even_side_is_the_mean_of_blocks():
    features = torch.arange(16.0).view(1, 16, 1)
    expected = torch.tensor([2.5, 4.5, 10.5, 12.5]).view(1, 4, 1)
    torch.testing.assert_close(pool_frames(features, (4, 4)), expected)
    torch.testing.assert_close(pool_frames(features, (4, 4), "average"), expected)
    torch.testing.assert_close(
        pool_frames(features, (4, 4), "max"), torch.tensor([5.0, 7.0, 13.0, 15.0]).view(1, 4, 1)
    )


@pytest.mark.parametrize(
    ("mode", "n_pooled"), [("bilinear", 14 * 14), ("average", 13 * 13), ("max", 13 * 13)]
)
def test_pooling_an_odd_side_rounds_by_mode(mode, n_pooled):
    features = torch.full((2, 27 * 27, 3), 0.25, dtype=torch.float16)
    pooled = pool_frames(features, (27, 27), mode)
    assert pooled.dtype == torch.float16
    torch.testing.assert_close(pooled, torch.full((2, n_pooled, 3), 0.25, dtype=torch.float16))


def test_pooling_treats_every_frame_alone():
    features = torch.randn(3, 20, 4, generator=torch.Generator().manual_seed(0))
    alone = torch.cat([pool_frames(frame[None], (4, 5)) for frame in features])
    torch.testing.assert_close(pool_frames(features, (4, 5)), alone)


@pytest.mark.parametrize(
    ("features", "grid", "mode", "parameter"),
    [
        (torch.zeros(1, 16, 2), (4, 4), "median", "mode"),
        (torch.zeros(16, 2), (4, 4), "bilinear", "features"),
        (torch.full((1, 16, 2), float("inf")), (4, 4), "bilinear", "features"),
        (torch.zeros(1, 16, 2), (4, 5), "bilinear", "grid"),
        (torch.zeros(1, 16, 2), 4, "bilinear", "grid"),
        (torch.zeros(1, 16, 2), (16, 1), "max", "grid width"),
    ],
)
def test_pooling_refuses(features, grid, mode, parameter):
    with pytest.raises(ParameterError, match=f"^{parameter}: got"):
        pool_frames(features, grid, mode)
