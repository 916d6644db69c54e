"""Check recipes of codebooks that differ in one choice, and what their codebooks are said to know."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from rcblib.codebook.build import build_codebook_by_image
from rcblib.codebook.clustered import ProbedImages
from rcblib.codebook.codebook import Codebook
from rcblib.codebook.criterion import CodebookCriterion
from rcblib.codebook.pooling import ProbedImage
from rcblib.reading.ablations import (
    PROTOTYPES,
    TOKENS_INSTEAD,
    CodebookRecipe,
    _similarities,
    _threshold,
    drawn_books,
    judge_codebooks,
    make_all,
    make_codebook,
    variants,
)
from rcblib.records import CodebookError, ParameterError
from rcblib.tensors.scoring import redundancy_scores

WIDTH, N_EACH, N_IMAGES = 16, 24, 16


@pytest.fixture(scope="module")
def world():
    """Images of 24 tokens: 8 of a background that recurs, and others of their own, which say much and matter."""
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(WIDTH, generator=generator)
    tokens, parts = {}, []
    rng = np.random.default_rng(0)
    for image_id in range(N_IMAGES):
        rows = torch.randn(N_EACH, WIDTH, generator=generator)
        rows[:8] = shared + 0.1 * rows[:8]
        tokens[image_id] = rows
        is_background = np.arange(N_EACH) < 8
        influence = np.where(is_background, 0.0, 1.0) + 0.01 * rng.random(N_EACH)
        parts.append(
            pd.DataFrame(
                {
                    "image_id": image_id,
                    "view": 0,
                    "position": range(N_EACH),
                    "token": range(N_EACH),
                    "top1_probability": np.where(is_background, 0.1, 0.8) + 0.01 * rng.random(N_EACH),
                    "region_divergence": influence,
                    "global_divergence": influence,
                    "region_divergence_textbook": influence[::-1],
                    "global_divergence_textbook": influence[::-1],
                    "object_coverage": 1.0 - is_background,
                    "swap_change": influence,
                    "background": "sky" if image_id % 2 else "grass",
                    "object_share": np.nan,
                }
            )
        )
    return pd.concat(parts, ignore_index=True), tokens


CRITERION = CodebookCriterion(n_prototype_clusters=2, min_images=4, n_clusters=6, cluster_size_max=16)


def test_each_variant_differs_from_the_reference_in_one_choice():
    reference = CodebookRecipe(CRITERION)
    listed = variants(reference, 40, ["sky", "grass", "sky"])
    assert len({(v.choice, v.value) for v in listed}) == len(listed)
    by_choice = pd.DataFrame({"choice": [v.choice for v in listed], "same": [v.is_reference for v in listed]})
    assert by_choice.groupby("choice")["same"].sum().drop("backgrounds of training images").le(1).all()
    found = {(v.choice, v.value): v.recipe for v in listed}
    assert found["weight of the global divergence", "64"].criterion.k_global == 64
    assert found["neighbours in DPC-KNN", "10"].criterion.n_neighbours == 10
    few = found["training images", "4"]
    assert few.n_images == 4 and few.criterion.min_images == 0
    assert found["backgrounds of training images", "sky"].backgrounds == ("sky",)
    assert found["form of the divergence", "textbook"].form == "textbook"
    with pytest.raises(ParameterError, match="form: got 'other'"):
        CodebookRecipe(CRITERION, form="other")


def test_a_recipe_keeps_what_recurs_and_says_little(world):
    probed, tokens = world
    images = ProbedImages(probed, tokens)
    book = make_codebook(CodebookRecipe(CRITERION, 1 / 3, 1 / 3), images)
    kept = {(i, p) for i, p in zip(book.image_ids, book.positions, strict=True)}
    assert len(kept) > 60 and all(position < 8 for _, position in kept)
    criterion = book.metadata["criterion"]
    assert 0.1 < criterion["tau_p"] < 0.8 and 0.1 < criterion["tau_jsd"] < 17
    few = make_codebook(CodebookRecipe(CRITERION, 1 / 3, 1 / 3, n_images=8), images)
    assert set(few.image_ids) <= set(range(8))
    sky = {i: "sky" if i % 2 else "grass" for i in range(N_IMAGES)}
    odd = make_codebook(CodebookRecipe(CRITERION, 1 / 3, 1 / 3, backgrounds=("sky",)), images, sky)
    assert {i % 2 for i in odd.image_ids} == {1}
    with pytest.raises(ParameterError, match="recipe: got 99"):
        make_codebook(CodebookRecipe(CRITERION, n_images=99), images)


def twice_seen(probed, tokens):
    """Give every image a second view, of copies of every third token of the first."""
    again = probed[probed["position"] % 3 == 0].assign(view=1, token=lambda rows: rows["token"] + N_EACH)
    both = pd.concat([probed, again]).sort_values(["image_id", "view", "position"], ignore_index=True)
    seen = {i: torch.cat([own, torch.zeros_like(own)]) for i, own in tokens.items()}
    for image_id, position in zip(again["image_id"], again["position"], strict=True):
        seen[image_id][N_EACH + position] = tokens[image_id][position]
    return both, seen


@pytest.mark.parametrize("n_views", [1, 2])
def test_codebooks_of_images_clustered_once_are_those_of_each_recipe_alone(world, n_views):
    probed, tokens = world if n_views == 1 else twice_seen(*world)
    criterion = replace(CRITERION, min_images=2)
    sky = {i: "sky" if i % 2 else "grass" for i in range(N_IMAGES)}
    listed = variants(CodebookRecipe(criterion, 0.5, 0.5), N_IMAGES, ["sky", "grass"])
    images = ProbedImages(probed, tokens, seed=3)
    n_books = 0
    books = make_all(listed, images, sky)
    for recipe, made in {each.recipe: books[each.choice, each.value] for each in listed}.items():
        ids = [i for i in range(N_IMAGES) if recipe.backgrounds is None or sky[i] in recipe.backgrounds]
        rows = probed[probed["image_id"].isin(ids[: recipe.n_images])]
        if recipe.form == "textbook":
            names = ("region_divergence", "global_divergence")
            rows = rows.assign(**{name: rows[f"{name}_textbook"] for name in names})
        influence = recipe.criterion.influence(rows["region_divergence"], rows["global_divergence"])
        limits = {
            "tau_p": _threshold(rows["top1_probability"], recipe.tau_p_quantile, most=1.0),
            "tau_jsd": max(_threshold(influence, recipe.tau_jsd_quantile), 1e-12),
        }
        one_by_one = (ProbedImage.from_table(own, tokens) for _, own in rows.groupby("image_id", sort=False))
        noise = torch.Generator().manual_seed(3)
        try:
            alone = build_codebook_by_image(one_by_one, replace(recipe.criterion, **limits), noise)
        except (CodebookError, ParameterError) as error:
            assert made == str(error)
            continue
        assert torch.equal(made.prototypes, alone.prototypes)
        assert (made.image_ids, made.positions) == (alone.image_ids, alone.positions)
        facts = ("criterion", "selection", "clusters", "views")
        assert all(made.metadata.get(name) == alone.metadata.get(name) for name in facts)
        n_books += 1
    assert n_books > 20


def test_tokens_that_are_not_finite_are_refused_before_they_are_clustered(world):
    probed, tokens = world
    broken = {image_id: rows.clone() for image_id, rows in tokens.items()}
    broken[0][1, 2] = torch.nan
    with pytest.raises(ParameterError, match="tokens: .*image 0.; accepted: .*finite"):
        make_codebook(CodebookRecipe(CRITERION, 1 / 3, 1 / 3), ProbedImages(probed, broken))


def test_similarities_taken_once_are_those_of_each_codebook(world):
    probed, tokens = world
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(9, WIDTH, generator=generator)
    chosen = {"all": slice(None), "some": [2, 4, 4], "one": [8], "others": [1, 2, 3]}
    books = {("made", name): Codebook(rows[at]) for name, at in chosen.items()}
    found = _similarities(books, probed, tokens)
    for key, book in books.items():
        for image_id, at in probed.groupby("image_id").indices.items():
            own = tokens[image_id][probed["token"].to_numpy()[at]]
            known = -redundancy_scores(own, book.unit_prototypes).numpy()
            np.testing.assert_allclose(found[key][at], known, atol=1e-6)


def test_codebooks_are_judged_on_other_images_and_against_a_reference(world):
    probed, tokens = world
    train, test = probed[probed["image_id"] < 10], probed[probed["image_id"] >= 10].reset_index(drop=True)
    reference = CodebookRecipe(CRITERION, 1 / 3, 1 / 3)
    listed = variants(reference, 10)
    books = make_all(listed, ProbedImages(train, tokens))
    key = ("clustering of each image", "on")
    assert isinstance(books[key], Codebook)
    books["transfer", "random"] = Codebook(torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(3)))
    books["transfer", "none"] = "nothing recurs"
    table = judge_codebooks(books, test, tokens, key, generator=np.random.default_rng(0))
    whole = table[table["truth"] == "coverage"].set_index(["choice", "variant"])
    assert set(table["truth"]) == {"coverage", "change"}
    assert whole.loc[key, "value"] == 1 and whole.loc[key, "difference"] == 0
    assert whole.loc[("transfer", "random"), "difference_high"] < 0
    assert whole.loc[("transfer", "none"), "reason"] == "nothing recurs"
    assert whole.loc[("form of the divergence", "textbook"), "n_prototypes"] != whole.loc[key, "n_prototypes"]
    with pytest.raises(ParameterError, match="reference"):
        judge_codebooks(books, test, tokens, ("transfer", "none"), generator=np.random.default_rng(0))


def test_tokens_that_no_signal_chose_are_the_controls_of_a_recipe(world):
    probed, tokens = world
    train, test = probed[probed["image_id"] < 10], probed[probed["image_id"] >= 10].reset_index(drop=True)
    key = ("clustering of each image", "on")
    book = make_codebook(CodebookRecipe(CRITERION, 1 / 3, 1 / 3), ProbedImages(train, tokens))
    drawn = drawn_books(book, train, tokens, generator=np.random.default_rng(0))
    assert [value for choice, value in drawn if choice == PROTOTYPES] == [
        str(n) for n in (3, 10, 30, 100, 300) if n < len(book)
    ]
    ten = drawn[PROTOTYPES, "10"].prototypes
    assert len(ten) == 10 and all((row == book.prototypes).all(1).any() for row in ten)
    by_masks = {name: drawn[TOKENS_INSTEAD, name] for name in ("any", "without an object", "on objects")}
    assert {len(each) for each in by_masks.values()} == {len(book)}
    table = judge_codebooks({key: book} | drawn, test, tokens, key, generator=np.random.default_rng(0))
    areas = table[table["truth"] == "coverage"].set_index(["choice", "variant"])["value"]
    assert areas[PROTOTYPES, "3"] == areas[TOKENS_INSTEAD, "without an object"] == 1
    assert areas[TOKENS_INSTEAD, "on objects"] < 0.9 < areas[TOKENS_INSTEAD, "any"]
    blind = drawn_books(
        book, train.drop(columns="object_coverage"), tokens, generator=np.random.default_rng(0)
    )
    assert [value for choice, value in blind if choice == TOKENS_INSTEAD] == ["any"]
