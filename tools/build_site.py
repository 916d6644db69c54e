"""Build the site: write its configuration and its pages' sources, make pages of them, make them light, check them.

One process does it all, because starting one takes as long as most steps. Jupyter Book's command reads and writes the
pages one after another; the function behind it takes a number of jobs.

    python -m tools.build_site [--jobs N] [--repository URL] [--branch NAME]      as tools/make_config.py
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

from jupyter_book.sphinx import build_sphinx
from sphinx.ext import apidoc

from rcblib.runs.command import OneLineParser
from tools import check_site, lighten_site, make_config, make_elsewhere, make_pages, make_status

ROOT = Path(__file__).resolve().parents[1]

PACKAGES = ("rcblib", "worlds", "benchmarks")
"""Packages whose docstrings are pages."""


def write_api() -> int:
    """Write a page a module; files whose text stays the same are left alone, so that Sphinx skips them."""
    options = ["--force", "--no-toc", "--templatedir", str(ROOT / "book/_templates")]
    options += ["--output-dir", str(ROOT / "book/api")]
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # a line a file
        return max((apidoc.main([*options, str(ROOT / package)]) for package in PACKAGES), default=0)


def build_pages(jobs: int) -> int:
    """Make the pages; a warning is an error, told after all pages."""
    built = ROOT / "book/_build"
    status = build_sphinx(
        ROOT / "book",
        built / "html",
        noconfig=True,
        path_config=built / "config.yml",
        confoverrides={"external_toc_path": str(built / "toc.yml"), "latex_individualpages": False},
        warningiserror=True,
        keep_going=True,
        jobs=jobs,
    )
    return status if isinstance(status, int) else 1


def main(arguments: list[str]) -> int:
    """Run the steps one after the other, up to one that fails; return its status."""
    parser = OneLineParser(prog="build_site", description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1, help="processes that read and write pages")
    for name in ("--repository", "--branch"):
        parser.add_argument(name, help="as make_config takes it")
    options = parser.parse_args(arguments)
    given = {"--repository": options.repository, "--branch": options.branch}
    others = [f"{name}={value}" for name, value in given.items() if value is not None]
    steps: list[Callable[[], int]] = [
        lambda: make_config.main(others),
        write_api,
        lambda: make_pages.main([]),
        make_status.main,
        make_elsewhere.main,
        lambda: build_pages(options.jobs),
        lambda: lighten_site.main([str(ROOT / "book/_build/html"), "--jobs", str(options.jobs)]),
        lambda: check_site.main([str(ROOT / "book/_build/html")]),
    ]
    return next((status for step in steps if (status := step())), 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
