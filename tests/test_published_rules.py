"""Compare every published pruner with a slow transcription of its rule, on random tensors; some by hand."""

import published_rules as rules
import pytest
import tiny
import torch

from rcblib.codebook.codebook import Codebook
from rcblib.mllm import adapter_for
from rcblib.mllm.layer_state import LayerState
from rcblib.pruners import PRUNERS, PruningContext
from rcblib.pruners.cdpruner import conditional_kernel, largest_volume
from rcblib.pruners.holov import allotted
from rcblib.records import ParameterError, VisualView
from rcblib.tensors.scoring import RULES

SIZES = [(36, 0.4), (49, 0.3), (60, 0.75), (64, 0.1)]
seeds = pytest.mark.parametrize(("n", "ratio", "seed"), [(*size, seed) for seed, size in enumerate(SIZES)])


def random_view(n, seed, width=12):
    """Return a view with tokens and all signals, attention positive and adding up to less than 1."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator)

    signals = {
        "cls_attention": drawn(n).softmax(0) * 0.9,
        "received_attention": drawn(n).softmax(0),
        "keys": drawn(n, 5),
        "hidden_states": drawn(n, width),
        "last_cls_attention": (2 * drawn(n)).softmax(0) * 0.9,
        "last_keys": drawn(n, 7),
    }
    return VisualView(2 * signals["hidden_states"], (1, n), signals)


class Connector:
    """Stand in for a model: its connector doubles, its word embeddings are given."""

    def __init__(self, words=None):
        self.words = words

    def connect(self, states):
        return 2 * states

    def embed(self, ids):
        return self.words[ids]


def reduced_by(name, view, **settings):
    context = PruningContext(adapter=Connector())
    reduced = PRUNERS[name].make(settings).reduce((view,), context)
    reduced.check(view.n_tokens, view.tokens.shape[1], name)
    return reduced


def kept(name, view, **settings):
    reduced = PRUNERS[name].make(settings).reduce((view,))
    reduced.check(view.n_tokens, view.tokens.shape[1], name)
    return reduced.positions.tolist()


@seeds
@pytest.mark.parametrize("name", ["cls_attention", "received_attention"])
def test_attention(name, n, ratio, seed):
    view = random_view(n, seed)
    assert kept(name, view, retain_ratio=ratio) == sorted(
        rules.ranked(view.signals[name])[: round(n * ratio)]
    )


@seeds
def test_divprune(n, ratio, seed):
    view = random_view(n, seed)
    assert kept("divprune", view, retain_ratio=ratio) == rules.divprune(view.tokens, round(n * ratio))


@seeds
@pytest.mark.parametrize("name", ["vispruner", "vispruner_received"])
@pytest.mark.parametrize("important", [0.5, 0.0, 1.0])
def test_vispruner(name, important, n, ratio, seed):
    view = random_view(n, seed)
    attention = view.signals["received_attention" if name.endswith("received") else "cls_attention"]
    expected = rules.vispruner(attention, view.signals["hidden_states"], round(n * ratio), important)
    assert kept(name, view, retain_ratio=ratio, important_ratio=important) == expected
    assert len(expected) == round(n * ratio)


@seeds
def test_holov(n, ratio, seed):
    view = random_view(n, seed)
    counts, segments = rules.holov(view.tokens, view.signals["cls_attention"], round(n * ratio))
    given = kept("holov", view, retain_ratio=ratio)
    n_more = 0
    for count, members in zip(counts, segments, strict=True):
        own = [i for i in given if i in members]
        order = sorted(members, key=lambda i: -float(view.signals["cls_attention"][i]))
        assert sorted(own) == sorted(order[: len(own)]) and len(own) >= min(count, len(members))
        n_more += len(own) - min(count, len(members))
    # What the code feeds as zeros, as segments are given more than they hold, is here the next segments'.
    assert n_more == sum(
        max(count - len(members), 0) for count, members in zip(counts, segments, strict=True)
    )
    assert len(given) == round(n * ratio)


@seeds
def test_visionzip(n, ratio, seed):
    view = random_view(n, seed)
    n_kept = round(n * ratio)
    n_contextual = round(n_kept * 10 / 64)
    signals = [view.signals[name] for name in ("cls_attention", "keys", "hidden_states")]
    dominant, merged = rules.visionzip(*signals, n_kept - n_contextual, n_contextual)
    reduced = reduced_by("visionzip", view, retain_ratio=ratio)
    assert reduced.positions.tolist() == sorted([*dominant, *merged])
    for position, row in zip(reduced.positions.tolist(), reduced.rows, strict=True):
        torch.testing.assert_close(row, 2 * merged[position] if position in merged else view.tokens[position])
    assert int(reduced.sizes.sum()) == n


@seeds
@pytest.mark.parametrize("is_adaptive", [False, True])
def test_prumerge(is_adaptive, n, ratio, seed):
    view = random_view(n, seed)
    signals = [view.signals[name] for name in ("last_cls_attention", "last_keys", "hidden_states")]
    n_top = rules.n_outliers(signals[0]) if is_adaptive else round(n * ratio) - 1
    assert n_top > 0
    rows, total = rules.prumerge(*signals, n_top)
    reduced = reduced_by("prumerge", view, retain_ratio=None if is_adaptive else ratio)
    (extra,) = set(reduced.positions.tolist()) - set(rows)
    assert extra == max(set(range(n)) - set(rows)) and len(reduced.positions) == n_top + 1
    for position, row in zip(reduced.positions.tolist(), reduced.rows, strict=True):
        torch.testing.assert_close(
            row, 2 * (rows[position] if position in rows else total), rtol=1e-4, atol=1e-5
        )


@seeds
def test_prumerge_plus_keeps_strided_tokens_too(n, ratio, seed):
    view = random_view(n, seed)
    attention = view.signals["last_cls_attention"]
    n_top = rules.n_outliers(attention)
    expected = set(rules.ranked(attention)[:n_top]) | set(range(0, n - 1, max(int(int(n / n_top) / 3), 1)))
    reduced = reduced_by("prumerge_plus", view)
    given = set(reduced.positions.tolist())
    assert expected <= given and len(given - expected) == 1


@seeds
def test_tome(n, ratio, seed):
    view = random_view(n, seed)
    rows, sizes, positions = list(view.tokens), [1] * n, list(range(n))
    while len(rows) > round(n * ratio):
        rows, sizes, left = rules.tome_round(rows, sizes, len(rows) - round(n * ratio))
        positions = [positions[i] for i in left]
    reduced = reduced_by("tome", view, retain_ratio=ratio)
    assert reduced.positions.tolist() == positions and reduced.sizes.tolist() == sizes and sum(sizes) == n
    torch.testing.assert_close(reduced.rows, torch.stack(rows))


@pytest.mark.parametrize(("n", "n_kept", "seed"), [(12, 5, 0), (16, 8, 1), (9, 1, 2)])
def test_cdpruner(n, n_kept, seed):
    """The greedy choice by one row of a Cholesky factor a step is that by determinants."""
    view, generator = random_view(n, seed), torch.Generator().manual_seed(seed)
    relevance = torch.randn(n, generator=generator)
    kernel = conditional_kernel(view.tokens, relevance)
    assert largest_volume(kernel, n_kept).sort().values.tolist() == rules.cdpruner(
        view.tokens, relevance, n_kept
    )


def test_cdpruner_goes_on_where_tokens_span_no_more_volume():
    chosen = largest_volume(conditional_kernel(torch.ones(6, 3), torch.arange(6.0)), 4)
    assert chosen.tolist() == [5, 4, 3, 2]


def test_relevance_to_words_is_the_mean_cosine():
    view, words = random_view(9, 0), torch.randn(5, 12, generator=torch.Generator().manual_seed(1))
    adapter = Connector(words)
    adapter.image_token_id, adapter.video_token_id = 4, None
    context = PruningContext(adapter=adapter, prompt_ids=torch.tensor([0, 4, 4, 1, 3, 2]))
    found = PRUNERS["cdpruner_llm"].make({"retain_ratio": 0.5}).relevance((view,), context)
    expected = [sum(rules.cosine(row, words[i]) for i in (1, 3, 2)) / 3 for row in view.tokens]
    torch.testing.assert_close(found, torch.tensor(expected))


def layer_state(seed, n_first=20, n_second=70, n_words=6):
    """Return a prompt of a word, a picture, a word, a picture and some words in front of a layer."""
    generator = torch.Generator().manual_seed(seed)
    n = n_first + n_second + 2 + n_words
    spans = torch.arange(1, 1 + n_first), torch.arange(2 + n_first, n - n_words)
    hidden, entered = torch.randn(2, n, 8, generator=generator)
    attention = torch.randn(3, n_words, n, generator=generator).mul(2).softmax(-1)
    return LayerState(1, hidden, spans, attention, entered, spans)


@pytest.mark.parametrize("name", ["fastv", "pyramiddrop"])
@pytest.mark.parametrize("seed", range(3))
def test_last_row_attention(name, seed):
    state = layer_state(seed)
    pruner = PRUNERS[name].make({"retain_ratio": 0.5})
    for span, reduced in zip(state.spans, pruner.reduced(state, (5, 31)), strict=True):
        expected = rules.last_row_attention(state.attention, span.tolist(), {20: 5, 70: 31}[len(span)])
        assert reduced.positions.tolist() == expected and reduced.rows is None


@pytest.mark.parametrize("seed", range(3))
def test_sparsevlm(seed):
    state = layer_state(seed)
    pruner = PRUNERS["sparsevlm"].make({"retain_ratio": 0.5})
    words = rules.raters(state.entered[torch.cat(state.spans)], state.entered[-6:])
    assert 0 < len(words) < 6
    for span, n_kept, reduced in zip(state.spans, (5, 12), pruner.reduced(state, (5, 12)), strict=True):
        rows = state.hidden_states[span]
        kept, merged = rules.sparsevlm(state.attention[:, :, span], rows, words, n_kept)
        assert reduced.positions.tolist() == sorted([*kept, *merged]) and len(merged) > 0
        for position, row in zip(reduced.positions.tolist(), reduced.rows, strict=True):
            torch.testing.assert_close(row, merged.get(position, rows[position]))
    assert len(merged) == 2  # 17 of the 58 others, of which every ten become one


def test_published_schedules():
    """FastV's K = 2; SparseVLM's tables of 576 tokens; PyramidDrop's halving: all in LLMs of 32 layers, then of 4."""
    assert PRUNERS["fastv"].make({"retain_ratio": 0.5}).schedule(32) == {2: 0.5}
    pyramid = PRUNERS["pyramiddrop"].make({"retain_ratio": 0.125})
    assert pyramid.schedule(32) == {8: 0.5, 16: 0.25, 24: 0.125} and list(pyramid.schedule(4)) == [1, 2, 3]
    for n, counts in {192: (300, 200, 110), 128: (303, 110, 36), 64: (66, 30, 17)}.items():
        schedule = PRUNERS["sparsevlm"].make({"retain_ratio": n / 576}).schedule(32)
        assert (
            list(schedule) == [3, 7, 16]
            and tuple(round(576 * share) for share in schedule.values()) == counts
        )
    assert list(PRUNERS["sparsevlm"].make({"retain_ratio": 0.5}).schedule(4)) == [1, 2, 3]
    assert PRUNERS["sparsevlm"].make({"retain_ratio": 1.0, "layers": "1+3"}).schedule(4) == {1: 1.0, 3: 1.0}


