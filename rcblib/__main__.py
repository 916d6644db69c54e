"""Run the library from the command line: ``python -m rcblib --help`` lists what can be run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rcblib import __version__
from rcblib.commands import add_commands
from rcblib.records import ParameterError
from rcblib.runs.command import OneLineParser, run_command
from rcblib.runs.options import (
    add_codebook,
    add_exhibits,
    add_folder,
    add_gates,
    add_images,
    add_model,
    add_probe,
    add_pruners,
    add_questions,
    add_scorer,
    add_table,
    add_truth,
)

if TYPE_CHECKING:
    from rcblib.data.base import AnySample
    from rcblib.records import ImageId, Question


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
    options = _parser().parse_args(arguments)
    kept = options.folder if options.command in ("probe", "evaluate", "gates", "truth", "explorer") else None
    return run_command(f"rcblib {options.command}", lambda: options.run(options), kept)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="rcblib", description="Explain visual redundancy in multimodal LLMs.")
    parser.add_argument("--version", action="version", version=f"rcblib {__version__}")
    commands = parser.add_subparsers(
        title="commands", required=True, dest="command", metavar="<command>", parser_class=OneLineParser
    )

    probe = commands.add_parser("probe", help="measure every signal of the visual tokens of some images")
    add_model(probe)
    add_images(probe)
    add_folder(probe)
    add_probe(probe)
    add_table(probe)
    probe.set_defaults(run=_probe)

    for name, told, add_own, run in (
        ("codebook", "build a codebook from probed images", add_codebook, _codebook),
        ("scorer", "fit a scorer of visual tokens to probed images", add_scorer, _scorer),
    ):
        command = commands.add_parser(name, help=told)
        add_own(command)
        command.set_defaults(run=run)

    for name, told, add_own, run in (
        ("evaluate", "answer questions with and without pruning", add_pruners, _evaluate),
        ("gates", "measure what has to hold before a verdict means anything", add_gates, _gates),
        ("truth", "measure what each token is needed for, beside every signal of it", add_truth, _truth),
    ):
        command = commands.add_parser(name, help=told)
        add_model(command)
        add_images(command)
        add_folder(command)
        add_questions(command)
        add_own(command)
        add_table(command)
        command.set_defaults(run=run)

    explorer = commands.add_parser(
        "explorer", help="write a page on which a reader points at the tokens of probed images"
    )
    add_exhibits(explorer)
    explorer.set_defaults(run=_explorer)

    add_commands(commands)
    return parser


def _asked(options: argparse.Namespace) -> tuple[str, str | None, int | None]:
    """Return the name of the images, that of the model's world for ``auto``, their split and number."""
    from rcblib.data.opening import OTHER_WORLD
    from rcblib.mllm.loading import model_folder
    from rcblib.runs.files import read_json

    images = options.images
    if images == "auto":
        folder = model_folder(options.model)
        is_there = folder is not None and (folder / "config.json").is_file()
        images = (read_json(folder / "config.json") if is_there else {}).get("rcb_world", OTHER_WORLD)
    return images, options.split, options.n_images


def _samples(options: argparse.Namespace) -> tuple[Sequence[AnySample], dict[ImageId, str]]:
    from rcblib.data.opening import open_noted

    return open_noted(options.folder, *_asked(options), seed=options.seed, on_error=options.on_error)


def _model(options: argparse.Namespace, samples: Sequence[AnySample]) -> tuple[Any, Any]:
    """Load the model, and say where the samples are not of its world."""
    from rcblib.data.opening import world_note
    from rcblib.mllm import load_model

    model, processor = load_model(
        options.model,
        options.device,
        options.dtype,
        device_map=options.device_map,
        quantization=options.quantization,
    )
    if note := world_note(model, samples):
        print(note, flush=True)
    return model, processor


