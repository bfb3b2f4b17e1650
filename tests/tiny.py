"""A style of random weights that runs in milliseconds, for tests that only need some style."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastgen import Checkpoint, models, save_checkpoint
from fastgen.graph import Graph


def tiny_model(name: str) -> tuple[Graph, dict[str, tuple[int, ...]]]:
    """A registered model of two channels, and shapes of its inputs for a batch of two."""
    small = {"width": 2} | ({"blocks": 1} if name in models.list_models("style") else {})
    graph = models.create(name, **small)
    shapes = graph.smallest_shapes()
    if "image" in shapes:  # any size: one that is not a square
        shapes["image"] = (1, 3, 16, 20)
    return graph, {key: (2, *shape[1:]) for key, shape in shapes.items()}


def tiny_checkpoint(seed: int = 0, kind: str = "style", name: str = "tiny") -> Checkpoint:
    """A compact network of two channels whose output spreads over 0..255 and beyond."""
    graph = models.create("compact_net", width=2, blocks=1)
    rng = np.random.default_rng(seed)
    weights = {}
    for key, shape in graph.weight_shapes().items():
        if key.endswith("_norm.weight"):
            weights[key] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        else:
            weights[key] = rng.normal(0.0, 0.3, shape).astype(np.float32)
    weights["out.weight"] *= 30.0
    weights["out.bias"] += 128.0
    meta = {
        "kind": kind,
        "input_range": [0, 255],
        "output_range": [0, 255],
        "channel_order": "rgb",
        "style": name,
        "licence": "none",
    }
    return Checkpoint(graph, weights, meta)


def save_tiny(folder: Path, name: str = "tiny", **config: object) -> Path:
    """Writes such a checkpoint and returns its path."""
    path = folder / f"{name}.safetensors"
    save_checkpoint(path, tiny_checkpoint(name=name, **config), dtype="float32")  # type: ignore[arg-type]
    return path
