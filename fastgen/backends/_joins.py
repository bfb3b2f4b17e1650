"""Concatenations, broadcasts and reshapes that cost nothing: rules of ``_lower``.

* ``conv(concat(a, b)) = conv_a(a) + conv_b(b)``. Where ``b`` depends on constant inputs alone (a
  style image), ``conv_b(b)`` is a step of its own that runs once, and the other convolution adds
  its result. Where ``b`` is a vector broadcast to a map, ``conv_b`` has few different values: one
  inside, others where its window meets the zero padding. A linear layer gives all of them.
* Otherwise the operands are written where the concatenation would put them.
* A reshape next to a linear layer changes the order of that layer's weights instead of the data's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from fastgen.backends._steps import ConvStep, Lowered, Phase, PlainStep, Source, Step
from fastgen.errors import GraphError
from fastgen.graph import Dim, Graph, Node

__all__ = [
    "BLOCK",
    "FEW",
    "Joins",
    "border_taps",
    "broadcast_conv",
    "constant_first",
    "constants",
    "fixed_shapes",
    "flat_order",
    "linear_rows",
]

BLOCK = 16  # channels of a block in memory
FEW = 4  # most outputs of the kernel whose vector lanes run over pixels
Array = np.ndarray


def fixed_shapes(graph: Graph) -> dict[str, tuple[int, ...]]:
    """(C,...) of the values whose shape does not depend on the inputs' free dimensions."""
    small = graph.smallest_shapes()
    large = {
        item.name: tuple(
            size + dim.divisor if isinstance(dim, Dim) and axis else size
            for axis, (size, dim) in enumerate(zip(small[item.name], item.shape, strict=True))
        )
        for item in graph.inputs
    }
    first = graph.infer_shapes(small)
    try:
        second = graph.infer_shapes(large) if large != small else first
    except GraphError:  # it fits the smallest size only
        return {}
    return {name: shape[1:] for name, shape in first.items() if second[name] == shape}


def constants(graph: Graph) -> set[str]:
    """Values that depend on inputs alone that are declared constant."""
    found = {item.name for item in graph.inputs if item.constant}
    for node in graph.nodes:
        # Of the second operand a broadcast reads nothing but the size.
        read = node.inputs[:1] if node.op == "broadcast" else node.inputs
        if all(name in found for name in read):
            found.add(node.name)
    return found


