"""Check that every method is made that serves a model, at every budget, and variants that change one thing each."""

import pytest
import tiny
import torch
from families import FAMILIES

from rcblib.__main__ import main
from rcblib.codebook.codebook import Codebook
from rcblib.mllm import adapter_for
from rcblib.pruners import PRUNERS, CodebookPruner, RandomPruner
from rcblib.pruners.every import every_pruner, kind_of, variant_pruners
from rcblib.pruners.replaced import ReplacedCodebookPruner, ReplacedRandomPruner, central_prototype
from rcblib.records import ParameterError
from rcblib.runs.agreement import compare_with_record
from rcblib.runs.files import read_table
from rcblib.runs.records import read_record, write_record

SHARES = (0.25, 0.5)


def model_of(family):
    model, processor = FAMILIES[family].build()
    adapter = adapter_for(model, processor)
    tokens = adapter.encode(tiny.random_images(1, seed=7))[0].views[0].tokens
    return adapter, Codebook(tokens[::3].clone(), (), adapter.family)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_method_that_serves_a_family_is_made_at_every_budget(family):
    adapter, book = model_of(family)
    made, left_out = every_pruner(adapter, book, SHARES, 3)
    assert set(made) | set(left_out) == {method.label for method in PRUNERS.values()}
    assert not set(made) & set(left_out)
    assert list(made)[0] == "all tokens" and len(made["all tokens"]) == 1
    assert [(own.retain_ratio, own.seed) for own in made["random tokens"]] == [
        (share, seed) for share in SHARES for seed in range(3)
    ]
    for label in ("codebook", "evenly strided", "DivPrune", "oracle by masks"):
        assert [own.asked_share for own in made[label]] == list(SHARES)
    assert len(made["pooled 2 x 2"]) == 1
    assert "clusters" in left_out["codebook's medoids"]
    assert "a scorer with the pruner 'distilled'" in left_out["distilled from probing"]
    has_cls = "cls_attention" in adapter.offers
    assert ("VisionZip" in made) == has_cls
    assert has_cls or "without [CLS] attention" in left_out["VisionZip"]
    for label in made:
        kind_of(label)
    assert "oracle by masks" in every_pruner(adapter, book, SHARES, has_masks=False)[1]


def test_some_methods_are_chosen_by_name_and_wrong_input_is_refused():
    adapter, book = model_of("llava")
    made, left_out = every_pruner(adapter, book, SHARES, methods=["tome", "random"])
    assert list(made) == ["all tokens", "ToMe after the connector", "random tokens"] and not left_out
    with pytest.raises(ParameterError, match="pruner: got 'fastest'; accepted: one of 'all'"):
        every_pruner(adapter, book, SHARES, methods=["fastest"])
    with pytest.raises(ParameterError, match="retain_ratios: got .*; accepted: at least one share"):
        every_pruner(adapter, book, [])
    with pytest.raises(ParameterError, match="n_seeds: got 0"):
        every_pruner(adapter, book, SHARES, 0)


@pytest.mark.parametrize(
    ("family", "kind", "expected"),
    [
        ("llava", "image", {"positions kept"}),
        ("llava_next", "image", {"positions kept", "budget of the whole image"}),
        ("llava_onevision", "video", {"positions kept", "budget of the whole video"}),
        ("llava_onevision", "images", {"positions kept"}),
        ("qwen2_5_vl", "image", {"positions renumbered"}),
    ],
)
def test_variants_change_one_thing_each(family, kind, expected):
    adapter, book = model_of(family)
    found = variant_pruners(adapter, book, 0.2, 2, kind=kind)
    varied = {name.partition("; ")[2] for name in found if name.startswith("random tokens; ")}
    assert varied == expected | {"replaced by a prototype"}
    rules = {name.partition("; rule ")[2] for name in found if "; rule " in name}
    own = {"max_cosine", "double_softmax", "single_softmax"}
    assert rules < own and len(rules) == 2
    assert all(one.asked_share == 0.2 for made in found.values() for one in made)
    assert all(len(made) == 2 for name, made in found.items() if name.startswith("random"))
    assert len({str(one.description()) for made in found.values() for one in made}) == len(found) + len(
        varied
    )


def test_dropped_tokens_are_replaced_by_the_central_prototype_in_their_places():
    adapter, book = model_of("llava")
    image = adapter.encode(tiny.random_images(1, seed=3))[0]
    filler = central_prototype(book)
    pairs = [
        (CodebookPruner(book, retain_ratio=0.25), ReplacedCodebookPruner(book, retain_ratio=0.25)),
        (RandomPruner(0.25, seed=4), ReplacedRandomPruner(0.25, seed=4, codebook=book)),
    ]
    for plain, replacing in pairs:
        kept, full = plain.reduce_image(image).positions, replacing.reduce_image(image)
        assert full.positions.tolist() == list(range(image.n_tokens))
        expected = filler.repeat(image.n_tokens, 1)
        expected[kept] = image.tokens[kept]
        assert torch.equal(full.rows, expected)
        assert plain.asked_share == replacing.asked_share == 0.25
    other = Codebook(book.prototypes[:2], (), "llava")
    assert ReplacedRandomPruner(0.25, codebook=other).description() != pairs[1][1].description()


