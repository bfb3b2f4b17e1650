"""Activation ranges for low precision: what values reach each convolution on real photos."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from fastgen import backends
from fastgen.checkpoint import Checkpoint

__all__ = ["activation_ranges", "calibrate"]

_WITH_WEIGHTS = ("conv", "conv_transpose", "linear")


def calibrate(ckpt: Checkpoint, photos: Iterable[np.ndarray]) -> None:
    """Stores the ranges that :func:`activation_ranges` finds in the checkpoint's metadata."""
    ranges = activation_ranges(ckpt, photos)
    ckpt.meta["activation_ranges"] = {layer: list(pair) for layer, pair in ranges.items()}


def activation_ranges(
    ckpt: Checkpoint, photos: Iterable[np.ndarray]
) -> dict[str, tuple[float, float]]:
    """Measures the input of every convolution and linear layer with the torch backend in fp32.

    Args:
        ckpt: a network that takes one image.
        photos: uint8 RGB arrays (H, W, 3) of any size.

    Returns:
        Node name -> (smallest, largest) input value over all photos.

    Raises:
        ValueError: no photos.
        BackendUnavailable: torch is not installed.
    """
    layers = {n.name: n.inputs[0] for n in ckpt.graph.nodes if n.op in _WITH_WEIGHTS}
    # Outputs may not share names with values, so they get numbers.
    outputs = {f"v{i}": value for i, value in enumerate(dict.fromkeys(layers.values()))}
    probe = replace(ckpt.graph, outputs=outputs)
    runner = backends.get("torch").compile(probe, ckpt.weights, "fp32", None)
    low_in, high_in = ckpt.meta["input_range"]
    name = ckpt.graph.inputs[0].name
    ranges: dict[str, tuple[float, float]] = {}
    for photo in photos:
        height, width = photo.shape[:2]
        rows, columns = backends.padded_size(ckpt.graph, height, width)
        photo = photo[backends.reflect_index(height, rows)]
        photo = photo[:, backends.reflect_index(width, columns)]
        image = photo.transpose(2, 0, 1)[None].astype(np.float32) / 255.0
        values = runner.run({name: image * (high_in - low_in) + low_in})
        for output, value in outputs.items():
            low, high = float(values[output].min()), float(values[output].max())
            old = ranges.get(value, (low, high))
            ranges[value] = (min(low, old[0]), max(high, old[1]))
    runner.close()
    if not ranges:
        raise ValueError("no photos to calibrate with; name a folder with at least one image")
    return {layer: ranges[value] for layer, value in layers.items()}
