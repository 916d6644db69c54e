"""Run commands whose wrong inputs end in one line: a parser, its usual arguments, and a guard, for every command."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from rcblib.records import CodebookError, ImageError, ParameterError, UnsupportedModelError
from rcblib.runs.paths import user_path

IMAGES_HELP = (
    "scenes, large-scenes, groups or videos of the embedded world; coco:<folder>; group:<folder>, its photos as one "
    "input; video:<file or folder of frames>; a folder of photos; or auto, scenes of the model's world"
)

WRONG_INPUT = 2
"""Exit status after a wrong input."""


class OneLineParser(argparse.ArgumentParser):
    """Report a wrong argument in one line."""

    def error(self, message: str) -> NoReturn:
        """Print the message on standard error and end with `WRONG_INPUT`."""
        self.exit(WRONG_INPUT, f"{self.prog}: {message}\n")


def run_command(name: str, run: Callable[[], Any]) -> int:
    """Run a command; tell a wrong input, and each warning once, in one line on standard error.

    Parameters
    ----------
    name : str
        What the lines begin with.
    run : callable
        Does the work.

    Returns
    -------
    int
        Exit status: 0, or `WRONG_INPUT`.
    """
    try:
        with _warnings_in_one_line(name):
            run()
    except (ParameterError, UnsupportedModelError, CodebookError, ImageError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return WRONG_INPUT
    return 0


@contextmanager
def _warnings_in_one_line(name: str) -> Iterator[None]:
    """Tell the library's warnings once each, on standard error, without a place in the code."""
    told: set[str] = set()

    def tell(message: Warning | str, category: type[Warning], *place: Any, **options: Any) -> None:
        if not issubclass(category, UserWarning):
            shown(message, category, *place, **options)
        elif str(message) not in told:
            told.add(str(message))
            print(f"{name}: warning: {message}", file=sys.stderr, flush=True)

    with warnings.catch_warnings():
        shown, warnings.showwarning = warnings.showwarning, tell
        yield


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add what a command that loads a model asks for."""
    parser.add_argument(
        "--model", required=True, help="a model's name (see models), a folder, or a Hugging Face id"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", help="auto, float32, float16 or bfloat16")
    parser.add_argument(
        "--device-map", help="spread the model over devices: auto, balanced, balanced_low_0 or sequential"
    )
    parser.add_argument("--quantization", help="4bit: store the LLM's linear layers as 4-bit numbers (CUDA)")


def add_questions(parser: argparse.ArgumentParser) -> None:
    """Add which questions are asked, and how many together."""
    parser.add_argument(
        "--tasks",
        nargs="+",
        help="question families; kinds of questions about groups or videos (default: all that the images allow)",
    )
    parser.add_argument("--n-per-task", type=int, help="questions a family (default: all there are)")
    parser.add_argument("--n-yes-no", type=int, help="yes/no questions (default: as many as of any family)")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument(
        "--images-per-part", type=int, help="images whose questions are answered together (default: all)"
    )


def add_table(parser: argparse.ArgumentParser) -> None:
    """Add where all rows go, and which share of the images is worked on."""
    parser.add_argument(
        "--table", type=path_option, help="also write all rows into one Parquet file, when they are there"
    )
    parser.add_argument("--shard", metavar="I/N", help="only the I-th of N shares of the images")
    parser.add_argument("--first", type=int, metavar="K", help="only the first K images, of those opened")


def add_images(parser: argparse.ArgumentParser) -> None:
    """Add which images are opened."""
    parser.add_argument("--images", required=True, help=IMAGES_HELP)
    parser.add_argument("--split", help="of scenes or COCO")
    parser.add_argument("--n-images", type=int, help="the first so many (default: all; needed for scenes)")
    parser.add_argument("--seed", type=int, default=0, help="of scenes, and of the choice of questions")
    parser.add_argument(
        "--on-error",
        choices=("stop", "skip"),
        default="stop",
        help="what to do about images that cannot be read: stop before any work and name them all, or skip them and "
        "keep their names in skipped/ beside the results (default: stop)",
    )


def path_option(text: str) -> Path:
    """Read an option that is a path, as `user_path` does."""
    try:
        return user_path(text)
    except ParameterError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def numbers(text: str) -> str | tuple[int, ...]:
    """Read numbers with commas between them; other text stays text."""
    parts = text.split(",")
    return tuple(int(part) for part in parts) if all(part.strip().isdigit() for part in parts) else text
