"""Checkpoints of gordicaleksa/pytorch-neural-style-transfer-johnson.

The weights lie under ``state_dict`` beside training metadata. The network takes and gives RGB
normalised with ImageNet's mean m and deviation s. Both are folded into the first and the last
convolution, so that the result takes and gives 0..255:

    conv1((x/255 - m)/s):  W' = W/(255 s) per input channel,  b' = b - sum_{c,k,l} W_ckl m_c/s_c
    255 (y s + m):         W' = 255 s W per output channel,   b' = 255 (s b + m)

Folding the input is exact because reflection padding repeats pixels, and so commutes with a shift.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fastgen import models
from fastgen.checkpoint import Checkpoint
from fastgen.importers._state_dict import blocks_of, fit, width_of
from fastgen.importers.pytorch_examples import drop_legacy, layer_names

FORMAT = "gordicaleksa/pytorch-neural-style-transfer-johnson (.pth)"

_MEAN = np.array([0.485, 0.456, 0.406])
_STD = np.array([0.229, 0.224, 0.225])


def matches(keys: Mapping[str, np.ndarray]) -> bool:
    """Whether these are the weight names of this format."""
    return any(key.startswith("up1.conv2d.conv2d.") for key in keys)


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
    names = layer_names(blocks) | {
        "up1.conv2d.conv2d": "up1",
        "up2.conv2d.conv2d": "up0",
        "up3.conv2d": "out",
    }
    weights = fit(state, names, graph)
    first = weights["down0.weight"].astype(np.float64)
    last = weights["out.weight"].astype(np.float64)
    shift = np.einsum("oikl,i->o", first, _MEAN / _STD)
    folded = {
        "down0.weight": first / (255.0 * _STD)[None, :, None, None],
        "down0.bias": weights["down0.bias"] - shift,
        "out.weight": last * (255.0 * _STD)[:, None, None, None],
        "out.bias": 255.0 * (weights["out.bias"] * _STD + _MEAN),
    }
    weights.update({key: value.astype(np.float32) for key, value in folded.items()})
    return Checkpoint(graph, weights)
