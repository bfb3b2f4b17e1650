"""One update of an SAAE or a baseline; which networks it trains depends on the phase."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastgen.train.loop import Processes
from fastgen.train.saae_systems import Batch, System

__all__ = ["update"]


def update(
    system: System,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    kind: str,
    rates: tuple[float, float],
    adv_weight: float,
    processes: Processes,
    low: bool = False,
) -> dict[str, Tensor]:
    """One update of a phase; returns its detached terms (rec, d, accuracy, adv).

    Args:
        system: the networks, in training mode.
        optimizer: over all of their parameters, one group.
        batch: what to learn from.
        kind: of :class:`Phase`.
        rates: learning rates of generator and discriminator.
        adv_weight: lambda.
        processes: gradients are averaged over them.
        low: bfloat16 autocast.
    """
    terms: dict[str, Tensor] = {}
    cast = torch.autocast(batch.images.device.type, torch.bfloat16, enabled=low)

    def descend(loss: Tensor, rate: float) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        processes.average(system)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()

    def train_d(out: Any) -> None:
        with cast:
            loss, terms["accuracy"] = system.d_loss(out, batch)
        terms["d"] = loss.detach()
        descend(loss, rates[1])

    def adversarial(out: Any) -> Tensor:
        # The generator's gradient goes through the discriminator and must not train it.
        system.discriminator.requires_grad_(False)
        with cast:
            loss = system.adv_loss(out, batch)
        terms["adv"] = loss.detach()
        return loss

    if kind == "rec":
        with cast:
            loss = system.rec_loss(system.rebuild(batch), batch)
        terms["rec"] = loss.detach()
        descend(loss, rates[0])
        return terms
    if kind in ("dis", "per-iter"):
        with torch.no_grad(), cast:
            out = system.outputs(batch)
        train_d(out)
        if kind == "dis":
            return terms
        terms |= update(system, optimizer, batch, "rec", rates, adv_weight, processes, low)
        with cast:
            out = system.outputs(batch)
        loss = adversarial(out)
    else:
        with cast:
            out = system.outputs(batch)
        train_d(out)
        loss = adversarial(out)
        if system.rebuilds:
            rec = system.rec_loss(out, batch)
            terms["rec"] = rec.detach()
            loss = rec + adv_weight * loss
    descend(loss, rates[0])
    system.discriminator.requires_grad_(True)
    return terms
