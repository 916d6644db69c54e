"""Check what the figures draw: positions, values, colours and text, read back from the axes."""

import re

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from gallery import GALLERY
from matplotlib.text import Text
from PIL import Image

from rcblib.reading import figures
from rcblib.reading.figures import words
from rcblib.reading.figures.finding import MOST
from rcblib.reading.figures.maps import in_two_lines
from rcblib.reading.labels import label_of, method_label
from rcblib.records import ParameterError
from tools.page_limits import MOST_SAID, alternative_text_is_poor

GRID = (3, 4)


@pytest.fixture(autouse=True)
def book_style():
    with matplotlib.rc_context():
        figures.use_style()
        yield
    plt.close("all")


@pytest.fixture
def axes():
    return plt.subplots(figsize=(4, 3))[1]


@pytest.fixture
def image():
    """Draw 3×4 patches of 8×8 pixels, each of its own colour."""
    rng = np.random.default_rng(0)
    return Image.fromarray(np.repeat(np.repeat(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8), 8, 0), 8, 1))


def test_heat_map_puts_values_in_raster_order_over_the_whole_image(axes, image):
    figures.heat_map(axes, image, np.arange(12.0), GRID, label="signal")
    under, over = axes.images
    assert over.get_array().tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert list(over.get_extent()) == list(under.get_extent()) == [0, 32, 24, 0]
    assert axes.figure.axes[1].get_ylabel() == "signal"


def test_heat_map_leaves_positions_that_were_not_probed_uncovered(axes, image):
    values = np.full(12, np.nan)
    values[5] = 1.0
    figures.heat_map(axes, image, values, GRID, limits=(0, 2), label="signal", colorbar=False)
    over = axes.images[1]
    assert np.ma.getmaskarray(over.get_array()).sum() == 11
    assert over.get_clim() == (0, 2)
    assert len(axes.figure.axes) == 1
    assert axes.get_title(loc="left") == "signal"


def test_one_scale_serves_several_heat_maps(image):
    figure, (first, second, scale) = plt.subplots(1, 3)
    figures.heat_map(first, image, np.arange(12.0), GRID, limits=(0, 20), colorbar=scale)
    figures.heat_map(second, image, np.arange(12.0) + 8, GRID, limits=(0, 20), colorbar=False)
    assert figure.axes == [first, second, scale]
    assert scale.get_ylim() == first.images[1].get_clim() == second.images[1].get_clim() == (0, 20)


@pytest.mark.parametrize("n_values", [11, 13])
def test_a_value_for_every_token_is_needed(axes, image, n_values):
    with pytest.raises(ParameterError, match=r"values: got 'shape .*3×4 grid: \(12,\)"):
        figures.heat_map(axes, image, np.zeros(n_values), GRID)
    with pytest.raises(ParameterError, match="words"):
        figures.word_map(axes, image, ["a"] * n_values, np.zeros(12), GRID)


def test_only_rgb_images_are_drawn(axes):
    with pytest.raises(ParameterError, match="an RGB image"):
        figures.heat_map(axes, np.zeros((8, 8)), np.zeros(12), GRID)


def test_word_map_writes_each_word_in_the_middle_of_its_patch(axes, image):
    words = [f"w{i}" for i in range(12)]
    probabilities = np.linspace(0, 1, 12)
    probabilities[3] = np.nan
    figures.word_map(axes, image, words, probabilities, GRID)
    placed = {text.get_text(): text.get_position() for text in axes.texts}
    assert len(placed) == 11
    assert "w3" not in placed
    assert placed["w0"] == (4, 4)
    assert placed["w6"] == (20, 12)
    inks = {text.get_text(): sum(text.get_color()[:3]) for text in axes.texts}
    assert inks["w0"] > inks["w4"] > inks["w11"]  # the surer, the darker


def test_words_stay_inside_their_patches(image):
    figure, axes = plt.subplots(figsize=(6, 5))
    words = ["i", "triangle", "extraordinarily", "$x_1$", "  ", "", "a b", "100%", "_", "ring", "W", "moon"]
    figures.word_map(axes, image, words, np.full(12, 0.5), GRID)
    figure.canvas.draw()
    box = axes.get_window_extent()
    width, height = box.width / GRID[1], box.height / GRID[0]
    assert len(axes.texts) == 10  # blanks are not written
    for text in axes.texts:
        extent = text.get_window_extent()
        assert extent.width <= width and extent.height <= height, text.get_text()


