"""The shipped image generators: ``<name>.safetensors`` in this folder, its card beside it."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastgen.checkpoint import Checkpoint

__all__ = ["generator_path", "list_generators", "load_generator"]

_FOLDER = Path(__file__).parent
_SUFFIX = ".safetensors"


def list_generators() -> list[str]:
    """Names of the shipped generators, sorted."""
    return sorted(f.removesuffix(_SUFFIX) for f in os.listdir(_FOLDER) if f.endswith(_SUFFIX))


def generator_path(model: str | os.PathLike[str]) -> Path:
    """The checkpoint file of a shipped generator or of a path.

    Raises:
        ValueError: neither the name of a shipped generator nor a file.
        FileNotFoundError: a path that does not exist.
        TypeError: neither a string nor a path.
    """
    if isinstance(model, str):
        shipped = list_generators()
        if model in shipped:
            return _FOLDER / (model + _SUFFIX)
        if not (os.sep in model or model.endswith(_SUFFIX) or os.path.isfile(model)):
            near = difflib.get_close_matches(model.lower().replace("_", "-"), shipped, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"shipped: {', '.join(shipped)}"
            raise ValueError(
                f"unknown model {model[:60]!r}; {hint} (or give a .safetensors checkpoint)"
            )
    elif not isinstance(model, os.PathLike):
        kind = type(model).__qualname__
        raise TypeError(f"model is of type {kind}, must be a name, a path or a Checkpoint")
    path = Path(model)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    return path


def load_generator(name_or_path: str | os.PathLike[str] | Checkpoint) -> Checkpoint:
    """Loads a generator's checkpoint.

    Args:
        name_or_path: name of a shipped generator, path of a ``.safetensors`` file, or a checkpoint
            (which is checked and returned).

    Raises:
        ValueError: unknown name, or a checkpoint of another kind.
        CheckpointError: the file is damaged or foreign.
        OSError: the file cannot be read.
    """
    from fastgen.checkpoint import Checkpoint, load_checkpoint

    if isinstance(name_or_path, Checkpoint):
        ckpt, where = name_or_path, "checkpoint"
    else:
        path = generator_path(name_or_path)
        ckpt, where = load_checkpoint(path), str(path)
    if ckpt.meta.get("kind") != "saae":
        raise ValueError(
            f"{where}: its kind is {str(ckpt.meta.get('kind'))[:40]!r}, must be 'saae'; "
            "fastgen.stylize runs styles"
        )
    return ckpt
