"""Writes a graph in ncnn's format: a text of layers and the bytes of their weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastgen.graph import Graph, Node

__all__ = ["write"]

_MAGIC = 7767517


def write(graph: Graph, weights: Mapping[str, np.ndarray], folder: Path) -> tuple[Path, Path]:
    """Writes ``net.param`` and ``net.bin``; any input size.

    Args:
        graph: a network of one input and one output.
        weights: float arrays by weight name.
        folder: where to.

    Returns:
        The two paths.

    Raises:
        ValueError: an operator or attribute that this exporter lacks.
    """
    uses = Counter(source for node in graph.nodes for source in node.inputs)
    writer = _Writer(weights, uses)
    writer.layer("Input", graph.inputs[0].name, [], [graph.inputs[0].name])
    for node in graph.nodes:
        writer.add(node)
    blobs = sum(int(line.split()[3]) for line in writer.lines)
    head = [str(_MAGIC), f"{len(writer.lines)} {blobs}"]
    text, binary = folder / "net.param", folder / "net.bin"
    text.write_text("\n".join([*head, *writer.lines]) + "\n", "ascii")
    binary.write_bytes(b"".join(writer.data))
    return text, binary


class _Writer:
    """Collects layers. A value that is read several times goes through a Split, as ncnn wants."""

    def __init__(self, weights: Mapping[str, np.ndarray], uses: Mapping[str, int]) -> None:
        self.weights = weights
        self.uses = uses
        self.lines: list[str] = []
        self.data: list[bytes] = []
        self._copies: dict[str, list[str]] = {}

    def add(self, node: Node) -> None:
        writer = getattr(self, f"_{node.op}", None)
        if writer is None:
            raise ValueError(f"node {node.name!r}: op {node.op!r} cannot be written for ncnn here")
        writer(node, node.attrs, [self._read(source) for source in node.inputs])

    def layer(
        self, kind: str, name: str, sources: list[str], outputs: list[str], **keys: Any
    ) -> None:
        """One line: type, name, numbers of inputs and outputs, their names, ``key=value``."""
        parts = [kind, name, len(sources), len(outputs), *sources, *outputs]
        parts += [f"{key.removeprefix('k')}={value}" for key, value in keys.items()]
        self.lines.append(" ".join(map(str, parts)))
        if kind != "Split":
            for output in outputs:
                if self.uses.get(output, 0) > 1:
                    copies = [f"{output}.{i}" for i in range(self.uses[output])]
                    self.layer("Split", f"{output}.split", [output], copies)
                    self._copies[output] = copies

    def _read(self, source: str) -> str:
        return self._copies[source].pop(0) if source in self._copies else source

    def _weight(self, node: Node, parameter: str, tag: bool = False) -> int:
        array = np.asarray(self.weights[f"{node.name}.{parameter}"], "<f4")
        # The tag of a weight that could also be 16 or 8 bits wide: 0 says float32.
        self.data += [b"\0\0\0\0"] if tag else []
        self.data.append(array.tobytes())
        return int(array.size)

    def _conv(self, node: Node, a: Mapping[str, Any], sources: list[str]) -> None:
        if a["groups"] != 1:
            raise ValueError(f"node {node.name!r}: groups cannot be written for ncnn here")
        padding = a["padding"]
        if a["padding_mode"] == "reflect" and padding:
            padded = f"{node.name}.padded"
            sides = {f"k{i}": padding for i in range(4)}
            self.layer("Padding", padded, sources, [padded], **sides, k4=2)  # 2: reflect
            sources, padding = [padded], 0
        size = self._weight(node, "weight", tag=True)
        if a["bias"]:
            self._weight(node, "bias")
        keys = {"k0": a["out_channels"], "k1": a["kernel"], "k2": 1, "k3": a["stride"]}
        keys |= {"k4": padding, "k5": int(a["bias"]), "k6": size}
        self.layer("Convolution", node.name, sources, [node.name], **keys)

    def _norm(self, node: Node, a: Mapping[str, Any], sources: list[str]) -> None:
        if a["kind"] != "instance" or not a["affine"]:
            raise ValueError(f"node {node.name!r}: this norm cannot be written for ncnn here")
        channels = self._weight(node, "weight")
        self._weight(node, "bias")
        self.layer("InstanceNorm", node.name, sources, [node.name], k0=channels, k1=a["eps"], k2=1)

    def _activation(self, node: Node, a: Mapping[str, Any], sources: list[str]) -> None:
        if a["kind"] not in ("relu", "leaky_relu"):
            raise ValueError(f"node {node.name!r}: {a['kind']} cannot be written for ncnn here")
        slope = a["slope"] if a["kind"] == "leaky_relu" else 0.0
        self.layer("ReLU", node.name, sources, [node.name], k0=slope)

    def _upsample(self, node: Node, a: Mapping[str, Any], sources: list[str]) -> None:
        scale = float(a["scale"])
        self.layer("Interp", node.name, sources, [node.name], k0=1, k1=scale, k2=scale)

    def _add(self, node: Node, a: Mapping[str, Any], sources: list[str]) -> None:
        self.layer("BinaryOp", node.name, sources, [node.name], k0=0)
