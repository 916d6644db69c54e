"""Run every command on a tiny model, and check that wrong inputs end in one line."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import tiny
import torch
from families import FAMILIES
from picture_files import save_picture
from pruner_examples import First, Smaller

from rcblib import __version__
from rcblib.__main__ import main
from rcblib.codebook.build import build_codebook
from rcblib.codebook.codebook import Codebook, load_codebook
from rcblib.codebook.criterion import CodebookCriterion
from rcblib.codebook.pooling import ProbedImage
from rcblib.codebook.scorer import fit_scorer, load_scorer
from rcblib.data.opening import open_images
from rcblib.data.questions import questions_for
from rcblib.evaluate.grid import evaluate_grid, setting_of
from rcblib.mllm import adapter_for, load_model
from rcblib.probe.store import read_probe
from rcblib.pruners import PRUNERS, ClsSimilarityPruner, RandomPruner, register
from rcblib.pruners.asked import calibrated_cut_offs, cut_off_pruners
from rcblib.runs.files import read_table
from rcblib.tensors.geometry import paper_ranks
from rcblib.tensors.scoring import redundancy_scores

COMMANDS = ["probe", "codebook", "scorer", "evaluate", "models", "info"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Return the folder of a saved model that names scenes as its world."""
    folder = tiny.save_tiny_llava(tmp_path_factory.mktemp("model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rcb_world": "scenes"}))
    return str(folder)


@pytest.fixture(scope="module")
def onevision(tmp_path_factory):
    """Return the folder of a saved model whose encoder has no [CLS]."""
    return str(tiny.save(tmp_path_factory.mktemp("onevision"), *tiny.tiny_onevision()))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i, picture in enumerate(tiny.random_images(3)):
        picture.save(folder / f"{i}.png")
    return str(folder)


