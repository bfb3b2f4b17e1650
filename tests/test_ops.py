"""Every fused operation x implementation x dtype x case against the float64 oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from cases import (
    CASES,
    DTYPES,
    Case,
    as_float64,
    call,
    check,
    close,
    oracle,
    require,
    targets,
    tensors,
    tolerance,
)
from hypothesis import given
from hypothesis import strategies as st

from fastgen import ops

RUNS = [
    pytest.param(case, impl, dtype, device, id=f"{case.op}-{impl}-{device}-{dtype}-{case}")
    for case in CASES
    for impl, device in targets(case.op)
    for dtype in (*DTYPES, *(("float64",) if impl == "ref" else ()))
]
PACKS = ("conv_bn_leaky_relu", "conv_instance_norm", "conv_concat")


@pytest.mark.parametrize("op", ops.OPS)
@pytest.mark.parametrize("impl", ops.IMPLS)
def test_implementation_runs_here(op: str, impl: str) -> None:
    # The cases below enumerate what can run; this is where the rest is reported.
    require(op, impl)
    assert impl in ops.impls(op)


@pytest.mark.parametrize(("case", "impl", "dtype", "device"), RUNS)
def test_op(case: Case, impl: str, dtype: str, device: str) -> None:
    check(case, impl, dtype, device)
    if case.op in PACKS:
        check(case, impl, dtype, device, packed=True)


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.op}-{c}")
def test_arrays(case: Case) -> None:
    data = {k: v.astype(np.float32) for k, v in case.arrays().items()}
    if case.layout == "channels_last":
        data["x"] = np.ascontiguousarray(data["x"].transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    if case.layout == "transposed":
        data["x"] = np.ascontiguousarray(data["x"].transpose(0, 1, 3, 2)).transpose(0, 1, 3, 2)
    data["x"].flags.writeable = False
    expected = oracle(case, {k: v.astype(np.float64) for k, v in data.items()})
    for packed in (False, True) if case.op in PACKS else (False,):
        for got, want in zip(call(case, data, "auto", packed), expected, strict=True):
            assert type(got) is np.ndarray
            assert got.dtype == np.float32
            close(got.astype(np.float64), want, tolerance(case, "float32"), "result")


def test_half_precision_arrays() -> None:
    x = np.random.default_rng(0).standard_normal((1, 4, 5, 6)).astype(np.float16)
    w = np.ones((2, 4, 1, 1), np.float16)
    assert ops.gram_matrix(x).dtype == np.float32
    assert ops.concat_features(x, x).dtype == np.float16
    assert ops.conv_bn_leaky_relu(x, w).dtype == np.float16
    assert ops.gram_matrix(x.astype(np.float64)).dtype == np.float64


@pytest.mark.parametrize("impl", ops.impls("gram_matrix"))
def test_gram_is_exactly_symmetric_and_repeatable(impl: str) -> None:
    device = dict(targets("gram_matrix"))[impl]
    x = torch.randn(2, 37, 33, 29, generator=torch.Generator().manual_seed(1)).to(device)
    first = ops.gram_matrix(x, impl=impl, deterministic=True)
    if impl != "ref":  # a library's product promises less
        assert torch.equal(first, first.transpose(1, 2))
    assert torch.equal(first, ops.gram_matrix(x, impl=impl, deterministic=True))


@pytest.mark.parametrize("impl", ops.impls("conv_instance_norm"))
@pytest.mark.parametrize("mean", [0.0, 3e3])
def test_chain_of_instance_norms_is_the_network_block(impl: str, mean: float) -> None:
    import torch.nn.functional as F

    device = dict(targets("conv_instance_norm"))[impl]
    g = torch.Generator().manual_seed(2)
    x = torch.randn(2, 6, 12, 11, generator=g).to(device)
    w1, w2 = (torch.randn(6, 6, 3, 3, generator=g).to(device) for _ in range(2))
    gamma, beta = (torch.rand(6, generator=g).to(device) + 0.5 for _ in range(2))
    bias = torch.full((6,), mean, device=device)
    where = {"padding": 1, "padding_mode": "reflect", "impl": impl}

    y, *norm = ops.conv_instance_norm(x, w1, bias, gamma, beta, **where)
    y, scale, shift = ops.conv_instance_norm(
        y, w2, None, gamma, beta, norm=tuple(norm), load_slope=0.0, residual=x, **where
    )
    got = y * scale[:, :, None, None] + shift[:, :, None, None]

    def block(v: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
        v = F.conv2d(F.pad(v, (1,) * 4, mode="reflect"), w.double(), b)
        return F.instance_norm(v, weight=gamma.double(), bias=beta.double(), eps=1e-5)

    want = block(F.relu(block(x.double(), w1, bias.double())) + x.double(), w2, None)
    # The mean costs bits of y itself: 2^-24 of it beside a spread of about 7.
    close(as_float64(got), as_float64(want), 1e-4 + mean * 2e-7, "block")


def _sizes() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            "shape": st.tuples(*[st.integers(1, high) for high in (2, 6, 10, 10)]),
            "out": st.integers(1, 20),
            "k": st.integers(1, 5),
            "stride": st.integers(1, 2),
            "padding": st.integers(0, 4),
            "padding_mode": st.sampled_from(("zeros", "reflect")),
            "upsample": st.integers(1, 2),
            "layout": st.sampled_from(("contiguous", "channels_last")),
        }
    )


@pytest.mark.parametrize("impl", ops.impls("conv_bn_leaky_relu"))
@given(sizes=_sizes(), dtype=st.sampled_from(DTYPES))
def test_any_convolution_is_right_or_refused(impl: str, sizes: dict[str, Any], dtype: str) -> None:
    shape, out, k, layout = (sizes.pop(n) for n in ("shape", "out", "k", "layout"))
    device = dict(targets("conv_bn_leaky_relu"))[impl]
    case = Case("conv_bn_leaky_relu", shape, layout, out=out, k=k, bn="bgomv", options=dict(sizes))
    size = [s * sizes["upsample"] for s in shape[2:]]
    reflected = sizes["padding_mode"] == "reflect" and sizes["padding"] >= min(size)
    if reflected or min(size) + 2 * sizes["padding"] < k:
        with pytest.raises(ValueError, match="use a larger input"):
            call(case, tensors(case, dtype, device), impl)
    else:
        check(case, impl, dtype, device)


@pytest.mark.parametrize("impl", ops.impls("gram_matrix"))
@given(
    shape=st.tuples(*[st.integers(1, high) for high in (3, 40, 12, 12)]),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(("contiguous", "channels_last", "sliced")),
)
def test_any_gram_matrix(
    impl: str, shape: tuple[int, int, int, int], dtype: str, layout: str
) -> None:
    check(Case("gram_matrix", shape, layout), impl, dtype, dict(targets("gram_matrix"))[impl])