def test_holov_by_hand():
    """Weights 1, 2, 5 of 8: of 4 tokens 0.5, 1 and 2.5, hence 0, 1, 2 and one more for the largest."""
    assert allotted(torch.tensor([1.0, 2.0, 5.0]), [4, 4, 4], 4) == [0, 1, 3]
    assert allotted(torch.tensor([1.0, 2.0, 5.0]), [4, 4, 2], 4) == [0, 2, 2]  # no room for the third


def test_strided_by_hand():
    view = random_view(10, 0)
    assert kept("strided", view, retain_ratio=0.3) == [0, 3, 6]
    assert kept("strided", view, retain_ratio=1.0) == list(range(10))
    assert kept("strided", view, retain_ratio=0.0) == []


def test_pooled_by_hand():
    """Three by three tokens in blocks of two by two: four tokens, two, two and one."""
    tokens = torch.arange(9.0)[:, None] * torch.tensor([1.0, 10.0])
    reduced = PRUNERS["pooled"].make().reduce((VisualView(tokens, (3, 3)),))
    assert reduced.positions.tolist() == [0, 2, 6, 8] and reduced.sizes.tolist() == [4, 2, 2, 1]
    assert reduced.rows.tolist() == [[2, 20], [3.5, 35], [6.5, 65], [8, 80]]
    several = PRUNERS["pooled"].make().reduce((VisualView(tokens, (3, 3)), VisualView(tokens[:4], (2, 2))))
    assert several.positions.tolist() == [0, 2, 6, 8, 9] and several.rows[-1].tolist() == [1.5, 15]


