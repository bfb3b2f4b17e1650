"""What the stabilizer's benchmark measures, on pictures whose figures are known."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("cv2")

from benchmarks.stabilizer import measures


def pictures(count: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (40, 60, 3), np.uint8)
    return [picture[:, 2 * t : 2 * t + 50] for t in range(count)]


def test_warping_error() -> None:
    frames = pictures()
    flow = [np.broadcast_to(np.float32([2, 0]), (40, 50, 2))] * 2
    valid = [np.arange(50)[None].repeat(40, 0) < 48] * 2
    assert measures.warping_error(frames, flow, valid) == 0
    brighter = [f.astype(np.float32) + 51 * (t == 1) for t, f in enumerate(frames)]
    assert measures.warping_error(brighter, flow, valid) == pytest.approx(0.04)
    assert measures.warping_error(frames, [0 * f for f in flow], valid) > 0.1


def test_sharpness_and_psnr() -> None:
    (frame,) = pictures(1)
    half = frame // 2
    ratio = measures.laplacian_energy([half]) / measures.laplacian_energy([frame])
    assert ratio == pytest.approx(0.25, rel=0.02)
    assert measures.laplacian_energy([np.full_like(frame, 9)]) == 0
    everywhere = np.ones(frame.shape[:2], bool)
    off = np.clip(frame, 0, 250).astype(np.uint8)
    assert measures.psnr(off + 5, off, everywhere) == pytest.approx(
        20 * np.log10(255 / 5), abs=1e-3
    )
