"""Perceptual losses of Johnson et al. 2016 (arXiv 1603.08155), section 3, on tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgen import ops


def gram_matrix(features: Tensor) -> Tensor:
    """Gram matrix G = F F^T / (C H W) of each image (Eq. 7).

    Computed in float32: VGG activations reach 15 000 and their squares overflow half precision.
    :func:`fastgen.ops.gram_matrix` with the fastest implementation here and its own backward.

    Args:
        features: (N, C, H, W), any floating dtype.

    Returns:
        (N, C, C) float32 (float64 for float64 features).
    """
    return ops.gram_matrix(features)


def style_loss(features: Tensor, gram: Tensor) -> Tensor:
    """Squared Frobenius distance of the Gram matrices (Eq. 8), one value per image.

    Args:
        features: (N, C, H, W) features of the generated images.
        gram: (C, C) or (N, C, C) Gram matrix of the painting.

    Returns:
        (N,) float32.
    """
    return (gram_matrix(features) - gram).square().sum((1, 2))


def feature_loss(features: Tensor, target: Tensor) -> Tensor:
    """||phi(y_hat) - phi(y)||^2 / (C H W) (Eq. 6), one value per image.

    Args:
        features: (N, C, H, W) features of the generated images.
        target: (N, C, H, W) features of the photos.

    Returns:
        (N,) float32 (float64 for float64 features).
    """
    difference = features - target
    wide = difference if difference.dtype == torch.float64 else difference.float()
    return wide.square().mean((1, 2, 3))


def total_variation(images: Tensor) -> Tensor:
    """Sum over channels and pixels of the squared differences to the right and lower neighbour.

    Args:
        images: (N, C, H, W).

    Returns:
        (N,), same dtype.
    """
    down = (images[:, :, 1:] - images[:, :, :-1]).square().sum((1, 2, 3))
    right = (images[:, :, :, 1:] - images[:, :, :, :-1]).square().sum((1, 2, 3))
    return down + right
