"""Explain visual redundancy in multimodal LLMs: probe tokens, build codebooks, prune and measure."""

__version__ = "0.1.0"