def _probe(options: argparse.Namespace) -> None:
    from dataclasses import replace

    from rcblib.data.base import check_apart
    from rcblib.data.opening import folder_of, open_dataset
    from rcblib.mllm import adapter_for
    from rcblib.probe.config import ProbeConfig, codebook_positions
    from rcblib.probe.store import probe_dataset, shared_folder
    from rcblib.runs.files import write_table
    from rcblib.runs.shards import Shard

    shard = Shard.parse(options.shard, options.first)
    by_family = options.positions == "codebook"
    config = ProbeConfig(
        question=options.question,
        positions="all" if by_family else options.positions,
        views=options.views,
        sharing=options.sharing,
        batch_size=options.batch_size,
        compiled=options.compiled,
        attention=options.attention,
    )
    samples = open_dataset(*_asked(options), seed=options.seed, on_error=options.on_error)
    check_apart(folder_of(options.images), options.folder)
    model, processor = _model(options, samples)
    if by_family:
        config = replace(config, positions=codebook_positions(adapter_for(model, processor)))
    folder = options.folder
    if options.shared:
        folder = shared_folder(model, processor, samples, config, folder)
    results = probe_dataset(model, processor, samples, config, folder, on_error=options.on_error, shard=shard)
    if options.table:
        write_table(options.table, results.table, results.facts)
    print(f"{len(results.table)} positions of {len(results.tokens)} images in {options.folder}")


def _codebook(options: argparse.Namespace) -> None:
    import torch

    from rcblib.codebook.build import build_codebook_by_image
    from rcblib.codebook.criterion import CodebookCriterion
    from rcblib.codebook.pooling import ProbedImage
    from rcblib.probe.store import read_probe_by_image

    criterion = CodebookCriterion.from_preset(options.criterion)
    description, probed = read_probe_by_image(options.probed)
    generator = None if options.seed is None else torch.Generator().manual_seed(options.seed)
    codebook = build_codebook_by_image(
        (ProbedImage.from_table(table, tokens) for table, tokens in probed),
        criterion,
        generator,
        pool=options.pool or "",
        device=options.device,
        family=description["family"],
        metadata={name: description[name] for name in ("model", "model_fingerprint", "config")},
    )
    codebook.save_pretrained(options.folder)
    print(f"{len(codebook)} prototypes from {len(set(codebook.image_ids))} images in {options.folder}")


def _scorer(options: argparse.Namespace) -> None:
    from rcblib.pruners.fitting import write_scorer

    print(write_scorer(options.probed, options.folder, options.penalty))


def _questions(options: argparse.Namespace, samples: Sequence[AnySample]) -> list[Question]:
    """Draw the questions asked for; with numbers that are out of range, before a model is loaded."""
    from rcblib.data.questions import questions_by_task
    from rcblib.tensors.checks import check_integer

    check_integer("batch_size", options.batch_size, 1)
    check_integer("max_new_tokens", options.max_new_tokens, 1)
    return questions_by_task(samples, options.tasks, options.n_per_task, options.seed, options.n_yes_no)


def _asking(
    options: argparse.Namespace,
) -> tuple[Any, Any, Sequence[AnySample], list[Question], dict[ImageId, str]]:
    """Open what is asked: model, processor, samples that fit, questions, and what was left out, and why."""
    from rcblib.data.opening import fitting_noted
    from rcblib.mllm import adapter_for

    samples, skipped = _samples(options)
    if not hasattr(samples, "questions"):  # each family of questions would draw, or read, all of them again
        samples = list(samples)
    questions = _questions(options, samples)
    model, processor = _model(options, samples)
    limit = adapter_for(model, processor).size_limit
    fitting, skipped = fitting_noted(options.folder, samples, skipped, limit, options.on_error)
    return (
        model,
        processor,
        fitting,
        questions if fitting is samples else _questions(options, fitting),
        skipped,
    )


def _truth(options: argparse.Namespace) -> None:
    from rcblib.codebook.codebook import load_codebook
    from rcblib.codebook.scorer import load_scorer
    from rcblib.evaluate.truth import TOKENS, TruthConfig, measure_truth, part_of
    from rcblib.runs.files import write_table
    from rcblib.runs.shards import Shard

    shard = Shard.parse(options.shard, options.first)
    names = ("n_questions", "positions", "n_side", "rerender", "ranks", "seed", "sharing", "batch_size")
    config = TruthConfig(**{name: getattr(options, name) for name in names})
    codebook = load_codebook(options.codebook) if options.codebook else None
    scorer = load_scorer(options.scorer) if options.scorer else None
    model, processor, samples, questions, skipped = _asking(options)
    settings = {"folder": options.folder, "shard": shard, "skipped": skipped}
    table, facts = measure_truth(model, processor, questions, samples, config, codebook, scorer, **settings)
    if options.table:
        write_table(options.table, table, facts)
    for name, why in facts["left_out"].items():
        print(f"no rank by {name}: {why}")
    print(f"{len(part_of(table, TOKENS))} tokens of {len(facts['samples'])} images in {options.folder}")


