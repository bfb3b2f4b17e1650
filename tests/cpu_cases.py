"""What the tests of the cpu backend share: instruction sets, weights, one-op graphs, references."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastgen.errors import GraphError
from fastgen.graph import Dim, Graph, Input, Node

ISAS = ("scalar", "avx2", "avx512", "avx512_vnni", "avx512_bf16")


def need_isa(isa: str) -> None:
    """Skips where this CPU (or build) lacks the instruction set."""
    _c = pytest.importorskip("fastgen._C", reason="the C++ extension is not built")
    if isa not in _c.isa_available():
        pytest.skip(f"this CPU or build has no {isa}")


def random_weights(graph: Graph, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights that keep every value at the size of its input."""
    rng = np.random.default_rng(seed)
    result = {}
    for key, shape in graph.weight_shapes().items():
        if key.endswith("running_var") or (key.endswith("weight") and len(shape) == 1):
            value = rng.uniform(0.5, 1.5, shape)
        elif key.endswith("weight"):
            value = rng.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape)
        else:
            value = rng.normal(0, 0.3, shape)
        result[key] = value.astype(np.float32)
    return result


def image_graph(channels: int, *nodes: Node, extra: tuple[Input, ...] = ()) -> Graph:
    """A graph of one image input ``x`` of any size; the last node is the output."""
    for minimum in (4, 8, 12):  # the smallest that these nodes take
        image = Input("x", (Dim("N"), channels, Dim("H", 1, minimum), Dim("W", 1, minimum)))
        try:
            return Graph("case", (image, *extra), nodes, {"y": nodes[-1].name})
        except GraphError:
            if minimum == 12:
                raise
    raise AssertionError("unreachable")


def torch_reference(
    graph: Graph, weights: dict[str, np.ndarray], inputs: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The graph in float64 by the torch module."""
    torch = pytest.importorskip("torch")
    from fastgen.backends.torch import GraphModule

    module = GraphModule(graph).load_weights(weights).eval().double()
    with torch.inference_mode():
        result = module(**{k: torch.from_numpy(v).double() for k, v in inputs.items()})
    if not isinstance(result, dict):
        result = {next(iter(graph.outputs)): result}
    return {k: v.numpy() for k, v in result.items()}


def compare(
    graph: Graph, inputs: dict[str, np.ndarray], isa: str, tolerance: float = 2e-5, **config: Any
) -> None:
    """Runs a graph on the engine and compares it with torch in float64.

    The tolerance is relative to the largest value of each output.
    """
    from fastgen.backends.cpu import Runner

    weights = random_weights(graph)
    expected = torch_reference(graph, weights, inputs)
    got = Runner(graph, weights, isa=isa, **config).run(inputs)
    assert got.keys() == expected.keys()
    for name, reference in expected.items():
        assert got[name].shape == reference.shape
        assert got[name].dtype == np.float32
        bound = tolerance * max(1.0, float(np.abs(reference).max()))
        np.testing.assert_allclose(got[name], reference, rtol=0, atol=bound)
