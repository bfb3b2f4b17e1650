"""Parzen-window log-likelihood of generated images, and the controls without which it misleads.

The protocol of Goodfellow et al. 2014, as the adversarial autoencoder (Makhzani et al. 2015) used
it: a Gaussian of one width sits on each of N = 10,000 generated images,

    log p(x) = log( (1/N) sum_i exp(-||x - g_i||^2 / (2 s^2)) ) - D log( s sqrt(2 pi) )

with pixels in [0, 1]; s is the best of ten values on 1,000 validation images, and the score is the
mean over the test images. The measure rewards blur: averages of training images score above the
training images themselves (Theis et al. 2016), so :func:`controls` belongs beside every score.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "CONTROLS",
    "SIGMAS",
    "ParzenResult",
    "controls",
    "k_means",
    "log_likelihood",
    "nearest",
    "parzen",
]

SIGMAS = tuple(float(s) for s in np.logspace(-1, 0, 10))
"""The ten widths of the original protocol, in units of the pixel range."""

# Values of one block of distances: 64 MiB of float32.
_BLOCK = 1 << 24


@dataclass(frozen=True)
class ParzenResult:
    """One Parzen score.

    Attributes:
        sigma: The chosen width.
        mean: Mean log-likelihood of the test images in nats.
        se: Standard error over the test images, std / sqrt(n).
        validation: Mean log-likelihood of the validation images for each width.
    """

    sigma: float
    mean: float
    se: float
    validation: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {
            "sigma": round(self.sigma, 6),
            "mean": round(self.mean, 3),
            "se": round(self.se, 3),
            "validation": [round(v, 3) for v in self.validation],
        }


def _flat(images: Tensor, name: str) -> Tensor:
    if images.ndim < 2 or not len(images):
        raise ValueError(f"{name} has the shape {tuple(images.shape)}; it must be (N, ...), N >= 1")
    return images.reshape(len(images), -1).float()


def _distances(points: Tensor, samples: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Squared distances of blocks of points to all samples.

    Yields:
        The block's slice and its distances, (points of the block, samples), float32, >= 0.
    """
    norms = samples.square().sum(1)
    rows = max(1, _BLOCK // len(samples))
    for start in range(0, len(points), rows):
        block = slice(start, min(start + rows, len(points)))
        part = points[block]
        squared = torch.addmm(norms, part, samples.T, alpha=-2)
        squared += part.square().sum(1, keepdim=True)
        yield block, squared.clamp_(min=0)


def log_likelihood(points: Tensor, samples: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Log-density of points under a Gaussian Parzen window on the samples.

    Args:
        points: (M, ...) images to score.
        samples: (N, ...) images that carry the windows, of the same size.
        sigmas: Widths, each > 0.

    Returns:
        (len(sigmas), M) float64 on the CPU, in nats.

    Raises:
        ValueError: Sizes differ, nothing to score, or a width that is not positive.
    """
    points, samples = _flat(points, "points"), _flat(samples, "samples")
    if points.shape[1] != samples.shape[1]:
        raise ValueError(
            f"points have {points.shape[1]} values, samples {samples.shape[1]}; give equal sizes"
        )
    bad = [s for s in sigmas if not s > 0]
    if bad or not sigmas:
        raise ValueError(f"sigmas are {list(sigmas)}; give at least one, all above 0")
    # Rounding of ||x||^2 - 2xg + ||g||^2 grows with the norms: move the origin into the data.
    centre = samples.mean(0)
    points, samples = points - centre, samples - centre
    result = torch.empty(len(sigmas), len(points), dtype=torch.float64)
    constant = math.log(len(samples))
    for block, squared in _distances(points, samples):
        lowest = squared.min(1, keepdim=True).values
        squared -= lowest
        for row, sigma in enumerate(sigmas):
            scale = -0.5 / sigma**2
            # exp in place of the differences: they are <= 0, so nothing overflows.
            tail = (squared * scale).exp_().sum(1, dtype=torch.float64).log()
            value = tail + lowest[:, 0].double() * scale - constant
            value -= points.shape[1] * math.log(sigma * math.sqrt(2 * math.pi))
            result[row, block] = value.cpu()
    return result


def parzen(
    samples: Tensor, validation: Tensor, test: Tensor, sigmas: Sequence[float] = SIGMAS
) -> ParzenResult:
    """The score of generated images: width chosen on validation, mean over test.

    Args:
        samples: (N, ...) generated images in [0, 1].
        validation: (V, ...) real images that choose the width.
        test: (M, ...) real images that are scored.
        sigmas: Widths to choose from.

    Returns:
        The score; when the best width is the first or last one, it is a bound of the best score.
    """
    curve = log_likelihood(validation, samples, sigmas).mean(1)
    best = int(curve.argmax())
    scores = log_likelihood(test, samples, [sigmas[best]])[0]
    return ParzenResult(
        sigma=float(sigmas[best]),
        mean=float(scores.mean()),
        se=float(scores.std(correction=0) / math.sqrt(len(scores))),
        validation=tuple(curve.tolist()),
    )


def nearest(points: Tensor, samples: Tensor, count: int = 1) -> tuple[Tensor, Tensor]:
    """The samples closest to each point, by Euclidean distance of the pixels.

    Args:
        points: (M, ...).
        samples: (N, ...), N >= count.
        count: Neighbours a point.

    Returns:
        Distances and indices into ``samples``, each (M, count), ascending.
    """
    points, samples = _flat(points, "points"), _flat(samples, "samples")
    if not 1 <= count <= len(samples):
        raise ValueError(f"{count} neighbours of {len(samples)} samples; ask for 1..{len(samples)}")
    centre = samples.mean(0)
    points, samples = points - centre, samples - centre
    values, indices = [], []
    for _, squared in _distances(points, samples):
        if count == 1:  # many times faster than a selection
            value, index = squared.min(1, keepdim=True)
        else:
            value, index = torch.topk(squared, count, dim=1, largest=False)
        values.append(value)
        indices.append(index)
    return torch.cat(values).sqrt(), torch.cat(indices)


def k_means(data: Tensor, count: int, iterations: int, generator: torch.Generator) -> Tensor:
    """Lloyd's algorithm from randomly chosen images; an empty cluster keeps its centre.

    Args:
        data: (N, ...) images.
        count: Number of clusters, at most N.
        iterations: Updates of the centres.
        generator: Chooses the first centres.

    Returns:
        (count, D) centres.
    """
    data = _flat(data, "data")
    if not 1 <= count <= len(data):
        raise ValueError(f"{count} clusters of {len(data)} images; ask for 1..{len(data)}")
    chosen = torch.randperm(len(data), generator=generator)[:count]
    centres = data[chosen.to(data.device)].clone()
    for _ in range(iterations):
        _, label = nearest(data, centres)
        sums = torch.zeros_like(centres).index_add_(0, label[:, 0], data)
        sizes = torch.bincount(label[:, 0], minlength=count)
        filled = sizes > 0
        centres[filled] = sums[filled] / sizes[filled, None]
    return centres


def _real(train: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return train[torch.randperm(len(train), generator=generator)[:count].to(train.device)]


def _blurred(train: Tensor, count: int, generator: torch.Generator) -> Tensor:
    images = _real(train, count, generator)
    row = images.new_tensor([0.25, 0.5, 0.25])
    kernel = torch.outer(row, row)[None, None]
    return F.conv2d(images[:, None], kernel, padding=1)[:, 0]


def _centres(train: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return k_means(train, count, 5, generator)


def _neighbour_means(train: Tensor, count: int, generator: torch.Generator) -> Tensor:
    images = _real(train, count, generator)
    flat = train.reshape(len(train), -1)
    _, index = nearest(images, train, 8)  # the first one is the image itself
    means = [flat[part].mean(1) for part in index.split(256)]
    return torch.cat(means)


CONTROLS: dict[str, tuple[str, Callable[[Tensor, int, torch.Generator], Tensor]]] = {
    "real": ("real training images", _real),
    "blur": ("the same, blurred by (1 2 1)/4 in both directions", _blurred),
    "k_means": ("k-means centres of the training images (5 iterations)", _centres),
    "means_of_8": (
        "means of the 8 training images nearest to one, itself included",
        _neighbour_means,
    ),
}
"""Sets of images that no generator made: name -> (description, maker)."""


def controls(
    train: Tensor,
    validation: Tensor,
    test: Tensor,
    count: int = 10_000,
    seed: int = 0,
    names: Sequence[str] = tuple(CONTROLS),
) -> dict[str, ParzenResult]:
    """Scores of the controls with as many images as the generators give.

    Args:
        train: (N, H, W) training images in [0, 1] without the validation images.
        validation: (V, H, W).
        test: (M, H, W).
        count: Images a control.
        seed: Chooses images and first centres.
        names: Which of :data:`CONTROLS`.

    Returns:
        Name -> score.
    """
    result = {}
    for name in names:
        generator = torch.Generator().manual_seed(seed)
        samples = CONTROLS[name][1](train, count, generator)
        result[name] = parzen(samples, validation, test)
    return result