def test_divprune_by_hand():
    """On a circle the tokens at 0, 10, 90 and 180 degrees: 180 is farthest from its neighbour, then 0, then 90."""
    angles = torch.deg2rad(torch.tensor([0.0, 10.0, 90.0, 190.0]))
    view = VisualView(torch.stack([angles.cos(), angles.sin()], 1), (1, 4))
    assert kept("divprune", view, retain_ratio=0.25) == [3]
    assert kept("divprune", view, retain_ratio=0.5) == [1, 3]
    assert kept("divprune", view, retain_ratio=0.75) == [1, 2, 3]


def test_visionzip_by_hand():
    """Tokens 0 and 5 are attended; of 1 to 4 the first is the target, and the mean of three joins it."""
    states = torch.tensor([[9.0], [1], [2], [3], [4], [9]])
    signals = {"cls_attention": torch.tensor([0.3, 0.01, 0.01, 0.01, 0.01, 0.3]), "hidden_states": states}
    view = VisualView(2 * states, (2, 3), signals | {"keys": torch.ones(6, 2)})
    reduced = reduced_by("visionzip", view, retain_ratio=0.5, contextual_ratio=1 / 3)
    assert reduced.positions.tolist() == [0, 1, 5] and reduced.sizes.tolist() == [1, 4, 1]
    assert reduced.rows.flatten().tolist() == [18, 2 * (1 + 3), 18]


