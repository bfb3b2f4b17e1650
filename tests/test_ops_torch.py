"""The fused operations as torch sees them: gradients, compilers, exporters, transforms."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases import CASES, Case, as_float64, call, close, targets, tensors

from fastgen import ops
from fastgen.ops import _packed, _register

GRADIENTS = [
    pytest.param(case, impl, device, dtype, id=f"{case.op}-{impl}-{device}-{dtype}-{case}")
    for case in CASES
    if case.grad
    for impl, device in targets(case.op)
    for dtype in ("float32", "bfloat16")
]
# Gradients are sums over many products of rounded numbers.
GRADIENT_TOLERANCE = {"float32": 2e-4, "bfloat16": 4e-2}
BY_OP = {op: [c for c in CASES if c.op == op and c.grad] for op in ops.OPS}


def _leaves(case: Case, dtype: str, device: str) -> dict[str, torch.Tensor]:
    return {name: t.detach().requires_grad_() for name, t in tensors(case, dtype, device).items()}


def _gradients(
    results: tuple[torch.Tensor, ...], leaves: dict[str, torch.Tensor]
) -> dict[str, np.ndarray]:
    """Gradients of a fixed random combination of the results."""
    g = torch.Generator().manual_seed(3)
    total = torch.zeros((), dtype=torch.float64)
    for r in results:
        total = total + (r.double().cpu() * torch.randn(r.shape, generator=g).double()).sum()
    found = torch.autograd.grad(total, list(leaves.values()))
    return {name: as_float64(v) for name, v in zip(leaves, found, strict=True)}


def _exact(case: Case, leaves: dict[str, Any], found: tuple[torch.Tensor, ...]) -> Any:
    """Float64 results, with the activation on the side of zero on which it was found.

    A sum near zero that rounding takes to the other side has another gradient, which is no error.
    """
    if case.op not in ("conv_bn_leaky_relu", "conv_concat"):
        return call(case, leaves, "ref")
    slope = case.options.get("negative_slope", 0.2)
    linear = dataclasses.replace(case, options={**case.options, "negative_slope": 1.0})
    (z,) = call(linear, leaves, "ref")
    return (torch.where(found[0].detach().cpu() > 0, z, z * slope),)


@pytest.mark.parametrize(("case", "impl", "device", "dtype"), GRADIENTS)
def test_gradients(case: Case, impl: str, device: str, dtype: str) -> None:
    leaves = _leaves(case, dtype, device)
    results = call(case, leaves, impl)
    got = _gradients(results, leaves)
    exact = {n: t.detach().cpu().double().requires_grad_() for n, t in leaves.items()}
    want = _gradients(_exact(case, exact, results), exact)
    for name, value in want.items():
        assert leaves[name].dtype == tensors(case, dtype, device)[name].dtype
        close(got[name], value, GRADIENT_TOLERANCE[dtype], f"gradient of {name}")


@pytest.mark.parametrize("op", ["conv_bn_leaky_relu", "conv_instance_norm", "conv_concat"])
@pytest.mark.parametrize("impl", ["auto", "ref"])
def test_gradients_through_packed_weights(op: str, impl: str) -> None:
    for case in BY_OP[op]:
        data = tensors(case, "float32", "cpu")
        parameters = ("weight", "bias", "gamma", "beta", "mean", "var")
        leaves = {n: t.requires_grad_() for n, t in data.items() if n not in parameters}
        got = _gradients(call(case, data, impl, packed=True), leaves)
        exact = {n: t.detach().double() for n, t in data.items()}
        doubles = {n: exact[n].requires_grad_() for n in leaves}
        want = _gradients(call(case, exact, "ref"), doubles)
        for name, value in want.items():
            close(got[name], value, 2e-4, f"{case}: gradient of {name}")


def _double(case: Case) -> tuple[dict[str, torch.Tensor], Callable[..., Any]]:
    leaves = _leaves(case, "float64", "cpu")

    def function(*values: torch.Tensor) -> Any:
        return call(case, dict(zip(leaves, values, strict=True)), "auto")

    return leaves, function


SMALL = [
    Case("gram_matrix", (2, 3, 2, 3)),
    Case("gram_matrix", (1, 3, 3, 2), "channels_last"),
    Case("concat_features", (2, 2, 2, 3), style="3:21"),
    Case(
        "conv_bn_leaky_relu",
        (2, 2, 3, 4),
        out=2,
        k=3,
        bn="bgomv",
        residual="one",
        options={"padding": 1, "padding_mode": "reflect", "upsample": 2, "stride": 2},
    ),
    Case("conv_bn_leaky_relu", (1, 2, 3, 3), "channels_last", out=2, k=2, bn="b"),
    Case(
        "conv_instance_norm",
        (2, 2, 3, 3),
        out=2,
        k=3,
        bn="bgo",
        norm=True,
        residual="full",
        options={"padding": 1, "load_slope": 0.3},
    ),
    Case("conv_concat", (2, 1, 3, 3), out=2, k=2, bn="bgomv", style="2:2"),
]


@pytest.mark.parametrize("case", SMALL, ids=lambda c: f"{c.op}-{c}")
def test_gradcheck(case: Case) -> None:
    # float64 goes to the reference's forward, through the operators with their own backward.
    leaves, function = _double(case)
    assert torch.autograd.gradcheck(function, tuple(leaves.values()))


@pytest.mark.parametrize("case", SMALL, ids=lambda c: f"{c.op}-{c}")
def test_gradcheck_of_the_reference(case: Case) -> None:
    leaves = _leaves(case, "float64", "cpu")

    def function(*values: torch.Tensor) -> Any:
        return call(case, dict(zip(leaves, values, strict=True)), "ref")

    assert torch.autograd.gradcheck(function, tuple(leaves.values()))


@pytest.mark.parametrize("case", SMALL[:4], ids=lambda c: f"{c.op}-{c}")
def test_second_derivatives(case: Case) -> None:
    leaves, function = _double(case)
    assert torch.autograd.gradgradcheck(function, tuple(leaves.values()))


# ---------------------------------------------------------------- torch.library


def _operator_inputs(name: str) -> list[tuple[Any, ...]]:
    g = torch.Generator().manual_seed(4)

    def rand(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g).requires_grad_()

    def last(*shape: int) -> torch.Tensor:
        return rand(*shape).detach().contiguous(memory_format=torch.channels_last).requires_grad_()

    weight, bias = rand(4, 3, 3, 3), rand(4)
    positive = (torch.rand(4, generator=g) + 0.5).requires_grad_()
    norm = (rand(2, 3), rand(2, 3))
    return {
        "gram_matrix": [
            (rand(2, 3, 4, 5), False, "auto"),
            (last(2, 3, 4, 5), True, "ref"),
            (rand(2, 3, 4, 5).detach().half(), False, "auto"),
        ],
        "concat_features": [
            (rand(2, 3, 4, 5), rand(1, 2), "auto"),
            (last(2, 3, 4, 5), rand(2, 2, 4, 5), "auto"),
        ],
        "conv_bn_leaky_relu": [
            (rand(2, 3, 6, 5), weight, bias, None, 1, 1, "zeros", 1, 0.2, "auto", 0),
            (last(2, 3, 6, 5), weight, bias, rand(1, 4, 6, 5), 2, 1, "reflect", 2, 0.0, "auto", 0),
        ],
        "conv_instance_norm": [
            (
                *(rand(2, 3, 6, 5), weight, bias, positive, rand(4), None, None, None),
                *(1, 1, "zeros", 1, 1e-5, 1.0, "auto", 0),
            ),
            (
                *(last(2, 3, 6, 5), weight, bias, positive, rand(4), *norm, rand(2, 3, 6, 5)),
                *(2, 1, "reflect", 2, 1e-5, 0.2, "auto", 0),
            ),
        ],
    }[name]


@pytest.mark.parametrize("name", list(_register._SCHEMAS))
def test_opcheck(name: str) -> None:
    operator = _register.op(name)
    for inputs in _operator_inputs(name):
        results = torch.library.opcheck(operator.default, inputs)
        assert set(results.values()) == {"SUCCESS"}


# ---------------------------------------------------------------- compilers and exporters


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("op", ops.OPS)
def test_compiles_without_graph_breaks(op: str, packed: bool) -> None:
    if packed and op in ("gram_matrix", "concat_features"):
        return  # nothing to pack
    case = BY_OP[op][0]
    data = tensors(case, "float32", "cpu")
    eager = _with_weights(case, data, packed)
    torch.compiler.reset()
    compiled = torch.compile(eager, backend="aot_eager", fullgraph=True)
    images = [data[n] for n in ("x", "style") if n in data]
    with torch.no_grad():
        for got, want in zip(compiled(*images), eager(*images), strict=True):
            close(as_float64(got), as_float64(want), 1e-6, "compiled")
    # And with gradients.
    x = data["x"].clone().requires_grad_()
    (got,) = torch.autograd.grad(compiled(x, *images[1:])[0].sum(), x)
    (want,) = torch.autograd.grad(eager(x, *images[1:])[0].sum(), x)
    close(as_float64(got), as_float64(want), 1e-6, "compiled gradient")


def _with_weights(case: Case, data: dict[str, Any], packed: bool) -> Callable[..., Any]:
    """The case as a function of its images; its weights are constants."""
    if not packed:

        def plain(x: torch.Tensor, style: torch.Tensor | None = None) -> Any:
            more = {} if style is None else {"style": style}
            return call(case, {**data, "x": x, **more}, "auto")

        return plain
    own = {n: data[n] for n in ("bias", "gamma", "beta", "mean", "var") if n in data}
    if case.op == "conv_concat":
        channels = {"content_channels": data["x"].shape[1]}
        weights = ops.pack_conv_concat(data["weight"], **own, **case.options, **channels)
        part = weights.style_part(data["style"])
        return lambda x, style: (
            ops.conv_concat(x, style, weights),
            ops.conv_concat(x, part, weights),
        )
    if case.op == "conv_instance_norm":
        weights = ops.pack_conv_instance_norm(data["weight"], **own, **case.options)
        norm = (data["scale"], data["shift"]) if case.norm else None
        return lambda x: ops.conv_instance_norm(
            x, weights, norm=norm, residual=data.get("residual")
        )
    weights = ops.pack_conv_bn(data["weight"], **own, **case.options)
    return lambda x: (ops.conv_bn_leaky_relu(x, weights, residual=data.get("residual")),)


def test_inductor() -> None:
    # Only operators of ours, so that nothing is left for the C++ compiler, which takes its time.
    weights = ops.pack_conv_bn(torch.randn(4, 3, 3, 3), padding=1)

    def function(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = ops.conv_bn_leaky_relu(x, weights, residual=ops.conv_bn_leaky_relu(x, weights))
        return y, ops.gram_matrix(y)

    torch.compiler.reset()
    x = torch.randn(2, 3, 6, 7).contiguous(memory_format=torch.channels_last)
    for got, want in zip(torch.compile(function, fullgraph=True)(x), function(x), strict=True):
        assert torch.allclose(got, want, rtol=1e-5)
        assert got.stride() == want.stride()


def test_first_use_may_be_inside_a_compiled_function() -> None:
    script = """
