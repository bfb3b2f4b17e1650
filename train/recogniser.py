"""Does generated data help a recogniser that has few real images? (criterion A3, Fig. 7)

Every arm trains the same network from the same initial weights for the same number of steps; only
the images differ:

* ``real``: n real images of each class;
* ``augment``: the same under random affine and elastic distortion;
* ``glyphs``: half of each batch real, half rendered glyphs;
* ``generated-N``: half of each batch real, half of N images of a generator that saw only those n.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastgen.train.eval_stats import interval, paired, text
from fastgen.train.judge import Batches, Classifier, FitOptions, accuracy, fit, from_set

__all__ = ["Arm", "Outcome", "arms_for", "mixed", "run_arm", "summarise"]


@dataclass(frozen=True)
class Arm:
    """One way to feed the recogniser.

    Attributes:
        name: As in the module's docstring.
        extra: Synthetic images (N, C, H, W) and labels, or None.
        distort: Whether batches are distorted.
    """

    name: str
    extra: tuple[Tensor, Tensor] | None = None
    distort: bool = False


@dataclass
class Outcome:
    """What one recogniser reached.

    Attributes:
        steps: Where accuracy was measured.
        curve: Accuracy on part of the test images after each of ``steps``.
        final: Accuracy on all test images at the end.
        to_95: First of ``steps`` with 95 % of the curve's last accuracy.
    """

    steps: list[int] = field(default_factory=list)
    curve: list[float] = field(default_factory=list)
    final: float = 0.0
    to_95: int = 0


def mixed(real: Batches, extra: Batches) -> Batches:
    """Batches whose first half is from ``real`` and whose second half is from ``extra``."""

    def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        ours, theirs = real(count - count // 2, generator), extra(count // 2, generator)
        return torch.cat([ours[0], theirs[0]]), torch.cat([ours[1], theirs[1]])

    return draw


def arms_for(
    glyphs: tuple[Tensor, Tensor], generated: tuple[Tensor, Tensor], sizes: Sequence[int]
) -> list[Arm]:
    """The arms of one n and seed.

    Args:
        glyphs: Rendered glyphs as images of the recogniser's kind, and labels.
        generated: The largest set of generated images, in random order, and labels; smaller sets
            are its beginnings.
        sizes: Numbers of generated images.

    Raises:
        ValueError: Fewer generated images than the largest size.
    """
    if max(sizes) > len(generated[0]):
        raise ValueError(f"{len(generated[0])} generated images; {max(sizes)} are needed (--sizes)")
    arms = [Arm("real"), Arm("augment", distort=True), Arm("glyphs", glyphs)]
    for size in sorted(sizes):
        arms.append(Arm(f"generated-{size}", (generated[0][:size], generated[1][:size])))
    return arms


def run_arm(
    arm: Arm,
    real: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    classes: int,
    options: FitOptions,
    points: int = 10,
    curve_images: int = 1000,
) -> Outcome:
    """Trains and measures one recogniser.

    Args:
        arm: What it is fed.
        real: The n real images of each class, and labels.
        test: Real images that neither recogniser nor generator has seen, in random order.
        classes: Number of classes.
        options: The same for every arm; ``distort`` is the arm's.
        points: Measurements of the curve.
        curve_images: Test images for each of them.

    Returns:
        The curve and the final accuracy.
    """
    batches = from_set(*real)
    if arm.extra is not None:
        batches = mixed(batches, from_set(*arm.extra))
    outcome = Outcome()
    marks = {round(options.steps * (i + 1) / points) for i in range(points)}
    part = (test[0][:curve_images], test[1][:curve_images])

    def watch(step: int, network: Classifier) -> None:
        if step in marks:
            outcome.steps.append(step)
            outcome.curve.append(accuracy(network, *part))

    settings = FitOptions(
        options.steps, options.batch, options.lr, arm.distort, options.seed, options.width
    )
    shape = (real[0].shape[1], real[0].shape[2], real[0].shape[3])
    network = fit(batches, shape, classes, settings, watch)
    outcome.final = accuracy(network, *test)
    goal = 0.95 * outcome.curve[-1]
    outcome.to_95 = next(s for s, a in zip(outcome.steps, outcome.curve, strict=True) if a >= goal)
    return outcome


def summarise(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds and paired differences from the arms without generated images.

    Args:
        runs: ``{"per_class", "seed", "arm", "final", "to_95"}`` each.

    Returns:
        One row for each n and arm: ``final`` and ``to_95`` intervals, and for the generated arms
        ``versus``: differences of the final accuracy from ``real``, ``augment`` and ``glyphs``,
        paired by seed.
    """
    rows = []
    for count in sorted({run["per_class"] for run in runs}):
        mine = [run for run in runs if run["per_class"] == count]
        names = list(dict.fromkeys(run["arm"] for run in mine))
        table = {name: {r["seed"]: r for r in mine if r["arm"] == name} for name in names}
        for name in names:
            found = table[name]
            row: dict[str, Any] = {
                "per_class": count,
                "arm": name,
                "final": interval([r["final"] for r in found.values()]),
                "to_95": interval([float(r["to_95"]) for r in found.values()]),
            }
            if name.startswith("generated-"):
                row["versus"] = {}
                for other in ("real", "augment", "glyphs"):
                    seeds = sorted(set(found) & set(table.get(other, {})))
                    if seeds:
                        row["versus"][other] = paired(
                            [found[s]["final"] for s in seeds],
                            [table[other][s]["final"] for s in seeds],
                        )
            rows.append(row)
    return rows


def markdown(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The rows of :func:`summarise` as a Markdown table."""
    lines = [
        "| n a class | arm | seeds | accuracy % | steps to 95 % of it | minus real | minus augment "
        "| minus glyphs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        versus = row.get("versus", {})
        cells = [
            str(row["per_class"]),
            row["arm"],
            str(row["final"]["n"]),
            text(row["final"], 1, percent=True),
            f"{row['to_95']['mean']:.0f}",
        ]
        for other in ("real", "augment", "glyphs"):
            cells.append(text(versus[other], 1, percent=True) if other in versus else "")
        lines.append("| " + " | ".join(cells) + " |")
    return lines
