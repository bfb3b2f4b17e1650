"""Packed weights as objects: pickled, printed, constant, and never mixed up."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fastgen import ops


class _Module(torch.nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *images: torch.Tensor) -> Any:
        return self.function(*images)


def test_packed_weights_pickle_and_print() -> None:
    x = torch.randn(1, 3, 5, 6)
    weights = ops.pack_conv_bn(torch.randn(4, 3, 3, 3), padding=1, impl="ref")
    again = pickle.loads(pickle.dumps(weights))
    assert torch.equal(ops.conv_bn_leaky_relu(x, again), ops.conv_bn_leaky_relu(x, weights))
    assert repr(weights) == (
        "PackedConv(conv_bn_leaky_relu: 3 -> 4 channels, 3x3, stride 1, padding 1 zeros; "
        "float32 for impl 'ref' on cpu)"
    )
    both = ops.pack_conv_concat(torch.randn(4, 5, 3, 3), content_channels=3, padding=1)
    part = pickle.loads(pickle.dumps(both.style_part(torch.randn(1, 2), 5, 6)))
    assert repr(part) == "StylePart(1 style(s), 4 channels, for contents of 6x5)"
    assert "2 style channels" in repr(both)
    assert ops.conv_concat(x, part, part.packed).shape == (1, 4, 5, 6)


def test_packed_weights_are_constants() -> None:
    for kind in (np.ones, torch.ones):
        x, w, b = kind((1, 3, 5, 6)), kind((4, 3, 1, 1)), kind(4)
        weights = ops.pack_conv_bn(w, b, negative_slope=1.0)
        before = ops.conv_bn_leaky_relu(x, weights)
        w[:], b[:] = 7, 7
        assert (ops.conv_bn_leaky_relu(x, weights) == before).all()
        assert (before == 4).all()


def test_packed_weights_do_not_mix_up() -> None:
    # Compiled for one packing, then for another, then the first again.
    torch.compiler.reset()
    x = torch.randn(1, 3, 5, 6)
    a, b = (ops.pack_conv_bn(torch.randn(4, 3, 3, 3)) for _ in range(2))
    function = torch.compile(ops.conv_bn_leaky_relu, backend="aot_eager", fullgraph=True)
    for weights in (a, b, a):
        assert torch.equal(function(x, weights), ops.conv_bn_leaky_relu(x, weights))


def test_an_exported_program_uses_its_own_weights() -> None:
    x = torch.randn(1, 3, 5, 6)
    weights = ops.pack_conv_bn(torch.randn(4, 3, 3, 3), negative_slope=1.0)
    program = torch.export.export(_Module(lambda v: ops.conv_bn_leaky_relu(v, weights)), (x,))
    want = ops.conv_bn_leaky_relu(x, weights)
    constants = [c for c in program.constants.values() if c.dim() == 4]
    assert len(constants) == 1
    program.constants.update({n: c * 2 for n, c in program.constants.items() if c.dim() == 4})
    got = program.module()(x)
    assert torch.allclose(got, want * 2, atol=1e-5)
