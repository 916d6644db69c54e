"""Hold a finding of the start page as readers see it: a sentence, its number, its controls and what it rests on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

CONTROLS = ("unpruned", "guessing", "random", "oracle")
"""What a number is read beside, in this order."""


@dataclass(frozen=True)
class Headline:
    """Hold a finding: what it says, what was measured beside which controls, and what it rests on.

    Attributes
    ----------
    headline : str
        One sentence; which one follows from the numbers.
    measured : str
        What was measured, with its number.
    controls : dict
        Each of `CONTROLS` that has a meaning here, to its number.
    rests : str
        Samples, model and page.
    """

    headline: str
    measured: str
    controls: Mapping[str, str]
    rests: str

    def text(self, number: int) -> str:
        """Write it as an item of a list."""
        controls = "; ".join(f"{name} {self.controls[name]}" for name in CONTROLS if name in self.controls)
        return f"{number}. **{self.headline}** {self.measured} Controls: {controls}. *{self.rests}*\n"