def test_long_words_go_on_in_a_second_line_where_that_makes_them_larger(image):
    parted = {
        word: in_two_lines(word) for word in ("background", "elephant", "handwriting", "mountain", "bridge")
    }
    assert list(parted.values()) == [
        "back-\nground",
        "ele-\nphant",
        "hand-\nwriting",
        "moun-\ntain",
        "bridge",
    ]
    for word, said in parted.items():
        assert said.replace("-\n", "") == word
    _, axes = plt.subplots(figsize=(6, 5))
    figures.word_map(axes, image, ["background", "ring"] * 6, np.full(12, 0.5), GRID)
    long, short = axes.texts[:2]
    assert long.get_text() == "back-\nground" and short.get_text() == "ring"
    assert long.get_fontsize() > 0.5 * short.get_fontsize()


def test_kept_map_shows_kept_patches_in_colour_and_counts_them(axes, image):
    figures.kept_map(axes, image, [0, 11], GRID, "codebook")
    opacity = axes.images[1].get_array()[..., 3]
    assert opacity.shape == (24, 32)
    assert opacity[:8, :8].min() == 1 and opacity[16:, 24:].min() == 1
    assert opacity.sum() == 2 * 64
    assert axes.get_title(loc="left") == "codebook: 2 of 12 tokens"


def test_kept_map_of_nothing_and_of_positions_outside(axes, image):
    figures.kept_map(axes, image, [], GRID)
    assert axes.get_title(loc="left") == "0 of 12 tokens"
    with pytest.raises(ParameterError, match="positions from 0 to 11"):
        figures.kept_map(axes, image, [12], GRID)


def rank_frame(n_images):
    rng = np.random.default_rng(1)
    rows = [
        {
            "rank": rank,
            "attention_last": 1 / rank,
            "top1_probability": rng.random(),
            "global_divergence": 1e-3 * rng.random(),
        }
        for _ in range(n_images)
        for rank in range(1, 9)
    ]
    return pd.DataFrame(rows)


def test_three_signals_have_three_axes_in_their_own_colours(axes):
    frame = rank_frame(1)
    names = ["attention_last", "top1_probability", "global_divergence"]
    drawn = figures.signals_over_rank(axes, frame, names)
    assert len(drawn) == 3 and drawn[0] is axes
    for on, column in zip(drawn, names, strict=True):
        (line,) = on.lines
        assert line.get_ydata().tolist() == frame[column].tolist()
        assert line.get_color() == on.yaxis.label.get_color() == figures.signal_color(column)
        assert on.get_ylabel() == label_of(column, unit=True)
    assert drawn[2].spines["right"].get_position() == ("outward", 58)
    assert axes.get_xlabel() == "position, by decreasing attention"


def test_several_images_become_a_median_with_the_middle_half(axes):
    frame = rank_frame(5)
    drawn = figures.signals_over_rank(axes, frame, ["attention_last", "top1_probability"])
    groups = frame.groupby("rank")["top1_probability"]
    medians = groups.median()
    assert drawn[1].lines[0].get_ydata().tolist() == medians.tolist()
    (band,) = drawn[1].collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.min() == pytest.approx(groups.quantile(0.25).min())
    assert heights.max() == pytest.approx(groups.quantile(0.75).max())


def test_signals_over_rank_says_which_columns_it_lacks(axes):
    with pytest.raises(ParameterError, match=r"columns \['region'\] too"):
        figures.signals_over_rank(axes, rank_frame(1), ["attention_last", "region"])
    with pytest.raises(ParameterError, match="one to three columns"):
        figures.signals_over_rank(axes, rank_frame(1), [])


def test_a_scatter_is_followed_by_the_median(axes):
    frame = pd.DataFrame({"attention_last": np.arange(120.0), "influence": np.arange(120.0) % 2})
    frame.loc[0, "influence"] = np.nan
    figures.scatter_with_median(axes, frame, "attention_last", "influence")
    assert len(axes.collections[0].get_offsets()) == 119
    assert len(axes.lines[0].get_xdata()) == 12
    assert set(axes.lines[0].get_ydata()) <= {0, 0.5, 1}
    names = ("attention of the last prompt token", "combined influence (nats)")
    assert (axes.get_xlabel(), axes.get_ylabel()) == names
    figures.scatter_with_median(axes, frame, "attention_last", "influence", short=True)
    assert axes.get_xlabel() == "attention, last token"


