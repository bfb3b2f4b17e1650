"""What only a GPU can show of the fused operations: graphs, streams, every tile, odd addresses.

Everything here is enumerated from what can run: without a GPU every parameter set is empty.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import CASES, TOLERANCE, Case, as_float64, call, close, targets, tensors
from test_ops_torch import _operator_inputs

from fastgen import ops
from fastgen.errors import ImplUnavailable
from fastgen.ops import _register

GPU = [impl for impl, device in targets("gram_matrix") if device == "cuda" and impl != "ref"]
BY_OP = {op: [case for case in CASES if case.op == op] for op in ops.OPS}
each_impl = pytest.mark.parametrize("impl", GPU)

# inputs, height, width, outputs, kernel, stride, upsample, padding, mode: tails of pixels,
# outputs and channels in each.
SHAPES = {
    "3x3": (40, 21, 45, 72, 3, 1, 1, 1, "reflect"),
    "3x3 stride 2": (24, 33, 70, 40, 3, 2, 1, 1, "zeros"),
    "9x9 photo": (3, 37, 50, 32, 9, 1, 1, 4, "reflect"),
    "9x9 to a photo": (32, 30, 41, 3, 9, 1, 1, 4, "reflect"),
    "1x1": (200, 19, 23, 136, 1, 1, 1, 0, "zeros"),
    "upsampled": (64, 17, 19, 40, 3, 1, 2, 1, "reflect"),
    "odd": (13, 37, 41, 21, 3, 1, 1, 1, "zeros"),
}


def _rand(*shape: int, seed: int = 0, dtype: str = "float32", last: bool = False) -> torch.Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    x = x.to("cuda", getattr(torch, dtype))
    return x.contiguous(memory_format=torch.channels_last) if last else x


def _reference(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, shape: tuple[Any, ...]) -> Any:
    _, _, _, _, _, stride, upsample, padding, mode = shape
    x = x.double()
    if upsample > 1:
        x = F.interpolate(x, scale_factor=float(upsample))
    x = F.pad(x, [padding] * 4, mode="reflect" if mode == "reflect" else "constant")
    return F.leaky_relu(F.conv2d(x, w.double(), b.double(), stride), 0.2)


TILES = [
    pytest.param(impl, name, last, dtype, id=f"{impl}-{name}-{dtype}-{'nhwc' if last else 'nchw'}")
    for impl in GPU
    for name in SHAPES
    for dtype in ("float32", "float16", "bfloat16")
    for last in (True, False)
    # Each is seconds of compiling for Triton, whose layouts and 16-bit types share their code.
    if impl == "cuda" or (last and dtype != "bfloat16")
]


@pytest.mark.parametrize(("impl", "name", "last", "dtype"), TILES)
def test_every_tile(impl: str, name: str, last: bool, dtype: str) -> None:
    """Every tile configuration computes the same, and twice the same to the last bit."""
    shape = SHAPES[name]
    i, h, w, o, k, stride, upsample, padding, mode = shape
    weight, bias = _rand(o, i, k, k, seed=1) / (i * k * k) ** 0.5, _rand(o, seed=2)
    x = _rand(2, i, h, w, seed=3, dtype=dtype, last=last)
    packed = ops.pack_conv_bn(
        *(weight, bias),
        stride=stride,
        upsample=upsample,
        padding=padding,
        padding_mode=mode,
        dtype=dtype,
        impl=impl,
    )
    want = as_float64(_reference(x, weight, bias, shape))
    fitting = 0
    for run in _tiles(packed, x):
        try:
            got = run()
        except ImplUnavailable:  # too large for this card's shared memory
            continue
        fitting += 1
        close(as_float64(got), want, TOLERANCE[dtype], name)
        assert torch.equal(got, run())
    assert fitting > 0


def _tiles(packed: Any, x: torch.Tensor) -> list[Callable[[], torch.Tensor]]:
    handle = packed.handle
    if packed.impl == "cuda":
        from fastgen.ops import _cuda

        count = _cuda._native().conv_tiles
        forced = [dataclasses.replace(handle, tile=tile) for tile in range(count)]
        return [lambda h=h: _cuda.conv(x, h) for h in forced]  # type: ignore[misc]
    from fastgen.kernels import conv_bn_leaky_relu as kernels

    return [
        lambda t=t: kernels.conv(x, handle, tile=t)[0]  # type: ignore[misc]
        for t in kernels.tiles(handle)
    ]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape", [(1, 64, 160, 150), (2, 130, 64, 48), (300, 8, 128, 128)])
@each_impl
def test_long_sums(impl: str, shape: tuple[int, ...], last: bool, dtype: str) -> None:
    """Sums of squares, which tensor cores round towards zero, keep their digits."""
    x = _rand(*shape, dtype=dtype, last=last) + 1
    flat = x.double().flatten(2)
    want = flat @ flat.mT / flat[0].numel()
    got = ops.gram_matrix(x, impl=impl)
    close(as_float64(got), as_float64(want), 1e-4, "gram")


def _calls(impl: str) -> dict[str, tuple[torch.Tensor, Callable[[torch.Tensor], Any]]]:
    """An input and a function of it for each operation, with packed weights."""
    x = _rand(2, 32, 20, 24, seed=4, dtype="float16", last=True)
    weight, vector = _rand(48, 32, 3, 3, seed=5) / 17, _rand(48, seed=6)
    where = {"padding": 1, "padding_mode": "reflect", "dtype": "float16", "impl": impl}
    norm = ops.pack_conv_instance_norm(weight, None, vector, vector, load_slope=0.0, **where)
    scale = _rand(2, 32, seed=7).abs() + 0.5, _rand(2, 32, seed=8)
    packed = ops.pack_conv_bn(weight, vector, **where)
    both = ops.pack_conv_concat(_rand(16, 40, 3, 3, seed=9) / 19, content_channels=32, **where)
    style = _rand(2, 8, seed=10, dtype="float16")
    part = both.style_part(style, 20, 24)
    return {
        "gram_matrix": (x, lambda v: ops.gram_matrix(v, impl=impl, deterministic=True)),
        "conv_bn_leaky_relu": (x, lambda v: ops.conv_bn_leaky_relu(v, packed, impl=impl)),
        "conv_instance_norm": (
            x,
            lambda v: ops.conv_instance_norm(v, norm, norm=scale, residual=v, impl=impl),
        ),
        "concat_features": (x, lambda v: ops.concat_features(v, style, impl=impl)),
        "conv_concat": (x, lambda v: ops.conv_concat(v, part, both, impl=impl)),
    }


def _listed(result: Any) -> list[torch.Tensor]:
    return list(result) if isinstance(result, tuple) else [result]


@pytest.mark.parametrize("op", ops.OPS)
@each_impl
def test_graph_capture(impl: str, op: str) -> None:
    """A captured call reads its input anew on every replay; nothing in it waits for the host."""
    x, function = _calls(impl)[op]
    with torch.no_grad():
        function(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = _listed(function(x))
        for seed in (11, 12):
            x.copy_(_rand(*x.shape, seed=seed, dtype="float16"))
            graph.replay()
            for got, want in zip(captured, _listed(function(x)), strict=True):
                assert torch.equal(got, want)


@pytest.mark.parametrize("op", ops.OPS)
@each_impl
def test_side_streams(impl: str, op: str) -> None:
    """Work is ordered on the current stream, and memory is not given away before it is done."""
    x, function = _calls(impl)[op]
    with torch.no_grad():
        want = [t.clone() for t in _listed(function(x))]
        torch.cuda.synchronize()
        streams = [torch.cuda.Stream() for _ in range(3)]
        for stream in streams * 4:
            with torch.cuda.stream(stream):
                late = torch.zeros_like(x)
                torch.cuda._sleep(2_000_000)
                late.copy_(x)
                results = _listed(function(late))
                del late
                torch.full_like(x, float("nan"))  # would be given the memory of `late`
                for got, expected in zip(results, want, strict=True):
                    assert torch.equal(got, expected)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("op", ops.OPS)
@each_impl
def test_odd_addresses(impl: str, op: str, dtype: str) -> None:
    """Tensors that start at every element of 16 bytes: views into larger ones."""
    for case in [c for c in BY_OP[op] if c.layout in ("contiguous", "channels_last")][:6]:
        data = tensors(case, dtype, "cuda")
        want = call(case, data, impl)
        for offset in (1, 2, 4):
            moved = {name: _moved(value, offset) for name, value in data.items()}
            for got, expected in zip(call(case, moved, impl), want, strict=True):
                allowed = 1e-4 if got.dtype == torch.float32 else 2e-3
                close(as_float64(got), as_float64(expected), allowed, f"{case} at {offset}")


def _moved(value: torch.Tensor, offset: int) -> torch.Tensor:
    memory = torch.full((value.numel() + offset,), float("nan"), dtype=value.dtype, device="cuda")
    view = memory[offset:].as_strided(value.shape, value.stride(), offset)
    return view.copy_(value)


@pytest.mark.parametrize("op", list(_register._SCHEMAS))
@each_impl
def test_results_share_no_memory(impl: str, op: str) -> None:
    x, function = _calls(impl)[op]
    x = x.detach().requires_grad_()  # through the operator
    results = _listed(function(x))
    assert len({r.untyped_storage().data_ptr() for r in results}) == len(results)
    (gradient,) = torch.autograd.grad(sum(r.double().sum() for r in results), x)
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("op", list(_register._SCHEMAS))
@each_impl
def test_opcheck_on_the_gpu(impl: str, op: str) -> None:
    for inputs in _operator_inputs(op):
        there = [
            v.detach().cuda().requires_grad_(v.requires_grad)
            if isinstance(v, torch.Tensor)
            else {"auto": impl}.get(v, v)
            for v in inputs
        ]
        results = torch.library.opcheck(_register.op(op).default, tuple(there))
        assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("op", ops.OPS)
@each_impl
def test_compiled(impl: str, op: str) -> None:
    """torch.compile with its CUDA graphs around our operators."""
    x, function = _calls(impl)[op]
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, mode="reduce-overhead")
    with torch.no_grad():
        want = [t.clone() for t in _listed(function(x))]
        for _ in range(3):
            for got, expected in zip(_listed(compiled(x)), want, strict=True):
                assert torch.equal(got, expected)


@pytest.mark.parametrize("op", ops.OPS)
def test_auto_takes_a_kernel_for_the_gpu(op: str) -> None:
    if not GPU:
        return  # said by test_ops.py::test_implementation_runs_here
    case: Case = next(c for c in BY_OP[op] if c.layout == "contiguous")
    data = tensors(case, "float32", "cuda")
    for got, expected in zip(call(case, data, "auto"), call(case, data, GPU[0]), strict=True):
        close(as_float64(got), as_float64(expected), 1e-5, "auto")
