"""Two-input graphs on the cpu backend: joins, reshapes, constant inputs, batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cpu_cases import ISAS, need_isa, random_weights, torch_reference
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from fastgen import models
from fastgen.backends import _joins
from fastgen.backends._lower import lower
from fastgen.errors import GraphError
from fastgen.graph import Dim, Graph, Input, Node

pytest.importorskip("torch")

# Largest error relative to the largest value; one value in a bfloat16 product is off by 2^-9.
TOLERANCE = {"fp32": 2e-4, "bf16": 6e-2}


def two_inputs(*nodes: Node, content: tuple[int, ...], style: tuple[int, ...]) -> Graph:
    """A graph of a content and a constant style; the last node is the output."""
    inputs = (
        Input("content", (Dim("N"), *content)),
        Input("style", (Dim("N"), *style), constant=True),
    )
    return Graph("case", inputs, nodes, {"y": nodes[-1].name})


def check(graph: Graph, batch: int, isa: str, threads: int = 2) -> None:
    """All inputs given, then the constant ones kept; in every precision."""
    from fastgen.backends.cpu import Runner

    weights = random_weights(graph)
    rng = np.random.default_rng(0)
    first, second = (
        {
            item.name: rng.normal(size=(batch, *map(int, item.shape[1:]))).astype(np.float32)  # type: ignore[arg-type]
            for item in graph.inputs
        }
        for _ in range(2)
    )
    constant = [item.name for item in graph.inputs if item.constant]
    for precision in TOLERANCE:
        runner = Runner(graph, weights, isa=isa, threads=threads, precision=precision)
        for given_inputs in (first, second):
            expected = torch_reference(graph, weights, given_inputs)
            rest = {k: v for k, v in given_inputs.items() if k not in constant}
            results = [runner.run(given_inputs)]
            runner.set_constants({name: given_inputs[name] for name in constant})
            results += [runner.run(rest), runner.run(rest)]
            for name, reference in expected.items():
                bound = TOLERANCE[precision] * max(1.0, float(np.abs(reference).max()))
                for result in results:
                    np.testing.assert_allclose(result[name], reference, rtol=0, atol=bound)


def conv(name: str, x: str, channels: int, **attrs: Any) -> Node:
    attrs = {"kernel": 3, "padding": 1} | attrs
    return Node(name, "conv", (x,), {"out_channels": channels} | attrs)


def style_vector(features: int) -> list[Node]:
    """A convolution, a linear layer over all of it, and batch norm."""
    return [
        conv("s1", "style", 5),
        Node("s2", "activation", ("s1",), {"kind": "leaky_relu"}),
        Node("s3", "reshape", ("s2",), {"shape": [-1]}),
        Node("s4", "linear", ("s3",), {"out_features": features}),
        Node("s5", "norm", ("s4",), {"kind": "batch"}),
        Node("code", "activation", ("s5",), {"kind": "tanh"}),
    ]


def joined(
    kind: str, content: int, style: int, side: int, tail: list[Node], outputs: int = 24
) -> Graph:
    """Content and style features side by side, and what reads them."""
    nodes = [conv("c1", "content", content)]
    if kind == "tile":
        nodes += [*style_vector(style), Node("map", "broadcast", ("code", "c1"), {})]
    else:
        nodes += style_vector(style * side * side)
        nodes += [Node("map", "reshape", ("code",), {"shape": [style, side, side]})]
    nodes += [Node("both", "concat", ("c1", "map"), {}), *tail]
    return two_inputs(*nodes, content=(3, side, side), style=(2, 5, 7))


READERS = {
    "3x3": [conv("d", "both", 24)],
    "3x3 reflected": [conv("d", "both", 24, padding_mode="reflect")],
    "3x3 without padding": [conv("d", "both", 24, padding=0)],
    "5x5, padding 1": [conv("d", "both", 17, kernel=5)],
    "2x2, padding 2": [conv("d", "both", 17, kernel=2, padding=2)],
    "4x4 stride 2": [conv("d", "both", 32, kernel=4, stride=2)],
    "3x3 stride 2": [conv("d", "both", 32, stride=2)],
    "1x1": [conv("d", "both", 33, kernel=1, padding=0)],
    "few outputs": [conv("d", "both", 3)],
    "transposed 4x4 stride 2": [
        Node(
            "d",
            "conv_transpose",
            ("both",),
            {"out_channels": 24, "kernel": 4, "stride": 2, "padding": 1},
        )
    ],
    "upsampled": [Node("u", "upsample", ("both",), {}), conv("d", "u", 24)],
    "grouped": [conv("d", "both", 24, groups=2)],
    "two readers": [
        conv("d1", "both", 24),
        conv("d2", "both", 24, kernel=1, padding=0),
        Node("d", "add", ("d1", "d2"), {}),
    ],
    "instance norm": [
        conv("d0", "both", 24),
        Node("d", "norm", ("d0",), {"kind": "instance"}),
    ],
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ["tile", "full"])
@pytest.mark.parametrize("isa", ISAS)
def test_joined_style(isa: str, kind: str, reader: str) -> None:
    need_isa(isa)
    tail = [
        *READERS[reader],
        Node("n", "norm", ("d",), {"kind": "batch"}),
        Node("y", "activation", ("n",), {"kind": "sigmoid"}),
    ]
    for content, style in ((16, 16), (19, 5), (32, 20)):
        for side, batch in ((6, 1), (9, 3)):
            if reader == "grouped" and (content + style) % 2:
                continue
            check(joined(kind, content, style, side, tail), batch, isa)


@st.composite
def _graphs(draw: st.DrawFn) -> Graph:
    """Random nodes over a content and a style; joins of maps, of vectors, and of both."""
    content = draw(st.sampled_from([1, 3, 16, 19]))
    style = draw(st.sampled_from([1, 3, 16]))
    rows, columns = draw(st.integers(4, 9)), draw(st.integers(4, 9))
    inputs = (
        Input("content", (Dim("N"), content, rows, columns)),
        Input("style", (Dim("N"), style, draw(st.integers(3, 8)), 6), constant=True),
    )
    nodes: list[Node] = []
    names = ["content", "style"]
    channels = st.sampled_from([2, 5, 8, 16, 19, 32, 33])
    for i in range(draw(st.integers(3, 12))):
        op = draw(
            st.sampled_from(
                "conv conv conv conv_transpose linear linear norm activation activation add mul "
                "upsample pool concat concat concat affine pad crop broadcast broadcast reshape "
                "reshape".split()
            )
        )
        name = f"v{i}"
        # Mostly the newest values, so that chains get long.
        recent = names[-4:] if draw(st.booleans()) else names
        operands: tuple[str, ...] = (draw(st.sampled_from(recent)),)
        attrs: dict[str, Any] = {}
        if op == "conv":
            attrs = {
                "out_channels": draw(channels),
                "kernel": draw(st.sampled_from([1, 2, 3, 4, 5])),
                "stride": draw(st.sampled_from([1, 1, 2])),
                "padding": draw(st.integers(0, 2)),
                "padding_mode": draw(st.sampled_from(["zeros", "zeros", "reflect"])),
                "bias": draw(st.booleans()),
            }
        elif op == "conv_transpose":
            kernel, padding = draw(st.sampled_from([(2, 0), (3, 1), (4, 1), (5, 2)]))
            attrs = {"out_channels": draw(channels), "kernel": kernel, "padding": padding}
            attrs |= {"stride": draw(st.sampled_from([1, 2])), "output_padding": 0}
        elif op == "linear":
            attrs = {"out_features": draw(st.sampled_from([4, 16, 48, 80, 19 * 12]))}
        elif op == "norm":
            attrs = {"kind": draw(st.sampled_from(["instance", "batch", "batch"])), "eps": 0.1}
        elif op == "activation":
            kinds = ["relu", "leaky_relu", "tanh", "sigmoid"]
            attrs = {"kind": draw(st.sampled_from(kinds))}
        elif op in ("add", "mul", "broadcast"):
            operands = (*operands, draw(st.sampled_from(names)))
        elif op == "concat":
            operands = (*operands, *draw(st.lists(st.sampled_from(names), min_size=1, max_size=2)))
        elif op == "pool":
            attrs = {"kind": draw(st.sampled_from(["max", "avg", "global_avg"]))}
        elif op == "affine":
            attrs = {"scale": 0.5, "shift": 0.25}
        elif op == "pad":
            attrs = {"padding": [1, 2, 0, 1], "mode": draw(st.sampled_from(["zeros", "reflect"]))}
        elif op == "crop":
            attrs = {"crop": [1, 0, 0, 1]}
        elif op == "reshape":
            shapes = [[-1], [-1], [4, 2, -1], [-1, 1, 1], [16, 1, -1], [19, 4, 3]]
            attrs = {"shape": draw(st.sampled_from(shapes))}
        try:
            Graph("case", inputs, (*nodes, Node(name, op, operands, attrs)), {"y": name})
        except GraphError:
            continue  # the shapes do not fit; leave the node out
        nodes.append(Node(name, op, operands, attrs))
        names.append(name)
    assume(nodes)
    outputs = {"y": names[-1]}
    if draw(st.booleans()):
        outputs["early"] = draw(st.sampled_from([n.name for n in nodes]))
    return Graph("case", inputs, tuple(nodes), outputs)


@pytest.mark.parametrize("isa", ISAS)
def test_random_graphs_of_two_inputs(isa: str) -> None:
    need_isa(isa)

    @settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], deadline=None)
    @given(_graphs(), st.sampled_from([1, 2, 3, 5, 8]), st.integers(1, 2))
    def run(graph: Graph, batch: int, threads: int) -> None:
        shapes = graph.infer_shapes(graph.smallest_shapes())
        assume(max(int(np.prod(s)) for s in shapes.values()) < 60_000)
        check(graph, batch, isa, threads)

    run()


@pytest.mark.parametrize("name", models.list_models("saae"))
@pytest.mark.parametrize("style_map", ["full", "tile"])
@pytest.mark.parametrize("isa", ISAS)
def test_generators(isa: str, style_map: str, name: str) -> None:
    need_isa(isa)
    graph = models.create(name, style_map=style_map)
    for batch, threads in ((1, 2), (4, 2), (3, 1)):
        check(graph, batch, isa, threads)
        if isa == "scalar":
            break


# ------------------------------------------------------------------ what it costs


def _steps(graph: Graph) -> list[str]:
    return [type(step).__name__ for step in lower(graph, random_weights(graph)).steps]


@pytest.mark.parametrize("name", models.list_models("saae"))
def test_generators_are_convolutions_alone(name: str) -> None:
    graph = models.create(name)
    lowered = lower(graph, random_weights(graph))
    assert set(_steps(graph)) == {"ConvStep"}
    moving = lowered.steps[lowered.constant :]
    assert [step.label for step in moving] == [
        *("content1", "content2", "content3", "dec1", "dec2", "dec3")
    ]


def test_operands_are_written_in_place() -> None:
    nodes = [
        conv("a", "content", 16),
        conv("b", "content", 32),
        conv("c", "content", 7),
        Node("all", "concat", ("a", "b", "c"), {}),
        conv("y", "all", 8),
    ]
    graph = two_inputs(*nodes, content=(3, 8, 8), style=(1, 3, 3))
    assert _steps(graph) == ["ConvStep"] * 4 + ["CopyStep"]  # the copy is the output
    check(graph, 2, "avx2")


def test_border_taps_cover_the_kernel() -> None:
    taps = list(_joins.border_taps(3, 1))
    assert taps == [slice(1, 3), slice(0, 3), slice(0, 2)]
    assert list(_joins.border_taps(4, 0)) == [slice(0, 4)]


# ------------------------------------------------------------------ constant inputs


def _runner(threads: int = 1) -> tuple[Any, dict[str, np.ndarray]]:
    from fastgen.backends.cpu import Runner

    graph = models.create("saae_plates", width=8)
    rng = np.random.default_rng(3)
    x = {i.name: rng.random((2, *map(int, i.shape[1:])), np.float32) for i in graph.inputs}  # type: ignore[arg-type]
    return Runner(graph, random_weights(graph), threads=threads), x


def test_constants_are_copied_and_replaced() -> None:
    runner, x = _runner()
    style = x["style"].copy()
    wanted = runner.run(x)["image"]
    other = runner.run(x | {"style": 1 - style})["image"]
    runner.set_constants({"style": style})
    style[...] = 0
    rest = {"content": x["content"]}
    np.testing.assert_array_equal(runner.run(rest)["image"], wanted)
    # A run with a style of its own does not change what is kept.
    np.testing.assert_array_equal(runner.run(x | {"style": 1 - x["style"]})["image"], other)
    np.testing.assert_array_equal(runner.run(rest)["image"], wanted)
    runner.set_constants({"style": 1 - x["style"]})
    np.testing.assert_array_equal(runner.run(rest)["image"], other)
    runner.set_constants({})
    with pytest.raises(GraphError, match="style"):
        runner.run(rest)


def test_one_style_serves_every_batch() -> None:
    runner, x = _runner()
    runner.set_constants({"style": x["style"][:1]})
    for batch in (1, 2, 1, 5):
        content = np.resize(x["content"], (batch, *x["content"].shape[1:]))
        same = np.repeat(x["style"][:1], batch, 0)
        wanted = runner.run({"content": content, "style": same})["image"]
        for _ in range(2):
            np.testing.assert_array_equal(runner.run({"content": content})["image"], wanted)


def test_constants_run_once() -> None:
    runner, x = _runner()
    runner.set_constants({"style": x["style"]})
    runner.set_profile(True)
    rest = {"content": x["content"]}
    runner.run(rest)
    assert "style_code" in [label for label, _, _ in runner.profile]
    runner.run(rest)
    assert [label for label, _, _ in runner.profile] == [
        *("content1", "content2", "content3", "dec1", "dec2", "dec3")
    ]


@pytest.mark.parametrize(
    ("inputs", "error", "match"),
    [
        ({"content": np.zeros((1, 1, 24, 16), np.float32)}, ValueError, "must be"),
        ({"style": [1.0]}, TypeError, "numpy"),
        ({"style": np.zeros((1, 3, 24, 96), np.int32)}, TypeError, "float32"),
    ],
)
def test_bad_constants(inputs: dict, error: type[Exception], match: str) -> None:
    runner, _ = _runner()
    with pytest.raises(error, match=match):
        runner.set_constants(inputs)


def test_constants_of_another_batch_are_an_error() -> None:
    runner, x = _runner()
    runner.set_constants({"style": x["style"]})
    with pytest.raises(GraphError, match="N is"):
        runner.run({"content": np.repeat(x["content"], 2, 0)})
