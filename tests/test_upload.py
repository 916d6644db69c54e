"""Codebooks and explorers go to the Hub by one command each, here to an imitation of it on this machine."""

import json

import pytest
from hub import imitated_hub
from huggingface_hub import ModelCard, SpaceCard

from rcblib.__main__ import main
from rcblib.codebook.codebook import Codebook, load_codebook
from rcblib.commands import UNTRIED
from rcblib.reading.explorer.schema import Image, Manifest
from rcblib.reading.explorer.writing import script


@pytest.fixture
def hub(monkeypatch):
    with imitated_hub(monkeypatch) as hub:
        yield hub


@pytest.fixture
def explorer(tmp_path):
    """Write the files of an explorer of no model, and one of something else."""
    folder = tmp_path / "explorer"
    (folder / "data").mkdir(parents=True)
    manifest = Manifest(
        budgets=[0.5],
        methods=[],
        signals=[],
        models=[],
        images=[Image(key="a", title="a", group="photos", models={})],
    )
    texts = {"index.html": "<!doctype html><title>Page</title>", "manifest.js": script("manifest", manifest)}
    texts |= {
        "explorer.js": "//",
        "explorer.css": "a{}",
        "data/a.js": "//",
        "fragment.html": "",
        "mine.txt": "",
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_a_codebook_is_uploaded_and_is_the_same_when_read_from_what_arrived(hub, tmp_path, capsys):
    assert main(["upload", "someone/mine", "--codebook", "llava-scenes", "--private"]) == 0
    address, untried = capsys.readouterr().out.splitlines()
    assert address.startswith(f"{hub.address}/someone/mine/commit/") and untried == UNTRIED
    assert hub.repositories["someone/mine"]["visibility"] == "private"
    assert hub.tokens == {"Bearer hf_imitated", None} or hub.tokens == {"Bearer hf_imitated"}
    for name, data in hub.files["someone/mine"].items():
        (tmp_path / name).write_bytes(data)
    here, there = load_codebook("llava-scenes"), Codebook.from_pretrained(tmp_path)
    assert (there.prototypes == here.prototypes).all() and there.metadata == here.metadata
    assert ModelCard.load(tmp_path / "README.md").data.license == "apache-2.0"
    assert list(hub.store.values()) == [(tmp_path / "prototypes.safetensors").read_bytes()]


def test_an_explorer_becomes_a_static_space_with_its_own_files_alone(hub, explorer, capsys):
    for _ in range(2):  # an upload to a Space that is there replaces its files
        assert main(["upload", "someone/tokens", "--explorer", str(explorer)]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{hub.address}/spaces/someone/tokens", UNTRIED] * 2
    made = hub.repositories["someone/tokens"]
    assert (made["type"], made["sdk"]) == ("space", "static") and made.get("visibility") != "private"
    files = hub.files["someone/tokens"]
    assert set(files) == {
        "README.md", "index.html", "manifest.js", "explorer.js", "explorer.css", "data/a.js"
    }  # fmt: skip
    assert files["index.html"] == (explorer / "index.html").read_bytes()
    facts = SpaceCard(files["README.md"].decode()).data
    assert (facts.sdk, facts.app_file) == ("static", "index.html")
    assert b"Pictures: 1." in files["README.md"]


@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        (["mine", "--codebook", "llava-scenes"], 2, "repo_id: got 'mine'; accepted: owner/name"),
        (["someone/mine", "--codebook", "llava-scens"], 2, "codebook: 'llava-scens' is no folder"),
        (["a/b/c", "--explorer", "."], 2, "repo_id: got 'a/b/c'; accepted: owner/name"),
        (["someone/mine", "--explorer", "."], 2, "explorer: got "),
        (["another/mine", "--codebook", "llava-scenes"], 1, "the Hub did not take it: "),
    ],
)
def test_what_cannot_be_uploaded_ends_in_a_line_and_leaves_nothing(hub, capsys, arguments, status, line):
    assert main(["upload", *arguments]) == status
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(f"rcblib upload: {line}")
    assert hub.files == hub.store == {}


def test_a_folder_of_something_else_is_no_explorer(hub, explorer, capsys):
    (explorer / "manifest.js").write_text("alert(1)", encoding="utf-8")
    assert main(["upload", "someone/tokens", "--explorer", str(explorer)]) == 2
    assert "accepted: the folder of an explorer" in capsys.readouterr().err
    (explorer / "manifest.js").write_text(f'(w)["manifest"]={json.dumps({"budgets": []})};', encoding="utf-8")
    assert main(["upload", "someone/tokens", "--explorer", str(explorer)]) == 2
    assert hub.repositories == {}


def test_without_a_hub_the_line_says_so(hub, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert main(["upload", "someone/mine", "--codebook", "llava-scenes"]) == 1
    assert capsys.readouterr().err.startswith("rcblib upload: the Hub did not take it: ")
