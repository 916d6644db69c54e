"""Check embeddings of questions and patches by a CLIP model, and what is said where there is none that fits."""

import pytest
import tiny
import torch
from published_rules import cosine
from tiny_clip import text_tower
from transformers import CLIPModel, CLIPTextModelWithProjection, CLIPVisionModelWithProjection

from rcblib.mllm import adapter_for
from rcblib.mllm.text_tower import TextTower
from rcblib.pruners import PRUNERS, PruningContext
from rcblib.records import ParameterError, UnsupportedModelError, VisualView

SHORT = "Is there a cat on the left ?"
LONG = " ".join(["What does this image show ?"] * 4)


@pytest.fixture(scope="module")
def tower():
    return TextTower(text_tower().name)


@pytest.mark.parametrize(("text", "n_pieces"), [(SHORT, 1), (LONG, 2)])
def test_texts_are_cut_into_pieces_that_the_tower_reads(tower, text, n_pieces):
    ids = tower.tokenizer(text).input_ids
    reference = CLIPTextModelWithProjection.from_pretrained(text_tower().name)
    found = tower.embed_text(text)
    assert found.shape == (n_pieces, 8)
    for number, row in enumerate(found):
        piece = ids[16 * number : 16 * (number + 1)]
        padded = torch.tensor([piece + [0] * (16 - len(piece))])
        mask = torch.tensor([[1] * len(piece) + [0] * (16 - len(piece))])
        with torch.no_grad():
            expected = reference(input_ids=padded, attention_mask=mask).text_embeds[0]
        torch.testing.assert_close(row, expected)


def test_patches_are_embedded_as_clip_embeds_its_cls(tower):
    """Of the state behind the last layer, [CLS] becomes CLIP's embedding of the picture."""
    model = CLIPVisionModelWithProjection.from_pretrained(text_tower().name)
    pixels = torch.randn(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = model(pixels, output_hidden_states=True)
    torch.testing.assert_close(tower.embed_patches(output.hidden_states[-1][0])[0], output.image_embeds[0])


def test_relevance_is_the_mean_cosine_turned_round(tower):
    model, processor = tiny.tiny_llava()
    adapter = adapter_for(model, processor)
    states = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    view = VisualView(torch.zeros(5, 4), (1, 5), {"hidden_states": states})
    prompt = torch.tensor(adapter.prompt_ids(adapter.prompt(LONG)))
    context = PruningContext(adapter=adapter, prompt_ids=prompt)
    pruner = PRUNERS["cdpruner"].make({"retain_ratio": 0.5, "text_tower": text_tower().name})
    patches, pieces = tower.embed_patches(states), tower.embed_text(context.question)
    expected = [-sum(cosine(patch, piece) for piece in pieces) / len(pieces) for patch in patches]
    assert len(pieces) > 1
    torch.testing.assert_close(pruner.relevance((view,), context), torch.tensor(expected))


def test_another_encoder_or_no_model_is_one_line(tower, tmp_path):
    config = CLIPModel.from_pretrained(text_tower().name).config
    config.vision_config.num_hidden_layers = 2
    CLIPModel(config).save_pretrained(tmp_path)
    tiny.stand_in_tokenizer(tiny.TINY_IDS).save_pretrained(tmp_path)
    model = tiny.tiny_llava()[0]
    with pytest.raises(ParameterError, match="one whose vision encoder is CLIP's, 32 wide with 2 layers"):
        TextTower(str(tmp_path)).check_fits(adapter_for(model))
    tower.check_fits(adapter_for(model))
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        UnsupportedModelError, match="text_tower: got .*; accepted: a CLIP model in safetensors"
    ) as error:
        TextTower(str(tmp_path / "empty"))
    assert "\n" not in str(error.value)
