"""tanh and sigmoid of the cpu backend against float64, over all of float32."""

from __future__ import annotations

import numpy as np
import pytest
from cpu_cases import ISAS, image_graph, need_isa

from fastgen.backends.cpu import Runner
from fastgen.graph import Node

# Largest error in units of the last place of the exact result; less than 2^-100 does not count.
# That of tanh is largest right above 0.1, where its series ends: 1 - 2 / (e^2x + 1) cancels there.
ULPS = {"tanh": 16.0, "sigmoid": 3.0}
ERROR = 2.5e-7
TINY = 2.0**-100


def _numbers() -> np.ndarray:
    """All signs and exponents, each with the same 2048 mantissas; infinities, zeros, NaN."""
    rng = np.random.default_rng(11)
    mantissas = np.append(rng.integers(0, 1 << 23, 2044), [0, 1, (1 << 22), (1 << 23) - 1])
    exponents = np.arange(512, dtype=np.uint32)[:, None] << 23  # of both signs
    bits = exponents | mantissas.astype(np.uint32)[None, :]
    return bits.view(np.float32)


def _exact(kind: str, x: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", over="ignore"):  # signalling NaN, large negative numbers
        x = x.astype(np.float64)
        return np.tanh(x) if kind == "tanh" else 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("kind", sorted(ULPS))
@pytest.mark.parametrize("isa", ISAS)
def test_error_over_the_whole_range(isa: str, kind: str) -> None:
    need_isa(isa)
    x = _numbers()
    graph = image_graph(1, Node("y", "activation", ("x",), {"kind": kind}))
    with np.errstate(invalid="ignore"):
        got = Runner(graph, {}, threads=1, isa=isa).run(x[None, None])[0, 0].astype(np.float64)
    exact = _exact(kind, x)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(x))
    number = ~np.isnan(x)
    got, exact = got[number], exact[number]
    ulp = np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)
    error = np.abs(got - exact)
    worst = (error / np.maximum(ulp, TINY))[error > TINY]
    assert worst.max(initial=0) <= ULPS[kind]
    assert error.max() <= ERROR
    assert np.abs(got).max() <= 1
    assert kind == "tanh" or got.min() >= 0


@pytest.mark.parametrize("kind", sorted(ULPS))
@pytest.mark.parametrize("isa", ISAS)
def test_ends_and_zero(isa: str, kind: str) -> None:
    need_isa(isa)
    x = np.zeros((1, 1, 4, 4), np.float32)
    x.flat[:6] = [np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45]
    graph = image_graph(1, Node("y", "activation", ("x",), {"kind": kind}))
    got = Runner(graph, {}, threads=1, isa=isa).run(x).ravel()[:6]
    wanted = [1, -1, 0, 0, 1e-45, -1e-45] if kind == "tanh" else [1, 0, 0.5, 0.5, 0.5, 0.5]
    np.testing.assert_allclose(got, np.array(wanted, np.float32), rtol=0, atol=TINY)
