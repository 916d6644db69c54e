"""Open what a notebook's parameters name, and print what was opened, a line each."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rcblib.codebook.codebook import Codebook, load_codebook
from rcblib.codebook.files import released_registry
from rcblib.data.base import check_apart
from rcblib.data.opening import folder_of, images_for, open_images, usable_images, world_note
from rcblib.data.skipped import record_skipped
from rcblib.mllm import Adapter, adapter_for, load_model
from rcblib.mllm.fingerprint import model_fingerprint
from rcblib.mllm.fitting import fitting_quantization
from rcblib.records import ImageId, Sample
from rcblib.runs.results import note_used


def open_model(config: Any) -> tuple[Any, Any, Adapter]:
    """Load the model of the parameters ``model``, ``device``, ``dtype``, ``device_map`` and ``quantization``.

    Where ``quantization`` is ``"auto"``, as in copies for Colab, `fitting_quantization` chooses, and a line says so.

    Returns
    -------
    tuple
        Model, processor and adapter, ready to probe. Raises as `load_model`.
    """
    quantization = config.quantization
    if quantization == "auto":
        quantization = fitting_quantization(config.model, config.device, config.device_map)
        if quantization:
            print("weights     as 4-bit numbers, because 16 bits each would fill this GPU")
    placement = {"device_map": config.device_map, "quantization": quantization}
    model, processor = load_model(config.model, config.device, config.dtype, **placement)
    adapter = adapter_for(model, processor)
    n_parameters = sum(weights.numel() for weights in model.parameters())
    note_used("models", config.model, model_fingerprint(model))
    print(f"model       {config.model}: {adapter.family}, {n_parameters:,} parameters")
    print(f"vocabulary  {adapter.n_vocab} entries")
    return model, processor, adapter


def open_codebook(config: Any, adapter: Adapter) -> tuple[Any, Codebook]:
    """Open the codebook of the parameter ``codebook``.

    ``"auto"`` stands for the one that the authors released for the model, by its Hugging Face id, else for the one that
    is named as the model is.

    Returns
    -------
    tuple
        The parameters with the codebook's name, and the codebook, which fits the model. Where it was made with other
        weights, or with them in another precision, a line says so. Raises as `load_codebook`.
    """
    name = _own_codebook(config.model) if config.codebook == "auto" else config.codebook
    book = load_codebook(name)
    book.check_fits(adapter.family, adapter.d_model)
    note_used("codebooks", name, book.prototypes_hash())
    print(f"codebook    {book}")
    fingerprint = model_fingerprint(adapter.model)
    if book.metadata.get("model_fingerprint", fingerprint) != fingerprint:
        print(
            "The codebook was made with other weights than this model's, or with them in another precision: "
            "of other weights build one again before trusting it."
        )
    return dataclasses.replace(config, codebook=name), book


def _own_codebook(model: str) -> str:
    """Name the codebook that was made for a model."""
    released = [name for name, entry in released_registry().items() if entry.get("model") == model]
    return released[0] if released else Path(model).name


class Opened(list[Sample]):
    """List samples, with what was left out of them, as `rcblib.data.base.Dataset` has it."""

    def __init__(self, samples: Iterable[Sample], skipped: Mapping[ImageId, str]):
        super().__init__(samples)
        self.skipped = skipped


def open_samples(config: Any, adapter: Adapter) -> tuple[Any, Opened]:
    """Open the single images of the parameters ``images``, ``split`` and ``n_images``.

    Where the parameter ``on_error`` is ``"skip"``, those that cannot be read, or that the processor refuses, are left
    out, and ``skipped/`` of the results folder keeps which and why.

    Returns
    -------
    tuple
        The parameters with the name of the images (that of the model's world for ``"auto"``), and the samples; their
        ``skipped`` says of what was left out why. Raises as `open_images`, and where the results folder is that of the
        images.
    """
    config = dataclasses.replace(config, images=images_for(config.images, adapter.model))
    if hasattr(config, "results_folder"):
        check_apart(folder_of(config.images), Path(config.results_folder))
    asked = config.images, config.split, config.n_images
    if getattr(config, "on_error", "stop") == "skip":
        samples = Opened(*usable_images(*asked, adapter.size_limit))
        ids = (sample.image_id for sample in samples)
        record_skipped(Path(config.results_folder), samples.skipped, ids)
    else:
        samples = Opened(open_images(*asked), {})
    first = samples[0]
    grids = [view.grid for view in adapter.encode([first.image])[0].views]
    print(f"images      {len(samples)} from {config.images}, the first {first.width} x {first.height} px")
    print(f"tokens      {' + '.join(f'{r} x {c}' for r, c in grids)}, each of width {adapter.d_model}")
    if note := world_note(adapter.model, samples):
        print(note)
    if not objects_known(samples):
        print("These images have no masks: what compares tokens with the objects beneath them is skipped.")
    return config, samples


def objects_known(samples: Iterable[Sample]) -> bool:
    """Tell whether all images are annotated, with an object at least: else there is nothing to compare tokens with."""
    annotated = [sample.objects for sample in samples]
    return None not in annotated and any(annotated)
