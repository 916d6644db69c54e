"""Check whose calls a context prunes: those of the thread, task or generator that entered it, on that very model."""

import asyncio
import contextlib
import copy
import gc
import pickle
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import tiny
import torch
from accelerate import dispatch_model
from messages import refused
from pruner_examples import LastAttention
from transformers import LogitsProcessorList, StoppingCriteriaList, TextIteratorStreamer
from transformers.generation.streamers import BaseStreamer

from rcblib.mllm import adapter_for
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
    pruners = [
        shared,
        RandomPruner(0.5),
        ClsSimilarityPruner(0.1),
        shared,
        LastAttention(0.3),
        RandomPruner(1.0),
    ]
    together = threading.Barrier(len(pruners))

    def work(i, wait=lambda: None):
        wait()
        with pruners[i](model):
            wait()
            output = answer(model, inputs[i % 3])
            wait()
        return output.tolist(), [own.tolist() for own in pruners[i].kept]

    expected = [work(i) for i in range(len(pruners))]
    for _ in range(3):
        with ThreadPoolExecutor(len(pruners)) as pool:
            found = pool.map(lambda i: work(i, lambda: together.wait(60)), range(len(pruners)))
            assert list(found) == expected


def test_signals_are_read_of_the_thread_s_own_photos():
    """Hooks in encoder and connector leave other threads' passes alone."""
    adapter = adapter_for(*tiny.tiny_next())
    photos, needs = tiny.random_images(2), ["cls_attention", "keys"]
    expected = adapter.encode(photos[:1], needs)[0]
    inside, done = threading.Event(), threading.Event()

    def wait(*_arguments):
        if threading.current_thread() is threading.main_thread():
            inside.set()
            assert done.wait(60)

    handle = adapter.model.model.multi_modal_projector.register_forward_pre_hook(wait)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(lambda: inside.wait(60) and adapter.encode(photos[1:], needs)[0])
        other.add_done_callback(lambda _job: done.set())
        ours = adapter.encode(photos[:1], needs)[0]
    handle.remove()
    for view, own, another in zip(ours.views, expected.views, other.result().views, strict=True):
        assert torch.equal(view.tokens, own.tokens) and not torch.equal(view.tokens, another.tokens)
        assert all(torch.equal(view.signals[name], own.signals[name]) for name in needs)


def test_a_streamer_s_thread_is_pruned_where_generate_is_asked_for_inside(model, pair, inputs):
    """`model.generate`, or the context's, is taken along into the thread; a function that asks there is not."""
    pruner, tokenizer, n_prompt = RandomPruner(0.2), pair[1].tokenizer, inputs[0]["input_ids"].shape[1]
    expected = tokenizer.decode(pruned_answer(pruner, model, inputs[0])[0, n_prompt:])
    for ask in (lambda pruned: model.generate, lambda pruned: pruned.generate):
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
        with pruner(model) as pruned:
            named = inputs[0] | SETTINGS | {"streamer": streamer}
            thread = threading.Thread(target=ask(pruned), kwargs=named)
            thread.start()
            assert "".join(streamer) == expected
            thread.join()
        assert len(pruned.kept) == 1
    with pytest.warns(
        UserWarning, match="nothing was pruned .* in another thread .give that `pruned.generate`"
    ):
        with pruner(model):
            found = in_thread(lambda: answer(model, inputs[0]))
    assert torch.equal(found, answer(model, inputs[0]))
    with pytest.warns(UserWarning, match="nothing was pruned"), pruner(model) as pruned:
        taken = model.generate
    for left in (taken, pruned.generate):
        with refused("^generate: got .a call in a pruner's context that has been left.; accepted: "):
            left(**inputs[0], **SETTINGS)


def test_a_task_is_pruned_and_hands_its_context_to_threads_it_asks(model, inputs):
    async def served(pruner):
        context = contextlib.nullcontext() if pruner is None else pruner(model)
        with context:
            await asyncio.sleep(0.01)
            return await asyncio.to_thread(answer, model, inputs[0])

    async def serve():
        return await asyncio.gather(*map(served, pruners))

    pruners = [RandomPruner(0.2), None, RandomPruner(0.5), RandomPruner(0.2)]
    expected = [
        answer(model, inputs[0]) if own is None else pruned_answer(own, model, inputs[0]) for own in pruners
    ]
    assert all(torch.equal(ours, own) for ours, own in zip(asyncio.run(serve()), expected, strict=True))


# Generators


def stream(pruner, model, given):
    with pruner(model):
        for own in given:
            yield answer(model, own)