def flat_order(channels: int, positions: int, block: int = BLOCK) -> Array:
    """Index in (C,H,W) order of each number of a blocked map, -1 for those of no channel."""
    padded = -(-channels // block) * block
    order = np.full((padded, positions), -1, np.int64)
    order[:channels] = np.arange(channels * positions).reshape(channels, positions)
    return order.reshape(-1, block, positions).transpose(0, 2, 1).reshape(-1)


def border_taps(kernel: int, padding: int) -> Iterator[slice]:
    """Taps inside the map, for the first rows, one in the middle, and the last rows."""
    for row in range(padding):
        yield slice(padding - row, kernel)
    yield slice(0, kernel)
    for row in range(padding):
        yield slice(0, max(0, kernel - row - 1))


def broadcast_conv(label: str, weight: Array, padding: int, block: int = BLOCK) -> ConvStep:
    """What a convolution makes of a vector at every position, as a linear layer.

    Args:
        label: name of the step.
        weight: (O,I,k,k), for a stride of 1.
        padding: rows and columns of zeros around the map.
        block: channels of a block in memory.

    Returns:
        Its outputs are a blocked map (O, 2*padding+1, 2*padding+1).
    """
    outputs, inputs, kernel, _ = weight.shape
    taps = list(border_taps(kernel, padding))
    sums = np.stack([weight[:, :, y, x].sum((2, 3)) for y in taps for x in taps], 1)
    phases = [Phase(sums.reshape(-1, inputs, 1, 1), 0, 0)]
    step = ConvStep(label, inputs=inputs, outputs=outputs, phases=phases, flat=True)
    return linear_rows(step, flat_order(outputs, len(taps) ** 2, block), len(taps) ** 2)


def linear_rows(step: ConvStep, order: Array, positions: int) -> ConvStep:
    """Gives the outputs of a linear layer another order; index -1 is an output that is zero."""
    (phase,) = step.phases
    rows = np.append(phase.weight, np.zeros_like(phase.weight[:1]), 0)[order]
    step.phases = [Phase(rows, 0, 0)]
    if step.bias is not None:
        step.bias = np.append(step.bias, 0.0)[order]
    step.outputs = len(order)
    step.rows = np.where(order < 0, -1, order // positions)
    return step


def constant_first(lowered: Lowered, constant: Sequence[int]) -> None:
    """Brings the steps to the front that read constant inputs only, and counts them.

    Args:
        lowered: its steps are reordered.
        constant: engine values of the constant inputs.
    """
    known = set(constant)
    slots = {i for i, slot in enumerate(lowered.slots) if slot.scale is not None}
    bound = set(lowered.outputs.values())
    writers: dict[int, int] = {}
    for step in lowered.steps:
        for value in step.writes():
            whole = lowered.whole(value)
            writers[whole] = writers.get(whole, 0) + 1
    first, later = [], []
    for step in lowered.steps:
        reads = [lowered.whole(value) for value in step.reads()]
        used = {getattr(getattr(step, "source", None), "slot", -1)} - {-1}
        if all(v in known for v in reads) and used <= slots and not bound & set(step.writes()):
            first.append(step)
            norm = getattr(step, "norm", None)
            if norm is not None:
                slots.add(norm.slot)
            for value in step.writes():
                whole = lowered.whole(value)
                writers[whole] -= 1
                if not writers[whole]:
                    known.add(whole)
        else:
            later.append(step)
    lowered.steps = first + later
    lowered.constant = len(first)


class Joins(ABC):
    """The part of the lowering that treats these nodes."""

    result: Lowered
    smallest: dict[str, tuple[int, ...]]
    channels: dict[str, int]
    users: dict[str, list[Node]]
    state: dict[str, Source]
    writer: dict[int, ConvStep]  # convolution that wrote a value
    fixed: dict[str, tuple[int, ...]]
    constant: set[str]
    channels_last: bool  # in memory, without blocks

    def __init__(self) -> None:
        self.pending: dict[str, Node] = {}  # broadcasts that nothing needed in memory yet
        self.joined: dict[str, tuple[str, ...]] = {}  # concatenations that convolutions split
        self.flat: dict[str, Array] = {}  # order in memory of reshaped values

    def block(self, channels: int) -> int:
        """Channels that lie side by side in memory, of a value with so many."""
        return channels if self.channels_last else BLOCK

    @abstractmethod
    def value(
        self,
        name: str,
        planar: bool = False,
        size: tuple[int, int | None, int | None] | None = None,
        inside: tuple[int, int] | None = None,
    ) -> int:
        """A new engine value with the shape of a graph value; see ``Lowered``."""

    @abstractmethod
    def emit(self, step: Step) -> None:
        """Appends a step."""

    @abstractmethod
    def readers(self, name: str) -> int:
        """Nodes and outputs that read a value."""

    @abstractmethod
    def plain(self, name: str) -> int:
        """The blocked value in memory; written now if it is not there yet."""

    @abstractmethod
    def producer(self, name: str) -> ConvStep | None:
        """The convolution whose output this is, if nothing but ``name`` depends on it."""

    @abstractmethod
    def load(self, name: str, storing: bool) -> Source:
        """The source of a convolution."""

    @abstractmethod
    def plain_step(self, node: Node, names: tuple[str, ...], **extra: Any) -> None:
        """Emits a step for a node whose operands lie in memory."""

    def _concat(self, node: Node) -> None:
        if self.splits(node):
            self.joined[node.name] = node.inputs
            self.state[node.name] = Source(-1)
        else:
            self.state[node.name] = Source(self.join(node.name, node.inputs))

    def splits(self, node: Node) -> bool:
        """Whether every reader adds up what it makes of the operands."""
        cheap = [name for name in node.inputs if self.cheap(name)]
        users = self.users[node.name]
        if not 0 < len(cheap) < len(node.inputs) or self.readers(node.name) != len(users):
            return False
        for user in users:
            dense = user.op == "conv_transpose" or (user.op == "conv" and user.attrs["groups"] == 1)
            if not dense or user.attrs.get("out_channels", 0) <= FEW:
                return False
        return True

    def cheap(self, name: str) -> bool:
        """Whether what a convolution makes of this operand alone costs next to nothing."""
        return name in self.pending or name in self.constant

    def split(self, node: Node, step: ConvStep) -> None:
        """Gives the operands of a joined source to convolutions of their own."""
        names = self.joined[node.inputs[0]]
        firsts = np.cumsum([0, *(self.channels[name] for name in names)])
        spans = {i: slice(firsts[i], firsts[i + 1]) for i in range(len(names))}
        whole = [Phase(p.weight, p.dy, p.dx, p.ry, p.rx) for p in step.phases]

        def narrow(to: ConvStep, at: list[int]) -> None:
            columns = np.concatenate([np.arange(spans[i].start, spans[i].stop) for i in at])
            to.inputs = len(columns)
            to.phases = [replace(p, weight=p.weight[:, columns]) for p in whole]

        rest = []
        for i, name in enumerate(names):
            if name in self.pending and self.folds(node) and not step.parts:
                weight = whole[0].weight[:, spans[i]]
                padding = node.attrs["padding"] if step.pad_mode == 0 else 0
                block = self.block(step.outputs)
                part = broadcast_conv(f"{node.name} {name}", weight, padding, block)
                part.source = Source(self.plain(self.pending[name].inputs[0]))
                side = 2 * padding + 1
                part.out = self.value(node.name, size=(part.outputs, 1, 1))
                out = self.value(node.name, size=(step.outputs, side, side), inside=(part.out, 0))
                self.add_part(step, part, out)
            else:
                rest.append(i)
        static = [i for i in rest if names[i] in self.constant]
        moving = [i for i in rest if i not in static]
        if static and moving:
            part = replace(step, label=f"{node.name} constant", bias=None, parts=[], residual=-1)
            narrow(part, static)
            part.source = self.joint(node.inputs[0], [names[i] for i in static])
            part.out = self.value(node.name)
            self.add_part(step, part, part.out)
        at = moving or static
        narrow(step, at)
        step.source = self.joint(node.inputs[0], [names[i] for i in at])

    def folds(self, node: Node) -> bool:
        """Whether this convolution of a broadcast vector is a linear layer."""
        if node.op != "conv":
            return False
        a = node.attrs
        height, width = self.smallest[node.inputs[0]][2:]
        reflect = a["padding_mode"] == "reflect" or a["padding"] == 0
        return a["stride"] == 1 and (reflect or min(height, width) >= a["kernel"])

    def add_part(self, step: ConvStep, part: ConvStep, out: int) -> None:
        part.residual = step.residual  # they add up along a chain
        self.emit(part)
        step.parts.append(part)
        step.residual = out

    def joint(self, joined: str, names: list[str]) -> Source:
        """Where a convolution reads some operands of a concatenation."""
        if len(names) == 1:
            return self.load(names[0], storing=False)
        return Source(self.join(joined, tuple(names)))

    def join(self, joined: str, names: tuple[str, ...]) -> int:
        """Operands side by side in memory, most of them written there in the first place."""
        channels = sum(self.channels[name] for name in names)
        size = None if channels == self.channels[joined] else (channels, None, None)
        whole = self.value(joined, size=size)
        copied, first, placed, at = [], [], [], 0
        for i, name in enumerate(names):
            value = self.plain(name)
            if at % BLOCK or name in names[:i] or not self.movable(value):
                copied.append(value)
                first.append(at)
            else:
                self.result.inside[self.result.whole(value)] = (whole, at)
                placed.append(value)
            at += self.channels[name]
        if copied:
            step = PlainStep(f"{joined} copy", whole, op="concat", values=copied)
            step.first, step.after = first, placed
            self.emit(step)
        return whole

    def movable(self, value: int) -> bool:
        """Whether a value is all of its memory, so that it can be part of a larger one."""
        inside = self.result.inside
        whole = inside.get(value, (value, 0))[0]
        if whole != value and self.channels_last:  # parts have their own order of numbers
            return False
        if whole in inside or (whole != value and value not in self.writer):
            return False
        return all(child == value for child, (parent, _) in inside.items() if parent == whole)

    def _reshape(self, node: Node) -> None:
        name = node.inputs[0]
        before, after = self.fixed.get(name), self.fixed.get(node.name)
        if before is not None and after is not None and self.reorders(node, before, after):
            return
        self.plain_step(node, node.inputs)

    def reorders(self, node: Node, before: tuple[int, ...], after: tuple[int, ...]) -> bool:
        """Whether a linear layer takes the reshape's place by the order of its weights."""
        name = node.inputs[0]
        if before[0] == after[0]:  # (C) and (C,1,1), or the same
            self.state[node.name] = Source(self.plain(name))
            return True
        if len(before) == 3 and len(after) == 1:
            if self.readers(node.name) != len(self.users[node.name]) or any(
                user.op != "linear" for user in self.users[node.name]
            ):
                return False
            if self.channels_last and self.plain(name) in self.result.inside:
                return False  # other channels lie between its own
            block = self.block(before[0])
            if self.packs(name, before):
                block = before[0]
                self.result.dense.add(self.plain(name))
            order = flat_order(before[0], before[1] * before[2], block)
            value = self.value(node.name, size=(len(order), 1, 1), inside=(self.plain(name), 0))
            self.flat[node.name] = order
            self.state[node.name] = Source(value)
            return True
        step = self.producer(name)
        if len(after) != 3 or step is None or not step.flat or step.rows is not None:
            return False
        positions = after[1] * after[2]
        linear_rows(step, flat_order(after[0], positions, self.block(after[0])), positions)
        self.result.sizes[step.out] = (step.outputs, 1, 1)
        value = self.value(node.name, inside=(step.out, 0))
        self.writer[value] = step
        self.state[node.name] = Source(value)
        return True

    def packs(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether a value of few channels can lie in memory without the rest of a block.

        In blocks a linear layer would read, and have weights for, as many zeros besides.
        """
        step = self.producer(name)
        if step is None or self.channels_last or step.groups > 1 or step.small or step.flat:
            return False
        return shape[0] < BLOCK and prod(shape) % BLOCK == 0 and step.out not in self.result.inside

    def _broadcast(self, node: Node) -> None:
        if self.readers(node.name) == len(self.users[node.name]) and all(
            user.op == "concat" for user in self.users[node.name]
        ):
            self.pending[node.name] = node
        else:
            self.plain_step(node, node.inputs[:1])
