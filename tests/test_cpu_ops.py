"""Every op of the cpu backend on every instruction set, against torch in float64."""

from __future__ import annotations

import numpy as np
import pytest
from cpu_cases import ISAS, compare, image_graph, need_isa, random_weights, torch_reference

from fastgen.backends.cpu import Runner
from fastgen.graph import Dim, Graph, Input, Node


def _conv(name: str = "c", source: str = "x", **attrs: object) -> Node:
    return Node(name, "conv", (source,), {"out_channels": 5, "kernel": 3, **attrs})


def _act(kind: str, source: str, name: str = "a") -> Node:
    return Node(name, "activation", (source,), {"kind": kind})


CONVS = [
    (3, {"out_channels": 32, "kernel": 9, "padding": 4, "padding_mode": "reflect"}),
    (4, {"out_channels": 17, "kernel": 3, "stride": 2, "padding": 1}),
    (5, {"out_channels": 16, "kernel": 3}),
    (20, {"out_channels": 40, "kernel": 3, "stride": 2, "padding": 1, "padding_mode": "reflect"}),
    (33, {"out_channels": 48, "kernel": 1}),
    (16, {"out_channels": 64, "kernel": 4, "stride": 2, "padding": 1}),
    (7, {"out_channels": 70, "kernel": 5, "stride": 3, "padding": 2, "bias": False}),
    (18, {"out_channels": 3, "kernel": 9, "padding": 4, "padding_mode": "reflect"}),
    (3, {"out_channels": 1, "kernel": 3}),
    (9, {"out_channels": 2, "kernel": 5, "padding": 2}),
    (17, {"out_channels": 4, "kernel": 1}),
    (6, {"out_channels": 4, "kernel": 3, "stride": 2}),
    (12, {"out_channels": 12, "kernel": 3, "padding": 1, "groups": 12}),
    (20, {"out_channels": 20, "kernel": 5, "padding": 2, "stride": 2, "groups": 20}),
    (12, {"out_channels": 18, "kernel": 3, "padding": 1, "groups": 3, "padding_mode": "reflect"}),
    (34, {"out_channels": 70, "kernel": 3, "padding": 1, "stride": 2, "groups": 2}),
    (48, {"out_channels": 24, "kernel": 1, "groups": 3}),
    (8, {"out_channels": 40, "kernel": 3, "groups": 8, "bias": False}),
]
TRANSPOSED = [
    {"out_channels": 20, "kernel": 3, "stride": 2, "padding": 1, "output_padding": 1},
    {"out_channels": 3, "kernel": 4, "stride": 2, "padding": 1},
    {"out_channels": 7, "kernel": 2, "stride": 3, "bias": False},
    {"out_channels": 33, "kernel": 5, "stride": 1, "padding": 2},
]
X = Input("x", (Dim("N"), 6, Dim("H", 1, 4), Dim("W", 1, 4)))


def _x(channels: int, height: int = 13, width: int = 19, n: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"x": rng.normal(size=(n, channels, height, width)).astype(np.float32)}


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> str:
    pytest.importorskip("torch")
    need_isa(request.param)
    return request.param


@pytest.mark.parametrize(("channels", "attrs"), CONVS, ids=range(len(CONVS)))
def test_conv(isa: str, channels: int, attrs: dict) -> None:
    compare(image_graph(channels, _conv(**attrs)), _x(channels), isa, threads=2)
    # Behind it a norm from the data, which takes its statistics from the convolution.
    nodes = (_conv(**attrs), Node("n", "norm", ("c",), {"kind": "instance"}), _act("relu", "n"))
    compare(image_graph(channels, *nodes), _x(channels, 30, 41), isa, threads=2)


