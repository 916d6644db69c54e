"""Codebook construction and released codebooks against the recorded release (families F and G)."""

import hashlib
import json

import pytest
import torch
from safetensors import safe_open

from rcblib.codebook.build import build_codebook
from rcblib.codebook.codebook import Codebook
from rcblib.codebook.criterion import CodebookCriterion
from rcblib.tensors.clustering import dpc_knn


def read_case(folder, name):
    """Return metadata and tensors of one recorded case."""
    with safe_open(folder / "parity" / f"{name}.safetensors", "pt") as file:
        return file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


@pytest.fixture(params=["F_codebook_filter_01", "F_codebook_filter_02"])
def case(request, shared_folder):
    """One construction case: criterion, flat inputs, everything recorded."""
    facts, tensors = read_case(shared_folder, request.param)
    criterion = CodebookCriterion(
        tau_p=float(facts["top1_prob_thres"]),
        tau_jsd=float(facts["jsd_value_thres"]),
        k_region=float(facts["k_context"]),
        k_global=float(facts["k_global"]),
        n_clusters=int(facts["cluster_nums"]),
        cluster_size_max=int(facts["cluster_size_thres"]),
        n_prototype_clusters=int(facts["prototype_cluster_nums"]),
        min_images=int(facts["prototype_min_unique_sample_thres"]),
    )
    return facts, tensors, criterion


@pytest.mark.parametrize("seed", [None, 0, 5])
def test_construction(case, seed):
    facts, tensors, criterion = case
    n_samples, n_positions, width = tensors["features"].shape
    codebook = build_codebook(
        tensors["features"].reshape(-1, width),
        tensors["sample_ids"].repeat_interleave(n_positions),
        tensors["max_prob"].flatten(),
        tensors["jsd_context"].flatten(),
        tensors["jsd_global"].flatten(),
        criterion,
        generator=None if seed is None else torch.Generator().manual_seed(seed),
        positions=tensors["position_ids"].repeat(n_samples).tolist(),
    )
    selection = codebook.metadata["selection"]
    assert torch.equal(codebook.prototypes, tensors["prototypes"])
    assert list(codebook.image_ids) == tensors["prototype_sample_ids"].tolist()
    rows = tensors["prototype_sample_row"] * n_positions + tensors["prototype_position_row"]
    assert selection["rows"] == rows.tolist()
    assert list(codebook.positions) == tensors["position_ids"][tensors["prototype_position_row"]].tolist()
    counted = [selection[key] for key in ("n_images", "n_tokens", "n_low_information", "n_after_stage_1")]
    recorded = [facts[key] for key in ("samples", "num_low_info", "num_after_stage1")]
    assert counted == [int(recorded[0]), n_samples * n_positions, int(recorded[1]), int(recorded[2])]


def test_flags(case):
    _, tensors, criterion = case
    low = criterion.low_information(tensors["max_prob"], tensors["jsd_context"], tensors["jsd_global"])
    assert low.tolist() == tensors["low_info_flag"].bool().tolist()
    # Two tokens were put exactly on a limit.
    influence = criterion.influence(tensors["jsd_context"], tensors["jsd_global"])
    assert tensors["max_prob"][0, 3] == criterion.tau_p and not low[0, 3]
    assert influence[1, 5] == criterion.tau_jsd and not low[1, 5]


def test_stage_labels(case):
    _, tensors, criterion = case
    for features, labels in zip(tensors["features"], tensors["stage1_labels"], strict=True):
        assert dpc_knn(features, criterion.n_clusters).tolist() == labels.tolist()
    selected = tensors["features"][
        tensors["stage1_selected_sample_row"], tensors["stage1_selected_position_row"]
    ]
    assert dpc_knn(selected, criterion.n_prototype_clusters).tolist() == tensors["stage2_labels"].tolist()


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("G_high_info_patch_llava15_01", "llava-1.5-7b.pt"),
        ("G_high_info_patch_llavaov_01", "llava-onevision-qwen2-7b-ov.pt"),
    ],
)
def test_released_codebook_is_the_recorded_one(shared_folder, name, file):
    facts, tensors = read_case(shared_folder, name)
    codebook = Codebook.from_released(shared_folder / "codebooks" / file)
    assert codebook.metadata["sha256"] == facts["codebook_file_sha256"]
    assert list(codebook.prototypes.shape) == json.loads(facts["codebook_shape"])
    data = codebook.prototypes.contiguous().numpy().astype("<f2").tobytes()
    assert hashlib.sha256(data).hexdigest() == facts["codebook_data_sha256"]
    assert torch.equal(codebook.prototypes[tensors["codebook_rows"]], tensors["codebook_part"])
