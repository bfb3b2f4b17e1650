"""Clips to measure the stabilizer on: real photos that move in a known way, and real video.

A synthetic clip is made of photos under similarity transforms with sensor noise, so that where each
pixel was in the frame before, and whether it could be seen there, is known exactly.
"""

from __future__ import annotations

import io
import itertools
import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

NOISE = 2.5  # standard deviation of the sensor's noise, of 255: a camera by daylight
FRAMES = 16
REAL_FRAMES = 30
PHOTOS = ("test/100007.jpg", "test/103006.jpg", "test/130066.jpg")

Matrix = np.ndarray  # (3,3): where a frame's pixel (x, y, 1) lies in the photo


@dataclass
class Clip:
    """Frames and how they move.

    Attributes:
        name: what moves.
        kind: ``"synthetic"`` or ``"real"``.
        frames: (H,W,3) uint8.
        flow: of frame t > 0: (H,W,2) float32, where each pixel was in frame t - 1, minus here.
        valid: of frame t > 0: (H,W) bool, whether it could be seen there.
    """

    name: str
    kind: str
    frames: list[np.ndarray]
    flow: list[np.ndarray]
    valid: list[np.ndarray]


def _similarity(scale: float, degrees: float, shift: tuple[float, float], center: tuple) -> Matrix:
    angle = np.deg2rad(degrees)
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    (x, y), (dx, dy) = center, shift
    return np.array(
        [[c, -s, x + dx - c * x + s * y], [s, c, y + dy - s * x - c * y], [0, 0, 1]], np.float64
    )


def _grid(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x, y, np.ones_like(x)], -1).astype(np.float64)


def _displacement(now: Matrix, before: Matrix, grid: np.ndarray) -> np.ndarray:
    """Where the pixels of a frame were in the frame before."""
    moved = grid @ (np.linalg.inv(before) @ now).T
    return (moved - grid)[..., :2].astype(np.float32)


def _render(photo: np.ndarray, matrix: Matrix, size: tuple[int, int]) -> np.ndarray:
    flags = cv2.INTER_LANCZOS4 | cv2.WARP_INVERSE_MAP
    border = cv2.BORDER_REFLECT_101
    return cv2.warpAffine(photo, matrix[:2], size, flags=flags, borderMode=border)


def moving(
    name: str,
    photo: np.ndarray,
    path: Callable[[int], Matrix],
    size: tuple[int, int],
    seed: int,
    foreground: tuple[np.ndarray, Callable[[int], Matrix]] | None = None,
) -> Clip:
    """A clip of one photo, perhaps with a disc of another one before it that moves differently.

    Args:
        name: of the clip.
        photo: (H,W,3) uint8, larger than the frame.
        path: the transform of frame t.
        size: (width, height) of the frames.
        seed: of the noise.
        foreground: another photo and its transforms.
    """
    width, height = size
    grid, rng = _grid(height, width), np.random.default_rng(seed)
    clip = Clip(name, "synthetic", [], [], [])
    labels: list[np.ndarray] = []
    for t in range(FRAMES):
        image = _render(photo, path(t), size).astype(np.float32)
        label = np.zeros((height, width), bool)
        if foreground is not None:
            front, front_path = foreground
            where = grid @ front_path(t).T
            radius = 0.3 * min(front.shape[:2])
            center = np.array([front.shape[1] / 2, front.shape[0] / 2])
            distance = np.linalg.norm(where[..., :2] - center, axis=-1)
            soft = np.clip(radius - distance + 0.5, 0, 1)[..., None].astype(np.float32)
            image += soft * (_render(front, front_path(t), size) - image)
            label = distance < radius
        noisy = image + rng.normal(0, NOISE, image.shape)
        clip.frames.append(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))
        labels.append(label)
        if t == 0:
            continue
        flow = _displacement(path(t), path(t - 1), grid)
        if foreground is not None:
            front_flow = _displacement(front_path(t), front_path(t - 1), grid)
            flow = np.where(label[..., None], front_flow, flow)
        source = grid[..., :2] + flow
        inside = ((source >= 0) & (source <= [width - 1, height - 1])).all(-1)
        at = np.clip(np.rint(source), 0, [width - 1, height - 1]).astype(int)
        same = labels[-2][at[..., 1], at[..., 0]] == label
        # The edge between the two is nobody's.
        edge = cv2.dilate(label.astype(np.uint8), np.ones((5, 5), np.uint8)) != cv2.erode(
            label.astype(np.uint8), np.ones((5, 5), np.uint8)
        )
        clip.flow.append(flow)
        clip.valid.append(inside & same & ~edge)
    return clip


