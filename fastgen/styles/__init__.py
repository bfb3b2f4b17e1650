"""The shipped styles.

A style is a checkpoint in this folder, ``<name>.safetensors``, with its card ``<name>.json``
beside it. The name is ``painting`` (half width, the default), ``painting.small`` (for real time on
a CPU) or ``painting.full``.
"""

from __future__ import annotations

import difflib
import fnmatch
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastgen.checkpoint import Checkpoint

__all__ = ["list_styles", "load_style", "style_card", "style_path"]

_FOLDER = Path(__file__).parent
_SUFFIX = ".safetensors"
_SIZES = ("", "small", "full")  # the order in lists


def _key(name: str) -> tuple[str, int, str]:
    painting, _, size = name.partition(".")
    return painting, _SIZES.index(size) if size in _SIZES else len(_SIZES), name


def list_styles(pattern: str = "*") -> list[str]:
    """Names of the shipped styles.

    Args:
        pattern: a shell pattern, e.g. ``"*.small"``.

    Returns:
        Names sorted by painting, for each the default first, then small, then full.
    """
    if not isinstance(pattern, str):
        raise TypeError(f"pattern is of type {type(pattern).__name__}, must be a string")
    names = [f.removesuffix(_SUFFIX) for f in os.listdir(_FOLDER) if f.endswith(_SUFFIX)]
    return sorted(fnmatch.filter(names, pattern), key=_key)


def style_path(style: str | os.PathLike[str]) -> Path:
    """The checkpoint file of a shipped style or of a path.

    Raises:
        ValueError: neither the name of a shipped style nor a file; names the nearest style.
        FileNotFoundError: a path that does not exist.
    """
    if isinstance(style, str):
        shipped = list_styles()
        if style in shipped:
            return _FOLDER / (style + _SUFFIX)
        is_path = os.sep in style or style.endswith(_SUFFIX) or os.path.isfile(style)
        if not is_path:
            raise ValueError(_unknown(style, shipped))
    elif not isinstance(style, os.PathLike):
        kind = type(style).__qualname__
        raise TypeError(f"style is of type {kind}, must be a name, a path or a Checkpoint")
    path = Path(style)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    return path


def _unknown(name: str, shipped: list[str]) -> str:
    text = f"unknown style {name[:60]!r}"
    near = difflib.get_close_matches(name.lower().replace("-", "_").replace(" ", "_"), shipped, 1)
    if not near and name:
        # Part of a name ("starry") is further away than difflib's cutoff allows.
        near = [s for s in shipped if name.lower() in s][:1]
    if near:
        text += f"; did you mean {near[0]!r}?"
    else:
        text += "; give the path of a .safetensors checkpoint or one of `fastgen styles`"
    return text


def load_style(name_or_path: str | os.PathLike[str] | Checkpoint) -> Checkpoint:
    """Loads a style's checkpoint.

    Args:
        name_or_path: name of a shipped style, or path of a ``.safetensors`` file. A checkpoint is
            checked and returned as it is.

    Raises:
        ValueError: unknown name (the nearest is suggested), or a checkpoint of another kind.
        CheckpointError: the file is damaged or foreign.
        OSError: the file cannot be read.
    """
    from fastgen.checkpoint import Checkpoint, _check_meta, load_checkpoint
    from fastgen.errors import CheckpointError

    if isinstance(name_or_path, Checkpoint):
        ckpt, where = name_or_path, "checkpoint"
        _check_meta(where, ckpt.meta)  # files are checked when they are read
    else:
        path = style_path(name_or_path)
        ckpt, where = load_checkpoint(path), str(path)
    kind = ckpt.meta.get("kind")
    if kind != "style":
        raise CheckpointError(f"{where}: is of the kind {kind!r}, a 'style' is needed here")
    shape = ckpt.graph.inputs[0].shape
    if len(ckpt.graph.inputs) != 1 or len(shape) != 4 or shape[1] != 3:
        raise CheckpointError(f"{where}: its graph does not take one RGB image, a style must")
    if len(ckpt.graph.outputs) != 1:
        outputs = ", ".join(ckpt.graph.outputs)
        raise CheckpointError(f"{where}: its graph has the outputs {outputs}; a style has one")
    image = ckpt.graph.smallest_shapes()[ckpt.graph.inputs[0].name]
    result = ckpt.graph.infer_shapes(ckpt.graph.smallest_shapes())
    (value,) = ckpt.graph.outputs.values()
    if result[value] != image:
        raise CheckpointError(
            f"{where}: its graph turns the shape {image} into {result[value]}; a style keeps it"
        )
    return ckpt


def style_card(name: str) -> dict[str, Any]:
    """The card of a shipped style: painting, photos, loss network, their terms, training, numbers.

    Returns:
        The card's JSON object; empty when there is no card.
    """
    path = style_path(name).with_name(f"{name}.json")
    if not path.is_file():
        return {}
    return json.loads(path.read_text(encoding="utf-8"))