def test_tome_by_hand():
    """Of four tokens the first equals the second and joins it; the third stays."""
    view = VisualView(torch.tensor([[2.0, 0], [4, 0], [0, 1], [1, 1]]), (2, 2))
    reduced = reduced_by("tome", view, retain_ratio=0.75)
    assert reduced.positions.tolist() == [1, 2, 3] and reduced.sizes.tolist() == [2, 1, 1]
    assert reduced.rows.tolist() == [[3, 0], [0, 1], [1, 1]]


def test_copies_are_not_chosen_twice():
    view = VisualView(torch.ones(6, 4), (2, 3))
    assert len(kept("divprune", view, retain_ratio=0.5)) == 3


def test_vispruner_by_hand():
    """The first two are most attended; of the rest the third is like the fourth, and goes."""
    features = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1.1], [1, 1], [-1, 1]])
    attention = torch.tensor([0.3, 0.2, 0.1, 0.09, 0.08, 0.07])
    view = VisualView(features, (2, 3), {"cls_attention": attention, "hidden_states": features})
    assert kept("vispruner", view, retain_ratio=5 / 6, important_ratio=0.4) == [0, 1, 3, 4, 5]


@pytest.mark.parametrize("value", [-0.1, 1.5, "much"])
def test_shares_are_checked(value):
    with pytest.raises(ValueError, match="important_ratio|validation|valid number") as error:
        PRUNERS["vispruner"].make({"retain_ratio": 0.5, "important_ratio": value})
    assert "\n" not in str(error.value)


def test_the_anti_oracle_keeps_what_the_oracle_drops():
    view = VisualView(torch.zeros(4, 2), (2, 2), {"object_coverage": torch.tensor([0.0, 1.0, 0.2, 0.6])})
    assert kept("oracle", view, retain_ratio=0.5) == [1, 3]
    assert kept("anti_oracle", view, retain_ratio=0.5) == [0, 2]


CIRCLE = torch.deg2rad(torch.tensor([0.0, 10.0, 20.0, 90.0, 90.0, 90.0]))
BOOK = Codebook(torch.stack([CIRCLE.cos(), CIRCLE.sin()], 1), metadata={"clusters": [0, 0, 0, 1, 1, 1]})


@pytest.mark.parametrize("rule", RULES)
def test_fewer_prototypes_by_hand(rule):
    """Of six prototypes, three copies: the distinct ones are four; the middle of each cluster is its medoid."""
    settings = {"codebook": BOOK, "retain_ratio": 0.5, "rule": rule}
    distinct = PRUNERS["codebook_distinct"].make(settings)
    assert torch.equal(distinct.codebook.prototypes, BOOK.prototypes[:4])
    medoids = PRUNERS["codebook_medoids"].make(settings)
    assert torch.equal(medoids.codebook.prototypes, BOOK.prototypes[[1, 3]])
    assert medoids.codebook.metadata["clusters"] == [0, 1]
    anew = PRUNERS["codebook_medoids"].make(settings | {"n_clusters": 2})
    assert torch.equal(anew.codebook.prototypes, medoids.codebook.prototypes)
    assert anew.description() != medoids.description() != distinct.description()