def photos(data: Path, names: tuple[str, ...] = PHOTOS) -> list[np.ndarray]:
    """Photos of the BSDS archive."""
    archive = next((data / "bsds500").glob("*.tar"))
    with tarfile.open(archive) as tar:
        files = [tar.extractfile(name) for name in names]
        return [np.array(Image.open(io.BytesIO(f.read())).convert("RGB")) for f in files if f]


def synthetic(data: Path, coffee: Path, count: int) -> Iterator[Clip]:
    """Clips with known motion of the first ``count`` photos."""
    pictures = [np.array(Image.open(coffee).convert("RGB")), *photos(data)]
    for index, photo in enumerate(pictures[:count]):
        rows, columns = photo.shape[:2]
        width, height = int(columns * 0.8) // 8 * 8, int(rows * 0.8) // 8 * 8
        size = width, height
        middle = (width / 2, height / 2)
        margin = np.array([[1, 0, columns * 0.1], [0, 1, rows * 0.1], [0, 0, 1]], np.float64)
        front = pictures[(index + 1) % len(pictures)]

        def pan(vx: float, vy: float) -> Callable[[int], Matrix]:
            def path(t: int) -> Matrix:
                # Back and forth, so that a fast pan stays on the photo.
                s = t - FRAMES / 2
                return margin @ _similarity(1, 0, (vx * s, vy * s), middle)  # noqa: B023

            return path

        def turn(t: int) -> Matrix:
            return margin @ _similarity(1, 0.6 * (t - FRAMES / 2), (0, 0), middle)  # noqa: B023

        def zoom(t: int) -> Matrix:
            return margin @ _similarity(1.008 ** (t - FRAMES / 2), 0, (0, 0), middle)  # noqa: B023

        def front_path(t: int) -> Matrix:
            shape = front.shape  # noqa: B023
            where = (shape[1] / 2 - middle[0] - 5.3 * (t - FRAMES / 2), shape[0] / 2 - middle[1])  # noqa: B023
            return _similarity(1, 0, where, middle)  # noqa: B023

        seed = 10 * index
        label = ("coffee", *(Path(n).stem for n in PHOTOS))[index]
        yield moving(f"slow pan, {label}", photo, pan(1.3, 0.4), size, seed)
        yield moving(f"fast pan, {label}", photo, pan(-3.7, 1.1), size, seed + 1)
        yield moving(f"rotation, {label}", photo, turn, size, seed + 2)
        yield moving(f"zoom, {label}", photo, zoom, size, seed + 3)
        yield moving(
            f"moving foreground, {label}", photo, pan(0, 0), size, seed + 4, (front, front_path)
        )


def estimated_flow(now: np.ndarray, before: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flow from a frame to the one before by OpenCV's DIS, and where it can be trusted.

    The checks are those of Ruder, Dosovitskiy, Brox 2016, section 3 (after Sundaram et al. 2010):
    forward and backward flow must agree, and motion boundaries are left out.
    """
    dis: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    dis.setFinestScale(0)
    a, b = (cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in (now, before))
    back, forth = dis.calc(a, b, None), dis.calc(b, a, None)
    height, width = a.shape
    grid = _grid(height, width)[..., :2].astype(np.float32)
    source = grid + back
    x, y = source[..., 0], source[..., 1]
    other = cv2.remap(forth, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    size = (back**2).sum(-1), (other**2).sum(-1)
    agree = ((back + other) ** 2).sum(-1) <= 0.01 * (size[0] + size[1]) + 0.5
    gradient = sum((g**2).sum(-1) for g in np.gradient(back, axis=(0, 1)))
    smooth = gradient <= 0.01 * size[0] + 0.002
    inside = ((source >= 0) & (source <= [width - 1, height - 1])).all(-1)
    return back, agree & smooth & inside


def real(data: Path) -> Iterator[Clip]:
    """The clips of ``$FASTGEN_DATA/video``, with estimated flow."""
    from fastgen import video

    for file, start in (("asl_walk.mkv", 0.5), ("one-by-one-person-detection.mp4", 5.0)):
        frames = []
        with video.read(os.fspath(data / "video" / file), start=start) as clip:
            for frame in clip:
                frames.append(frame.image)
                if len(frames) == REAL_FRAMES:
                    break
        pairs = [estimated_flow(b, a) for a, b in itertools.pairwise(frames)]
        yield Clip(Path(file).stem, "real", frames, [p[0] for p in pairs], [p[1] for p in pairs])
