"""Selection by the criterion, files that keep and verify codebooks, released downloads, statistics."""

import dataclasses
import hashlib
import http.server
import json
import os
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rcblib.codebook import (
    PRESETS,
    Codebook,
    CodebookCriterion,
    build_codebook,
    codebook_statistics,
    load_released_tensor,
    released_registry,
)
from rcblib.records import ChecksumError, CodebookError, ParameterError

REPOSITORY = Path(__file__).resolve().parents[1]
DIMENSION = 6
CENTRES = torch.eye(DIMENSION) * 2


def one_line(error) -> str:
    """Return an error's text after checking that it is a single line."""
    text = str(error.value)
    assert "\n" not in text
    return text


class World:
    """Hold probed tokens of several images, drawn in tight groups around known centres."""

    def __init__(self, groups_of_images, seed=0, shuffle=False):
        generator = torch.Generator().manual_seed(seed)
        rows = [(image, group) for image, groups in groups_of_images.items() for group in groups]
        if shuffle:
            rows = [rows[i] for i in torch.randperm(len(rows), generator=generator)]
        self.image_ids = [image for image, _ in rows]
        self.groups = [group for _, group in rows]
        noise = 0.01 * torch.randn(len(rows), DIMENSION, generator=generator)
        self.tokens = CENTRES[self.groups] + noise
        self.top1 = np.full(len(rows), 0.05)
        self.region = np.full(len(rows), 1e-4)
        self.global_ = np.full(len(rows), 1e-5)

    def build(self, criterion, **keywords):
        """Run build_codebook on everything."""
        signals = (self.top1, self.region, self.global_)
        return build_codebook(self.tokens, self.image_ids, *signals, criterion, **keywords)

    def rows(self, image=None, group=None):
        """List the rows of an image or group."""
        pairs = enumerate(zip(self.image_ids, self.groups, strict=True))
        return [row for row, (i, g) in pairs if image in (None, i) and group in (None, g)]


# Group 0 is small and in every image, group 1 large, group 2 small but only in the first two images.
SMALL = CodebookCriterion(n_clusters=3, cluster_size_max=3, n_prototype_clusters=3, min_images=2)


def recurring_world(**keywords):
    """Six images with a recurring small group 0, a large group 1, and a third group that varies."""
    third = {0: 2, 1: 2, 2: 3, 3: 3, 4: 3, 5: 3}
    return World({image: [1, 1, 0, 1, 0, third[image], 1, 1] for image in range(6)}, **keywords)


def test_presets_are_those_of_the_method_page():
    expected = {
        "llava-1.5-7b": (0.15, 0.002, 8, 8, 64, 64),
        "llava-1.5-13b-script": (0.077, 0.0018, 8, 8, 64, 64),
        "llava-next-8b": (0.10, 0.002, 8, 8, 64, 64),
        "llava-onevision-7b": (0.08, 0.0018, 8, 3, 24, 16),
    }
    fields = ("tau_p", "tau_jsd", "n_clusters", "cluster_size_max", "n_prototype_clusters", "min_images")
    assert {n: tuple(getattr(c, f) for f in fields) for n, c in PRESETS.items()} == expected
    assert {(c.k_region, c.k_global) for c in PRESETS.values()} == {(1, 16)}


def test_influence_weighs_region_and_global():
    criterion = CodebookCriterion(k_region=2, k_global=16)
    assert criterion.influence([0.5, 0.0], torch.tensor([0.25, -0.125])).tolist() == [5.0, -2.0]


def test_equality_with_a_limit_is_not_low_information():
    criterion = CodebookCriterion(tau_p=0.15, tau_jsd=0.002, k_region=1, k_global=0)
    below_p, below_jsd = np.nextafter(0.15, 0), np.nextafter(0.002, 0)
    top1 = [0.15, below_p, 0.0, below_p]
    region = [0.0, below_jsd, 0.002, 0.003]
    assert criterion.low_information(top1, region, [0, 0, 0, 0]).tolist() == [False, True, False, False]


def test_comparison_is_in_double_precision():
    # 0.15 in float32 is 0.15000000596: not below the limit, although float32 holds the limit itself as equal.
    criterion = CodebookCriterion(tau_p=0.15)
    single = torch.tensor([0.15, 0.1499999], dtype=torch.float32)
    assert criterion.low_information(single, [0, 0], [0, 0]).tolist() == [False, True]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tau_p", 0),
        ("tau_p", 1.1),
        ("tau_p", float("nan")),
        ("tau_p", "2e-3"),
        ("tau_jsd", 0.0),
        ("tau_jsd", float("inf")),
        ("k_region", -1),
        ("n_clusters", 0),
        ("n_clusters", 2.5),
        ("cluster_size_max", 0),
        ("cluster_size_max", True),
        ("n_prototype_clusters", -3),
        ("min_images", -1),
    ],
)
def test_criterion_out_of_range(field, value):
    with pytest.raises(ParameterError) as error:
        CodebookCriterion(**{field: value})
    assert one_line(error).startswith(f"{field}: got {value!r}; accepted: ")


