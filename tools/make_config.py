"""Write the configuration and table of contents that a build of the book uses.

``_config.yml`` and ``book/_toc.yml`` are the sources. Added here: the repository's address, where one is
known (from ``--repository``, else the environment variable ``RCB_REPOSITORY``, else the remote ``origin``),
with the buttons that need it; and the notebooks of workflow/notebooks.yml in place of the entry
``glob: notebooks/*``. With an address, the copies of the notebooks that the buttons open are written too (see
tools/stamp_notebooks.py).

    python -m tools.make_config [--repository URL] [--branch NAME]
"""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rcblib.runs.command import OneLineParser
from tools.notebook_list import NotebookList, read_notebook_list
from tools.stamp_notebooks import LAUNCH_BRANCH, launch_folder, normalize_repository, stamp_project
from tools.write_parts import write_parts

ROOT = Path(__file__).resolve().parents[1]


def repository_url(root: Path, environment: Mapping[str, str]) -> str | None:
    """Find the web address: ``RCB_REPOSITORY`` where set (empty: none), else that of the remote ``origin``."""
    if "RCB_REPOSITORY" in environment:
        return normalize_repository(environment["RCB_REPOSITORY"])
    command = ["git", "-C", str(root), "remote", "get-url", "origin"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return normalize_repository(answer.stdout) if answer.returncode == 0 else None


def repository_branch(environment: Mapping[str, str]) -> str:
    """Return the branch, tag or commit that published notebooks check out: ``RCB_BRANCH``, else ``main``."""
    return environment.get("RCB_BRANCH") or "main"


def build_config(config: dict[str, Any], repository: str | None, branch: str) -> dict[str, Any]:
    """Add the repository's address and the buttons that need it; without an address nothing changes.

    Colab opens notebooks of GitHub only, so its button and badges are left out for other hosts. What they open
    are the stamped copies on their own branch, in the folder ``notebooks/`` as in the book; hence the empty
    path to the book.
    """
    config = copy.deepcopy(config)
    if repository is None:
        return config
    config["repository"] = {"url": repository, "branch": branch, "path_to_book": ""}
    config.setdefault("html", {})["use_repository_button"] = True
    opened = launch_folder(repository)
    if opened:
        config["repository"]["branch"] = LAUNCH_BRANCH
        config["launch_buttons"] = {"colab_url": "https://colab.research.google.com"}
        config.setdefault("sphinx", {}).setdefault("config", {})["launch_folder"] = opened
    return config


def build_toc(toc: dict[str, Any], replacements: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Replace the entries ``glob: <pattern>`` by the entries listed for it, in the order given.

    A part whose chapters all vanish is left out, because a caption without chapters is an error.
    """

    def expand(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        expanded = []
        for entry in entries:
            if entry.get("glob") in replacements:
                expanded += replacements[entry["glob"]]
            elif "sections" in entry:
                expanded.append({**entry, "sections": expand(entry["sections"])})
            else:
                expanded.append(entry)
        return expanded

    toc = copy.deepcopy(toc)
    parts = [{**part, "chapters": expand(part["chapters"])} for part in toc.get("parts", [])]
    toc["parts"] = [part for part in parts if part["chapters"]]
    return toc


def notebook_entries(listed: NotebookList) -> list[dict[str, Any]]:
    """List the pages of the notebooks, one an experiment."""
    return [{"file": entries[0].page} for entries in listed.experiments.values()]


def address_note(repository: str | None) -> str:
    """Say on top of the pages on running whether this build knows the repository's address, and what follows."""
    if repository is None:
        return (
            "```{admonition} This build knows no address of its repository\n:class: note\n"
            "So no page has a badge or button that opens its notebook. Set "
            "`RCB_REPOSITORY=https://github.com/<owner>/<name>` (or git's remote `origin`) and build again: "
            "[](colab.md) says what then appears.\n```\n"
        )
    opens = (
        "each notebook's page has a badge and a button that open it on Colab"
        if launch_folder(repository)
        else "Colab opens notebooks of GitHub only, so there are no badges"
    )
    return f"This build was made for <{repository}>: {opens}.\n"


def main(arguments: list[str]) -> int:
    """Write ``book/_build/config.yml``, ``book/_build/toc.yml`` and, for buttons, ``book/_build/launch/``."""
    parser = OneLineParser(prog="make_config", description=__doc__.splitlines()[0])
    parser.add_argument("--repository", help="address of the repository; empty: none")
    parser.add_argument("--branch", default=repository_branch(os.environ))
    options = parser.parse_args(arguments)
    given = options.repository
    repository = repository_url(ROOT, os.environ) if given is None else normalize_repository(given)

    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text(encoding="utf-8"))
    listed = read_notebook_list(ROOT / "workflow" / "notebooks.yml")
    replacements = {"notebooks/*": notebook_entries(listed)}
    folder = ROOT / "book" / "_build"
    (folder / "extra").mkdir(parents=True, exist_ok=True)  # what Sphinx copies into the site as it is
    from tools.make_support import substitutions  # late, as it takes torch, and rules of the workflow do not

    config["sphinx"]["config"]["myst_substitutions"] = substitutions()
    config["sphinx"]["local_extensions"] = {"book_extension": str(ROOT / "tools")}
    config["sphinx"]["config"]["html_search_scorer"] = str(ROOT / "tools" / "search_scorer.js")
    built = {
        "config.yml": build_config(config, repository, options.branch),
        "toc.yml": build_toc(toc, replacements),
    }
    for name, content in built.items():
        (folder / name).write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    write_parts(folder / "address", {"note": address_note(repository)})
    shutil.rmtree(folder / "launch", ignore_errors=True)  # of an earlier build that knew an address
    if repository is not None:
        stamp_project(ROOT, folder / "launch" / "notebooks", repository, options.branch)
    print(f"repository: {repository or 'none known; its buttons are left out'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
