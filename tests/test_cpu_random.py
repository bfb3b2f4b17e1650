"""Random graphs on the cpu backend, against torch in float64."""

from __future__ import annotations

import numpy as np
import pytest
from cpu_cases import ISAS, compare, need_isa
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from fastgen.errors import GraphError
from fastgen.graph import Dim, Graph, Input, Node

pytest.importorskip("torch")


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """A chain of random nodes, some of which join it with an earlier value of the same shape."""
    channels = draw(st.sampled_from([1, 3, 5, 16, 19]))
    image = Input("v0", (Dim("N"), channels, Dim("H", 1, 6), Dim("W", 1, 6)))
    nodes: list[Node] = []
    at = "v0"
    for i in range(1, draw(st.integers(2, 9)) + 1):
        name = f"v{i}"
        op = draw(
            st.sampled_from(
                "conv conv conv norm norm activation activation add mul upsample pool concat "
                "affine pad crop conv_transpose".split()
            )
        )
        inputs: tuple[str, ...] = (at,)
        attrs: dict = {}
        if op == "conv":
            kernel = draw(st.sampled_from([1, 3, 5]))
            attrs = {
                "out_channels": draw(st.sampled_from([2, 3, 8, 17, 32])),
                "kernel": kernel,
                "stride": draw(st.sampled_from([1, 1, 2])),
                "padding": draw(st.sampled_from([0, kernel // 2])),
                "padding_mode": draw(st.sampled_from(["zeros", "reflect"])),
            }
        elif op == "conv_transpose":
            attrs = {"out_channels": 6, "kernel": draw(st.sampled_from([2, 3])), "stride": 2}
        elif op == "norm":
            attrs = {"kind": draw(st.sampled_from(["instance", "batch"])), "eps": 0.1}
        elif op == "activation":
            kinds = ["relu", "leaky_relu", "tanh", "sigmoid"]
            attrs = {"kind": draw(st.sampled_from(kinds))}
        elif op in ("add", "mul", "concat"):
            inputs = (at, draw(st.sampled_from([at, *[n.name for n in nodes], "v0"])))
            inputs = inputs if draw(st.booleans()) else inputs[::-1]
        elif op == "pool":
            attrs = {"kind": draw(st.sampled_from(["max", "avg"]))}
        elif op == "affine":
            attrs = {"scale": 0.5, "shift": 0.25}
        elif op == "pad":
            attrs = {"padding": [1, 2, 0, 3], "mode": draw(st.sampled_from(["zeros", "reflect"]))}
        elif op == "crop":
            attrs = {"crop": [1, 0, 0, 1]}
        try:
            Graph("case", (image,), (*nodes, Node(name, op, inputs, attrs)), {"y": name})
        except GraphError:
            continue  # the shapes do not fit; leave the node out
        nodes.append(Node(name, op, inputs, attrs))
        at = name
    assume(nodes)
    outputs = {"y": at}
    if draw(st.booleans()):
        outputs["early"] = draw(st.sampled_from([n.name for n in nodes]))
    return Graph("case", (image,), tuple(nodes), outputs)


@pytest.mark.parametrize("isa", ISAS)
def test_random_graphs(isa: str) -> None:
    need_isa(isa)

    @settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
    @given(graphs(), st.integers(1, 2), st.integers(6, 17), st.integers(6, 17))
    def check(graph: Graph, n: int, height: int, width: int) -> None:
        shape = (n, graph.inputs[0].shape[1], height, width)
        try:
            shapes = graph.infer_shapes({"v0": shape})
        except GraphError:
            assume(False)
        assume(max(int(np.prod(s)) for s in shapes.values()) < 300_000)
        x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        compare(graph, {"v0": x}, isa, 1e-3, threads=2)

    check()
