"""Networks and graphs on the cuda backend, on the emulated card, against torch.

What runs is the shipped path, from arrays to arrays: planning, the bindings, a captured graph and
the kernels' sources. Only the device itself is emulated (tests/cuda_emulation).
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from cpu_cases import image_graph, random_weights, torch_reference
from cuda_cases import (
    STYLE,
    assert_parity,
    conv,
    inputs_for,
    picture,
    reference_pictures,
    runner,
    style_weights,
)
from cuda_emulation.backend import emulate
from cuda_emulation.card import SMALL
from hypothesis import HealthCheck, assume, given, settings
from test_cpu_joins import _graphs as graphs_of_two_inputs
from test_cpu_random import graphs

from fastgen import models
from fastgen.backends import ImageIO, _cuda_runner
from fastgen.backends._cuda_steps import axis_map, conv_map
from fastgen.errors import GraphError
from fastgen.graph import Graph, Node
from fastgen.metrics import psnr

RANDOM = settings(max_examples=12, suppress_health_check=list(HealthCheck))

# ---------------------------------------------------------------------- whole networks

NETWORKS = {
    "instance": ("transformer_net", {"width": 8, "blocks": 1}),
    "batch": ("transformer_net", {"width": 8, "blocks": 1, "norm": "batch"}),
    "small": ("compact_net", {"width": 8, "blocks": 1}),
    "paper": ("johnson_net", {"width": 8, "blocks": 1}),
}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_style_networks(emulated: ModuleType, name: str, precision: str) -> None:
    """Photos of odd sizes, a batch, strength, colour and channel order, in 16 bits: 40 dB."""
    model, config = NETWORKS[name]
    graph = models.create(model, **config)
    ours = _cuda_runner.Runner(graph, style_weights(graph), precision, tune=False)
    io = ImageIO(strength=0.75, preserve_color=True, bgr=True)
    for photo, how in ((picture(1, 13, 18), STYLE), (picture(2, 9, 11, np.float32), io)):
        expected = reference_pictures(graph, photo, how)
        for _ in range(3):
            got = ours.run(photo, how)
            assert got.dtype == photo.dtype
            assert psnr(expected, got) >= 40


def test_fp32_pictures(emulated: ModuleType) -> None:
    graph = models.create("transformer_net", width=8, blocks=1)
    ours = _cuda_runner.Runner(graph, style_weights(graph), "fp32", tune=False)
    photo = picture(1, 10, 14, np.float32)
    difference = np.abs(reference_pictures(graph, photo, STYLE) - ours.run(photo, STYLE))
    assert difference.max() * 255 <= 0.02


def test_launches_of_the_style_network(emulated: ModuleType) -> None:
    """One launch for each convolution and one for each residual sum: nothing else."""
    graph = models.create("transformer_net", width=8, blocks=2)
    names = runner(graph).launches(picture(1, 16, 16), STYLE)
    convs = [node.name for node in graph.nodes if node.op == "conv"]
    assert [name for name in names if not name.endswith(" in")] == convs
    assert [n for n in names if n.endswith(" in")] == ["res0_conv1 in", "res1_conv1 in", "up1 in"]
    apart = runner(graph, fuse=False).launches(picture(1, 16, 16), STYLE)
    assert len(apart) > len(names)


def test_columns_as_outputs_of_pictures(emulated: ModuleType) -> None:
    """The last layer of a wide network writes the caller's image, in every layout."""
    attrs = {"padding_mode": "reflect"}
    nodes = (
        conv("a", "x", out_channels=16, **attrs),
        Node("r", "activation", ("a",), {"kind": "relu"}),
        conv("c", "r", out_channels=3, kernel=9, padding=4, **attrs),
    )
    graph = image_graph(3, *nodes)
    ours = _cuda_runner.Runner(graph, style_weights(graph), "fp16", tune=False)
    for photo in (picture(1, 13, 41), picture(2, 37, 12, np.float32)):
        io = ImageIO(strength=0.5, bgr=True)
        expected = reference_pictures(graph, photo, io)
        assert psnr(expected, ours.run(photo, io)) >= 40
    (last,) = (launch for launch in next(iter(ours._replays.values())).plan.launches[-1:])
    assert (last.conv.outputs, last.conv.fold) == (27, 8)


@pytest.mark.parametrize("style_map", ["full", "tile"])
def test_generators(emulated: ModuleType, style_map: str) -> None:
    graph = models.create("saae_plates", width=4, style_features=8, style_map=style_map)
    shapes = graph.infer_shapes(graph.smallest_shapes())
    inputs = {k: np.abs(v) % 1 for k, v in inputs_for(graph, shapes).items()}
    expected = torch_reference(graph, random_weights(graph), inputs)["image"]
    ours = runner(graph)
    assert np.abs(ours.run(inputs)["image"] - expected).max() < 1e-4
    ours.set_constants({"style": inputs["style"]})
    labels = ours.launches({"content": inputs["content"]})
    assert not any("style" in label for label in labels)
    for style in (inputs["style"], 1 - inputs["style"]):
        ours.set_constants({"style": style})
        expected = torch_reference(graph, random_weights(graph), inputs | {"style": style})["image"]
        for _ in range(2):
            got = ours.run({"content": inputs["content"]})["image"]
            assert np.abs(got - expected).max() < 1e-4


# ---------------------------------------------------------------------- graphs


