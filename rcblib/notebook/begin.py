"""Begin a notebook: check its parameters, find the project, seed, and show what it runs on."""

from __future__ import annotations

import dataclasses
import importlib
import os
import random
import subprocess
import sys
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import pandas as pd

from rcblib.notebook.paths import handed_over, settle_paths
from rcblib.notebook.shards import shard_of
from rcblib.reading.figures.style import use_style
from rcblib.runs.parameters import notebook_config
from rcblib.runs.paths import user_path
from rcblib.runs.provenance import project_root, provenance

CONTENT = Path("/content")
"""Folder where Colab keeps a notebook's files."""


def begin(namespace: MutableMapping[str, Any]) -> Any:
    """Read a notebook's parameters and prepare its run.

    Relative paths that papermill is given count from where it was called, those that the notebook declares, as its
    defaults are, from the root of the project (`rcblib.notebook.paths.settle_paths`). From here on the root is the
    working directory. On Colab the results folder counts from the notebook instead, because the project is gone with
    the machine: ``drive/MyDrive/...`` lies on Google Drive, which is mounted for it.

    Parameters
    ----------
    namespace : MutableMapping
        ``globals()`` of the notebook, right after its imports.

    Returns
    -------
    dataclass
        The parameters, as `notebook_config` checks them. Python's and torch's global generators, of which others
        draw, are seeded with ``seed`` where there is one.

    Raises
    ------
    ParameterError
        On a misspelt name, a missing value, a value of another type or out of range, a path with an unset variable, a
        shard that there is not.
    """
    import torch
    from IPython.display import display

    config = notebook_config(namespace)
    if hasattr(config, "shard"):
        shard_of(config)  # so that a wrong one ends before any work
    if on_colab() and hasattr(config, "results_folder"):
        config = dataclasses.replace(config, results_folder=_beside_notebook(config.results_folder))
    here, root = namespace.setdefault("_started_in", Path.cwd()), project_root()
    config = settle_paths(config, namespace["__annotations__"], handed_over(namespace), here, root)
    if "RCB_ROOT" in os.environ:
        os.environ["RCB_ROOT"] = str(root)  # which may have been relative
    os.chdir(root)
    seed = getattr(config, "seed", 0)
    random.seed(seed)
    torch.manual_seed(seed)
    use_style()
    pd.options.styler.format.escape = "html"  # tables show words and names of files as they are written
    facts = provenance()
    names = ("rcblib", "python", "torch", "transformers", "numpy")
    print(", ".join(f"{name} {facts[name]}" for name in names))
    device = facts["cpu" if facts["gpu"] == "none" else "gpu"]
    print(f"device {device}, {facts['n_threads']} threads, seed {seed}")
    display(pd.Series(facts, name="this run").to_frame())
    return config


def on_colab() -> bool:
    """Tell whether the notebook runs on Colab."""
    return "google.colab" in sys.modules


def _beside_notebook(folder: str) -> str:
    """Return a folder beside a notebook on Colab; mount Google Drive where the folder lies on it."""
    place = CONTENT / user_path(folder, "results_folder")
    if place.is_relative_to(CONTENT / "drive"):
        from google.colab import drive

        drive.mount(str(CONTENT / "drive"))  # returns at once where it is mounted
    return str(place)


def install_on_colab(extra: str) -> bool:
    """Install an extra of the project that most notebooks do without; only on Colab.

    Returns
    -------
    bool
        Whether it was installed.
    """
    if on_colab():
        pip = [sys.executable, "-m", "pip", "install", "-q", "-e", f"{project_root()}[{extra}]"]
        subprocess.run(pip, check=True)
        importlib.invalidate_caches()
    return on_colab()
