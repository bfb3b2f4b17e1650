"""Which values of a lowered graph are kept in memory as bfloat16, at precision bf16."""

from __future__ import annotations

from fastgen.backends._steps import ConvStep, CopyStep, Lowered

__all__ = ["half_values"]


def half_values(lowered: Lowered) -> frozenset[int]:
    """Values that only convolutions and linear layers write, and only these and copies read.

    They sum in float32, take their statistics from these sums and convert on the way to
    and from memory, so half the bytes cost nothing but rounding. A residual has the type of what
    it is added to. Planar values (the network's inputs and outputs) stay float32.

    Args:
        lowered: the steps of a graph.

    Returns:
        Indices of ``lowered.values``.
    """
    half: set[int] = set()
    for step in lowered.steps:
        if isinstance(step, ConvStep) and step.groups == 1:
            half.update(step.writes())
    half.update(index for index in lowered.inside if lowered.whole(index) in half)
    half = {index for index in half if not lowered.values[index][1]}
    together = []
    for index in lowered.inside:
        together.append({index, lowered.whole(index)})
        if lowered.inside[index][1]:  # a later part is addressed in float32 elements
            half -= together[-1]
    for step in lowered.steps:
        if isinstance(step, CopyStep | ConvStep):
            if step.source.combine:
                together.append({step.source.value, step.source.residual})
            if isinstance(step, ConvStep) and step.residual >= 0:
                together.append({step.out, step.residual})
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
