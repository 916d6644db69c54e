"""Find the project, and record with what and on what a result was made."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rcblib.records import ParameterError
from rcblib.runs.paths import user_path

FROM_CHECKOUT = (
    "that of a checkout of the project, whose folder RCB_ROOT names; the library alone comes without it"
)
"""What is accepted where something is asked for that only the project has."""


def _declares_project(folder: Path) -> bool:
    """Tell whether a folder's pyproject.toml is this project's."""
    try:
        with open(folder / "pyproject.toml", "rb") as file:
            return tomllib.load(file).get("project", {}).get("name") == "rcblib"
    except (OSError, tomllib.TOMLDecodeError):
        return False


def project_root() -> Path:
    """Find the folder that holds ``codebooks/``, ``data/`` and ``notebooks/``.

    Returns
    -------
    pathlib.Path
        The environment variable ``RCB_ROOT`` where set; else the nearest folder upward from the working
        directory, then from this file, whose ``pyproject.toml`` names ``rcblib``.

    Raises
    ------
    ParameterError
        Where ``RCB_ROOT`` is no folder, or nothing is found.
    """
    given = os.environ.get("RCB_ROOT")
    if given:
        folder = user_path(given, "RCB_ROOT")
        if not folder.is_dir():
            raise ParameterError("RCB_ROOT", given, "an existing folder, the root of the project")
        return folder.resolve()
    for start in (Path.cwd(), Path(__file__).resolve().parent):
        for folder in (start, *start.parents):
            if _declares_project(folder):
                return folder
    accepted = "the folder of a checkout of the project, as no pyproject.toml of rcblib lies above this one"
    raise ParameterError("RCB_ROOT", None, accepted)


def project_path(place: str) -> Path:
    """Find a file or folder that comes with a checkout of the project, not with the library installed alone.

    Parameters
    ----------
    place : str
        Path below the project's root, such as ``"data/published"``.

    Raises
    ------
    ParameterError
        Where it is not at hand.
    """
    try:
        path = project_root() / place
        if path.exists():
            return path
        given = f"none in {path.parent}"
    except ParameterError:
        given = "none"
    raise ParameterError(place, given, FROM_CHECKOUT)


def _git_state(root: Path) -> tuple[str | None, bool | None]:
    """Return commit and whether tracked files differ from it; ``None`` where `root` is no git checkout."""
    try:
        head = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "--show-prefix", "HEAD"],
            capture_output=True, text=True, check=True, timeout=30,
        ).stdout.split("\n")  # fmt: skip
        # A copy of the project inside another repository has a prefix: that repository's commit says nothing.
        if head[0]:
            return None, None
        changes = subprocess.run(
            ["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"],
            capture_output=True, text=True, check=True, timeout=30,
        ).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None, None
    return head[1], bool(changes.strip())


def _cpu_model() -> str:
    """Name the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    """Return the installed version of a package without importing it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def provenance() -> dict[str, Any]:
    """Record when, with which versions and on what hardware a result was made; no paths.

    Returns
    -------
    dict
        ``date`` (UTC); versions as ``python``, ``rcblib``, ``torch``, ``transformers``, ``numpy``;
        ``platform``, ``cpu``, ``n_cpus``, ``gpu`` (``"none"`` without one), ``n_threads`` (torch's);
        ``git_commit`` and ``git_dirty`` (``None`` outside a checkout).
    """
    import torch

    from rcblib import __version__

    try:
        commit, dirty = _git_state(project_root())
    except ParameterError:
        commit, dirty = None, None
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "rcblib": __version__,
        **{package: _version(package) for package in ("torch", "transformers", "numpy")},
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_model(),
        "n_cpus": os.cpu_count(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none",
        "n_threads": torch.get_num_threads(),
        "git_commit": commit,
        "git_dirty": dirty,
    }
