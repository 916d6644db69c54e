"""Read the parts of a processor from a folder or repository without torchvision, which need not be installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from transformers import AutoImageProcessor, AutoTokenizer
from transformers.video_processing_utils import VideoProcessorMixin


class PilProcessor:
    """Preprocess images with PIL, and videos by a given class or not at all.

    It comes first among the bases of a processor, before the processor's class in `transformers`, which would read an
    image or video processor that needs torchvision.

    Attributes
    ----------
    frame_processor : type of VideoProcessorMixin, optional
        Reads the settings of videos; ``None`` where the constructor takes an image processor and a tokenizer only.
    """

    frame_processor: ClassVar[type[VideoProcessorMixin] | None] = None

    @classmethod
    def _get_arguments_from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, processor_dict: Any = None, **options: Any
    ) -> list[Any]:
        """Read the parts from a folder or repository, in the order of the constructor."""
        source = pretrained_model_name_or_path
        options.pop("subfolder", None)
        parts = [
            AutoImageProcessor.from_pretrained(source, backend="pil", **options),
            AutoTokenizer.from_pretrained(source, **options),
        ]
        if cls.frame_processor is not None:
            parts.append(cls.frame_processor.from_pretrained(source, **options))
        return parts
