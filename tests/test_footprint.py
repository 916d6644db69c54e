"""Compare computed memory with published counts, with tensors, and with what PyTorch allocates."""

import pytest
import tiny
import torch
from families import FAMILIES
from transformers import AutoModelForImageTextToText

from benchmarks.checkpoints import (
    CHECKPOINTS,
    QWEN,
    checkpoint_config,
    empty_model,
    n_patches,
    narrow_config,
    picture_rows,
)
from benchmarks.footprint import (
    CARDS,
    Footprint,
    attention_map_bytes,
    cache_bytes,
    encoding_bytes,
    generation,
    largest_batch,
    main,
    measured_peak,
    prefill_bytes,
    probing,
)
from benchmarks.weights import STORAGES, ModelShape, nf4_bytes, weight_bytes
from rcblib.mllm import adapter_for
from rcblib.mllm.prefix import ROWS_AT_ONCE
from rcblib.mllm.products import after_attention
from rcblib.mllm.prompt import Prompt, VisualRows
from rcblib.probe.run import probe
from rcblib.records import ONE_WORD_QUESTION, ParameterError, UnsupportedModelError

PUBLISHED = dict(zip(CHECKPOINTS, (7.06, 13.35, 8.36, 8.03), strict=True))
"""Parameters of the checkpoints' weight files, in units of 10**9."""

N_BYTES = {torch.float32: "float32", torch.bfloat16: "half"}


@pytest.fixture(scope="module")
def empty():
    return {name: empty_model(name) for name in CHECKPOINTS}


@pytest.fixture(scope="module")
def shapes(empty):
    return {name: ModelShape.from_model(model) for name, model in empty.items()}


def narrow(name, dtype=torch.float32):
    """Build a narrow model of a checkpoint's form with random weights."""
    torch.manual_seed(0)
    return AutoModelForImageTextToText.from_config(narrow_config(name)).eval().to(dtype)


# Weights


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_parameters_are_as_many_as_published(name, empty, shapes):
    counted = sum(parameter.numel() for parameter in empty[name].parameters())
    assert shapes[name].n_parameters == counted
    assert counted / 1e9 == pytest.approx(PUBLISHED[name], abs=0.006)
    assert {parameter.device.type for parameter in empty[name].parameters()} == {"meta"}


def test_qwen_reads_pictures_of_any_size():
    model = empty_model(QWEN)
    shape = ModelShape.from_model(model, n_patches(480, 640))
    assert shape.n_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert shape.n_parameters / 1e9 == pytest.approx(8.29, abs=0.006)
    assert shape.parameters["connector"] == 1280 + 5120 * 5120 + 5120 + 5120 * 3584 + 3584
    assert (
        shape.n_vision_rows == 34 * 46 and shape.n_merged == 4
    )  # 476 x 644 pixels, as the sides are multiples of 28
    assert shape.n_seen == (4 * 34 * 46 + 28 * 64) / 32
    with pytest.raises(UnsupportedModelError, match="vision encoder: got one of another kind"):
        encoding_bytes(ModelShape.from_model(model), "half")


def test_numbers_after_attention_are_those_of_the_modules(empty, shapes):
    for name, model in empty.items():
        layers = adapter_for(model).language_model.layers
        assert shapes[name].after_attention == sum(
            part.weight.numel() for part in after_attention(layers[-1])
        )


def test_parts_of_llava_15_are_known_by_hand(shapes):
    parts = shapes[CHECKPOINTS[0]].parameters
    assert parts["layers"] == 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert parts["embeddings"] == parts["head"] == 32064 * 4096
    assert parts["connector"] == 1024 * 4096 + 4096 + 4096 * 4096 + 4096
    assert parts["rest"] == (2 * 32 + 1) * 4096


def test_a_newline_is_counted_and_shared_embeddings_count_once(empty, shapes):
    assert shapes[CHECKPOINTS[2]].parameters["rest"] == (2 * 32 + 1) * 4096 + 4096
    config = tiny.llava_config(tiny.TINY_VISION, tiny.TINY_TEXT, tiny.TINY_IDS)
    config.tie_word_embeddings = True
    model = AutoModelForImageTextToText.from_config(config)
    shape = ModelShape.from_model(model)
    assert shape.parameters["head"] == 0
    assert shape.n_parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("dtype", N_BYTES)
def test_weights_are_the_bytes_of_the_parameters(name, dtype):
    model = narrow(name, dtype)
    parts = weight_bytes(ModelShape.from_model(model), N_BYTES[dtype])
    assert sum(parts.values()) == sum(p.numel() * p.element_size() for p in model.parameters())


