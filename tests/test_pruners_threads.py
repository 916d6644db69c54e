"""Check whose calls a context prunes: those of the thread, task or generator that entered it, on that very model."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import tiny
import torch
from pruner_examples import LastAttention

from rcblib.pruners import ClsSimilarityPruner, RandomPruner

SETTINGS = {"do_sample": False, "max_new_tokens": 5}


@pytest.fixture(scope="module")
def pair():
    return tiny.tiny_llava()


@pytest.fixture
def model(pair):
    yield pair[0]
    assert not {"generate", "forward"} & vars(pair[0]).keys()
    assert "generate" not in vars(type(pair[0]))
    assert not hasattr(type(pair[0]).forward, "find")


@pytest.fixture(scope="module")
def inputs(pair):
    text = "USER: <image>\nWhat does this image show ? ASSISTANT:"
    return [dict(pair[1](text=text, images=image, return_tensors="pt")) for image in tiny.random_images(3)]


def answer(model, given):
    return model.generate(**given, **SETTINGS)


def pruned_answer(pruner, model, given):
    with pruner(model):
        return answer(model, given)


def in_thread(function, *arguments):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *arguments).result()


# Threads


def test_another_thread_is_neither_pruned_nor_noted(model, inputs):
    plain = answer(model, inputs[0])
    pruner = RandomPruner(0.2)
    with pruner(model) as pruned:
        assert torch.equal(in_thread(answer, model, inputs[0]), plain)
        assert torch.equal(
            in_thread(lambda: model(**inputs[0]).logits), in_thread(lambda: model(**inputs[0]).logits)
        )
        assert pruned.kept == [] and pruned.n_without_images == 0
        ours = answer(model, inputs[0])
    assert not torch.equal(ours, plain) and len(pruned.kept) == 1


def test_threads_prune_one_model_at_once_each_with_its_own_pruner(model, inputs):
    """A pruner may be shared by threads too; each reads what it kept itself."""
    shared = RandomPruner(0.25, seed=3)
    pruners = [shared, RandomPruner(0.5), ClsSimilarityPruner(0.1), shared, LastAttention(0.3), None] * 2
    expected = [
        answer(model, inputs[i % 3]) if own is None else pruned_answer(own, model, inputs[i % 3])
        for i, own in enumerate(pruners)
    ]
    kept = [[] if own is None else pruned_kept(own, model, inputs[i % 3]) for i, own in enumerate(pruners)]
    together = threading.Barrier(len(pruners))

    def work(i):
        together.wait()
        found = []
        for _ in range(3):
            if pruners[i] is None:
                found.append((answer(model, inputs[i % 3]), []))
                continue
            with pruners[i](model):
                together.wait()
                output = answer(model, inputs[i % 3])
                together.wait()
            found.append((output, [own.tolist() for own in pruners[i].kept]))
        return found

    n = len([own for own in pruners if own is not None])
    together = threading.Barrier(n)
    start = [i for i, own in enumerate(pruners) if own is not None]
    with ThreadPoolExecutor(len(pruners)) as pool:
        jobs = {i: pool.submit(work, i) for i in start}
        bare = [pool.submit(answer, model, inputs[i % 3]) for i in range(len(pruners)) if i not in start]
        for i, job in jobs.items():
            for output, own in job.result(timeout=60):
                assert torch.equal(output, expected[i])
                assert own == kept[i]
        for i, job in zip([i for i in range(len(pruners)) if i not in start], bare, strict=True):
            assert torch.equal(job.result(timeout=60), expected[i])


def pruned_kept(pruner, model, given):
    with pruner(model) as pruned:
        answer(model, given)
    return [own.tolist() for own in pruned.kept]
