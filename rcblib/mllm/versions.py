"""Say what differs between the releases of transformers that are supported."""

from __future__ import annotations

import transformers
from packaging.version import Version

_RELEASE = Version(transformers.__version__)

CACHE = "cache" if _RELEASE >= Version("5.24") else "past_key_values"
"""What models and their outputs call the key-value cache."""

READS_IMAGES_IN_CHUNKS = _RELEASE >= Version("5.23")
"""Whether `generate` gives each chunk of a prompt its images; releases before answer without having seen them."""
