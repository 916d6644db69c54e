"""Files that keep a codebook: the round trip, damage, embedded names and the Hub."""

import hashlib
import json
from dataclasses import asdict

import pytest
import torch
from codebook_examples import SMALL, flip_byte, recurring_world, sample_codebook
from messages import one_line

from rcblib.codebook.codebook import Codebook
from rcblib.codebook.criterion import PRESETS
from rcblib.codebook.files import _card, embedded_codebooks
from rcblib.records import ChecksumError, CodebookError, ParameterError


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_saved_codebook_loads_unchanged(tmp_path, dtype):
    codebook = sample_codebook(dtype)
    folder = codebook.save_pretrained(tmp_path / "new" / "folder")
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "codebook.json",
        "prototypes.safetensors",
    ]
    loaded = Codebook.from_pretrained(folder)
    assert torch.equal(loaded.prototypes, codebook.prototypes) and loaded.prototypes.dtype == dtype
    for name in ("image_ids", "family", "positions", "metadata"):
        assert getattr(loaded, name) == getattr(codebook, name)


def test_built_codebook_survives_the_round_trip(tmp_path):
    codebook = recurring_world().build(SMALL, family="llava", metadata={"model": "scenes-llava"})
    loaded = Codebook.from_pretrained(codebook.save_pretrained(tmp_path))
    assert loaded.metadata == codebook.metadata
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n")
    digest = hashlib.sha256((tmp_path / "prototypes.safetensors").read_bytes()).hexdigest()
    for text in ("scenes-llava", "16 of width 6", "low-information tokens | 48", "`tau_p` | 0.15", digest):
        assert text in card
    assert 0 < codebook.metadata["provenance"]["seconds"] < 60
    assert f", in {codebook.metadata['provenance']['seconds']} s once tokens were probed." in card


def test_embedded_name_and_precedence(tmp_path, monkeypatch):
    monkeypatch.setenv("RCB_ROOT", str(tmp_path))
    sample_codebook().save_pretrained(tmp_path / "codebooks" / "scenes")
    assert Codebook.from_pretrained("scenes").family == "llava"
    # A folder of that name in the working directory is what the user sees, so it comes first.
    monkeypatch.chdir(tmp_path)
    sample_codebook(family="other").save_pretrained(tmp_path / "scenes")
    assert Codebook.from_pretrained("scenes").family == "other"
    with pytest.raises(CodebookError) as error:
        Codebook.from_pretrained("sceens")
    assert one_line(error) == "codebook: 'sceens' is no folder with codebook.json, no embedded name (scenes)"


def test_damaged_prototypes(tmp_path):
    sample_codebook().save_pretrained(tmp_path)
    flip_byte(tmp_path / "prototypes.safetensors")
    with pytest.raises(ChecksumError) as error:
        Codebook.from_pretrained(tmp_path)
    assert "sha256" in one_line(error)


def edit(folder, **changes):
    """Change entries of codebook.json; None removes one."""
    path = folder / "codebook.json"
    description = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in description.items() if value != "remove"}))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"sha256": "remove"}, "lacks 'sha256'"),
        ({"format": 99}, "format 99"),
        ({"shape": [4, 5]}, "its description says"),
        ({"dtype": "float32"}, "its description says"),
        ({"image_ids": [1]}, "got 1 for 5 prototypes"),
        ({"image_ids": 3}, "damaged"),
        ({"metadata": 3}, "metadata: got 3"),
    ],
)
def test_wrong_description(tmp_path, changes, text):
    sample_codebook().save_pretrained(tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(CodebookError) as error:
        Codebook.from_pretrained(tmp_path)
    assert text in one_line(error)


def test_corrupted_files(tmp_path):
    sample_codebook().save_pretrained(tmp_path)
    data = (tmp_path / "prototypes.safetensors").read_bytes()
    truncated = data[:20]
    (tmp_path / "prototypes.safetensors").write_bytes(truncated)
    with pytest.raises(ChecksumError):
        Codebook.from_pretrained(tmp_path)
    # Even with a matching checksum, what is no safetensors file ends in one line.
    edit(tmp_path, sha256=hashlib.sha256(truncated).hexdigest())
    with pytest.raises(CodebookError, match="damaged"):
        Codebook.from_pretrained(tmp_path)
    (tmp_path / "prototypes.safetensors").unlink()
    with pytest.raises(CodebookError, match="prototypes.safetensors: No such file"):
        Codebook.from_pretrained(tmp_path)
    for content in ("{", "[1, 2]", "null"):
        (tmp_path / "codebook.json").write_text(content)
        with pytest.raises(CodebookError, match="codebook.json") as error:
            Codebook.from_pretrained(tmp_path)
        one_line(error)


def test_hub_codebook(tmp_path, monkeypatch):
    sample_codebook().save_pretrained(tmp_path / "snapshot")
    asked = []

    def snapshot_download(repo_id, allow_patterns, revision):
        asked.append((repo_id, tuple(allow_patterns), revision))
        if repo_id == "someone/absent":
            raise ConnectionError("no network\nsecond line")
        return str(tmp_path / ("snapshot" if repo_id == "someone/codebook" else "nothing"))

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert len(Codebook.from_pretrained("someone/codebook", revision="v1")) == 5
    files = ("prototypes.safetensors", "codebook.json", "README.md")
    assert asked == [("someone/codebook", files, "v1")]
    for name, text in (("someone/absent", "Hub (ConnectionError)"), ("someone/else", "holds none")):
        with pytest.raises(CodebookError) as error:
            Codebook.from_pretrained(name)
        assert text in one_line(error)


def test_push_to_hub_uploads_what_save_pretrained_writes(monkeypatch):
    calls = []

    class Api:
        def __init__(self, token):
            calls.append(("token", token))

        def create_repo(self, repo_id, private, exist_ok):
            calls.append(("create", repo_id, private, exist_ok))

        def upload_folder(self, repo_id, folder_path, commit_message):
            calls.append(("upload", repo_id, Codebook.from_pretrained(folder_path).image_ids, commit_message))
            return "address"

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    codebook = sample_codebook()
    assert codebook.push_to_hub("someone/codebook", private=True, token="t") == "address"
    assert calls == [
        ("token", "t"),
        ("create", "someone/codebook", True, True),
        ("upload", "someone/codebook", codebook.image_ids, "Upload a codebook of 5 prototypes"),
    ]
    with pytest.raises(ParameterError, match="owner/name"):
        codebook.push_to_hub("codebook")


@pytest.mark.parametrize("name", embedded_codebooks())
def test_shipped_codebooks_follow_the_rule_and_come_from_committed_code(name):
    folder = embedded_codebooks()[name]
    metadata = Codebook.from_pretrained(folder).metadata
    preset = asdict(PRESETS[metadata["config"]["preset"]])
    criterion = {"n_neighbours": metadata["n_neighbours"]} | metadata[
        "criterion"
    ]  # once no choice of the criterion
    by_quantile = {"tau_p", "tau_jsd"}
    assert {key: criterion[key] for key in preset.keys() - by_quantile} == {
        key: preset[key] for key in preset.keys() - by_quantile
    }
    assert min(metadata["selection"]["images_per_cluster"]) > preset["min_images"]
    assert metadata["model"] == name and metadata["provenance"]["git_dirty"] is False
    description = json.loads((folder / "codebook.json").read_text())
    assert (folder / "README.md").read_text() == _card(description)