def test_criterion_without_weights():
    with pytest.raises(ParameterError, match="k_region, k_global"):
        CodebookCriterion(k_region=0, k_global=0)


def test_criterion_from_preset_and_file(tmp_path):
    assert CodebookCriterion.from_preset("llava-next-8b") is PRESETS["llava-next-8b"]
    path = tmp_path / "embedded.json"
    path.write_text(json.dumps({"tau_p": 0.3, "min_images": 5}))
    assert CodebookCriterion.from_preset(path) == CodebookCriterion(tau_p=0.3, min_images=5)
    path.write_text(json.dumps({"tau_q": 0.3}))
    with pytest.raises(ParameterError, match="did you mean tau_p"):
        CodebookCriterion.from_preset(path)
    with pytest.raises(ParameterError, match="llava-1.5-13b-script"):
        CodebookCriterion.from_preset("llava")


def test_keeps_small_recurring_clusters_in_order():
    world = recurring_world()
    codebook = world.build(SMALL, positions=[row % 8 for row in range(48)], family="llava")
    third = [row for image in range(2, 6) for row in world.rows(image, 3)]
    # Stage 2 meets group 0 first (row 2), group 2 is in two images only, group 3 in four.
    expected = world.rows(group=0) + third
    selection = codebook.metadata["selection"]
    assert selection["rows"] == expected
    assert torch.equal(codebook.prototypes, world.tokens[expected])
    assert codebook.image_ids == tuple(world.image_ids[row] for row in expected)
    assert codebook.positions == tuple(row % 8 for row in expected)
    assert codebook.family == "llava"
    assert codebook.metadata["clusters"] == [0] * 12 + [1] * 4
    counts = {key: value for key, value in selection.items() if key != "rows"}
    assert counts == {
        "n_images": 6,
        "n_tokens": 48,
        "n_low_information": 48,
        "n_after_stage_1": 18,
        "n_clusters_kept": 2,
        "images_per_cluster": [6, 4],
    }
    assert codebook.metadata["criterion"] == dataclasses.asdict(SMALL)


def test_a_cluster_of_exactly_min_images_is_dropped():
    world = recurring_world()
    kept = {n: set(world.build(dataclasses.replace(SMALL, min_images=n)).image_ids) for n in (1, 3, 4)}
    n_prototypes = {n: len(world.build(dataclasses.replace(SMALL, min_images=n))) for n in (1, 3, 4)}
    assert n_prototypes == {1: 18, 3: 16, 4: 12}
    assert kept[4] == set(range(6))


def test_members_that_are_not_low_information_count_towards_the_size():
    world = recurring_world()
    criterion = dataclasses.replace(SMALL, cluster_size_max=1, n_prototype_clusters=2)
    # One token of group 0 in each image is informative: its pair still is a cluster of two, hence too large.
    world.top1[[world.rows(image, 0)[0] for image in range(6)]] = 0.9
    codebook = world.build(criterion)
    assert {world.groups[row] for row in codebook.metadata["selection"]["rows"]} == {3}
    # With room for two, its low-information half contributes.
    codebook = world.build(SMALL)
    low_half = [world.rows(image, 0)[1] for image in range(6)]
    assert [row for row in codebook.metadata["selection"]["rows"] if world.groups[row] == 0] == low_half


def test_informative_tokens_are_never_prototypes():
    world = recurring_world()
    world.global_[world.rows(group=0)] = 0.5
    assert {world.groups[row] for row in build_rows(world)} == {3}


def build_rows(world):
    """Rows that SMALL keeps, with as many prototype clusters as there are groups left."""
    return world.build(dataclasses.replace(SMALL, n_prototype_clusters=2)).metadata["selection"]["rows"]


def test_clusters_of_an_image_come_in_order_of_first_appearance():
    # Groups alternate inside each image; clusters, not positions, decide the order of what stage 1 keeps.
    world = World({image: [4, 5, 4, 5, 3, 3] for image in range(3)})
    criterion = CodebookCriterion(n_clusters=3, cluster_size_max=2, n_prototype_clusters=1, min_images=2)
    assert world.build(criterion).metadata["selection"]["rows"] == [
        6 * image + offset for image in range(3) for offset in (0, 2, 1, 3, 4, 5)
    ]