def score_frame():
    rows = [
        {
            "task": task,
            "method": method,
            "retained": share,
            "mean": 0.9 * share,
            "low": 0.8 * share,
            "high": share,
        }
        for task, methods in (("color", ["codebook", "random"]), ("count", ["random"]))
        for method in methods
        for share in (1.0, 0.1, 0.5)
    ]
    return pd.DataFrame(rows)


def test_scores_are_lines_over_the_retained_share_with_bands(axes):
    frame = score_frame().query("task == 'color'")
    figures.score_against_retained(axes, frame, reference=0.95, chance=0.5)
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines) == ["all tokens", "guessing", "codebook", "random tokens"]
    assert lines["codebook"].get_xdata().tolist() == [0.1, 0.5, 1.0]
    assert lines["codebook"].get_ydata().tolist() == pytest.approx([0.09, 0.45, 0.9])
    assert set(lines["all tokens"].get_ydata()) == {0.95}
    assert len(axes.collections) == 2
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["10%", "20%", "50%", "100%"]


@pytest.mark.parametrize("share", [0.0, 1.2])
def test_shares_outside_zero_to_one_are_refused(axes, share):
    frame = score_frame().assign(retained=share)
    with pytest.raises(ParameterError, match="fractions above 0, up to 1"):
        figures.score_against_retained(axes, frame)


def test_a_method_keeps_its_colour_where_others_are_missing():
    figure = figures.score_grid(score_frame(), references={"color": 0.9}, chances={"count": 0.25})
    first, second = (on for on in figure.axes if on.get_visible())
    colour = {line.get_label(): line.get_color() for line in first.lines}["random tokens"]
    assert {line.get_label(): line.get_color() for line in second.lines}["random tokens"] == colour
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "all tokens",
        "codebook",
        "random tokens",
        "guessing",
    ]
    assert (first.get_title(loc="left"), second.get_title(loc="left")) == ("colour", "count")


def test_an_order_that_misses_a_method_is_refused(axes):
    with pytest.raises(ParameterError, match=r"a list that holds \['random'\] too"):
        figures.score_against_retained(axes, score_frame(), order=["codebook"])


def test_interval_plot_lists_rows_from_the_top(axes):
    frame = pd.DataFrame(
        {
            "signal": ["top1_probability", "something else"],
            "value": [0.8, 0.4],
            "low": [0.7, 0.3],
            "high": [0.9, 0.5],
        }
    )
    figures.interval_plot(axes, frame, reference=0.5, xlabel="area")
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [
        "top-1 probability",
        "something else",
    ]
    assert axes.get_ylim() == (1.5, -0.5)
    assert list(axes.lines[1].get_xdata()) == [0.7, 0.9]


def test_interval_plot_marks_the_bound_of_each_row(axes):
    frame = pd.DataFrame(
        {"signal": ["a", "b"], "value": [0.8, 0.4], "low": 0.3, "high": 0.9, "bound": [0.9, 0.05]}
    )
    figures.interval_plot(axes, frame, bound="bound")
    ticks = [line for line in axes.lines if line.get_xdata()[0] in (0.9, 0.05)]
    assert [list(line.get_xdata()) for line in ticks] == [[0.9, 0.9], [0.05, 0.05]]
    assert [np.mean(line.get_ydata()) for line in ticks] == [0, 1]
    with pytest.raises(ParameterError, match="limit"):
        figures.interval_plot(axes, frame, bound="limit")


def test_gallery_shows_every_patch_with_its_caption(image):
    patches = [[figures.crop_patch(image, i, GRID) for i in range(n)] for n in (3, 2)]
    figure = figures.patches_gallery(patches, ["first", "second"], [["a", "b", "c"], ["d", "e"]])
    shown = [on for on in figure.axes if on.images]
    assert [on.get_xlabel() for on in shown] == ["a", "b", "c", "d", "e"]
    assert figure.axes[0].get_ylabel() == "first"
    with pytest.raises(ParameterError, match="captions: got '1 rows'; accepted: one a row of patches: 2"):
        figures.patches_gallery(patches, captions=[["a"]])
    with pytest.raises(ParameterError, match="at least one patch"):
        figures.patches_gallery([])


