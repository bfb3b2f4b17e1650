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
    for frame, before, motion, mask in zip(frames[1:], frames[:-1], flow, valid, strict=True):
        difference = (frame.astype(np.float32) - warp(before, motion)) / 255
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


def steadiness(
    clip_frames: list[np.ndarray],
    flow: list[np.ndarray],
    valid: list[np.ndarray],
    plain: list[np.ndarray],
    steady: list[np.ndarray],
) -> dict[str, float]:
    """All figures of one clip that need no network.

    Args:
        clip_frames: what was painted.
        flow: of each frame but the first.
        valid: where it counts.
        plain: paintings, frame by frame.
        steady: the same, stabilized.

    Returns:
        Warping errors of the clip itself, the plain and the steady paintings (of 1), the Laplacian
        energy of the steady ones beside that of the plain ones, and in moving regions (more than
        half a pixel) the PSNR of steady to plain, of neighbouring plain ones, and of neighbouring
        plain ones along the motion, which is the hardest to reach. NaN where nothing moves.
    """
    psnrs: list[tuple[float, float, float]] = []
    for t in range(1, len(plain)):
        moving = valid[t - 1] & ((flow[t - 1] ** 2).sum(-1) > 0.25)
        if moving.mean() < 0.01:
            continue
        along = np.rint(warp(plain[t - 1], flow[t - 1]))
        psnrs.append(
            (
                psnr(steady[t], plain[t], moving),
                psnr(plain[t - 1], plain[t], moving),
                psnr(along, plain[t], moving),
            )
        )
    means = np.mean(psnrs, axis=0) if psnrs else np.full(3, np.nan)
    return {
        "clip_error": warping_error(clip_frames, flow, valid),
        "plain_error": warping_error(plain, flow, valid),
        "steady_error": warping_error(steady, flow, valid),
        "sharpness": laplacian_energy(steady) / laplacian_energy(plain),
        "psnr_steady": float(means[0]),
        "psnr_neighbours": float(means[1]),
        "psnr_neighbours_along": float(means[2]),
    }
