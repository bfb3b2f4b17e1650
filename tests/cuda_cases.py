"""What the tests of the cuda backend share: networks, pictures, references."""

from __future__ import annotations

from typing import Any

import numpy as np
from cpu_cases import random_weights, torch_reference

from fastgen import backends
from fastgen.backends import ImageIO, _cuda_runner
from fastgen.graph import Graph, Node

STYLE = ImageIO((0.0, 255.0), (0.0, 255.0))


def runner(graph: Graph, precision: str = "fp32", **config: Any) -> _cuda_runner.Runner:
    config = {"tune": False} | config  # measuring tiles on the emulated card takes its time
    return _cuda_runner.Runner(graph, random_weights(graph), precision, **config)


def inputs_for(graph: Graph, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        k: rng.normal(size=shapes[k]).astype(np.float32) for k in (i.name for i in graph.inputs)
    }


def assert_parity(graph: Graph, inputs: dict[str, np.ndarray], **config: Any) -> list[str]:
    """fp32 against torch in float64, launched one by one and captured; the launches' labels."""
    expected = torch_reference(graph, random_weights(graph), inputs)
    ours = runner(graph, **config)
    for _ in range(3):
        got = ours.run(inputs)
        assert got.keys() == expected.keys()
        for name, reference in expected.items():
            assert got[name].shape == reference.shape
            assert got[name].dtype == np.float32
            bound = 1e-3 * max(1.0, float(np.abs(reference).max()))
            np.testing.assert_allclose(got[name], reference, rtol=0, atol=bound)
    return ours.launches(inputs)


def picture(n: int, height: int, width: int, dtype: Any = np.uint8) -> np.ndarray:
    rng = np.random.default_rng(1)
    rough = rng.integers(0, 256, (n, height // 4 + 2, width // 4 + 2, 3))
    photo = rough.repeat(4, 1).repeat(4, 2)[:, :height, :width].astype(np.uint8)
    return photo if dtype == np.uint8 else photo.astype(np.float32) / np.float32(255)


def style_weights(graph: Graph) -> dict[str, np.ndarray]:
    """Random weights whose pictures use the range 0..255."""
    weights = random_weights(graph)
    for name in graph.outputs.values():
        if f"{name}.weight" in weights:
            weights[f"{name}.weight"] *= np.float32(40)
            weights[f"{name}.bias"] = weights[f"{name}.bias"] + np.float32(127)
    return weights


def reference_pictures(graph: Graph, photo: np.ndarray, io: ImageIO) -> np.ndarray:
    torch_runner = backends.get("torch").compile(graph, style_weights(graph), "fp32", 1)
    return torch_runner.run(photo, io)  # type: ignore[no-any-return]


def conv(name: str, source: str, **attrs: Any) -> Node:
    return Node(name, "conv", (source,), {"out_channels": 8, "kernel": 3, "padding": 1} | attrs)
