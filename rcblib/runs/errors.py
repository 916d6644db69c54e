"""Read errors of other libraries: what they say in one line, and whether memory is what was lacking."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """Shorten an error of another library to its first line, at most 160 characters."""
    return (str(error).splitlines() or [type(error).__name__])[0][:160]


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether too little memory was found, on a device or in the machine's own; torch need not be there."""
    is_torchs = type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error)
    return is_torchs or isinstance(error, MemoryError)