@pytest.fixture(scope="module")
def probed(model, photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("probed")
    assert (
        main(["probe", "--model", model, "--images", photos, "--folder", str(folder), "--no-attention"]) == 0
    )
    return folder


def test_help_lists_what_can_be_run():
    run = subprocess.run(
        [sys.executable, "-m", "rcblib", "--help"], capture_output=True, text=True, check=True
    )
    for command in COMMANDS:
        assert f"\n    {command} " in run.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert f"rcblib {command}" in capsys.readouterr().out


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"rcblib {__version__}\n"


def test_probe_writes_what_read_probe_reads(probed):
    results = read_probe(probed)
    assert len(results.table) == 3 * 36
    assert results.table["cls_attention"].isna().all()


def test_probe_says_where_photos_are_outside_a_model_s_world(model, photos, tmp_path, capsys):
    options = ["--n-images", "1", "--positions", "3, 35", "--batch-size", "2", "--question", "What is red ?"]
    assert main(["probe", "--model", model, "--images", photos, "--folder", str(tmp_path), *options]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Outside its world")
    assert "2 positions of 1 images" in out
    results = read_probe(tmp_path)
    assert results.table["position"].tolist() == [3, 35]
    assert results.description["config"]["question"] == "What is red ?"


def test_probe_takes_views_and_positions_of_encoders_without_cls(onevision, tmp_path):
    options = ["--images", "groups", "--n-images", "1", "--views", "1, 0", "--positions", "paper_positions"]
    assert main(["probe", "--model", onevision, "--folder", str(tmp_path / "group"), *options]) == 0
    results = read_probe(tmp_path / "group")
    assert sorted(results.table["view"].unique()) == [0, 1]
    assert results.description["config"]["views"] == [1, 0]
    assert results.table.groupby("view")["position"].apply(list).tolist() == [paper_ranks(25)] * 2
    options = ["--images", "auto", "--split", "test", "--n-images", "1", "--views", "base", "--no-attention"]
    options += ["--positions", "codebook", "--table", str(tmp_path / "base.parquet"), "--shared"]
    assert main(["probe", "--model", onevision, "--folder", str(tmp_path / "base"), *options]) == 0
    (shared,) = (tmp_path / "base" / "probe").iterdir()
    results = read_probe(shared)
    assert (results.table["kind"] == "image").all()
    assert results.description["config"]["positions"] == "paper_positions"
    table, metadata = read_table(tmp_path / "base.parquet")
    pd.testing.assert_frame_equal(table, results.table)
    assert {name: metadata[name] for name in results.facts} == results.facts


def test_a_model_may_be_spread_over_devices(model, photos, tmp_path):
    options = ["--n-images", "1", "--positions", "3", "--no-attention", "--device-map", "sequential"]
    assert main(["probe", "--model", model, "--images", photos, "--folder", str(tmp_path), *options]) == 0
    assert len(read_probe(tmp_path).table) == 1


def test_scorer_is_fitted_to_what_was_probed(probed, tmp_path, capsys):
    assert main(["scorer", "--probed", str(probed), "--folder", str(tmp_path / "scorer")]) == 0
    scorer = load_scorer(tmp_path / "scorer")
    table, tokens = (read_probe(probed).table, read_probe(probed).row_tokens())
    assert f"{len(table)} tokens of {table['image_id'].nunique()} images" in capsys.readouterr().out
    together = fit_scorer(
        [ProbedImage.from_table(rows, read_probe(probed).tokens) for _, rows in table.groupby("image_id")]
    )
    assert torch.equal(scorer.weights, together.weights) and scorer.family == "llava"
    told = pd.Series(scorer.predict(tokens)[:, 0].numpy()).corr(table["top1_probability"], method="spearman")
    assert told > 0.3  # of tokens that it was fitted to
    assert "required: --probed" in failure(["scorer", "--folder", str(tmp_path / "scorer")], capsys)
    message = "penalty: got 0.0; accepted: more than 0"
    assert message in failure(
        ["scorer", "--probed", str(probed), "--folder", str(tmp_path), "--penalty", "0"], capsys
    )


def test_codebook_builds_from_what_was_probed(probed, tmp_path, capsys):
    criterion = {
        "tau_p": 1,
        "tau_jsd": 100,
        "n_clusters": 3,
        "cluster_size_max": 40,
        "n_prototype_clusters": 2,
    }
    (tmp_path / "criterion.json").write_text(json.dumps(criterion | {"min_images": 1}))
    options = ["--criterion", str(tmp_path / "criterion.json"), "--seed", "0"]
    assert main(["codebook", "--probed", str(probed), "--folder", str(tmp_path / "book"), *options]) == 0
    codebook = Codebook.from_pretrained(tmp_path / "book")
    assert f"{len(codebook)} prototypes" in capsys.readouterr().out
    assert codebook.family == "llava"
    assert not list(Path().glob("part-*"))
    # With the pool in files it is the same; all together, too.
    pool = ["--pool", str(tmp_path / "pool"), "--device", "cpu"]
    for _ in range(2):
        assert (
            main(["codebook", "--probed", str(probed), "--folder", str(tmp_path / "same"), *options, *pool])
            == 0
        )
        same = Codebook.from_pretrained(tmp_path / "same")
        assert torch.equal(same.prototypes, codebook.prototypes)
        assert same.metadata["selection"] == codebook.metadata["selection"]
    results = read_probe(probed)
    signals = (results.table[name] for name in ("top1_probability", "region_divergence", "global_divergence"))
    together = build_codebook(
        results.row_tokens(),
        results.table["image_id"],
        *signals,
        CodebookCriterion.from_preset(tmp_path / "criterion.json"),
        torch.Generator().manual_seed(0),
        views=results.table["view"],
    )
    assert torch.equal(together.prototypes, codebook.prototypes)
    assert together.metadata["selection"] == codebook.metadata["selection"]
    tokens = read_probe(probed).tokens
    assert all(
        (tokens[i] == row).all(1).any()
        for i, row in zip(codebook.image_ids, codebook.prototypes, strict=True)
    )


def test_evaluate_prints_a_score_for_each_method_budget_and_task(model, tmp_path, capsys):
    tokens = tiny.torch.randn(4, 40, generator=tiny.torch.Generator().manual_seed(0))
    Codebook(tokens, (0, 1, 2, 3), "llava").save_pretrained(tmp_path / "book")
    options = ["--images", "scenes", "--n-images", "4", "--tasks", "count", "--n-per-task", "2"]
    options += ["--codebook", str(tmp_path / "book"), "--retain-ratio", "0.5", "--max-similarity", "0.2"]
    options += ["--random-seeds", "2", "--max-new-tokens", "2", "--folder", str(tmp_path / "results")]
    assert main(["evaluate", "--model", model, *options]) == 0
    out = capsys.readouterr().out
    table = out[out.rindex("method") :].splitlines()
    assert [line[:22].strip() for line in table[1:]] == [
        "all tokens",
        "random tokens",
        "most similar to [CLS]",
        "least similar to [CLS]",
        "codebook",
        "",
    ]
    assert len(list((tmp_path / "results").glob("*.parquet"))) == 1 + 2 + 1 + 1 + 2


def test_what_was_evaluated_is_found_again_by_name_of_what_it_depends_on(model, tmp_path):
    options = ["--images", "scenes", "--split", "test", "--n-images", "4", "--retain-ratio", "0.5"]
    options += ["--tasks", "count", "yes_no", "--n-per-task", "2", "--n-yes-no", "6", "--max-new-tokens", "2"]
    options += [
        "--folder",
        str(tmp_path / "kept"),
        "--table",
        str(tmp_path / "all.parquet"),
        "--random-seeds",
        "1",
    ]
    assert main(["evaluate", "--model", model, *options]) == 0
    table = read_table(tmp_path / "all.parquet")[0]
    assert table.groupby("method", sort=False).size().tolist() == [8, 8, 8, 8]
    before = sorted((tmp_path / "kept").iterdir())
    assert len(before) == 4
    samples = open_images("scenes", "test", 4)
    asked = [q for task, n in (("count", 2), ("yes_no", 6)) for q in questions_for(samples, [task], n, 0)]
    pruners = {"all": None, "random": RandomPruner(0.5, 0), "[CLS]": ClsSimilarityPruner(0.5)}
    options = {"max_new_tokens": 2, "folder": tmp_path / "kept", "progress": False}
    evaluate_grid(*load_model(model), asked, samples, pruners, **options)
    assert sorted((tmp_path / "kept").iterdir()) == before


def test_images_that_the_processor_refuses_are_left_out_of_questions(tmp_path, capsys):
    model = str(tiny.save(tmp_path / "model", *FAMILIES["qwen2_5_vl"].build()))
    sizes = [(96, 90), (804, 4), (96, 90)]
    images = [{"id": i, "file_name": f"{i}.png", "width": w, "height": h} for i, (w, h) in enumerate(sizes)]
    objects = [
        {"id": i, "image_id": i, "category_id": 1 + (i > 0), "segmentation": [[0, 0, 60, 0, 60, 3, 0, 3]]}
        for i in range(len(sizes))
    ]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    coco = {"images": images, "annotations": objects, "categories": categories}
    for image in images:
        save_picture(tmp_path / "coco" / image["file_name"], (image["width"], image["height"]))
    (tmp_path / "coco" / "instances_val.json").write_text(json.dumps(coco), encoding="utf-8")
    for command in ("evaluate", "gates"):
        options = ["--model", model, "--images", str(tmp_path / "coco"), "--folder", str(tmp_path / command)]
        options += ["--tasks", "yes_no", "--retain-ratio", "0.5", "--max-new-tokens", "2"]
        capsys.readouterr()
        assert main([command, *options]) == 2
        assert "'1.png' is 804 x 4 px" in capsys.readouterr().err.splitlines()[-1]
        assert main([command, *options, "--on-error", "skip", "--table", str(tmp_path / "all.parquet")]) == 0
        assert capsys.readouterr().err.count("left out: image: '1.png' is 804 x 4 px") == 1
        assert set(read_table(tmp_path / "all.parquet")[0]["image_id"]) == {0, 2}
        noted = [json.loads(path.read_text()) for path in (tmp_path / command / "skipped").iterdir()]
        assert [entry["image_id"] for entry in noted] == [1]


def test_evaluate_calibrates_cut_offs_on_other_images(model, tmp_path):
    tokens = tiny.torch.randn(4, 40, generator=tiny.torch.Generator().manual_seed(0))
    Codebook(tokens, (0, 1, 2, 3), "llava").save_pretrained(tmp_path / "book")
    options = [
        "--images",
        "auto",
        "--split",
        "test",
        "--n-images",
        "4",
        "--tasks",
        "count",
        "--n-per-task",
        "2",
    ]
    options += ["--codebook", str(tmp_path / "book"), "--retain-ratio", "0.5", "0.2", "--n-calibration", "3"]
    options += ["--max-new-tokens", "1", "--folder", str(tmp_path), "--table", str(tmp_path / "t.parquet")]
    assert main(["evaluate", "--model", model, *options, "--pruner", "random"]) == 0
    table, facts = read_table(tmp_path / "t.parquet")
    rows = table[table["method"] == "codebook, cut-off"]
    adapter, book = adapter_for(*load_model(model)), load_codebook(str(tmp_path / "book"))
    images = open_images("scenes", "train", 3)
    cuts = calibrated_cut_offs(adapter, book, images, [0.5, 0.2], batch_size=2)
    assert sorted(set(rows["max_similarity"])) == pytest.approx(sorted(cuts.values()))
    scores = [
        redundancy_scores(image.tokens, book.prototypes)
        for image in adapter.encode([s.image for s in images])
    ]
    for ratio, cut in cuts.items():
        assert sum((each < cut).double().mean() for each in scores) / 3 == pytest.approx(
            ratio, abs=1 / 36 / 3
        )
    nearly = dataclasses.replace(
        cut_off_pruners(book, cuts)["codebook, cut-off"][0], max_similarity=cuts[0.5] + 1e-8
    )
    assert setting_of(nearly) in facts["settings"]
    assert main(["evaluate", "--model", model, *options[:8], "--folder", "f", "--n-calibration", "3"]) == 2


def test_evaluate_asks_about_groups_and_leaves_out_what_needs_cls(onevision, tmp_path, capsys):
    options = ["--images", "groups", "--n-images", "4", "--tasks", "same_different", "--n-per-task", "2"]
    options += ["--retain-ratio", "0.5", "--max-new-tokens", "2", "--folder", str(tmp_path)]
    assert main(["evaluate", "--model", onevision, *options]) == 0
    out = capsys.readouterr().out
    assert "has not what they need: most similar to [CLS], least similar to [CLS]\n" in out
    table = out[out.rindex("method") :].splitlines()
    assert [line.rsplit(maxsplit=5)[0] for line in table[1:]] == ["all tokens", "random tokens"]


def test_evaluate_takes_registered_pruners_by_name(onevision, tmp_path, capsys):
    options = ["--images", "groups", "--n-images", "4", "--tasks", "same_different", "--n-per-task", "2"]
    options += ["--pruner", "random:seed=3,scope=image", "--pruner", "random:retain_ratio=0.2,seed=4"]
    options += ["--retain-ratio", "0.5", "0.3", "--max-new-tokens", "2", "--folder", str(tmp_path)]
    assert main(["evaluate", "--model", onevision, *options]) == 0
    out = capsys.readouterr().out
    table = out[out.rindex("method") :].splitlines()
    # Two shares where the name gives none; one where it does.
    assert [line[:13].strip() for line in table[1:]] == ["all tokens", "random tokens", "", ""]
    assert len(list(tmp_path.glob("*.parquet"))) == 1 + 2 + 1


def test_shares_go_to_methods_that_wait_for_one(model, tmp_path, capsys, monkeypatch):
    for name, kind in (("first", First), ("smaller", Smaller)):
        monkeypatch.setitem(PRUNERS, name, None)
        del PRUNERS[name]
        register(name, kind)
    options = ["--images", "scenes", "--n-images", "2", "--tasks", "count", "--n-per-task", "1"]
    options += ["--pruner", "first:share=0.5", "--pruner", "first:count=3", "--pruner", "smaller"]
    options += ["--retain-ratio", "0.1", "0.2", "--max-new-tokens", "1", "--folder", str(tmp_path / "kept")]
    assert main(["evaluate", "--model", model, *options, "--table", str(tmp_path / "all.parquet")]) == 0
    table = read_table(tmp_path / "all.parquet")[0].fillna({"retain_ratio": -1})
    assert table[["method", "retain_ratio", "settings"]].values.tolist() == [
        ["all tokens", 1.0, ""],
        ["first", 0.5, "share=0.5"],
        ["first", -1, "count=3"],
        ["smaller", 0.1, ""],
        ["smaller", 0.2, ""],
    ]
    out = capsys.readouterr().out
    printed = out[out.rindex("method") :].splitlines()[1:]
    assert len(printed) == 5
    assert "count=3" in printed[2]


def test_models_and_info_list_what_is_here(capsys):
    assert main(["models"]) == 0
    assert "llava" in capsys.readouterr().out
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert f"rcblib: {__version__}" in out
    assert "llava-onevision-7b" in out


# Wrong inputs


def failure(arguments, capsys):
    """Run a command that fails, and return its one line."""
    try:
        status = main(arguments)
    except SystemExit as end:
        status = end.code
    output = capsys.readouterr()
    assert status == 2
    (line,) = [
        line for line in output.err.splitlines() if line and "%|" not in line
    ]  # bars of a model that is read
    assert line.startswith("rcblib")
    assert output.out == ""
    return line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: <command>"),
        (["prob"], "invalid choice: 'prob'"),
        (["probe", "--model", "x"], "required: --images"),
        (["probe", "--modle", "x"], "required: --model"),
        (["models", "--all"], "unrecognized arguments: --all"),
    ],
)
def test_wrong_arguments(arguments, message, capsys):
    assert message in failure(arguments, capsys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"--model": "no-such-model"}, "model: got 'no-such-model'"),
        ({"--images": "no-such-folder"}, "images: got 'no-such-folder'"),
        ({"--images": "scenes"}, "n: got None"),
        ({"--images": "scenes", "--n-images": "2", "--split": "tset"}, "split: got 'tset'"),
        ({"--n-images": "0"}, "n: got 0"),
        ({"--device": "abacus"}, "device: got 'abacus'"),
        ({"--dtype": "int8"}, "dtype: got 'int8'"),
        ({"--positions": "some"}, "positions: got 'some'"),
        ({"--positions": "3,3"}, "positions: got (3, 3)"),
        ({"--views": "tiles"}, "views: got 'tiles'"),
        ({"--views": "1,1"}, "views: got (1, 1)"),
        ({"--device-map": "everywhere"}, "device_map: got 'everywhere'"),
        ({"--device-map": "auto", "--device": "cpu"}, "device: got 'cpu'; accepted: 'auto' together with"),
        ({"--quantization": "8bit"}, "quantization: got '8bit'; accepted: None or '4bit'"),
        ({"--batch-size": "0"}, "batch_size: got 0"),
        ({"--question": ""}, "question: got ''"),
    ],
)
def test_wrong_inputs_of_probe(model, photos, options, message, tmp_path, capsys):
    options = {"--model": model, "--images": photos, "--folder": str(tmp_path / "new")} | options
    line = failure(["probe", *(part for pair in options.items() for part in pair)], capsys)
    assert message in line
    assert not (tmp_path / "new").exists()


