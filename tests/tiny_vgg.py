"""A loss network of random weights in VGG-16's layout, and photos, for tests of the trainer."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

INDICES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21)  # relu1_1 ... relu4_3
CHANNELS = (4, 4, 6, 6, 8, 8, 8, 8, 8, 8)
INPUT = "RGB, float 0..255, subtract mean [120, 115.5, 100] (R,G,B), no std division."


def tiny_weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights under torchvision's names."""
    generator = torch.Generator().manual_seed(seed)
    weights, before = {}, 3
    for index, channels in zip(INDICES, CHANNELS, strict=True):
        spread = math.sqrt(2 / (9 * before))
        shape = (channels, before, 3, 3)
        weights[f"features.{index}.weight"] = torch.randn(shape, generator=generator) * spread
        weights[f"features.{index}.bias"] = torch.randn(channels, generator=generator) * 0.1
        before = channels
    return weights


def save_tiny_vgg(folder: Path, **metadata: str) -> Path:
    """Writes such a network with its input convention in the metadata."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny_vgg.safetensors"
    metadata = {"input": INPUT, "pooling": "2x2 max pool, ceil_mode=True", **metadata}
    save_file(tiny_weights(), path, metadata=metadata)
    return path


def picture(seed: int, width: int = 60, height: int = 48) -> Image.Image:
    """A smooth random picture: coarse noise, enlarged."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def save_photos(folder: Path, count: int = 6) -> Path:
    """Writes ``count`` pictures and returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        picture(i).save(folder / f"photo{i:02d}.png")
    return folder
