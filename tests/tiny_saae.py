"""A small SAAE checkpoint and a small folder of labelled pictures, for tests that need some."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from cpu_cases import random_weights
from PIL import Image

from fastgen import Checkpoint, save_checkpoint
from fastgen.glyphs import Glyphs
from fastgen.models.saae import saae_net


def tiny_saae(channels: int = 1, alphabet: str = "AB7", glyphs: bool = True) -> Checkpoint:
    """Content 1x12x10 (or an image of that size), style 8x14, random weights."""
    from fastgen.generator import STYLE_CODE
    from fastgen.train.saae_export import pack, pack_glyphs

    graph = saae_net("tiny", (1, 12, 10), (channels, 8, 14), channels, 3, 5)
    drawn = Glyphs((12, 10), margin=0.1)(alphabet)
    size = graph.infer_shapes(graph.smallest_shapes())[STYLE_CODE][1]
    bank = np.random.default_rng(1).normal(size=(4, size)).astype(np.float32)
    meta = {
        "kind": "saae",
        "name": "tiny",
        "input_range": [0, 1],
        "output_range": [0, 1],
        "channel_order": "rgb",
        "licence": "none",
        "content_is_glyph": glyphs,
        "style_bank": pack(bank),
    }
    if glyphs:
        sheet = np.round(drawn[:, None] * 255).astype(np.uint8)
        meta |= {"alphabet": list(alphabet), "glyphs": pack_glyphs(sheet)}
    weights = random_weights(graph)
    weights["style_map.weight"] *= 3  # so that the style shows
    return Checkpoint(graph, weights, meta)


def save_saae(folder: Path, name: str = "tiny", **config: object) -> Path:
    """Writes such a checkpoint and returns its path."""
    path = folder / f"{name}.safetensors"
    save_checkpoint(path, tiny_saae(**config), dtype="float32")  # type: ignore[arg-type]
    return path


def save_folder(root: Path, labels: str = "AB", each: int = 6, styles: bool = False) -> Path:
    """Pictures of glyphs in random colours with a labels.csv; returns the folder."""
    root.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    glyphs = dict(zip(labels, Glyphs((16, 16))(labels), strict=True))
    rows = [["file", "label", *(["style"] if styles else [])]]
    for label in labels:
        for i in range(each):
            front, back = rng.uniform(0, 255, (2, 3))
            mask = glyphs[label][..., None]
            picture = (mask * front + (1 - mask) * back).astype(np.uint8)
            name = f"{label}{i}.png"
            Image.fromarray(picture).save(root / name)
            row = [name, label]
            if styles:
                Image.fromarray(np.tile(picture, (1, 2, 1))).save(root / f"s-{name}")
                row.append(f"s-{name}")
            rows.append(row)
    with open(root / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return root
