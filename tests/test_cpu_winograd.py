"""Winograd convolutions that read and write tensors without a detour, and values of few channels.

Input that needs no arithmetic is transformed as it lies in memory, and outputs without statistics
are finished as they are transformed back. A linear layer reads a few channels side by side.
"""

from __future__ import annotations

import numpy as np
import pytest
from cpu_cases import ISAS, compare, image_graph, need_isa, random_weights, torch_reference

from fastgen.backends._lower import lower
from fastgen.graph import Dim, Graph, Input, Node

pytest.importorskip("torch")

TOLERANCE = {"fp32": 2e-4, "bf16": 6e-2}  # of the largest value


def conv(name: str, x: str, channels: int, **attrs: object) -> Node:
    return Node(name, "conv", (x,), {"out_channels": channels, "kernel": 3, "padding": 1} | attrs)


def activation(name: str, x: str, kind: str, **attrs: object) -> list[Node]:
    """Batch norm and an activation, or the norm alone."""
    if kind == "none":
        return [Node(name, "norm", (x,), {"kind": "batch"})]
    norm = Node(f"{name}_norm", "norm", (x,), {"kind": "batch"})
    return [norm, Node(name, "activation", (norm.name,), {"kind": kind, **attrs})]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("kind", "attrs"),
    [
        ("none", {}),
        ("relu", {}),
        ("leaky_relu", {"slope": 0.2}),
        ("leaky_relu", {"slope": 0.0}),  # and of more than 1: not the larger of two
        ("leaky_relu", {"slope": 1.5}),
        ("tanh", {}),
    ],
)
@pytest.mark.parametrize("isa", ISAS)
def test_chains(isa: str, kind: str, attrs: dict[str, float], precision: str) -> None:
    """Sizes that tiles of 4x4 do and do not fit, blocks that channels do and do not fill."""
    need_isa(isa)
    nodes = [conv("a", "x", 16), *activation("a1", "a", kind, **attrs), conv("b", "a1", 24)]
    nodes += [*activation("b1", "b", kind, **attrs), conv("c", "b1", 20), conv("d", "c", 8)]
    graph = image_graph(3, *nodes, *activation("y", "d", kind, **attrs))
    rng = np.random.default_rng(0)
    for shape in ((1, 3, 13, 18), (3, 3, 24, 32)):
        x = rng.normal(size=shape).astype(np.float32)
        tolerance = TOLERANCE[precision]
        compare(graph, {"x": x}, isa, tolerance, threads=2, precision=precision)


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
@pytest.mark.parametrize("isa", ISAS)
def test_padding_upsampling_and_residuals(isa: str, mode: str) -> None:
    """Rows and columns by index, four phases, and something to add to the output."""
    need_isa(isa)
    reflect = {"padding_mode": mode}
    nodes = [
        conv("a", "x", 16),
        conv("b", "a", 32, **reflect),
        Node("up", "upsample", ("b",), {"scale": 2}),
        conv("c", "up", 16, **reflect),
        conv("d", "c", 16, **reflect),
        Node("e", "add", ("c", "d"), {}),
        conv("f", "e", 16, **reflect),
    ]
    graph = image_graph(2, *nodes)
    x = np.random.default_rng(1).normal(size=(2, 2, 11, 14)).astype(np.float32)
    for precision in TOLERANCE:
        compare(graph, {"x": x}, isa, TOLERANCE[precision], threads=1, precision=precision)


@pytest.mark.parametrize("isa", ISAS)
def test_values_that_are_not_numbers(isa: str) -> None:
    """ReLU gives 0 for minus infinity; NaN passes through."""
    need_isa(isa)
    from fastgen.backends.cpu import Runner

    graph = image_graph(16, conv("a", "x", 16), Node("y", "activation", ("a",), {"kind": "relu"}))
    weights = random_weights(graph)
    weights["a.weight"][...] = 0
    bias = np.zeros(16, np.float32)
    bias[:3] = -np.inf, np.nan, np.inf
    weights["a.bias"] = bias
    got = Runner(graph, weights, isa=isa).run(np.zeros((1, 16, 12, 12), np.float32))
    assert (got[0, 0] == 0).all()
    assert np.isnan(got[0, 1]).all()
    assert (got[0, 2] == np.inf).all()