def test_an_open_generator_prunes_while_it_runs_and_nobody_else(model, inputs):
    plain = answer(model, inputs[0])
    pruners = RandomPruner(0.2), RandomPruner(0.4)
    expected = [pruned_answer(RandomPruner(own.retain_ratio), model, inputs[0]) for own in pruners]
    first, second = (stream(own, model, inputs) for own in pruners)
    for number in range(2):  # the second generator runs in another thread each time, as a server's do
        ours = [next(first), in_thread(next, second)]
        assert number or torch.equal(ours[0], expected[0]) and torch.equal(ours[1], expected[1])
        assert torch.equal(answer(model, inputs[0]), plain)
        with RandomPruner(0.2)(model):
            assert torch.equal(answer(model, inputs[0]), expected[0])
    assert len(pruners[0].kept) == len(pruners[1].kept) == 2
    first.close()
    del second  # forgotten, not finished
    gc.collect()


def test_an_open_asynchronous_generator_prunes_while_it_runs_and_nobody_else(model, inputs):
    """As a server streams answers: whoever reads the stream is not pruned between them, nor is another stream."""
    plain, pruner = answer(model, inputs[0]), ClsSimilarityPruner(0.2)
    ours = pruned_answer(pruner, model, inputs[0])

    @contextlib.asynccontextmanager
    async def demo():
        with pruner(model):
            await asyncio.sleep(0)
            yield

    async def streamed():
        with ClsSimilarityPruner(0.2)(model):
            await asyncio.sleep(0)
            yield answer(model, inputs[0])
            yield await asyncio.to_thread(model.generate, **inputs[0], **SETTINGS)
        async with demo():
            yield answer(model, inputs[0])

    async def read():
        found = [(own, answer(model, inputs[0])) async for own in streamed()]
        async with demo():
            assert torch.equal(answer(model, inputs[0]), ours)
        return found

    async def serve():
        return await asyncio.gather(read(), read())

    for found in asyncio.run(serve()):
        assert len(found) == 3
        assert all(torch.equal(own, ours) and torch.equal(other, plain) for own, other in found)
    assert torch.equal(answer(model, inputs[0]), plain)


def test_a_generator_that_waits_prunes_nothing_and_says_so(model, inputs):
    def waits():
        with RandomPruner(0.2)(model):
            yield

    waiting = waits()
    next(waiting)
    answer(model, inputs[0])
    with pytest.warns(UserWarning, match="called while the generator that entered it waited, on a copy"):
        assert next(waiting, None) is None


def test_functions_that_make_contexts_of_pruners_pass_them_on(model, inputs):
    @contextlib.contextmanager
    def demo():
        with RandomPruner(0.2)(model) as pruned:
            yield pruned

    def answers():
        with demo():
            yield answer(model, inputs[0])
            yield answer(model, inputs[0])

    expected = pruned_answer(RandomPruner(0.2), model, inputs[0])
    with demo():
        assert torch.equal(answer(model, inputs[0]), expected)
    with contextlib.ExitStack() as stack:
        stack.enter_context(demo())
        assert torch.equal(answer(model, inputs[0]), expected)
    found = answers()
    assert torch.equal(next(found), expected)
    assert not torch.equal(answer(model, inputs[0]), expected)
    found.close()


# What follows a call, and training


