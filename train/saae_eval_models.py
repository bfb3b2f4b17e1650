"""Checkpoints of stylized autoencoders and their baselines as generators to be measured."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastgen.backends.torch import GraphModule
from fastgen.checkpoint import load_checkpoint
from fastgen.train.saae import train_saae
from fastgen.train.saae_eval_data import EvalData
from fastgen.train.saae_eval_options import CompareSaaeOptions, RecogniserOptions
from fastgen.train.saae_options import SaaeOptions

__all__ = ["EvalModel", "load_model", "trained"]

_BATCH = 500
# Settings of a generator that the options of every comparison have under the same names.
_SHARED = (
    "data",
    "source",
    "style_features",
    "d_lr",
    "rec_steps",
    "dis_steps",
    "precision",
    "device",
    "threads",
    "quiet",
)


@dataclass
class EvalModel:
    """A generator with what is known of its training.

    Attributes:
        module: The network, in eval mode.
        data: Name of the data set that it was trained on.
        info: ``file``, ``sha256``, ``arm``, ``seed`` and what is known of the training.
        noise: Length of the random part of the input; 0 for models with content and style.
        classes: Length of the one-hot class behind the noise (conditional GAN), else 0.
        mean: Of the noise's distribution, by default 0.
        std: Of the noise's distribution, by default 1.
    """

    module: GraphModule
    data: str
    info: dict[str, Any]
    noise: int = 0
    classes: int = 0
    mean: Tensor | None = None
    std: Tensor | None = None

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
            if self.mean is not None and self.std is not None:
                latent = latent * self.std[: self.noise] + self.mean[: self.noise]
            if self.classes:
                label = torch.randint(self.classes, (len(part),), generator=generator)
                latent = torch.cat([latent, torch.eye(self.classes)[label]], 1)
            parts.append(self.module(latent.to(device)).float().cpu())
        return torch.cat(parts)


def arm_name(model: str, discriminator: str, schedule: str) -> str:
    """What an arm is called in reports: the SAAE by its discriminator, baselines by their name."""
    if model != "saae":
        names = {"dcgan": "DCGAN", "aae": "AAE", "cgan": "conditional GAN"}
        return names.get(model, model)
    arm = "binary" if discriminator == "binary" else "multi-class"
    return arm if schedule == "three-step" else f"{arm}, {schedule}"


def load_model(path: Path, device: torch.device) -> EvalModel:
    """Reads a checkpoint of ``fastgen train saae``.

    Raises:
        ValueError: The file is another kind of model.
    """
    checkpoint = load_checkpoint(path)
    meta = checkpoint.meta
    if meta["kind"] not in ("saae", "saae-baseline"):
        raise ValueError(f"{path} is a {meta['kind']!r} model, none of `fastgen train saae`")
    trained = meta.get("provenance") or {}
    try:
        options, record = trained["options"], trained["training"]
        data = str(trained["data"]["name"])
        name, seed = str(options["model"]), int(options["seed"])
        arm = arm_name(name, str(options["discriminator"]), str(options["schedule"]))
        if options["per_class"] is not None:
            arm += f", {options['per_class']} a class"
        info = {
            "file": path.name,
            "sha256": meta.get("sha256"),
            "arm": arm,
            "seed": seed,
            "width": options["width"],
            "attribute": options["attribute"] if data == "faces" else None,
            "adv_weight": options["adv_weight"],
            "steps": {p["kind"]: p["steps"] for p in record["phases"]},
            "minutes": round(record["seconds"] / 60, 1),
            "warnings": record["warnings"],
        }
        noise = 0 if meta["kind"] == "saae" else int(options["style_features"])
        mean, std = (_unpack(meta["latent"][k]) for k in ("mean", "std")) if noise else (None, None)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} has an incomplete provenance ({error}); train it again") from None
    classes = 0
    if noise:
        classes = int(checkpoint.graph.inputs[0].shape[1]) - noise  # type: ignore[arg-type]
    module = GraphModule(checkpoint.graph).load_weights(checkpoint.weights).to(device).eval()
    return EvalModel(module, data, info, noise, classes, mean, std)


def _unpack(value: dict[str, Any]) -> Tensor:
    raw = np.frombuffer(base64.b64decode(value["float16"]), "<f2").reshape(value["shape"])
    return torch.tensor(raw.astype(np.float32))


def trained(path: Path, options: CompareSaaeOptions | RecogniserOptions, **settings: Any) -> Path:
    """Trains the generator of a comparison, or goes on, or finds it finished.

    Args:
        path: Its checkpoint; the folder of its states is beside it.
        options: Those of the comparison; what all comparisons share is taken from them.
        **settings: The other fields of ``SaaeOptions``.

    Returns:
        ``path``.

    Raises:
        KeyboardInterrupt: The training was stopped; its state is saved.
    """
    if path.is_file():
        return path
    shared = {name: getattr(options, name) for name in _SHARED}
    resume = (path.with_suffix(".run") / "state").is_dir()
    run = SaaeOptions(output=path, preview_every=0, resume=resume, **shared, **settings)
    if not train_saae(run).finished:
        raise KeyboardInterrupt
    return path
