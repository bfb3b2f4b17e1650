"""Eq. 9 of Johnson et al. 2016 with calibrated weights: the one objective of every style command.

    mu_c l_feat(y, photo) + sum_j mu_s^j l_style^j(y, painting) + mu_TV l_TV(y)

Each term is measured in a unit of its own, so that one default suits paintings and loss networks of
very different scale: style by the squared norm of the painting's own Gram matrix, content by
the spatial variance of the photos' own features, TV by the photos' own total variation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastgen.train.data import PhotoSet, batch_at, read_image, resized
from fastgen.train.losses import feature_loss, gram_matrix, style_loss, total_variation
from fastgen.train.options import ObjectiveOptions
from fastgen.train.vgg import LossNetwork, load_loss_network

# Calibrated by eye on paintings as different as Starry Night and Great Wave; see
# docs/training.md. Content is 1 by definition.
STYLE_WEIGHT = 10.0
TV_WEIGHT = 0.05

# Fixed, whatever a run's own crops are: networks of one painting must share one objective.
CALIBRATION_BATCHES = 8  # of four crops each
CALIBRATION_SIZE = 160
CALIBRATION_SEED = 1


def to_tensor(images: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """uint8 (N, H, W, 3) to float32 (N, 3, H, W) in 0..255, channels_last in memory."""
    return torch.from_numpy(np.array(images)).to(device).permute(0, 3, 1, 2).float()


@dataclass(frozen=True)
class Weights:
    """The concrete weights of Eq. 9.

    Attributes:
        content: mu_c of each content layer.
        style: mu_s of each style layer.
        tv: mu_TV for l_TV divided by the number of values 3 H W, so that it serves all sizes.
    """

    content: dict[str, float]
    style: dict[str, float]
    tv: float

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary, the exact inverse of :meth:`from_json`."""
        return {"content": self.content, "style": self.style, "tv_per_value": self.tv}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Weights:
        """Rebuilds the weights.

        Raises:
            ValueError: A part is missing or not a finite non-negative number.
        """
        try:
            weights = cls(
                {str(k): float(v) for k, v in data["content"].items()},
                {str(k): float(v) for k, v in data["style"].items()},
                float(data["tv_per_value"]),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"objective weights are incomplete ({error!r})") from error
        numbers = [*weights.content.values(), *weights.style.values(), weights.tv]
        if not numbers or not all(np.isfinite(v) and v >= 0 for v in numbers):
            raise ValueError(f"objective weights must be finite and >= 0, got {numbers}")
        return weights


