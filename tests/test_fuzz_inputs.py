"""Try damaged and odd photos, annotations and names, as users bring them: the right result, or one line.

See `test_fuzz.py` for what the project itself writes.
"""

import functools
import io
import json
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from families import FAMILIES
from mutations import as_json, damaged_bytes, damaged_value
from PIL import Image
from pycocotools import mask as coco_mask
from survival import OWN_ERRORS, PER_POINT, outcomes_of

from rcblib.codebook.codebook import load_codebook
from rcblib.data.coco import CocoDataset
from rcblib.data.opening import open_dataset
from rcblib.data.photos import PhotoFolder
from rcblib.data.questions import questions_for
from rcblib.mllm import adapter_for, load_model

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Nothing is looked for on the Hub, whatever a name looks like."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


# Annotations


def open_annotations(source, scratch, damage):
    """Open a copy of a folder in COCO's format with one file damaged, and use all that it says."""
    name, data = damage
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(source, scratch)
    (scratch / name).write_bytes(data)
    split = "train" if name == "dataset_coco.json" else Path(name).stem.split("_")[1]
    samples = list(CocoDataset(scratch, split))
    assert len({sample.image_id for sample in samples}) == len(samples)
    for sample in samples:
        assert sample.image.mode == "RGB"
        assert all(isinstance(caption, str) for caption in sample.captions)
        for item in sample.objects or ():
            assert isinstance(item.category, str)
            assert np.isfinite([*item.box, item.area]).all()
            assert coco_mask.decode(dict(item.rle)).shape == (sample.height, sample.width)
    if all(sample.objects is not None for sample in samples):
        questions_for(samples, n_per_task=2, seed=0)


def test_damaged_annotations(coco, tmp_path_factory, n_points, findings):
    generator = np.random.default_rng(3)
    names = [str(path.relative_to(coco)) for path in sorted(coco.rglob("*.json"))]
    inputs = {}
    for number in range(2 * PER_POINT * n_points):
        name = names[int(generator.integers(len(names)))]
        data = (coco / name).read_bytes()
        if number % 3:
            value, how = damaged_value(json.loads(data), generator)
            data = as_json(value).encode()
        else:
            data, how = damaged_bytes(data, generator)
        inputs[f"{number}: {name}: {how}"] = (name, data)
    attempt = functools.partial(open_annotations, coco, tmp_path_factory.mktemp("damaged") / "coco")
    what = "bytes and values of files in COCO's format are changed; what opens is whole, or one line says why not"
    findings.add("COCO annotations", what, outcomes_of(inputs, attempt))


# Names

ODD_NAMES = (
    "", " ", ".", "..", "/", "~", "~nobody_here/x", "$HOME", "${", "%", "\0", "a\0b", "a" * 300, "a/" * 3000,
    "é" * 200, "coco:", "coco:.", "coco:\0", "coco:" + "a" * 300, "group:", "group:/", "video:", "video:.",
    "video:/dev/null", "video:\0", "/dev/null", "/dev/zero", "/proc/self/mem", "scenes:", "scenes ", "-x", "--help",
    "*", "?", "a b", "owner/name", "owner/na me", "https://example.invalid/x", "file:///etc/passwd", "\n", "a\nb",
    "x.pt", "x.json", "x.safetensors", "\ud800", "NUL", "C:\\x", "<b>", "$(id)", "`id`", "; id", "| id",
)  # fmt: skip