def test_gallery_frames_the_patch_among_its_surroundings(image):
    figure = figures.patches_gallery([[figures.crop_patch(image, 5, GRID, margin=1)]], margin=1)
    frame = figure.axes[0].patches[-1]
    # Pixel centres are at whole numbers, so the 24-pixel crop runs from -0.5 to 23.5.
    assert (*frame.get_xy(), frame.get_width(), frame.get_height()) == (7.5, 7.5, 8, 8)


def test_crop_patch_cuts_the_tokens_own_pixels(image):
    pixels = np.asarray(image) / 255
    assert (figures.crop_patch(image, 6, GRID) == pixels[8:16, 16:24]).all()
    with_margin = figures.crop_patch(image, 0, GRID, margin=1)
    assert with_margin.shape == (24, 24, 3)
    assert (with_margin[8:, 8:] == pixels[:16, :16]).all()
    assert (with_margin[:8, :8] == pixels[0, 0]).all()  # beyond the border: the edge, repeated
    with pytest.raises(ParameterError, match="position: got 12; accepted: 0 to 11"):
        figures.crop_patch(image, 12, GRID)


@pytest.mark.parametrize("name", GALLERY)
def test_no_text_of_a_figure_is_a_code_name(name):
    figure = GALLERY[name]()
    figure.canvas.draw()
    texts = [text.get_text() for text in figure.findobj(Text) if text.get_text()]
    assert texts
    for text in texts:
        words = re.sub(r"\$[^$]*\$", "", text)  # formulas have subscripts
        assert not re.search(
            r"[A-Za-z0-9]_[A-Za-z0-9]|[a-z]-scenes\b(?<!LLaVA-scenes)(?<!NeXT-scenes)", words
        )


@pytest.mark.parametrize("name", GALLERY)
def test_every_figure_says_in_words_and_numbers_what_it_shows(name):
    said = figures.finding_of(GALLERY[name]())
    assert re.search(r"\d", said) and "\n" not in said
    assert not re.search(r"[A-Za-z0-9]_[A-Za-z0-9]|\bnan\b", said)
    assert len(said) <= MOST == MOST_SAID


def test_words_compare_methods_at_one_budget_only():
    rows = [("ours", 0.05, 0.4), ("ours", 0.5, 0.9), ("near", 0.06, 0.5), ("far", 0.28, 0.8)]
    frame = pd.DataFrame(rows, columns=["method", "retained", "mean"]).assign(low=0.1, high=1)
    said = "with 5% of the tokens ours 0.4 [0.1, 1], near 0.5 [0.1, 1]"
    assert words.words_of_scores(frame) == said
    alone = frame[frame["method"] != "near"]
    assert (
        words.words_of_scores(alone) == "with 5% of the tokens ours 0.4 [0.1, 1], far 0.8 [0.1, 1] with 28%"
    )


def test_words_say_what_intervals_leave_open():
    frame = pd.DataFrame({"signal": list("abcde"), "value": [0.9, 0.6, 0.5, 0.4, 0.2]})
    frame = frame.assign(low=frame["value"] - 0.05, high=frame["value"] + 0.05)
    said = words.words_of_intervals(frame, "signal", reference=0.5)
    assert said == (
        "highest a 0.9 [0.85, 0.95], lowest e 0.2 [0.15, 0.25]; of 5 intervals 2 lie above 0.5, 2 below"
    )
    means = pd.DataFrame({"rank": [1, 2, 3], "mean": [0.3, 0.9, 0.35], "low": 0.2, "high": 1.0})
    said = words.words_of_means(means, "rank", "mean", "entropy")
    assert said == "entropy does not clearly change: 0.3 where rank is 1, at most 0.9 at 2, 0.35 at 3"
    points = {"far": np.zeros((4, 2)), "near": np.ones((4, 2)), "ours": np.full((3, 2), 0.9)}
    said = words.words_of_points(points, "ours", None)
    assert said == "the nearest neighbour of 3 ours is one of the far for 0, of the near for 3"
    tokens = pd.DataFrame({"entropy": [1.0, 3.0, 5.0], "on_object": [True, False, False]})
    assert words.words_on_and_off(tokens, ["entropy"]).endswith("over the others: entropy 1 and 4")
    assert words.words_on_and_off(tokens[["entropy"]], ["entropy"]) == "median entropy 3"


