"""Convolutions with few inputs or few outputs (Winograd along the rows), against float64."""

from __future__ import annotations

import numpy as np
import pytest
from cpu_cases import ISAS, compare, image_graph, need_isa, random_weights, torch_reference

from fastgen.backends.cpu import Runner
from fastgen.graph import Graph, Node

pytest.importorskip("torch")

# inputs, outputs, kernel, height, width
CASES = [
    (3, 32, 9, 33, 50),
    (1, 17, 3, 9, 31),
    (2, 40, 5, 5, 131),  # two strips of columns
    (4, 16, 7, 66, 20),
    (32, 3, 9, 37, 45),
    (17, 1, 3, 8, 16),
    (5, 4, 5, 70, 140),
    (8, 2, 7, 12, 9),
    (3, 3, 3, 13, 14),
    (1, 1, 5, 11, 19),
]


def _graph(case: tuple[int, ...], mode: str = "reflect", act: str = "") -> Graph:
    inputs, outputs, kernel, *_ = case
    attrs = {"out_channels": outputs, "kernel": kernel, "padding": kernel // 2}
    nodes = [Node("c", "conv", ("x",), attrs | {"padding_mode": mode})]
    if act:
        nodes.append(Node("a", "activation", ("c",), {"kind": act}))
    return image_graph(inputs, *nodes)


def _input(case: tuple[int, ...]) -> np.ndarray:
    inputs, _, _, height, width = case
    rng = np.random.default_rng(4)
    return rng.normal(0.2, 1, (2, inputs, height, width)).astype(np.float32)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32(isa: str, case: tuple[int, ...]) -> None:
    need_isa(isa)
    for mode, act in (("reflect", ""), ("zeros", "tanh")):
        compare(_graph(case, mode, act), {"x": _input(case)}, isa, tolerance=1e-5)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_bfloat16_error(isa: str, case: tuple[int, ...]) -> None:
    need_isa(isa)
    graph, x = _graph(case), _input(case)
    weights = random_weights(graph)
    expected = torch_reference(graph, weights, {"x": x})["y"]
    got = Runner(graph, weights, isa=isa, precision="bf16").run(x)
    error = np.sqrt(np.mean((got - expected) ** 2))
    ratio = 20 * np.log10(expected.std() / error)
    # Two factors rounded to 8 bits, through transforms of six points in one direction; 42 dB in
    # two directions. float32 would be above 100.
    assert 43 < ratio < 60


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 3])
def test_statistics_of_few_inputs(isa: str, threads: int) -> None:
    need_isa(isa)
    for height, width in ((7, 9), (41, 150)):
        graph = image_graph(
            3,
            Node("c", "conv", ("x",), {"out_channels": 20, "kernel": 9, "padding": 4}),
            Node("n", "norm", ("c",), {"kind": "instance", "eps": 1e-5}),
            Node("a", "activation", ("n",), {"kind": "relu"}),
            Node("y", "conv", ("a",), {"out_channels": 3, "kernel": 9, "padding": 4}),
        )
        x = _input((3, 3, 9, height, width)) + 5
        compare(graph, {"x": x}, isa, tolerance=2e-5, threads=threads)


@pytest.mark.parametrize("isa", ISAS)
def test_an_upsampled_source_and_an_external_result(isa: str) -> None:
    need_isa(isa)
    graph = image_graph(
        16,
        Node("n", "norm", ("x",), {"kind": "batch", "eps": 0.1}),
        Node("u", "upsample", ("n",), {"scale": 2}),
        Node("c", "conv", ("u",), {"out_channels": 3, "kernel": 5, "padding": 2}),
    )
    x = np.random.default_rng(1).normal(size=(1, 16, 21, 35)).astype(np.float32)
    compare(graph, {"x": x}, isa, tolerance=1e-5)