def _gates(options: argparse.Namespace) -> None:
    from rcblib.evaluate.gates import ANSWERS, conditions, measure_gates, part_of
    from rcblib.runs.files import write_table
    from rcblib.runs.shards import Shard

    shard = Shard.parse(options.shard, options.first)
    conditions(options.retain_ratio)  # so that a wrong budget ends before a model is loaded
    model, processor, samples, questions, skipped = _asking(options)
    table, facts = measure_gates(
        model,
        processor,
        questions,
        samples,
        options.retain_ratio,
        options.n_token_images,
        n_influence_images=options.influence,
        batch_size=options.batch_size,
        max_new_tokens=options.max_new_tokens,
        folder=options.folder,
        images_per_part=options.images_per_part,
        shard=shard,
        skipped=skipped,
    )
    if options.table:
        write_table(options.table, table, facts)
    groups = part_of(table, ANSWERS).groupby(["method", "retain_ratio", "task"], sort=False)
    print(
        groups.agg(n=("score", "size"), score=("score", "mean"), guess=("guess", "mean")).round(3).to_string()
    )


def _evaluate(options: argparse.Namespace) -> None:
    from rcblib.codebook.codebook import load_codebook
    from rcblib.data.opening import fitting_noted
    from rcblib.evaluate.parts import evaluate_parts, scores_text
    from rcblib.mllm import adapter_for
    from rcblib.pruners.asked import asked_pruners, calibrated_cut_offs, cut_off_pruners, in_turn
    from rcblib.pruners.every import every_pruner, variant_pruners
    from rcblib.runs.files import write_table
    from rcblib.runs.shards import Shard, turn_of

    # Everything that can be wrong is looked at before a model is loaded.
    shard, turn = Shard.parse(options.shard, options.first), turn_of(options.settings)
    pruners = asked_pruners(
        options.pruner,
        options.codebook,
        options.rule,
        options.retain_ratio,
        options.max_similarity,
        options.random_seeds,
    )
    for name in ("n_calibration", "every_method"):
        if (given := getattr(options, name)) and not (options.codebook and options.retain_ratio):
            raise ParameterError(name.replace("_", "-"), given, "codebook and retain-ratio with it")
    model, processor, samples, questions, skipped = _asking(options)
    adapter = adapter_for(model, processor)
    if not (options.pruner or options.every_method):  # what nobody named is left out where it does not fit
        unfit = [
            name for name, given in pruners.items() if any(own.signals - adapter.offers for own in given)
        ]
        pruners = {name: given for name, given in pruners.items() if name not in unfit}
        if unfit:
            print(f"Left out, as the vision encoder has not what they need: {', '.join(unfit)}", flush=True)
    if options.every_method:
        book, first = load_codebook(options.codebook), next(iter(samples))
        seeds, known = options.random_seeds, {"has_masks": first.objects is not None, "kind": first.kind}
        every, left_out = every_pruner(adapter, book, options.retain_ratio, seeds, **known)
        pruners = every | variant_pruners(adapter, book, options.variants_at, seeds, kind=first.kind)
        print(*(f"{name}: left out: {why}" for name, why in left_out.items()), sep="\n", flush=True)
    if options.n_calibration:
        others = {"split": options.calibration_split, "n_images": options.n_calibration}
        opened = _samples(argparse.Namespace(**vars(options) | others))
        calibration, _ = fitting_noted(options.folder, *opened, adapter.size_limit, options.on_error)
        book = load_codebook(options.codebook)
        cuts = calibrated_cut_offs(adapter, book, calibration, options.retain_ratio, options.batch_size)
        pruners |= cut_off_pruners(book, cuts)
    pruners = in_turn(pruners, turn)
    frame, facts = evaluate_parts(
        model,
        processor,
        questions,
        samples,
        pruners,
        options.batch_size,
        options.max_new_tokens,
        folder=options.folder,
        images_per_part=options.images_per_part,
        shard=shard,
        skipped=skipped,
    )
    if options.settings:
        facts["only"] = {"setting": sorted(facts["settings"])}
    if options.table:
        write_table(options.table, frame, facts)
    print(scores_text(frame))


def _explorer(options: argparse.Namespace) -> None:
    from rcblib.reading.explorer.command import run_explorer

    run_explorer(options, lambda: _samples(options), lambda samples: _model(options, samples))


if __name__ == "__main__":
    sys.exit(main())