def test_a_finding_of_the_whole_stands_in_place_of_what_its_plots_say():
    figure, (left, right) = plt.subplots(1, 2)
    assert figures.finding_of(figure) == ""
    left.set_title("one")
    figures.tell(left, r"$\tau_p$ is 0.2")
    figures.tell(right, "then\n 5")
    assert figures.finding_of(figure) == "One: tau p is 0.2. Then 5."
    figures.tell_whole(figure, "All in all 7.")
    assert figures.finding_of(figure) == "All in all 7."


def test_a_finding_is_short_however_many_plots_there_are():
    figure, grid = plt.subplots(2, 4)
    figure.supxlabel("scores")
    for number, axes in enumerate(grid.flat):
        axes.set_title(f"task {number}")
        ours, best = (number + 2) % 8 / 10, 0.3
        said = f"with 5% of the tokens ours {ours} [0.1, 0.9], best of the others theirs {best} [0.2, 0.4], lowest 0.1"
        figures.tell(axes, said, ours - best)
    said = figures.finding_of(figure)
    assert said.startswith("Scores. Of 8 plots where the first leads most and least: ") and len(said) <= MOST
    assert (
        "Task 5: with 5% of the tokens ours 0.7" in said and "Task 6: with 5% of the tokens ours 0.0" in said
    )
    assert "Task 1" not in said

    figure, axes = plt.subplots()
    clauses = [f"part {number} rises from {number}, to {number + 1} [{number}, 30]" for number in range(20)]
    figures.tell(axes, "; ".join(clauses))
    said = figures.finding_of(figure)
    assert (
        len(said) <= MOST
        and said.startswith("Part 0 rises from 0, to 1; part 1")
        and re.search(r"\d …$", said)
    )
    figures.tell_whole(figure, f"{'. '.join(clauses)}.")
    assert len(figures.finding_of(figure)) <= MOST
    assert not alternative_text_is_poor(figures.finding_of(figure))


def test_the_gallery_shows_every_figure_of_the_library():
    names = {name for name in figures.__all__ if callable(getattr(figures, name))}
    helpers = {
        "use_style",
        "signal_color",
        "crop_patch",
        "Kept",
        "mark_setting",
        "finding_of",
        "tell",
        "tell_whole",
    }
    missing = {name for name in names - helpers - set(GALLERY) if not name.startswith("words_")}
    assert not missing


def test_names_become_words():
    assert label_of("influence", unit=True) == "combined influence (nats)"
    assert label_of("attention_last", short=True) == "attention, last token"
    assert label_of("attention_last_layer_12").endswith("one layer")
    assert label_of("global_divergence", unit=True, short=True) == "global divergence (nats)"
    assert label_of("made_up") == "made up"
    assert (
        label_of("spearman_cls_similarity_top1_probability")
        == "spearman similarity to [CLS] top-1 probability"
    )
    assert label_of("spearman of cls_similarity, retain_20") == "spearman of similarity to [CLS], 20% kept"
    assert label_of("$p_1$ of made_up") == "$p_1$ of made up"
    assert label_of("llava-next-scenes") == "LLaVA-NeXT-scenes"
    assert label_of("llava-1.5-7b") == "LLaVA-1.5-7B"
    methods = [method_label(name) for name in ("random", "cls_least", "max_cosine")]
    assert methods == ["random tokens", "least similar to [CLS]", "largest cosine"]


def means(**columns):
    return pd.DataFrame(columns).assign(low=lambda rows: rows["mean"] - 1, high=lambda rows: rows["mean"] + 2)


def test_a_mean_over_numbers_has_its_band(axes):
    figures.mean_with_band(
        axes, means(cls_rank=[1, 5, 9], mean=[3.0, 2.0, 1.0]), "cls_rank", "top1_probability"
    )
    (line,) = axes.lines
    assert line.get_xydata().tolist() == [[1, 3], [5, 2], [9, 1]]
    assert len(axes.get_xticks()) > 3  # a scale of its own, not a tick a row
    band = axes.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (0, 5)
    assert axes.get_ylabel() == "top-1 probability"
    assert axes.get_xlabel() == "rank by similarity to [CLS]"
    assert line.get_color() == figures.signal_color("top1_probability")


