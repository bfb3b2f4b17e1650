"""Concatenations, broadcasts and reshapes that cost nothing: rules of ``_lower``.

* ``conv(concat(a, b)) = conv_a(a) + conv_b(b)``. Where ``b`` depends on constant inputs alone (a
  style image), ``conv_b(b)`` is a step of its own that runs once, and the other convolution adds
  its result. Where ``b`` is a vector broadcast to a map, ``conv_b`` has few different values: one
  inside, others where its window meets the zero padding. A linear layer gives all of them.
* Otherwise the operands are written where the concatenation would put them.
* A reshape next to a linear layer changes the order of that layer's weights instead of the data's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from fastgen.backends._steps import ConvStep, Lowered, Phase
from fastgen.errors import GraphError
from fastgen.graph import Dim, Graph, Node

__all__ = [
    "BLOCK",
    "border_taps",
    "broadcast_conv",
    "constant_first",
    "constants",
    "fixed_shapes",
    "flat_order",
    "linear_rows",
]

BLOCK = 16  # channels of a block in memory
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


def flat_order(channels: int, positions: int) -> Array:
    """Index in (C,H,W) order of each number of a blocked map, -1 for those of no channel."""
    padded = -(-channels // BLOCK) * BLOCK
    order = np.full((padded, positions), -1, np.int64)
    order[:channels] = np.arange(channels * positions).reshape(channels, positions)
    return order.reshape(-1, BLOCK, positions).transpose(0, 2, 1).reshape(-1)


def border_taps(kernel: int, padding: int) -> Iterator[slice]:
    """Taps inside the map, for the first rows, one in the middle, and the last rows."""
    for row in range(padding):
        yield slice(padding - row, kernel)
    yield slice(0, kernel)
    for row in range(padding):
        yield slice(0, max(0, kernel - row - 1))


def broadcast_conv(label: str, weight: Array, padding: int) -> ConvStep:
    """What a convolution makes of a vector at every position, as a linear layer.

    Args:
        label: name of the step.
        weight: (O,I,k,k), for a stride of 1.
        padding: rows and columns of zeros around the map.

    Returns:
        Its outputs are a blocked map (O, 2*padding+1, 2*padding+1).
    """
    outputs, inputs, kernel, _ = weight.shape
    taps = list(border_taps(kernel, padding))
    sums = np.stack([weight[:, :, y, x].sum((2, 3)) for y in taps for x in taps], 1)
    phases = [Phase(sums.reshape(-1, inputs, 1, 1), 0, 0)]
    step = ConvStep(label, inputs=inputs, outputs=outputs, phases=phases, flat=True)
    return linear_rows(step, flat_order(outputs, len(taps) ** 2), len(taps) ** 2)


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
