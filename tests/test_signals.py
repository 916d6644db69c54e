"""Check what is derived from probe tables on tables whose answers are known."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from messages import one_line

from rcblib.reading.recognition import nearest_words, recognised, tabulate_nearest_words
from rcblib.reading.signals import (
    area_table,
    as_estimates,
    attention_columns,
    available,
    correlation_table,
    low_share,
    lower_half,
    most_influential,
    on_grid,
    side,
    window_mean,
    with_mean_attention,
    without_copies,
)
from rcblib.reading.statistics import Estimate
from rcblib.records import ParameterError, Sample, SceneObject, SequenceSample
from rcblib.tensors.geometry import window
from worlds.scenes.coco import encode_mask


def generator(seed=0):
    return np.random.default_rng(seed)


def table(n_images=3, grid=(4, 5), seed=0):
    """Make a probe table of all positions whose signals are drawn at random."""
    rng, n_tokens = generator(seed), grid[0] * grid[1]
    return pd.DataFrame(
        {
            "image_id": np.repeat(np.arange(n_images), n_tokens),
            "view": 0,
            "position": np.tile(np.arange(n_tokens), n_images),
            "signal": rng.normal(size=n_images * n_tokens),
            "other": rng.normal(size=n_images * n_tokens),
        }
    )


def thing(category, color=None):
    return SceneObject(category, (0, 0, 1, 1), {}, 1.0, color)


def sample(image_id, *objects, known=True):
    return Sample(image_id, lambda: None, 8, 8, objects=objects if known else None)


def said(*rows):
    return pd.DataFrame(rows, columns=["image_id", "top1_word", "object_category"])


@pytest.mark.parametrize(
    ("word", "category", "expected"),
    [
        ("star", "star", True),
        ("Star", "star", True),
        ("stars", "star", True),
        ("red", "star", True),
        ("blue", "star", False),
        ("star", None, False),
        ("star", float("nan"), False),
        ("teddy", "teddy bear", True),
        ("bear", "teddy bear", True),
        ("eleph", "elephant", True),
        ("el", "elephant", False),
        ("car", "carrot", False),
        ("car", "car", True),
        ("1", "1", True),
        ("", "star", False),
    ],
)
def test_a_token_is_recognised_by_the_category_or_colour_of_what_lies_beneath(word, category, expected):
    things = (
        thing("star", "red"),
        thing("teddy bear"),
        thing("elephant"),
        thing("carrot"),
        thing("car"),
        thing("1"),
    )
    assert recognised(said((7, word, category)), [sample(7, *things)]).tolist() == [expected]


def test_the_colour_of_another_object_or_image_does_not_count():
    samples = [sample(1, thing("star", "red"), thing("ring", "blue")), sample(2, thing("star", "green"))]
    frame = said((1, "blue", "star"), (1, "green", "star"), (2, "green", "star"), (2, "ring", "star"))
    assert recognised(frame, samples).tolist() == [False, False, True, False]


def test_in_a_group_only_objects_of_the_same_picture_count():
    group = SequenceSample(
        1, lambda: (), "images", ((8, 8), (8, 8)), ((thing("star", "red"),), (thing("star", "blue"),))
    )
    frame = said((1, "red", "star"), (1, "red", "star"), (1, "star", "star")).assign(picture=[0, 1, 1])
    assert recognised(frame, [group]).tolist() == [True, False, True]
    mixed = pd.concat([frame, said((2, "green", "ring"))], ignore_index=True)
    assert recognised(mixed, [group, sample(2, thing("ring", "green"))]).tolist() == [True, False, True, True]
    with pytest.raises(ParameterError, match="rows of image 1 without a picture"):
        recognised(frame.drop(columns="picture"), [group])


@pytest.mark.parametrize("samples", [[], [sample(2, thing("star"))], [sample(1, known=False)]])
def test_recognition_needs_the_objects_of_every_image(samples):
    with pytest.raises(ParameterError, match="no objects of image 1"):
        recognised(said((1, "star", "star")), samples)


def test_the_first_piece_of_a_name_counts_where_a_name_is_written_in_pieces():
    frame = said((1, "st", "star"), (1, "st", "ring"), (1, "st", None), (1, "star", "star"))
    frame["top1_id"] = [5, 5, 5, 6]
    samples = [sample(1, thing("star"), thing("ring"))]
    assert recognised(frame, samples).tolist() == [False, False, False, True]
    assert recognised(frame, samples, {"star": {5}, "ring": {7}}).tolist() == [True, False, False, True]


def test_the_lower_half_is_taken_inside_each_image():
    frame = pd.DataFrame({"image_id": [1, 1, 1, 1, 2, 2, 2], "signal": [0.4, 0.1, 0.3, 0.2, 10, 30, 20]})
    assert lower_half(frame, "signal").tolist() == [False, True, False, True, True, False, False]


def test_the_lower_half_by_a_cls_is_taken_inside_each_view():
    frame = pd.DataFrame({"image_id": 1, "view": [0, 0, 1, 1], "cls_similarity": [0.9, 0.8, 0.2, 0.1]})
    assert lower_half(frame, "cls_similarity").tolist() == [False, True, False, True]
    assert lower_half(frame.rename(columns={"cls_similarity": "signal"}), "signal").tolist() == [
        False,
        False,
        True,
        True,
    ]


def test_equal_values_are_split_by_position():
    frame = pd.DataFrame({"image_id": 0, "signal": np.zeros(5)})
    assert lower_half(frame, "signal").tolist() == [False, False, False, True, True]
    assert most_influential(frame, "signal", 0.4).tolist() == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("n_tokens", "share", "expected"), [(144, 0.1, 14), (576, 0.1, 58), (3, 0.1, 1), (4, 1.0, 4)]
)
def test_the_most_influential_share_of_each_image(n_tokens, share, expected):
    frame = table(n_images=2, grid=(1, n_tokens))
    chosen = most_influential(frame, "signal", share)
    for _, rows in frame.groupby("image_id"):
        largest = rows["signal"].nlargest(expected).index
        assert sorted(rows.index[chosen[rows.index]]) == sorted(largest)


@pytest.mark.parametrize("share", [0, -0.1, 1.2])
def test_shares_out_of_range_are_refused(share):
    with pytest.raises(ParameterError, match="share"):
        most_influential(table(), "signal", share)


def test_the_low_share_of_a_perfect_signal_is_0_of_its_opposite_1_and_of_an_unrelated_one_a_half():
    frame = table(n_images=200)
    chosen = most_influential(frame, "signal", 0.2)
    frame["opposite"] = -frame["signal"]
    assert low_share(frame, chosen, "signal", generator=generator()).value == 0
    assert low_share(frame, chosen, "opposite", generator=generator()).value == 1
    unrelated = low_share(frame, chosen, "other", generator=generator())
    assert unrelated.value == pytest.approx(0.5, abs=0.05)
    assert unrelated.low < 0.5 < unrelated.high
    assert (unrelated.n, unrelated.n_clusters) == (800, 200)


def test_nothing_chosen_has_no_low_share():
    frame = table()
    assert low_share(frame, frame["signal"] > np.inf, "signal", generator=generator()) is None


def test_attention_is_averaged_over_layers_in_their_numerical_order():
    layers = {f"attention_last_layer_{i}": [float(i), 2.0 * i] for i in (0, 10, 2)}
    frame = pd.DataFrame({**layers, "attention_question_layer_0": [5.0, 6.0]})
    assert attention_columns(frame) == [f"attention_last_layer_{i}" for i in (0, 2, 10)]
    mean = with_mean_attention(frame)
    assert mean["attention_last"].tolist() == [4.0, 8.0]
    assert mean["attention_question"].tolist() == [5.0, 6.0]
    assert "attention_last" not in with_mean_attention(table())
    with pytest.raises(ParameterError, match="rows"):
        attention_columns(frame, "first")


def test_only_signals_that_vary_are_available():
    frame = table().assign(constant=1.0, absent=np.nan)
    assert available(frame, ["signal", "constant", "absent", "other"]) == ["signal", "other"]


def test_signals_of_a_model_that_cannot_have_them_are_left_out():
    frame = table().assign(entropy=lambda rows: rows["signal"])
    assert available(frame, ["entropy", "cls_similarity", "attention_last", "object_coverage"]) == ["entropy"]


@pytest.mark.parametrize(
    ("missing", "measured"),
    [
        ("no_such", {}),
        ("top1_probability", {}),  # needs nothing, so every table has it
        ("cls_similarity", {"cls_rank": 1.0}),  # the rank says that there is a [CLS]
        ("attention_question", {"attention_last_layer_3": 1.0}),
    ],
)
def test_a_column_that_ought_to_be_there_is_missed_by_name(missing, measured):
    with pytest.raises(ParameterError, match=f"the column {missing} too"):
        available(table().assign(**measured), ["signal", missing])


@pytest.mark.parametrize("coefficient", ["spearman", "kendall"])
def test_correlations_are_averaged_inside_images(coefficient):
    frame = table(n_images=6)
    frame["same"] = frame["signal"] + 1000.0 * frame["image_id"]  # only differences between images are added
    frame["opposite"] = -(frame["signal"] ** 3)
    found = correlation_table(
        frame, [("signal", "same"), ("signal", "opposite")], generator=generator(), coefficient=coefficient
    )
    assert found["value"].tolist() == pytest.approx([1, -1])
    assert found["n_clusters"].tolist() == [6, 6]
    pooled = scipy.stats.spearmanr(frame["signal"], frame["same"]).statistic
    assert pooled < 0.5


def test_rows_without_a_value_are_left_out_of_their_pair_only():
    frame = table(n_images=2).assign(partial=lambda rows: rows["signal"])
    frame.loc[:4, "partial"] = np.nan
    found = correlation_table(frame, [("signal", "partial"), ("signal", "other")], generator=generator())
    assert found["n"].tolist() == [35, 40]


def test_correlating_a_column_that_is_missing_is_refused_before_any_work():
    frame = table(n_images=2)
    with pytest.raises(ParameterError, match="pairs: got 'no_such'; accepted: one of") as error:
        correlation_table(frame, [("signal", "other"), ("signal", "no_such")], generator=None)
    assert str(list(frame.columns)) in one_line(error)


def test_an_unknown_coefficient_is_refused():
    with pytest.raises(ParameterError, match="coefficient"):
        correlation_table(table(), [("signal", "other")], generator=generator(), coefficient="pearson")


def test_areas_of_a_perfect_a_reversed_and_an_unrelated_signal():
    frame = table(n_images=100)
    positive = frame["signal"] > 0
    frame["opposite"] = -frame["signal"]
    found = area_table(frame, ["signal", "opposite", "other"], positive, generator=generator())
    assert found["value"].tolist()[:2] == [1, 0]
    assert found["low"][2] < 0.5 < found["high"][2]


def test_areas_inside_strata_leave_out_what_differs_between_them():
    frame = table(n_images=20)
    group = frame["position"] % 2
    positive = (group == 1) ^ (frame["other"] > 1)  # depends on the group, and on nothing that "signal" knows
    frame["shifted"] = frame["signal"] + 10 * group
    between = area_table(frame, ["shifted"], positive, generator=generator())
    inside = area_table(frame, ["shifted"], positive, generator=generator(), strata=group)
    assert between["value"][0] > 0.8
    assert inside["low"][0] < 0.5 < inside["high"][0]


def test_rows_of_a_table_are_read_back_as_estimates():
    frame = table(n_images=4)
    found = correlation_table(frame, [("signal", "other"), ("other", "signal")], generator=generator())
    estimates = as_estimates(found, ["one", "two"])
    assert list(estimates) == ["one", "two"]
    assert estimates["one"].value == found["value"][0]
    assert estimates["one"].as_result()["interval"] == [found["low"][0], found["high"][0]]
    with pytest.raises(ParameterError, match="3 names"):
        as_estimates(found, "abc")


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.6, 0.8, "above"), (0.1, 0.4, "below"), (0.5, 0.8, "undecided"), (np.nan, np.nan, "undecided")],
)
def test_an_estimate_lies_on_a_side_only_with_its_whole_interval(low, high, expected):
    assert side(Estimate((low + high) / 2, low, high, 10, 5), 0.5) == expected


def test_window_means_are_those_of_the_shifted_windows():
    frame = table(n_images=2).sample(frac=1, random_state=0)
    means = window_mean(frame, "signal", (4, 5))
    for _, rows in frame.groupby("image_id"):
        values = rows.set_index("position")["signal"]
        for index, position in rows["position"].items():
            assert means[index] == pytest.approx(values[window(position, 4, 5)].mean())


def test_windows_follow_the_grid_of_each_view():
    parts = [table(n_images=1, grid=grid, seed=grid[1]) for grid in ((4, 5), (3, 4))]
    for view, (part, width) in enumerate(zip(parts, (5, 4), strict=True)):
        part["view"], part["row"], part["column"] = view, part["position"] // width, part["position"] % width
    means = window_mean(pd.concat(parts, ignore_index=True), "signal")
    np.testing.assert_allclose(means[:20], window_mean(parts[0], "signal", (4, 5)))
    np.testing.assert_allclose(means[20:], window_mean(parts[1], "signal", (3, 4)))
    thin = parts[0][parts[0]["row"] < 2]
    with pytest.raises(ParameterError, match="grid height: got 2"):
        window_mean(thin, "signal")


def test_window_means_need_every_position():
    with pytest.raises(ParameterError, match="19 positions of image 2"):
        window_mean(table().iloc[:-1], "signal", (4, 5))


def test_a_column_is_laid_out_on_the_grid():
    rows = pd.DataFrame(
        {"image_id": 0, "view": 0, "position": [3, 1], "value": [0.3, 0.1], "word": ["c", "a"]}
    )
    np.testing.assert_array_equal(on_grid(rows, "value", 4), [np.nan, 0.1, np.nan, 0.3])
    assert on_grid(rows, "word", 4).tolist() == ["", "a", "", "c"]
    with pytest.raises(ParameterError, match="2 views"):
        on_grid(table(n_images=2), "signal", 20)


def test_missing_signals_and_signals_with_nan_are_refused():
    frame = table().assign(absent=np.nan)
    for measure in (lower_half, most_influential):
        with pytest.raises(ParameterError, match="absent with 60 NaN"):
            measure(frame, "absent")
        with pytest.raises(ParameterError, match="unknown"):
            measure(frame, "unknown")


def test_a_tile_that_repeats_the_whole_image_counts_once():
    def view(image_id, number, probabilities, attention):
        columns = {"image_id": image_id, "view": number, "position": range(3), "top1_id": [7, 8, 9]}
        columns |= {"top1_probability": probabilities, "entropy": 1.0, "global_divergence": attention}
        return pd.DataFrame(
            columns | {"attention_last_layer_0": attention, "attention_question_layer_0": 1.0}
        )

    first, other = [0.2, 0.3, 0.4], [0.2, 0.3, 0.401]
    frame = pd.concat(
        [
            view(0, 0, first, [0.1, 0.2, 0.3]),
            view(0, 1, np.multiply(first, 1 + 1e-7), [0.4, 0.0, 0.1]),  # rounded otherwise
            view(0, 2, other, [0.5, 0.5, 0.5]),
            view(1, 0, first, [0.6, 0.6, 0.6]),  # another image
        ],
        ignore_index=True,
    )
    before = frame.copy()
    found = without_copies(frame)
    pd.testing.assert_frame_equal(frame, before)
    assert found[["image_id", "view"]].drop_duplicates().to_numpy().tolist() == [[0, 0], [0, 2], [1, 0]]
    assert found["attention_last_layer_0"].to_numpy() == pytest.approx(
        [0.5, 0.2, 0.4] + [0.5] * 3 + [0.6] * 3
    )
    assert found["attention_question_layer_0"].tolist() == [2.0] * 3 + [1.0] * 6
    assert found["global_divergence"].tolist()[:3] == [0.1, 0.2, 0.3]
    plain = table()[["image_id", "view", "position"]]
    plain = plain.assign(top1_id=range(60), top1_probability=0.1, entropy=1.0)
    pd.testing.assert_frame_equal(without_copies(plain), plain)


def test_the_nearest_word_is_the_one_of_the_same_direction():
    embeddings = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 4.0]])
    number, cosine = nearest_words(torch.tensor([[0.1, 3.0], [-5.0, 0.0], [2.0, 0.0]]), embeddings)
    assert number.tolist() == [1, 1, 0]  # of equals the first
    assert torch.allclose(cosine, torch.tensor([3 / 9.01**0.5, 0.0, 1.0]))


def test_nearest_words_stand_beside_what_lies_beneath():
    left = np.zeros((8, 8), dtype=np.uint8)
    left[:4, :4] = 1
    picture = sample(7, SceneObject("cat", (0, 0, 4, 4), encode_mask(left), 16.0))
    tokens = torch.tensor([[0.0, 2.0], [0.0, 1.0], [3.0, 0.0], [1.0, 1.0]])
    found = tabulate_nearest_words(picture, tokens, (2, 2), torch.eye(2), ["dog", "cat"])
    assert found["position"].tolist() == [0, 1, 2, 3] and set(found["image_id"]) == {7}
    assert found["word"].tolist() == ["cat", "cat", "dog", "dog"]
    assert found["cosine"].tolist() == pytest.approx([1, 1, 1, 0.5**0.5])
    assert found["coverage"].tolist() == [1, 0, 0, 0]
    assert found["beneath"][0] == "cat" and found["beneath"][1:].isna().all()
    assert found["right"].tolist() == [True, False, False, False]  # nothing is named where nothing lies
