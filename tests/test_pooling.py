"""Codebooks of images that are read one by one: the same as of all together, in memory and from files."""

import tempfile
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from codebook_examples import SMALL, recurring_world
from hypothesis import given
from hypothesis import strategies as st
from messages import one_line
from safetensors.torch import load_file

from rcblib.codebook import pooling
from rcblib.codebook.build import build_codebook, build_codebook_by_image
from rcblib.codebook.criterion import CodebookCriterion
from rcblib.codebook.pooling import ProbedImage, StoredRows
from rcblib.records import CodebookError, ParameterError
from rcblib.tensors import neighbours


class Probed:
    """Probed images of random tokens, as the tables and the files of probing give them."""

    def __init__(self, n_images=12, n_tokens=16, width=6, n_views=1, seed=0, dtype=torch.float32):
        generator = torch.Generator().manual_seed(seed)
        self.criterion = CodebookCriterion(
            n_clusters=5, cluster_size_max=6, n_prototype_clusters=6, min_images=2
        )
        self.tokens, tables, self.n_read = {}, [], Counter()
        for image in range(n_images):
            shown = torch.randn(n_views, n_tokens, width, generator=generator)
            shown[-1, :2] = shown[0, :2]  # which two views share
            self.tokens[f"{image}.png"] = shown.flatten(0, 1).to(dtype)
            top1, region, global_ = torch.rand(3, n_views * n_tokens, generator=generator).double().numpy()
            tables.append(pd.DataFrame({
                "image_id": f"{image}.png",
                "view": np.repeat(np.arange(n_views), n_tokens),
                "token": np.arange(n_views * n_tokens),
                "position": np.tile(np.arange(n_tokens), n_views),
                "top1_probability": 0.2 * top1,
                "region_divergence": 2e-3 * region,
                "global_divergence": 5e-5 * global_,
            }))  # fmt: skip
        self.table = pd.concat(tables, ignore_index=True)

    def __getitem__(self, image_id):
        self.n_read[image_id] += 1
        return self.tokens[image_id]

    def images(self, n=None):
        """The first images, each made when it is its turn."""
        for _, rows in list(self.table.groupby("image_id", sort=False))[:n]:
            yield ProbedImage.from_table(rows, self)

    def together(self, seed=None):
        table = self.table
        return build_codebook(
            torch.cat(list(self.tokens.values())),
            table["image_id"],
            *(table[name] for name in ("top1_probability", "region_divergence", "global_divergence")),
            self.criterion,
            noise(seed),
            positions=table["position"],
            views=table["view"],
        )

    def by_image(self, seed=None, n=None, **keywords):
        return build_codebook_by_image(self.images(n), self.criterion, noise(seed), **keywords)


def noise(seed):
    return None if seed is None else torch.Generator().manual_seed(seed)


def assert_same(a, b):
    assert torch.equal(a.prototypes, b.prototypes) and a.prototypes.dtype == b.prototypes.dtype
    known = [book.metadata | {"provenance": {}} for book in (a, b)]  # which says when
    assert (a.image_ids, a.positions, known[0]) == (b.image_ids, b.positions, known[1])


@pytest.fixture
def few_images_a_part(monkeypatch):
    monkeypatch.setattr(pooling, "IMAGES_PER_PART", 3)


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize("n_views", [1, 3])
def test_the_codebook_is_that_of_all_tokens_together(n_views, seed, tmp_path, few_images_a_part, monkeypatch):
    probed = Probed(n_views=n_views, dtype=torch.bfloat16)
    together = probed.together(seed)
    assert len(together) > 5
    assert_same(probed.by_image(seed), together)
    assert_same(probed.by_image(seed, pool=tmp_path / "new" / "pool"), together)
    assert len(list((tmp_path / "new" / "pool").iterdir())) == 4
    # The pool is read in blocks as small as can be, and searched as a large one is.
    monkeypatch.setattr(neighbours, "DIRECT_POINTS", 0)
    monkeypatch.setattr(neighbours, "N_ROWS", 7)
    monkeypatch.setattr(neighbours, "MOST_NUMBERS", 30)
    assert_same(probed.by_image(seed, pool=tmp_path / "new" / "pool"), together)


@given(st.integers(0, 10_000), st.integers(3, 9), st.integers(1, 5), st.integers(1, 3), st.booleans())
def test_neither_images_a_part_nor_their_views_matter(seed, n_images, per_part, n_views, with_noise):
    probed = Probed(n_images, n_views=n_views, seed=seed)
    try:
        together = probed.together(seed if with_noise else None)
    except CodebookError as error:
        together = str(error)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(pooling, "IMAGES_PER_PART", per_part)
        try:
            assert_same(probed.by_image(seed if with_noise else None, pool=folder), together)
        except CodebookError as error:
            assert str(error) == together


