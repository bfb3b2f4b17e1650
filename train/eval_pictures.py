"""Contact sheets of small images for reports."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastgen.checkpoint import atomic_write

__all__ = ["beside", "save_sheet", "sheet"]

_GAP = 2
_PAPER = 255


def _pixels(image: Tensor) -> np.ndarray:
    values = (image.detach().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return np.repeat(values, 3, axis=2) if values.shape[2] == 1 else values


def sheet(rows: Sequence[Sequence[Tensor]], scale: int = 2) -> np.ndarray:
    """Images in rows, each in a cell of the largest image's size, with thin white gaps.

    Args:
        rows: Images (C, H, W) in [0, 1], grey or RGB, of any sizes.
        scale: Whole factor of enlargement, pixels stay sharp.

    Returns:
        (H, W, 3) uint8.
    """
    images = [image for row in rows for image in row]
    if not images:
        raise ValueError("a sheet needs at least one image")
    high, wide = (max(i.shape[d] for i in images) for d in (1, 2))
    columns = max(len(row) for row in rows)
    page = np.full(
        (len(rows) * (high + _GAP) + _GAP, columns * (wide + _GAP) + _GAP, 3), _PAPER, np.uint8
    )
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            values = _pixels(image)
            top = _GAP + r * (high + _GAP) + (high - values.shape[0]) // 2
            left = _GAP + c * (wide + _GAP) + (wide - values.shape[1]) // 2
            page[top : top + values.shape[0], left : left + values.shape[1]] = values
    return page.repeat(scale, 0).repeat(scale, 1)


def beside(pages: Sequence[np.ndarray], gap: int = 16) -> np.ndarray:
    """Sheets next to each other, aligned at the top."""
    high = max(page.shape[0] for page in pages)
    parts = []
    for page in pages:
        full = np.full((high, page.shape[1] + gap, 3), _PAPER, np.uint8)
        full[: page.shape[0], : page.shape[1]] = page
        parts.append(full)
    return np.concatenate(parts, 1)[:, :-gap]


def save_sheet(path: Path, page: np.ndarray) -> None:
    """Writes a sheet as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(page).save(buffer, "PNG", optimize=True)
    atomic_write(path, buffer.getvalue())


def square(images: Tensor, columns: int) -> list[list[Tensor]]:
    """Rows of ``columns`` images each."""
    return [list(torch.unbind(part)) for part in images.split(columns)]
