"""Released codebooks: downloads verified and kept, files recognised, nothing in them executed."""

import dataclasses
import hashlib
import http.server
import json
import os
import pickle
import threading
from pathlib import Path

import pytest
import torch
from codebook_examples import flip_byte, sample_codebook
from messages import one_line

from rcblib.codebook.codebook import Codebook, load_codebook
from rcblib.codebook.criterion import PRESETS
from rcblib.codebook.released import load_released_tensor, released_registry
from rcblib.records import ChecksumError, CodebookError
from rcblib.tensors.scoring import keep_indices

REPOSITORY = Path(__file__).resolve().parents[1]


class Release:
    """Serve a made-up release over HTTP on this machine, with a registry that describes it."""

    def __init__(self, root):
        self.root, self.served = root, root / "served"
        self.served.mkdir()
        self.tensor = torch.randn(6, 4, generator=torch.Generator().manual_seed(3)).half().requires_grad_()
        torch.save(self.tensor, self.served / "release.pt")
        (self.served / "release.json").write_text(json.dumps([str(5 + row // 2) for row in range(6)]))
        self.requests, self.cut = [], {}
        release = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                name = self.path.rsplit("/", 1)[-1]
                release.requests.append(name)
                path = release.served / name
                if not path.is_file():
                    self.send_error(404)
                    return
                data = path.read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: release.cut.get(name, len(data))])

            def log_message(self, *arguments):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        address = f"http://127.0.0.1:{self.server.server_port}"
        self.entry = {
            "model": "someone/llava",
            "family": "llava",
            "shape": [6, 4],
            "cluster_sizes": [4, 2],
            "pruning": {"rule": "max_cosine", "max_similarity": 0.45},
            "licence": "Apache-2.0",
            "file": self.facts("release.pt", address),
            "image_ids": self.facts("release.json", address),
        }
        self.write()

    def facts(self, name, address):
        """Describe a served file as the registry does."""
        data = (self.served / name).read_bytes()
        return {
            "address": f"{address}/{name}",
            "size": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }

    def write(self):
        """Write the registry."""
        (self.root / "codebooks").mkdir(exist_ok=True)
        (self.root / "codebooks" / "registry.json").write_text(json.dumps({"llava-1.5-7b": self.entry}))

    @property
    def cached(self):
        """Names of everything in the cache, temporary files included."""
        return sorted(path.name for path in (self.root / "cache").rglob("*") if path.is_file())


@pytest.fixture
def release(tmp_path, monkeypatch):
    monkeypatch.setenv("RCB_ROOT", str(tmp_path))
    monkeypatch.setenv("RCB_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    made = Release(tmp_path)
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_released_download_is_verified_and_kept(release):
    codebook = Codebook.from_released("llava-1.5-7b")
    assert torch.equal(codebook.prototypes, release.tensor.detach())
    assert not codebook.prototypes.requires_grad and codebook.prototypes.dtype == torch.float16
    assert codebook.image_ids == (5, 5, 6, 6, 7, 7) and codebook.family == "llava"
    facts = codebook.metadata
    assert facts["sha256_verified"] is True and facts["sha256"] == release.entry["file"]["sha256"]
    assert facts["clusters"] == [0, 0, 0, 0, 1, 1]
    assert facts["criterion"] == dataclasses.asdict(PRESETS["llava-1.5-7b"])
    assert facts["pruning"] == release.entry["pruning"]
    assert release.cached == ["release.json", "release.pt"]
    assert release.requests == ["release.pt", "release.json"]
    Codebook.from_released("llava-1.5-7b")
    assert len(release.requests) == 2


def test_cache_folder_can_be_given(release, tmp_path):
    Codebook.from_released("llava-1.5-7b", cache_folder=tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / "llava-1.5-7b" / "release.pt").is_file() and release.cached == []


def test_damaged_cached_file_is_downloaded_again(release):
    Codebook.from_released("llava-1.5-7b")
    flip_byte(release.root / "cache" / "llava-1.5-7b" / "release.pt")
    assert torch.equal(Codebook.from_released("llava-1.5-7b").prototypes, release.tensor.detach())
    assert release.requests.count("release.pt") == 2


def test_truncated_download(release):
    release.cut["release.pt"] = 700
    with pytest.raises(CodebookError) as error:
        Codebook.from_released("llava-1.5-7b")
    assert "download failed" in one_line(error) and "700 bytes read" in one_line(error)
    assert release.cached == []


def test_download_with_another_checksum(release):
    flip_byte(release.served / "release.pt", 900)
    came = hashlib.sha256((release.served / "release.pt").read_bytes()).hexdigest()
    with pytest.raises(ChecksumError) as error:
        Codebook.from_released("llava-1.5-7b")
    assert release.entry["file"]["sha256"] in one_line(error) and f"but got {came}" in one_line(error)
    assert release.cached == []


def test_failed_download_leaves_an_earlier_file_alone(release):
    Codebook.from_released("llava-1.5-7b")
    (release.root / "cache" / "llava-1.5-7b" / "release.pt").write_bytes(b"old")
    (release.served / "release.pt").unlink()
    with pytest.raises(CodebookError) as error:
        Codebook.from_released("llava-1.5-7b")
    assert "download failed (404 " in one_line(error)
    assert release.cached == ["release.json", "release.pt"]
    assert (release.root / "cache" / "llava-1.5-7b" / "release.pt").read_bytes() == b"old"


def test_interrupted_download_leaves_nothing(release, monkeypatch):
    def interrupted(downloader, address, file, pooch):
        file.write(b"begun")
        assert len(release.cached) == 1
        raise KeyboardInterrupt

    monkeypatch.setattr("pooch.HTTPDownloader.__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Codebook.from_released("llava-1.5-7b")
    assert release.cached == []


def test_unreachable_address(release):
    release.server.shutdown()
    release.server.server_close()
    with pytest.raises(CodebookError, match="fetch it by hand and pass its path") as error:
        Codebook.from_released("llava-1.5-7b")
    one_line(error)


def test_unknown_checksum_warns_and_is_recorded(release):
    release.entry["file"].update(size=None, sha256=None)
    release.write()
    digest = hashlib.sha256((release.served / "release.pt").read_bytes()).hexdigest()
    with pytest.warns(UserWarning, match=f"no sha256 is registered.*{digest}"):
        codebook = Codebook.from_released("llava-1.5-7b")
    assert codebook.metadata["sha256_verified"] is False and codebook.metadata["sha256"] == digest
    # The same file by its path is recognised by its shape, still unverified.
    with pytest.warns(UserWarning, match="no sha256 is registered"):
        assert Codebook.from_released(release.served / "release.pt").family == "llava"


def test_released_by_path_is_recognised_by_checksum(release):
    codebook = Codebook.from_released(release.served / "release.pt")
    assert codebook.metadata["name"] == "llava-1.5-7b" and codebook.metadata["sha256_verified"] is True
    assert codebook.image_ids == (5, 5, 6, 6, 7, 7)
    (release.served / "release.json").rename(release.served / "release.image_ids.json")
    assert Codebook.from_released(release.served / "release.pt").image_ids == (5, 5, 6, 6, 7, 7)
    (release.served / "release.image_ids.json").unlink()
    assert Codebook.from_released(release.served / "release.pt").image_ids == ()
    assert release.requests == []


def test_changed_file_of_a_registered_shape(release):
    torch.save(release.tensor.detach() + 1, release.root / "changed.pt")
    with pytest.raises(ChecksumError) as error:
        Codebook.from_released(release.root / "changed.pt")
    assert one_line(error).startswith("changed.pt: of the shape of llava-1.5-7b but with sha256 ")


def test_unregistered_path(release):
    torch.save(torch.ones(2, 3), release.root / "own.pt")
    with pytest.warns(UserWarning, match="no sha256 is registered"):
        codebook = Codebook.from_released(release.root / "own.pt")
    assert (codebook.family, codebook.metadata["name"], codebook.metadata["sha256_verified"]) == (
        "",
        "",
        False,
    )
    (release.root / "own.json").write_text('["1"]')
    with pytest.warns(UserWarning), pytest.raises(CodebookError, match="got 1 for 2 prototypes"):
        Codebook.from_released(release.root / "own.pt")
    (release.root / "own.json").write_text('["one", "two"]')
    with pytest.warns(UserWarning), pytest.raises(CodebookError, match="no list of image ids"):
        Codebook.from_released(release.root / "own.pt")


@pytest.mark.parametrize("is_known", [True, False])
def test_a_download_ends_where_it_grows_beyond_what_is_accepted(release, is_known, monkeypatch):
    if not is_known:
        release.entry["file"] |= {"size": None, "sha256": None}
        release.write()
        monkeypatch.setattr("rcblib.codebook.released.MOST_BYTES", release.entry["image_ids"]["size"])
    most = release.entry["file"]["size"] or release.entry["image_ids"]["size"]
    (release.served / "release.pt").write_bytes(bytes(most + 1))
    with pytest.raises(ChecksumError, match=f"more than the {most} bytes") as error:
        Codebook.from_released("llava-1.5-7b")
    one_line(error)
    assert release.cached == []


def test_registered_shape_is_checked(release):
    release.entry["shape"] = [7, 4]
    release.write()
    with pytest.raises(CodebookError, match=r"holds \(6, 4\), registered is \[7, 4\]"):
        Codebook.from_released("llava-1.5-7b")


def test_load_codebook_tells_released_codebooks_from_others(release, monkeypatch):
    monkeypatch.chdir(release.root)
    for name in ("llava-1.5-7b", str(release.served / "release.pt"), release.served / "release.pt"):
        assert load_codebook(name).metadata["sha256_verified"] is True
    sample_codebook().save_pretrained(release.root / "codebooks" / "scenes")
    for name in ("scenes", "codebooks/scenes", release.root / "codebooks" / "scenes"):
        assert "sha256_verified" not in load_codebook(name).metadata
    with pytest.raises(CodebookError, match="'llava-1.6' is no folder with codebook.json, no embedded name"):
        load_codebook("llava-1.6")
    with pytest.raises(CodebookError, match="'own.pt' is no file and no released name"):
        load_codebook("own.pt")
    # A folder of that name is what the user sees, so it comes first.
    for name in ("llava-1.5-7b", "own.pt"):
        sample_codebook(family="other").save_pretrained(release.root / name)
        assert load_codebook(name).family == "other"


def test_unknown_released_name(release):
    with pytest.raises(CodebookError) as error:
        Codebook.from_released("llava-1.6")
    assert one_line(error) == "codebook: 'llava-1.6' is no file and no released name (llava-1.5-7b)"


class Payload:
    """Make a folder when unpickled, as a hostile file could do worse."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_released_files_run_no_code(tmp_path):
    torch.save(Payload(str(tmp_path / "made")), tmp_path / "hostile.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Payload(str(tmp_path / "made")), protocol=2))
    for name in ("hostile.pt", "plain.pt"):
        with pytest.raises(CodebookError) as error:
            load_released_tensor(tmp_path / name)
        one_line(error)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("content", [b"", b"no tensor", b"PK\x03\x04 cut off"])
def test_released_file_that_is_no_tensor(tmp_path, content):
    (tmp_path / "broken.pt").write_bytes(content)
    with pytest.raises(CodebookError, match="no readable tensor file") as error:
        load_released_tensor(tmp_path / "broken.pt")
    one_line(error)


def test_released_file_with_more_than_a_tensor(tmp_path):
    torch.save({"weights": torch.ones(2)}, tmp_path / "dict.pt")
    with pytest.raises(CodebookError, match="holds dict"):
        load_released_tensor(tmp_path / "dict.pt")


def test_registry_is_complete(monkeypatch):
    monkeypatch.setenv("RCB_ROOT", str(REPOSITORY))
    registry = released_registry()
    shapes = {"llava-1.5-7b": [454, 4096], "llava-next-8b": [969, 4096], "llava-onevision-7b": [45, 3584]}
    assert {name: entry["shape"] for name, entry in registry.items()} == shapes
    for name, entry in registry.items():
        assert name in PRESETS and entry["licence"] == "Apache-2.0"
        for part in (entry["file"], entry["image_ids"]):
            assert part["address"].startswith(
                "https://github.com/DingchenYang99/RedundancyCodebook/raw/main/"
            )
            assert (part["sha256"] is None) == (part["size"] is None) == (name == "llava-next-8b")
        assert sum(entry["cluster_sizes"] or entry["shape"][:1]) == entry["shape"][0]


def test_registry_records_how_each_codebook_prunes(monkeypatch):
    monkeypatch.setenv("RCB_ROOT", str(REPOSITORY))
    registry = released_registry()
    assert {name: entry["pruning"] for name, entry in registry.items()} == {
        "llava-1.5-7b": {"rule": "max_cosine", "max_similarity": 0.45},
        "llava-next-8b": {"rule": "max_cosine", "max_similarity": 0.11},
        "llava-onevision-7b": {"rule": "double_softmax", "retain_ratio": 0.5},
    }
    scores = torch.tensor([0.9, 0.1, 0.3, 0.05])
    kept = {name: keep_indices(scores, **entry["pruning"]).tolist() for name, entry in registry.items()}
    assert kept == {"llava-1.5-7b": [1, 2, 3], "llava-next-8b": [1, 3], "llava-onevision-7b": [1, 3]}


def test_registry_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("RCB_ROOT", str(tmp_path))
    with pytest.raises(CodebookError, match="RCB_ROOT"):
        Codebook.from_released("llava-1.5-7b")