@pytest.mark.parametrize("attrs", TRANSPOSED, ids=range(len(TRANSPOSED)))
def test_conv_transpose(isa: str, attrs: dict) -> None:
    node = Node("t", "conv_transpose", ("x",), attrs)
    compare(image_graph(18, node), _x(18), isa)
    norm = Node("n", "norm", ("t",), {"kind": "instance"})
    compare(image_graph(18, node, norm), _x(18, 9, 8), isa)


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
@pytest.mark.parametrize(("kernel", "outputs"), [(3, 24), (5, 24), (3, 3), (5, 3)])
def test_upsampled_conv(isa: str, mode: str, kernel: int, outputs: int) -> None:
    attrs = {"out_channels": outputs, "kernel": kernel, "padding": kernel // 2}
    nodes = [
        _conv("a", out_channels=19, padding=1),
        Node("u", "upsample", ("a",), {"scale": 2}),
        _conv("c", "u", padding_mode=mode, **attrs),
        Node("n", "norm", ("c",), {"kind": "instance"}),
    ]
    compare(image_graph(6, *nodes), _x(6, 7, 9), isa)
    compare(image_graph(6, *nodes[:3]), _x(6, 7, 9), isa)


@pytest.mark.parametrize("kind", ["relu", "leaky_relu", "tanh", "sigmoid"])
def test_activations(isa: str, kind: str) -> None:
    x = _x(6)
    x["x"] *= 4
    x["x"].flat[:6] = [0.0, -0.0, 100.0, -100.0, 1e-4, -1e-4]
    compare(image_graph(6, _act(kind, "x")), x, isa, 1e-6)
    compare(image_graph(6, _conv(out_channels=20), _act(kind, "c")), x, isa)
    compare(image_graph(6, _conv(out_channels=3), _act(kind, "c")), x, isa)


def test_norms(isa: str) -> None:
    for attrs in ({"kind": "batch"}, {"kind": "instance"}, {"kind": "instance", "affine": False}):
        norm = Node("n", "norm", ("x",), {"eps": 1e-3, **attrs})
        compare(image_graph(21, norm, _act("leaky_relu", "n")), _x(21), isa)
        conv = _conv(out_channels=21, bias=False)
        inner = Node("n", "norm", ("c",), attrs)
        compare(image_graph(6, conv, inner, _act("relu", "n")), _x(6), isa)
    x = Input("x", (Dim("N"), 21))
    graph = Graph("case", (x,), (Node("n", "norm", ("x",), {"kind": "batch"}),), {"y": "n"})
    compare(graph, {"x": _x(21)["x"][:, :, 0, 0]}, isa)


def test_given_statistics(isa: str) -> None:
    extra = (Input("mean", (Dim("N"), 18)), Input("var", (Dim("N"), 18)))
    inputs = _x(6)
    rng = np.random.default_rng(1)
    inputs["mean"] = rng.normal(size=(2, 18)).astype(np.float32)
    inputs["var"] = rng.uniform(0.2, 2, (2, 18)).astype(np.float32)
    norm = Node("n", "norm", ("c", "mean", "var"), {"kind": "given"})
    nodes = (_conv(out_channels=18), norm, _act("relu", "n"), _conv("d", "a"))
    compare(image_graph(6, *nodes, extra=extra), inputs, isa)


def test_residual_that_is_read_many_times(isa: str) -> None:
    nodes = []
    x = "x"
    for i, stride in enumerate((1, 1, 2)):
        pad = {"padding": 1, "padding_mode": "reflect", "out_channels": 18}
        nodes += [
            _conv(f"c{i}", x, **pad),
            Node(f"n{i}", "norm", (f"c{i}",), {"kind": "instance"}),
            _conv(f"d{i}", f"n{i}", **pad),
            Node(f"m{i}", "norm", (f"d{i}",), {"kind": "instance"}),
            Node(f"s{i}", "add" if i else "mul", (f"n{i}", f"m{i}"), {}),
            _act("relu", f"s{i}", f"r{i}"),
            _conv(f"e{i}", f"r{i}", stride=stride, **pad),
            _conv(f"f{i}", f"r{i}", stride=stride, **pad),
            Node(f"x{i}", "add", (f"e{i}", f"f{i}"), {}),
        ]
        x = f"x{i}"
    # Deep chains of norms amplify rounding; the reference is float64.
    compare(image_graph(6, *nodes), _x(6, 21, 34), isa, 2e-4)


@pytest.mark.parametrize("kind", ["max", "avg", "global_avg"])
def test_pool(isa: str, kind: str) -> None:
    for kernel, stride, padding in ((2, 2, 0), (3, 2, 1), (3, 1, 0), (9, 4, 4)):
        attrs = {"kind": kind, "kernel": kernel, "stride": stride, "padding": padding}
        nodes = (_conv(out_channels=18), Node("p", "pool", ("c",), attrs))
        compare(image_graph(6, *nodes), _x(6), isa)


def test_pixel_moves(isa: str) -> None:
    pad = {"padding": [3, 1, 2, 4], "mode": "reflect"}
    nodes = (
        Node("p", "pad", ("x",), pad),
        Node("u", "upsample", ("p",), {"scale": 3}),
        Node("k", "crop", ("u",), {"crop": [1, 4, 2, 0]}),
        Node("z", "pad", ("k",), {"padding": [0, 2, 1, 0], "mode": "zeros"}),
        Node("f", "affine", ("z",), {"scale": 2.0, "shift": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]}),
        _conv("c", "f", out_channels=20, padding=1, padding_mode="reflect"),
        _act("tanh", "c"),
        Node("g", "affine", ("a",), {"scale": 150.0, "shift": 127.5}),
    )
    for last in range(1, len(nodes) + 1):
        compare(image_graph(6, *nodes[:last]), _x(6), isa, 5e-5)


