"""What the factors of each convolution's products are, at a precision of the cpu backend."""

from __future__ import annotations

from fastgen.backends._steps import ConvStep, Lowered

__all__ = ["products"]

_WINOGRAD = 16  # inputs from which on 3x3 convolutions are Winograd tiles (csrc/cpu/winograd.cpp)
_UPSAMPLE = 0  # kind of a view


def products(lowered: Lowered, precision: str, halves: bool) -> list[str]:
    """One of fp32, bf16 and int8 for each step of a graph.

    int8 is what is faster: bytes, or Winograd tiles of bfloat16 where they need so few
    multiply-adds that bytes, which the processor multiplies at twice the rate, take longer. The
    choice is the same for every size of the frame, and bfloat16 loses less than bytes.

    Args:
        lowered: the steps.
        precision: fp32, bf16 or int8.
        halves: whether the processor has products of bfloat16.
    """
    if precision != "int8" or not halves:
        return [precision] * len(lowered.steps)
    return [
        "bf16" if isinstance(step, ConvStep) and _bf16_is_faster(step) else "int8"
        for step in lowered.steps
    ]


def _bf16_is_faster(step: ConvStep) -> bool:
    """Measured layer by layer: see docs/performance.md."""
    if step.stride > 1 or step.out_stride > 1 or step.groups > 1 or step.direct or step.small:
        return False
    if any(view[0] == _UPSAMPLE for view in step.source.views):  # four small kernels
        return False
    return step.phases[0].weight.shape[2:] == (3, 3) and step.inputs >= _WINOGRAD
