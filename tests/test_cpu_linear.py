"""Linear layers of the cpu backend: every number of images, inputs and outputs."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from cpu_cases import ISAS, need_isa, random_weights

from fastgen.backends.cpu import Runner
from fastgen.graph import Dim, Graph, Input, Node

# One image at a time, a register tile and one more, a part and one more.
IMAGES = (1, 2, 3, 14, 15, 29, 64, 65, 150)
# Parts of pairs, of vectors, of what one call takes, and of two of them.
INPUTS = (1, 2, 15, 16, 33, 511, 513, 1040)
OUTPUTS = (1, 15, 16, 17, 33, 64, 280)


def _layer(inputs: int, outputs: int, act: str = "leaky_relu", bias: bool = True) -> Graph:
    nodes = (
        Node("y", "linear", ("x",), {"out_features": outputs, "bias": bias}),
        Node("a", "activation", ("y",), {"kind": act, "slope": 0.1}),
    )
    return Graph("layer", (Input("x", (Dim("N"), inputs)),), nodes, {"a": "a"})


def _round(x: np.ndarray) -> np.ndarray:
    """The nearest bfloat16, ties to even; no subnormal numbers, no NaN."""
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16
    return rounded.astype(np.uint32).view(np.float32)


def _expected(weights: dict[str, np.ndarray], x: np.ndarray, half: bool) -> np.ndarray:
    w = weights["y.weight"]
    w, x = (_round(w), _round(x)) if half else (w, x)
    y = x.astype(np.float64) @ w.T.astype(np.float64) + weights.get("y.bias", 0.0)
    return np.where(y < 0, y * np.float64(np.float32(0.1)), y)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("isa", ISAS)
def test_all_sizes(isa: str, precision: str) -> None:
    need_isa(isa)
    rng = np.random.default_rng(5)
    kept = 2.0**-8 if precision == "bf16" else 0.0  # the result lies in memory as bfloat16, too
    sizes = [(k, o, i % 2) for i, (k, o) in enumerate(itertools.product(INPUTS, OUTPUTS))]
    for at, (inputs, outputs, threads) in enumerate(sizes):
        graph = _layer(inputs, outputs, bias=at % 3 > 0)
        weights = random_weights(graph, at)
        runner = Runner(graph, weights, threads=1 + threads, isa=isa, precision=precision)
        for images in (IMAGES[at % len(IMAGES)], IMAGES[(at * 2 + 1) % len(IMAGES)]):
            x = rng.standard_normal((images, inputs)).astype(np.float32)
            expected = _expected(weights, x, precision == "bf16")
            bound = 2e-6 * max(1.0, inputs**0.5 / 4) + kept * np.abs(expected)
            assert (np.abs(runner.run(x) - expected) <= bound).all(), (images, inputs, outputs)


@pytest.mark.parametrize("isa", ISAS)
def test_what_lies_behind_an_odd_number_of_inputs_does_not_count(isa: str) -> None:
    need_isa(isa)
    graph = _layer(15, 20)
    weights = random_weights(graph)
    for images in (1, 3):
        x = np.ones((images, 15), np.float32)
        runner = Runner(graph, weights, threads=1, isa=isa, precision="bf16")
        first = runner.run(x)
        runner.run(np.full((images, 15), np.nan, np.float32))  # left in the memory of the run
        np.testing.assert_array_equal(runner.run(x), first)


@pytest.mark.parametrize("isa", ISAS)
def test_only_the_image_that_has_nan_gives_nan(isa: str) -> None:
    need_isa(isa)
    graph = _layer(40, 24)
    x = np.ones((30, 40), np.float32)
    x[17, 3] = np.nan
    got = Runner(graph, random_weights(graph), threads=2, isa=isa).run(x)
    np.testing.assert_array_equal(np.isnan(got).all(1), np.arange(30) == 17)
    np.testing.assert_array_equal(np.isnan(got).any(1), np.arange(30) == 17)


@pytest.mark.parametrize("threads", [2, 3, 16])
def test_threads_share_it_evenly_or_not(threads: int) -> None:
    need_isa("scalar")
    graph = _layer(70, 50)
    weights = random_weights(graph)
    x = np.random.default_rng(0).standard_normal((37, 70)).astype(np.float32)
    alone = Runner(graph, weights, threads=1).run(x)
    shared: Any = Runner(graph, weights, threads=threads)
    np.testing.assert_allclose(shared.run(x), alone, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(shared.run(x), shared.run(x))
