"""Errors after which a process can do nothing more on its GPU."""

from __future__ import annotations

__all__ = ["is_lost"]

# As CUDA says it; torch, Triton and fastgen put different words around it.
_LOST = (
    "illegal memory access",
    "misaligned address",
    "unspecified launch failure",
    "device-side assert",
    "illegal instruction",
    "hardware stack error",
    "invalid program counter",
    "launch timed out",
)


def is_lost(text: str) -> bool:
    """Whether an error says that a kernel has ruined the process's context."""
    return any(words in text for words in _LOST)
