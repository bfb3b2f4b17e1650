"""Ranges of activations for products of bytes (``precision="int8"``).

Behind a norm a value's mean and spread are known per channel whatever the photo: the norm's shift
and scale. They are followed through activations, additions and what only moves pixels, and give
every channel its own range, which costs nothing at run time (the weights absorb it) and loses less
than one range for all channels. A measured range (``activation_ranges`` of a checkpoint) narrows
it. Where neither is known the engine measures the range of every image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastgen.graph import Graph, Node

__all__ = ["Span", "levels", "spans"]

Array = np.ndarray

# Values of a channel behind an instance norm reach further than a normal distribution's. 9 standard
# deviations cost fewer dB by rounding than 7 by cutting off, 12 are worse again.
_REACH = 9.0
_MARGIN = 1.25  # of other photos beyond a measured range
_LEVELS = 255.0
_SAME = ("upsample", "crop", "pool")


@dataclass(frozen=True)
class Span:
    """What is known of a value's channels: bounds, and mean and spread where a norm gave them."""

    low: Array
    high: Array
    mean: Array | None = None
    spread: Array | None = None
    exact: bool = False  # the bounds hold for every photo


def spans(
    graph: Graph, weights: Mapping[str, Any], ranges: Mapping[str, Sequence[float]] | None = None
) -> dict[str, Span]:
    """Ranges of the inputs of all convolutions.

    Args:
        graph: the network.
        weights: arrays by weight name.
        ranges: measured (low, high) of graph inputs by their names and of a convolution's input by
            the convolution's name.

    Returns:
        Convolution name -> span; those whose range has to be measured at run time are missing.
    """
    given = dict(ranges or {})
    known: dict[str, Span | None] = {}
    channels = {k: s[1] for k, s in graph.infer_shapes(graph.smallest_shapes()).items()}
    for item in graph.inputs:
        bounds = _whole(given.get(item.name), channels[item.name])
        known[item.name] = bounds and replace(bounds, exact=True)
    result = {}
    for node in graph.nodes:
        if node.op in ("conv", "conv_transpose"):
            source = node.inputs[0]
            measured = _whole(given.get(node.name), channels[source], _MARGIN)
            span = _narrowed(known[source], measured)
            if span is not None:
                result[node.name] = span
        known[node.name] = _forward(node, known, weights, channels)
    return result


def levels(span: Span) -> tuple[Array, Array]:
    """(quant, zero): what a channel is multiplied by, and which of 0..255 stands for 0."""
    low, high = np.minimum(span.low, 0.0), np.maximum(span.high, 0.0)
    reach = high - low
    # A channel of next to no range does not get weights that leave nothing for the others.
    reach = np.maximum(reach, max(float(reach.max()) * 1e-3, 1e-20))
    quant = _LEVELS / reach
    return quant, np.clip(np.rint(-low * quant), 0.0, _LEVELS)


def _whole(pair: Sequence[float] | None, channels: int, margin: float = 1.0) -> Span | None:
    if pair is None:
        return None
    low, high = (float(x) * margin for x in pair)
    return Span(np.full(channels, low), np.full(channels, high))


def _narrowed(span: Span | None, measured: Span | None) -> Span | None:
    if span is None or measured is None or span.exact:
        return span or measured
    # Never so far that a mistaken measurement leaves nothing: zero stays inside.
    low = np.maximum(span.low, np.minimum(measured.low, 0.0))
    high = np.minimum(span.high, np.maximum(measured.high, 0.0))
    return replace(span, low=low, high=high)


def _forward(
    node: Node, known: dict[str, Span | None], weights: Mapping[str, Any], channels: dict[str, int]
) -> Span | None:
    """The span of a node's output."""
    if node.op == "norm":
        count = channels[node.name]
        scale = np.abs(np.asarray(weights.get(f"{node.name}.weight", np.ones(count)), np.float64))
        shift = np.asarray(weights.get(f"{node.name}.bias", np.zeros(count)), np.float64)
        return _normal(shift, scale)
    sources = [known[name] for name in node.inputs]
    first = sources[0]
    if node.op == "activation" and node.attrs["kind"] in ("tanh", "sigmoid"):
        count = channels[node.name]
        low = -1.0 if node.attrs["kind"] == "tanh" else 0.0
        return Span(np.full(count, low), np.ones(count), exact=True)
    if first is None or any(source is None for source in sources):
        return None
    if node.op in _SAME:
        return first
    if node.op == "pad":  # zeros lie inside: see levels()
        return first
    if node.op == "activation":
        return _activated(node, first)
    if node.op == "add":
        return _sum(first, sources[1])  # type: ignore[arg-type]
    if node.op == "concat":
        parts = [source for source in sources if source is not None]
        return Span(
            np.concatenate([part.low for part in parts]),
            np.concatenate([part.high for part in parts]),
        )
    return None


def _normal(mean: Array, spread: Array) -> Span:
    return Span(mean - _REACH * spread, mean + _REACH * spread, mean, spread)


def _activated(node: Node, span: Span) -> Span | None:
    slope = {"none": 1.0, "relu": 0.0, "leaky_relu": float(node.attrs["slope"])}.get(
        node.attrs["kind"]
    )
    if slope is None or slope < 0:
        return None

    def act(x: Array) -> Array:
        return np.where(x < 0, slope * x, x)

    if span.mean is None or span.spread is None:
        return replace(span, low=act(span.low), high=act(span.high))
    # Mean and spread of max(x, 0) of a normal x; a leaky one is a sum of both halves.
    z = span.mean / np.maximum(span.spread, 1e-12)
    density = np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    below = 0.5 * np.vectorize(math.erfc)(z / math.sqrt(2))
    half = span.mean * (1 - below) + span.spread * density
    square = (span.mean**2 + span.spread**2) * (1 - below) + span.mean * span.spread * density
    rest = span.mean - half
    rest_square = span.mean**2 + span.spread**2 - square
    mean = half + slope * rest
    variance = square + slope**2 * rest_square - mean**2
    return Span(act(span.low), act(span.high), mean, np.sqrt(np.maximum(variance, 0.0)))


def _sum(a: Span, b: Span) -> Span:
    low, high = a.low + b.low, a.high + b.high
    if a.mean is None or b.mean is None or a.spread is None or b.spread is None:
        return Span(low, high)
    # Independent summands: what a residual branch adds is far less than the sum of the reaches.
    total = _normal(a.mean + b.mean, np.hypot(a.spread, b.spread))
    return replace(total, low=np.maximum(low, total.low), high=np.minimum(high, total.high))
