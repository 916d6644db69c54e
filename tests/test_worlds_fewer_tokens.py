"""Score a model with fewer visual tokens."""

import numpy as np
import pandas as pd
import pytest
import torch
from test_worlds_training import TINY

from rcblib.mllm import load_model
from worlds.fewer_tokens import ALL, SETTINGS, TASKS, fewer_token_scores, fewer_token_table, score_settings
from worlds.training.stages import export, run_stages

HALF = "half of them"


def answers() -> pd.DataFrame:
    """Return answers to two tasks about 50 images, as `evaluate_grid` does: guessing gets 0.5 and 0.2."""
    rows = []
    for method, scores in ((ALL, {"yes_no": 0.9, "count": 0.8}), (HALF, {"yes_no": 0.6, "count": 0.4})):
        for task, share in scores.items():
            for i in range(50):
                guess = float(i < (25 if task == "yes_no" else 10))
                right = float(i % 10 < 10 * share)
                rows.append((method, 1.0, i, task, "", f"{task} {i}", right, guess))
    columns = ["method", "retain_ratio", "image_id", "task", "subset", "question", "score", "guess"]
    settings = {"max_similarity": np.nan, "settings": "", "seed": pd.NA, "answer": "x"}
    return pd.DataFrame(rows, columns=columns).assign(**settings)


class TestScores:
    def test_relative_scores_and_those_above_guessing(self):
        found = score_settings(answers(), np.random.default_rng(0))
        assert found["guessing"]["yes_no"]["value"] == pytest.approx(0.5)
        assert found[ALL]["count"]["value"] == pytest.approx(0.8) and "relative" not in found[ALL]
        half = found[HALF]
        assert half["relative"]["value"] == pytest.approx((0.6 / 0.9 + 0.4 / 0.8) / 2)
        assert half["corrected"]["value"] == pytest.approx((0.1 / 0.4 + 0.2 / 0.6) / 2)
        low, high = half["corrected"]["interval"]
        assert low < half["corrected"]["value"] < high and half["corrected"]["n_clusters"] == 50

    def test_the_table_has_a_row_a_setting_and_a_column_a_task(self):
        found = score_settings(answers(), np.random.default_rng(0))
        table = fewer_token_table(found, {"count": "how many"})
        assert table.columns.tolist() == ["visual tokens", "yes_no", "how many", "relative", "corrected"]
        rows = table.set_index("visual tokens")
        assert rows.loc[ALL].tolist() == ["0.900", "0.800", "", ""]
        assert rows.loc[HALF, "relative"].startswith("0.583 [") and rows.loc["guessing", "yes_no"] == "0.500"

    def test_a_model_is_asked_the_same_with_each_number_of_tokens(self, tmp_path):
        stage = TINY.stages[-1].name
        torch.manual_seed(0)
        recipe = TINY
        run_stages(
            recipe, [s.name for s in recipe.stages], tmp_path, weights=tmp_path, device="cpu", scale=0.5
        )
        assert (tmp_path / f"{stage}.safetensors").is_file()
        export(recipe, tmp_path, tmp_path / "model")
        model, processor = load_model(tmp_path / "model", device="cpu")
        found = fewer_token_scores(model, processor, 6, 0, progress=False)
        assert list(found) == [*SETTINGS, "guessing"]
        for name, scores in found.items():
            assert set(TASKS) & set(scores) >= {"one_word", "color", "yes_no", "count", "position"}, name
            assert scores["yes_no"]["n"] == found[ALL]["yes_no"]["n"]
        assert found == fewer_token_scores(model, processor, 6, 0, progress=False, batch_size=7)