def test_a_mean_over_classes_is_evenly_spaced_and_named(axes):
    frame = means(covered=pd.Categorical(["none", "all"]), mean=[0.0, 1.0])
    figures.mean_with_band(axes, frame, "covered", label="first")
    figures.mean_with_band(axes, frame, "covered", label="second", color="#000000")
    assert [text.get_text() for text in axes.get_xticklabels()] == ["none", "all"]
    assert axes.lines[1].get_xdata().tolist() == [0, 1]
    assert axes.get_legend_handles_labels()[1] == ["first", "second"]
    with pytest.raises(ParameterError, match="high"):
        figures.mean_with_band(axes, frame.drop(columns="high"), "covered")


def pairs(*rows):
    return pd.DataFrame(rows, columns=["first", "second", "value", "low", "high"])


def test_correlations_fill_one_half_each(axes):
    a = "cls_similarity"
    lower = pairs((a, "b", 0.9, 0.8, 0.95), (a, "c", -0.2, -0.3, -0.1), ("b", "c", np.nan, np.nan, np.nan))
    upper = pairs((a, "b", 0.7, 0.6, 0.8), ("c", a, -0.1, -0.2, 0.0))
    figures.correlation_matrix(axes, lower, upper)
    cells = axes.collections[0].get_array().reshape(3, 3)
    assert (cells[1, 0], cells[2, 0], cells[0, 1], cells[0, 2]) == (0.9, -0.2, 0.7, -0.1)
    assert np.ma.getmaskarray(cells)[[0, 1, 2, 2], [0, 1, 1, 2]].all()
    assert [text.get_text() for text in axes.get_yticklabels()] == ["[CLS] similarity", "b", "c"]
    written = {text.get_text(): text.get_position() for text in axes.texts}
    assert len(written) == 8
    assert [int(place) for place in written["0.90"]] == [0, 1]
    assert [int(place) for place in written["0.60, 0.80"]] == [1, 0]


def test_correlations_need_their_intervals(axes):
    with pytest.raises(ParameterError, match="low"):
        figures.correlation_matrix(axes, pairs(("a", "b", 0.9, 0.8, 0.95)).drop(columns="low"))


def test_a_funnel_counts_down_with_shares_of_the_first(axes):
    figures.funnel(axes, {"probed": 2000, "low": 500, "kept": 3})
    assert [bar.get_width() for bar in axes.patches] == [2000, 500, 3]
    assert [text.get_text() for text in axes.texts] == ["2,000", "500 (25.0%)", "3 (0.1%)"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["probed", "low", "kept"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]


@pytest.mark.parametrize("counts", [{}, {"probed": 3, "kept": 0}])
def test_a_funnel_needs_counts(axes, counts):
    with pytest.raises(ParameterError, match="counts"):
        figures.funnel(axes, counts)


def test_histograms_are_shares_of_their_groups_over_common_bins(axes):
    figures.histograms(
        axes, {"a": [0, 0, 0, 4], "b": [4, 4]}, bins=4, label="cosine", cuts={"threshold": 1.5}
    )
    outlines = [patch for patch in axes.patches if not patch.get_fill()]
    assert [patch.get_data().values.tolist() for patch in outlines] == [[0.75, 0, 0, 0.25], [0, 0, 0, 1.0]]
    assert all(patch.get_data().edges.tolist() == [0, 1, 2, 3, 4] for patch in outlines)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "a (n = 4)",
        "b (n = 2)",
        "threshold",
    ]
    assert axes.lines[0].get_xdata()[0] == 1.5


def test_histograms_need_values(axes):
    with pytest.raises(ParameterError, match="groups"):
        figures.histograms(axes, {"a": []})


def test_groups_of_points_are_named_and_one_lies_on_top(axes):
    rng = np.random.default_rng(0)
    figures.grouped_scatter(axes, {"all": rng.random((50, 2)), "chosen": [[0.5, 0.5]]}, highlight="chosen")
    clouds = [cloud for cloud in axes.collections if len(cloud.get_offsets())]
    assert [len(cloud.get_offsets()) for cloud in clouds] == [50, 1]
    assert clouds[1].get_zorder() > clouds[0].get_zorder()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["all (n = 50)", "chosen (n = 1)"]
    assert len(axes.get_xticks()) == 0
    figures.grouped_scatter(axes, {"all": [[0.0, 1.0]]}, labels=("p", "nats"))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("p", "nats")
    with pytest.raises(ParameterError, match="all"):
        figures.grouped_scatter(axes, {"all": np.zeros((3, 3))})


