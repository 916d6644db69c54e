"""Do what the command line offers with files that are there: put them together, list them, hand them on."""

from __future__ import annotations

import argparse
from typing import Any

from rcblib.records import ParameterError
from rcblib.runs.options import add_shards, add_submission, add_upload

UNTRIED = "Tested against an imitation of the Hub and never tried against the real one: look at the page."


def add_commands(commands: Any) -> None:
    """Add these commands to those of a parser, as `argparse` makes them by ``add_subparsers``."""
    for name, told, add_own, run in (
        ("merge", "put the tables of all shards of a run together, if none is missing", add_shards, _merge),
        ("models", "list the models that have a name and the families that are supported", None, _models),
        ("info", "say which versions, hardware, models and codebooks are here", None, _info),
        ("upload", "put a codebook or an explorer on the Hugging Face Hub", add_upload, _upload),
        ("submit", "write results as a form, recorded on this hardware, to hand in", add_submission, _submit),
    ):
        command = commands.add_parser(name, help=told)
        if add_own:
            add_own(command)
        command.set_defaults(run=run)


def _merge(options: argparse.Namespace) -> None:
    from rcblib.runs.merging import merge_to

    facts = merge_to(options.table, options.shards)
    print(f"{len(facts['samples'])} images, {len(facts['skipped'])} left out")


def _models(options: argparse.Namespace) -> None:
    from rcblib.mllm.loading import ADAPTERS, embedded_models, model_names

    embedded = embedded_models()
    for name, folder in embedded.items():
        n_bytes = sum(path.stat().st_size for path in folder.glob("*") if path.is_file())
        print(f"{name}: {folder}, {n_bytes / 1e6:.1f} MB")
    for name in sorted(set(model_names()) - embedded.keys()):
        print(f"{name}: put together at first use")
    print(f"supported model types, from a folder or the Hugging Face Hub: {', '.join(ADAPTERS)}")


def _info(options: argparse.Namespace) -> None:
    from rcblib.codebook.files import embedded_codebooks
    from rcblib.codebook.released import released_registry
    from rcblib.mllm.loading import model_names
    from rcblib.runs.provenance import FROM_CHECKOUT, project_root, provenance

    for name, value in provenance().items():
        print(f"{name}: {value}")
    try:
        print(f"project: {project_root()}")
    except ParameterError:
        print(f"project: none; data/ and codebooks/: {FROM_CHECKOUT}")
    print(f"models: {', '.join(model_names()) or 'none'}")
    print(
        f"codebooks: {', '.join(embedded_codebooks()) or 'none'}; "
        f"released: {', '.join(released_registry()) or 'none'}"
    )


def _submit(options: argparse.Namespace) -> None:
    from rcblib.runs.contributed import FOLDER, gather, read_submission, write_submission
    from rcblib.runs.provenance import project_path

    folder = options.folder or project_path("data/recorded") / "contributed"
    path = write_submission(folder, gather(options.results, options.name, options.remark))
    written = read_submission(path.parent)
    n_numbers = sum(len(run.results) for run in written.runs.values())
    print(f"{path}: {n_numbers} numbers of {', '.join(written.runs)}")
    print(f"Read it, then open a pull request that adds {FOLDER}/{written.name}/ with this one file.")


def _upload(options: argparse.Namespace) -> None:
    from rcblib.codebook.codebook import load_codebook
    from rcblib.reading.explorer.hub import push_explorer
    from rcblib.runs.errors import in_one_line

    codebook = None if options.codebook is None else load_codebook(options.codebook)
    try:
        if codebook is None:
            address = push_explorer(options.explorer, options.repository, private=options.private)
        else:
            address = codebook.push_to_hub(options.repository, private=options.private)
    except ParameterError:
        raise
    except Exception as error:  # of the Hub, of its client, or of the client's own network library
        raise OSError(f"the Hub did not take it: {in_one_line(error)}") from error
    print(f"{address}\n{UNTRIED}")
