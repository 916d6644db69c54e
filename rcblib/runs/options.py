"""Read the options that commands have in common: paths and numbers, and what is loaded, opened, asked and written."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rcblib.records import ONE_WORD_QUESTION, ParameterError
from rcblib.runs.files import why_not_writable
from rcblib.runs.paths import user_path

IMAGES_HELP = (
    "scenes, large-scenes, groups or videos of the embedded world; photographs, composed ones with masks; sample, a "
    "few plain ones that need no download; coco:<folder>; group:<folder>, its photos as one input; video:<file or "
    "folder of frames>; a folder of photos; or auto, pictures of the model's world, else photographs"
)


def path_option(text: str) -> Path:
    """Read an option that is a path, as `user_path` does; an empty one, as of an unset variable, is an error."""
    if not text:
        raise argparse.ArgumentTypeError("got an empty path; accepted: . for the folder that one is in")
    try:
        return user_path(text)
    except ParameterError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def numbers(text: str) -> str | tuple[int, ...]:
    """Read numbers with commas between them; other text stays text."""
    parts = text.split(",")
    return tuple(int(part) for part in parts) if all(part.strip().isdigit() for part in parts) else text


def results_folder(text: str) -> Path:
    """Read the path of a folder that results go to, for `argparse`; one that cannot be written is an error at once."""
    return _writable(text, is_folder=True)


def results_file(text: str) -> Path:
    """Read the path of a file that is written, for `argparse`, as `results_folder`."""
    return _writable(text, is_folder=False)


def _writable(text: str, is_folder: bool) -> Path:
    path = path_option(text)
    if reason := why_not_writable(path, is_folder):
        raise argparse.ArgumentTypeError(f"{str(path)!r} {reason}")
    return path


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


def add_pruners(parser: argparse.ArgumentParser) -> None:
    """Add which methods answer too, and at which budgets."""
    parser.add_argument(
        "--pruner",
        action="extend",
        nargs="+",
        default=[],
        metavar="NAME:PARAMETER=VALUE,...",
        help="registered methods; at every --retain-ratio unless it has a budget (default: random "
        "tokens, and most and least similar to [CLS])",
    )
    parser.add_argument(
        "--every-method",
        action="store_true",
        help="all registered methods that serve the model in place of --pruner, and variants of two of them",
    )
    parser.add_argument(
        "--variants-at", type=float, default=0.2, help="the share at which there are variants (default: 0.2)"
    )
    parser.add_argument(
        "--codebook", help="a codebook's name or folder, a released one's name, or its .pt file"
    )
    parser.add_argument("--rule", default="max_cosine", help="how a codebook scores (default: max_cosine)")
    parser.add_argument("--max-similarity", type=float, nargs="+", default=[], help="cosine cut-offs")
    parser.add_argument(
        "--n-calibration",
        type=int,
        help="also prune by cut-offs that retain each share on average over so many images",
    )
    parser.add_argument("--calibration-split", default="train", help="where those are from (default: train)")
    parser.add_argument("--retain-ratio", type=float, nargs="+", default=[], help="shares of tokens to keep")
    parser.add_argument(
        "--random-seeds", type=int, default=1, help="draws of the random baseline at each share (default: 1)"
    )
    add_turn(parser)


def add_codebook(parser: argparse.ArgumentParser) -> None:
    """Add what a codebook is built from, how, and where to."""
    parser.add_argument("--probed", type=path_option, required=True, help="folder that `probe` wrote")
    parser.add_argument("--criterion", required=True, help="a preset's name, or a JSON file")
    parser.add_argument("--folder", type=results_folder, required=True, help="where the codebook is written")
    parser.add_argument(
        "--pool",
        type=results_folder,
        help="keep what images add to the codebook's pool here, where it is more than memory holds; a run that was "
        "killed goes on there (default: in memory)",
    )
    parser.add_argument("--device", default="cpu", help="where the pool is clustered (default: cpu)")
    parser.add_argument("--seed", type=int, help="draw the noise that breaks ties (default: no noise)")


def add_scorer(parser: argparse.ArgumentParser) -> None:
    """Add what a scorer is fitted to, how, and where it goes."""
    parser.add_argument(
        "--probed", type=path_option, required=True, help="folder that `probe` wrote, or a recorded table"
    )
    parser.add_argument("--penalty", type=float, default=0.01, help="of the ridge regression (default: 0.01)")
    parser.add_argument("--folder", type=results_folder, required=True, help="where the scorer is written")


def add_gates(parser: argparse.ArgumentParser) -> None:
    """Add what gates measure."""
    parser.add_argument(
        "--retain-ratio", type=float, nargs="+", default=[0.2, 0.1], help="budgets of the oracle (0.2 0.1)"
    )
    parser.add_argument(
        "--n-token-images", type=int, default=20, help="images whose tokens are measured (default: 20)"
    )
    parser.add_argument(
        "--influence",
        nargs="?",
        type=int,
        const=sys.maxsize,
        default=0,
        metavar="K",
        help="measure the influence of tokens too, of the first K of these images (without a number of all), to "
        "compare training seeds",
    )


def add_folder(parser: argparse.ArgumentParser) -> None:
    """Add where results are kept."""
    parser.add_argument(
        "--folder",
        type=results_folder,
        required=True,
        help="results; what is there is not computed again, so that a run that was killed goes on",
    )


def add_positions(parser: argparse.ArgumentParser) -> None:
    """Add what tokens are asked, and which."""
    parser.add_argument("--question", default=ONE_WORD_QUESTION)
    parser.add_argument(
        "--positions",
        type=numbers,
        default="all",
        help="all; paper_ranks (of [CLS] similarity); paper_positions (the same numbers on the grid, for encoders "
        "without [CLS]); codebook (whichever of the two the model allows); grid; or numbers with commas between them "
        "(default: all)",
    )
    parser.add_argument(
        "--views",
        type=numbers,
        default="all",
        help="grids of an image: all; base (without tiles); or numbers with commas between them (default: all)",
    )


def add_probe(parser: argparse.ArgumentParser) -> None:
    """Add what is probed, and how."""
    add_positions(parser)
    parser.add_argument("--batch-size", type=int, help="inputs a pass (default: as many as memory holds)")
    parser.add_argument("--sharing", default="auto", help="of what inputs begin with: auto, always or never")
    parser.add_argument("--compiled", action="store_true", help="compile passes, for many images on a GPU")
    parser.add_argument("--no-attention", dest="attention", action="store_false", help="leave attention out")
    parser.add_argument(
        "--shared",
        action="store_true",
        help="keep results of other settings, models and images in the same folder, each in a folder of its own",
    )


def add_truth(parser: argparse.ArgumentParser) -> None:
    """Add what the truth of redundancy is measured by."""
    parser.add_argument("--n-questions", type=int, default=4, help="questions about each image (default: 4)")
    parser.add_argument(
        "--positions",
        type=numbers,
        default="all",
        help="tokens of each view: all, grid, or numbers (default: all)",
    )
    parser.add_argument("--n-side", type=int, default=8, help="tokens along each side for grid (default: 8)")
    parser.add_argument("--sharing", default="auto", help="of what inputs begin with: auto, always or never")
    parser.add_argument(
        "--rerender",
        action="store_true",
        help="draw pictures again without one object too: drawn scenes; photographs where their pictures were fetched",
    )
    parser.add_argument(
        "--ranks",
        action="store_true",
        help="signals as ranks inside their view, which take a third of the room",
    )
    parser.add_argument("--codebook", help="a codebook of the model's, whose rules are signals then")
    parser.add_argument(
        "--scorer", help="of the pruner distilled from probing, whose choice is a signal then"
    )


def add_turn(parser: argparse.ArgumentParser) -> None:
    """Add which settings are asked, where a few are to show that a table is still right."""
    parser.add_argument(
        "--settings",
        metavar="I/N",
        help="only every N-th setting, a method with its budget and draw, from the I-th on (default: all)",
    )


def add_exhibits(parser: argparse.ArgumentParser) -> None:
    """Add all that the command `explorer` asks for: of which model and images, with which methods, and where to."""
    add_model(parser)
    add_images(parser)
    add_folder(parser)
    parser.add_argument(
        "--shown", help="ids of the images that are shown, with commas between them (default: a rule chooses)"
    )
    parser.add_argument("--n-shown", type=int, default=12, help="how many the rule chooses (default: 12)")
    add_positions(parser)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-new-tokens", type=int, default=16)
    parser.add_argument(
        "--codebook", help="a codebook's name or folder, a released one's name, or its .pt file"
    )
    parser.add_argument("--rule", help="how a codebook scores (default: as released for the family)")
    parser.add_argument("--pruner", nargs="+", metavar="NAME", help="registered methods (default: all)")
    parser.add_argument("--retain-ratio", type=float, nargs="+", help="up to six shares of tokens to keep")
    add_turn(parser)
    parser.add_argument(
        "--more",
        nargs="*",
        choices=["removed", "replaced"],
        help="only choices and answers, without words: to add methods, or ways to drop, to --recorded (removed)",
    )
    parser.add_argument(
        "--recorded",
        type=path_option,
        nargs="+",
        help="a table that --table wrote, and those of --more, in place of running the model",
    )
    parser.add_argument("--probed", type=path_option, help="folder that `probe` wrote, or its recorded table")
    parser.add_argument("--page", type=results_folder, help="where the page is written; needs --probed")
    add_table(parser)


def add_table(parser: argparse.ArgumentParser) -> None:
    """Add where all rows go, and which share of the images is worked on."""
    parser.add_argument(
        "--table", type=results_file, help="also write all rows into one Parquet file, when they are there"
    )
    parser.add_argument("--shard", metavar="I/N", help="only the I-th of N shares of the images")
    parser.add_argument("--first", type=int, metavar="K", help="only the first K images, of those opened")


def add_shards(parser: argparse.ArgumentParser) -> None:
    """Add which tables of shards are put together, and where to."""
    parser.add_argument(
        "shards", type=path_option, nargs="+", help="tables that --table wrote, or a folder of them"
    )
    parser.add_argument(
        "--table",
        type=results_file,
        help="written, with a record beside it (default: shards are only checked)",
    )


def add_submission(parser: argparse.ArgumentParser) -> None:
    """Add which results are handed in, under which name, and where to."""
    parser.add_argument(
        "results", type=path_option, nargs="+", help="JSON files that notebooks wrote, or a folder of them"
    )
    parser.add_argument("--name", required=True, help="what it is called: small letters, digits, dashes")
    parser.add_argument("--remark", default="", help="a line about it")
    parser.add_argument(
        "--folder",
        type=results_folder,
        help="gets a folder of this name (default: data/recorded/contributed)",
    )


def add_upload(parser: argparse.ArgumentParser) -> None:
    """Add what is uploaded to the Hugging Face Hub, and where to."""
    parser.add_argument("repository", help="owner/name on the Hub; `hf auth login` first")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--codebook", help="a codebook's name or folder: goes to a model repository")
    what.add_argument("--explorer", type=path_option, help="folder of an explorer: becomes a static Space")
    parser.add_argument("--private", action="store_true", help="make a new repository private")


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