def test_empty_folders_and_broken_images(model, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    arguments = ["probe", "--model", model, "--folder", str(tmp_path / "new"), "--images"]
    assert "without any photo" in failure([*arguments, str(tmp_path / "empty")], capsys)
    (tmp_path / "empty" / "torn.jpg").write_bytes(b"no image")
    assert "'torn.jpg' cannot be read" in failure([*arguments, str(tmp_path / "empty")], capsys)


def test_models_of_a_family_that_nobody_supports(model, photos, tmp_path, capsys):
    config = json.loads((Path(model) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "paligemma"}))
    options = ["--model", str(tmp_path), "--images", photos, "--folder", str(tmp_path / "new")]
    line = failure(["probe", *options], capsys)
    assert "model_type: got 'paligemma'; supported: llava, llava_next, llava_onevision" in line


def test_videos_that_cannot_be_read_or_are_not_taken(model, tmp_path, capsys):
    arguments = ["probe", "--model", model, "--folder", str(tmp_path / "new"), "--images"]
    (tmp_path / "torn.gif").write_bytes(b"GIF89a")
    assert "video: 'torn.gif' cannot be read (" in failure(
        [*arguments, f"video:{tmp_path / 'torn.gif'}"], capsys
    )
    (tmp_path / "frames").mkdir()
    assert "without any photo" in failure([*arguments, f"video:{tmp_path / 'frames'}"], capsys)
    for i, frame in enumerate(tiny.random_images(2)):
        frame.save(tmp_path / "frames" / f"{i}.png")
    arguments[2] = str(
        tiny.save_tiny_llava(tmp_path / "model")
    )  # one that names no world, so that nothing is noted
    line = failure([*arguments, f"video:{tmp_path / 'frames'}"], capsys)
    assert "n_videos: got 1; accepted: 0, as the family 'llava' takes images only" in line
    assert not (tmp_path / "new").exists()


