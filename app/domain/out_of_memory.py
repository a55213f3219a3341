"""Running out of memory, however a library says it."""

from typing import Final

TORCH_SAYS: Final = ("can't allocate memory", "Cannot allocate memory", "out of memory")
"""torch raises a plain RuntimeError: "DefaultCPUAllocator: can't allocate memory: …", "CUDA out of memory. …"."""


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that there was no memory, and nothing about the upload's bytes."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in TORCH_SAYS)
