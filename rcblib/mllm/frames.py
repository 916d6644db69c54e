"""Preprocess video frames as LLaVA-OneVision's own processor does, with torch alone.

The processor of `transformers` resizes frames with torchvision, which need not be installed, and without it not even
OneVision's processor for images and text can be made. Here both exist without it, and give the same values.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from transformers import BatchFeature
from transformers.image_utils import ChannelDimension, PILImageResampling, infer_channel_dimension_format
from transformers.video_processing_utils import VideoProcessorMixin
from transformers.video_utils import make_batched_videos

from rcblib.mllm.processors import PilProcessor
from rcblib.records import ParameterError


class FrameProcessor(VideoProcessorMixin):
    """Resize and normalise every frame of some videos.

    Settings, their names and their files are those of ``LlavaOnevisionVideoProcessor``: frames of any size become
    ``size``, whatever their shape.

    Raises
    ------
    ParameterError
        On settings that OneVision does not use: a crop, or a size that is no height and width.

    Notes
    -----
    Source: ``LlavaOnevisionVideoProcessor``. Bicubic with antialiasing on 8-bit values, as there, so that results
    are equal bit by bit on a CPU.
    """

    resample = PILImageResampling.BICUBIC
    image_mean = (0.48145466, 0.4578275, 0.40821073)
    image_std = (0.26862954, 0.26130258, 0.27577711)
    size = {"height": 384, "width": 384}  # noqa: RUF012  (a setting that transformers copies)
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    do_sample_frames = False

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        if getattr(self, "do_center_crop", None):
            raise ParameterError("do_center_crop", True, "none, as in LLaVA-OneVision")
        if not {"height", "width"} <= dict(self.size).keys():
            raise ParameterError("size", dict(self.size), "a height and a width")
        if self.resample != PILImageResampling.BICUBIC:
            raise ParameterError("resample", self.resample, "bicubic (3), as in LLaVA-OneVision")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings under the name of the processor in `transformers`, which can then read them."""
        names = (
            "size", "resample", "image_mean", "image_std", "rescale_factor", "do_resize", "do_rescale",
            "do_normalize", "do_convert_rgb", "do_sample_frames",
        )  # fmt: skip
        settings = {name: getattr(self, name) for name in names}
        settings |= {"size": dict(self.size), "resample": int(self.resample)}
        return settings | {"video_processor_type": "LlavaOnevisionVideoProcessor"}

    def preprocess(self, videos: Any, return_tensors: str | None = None, **settings: Any) -> BatchFeature:
        """Preprocess videos, each a list of PIL images or an array of frames in 8 bits.

        Parameters
        ----------
        videos : list
            Videos, or one video; frames of a video have one size.
        return_tensors : str, optional
            ``"pt"`` stacks the videos, which then have as many frames.
        **settings
            Settings that differ from this object's for this call, such as ``do_normalize=False``.

        Returns
        -------
        transformers.BatchFeature
            ``pixel_values_videos``: for each video ``(n_frames, 3, height, width)`` float32.
        """
        chosen = {name: value for name, value in settings.items() if value is not None}
        _check_frames(videos)
        frames = [self._frames(video, chosen) for video in make_batched_videos(videos)]
        return BatchFeature({"pixel_values_videos": frames}, tensor_type=return_tensors)

    def _frames(self, video: Any, chosen: dict[str, Any]) -> torch.Tensor:
        def setting(name: str) -> Any:
            return chosen.get(name, getattr(self, name))

        frames = torch.from_numpy(np.array(video)) if not isinstance(video, torch.Tensor) else video
        if infer_channel_dimension_format(frames) == ChannelDimension.LAST:
            frames = frames.permute(0, 3, 1, 2).contiguous()
        if frames.shape[1] == 1:
            frames = frames.expand(-1, 3, -1, -1)
        size = (self.size["height"], self.size["width"])
        if setting("do_resize") and tuple(frames.shape[-2:]) != size:
            frames = F.interpolate(frames, size, mode="bicubic", align_corners=False, antialias=True)
        factor = setting("rescale_factor") if setting("do_rescale") else 1.0
        if not setting("do_normalize"):
            return frames.float() * factor
        mean, std = (
            torch.tensor(setting(name)).view(-1, 1, 1) * (1 / factor) for name in ("image_mean", "image_std")
        )
        return (frames.float() - mean) / std


def _check_frames(videos: Any) -> None:
    """Raise where a list of videos is empty, or a video of it."""
    if isinstance(videos, list | tuple):
        if not videos or any(isinstance(video, list | tuple) and not video for video in videos):
            raise ParameterError("videos", "no frames", "one frame or more of every video")


class LlavaOnevisionProcessor(PilProcessor, transformers.LlavaOnevisionProcessor):
    """Process text, images and videos for LLaVA-OneVision without torchvision.

    Images are preprocessed with PIL, videos by `FrameProcessor`. It bears the name of the class in `transformers`,
    which a saved folder carries: such a folder loads in either.
    """

    frame_processor = FrameProcessor

    def __call__(self, *given: Any, videos: Any = None, **more: Any) -> BatchFeature:
        """Do what the class in `transformers` does; videos without frames are refused first."""
        _check_frames(videos)
        return super().__call__(*given, videos=videos, **more)

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        """Check the type of a part; for videos without looking for a class that needs torchvision."""
        if argument_name != "video_processor":
            return super().check_argument_for_proper_class(argument_name, argument)
        if not isinstance(argument, VideoProcessorMixin):
            raise TypeError(f"video_processor: got {type(argument).__name__}; accepted: FrameProcessor")
        return VideoProcessorMixin