def test_codebooks_of_another_family_and_rules_of_another(model, tmp_path, capsys):
    tokens = tiny.torch.randn(4, 40, generator=tiny.torch.Generator().manual_seed(0))
    for family in ("llava", "llava_next"):
        Codebook(tokens, (0, 1, 2, 3), family).save_pretrained(tmp_path / family)
    arguments = ["evaluate", "--model", model, "--images", "scenes", "--n-images", "2", "--tasks", "count"]
    arguments += ["--retain-ratio", "0.5", "--max-new-tokens", "1", "--folder", str(tmp_path / "results")]
    line = failure([*arguments, "--codebook", str(tmp_path / "llava_next")], capsys)
    assert "family 'llava_next', the model is of family 'llava'" in line
    assert not (tmp_path / "results").exists()
    assert main([*arguments, "--codebook", str(tmp_path / "llava"), "--rule", "double_softmax"]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert told == [
        "rcblib evaluate: warning: rule: 'double_softmax' with family 'llava', for which the release uses 'max_cosine'"
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--probed", "nowhere", "--criterion", "llava-1.5-7b"], "folder: got 'nowhere'"),
        (["--probed", "nowhere", "--criterion", "none"], "none"),
    ],
)
def test_wrong_inputs_of_codebook(options, message, tmp_path, capsys):
    assert message in failure(["codebook", "--folder", str(tmp_path / "new"), *options], capsys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--codebook", "llava-1.5-7b"], "together with retain-ratio or max-similarity"),
        (["--max-similarity", "0.4"], "together with a codebook"),
        (["--retain-ratio", "1.5"], "retain_ratio: got 1.5"),
        (["--retain-ratio", "0.5", "--codebook", "no-such-book"], "'no-such-book'"),
        (["--retain-ratio", "0.5", "--random-seeds", "-1"], "random-seeds: got -1"),
        (["--pruner", "best"], "pruner: got 'best'; accepted: one of 'all', 'codebook'"),
        (["--pruner", "random:seed"], "pruner: got 'random:seed'; accepted: name:parameter=value"),
        (["--pruner", "random:ratio=0.2"], "ratio: got '0.2'; accepted: none with the pruner 'random'"),
        (["--pruner", "random:retain_ratio=much"], "retain_ratio: got 'much'"),
        (["--pruner", "random"], "retain_ratio: got None; accepted: a share with the pruner 'random'"),
        (["--tasks", "yesno"], "tasks: got ['yesno']"),
        (["--max-new-tokens", "0"], "max_new_tokens: got 0"),
        (["--device-map", "everywhere"], "device_map: got 'everywhere'"),
        (["--quantization", "8bit"], "quantization: got '8bit'"),
        (["--images", "groups", "--tasks", "color"], "kinds: got ['color']"),
    ],
)
def test_wrong_inputs_of_evaluate(model, options, message, tmp_path, capsys):
    arguments = ["evaluate", "--model", model, "--images", "scenes", "--n-images", "3"]
    assert message in failure([*arguments, "--folder", str(tmp_path / "new"), *options], capsys)