def test_rows_of_an_image_need_not_be_adjacent():
    together, shuffled = recurring_world(), recurring_world(shuffle=True, seed=4)
    counts = [codebook.metadata["selection"] for codebook in (together.build(SMALL), shuffled.build(SMALL))]
    for key in ("n_images", "n_after_stage_1", "n_clusters_kept"):
        assert counts[0][key] == counts[1][key]
    assert sorted(counts[0]["images_per_cluster"]) == sorted(counts[1]["images_per_cluster"])


def test_signals_may_be_tensors_and_tokens_half_precision():
    world = recurring_world()
    half = build_codebook(
        world.tokens.half().requires_grad_(),
        torch.tensor(world.image_ids),
        torch.tensor(world.top1),
        torch.tensor(world.region, dtype=torch.float32),
        world.global_.tolist(),
        SMALL,
    )
    assert half.prototypes.dtype == torch.float16 and not half.prototypes.requires_grad
    assert half.metadata["selection"]["rows"] == world.build(SMALL).metadata["selection"]["rows"]
    assert all(type(image_id) is int for image_id in half.image_ids)


def test_no_generator_means_no_randomness():
    world = recurring_world()
    world.tokens = torch.randn(48, DIMENSION, generator=torch.Generator().manual_seed(1))
    criterion = dataclasses.replace(SMALL, cluster_size_max=8, min_images=0)
    first = world.build(criterion)
    torch.manual_seed(99)
    assert torch.equal(first.prototypes, world.build(criterion).prototypes)
    seeded = [world.build(criterion, generator=torch.Generator().manual_seed(7)) for _ in range(2)]
    assert torch.equal(seeded[0].prototypes, seeded[1].prototypes)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(0, 3))
def test_every_prototype_meets_the_criterion(seed, cluster_size_max, min_images):
    generator = np.random.default_rng(seed)
    tokens = torch.tensor(generator.normal(size=(60, 3)))
    image_ids = np.repeat(np.arange(6), 10)
    top1 = generator.uniform(0, 0.3, 60)
    region, global_ = generator.uniform(0, 2e-3, 60), generator.uniform(0, 2e-4, 60)
    criterion = CodebookCriterion(
        n_clusters=4, cluster_size_max=cluster_size_max, n_prototype_clusters=3, min_images=min_images
    )
    try:
        codebook = build_codebook(tokens, image_ids, top1, region, global_, criterion)
    except CodebookError:
        return
    rows = codebook.metadata["selection"]["rows"]
    assert len(set(rows)) == len(rows)
    assert torch.equal(codebook.prototypes, tokens[rows])
    assert (top1[rows] < 0.15).all() and (region[rows] + 16 * global_[rows] < 0.002).all()
    clusters = np.array(codebook.metadata["clusters"])
    for number in np.unique(clusters):
        images = image_ids[np.array(rows)[clusters == number]]
        assert len(set(images)) > min_images
        assert (np.diff(images) >= 0).all()


def test_too_few_tokens_after_stage_1_states_the_counts():
    world = recurring_world()
    world.top1[:] = 0.5
    world.top1[world.rows(group=3)] = 0.01
    with pytest.raises(CodebookError) as error:
        world.build(SMALL)
    text = one_line(error)
    assert "48 tokens of 6 images, 4 low-information" in text
    assert "4 of them in clusters of at most 3" in text and "3 prototype clusters need 5" in text


def test_no_recurring_cluster_states_the_widest():
    world = recurring_world()
    world.top1[world.rows(group=0)] = 0.5
    with pytest.raises(CodebookError) as error:
        world.build(dataclasses.replace(SMALL, n_prototype_clusters=2, min_images=5))
    assert "none draws from more than 5 images, the widest from 4" in one_line(error)


def test_preset_on_few_images_is_refused_before_work():
    world = recurring_world()
    with pytest.raises(ParameterError) as error:
        world.build(PRESETS["llava-1.5-7b"])
    assert (
        one_line(error) == "min_images: got 64; accepted: fewer than the 6 images that the tokens come from"
    )


def test_image_with_too_few_tokens():
    world = World({image: [0] * (8 if image else 5) for image in range(6)})
    with pytest.raises(ParameterError) as error:
        world.build(dataclasses.replace(SMALL, n_clusters=7))
    assert one_line(error).startswith("tokens: got '5 of image 0'; accepted: at least 7 of every image")
    with pytest.raises(ParameterError, match="at least 5 of every image"):
        World({image: [0] * 4 for image in range(6)}).build(SMALL)


