"""Try damaged and odd inputs of every kind: each ends in the right result, or in one line of the project's own."""

import functools
import hashlib
import io
import json
import shutil
import struct
from pathlib import Path

import numpy as np
import tiny
import torch
from families import FAMILIES
from mutations import ODD, as_json, damaged_bytes, damaged_value
from survival import PER_POINT, outcomes_of

from rcblib.codebook.codebook import Codebook, load_codebook
from rcblib.mllm import adapter_for
from rcblib.probe.run import probe
from rcblib.pruners import CodebookPruner, RandomPruner
from rcblib.records import VisualView
from rcblib.runs.parameters import notebook_config

REPOSITORY = Path(__file__).resolve().parents[1]


# Codebooks


def prune_with(book, width):
    """Use a codebook that was opened, and check what it keeps."""
    assert torch.isfinite(book.prototypes).all()
    assert all(len(each) == len(book) for each in (book.image_ids, book.positions or ()) if each)
    tokens = torch.randn(12, width, generator=torch.Generator().manual_seed(0))
    kept = CodebookPruner(book, retain_ratio=0.5).select((VisualView(tokens, (3, 4)),))
    assert len(kept) == 6 and (kept.diff() > 0).all()


def open_damaged_codebook(source, scratch, damage):
    """Open a copy of a codebook of which one file was damaged; where it opens, what it holds was checked."""
    name, data, is_stamped = damage
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(source, scratch)
    (scratch / name).write_bytes(data)
    if is_stamped:  # as one who damages a file on purpose does
        facts = json.loads((scratch / "codebook.json").read_text())
        facts["sha256"] = hashlib.sha256(data).hexdigest()
        (scratch / "codebook.json").write_text(json.dumps(facts))
    book = load_codebook(scratch)
    if name == "codebook.json" or not is_stamped:
        assert torch.equal(book.prototypes, load_codebook(source).prototypes)
    prune_with(book, 8)


def header_of(entries, n_bytes=0):
    """Return a safetensors file whose header says what is not there."""
    header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header)) + header + bytes(n_bytes)


def hostile_tensors():
    """Yield files of tensors that state shapes, offsets or lengths that no file of their size has."""
    for shape in ([2**40, 4096], [2**62, 2**62], [0, 8], [-1, 8], [4, 8, 1], ["4", 8], [4.5, 8], [10**30, 1]):
        for end in (128, 2**63, 0):
            entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}
            yield f"shape {shape} of {end} bytes", header_of({"prototypes": entry}, 128)
    for dtype in ("F64", "BF16", "I64", "BOOL", "F8_E4M3", "wrong", None, 3):
        entry = {"dtype": dtype, "shape": [4, 4], "data_offsets": [0, 64]}
        yield f"dtype {dtype}", header_of({"prototypes": entry}, 64)
    yield "a header longer than any file", struct.pack("<Q", 2**60) + b"{}"
    yield "a header of lists", header_of([[]])
    yield "deep brackets", struct.pack("<Q", 10**5) + b"[" * 10**5


def test_damaged_codebooks(tmp_path, n_points, findings):
    generator = np.random.default_rng(1)
    tokens = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
    book = Codebook(
        tokens, (1, 2, 3, 4, 5, 6), "llava", tuple(range(6)), {"model": "tiny", "clusters": [0] * 6}
    )
    source = book.save_pretrained(tmp_path / "book")
    tensors, text = ((source / name).read_bytes() for name in ("prototypes.safetensors", "codebook.json"))
    facts = json.loads(text)
    inputs = {name: ("prototypes.safetensors", data, True) for name, data in hostile_tensors()}
    inputs["deep JSON"] = ("codebook.json", b"[" * 10**5, False)
    for number in range(PER_POINT * n_points):
        data, how = damaged_bytes(tensors, generator)
        is_stamped = bool(generator.integers(2))
        inputs[f"{number}: tensors {how}, stamped {is_stamped}"] = (
            "prototypes.safetensors",
            data,
            is_stamped,
        )
        data, how = damaged_bytes(text, generator)
        inputs[f"{number}: description {how}"] = ("codebook.json", data, False)
        value, how = damaged_value(facts, generator)
        inputs[f"{number}: description {how}"] = ("codebook.json", as_json(value).encode(), False)
    attempt = functools.partial(open_damaged_codebook, source, tmp_path / "damaged")
    what = "bytes and values of a codebook's files are changed; it opens with the same prototypes, or one line says why"
    findings.add("codebook files", what, outcomes_of(inputs, attempt))


