"""The fused convolutions of the C++ kernels against float64, on every instruction set."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cpu_cases import ISAS, need_isa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastgen import ops
from fastgen.ops import _cpu_conv, _register
from fastgen.ops._spec import ConvSpec

torch = pytest.importorskip("torch")
F = torch.nn.functional

# Relative to the largest output: rounding of the result, of fp32 sums, of Winograd's transforms; of
# bfloat16 also of both factors of every product (see test_cpu_bf16.py).
BOUNDS = {torch.float32: 2e-5, torch.float16: 6e-4, torch.bfloat16: 1.6e-2}
# n, inputs, height, width, outputs, kernel, stride, upsample, padding, mode
CASES = [
    (2, 3, 19, 23, 32, 9, 1, 1, 4, "reflect"),
    (1, 32, 17, 15, 64, 3, 2, 1, 1, "reflect"),
    (1, 32, 18, 16, 20, 3, 2, 2, 1, "zeros"),
    (2, 64, 13, 17, 40, 3, 1, 1, 1, "zeros"),
    (1, 33, 9, 8, 17, 3, 1, 1, 1, "reflect"),
    (2, 64, 7, 9, 64, 3, 1, 2, 1, "reflect"),
    (1, 20, 7, 9, 30, 3, 1, 2, 1, "zeros"),
    (1, 8, 7, 9, 30, 3, 1, 2, 1, "reflect"),
    (1, 24, 6, 7, 18, 5, 1, 2, 2, "reflect"),
    (2, 32, 21, 40, 3, 9, 1, 1, 4, "reflect"),
    (1, 5, 8, 40, 4, 3, 1, 2, 1, "zeros"),
    (1, 6, 9, 11, 2, 3, 2, 1, 1, "zeros"),
    (1, 64, 16, 18, 33, 4, 2, 1, 1, "zeros"),
    (1, 16, 15, 18, 33, 4, 1, 1, 1, "reflect"),
    (1, 64, 16, 18, 64, 5, 1, 1, 2, "zeros"),
    (1, 32, 19, 14, 16, 9, 2, 1, 4, "zeros"),
    (1, 130, 8, 9, 64, 1, 1, 1, 0, "zeros"),
    (1, 7, 8, 9, 18, 1, 2, 1, 2, "zeros"),
    (3, 13, 37, 41, 24, 3, 1, 1, 1, "zeros"),
    (1, 1, 1, 1, 1, 1, 1, 1, 0, "zeros"),
    (1, 2, 3, 3, 5, 3, 1, 1, 0, "zeros"),
    (1, 17, 1, 1, 18, 3, 1, 1, 1, "zeros"),
    (2, 16, 40, 130, 16, 3, 1, 1, 0, "zeros"),
    (1, 4, 5, 33, 16, 15, 1, 1, 7, "zeros"),
]


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> str:
    need_isa(request.param)
    return request.param


def _tensor(seed: int, shape: tuple[int, ...], dtype: Any, last: bool) -> Any:
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    order = torch.channels_last if last else torch.contiguous_format
    return torch.from_numpy(values).to(dtype).contiguous(memory_format=order)


def _spec(case: tuple, dtype: Any = torch.float32, **extra: Any) -> ConvSpec:
    _, inputs, _, _, outputs, kernel, stride, upsample, padding, mode = case
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(outputs, inputs, kernel, kernel)) / np.sqrt(inputs * kernel**2)
    bias = rng.normal(size=outputs).astype(np.float32)
    name = str(dtype).removeprefix("torch.")
    return ConvSpec(
        weight.astype(np.float32), bias, stride, padding, mode, upsample, dtype=name, **extra
    )


def _raw(x: Any, spec: ConvSpec) -> Any:
    """The convolution in float64."""
    x = x.double()
    if spec.upsample == 2:
        x = F.interpolate(x, scale_factor=2)
    if spec.padding:
        x = F.pad(x, [spec.padding] * 4, mode=spec.padding_mode.replace("zeros", "constant"))
    weight, bias = torch.from_numpy(spec.weight), torch.from_numpy(spec.bias)
    return F.conv2d(x, weight.double(), bias.double(), spec.stride)


def _check(got: Any, expected: Any, bound: float) -> None:
    assert got.shape == expected.shape
    error = (got.double() - expected).abs().max().item()
    assert error <= bound * max(expected.abs().max().item(), 1e-3)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_conv(isa: str, case: tuple) -> None:
    n, inputs, height, width, outputs = case[:5]
    for index, dtype in enumerate(BOUNDS):
        spec = _spec(case, dtype, negative_slope=(0.2, 0.0, 1.0)[index])
        handle = _cpu_conv.pack_conv(spec, isa=isa)
        rows, columns = spec.output_size(height, width)
        for last in (False, True):
            x = _tensor(2, (n, inputs, height, width), dtype, last)
            expected = _raw(x, spec)
            for images in (0, 1, n):
                other = (
                    _tensor(3, (images, outputs, rows, columns), dtype, last) if images else None
                )
                got = _cpu_conv.conv(x, handle, other)
                assert got.dtype == dtype
                if last:
                    assert got.is_contiguous(memory_format=torch.channels_last)
                else:
                    assert got.is_contiguous()
                total = expected if other is None else expected + other.double()
                _check(got, F.leaky_relu(total, spec.negative_slope), BOUNDS[dtype])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_conv_norm(isa: str, case: tuple) -> None:
    n, inputs, height, width, outputs = case[:5]
    rng = np.random.default_rng(4)
    gamma, beta = rng.uniform(0.5, 1.5, (2, outputs)).astype(np.float32)
    before = rng.uniform(0.5, 1.5, (2, n, inputs)).astype(np.float32)
    for index, dtype in enumerate(BOUNDS):
        slope = (0.0, 1.0, 0.2)[index]
        spec = _spec(case, dtype, load_slope=slope, gamma=gamma, beta=beta, eps=1e-3)
        handle = _cpu_conv.pack_conv(spec, isa=isa)
        for last, images in ((False, 0), (True, n), (False, 1)):
            x = _tensor(2, (n, inputs, height, width), dtype, last)
            other = _tensor(5, (images, inputs, height, width), dtype, last) if images else None
            scale, shift = torch.from_numpy(before)
            got, new_scale, new_shift = _cpu_conv.conv_norm(x, handle, scale, shift, other)
            loaded = x.double() * scale.double()[:, :, None, None] + shift[:, :, None, None]
            loaded = F.leaky_relu(loaded, slope)
            expected = _raw(loaded if other is None else loaded + other.double(), spec)
            _check(got, expected, BOUNDS[dtype])
            var, mean = torch.var_mean(expected, (2, 3), correction=0)
            wanted = torch.from_numpy(gamma).double() / (var + 1e-3).sqrt()
            bound = 4e-3 if dtype == torch.bfloat16 else 1e-4  # sums of what is in got, unrounded
            _check(new_scale, wanted, bound)
            _check(new_shift, torch.from_numpy(beta).double() - mean * wanted, bound)
        # Without a norm on load; the activation applies all the same.
        got = _cpu_conv.conv_norm(x, handle)[0]
        _check(got, _raw(F.leaky_relu(x.double(), slope), spec), BOUNDS[dtype])


@pytest.mark.parametrize("kernel", [1, 3, 4])
def test_statistics_with_a_large_mean(isa: str, kernel: int) -> None:
    case = (1, 16, 70, 50, 32, kernel, 1 + kernel // 4, 1, kernel // 3, "zeros")
    gamma, beta = np.ones(32, np.float32), np.zeros(32, np.float32)
    spec = _spec(case, gamma=gamma, beta=beta, eps=0.0)
    spec.bias[:] = 3e3
    x = _tensor(0, case[:4], torch.float32, True)
    _, scale, shift = _cpu_conv.conv_norm(x, _cpu_conv.pack_conv(spec, isa=isa))
    var, mean = torch.var_mean(_raw(x, spec), (2, 3), correction=0)
    _check(scale, var.rsqrt(), 2e-4)
    _check(shift, -mean * var.rsqrt(), 2e-4)


def test_special_values(isa: str) -> None:
    # Largest, subnormal, infinite and undefined numbers go through a 1x1 identity unchanged.
    spec = ConvSpec(np.eye(3, dtype=np.float32)[:, :, None, None], np.zeros(3, np.float32))
    values = [65504.0, -65504.0, 6e-8, -6e-8, 3e-5, 6.1e-5, 0.0, 1.0, 1e-30, 3e38, float("inf")]
    for dtype in BOUNDS:
        x = torch.tensor(values).to(dtype).reshape(1, 1, 1, -1).expand(1, 3, 1, -1).contiguous()
        kept = ConvSpec(spec.weight[:1, :1], spec.bias[:1], dtype=str(dtype)[6:])
        got = _cpu_conv.conv(x[:, :1].contiguous(), _cpu_conv.pack_conv(kept, isa=isa))
        assert torch.equal(got, x[:, :1])
        x[..., 0] = float("nan")
        got = _cpu_conv.conv(x[:, :1].contiguous(), _cpu_conv.pack_conv(kept, isa=isa))
        assert got.isnan().sum() == 1


def test_pixels_do_not_touch_their_neighbours(isa: str) -> None:
    # Nor what lies behind the last one: products of bfloat16 take inputs in pairs.
    for inputs in (1, 2, 3, 4, 17, 33):
        for dtype in BOUNDS:
            weight = np.ones((20, inputs, 1, 1), np.float32)
            spec = ConvSpec(weight, np.zeros(20, np.float32), dtype=str(dtype)[6:])
            handle = _cpu_conv.pack_conv(spec, isa=isa)
            for last in (False, True):
                for value in (float("nan"), float("inf")):
                    x = _tensor(0, (1, inputs, 5, 7), dtype, last)
                    x[:, 0, 2, 3] = x[:, -1, 4, 6] = value
                    got = _cpu_conv.conv(x, handle)
                    assert (~got.isfinite()).sum() == 2 * 20


def test_results_are_rounded_to_nearest_even(isa: str) -> None:
    # 256 + k/2 has its ties where bfloat16 has a step of 2, float16 of 1/4: scale by 1/8 as well.
    x = torch.arange(-3000, 3000, dtype=torch.float32).reshape(1, 1, 60, 100)
    for dtype, weight in ((torch.bfloat16, 0.5), (torch.float16, 0.37), (torch.float16, 1e-6)):
        spec = ConvSpec(
            np.full((1, 1, 1, 1), weight, np.float32), np.zeros(1, np.float32), dtype=str(dtype)[6:]
        )
        given_x = x.to(dtype)
        got = _cpu_conv.conv(given_x, _cpu_conv.pack_conv(spec, isa=isa))
        expected = (given_x.float() * np.float32(weight)).to(dtype)
        assert torch.equal(got, expected)


@pytest.mark.parametrize("isa_name", ISAS)
def test_random_convolutions(isa_name: str) -> None:
    need_isa(isa_name)

    @settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def check(data: st.DataObject) -> None:
        pick = data.draw
        kernel, upsample = pick(st.sampled_from([1, 2, 3, 3, 4, 5, 7, 9])), pick(st.integers(1, 2))
        padding, mode = pick(st.integers(0, kernel)), pick(st.sampled_from(["zeros", "reflect"]))
        height, width = pick(st.integers(1, 20)), pick(st.integers(1, 40))
        least = min(height, width) * upsample
        if mode == "reflect" and padding >= least:
            padding = least - 1
        if least + 2 * padding < kernel:
            return
        n, inputs, outputs = (
            pick(st.integers(1, 3)),
            pick(st.integers(1, 70)),
            pick(st.integers(1, 70)),
        )
        stride, last = pick(st.integers(1, 2)), pick(st.booleans())
        case = (n, inputs, height, width, outputs, kernel, stride, upsample, padding, mode)
        dtype = pick(st.sampled_from(list(BOUNDS)))
        norm: dict[str, Any] = {}
        if pick(st.booleans()):
            norm = {"gamma": np.ones(outputs, np.float32), "beta": np.zeros(outputs, np.float32)}
        spec = _spec(case, dtype, **norm)
        handle = _cpu_conv.pack_conv(spec, isa=isa_name)
        x = _tensor(7, case[:4], dtype, last)
        got = _cpu_conv.conv_norm(x, handle)[0] if norm else _cpu_conv.conv(x, handle)
        _check(got, _raw(x, spec), BOUNDS[dtype])

    check()


def test_any_strides_and_numpy() -> None:
    case = (2, 20, 9, 11, 24, 3, 1, 1, 1, "zeros")
    spec = _spec(case)
    handle = _cpu_conv.pack_conv(spec)
    x = _tensor(0, (2, 40, 18, 11), torch.float32, False)[:, ::2, ::2]
    expected = _raw(x, spec)
    _check(_cpu_conv.conv(x, handle), expected, 2e-5)
    other = _tensor(1, (24, 9, 2, 11), torch.float32, False).permute(2, 0, 1, 3)
    _check(_cpu_conv.conv(x, handle, other), expected + other.double(), 2e-5)
    got = _cpu_conv.conv(x.numpy(), handle)
    assert isinstance(got, np.ndarray)
    _check(torch.from_numpy(got), expected, 2e-5)
    half = _cpu_conv.pack_conv(_spec(case, torch.float16))
    got = _cpu_conv.conv(x.numpy().astype(np.float16), half)
    assert got.dtype == np.float16
    _check(torch.from_numpy(got), _raw(x.half(), spec), 6e-4)


def test_nothing_outside_the_tensors_is_touched(isa: str) -> None:
    # Tensors end where memory ends: guard values around the output, an input that ends a page.
    for inputs, outputs, kernel in ((13, 21, 3), (17, 35, 3), (3, 3, 9), (33, 17, 4), (50, 3, 1)):
        for last in (False, True):
            case = (1, inputs, 5, 6, outputs, kernel, 1, 1, kernel // 2, "zeros")
            spec = _spec(case)
            rows, columns = spec.output_size(5, 6)
            memory = torch.full((outputs * rows * columns + 128,), 77.0)
            shape = (1, rows, columns, outputs) if last else (1, outputs, rows, columns)
            y = memory[64:-64].view(shape)
            y = y.permute(0, 3, 1, 2) if last else y
            x = _tensor(0, case[:4], torch.float32, last)
            from fastgen.ops._array import describe

            _cpu_conv.pack_conv(spec, isa=isa).run(describe(x), describe(y), None)
            _check(y, _raw(x, spec), 2e-5)
            assert (memory[:64] == 77).all()
            assert (memory[-64:] == 77).all()


def test_wrong_arguments_are_errors() -> None:
    case = (1, 20, 9, 11, 24, 3, 1, 1, 1, "reflect")
    handle = _cpu_conv.pack_conv(_spec(case))
    good = _tensor(0, case[:4], torch.float32, False)
    for x in (good[:, :19], good[:, :, :1], good.half(), good[:0]):
        with pytest.raises(ValueError, match=r"input|padding|empty"):
            _cpu_conv.conv(x, handle)
    for residual in (good, good[:, :, :, :1], torch.zeros(2, 24, 9, 11)):
        with pytest.raises(ValueError, match="residual"):
            _cpu_conv.conv(good, handle, residual)
    with pytest.raises(ValueError, match="smaller than the kernel"):
        _cpu_conv.conv(
            torch.zeros(1, 20, 1, 1), _cpu_conv.pack_conv(_spec((*case[:8], 0, "zeros")))
        )
    with pytest.raises(ValueError, match="statistics"):
        _cpu_conv.conv_norm(good, handle)
    for changed in ({"stride": 3}, {"upsample": 3}, {"padding": -1}):
        values = {"weight": np.zeros((2, 2, 3, 3), np.float32), "bias": np.zeros(2, np.float32)}
        with pytest.raises(ValueError, match="must be"):
            _cpu_conv.pack_conv(ConvSpec(**values, **changed))
    with pytest.raises(ValueError, match="must be one of"):
        _cpu_conv.pack_conv(_spec(case), isa="none")
    with pytest.raises(ValueError, match="do not fit"):
        _cpu_conv.pack_conv(ConvSpec(np.zeros((2, 2, 3, 3), np.float32), np.zeros(3, np.float32)))


def test_threads_at_once() -> None:
    case = (2, 32, 40, 40, 32, 3, 1, 1, 1, "zeros")
    handle = _cpu_conv.pack_conv(_spec(case))
    xs = [_tensor(i, (2, 32, 36 + i, 40), torch.float32, True) for i in range(6)]
    expected = [_cpu_conv.conv(x, handle) for x in xs]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(20):
            if not torch.equal(_cpu_conv.conv(xs[i], handle), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_tensors_without_memory_are_errors() -> None:
    case = (1, 20, 9, 11, 24, 3, 1, 1, 1, "reflect")
    x = _tensor(0, case[:4], torch.float32, False)
    freed = x.clone()
    freed.untyped_storage().resize_(0)
    for residual in (None, x):
        with pytest.raises(ValueError, match="no memory"):
            _cpu_conv.conv(freed, _cpu_conv.pack_conv(_spec(case)), residual)
    one = np.ones(24, np.float32)
    handle = _cpu_conv.pack_conv(_spec(case, gamma=one, beta=one))
    with pytest.raises(ValueError, match="no memory"):
        _cpu_conv.conv_norm(x, handle, residual=freed)
    scale, empty = torch.ones(1, 20), torch.ones(1, 20)
    empty.untyped_storage().resize_(0)
    for pair in ((empty, empty), (scale, empty), (empty, scale)):
        with pytest.raises(ValueError, match="no memory"):
            _cpu_conv.conv_norm(x, handle, *pair)


def test_norms_that_do_not_fit_are_errors() -> None:
    """Also where they come to the operator itself, past the public function."""
    x, weight, one = torch.ones(1, 20, 9, 11), torch.ones(24, 20, 3, 3), torch.ones(24)
    packed = ops.pack_conv_instance_norm(weight, one, padding=1)
    good = torch.ones(1, 20)
    ops.conv_instance_norm(x, packed, norm=(good, good))
    for pair, kind, text in (
        ((good.double(), good.double()), TypeError, "norm's scale is torch.float64, must be"),
        ((good, good.half()), TypeError, "norm's shift is torch.float16, must be float32"),
        ((good[:, 1:], good[:, 1:]), ValueError, r"\(1, 19\), must be \(N,I\) = \(1, 20\)"),
        ((good, torch.ones(2, 20)), ValueError, r"shift has the shape \(2, 20\)"),
        ((good.to_sparse(), good.to_sparse()), TypeError, "scale has the layout torch.sparse_coo"),
        ((good.to("meta"), good.to("meta")), ValueError, "scale is on meta and x on cpu"),
    ):
        with pytest.raises(kind, match=text):
            ops.conv_instance_norm(x, packed, norm=pair)
        if not pair[0].is_sparse and not pair[0].is_meta:
            rest = (None, 1, 1, "zeros", 1, 1e-5, 1.0, "cpu", 0)
            with pytest.raises(kind, match=text):
                _register.op("conv_instance_norm")(x, weight, one, one, one, *pair, *rest)
    strided = torch.ones(1, 40)[:, ::2]
    y, scale, _ = ops.conv_instance_norm(x, packed, norm=(strided, strided))
    assert torch.equal(y, ops.conv_instance_norm(x, packed, norm=(good, good))[0])
    assert scale.shape == (1, 24)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_threads_of_a_forked_child_can_run() -> None:
    """The first calls in the child come from several threads at once."""
    case = (1, 32, 40, 40, 32, 3, 1, 1, 1, "zeros")
    handle = _cpu_conv.pack_conv(_spec(case))
    x = _tensor(0, case[:4], torch.float32, True).numpy()
    expected = _cpu_conv.conv(x, handle)
    context = multiprocessing.get_context("fork")

    def child(writer: Any) -> None:
        start = threading.Barrier(8)
        right: list[bool] = []

        def work() -> None:
            start.wait()
            right.extend(np.array_equal(_cpu_conv.conv(x, handle), expected) for _ in range(3))

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        writer.send(len(right) == 24 and all(right))

    for _ in range(10):
        reader, writer = context.Pipe(duplex=False)
        process = context.Process(target=child, args=(writer,))
        process.start()
        assert reader.poll(60)
        assert reader.recv()
        process.join(60)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_can_run() -> None:
    case = (1, 32, 40, 40, 32, 3, 1, 1, 1, "zeros")
    handle = _cpu_conv.pack_conv(_spec(case))
    x = _tensor(0, case[:4], torch.float32, True).numpy()
    expected = _cpu_conv.conv(x, handle)
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)

    def child() -> None:
        writer.send(bool(np.array_equal(_cpu_conv.conv(x, handle), expected)))

    process = context.Process(target=child)
    process.start()
    assert reader.poll(60)
    assert reader.recv()
    process.join(60)


_SCRIPT = """
import sys, numpy as np
from fastgen.ops import _cpu_conv, _register
from fastgen.ops._spec import ConvSpec
rng = np.random.default_rng(0)
for n, size, i, o, k, s in ((1, 40, 32, 48, 3, 1), (2, 21, 16, 40, 4, 2), (1, 9, 128, 130, 3, 1)):
    w = rng.normal(size=(o, i, k, k)).astype(np.float32)
    one = np.ones(o, np.float32)
    handle = _cpu_conv.pack_conv(ConvSpec(w, one, s, 1, gamma=one, beta=one))
    x = rng.normal(size=(n, i, size, size)).astype(np.float32)
    for result in _cpu_conv.conv_norm(x, handle):
        sys.stdout.buffer.write(np.ascontiguousarray(result).tobytes())
"""


def test_any_number_of_threads_gives_the_same_bits(tmp_path: Path) -> None:
    results = set()
    for threads in ("1", "2", "3", "7"):
        env = {**os.environ, "FASTGEN_NUM_THREADS": threads}
        env["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
        done = subprocess.run(
            [sys.executable, "-c", _SCRIPT],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            timeout=120,
            check=True,
        )
        results.add(done.stdout)
    assert len(results) == 1
    assert len(next(iter(results))) > 100_000