def test_grid_map_lays_values_out_in_raster_order(axes):
    figures.grid_map(axes, np.arange(12), GRID, label="prototypes")
    (drawn,) = axes.images
    assert drawn.get_array().tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert drawn.get_clim() == (0, 11)
    assert axes.figure.axes[1].get_ylabel() == "prototypes"
    with pytest.raises(ParameterError, match="values"):
        figures.grid_map(axes, np.arange(11), GRID)


def test_learning_curves_put_losses_above_and_part_the_stages():
    rows = [
        ("vision encoder", stage, scenes, quantity, value)
        for stage, start in (("masked", 0), ("full", 100))
        for scenes in (start + 50, start + 100)
        for quantity, value in (("loss", 100 / scenes), ("color", 0.5), ("category", 0.25))
    ]
    frame = pd.DataFrame(rows, columns=["kind", "stage", "scenes", "quantity", "value"])
    figure = figures.learning_curves(frame, labels={"color": "colour"})
    upper, lower = figure.axes
    assert "vision encoder" in (upper.get_title(), upper.get_title("left")) and upper.get_yscale() == "linear"
    assert [text.get_text() for text in lower.get_legend().get_texts()] == ["colour", "category"]
    # A line a stage and quantity, and one that parts the two stages.
    assert [line.get_xdata()[0] for line in upper.lines] == [50, 150, 100]
    assert len(lower.lines) == 5
    plt.close(figure)
    frame.loc[frame["quantity"] == "loss", "value"] = [10, 1, 0.2, 0.1]
    figure = figures.learning_curves(frame)
    assert figure.axes[0].get_yscale() == "log"
    plt.close(figure)


def test_learning_curves_tell_more_quantities_apart_than_there_are_colours():
    names = [f"quantity {number}" for number in range(2 * len(figures.CYCLE))]
    rows = [("LLM", "all", scenes, name, 0.5) for name in ["loss", *names] for scenes in (1, 2)]
    frame = pd.DataFrame(rows, columns=["kind", "stage", "scenes", "quantity", "value"])
    lower = figures.learning_curves(frame).axes[1]
    assert len({(line.get_color(), line.get_linestyle()) for line in lower.lines}) == len(names)


def test_intervals_of_one_label_share_a_line_where_a_column_tells_them_apart(axes):
    frame = pd.DataFrame(
        {
            "signal": ["colour", "colour", "count"],
            "images": ["true", "shuffled", "true"],
            "value": [0.9, 0.1, 0.8],
            "low": [0.85, 0.05, 0.7],
            "high": [0.95, 0.2, 0.9],
        }
    )
    figures.interval_plot(axes, frame, hue="images")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["colour", "count"]
    points = [line for line in axes.lines if line.get_marker() == "o"]
    assert [line.get_xdata()[0] for line in points] == [0.9, 0.1, 0.8]
    assert [round(float(line.get_ydata()[0]), 2) for line in points] == [-0.11, 0.11, 0.89]
    assert points[0].get_color() == points[2].get_color() != points[1].get_color()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["true", "shuffled"]


def test_confusions_are_shares_of_the_right_answer_with_strangers_last(axes):
    figures.confusion_matrix(
        axes,
        ["red", "red", "blue", "blue"],
        ["red", "blue", "blue", "yes"],
        ["blue", "green", "red"],
        "colour",
    )
    (drawn,) = axes.collections
    assert drawn.get_array().reshape(2, 3).tolist() == [[0.5, 0, 0.5], [0.5, 0.5, 0]]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["blue", "red", "other"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["blue", "red"]
    with pytest.raises(ParameterError, match="answers"):
        figures.confusion_matrix(axes, ["red"], ["red"], ["blue"])


def test_outlines_follow_the_masks(axes, image):
    mask = np.zeros(np.asarray(image).shape[:2], bool)
    mask[2:5, 3:8] = True
    figures.outlined_objects(axes, image, [mask], "a star that is quite far up and to the left")
    (outline,) = [part for part in axes.collections if len(part.get_paths())]
    box = outline.get_paths()[0].get_extents()
    assert (box.x0, box.y0, box.x1, box.y1) == (3, 2, 8, 5)
    assert axes.get_xlabel() == "a star that is quite far up\nand to the left"
