"""Write what a benchmark measured, with its options, versions and hardware."""

from __future__ import annotations

import argparse

import pandas as pd

from rcblib.runs.files import write_json
from rcblib.runs.provenance import provenance


def write_measured(name: str, table: pd.DataFrame, options: argparse.Namespace) -> None:
    """Write the rows of a table as the JSON file that `options.output` names, where it names one."""
    if options.output:
        settings = {key: value for key, value in vars(options).items() if key != "output"}
        content = {name: table.to_dict("records"), "settings": settings, "provenance": provenance()}
        write_json(options.output, content)
