"""Talk to multimodal LLMs: the only user of `transformers`, one adapter per model family."""

from rcblib.mllm.base import Adapter
from rcblib.mllm.loading import ADAPTERS, adapter_for, load_model

__all__ = ["ADAPTERS", "Adapter", "adapter_for", "load_model"]
