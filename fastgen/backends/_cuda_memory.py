"""Where the values of a run lie on the device: channels last, in one arena."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastgen.backends._memory import lifetimes, place
from fastgen.backends._steps import Lowered

__all__ = ["Layout", "plan_layouts"]

_ALIGN = 256  # bytes


@dataclass(frozen=True)
class Layout:
    """A value (n, c, h, w) in memory; strides count elements.

    ``offset`` counts bytes from the start of the arena. ``tensor`` is the index of a tensor of the
    caller, or -1.
    """

    n: int
    c: int
    h: int
    w: int
    offset: int
    image: int
    pixel: int
    tensor: int = -1

    @property
    def pixels(self) -> int:
        """Of one image."""
        return self.h * self.w


def plan_layouts(
    lowered: Lowered, shapes: Mapping[str, tuple[int, ...]], itemsize: int, keep: bool
) -> tuple[list[Layout], int]:
    """Places all values.

    Args:
        lowered: legal steps.
        shapes: shapes of all graph values.
        itemsize: bytes of an element.
        keep: what constant steps leave for the others outlives the run.

    Returns:
        The layouts, and the arena's size in bytes.
    """
    sizes = []
    for index, (name, _) in enumerate(lowered.values):
        shape = (*shapes[name], 1, 1)[:4]
        c, h, w = lowered.sizes.get(index, (shape[1], None, None))
        sizes.append((shape[0], c, h or shape[2], w or shape[3]))
    outside = [*lowered.inputs.values(), *lowered.outputs.values()]
    whole = {}
    for index, (n, c, h, w) in enumerate(sizes):
        if index not in lowered.inside and index not in outside:
            whole[index] = -(-n * c * h * w * itemsize // _ALIGN) * _ALIGN
    spans = lifetimes(lowered, [], lowered.constant if keep else 0)
    unused = (-1, -1)
    offsets, total = place(whole, {index: spans.get(index, unused) for index in whole})
    layouts: dict[int, Layout] = {}

    def layout(index: int) -> Layout:
        if index in layouts:
            return layouts[index]
        n, c, h, w = sizes[index]
        if index in lowered.inside:
            parent, channel = lowered.inside[index]
            outer = layout(parent)
            same = (h, w) == (outer.h, outer.w)
            pixel = outer.pixel if same else c
            offset = outer.offset + channel * itemsize
            result = Layout(n, c, h, w, offset, outer.image, pixel, outer.tensor)
        else:
            tensor = outside.index(index) if index in outside else -1
            result = Layout(n, c, h, w, offsets.get(index, 0), c * h * w, c, tensor)
        layouts[index] = result
        return result

    return [layout(index) for index in range(len(sizes))], max(total, _ALIGN)
