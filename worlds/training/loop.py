"""Run one training stage: optimisers, schedule, progress, checkpoints and resumption, the same on CPU and GPU."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from rcblib.records import ParameterError
from worlds.training.muon import Muon


@dataclass(frozen=True)
class LoopConfig:
    """Set the length and pace of a stage.

    Attributes
    ----------
    n_steps, batch_size : int
        Optimiser steps, and scenes a step.
    learning_rate : float
        Peak of matrices inside blocks, updated by Muon; others follow AdamW at `adam_scale` times it.
    warmup : float
        Share of the steps over which the rate rises; it then falls along a cosine to 2 % of the peak.
    seed : int
        Seed of the scenes; step *k* sees scenes ``k * batch_size`` and following, so a resumed run repeats none.
    n_workers : int
        Processes that draw scenes.
    checkpoint_minutes : float
        How often the state is written.
    muon : bool
        Whether matrices inside blocks follow Muon; else everything follows AdamW.
    """

    n_steps: int
    batch_size: int
    learning_rate: float
    adam_scale: float = 0.5
    warmup: float = 0.03
    seed: int = 0
    n_workers: int = 1
    checkpoint_minutes: float = 3.0
    log_every: int = 50
    muon: bool = True

    def __post_init__(self) -> None:
        for name in ("n_steps", "batch_size", "learning_rate", "log_every"):
            if getattr(self, name) <= 0:
                raise ParameterError(name, getattr(self, name), "a positive number")


def fast_bfloat16(device: torch.device) -> bool:
    """Tell whether bfloat16 matrix products are native here; older CPUs emulate them, 80 times slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def autocast(device: torch.device) -> Any:
    """Return the context of the forward pass: bfloat16 where it is native, else float32."""
    if fast_bfloat16(device):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def make_optimizers(
    groups: Iterable[tuple[nn.Module, float]], config: LoopConfig
) -> list[tuple[torch.optim.Optimizer, list[float]]]:
    """Split the trainable parameters of modules between Muon (matrices of blocks) and AdamW (everything else).

    Parameters
    ----------
    groups : iterable of (module, scale)
        Each module learns at ``scale * learning_rate``.

    Returns
    -------
    list of (optimizer, peak rates)
        One peak rate a parameter group.

    Source: Jordan et al. 2024 (Muon), with the root-mean-square matching of Liu et al. 2025.
    """
    muon, adam = [], []
    for module, scale in groups:
        matrices = [
            p
            for n, p in module.named_parameters()
            if config.muon and p.requires_grad and p.ndim == 2 and "embed" not in n and "head" not in n
        ]
        inside = {id(p) for p in matrices}
        rest = [p for p in module.parameters() if p.requires_grad and id(p) not in inside]
        rate = config.learning_rate * scale
        muon += [{"params": matrices, "lr": rate}] if matrices else []
        adam += [{"params": rest, "lr": rate * config.adam_scale}] if rest else []
    optimizers: list[torch.optim.Optimizer] = []
    if muon:
        optimizers.append(Muon(muon))
    if adam:
        optimizers.append(torch.optim.AdamW(adam, betas=(0.9, 0.98), weight_decay=0.02))
    return [(o, [g["lr"] for g in o.param_groups]) for o in optimizers]


def rate_at(step: int, config: LoopConfig) -> float:
    """Return the learning rate at a step as a share of its peak."""
    warm = max(1, round(config.warmup * config.n_steps))
    if step < warm:
        return (step + 1) / warm
    progress = (step - warm) / max(1, config.n_steps - warm)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))


def run_stage(
    name: str,
    module: nn.Module,
    batches: Dataset,
    loss: Callable[[Mapping[str, torch.Tensor]], tuple[torch.Tensor, dict[str, float]]],
    config: LoopConfig,
    folder: Path,
    groups: Iterable[tuple[nn.Module, float]] | None = None,
) -> dict[str, Any]:
    """Train `module` for the configured steps, resuming from `folder` where a checkpoint lies there.

    Parameters
    ----------
    name : str
        Name of the stage, used for its checkpoint file and its lines of progress.
    module : torch.nn.Module
        Everything whose state a checkpoint must hold.
    batches : torch.utils.data.Dataset
        Item *k* is the batch of step *k*, a mapping of tensors.
    loss : callable
        Batch on the device -> (scalar loss, numbers to print).
    groups : iterable of (module, scale), optional
        What learns and how fast relative to the configured rate; default: all of `module` at 1.

    Returns
    -------
    dict
        Steps, scenes, wall seconds (over all resumed parts), device, the last averaged numbers, and their ``history``:
        a list for each, averages over the steps since the entry before (``None`` where none of them measured it), with
        the ``step`` at which each ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / f"{name}.checkpoint.pt"
    device = next(module.parameters()).device
    optimizers = make_optimizers(groups or [(module, 1.0)], config)
    trainable = [p for o, _ in optimizers for g in o.param_groups for p in g["params"]]
    start, seconds = 0, 0.0
    history: list[dict[str, float]] = []
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        module.load_state_dict(state["module"])
        for (optimizer, _), saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        start, seconds, history = state["step"], state["seconds"], state.get("history", [])
        print(f"{name}: resumes at step {start} of {config.n_steps}", flush=True)

    def save(step: int) -> None:
        partial = checkpoint.with_suffix(".partial")
        torch.save(
            {
                "module": module.state_dict(),
                "optimizers": [o.state_dict() for o, _ in optimizers],
                "step": step,
                "seconds": seconds + time.monotonic() - began,
                "history": history,
            },
            partial,
        )
        partial.replace(checkpoint)

    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=range(start, config.n_steps),
        num_workers=config.n_workers,
        prefetch_factor=4 if config.n_workers else None,
    )
    began = last_save = time.monotonic()
    numbers_since: dict[str, list[float]] = {}
    module.train()
    for step, batch in enumerate(loader, start):
        share = rate_at(step, config)
        for optimizer, peaks in optimizers:
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * share
        batch = {k: v.to(device, non_blocking=True) for k, v in batch.items()}
        with autocast(device):
            value, numbers = loss(batch)
        value.backward()
        nn.utils.clip_grad_norm_(trainable, 1.0)
        for optimizer, _ in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        for key, number in {"loss": value.detach(), **numbers}.items():
            numbers_since.setdefault(key, []).append(float(number))
        done = step + 1
        if done % config.log_every == 0 or done == config.n_steps:
            averages = {key: sum(values) / len(values) for key, values in numbers_since.items()}
            numbers_since = {}
            history.append({"step": done, **{key: round(number, 4) for key, number in averages.items()}})
            pace = (done - start) * config.batch_size / (time.monotonic() - began)
            shown = "  ".join(f"{key} {number:.3f}" for key, number in averages.items())
            print(f"{name}: step {done}/{config.n_steps}  {pace:.0f} scenes/s  {shown}", flush=True)
        if time.monotonic() - last_save > 60 * config.checkpoint_minutes:
            save(done)
            last_save = time.monotonic()
    save(config.n_steps)
    module.eval()
    return {
        "steps": config.n_steps,
        "scenes": config.n_steps * config.batch_size,
        "seconds": round(seconds + time.monotonic() - began, 3),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "autocast": "bfloat16" if fast_bfloat16(device) else "float32",
        **{key: number for key, number in (history[-1] if history else {}).items() if key != "step"},
        "history": {
            key: [row.get(key) for row in history]
            for key in dict.fromkeys(key for row in history for key in row)
        },
    }