def test_an_interrupted_pool_goes_on_and_ends_the_same(tmp_path, few_images_a_part):
    probed = Probed()

    def stopped():
        for image in probed.images():
            if image.image_id == "7.png":
                raise KeyboardInterrupt
            yield image

    with pytest.raises(KeyboardInterrupt):
        build_codebook_by_image(stopped(), probed.criterion, noise(0), pool=tmp_path)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "part-00000.safetensors",
        "part-00001.safetensors",
    ]
    probed.n_read.clear()
    assert_same(probed.by_image(0, pool=tmp_path), probed.together(0))
    assert sorted(probed.n_read) == sorted(f"{i}.png" for i in range(6, 12))
    # With everything there no token of an image is read again.
    probed.n_read.clear()
    assert_same(probed.by_image(0, pool=tmp_path), probed.together(0))
    assert not probed.n_read


def test_a_pool_follows_what_it_depends_on(tmp_path, few_images_a_part):
    probed = Probed()

    probed.by_image(0, pool=tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def made(**keywords):
        """How many parts were made again."""
        seed, n = keywords.pop("seed", 0), keywords.pop("n", None)
        found = probed.by_image(seed, n, pool=tmp_path, **keywords)
        assert_same(found, probed.by_image(seed, n, **keywords))
        now = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        changed = sum(before.get(name) != data for name, data in now.items())
        before.clear()
        before.update(now)
        return changed, len(now)

    assert made() == (0, 4)
    assert made(seed=1) == (4, 4)
    assert made(seed=None) == (4, 4)
    assert made(seed=None, metadata={"model": "another"}) == (4, 4)
    # Of fewer images what is left over goes; parts before a change stay.
    assert made(seed=None, metadata={"model": "another"}, n=8) == (1, 3)
    probed.table.loc[probed.table["image_id"] == "4.png", "top1_probability"] *= 0.5
    assert made(seed=None, metadata={"model": "another"}, n=8) == (2, 3)
    probed.criterion = CodebookCriterion(
        n_clusters=4, cluster_size_max=6, n_prototype_clusters=5, min_images=2
    )
    assert made(seed=None, metadata={"model": "another"}, n=8) == (3, 3)
    (tmp_path / "part-00001.safetensors").write_bytes(b"damaged")
    before["part-00001.safetensors"] = b"damaged"
    assert made(seed=None, metadata={"model": "another"}, n=8) == (1, 3)


def test_rows_of_files_are_read_like_those_of_a_matrix(tmp_path, few_images_a_part):
    probed = Probed(dtype=torch.float16)
    probed.by_image(pool=tmp_path)
    paths = sorted(tmp_path.iterdir())
    whole, rows = (
        torch.cat([load_file(path)["tokens"] for path in paths]),
        StoredRows(paths, torch.device("cpu")),
    )
    assert rows.shape == tuple(whole.shape) and rows.dtype == whole.dtype and len(rows) == len(whole)
    for some in (
        slice(0, 2),
        slice(3, len(whole)),
        torch.tensor([5, 0, len(whole) - 1, 5]),
        torch.tensor([], dtype=int),
    ):
        assert torch.equal(rows[some], whole[some])


def test_wrong_images_are_refused_when_it_is_their_turn(tmp_path):
    probed = Probed()
    probed.tokens["3.png"][4, 1] = np.nan
    with pytest.raises(ParameterError) as error:
        probed.by_image(pool=tmp_path)
    assert one_line(error) == (
        "tokens: got \"(16, 6) of image '3.png'\"; accepted: (16, d_model), all of them finite"
    )
    probed = Probed()
    probed.table.loc[70, "region_divergence"] = np.inf
    with pytest.raises(ParameterError, match="region: got 'NaN or infinite values'"):
        probed.by_image()
    with pytest.raises(ParameterError, match="min_images: got 2; accepted: fewer than the 2 images"):
        probed.by_image(n=2)
    for pool in ("", tmp_path):
        with pytest.raises(ParameterError, match="images: got 'none'; accepted: at least one"):
            probed.by_image(n=0, pool=pool)
    with pytest.raises(
        ParameterError, match="device: got 'abacus'; accepted: a device that this machine has"
    ):
        probed.by_image(device="abacus")
    with pytest.raises(ParameterError, match="a CodebookCriterion"):
        build_codebook_by_image(probed.images(), {})


def test_an_image_without_views_or_positions_is_one_grid():
    world = recurring_world()
    images = [
        ProbedImage(
            image,
            lambda rows=rows: world.tokens[rows],
            np.array(rows),
            (world.top1[rows], world.region[rows], world.global_[rows]),
        )
        for image in range(6)
        for rows in [world.rows(image)]
    ]
    assert_same(build_codebook_by_image(images, SMALL), world.build(SMALL))
