"""Random affine and elastic distortion of small images, the ordinary way to stretch few examples.

Elastic fields after Simard, Steinkraus, Platt, "Best Practices for Convolutional Neural Networks
Applied to Visual Document Analysis", ICDAR 2003.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["distort"]


def distort(
    images: Tensor,
    generator: torch.Generator,
    rotate: float = 10.0,
    scale: float = 0.1,
    shear: float = 0.15,
    shift: float = 0.06,
    elastic: float = 0.04,
) -> Tensor:
    """Each image under its own random distortion; what comes in at the edges repeats the edge.

    Args:
        images: (N, C, H, W).
        generator: Draws the distortions, on the CPU.
        rotate: Largest rotation in degrees.
        scale: Largest relative change of width and of height.
        shear: Largest horizontal shear.
        shift: Largest shift, as a share of the size.
        elastic: Largest shift of one node of the 4x4 elastic field, as a share of the size.

    Returns:
        (N, C, H, W), the same type and device.
    """
    count, _, height, width = images.shape

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator) * 2 - 1

    angle = uniform(count) * math.radians(rotate)
    wide, high = 1 + uniform(count) * scale, 1 + uniform(count) * scale
    slant = uniform(count) * shear
    # grid_sample measures in half sizes; a rotation must not depend on the aspect ratio.
    aspect = height / width
    rows = torch.stack(
        [
            torch.stack(
                [angle.cos() * wide, (slant - angle.sin()) * aspect, uniform(count) * shift * 2]
            ),
            torch.stack([angle.sin() / aspect, angle.cos() * high, uniform(count) * shift * 2]),
        ]
    )
    matrix = rows.permute(2, 0, 1)
    grid = F.affine_grid(matrix, [count, 1, height, width], align_corners=False)
    if elastic:
        nodes = uniform(count, 2, 4, 4) * elastic * 2
        field = F.interpolate(nodes, (height, width), mode="bicubic", align_corners=True)
        grid = grid + field.permute(0, 2, 3, 1)
    grid = grid.to(images.device, images.dtype)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
