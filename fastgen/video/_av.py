"""PyAV, imported when it is needed, and its errors as ours."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from fastgen.errors import FastgenError

__all__ = ["av_module", "errors"]


def av_module() -> Any:
    """The package ``av``.

    Raises:
        FastgenError: it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise FastgenError(
            f"video needs the package av ({error}): pip install 'fastgen[video]'"
        ) from None
    av.logging.set_level(None)  # damage is counted and reported once, not printed for each packet
    return av


@contextlib.contextmanager
def errors(what: str) -> Iterator[None]:
    """Turns an error of FFmpeg into one line: OSError for files, ValueError for their content."""
    av = av_module()
    try:
        yield
    except av.error.FFmpegError as error:
        text = f"{what}: {error.strerror or error}"
        if isinstance(error, OSError) and error.errno and 0 < error.errno < 200:
            raise OSError(error.errno, os.strerror(error.errno), what) from None
        raise ValueError(text) from None
