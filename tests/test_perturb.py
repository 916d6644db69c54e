import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rcblib.probe.perturbation import global_inputs, region_inputs, replace_tokens, single_token_inputs
from rcblib.records import ParameterError
from rcblib.tensors.geometry import window

PAD = torch.tensor([-1.0, -2.0])


def numbered(n_tokens):
    """Return tokens whose rows name their position."""
    return torch.arange(n_tokens).float()[:, None].expand(-1, 2).clone()


def test_replace_tokens_copies():
    tokens = numbered(4)
    replaced = replace_tokens(tokens, [1, 3], PAD)
    assert replaced.tolist() == [[0, 0], [-1, -2], [2, 2], [-1, -2]]
    assert torch.equal(tokens, numbered(4))


def test_replace_tokens_of_nothing_is_a_new_copy():
    tokens = numbered(4)
    replaced = replace_tokens(tokens, [], PAD)
    assert torch.equal(replaced, tokens)
    assert replaced.data_ptr() != tokens.data_ptr()


def test_replace_tokens_keeps_dtype_and_leading_shape():
    tokens = numbered(4).half().expand(3, 4, 2)
    replaced = replace_tokens(tokens, torch.tensor([0]), PAD[None])
    assert replaced.dtype == torch.float16
    assert replaced.shape == (3, 4, 2)
    assert (replaced[:, 0] == PAD).all()
    assert (replaced[:, 1:] == tokens[:, 1:]).all()


def test_single_token_inputs():
    inputs = single_token_inputs(numbered(5), [4, 0, 4])
    assert inputs[..., 0].tolist() == [[4], [0], [4]]
    assert inputs.shape == (3, 1, 2)


def test_region_inputs_at_a_corner_and_inside():
    intact, ablated = region_inputs(numbered(16), (4, 4), [0, 10], PAD)
    assert intact[..., 0].tolist() == [[0, 1, 2, 4, 5, 6, 8, 9, 10], [5, 6, 7, 9, 10, 11, 13, 14, 15]]
    assert ablated[..., 0].tolist() == [[-1, 1, 2, 4, 5, 6, 8, 9, 10], [5, 6, 7, 9, -1, 11, 13, 14, 15]]
    assert ablated[0, 0].tolist() == PAD.tolist()


def test_global_inputs_replace_the_whole_window():
    tokens = numbered(16)
    ablated = global_inputs(tokens, (4, 4), [10], PAD)
    assert ablated[0, :, 0].tolist() == [0, 1, 2, 3, 4, -1, -1, -1, 8, -1, -1, -1, 12, -1, -1, -1]
    assert torch.equal(tokens, numbered(16))


def test_no_positions_give_empty_batches():
    intact, ablated = region_inputs(numbered(12), (3, 4), [], PAD)
    assert intact.shape == ablated.shape == (0, 9, 2)
    assert global_inputs(numbered(12), (3, 4), [], PAD).shape == (0, 12, 2)
    assert single_token_inputs(numbered(12), []).shape == (0, 1, 2)


@given(st.integers(3, 9), st.integers(3, 9), st.data())
def test_a_batch_equals_its_positions_one_by_one(height, width, data):
    tokens = numbered(height * width)
    position = st.integers(0, height * width - 1)
    positions = data.draw(st.lists(position, min_size=1, max_size=6))
    intact, ablated = region_inputs(tokens, (height, width), positions, PAD)
    whole = global_inputs(tokens, (height, width), positions, PAD)
    for i, target in enumerate(positions):
        cells = window(target, height, width)
        assert torch.equal(intact[i], tokens[cells])
        assert torch.equal(ablated[i], replace_tokens(tokens, [target], PAD)[cells])
        assert torch.equal(whole[i], replace_tokens(tokens, cells, PAD))


@pytest.mark.parametrize("positions", [[12], [-1], [0.5], 3, torch.tensor([True] * 12)])
def test_positions_outside_are_refused(positions):
    tokens, grid = numbered(12), (3, 4)
    for build in (
        lambda: replace_tokens(tokens, positions, PAD),
        lambda: single_token_inputs(tokens, positions),
        lambda: region_inputs(tokens, grid, positions, PAD),
        lambda: global_inputs(tokens, grid, positions, PAD),
    ):
        with pytest.raises(ParameterError, match="^positions: got"):
            build()


@pytest.mark.parametrize(
    "replacement",
    [torch.zeros(3), torch.zeros(2, 2), torch.zeros(2, 1), torch.tensor([0.0, float("nan")]), [0.0, 0.0]],
)
def test_bad_replacements_are_refused(replacement):
    tokens, grid = numbered(12), (3, 4)
    for build in (
        lambda: replace_tokens(tokens, [0], replacement),
        lambda: region_inputs(tokens, grid, [0], replacement),
        lambda: global_inputs(tokens, grid, [0], replacement),
    ):
        with pytest.raises(ParameterError, match="^replacement: got"):
            build()


@pytest.mark.parametrize(
    "tokens", [torch.zeros(2), torch.zeros(0, 2), torch.full((12, 2), float("nan")), None]
)
def test_bad_tokens_are_refused(tokens):
    for build in (
        lambda: replace_tokens(tokens, [0], PAD),
        lambda: single_token_inputs(tokens, [0]),
        lambda: region_inputs(tokens, (3, 4), [0], PAD),
        lambda: global_inputs(tokens, (3, 4), [0], PAD),
    ):
        with pytest.raises(ParameterError, match="^tokens: got"):
            build()


@pytest.mark.parametrize(
    ("grid", "parameter"), [((4, 4), "grid"), ((2, 6), "grid height"), ((6, 2), "grid width"), (12, "grid")]
)
def test_grids_that_do_not_fit_are_refused(grid, parameter):
    with pytest.raises(ParameterError, match=f"^{parameter}: got"):
        region_inputs(numbered(12), grid, [0], PAD)
    with pytest.raises(ParameterError, match=f"^{parameter}: got"):
        global_inputs(numbered(12), grid, [0], PAD)
