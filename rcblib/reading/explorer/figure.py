"""Draw what a page shows without JavaScript: a picture with some tokens numbered, and beside it what they say."""

from __future__ import annotations

from typing import Any

import numpy as np

from rcblib.reading.explorer.packing import unpack_integers, unpack_numbers
from rcblib.reading.explorer.schema import Exhibit, Pictures

N_TOKENS = 5


def numbered_tokens(exhibit: Exhibit) -> list[int]:
    """Choose tokens of the first view: the surest of each word, surest first, and at the end the least sure of all."""
    n_tokens = exhibit.views[0].rows * exhibit.views[0].columns
    ids = unpack_integers(exhibit.word_ids)
    first = ids[:: len(ids) // len(exhibit.probed)][:n_tokens]
    sure = _probabilities(exhibit)[:n_tokens, 0]
    order = [int(i) for i in np.argsort(-sure, kind="stable") if first[i] is not None]
    chosen: list[int] = []
    for token in order:
        if first[token] not in [first[other] for other in chosen]:
            chosen.append(token)
    if not order:
        return []
    return [*[token for token in chosen if token != order[-1]][: N_TOKENS - 1], order[-1]]


def _probabilities(exhibit: Exhibit) -> np.ndarray:
    own = exhibit.word_probabilities
    return unpack_numbers(own.low, own.high, own.codes, own.power).reshape(len(exhibit.probed), -1)


def static_figure(exhibit: Exhibit, pictures: Pictures) -> dict[str, Any]:
    """Return what ``page/figure.html.jinja`` shows; a script may put something better in its place."""
    view, shares = exhibit.views[0], _probabilities(exhibit)
    ids = np.array([-1 if i is None else i for i in unpack_integers(exhibit.word_ids)]).reshape(shares.shape)
    tokens = []
    for token in numbered_tokens(exhibit):
        row, column = divmod(token, view.columns)
        said = [
            f"{exhibit.words[i] or '(blank)'} {share:.0%}"
            for i, share in zip(ids[token], shares[token], strict=True)
            if i >= 0
        ]
        tokens.append({"row": row, "column": column, "said": ", ".join(said)})
    return {"view": view, "source": pictures.views[0].source, "tokens": tokens}
