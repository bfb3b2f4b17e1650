"""The networks that are measured: the shipped styles' architectures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import fastgen
from fastgen import models
from fastgen.checkpoint import Checkpoint, save_checkpoint
from fastgen.graph import Graph

# Name of a size of the style network -> builder and configuration. A shipped style is called
# PAINTING (half), PAINTING.small or PAINTING.full.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "small": ("compact_net", {}),
    "half": ("transformer_net", {"width": 16}),
    "full": ("transformer_net", {"width": 32}),
}
_SPREAD = 50.0  # standard deviation of a random network's output, on 0..255


def names() -> list[str]:
    """The sizes of the style network, then every other style model as it is by default."""
    known = {builder for builder, _ in ARCHITECTURES.values()}
    return [*ARCHITECTURES, *(name for name in models.list_models("style") if name not in known)]


def random_checkpoint(graph: Graph, path: Path) -> Path:
    """Writes a checkpoint with random weights of sensible scale; returns ``path``.

    Convolutions get He's standard deviation, norms a gain near 1, so that activations neither
    vanish nor overflow and every kernel does its ordinary work. The last convolution fills the
    output's range, so that an error counts as much as it would in a picture.
    """
    rng = np.random.default_rng(0)
    weights = {}
    for name, shape in graph.weight_shapes().items():
        if name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
            weights[name] = rng.uniform(0.8, 1.2, shape).astype(np.float32)
        elif len(shape) == 1:
            weights[name] = rng.normal(0, 0.1, shape).astype(np.float32)
        else:
            scale = (2 / np.prod(shape[1:])) ** 0.5
            weights[name] = (rng.standard_normal(shape) * scale).astype(np.float32)
    for value in graph.outputs.values():
        if f"{value}.weight" in weights:
            weights[f"{value}.weight"] *= np.float32(_SPREAD)
        if f"{value}.bias" in weights:
            weights[f"{value}.bias"] += np.float32(127.5)
    meta = {
        "kind": "style",
        "style": path.stem,
        "input_range": [0, 255],
        "output_range": [0, 255],
        "channel_order": "rgb",
        "licence": "CC0-1.0",
        "provenance": {"weights": "random, for measuring only"},
    }
    save_checkpoint(path, Checkpoint(graph, weights, meta), dtype="float32")
    return path


def network(architecture: str, folder: Path) -> tuple[str, str]:
    """A checkpoint of this architecture: a shipped one, else a random one in ``folder``.

    Returns:
        What to give to ``Stylizer``, and what to say about the weights.
    """
    builder, config = ARCHITECTURES[architecture]
    graph = models.create(builder, **config)
    suffix = "" if architecture == "half" else f".{architecture}"
    for name in sorted(fastgen.list_styles()):
        if ("." in name and not suffix) or not name.endswith(suffix):
            continue
        if fastgen.load_style(name).graph == graph:
            return name, f"shipped style {name}"
    path = folder / f"random_{architecture}.safetensors"
    if not path.exists():
        random_checkpoint(graph, path)
    return str(path), "random weights (no such trained style is shipped)"