class Objective:
    """Eq. 9 for one painting.

    Args:
        network: Frozen loss network.
        grams: {layer: (C, C)} Gram matrices of the painting.
        weights: Concrete weights; the layers are theirs.
    """

    def __init__(self, network: LossNetwork, grams: Mapping[str, Tensor], weights: Weights) -> None:
        self.network, self.grams, self.weights = network, dict(grams), weights
        self.content_layers = tuple(weights.content)
        self.layers = tuple(dict.fromkeys((*weights.content, *weights.style)))

    @torch.no_grad()
    def content_targets(self, photos: Tensor) -> dict[str, Tensor]:
        """Features of the photos (N, 3, H, W) at the content layers."""
        return self.network(photos, self.content_layers)

    def __call__(self, images: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weighted terms of each image.

        Args:
            images: (N, 3, H, W) RGB in 0..255; values outside are allowed.
            targets: From :meth:`content_targets`.

        Returns:
            {"total", "content", "style", "tv"}, each (N,); total carries the gradient.
        """
        features = self.network(images, self.layers)
        w = self.weights
        content = sum(
            (mu * feature_loss(features[k], targets[k]) for k, mu in w.content.items()),
            start=images.new_zeros(images.shape[0]),
        )
        style = sum(
            (mu * style_loss(features[k], self.grams[k]) for k, mu in w.style.items()),
            start=images.new_zeros(images.shape[0]),
        )
        tv = total_variation(images) * (w.tv / images[0].numel())
        return {"total": content + style + tv, "content": content, "style": style, "tv": tv}


@torch.no_grad()
def painting_grams(
    network: LossNetwork, painting: Tensor, layers: Sequence[str]
) -> dict[str, Tensor]:
    """Gram matrices (C, C) of the painting (1, 3, H, W) at the style layers."""
    return {k: gram_matrix(v)[0] for k, v in network(painting, layers).items()}


@torch.no_grad()
def calibrate(
    network: LossNetwork,
    grams: Mapping[str, Tensor],
    photos: Iterable[Tensor],
    *,
    content_layers: Sequence[str],
    style_strength: float = 1.0,
    layer_weights: Sequence[float] = (),
    tv_strength: float = 1.0,
) -> Weights:
    """Weights of Eq. 9 from the painting and some photos.

    mu_s^j = style_strength * STYLE_WEIGHT * r_j / ||A_j||_F^2 with r_j = w_j / sum(w),
    mu_c = 1 / (number of content layers * spatial variance of phi on the photos),
    mu_TV = tv_strength * TV_WEIGHT / (total variation of the photos per value).

    Args:
        network: Loss network.
        grams: The painting's Gram matrices, in the order of ``layer_weights``.
        photos: Batches (N, 3, H, W) in 0..255.
        content_layers: Layers of the feature loss.
        style_strength: User's factor on the style weight, >= 0.
        layer_weights: Relative weights w_j, all 1 when empty.
        tv_strength: User's factor on the TV weight, >= 0.

    Returns:
        Concrete weights.

    Raises:
        ValueError: Negative factors, a wrong number of layer weights, or constant photos.
    """
    if not (style_strength >= 0 and tv_strength >= 0):
        raise ValueError(
            f"style strength {style_strength} and TV strength {tv_strength} must be >= 0"
        )
    parts = list(layer_weights) or [1.0] * len(grams)
    if len(parts) != len(grams) or not all(v >= 0 for v in parts) or sum(parts) <= 0:
        raise ValueError(
            f"layer weights {tuple(parts)} must be {len(grams)} numbers >= 0, not all 0"
        )
    variance = dict.fromkeys(content_layers, 0.0)
    variation, count = 0.0, 0
    for batch in photos:
        for name, value in network(batch, content_layers).items():
            variance[name] += float(value.float().var((2, 3), correction=0).mean(1).sum())
        variation += float(total_variation(batch).sum()) / batch[0].numel()
        count += batch.shape[0]
    if not count or min(variance.values()) <= 0 or variation <= 0:
        raise ValueError("the photos are constant pictures; the content weight cannot be set")
    share = 1.0 / len(content_layers)
    return Weights(
        content={k: share * count / v for k, v in variance.items()},
        style={
            k: style_strength * STYLE_WEIGHT * part / sum(parts) / float(gram.square().sum())
            for (k, gram), part in zip(grams.items(), parts, strict=True)
        },
        tv=tv_strength * TV_WEIGHT * count / variation,
    )


def crops_for_calibration(photos: PhotoSet, device: torch.device | str = "cpu") -> Iterable[Tensor]:
    """Batches (4, 3, 160, 160) of random crops, the same for the same photos."""
    for index in range(min(CALIBRATION_BATCHES, max(1, len(photos) // 2))):
        batch = batch_at(photos, index, CALIBRATION_SIZE, 4, CALIBRATION_SEED)
        yield to_tensor(batch, device)


def build_objective(
    options: ObjectiveOptions,
    painting: Path,
    photos: Iterable[Tensor] | None,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    weights: Weights | None = None,
) -> Objective:
    """Loss network, painting and weights of Eq. 9.

    Args:
        options: Loss network, layers, painting's size and strengths.
        painting: Image file.
        photos: Batches (N, 3, H, W) for :func:`calibrate`; not needed with ``weights``.
        device: Where to compute.
        dtype: Precision of the loss network; Gram matrices and calibration always use float32.
        weights: Stored weights (they also name the layers), instead of a calibration.

    Returns:
        The objective.

    Raises:
        ValueError: Wrong options, unreadable painting, unusable loss network.
    """
    content, style = options.content_layers, options.style_layers
    if weights is not None:
        content, style = tuple(weights.content), tuple(weights.style)
    if not content or not style:
        raise ValueError("give at least one content layer and one style layer")
    if not 32 <= options.style_size <= 4096:
        raise ValueError(f"style size {options.style_size} must be in 32..4096 pixels")
    layers = tuple(dict.fromkeys((*content, *style)))

    def load(precision: torch.dtype) -> LossNetwork:
        return load_loss_network(
            options.vgg,
            layers,
            assume=options.assume_normalisation,
            dtype=precision,
            device=device,
        )

    exact = load(torch.float32)
    picture = resized(read_image(painting), short=options.style_size)
    grams = painting_grams(exact, to_tensor(np.asarray(picture)[None], device), style)
    if weights is None:
        if photos is None:
            raise ValueError("give photos for the calibration, or stored weights")
        weights = calibrate(
            exact,
            grams,
            photos,
            content_layers=content,
            style_strength=options.style_strength,
            layer_weights=options.layer_weights,
            tv_strength=options.tv_strength,
        )
    return Objective(exact if dtype == torch.float32 else load(dtype), grams, weights)
