"""Muon for convolutional generators: momentum whose matrices are made orthogonal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Muon", "make_optimizer", "orthogonalise"]

# Quintic Newton-Schulz iteration of Jordan et al. 2024; five rounds bring every singular value
# into about 0.7..1.2, which is as good as exactly 1 for a step direction.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ROUNDS = 5


def orthogonalise(matrix: Tensor) -> Tensor:
    """The nearest (semi-)orthogonal matrix, approximately: U V^T of the thin SVD U S V^T.

    Args:
        matrix: (rows, columns), any floating dtype; computed in float32.

    Returns:
        The same shape, float32, singular values in about 0.7..1.2 (0 stays 0).
    """
    wide = matrix.shape[0] <= matrix.shape[1]
    x = (matrix if wide else matrix.T).float()
    x = x / (x.norm() + 1e-12)
    a, b, c = COEFFICIENTS
    for _ in range(ROUNDS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.T


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for weights with at least two dimensions, Adam for the others.

    A weight (O, I, kh, kw) is a matrix (O, I*kh*kw). Its step is the orthogonalised Nesterov
    momentum times ``0.2 * sqrt(max(O, I*kh*kw))``, so that an entry moves by about as much as
    with Adam and one learning rate serves both (Liu et al. 2025, "Muon is scalable", Eq. 4).
    ``torch.optim.Muon`` takes matrices only and needs torch 2.9.

    Args:
        parameters: Of the network.
        lr: Learning rate.
        momentum: Decay of the running gradient of matrices.
        betas: Of Adam.
        eps: Of Adam.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float = 1.5e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(parameters, dict(lr=lr, momentum=momentum, betas=betas, eps=eps))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        if closure is not None:
            raise ValueError("Muon takes no closure; compute the gradients before step()")
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros(())
                    state["exp_avg"] = torch.zeros_like(parameter)
                    if parameter.ndim < 2:
                        state["exp_avg_sq"] = torch.zeros_like(parameter)
                state["step"] += 1
                update = _adam if parameter.ndim < 2 else _muon
                update(parameter, parameter.grad, state, group)


def _muon(
    parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]
) -> None:
    average = state["exp_avg"]
    average.lerp_(gradient, 1 - group["momentum"])
    matrix = gradient.lerp(average, group["momentum"]).reshape(parameter.shape[0], -1)
    update = orthogonalise(matrix).reshape(parameter.shape).to(parameter.dtype)
    parameter.sub_(update, alpha=group["lr"] * 0.2 * math.sqrt(max(matrix.shape)))


def _adam(
    parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]
) -> None:
    beta1, beta2 = group["betas"]
    state["exp_avg"].lerp_(gradient, 1 - beta1)
    state["exp_avg_sq"].lerp_(gradient.square(), 1 - beta2)
    count = float(state["step"])
    mean = state["exp_avg"] / (1 - beta1**count)
    scale = (state["exp_avg_sq"] / (1 - beta2**count)).sqrt_().add_(group["eps"])
    parameter.addcdiv_(mean, scale, value=-group["lr"])


def make_optimizer(name: str, parameters: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
    """``adam`` or ``muon`` over the parameters, one group.

    Raises:
        ValueError: Unknown name.
    """
    if name == "adam":
        return torch.optim.Adam(parameters, lr=lr)
    if name == "muon":
        return Muon(parameters, lr=lr)
    raise ValueError(f"optimizer {name!r} is unknown; use adam or muon")