def test_medoids_need_clusters():
    settings = {"codebook": Codebook(BOOK.prototypes), "retain_ratio": 0.5}
    with pytest.raises(
        ParameterError, match="n_clusters: got None; accepted: a number, with a codebook that names"
    ):
        PRUNERS["codebook_medoids"].make(settings)
    PRUNERS["codebook_medoids"].make(settings | {"n_clusters": 6})


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("fastv", {}, r"layers: got \[2\]; accepted: ones from 1 to 1, as the LLM has 2"),
        ("pyramiddrop", {}, r"layers: got \[1, 2, 3\]; accepted: ones from 1 to 1"),
        ("sparsevlm", {"layers": "1+3"}, r"layers: got \[1, 3\]; accepted: ones from 1 to 1"),
    ],
)
def test_an_llm_too_shallow_for_a_method_is_one_line(name, settings, message):
    model = tiny.tiny_llava()[0]
    with pytest.raises(ParameterError, match=message) as error:
        PRUNERS[name].make({"retain_ratio": 0.5} | settings)(model).__enter__()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("fastv", {"layer": 0}, "layer: got 0; accepted: an integer at least 1"),
        ("fastv", {"form": "other"}, "form: got 'other'; accepted: one of"),
        (
            "sparsevlm",
            {"layers": "1+2+3+4"},
            r"layers: got \(1, 2, 3, 4\); accepted: one to 3 layers",
        ),
        (
            "sparsevlm",
            {"layers": "1+1"},
            r"layers: got \(1, 1\); accepted: one to 3 layers, ascending from 1",
        ),
        ("pyramiddrop", {"layers": "3+1"}, r"layers: got \(3, 1\); accepted: one to 16 layers, ascending"),
        ("pyramiddrop", {"layers": ()}, r"layers: got \(\); accepted: one to 16 layers, ascending"),
        ("pyramiddrop", {"layers": "1+x"}, "layers: got .*; accepted: input should be a valid integer"),
        ("pooled", {"side": 0}, "side: got 0; accepted: an integer at least 1"),
        ("holov", {"n_segments": 0}, "n_segments: got 0; accepted: an integer at least 1"),
        ("visionzip", {"contextual_ratio": 2}, "contextual_ratio: got 2.*; accepted: a number from 0 to 1"),
        ("prumerge_plus", {"retain_ratio": 0.5}, "retain_ratio: got 0.5; accepted: none with the pruner"),
    ],
)
def test_settings_out_of_range_are_one_line(name, settings, message):
    given = {"retain_ratio": 0.5} if name not in ("pooled", "prumerge_plus") else {}
    with pytest.raises(ParameterError, match=message) as error:
        PRUNERS[name].make(given | settings)
    assert "\n" not in str(error.value)


def test_retained_counts_at_published_settings():
    """Of 576 tokens in 32 layers, by hand: rows of every layer, merged ones among them, as the mean over layers.

    SparseVLM keeps 300, 200 and 110 behind layers 2, 6 and 15, and merges 276, 109 and 94 others: 83, 33 and 29 of
    them, the best three tenths and one, into 9, 4 and 3.
    """
    model, processor = tiny.reduced_llava_15()
    config = model.config
    config.text_config.num_hidden_layers = 32
    model = tiny.endless(type(model)(config), tiny.REAL_IDS)
    prompt = adapter_for(model, processor).prompt("What does this image show ?")
    inputs = processor(text=[prompt], images=tiny.random_images(1, (336, 336)), return_tensors="pt")
    expected = {
        ("fastv", 0.5): 2 * 576 + 30 * 288,
        ("pyramiddrop", 0.125): 8 * (576 + 288 + 144 + 72),
        ("sparsevlm", 192 / 576): 3 * 576 + 4 * 309 + 9 * 204 + 16 * 113,
    }
    for (name, ratio), rows in expected.items():
        with PRUNERS[name].make({"retain_ratio": ratio})(model) as pruned:
            model.generate(**inputs, max_new_tokens=1, do_sample=False)
        assert pruned.n_tokens == [576] and pruned.n_retained == [rows / 32], name
