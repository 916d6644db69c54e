"""Check that prompts, positions and padding come out as worked out by hand."""

import pytest
import tiny
import torch
from messages import one_line
from tiny_qwen import tiny_qwen

from rcblib.mllm import adapter_for
from rcblib.mllm.given import GivenPrompts
from rcblib.mllm.prompt import Batch, Prompt, VisualRows
from rcblib.records import EncodedImage, ParameterError, VisualView

IMAGE, VIDEO, PAD = 4, 5, 0


def rows_of(n, value=1.0):
    return VisualRows.in_order(torch.full((n, 2), value))


def grid_rows(height, width, kept):
    """Return some rows of a grid that is read on three axes, as Qwen2.5-VL reads it."""
    cells = torch.arange(height * width)
    offsets = torch.stack([torch.zeros_like(cells), cells // width, cells % width])
    kept = torch.tensor(kept)
    return VisualRows(torch.ones(len(kept), 2), offsets[:, kept], max(height, width), kept, height * width)


def image_of(n_tokens, kind="image"):
    return EncodedImage((VisualView(torch.ones(n_tokens, 2), (1, n_tokens), kind=kind),))


def count(image):
    return image.n_tokens


# One prompt


def test_placeholders_are_found_and_expanded():
    prompt = Prompt.of([1, IMAGE, 7, VIDEO, 8], (IMAGE, VIDEO))
    assert prompt.spans == ((1, 2), (3, 4))
    expanded = prompt.expanded([3, 2])
    assert expanded.ids.tolist() == [1, IMAGE, IMAGE, IMAGE, 7, VIDEO, VIDEO, 8]
    assert expanded.spans == ((1, 4), (5, 7))
    assert Prompt.of([7, 8], (IMAGE, None)).spans == ()
    assert prompt.followed_by([9, 9]).ids.tolist() == [1, IMAGE, 7, VIDEO, 8, 9, 9]


@pytest.mark.parametrize("n_placeholders", [1, 4])
def test_rows_stand_where_placeholders_stood(n_placeholders):
    """Four tokens, of which the second and fourth stay, between two words and one."""
    prompt = Prompt.of([8, 9, IMAGE, 7], [IMAGE]).expanded([n_placeholders])
    numbers = torch.tensor([1, 3])
    rows = VisualRows(torch.ones(2, 2), numbers[None], 4, numbers, 4)
    assembled = prompt.filled([rows])
    assert assembled.spans == ((2, 4),)
    assert assembled.is_visual.tolist() == [False, False, True, True, False]
    assert assembled.ids(IMAGE).tolist() == [8, 9, IMAGE, IMAGE, 7]
    own = [3, 5] if n_placeholders == 4 else [2, 2]
    assert assembled.columns.tolist() == [0, 1, *own, len(prompt.ids) - 1]
    assert assembled.positions.tolist() == [[0, 1, 3, 5, 6]]


def test_positions_on_three_axes_are_those_of_the_table():
    """Two by four tokens behind four words, then two words: the table of the page on adding a family."""
    prompt = Prompt.of([1, 2, 3, 8, IMAGE, 6, 7], [IMAGE])
    full = prompt.filled([grid_rows(2, 4, range(8))]).positions
    assert full.tolist() == [
        [0, 1, 2, 3, 4, 4, 4, 4, 4, 4, 4, 4, 8, 9],
        [0, 1, 2, 3, 4, 4, 4, 4, 5, 5, 5, 5, 8, 9],
        [0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7, 8, 9],
    ]
    some = prompt.filled([grid_rows(2, 4, [1, 6])])
    assert torch.equal(some.positions, full[:, [0, 1, 2, 3, 5, 10, 12, 13]])


def test_several_images_and_none():
    prompt = Prompt.of([IMAGE, IMAGE, 7, IMAGE], [IMAGE])
    assembled = prompt.filled([rows_of(2), rows_of(0), rows_of(3)])
    assert assembled.spans == ((0, 2), (2, 2), (3, 6))
    assert assembled.is_visual.tolist() == [True, True, False, True, True, True]
    assert assembled.positions.tolist() == [list(range(6))]
    text = Prompt.of([7, 8], [IMAGE]).filled([])
    assert (text.positions.tolist(), text.spans, len(text)) == ([[0, 1]], (), 2)
    with pytest.raises(ParameterError) as error:
        prompt.filled([rows_of(2)])
    assert "tokens of 1 images'; accepted: 3, one for each placeholder" in one_line(error)


def test_embeddings_are_those_of_the_words_and_the_rows():
    prompt = Prompt.of([8, IMAGE, 7, IMAGE], [IMAGE])
    rows = [VisualRows.in_order(torch.full((n, 2), value)) for n, value in ((2, -1.0), (1, -2.0))]
    for filled in (prompt, prompt.expanded([2, 5])):
        embeds = filled.filled(rows).embeds(lambda ids: ids[:, None].float().expand(-1, 2))
        assert embeds[:, 0].tolist() == [8, -1, -1, 7, -2]


# Batches


def test_shorter_prompts_are_padded_on_the_left():
    prompts = [
        Prompt.of([8, IMAGE, 7], [IMAGE]).filled([grid_rows(2, 2, [0, 3])]),
        Prompt.of([9], [IMAGE]).filled([]),
    ]
    batch = Batch(prompts)
    assert batch.n_columns == 4
    assert batch.input_ids(IMAGE, PAD).tolist() == [[8, IMAGE, IMAGE, 7], [PAD, PAD, PAD, 9]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [0, 0, 0, 1]]
    assert batch.position_ids.tolist() == [
        [[0, 1, 1, 3], [0, 0, 0, 0]],
        [[0, 1, 2, 3], [0, 0, 0, 0]],
        [[0, 1, 2, 3], [0, 0, 0, 0]],
    ]
    assert Batch(prompts[1:]).position_ids.tolist() == [[0]]
    ((number, columns),) = batch.spans.images
    assert (number, columns.tolist()) == (0, [1, 2])
    assert (batch.spans.n_prompts, batch.spans.n_columns) == (2, 4)
    shorter = Batch([*prompts[:1], Prompt.of([6] * 7, [IMAGE]).filled([])])
    assert shorter.spans.images[0][1].tolist() == [4, 5]
    assert [len(rows) for rows in batch.visual_rows()] == [2]
    padded = batch.padded([torch.ones(4, 3), torch.ones(1, 3)], 9)
    assert padded.shape == (2, 4, 3)
    assert padded[1, :, 0].tolist() == [9, 9, 9, 1]


# The arguments of `generate`


def prompts_of(ids, pad=PAD, end=2, **others):
    return GivenPrompts({"input_ids": torch.tensor(ids), **others}, pad, end)


def test_arguments_are_cut_and_restored():
    """Masked columns go, also in the middle; other columns and the video's name follow; prompts come back whole."""
    ids = [[PAD, 8, IMAGE, IMAGE, IMAGE, 7], [IMAGE, IMAGE, VIDEO, VIDEO, 6, PAD]]
    mask = torch.tensor([[0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]])
    types = torch.arange(12).view(2, 6)
    given = prompts_of(ids, attention_mask=mask, types=types, pixel_values=torch.ones(3, 3), top_k=3)
    video, images = image_of(2, "frame"), [image_of(3), image_of(2)]
    placed = given.place([*images, video], count, IMAGE, VIDEO)
    assert [each.image for each in placed] == [*images, video]
    assert [each.prompt for each in placed] == [0, 1, 1]
    assert placed[2].prompt_ids.tolist() == [IMAGE, IMAGE, VIDEO, VIDEO, 6]
    numbers = [torch.tensor(kept) for kept in ([0, 2], [1], [0, 1])]
    visual = [
        VisualRows(torch.ones(len(kept), 2), kept[None], n, kept, n)
        for kept, n in zip(numbers, (3, 2, 2), strict=True)
    ]
    batch = given.filled(visual)
    cut = given.cut(batch, IMAGE)
    assert cut.keys() == {"input_ids", "attention_mask", "types"}
    assert cut["input_ids"].tolist() == [[8, IMAGE, IMAGE, 7], [IMAGE, IMAGE, IMAGE, 6]]
    assert cut["attention_mask"].tolist() == [[1] * 4] * 2
    assert cut["types"].tolist() == [[1, 2, 4, 5], [7, 8, 9, 10]]
    assert batch.position_ids.tolist() == [[0, 1, 3, 4], [1, 2, 3, 4]]
    new = torch.tensor([[50], [51], [52], [53]])
    output = torch.cat([cut["input_ids"].repeat_interleave(2, 0), new], dim=1)  # two beams each
    restored = given.restore(output, batch.n_columns)
    assert restored.tolist() == [[*ids[0], 50], [*ids[0], 51], [*ids[1], 52], [*ids[1], 53]]


def test_a_layout_with_more_rows_than_placeholders():
    """Three rows in the place of two: all come from the first placeholder, and text goes on behind all of them."""
    given = prompts_of([[8, IMAGE, IMAGE, 7]], types=torch.tensor([[5, 6, 6, 7]]))
    given.place([image_of(2)], count, IMAGE)
    numbers = torch.tensor([0, 2, 3])
    batch = given.filled([VisualRows(torch.ones(3, 2), numbers[None], 5, numbers, 5)])
    cut = given.cut(batch, IMAGE)
    assert cut["types"].tolist() == [[5, 6, 6, 6, 7]]
    assert batch.position_ids.tolist() == [[0, 1, 3, 4, 6]]


def test_padding_is_inferred_as_generate_infers_it():
    ids = [[PAD, 8], [9, 7]]
    assert [len(prompt.ids) for prompt in prompts_of(ids).prompts] == [1, 2]
    assert [len(prompt.ids) for prompt in prompts_of(ids, end=[PAD, 2]).prompts] == [2, 2]
    assert [len(prompt.ids) for prompt in prompts_of(ids, pad=None).prompts] == [2, 2]
    assert prompts_of(ids, pad=None, end=[9, 2]).padding_id == 9
    assert prompts_of(ids, pad=None, end=None).padding_id == 0


@pytest.mark.parametrize(
    ("ids", "images", "message"),
    [
        ([[IMAGE, 7]], [image_of(2)], "1 image placeholders'; accepted: 2, one for each visual token"),
        ([[IMAGE, IMAGE, VIDEO]], [image_of(2), image_of(2, "frame")], "1 video placeholders'; accepted: 2"),
        ([[IMAGE, 8], [IMAGE, 7]], [image_of(2)], "an image spread over two prompts"),
        ([[IMAGE, 8, IMAGE]], [image_of(2)], "text inside an image"),
    ],
)
def test_placeholders_must_match_the_images(ids, images, message):
    with pytest.raises(ParameterError, match="^input_ids: got") as error:
        prompts_of(ids).place(images, count, IMAGE, VIDEO)
    assert message in one_line(error)


def test_ids_and_mask_are_checked():
    with pytest.raises(ParameterError, match="input_ids: got 'NoneType'; accepted: a tensor"):
        GivenPrompts({}, PAD, 2)
    with pytest.raises(ParameterError, match=r"attention_mask: got \(1, 1\); accepted: the shape of"):
        prompts_of([[1, 2]], attention_mask=torch.ones(1, 1))


# Rows of an adapter


def test_rows_can_be_read_instead_of_tokens():
    """Means in the places of kept tokens, newlines between them as ever; where the LLM reads them does not change."""
    adapter = adapter_for(*tiny.tiny_next())
    (image,) = adapter.encode(tiny.random_images(1, (24, 24)))  # 6 x 6, and two tiles of 6 x 3
    kept = [torch.tensor([3, 35]), torch.tensor([0]), torch.tensor([17])]
    plain = adapter.gather(image, kept)
    new = torch.stack([torch.full((40,), -1.0), torch.full((40,), -2.0)])
    merged = adapter.gather(image, kept, [new, None, torch.full((1, 40), -3.0)])
    for name in ("numbers", "offsets"):
        assert torch.equal(getattr(merged, name), getattr(plain, name))
    # Behind the reduced image six lines of 3 + 3 tokens and a newline.
    assert merged.numbers.tolist() == [3, 35, 36, 42, 49, 56, 63, 70, 76, 77]
    changed = (merged.rows != plain.rows).any(-1)
    assert changed.nonzero().flatten().tolist() == [0, 1, 8]
    assert merged.rows[changed][:, 0].tolist() == [-1, -2, -3]
    assert torch.equal(merged.rows[-1], adapter.model.model.image_newline)
    assert (merged.n_all, merged.n_positions) == (78, 78)
    with pytest.raises(ParameterError, match=r"views: got \(1, 40\); accepted: the view's \(2, 40\)"):
        adapter.gather(image, kept, [new[:1], None, None])
    with pytest.raises(ParameterError, match="views: got '1 views'; accepted: 3, as the image has"):
        adapter.gather(image, kept, [None])


def test_an_image_that_keeps_nothing_keeps_its_newlines():
    adapter = adapter_for(*tiny.tiny_next())
    (image,) = adapter.encode(tiny.random_images(1, (24, 24)))
    rows = adapter.gather(image, [torch.tensor([], dtype=torch.long)] * 3)
    assert rows.numbers.tolist() == [42, 49, 56, 63, 70, 77]
    assert torch.equal(rows.rows, adapter.model.model.image_newline.expand(6, -1))


@pytest.mark.parametrize("build", [tiny.tiny_llava, tiny.tiny_next, tiny_qwen])
def test_what_is_kept_is_read_where_it_was(build):
    """First-token logits of kept rows are those of `generate` with the same position ids."""
    adapter = adapter_for(*build())
    (image,) = adapter.encode(tiny.random_images(1, (60, 60)))
    rows = adapter.gather(image, [torch.arange(0, view.n_tokens, 2) for view in image.views])
    prompt = adapter.prompt("What does this image show ?")
    batch = Batch([adapter.read_prompt(prompt).filled([rows])])
    output = adapter.model.generate(
        input_ids=batch.input_ids(adapter.image_token_id, 0),
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        **adapter.generation_inputs(batch.visual_rows()),
        max_new_tokens=1,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    found = adapter.first_token_logits(prompt, [rows, rows.rows])
    torch.testing.assert_close(found[:1], output.logits[0], rtol=0, atol=1e-4)
    assert (found[0] - found[1]).abs().max() > 1e-3