def test_random_graphs(native: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        emulate(native, patch)

        @RANDOM
        @given(graphs())
        def check(graph: Graph) -> None:
            shape = (2, graph.inputs[0].shape[1], 7, 9)
            try:
                shapes = graph.infer_shapes({"v0": shape})
            except GraphError:
                assume(False)
            assume(max(int(np.prod(s)) for s in shapes.values()) < 20_000)
            assert_parity(graph, inputs_for(graph, shapes))

        check()


def test_random_graphs_of_two_inputs(native: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        emulate(native, patch)

        @RANDOM
        @given(graphs_of_two_inputs())
        def check(graph: Graph) -> None:
            shapes = graph.infer_shapes(graph.smallest_shapes())
            assume(max(int(np.prod(s)) for s in shapes.values()) < 20_000)
            assert_parity(graph, inputs_for(graph, shapes))

        check()


UNUSUAL = {
    "groups": [conv("c", "x", groups=2)],
    "depthwise, strided": [conv("c", "x", groups=4, stride=3, padding_mode="reflect")],
    "large kernel": [conv("c", "x", kernel=17, padding=8)],
    "stride 3": [conv("c", "x", stride=3)],
    "transposed, stride 3": [
        Node("c", "conv_transpose", ("x",), {"out_channels": 5, "kernel": 4, "stride": 3})
    ],
    "transposed, kernel below stride": [
        Node("c", "conv_transpose", ("x",), {"out_channels": 5, "kernel": 2, "stride": 4})
    ],
    "upsampled by 3": [
        Node("u", "upsample", ("x",), {"scale": 3}),
        conv("c", "u", padding_mode="reflect"),
    ],
    "upsampled, wide reflection": [
        Node("u", "upsample", ("x",), {"scale": 2}),
        conv("c", "u", kernel=5, padding=2, padding_mode="reflect"),
    ],
    "upsampled twice": [
        Node("u", "upsample", ("x",), {"scale": 2}),
        Node("v", "upsample", ("u",), {"scale": 2}),
        conv("c", "v", padding_mode="reflect"),
    ],
    "cropped, upsampled, padded": [
        Node("k", "crop", ("x",), {"crop": [1, 0, 0, 2]}),
        Node("u", "upsample", ("k",), {"scale": 2}),
        Node("p", "pad", ("u",), {"padding": [1, 1, 1, 0], "mode": "reflect"}),
        conv("c", "p", padding=0),
    ],
    "residual behind statistics": [
        conv("a", "x", out_channels=8),
        Node("r", "activation", ("a",), {"kind": "relu"}),
        Node("n", "norm", ("r",), {"kind": "instance"}),
        Node("s", "mul", ("n", "r"), {}),
        conv("c", "s", out_channels=24),
    ],
    "columns as outputs": [
        conv("a", "x", out_channels=24),
        conv("c", "a", out_channels=3, kernel=9, padding=4, padding_mode="reflect"),
    ],
    "columns as outputs, upsampled": [
        conv("a", "x", out_channels=12),
        Node("u", "upsample", ("a",), {"scale": 2}),
        conv("c", "u", out_channels=4, kernel=5, padding=2, padding_mode="reflect"),
        Node("y", "activation", ("c",), {"kind": "tanh"}),
    ],
    "squashed": [
        conv("a", "x"),
        Node("n", "norm", ("a",), {"kind": "instance"}),
        Node("t", "activation", ("n",), {"kind": "tanh"}),
        conv("c", "t"),
        Node("y", "activation", ("c",), {"kind": "sigmoid"}),
    ],
    "pooled and reshaped": [
        Node("m", "pool", ("x",), {"kind": "avg", "kernel": 3, "stride": 2, "padding": 1}),
        Node("g", "pool", ("m",), {"kind": "global_avg"}),
        Node("f", "reshape", ("g",), {"shape": [-1]}),
        Node("l", "linear", ("f",), {"out_features": 12}),
        Node("q", "reshape", ("l",), {"shape": [3, 2, 2]}),
    ],
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_graphs(emulated: ModuleType, name: str) -> None:
    graph = image_graph(4, *UNUSUAL[name])
    size = graph.smallest_shapes()["x"][2] + 3
    assert_parity(graph, inputs_for(graph, {"x": (2, 4, size, size + 2)}))


def test_kernels_that_do_not_fit_the_card(native: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small card takes the slow kernel for what needs more shared memory."""
    emulate(native, monkeypatch, shared=SMALL)
    graph = image_graph(4, conv("c", "x", kernel=15, padding=7, stride=2, out_channels=3))
    assert_parity(graph, inputs_for(graph, {"x": (1, 4, 17, 18)}))


# ---------------------------------------------------------------------- maps


def test_maps() -> None:
    index = axis_map([(0, 2, 0, 0, 0), (3, 1, 2, 0, 0)], np.arange(3), vertical=False)
    assert index.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 1]
    assert axis_map([(2, 0, 0, 1, 0), (1, 0, 0, 0, 2)], np.arange(3), True).tolist() == [-1, 0]
    for mode, expected in ((0, [-1, -1, 0, 1, 2, -1]), (1, [2, 1, 0, 1, 2, 1])):
        found = conv_map(np.arange(3), -2, 6, mode)
        assert found.index.tolist() == expected
        assert found.first == -2
    assert conv_map(np.arange(3), -1, 5, 2).index.tolist() == [0, 0, 1, 2, 2]
    assert conv_map(np.arange(9), 0, 4, 1).index.tolist() == [0, 1, 2, 3]
