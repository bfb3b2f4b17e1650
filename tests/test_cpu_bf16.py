"""Convolutions whose products take bfloat16 factors: every instruction set, against float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cpu_cases import ISAS, need_isa, random_weights

from fastgen.backends.cpu import Runner
from fastgen.graph import Dim, Graph, Input, Node
from fastgen.ops import _cpu_conv
from fastgen.ops._spec import ConvSpec

torch = pytest.importorskip("torch")
F = torch.nn.functional

# n, inputs, height, width, outputs, kernel, stride, upsample, padding
DIRECT = [
    (1, 3, 19, 23, 32, 9, 1, 1, 4),  # few channels: pairs run over the taps of a row
    (2, 1, 9, 10, 17, 3, 1, 1, 1),
    (1, 2, 9, 33, 40, 4, 2, 1, 1),
    (1, 4, 8, 9, 16, 1, 1, 1, 0),
    (1, 13, 11, 37, 24, 3, 1, 1, 1),  # an odd channel
    (1, 17, 10, 9, 33, 3, 2, 1, 1),  # a single channel in the last block
    (2, 37, 9, 11, 20, 1, 1, 1, 0),  # one tap: read in place with the channels last
    (1, 64, 9, 40, 48, 1, 2, 1, 0),
    (1, 17, 9, 11, 20, 1, 1, 1, 0),
    (1, 32, 9, 17, 64, 3, 2, 1, 1),
    (1, 8, 7, 9, 30, 3, 1, 2, 1),
]
WINOGRAD = [
    (2, 64, 13, 17, 40, 3, 1, 1, 1),
    (1, 33, 9, 8, 17, 3, 1, 1, 1),
    (1, 16, 5, 66, 64, 3, 1, 1, 0),
    (1, 64, 7, 9, 32, 3, 1, 2, 1),
    (1, 64, 16, 18, 33, 4, 2, 1, 1),
    (1, 16, 15, 18, 33, 2, 1, 1, 0),
]
LARGE = [
    (1, 64, 17, 19, 64, 5, 1, 1, 2),
    (2, 17, 9, 11, 20, 5, 1, 1, 2),
    (1, 24, 40, 37, 33, 5, 1, 1, 0),
    (1, 32, 24, 26, 16, 10, 2, 1, 4),
]


def _data(case: tuple, last: bool = True) -> tuple[Any, ConvSpec]:
    """Input and weights that are bfloat16 already, so that only the kernels round."""
    n, inputs, height, width, outputs, kernel, stride, upsample, padding = case
    rng = np.random.default_rng(5)
    order = torch.channels_last if last else torch.contiguous_format
    x = torch.from_numpy(rng.normal(0.3, 1, (n, inputs, height, width)).astype(np.float32))
    scale = 1 / np.sqrt(inputs * kernel**2)
    weight = rng.normal(0, scale, (outputs, inputs, kernel, kernel)).astype(np.float32)
    weight = torch.from_numpy(weight).bfloat16().float().numpy()
    bias = rng.normal(size=outputs).astype(np.float32)
    spec = ConvSpec(weight, bias, stride, padding, "zeros", upsample, 0.2, "bfloat16")
    return x.bfloat16().contiguous(memory_format=order), spec


def _exact(x: Any, spec: ConvSpec) -> Any:
    x = x.double()
    if spec.upsample == 2:
        x = F.interpolate(x, scale_factor=2)
    weight, bias = torch.from_numpy(spec.weight), torch.from_numpy(spec.bias)
    y = F.conv2d(x, weight.double(), bias.double(), spec.stride, spec.padding)
    return F.leaky_relu(y, spec.negative_slope)


def _run(x: Any, spec: ConvSpec, isa: str) -> Any:
    return _cpu_conv.conv(x, _cpu_conv.pack_conv(spec, isa=isa)).double()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", DIRECT, ids=str)
def test_direct_rounds_only_the_result(isa: str, case: tuple) -> None:
    need_isa(isa)
    if case[7] == 2:
        pytest.skip("sums of taps are rounded, too; test_instruction_sets_agree covers it")
    for last in (True, False):
        x, spec = _data(case, last)
        expected = _exact(x, spec)
        error = (_run(x, spec, isa) - expected).abs()
        # Half a step of bfloat16's 8 bits, and sums of up to 300 products in float32.
        assert (error <= expected.abs() * 2**-7.99 + 2e-5).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", WINOGRAD, ids=str)
def test_winograd_error(isa: str, case: tuple) -> None:
    # Two factors rounded to 8 bits, through the transforms of 2x4 outputs of 3x3 kernels or 3x5 of
    # 2x2: 44 to 46 dB on random values. Six points down, or worse points, would be below; a float32
    # convolution, of which only the result is rounded, above.
    assert 43.5 < _decibels(isa, case) < 48


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_winograd_error_of_large_kernels(isa: str, case: tuple) -> None:
    # Along the rows only where products of bfloat16 are quick: 46 to 48 dB; else in both ways, in
    # float32.
    low, high = (45.5, 49) if isa == "avx512_bf16" else (52, 60)
    assert low < _decibels(isa, case) < high


def _decibels(isa: str, case: tuple) -> float:
    need_isa(isa)
    x, spec = _data(case)
    expected = _exact(x, spec)
    error = (_run(x, spec, isa) - expected).square().mean().sqrt()
    return 20 * torch.log10(expected.std() / error).item()


@pytest.mark.parametrize("isa", [i for i in ISAS if i != "scalar"])
@pytest.mark.parametrize("case", DIRECT + WINOGRAD, ids=str)
def test_instruction_sets_agree(isa: str, case: tuple) -> None:
    need_isa(isa)
    x, spec = _data(case)
    first, second = _run(x, spec, "scalar"), _run(x, spec, isa)
    difference, largest = (first - second).abs(), first.abs().max()
    # The order of sums differs in the last bit of float32, which now and then rounds a factor or
    # a result the other way: one step of bfloat16, and seldom.
    assert difference.max() <= largest * 2**-7
    assert difference.mean() <= largest * 2e-4


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("inputs", [1, 2, 3, 13, 37])
def test_not_a_number_stays_in_its_window(isa: str, inputs: int) -> None:
    need_isa(isa)
    x, spec = _data((1, inputs, 9, 12, 7, 3, 1, 1, 1))
    x[0, inputs - 1, 4, 5] = float("nan")
    bad = torch.isnan(_run(x, spec, isa))
    window = torch.zeros_like(bad)
    window[:, :, 3:6, 4:7] = True
    assert torch.equal(bad, window)


def test_detection() -> None:
    _c = pytest.importorskip("fastgen._C")
    info = Path("/proc/cpuinfo")
    if not info.exists():
        pytest.skip("no /proc/cpuinfo to compare with")
    flags = info.read_text().split("flags", 1)[-1].split("\n", 1)[0].split()
    if "avx512bw" not in flags:
        pytest.skip("no AVX-512")
    assert ("avx512_bf16" in _c.isa_available()) == ("avx512_bf16" in flags)


@pytest.mark.parametrize("isa", ISAS)
def test_an_odd_channel_meets_no_stale_memory(isa: str) -> None:
    """Inputs are multiplied in pairs; the last of 17 has none. Memory of earlier runs is reused."""
    need_isa(isa)
    attrs = {"kernel": 1, "stride": 1, "padding": 0, "padding_mode": "zeros"}
    nodes = (
        Node("n", "norm", ("x",), {"kind": "batch", "eps": 0.1}),
        Node("a", "conv", ("n",), {**attrs, "out_channels": 17}),
        Node("y", "conv", ("a",), {**attrs, "out_channels": 20}),
    )
    shape = (Dim("N"), 17, Dim("H"), Dim("W"))
    graph = Graph("odd", (Input("x", shape),), nodes, {"y": "y"})
    runner = Runner(graph, random_weights(graph), threads=1, isa=isa, precision="bf16")
    x = np.random.default_rng(0).normal(size=(1, 17, 5, 6)).astype(np.float32)
    expected = runner.run(x)
    assert np.isfinite(expected).all()
    runner.run(np.full((1, 17, 60, 60), np.nan, np.float32))
    np.testing.assert_array_equal(runner.run(x), expected)
