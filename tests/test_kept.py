"""Check where kept tokens are said to lie, on a picture small enough to count."""

import numpy as np
import pandas as pd
import pytest

from rcblib.reading.kept import PLACES, lost_and_held, places_kept, places_of_patches
from rcblib.records import ParameterError

COVERAGE = np.array([[0.9, 0.2, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])


def test_patches_lie_on_objects_on_their_edges_beside_them_or_elsewhere():
    assert places_of_patches(COVERAGE).reshape(3, 4).tolist() == [[0, 1, 2, 3], [2, 2, 2, 3], [3, 3, 3, 3]]
    with pytest.raises(ParameterError, match=r"coverage: got 'shape \(4,\)"):
        places_of_patches(COVERAGE[0])


def test_what_is_kept_is_shared_out_over_the_places():
    bare = np.zeros((1, 2))
    found = places_kept({1: COVERAGE, 2: bare}, {"codebook": {1: [0, 1, 4, 11], 2: [0]}})
    found = found.set_index(["method", "image_id"])
    assert found.loc[("codebook", 1), [*PLACES, "objects_kept"]].tolist() == [0.25, 0.25, 0.25, 0.25, 1.0]
    assert found.loc[("all tokens", 1), list(PLACES)].tolist() == [1 / 12, 1 / 12, 4 / 12, 6 / 12]
    assert found.loc[("codebook", 2), "elsewhere"] == 1 and np.isnan(
        found.loc[("codebook", 2), "objects_kept"]
    )


def test_questions_are_lost_that_were_answered_rightly_with_all_tokens():
    def rows(method, ratio, scores, said):
        known = {"task": "count", "subset": "", "question": "How many?"}
        scored = {"image_id": range(3), "score": scores, "prediction": said}
        return pd.DataFrame({"method": method, "retain_ratio": ratio, **known, **scored})

    answers = pd.concat(
        [rows("all tokens", 1.0, [1, 1, 0.5], "abc"), rows("codebook", 0.2, [1, 0, 1], "axc")]
        + [rows("codebook", 0.5, [0, 0, 0], "---")]
    )
    found = lost_and_held(answers.assign(prediction=list("abcaxc---")), "codebook", 0.2)
    assert found[["image_id", "is_lost"]].values.tolist() == [[0, False], [1, True]]
    assert found[["said", "prediction"]].values.tolist() == [["a", "a"], ["b", "x"]]
