"""What is measured: a network, a batch size, and whether the style is encoded in every call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastgen import models
from fastgen.backends._joins import constants
from fastgen.checkpoint import Checkpoint
from fastgen.graph import Dim, Graph, Input

__all__ = ["BATCHES", "NETWORKS", "Case", "inputs", "network", "without_style"]

NETWORKS = ("saae_mnist", "saae_characters", "saae_plates", "saae_faces")
BATCHES = (1, 16, 64, 256)


@dataclass(frozen=True)
class Case:
    """A row group of the table.

    Attributes:
        network: a registered model of two inputs.
        batch: contents of a call, each with a style of its own.
        encoded: whether the style is encoded in every call. Otherwise it was beforehand: ours
            keeps what depends on it, the others get what the decoder reads of it.
    """

    network: str
    batch: int
    encoded: bool

    @property
    def name(self) -> str:
        """What the table calls it."""
        return f"{self.network}, batch {self.batch}, style {'' if self.encoded else 'not '}encoded"


def network(name: str) -> Checkpoint:
    """A network with random weights of sensible scale, the same ones in every process."""
    graph = models.create(name)
    rng = np.random.default_rng(0)
    weights = {}
    for key, shape in graph.weight_shapes().items():
        if key.endswith("running_var") or (key.endswith("weight") and len(shape) == 1):
            value = rng.uniform(0.8, 1.2, shape)
        elif len(shape) == 1:
            value = rng.normal(0, 0.1, shape)
        else:
            value = rng.standard_normal(shape) * (2 / np.prod(shape[1:])) ** 0.5
        weights[key] = value.astype(np.float32)
    return Checkpoint(graph, weights, {"input_range": [0, 1], "output_range": [0, 1]})


def inputs(graph: Graph, batch: int) -> dict[str, np.ndarray]:
    """Random pictures, the same ones in every process."""
    rng = np.random.default_rng(1)
    return {
        item.name: rng.random((batch, *item.shape[1:]), np.float32)  # type: ignore[arg-type]
        for item in graph.inputs
    }


def without_style(
    whole: Checkpoint, arrays: Mapping[str, np.ndarray]
) -> tuple[Checkpoint, dict[str, np.ndarray]]:
    """The network that takes encoded styles as an input, and its inputs.

    Args:
        whole: a network with a constant input.
        arrays: its inputs.
    """
    from fastgen.backends.torch import Runner

    graph = whole.graph
    known = constants(graph)
    nodes = [node for node in graph.nodes if node.name not in known]
    read = {name for node in nodes for name in node.inputs if name in known}
    batch = len(next(iter(arrays.values())))
    probe = Graph(graph.name, graph.inputs, graph.nodes, {name: name for name in sorted(read)})
    shapes = graph.infer_shapes({name: array.shape for name, array in arrays.items()})
    wanted = {key: whole.weights[key] for key in probe.weight_shapes()}
    styles: Any = Runner(probe, wanted, "fp32", None).run(dict(arrays))
    styles = styles if isinstance(styles, dict) else {min(read): styles}
    items = [item for item in graph.inputs if not item.constant]
    items += [Input(name, (Dim("N"), *shapes[name][1:])) for name in sorted(read)]
    rest = Graph(graph.name, tuple(items), tuple(nodes), graph.outputs)
    weights = {key: whole.weights[key] for key in rest.weight_shapes()}
    given = {item.name: arrays.get(item.name) for item in items}
    given |= {name: np.ascontiguousarray(styles[name], np.float32) for name in sorted(read)}
    assert all(array is not None and len(array) == batch for array in given.values())
    return Checkpoint(rest, weights, whole.meta), {k: v for k, v in given.items() if v is not None}
