"""The steps of the cuda backend: what its kernels cannot do in one step becomes several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fastgen.backends._steps import (
    ConvStep,
    CopyStep,
    Lowered,
    Norm,
    Source,
    StatsStep,
    Step,
    View,
)
from fastgen.ops._cuda_pack import fold_upsampling

__all__ = ["Kernels", "Map", "axis_map", "conv_map", "kernels_of", "legalise"]

_UPSAMPLE, _CROP, _PAD_ZEROS, _PAD_REFLECT = range(4)
_RELU, _LEAKY = 1, 2
_MOST_TAPS, _MOST_PHASES = 15, 8  # csrc/cuda/network.h


# ---------------------------------------------------------------------- index maps


@dataclass(frozen=True)
class Map:
    """Source rows (or columns), -1 for zeros, of the positions from ``first`` on."""

    index: np.ndarray
    first: int = 0


def axis_map(views: Sequence[View], start: np.ndarray, vertical: bool) -> np.ndarray:
    """What each row (column) shows after ``views`` of what shows ``start``; -1 is a zero."""
    index = start
    for kind, left, right, top, bottom in views:
        low, high = (top, bottom) if vertical else (left, right)
        if kind == _UPSAMPLE:
            index = np.repeat(index, left)
        elif kind == _CROP:
            index = index[low : len(index) - high]
        elif kind == _PAD_ZEROS:
            index = np.pad(index, (low, high), constant_values=-1)
        else:
            index = np.pad(index, (low, high), mode="reflect")
    return index


def conv_map(index: np.ndarray, first: int, count: int, mode: int) -> Map:
    """Continues ``index`` to the positions ``first`` .. ``first + count - 1``.

    Args:
        index: of the positions from 0 on.
        first: 0 or negative.
        count: positions that are read.
        mode: 0 zeros, 1 reflection, 2 the border again.
    """
    low, high = max(0, -first), max(0, first + count - len(index))
    if mode == 0:
        index = np.pad(index, (low, high), constant_values=-1)
    else:
        index = np.pad(index, (low, high), mode="reflect" if mode == 1 else "edge")
    begin = first + low
    return Map(index[begin : begin + count].astype(np.int32), first)


# ---------------------------------------------------------------------- convolutions


@dataclass
class Kernels:
    """What a convolution's tensor core kernel is given.

    Attributes:
        weights: (phases**2, O, I, kh, kw), float32.
        phases: outputs of an axis take turns in so many convolutions on the small map.
        origins: for rows and for columns the first tap of each phase, relative to its output.
        views: what is left of the source's views.
        pad_mode: of what lies outside after these views: zeros, reflection, the border again.
    """

    weights: np.ndarray
    phases: int
    origins: tuple[list[int], list[int]]
    views: tuple[View, ...]
    pad_mode: int


def kernels_of(step: ConvStep) -> Kernels | None:
    """How the tensor core kernel does this convolution, or None where it cannot."""
    if step.groups != 1 or step.stride > 2 or step.out_stride > _MOST_PHASES:
        return None
    folded = _folded(step)
    if folded is not None:
        return folded
    heights = [phase.weight.shape[2] for phase in step.phases]
    widths = [phase.weight.shape[3] for phase in step.phases]
    height, width = max(max(heights), 1), max(max(widths), 1)
    if height > _MOST_TAPS or width > _MOST_TAPS:
        return None
    shape = (len(step.phases), step.outputs, step.inputs, height, width)
    weights = np.zeros(shape, np.float32)
    rows, columns = [0] * step.out_stride, [0] * step.out_stride
    for phase in step.phases:
        _, _, kh, kw = phase.weight.shape
        at = phase.ry * step.out_stride + phase.rx
        weights[at, :, :, :kh, :kw] = phase.weight
        rows[phase.ry], columns[phase.rx] = phase.dy, phase.dx
    return Kernels(weights, step.out_stride, (rows, columns), step.source.views, step.pad_mode)


def _folded(step: ConvStep) -> Kernels | None:
    """Nearest x2 and then a convolution, as four convolutions on the small map."""
    views = step.source.views
    place = max((i for i, v in enumerate(views) if v[0] == _UPSAMPLE), default=-1)
    if place < 0 or views[place][1] != 2 or step.stride != 1 or step.out_stride != 1:
        return None
    (phase,) = step.phases
    after = views[place + 1 :]
    if any(v[0] not in (_PAD_ZEROS, _PAD_REFLECT) for v in after) or max(phase.weight.shape) < 2:
        return None
    amounts = [list(v[1:]) for v in after]
    modes = [1 if v[0] == _PAD_REFLECT else 0 for v in after]
    own = [-phase.dx, phase.weight.shape[3] - 1 + phase.dx]
    own += [-phase.dy, phase.weight.shape[2] - 1 + phase.dy]
    if any(own):
        amounts.append([max(0, v) for v in own])
        modes.append(step.pad_mode)
    padded = [(m, a) for m, a in zip(modes, amounts, strict=True) if any(a)]
    kinds = {m for m, _ in padded}
    total = np.sum([a for _, a in padded], axis=0) if padded else np.zeros(4, int)
    # One pixel of reflection shows the neighbour in the same pair; more does not. Beyond the
    # padding nothing is read that is stored, so the border may go on as it likes.
    if len(kinds) > 1 or (1 in kinds and max(total) > 1) or 2 in kinds:
        return None
    left, _, top, _ = (int(v) for v in total)
    weights = fold_upsampling(phase.weight.astype(np.float32), top, left)
    if max(weights.shape[3:]) > _MOST_TAPS:
        return None
    origins = [(r - top) // 2 for r in range(2)], [(r - left) // 2 for r in range(2)]
    return Kernels(weights, 2, origins, views[:place], 2 if 1 in kinds else 0)


# ---------------------------------------------------------------------- legal steps


@dataclass
class _Legal:
    lowered: Lowered
    steps: list[Step] = field(default_factory=list)

    def value(self, like: int) -> int:
        """A value of the shape of another one."""
        name, _ = self.lowered.values[like]
        self.lowered.values.append((name, False))
        index = len(self.lowered.values) - 1
        if like in self.lowered.sizes:
            self.lowered.sizes[index] = self.lowered.sizes[like]
        return index

    def own_residual(self, label: str, source: Source) -> Source:
        """The source with a second operand in the arena, where it is a tensor of the caller."""
        if not source.combine or source.residual not in self.lowered.inputs.values():
            return source
        index = self.value(source.residual)
        self.steps.append(CopyStep(f"{label} operand", index, Source(source.residual)))
        return replace(source, residual=index)


def legalise(
    lowered: Lowered, fits: Callable[[ConvStep, Kernels], bool], fuse: bool = True
) -> Lowered:
    """Steps that the kernels can do: the same ones, with copies and statistics of their own.

    Args:
        lowered: steps of ``lower(..., channels_last=True)``; not changed, but its convolutions are
            shared.
        fits: whether the GPU has the memory for a convolution's tensor core kernel.
        fuse: norms and activations are applied while a convolution loads, where that is possible.
    """
    result = replace(
        lowered,
        values=list(lowered.values),
        sizes=dict(lowered.sizes),
        inside=dict(lowered.inside),
        steps=[],
    )
    legal = _Legal(result)
    constant = 0
    for position, step in enumerate(lowered.steps):
        if position == lowered.constant:
            constant = len(legal.steps)
        if isinstance(step, ConvStep | CopyStep):
            step = replace(step, source=legal.own_residual(step.label, step.source))
        if isinstance(step, ConvStep):
            kernels = kernels_of(step)
            _conv(legal, step, kernels is not None and fits(step, kernels), fuse)
        else:
            legal.steps.append(step)
    result.constant = len(legal.steps) if lowered.constant == len(lowered.steps) else constant
    result.steps = legal.steps
    return result


def _conv(legal: _Legal, step: ConvStep, fast: bool, fuse: bool) -> None:
    """A convolution; what is left of its source is views, a norm and a rectifier."""
    source = step.source
    steps = legal.steps
    slope = source.pre in (0, _RELU, _LEAKY)
    simple = fast and fuse and slope and not source.combine and not source.post
    simple = simple and source.store < 0
    if source.arithmetic and not simple:
        index = source.store if source.store >= 0 else legal.value(source.value)
        steps.append(CopyStep(f"{step.label} in", index, replace(source, views=(), store=-1)))
        source = Source(index, views=source.views)
    norm: Norm | None = step.norm
    if norm is not None and (not fast or step.act or step.residual >= 0):
        # Statistics of what is stored, not of the sums.
        steps.append(replace(step, source=source, norm=None))
        steps.append(StatsStep(f"{step.label} stats", value=step.out, norm=norm))
        return
    if step.small and not fast:  # the slow kernel knows nothing of images
        index = legal.value(step.out)
        steps.append(replace(step, source=source, out=index))
        steps.append(CopyStep(f"{step.label} out", step.out, Source(index)))
        return
    steps.append(replace(step, source=source))
