"""Check that frames are preprocessed as OneVision's own video processor does, with and without torchvision."""

import numpy as np
import pytest
import tiny
import torch
from transformers import (
    LlavaOnevisionImageProcessorPil,
    LlavaOnevisionVideoProcessor,
    SiglipImageProcessorPil,
)

from rcblib.mllm.frames import FrameProcessor, LlavaOnevisionProcessor
from rcblib.records import ParameterError

SIGLIP = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def processor(**settings):
    return LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessorPil(**SIGLIP),
        tokenizer=tiny.stand_in_tokenizer(tiny.TINY_IDS),
        video_processor=FrameProcessor(**SIGLIP),
        num_image_tokens=729,
        vision_feature_select_strategy="full",
        chat_template="{{ messages }}",
    )


@pytest.mark.parametrize("size", [(100, 60), (384, 384), (700, 500)])
@pytest.mark.parametrize("settings", [{}, SIGLIP])
def test_values_are_those_of_the_video_processor(size, settings):
    pytest.importorskip("torchvision", reason="the video processor of transformers needs it")
    frames = tiny.random_images(2, size)
    theirs = LlavaOnevisionVideoProcessor(**settings)([frames], return_tensors="pt")
    ours = FrameProcessor(**settings)([frames], return_tensors="pt")
    assert torch.equal(ours["pixel_values_videos"], theirs["pixel_values_videos"])


def test_values_are_those_of_the_image_processor_to_rounding():
    """PIL and torch resize 8-bit images by the same rule and round apart, by two steps of 256 at most."""
    frames = tiny.random_images(3, (100, 60))
    ours = FrameProcessor(**SIGLIP)([frames], return_tensors="pt")["pixel_values_videos"]
    size = {"height": 384, "width": 384}
    by_pil = SiglipImageProcessorPil(size=size, resample=3)(frames, return_tensors="pt")["pixel_values"]
    assert ours.shape == (1, 3, 3, 384, 384)
    torch.testing.assert_close(ours[0], by_pil, rtol=0, atol=2.01 / 127.5)
    assert (ours[0] - by_pil).abs().mean() < 0.1 / 127.5


def test_frames_are_mapped_to_the_range_that_mean_and_deviation_say():
    frames = np.stack([np.zeros((384, 384, 3), np.uint8), np.full((384, 384, 3), 255, np.uint8)])
    values = FrameProcessor(**SIGLIP)([frames], return_tensors="pt")["pixel_values_videos"][0]
    assert values[0].unique().tolist() == [-1]
    assert values[1].unique().tolist() == [1]
    plain = FrameProcessor(**SIGLIP)([frames], do_normalize=False, return_tensors="pt")[
        "pixel_values_videos"
    ][0]
    assert plain[1].unique().tolist() == [1]


def test_a_saved_processor_is_one_of_transformers_and_comes_back(tmp_path):
    saved = processor()
    saved.save_pretrained(tmp_path)
    loaded = LlavaOnevisionProcessor.from_pretrained(tmp_path)
    assert saved.to_dict()["processor_class"] == "LlavaOnevisionProcessor"
    assert saved.video_processor.to_dict()["video_processor_type"] == "LlavaOnevisionVideoProcessor"
    assert loaded.chat_template == saved.chat_template
    assert loaded.num_image_tokens == 729
    assert type(loaded.image_processor).__name__ == "LlavaOnevisionImageProcessorPil"
    frames = tiny.random_images(2)
    before, after = (each.video_processor([frames], return_tensors="pt") for each in (saved, loaded))
    assert torch.equal(before["pixel_values_videos"], after["pixel_values_videos"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": {"shortest_edge": 384}}, "size: got"),
        ({"do_center_crop": True}, "do_center_crop: got True"),
        ({"resample": 2}, "resample: got 2"),
    ],
)
def test_other_settings_are_refused(settings, message):
    with pytest.raises(ParameterError, match=message):
        FrameProcessor(**settings)


@pytest.mark.parametrize("videos", [[[]], [], [[], tiny.random_images(1)]])
def test_videos_without_frames_are_one_line(videos):
    with pytest.raises(
        ParameterError, match="^videos: got 'no frames'; accepted: one frame or more of every"
    ):
        processor()(text=["<video>"], videos=videos)


def test_parts_of_another_kind_are_refused():
    with pytest.raises(TypeError, match="video_processor: got NoneType"):
        LlavaOnevisionProcessor(
            image_processor=LlavaOnevisionImageProcessorPil(),
            tokenizer=tiny.stand_in_tokenizer(tiny.TINY_IDS),
            num_image_tokens=729,
        )
