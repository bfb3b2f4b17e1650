"""Checkpoints of the ``fast_neural_style`` example of pytorch/examples.

A bare state dict; RGB 0..255 in and out. The published files are older than PyTorch 0.4 and carry
running statistics of instance norms, which were never used: exactly those are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from fastgen import models
from fastgen.checkpoint import Checkpoint
from fastgen.importers._state_dict import blocks_of, fit, width_of

FORMAT = "pytorch/examples fast_neural_style (.pth, .model)"

_LEGACY = re.compile(r"(^|\.)in\d+\.running_(mean|var)$")


def matches(keys: Mapping[str, np.ndarray]) -> bool:
    """Whether these are the weight names of this format."""
    return any(key.startswith("deconv1.conv2d.") for key in keys)


def layer_names(blocks: int) -> dict[str, str]:
    """Their layer -> our node, for the layers that this format and gordicaleksa's share."""
    names = {"in4": "up1_norm", "in5": "up0_norm"}
    for i in range(3):
        names[f"conv{i + 1}.conv2d"] = f"down{i}"
        names[f"in{i + 1}"] = f"down{i}_norm"
    for i in range(blocks):
        for j in (1, 2):
            names[f"res{i + 1}.conv{j}.conv2d"] = f"res{i}_conv{j}"
            names[f"res{i + 1}.in{j}"] = f"res{i}_conv{j}_norm"
    return names


def drop_legacy(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights without the unused running statistics of old instance norms."""
    return {key: value for key, value in state.items() if not _LEGACY.search(key)}


def convert(state: Mapping[str, np.ndarray]) -> Checkpoint:
    """Converts a state dict.

    Raises:
        CheckpointError: missing, unknown or wrongly shaped weights.
    """
    state = drop_legacy(state)
    blocks = blocks_of(state)
    graph = models.create(
        "transformer_net", width=width_of(state, "conv1.conv2d.weight"), blocks=blocks
    )
    # The layers called deconv are ordinary convolutions after a nearest upsampling.
    names = layer_names(blocks) | {
        "deconv1.conv2d": "up1",
        "deconv2.conv2d": "up0",
        "deconv3.conv2d": "out",
    }
    return Checkpoint(graph, fit(state, names, graph))
