"""Which values of a lowered graph are kept in memory as bfloat16, at precision bf16."""

from __future__ import annotations

from fastgen.backends._steps import ConvStep, CopyStep, Lowered

__all__ = ["half_values"]


def half_values(lowered: Lowered) -> frozenset[int]:
    """Values that only convolutions write, and only convolutions and copies read.

    Convolutions sum in float32, take their statistics from these sums and convert on the way to
    and from memory, so half the bytes cost nothing but rounding. A residual has the type of what
    it is added to. Planar values (the network's inputs and outputs) stay float32.

    Args:
        lowered: the steps of a graph.

    Returns:
        Indices of ``lowered.values``.
    """
    half: set[int] = set()
    for step in lowered.steps:
        if isinstance(step, ConvStep) and step.groups == 1 and not step.flat:
            half.update(step.writes())
    half = {index for index in half if not lowered.values[index][1]}
    together = []
    for step in lowered.steps:
        if isinstance(step, CopyStep) or (isinstance(step, ConvStep) and not step.flat):
            if step.source.combine:
                together.append({step.source.value, step.source.residual})
        else:
            half.difference_update(step.reads())
    changed = True
    while changed:
        changed = False
        for pair in together:
            if pair & half and not pair <= half:
                half -= pair
                changed = True
    return frozenset(half)
