"""Selection by the criterion on tokens whose prototypes are known."""

import dataclasses

import numpy as np
import pytest
import torch
from codebook_examples import DIMENSION, SMALL, World, recurring_world
from hypothesis import given
from hypothesis import strategies as st
from messages import one_line

from rcblib.codebook.build import build_codebook
from rcblib.codebook.criterion import PRESETS, CodebookCriterion
from rcblib.records import CodebookError, ParameterError


def test_keeps_small_recurring_clusters_in_order():
    world = recurring_world()
    codebook = world.build(SMALL, positions=[row % 8 for row in range(48)], family="llava")
    third = [row for image in range(2, 6) for row in world.rows(image, 3)]
    # Stage 2 meets group 0 first (row 2), group 2 is in two images only, group 3 in four.
    expected = world.rows(group=0) + third
    selection = codebook.metadata["selection"]
    assert selection["rows"] == expected
    assert torch.equal(codebook.prototypes, world.tokens[expected])
    assert codebook.image_ids == tuple(world.image_ids[row] for row in expected)
    assert codebook.positions == tuple(row % 8 for row in expected)
    assert codebook.family == "llava"
    assert codebook.metadata["clusters"] == [0] * 12 + [1] * 4
    counts = {key: value for key, value in selection.items() if key != "rows"}
    assert counts == {
        "n_images": 6,
        "n_tokens": 48,
        "n_low_information": 48,
        "n_after_stage_1": 18,
        "n_clusters_kept": 2,
        "images_per_cluster": [6, 4],
    }
    assert codebook.metadata["criterion"] == dataclasses.asdict(SMALL)


def test_a_cluster_of_exactly_min_images_is_dropped():
    world = recurring_world()
    kept = {n: set(world.build(dataclasses.replace(SMALL, min_images=n)).image_ids) for n in (1, 3, 4)}
    n_prototypes = {n: len(world.build(dataclasses.replace(SMALL, min_images=n))) for n in (1, 3, 4)}
    assert n_prototypes == {1: 18, 3: 16, 4: 12}
    assert kept[4] == set(range(6))


def test_members_that_are_not_low_information_count_towards_the_size():
    world = recurring_world()
    criterion = dataclasses.replace(SMALL, cluster_size_max=1, n_prototype_clusters=2)
    # One token of group 0 in each image is informative: its pair still is a cluster of two, hence too large.
    world.top1[[world.rows(image, 0)[0] for image in range(6)]] = 0.9
    codebook = world.build(criterion)
    assert {world.groups[row] for row in codebook.metadata["selection"]["rows"]} == {3}
    # With room for two, its low-information half contributes.
    codebook = world.build(SMALL)
    low_half = [world.rows(image, 0)[1] for image in range(6)]
    assert [row for row in codebook.metadata["selection"]["rows"] if world.groups[row] == 0] == low_half


def test_informative_tokens_are_never_prototypes():
    world = recurring_world()
    world.global_[world.rows(group=0)] = 0.5
    assert {world.groups[row] for row in build_rows(world)} == {3}


def build_rows(world):
    """Rows that SMALL keeps, with as many prototype clusters as there are groups left."""
    return world.build(dataclasses.replace(SMALL, n_prototype_clusters=2)).metadata["selection"]["rows"]


def test_clusters_of_an_image_come_in_order_of_first_appearance():
    # Groups alternate inside each image; clusters, not positions, decide the order of what stage 1 keeps.
    world = World({image: [4, 5, 4, 5, 3, 3] for image in range(3)})
    criterion = CodebookCriterion(n_clusters=3, cluster_size_max=2, n_prototype_clusters=1, min_images=2)
    assert world.build(criterion).metadata["selection"]["rows"] == [
        6 * image + offset for image in range(3) for offset in (0, 2, 1, 3, 4, 5)
    ]


def test_rows_of_an_image_need_not_be_adjacent():
    together, shuffled = recurring_world(), recurring_world(shuffle=True, seed=4)
    counts = [codebook.metadata["selection"] for codebook in (together.build(SMALL), shuffled.build(SMALL))]
    for key in ("n_images", "n_after_stage_1", "n_clusters_kept"):
        assert counts[0][key] == counts[1][key]
    assert sorted(counts[0]["images_per_cluster"]) == sorted(counts[1]["images_per_cluster"])


