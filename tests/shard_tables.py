"""Tables as shards of a run write them, of every kind of column."""

import numpy as np
import pandas as pd

from rcblib.runs.files import write_table
from rcblib.runs.records import table_facts
from rcblib.runs.shards import Shard

MADE = {"date": "2026-01-02T03:04:05+00:00", "cpu": "a processor", "gpu": "none", "git_commit": "c0ffee123"}
DESCRIPTION = {"model_fingerprint": "0123", "model": "a name", "code": "today"}


def table_of(image_ids, n_rows=3):
    """Return a table of every kind of column, the numbers different in each row."""
    ids = np.repeat(image_ids, n_rows)
    token = np.tile(np.arange(n_rows), len(image_ids))
    value = np.sin(ids * 10.0 + token)
    words = pd.Series([f"word {t}" if t else None for t in token])
    columns = {"image_id": ids, "token": token, "value": value, "word": words, "is_article": value > 0}
    return pd.DataFrame(columns | {"rank": token * 2, "ratio": np.full(len(ids), 0.05)})


def facts_of(image_ids, shard=None, every=(), **changes):
    samples = {image_id: f"image {image_id}" for image_id in image_ids}
    facts = table_facts(
        DESCRIPTION, ["token"], samples, [{"seconds": 2.0, "provenance": MADE}] * len(image_ids)
    )
    return facts | {"description": DESCRIPTION | changes} | (shard or Shard()).share(every or image_ids, {})


def write_shards(folder, image_ids, n_shards):
    """Write a table in shards, every n-th image in each; return their files."""
    folder.mkdir()
    paths = []
    for number in range(1, n_shards + 1):
        shard = Shard(number, n_shards)
        own = shard.of_images(image_ids)
        paths.append(folder / f"{number}.parquet")
        write_table(paths[-1], table_of(own), facts_of(own, shard, image_ids))
    return paths
