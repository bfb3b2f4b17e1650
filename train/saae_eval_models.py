"""Checkpoints of stylized autoencoders and their baselines as generators to be measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastgen.backends.torch import GraphModule
from fastgen.checkpoint import load_checkpoint
from fastgen.train.saae_eval_data import EvalData

__all__ = ["EvalModel", "load_model"]

_BATCH = 500


@dataclass
class EvalModel:
    """A generator with what is known of its training.

    Attributes:
        module: The network, in eval mode.
        data: Name of the data set that it was trained on.
        info: ``file``, ``sha256``, ``arm``, ``seed``, ``steps``, ``minutes``.
        noise: Length of the random part of the input; 0 for models with content and style.
        classes: Length of the one-hot class behind the noise (conditional GAN), else 0.
    """

    module: GraphModule
    data: str
    info: dict[str, Any]
    noise: int = 0
    classes: int = 0

    @property
    def takes_style(self) -> bool:
        """Whether the inputs are a content and a style image."""
        return not self.noise

    @torch.inference_mode()
    def __call__(self, content: Tensor, style: Tensor) -> Tensor:
        """(N, C, H, W) images in [0, 1] on the CPU, for models with content and style."""
        device = next(self.module.parameters()).device
        return torch.cat(
            [
                self.module(c.to(device), s.to(device)).float().cpu()
                for c, s in zip(content.split(_BATCH), style.split(_BATCH), strict=True)
            ]
        )

    @torch.inference_mode()
    def samples(self, data: EvalData, count: int, generator: torch.Generator) -> Tensor:
        """Random images: random contents in the style of random training images, or of noise.

        Args:
            data: Where contents and styles come from.
            count: Number of images.
            generator: Draws them; models of one kind get the same inputs from the same seed.

        Returns:
            (count, C, H, W) in [0, 1].
        """
        parts = []
        if self.takes_style:
            index = torch.randint(len(data.train), (count,), generator=generator)
            if data.has_glyphs:
                contents = torch.stack([glyph for glyph, _ in data.glyphs])
                drawn = torch.randint(len(contents), (count,), generator=generator)
            else:
                drawn = torch.randint(len(data.train), (count,), generator=generator)
            for part in torch.arange(count).split(_BATCH):
                chosen = drawn[part]
                content = contents[chosen] if data.has_glyphs else data.train.contents(chosen)
                parts.append(self(content, data.train.styles(index[part])))
            return torch.cat(parts)
        device = next(self.module.parameters()).device
        for part in torch.arange(count).split(_BATCH):
            latent = torch.randn(len(part), self.noise, generator=generator)
            if self.classes:
                label = torch.randint(self.classes, (len(part),), generator=generator)
                latent = torch.cat([latent, torch.eye(self.classes)[label]], 1)
            parts.append(self.module(latent.to(device)).float().cpu())
        return torch.cat(parts)


def arm_name(model: str, discriminator: str) -> str:
    """What an arm is called in reports: the SAAE by its discriminator, baselines by their name."""
    if model != "saae":
        return {"dcgan": "DCGAN", "aae": "AAE", "cgan": "conditional GAN"}.get(model, model)
    return "binary" if discriminator == "binary" else "multi-class"


def load_model(path: Path, device: torch.device) -> EvalModel:
    """Reads a checkpoint of ``fastgen train saae``.

    Raises:
        ValueError: The file is another kind of model.
    """
    checkpoint = load_checkpoint(path)
    meta = checkpoint.meta
    trained = meta.get("provenance") or {}
    options = trained.get("options") or {}
    names = [item.name for item in checkpoint.graph.inputs]
    if names not in (["content", "style"], ["latent"]) or "data" not in options:
        raise ValueError(
            f"{path} has the inputs {', '.join(names)} and is no model of `fastgen train saae`"
        )
    module = GraphModule(checkpoint.graph).load_weights(checkpoint.weights).to(device).eval()
    name = str(options.get("model", "saae"))
    noise = classes = 0
    if names == ["latent"]:
        size = checkpoint.graph.inputs[0].shape[1]
        noise = int(options["latent"])
        classes = int(size) - noise  # type: ignore[arg-type]
    info = {
        "file": path.name,
        "sha256": meta.get("sha256"),
        "arm": arm_name(name, str(options.get("discriminator", ""))),
        "seed": int(options.get("seed", 0)),
        "steps": trained.get("steps"),
        "minutes": trained.get("minutes"),
    }
    return EvalModel(module, str(options["data"]), info, noise, classes)
