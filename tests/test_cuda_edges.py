"""Shapes and addresses that break CUDA kernels, on the emulated card: any mixture of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from cuda_emulation.card import DTYPES, LARGE, SMALL, Card, assert_close, random
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_cuda_emulated import assert_statistics, loaded, make_spec, reference

from fastgen.errors import ImplUnavailable
from fastgen.ops import _cuda

# The card is declared anew by every call, so sharing it between examples is fine.
SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)


def moved(value: torch.Tensor, offset: int) -> torch.Tensor:
    """The same values `offset` elements into an allocation of their own, in the same layout."""
    memory = torch.full((value.numel() + offset,), float("nan"), dtype=value.dtype)
    return memory.as_strided(value.shape, value.stride(), offset).copy_(value)


# Multiples of 16 bytes, of 8, and odd ones; below, at and above a step of 64 bytes.
CHANNELS = st.sampled_from([1, 2, 3, 4, 7, 8, 9, 12, 16, 20, 24, 31, 32, 33, 40, 64, 72])
OFFSETS = st.sampled_from([0, 0, 1, 2, 3, 4, 8])
GEOMETRY = st.fixed_dictionaries(
    {
        "n": st.integers(1, 3),
        "inputs": CHANNELS,
        "outputs": CHANNELS,
        "height": st.integers(1, 12),
        "width": st.integers(1, 19),
        "kernel": st.sampled_from([1, 1, 2, 3, 3, 4, 5, 7, 9]),
        "stride": st.integers(1, 2),
        "upsample": st.integers(1, 2),
        "padding": st.integers(0, 4),
        "mode": st.sampled_from(["zeros", "reflect"]),
        "last": st.booleans(),
        "dtype": st.sampled_from(list(DTYPES)),
        "tile": st.integers(-1, 5),
        "large": st.booleans(),
        "offset": OFFSETS,
        "residual_offset": OFFSETS,
        "residual": st.sampled_from(["", "one", "full"]),
    }
)


def spec_of(g: dict[str, Any], **more: Any) -> Any:
    """The convolution, or None where the sizes do not fit each other."""
    sides = [g[side] * g["upsample"] for side in ("height", "width")]
    if g["mode"] == "reflect" and g["padding"] >= min(sides):
        return None
    if min(sides) + 2 * g["padding"] < g["kernel"]:
        return None
    return make_spec(
        g["outputs"],
        g["inputs"],
        g["kernel"],
        g["dtype"],
        stride=g["stride"],
        upsample=g["upsample"],
        padding=g["padding"],
        padding_mode=g["mode"],
        **more,
    )


def handle_of(card: Card, g: dict[str, Any], spec: Any) -> Any:
    card.limits = (4, LARGE if g["large"] else SMALL)
    return dataclasses.replace(_cuda.pack_conv(spec, "cpu"), tile=g["tile"])


@SHARED
@given(g=GEOMETRY, slope=st.sampled_from([0.0, 0.2, 1.0]))
def test_any_conv(card: Card, g: dict[str, Any], slope: float) -> None:
    spec = spec_of(g, negative_slope=slope)
    if spec is None:
        return
    x = random((g["n"], g["inputs"], g["height"], g["width"]), g["dtype"], 1, g["last"])
    residual = None
    if g["residual"]:
        rows, columns = spec.output_size(g["height"], g["width"])
        batch = 1 if g["residual"] == "one" else g["n"]
        shape = (batch, g["outputs"], rows, columns)
        residual = moved(random(shape, g["dtype"], 2, g["last"]), g["residual_offset"])
    try:
        out = card(_cuda.conv, moved(x, g["offset"]), handle_of(card, g, spec), residual)
    except ImplUnavailable:
        assert not g["large"] or g["tile"] >= 0
        return
    depth = int(np.prod(spec.weight.shape[1:]))
    assert_close(out, reference(x.double(), spec, residual), g["dtype"], depth)


@SHARED
@given(g=GEOMETRY, norm=st.booleans(), load_slope=st.sampled_from([0.0, 0.2, 1.0]), part=OFFSETS)
def test_any_conv_norm(
    card: Card, g: dict[str, Any], norm: bool, load_slope: float, part: int
) -> None:
    gamma = np.linspace(0.5, 1.5, g["outputs"], dtype=np.float32)
    spec = spec_of(g | {"dtype": "float32"}, gamma=gamma, beta=gamma, load_slope=load_slope)
    if spec is None:
        return
    x = random((g["n"], g["inputs"], g["height"], g["width"]), "float32", 3, g["last"])
    scale, shift = (
        [moved(random(tuple(x.shape[:2]), "float32", seed), part) for seed in (4, 5)]
        if norm
        else (None, None)
    )
    residual = random(tuple(x.shape), "float32", 6, g["last"]) if g["residual"] else None
    given_residual = None if residual is None else moved(residual, g["residual_offset"])
    try:
        y, out_scale, out_shift = card(
            *(_cuda.conv_norm, moved(x, g["offset"]), handle_of(card, g, spec)),
            *(scale, shift, given_residual),
        )
    except ImplUnavailable:
        assert not g["large"] or g["tile"] >= 0
        return
    want = reference(loaded(x, spec, scale, shift, residual), spec)
    size = float(want.abs().max()) + 1
    assert float((y.double() - want).abs().max()) < 2e-5 * size
    if want[0, 0].numel() > 8:
        assert_statistics(want, spec, out_scale, out_shift, 1e-3)


@SHARED
@given(
    shape=st.tuples(st.integers(1, 3), CHANNELS, st.integers(1, 13), st.integers(1, 17)),
    dtype=st.sampled_from(list(DTYPES)),
    last=st.booleans(),
    offset=OFFSETS,
    multiprocessors=st.sampled_from([1, 3, 40]),
)
def test_any_gram(
    card: Card,
    shape: tuple[int, ...],
    dtype: str,
    last: bool,
    offset: int,
    multiprocessors: int,
) -> None:
    card.limits = (multiprocessors, LARGE)
    x = moved(random(shape, dtype, 7, last), offset)
    rows = x.double().reshape(shape[0], shape[1], -1)
    out = card(_cuda.gram_matrix, x) * rows[0].numel()
    assert_close(out, rows @ rows.transpose(1, 2), "float32", rows.shape[2])


@SHARED
@given(
    shape=st.tuples(st.integers(1, 3), CHANNELS, st.integers(1, 5), st.integers(1, 7)),
    style=CHANNELS,
    batch_one=st.booleans(),
    plane=st.booleans(),
    dtype=st.sampled_from(["float32", "float16"]),
    last=st.booleans(),
    offsets=st.tuples(OFFSETS, OFFSETS),
)
def test_any_concat(
    card: Card,
    shape: tuple[int, ...],
    style: int,
    batch_one: bool,
    plane: bool,
    dtype: str,
    last: bool,
    offsets: tuple[int, int],
) -> None:
    n, _, height, width = shape
    content = moved(random(shape, dtype, 8, last), offsets[0])
    sizes = (1 if batch_one else n, style, *((height, width) if plane else ()))
    other = moved(random(sizes, dtype, 9, last and plane), offsets[1])
    full = (other if plane else other[:, :, None, None]).expand(n, -1, height, width)
    assert torch.equal(card(_cuda.concat_features, content, other), torch.cat([content, full], 1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_end_before_they_lose_digits(card: Card, native: Any, dtype: str) -> None:
    """The emulated tensor cores round towards zero, as the card's do."""
    card.limits = (1, LARGE)
    x = random((1, 8, 96, 128), dtype, 10).abs() + 1
    rows = x.double().reshape(8, -1)
    want = rows @ rows.T
    out = card(_cuda.gram_matrix, x)[0] * x.numel()
    assert float((out / want - 1).abs().max()) < 6e-5
    code = list(DTYPES).index(dtype)
    assert native.gram_matrix_workspace(1, 8, 2**16, False, code, 1, LARGE) > 0
