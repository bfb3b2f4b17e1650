"""The stabilizer's arithmetic in numpy, from the vectors that it found to the picture."""

from __future__ import annotations

import numpy as np

PATCH, TILE, PHASES = 8, 16, 32
QUIET, SLOPE = 48, 128
STILL, HASTE, MOST_GAIN, BAND = 0.1, 1.6, 32, 8
LEAST_POWER, MOST_POWER, USUAL, FOLLOW = 0.86, 1.3, 1670, 0.3
MORE, AGREE = 0.06, 50


def half(frame: np.ndarray) -> np.ndarray:
    """Gray of half the size: the rounded mean of 2x2 pixels and the channels."""
    height, width = frame.shape[:2]
    padded = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge").astype(int)
    pairs = padded[0::2] + padded[1::2]
    sums = (pairs[:, 0::2] + pairs[:, 1::2]).sum(-1)
    gray = (sums * 5462 + 32768) >> 16
    if width % 2:
        gray[:, -1] = (sums[:, -1] // 2 + 3) // 6
    return gray.astype(np.uint8)


def _at(image: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Pixels at integer positions, those outside from the border."""
    height, width = image.shape[:2]
    return image[np.clip(y, 0, height - 1)[:, None], np.clip(x, 0, width - 1)[None]].astype(int)


def residual(now: np.ndarray, before: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """|before(x + vector) - now| of gray pictures, by patches of 8x8."""
    height, width = now.shape
    out = np.zeros((vectors.shape[0] * PATCH, vectors.shape[1] * PATCH), np.uint8)
    for j, i in np.ndindex(vectors.shape[:2]):
        px, py = (int(np.float32(v) * np.float32(64)) for v in vectors[j, i])
        y = np.arange(j * PATCH, j * PATCH + PATCH + 1) + (py >> 6)
        x = np.arange(i * PATCH, i * PATCH + PATCH + 1) + (px >> 6)
        block = _at(before, y, x)
        lines = block[:, :-1] * (64 - (px & 63)) + block[:, 1:] * (px & 63)
        value = lines[:-1] * (64 - (py & 63)) + lines[1:] * (py & 63)
        here = _at(now, y[:-1] - (py >> 6), x[:-1] - (px >> 6))
        d = ((value + 512) >> 10) - 4 * here
        tile = np.minimum((np.abs(d) + 2) >> 2, 255)
        out[j * PATCH : (j + 1) * PATCH, i * PATCH : (i + 1) * PATCH] = tile
    return out[:height, :width]


def weights(differences: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Shares in 0..127; sums of 3x3 stay within a strip of 8 rows."""
    height, width = differences.shape
    out = np.zeros((height, width), int)
    for first in range(0, height, PATCH):
        strip = differences[first : first + PATCH].astype(int)
        padded = np.pad(strip, 1, mode="edge")
        rows, columns = strip.shape
        sums = sum(padded[a : a + rows, b : b + columns] for a in range(3) for b in range(3))
        left = np.clip(QUIET + SLOPE - sums, 0, SLOPE)
        out[first : first + PATCH] = left * most[first : first + PATCH] // SLOPE
    return out


def cubic(phase: int) -> np.ndarray:
    """Keys' kernel with a = -1/2 at ``phase``/32, times 64, with the sum 64."""
    t = phase / PHASES
    distance = np.abs(np.arange(-1, 3) - t)
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    exact = 64 * np.where(distance <= 1, near, far)
    taps = (np.sign(exact) * np.floor(np.abs(exact) + 0.5)).astype(int)
    taps[1 if t < 0.5 else 2] += 64 - taps.sum()
    return taps


def warp(image: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """What an image is at ``x + vector``, by tiles of 16x16; vectors in pixels of the image."""
    height, width = image.shape[:2]
    out = np.zeros((vectors.shape[0] * TILE, vectors.shape[1] * TILE, 3), np.uint8)
    for j, i in np.ndindex(vectors.shape[:2]):
        tx, ty = (int(np.rint(np.float32(v) * PHASES)) for v in vectors[j, i])
        y = np.arange(-1, TILE + 2) + j * TILE + ty // PHASES
        x = np.arange(-1, TILE + 2) + i * TILE + tx // PHASES
        block = _at(image, y, x)
        across, down = cubic(tx % PHASES), cubic(ty % PHASES)
        lines = sum(block[:, k : k + TILE] * across[k] for k in range(4))
        value = sum(lines[k : k + TILE] * down[k] for k in range(4))
        tile = np.clip((value + 2048) >> 12, 0, 255)
        out[j * TILE : (j + 1) * TILE, i * TILE : (i + 1) * TILE] = tile
    return out[:height, :width]


def laplacian(image: np.ndarray) -> np.ndarray:
    """4 times each inner pixel less its neighbours; rows and columns outside are left out."""
    x = image.astype(int)
    inner = 4 * x[1:-1, 1:-1] - x[1:-1, :-2] - x[1:-1, 2:]
    return inner - x[:-2, 1:-1] - x[2:, 1:-1]


class Reference:
    """One stream; vectors come from outside."""

    def __init__(self) -> None:
        self.state: np.ndarray | None = None
        self.gray: np.ndarray | None = None
        self.gain = 0.0
        self.disagreement: float | None = None

    def _share(self, most: float) -> int:
        known = self.disagreement
        power = 1.0 if known is None else min(LEAST_POWER + (known / USUAL) ** 2, MOST_POWER)
        return int(np.rint(127 * most**power))

    def __call__(
        self,
        frame: np.ndarray,
        painting: np.ndarray,
        vectors: np.ndarray | None,
        moving: float,
        still: float,
        sharpen: bool,
    ) -> np.ndarray:
        """The steadied painting; ``vectors`` are None for the first frame of a scene."""
        gray, before = half(frame), self.gray
        self.gray = gray
        if vectors is None or before is None or self.state is None:
            self.state, self.gain, self.disagreement = painting.copy(), 0.0, None
            return painting
        resting = (np.abs(vectors) < np.float32(STILL)).all(-1)
        vectors = np.where(resting[..., None], np.float32(0), vectors)
        shares = np.where(resting, self._share(still), self._share(moving))
        height, width = gray.shape
        most = shares.repeat(PATCH, 0).repeat(PATCH, 1)[:height, :width]
        weight = weights(residual(gray, before, vectors / 2), most)
        weight = weight.repeat(2, 0).repeat(2, 1)[: frame.shape[0], : frame.shape[1], None]
        change = warp(self.state, vectors).astype(int) - painting
        difference = weight * change
        sampled = np.broadcast_to(weight > self._share(moving) // 2, change.shape)[::PATCH]
        if sampled.any():
            now = float((change[::PATCH][sampled] ** 2).mean())
            before_it = now if self.disagreement is None else self.disagreement
            self.disagreement = before_it + FOLLOW * (now - before_it)
        self.state = (painting + np.trunc(difference / 128).astype(int)).astype(np.uint8)
        return self._sharpened(painting) if sharpen else self.state

    def _sharpened(self, painting: np.ndarray) -> np.ndarray:
        state = self.state
        assert state is not None
        height, width = state.shape[:2]
        if min(height, width) < 3:
            return state
        edge = np.pad(state, ((1, 1), (0, 0), (0, 0)), mode="edge")
        out = state.copy()
        gain = int(np.rint(self.gain * MOST_GAIN))
        out[:, 1:-1] = np.clip(state[:, 1:-1] + ((laplacian(edge) * gain + 64) >> 7), 0, 255)
        # Of every 8 rows those that lie inside, in steps.
        rows = [y for y in range(1, height - 1) if 1 <= y % BAND < BAND - 1 and y % BAND % 3 == 1]
        paint, result = ((laplacian(p)[np.array(rows) - 1] ** 2).sum() for p in (painting, out))
        if result > 0:
            target = 1 + MORE * min((self.disagreement or 0.0) / AGREE, 1.0)
            self.gain += HASTE * (float(np.sqrt(target * paint / result)) - 1)
        self.gain = min(max(self.gain, 0.0), 1.0)
        return out
