"""Run the contract tests of adapters and pruners with the oldest or the newest transformers that the project accepts.

Each release is installed into a folder of its own that stands in front of the environment, which stays as it is; so is
what it asks for in versions that the environment has not.

    python -m tools.other_transformers oldest newest --folder FOLDER
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path

from packaging.requirements import Requirement

from rcblib.runs.command import OneLineParser

ROOT = Path(__file__).resolve().parents[1]
CONTRACT = (
    "test_adapters", "test_mllm", "test_mllm_checkpoint", "test_mllm_frames", "test_mllm_layers",
    "test_mllm_placement", "test_mllm_qwen2_5_vl", "test_mllm_tiles", "test_mllm_wrapping", "test_prompt",
    "test_pruner_contract", "test_pruners", "test_pruners_conversation", "test_pruners_threads",
    "test_pruners_tiles",
)  # fmt: skip


def accepted(root: Path = ROOT) -> Requirement:
    """Return the range of transformers in pyproject.toml."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return next(own for own in map(Requirement, project["dependencies"]) if own.name == "transformers")


def asked(which: str, requirement: Requirement) -> str:
    """Return what pip is asked for: the first release of a range, or the range, of which pip takes the last."""
    if which == "newest":
        return str(requirement)
    (lowest,) = (part.version for part in requirement.specifier if part.operator == ">=")
    return f"transformers=={lowest}"


def unmet(lines: Sequence[str]) -> list[str]:
    """List the requirements that the environment does not meet."""
    missing = []
    for requirement in map(Requirement, lines):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            is_met = requirement.specifier.contains(version(requirement.name), prereleases=True)
        except PackageNotFoundError:
            is_met = False
        if not is_met:
            missing.append(f"{requirement.name}{requirement.specifier}")
    return missing


def install(which: str, folder: Path) -> str:
    """Install a release into a folder, with what the environment lacks for it, and return its version."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--no-deps", "--upgrade"]
    subprocess.run([*pip, "--target", folder, asked(which, accepted())], check=True)
    (found,) = distributions(name="transformers", path=[str(folder)])
    if missing := unmet(found.requires or []):
        subprocess.run([*pip, "--target", folder, *missing], check=True)
    return found.version


def main(arguments: Sequence[str] | None = None) -> int:
    """Install and test each release; return 1 if a test fails on one of them."""
    parser = OneLineParser(prog="other_transformers", description=__doc__.splitlines()[0])
    parser.add_argument("which", nargs="+", choices=("oldest", "newest"))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--cores", default="2")
    options = parser.parse_args(arguments)
    results = {}
    for which in options.which:
        folder = (options.folder / which).resolve()
        release = install(which, folder)
        print(f"{which}: transformers {release}", flush=True)
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
            "OMP_NUM_THREADS": "1",
        }
        tests = [f"tests/{name}.py" for name in CONTRACT]
        command = [sys.executable, "-m", "pytest", "-q", "-n", options.cores, *tests]
        results[release] = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    for release, code in results.items():
        print(f"transformers {release}: {'passed' if code == 0 else 'FAILED'}")
    return int(any(results.values()))


if __name__ == "__main__":
    sys.exit(main())