def test_operands_behind_pixel_moves(isa: str) -> None:
    moves = (
        Node("k", "crop", ("x",), {"crop": [1, 1, 1, 1]}),
        Node("p", "pad", ("k",), {"padding": [1, 1, 1, 1], "mode": "zeros"}),
    )
    for op in ("add", "mul"):
        for inputs in (("x", "p"), ("p", "x"), ("p", "p"), ("x", "x")):
            # A zero of the padding is an operand as any other, and both are moved once more.
            joined = (*moves, Node("s", op, inputs, {}))
            tail = (Node("u", "upsample", ("s",), {"scale": 3}), _conv("c", "u", padding=1))
            for channels in (3, 18):
                compare(image_graph(channels, *joined), _x(channels), isa)
                compare(image_graph(channels, *joined, *tail), _x(channels, 7, 9), isa)


@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_statistics_with_an_unusual_first_value(isa: str, mean: float) -> None:
    # A convolution that passes its input on; the float64 reference has no rounding to speak of.
    conv = _conv(out_channels=16, padding=1, padding_mode="reflect", bias=False)
    norm = Node("n", "norm", ("c",), {"kind": "instance", "affine": False})
    for nodes in ((conv, norm), (Node("n", "norm", ("x",), norm.attrs),)):
        graph = image_graph(16, *nodes)
        weights = random_weights(graph)
        if weights:
            weights["c.weight"] = np.zeros((16, 16, 3, 3), np.float32)
            weights["c.weight"][np.arange(16), np.arange(16), 1, 1] = 1
        x = mean + np.random.default_rng(0).normal(size=(1, 16, 90, 70))
        x[:, :, ::8, 0] -= 1000
        x = x.astype(np.float32)
        expected = torch_reference(graph, weights, {"x": x})["y"]
        got = Runner(graph, weights, 2, isa).run(x)
        bound = 2e-5 + 4e-7 * mean / x.std()
        np.testing.assert_allclose(got, expected, rtol=0, atol=bound * np.abs(expected).max())


def test_pooling_keeps_nan(isa: str) -> None:
    x = _x(18)
    x["x"][:, :, 3, 3] = np.nan
    compare(image_graph(18, Node("p", "pool", ("x",), {"kind": "max", "kernel": 3})), x, isa)


def test_joins_and_shapes(isa: str) -> None:
    nodes = (
        _conv("a", out_channels=18, padding=1),
        _conv("b", out_channels=5, padding=1),
        Node("j", "concat", ("a", "x", "b"), {}),
        Node("g", "pool", ("j",), {"kind": "global_avg"}),
        Node("h", "reshape", ("g",), {"shape": [-1]}),
        Node("l", "linear", ("h",), {"out_features": 35}),
        _act("sigmoid", "l"),
        Node("w", "broadcast", ("a2", "j"), {}),
    )
    nodes = (*nodes[:6], _act("sigmoid", "l", "a2"), nodes[7])
    out = _conv("o", "w", out_channels=18)
    compare(image_graph(6, *nodes, out), _x(6, n=3), isa)
    flat = (
        Node("r", "reshape", ("x",), {"shape": [4, 3, 8]}),
        _conv("c", "r", kernel=1),
        Node("s", "reshape", ("c",), {"shape": [-1]}),
        Node("l", "linear", ("s",), {"out_features": 9, "bias": False}),
        _act("leaky_relu", "l"),
    )
    x = Input("x", (Dim("N"), 6, 4, 4))
    compare(Graph("case", (x,), flat, {"y": "a"}), _x(6, 4, 4, 5), isa)


def test_several_inputs_and_outputs(isa: str) -> None:
    other = Input("z", X.shape)
    nodes = (
        Node("s", "add", ("x", "z"), {}),
        Node("m", "mul", ("s", "s"), {}),
        _conv("c", "m", padding=1),
        _act("relu", "c"),
        _conv("out", "a", out_channels=3),
    )
    outputs = {"sum": "s", "pic": "out", "again": "out", "act": "a", "same": "x"}
    inputs = _x(6) | {"z": _x(6)["x"][::-1].copy()}
    compare(Graph("case", (X, other), nodes, outputs), inputs, isa)


def test_tall_narrow_and_tiny_images(isa: str) -> None:
    nodes = (
        _conv("c", out_channels=34, padding=1, padding_mode="reflect"),
        Node("n", "norm", ("c",), {"kind": "instance"}),
        _conv("d", "n", out_channels=3, padding=1),
    )
    for height, width in ((4, 4), (301, 4), (4, 301)):
        compare(image_graph(6, *nodes), _x(6, height, width, 1), isa, threads=2)
