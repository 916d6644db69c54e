"""Check the public names of the package, and that importing it is cheap."""

import subprocess
import sys
import types

import pytest

import rcblib

CONTRACT = [
    "window",
    "rank_by_cls",
    "replace_tokens",
    "top1_probability",
    "divergence",
    "dpc_knn",
    "redundancy_scores",
    "keep_indices",
    "build_codebook",
    "Codebook",
    "CodebookPruner",
    "load_model",
    "probe",
]


def run(source):
    return subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("name", CONTRACT)
def test_the_public_contract_is_importable(name):
    assert name in rcblib.__all__
    value = getattr(rcblib, name)
    assert callable(value)
    assert not isinstance(value, types.ModuleType)


@pytest.mark.parametrize("name", rcblib.__all__)
def test_every_listed_name_exists_and_is_no_module(name):
    assert name in dir(rcblib)
    assert not isinstance(getattr(rcblib, name), types.ModuleType)


def test_importing_the_package_loads_no_framework():
    source = "import rcblib, sys; print([m for m in ('torch', 'transformers', 'pandas') if m in sys.modules])"
    assert run(source) == "[]\n"


def test_functions_named_like_their_room_win_whatever_is_imported_first():
    """In processes that begin with what the library imports, which takes seconds, but with nothing of the library."""
    firsts = [
        "from rcblib.probe.config import ProbeConfig",
        "import rcblib.probe.run",
        "from rcblib import probe",
    ]
    then = "from rcblib import probe\nprint(type(probe).__name__, probe.__module__, flush=True)"
    source = f"""
import os, sys
import pandas, pycocotools.coco, torch
from transformers import LlavaForConditionalGeneration, LlavaOnevisionForConditionalGeneration, ProcessorMixin
assert not any(name.split('.')[0] == 'rcblib' for name in sys.modules)
for first in {firsts!r}:
    if os.fork() == 0:
        exec(first)
        exec({then!r})
        os._exit(0)
    assert os.wait()[1] == 0
"""
    assert run(source) == "function rcblib.probe.run\n" * len(firsts)


def test_unknown_names_are_an_attribute_error():
    with pytest.raises(AttributeError, match="prune_everything"):
        _ = rcblib.prune_everything