def test_damaged_released_codebooks(tmp_path, n_points, findings, monkeypatch):
    generator = np.random.default_rng(2)
    buffer = io.BytesIO()
    torch.save(torch.randn(6, 8, generator=torch.Generator().manual_seed(1)), buffer)
    monkeypatch.setenv("RCB_ROOT", str(REPOSITORY))

    def attempt(data):
        (tmp_path / "released.pt").write_bytes(data)
        book = load_codebook(tmp_path / "released.pt")
        prune_with(book, book.d_model)

    inputs = {}
    for number in range(PER_POINT * n_points):
        data, how = damaged_bytes(buffer.getvalue(), generator)
        inputs[f"{number}: {how}"] = data
    what = "bytes of a released .pt file are changed; what opens is a finite matrix, or one line says why"
    findings.add("released codebook files", what, outcomes_of(inputs, attempt))


# Parameters


def declared_parameters():
    """Return the names, annotations and defaults of every notebook's parameters."""
    declared = {}
    for path in sorted((REPOSITORY / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        cell = next(cell for cell in cells if "parameters" in cell["metadata"].get("tags", ()))
        namespace = {}
        exec("".join(cell["source"]), namespace)
        hints = namespace["__annotations__"]
        declared[path.stem] = hints, {name: namespace[name] for name in hints if name in namespace}
    return declared


def test_odd_parameters_of_every_notebook(n_points, findings):
    generator, inputs = np.random.default_rng(4), {}
    for notebook, (hints, values) in declared_parameters().items():
        for number in range(30 * n_points):
            given = dict(values)
            for name in generator.choice(list(hints), size=min(2, len(hints)), replace=False):
                given[str(name)] = ODD[int(generator.integers(len(ODD)))]
            if number % 5 == 0:
                given[f"{generator.choice(list(hints))}s_"] = 1
            inputs[f"{notebook} {number}"] = hints, given

    def attempt(parameters):
        hints, given = parameters
        config = notebook_config({"__annotations__": hints, **given})
        assert set(given) == set(hints)
        assert {name: getattr(config, name) for name in hints} == given

    what = "parameters of every notebook get values of other types and ranges: taken as given, or refused in one line"
    findings.add("notebook parameters", what, outcomes_of(inputs, attempt))


# Tokenizers


def answers(model, processor):
    """Probe and ask in batches of unequal length; return what comes of both."""
    image = tiny.random_images(1, (90, 90))[0]
    table = probe(model, processor, image, "What does this image show ?", "grid", n_side=1, batch_size=8)
    prompt = adapter_for(model, processor).prompt("What ?")
    inputs = processor(text=[prompt], images=[image], return_tensors="pt")
    with RandomPruner(0.5)(model, processor):
        said = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    return table["top1_id"].tolist(), said.tolist(), table["global_divergence"].to_numpy()


def without_padding(model, tokenizer):
    tokenizer.pad_token = None


def without_padding_anywhere(model, tokenizer):
    tokenizer.pad_token = None
    model.generation_config.pad_token_id = model.config.get_text_config().pad_token_id = None


def padding_on_the_right(model, tokenizer):
    tokenizer.padding_side = "right"


def test_tokenizers_without_a_padding_token(findings):
    """What stands in for padding is never read."""

    def attempt(given):
        family, change = given
        model, processor = FAMILIES[family].build()
        *said, numbers = answers(model, processor)
        change(model, processor.tokenizer)
        *found, others = answers(model, processor)
        assert found == said, "other answers"
        np.testing.assert_allclose(others, numbers, atol=1e-6)

    changes = (without_padding, without_padding_anywhere, padding_on_the_right)
    inputs = {f"{family} {change.__name__}": (family, change) for family in FAMILIES for change in changes}
    what = "tokenizers have no padding, or pad on the other side: batches of unequal length are answered as with it"
    findings.add("tokenizers", what, outcomes_of(inputs, attempt))
