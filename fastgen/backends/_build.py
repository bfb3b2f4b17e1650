"""What a runner of the cpu backend gives its engine: steps, ranges, constant inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastgen.backends import _quantize, _steps
from fastgen.errors import GraphError

__all__ = ["build", "for_batch", "set_ranges"]

_BATCHES = 8  # batch sizes whose constant inputs are kept


def set_ranges(lowered: _steps.Lowered, spans: Mapping[str, _quantize.Span]) -> None:
    """Gives convolutions the ranges of their inputs, for int8."""
    for step in lowered.steps:
        if isinstance(step, _steps.ConvStep) and step.label in spans:
            span = spans[step.label]
            if len(np.atleast_1d(span.low)) not in (1, step.inputs):
                continue  # a part of a concatenation: from the range of each image
            step.quant, step.zero = _quantize.levels(span)
            if span.mean is not None and span.spread is not None:
                step.mean = np.clip(span.mean * step.quant + step.zero, 0, 255)
                step.spread = np.clip(span.spread * step.quant, 0, 255)


def build(engine: Any, lowered: _steps.Lowered, products: Sequence[str] | None = None) -> None:
    """Gives the steps to the engine, which packs the weights.

    Args:
        engine: of the extension module.
        lowered: the steps.
        products: of each step, see :func:`_products.products`; None: fp32.
    """
    for _ in lowered.values:
        engine.add_value()
    for slot in lowered.slots:
        engine.add_slot(slot.channels, slot.scale, slot.shift)
    for step, factors in zip(lowered.steps, products or ["fp32"] * len(lowered.steps), strict=True):
        if isinstance(step, _steps.ConvStep):
            engine.add_conv(step, bf16=factors == "bf16", int8=factors == "int8")
        elif isinstance(step, _steps.CopyStep):
            engine.add_copy(step.label, step.source, step.out)
        elif isinstance(step, _steps.StatsStep):
            engine.add_stats(step.label, step.value, step.norm)
        elif isinstance(step, _steps.GivenStep):
            engine.add_given(step.label, step.mean, step.var, step.norm)
        elif isinstance(step, _steps.PlainStep):
            if step.op == "pool":
                engine.add_pool(step.label, step.values[0], step.out, *step.pool)
            elif step.op == "concat":
                engine.add_concat(step.label, step.values, step.first, step.out)
            elif step.op == "broadcast":
                engine.add_broadcast(step.label, step.values[0], step.out)
            else:
                engine.add_reshape(step.label, step.values[0], step.out)
        else:
            raise GraphError(f"step {step.label!r} has no implementation in the cpu backend")
    engine.set_constant_steps(lowered.constant)


def for_batch(
    kept: dict[int, dict[str, np.ndarray]], arrays: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The constant inputs for the batch size of the others; a single one is repeated."""
    batch = next((array.shape[0] for array in arrays.values() if array.ndim), 1)
    found = kept.get(batch)
    if found is None and 1 in kept:
        found = {name: np.repeat(array, batch, 0) for name, array in kept[1].items()}
        if len(kept) > _BATCHES:
            kept.pop(max(kept), None)
        kept[batch] = found
    return found or next(iter(kept.values()))