def test_4_bit_numbers_take_what_bitsandbytes_allocates():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    for size in ((512, 1024), (300, 172)):
        weight = bitsandbytes.nn.Params4bit(
            torch.randn(*size), requires_grad=False, quant_type="nf4", compress_statistics=True
        ).to("cpu")
        state = weight.quant_state
        tensors = [weight, state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
        assert nf4_bytes(size[0] * size[1]) == sum(t.numel() * t.element_size() for t in tensors)


def test_4_bit_storage_known_by_hand_leaves_other_parts_in_half(shapes):
    assert nf4_bytes(64 * 256) == 64 * 256 // 2 + 256 + 4 + 4 * (16 + 256 + 1)
    shape = shapes[CHECKPOINTS[0]]
    small, half = weight_bytes(shape, "4bit"), weight_bytes(shape, "half")
    assert {part for part in half if small[part] != half[part]} == {"layers"}
    assert 8 * small["layers"] / shape.parameters["layers"] == pytest.approx(4.127, abs=0.001)


# Cache and activations


def test_the_cache_of_llava_15_takes_half_a_mebibyte_a_token(shapes):
    assert cache_bytes(shapes[CHECKPOINTS[0]], "half") == 2**19
    assert cache_bytes(shapes[CHECKPOINTS[2]], "half") == 2**19 // 4
    assert cache_bytes(shapes[CHECKPOINTS[0]], "4bit", 10, 3) == 30 * 2**19


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_cache_is_exactly_what_a_prompt_leaves(name):
    model = narrow(name)
    with torch.no_grad():
        output = model(inputs_embeds=torch.zeros(2, 7, 256), use_cache=True)
    tensors = [t for layer in output.past_key_values.layers for t in (layer.keys, layer.values)]
    expected = sum(t.numel() * t.element_size() for t in tensors)
    assert cache_bytes(ModelShape.from_model(model), "float32", 7, 2) == expected


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("dtype", N_BYTES)
def test_activations_of_a_prefill_are_what_is_allocated(name, dtype):
    model = narrow(name, dtype)
    adapter, shape = adapter_for(model), ModelShape.from_model(model)
    asked = Prompt.of([adapter.image_token_id], [adapter.image_token_id])
    for n_tokens, batch_size in ((300, 3), (600, 1)):
        visual = torch.randn(batch_size, n_tokens, shape.d_model).to(dtype)

        @torch.no_grad()
        def read(visual=visual):
            given = visual.clone()
            return adapter.next_token_logits(
                [asked.filled([VisualRows.in_order(row.clone())]) for row in given]
            )

        computed = prefill_bytes(shape, N_BYTES[dtype], n_tokens, batch_size)
        assert measured_peak(read) == pytest.approx(computed, rel=0.03)


def test_activations_of_probing_are_what_is_allocated(monkeypatch):
    monkeypatch.setitem(ROWS_AT_ONCE, "cpu", 10**6)  # as many at once as are asked for
    model, (_, processor) = narrow(CHECKPOINTS[0]), tiny.reduced_llava_15()
    (image,) = tiny.random_images(1, (336, 336))
    adapter = adapter_for(model, processor)
    n_text = len(adapter.prompt_ids(adapter.prompt(ONE_WORD_QUESTION))) - 1

    def run():
        return probe(model, processor, image, positions=range(12), batch_size=12, attention=False)

    job = probing(ModelShape.from_model(model), "float32", 576, n_text=n_text, batch_size=12)
    assert measured_peak(run) == pytest.approx(job.cache + job.activations, rel=0.03)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_activations_of_encoding_bound_what_is_allocated(name):
    model = narrow(name)
    n_grids, _ = picture_rows(model, 480, 640)
    side = model.config.vision_config.image_size
    pixels = torch.randn(1, n_grids, 3, side, side)
    pixels = pixels[0] if model.config.model_type == "llava" else pixels

    @torch.no_grad()
    def encode():
        inputs = {"pixel_values": pixels.clone(), "image_sizes": torch.tensor([[480, 640]])}
        return adapter_for(model).encode_pixels(inputs)

    computed = encoding_bytes(ModelShape.from_model(model), "float32", n_grids)
    assert 0.55 * computed <= measured_peak(encode) <= computed


@pytest.mark.parametrize("family", ["llava_next", "llava_next with DINOv2"])
def test_encoders_are_counted_as_they_are_built(family):
    model = FAMILIES[family].build()[0]
    shape, tower = ModelShape.from_model(model), model.model.vision_tower
    with torch.no_grad():
        states = tower(torch.zeros(1, 3, 24, 24)).last_hidden_state
    widths = {module.out_features for module in tower.modules() if isinstance(module, torch.nn.Linear)}
    assert (shape.n_vision_rows, shape.d_vision) == states.shape[1:] == (37, 32)
    assert {shape.d_vision, shape.d_vision_mlp} == widths
    assert shape.n_pixels == 3 * 24**2


def test_attention_maps_grow_with_the_square_of_the_prompt(shapes):
    shape = shapes[CHECKPOINTS[0]]
    assert attention_map_bytes(shape, 640) == 8 * 32 * 640**2
    model, processor = tiny.tiny_llava()
    own = ModelShape.from_model(model)
    adapter = adapter_for(model, processor)
    prompt, visual = adapter.prompt("What is red ?"), torch.randn(900, 40)
    n_tokens = len(adapter.prompt_ids(prompt)) - 1 + 900
    computed = attention_map_bytes(own, n_tokens)
    assert measured_peak(lambda: adapter.text_to_image_attention(prompt, visual)) == pytest.approx(
        computed, rel=0.2
    )


def test_measured_peak_sees_what_is_freed_again():
    def run():
        first = torch.zeros(1000)
        second = first + 1
        del first
        return second[:10].clone()

    assert measured_peak(run) == pytest.approx(8000, rel=0.03)


# Jobs


def test_pictures_take_the_rows_that_the_llm_reads(empty):
    rows = {name: picture_rows(model, 480, 640) for name, model in empty.items()}
    assert rows[CHECKPOINTS[0]] == rows[CHECKPOINTS[1]] == (1, 576)
    # 48 x 48 tokens of four tiles, 640 : 480 leaves 36 lines; each ends in a newline.
    assert rows[CHECKPOINTS[2]] == (5, 576 + 36 * 49)


@pytest.mark.parametrize("storage", STORAGES)
def test_jobs_add_up_and_pruning_saves_cache_and_activations(shapes, storage):
    shape = shapes[CHECKPOINTS[2]]
    weights = sum(weight_bytes(shape, storage).values())
    full = generation(shape, storage, 2340, n_grids=5, batch_size=8)
    pruned = generation(shape, storage, 2340, n_grids=5, batch_size=8, retain_ratio=0.25)
    assert full.total == full.weights + full.cache + full.activations
    assert full.weights == pruned.weights == weights
    assert full.cache == cache_bytes(shape, storage, 2340 + 128, 8)
    assert pruned.cache == cache_bytes(shape, storage, 585 + 128, 8)
    assert pruned.activations <= full.activations
    job = probing(shape, storage, 2340, n_grids=5, attention=True, batch_size=1)
    assert (job.weights, job.cache) == (weights, cache_bytes(shape, storage, 2404))
    assert job.activations == prefill_bytes(shape, storage, 2404) + attention_map_bytes(shape, 2404)


def test_the_largest_batch_is_the_last_that_fits():
    assert largest_batch(lambda n: Footprint(100, 0, 10 * n), 149) == 4
    assert largest_batch(lambda n: Footprint(100, 0, 10 * n), 150) == 5
    assert largest_batch(lambda n: Footprint(100, 0, 10 * n), 109) == 0
    assert largest_batch(lambda n: Footprint(100, 0, 0), 109, limit=7) == 7


def test_4_bit_is_what_brings_7b_onto_a_t4(shapes):
    shape, card = shapes[CHECKPOINTS[0]], CARDS["T4 16 GB"]
    assert probing(shape, "half", 576).total > card
    assert probing(shape, "4bit", 576, attention=True).total < card / 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda shape: weight_bytes(shape, "8bit"), "storage: got '8bit'"),
        (lambda shape: prefill_bytes(shape, "half", 0), "n_tokens: got 0"),
        (lambda shape: cache_bytes(shape, "half", 1, 0), "batch_size: got 0"),
        (lambda shape: generation(shape, "half", 576, retain_ratio=0), "retain_ratio: got 0"),
    ],
)
def test_wrong_sizes(call, message, shapes):
    with pytest.raises(ParameterError, match=message):
        call(shapes[CHECKPOINTS[0]])


def test_unknown_checkpoints_and_encoders():
    with pytest.raises(ParameterError, match="name: got 'llava'"):
        checkpoint_config("llava")
    with pytest.raises(UnsupportedModelError, match="model: got 'no-such-model'"):
        empty_model("no-such-model")


def test_the_command_computes_for_checkpoints_and_folders(tmp_path, capsys):
    assert main(["--model", "llava-hf/llava-1.5-7b-hf"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("7.063 billion parameters; grids of a picture: 1, rows: 576")
    assert "half, generate" in out
    folder = tiny.save_tiny_llava(tmp_path)
    assert main(["--model", str(folder), "--retain-ratio", "0.5"]) == 0
    assert "rows: 36" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "no-such-model"], "model: got 'no-such-model'"),
        (["--height", "0"], "height: got 0"),
        (["--batch-size", "0"], "batch_size: got 0"),
        (["--retain-ratio", "0"], "retain_ratio: got 0"),
    ],
)
def test_wrong_inputs_of_the_command_end_in_one_line(options, message, capsys):
    assert main(["--model", "llava-hf/llava-1.5-7b-hf", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("footprint: ") and message in line
