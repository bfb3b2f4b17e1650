"""Judges of generated images: small classifiers trained on real images only.

A judge reads generated glyphs (is the class what was asked for?), tells the attributes of faces,
and lends its last hidden layer to a Frechet distance. Its accuracy on real images that it has not
seen belongs beside everything it says.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from fastgen.checkpoint import atomic_write
from fastgen.train.augment import distort

__all__ = [
    "Classifier",
    "FitOptions",
    "accuracy",
    "cached_judge",
    "features",
    "fit",
    "frechet",
    "predict",
]

Batches = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]


class Classifier(nn.Module):
    """Three 3x3 convolutions with batch norm and pooling, a hidden layer, class scores.

    Args:
        channels: Of the images.
        size: (height, width) of the images, each at least 8.
        classes: Number of classes.
        width: Channels of the first convolution; twice and four times that afterwards.
        hidden: Length of the hidden layer, the features.
    """

    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        classes: int,
        width: int = 16,
        hidden: int = 128,
    ) -> None:
        super().__init__()
        if min(size) < 8 or classes < 2:
            raise ValueError(f"size {size} must be at least 8x8 and classes {classes} at least 2")
        self.size, self.channels, self.classes = tuple(size), channels, classes
        layers: list[nn.Module] = []
        before = channels
        for width_now in (width, 2 * width, 4 * width):
            layers += [
                nn.Conv2d(before, width_now, 3, padding=1, bias=False),
                nn.BatchNorm2d(width_now),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
            before = width_now
        self.body = nn.Sequential(*layers)
        self.hidden = nn.Linear(before * (size[0] // 8) * (size[1] // 8), hidden)
        self.drop = nn.Dropout(0.3)
        self.scores = nn.Linear(hidden, classes)

    def features(self, images: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] to the (N, hidden) features, at least 0."""
        return F.relu(self.hidden(self.body(images * 2 - 1).flatten(1)))

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] to (N, classes) scores."""
        return self.scores(self.drop(self.features(images)))


@dataclass(frozen=True)
class FitOptions:
    """How a classifier is trained: Adam, one-cycle rate, a fixed number of steps.

    Attributes:
        steps: Optimiser steps.
        batch: Images a step.
        lr: Highest rate.
        distort: Random affine and elastic distortion of every batch.
        seed: Of weights, batches and distortions.
        width: Channels of the first convolution.
    """

    steps: int = 1500
    batch: int = 128
    lr: float = 3e-3
    distort: bool = True
    seed: int = 0
    width: int = 16


def fit(
    batches: Batches,
    shape: tuple[int, int, int],
    classes: int,
    options: FitOptions,
    watch: Callable[[int, Classifier], None] | None = None,
    device: torch.device | str = "cpu",
) -> Classifier:
    """Trains a classifier from scratch.

    Args:
        batches: (number of images, generator) -> images (N, C, H, W) in [0, 1] and labels (N,).
        shape: (channels, height, width) of the images.
        classes: Number of classes.
        options: See :class:`FitOptions`.
        watch: Called after each step with the number of finished steps; the network must come
            back in the mode it was given.
        device: Where to compute.

    Returns:
        The classifier, in eval mode.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        network = Classifier(shape[0], shape[1:], classes, options.width).to(device)
        network.train()
        optimizer = torch.optim.AdamW(network.parameters(), options.lr, weight_decay=1e-2)
        rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, options.steps)
        generator = torch.Generator().manual_seed(options.seed)
        for step in range(1, options.steps + 1):
            images, labels = batches(options.batch, generator)
            if options.distort:
                images = distort(images, generator)
            loss = F.cross_entropy(network(images.to(device)), labels.to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            rate.step()
            if watch is not None:
                watch(step, network)
    return network.eval()


def from_set(images: Tensor, labels: Tensor) -> Batches:
    """Batches drawn at random, with replacement, from a set of images."""

    def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        index = torch.randint(len(images), (count,), generator=generator)
        return images[index], labels[index]

    return draw


@torch.inference_mode()
def predict(network: Classifier, images: Tensor, batch: int = 512) -> Tensor:
    """(N, classes) scores, in eval mode, on the CPU."""
    return _batched(network, network.forward, images, batch)


@torch.inference_mode()
def features(network: Classifier, images: Tensor, batch: int = 512) -> Tensor:
    """(N, hidden) features, in eval mode, on the CPU."""
    return _batched(network, network.features, images, batch)


def _batched(
    network: Classifier, call: Callable[[Tensor], Tensor], images: Tensor, batch: int
) -> Tensor:
    mode = network.training
    device = next(network.parameters()).device
    network.eval()
    try:
        return torch.cat([call(part.to(device)).cpu() for part in images.split(batch)])
    finally:
        network.train(mode)


def accuracy(network: Classifier, images: Tensor, labels: Tensor) -> float:
    """Share of images whose highest score is their label."""
    return float((predict(network, images).argmax(1) == labels).float().mean())


def _key(images: Tensor, labels: Tensor, classes: int, options: FitOptions, extra: str) -> str:
    digest = hashlib.sha256(f"judge 1 {classes} {tuple(images.shape)} {extra}".encode())
    digest.update(json.dumps(asdict(options), sort_keys=True).encode())
    digest.update((images[:: max(1, len(images) // 500)] * 255).byte().numpy().tobytes())
    digest.update(labels.numpy().tobytes())
    return digest.hexdigest()[:16]


def cached_judge(
    images: Tensor,
    labels: Tensor,
    held_out: tuple[Tensor, Tensor],
    classes: int,
    options: FitOptions,
    cache: Path | None,
    name: str,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Classifier, dict[str, Any]]:
    """A judge trained on real images, kept in a folder for the next time.

    Args:
        images: (N, C, H, W) real training images in [0, 1].
        labels: (N,) classes.
        held_out: Images and labels that measure the judge, in neither its training nor a
            generator's.
        classes: Number of classes.
        options: How it is trained.
        cache: Folder of the file; None trains each time.
        name: Stem of the file.
        say: Where progress goes.

    Returns:
        The judge and ``{"accuracy", "held_out", "steps", "images"}``.
    """
    key = _key(images, labels, classes, options, name)
    path = None if cache is None else cache / f"{name}-{key}.safetensors"
    shape = (images.shape[1], images.shape[2], images.shape[3])
    if path is not None and path.is_file():
        try:
            with safe_open(path, "pt") as file:
                info = json.loads(file.metadata()["info"])
                weights = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
            network = Classifier(shape[0], shape[1:], classes, options.width)
            network.load_state_dict(weights)
            return network.eval(), info
        except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            say(f"judge {path} is unusable ({str(error).splitlines()[0][:80]}); trained again")
    say(f"training the judge {name} on {len(images)} real images, {options.steps} steps")
    network = fit(from_set(images, labels), shape, classes, options)
    info = {
        "accuracy": accuracy(network, *held_out),
        "held_out": len(held_out[0]),
        "images": len(images),
        "steps": options.steps,
    }
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {k: v.contiguous() for k, v in network.state_dict().items()}
        atomic_write(path, save(state, {"info": json.dumps(info)}))
    return network, info


def frechet(first: Tensor, second: Tensor) -> float:
    """Frechet distance of two sets of features, each taken as a Gaussian (Heusel et al. 2017).

    ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))``, in float64. Comparable only within one judge.

    Args:
        first: (N, F), N >= 2.
        second: (M, F), M >= 2.
    """
    means, covariances = [], []
    for values in (first.double(), second.double()):
        if values.ndim != 2 or len(values) < 2:
            raise ValueError(f"features have the shape {tuple(values.shape)}; give (N >= 2, F)")
        mean = values.mean(0)
        centred = values - mean
        means.append(mean)
        covariances.append(centred.T @ centred / (len(values) - 1))
    level, basis = torch.linalg.eigh(covariances[0])
    root = (basis * level.clamp(min=0).sqrt()) @ basis.T
    # tr (C1 C2)^(1/2) = tr (C1^(1/2) C2 C1^(1/2))^(1/2), whose argument is symmetric.
    shared = torch.linalg.eigvalsh(root @ covariances[1] @ root).clamp(min=0).sqrt().sum()
    gap = (means[0] - means[1]).square().sum()
    traces = covariances[0].trace() + covariances[1].trace()
    return float((gap + traces - 2 * shared).clamp(min=0))


def balanced(labels: Tensor, per_class: int, generator: torch.Generator) -> Tensor:
    """Indices of ``per_class`` images of every class that occurs, chosen at random.

    Raises:
        ValueError: A class has fewer images.
    """
    chosen: list[Tensor] = []
    for label in torch.unique(labels).tolist():
        found = torch.nonzero(labels == label)[:, 0]
        if len(found) < per_class:
            raise ValueError(
                f"class {label} has {len(found)} images; {per_class} were asked for (--per-class)"
            )
        chosen.append(found[torch.randperm(len(found), generator=generator)[:per_class]])
    return torch.cat(chosen)


def confusion(truth: Sequence[int], found: Sequence[int], classes: int) -> list[list[int]]:
    """Counts, rows the truth, columns what was found."""
    table = [[0] * classes for _ in range(classes)]
    for a, b in zip(truth, found, strict=True):
        table[a][b] += 1
    return table