def test_signals_may_be_tensors_and_tokens_half_precision():
    world = recurring_world()
    half = build_codebook(
        world.tokens.half().requires_grad_(),
        torch.tensor(world.image_ids),
        torch.tensor(world.top1),
        torch.tensor(world.region, dtype=torch.float32),
        world.global_.tolist(),
        SMALL,
    )
    assert half.prototypes.dtype == torch.float16 and not half.prototypes.requires_grad
    assert half.metadata["selection"]["rows"] == world.build(SMALL).metadata["selection"]["rows"]
    assert all(type(image_id) is int for image_id in half.image_ids)


def test_no_generator_means_no_randomness():
    world = recurring_world()
    world.tokens = torch.randn(48, DIMENSION, generator=torch.Generator().manual_seed(1))
    criterion = dataclasses.replace(SMALL, cluster_size_max=8, min_images=0)
    first = world.build(criterion)
    torch.manual_seed(99)
    assert torch.equal(first.prototypes, world.build(criterion).prototypes)
    seeded = [world.build(criterion, generator=torch.Generator().manual_seed(7)) for _ in range(2)]
    assert torch.equal(seeded[0].prototypes, seeded[1].prototypes)


@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(0, 3))
def test_every_prototype_meets_the_criterion(seed, cluster_size_max, min_images):
    generator = np.random.default_rng(seed)
    tokens = torch.tensor(generator.normal(size=(60, 3)))
    image_ids = np.repeat(np.arange(6), 10)
    top1 = generator.uniform(0, 0.3, 60)
    region, global_ = generator.uniform(0, 2e-3, 60), generator.uniform(0, 2e-4, 60)
    criterion = CodebookCriterion(
        n_clusters=4, cluster_size_max=cluster_size_max, n_prototype_clusters=3, min_images=min_images
    )
    try:
        codebook = build_codebook(tokens, image_ids, top1, region, global_, criterion)
    except CodebookError:
        return
    rows = codebook.metadata["selection"]["rows"]
    assert len(set(rows)) == len(rows)
    assert torch.equal(codebook.prototypes, tokens[rows])
    assert (top1[rows] < 0.15).all() and (region[rows] + 16 * global_[rows] < 0.002).all()
    clusters = np.array(codebook.metadata["clusters"])
    for number in np.unique(clusters):
        images = image_ids[np.array(rows)[clusters == number]]
        assert len(set(images)) > min_images
        assert (np.diff(images) >= 0).all()


def test_too_few_tokens_after_stage_1_states_the_counts():
    world = recurring_world()
    world.top1[:] = 0.5
    world.top1[world.rows(group=3)] = 0.01
    with pytest.raises(CodebookError) as error:
        world.build(SMALL)
    text = one_line(error)
    assert "48 tokens of 6 images, 4 low-information" in text
    assert "4 of them in clusters of at most 3" in text and "3 prototype clusters need 5" in text


def test_no_recurring_cluster_states_the_widest():
    world = recurring_world()
    world.top1[world.rows(group=0)] = 0.5
    with pytest.raises(CodebookError) as error:
        world.build(dataclasses.replace(SMALL, n_prototype_clusters=2, min_images=5))
    assert "none draws from more than 5 images, the widest from 4" in one_line(error)


def test_preset_on_few_images_is_refused_before_work():
    world = recurring_world()
    with pytest.raises(ParameterError) as error:
        world.build(PRESETS["llava-1.5-7b"])
    assert (
        one_line(error) == "min_images: got 64; accepted: fewer than the 6 images that the tokens come from"
    )


def test_image_with_too_few_tokens():
    world = World({image: [0] * (8 if image else 5) for image in range(6)})
    with pytest.raises(ParameterError) as error:
        world.build(dataclasses.replace(SMALL, n_clusters=7))
    assert one_line(error).startswith("tokens: got '5 of image 0'; accepted: at least 7 of every image")
    with pytest.raises(ParameterError, match="at least 5 of every image"):
        World({image: [0] * 4 for image in range(6)}).build(SMALL)


