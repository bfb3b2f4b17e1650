"""How far two pictures are apart: largest error, PSNR and SSIM, on a 0..255 scale."""

from __future__ import annotations

import math

import numpy as np

__all__ = ["max_abs", "psnr", "ssim"]


def _pair(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if a.shape != b.shape or a.size == 0:
        raise ValueError(
            f"images have the shapes {a.shape} and {b.shape}, must be equal, not empty"
        )
    return np.asarray(a, np.float64), np.asarray(b, np.float64)


def max_abs(a: np.ndarray, b: np.ndarray) -> float:
    """Largest absolute difference of two arrays of the same shape."""
    a, b = _pair(a, b)
    return float(np.abs(a - b).max())


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio ``10 log10(255^2 / mean((a-b)^2))`` in dB; inf when equal."""
    a, b = _pair(a, b)
    error = float(np.mean((a - b) ** 2))
    return math.inf if error == 0.0 else 10.0 * math.log10(255.0**2 / error)


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Mean structural similarity of two images, averaged over channels.

    Wang, Bovik, Sheikh, Simoncelli, "Image Quality Assessment: From Error Visibility to Structural
    Similarity", IEEE TIP 2004, Eq. 13: an 11x11 Gaussian window of sigma 1.5, K1 = 0.01,
    K2 = 0.03, L = 255; windows that reach over the border are left out.

    Args:
        a: (H, W) or (H, W, C), 0..255, both sides at least 11.
        b: the other image.

    Returns:
        At most 1; 1 for equal images.
    """
    a, b = _pair(a, b)
    if a.ndim not in (2, 3) or min(a.shape[:2]) < 11:
        raise ValueError(f"image has the shape {a.shape}, must be (H,W[,C]) of at least 11x11")
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets**2) / (2 * 1.5**2))
    window /= window.sum()

    def blur(x: np.ndarray) -> np.ndarray:
        for axis in (0, 1):
            size = x.shape[axis] - 10
            parts = (w * x.take(range(i, i + size), axis) for i, w in enumerate(window))
            x = sum(parts, start=np.zeros(()))
        return x

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    cov = blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    top = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
    bottom = (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    return float(np.mean(top / bottom))