@pytest.mark.parametrize(
    ("change", "beginning"),
    [
        (lambda w: w.tokens.__setitem__((3, 1), float("nan")), "tokens: got '1 rows with NaN"),
        (lambda w: setattr(w, "tokens", w.tokens[None]), "tokens: got (1, 48, 6)"),
        (lambda w: setattr(w, "tokens", w.tokens.long()), "tokens: got "),
        (lambda w: setattr(w, "tokens", w.tokens.numpy()), "tokens: got "),
        (lambda w: setattr(w, "image_ids", w.image_ids[:-1]), "image_ids: got '47 values'"),
        (lambda w: setattr(w, "top1", w.top1[:-1]), "top1: got '47 values'"),
        (lambda w: setattr(w, "region", w.region[:, None]), "region: got '48 values'"),
        (lambda w: w.global_.__setitem__(0, np.nan), "global_: got 'NaN"),
        (lambda w: w.top1.__setitem__(0, 1.5), "top1: got 1.5"),
        (lambda w: w.top1.__setitem__(0, -0.1), "top1: got -0.1"),
    ],
)
def test_wrong_inputs_of_build(change, beginning):
    world = recurring_world()
    change(world)
    with pytest.raises(ParameterError) as error:
        world.build(SMALL)
    assert one_line(error).startswith(beginning)


def test_criterion_of_another_type():
    with pytest.raises(ParameterError, match="a CodebookCriterion"):
        recurring_world().build({"tau_p": 0.1})


def sample_codebook(dtype=torch.float16, **keywords):
    """A small codebook with everything known."""
    prototypes = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    facts = {"image_ids": [7, 7, 9, "photo", 11], "family": "llava", "positions": [0, 3, 1, 1, 2]}
    return Codebook(
        prototypes, **{**facts, "metadata": {"model": "scenes", "clusters": [0, 0, 0, 1, 1]}, **keywords}
    )


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


def test_codebook_of_another_width_or_family():
    codebook = sample_codebook()
    codebook.check_fits("llava", 4)
    Codebook(torch.ones(2, 4)).check_fits("llava", 4)
    with pytest.raises(CodebookError) as error:
        codebook.check_fits("llava", 4096)
    assert one_line(error) == "codebook: prototypes of width 4 do not fit visual tokens of width 4096"
    with pytest.raises(CodebookError) as error:
        codebook.check_fits("llava_onevision", 4)
    assert "'llava'" in one_line(error) and "'llava_onevision'" in one_line(error)


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


def flip_byte(path, position=-1):
    """Damage one byte of a file."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


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
    assert release.cached == ["release.json", "release.pt"]
    assert release.requests == ["release.pt", "release.json"]
    Codebook.from_released("llava-1.5-7b")
    assert len(release.requests) == 2


def test_released_from_a_file_address(release):
    release.entry["file"]["address"] = (release.served / "release.pt").as_uri()
    release.write()
    assert len(Codebook.from_released("llava-1.5-7b")) == 6
    assert release.requests == ["release.json"]


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
    assert "download ended after 700 of" in one_line(error)
    assert release.cached == []


def test_download_of_another_size(release):
    release.entry["file"]["size"] += 1
    release.write()
    with pytest.raises(CodebookError) as error:
        Codebook.from_released("llava-1.5-7b")
    assert "registered are" in one_line(error) and release.cached == []


def test_download_with_another_checksum(release):
    flip_byte(release.served / "release.pt", 900)
    with pytest.raises(ChecksumError) as error:
        Codebook.from_released("llava-1.5-7b")
    assert f"registered is {release.entry['file']['sha256']}" in one_line(error)
    assert release.cached == []


def test_failed_download_leaves_an_earlier_file_alone(release):
    Codebook.from_released("llava-1.5-7b")
    (release.root / "cache" / "llava-1.5-7b" / "release.pt").write_bytes(b"old")
    (release.served / "release.pt").unlink()
    with pytest.raises(CodebookError) as error:
        Codebook.from_released("llava-1.5-7b")
    assert "download failed (HTTP Error 404" in one_line(error)
    assert release.cached == ["release.json", "release.pt"]
    assert (release.root / "cache" / "llava-1.5-7b" / "release.pt").read_bytes() == b"old"


def test_interrupted_download_leaves_nothing(release, monkeypatch):
    class Interrupted:
        headers = {"Content-Length": "5"}

        def __enter__(self):
            return self

        def __exit__(self, *arguments):
            return False

        def read(self, n_bytes):
            assert len(release.cached) == 1
            raise KeyboardInterrupt

    monkeypatch.setattr("urllib.request.urlopen", lambda address, timeout: Interrupted())
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


def test_registered_shape_is_checked(release):
    release.entry["shape"] = [7, 4]
    release.write()
    with pytest.raises(CodebookError, match=r"holds \(6, 4\), registered is \[7, 4\]"):
        Codebook.from_released("llava-1.5-7b")


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


def test_registry_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("RCB_ROOT", str(tmp_path))
    with pytest.raises(CodebookError, match="RCB_ROOT"):
        Codebook.from_released("llava-1.5-7b")


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
