"""What a codebook accepts, and which models it fits."""

import copy
import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from codebook_examples import sample_codebook
from messages import one_line

from rcblib.codebook.codebook import Codebook
from rcblib.pruners import CodebookPruner
from rcblib.records import CodebookError, ParameterError

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("keywords", "text"),
    [
        ({"prototypes": torch.ones(5)}, "got (5,)"),
        ({"prototypes": torch.ones(0, 4)}, "got (0, 4)"),
        ({"prototypes": torch.ones(5, 4, dtype=torch.int64)}, "torch.int64"),
        ({"prototypes": [[1.0]]}, "got list"),
        ({"prototypes": torch.tensor([[1.0, float("nan")], [1.0, 2.0]])}, "1 of 2 rows hold NaN"),
        ({"prototypes": torch.ones(3, 4), "image_ids": (1, 2)}, "got 2 for 3 prototypes"),
        ({"prototypes": torch.ones(3, 4), "positions": (1, 2)}, "positions: got 2 for 3"),
        ({"prototypes": torch.ones(1, 4), "positions": (1.5,)}, "positions: got (1.5,); accepted: integers"),
        ({"prototypes": torch.ones(1, 4), "positions": ("a",)}, "positions: got ('a',); accepted: integers"),
        ({"prototypes": torch.ones(1, 4), "positions": 3}, "positions: got 3"),
        ({"prototypes": torch.ones(1, 4), "image_ids": (1.5,)}, "image_ids: got 1.5"),
        ({"prototypes": torch.ones(1, 4), "family": None}, "family: got None"),
    ],
)
def test_codebook_validation(keywords, text):
    with pytest.raises(CodebookError) as error:
        Codebook(**keywords)
    assert text in one_line(error)


def test_codebook_is_detached_and_frozen():
    codebook = Codebook(torch.ones(2, 3, requires_grad=True))
    assert not codebook.prototypes.requires_grad
    assert (len(codebook), codebook.d_model, codebook.image_ids) == (2, 3, ())
    assert repr(codebook) == "Codebook(2 x 3, family='', of unnamed model)"
    with pytest.raises(dataclasses.FrozenInstanceError):
        codebook.family = "llava"


def test_unit_prototypes_are_made_once_and_left_behind_by_copies():
    codebook = sample_codebook()
    tokens = torch.ones(2, 4)
    assert codebook.unit_prototypes.like(tokens) is codebook.unit_prototypes.like(tokens)
    for copied in (copy.copy(codebook), copy.deepcopy(codebook), pickle.loads(pickle.dumps(codebook))):
        assert copied == codebook and "unit_prototypes" not in vars(copied)
        assert torch.equal(copied.unit_prototypes.like(tokens), codebook.unit_prototypes.like(tokens))


def test_codebook_of_another_width_or_family():
    codebook = sample_codebook()
    codebook.check_fits("llava", 4)
    codebook.check_fits("", 4)
    Codebook(torch.ones(2, 4)).check_fits("llava", 4)
    with pytest.raises(CodebookError) as error:
        codebook.check_fits("llava", 4096)
    assert one_line(error) == "codebook: prototypes of width 4 do not fit visual tokens of width 4096"
    with pytest.raises(CodebookError) as error:
        codebook.check_fits("llava_onevision", 4)
    assert "'llava'" in one_line(error) and "'llava_onevision'" in one_line(error)


def test_a_pruner_takes_whatever_makes_a_codebook(tmp_path, monkeypatch):
    """A name, a folder, a file and the prototypes alone are what people write in place of a codebook."""
    monkeypatch.setenv("RCB_ROOT", str(tmp_path))
    own = sample_codebook()
    own.save_pretrained(tmp_path / "codebooks" / "mine")
    torch.save(own.prototypes, tmp_path / "my own.pt")
    torch.save(own.prototypes, tmp_path / "mine.pth")
    for given in (own, "mine", str(tmp_path / "codebooks" / "mine"), tmp_path / "codebooks" / "mine"):
        assert CodebookPruner(given, max_similarity=0.4).codebook == own
    for given in (own.prototypes, torch.nn.Parameter(own.prototypes), own.prototypes.numpy()):
        assert CodebookPruner(given, retain_ratio=0.5).codebook == Codebook(own.prototypes)
    for name in ("codebook.json", "prototypes.safetensors"):
        assert CodebookPruner(tmp_path / "codebooks" / "mine" / name, retain_ratio=0.5).codebook == own
    with pytest.warns(UserWarning, match="no sha256 is registered"):
        for name in ("my own.pt", "mine.pth"):
            book = CodebookPruner(tmp_path / name, max_similarity=0.4).codebook
            assert torch.equal(book.prototypes, own.prototypes)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (None, "got None; accepted: a Codebook, a name, a file, a folder"),
        ("", "got ''; accepted: a Codebook"),
        (3, "got 'int'"),
        ([[1.0]], "got 'list'"),
        ({"prototypes": torch.ones(2, 2)}, "got 'dict'"),
        (np.array([["text"]]), "got 'ndarray'"),
        (torch.ones(2), "got (2,)"),
        (torch.full((2, 2), torch.nan), "2 of 2 rows hold NaN"),
        ("no such name", "'no such name' is no folder"),
        ("none.pt", "'none.pt' is no file"),
    ],
)
def test_what_makes_no_codebook_is_refused_in_one_line(given, named):
    with pytest.raises(CodebookError) as error:
        CodebookPruner(given, max_similarity=0.4)
    assert named in one_line(error)


def test_a_budget_is_checked_before_a_codebook_is_looked_for():
    with pytest.raises(ParameterError, match="max_similarity"):
        CodebookPruner("no such name", max_similarity=3)


def test_a_misspelt_name_is_told_with_those_that_there_are(monkeypatch):
    monkeypatch.setenv("RCB_ROOT", str(REPOSITORY))
    with pytest.raises(
        CodebookError, match=r"'llava-1.5-7B'.*llava-scenes.*no released one \(llava-1.5-7b, "
    ) as error:
        CodebookPruner("llava-1.5-7B", max_similarity=0.45)
    one_line(error)


def test_a_text_file_is_no_codebook(tmp_path):
    (tmp_path / "t.pt").write_text("text")
    with pytest.raises(CodebookError, match="t.pt: no readable tensor file"):
        CodebookPruner(tmp_path / "t.pt", max_similarity=0.45)
