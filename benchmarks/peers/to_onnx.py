"""Writes a graph as an ONNX model of fixed input sizes, for the peers that read ONNX.

Straight from the graph, not through ``torch.onnx``: the runtimes get the operators that they have
kernels for (``InstanceNormalization``, ``Resize``), not what tracing makes of them, and no other
package is needed. Only the operators of the networks that are compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fastgen.graph import Graph, Node

__all__ = ["onnx_model"]

OPSET = 17
IR_VERSION = 8  # what OPSET came with; runtimes refuse versions newer than they are


def onnx_model(
    graph: Graph, weights: Mapping[str, np.ndarray], inputs: Mapping[str, tuple[int, ...]]
) -> onnx.ModelProto:
    """The graph for inputs of these shapes, checked.

    Args:
        graph: a network of one output.
        weights: float arrays by weight name.
        inputs: shapes by input name.

    Raises:
        ValueError: an operator or attribute that this exporter lacks.
    """
    shapes = graph.infer_shapes(inputs)
    writer = _Writer(weights, shapes)
    for node in graph.nodes:
        writer.add(node)
    (value,) = graph.outputs.values()
    model = helper.make_model(
        helper.make_graph(
            writer.nodes,
            graph.name,
            [
                helper.make_tensor_value_info(item.name, TensorProto.FLOAT, shapes[item.name])
                for item in graph.inputs
            ],
            [helper.make_tensor_value_info(value, TensorProto.FLOAT, shapes[value])],
            writer.constants,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


class _Writer:
    """Collects ONNX nodes; a value keeps its name in the graph."""

    def __init__(
        self, weights: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]
    ) -> None:
        self.weights = weights
        self.shapes = shapes
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, node: Node) -> None:
        writer = getattr(self, f"_{node.op}", None)
        if writer is None:
            raise ValueError(f"node {node.name!r}: op {node.op!r} cannot be written as ONNX here")
        writer(node, node.attrs)

    def _emit(self, op: str, inputs: list[str], output: str, **attrs: Any) -> None:
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attrs))

    def _constant(self, name: str, value: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def _weight(self, node: Node, parameter: str) -> str:
        name = f"{node.name}.{parameter}"
        return self._constant(name, np.asarray(self.weights[name], np.float32))

    def _conv(self, node: Node, a: Mapping[str, Any]) -> None:
        source, padding = node.inputs[0], a["padding"]
        if a["padding_mode"] == "reflect" and padding:
            sides = [0, 0, padding, padding] * 2
            pads = self._constant(f"{node.name}.pads", np.array(sides, np.int64))
            self._emit("Pad", [source, pads], f"{node.name}.padded", mode="reflect")
            source, padding = f"{node.name}.padded", 0
        inputs = [source, self._weight(node, "weight")]
        if a["bias"]:
            inputs.append(self._weight(node, "bias"))
        self._emit(
            "Conv",
            inputs,
            node.name,
            kernel_shape=[a["kernel"]] * 2,
            strides=[a["stride"]] * 2,
            pads=[padding] * 4,
            group=a["groups"],
        )

    def _norm(self, node: Node, a: Mapping[str, Any]) -> None:
        if not a["affine"] or a["kind"] == "given":
            raise ValueError(
                f"node {node.name!r}: this kind of norm cannot be written as ONNX here"
            )
        names = ["weight", "bias"]
        op = "InstanceNormalization"
        if a["kind"] == "batch":
            op = "BatchNormalization"
            names += ["running_mean", "running_var"]
        inputs = [node.inputs[0], *(self._weight(node, name) for name in names)]
        self._emit(op, inputs, node.name, epsilon=a["eps"])

    def _activation(self, node: Node, a: Mapping[str, Any]) -> None:
        names = {"relu": "Relu", "leaky_relu": "LeakyRelu", "tanh": "Tanh", "sigmoid": "Sigmoid"}
        extra = {"alpha": a["slope"]} if a["kind"] == "leaky_relu" else {}
        self._emit(names[a["kind"]], [node.inputs[0]], node.name, **extra)

    def _upsample(self, node: Node, a: Mapping[str, Any]) -> None:
        factors = np.array([1, 1, a["scale"], a["scale"]], np.float32)
        scales = self._constant(f"{node.name}.scales", factors)
        self._emit(
            "Resize",
            [node.inputs[0], "", scales],
            node.name,
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )

    def _add(self, node: Node, a: Mapping[str, Any]) -> None:
        self._emit("Add", list(node.inputs), node.name)

    def _linear(self, node: Node, a: Mapping[str, Any]) -> None:
        names = ["weight", "bias"] if a["bias"] else ["weight"]
        inputs = [node.inputs[0], *(self._weight(node, name) for name in names)]
        self._emit("Gemm", inputs, node.name, transB=1)

    def _reshaped(self, source: str, output: str, shape: tuple[int, ...]) -> str:
        target = self._constant(f"{output}.shape", np.array(shape, np.int64))
        self._emit("Reshape", [source, target], output)
        return output

    def _reshape(self, node: Node, a: Mapping[str, Any]) -> None:
        self._reshaped(node.inputs[0], node.name, self.shapes[node.name])

    def _concat(self, node: Node, a: Mapping[str, Any]) -> None:
        self._emit("Concat", list(node.inputs), node.name, axis=1)

    def _broadcast(self, node: Node, a: Mapping[str, Any]) -> None:
        shape = self.shapes[node.name]
        column = self._reshaped(node.inputs[0], f"{node.name}.column", (*shape[:2], 1, 1))
        sizes = self._constant(f"{node.name}.sizes", np.array(shape, np.int64))
        self._emit("Expand", [column, sizes], node.name)