@pytest.mark.parametrize("settings", [{}, {"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}])
def test_what_follows_a_call_sees_the_prompts_as_given(pair, inputs, settings):
    model, processor = pair
    text = ["USER: <image>\nWhat ? ASSISTANT:", "USER: <image>\nWhat does this image show ? ASSISTANT:"]
    given = processor(text=text, images=tiny.random_images(2), padding=True, return_tensors="pt")
    ids, n = given["input_ids"], given["input_ids"].shape[1]
    seen = {"criteria": [], "processor": [], "allowed": []}

    def stops(own, scores, **more):
        seen["criteria"].append(own.shape[1] - n)
        assert torch.equal(own[:, :n], ids.repeat_interleave(len(own) // 2, 0))
        return torch.full((len(own),), own.shape[1] - n == 3)

    def processes(own, scores):
        seen["processor"].append(own.shape[1] - n)
        return scores

    def allowed(number, own):
        seen["allowed"].append(number)
        assert torch.equal(
            own[:n],
            ids[number // (1 if "num_beams" in settings else settings.get("num_return_sequences", 1))],
        )
        return range(5, 60)

    called = {"stopping_criteria": StoppingCriteriaList([stops]), "prefix_allowed_tokens_fn": allowed}
    called["logits_processor"] = LogitsProcessorList([processes])
    with RandomPruner(0.2)(model):
        output = model.generate(**given, **{**SETTINGS, **settings}, **called)
    assert output.shape[1] == n + 3 and seen["criteria"] == [1, 2, 3] and seen["processor"] == [0, 1, 2]
    assert set(seen["allowed"]) == set(range(2 * settings.get("num_return_sequences", 1)))


def test_a_streamer_gets_the_prompt_as_given(model, inputs):
    class Streamer(BaseStreamer):
        put_, ended = [], False

        def put(self, ids):
            self.put_.append(ids)

        def end(self):
            self.ended = True

    streamer = Streamer()
    with RandomPruner(0.2)(model):
        output = model.generate(**inputs[0], **SETTINGS, streamer=streamer)
    assert torch.equal(torch.cat([ids.flatten() for ids in streamer.put_]), output[0]) and streamer.ended


def test_no_gradient_is_lost_without_a_word(inputs):
    model = tiny.tiny_llava()[0].train()
    given = inputs[0] | {"labels": inputs[0]["input_ids"]}
    with RandomPruner(0.2)(model):
        with refused(
            "^forward: got 'training of model.vision_tower, model.multi_modal_projector'; accepted: "
        ):
            model(**given)
        model.model.vision_tower.requires_grad_(False)
        model.model.multi_modal_projector.requires_grad_(False)
        model(**given).loss.backward()
    assert model.lm_head.weight.grad.any()


def test_visual_tokens_that_are_no_numbers_are_refused(model, inputs):
    given = inputs[0] | {"pixel_values": inputs[0]["pixel_values"] * float("nan")}
    with RandomPruner(0.2)(model), refused("^visual tokens: got .*NaN"):
        answer(model, given)


# Nothing pruned, and copies


def test_a_context_that_pruned_nothing_says_so_and_why(model, inputs):
    before = model.generate
    text = {name: inputs[0][name][:, -5:] for name in ("input_ids", "attention_mask")}
    told = {
        "no call reached it. Was `generate` taken from the model": lambda: before(**inputs[0], **SETTINGS),
        "; no call reached it": lambda: None,
        "called on a copy": lambda: copy.deepcopy(model).generate(**inputs[0], **SETTINGS),
        "1 calls came without images: were pixels left out": lambda: model.generate(**text, **SETTINGS),
        "1 calls came without images": lambda: model(**text),
    }
    for message, call in told.items():
        with pytest.warns(
            UserWarning, match=f"^pruner: nothing was pruned in this context of RandomPruner.*{message}"
        ) as seen:
            with RandomPruner(0.2)(model):
                call()
        assert [own.filename for own in seen] == [__file__] and "\n" not in str(seen[0].message)
    plain = answer(model, inputs[0])
    with pytest.warns(UserWarning), RandomPruner(0.2)(model):
        assert torch.equal(before(**inputs[0], **SETTINGS), plain)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pruned_answer(RandomPruner(0.2), model, inputs[0])
        with RandomPruner(0.2)(model), torch.no_grad():
            model(**inputs[0])
        with contextlib.suppress(KeyError), RandomPruner(0.2)(model):
            raise KeyError


def test_copies_of_a_model_made_inside_are_free_of_the_context(model, inputs):
    plain, fresh = (
        answer(model, inputs[0]),
        tiny.tiny_llava()[0],
    )  # transformers cannot pickle one that has run
    with RandomPruner(0.2)(model), RandomPruner(0.2)(fresh):
        ours = answer(model, inputs[0])
        copies = [copy.deepcopy(model), copy.copy(model), pickle.loads(pickle.dumps(fresh))]
        assert not torch.equal(answer(fresh, inputs[0]), plain)
        assert all(torch.equal(answer(own, inputs[0]), plain) for own in copies)
    assert all(torch.equal(answer(own, inputs[0]), plain) for own in copies)
    assert all(vars(own).keys() == vars(model).keys() for own in copies)
    assert torch.equal(pruned_answer(RandomPruner(0.2), copies[0], inputs[0]), ours)


def test_a_copy_of_a_model_with_methods_of_its_own_has_its_own(inputs):
    """As of one spread over devices, whose forward brings weights in."""
    model = dispatch_model(tiny.tiny_llava()[0], {"": "cpu"}, force_hooks=True)
    plain, before = answer(model, inputs[0]), vars(model)["forward"]
    with RandomPruner(0.2)(model) as pruned, torch.no_grad():
        logits, other = model(**inputs[0]).logits, copy.deepcopy(model)
        assert not torch.equal(answer(model, inputs[0]), plain)
        assert torch.equal(answer(other, inputs[0]), plain)
    assert logits.shape[1] == inputs[0]["input_ids"].shape[1] - 36 + len(pruned.kept[0])
    assert vars(model)["forward"] is before and type(vars(other)["forward"]) is type(before)
    with torch.no_grad():
        other.lm_head.weight.zero_()
    assert torch.equal(answer(model, inputs[0]), plain) and not torch.equal(answer(other, inputs[0]), plain)
