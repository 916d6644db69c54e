"""Read errors of other libraries: what they say in one line, and whether memory is what was lacking."""

from __future__ import annotations

_N_CHARACTERS = 200


def in_one_line(error: BaseException) -> str:
    """Write what an error of another library says in one line of at most 200 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _N_CHARACTERS else f"{text[: _N_CHARACTERS - 2]} …"


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether too little memory was found, on a device or in the machine's own; torch need not be there."""
    is_torchs = type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error)
    return is_torchs or isinstance(error, MemoryError)
