"""Statistics of codebooks with known answers, and the committed ones of the released codebooks."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rcblib.codebook.codebook import Codebook
from rcblib.codebook.criterion import PRESETS
from rcblib.codebook.released import load_released_tensor, released_registry
from rcblib.codebook.statistics import codebook_statistics
from rcblib.records import ParameterError

REPOSITORY = Path(__file__).resolve().parents[1]


def test_statistics_of_known_rows():
    rows = torch.tensor([[3.0, 0.0], [0.0, 4.0], [3.0, 0.0], [-2.0, 0.0]])
    facts = codebook_statistics(Codebook(rows, (1, 2, 1, 3), metadata={"clusters": [0, 1, 0, 1]}))
    assert (facts["shape"], facts["dtype"]) == ([4, 2], "float32")
    assert facts["norm"]["min"] == 2 and facts["norm"]["max"] == 4 and facts["norm"]["mean"] == 3
    assert facts["element"] == {
        "min": -2,
        "max": 4,
        "mean": 1,
        "std": pytest.approx(rows.std().item(), rel=1e-5),
    }
    # Six pairs: (a,b) 0, (a,a) 1, (a,-a) -1, (b,a) 0, (b,-a) 0, (a,-a) -1.
    assert facts["cosine"]["n"] == 6 and facts["cosine"]["mean"] == pytest.approx(-1 / 6, rel=1e-5)
    counts = facts["cosine"]["histogram"]["counts"]
    assert (counts[0], counts[20], counts[39], sum(counts)) == (2, 3, 1, 6)
    assert [facts["nearest_cosine"][key] for key in ("min", "max")] == [0, 1]
    assert facts["duplicates"] == {
        "n_superfluous": 1,
        "n_repeated_rows": 1,
        "group_sizes": [2],
        "n_repeated_in_one_image": 1,
    }
    assert facts["images"] == {"n_ids": 4, "n_distinct": 3, "images_by_n_prototypes": {"1": 2, "2": 1}}
    assert facts["clusters"] == {
        "sizes": [2, 2],
        "n_images": [1, 2],
        "mean_cosine_within": [1, 0],
        "mean_cosine_between": pytest.approx(-0.5),
    }


def test_spectrum_recovers_known_variances():
    # Two orthogonal directions with variances 9 : 1 around an offset that must not count.
    rows = torch.tensor([[3.0, 0, 0], [-3.0, 0, 0], [0, 1.0, 0], [0, -1.0, 0]]) + torch.tensor([0, 0, 50.0])
    spectrum = codebook_statistics(Codebook(rows))["spectrum"]
    assert spectrum["explained_variance_ratio"] == pytest.approx([0.9, 0.1, 0.0], abs=1e-9)
    assert spectrum["n_components"] == {"0.5": 1, "0.9": 1, "0.95": 2, "0.99": 2}
    assert spectrum["effective_rank"] == pytest.approx(
        np.exp(-0.9 * np.log(0.9) - 0.1 * np.log(0.1)), rel=1e-5
    )


def test_statistics_need_two_rows():
    with pytest.raises(ParameterError, match="at least two"):
        codebook_statistics(Codebook(torch.ones(1, 3)))


@pytest.fixture(scope="module")
def committed():
    return json.loads((REPOSITORY / "codebooks" / "released_statistics.json").read_text())


def test_committed_statistics_agree_with_themselves(committed, monkeypatch):
    monkeypatch.setenv("RCB_ROOT", str(REPOSITORY))
    registry = released_registry()
    assert set(committed["codebooks"]) | set(committed["not_at_hand"]) == set(registry)
    for name, facts in committed["codebooks"].items():
        entry, n = registry[name], facts["shape"][0]
        assert facts["sha256_verified"] and facts["sha256"] == entry["file"]["sha256"]
        assert (facts["shape"], facts["dtype"], facts["family"]) == (
            entry["shape"],
            entry["dtype"],
            entry["family"],
        )
        for part, total in (("cosine", n * (n - 1) // 2), ("nearest_cosine", n)):
            assert facts[part]["n"] == sum(facts[part]["histogram"]["counts"]) == total
            order = [facts[part][key] for key in ("min", "q05", "q25", "median", "q75", "q95", "max")]
            assert order == sorted(order) and -1 <= order[0] and order[-1] <= 1
        copies = facts["duplicates"]
        assert sum(copies["group_sizes"]) - copies["n_repeated_rows"] == copies["n_superfluous"]
        images = facts["images"]["images_by_n_prototypes"]
        assert sum(images.values()) == facts["images"]["n_distinct"]
        assert sum(int(count) * number for count, number in images.items()) == facts["images"]["n_ids"] == n
        ratio = facts["spectrum"]["explained_variance_ratio"]
        assert len(ratio) == n - 1 and sum(ratio) == pytest.approx(1, abs=1e-4)
        assert ratio == sorted(ratio, reverse=True) and 1 <= facts["spectrum"]["effective_rank"] <= n - 1
        assert facts["clusters"]["sizes"] == entry["cluster_sizes"]


def test_committed_statistics_are_those_of_the_quirks_page(committed):
    # Norms and cosines as min, median, mean, max; elements as min, max, std.
    expected = {
        "llava-1.5-7b": ((17.14, 31.32, 34.40, 68.02), (-5.11, 5.97, 0.565), (-0.255, 0.343, 0.403, 1.0)),
        "llava-onevision-7b": (
            (32.99, 55.64, 57.01, 94.57),
            (-6.03, 6.41, 0.984),
            (0.110, 0.704, 0.678, 0.969),
        ),
    }
    nearest = {"llava-1.5-7b": (0.457, 0.931), "llava-onevision-7b": (0.452, 0.863)}
    copies = {"llava-1.5-7b": (25, 19, 454, 192), "llava-onevision-7b": (0, 0, 45, 37)}
    for name, (norm, element, cosine) in expected.items():
        facts = committed["codebooks"][name]
        order = ("min", "median", "mean", "max")
        assert [facts["norm"][key] for key in order] == pytest.approx(norm, abs=0.011)
        assert [facts["element"][key] for key in ("min", "max", "std")] == pytest.approx(element, abs=0.0051)
        assert [facts["cosine"][key] for key in order] == pytest.approx(cosine, abs=0.00051)
        assert [facts["nearest_cosine"][key] for key in ("min", "mean")] == pytest.approx(
            nearest[name], abs=0.00051
        )
        duplicates, images = facts["duplicates"], facts["images"]
        found = (
            duplicates["n_superfluous"],
            duplicates["n_repeated_rows"],
            images["n_ids"],
            images["n_distinct"],
        )
        assert found == copies[name]


def test_committed_statistics_recomputed(committed, shared_folder, monkeypatch):
    monkeypatch.setenv("RCB_ROOT", str(REPOSITORY))
    sums = dict(
        line.split()[::-1] for line in (shared_folder / "codebooks/SHA256SUMS").read_text().splitlines()
    )
    for facts in committed["codebooks"].values():
        codebook = Codebook.from_released(shared_folder / "codebooks" / facts["file"])
        assert facts["sha256"] == sums[facts["file"]] and codebook.metadata["sha256_verified"]
        again = json.loads(json.dumps(codebook_statistics(codebook)))
        for key in ("shape", "dtype", "duplicates", "images"):
            assert again[key] == facts[key]
        for key in ("norm", "element", "cosine", "nearest_cosine"):
            numbers = {name: value for name, value in again[key].items() if name != "histogram"}
            assert numbers == pytest.approx({name: facts[key][name] for name in numbers}, rel=1e-4, abs=1e-6)
        ratio = again["spectrum"]["explained_variance_ratio"]
        assert ratio == pytest.approx(facts["spectrum"]["explained_variance_ratio"], rel=1e-3, abs=1e-9)


def test_released_clusters_draw_from_the_logged_numbers_of_images(committed):
    # The release's logs name 131 and 98 samples (limit 64), and 22 and 17 (limit 16).
    found = {name: facts["clusters"]["n_images"] for name, facts in committed["codebooks"].items()}
    assert found == {"llava-1.5-7b": [131, 98], "llava-onevision-7b": [22, 17]}
    for name, n_images in found.items():
        assert min(n_images) > PRESETS[name].min_images


def test_committed_pad_embeddings(committed, shared_folder):
    sums = dict(
        line.split()[::-1] for line in (shared_folder / "codebooks/SHA256SUMS").read_text().splitlines()
    )
    pads = committed["pad_embeddings"]
    assert {f"pad_embeddings/{name}" for name in pads} == {name for name in sums if name.startswith("pad_")}
    for name, facts in pads.items():
        path = shared_folder / "codebooks" / "pad_embeddings" / name
        assert facts["sha256"] == sums[f"pad_embeddings/{name}"]
        assert facts["norm"] == pytest.approx(load_released_tensor(path).double().norm().item(), rel=1e-5)
