"""Draw the book's figures."""

from rcblib.reading.figures.budgets import Kept, curves_by_kind, kept_beside_objects, kept_grid, mark_setting
from rcblib.reading.figures.charts import (
    funnel,
    grouped_scatter,
    histograms,
    interval_plot,
    scatter_with_median,
)
from rcblib.reading.figures.curves import (
    learning_curves,
    mean_with_band,
    score_against_retained,
    score_grid,
    signals_over_rank,
)
from rcblib.reading.figures.finding import finding_of, tell, tell_whole
from rcblib.reading.figures.maps import grid_map, heat_map, kept_map, outlined_objects, word_map
from rcblib.reading.figures.matrices import confusion_matrix, correlation_matrix
from rcblib.reading.figures.patches import crop_patch, patches_gallery
from rcblib.reading.figures.style import CYCLE, INK, MUTED, signal_color, use_style
from rcblib.reading.figures.words import words_of_intervals, words_of_means, words_on_and_off

__all__ = [
    "CYCLE",
    "INK",
    "MUTED",
    "Kept",
    "confusion_matrix",
    "correlation_matrix",
    "crop_patch",
    "curves_by_kind",
    "finding_of",
    "funnel",
    "grid_map",
    "grouped_scatter",
    "heat_map",
    "histograms",
    "interval_plot",
    "kept_beside_objects",
    "kept_grid",
    "kept_map",
    "learning_curves",
    "mark_setting",
    "mean_with_band",
    "outlined_objects",
    "patches_gallery",
    "scatter_with_median",
    "score_against_retained",
    "score_grid",
    "signal_color",
    "signals_over_rank",
    "tell",
    "tell_whole",
    "use_style",
    "word_map",
    "words_of_intervals",
    "words_of_means",
    "words_on_and_off",
]