def flat_graph(channels: int, height: int, width: int) -> Graph:
    """A convolution of few channels, all of whose outputs a linear layer reads."""
    image = Input("x", (Dim("N"), 16, height, width))
    nodes = [
        conv("a", "x", channels),
        Node("b", "activation", ("a",), {"kind": "leaky_relu"}),
        Node("flat", "reshape", ("b",), {"shape": [-1]}),
        Node("y", "linear", ("flat",), {"out_features": 24}),
    ]
    return Graph("case", (image,), tuple(nodes), {"y": "y"})


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("channels", [1, 5, 8, 15])
@pytest.mark.parametrize("isa", ISAS)
def test_few_channels_before_a_linear_layer(isa: str, channels: int, precision: str) -> None:
    """They lie side by side: the layer reads no zeros, and nothing behind them is written."""
    need_isa(isa)
    for height, width in ((12, 20), (16, 16), (8, 6)):
        graph = flat_graph(channels, height, width)
        for batch in (1, 3, 16):
            x = np.random.default_rng(2).normal(size=(batch, 16, height, width))
            inputs = {"x": x.astype(np.float32)}
            compare(graph, inputs, isa, TOLERANCE[precision], threads=2, precision=precision)


def test_a_linear_layer_has_no_weights_for_padding() -> None:
    graph = flat_graph(8, 12, 20)
    steps = [s for s in lower(graph, random_weights(graph)).steps if getattr(s, "flat", False)]
    assert [step.inputs for step in steps] == [8 * 12 * 20]
    assert lower(graph, random_weights(graph)).dense
    # In blocks: what does not end with one, and never for the GPU, which has none.
    assert not lower(flat_graph(5, 7, 7), random_weights(flat_graph(5, 7, 7))).dense
    assert not lower(graph, random_weights(graph), channels_last=True).dense


def test_few_channels_in_bands() -> None:
    from fastgen.backends.cpu import Runner

    for width in (24, 25):  # rows that do and do not end with a block
        graph = flat_graph(8, 40, width)
        weights = random_weights(graph)
        x = np.random.default_rng(3).normal(size=(2, 16, 40, width)).astype(np.float32)
        runner = Runner(graph, weights, threads=2)
        expected = torch_reference(graph, weights, {"x": x})["y"]
        for result in (runner.run(x), runner.run(x, band_rows=8)):
            np.testing.assert_allclose(result, expected, rtol=0, atol=2e-4 * np.abs(expected).max())


def test_other_names_of_a_value() -> None:
    """A reshape to the same shape is the value itself, whose other readers count."""
    image = Input("x", (Dim("N"), 16, 12, 20))
    nodes = [
        conv("a", "x", 8),
        Node("again", "reshape", ("a",), {"shape": [8, 12, 20]}),
        Node("flat", "reshape", ("again",), {"shape": [-1]}),
        Node("y", "linear", ("flat",), {"out_features": 24}),
        Node("negative", "activation", ("again",), {"kind": "relu"}),
        conv("z", "a", 24),
    ]
    x = np.random.default_rng(4).normal(size=(2, 16, 12, 20)).astype(np.float32)
    for outputs in ({"y": "y", "z": "z"}, {"z": "z", "w": "negative"}):
        graph = Graph("case", (image,), tuple(nodes), outputs)
        compare(graph, {"x": x}, "", TOLERANCE["fp32"], threads=2)


@pytest.mark.parametrize("isa", ISAS)
def test_nothing_is_left_behind_the_last_channel(isa: str) -> None:
    """What an earlier run left there may be no number, and no number times zero is none."""
    need_isa(isa)
    from fastgen.backends.cpu import Runner

    for channels in (24, 20, 8):
        for precision in TOLERANCE:
            graph = flat_graph(channels, 9, 9)
            runner = Runner(graph, random_weights(graph), isa=isa, threads=1, precision=precision)
            runner.run(np.full((3, 16, 9, 9), np.nan, np.float32))
            for batch in (1, 2, 3):
                assert np.isfinite(runner.run(np.ones((batch, 16, 9, 9), np.float32))).all()


def test_the_engine_refuses_dense_values_elsewhere() -> None:
    """Only a convolution writes them, and only what is inside them is read."""
    from fastgen import _C
    from fastgen.backends._memory import plan_values
    from fastgen.backends.cpu import Runner

    graph = flat_graph(8, 12, 20)
    runner = Runner(graph, random_weights(graph), threads=1)
    lowered, shapes = runner._lowered, graph.infer_shapes({"x": (1, 16, 12, 20)})
    values, total, externals, _ = plan_values(lowered, shapes, True, _C.value_floats)
    runner._engine.plan(values, total, externals)
    dense = next(iter(lowered.dense))
    for index, value in enumerate(values):
        if index == dense or value[4] == 1:
            continue
        changed = [*values]
        changed[index] = (*value[:4], 2, *value[5:])
        with pytest.raises(ValueError, match="dense"):
            runner._engine.plan(changed, total, externals)
    for shape in ((1, 16, 4, 4), (1, 3, 5, 7)):
        with pytest.raises(ValueError, match="dense"):
            _C.value_floats((*shape, 2, 0, 0, 0))
    with pytest.raises(ValueError, match="layout"):
        _C.value_floats((1, 8, 4, 4, 3, 0, 0, 0))