def test_the_central_prototype_is_nearest_to_the_others():
    rows = [[1.0, 0.0], [9.0, 3.0], [0.5, 0.5], [0.0, 1.0], [-1.0, 0.2]]
    assert central_prototype(Codebook(torch.tensor(rows))).tolist() == [0.5, 0.5]


def test_the_command_asks_every_method(tmp_path, capsys):
    model, processor = tiny.tiny_llava()
    tiny.save(tmp_path / "model", model, processor)
    width = model.config.get_text_config().hidden_size
    Codebook(
        torch.randn(4, width, generator=torch.Generator().manual_seed(0)), family="llava"
    ).save_pretrained(tmp_path / "book")
    options = (
        "--images scenes --split test --n-images 2 --tasks count --n-per-task 2 --max-new-tokens 2".split()
    )
    options += ["--every-method", "--retain-ratio", *map(str, SHARES), "--random-seeds", "2"]
    command = ["evaluate", "--model", str(tmp_path / "model"), "--folder", str(tmp_path / "kept"), *options]
    assert main(command) == 2
    assert "every-method: got True; accepted: codebook and retain-ratio with it" in capsys.readouterr().err
    asked = [
        "--codebook",
        str(tmp_path / "book"),
        "--table",
        str(tmp_path / "all.parquet"),
        "--variants-at",
        "0.5",
    ]
    assert main([*command, *asked]) == 0
    table = read_table(tmp_path / "all.parquet")[0]
    found = table.groupby("method", sort=False)
    assert found.ngroups == len(set(table["method"])) >= 24
    assert "CDPruner: left out: " in capsys.readouterr().out
    assert found.size()["random tokens"] == 2 * 2 * 2  # shares, seeds, questions
    assert found.size()["random tokens; replaced by a prototype"] == 2 * 2
    read = found["n_retained"].mean()
    assert read["codebook; replaced by a prototype"] == read["all tokens"] == 36
    assert read["codebook; positions kept"] == 18
    kept = read_table(tmp_path / "all.parquet")[1]
    assert "only" not in kept
    write_record(tmp_path / "own/all.parquet", table.sort_values("image_id", kind="stable"), kept)
    turn = ["--settings", "3/7", "--first", "1", "--folder", str(tmp_path / "other"), "--table"]
    assert main([*command, *asked, *turn, str(tmp_path / "some.parquet")]) == 0
    some, facts = read_table(tmp_path / "some.parquet")
    settings = table["setting"].unique()
    assert some["setting"].unique().tolist() == settings[2::7].tolist()
    assert facts["only"] == {"setting": sorted(settings[2::7])}
    agreement = compare_with_record(read_record(tmp_path / "own/all.parquet"), some, facts)
    assert not agreement.disagreements and agreement.n_rows == len(some)
    capsys.readouterr()
    assert main([*command, *asked, "--settings", "8/7"]) == 2
    assert "settings: got '8/7'; accepted: 1/n to n/n, such as 3/7" in capsys.readouterr().err
    assert main([*command, *asked, "--settings", "999/999"]) == 2
    assert (
        f"settings: got 'the 999-th'; accepted: one of the {len(settings)} there" in capsys.readouterr().err
    )


@pytest.mark.parametrize(("images", "task"), [("groups", "same_different"), ("videos", "direction")])
def test_the_command_asks_every_method_about_groups_and_videos(images, task, tmp_path):
    model, processor = tiny.tiny_onevision()
    width = model.config.text_config.hidden_size
    prototypes = torch.randn(4, width, generator=torch.Generator().manual_seed(0))
    Codebook(prototypes, family="llava_onevision").save_pretrained(tmp_path / "book")
    command = ["evaluate", "--model", tiny.save(tmp_path / "model", model, processor), "--images", images]
    command += f"--split test --n-images 2 --tasks {task} --n-per-task 1 --max-new-tokens 1".split()
    command += [
        "--every-method",
        "--codebook",
        str(tmp_path / "book"),
        "--retain-ratio",
        "0.5",
        "--variants-at",
        "0.5",
    ]
    command += ["--folder", str(tmp_path / "kept"), "--table", str(tmp_path / "all.parquet")]
    assert main([str(part) for part in command]) == 0
    found = read_table(tmp_path / "all.parquet")[0].set_index("method")
    assert {"codebook", "random tokens", "ToMe after the connector", "smaller picture"} <= set(found.index)
    assert {"oracle by masks", "anti-oracle by masks"} <= set(found.index)
    assert ("codebook; budget of the whole video" in found.index) == (images == "videos")
    assert found.loc["all tokens", "n_retained"] > found.loc["codebook", "n_retained"]
