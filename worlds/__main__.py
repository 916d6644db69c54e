"""Train embedded models, write their cards, draw scenes: ``python -m worlds --help`` lists what can be run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from rcblib.runs.command import OneLineParser, run_command
from rcblib.runs.options import results_folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    arguments : sequence of str, optional
        Command and options; by default those of the process.

    Returns
    -------
    int
        Exit status as `run_command` returns it; what went wrong is told in one line on standard error.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    command, rest = (arguments[0] if arguments else ""), arguments[1:]
    if command == "train":  # its options are the recipe's own
        from worlds.training.stages import main as train

        return run_command("worlds train", lambda: train(rest))
    if command == "card":  # and those of the card
        from worlds.model_card import main as card

        return run_command("worlds card", lambda: card(rest))
    options = _parser().parse_args(arguments)
    return run_command(f"worlds {command}", lambda: options.run(options))


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="worlds", description="The embedded worlds and their models.")
    commands = parser.add_subparsers(
        title="commands", required=True, metavar="<command>", parser_class=OneLineParser
    )
    commands.add_parser("train", help="train an embedded model (see `train --help`)", add_help=False)
    commands.add_parser("card", help="score a model and write its card (see `card --help`)", add_help=False)
    scenes = commands.add_parser("scenes", help="write images of the drawn world in COCO's format")
    scenes.add_argument("--folder", type=results_folder, required=True, help="where they are written")
    scenes.add_argument("--n", type=int, help="so many new scenes (default: the sample of the project)")
    scenes.add_argument("--split", default="validation", help="train, validation or test, with --n")
    scenes.add_argument("--seed", type=int, default=0, help="stream of scenes, with --n")
    scenes.set_defaults(run=_scenes)
    fetch = commands.add_parser("fetch", help="fetch the pictures that photographs are composed of (Debian)")
    fetch.add_argument("--folder", type=results_folder, help="where they go (default: the user's cache)")
    fetch.set_defaults(run=_fetch)
    reading = commands.add_parser(
        "photographs",
        help="write the sample; train the models, a stage at a time; score them, write their cards",
    )
    reading.add_argument(
        "--stage",
        required=True,
        help="sample; features, words-<seed>, symbols, all-<seed>, dropped-<seed>; scores; card",
    )
    reading.add_argument(
        "--folder",
        type=results_folder,
        required=True,
        help="of the sample; of features, checkpoints, weights and logs; or of the model in data/models",
    )
    reading.add_argument("--split", default="validation", help="scores: validation or test")
    reading.add_argument(
        "--scale", type=float, default=1.0, help="scores: factor of the numbers of questions"
    )
    reading.add_argument(
        "--again", action="store_true", help="scores: of a test split that was scored before"
    )
    reading.add_argument("--threads", type=int, help="cores (default: all)")
    reading.set_defaults(run=_photographs)
    return parser


def _fetch(options: argparse.Namespace) -> None:
    from worlds.photographs.sources import default_folder, fetch

    fetch(options.folder or default_folder())


def _photographs(options: argparse.Namespace) -> Any:
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    if options.stage == "sample":
        from worlds.photographs.dataset import write_sample

        return write_sample(options.folder)
    if options.stage == "scores":
        from worlds.photographs.scores import write_scores

        return write_scores(options.folder, options.split, scale=options.scale, again=options.again)
    if options.stage == "card":
        from worlds.photographs.card import write_card

        return write_card(options.folder)
    from worlds.photographs.training import PhotographRecipe, train_stage

    train_stage(options.stage, options.folder, PhotographRecipe())


def _scenes(options: argparse.Namespace) -> None:
    from worlds.datasets import SceneDataset, write_sample
    from worlds.scenes.coco import export_coco
    from worlds.scenes.generator import generate_scene

    if options.n is None:
        write_sample(options.folder)
    else:
        n = len(SceneDataset(options.split, options.n, seed=options.seed))
        scenes = (generate_scene(options.seed, i, options.split) for i in range(n))
        export_coco(scenes, options.folder, options.split)
    print(f"scenes in {options.folder}")


if __name__ == "__main__":
    sys.exit(main())
