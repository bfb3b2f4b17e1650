"""What the factors of each convolution's products are, at a precision of the cpu backend."""

from __future__ import annotations

from fastgen.backends._steps import ConvStep, Lowered

__all__ = ["products"]

_TILES = 16  # inputs from which on 3x3 convolutions are Winograd tiles: see csrc/cpu/winograd.cpp,
_TILES_INT8 = 32  # and winograd_int8.cpp
_UPSAMPLE = 0  # kind of a view


def products(lowered: Lowered, precision: str, halves: bool) -> list[str]:
    """One of fp32, bf16 and int8 for each step of a graph.

    int8 is bytes but for the convolutions of residual blocks and their like, 3x3 of stride 1.
    Winograd tiles of 4x4 outputs take a quarter of their multiply-adds, which bytes cannot: their
    tiles of 2x2 take 4/9. In bfloat16, at half the rate of bytes, that is faster, and 4 to 5 dB
    better. A processor without products of bfloat16 does as many multiply-adds of bytes, taken as
    they are, as of float32 in such tiles: there, what has no tiles of bytes is float32.

    The choice is the same for every size of frame. Measured layer by layer: docs/performance.md.

    Args:
        lowered: the steps, with ranges of activations.
        precision: fp32, bf16 or int8.
        halves: whether the processor has products of bfloat16.
    """
    if precision != "int8":
        return [precision] * len(lowered.steps)
    tiled = "bf16" if halves else "fp32"
    return [
        tiled
        if isinstance(step, ConvStep) and _tiles(step) and (halves or not _tiles_int8(step))
        else "int8"
        for step in lowered.steps
    ]


def _tiles(step: ConvStep) -> bool:
    """Whether other factors than bytes make Winograd tiles of 4x4 outputs."""
    return (
        step.stride == step.out_stride == step.groups == 1
        and not (step.direct or step.small)
        # Four small kernels, with tiles that save less.
        and all(view[0] != _UPSAMPLE for view in step.source.views)
        and step.phases[0].weight.shape[2:] == (3, 3)
        and step.inputs >= _TILES
        and 2 * step.outputs >= _TILES
    )


def _tiles_int8(step: ConvStep) -> bool:
    """Whether bytes make Winograd tiles: behind a norm and a ReLU.

    They lose much, so not where the sum of residual blocks begins: what is lost there is in every
    block.
    """
    return (
        min(step.inputs, step.outputs) >= _TILES_INT8
        and step.source.store < 0
        and step.mean is not None
        and step.zero is not None
        and not step.zero.any()
    )