import fastgen.ops as ops, sys
assert "torch" not in sys.modules
import torch
f = torch.compile(lambda x: ops.gram_matrix(x), backend="aot_eager", fullgraph=True)
x = torch.randn(1, 2, 3, 4)
assert torch.allclose(f(x), ops.gram_matrix(x))
"""
    subprocess.run([sys.executable, "-c", script], check=True)


class _Module(torch.nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *images: torch.Tensor) -> Any:
        return self.function(*images)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("op", ops.OPS)
def test_exports(op: str, packed: bool) -> None:
    if packed and op in ("gram_matrix", "concat_features"):
        return
    case = BY_OP[op][0]
    data = tensors(case, "float32", "cpu")
    images = tuple(data[n] for n in ("x", "style") if n in data)
    module = _Module(_with_weights(case, data, packed))
    program = torch.export.export(module, images)
    assert any(str(n.target).startswith("fastgen.") for n in program.graph.nodes)
    for got, want in zip(program.module()(*images), module(*images), strict=True):
        close(as_float64(got), as_float64(want), 1e-6, "exported")


def test_exports_with_any_size(tmp_path: Any) -> None:
    weights = ops.pack_conv_bn(torch.randn(5, 3, 3, 3), padding=1, padding_mode="reflect")
    module = _Module(lambda x: ops.gram_matrix(ops.conv_bn_leaky_relu(x, weights)))
    auto = torch.export.Dim.AUTO
    program = torch.export.export(
        module, (torch.randn(2, 3, 8, 9),), dynamic_shapes=(({0: auto, 2: auto, 3: auto},),)
    )
    x = torch.randn(1 + 2, 3, 13, 6)
    want = module(x)
    close(as_float64(program.module()(x)), as_float64(want), 1e-6, "exported")
    # A saved program has the folded weights in it and needs no packed object.
    torch.export.save(program, tmp_path / "net.pt2")
    _packed._alive.clear()
    loaded = torch.export.load(tmp_path / "net.pt2").module()
    close(as_float64(loaded(x)), as_float64(want), 1e-6, "loaded")


# ---------------------------------------------------------------- modes and transforms


def test_vmap_and_forward_mode_of_the_reference() -> None:
    x = torch.randn(3, 2, 4, 5, 6)
    got = torch.vmap(lambda v: ops.gram_matrix(v, impl="ref"))(x)
    assert torch.allclose(got, torch.stack([ops.gram_matrix(v) for v in x]), rtol=1e-5)
    _, tangent = torch.func.jvp(
        lambda v: ops.gram_matrix(v, impl="ref"), (x[0].double(),), (x[1].double(),)
    )
    step = 1e-6
    plus, minus = (ops.gram_matrix(x[0].double() + s * x[1].double()) for s in (step, -step))
    assert torch.allclose(tangent, (plus - minus) / (2 * step), atol=1e-8)


def test_forward_mode_is_never_dropped_silently() -> None:
    x = torch.randn(1, 2, 4, 5)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(NotImplementedError, match="name impl 'ref'"):
            ops.gram_matrix(dual)
    with pytest.raises(NotImplementedError, match="name impl 'ref'"):
        torch.func.jvp(ops.gram_matrix, (x,), (x,))


def test_fake_and_meta_tensors() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        assert ops.gram_matrix(torch.empty(2, 5, 600, 600)).shape == (2, 5, 5)
    meta = torch.empty(2, 5, 60, 60, device="meta", memory_format=torch.channels_last)
    y = ops.conv_bn_leaky_relu(meta, torch.empty(7, 5, 3, 3, device="meta"))
    assert y.shape == (2, 7, 58, 58)
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_autocast_changes_nothing() -> None:
    x, w = torch.randn(1, 8, 9, 10), torch.randn(8, 8, 3, 3)
    want = ops.gram_matrix(x), ops.conv_bn_leaky_relu(x, w)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for impl in ("auto", "ref"):
            got = ops.gram_matrix(x, impl=impl), ops.conv_bn_leaky_relu(x, w, impl=impl)
            for a, b in zip(got, want, strict=True):
                assert a.dtype == torch.float32
                assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)


def test_parameters_and_inference_mode() -> None:
    x, w = torch.randn(1, 3, 5, 6), torch.nn.Parameter(torch.randn(4, 3, 3, 3))
    y = ops.conv_bn_leaky_relu(x, w)
    assert y.requires_grad
    with torch.inference_mode():
        z = ops.conv_bn_leaky_relu(x, w)
        assert not z.requires_grad
        assert torch.allclose(y, z, atol=1e-5)
    assert torch.allclose(ops.conv_bn_leaky_relu(x, ops.pack_conv_bn(w)), z, atol=1e-5)


def test_the_page_about_ops_runs(repo_root: Any) -> None:
    page = (repo_root / "docs" / "ops.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    assert len(blocks) > 3
    for block in blocks:
        exec(block, {"ops": ops})


def test_tensors_that_are_stored_with_the_opposite_sign() -> None:
    """Torch keeps a minus sign as a bit beside the numbers; their address knows nothing of it."""
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(2, 8, 6, 7, generator=g), torch.randn(8, 8, 3, 3, generator=g)
    scale = torch.randn(2, 8, generator=g)
    packed = ops.pack_conv_bn(w, padding=1)
    normed = ops.pack_conv_instance_norm(w, padding=1)

    def results(sign: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
        return [
            ops.gram_matrix(torch.cat([sign(x), x], 1)),
            ops.concat_features(sign(x), x),
            ops.concat_features(x, sign(x)),
            ops.concat_features(x, sign(scale)),
            ops.conv_bn_leaky_relu(sign(x), packed),
            ops.conv_bn_leaky_relu(x, packed, residual=sign(x)),
            ops.conv_bn_leaky_relu(x, sign(w)),
            ops.conv_bn_leaky_relu(x, ops.pack_conv_bn(sign(w), sign(scale)[0])),
            *ops.conv_instance_norm(sign(x), normed),
            *ops.conv_instance_norm(x, normed, norm=(sign(scale), scale), residual=sign(x)),
            *ops.conv_instance_norm(x, sign(w)),
        ]

    for got, want in zip(results(torch._neg_view), results(torch.neg), strict=True):
        torch.testing.assert_close(got, want)
    z = torch.complex(x, x).conj().imag
    assert z.is_neg()
    torch.testing.assert_close(
        ops.conv_bn_leaky_relu(z, packed), ops.conv_bn_leaky_relu(-x, packed)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_dtype_are_packed(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(1, 8, 5, 6, generator=g).to(dtype), torch.randn(4, 8, 3, 3, generator=g)
    w, v = w.to(dtype), torch.rand(4, generator=g).to(dtype)
    exact = x.double(), w.double(), v.double()
    bound = {"rtol": 4e-2, "atol": 4e-2}
    want = ops.conv_bn_leaky_relu(*exact, gamma=exact[2], var=exact[2])
    for weight in (w, ops.pack_conv_bn(w, v, gamma=v, var=v)):
        rest = () if weight is not w else (v, v, None, None, v)
        got = ops.conv_bn_leaky_relu(x, weight, *rest)
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), want, **bound)
    want = ops.conv_instance_norm(*exact)
    for weight in (w, ops.pack_conv_instance_norm(w, v)):
        found = ops.conv_instance_norm(x, weight, *(() if weight is not w else (v,)))
        for got, expected in zip(found, want, strict=True):
            torch.testing.assert_close(got.double(), expected, **bound)
    both = ops.pack_conv_concat(w, v, content_channels=3)
    got = ops.conv_concat(x[:, :3], x[:, 3:], both)
    torch.testing.assert_close(got.double(), ops.conv_bn_leaky_relu(*exact), **bound)


def test_torch_func_is_refused_or_works() -> None:
    x = torch.randn(2, 3, 5, 4)
    for impl in ops.impls("gram_matrix"):
        if impl not in ("cpu", "ref"):
            continue

        def total(v: torch.Tensor, impl: str = impl) -> torch.Tensor:
            return ops.gram_matrix(v, impl=impl).square().sum()

        if impl == "ref":
            want = torch.autograd.grad(total(leaf := x.clone().requires_grad_()), leaf)[0]
            torch.testing.assert_close(torch.func.grad(total)(x), want)
        else:
            with pytest.raises(NotImplementedError, match="name impl 'ref', or use backward"):
                torch.func.grad(total)(x)
