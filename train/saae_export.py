"""Checkpoints of trained SAAEs and baselines: the graph, glyphs, a bank of styles, provenance."""

from __future__ import annotations

import base64
import dataclasses
import io
from typing import Any

import numpy as np
import torch
from PIL import Image

import fastgen
from fastgen.backends.torch import GraphModule
from fastgen.checkpoint import Checkpoint, load_checkpoint
from fastgen.train.saae_batches import images_of
from fastgen.train.saae_data import MARGIN, SaaeData
from fastgen.train.saae_options import SaaeOptions
from fastgen.train.saae_systems import Autoencoder, Saae, System

__all__ = ["export", "pack", "pack_glyphs"]

STYLE_CODE = "style_code_relu"  # the style vector's value in every graph of fastgen.models.saae


def pack(array: np.ndarray) -> dict[str, Any]:
    """A float array as JSON: shape and base64 of its float16 values."""
    data = base64.b64encode(array.astype("<f2").tobytes()).decode()
    return {"shape": list(array.shape), "float16": data}


def pack_glyphs(contents: np.ndarray) -> str:
    """Grey pictures (K,1,H,W) uint8, one below the other, as base64 of a PNG."""
    sheet = Image.fromarray(contents[:, 0].reshape(-1, contents.shape[3]))
    file = io.BytesIO()
    sheet.save(file, "png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def export(
    options: SaaeOptions, system: System, data: SaaeData, record: dict[str, Any]
) -> Checkpoint:
    """The checkpoint of a trained system.

    Args:
        options: of the run.
        system: trained; its generator is exported.
        data: training data, from which the bank of styles is drawn.
        record: what happened, for the provenance.

    Returns:
        Kind ``"saae"`` with ``alphabet``, ``glyphs`` and ``style_bank`` in its metadata, or kind
        ``"saae-baseline"`` with a graph from ``latent`` to ``image`` and the latent's mean and
        standard deviation.
    """
    generator: GraphModule = system.generator  # type: ignore[assignment]
    weights = generator.export_weights()
    meta: dict[str, Any] = {
        "kind": "saae" if isinstance(system, Saae) else "saae-baseline",
        "input_range": [0, 1],
        "output_range": [0, 1],
        "channel_order": "rgb",
        "name": options.name or options.output.stem,
        "licence": options.licence,
        "classes": list(data.classes),
        "provenance": _provenance(options, data, record),
    }
    if isinstance(system, Saae):
        meta["content_is_glyph"] = data.glyphs
        meta["style_bank"] = pack(style_bank(generator, weights, data, options.bank, options.seed))
        if data.glyphs:
            meta["alphabet"] = list(data.alphabet)
            meta["glyphs"] = pack_glyphs(data.contents)
            meta["glyph_margin"] = MARGIN
    else:
        mean, std = _latent(system, data)
        meta["latent"] = {"mean": pack(mean), "std": pack(std)}
        meta["model"] = options.model
    return Checkpoint(generator.graph, weights, meta)


@torch.no_grad()
def style_bank(
    generator: GraphModule, weights: dict[str, np.ndarray], data: SaaeData, count: int, seed: int
) -> np.ndarray:
    """Style vectors (count, S) of real styles drawn by a seed, as the stored weights make them."""
    graph = generator.graph.part(("style",), STYLE_CODE)
    stored = {k: weights[k].astype(np.float16).astype(np.float32) for k in graph.weight_shapes()}
    encoder = GraphModule(graph).load_weights(stored).eval()
    rng = np.random.default_rng([seed, 5])
    chosen = rng.permutation(len(data.styles))[:count]
    codes = [
        encoder(images_of(data.styles[chosen[i : i + 64]], "cpu")).numpy()
        for i in range(0, len(chosen), 64)
    ]
    size = graph.infer_shapes(graph.smallest_shapes())[STYLE_CODE][1]
    return np.concatenate(codes) if codes else np.zeros((0, size), np.float32)


@torch.no_grad()
def _latent(system: System, data: SaaeData) -> tuple[np.ndarray, np.ndarray]:
    """Where a baseline's latents lie: N(0,1), or for a plain autoencoder as its codes do."""
    generator: GraphModule = system.generator  # type: ignore[assignment]
    size = generator.graph.smallest_shapes()["latent"][1]
    if not isinstance(system, Autoencoder) or system.adversarial:
        return np.zeros(size, np.float32), np.ones(size, np.float32)
    device = next(generator.parameters()).device
    system.eval()
    chosen = np.random.default_rng(6).permutation(len(data))[:1024]
    codes = torch.cat(
        [
            system.encoder(images_of(data.images[chosen[i : i + 64]], device))
            for i in range(0, len(chosen), 64)
        ]
    )
    system.train()
    return codes.mean(0).cpu().numpy(), codes.std(0).cpu().numpy()


def _provenance(options: SaaeOptions, data: SaaeData, record: dict[str, Any]) -> dict[str, Any]:
    used = dataclasses.asdict(options)
    earlier = None
    if options.init is not None:
        start = load_checkpoint(options.init).meta
        earlier = {
            "name": start.get("name"),
            "sha256": start.get("sha256"),
            "options": (start.get("provenance") or {}).get("options"),
            "training": (start.get("provenance") or {}).get("training"),
        }
    local = (
        "init output source run_dir resume quiet threads device name licence data_note data font"
    )
    return {
        "paper": "Zhao et al., Stylized Adversarial AutoEncoder for Image Generation, ACM MM 2017; "
        "sizes, losses and schedule are a reconstruction",
        "data": {
            "name": data.name,
            "images": len(data),
            "skipped": data.skipped,
            "note": options.data_note,
        },
        "options": {k: v for k, v in used.items() if k not in local.split()},
        "training": {
            **record,
            "earlier": earlier,
            "torch": torch.__version__,
            "fastgen": fastgen.__version__,
        },
    }