@pytest.mark.parametrize(
    ("change", "beginning"),
    [
        (lambda w: w.tokens.__setitem__((3, 1), float("nan")), "tokens: got '1 rows with NaN"),
        (lambda w: setattr(w, "tokens", w.tokens[None]), "tokens: got (1, 48, 6)"),
        (lambda w: setattr(w, "tokens", w.tokens.long()), "tokens: got "),
        (lambda w: setattr(w, "tokens", w.tokens.numpy()), "tokens: got "),
        (lambda w: setattr(w, "image_ids", w.image_ids[:-1]), "image_ids: got '47 values'"),
        (lambda w: setattr(w, "top1", w.top1[:-1]), "top1: got '47 values'"),
        (lambda w: setattr(w, "region", w.region[:, None]), "region: got '48 values'"),
        (lambda w: w.global_.__setitem__(0, np.nan), "global_: got 'NaN"),
        (lambda w: w.top1.__setitem__(0, 1.5), "top1: got 1.5"),
        (lambda w: w.top1.__setitem__(0, -0.1), "top1: got -0.1"),
    ],
)
def test_wrong_inputs_of_build(change, beginning):
    world = recurring_world()
    change(world)
    with pytest.raises(ParameterError) as error:
        world.build(SMALL)
    assert one_line(error).startswith(beginning)


def test_criterion_of_another_type():
    with pytest.raises(ParameterError, match="a CodebookCriterion"):
        recurring_world().build({"tau_p": 0.1})


def test_grids_of_one_image_are_clustered_one_by_one():
    # Two grids of the same eight tokens each: clustered together, every cluster has two members; apart, one.
    grid = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    tokens = torch.cat([grid, grid + 1e-4]).repeat(3, 1)
    image_ids, views = np.repeat([0, 1, 2], 16), np.tile(np.repeat([0, 1], 8), 3)
    zeros = np.zeros(len(tokens))
    criterion = CodebookCriterion(n_clusters=8, cluster_size_max=1, n_prototype_clusters=8, min_images=2)
    with pytest.raises(CodebookError, match="0 of them in clusters of at most 1"):
        build_codebook(tokens, image_ids, zeros, zeros, zeros, criterion)
    codebook = build_codebook(tokens, image_ids, zeros, zeros, zeros, criterion, views=views)
    selection = codebook.metadata["selection"]
    assert (selection["n_after_stage_1"], selection["n_images"]) == (48, 3)
    assert codebook.metadata["views"] == views[selection["rows"]].tolist()
    with pytest.raises(ParameterError, match="views: got '3 values'; accepted: one for each"):
        build_codebook(tokens, image_ids, zeros, zeros, zeros, criterion, views=[0, 1, 2])
    few = views.copy()
    few[0] = 2  # one token stands alone
    with pytest.raises(ParameterError, match="tokens: got '1 of view 2 of image 0'"):
        build_codebook(tokens, image_ids, zeros, zeros, zeros, criterion, views=few)


def test_a_token_that_two_views_of_an_image_share_counts_once():
    # An image that fills one tile is read twice: as a whole and as that tile. Equal tokens of one view, of two images
    # or of no view are several tokens.
    grid = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    grid[1] = grid[0]
    tokens = torch.cat([grid, grid]).repeat(3, 1)
    image_ids, views = np.repeat([0, 1, 2], 16), np.tile(np.repeat([0, 1], 8), 3)
    zeros = np.zeros(len(tokens))
    criterion = CodebookCriterion(n_clusters=5, cluster_size_max=16, n_prototype_clusters=5, min_images=2)
    codebook = build_codebook(tokens, image_ids, zeros, zeros, zeros, criterion, views=views)
    assert codebook.metadata["selection"]["n_after_stage_1"] == 3 * 8
    assert set(codebook.metadata["views"]) == {0}
    without = build_codebook(tokens, image_ids, zeros, zeros, zeros, criterion)
    assert without.metadata["selection"]["n_after_stage_1"] == len(tokens)
