"""What the stylized autoencoder claims, as numbers: content obeyed, style used, nothing copied.

Every function takes a generator as a callable of content and style images, so that models, their
baselines and tests are measured by the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastgen.train.judge import Classifier, features, frechet, predict
from fastgen.train.parzen import nearest

__all__ = [
    "Contents",
    "Generate",
    "copying",
    "feature_distance",
    "pearson",
    "pixel_std",
    "style_use",
    "swap_test",
    "thickness",
]

Generate = Callable[[Tensor, Tensor], Tensor]
"""(content (N, C, H, W), style (N, C', H', W')) -> (N, C, H, W) in [0, 1]."""

Contents = Sequence[tuple[Tensor, int]]
"""Glyphs (C, H, W) and the class of each; a class may have several (upper and lower case)."""


def swap_test(
    generate: Generate,
    judge: Classifier,
    contents: Contents,
    styles: Tensor,
    labels: Tensor,
) -> dict[str, Any]:
    """Every style with every content of another class, read by a judge (criterion A2).

    Args:
        generate: The generator.
        judge: Trained on real images only.
        contents: The glyphs and their classes.
        styles: (S, ...) real images that nothing was trained on.
        labels: (S,) their classes; -1 where an image has none (every content is then another).

    Returns:
        ``accuracy``, ``images``, ``per_class`` accuracies, and ``same``, the accuracy with the
        style's own class as content (None when no style has one).
    """
    right = torch.zeros(judge.classes, 2)
    total = torch.zeros(judge.classes, 2)
    for glyph, label in contents:
        made = generate(glyph.expand(len(styles), *glyph.shape), styles)
        hit = predict(judge, made).argmax(1) == label
        for column, chosen in enumerate((labels != label, labels == label)):
            right[label, column] += hit[chosen].sum()
            total[label, column] += chosen.sum()
    other, own = total[:, 0].sum(), total[:, 1].sum()
    pairs = zip(right[:, 0].tolist(), total[:, 0].tolist(), strict=True)
    return {
        "accuracy": float(right[:, 0].sum() / other),
        "images": int(other),
        "per_class": [round(r / t, 4) if t else None for r, t in pairs],
        "same": float(right[:, 1].sum() / own) if own else None,
    }


def thickness(images: Tensor) -> Tensor:
    """Mean stroke width in pixels: twice the ink divided by the length of its outline.

    Ink is the distance of the grey value from the border's median, so that it does not matter
    whether strokes are dark or light. The outline's length is the total variation of the ink, and a
    stroke has two edges; both need no threshold and so no sharp edges.

    Args:
        images: (N, C, H, W) in [0, 1].

    Returns:
        (N,), 0 where there is no ink.
    """
    grey = images.mean(1)
    border = torch.cat([grey[:, 0], grey[:, -1], grey[:, :, 0], grey[:, :, -1]], 1)
    ink = (grey - border.median(1).values[:, None, None]).abs()
    # Noise of the background has much outline and little ink.
    ink = (ink - 0.1).clamp(min=0)
    padded = torch.nn.functional.pad(ink, (1, 1, 1, 1))
    right = padded[:, 1:, 1:] - padded[:, 1:, :-1]
    down = padded[:, 1:, 1:] - padded[:, :-1, 1:]
    outline = (right.square() + down.square()).sqrt().sum((1, 2))
    return torch.where(outline > 0, 2 * ink.sum((1, 2)) / outline.clamp(min=1e-6), 0.0)


def pixel_std(images: Tensor) -> float:
    """Standard deviation over the images at each pixel, averaged over the pixels."""
    return float(images.std(0, correction=0).mean())


def pearson(a: Tensor, b: Tensor) -> float | None:
    """Correlation of two vectors, None when one is constant."""
    a, b = a.double() - a.double().mean(), b.double() - b.double().mean()
    norm = a.norm() * b.norm()
    return float((a @ b) / norm) if norm > 1e-12 else None


def style_use(
    generate: Generate,
    contents: Contents,
    styles: Tensor,
    labels: Tensor,
    real: Tensor,
    real_labels: Tensor,
) -> dict[str, Any]:
    """Does the style image change the output, and its stroke width the output's (criterion A2)?

    Args:
        generate: The generator.
        contents: The glyphs and their classes.
        styles: (S, ...) real images; those of the content's own class are left out.
        labels: (S,) their classes, -1 for none.
        real: (R, C, H, W) real images, for the spread within a class.
        real_labels: (R,) their classes.

    Returns:
        ``std`` (over styles, content fixed), ``real_std`` (over real images of a class),
        ``ratio``, and ``thickness`` (correlation of stroke width, content fixed), each a mean
        over the contents.
    """
    given = thickness(styles)
    stds, real_stds, correlations = [], [], []
    for glyph, label in contents:
        chosen, same = labels != label, real_labels == label
        if chosen.sum() < 3 or same.sum() < 3:
            continue
        part = styles[chosen]
        made = generate(glyph.expand(len(part), *glyph.shape), part)
        stds.append(pixel_std(made))
        real_stds.append(pixel_std(real[same]))
        r = pearson(given[chosen], thickness(made))
        correlations.append(0.0 if r is None else r)
    if not stds:
        raise ValueError("no content has three styles of other classes and three real images")
    std, real_std = (sum(v) / len(v) for v in (stds, real_stds))
    return {
        "std": std,
        "real_std": real_std,
        "ratio": std / real_std,
        "thickness": sum(correlations) / len(correlations),
        "contents": len(stds),
    }


def copying(samples: Tensor, train: Tensor, test: Tensor) -> dict[str, Any]:
    """Are samples nearer to training images than unseen real images are (criterion A5)?

    Args:
        samples: (N, ...) generated images.
        train: (T, ...) what the generator was trained on.
        test: (M, ...) real images that it was not.

    Returns:
        ``percentile_1``: the distance that 1 % of the test images stay below; ``below``: the share
        of samples nearer than that (a copying generator is near 1, unseen real images are 0.01);
        ``closest`` sample, ``median`` and ``real_median``; all pixel L2 to the nearest one.
    """
    made = nearest(samples, train)[0][:, 0]
    real = nearest(test, train)[0][:, 0]
    mark = float(torch.quantile(real, 0.01))
    return {
        "percentile_1": mark,
        "below": float((made < mark).float().mean()),
        "closest": float(made.min()),
        "first_percentile": float(torch.quantile(made, 0.01)),
        "median": float(made.median()),
        "real_median": float(real.median()),
    }


def feature_distance(judge: Classifier, samples: Tensor, real: Tensor) -> float:
    """Frechet distance in the judge's hidden layer; comparable within one judge only."""
    return frechet(features(judge, samples), features(judge, real))
