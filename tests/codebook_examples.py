"""Build small codebooks, and probed tokens whose prototypes are known."""

import numpy as np
import torch

from rcblib.codebook.build import build_codebook
from rcblib.codebook.codebook import Codebook
from rcblib.codebook.criterion import CodebookCriterion

DIMENSION = 6
CENTRES = torch.eye(DIMENSION) * 2


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


def sample_codebook(dtype=torch.float16, **keywords):
    """A small codebook with everything known."""
    prototypes = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    facts = {"image_ids": [7, 7, 9, "photo", 11], "family": "llava", "positions": [0, 3, 1, 1, 2]}
    return Codebook(
        prototypes, **{**facts, "metadata": {"model": "scenes", "clusters": [0, 0, 0, 1, 1]}, **keywords}
    )


def flip_byte(path, position=-1):
    """Damage one byte of a file."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
