"""The ops of a graph as ONNX operators; one method per op."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np

from fastgen.graph import Node

__all__ = ["Writer"]

Operands = Mapping[str, Sequence[tuple[int, ...]]]


class Writer:
    """Collects operators and constants.

    Args:
        weights: float32 arrays by name, batch norms folded in.
        fp16: compute in float16, except for the statistics of norms.
        taken: names of the model's outputs; a value of the same name is renamed.
    """

    def __init__(
        self, weights: Mapping[str, np.ndarray], *, fp16: bool, taken: Container[str]
    ) -> None:
        self.weights = weights
        self.fp16 = fp16
        self.taken = taken
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.names: dict[str, str] = {}  # value of the graph -> name in the model
        self.image_size = ""
        self._known: set[str] = set()

    # ------------------------------------------------------------------ building blocks

    def bind(self, value: str, name: str) -> None:
        """Says under which name the model has a value of the graph."""
        self.names[value] = name

    def emit(self, op: str, inputs: Sequence[str], output: str, **attrs: Any) -> str:
        """Adds an operator with one output and returns its name."""
        from onnx import helper

        self.nodes.append(helper.make_node(op, list(inputs), [output], name=output, **attrs))
        return output

    def constant(self, name: str, value: np.ndarray) -> str:
        """Adds a constant, or finds the one of this name."""
        from onnx import numpy_helper

        if name not in self._known:
            self._known.add(name)
            self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def integers(self, name: str, values: Sequence[int]) -> str:
        """An int64 vector."""
        return self.constant(name, np.array(values, np.int64))

    def scalars(self, name: str, *values: float) -> list[str]:
        """float32 scalars."""
        return [self.constant(f"{name}_{i}", np.array(v, np.float32)) for i, v in enumerate(values)]

    def affine(self, source: str, factor: float, offset: float, name: str) -> str:
        """``factor * source + offset`` in float32."""
        first, second = self.scalars(name, factor, offset)
        if factor != 1:
            source = self.emit("Mul", [source, first], f"{name}_scaled")
        return self.emit("Add", [source, second], name) if offset != 0 else source

    def half(self, name: str) -> str:
        """The value in the type that the network computes in."""
        return self._cast(name, f"{name}_half", 10) if self.fp16 else name

    def float(self, name: str) -> str:
        """The value in float32."""
        return self._cast(name, f"{name}_float", 1) if self.fp16 else name

    def _cast(self, name: str, output: str, to: int) -> str:
        if output not in self._known:  # several readers share one cast
            self._known.add(output)
            self.emit("Cast", [name], output, to=to)
        return output

    def _numbers(self, name: str, value: np.ndarray, *, exact: bool = False) -> str:
        kind = np.float16 if self.fp16 and not exact else np.float32
        return self.constant(name, np.asarray(value, kind))

    def _weight(self, node: Node, parameter: str, *, exact: bool = False) -> str:
        name = f"{node.name}.{parameter}"
        return self._numbers(name, self.weights[name], exact=exact)

    # ------------------------------------------------------------------ ops

    def add(self, node: Node, operands: Operands) -> None:
        """Adds one node of the graph.

        Args:
            node: its inputs have been added or bound before.
            operands: shapes of the inputs of every node, for sizes that weights do not tell.
        """
        output = f"{node.name}_value" if node.name in self.taken else node.name
        sources = [self.names[s] for s in node.inputs]
        method = getattr(self, f"_{node.op}")
        self.names[node.name] = method(node, node.attrs, sources, output, operands[node.name])

    def _conv(self, node: Node, a: Any, x: list[str], output: str, _: Any) -> str:
        source, padding = x[0], a["padding"]
        if a["padding_mode"] == "reflect" and padding:
            source = self._reflect(source, [padding] * 4, f"{node.name}_padded")
            padding = 0
        return self.emit(
            "Conv",
            [source, *self._parameters(node, a)],
            output,
            kernel_shape=[a["kernel"]] * 2,
            strides=[a["stride"]] * 2,
            pads=[padding] * 4,
            group=a["groups"],
        )

    def _conv_transpose(self, node: Node, a: Any, x: list[str], output: str, _: Any) -> str:
        return self.emit(
            "ConvTranspose",
            [x[0], *self._parameters(node, a)],
            output,
            kernel_shape=[a["kernel"]] * 2,
            strides=[a["stride"]] * 2,
            pads=[a["padding"]] * 4,
            output_padding=[a["output_padding"]] * 2,
        )

    def _linear(self, node: Node, a: Any, x: list[str], output: str, _: Any) -> str:
        return self.emit("Gemm", [x[0], *self._parameters(node, a)], output, transB=1)

    def _parameters(self, node: Node, a: Any) -> list[str]:
        return [
            self._weight(node, key) for key in (["weight", "bias"] if a["bias"] else ["weight"])
        ]

    def _norm(self, node: Node, a: Any, x: list[str], output: str, operands: Any) -> str:
        # Sums over a whole image do not fit into float16.
        source = self.float(x[0])
        channels = operands[0][1]
        result = f"{output}_normalised" if self.fp16 else output
        if a["kind"] == "given":
            result = self._given_norm(node, a, [source, *x[1:]], result, operands)
        else:
            factors = [
                self._weight(node, "weight", exact=True)
                if a["affine"]
                else self.constant(f"{node.name}.ones", np.ones(channels, np.float32)),
                self._weight(node, "bias", exact=True)
                if a["affine"]
                else self.constant(f"{node.name}.zeros", np.zeros(channels, np.float32)),
            ]
            op = "InstanceNormalization"
            if a["kind"] == "batch":
                op = "BatchNormalization"
                factors += [self._weight(node, f"running_{k}", exact=True) for k in ("mean", "var")]
            self.emit(op, [source, *factors], result, epsilon=a["eps"])
        return self.emit("Cast", [result], output, to=10) if self.fp16 else result

    def _given_norm(self, node: Node, a: Any, x: list[str], output: str, operands: Any) -> str:
        """``(x - mean) / sqrt(variance + eps) * weight + bias`` with mean and variance (N,C)."""
        name, trailing = node.name, len(operands[0]) - 2
        mean, variance = (self.float(v) for v in x[1:])
        if trailing:
            axes = self.integers("axes_hw", [2, 3])
            mean = self.emit("Unsqueeze", [mean, axes], f"{name}_mean")
            variance = self.emit("Unsqueeze", [variance, axes], f"{name}_variance")
        (eps,) = self.scalars(f"{name}.eps", a["eps"])
        deviation = self.emit(
            "Sqrt", [self.emit("Add", [variance, eps], f"{name}_above_zero")], f"{name}_deviation"
        )
        centred = self.emit("Sub", [x[0], mean], f"{name}_centred")
        if not a["affine"]:
            return self.emit("Div", [centred, deviation], output)
        divided = self.emit("Div", [centred, deviation], f"{name}_divided")
        shape = (-1,) + (1,) * trailing
        gamma, beta = (
            self._numbers(f"{name}.{k}", self.weights[f"{name}.{k}"].reshape(shape), exact=True)
            for k in ("weight", "bias")
        )
        return self.emit("Add", [self.emit("Mul", [divided, gamma], f"{name}_times"), beta], output)

    def _activation(self, node: Node, a: Any, x: list[str], output: str, _: Any) -> str:
        names = {"relu": "Relu", "leaky_relu": "LeakyRelu", "tanh": "Tanh", "sigmoid": "Sigmoid"}
        extra = {"alpha": a["slope"]} if a["kind"] == "leaky_relu" else {}
        return self.emit(names[a["kind"]], [x[0]], output, **extra)

    def _upsample(self, node: Node, a: Any, x: list[str], output: str, _: Any) -> str:
        scale = a["scale"]
        factors = self.constant(f"scales_{scale}", np.array([1, 1, scale, scale], np.float32))
        return self.emit(
            "Resize",
            [x[0], "", factors],
            output,
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )

    def _pool(self, node: Node, a: Any, x: list[str], output: str, _: Any) -> str:
        if a["kind"] == "global_avg":
            return self.emit("GlobalAveragePool", [x[0]], output)
        window = dict(
            kernel_shape=[a["kernel"]] * 2, strides=[a["stride"]] * 2, pads=[a["padding"]] * 4
        )
        if a["kind"] == "max":
            return self.emit("MaxPool", [x[0]], output, **window)
        return self.emit("AveragePool", [x[0]], output, count_include_pad=0, **window)

    def _concat(self, node: Node, a: Any, x: list[str], output: str, _: Any) -> str:
        return self.emit("Concat", x, output, axis=1)

    def _add(self, node: Node, a: Any, x: list[str], output: str, _: Any) -> str:
        return self.emit("Add", x, output)

    def _mul(self, node: Node, a: Any, x: list[str], output: str, _: Any) -> str:
        return self.emit("Mul", x, output)

    def _affine(self, node: Node, a: Any, x: list[str], output: str, operands: Any) -> str:
        shape = (-1,) + (1,) * (len(operands[0]) - 2)
        factor, offset = (
            self._numbers(f"{node.name}.{k}", np.asarray(a[k], np.float32).reshape(shape))
            for k in ("scale", "shift")
        )
        scaled = self.emit("Mul", [x[0], factor], f"{node.name}_scaled")
        return self.emit("Add", [scaled, offset], output)

    def _pad(self, node: Node, a: Any, x: list[str], output: str, _: Any) -> str:
        left, right, top, bottom = a["padding"]
        sides = [top, left, bottom, right]
        if a["mode"] == "reflect":
            return self._reflect(x[0], sides, output)
        pads = self.integers(f"{node.name}.pads", [0, 0, *sides[:2], 0, 0, *sides[2:]])
        zero = self._numbers(f"{node.name}.zero", np.zeros((), np.float32))
        return self.emit("Pad", [x[0], pads, zero], output, mode="constant")

    def _reflect(self, source: str, sides: list[int], output: str) -> str:
        """Reflection; sides are top, left, bottom, right."""
        name = "pads_" + "_".join(map(str, sides))
        pads = self.integers(name, [0, 0, *sides[:2], 0, 0, *sides[2:]])
        return self.emit("Pad", [source, pads], output, mode="reflect")

    def _crop(self, node: Node, a: Any, x: list[str], output: str, _: Any) -> str:
        left, right, top, bottom = a["crop"]
        far = np.iinfo(np.int64).max
        starts = self.integers(f"{node.name}.starts", [top, left])
        ends = self.integers(f"{node.name}.ends", [-bottom or far, -right or far])
        return self.emit("Slice", [x[0], starts, ends, self.integers("axes_hw", [2, 3])], output)

    def _broadcast(self, node: Node, a: Any, x: list[str], output: str, operands: Any) -> str:
        vector = x[0]
        if len(operands[0]) == 2:
            axes = self.integers("axes_hw", [2, 3])
            vector = self.emit("Unsqueeze", [vector, axes], f"{node.name}_pixel")
        shape = self.emit("Shape", [x[1]], f"{node.name}_like")
        start, end = self.integers("start_2", [2]), self.integers("end_4", [4])
        size = self.emit("Slice", [shape, start, end], f"{node.name}_size")
        ones = self.integers("ones_2", [1, 1])
        whole = self.emit("Concat", [ones, size], f"{node.name}_shape", axis=0)
        return self.emit("Expand", [vector, whole], output)

    def _reshape(self, node: Node, a: Any, x: list[str], output: str, _: Any) -> str:
        # 0 keeps the batch as it is.
        shape = self.integers(f"{node.name}.shape", [0, *a["shape"]])
        return self.emit("Reshape", [x[0], shape], output)
