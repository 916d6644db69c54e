"""A project of one recorded stage around the real workflow, whose command takes no time."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]

COMMAND = '''
"""Stand in for the library's command: probe eight images, whose values are their numbers."""
import argparse, pathlib, sys
import pandas as pd
from rcblib.runs.files import write_table
from rcblib.runs.records import table_facts
from rcblib.runs.shards import Shard

parser = argparse.ArgumentParser()
for name in ("--folder", "--model", "--table", "--shard", "--scale"):
    parser.add_argument(name)
parser.add_argument("--first", type=int)
options = parser.parse_args(sys.argv[2:])
kept = pathlib.Path(options.folder)
kept.mkdir(parents=True, exist_ok=True)
shard = Shard.parse(options.shard, options.first)
ids = shard.of(range(8))
if (kept / "stop").exists() and shard.number == 2:
    sys.exit("stopped")
for i in ids:
    if not (kept / str(i)).exists():
        (kept / str(i)).write_text("")
        print("probed", i, flush=True)
made = {"date": "2026-01-02", "cpu": "a processor", "gpu": "none", "git_commit": None}
values = [i * float(options.scale) for i in ids]
table = pd.DataFrame({"image_id": ids, "token": 0, "value": values, "word": "a word"})
description = {"model": options.model, "model_fingerprint": MODEL, "code": "c0de"}
units = [{"seconds": 1.0, "provenance": made}] * len(ids)
facts = table_facts(description, ["token"], {i: str(i) for i in ids}, units) | shard.share(range(8), {})
write_table(options.table, table, facts)
'''

LIST = {
    "default_model": "small",
    "models": {"large": "Large"},
    "inputs": ["data/models/{model}/*"],
    "stages": [
        {
            "name": "probing",
            "command": "probe",
            "options": {"scale": 1.5},
            "models": {"large": {"recorded": {"shards": 3, "first": 2}}},
        }
    ],
    "notebooks": [{"name": "a", "reads": {"probed": "probing"}, "models": {"large": {}}}],
}


def make_project(folder):
    """Make the project in an empty folder."""
    for name in ("workflow/Snakefile", "workflow/shards.smk", "tools", "pyproject.toml"):
        source, target = REPOSITORY / name, folder / name
        target.parent.mkdir(exist_ok=True, parents=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    shutil.copytree(REPOSITORY / "rcblib", folder / "rcblib", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "workflow/notebooks.yml").write_text(yaml.safe_dump(LIST), encoding="utf-8")
    (folder / "data/models/large").mkdir(parents=True)
    (folder / "data/models/large/config.json").write_text("{}", encoding="utf-8")
    (folder / "notebooks").mkdir()
    (folder / "notebooks/a.ipynb").write_text(json.dumps({"cells": []}), encoding="utf-8")
    write_command(folder, "first")
    return folder


def write_command(root, model):
    (root / "rcblib/__main__.py").write_text(COMMAND.replace("MODEL", repr(model)), encoding="utf-8")


def snakemake(root, *arguments):
    """Run the workflow as the Makefile does; return its status, and what it said."""
    command = [sys.executable, "-m", "tools.run_workflow", "--cores", "2", *arguments]
    answer = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    return answer.returncode, answer.stdout + answer.stderr


FULL = ("--snakefile", "workflow/shards.smk", "--rerun-incomplete", "--keep-going")


def make_full(root, *arguments):
    """Record the stage."""
    return snakemake(root, *FULL, *arguments)
