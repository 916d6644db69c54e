"""Say how far a signal can be relied on to keep some tokens: between random, perfect and reversed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from rcblib.reading.resampling import draw_means
from rcblib.reading.signals import lower_half
from rcblib.reading.statistics import Estimate, roc_auc

INVERTED = 0.45
"""Area below which, with its whole interval, a signal is called inverted."""


@dataclass(frozen=True)
class Reliability:
    """Hold where a signal puts some chosen tokens, such as recognised ones, and what other signals would do.

    Attributes
    ----------
    low_share : Estimate
        Share of the chosen tokens in the lower half of their image.
    random, best, reversed : float
        What that share would be for random numbers, for a signal that ranks all chosen tokens first, and for one that
        ranks them last; they depend on how many are chosen of each image.
    reliability : Estimate
        ``(random - low_share) / (random - best)``: 1 perfect, 0 random, about -1 reversed.
    area : Estimate
        Area under the ROC curve of the signal for the chosen tokens, within images; 0.5 knows nothing.
    """

    low_share: Estimate
    random: float
    best: float
    reversed: float
    reliability: Estimate
    area: Estimate

    @property
    def is_inverted(self) -> bool:
        """Tell whether the signal is low where it should be high: the whole interval of its area lies below 0.45."""
        return bool(self.area.high < INVERTED)

    def as_result(self) -> dict[str, Any]:
        """Return the reliability as a result, with everything that it is compared with."""
        others = {"random": self.random, "best": self.best, "reversed": self.reversed}
        return self.reliability.as_result() | {
            "low_share": self.low_share.value,
            **others,
            "area": self.area.as_result()["value"],
            "area_interval": self.area.as_result()["interval"],
            "inverted": self.is_inverted,
        }


def reliability(
    frame: pd.DataFrame, chosen: pd.Series, signal: str, *, generator: np.random.Generator
) -> Reliability | None:
    """Measure how far a signal can be relied on to keep the chosen tokens.

    Parameters
    ----------
    frame : pandas.DataFrame
        Probe table.
    chosen : pandas.Series
        Booleans on its index, such as `recognised` or `most_influential`.
    signal : str
        Column; higher should mean that a token is worth keeping. Halves are those of `lower_half`.
    generator : numpy.random.Generator
        Source of the draws over images.

    Returns
    -------
    Reliability or None
        ``None`` where no token is chosen, or of every image all or none.
    """
    if not chosen.any() or chosen.all():
        return None
    within = ["image_id", "view"] if signal.startswith("cls_") and "view" in frame else ["image_id"]
    groups = chosen.groupby([frame[name] for name in within])
    n, n_chosen = groups.transform("size")[chosen], groups.transform("sum")[chosen]
    n_low = n // 2
    random = float((n_low / n).mean())
    best = float(((n_chosen - (n - n_low)).clip(lower=0) / n_chosen).mean())
    turned = float((np.minimum(n_chosen, n_low) / n_chosen).mean())
    if not best < random:  # of every image all or none
        return None
    low = pd.DataFrame({"image_id": frame["image_id"], "task": "", "score": lower_half(frame, signal)})
    draws = draw_means({"low": low[chosen].astype({"score": float})}, generator=generator)
    share = draws["low"][:, 0]
    area = roc_auc(
        frame[signal].to_numpy(float),
        chosen.to_numpy(),
        frame["image_id"].to_numpy(),
        strata=frame.groupby(within, sort=False).ngroup().to_numpy(),
        generator=generator,
    )
    return Reliability(
        draws.estimate(share), random, best, turned, draws.estimate((random - share) / (random - best)), area
    )
