"""Graphs: structure, shapes, JSON, and everything that must be refused."""

from __future__ import annotations

import json

import pytest

from fastgen import models
from fastgen.errors import GraphError
from fastgen.graph import Dim, Graph, Input, Node

IMAGE = Input("image", (Dim("N"), 3, Dim("H", 4, 8), Dim("W", 4, 8)))


def build(*nodes: Node, output: str | None = None, inputs: tuple[Input, ...] = (IMAGE,)) -> Graph:
    return Graph("test", inputs, nodes, {"out": output or nodes[-1].name})


def conv(name: str = "c", source: str = "image", **attrs: object) -> Node:
    return Node(name, "conv", (source,), {"out_channels": 4, "kernel": 3} | attrs)


def test_the_full_style_network_has_the_published_size() -> None:
    graph = models.create("transformer_net")
    assert graph.parameter_count() == 1_679_235
    # Computed by hand: 9x9 3->32 and 32->3 at 256 px, 3x3 32->64 at 128, 64->128 at 64, ten
    # 3x3 128->128 at 64, 3x3 128->64 at 128, 3x3 64->32 at 256.
    at_64 = 64 * 64 * 9 * (64 * 128 + 10 * 128 * 128)
    at_128 = 128 * 128 * 9 * (32 * 64 + 128 * 64)
    at_256 = 256 * 256 * (81 * 3 * 32 * 2 + 9 * 64 * 32)
    assert graph.multiply_adds({"image": (1, 3, 256, 256)}) == at_64 + at_128 + at_256


def test_the_small_network_takes_a_twelfth_of_the_full_one() -> None:
    shapes = {"image": (1, 3, 256, 256)}
    small = models.create("compact_net").multiply_adds(shapes)
    assert small * 12 <= models.create("transformer_net").multiply_adds(shapes)


@pytest.mark.parametrize("name", models.list_models("style"))
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_every_style_model_keeps_the_size_and_round_trips(name: str, norm: str) -> None:
    graph = models.create(name, width=4, norm=norm)
    for height, width in ((48, 52), (96, 64)):
        shapes = graph.infer_shapes({"image": (2, 3, height, width)})
        assert shapes[graph.outputs["stylized"]] == (2, 3, height, width)
    assert Graph.from_json(graph.to_json()) == graph


@pytest.mark.parametrize("name", models.list_models("style"))
@pytest.mark.parametrize("config", [{"width": 0}, {"width": 2.5}, {"norm": "layer"}])
def test_models_refuse_bad_configurations(name: str, config: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(config))):
        models.create(name, **config)


def test_families_share_no_model_and_hold_all() -> None:
    saae, style = (models.list_models(family) for family in ("saae", "style"))
    assert sorted(saae + style) == models.list_models()
    with pytest.raises(ValueError, match="saae, style"):
        models.list_models("styles")


def test_unknown_model_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="transformer_net"):
        models.create("transformer")


def test_constant_values_follow_constant_inputs() -> None:
    style = Input("style", (Dim("N"), 3, Dim("H", 4, 8), Dim("W", 4, 8)), constant=True)
    graph = build(
        conv("a", "style"),
        conv("b", "image"),
        Node("s", "add", ("a", "b")),
        inputs=(IMAGE, style),
    )
    assert graph.constant_values() == {"style", "a"}


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([conv("c", "d"), conv("d", "c")], "cycle"),
        ([conv("c", "c")], "reads"),
        ([conv("c", "nothing")], "nowhere"),
        ([conv("image")], "used twice"),
        ([conv("C")], "does not match"),
        ([Node("c", "teleport", ("image",))], "unknown op"),
        ([conv(kernel=0)], "kernel"),
        ([conv(kernel=True)], "kernel"),
        ([conv(kernel=2**70)], "kernel"),
        ([conv(kernel=11)], "larger than its input"),
        ([conv(out_channels=-1)], "out_channels"),
        ([conv(groups=2)], "groups"),
        ([conv(padding=8, padding_mode="reflect")], "reflect padding"),
        ([conv(dilation=2)], "no attribute"),
        ([Node("c", "conv", ("image",), {"kernel": 3})], "needs the attribute"),
        ([Node("c", "add", ("image",))], "operands"),
        ([conv(), Node("s", "add", ("image", "c"))], "differ"),
        ([Node("l", "linear", ("image",), {"out_features": 3})], "reshape"),
        ([Node("k", "crop", ("image",), {"crop": [4, 4, 0, 0]})], "too small"),
        ([Node("n", "norm", ("image",), {"kind": "given"})], "operands"),
        ([Node("a", "affine", ("image",), {"scale": [1.0, 2.0]})], "entries"),
        ([Node("a", "affine", ("image",), {"scale": float("nan")})], "finite"),
        ([Node("r", "reshape", ("image",), {"shape": [7, 5, -1]})], "reshaped"),
    ],
)
def test_malformed_graphs_are_refused(nodes: list[Node], message: str) -> None:
    with pytest.raises(GraphError, match=message) as info:
        build(*nodes)
    assert "\n" not in str(info.value)


def test_symbols_must_agree_and_sizes_must_fit() -> None:
    graph = build(conv(padding=1))
    with pytest.raises(GraphError, match="multiple of 4"):
        graph.infer_shapes({"image": (1, 3, 10, 8)})
    with pytest.raises(GraphError, match="at least 8"):
        graph.infer_shapes({"image": (1, 3, 4, 8)})
    with pytest.raises(GraphError, match="missing"):
        graph.infer_shapes({})
    with pytest.raises(GraphError, match="unknown input"):
        graph.infer_shapes({"image": (1, 3, 8, 8), "style": (1, 3, 8, 8)})
    square = Input("square", (Dim("N"), 3, Dim("H", 4, 8), Dim("H", 4, 8)))
    graph = build(conv("c", "square"), inputs=(square,))
    with pytest.raises(GraphError, match="elsewhere"):
        graph.infer_shapes({"square": (1, 3, 8, 12)})


def _edit(**changes: object) -> str:
    data = json.loads(build(conv()).to_json())
    data.update(changes)
    return json.dumps(data)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "nonsense",
        "[" * 100_000,
        '{"name": 1e999}',
        _edit(name=7),
        _edit(extra=1),
        _edit(nodes={}),
        _edit(nodes=[1]),
        _edit(nodes=[{"name": "c", "op": "conv", "inputs": "image", "attrs": {}}]),
        _edit(nodes=[{"name": "c", "op": [], "inputs": ["image"], "attrs": {}}]),
        _edit(nodes=[{"name": "c", "op": "conv", "inputs": ["image"], "attrs": []}]),
        _edit(outputs={}),
        _edit(outputs={"out": "gone"}),
        _edit(outputs={"out": 3}),
        _edit(inputs=[]),
        _edit(inputs=[{"name": "image", "shape": [1, 3, 8, 8], "constant": False}]),
        _edit(inputs=[{"name": "image", "shape": [True], "constant": False}]),
        _edit(
            inputs=[
                {
                    "name": "image",
                    "shape": [{"symbol": "N", "divisor": 0, "minimum": 1}, 3, 8, 8],
                    "constant": False,
                }
            ]
        ),
    ],
)
def test_hostile_json_is_refused(text: str) -> None:
    with pytest.raises(GraphError) as info:
        Graph.from_json(text)
    assert "\n" not in str(info.value)


def test_too_many_nodes_are_refused() -> None:
    node = {"name": "c", "op": "conv", "inputs": ["image"], "attrs": {}}
    with pytest.raises(GraphError, match="nodes"):
        Graph.from_json(_edit(nodes=[node] * 10_001))
