"""Where the values of a run lie: one arena for the batch, and one for each thread.

Values that are never alive together share memory. Steps that treat every image on its own and
whose weights are small form segments: a thread runs all of a segment's steps for one image, then
for the next, so that what passes from step to step stays in its cache.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

from fastgen.backends._steps import ConvStep, Lowered, Step

__all__ = ["lifetimes", "place", "plan_values", "segment_steps"]

Segment = tuple[int, int]  # first step, and the one behind the last
Entry = tuple[int, int, int, int, int, int, int, int]
Placed = tuple[int, int, int, list[tuple[int, int]]]

_WEIGHTS = 160 * 1024  # most weights of a step that is run image by image: of 1 MiB of cache
_FLOAT32, _BFLOAT16 = 0, 2  # csrc/dtype.h
_DENSE = 2  # layouts: 0 in blocks, 1 planar
_MAP = 256 * 1024  # most numbers of a value of one image


def segment_steps(lowered: Lowered) -> list[Segment]:
    """Runs of steps that can be done image by image; called before the weights are given away.

    None has both constant steps and others.
    """

    def alone(step: Step) -> bool:
        if not isinstance(step, ConvStep):
            return True
        return not step.flat and sum(phase.weight.size for phase in step.phases) <= _WEIGHTS

    found: list[Segment] = []
    for index, step in enumerate(lowered.steps):
        if not alone(step):
            continue
        if found and found[-1][1] == index != lowered.constant:
            found[-1] = found[-1][0], index + 1
        else:
            found.append((index, index + 1))
    return found


def plan_values(
    lowered: Lowered,
    shapes: Mapping[str, tuple[int, ...]],
    external: bool,
    floats_of: Callable[[tuple[int, ...]], int],
    segments: Iterable[Segment] = (),
    keep: bool = True,
    half: Collection[int] = (),
) -> tuple[list[Entry], int, int, list[Placed]]:
    """Places all values.

    Args:
        lowered: the steps.
        shapes: shapes of all graph values.
        external: whether inputs and outputs are arrays of the caller, not parts of the arena.
        floats_of: floats of a value (n, c, h, w, layout, dtype, offset, image).
        segments: see :func:`segment_steps`; those whose values are small are taken.
        keep: what the constant steps leave for the others outlives the run.
        half: values that are bfloat16 in memory.

    Returns:
        Per value (n, c, h, w, layout, dtype, offset in floats, or -1 - index of an external array,
        floats from image to image, or 0), the layout 0 for blocks, 1 planar, 2 dense; the arena's
        size in floats; the number of external arrays; per segment (first step, last step + 1,
        floats of a thread, values with their offsets there).
    """
    full = []
    for index, (name, planar) in enumerate(lowered.values):
        shape = (*shapes[name], 1, 1)[:4]
        c, h, w = lowered.sizes.get(index, (shape[1], None, None))
        dtype = _BFLOAT16 if index in half else _FLOAT32
        layout = _DENSE if index in lowered.dense else int(planar)
        full.append((shape[0], c, h or shape[2], w or shape[3], layout, dtype))
    sizes = [-(-floats_of((*shape, 0, 0)) // 16) * 16 for shape in full]
    single = [-(-floats_of((1, *shape[1:], 0, 0)) // 16) * 16 for shape in full]
    touched = [
        [lowered.whole(value) for value in (*step.reads(), *step.writes())]
        for step in lowered.steps
    ]
    constant = lowered.constant if keep else 0
    taken: list[Segment] = []
    for first, last in segments:
        if any(single[value] > _MAP for values in touched[first:last] for value in values):
            continue
        if taken and taken[-1][1] == first != constant:
            taken[-1] = taken[-1][0], last
        else:
            taken.append((first, last))
    ends = lifetimes(lowered, taken, constant)
    outside = [*lowered.inputs.values(), *lowered.outputs.values()]
    fixed = {index: -1 - i for i, index in enumerate(outside)} if external else {}
    local: dict[int, int] = {}
    placed: list[Placed] = []
    for first, last in taken:
        used = {value for values in touched[first:last] for value in values} - set(outside)
        rest = {v for values in (*touched[:first], *touched[last:]) for v in values}
        here = {value: ends[value] for value in sorted(used - rest)}
        offsets, floats = place({v: single[v] for v in here}, _inner(lowered, here, first, last))
        local |= offsets
        children = {
            index: offsets[lowered.whole(index)] + _inside(lowered, full, index)
            for index in range(len(full))
            if lowered.whole(index) in offsets
        }
        placed.append((first, last, floats, sorted(children.items())))
    whole = {
        index: sizes[index]
        for index in range(len(full))
        if index not in fixed and index not in lowered.inside and index not in local
    }
    offsets, total = place(whole, {index: ends.get(index, (-1, -1)) for index in whole})
    offsets |= fixed | dict.fromkeys(local, 0)
    entries = []
    for index, shape in enumerate(full):
        parent, image = index, 0
        while parent in lowered.inside:
            parent = lowered.inside[parent][0]
            image = floats_of((*full[parent], 0, 0)) // full[parent][0]
        entries.append((*shape, offsets[parent] + _inside(lowered, full, index), image))
    return entries, total, len(fixed), placed


def _inside(lowered: Lowered, full: list[tuple[int, int, int, int, int, int]], index: int) -> int:
    """Floats from the start of the memory that a value is part of."""
    offset = 0
    while index in lowered.inside:
        index, channel = lowered.inside[index]
        offset += channel * full[index][2] * full[index][3]
    return offset


def lifetimes(
    lowered: Lowered, segments: list[Segment], constant: int
) -> dict[int, tuple[int, int]]:
    """First and last step of each value's memory; a segment's steps happen all at once."""
    last = len(lowered.steps)
    span = {i: (a, b - 1) for a, b in segments for i in range(a, b)}
    found = dict.fromkeys(lowered.inputs.values(), (-1, -1))
    for position, step in enumerate(lowered.steps):
        begin, end = span.get(position, (position, position))
        for index in map(lowered.whole, step.writes()):
            low, high = found.get(index, (begin, end))
            found[index] = min(low, begin), max(high, end)
        for index in map(lowered.whole, step.reads()):
            low, high = found.get(index, (-1, -1))
            found[index] = low, max(high, end)
            if position >= constant > low >= 0:
                found[index] = -1, last  # the next run may read it again
    for index in lowered.outputs.values():
        found[index] = found.get(index, (-1, -1))[0], last
    return found


def _inner(
    lowered: Lowered, values: Mapping[int, object], first: int, last: int
) -> dict[int, tuple[int, int]]:
    """First and last step of the values of one segment, step by step."""
    found: dict[int, tuple[int, int]] = {}
    for position in range(first, last):
        step = lowered.steps[position]
        for index in map(lowered.whole, (*step.reads(), *step.writes())):
            if index in values:
                found[index] = found.get(index, (position, position))[0], position
    return found


def place(
    sizes: Mapping[int, int], spans: Mapping[int, tuple[int, int]]
) -> tuple[dict[int, int], int]:
    """An offset for each value, large ones first, and the size of all."""
    offsets: dict[int, int] = {}
    total = 0
    for index in sorted(sizes, key=lambda i: (-sizes[i], i)):
        begin, end = spans[index]
        neighbours = sorted(
            (offsets[other], offsets[other] + sizes[other])
            for other in offsets
            if spans[other][0] <= end and begin <= spans[other][1]
        )
        offset = 0
        for low, high in neighbours:
            if offset + sizes[index] <= low:
                break
            offset = max(offset, high)
        offsets[index] = offset
        total = max(total, offset + sizes[index])
    return offsets, total
