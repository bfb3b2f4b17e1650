"""What is measured of a stabilized clip."""

from __future__ import annotations

import cv2
import numpy as np


def warp(image: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """What an image is at ``x + flow(x)``, float32, bilinear."""
    height, width = flow.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return cv2.remap(
        image.astype(np.float32),
        x + flow[..., 0],
        y + flow[..., 1],
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )


def warping_error(
    frames: list[np.ndarray], flow: list[np.ndarray], valid: list[np.ndarray]
) -> float:
    """Mean squared difference of neighbouring frames along the motion, colours in 0..1.

    E_warp of Lai et al. 2018, section 4.1: over the pixels that are not occluded, the squared
    difference of a frame and the warped frame before it; here the mean over the channels.
    """
    total = count = 0.0
    for now, before, motion, mask in zip(frames[1:], frames, flow, valid, strict=False):
        difference = (now.astype(np.float32) - warp(before, motion)) / 255
        total += float((difference[mask] ** 2).sum(dtype=np.float64))
        count += 3.0 * float(mask.sum())
    return total / max(count, 1)


def laplacian_energy(frames: list[np.ndarray]) -> float:
    """Mean squared Laplacian (4 neighbours) of the luma: the sharpness."""
    energy = []
    for frame in frames:
        luma = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32)
        energy.append(float((cv2.Laplacian(luma, cv2.CV_32F, ksize=1) ** 2).mean()))
    return float(np.mean(energy))


def psnr(a: np.ndarray, b: np.ndarray, mask: np.ndarray) -> float:
    """Peak signal to noise ratio in dB over the pixels of a mask."""
    error = (a.astype(np.float64)[mask] - b.astype(np.float64)[mask]) ** 2
    return float(10 * np.log10(255**2 / max(float(error.mean()), 1e-9)))