def test_odd_names_of_images_models_and_codebooks(findings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RCB_ROOT", str(REPOSITORY))
    doors = {
        "images": lambda name: open_dataset(name, None, 1),
        "split": lambda name: open_dataset("scenes", name, 1),
        "model": lambda name: load_model(name, "cpu"),
        "device": lambda name: load_model("llava-scenes", name),
        "dtype": lambda name: load_model("llava-scenes", "cpu", name),
        "codebook": load_codebook,
    }
    inputs = {f"{door} {name[:40]!r}": (door, name) for door in doors for name in ODD_NAMES}

    def attempt(given):
        door, name = given
        doors[door](name)

    what = (
        "texts that are no name, path or address are given for images, splits, models, devices and codebooks"
    )
    findings.add("odd names", what, outcomes_of(inputs, attempt))


# Images


def png_of(width, height, data=b""):
    """Return a PNG whose header states a size, whatever its data."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def odd_images():
    """Yield names and bytes of pictures that are whole, of every mode and shape that files come in."""
    photo = tiny.random_images(1, (40, 31), seed=5)[0]
    modes = {
        "jpg": ("RGB", "L", "CMYK"),
        "png": ("RGB", "RGBA", "L", "LA", "1", "P", "I;16"),
        "tif": ("RGB", "CMYK", "L", "1", "P", "I;16", "F", "LAB", "YCbCr"),
        "webp": ("RGB", "RGBA"),
        "bmp": ("RGB", "L", "1"),
        "gif": ("P", "L"),
    }
    for suffix, kinds in modes.items():
        for mode in kinds:
            if mode in ("I;16", "F", "LAB"):
                grey = np.asarray(photo.convert("L"))
                image = {
                    "I;16": lambda grey=grey: Image.fromarray(grey.astype(np.uint16) * 257),
                    "F": lambda grey=grey: Image.fromarray(grey.astype(np.float32) / 255),
                    "LAB": lambda: Image.new("LAB", (40, 31), (50, 10, 10)),
                }[mode]()
            else:
                image = photo.convert(mode)
            yield f"{mode}.{suffix}", encoded(image, suffix)
        for size in ((1, 1), (1, 40), (3000, 3)):
            yield f"{size[0]}x{size[1]}.{suffix}", encoded(photo.resize(size), suffix)
    yield "20000x20.png", encoded(photo.resize((20000, 20)), "png")
    yield "20x20000.jpg", encoded(photo.resize((20, 20000)), "jpg")
    frames = [photo.convert("P"), photo.rotate(90).convert("P"), Image.new("P", (40, 31))]
    for suffix in ("gif", "webp", "png", "tif"):
        buffer = io.BytesIO()
        frames[0].save(buffer, form_of(suffix), save_all=True, append_images=frames[1:])
        yield f"animated.{suffix}", buffer.getvalue()


def form_of(suffix):
    return {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper())


def encoded(image, suffix):
    buffer = io.BytesIO()
    image.save(buffer, form_of(suffix))
    return buffer.getvalue()


def test_odd_and_damaged_images(tmp_path, n_points, findings):
    adapters = {name: adapter_for(*FAMILIES[name].build()) for name in ("llava", "llava_next", "qwen2_5_vl")}
    whole, generator = dict(odd_images()), np.random.default_rng(5)
    inputs = {name: (name, data) for name, data in whole.items()}
    inputs |= {
        f"{name} cut off at {k}/16": (name, data[: len(data) * k // 16])
        for name, data in whole.items()
        if name.startswith(("RGB.", "animated"))
        for k in range(16)
    }
    for number in range(PER_POINT * n_points):
        name = str(generator.choice(sorted(whole)))
        data, how = damaged_bytes(whole[name], generator)
        inputs[f"{number}: {name} {how}"] = name, data
    for size in ((60000, 60000), (2**31 - 1, 1), (0, 5), (50000, 2000)):
        inputs[f"a header of {size}"] = "header.png", png_of(*size)
    for name in ("empty.jpg", "text.png", "link.jpg"):
        inputs[name] = name, b"" if name == "empty.jpg" else b"<svg/>"

    def attempt(given):
        name, data = given
        shutil.rmtree(tmp_path / "photos", ignore_errors=True)
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos" / name).write_bytes(data)
        (sample,) = PhotoFolder(tmp_path / "photos")
        image = sample.image
        assert (image.mode, image.size) == ("RGB", (sample.width, sample.height))
        if data == whole.get(name) and "x" not in name and "animated" not in name and "LAB" not in name:
            assert image.size == (40, 31)
        failed = []
        for family, adapter in adapters.items():
            try:
                (encoded_image,) = adapter.encode([image])
                assert all(torch.isfinite(view.tokens).all() for view in encoded_image.views)
            except OWN_ERRORS as error:
                failed.append(f"{family}: {error}")
        if failed:
            raise OWN_ERRORS[1]("; ".join(failed))

    what = (
        "photos of every mode, size and format, whole, cut off at each 16th and damaged, are read and encoded"
    )
    findings.add("images", what, outcomes_of(inputs, attempt))
