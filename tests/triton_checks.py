"""Checks of the Triton kernels by Triton's interpreter, and the process that runs them.

Triton decides when it is imported whether kernels are interpreted, so the checks need a process
of their own: ``python triton_checks.py`` reads names of checks from standard input and answers
each with a line of JSON. ``test_triton_ops.py`` starts it and asks.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from cases import CASES, DTYPES, as_float64, check, close

from fastgen.kernels import conv_bn_leaky_relu, conv_weights, gram_matrix
from fastgen.kernels.launch import Machine, index_bits, run

Check = Callable[[], None]
# Makes the planners split work, which a single interpreted processor would not.
MANY = Machine(multiprocessors=24, capability=(9, 0), shared=232448, interpreted=True)


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def gram(
    shape: tuple[int, int, int, int],
    last: bool,
    deterministic: bool,
    dtype: str,
    target: str,
    **blocks: int,
) -> None:
    """Splits, several tiles, and each way of bringing the splits together."""
    x = _random(*shape).to(getattr(torch, dtype)) + 1
    x = _last(x) if last else x
    out, launches = gram_matrix.plan(x, deterministic, MANY, **blocks)
    assert launches[0].meta["TARGET"] == target
    assert target == "result" or launches[0].meta["SPLITS"] > 1
    if target != "sum":
        out.fill_(float("nan"))
    run(launches, x)
    flat = x.double().flatten(2)
    close(as_float64(out), (flat @ flat.mT / flat[0].numel()).numpy(), 2e-6, "gram")
    if target != "sum":
        assert torch.equal(out, out.mT), "not symmetric to the last bit"


def _reference(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, **o: Any) -> torch.Tensor:
    x = F.interpolate(x.double(), scale_factor=o["upsample"])
    mode = "reflect" if o["padding_mode"] == "reflect" else "constant"
    x = F.pad(x, (o["padding"],) * 4, mode=mode)
    return F.conv2d(x, w.double(), b.double(), stride=o["stride"])


def conv(
    tile: tuple[int, int, int] | None,
    size: tuple[int, int, int],
    height: int,
    width: int,
    dtype: str = "float32",
    wide_index: bool = False,
    last: bool = True,
    statistics: bool = False,
    **given: Any,
) -> None:
    """A convolution with a given tile, residual and bias; ``size`` is (I, O, k)."""
    i, o, k = size
    known = {"stride": 1, "padding": 0, "padding_mode": "zeros", "upsample": 1}
    options: dict[str, Any] = known | given
    x = _random(2, i, height, width).to(getattr(torch, dtype))
    x = _last(x) if last else x
    w, b = _random(o, i, k, k, seed=1) / (k * i**0.5), _random(o, seed=2) + 50 * statistics
    w = w.to(x.dtype).float()
    expected = _reference(x, w, b, **options)
    gamma, beta = _random(o, seed=3), _random(o, seed=4)
    packed = conv_weights.pack(
        w.numpy(),
        b.numpy(),
        dtype=dtype,
        device="cpu",
        negative_slope=1.0 if statistics else 0.2,
        gamma=gamma.numpy() if statistics else None,
        beta=beta.numpy() if statistics else None,
        **options,
    )
    residual = None if statistics else _random(*expected.shape, seed=5).to(x.dtype)
    results, launches = conv_bn_leaky_relu.plan(x, packed, MANY, residual=residual, tile=tile)
    for result in results:
        result.fill_(float("nan"))
    if wide_index:
        assert launches[0].meta["INDEX_BITS"] == 32
        launches[0].meta["INDEX_BITS"] = 64
    run(launches, x)
    if residual is not None:
        expected = F.leaky_relu(expected + residual.double(), 0.2)
    allowed = {"float32": 2e-6, "float16": 6e-4, "bfloat16": 5e-3}[dtype]
    close(as_float64(results[0]), expected.numpy(), allowed, "y")
    if statistics:
        scale = gamma / (expected.var((2, 3), unbiased=False) + 1e-5).sqrt()
        shift = beta - expected.mean((2, 3)) * scale
        # Kernels folded for the phases are rounded after the sum of taps, the reference's before.
        exact = dtype == "float32" or options["upsample"] == 1
        close(as_float64(results[1]), scale.numpy(), 1e-5 if exact else allowed, "scale")
        close(as_float64(results[2]), shift.numpy(), 1e-5 if exact else allowed, "shift")


def index_arithmetic() -> None:
    """Offsets beyond 2^31 elements are those of exact integers, without an allocation."""
    from triton_probe import probe

    width, channels, channel, height = 70_001, 96, 95, 60_000
    rows = torch.tensor([0, 1, 30_000, height - 1], dtype=torch.int32)
    columns = torch.tensor([width - 1, 5, 35_000, width - 1], dtype=torch.int32)
    for last in (True, False):
        out = torch.zeros(4, dtype=torch.int64)
        probe[(1,)](rows, columns, out, width, channel, height * width, channels, last)
        pairs = zip(rows.tolist(), columns.tolist(), strict=True)
        flat = [r * width + c for r, c in pairs]
        steps = [f * channels + channel if last else f + channel * height * width for f in flat]
        assert out.tolist() == steps
        assert max(steps) > 2**32
    assert index_bits(2**31 - 2**24 - 1) == 32
    assert index_bits(5, 2**31 - 2**24) == 64
    # What a launcher decides for an image that is too large, and for one that is not.
    for side, bits in ((4096, 32), (8192, 64)):
        x = torch.empty((1, 64, side, side), dtype=torch.float16, device="meta")
        packed = conv_weights.pack(
            np.zeros((64, 64, 1, 1), np.float32),
            np.zeros(64, np.float32),
            stride=1,
            padding=0,
            padding_mode="zeros",
            upsample=1,
            dtype="float16",
            device="meta",
        )
        _, launches = conv_bn_leaky_relu.plan(_last(x), packed, MANY)
        assert launches[0].meta["INDEX_BITS"] == bits
        _, launches = gram_matrix.plan(x, True, MANY)
        assert launches[0].meta["INDEX_BITS"] == bits


def special_values() -> None:
    """NaN and infinities go through as IEEE arithmetic says, and ReLU(-inf) is 0."""
    for slope, below in ((0.0, 0.0), (0.2, -float("inf")), (1.0, -float("inf"))):
        x = torch.zeros(1, 16, 1, 3)
        x[0, 0, 0] = torch.tensor([float("nan"), float("inf"), -float("inf")])
        packed = conv_weights.pack(
            np.ones((16, 16, 1, 1), np.float32),
            np.zeros(16, np.float32),
            stride=1,
            padding=0,
            padding_mode="zeros",
            upsample=1,
            dtype="float32",
            device="cpu",
            negative_slope=slope,
        )
        (y,) = conv_bn_leaky_relu.conv(x, packed)
        assert torch.isnan(y[..., 0]).all()
        assert (y[..., 1] == float("inf")).all()
        assert (y[..., 2] == below).all()


def tuning() -> None:
    """The measuring search keeps the quickest tile and only offers tiles that fit."""
    packed = conv_weights.pack(
        np.ones((32, 16, 1, 1), np.float32),
        np.zeros(32, np.float32),
        stride=1,
        padding=0,
        padding_mode="zeros",
        upsample=1,
        dtype="float32",
        device="cpu",
    )
    x = _last(_random(1, 16, 4, 5))
    times = iter((3.0, 1.0, 2.0, 9.0, 9.0, 9.0))

    def measure(call: Callable[[], Any]) -> float:
        assert torch.isfinite(call()[0]).all()
        return next(times)

    ranking = conv_bn_leaky_relu.tune(x, packed, measure)
    assert ranking[0][0] == conv_bn_leaky_relu.tiles(packed)[1]
    assert [t for t, _ in ranking] != conv_bn_leaky_relu.tiles(packed)
    assert len(ranking) == len(conv_bn_leaky_relu.tiles(packed))


def _case(index: int) -> Check:
    # The dtypes take turns: a convolution takes a second where the machine is busy.
    return lambda: check(CASES[index], "triton", DTYPES[index % len(DTYPES)])


CHECKS: dict[str, Check] = {
    f"{case.op}-{DTYPES[i % len(DTYPES)]}-{case}": _case(i) for i, case in enumerate(CASES)
}
for _dtype in DTYPES:
    for _where in (False, True):
        _name = f"{_dtype}-{'nhwc' if _where else 'nchw'}"
        for _shape, _det, _target in (
            ((1, 20, 33, 31), True, "workspace"),
            ((4, 20, 8, 17), False, "sum"),
            ((2, 35, 5, 3), False, "result"),
            ((1, 3, 64, 65), False, "workspace"),
        ):
            CHECKS[f"gram-{_target}-{'x'.join(map(str, _shape))}-{_name}"] = (
                lambda s=_shape, w=_where, d=_det, t=_dtype, g=_target: gram(
                    s, w, d, t, g, block_c=16, block_p=16
                )
            )
    _sizes: dict[str, dict[str, Any]] = {
        "tile-128x64": {"tile": (128, 64, 8), "size": (20, 70, 3), "padding": 1},
        "tile-64x16": {"tile": (64, 16, 4), "size": (20, 40, 1)},
        "phases": {"tile": None, "size": (16, 24, 3), "padding": 1, "upsample": 2},
        "phases-reflect-statistics": {
            "tile": None,
            "size": (18, 10, 3),
            "padding": 1,
            "upsample": 2,
            "padding_mode": "reflect",
            "statistics": True,
        },
        "group": {"tile": None, "size": (18, 3, 5), "padding": 2, "padding_mode": "reflect"},
        "group-stride-2": {"tile": None, "size": (3, 2, 3), "padding": 1, "stride": 2},
        "statistics-several-tiles": {
            "tile": (64, 16, 4),
            "size": (3, 20, 3),
            "padding": 1,
            "statistics": True,
        },
    }
    for _label, _given in _sizes.items():
        CHECKS[f"conv-{_label}-{_dtype}"] = lambda g=_given, t=_dtype: conv(
            height=13, width=11, dtype=t, **g
        )
for _label, _given in _sizes.items():
    CHECKS[f"conv-64-bit-{_label}"] = lambda g=_given: conv(
        height=9, width=10, wide_index=True, last=False, **g
    )
for _check in (index_arithmetic, special_values, tuning):
    CHECKS[_check.__name__] = _check


def serve() -> None:
    """Answer requests until standard input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr
    torch.set_num_threads(1)
    for line in sys.stdin:
        error = None
        try:
            CHECKS[line.rstrip("\n")]()
        except BaseException:
            error = traceback.format_exc()
        print(json.dumps({"error": error}), file=answers, flush=True)


if __name__ == "__main__":
    if os.environ.get("TRITON_INTERPRET") != "1":
        sys.exit("set TRITON_INTERPRET=1: these checks run in Triton's interpreter")
    serve()
