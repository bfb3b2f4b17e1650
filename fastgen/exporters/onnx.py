"""Graphs as ONNX models, for ONNX Runtime, OpenVINO, TensorRT and others.

Written straight from the graph, not by tracing: a runtime gets the operators that it has kernels
for (``Pad`` with reflection, ``Conv``, ``InstanceNormalization``, ``Resize``) and no chains of
shape arithmetic, with free batch and image sizes. Batch norms fold into the convolution before
them, and so do the ranges of the picture where a convolution is next to them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastgen.checkpoint import Checkpoint, atomic_write
from fastgen.errors import FastgenError
from fastgen.exporters._onnx_ops import Writer
from fastgen.graph import Dim, Graph, Node

if TYPE_CHECKING:
    import onnx

__all__ = ["OPSET", "checkpoint_model", "describe", "export_onnx", "onnx_model"]

OPSET = 17
IR_VERSION = 8  # what OPSET came with; runtimes refuse versions newer than they are

Shapes = Mapping[str, Sequence[int]]


def export_onnx(
    style: str | os.PathLike[str] | Checkpoint,
    path: str | os.PathLike[str],
    *,
    fp16: bool = False,
    any_size: bool = False,
) -> Path:
    """Writes a checkpoint as an ONNX file (opset 17), checked by ``onnx.checker``.

    Inputs and outputs are float32 in [0,1], RGB, with their names in the graph (``image`` and
    ``stylized`` for styles) and shape (N,3,H,W), all three free. H and W must be multiples of
    what the network divides them by (4 for the shipped styles) and at least its smallest size;
    the file's metadata names both (``size_divisor``, ``size_minimum``). ``any_size`` makes the
    file pad and crop by itself, as :func:`fastgen.stylize` does, at the price of shape operators.

    Args:
        style: name of a shipped style, path of a checkpoint, or a ``Checkpoint``.
        path: the file to write, usually ``*.onnx``; it appears complete or not at all.
        fp16: weights and convolutions in float16; normalisation stays in float32, because sums
            over a whole image overflow float16.
        any_size: sizes that are no multiples are mirrored to one inside and cropped at the end.

    Returns:
        The path.

    Raises:
        FastgenError: the package ``onnx`` is not installed.
        ValueError: ``any_size`` for a network that is not one image in and images out.
        OSError, CheckpointError: as for :func:`fastgen.load_checkpoint`.
    """
    path = Path(path)
    model = checkpoint_model(style, fp16=fp16, any_size=any_size)
    atomic_write(path, model.SerializeToString())
    return path


def checkpoint_model(
    style: str | os.PathLike[str] | Checkpoint, *, fp16: bool = False, any_size: bool = False
) -> onnx.ModelProto:
    """What :func:`export_onnx` writes, as an object."""
    from fastgen.checkpoint import load_checkpoint
    from fastgen.styles import style_path

    ckpt = style if isinstance(style, Checkpoint) else load_checkpoint(style_path(style))
    model = onnx_model(
        ckpt.graph,
        ckpt.weights,
        ranges=(tuple(ckpt.meta["input_range"]), tuple(ckpt.meta["output_range"])),
        fp16=fp16,
        any_size=any_size,
    )
    divisor, minimum = _size_rule(ckpt.graph)
    notes = {
        "fastgen.style": str(ckpt.meta.get("style", "")),
        "fastgen.licence": str(ckpt.meta.get("licence", "")),
        "fastgen.sha256": str(ckpt.meta.get("sha256", "")),
        "size_divisor": str(1 if any_size else divisor),
        "size_minimum": str(minimum),
    }
    for key, value in notes.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    return model


def describe(path: str | os.PathLike[str]) -> str:
    """One line on the inputs, outputs and sizes of a file written by :func:`export_onnx`."""
    model = _import_onnx().load(os.fspath(path))

    def values(infos: Any) -> str:
        return ", ".join(
            f"{v.name} ({','.join(d.dim_param or str(d.dim_value or '?') for d in shape.dim)})"
            for v in infos
            for shape in [v.type.tensor_type.shape]
        )

    notes = {p.key: p.value for p in model.metadata_props}
    sizes = f"sides from {notes['size_minimum']} px"
    if notes["size_divisor"] != "1":
        sizes = f"sides in multiples of {notes['size_divisor']}, {sizes[6:]}"
    free = any(d.dim_param == "H" for v in model.graph.input for d in v.type.tensor_type.shape.dim)
    line = f"{values(model.graph.input)} -> {values(model.graph.output)}, opset {OPSET}"
    return f"{line}, {sizes}" if free else line


def onnx_model(
    graph: Graph,
    weights: Mapping[str, np.ndarray],
    *,
    ranges: tuple[tuple[float, float], tuple[float, float]] | None = None,
    shapes: Shapes | None = None,
    fp16: bool = False,
    any_size: bool = False,
) -> onnx.ModelProto:
    """A graph as a checked ONNX model.

    Args:
        graph: any graph.
        weights: float arrays by weight name.
        ranges: (input range, output range) of the network: inputs and outputs of the model are
            then in [0,1]. None: they are in the network's own ranges.
        shapes: fixed shape of each input, for runtimes that gain by it; None leaves them free.
        fp16: see :func:`export_onnx`.
        any_size: see :func:`export_onnx`.

    Raises:
        FastgenError: the package ``onnx`` is not installed.
        ValueError: see :func:`export_onnx`.
        GraphError: ``shapes`` do not fit the graph.
    """
    onnx = _import_onnx()
    images = [i for i in graph.inputs if len(i.shape) == 4]
    if any_size and (len(images) != 1 or len(graph.inputs) != 1):
        raise ValueError(
            f"any_size needs a network with one image as its only input, {graph.name!r} has "
            f"{', '.join(i.name for i in graph.inputs)}; export it without any_size"
        )
    folder = _Folder(graph, weights, ranges)
    writer = Writer(folder.weights, fp16=fp16, taken=graph.outputs)
    for item in graph.inputs:
        name = item.name
        if any_size:
            name = _mirrored(writer, name, graph)
        if name not in folder.scaled_inputs and ranges is not None:
            name = writer.affine(name, *_to_range(*ranges[0]), f"{item.name}_in_range")
        writer.bind(item.name, writer.half(name))
    for node in folder.nodes:
        writer.add(node, folder.operand_shapes)
    for output, value in graph.outputs.items():
        name = writer.float(writer.names[folder.value(value)])
        if ranges is not None:
            if value not in folder.scaled_outputs:
                name = writer.affine(name, *_from_range(*ranges[1]), f"{output}_in_range")
            last = f"{output}_clipped" if any_size else output
            name = writer.emit("Clip", [name, *writer.scalars(last, 0.0, 1.0)], last)
        if any_size:
            _cropped(writer, name, output)
        elif name != output:
            writer.emit("Identity", [name], output)
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            writer.nodes,
            graph.name,
            [
                _describe(i.name, _free(i.shape) if shapes is None else shapes[i.name])
                for i in graph.inputs
            ],
            [_describe(o, s) for o, s in _output_shapes(graph, shapes).items()],
            writer.constants,
        ),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="fastgen",
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def _import_onnx() -> Any:
    try:
        import onnx
    except ImportError as error:
        raise FastgenError(
            f"ONNX export needs the package onnx ({error}): pip install 'fastgen[onnx]'"
        ) from None
    return onnx


# ---------------------------------------------------------------------- sizes


def _size_rule(graph: Graph) -> tuple[int, int]:
    dims = [d for i in graph.inputs if len(i.shape) == 4 for d in i.shape[2:]]
    symbols = [d for d in dims if isinstance(d, Dim)]
    divisor = max((d.divisor for d in symbols), default=1)
    return divisor, max((d.minimum for d in symbols), default=1)


def _free(shape: Sequence[int | Dim]) -> list[int | str]:
    return [d.symbol if isinstance(d, Dim) else d for d in shape]


def _output_shapes(graph: Graph, shapes: Shapes | None) -> dict[str, Sequence[int | str | None]]:
    """Sizes of the outputs; a free size has the input's symbol where it is the input's."""
    small = graph.smallest_shapes()
    known = graph.infer_shapes(
        small if shapes is None else {k: tuple(v) for k, v in shapes.items()}
    )
    if shapes is not None:
        return {name: known[value] for name, value in graph.outputs.items()}
    result: dict[str, Sequence[int | str | None]] = {}
    for name, value in graph.outputs.items():
        size = known[value][2:]
        free: Sequence[int | str | None] = size
        if any(isinstance(d, Dim) for i in graph.inputs for d in i.shape[2:]):
            same = [i for i in graph.inputs if small[i.name][2:] == size]
            free = _free(same[0].shape[2:]) if same else [None] * len(size)
        result[name] = ["N", known[value][1], *free]
    return result


def _describe(name: str, shape: Sequence[int | str | None]) -> Any:
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def _mirrored(writer: Writer, image: str, graph: Graph) -> str:
    """Pads height and width at the end to the next multiple of the divisor, by reflection."""
    divisor, minimum = _size_rule(graph)
    shape = writer.emit("Shape", [image], f"{image}_shape")
    start, end = writer.integers("start_2", [2]), writer.integers("end_4", [4])
    size = writer.emit("Slice", [shape, start, end], f"{image}_size")
    # -size mod divisor, and enough for the smallest size
    by = writer.integers("divisor", [divisor, divisor])
    zero = writer.integers("zeros_2", [0, 0])
    negative = writer.emit("Sub", [zero, size], f"{image}_negative")
    missing = writer.emit("Mod", [negative, by], f"{image}_missing")
    least = writer.integers("least", [-(-minimum // divisor) * divisor] * 2)
    short = writer.emit("Sub", [least, size], f"{image}_short")
    missing = writer.emit("Max", [missing, short], f"{image}_padding")
    front = writer.integers("zeros_6", [0] * 6)
    pads = writer.emit("Concat", [front, missing], f"{image}_pads", axis=0)
    writer.image_size = size
    return writer.emit("Pad", [image, pads], f"{image}_mirrored", mode="reflect")


def _cropped(writer: Writer, name: str, output: str) -> None:
    starts, axes = writer.integers("zeros_2", [0, 0]), writer.integers("axes_hw", [2, 3])
    writer.emit("Slice", [name, starts, writer.image_size, axes], output)


# ---------------------------------------------------------------------- ranges and batch norms


def _to_range(low: float, high: float) -> tuple[float, float]:
    """Factor and offset that take [0,1] to a range."""
    return high - low, low


def _from_range(low: float, high: float) -> tuple[float, float]:
    """Factor and offset that take a range to [0,1]."""
    return 1 / (high - low), -low / (high - low)


class _Folder:
    """Weights with batch norms and picture ranges folded in, and the nodes that remain."""

    def __init__(
        self,
        graph: Graph,
        weights: Mapping[str, np.ndarray],
        ranges: tuple[tuple[float, float], tuple[float, float]] | None,
    ) -> None:
        self.graph = graph
        self.weights = {k: np.asarray(v, np.float32) for k, v in weights.items()}
        self.readers: dict[str, list[Node]] = {}
        for node in graph.nodes:
            for source in node.inputs:
                self.readers.setdefault(source, []).append(node)
        self.folded: dict[str, str] = {}  # a batch norm -> the node that it went into
        self.nodes: list[Node] = []
        self.scaled_inputs: set[str] = set()
        self.scaled_outputs: set[str] = set()
        by_name = {n.name: n for n in graph.nodes}
        for node in graph.nodes:
            if not self._fold_norm(node, by_name):
                self.nodes.append(node)
        if ranges is not None:
            self._fold_ranges(ranges, by_name)
        self.nodes = [self._with_bias(n) for n in self.nodes]
        known = graph.infer_shapes(graph.smallest_shapes())
        self.operand_shapes = {n.name: [known[s] for s in n.inputs] for n in graph.nodes}

    def value(self, name: str) -> str:
        """The node that computes a value after folding."""
        return self.folded.get(name, name)

    def _with_bias(self, node: Node) -> Node:
        inputs = tuple(self.value(s) for s in node.inputs)
        has = f"{node.name}.bias" in self.weights
        attrs = node.attrs | ({"bias": has} if "bias" in node.attrs else {})
        return Node(node.name, node.op, inputs, attrs)

    def _bias(self, node: Node) -> np.ndarray:
        width = node.attrs["out_features" if node.op == "linear" else "out_channels"]
        known = self.weights.get(f"{node.name}.bias")
        return np.zeros(width, np.float32) if known is None else known

    def _scale(self, node: Node, factor: np.ndarray, offset: np.ndarray) -> None:
        """Makes a node compute ``factor * y + offset`` for each output channel."""
        weight = self.weights[f"{node.name}.weight"]
        axis = 1 if node.op == "conv_transpose" else 0
        shape = [1] * weight.ndim
        shape[axis] = -1
        bias = self._bias(node).astype(np.float64)
        self.weights[f"{node.name}.weight"] = (weight * factor.reshape(shape)).astype(np.float32)
        self.weights[f"{node.name}.bias"] = (bias * factor + offset).astype(np.float32)

    def _fold_norm(self, node: Node, by_name: Mapping[str, Node]) -> bool:
        if node.op != "norm" or node.attrs["kind"] != "batch":
            return False
        source = by_name.get(node.inputs[0])
        if source is None or source.op not in ("conv", "conv_transpose", "linear"):
            return False
        if len(self.readers[source.name]) > 1 or source.name in self.graph.outputs.values():
            return False
        mean, variance = (
            self.weights.pop(f"{node.name}.running_{k}").astype(np.float64) for k in ("mean", "var")
        )
        factor = 1 / np.sqrt(variance + node.attrs["eps"])
        offset = -mean * factor
        if node.attrs["affine"]:
            gamma, beta = (self.weights.pop(f"{node.name}.{k}") for k in ("weight", "bias"))
            factor, offset = factor * gamma, offset * gamma + beta
        self._scale(source, factor, offset)
        self.folded[node.name] = source.name
        return True

    def _fold_ranges(
        self,
        ranges: tuple[tuple[float, float], tuple[float, float]],
        by_name: Mapping[str, Node],
    ) -> None:
        """A range next to a convolution becomes part of its weights."""
        (low, high) = ranges[0]
        for item in self.graph.inputs:
            readers = self.readers.get(item.name, [])
            # Zero padding is black in [0,1] and in the network's range only if black is 0.
            if (
                low == 0
                and item.name not in self.graph.outputs.values()
                and readers
                and all(n.op == "conv" for n in readers)
            ):
                for node in readers:
                    self.weights[f"{node.name}.weight"] = self.weights[
                        f"{node.name}.weight"
                    ] * np.float32(high)
                self.scaled_inputs.add(item.name)
        values = list(self.graph.outputs.values())
        for value in values:
            target = by_name.get(self.value(value))
            if (
                target is not None
                and target.op in ("conv", "conv_transpose")
                and not self.readers.get(value)
                and values.count(value) == 1
            ):
                factor, offset = _from_range(*ranges[1])
                width = target.attrs["out_channels"]
                self._scale(target, np.full(width, factor), np.full(width, offset))
                self.scaled_outputs.add(value)
