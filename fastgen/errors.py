"""Exceptions that fastgen raises on purpose. Everything else is a bug."""

from __future__ import annotations

__all__ = [
    "BackendUnavailable",
    "CheckpointError",
    "FastgenError",
    "GraphError",
    "ImageError",
    "ImplUnavailable",
]


class FastgenError(Exception):
    """Base class of fastgen's own exceptions; the message is one line with the remedy."""


class GraphError(FastgenError, ValueError):
    """A graph that is not well formed, or inputs that do not fit it."""


class CheckpointError(FastgenError, ValueError):
    """A checkpoint file that cannot be used: damaged, foreign, hostile or too new."""


class ImageError(FastgenError, ValueError):
    """An image file that cannot be read or written."""


class BackendUnavailable(FastgenError, RuntimeError):
    """A backend that was named cannot run on this machine; the message says why."""


class ImplUnavailable(FastgenError, RuntimeError):
    """An implementation of an op that was named cannot run here; the message says why."""
