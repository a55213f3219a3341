"""Recognition of out-of-memory errors, whichever library raises them."""

from typing import Final

TORCH_SAYS: Final = ("can't allocate memory", "Cannot allocate memory", "out of memory")
"""Texts in torch's plain RuntimeError: "DefaultCPUAllocator: can't allocate memory: …", "CUDA out of memory. …"."""


def out_of_memory(error: BaseException) -> bool:
    """Return whether `error` means that memory ran out, which implies nothing about the upload's bytes."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in TORCH_SAYS)
