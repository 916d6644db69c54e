"""Write pictures, films and folders of frames, and read back what they show."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask


def save_picture(path, size=(40, 30), seed=0, **settings):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path, **settings)
    return path


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def arrays(sample):
    return [np.asarray(image) for image in sample.images]


def masks_of(sample):
    return [coco_mask.decode(dict(item.rle)).astype(bool) for item in sample.objects]


GREYS = [20 * i for i in range(11)]
"""Brightness of the frames of test clips, by which they are told apart."""


def grey_frames(size=(32, 24)):
    return [Image.new("RGB", size, (grey,) * 3) for grey in GREYS]


def greys_of(sample):
    return [round(float(pixels.mean()) / 20) * 20 for pixels in arrays(sample)]


def film(path, frames):
    av = pytest.importorskip("av", reason="the package av is not installed")
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = *frames[0].size, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    return path


def animation(path, frames):
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, loop=0)
    return path


def frame_folder(path, frames):
    path.mkdir()
    for i, frame in enumerate(frames):
        frame.save(path / f"frame{i}.png")
    return path
