"""Reading checkpoints of other projects; one file per format.

A format's module has ``FORMAT`` (its name for people), ``matches(keys)`` and
``convert(state) -> Checkpoint``. The file is read by ``torch.load(weights_only=True)``: nothing in
it is executed.
"""

from __future__ import annotations

import hashlib
import os
from importlib import import_module
from pathlib import Path
from types import ModuleType

from fastgen.checkpoint import Checkpoint
from fastgen.errors import CheckpointError

__all__ = ["formats", "import_checkpoint"]

_MODULES = ("pytorch_examples", "gordicaleksa")


def _modules() -> list[ModuleType]:
    return [import_module(f"fastgen.importers.{name}") for name in _MODULES]


def formats() -> list[str]:
    """Names of the formats that :func:`import_checkpoint` reads."""
    return [module.FORMAT for module in _modules()]


def import_checkpoint(
    path: str | os.PathLike[str], *, name: str | None = None, licence: str | None = None
) -> Checkpoint:
    """Reads a style network of another project.

    The format is recognised by the names of the weights. Every name and shape must be exactly
    what that project writes; the result computes what the original network computes, with RGB
    0..255 in and out.

    Args:
        path: a ``.pth``, ``.pt`` or ``.model`` file.
        name: style name to store; the file's stem otherwise.
        licence: terms of the weights to store; "not stated" otherwise.

    Returns:
        A checkpoint of a ``transformer_net``.

    Raises:
        CheckpointError: unknown format, missing, unknown or wrongly shaped weights, a file that
            holds more than weights.
        OSError: the file cannot be read.
        ModuleNotFoundError: torch is not installed.
    """
    from fastgen.importers._state_dict import read_state_dict

    path = Path(path)
    state = read_state_dict(path, _supported())
    for module in _modules():
        if module.matches(state):
            try:
                ckpt: Checkpoint = module.convert(state)
            except CheckpointError as error:
                raise CheckpointError(f"{path}: {module.FORMAT}: {error}") from None
            break
    else:
        first = ", ".join(repr(k[:40]) for k in list(state)[:3])
        raise CheckpointError(
            f"{path}: unknown format (weights {first}, ...); supported: {_supported()}"
        )
    ckpt.meta.update(
        kind="style",
        input_range=[0, 255],
        output_range=[0, 255],
        channel_order="rgb",
        style=name if name is not None else path.stem,
        licence=licence if licence is not None else "not stated",
        provenance={
            "format": module.FORMAT,
            "file": path.name,
            "file_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        },
    )
    return ckpt


def _supported() -> str:
    return "; ".join(formats())
