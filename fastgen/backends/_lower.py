"""From a graph to a flat list of fused steps, for backends that run their own kernels.

A node that only changes how a value is *read* costs no step. Normalisation, activation, residual
addition, upsampling, cropping and padding are collected in a :class:`Source`, the recipe

    views(post(combine(pre(scale * x + shift), residual)))

that the next convolution applies while it loads its input window. What precedes a value (batch
norm, an activation behind a convolution) is folded into the convolution that writes it. A value
with several readers is written to memory once: by the first convolution that loads it (``store``)
or, where that is not possible, by a copy step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from fastgen.backends._joins import FEW, Joins, constant_first, constants, fixed_shapes
from fastgen.backends._steps import (
    ConvStep,
    CopyStep,
    GivenStep,
    Lowered,
    Norm,
    Phase,
    PlainStep,
    Slot,
    Source,
    StatsStep,
    Step,
    View,
)
from fastgen.errors import GraphError
from fastgen.graph import Graph, Node

__all__ = ["ACTIVATIONS", "check_weights", "lower"]

ACTIVATIONS = {"none": 0, "relu": 1, "leaky_relu": 2, "tanh": 3, "sigmoid": 4}
_COMBINE = {"add": 1, "mul": 2}
_UPSAMPLE, _CROP, _PAD_ZEROS, _PAD_REFLECT = range(4)
_ZEROS, _REFLECT = range(2)
_POOLS = {"max": 0, "avg": 1, "global_avg": 2}

_TINY = 64  # pixels of a map that are too few for Winograd: its weights are read for four tiles

Array = np.ndarray


def check_weights(graph: Graph, weights: Mapping[str, Any]) -> dict[str, Array]:
    """Returns the weights as arrays: kernels in their type, vectors (folded later) as float64.

    Raises:
        GraphError: missing, unknown or wrongly shaped weights.
    """
    expected = graph.weight_shapes()
    missing = sorted(set(expected) - set(weights))
    unknown = sorted(set(weights) - set(expected))
    if missing or unknown:
        raise GraphError(f"weights missing: {missing[:5]}, unknown: {unknown[:5]}")
    result = {}
    for key, shape in expected.items():
        array = np.asarray(weights[key])
        if array.shape != shape or array.dtype.kind not in "fiu":
            raise GraphError(
                f"weight {key!r} is {array.dtype} of the shape {array.shape}, must be {shape}"
            )
        result[key] = array if array.ndim > 1 else array.astype(np.float64)
    return result


def lower(graph: Graph, weights: Mapping[str, Any], channels_last: bool = False) -> Lowered:
    """Lowers a graph.

    Args:
        graph: the network.
        weights: arrays by weight name.
        channels_last: values lie in memory as (N,H,W,C), not in blocks of channels.

    Raises:
        GraphError: missing, unknown or wrongly shaped weights.
    """
    return _Lowering(graph, check_weights(graph, weights), channels_last).run()


class _Lowering(Joins):
    def __init__(self, graph: Graph, weights: dict[str, Array], channels_last: bool) -> None:
        super().__init__()
        self.graph = graph
        self.channels_last = channels_last
        self.weights = weights
        self.smallest = graph.infer_shapes(graph.smallest_shapes())
        self.channels = {name: shape[1] for name, shape in self.smallest.items()}
        needed = set(graph.outputs.values())
        for node in reversed(graph.nodes):
            if node.name in needed:
                needed.update(node.inputs)
        self.nodes = [node for node in graph.nodes if node.name in needed]
        self.users: dict[str, list[Node]] = {name: [] for name in self.channels}
        for node in self.nodes:
            for name in node.inputs:
                self.users[name].append(node)
        self.result = Lowered([], [], [], {}, {})
        self.state: dict[str, Source] = {}
        self.writer: dict[int, ConvStep] = {}  # convolution that wrote a value
        self.fixed = fixed_shapes(graph)
        self.constant = constants(graph)

    def run(self) -> Lowered:
        for item in self.graph.inputs:
            self.result.inputs[item.name] = self.value(item.name, planar=True)
            self.state[item.name] = Source(self.result.inputs[item.name])
        for node in self.nodes:
            getattr(self, f"_{node.op}")(node)
        bound: set[int] = set()
        for out, name in self.graph.outputs.items():
            source = self.state[name]
            writer = self.writer.get(source.value)
            if source.trivial and writer and writer.small and source.value not in bound:
                index = source.value
            else:
                index = self.value(name, planar=True)
                self.emit(CopyStep(f"{name} out", index, source))
            bound.add(index)
            self.result.outputs[out] = index
        named = [self.result.inputs[i.name] for i in self.graph.inputs if i.constant]
        constant_first(self.result, named)
        return self.result

    # ------------------------------------------------------------------ helpers

    def value(
        self,
        name: str,
        planar: bool = False,
        size: tuple[int, int | None, int | None] | None = None,
        inside: tuple[int, int] | None = None,
    ) -> int:
        self.result.values.append((name, planar))
        index = len(self.result.values) - 1
        if size is not None:
            self.result.sizes[index] = size
        if inside is not None:
            self.result.inside[index] = inside
        return index

    def slot(self, channels: int, scale: Array | None = None, shift: Array | None = None) -> int:
        self.result.slots.append(Slot(channels, scale, shift))
        return len(self.result.slots) - 1

    def emit(self, step: Step) -> None:
        self.result.steps.append(step)

    def parameter(self, node: Node, key: str) -> Array | None:
        return self.weights.get(f"{node.name}.{key}")

    def readers(self, name: str) -> int:
        return len(self.users[name]) + list(self.graph.outputs.values()).count(name)

    def is_planar(self, source: Source) -> bool:
        return any(self.result.values[v][1] for v in source.reads())

    def plain(self, name: str) -> int:
        """The blocked value in memory; written now if it is not there yet."""
        if name in self.pending:
            node = self.pending.pop(name)
            self.plain_step(node, node.inputs[:1])
        source = self.state[name]
        if not source.trivial or self.is_planar(source):
            index = self.value(name)
            self.emit(CopyStep(f"{name} copy", index, source))
            self.state[name] = source = Source(index)
        return source.value

    def producer(self, name: str) -> ConvStep | None:
        """The convolution whose output this is, if nothing but ``name`` depends on it."""
        source = self.state[name]
        step = self.writer.get(source.value) if source.trivial else None
        if step is None or step.norm is not None:
            return None
        # A reshape to the same shape is another name of the value.
        names = [other for other, state in self.state.items() if state.value == source.value]
        return step if all(self.readers(other) == 1 for other in names) else None

    # ------------------------------------------------------------------ convolutions

    def _conv(self, node: Node) -> None:
        a, name = node.attrs, node.inputs[0]
        weight, kernel, padding = self.weights[f"{node.name}.weight"], a["kernel"], a["padding"]
        step = ConvStep(
            node.name,
            inputs=self.channels[name],
            outputs=a["out_channels"],
            groups=a["groups"],
            stride=a["stride"],
            pad_mode=_REFLECT if a["padding_mode"] == "reflect" else _ZEROS,
            phases=[Phase(weight, -padding, -padding)],
            bias=self.parameter(node, "bias"),
        )
        dense = step.groups == 1
        step.small = (
            dense and step.outputs <= FEW and step.stride == 1 and self.only_output(node.name)
        )
        # Every pixel is loaded: the windows overlap or touch, and none is cut off at the end.
        covers = kernel >= step.stride and padding >= step.stride - 1
        storing = dense and not step.small and step.inputs > FEW and covers
        if name in self.joined:
            self.split(node, step)
        else:
            step.source = self.load(name, storing)
        self.write_conv(node.name, step)

    def load(self, name: str, storing: bool) -> Source:
        """The source of a convolution; leaves the value in memory if others read it too."""
        if name in self.pending:
            return Source(self.plain(name))
        source = self.state[name]
        if self.is_planar(source) and self.channels[name] > FEW:
            return Source(self.plain(name))
        if not source.arithmetic or self.readers(name) == 1:
            return source
        if not storing or source.views or self.is_planar(source):
            return Source(self.plain(name))
        index = self.value(name)
        self.state[name] = Source(index)
        return replace(source, store=index)

    def only_output(self, name: str) -> bool:
        """Whether the value goes to one graph output, through pointwise nodes at most."""
        while self.readers(name) == 1:
            if not self.users[name]:
                return True
            node = self.users[name][0]
            pointwise = node.op in ("activation", "affine") or (
                node.op == "norm" and node.attrs["kind"] == "batch"
            )
            if not pointwise:
                return False
            name = node.name
        return False

    def write_conv(self, name: str, step: ConvStep) -> None:
        if name in self.fixed and len(self.fixed[name]) == 3:
            _, height, width = self.fixed[name]
            step.direct = height * width <= _TINY * step.out_stride**2
        step.out = self.value(name, planar=step.small)
        self.writer[step.out] = step
        self.state[name] = Source(step.out)
        self.emit(step)

    def _conv_transpose(self, node: Node) -> None:
        a, name = node.attrs, node.inputs[0]
        weight, stride, kernel = self.weights[f"{node.name}.weight"], a["stride"], a["kernel"]

        def taps(parity: int) -> tuple[list[int], int]:
            """Kernel rows that reach outputs of this parity, and the offset of the first one."""
            shifted = parity + a["padding"]
            rows = list(range(shifted % stride, kernel, stride))[::-1]
            return rows, shifted // stride - len(rows) + 1

        phases = []
        for ry in range(stride):
            rows, dy = taps(ry)
            for rx in range(stride):
                columns, dx = taps(rx)
                part = weight[:, :, rows, :][:, :, :, columns].transpose(1, 0, 2, 3)
                phases.append(Phase(part, dy, dx, ry, rx))
        step = ConvStep(
            node.name,
            inputs=self.channels[name],
            outputs=a["out_channels"],
            out_stride=stride,
            phases=phases,
            bias=self.parameter(node, "bias"),
        )
        if name in self.joined:
            self.split(node, step)
        else:
            step.source = self.load(name, storing=False)
        self.write_conv(node.name, step)

    def _linear(self, node: Node) -> None:
        name, weight = node.inputs[0], self.weights[f"{node.name}.weight"]
        if name in self.flat:
            weight = np.append(weight, np.zeros_like(weight[:, :1]), 1)[:, self.flat[name]]
        step = ConvStep(
            node.name,
            source=Source(self.plain(name)),
            inputs=weight.shape[1],
            outputs=node.attrs["out_features"],
            phases=[Phase(weight[:, :, None, None], 0, 0)],
            bias=self.parameter(node, "bias"),
            flat=True,
        )
        self.write_conv(node.name, step)

    # ------------------------------------------------------------------ pointwise nodes

    def _norm(self, node: Node) -> None:
        a, name = node.attrs, node.inputs[0]
        channels = self.channels[name]
        weight, bias = self.parameter(node, "weight"), self.parameter(node, "bias")
        if a["kind"] == "batch":
            scale = 1.0 / np.sqrt(self.weights[f"{node.name}.running_var"] + a["eps"])
            scale = scale if weight is None else scale * weight
            shift = -self.weights[f"{node.name}.running_mean"] * scale
            self.scale_shift(node, scale, shift if bias is None else shift + bias)
            return
        if a["kind"] == "given":
            mean, var = (self.plain(source) for source in node.inputs[1:])
            norm = Norm(self.slot(channels), a["eps"], weight, bias)
            self.emit(GivenStep(node.name, mean=mean, var=var, norm=norm))
            self.attach(node, norm.slot)
            return
        source = self.state[name]
        writer = self.writer.get(source.value) if source.trivial else None
        fused = writer and writer.norm is None and writer.groups == 1
        if not fused or writer.small or writer.flat:  # type: ignore[union-attr]
            index = self.plain(name)
            norm = Norm(self.slot(channels), a["eps"], weight, bias, node.name)
            self.emit(StatsStep(node.name, value=index, norm=norm))
        else:
            norm = Norm(self.slot(channels), a["eps"], weight, bias, node.name)
            writer.norm = norm  # type: ignore[union-attr]
        self.state[node.name] = replace(self.state[name], slot=norm.slot)

    def scale_shift(self, node: Node, scale: Array, shift: Array) -> None:
        step = self.producer(node.inputs[0])
        if step and not step.act:
            step.fold(scale, shift)
            self.state[node.name] = self.state[node.inputs[0]]
        else:
            self.attach(node, self.slot(len(scale), scale, shift))

    def attach(self, node: Node, slot: int) -> None:
        """Applies a slot to the first operand, on load."""
        source = self.state[node.inputs[0]]
        if not source.trivial:
            source = Source(self.plain(node.inputs[0]))
        self.state[node.name] = replace(source, slot=slot)

    def _affine(self, node: Node) -> None:
        channels = self.channels[node.name]
        scale, shift = (
            np.broadcast_to(np.asarray(node.attrs[key], np.float64), (channels,)).copy()
            for key in ("scale", "shift")
        )
        self.scale_shift(node, scale, shift)

    def _activation(self, node: Node) -> None:
        name, kind = node.inputs[0], ACTIVATIONS[node.attrs["kind"]]
        slope = node.attrs["slope"]
        step = self.producer(name)
        if step and not step.act and step.groups == 1:
            step.act, step.slope = kind, slope
            self.state[node.name] = self.state[name]
            return
        source = self.state[name]
        if source.views or source.post or (source.pre and not source.combine):
            source = Source(self.plain(name))
        if source.combine:
            self.state[node.name] = replace(source, post=kind, post_slope=slope)
        else:
            self.state[node.name] = replace(source, pre=kind, pre_slope=slope)

    def _binary(self, node: Node) -> None:
        first, second = node.inputs
        if self.ready(second) > self.ready(first):
            first, second = second, first
        residual = self.state[second]
        # Where a source is padded with zeros the engine loads zero, not zero plus the residual.
        if residual.arithmetic or any(view[0] == _PAD_ZEROS for view in residual.views):
            residual = Source(self.plain(second))
        source = self.state[first]
        if source.combine or source.post or source.views:
            source = Source(self.plain(first))
        self.state[node.name] = replace(
            source,
            combine=_COMBINE[node.op],
            residual=residual.value,
            residual_views=residual.views,
        )

    _add = _mul = _binary

    def ready(self, name: str) -> int:
        """How much is gained by reading this operand through its pending arithmetic."""
        source = self.state[name]
        if source.combine or source.post or source.views:
            return 0
        return 2 if source.arithmetic else 1

    # ------------------------------------------------------------------ nodes that move pixels

    def view(self, node: Node, *views: View) -> None:
        source = self.state[node.inputs[0]]
        self.state[node.name] = replace(source, views=source.views + views)

    def _upsample(self, node: Node) -> None:
        self.view(node, (_UPSAMPLE, node.attrs["scale"], 0, 0, 0))

    def _crop(self, node: Node) -> None:
        left, right, top, bottom = node.attrs["crop"]
        self.view(node, (_CROP, left, right, top, bottom))

    def _pad(self, node: Node) -> None:
        kind = _PAD_REFLECT if node.attrs["mode"] == "reflect" else _PAD_ZEROS
        left, right, top, bottom = node.attrs["padding"]
        self.view(node, (kind, left, right, top, bottom))

    def plain_step(self, node: Node, names: tuple[str, ...], **extra: Any) -> None:
        values = [self.plain(name) for name in names]
        index = self.value(node.name)
        self.emit(PlainStep(node.name, index, op=node.op, values=values, **extra))
        self.state[node.name] = Source(index)

    def _pool(self, node: Node) -> None:
        a = node.attrs
        pool = (_POOLS[a["kind"]], a["kernel"], a["stride"], a["padding"])
        self.plain_step(node, node.inputs, pool=pool)
