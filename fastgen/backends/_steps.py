"""The flat list of fused steps that a graph is lowered to (see ``_lower``)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

__all__ = [
    "ConvStep",
    "CopyStep",
    "GivenStep",
    "Lowered",
    "Norm",
    "Phase",
    "PlainStep",
    "Slot",
    "Source",
    "StatsStep",
    "Step",
    "View",
]

View = tuple[int, int, int, int, int]  # kind, left (or factor), right, top, bottom
Array = np.ndarray


@dataclass(frozen=True)
class Source:
    """How a value is read. Numbers index the lowered values and slots; -1 is none."""

    value: int
    slot: int = -1
    pre: int = 0
    pre_slope: float = 0.0
    combine: int = 0
    residual: int = -1
    post: int = 0
    post_slope: float = 0.0
    views: tuple[View, ...] = ()
    residual_views: tuple[View, ...] = ()
    store: int = -1

    @property
    def arithmetic(self) -> bool:
        """Whether reading computes anything."""
        return self.slot >= 0 or bool(self.pre or self.combine or self.post)

    @property
    def trivial(self) -> bool:
        """Whether the value is simply what lies in memory."""
        return not self.arithmetic and not self.views

    def reads(self) -> list[int]:
        """Values that are read."""
        return [self.value] + ([self.residual] if self.combine else [])


@dataclass
class Norm:
    """Statistics of a value as scale and shift: ``weight/sqrt(var+eps)``, ``bias-mean*scale``."""

    slot: int
    eps: float
    weight: Array | None = None
    bias: Array | None = None
    name: str = ""  # of the graph's node, where the statistics are the data's


@dataclass
class Slot:
    """Scale and shift per image and channel; arrays when they are known beforehand."""

    channels: int
    scale: Array | None = None
    shift: Array | None = None


@dataclass
class Phase:
    """Taps of a convolution that give the outputs (ry + i*out_stride, rx + j*out_stride)."""

    weight: Array  # (outputs, inputs/groups, kh, kw)
    dy: int
    dx: int
    ry: int = 0
    rx: int = 0


@dataclass
class Step:
    """One fused operation."""

    label: str
    out: int = -1

    def reads(self) -> list[int]:
        """Values that are read."""
        return []

    def writes(self) -> list[int]:
        """Values that are written."""
        return [self.out] if self.out >= 0 else []


@dataclass
class ConvStep(Step):
    """Convolution, transposed convolution (as phases) or linear layer (``flat``)."""

    source: Source = field(default_factory=lambda: Source(-1))
    inputs: int = 0
    outputs: int = 0
    groups: int = 1
    stride: int = 1
    out_stride: int = 1
    pad_mode: int = 0  # 0 zeros, 1 reflect, 2 repeat the border
    phases: list[Phase] = field(default_factory=list)
    bias: Array | None = None
    act: int = 0
    slope: float = 0.0
    norm: Norm | None = None
    small: bool = False
    flat: bool = False
    quant: Array | None = None  # int8: inputs are read as round(x*quant + zero), see _quantize
    zero: Array | None = None
    mean: Array | None = None  # of what is read, and its spread
    spread: Array | None = None
    residual: int = -1  # value added to the output before the activation; see ``parts``
    # Convolutions of the rest of a concatenated source. Their sum is the residual.
    parts: list[ConvStep] = field(default_factory=list)
    direct: bool = False  # the maps are too small for Winograd
    rows: Array | None = None  # channel of each output (-1: none), where they are not the same

    def reads(self) -> list[int]:
        return self.source.reads() + ([self.residual] if self.residual >= 0 else [])

    def writes(self) -> list[int]:
        return [self.out] + ([self.source.store] if self.source.store >= 0 else [])

    def fold(self, scale: Array, shift: Array) -> None:
        """Folds ``y * scale + shift`` (per channel) into weights and bias."""
        for part in self.parts:
            part.fold(scale, np.zeros_like(shift))
        if self.rows is not None:
            scale, shift = np.append(scale, 1.0)[self.rows], np.append(shift, 0.0)[self.rows]
        for phase in self.phases:
            phase.weight = phase.weight * scale[:, None, None, None]
        bias = np.zeros(self.outputs) if self.bias is None else self.bias
        self.bias = bias * scale + shift


@dataclass
class CopyStep(Step):
    """Writes a source to memory."""

    source: Source = field(default_factory=lambda: Source(-1))

    def reads(self) -> list[int]:
        return self.source.reads()


@dataclass
class StatsStep(Step):
    """Instance statistics of a value in memory."""

    value: int = -1
    norm: Norm | None = None

    def reads(self) -> list[int]:
        return [self.value]


@dataclass
class GivenStep(Step):
    """Scale and shift from mean and variance that are values."""

    mean: int = -1
    var: int = -1
    norm: Norm | None = None

    def reads(self) -> list[int]:
        return [self.mean, self.var]


@dataclass
class PlainStep(Step):
    """pool, concat, broadcast or reshape of values in memory."""

    op: str = ""
    values: list[int] = field(default_factory=list)
    # concat: the first channel of each operand, and what is in place and must not come later,
    # as it may write into the rest of its last block.
    first: list[int] = field(default_factory=list)
    after: list[int] = field(default_factory=list)
    pool: tuple[int, int, int, int] = (0, 1, 1, 0)  # kind, kernel, stride, padding

    def reads(self) -> list[int]:
        return [*self.values, *self.after]


@dataclass
class Lowered:
    """The steps of a graph.

    ``values[i]`` is the name of the graph value whose shape engine value i has, and whether it is
    planar (N,C,H,W) rather than blocked (N,C/16,H,W,16). ``sizes[i]`` replaces its channels, and
    its rows and columns where they are not None. ``inside[i] = (j, channel)``: value i is no memory
    of its own but that of value j, from this channel (a multiple of 16) on. Values in ``dense``
    have fewer channels than a block and lie in memory as (N,H,W,C). The first ``constant`` steps
    depend on inputs alone that are declared constant.
    """

    values: list[tuple[str, bool]]
    slots: list[Slot]
    steps: list[Step]
    inputs: dict[str, int]
    outputs: dict[str, int]
    sizes: dict[int, tuple[int, int | None, int | None]] = field(default_factory=dict)
    inside: dict[int, tuple[int, int]] = field(default_factory=dict)
    dense: set[int] = field(default_factory=set)
    constant: int = 0

    def whole(self, value: int) -> int:
        """The value whose memory this one is part of."""
        while value in self.inside:
            value = self.inside[value][0]
        return value
