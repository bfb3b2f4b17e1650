"""What a run of the stylized adversarial autoencoder watches: plateaus, collapse, divergence."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastgen.train.saae_systems import Saae

__all__ = ["Plateau", "Watch", "diversity"]


class Plateau:
    """Says when a value that should fall has stopped falling.

    Args:
        patience: checks without a gain that end the step.
        gain: share of the best value by which a check must be lower to count.
    """

    def __init__(self, patience: int, gain: float = 0.01) -> None:
        self.patience, self.gain = patience, gain
        self.best, self.waited = float("inf"), 0

    def reached(self, value: float) -> bool:
        """Takes the value of one check."""
        if value < self.best * (1 - self.gain):
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        return self.waited >= self.patience

    def to_json(self) -> list[float]:
        """For a saved state."""
        return [-1.0 if self.best == float("inf") else self.best, self.waited]

    def load(self, state: list[float]) -> None:
        """From a saved state."""
        self.best = float("inf") if state[0] < 0 else state[0]
        self.waited = int(state[1])


class Watch:
    """Warns, once for each reason, that adversarial training has gone wrong.

    The limits are those of the project's acceptance test A4: a reconstruction loss twice that of
    the end of step 1, or a discriminator that is right in more than 99 % of the cases; and a
    generator whose pictures hardly depend on the style.

    Args:
        window: updates over which a mean is taken.
    """

    D_WINS = 0.99
    WORSE = 2.0
    DIVERSE = 0.1

    def __init__(self, window: int = 200) -> None:
        self.window = window
        self.rec_level: float | None = None
        self.warnings: dict[str, str] = {}
        self._recent: dict[str, deque[float]] = {}

    def update(self, step: int, values: Mapping[str, float]) -> list[str]:
        """Takes the terms of one adversarial update; returns new warnings."""
        new: list[str] = []
        for key in ("accuracy", "rec"):
            if key not in values:
                continue
            recent = self._recent.setdefault(key, deque(maxlen=self.window))
            recent.append(values[key])
            if len(recent) < self.window:
                continue
            mean = sum(recent) / len(recent)
            if key == "accuracy" and mean > self.D_WINS:
                new += self._warn(
                    "collapse",
                    f"step {step}: the discriminator is right in {mean:.1%} of the cases, so the "
                    "generator learns nothing from it; lower --d-lr, or raise --adv-weight",
                )
            if key == "rec" and self.rec_level and mean > self.WORSE * self.rec_level:
                new += self._warn(
                    "divergence",
                    f"step {step}: the reconstruction loss {mean:.4g} is more than twice the "
                    f"{self.rec_level:.4g} of step 1; lower --adv-weight or --lr",
                )
        return new

    def diversity(self, step: int, share: float) -> list[str]:
        """Takes the spread over styles as a share of the real one; returns new warnings."""
        if share >= self.DIVERSE:
            return []
        return self._warn(
            "mode collapse",
            f"step {step}: pictures of one content vary by {share:.0%} of the real variation, the "
            "style is ignored; raise --style-features or lower --adv-weight",
        )

    def _warn(self, kind: str, text: str) -> list[str]:
        if kind in self.warnings:
            return []
        self.warnings[kind] = text
        return [f"warning: {kind}: {text}"]

    def to_json(self) -> dict[str, Any]:
        """For a saved state."""
        recent = {key: list(values) for key, values in self._recent.items()}
        return {"rec_level": self.rec_level, "warnings": self.warnings, "recent": recent}

    def load(self, state: Mapping[str, Any]) -> None:
        """From a saved state."""
        self.rec_level, self.warnings = state["rec_level"], dict(state["warnings"])
        self._recent = {k: deque(v, maxlen=self.window) for k, v in state["recent"].items()}


@torch.no_grad()
def diversity(system: Saae, content: Tensor, styles: Tensor, real: Tensor) -> float:
    """Spread of the pictures of one content over styles, as a share of the real spread.

    Args:
        system: its generator runs as it is (training or evaluation mode).
        content: (C,H,W).
        styles: (N,C',H',W').
        real: (M,C,H,W) real images of the content's class.

    Returns:
        Mean over pixels of the standard deviation over ``styles``, divided by that over ``real``.
    """
    images = system.generator(content.expand(len(styles), *content.shape), styles).float()
    spread = images.std(0, correction=0).mean(), real.std(0, correction=0).mean()
    return float(spread[0] / spread[1].clamp_min(1e-6))
