"""Show a figure in a notebook together with what it says in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rcblib.reading.figures.finding import finding_of, tell_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EMPTY = "A figure without values."
"""Said where there was nothing to draw."""


def show_figure(figure: Figure, finding: str = "") -> None:
    """Show a figure; its alternative text says what it shows, with the numbers that are drawn.

    The text is in the metadata of the output, as ``{"image/png": {"alt": ...}}``, where nbconvert and the book's pages
    look for it.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        What was drawn; it is closed, so that it is shown once.
    finding : str
        A sentence made of the results; without it what the figure's plots were drawn with is said
        (`rcblib.reading.figures.finding_of`).
    """
    import matplotlib.pyplot as plt
    from IPython.display import display

    if finding:
        tell_whole(figure, finding)
    display(figure, metadata={"image/png": {"alt": finding_of(figure) or EMPTY}})
    plt.close(figure)
