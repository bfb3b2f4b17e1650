"""Fused operations: wrong arguments, implementations that cannot run, and what imports what."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import fastgen
from fastgen import ops
from fastgen.errors import ImplUnavailable
from fastgen.ops import _dispatch

X = torch.zeros(2, 3, 6, 7)
W = torch.zeros(4, 3, 3, 3)
V = torch.ones(4)
A = np.zeros((2, 3, 6, 7), np.float32)
CONV = ops.conv_bn_leaky_relu
NORM = ops.conv_instance_norm

BAD: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: ops.gram_matrix([1.0]), TypeError, "x is a list, must be a torch tensor or numpy"),
    (lambda: ops.gram_matrix(X.int()), TypeError, "int32"),
    (lambda: ops.gram_matrix(A.astype(">f4")), TypeError, ">f4"),
    (lambda: ops.gram_matrix(A.astype(np.complex64)), TypeError, "c8"),
    (lambda: ops.gram_matrix(X.to_sparse()), TypeError, "to_dense"),
    (lambda: ops.gram_matrix(X[0]), ValueError, r"\(3, 6, 7\), must be \(N,C,H,W\)"),
    (lambda: ops.gram_matrix(X[:, :, :0]), ValueError, "every size >= 1"),
    (lambda: ops.gram_matrix(X, impl="fast"), ValueError, "unknown impl 'fast'; known: auto, cuda"),
    (lambda: ops.gram_matrix(X.double(), impl="cpu"), TypeError, "not float64"),
    (lambda: ops.concat_features(X, A), TypeError, "same kind"),
    (lambda: ops.concat_features(X, X.half()), TypeError, "style is float16 and content float32"),
    (lambda: ops.concat_features(X, X[:, :, 1:]), ValueError, r"\(2, 3, 5, 7\)"),
    (lambda: ops.concat_features(X, torch.zeros(3, 4)), ValueError, "must be"),
    (lambda: ops.concat_features(X, torch.zeros(2, 0)), ValueError, "must be"),
    (lambda: ops.concat_features(X, torch.zeros(2, 4, device="meta")), ValueError, "on meta"),
    (lambda: CONV(X, W.numpy()), TypeError, "same kind"),
    (lambda: CONV(X, W.int()), TypeError, "weight has the dtype int32"),
    (lambda: CONV(X, W[:, :2]), ValueError, "x has 3 channels, these weights take 2"),
    (lambda: CONV(X, W[..., :2]), ValueError, "3x2 kernel"),
    (lambda: CONV(X, torch.zeros(4, 3, 17, 17)), ValueError, "at most 15"),
    (lambda: CONV(X, W[0]), ValueError, r"\(O,I,k,k\)"),
    (lambda: CONV(X, W, torch.zeros(5)), ValueError, r"bias has the shape \(5,\), must be \(4,\)"),
    (lambda: CONV(X, W, V, V, V, V[:, None]), ValueError, "mean has the shape"),
    (lambda: CONV(X, W, stride=3), ValueError, "stride is 3, must be 1 or 2"),
    (lambda: CONV(X, W, stride=1.0), TypeError, "stride is 1.0, must be an integer"),
    (lambda: CONV(X, W, stride=True), TypeError, "stride is True"),
    (lambda: CONV(X, W, padding=-1), ValueError, "padding is -1"),
    (lambda: CONV(X, W, padding=(1, 1)), TypeError, "padding is"),
    (lambda: CONV(X, W, upsample=4), ValueError, "upsample is 4"),
    (lambda: CONV(X, W, padding_mode="same"), ValueError, "'zeros' or 'reflect'"),
    (lambda: CONV(X, W, padding=6, padding_mode="reflect"), ValueError, "at most 5"),
    (lambda: CONV(X[:, :, :2], W), ValueError, "smaller than the 3x3 kernel"),
    (lambda: CONV(X, W, negative_slope=2), ValueError, "negative_slope is 2, must be in 0..1"),
    (lambda: CONV(X, W, negative_slope="x"), TypeError, "negative_slope is 'x'"),
    (lambda: CONV(X, W, eps=0.0), ValueError, "eps is 0.0, must be finite and > 0"),
    (lambda: CONV(X, W, eps=float("nan")), ValueError, "eps is nan"),
    (lambda: CONV(X, W, eps=None), TypeError, "eps is None"),
    (lambda: CONV(X, W, residual=X), ValueError, r"must be the output's \(2 or 1, 4, 4, 5\)"),
    (lambda: CONV(X, W, residual=X.half()), TypeError, "residual is float16"),
    (lambda: CONV(X, ops.pack_conv_bn(W), V), TypeError, "leave them out"),
    (lambda: CONV(X, ops.pack_conv_bn(W), stride=2), TypeError, "leave them out"),
    (lambda: CONV(X.half(), ops.pack_conv_bn(W)), TypeError, "packed for float32"),
    (lambda: CONV(X, ops.pack_conv_bn(W, impl="ref"), impl="cpu"), ValueError, "packed for 'ref'"),
    (lambda: CONV(X, ops.pack_conv_instance_norm(W)), TypeError, "packed for conv_instance_norm"),
    (lambda: CONV(X.to("meta"), W), ValueError, "weight is on cpu and x on meta"),
    (lambda: ops.pack_conv_bn(W, var=-V), ValueError, r"var has the value -1.0, var \+ eps"),
    (lambda: ops.pack_conv_bn(W, dtype="int8"), ValueError, "dtype is 'int8'"),
    (lambda: ops.pack_conv_bn(W, device="disk"), ValueError, "device is 'disk'"),
    (lambda: ops.pack_conv_bn(W, impl="fast"), ValueError, "unknown impl"),
    (lambda: NORM(X, W, norm=X), TypeError, r"pair \(scale, shift\)"),
    (lambda: NORM(X, W, norm=(X, X)), ValueError, r"must be \(N,I\) = \(2, 3\)"),
    (lambda: NORM(X, W, norm=(X[:, :, 0, 0].half(),) * 2), TypeError, "must be float32"),
    (lambda: NORM(X, W, residual=X[:1]), ValueError, "must be that of x"),
    (lambda: NORM(X, W, load_slope=-1), ValueError, "load_slope is -1"),
    (lambda: NORM(X, ops.pack_conv_bn(W)), TypeError, "packed for conv_bn_leaky_relu"),
    (lambda: NORM(X, ops.pack_conv_instance_norm(W), load_slope=0.0), TypeError, "leave them out"),
    (lambda: ops.conv_concat(X, X, W), ValueError, r"3 \+ 3 channels, the weights take 3"),
    (lambda: ops.pack_conv_concat(W, content_channels=3), ValueError, "must be in 1..2"),
    (lambda: ops.pack_conv_concat(W, content_channels=1.0), TypeError, "must be an integer"),
    (lambda: _concat().style_part(X[:, :1, 0, 0]), ValueError, "needs height and width"),
    (lambda: _concat().style_part(X[:, :1], 3, 3), ValueError, "leave the size out"),
    (lambda: _concat().style_part(X[0, 0, 0]), ValueError, "must be"),
    (
        lambda: ops.conv_concat(X[:, :2], _concat().style_part(X[:, :1]), W),
        TypeError,
        "give packed ones",
    ),
    (
        lambda: ops.conv_concat(X[:, :2], _concat().style_part(X[:, :1]), _concat()),
        ValueError,
        "of other weights",
    ),
    (lambda: ops.impls("gram"), ValueError, "unknown op 'gram'"),
    (lambda: ops.why_not("gram_matrix", "auto"), ValueError, "unknown impl 'auto'"),
]


def _concat() -> ops.PackedConvConcat:
    return ops.pack_conv_concat(W, content_channels=2, padding=1)


@pytest.mark.parametrize("number", range(len(BAD)))
def test_wrong_arguments(number: int) -> None:
    function, kind, message = BAD[number]
    with pytest.raises(kind, match=message) as caught:
        function()
    assert "\n" not in str(caught.value)


def test_a_style_part_is_for_one_size() -> None:
    packed = _concat()
    part = packed.style_part(X[:, :1])
    with pytest.raises(ValueError, match="content is 7x5 and the StylePart is for 7x6"):
        ops.conv_concat(X[:, :2, 1:], part, packed)


def test_what_a_call_remembers_lets_nothing_wrong_pass() -> None:
    # The same shapes again, which are not checked anew, with something else that does not fit.
    packed, content = _concat(), torch.rand(1, 2, 5, 7)
    part = packed.style_part(torch.rand(1, 1, 5, 7))
    norm = ops.pack_conv_instance_norm(torch.rand(2, 2, 3, 3), padding=1)
    pair = torch.ones(1, 2), torch.zeros(1, 2)
    for _ in range(2):
        ops.conv_concat(content, part, packed)
        ops.conv_instance_norm(content, norm, norm=pair)
        ops.concat_features(content, content)
    with pytest.raises(TypeError, match="give both as the same kind"):
        ops.conv_concat(content.numpy(), part, packed)
    with pytest.raises(TypeError, match="were packed for float32"):
        ops.conv_concat(content.half(), part, packed)
    with pytest.raises(ValueError, match="impl is 'cuda', these weights were packed for"):
        ops.conv_concat(content, part, packed, impl="cuda")
    with pytest.raises(ValueError, match="other weights"):
        ops.conv_concat(content, part, _concat())
    for bad, kind, message in (
        ((pair[0].double(), pair[1].double()), TypeError, "norm's scale is torch.float64"),
        ((pair[0], pair[1].half()), TypeError, "norm's shift is torch.float16"),
        ((pair[0], pair[1][:, :1]), ValueError, "norm's shift has the shape"),
        ((pair[0], None), TypeError, "norm's shift is a NoneType"),
        ((pair[0], pair[1].numpy()), TypeError, "same kind"),
        ((pair[0].to_sparse(), pair[1]), TypeError, "layout"),
        (pair[0], TypeError, "must be the pair"),
    ):
        with pytest.raises(kind, match=message):
            ops.conv_instance_norm(content, norm, norm=bad)
    for layout in (torch.Tensor.to_sparse, torch.Tensor.to_mkldnn):
        with pytest.raises(TypeError, match="x has the layout"):
            ops.conv_instance_norm(layout(content), norm, norm=pair)
        with pytest.raises(TypeError, match="content has the layout"):
            ops.concat_features(layout(content), content)
        with pytest.raises(TypeError, match="style has the layout"):
            ops.concat_features(content, layout(content))
    with pytest.raises(TypeError, match="style is float64 and content float32"):
        ops.concat_features(content, content.double())
    with pytest.raises(TypeError, match="style is a NoneType"):
        ops.concat_features(content, None)


@pytest.mark.parametrize("op", ops.OPS)
@pytest.mark.parametrize("impl", ops.IMPLS)
def test_a_named_implementation_never_falls_back(op: str, impl: str) -> None:
    reason = ops.why_not(op, impl)
    if reason is None:
        assert _dispatch.candidates(op, impl, _dispatch._device_of(impl), "float32")
        return
    assert "\n" not in reason
    weights = torch.zeros(4, 6 if op == "conv_concat" else 3, 3, 3)
    calls: dict[str, Callable[[Any], Any]] = {
        "gram_matrix": lambda x: ops.gram_matrix(x, impl=impl),
        "conv_bn_leaky_relu": lambda x: CONV(x, weights, impl=impl),
        "conv_instance_norm": lambda x: NORM(x, weights, impl=impl),
        "concat_features": lambda x: ops.concat_features(x, x, impl=impl),
        "conv_concat": lambda x: ops.conv_concat(x, x, weights, impl=impl),
    }
    for x in (X, X.clone().requires_grad_()):
        with pytest.raises(ImplUnavailable) as caught:
            calls[op](x)
        # conv_concat runs on the kernels of conv_bn_leaky_relu.
        assert str(caught.value).partition(" of ")[0] == f"impl {impl!r}"
        assert str(caught.value).partition(": ")[2] == reason.partition(": ")[2]


def test_an_implementation_refuses_tensors_of_another_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As on a machine where the CUDA implementation can run.
    from fastgen.ops import _ref

    monkeypatch.setitem(_dispatch._usable, ("gram_matrix", "cuda"), _ref)
    with pytest.raises(ValueError, match="impl 'cuda' takes tensors on cuda, got one on cpu"):
        ops.gram_matrix(X, impl="cuda")


def test_auto_takes_the_next_where_a_case_is_not_covered(monkeypatch: pytest.MonkeyPatch) -> None:
    class Partial:
        @staticmethod
        def gram_matrix(x: Any, deterministic: bool) -> Any:
            raise ImplUnavailable("not this one")

    from fastgen.ops import _ref

    monkeypatch.setitem(
        _dispatch._resolved, ("gram_matrix", "auto", "cpu", "float32"), (Partial, _ref)
    )
    assert ops.gram_matrix(X).shape == (2, 3, 3)


def test_choice_and_table() -> None:
    for op in ops.OPS:
        assert "ref" in ops.impls(op)
        assert _dispatch.choose(op, "cpu") == next(i for i in ("cpu", "ref") if i in ops.impls(op))
        assert _dispatch.choose(op, "cpu", "float64") == "ref"
        assert _dispatch.choose(op, "mps") == "ref"


def test_imports_are_lazy() -> None:
    script = """
import sys, fastgen
assert "fastgen.ops" not in sys.modules and "ops" in fastgen.__all__ and "ops" in dir(fastgen)
import numpy as np
ops = fastgen.ops
assert ops is sys.modules["fastgen.ops"]
x = np.ones((1, 3, 4, 5), np.float32)
sys.modules["torch"] = None  # not installed
assert "torch" in ops.why_not("gram_matrix", "ref")
try:
    ops.gram_matrix(x, impl="ref")
except fastgen.errors.ImplUnavailable as error:
    assert "torch is not installed" in str(error), error
else:
    raise SystemExit("ref ran without torch")
if ops.why_not("gram_matrix", "cpu") is None:
    assert abs(ops.gram_matrix(x) - 1 / 3).max() < 1e-6
if ops.why_not("conv_bn_leaky_relu", "cpu") is None:
    w = ops.pack_conv_bn(np.ones((2, 3, 1, 1), np.float32), var=np.ones(2, np.float32))
    assert abs(ops.conv_bn_leaky_relu(x, w) - 3).max() < 1e-4
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    assert fastgen.ops is ops


def test_the_oldest_torch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastgen.ops import _register

    monkeypatch.setattr(_register, "_library", None)
    monkeypatch.setattr(torch, "__version__", "2.5.1")
    with pytest.raises(ImplUnavailable, match=r"needs torch >= 2.6, found 2.5.1; update"):
        ops.gram_matrix(X.clone().requires_grad_())


def test_doctor_says_what_auto_takes_and_why_not_the_others() -> None:
    from fastgen.cli.doctor import _lines, diagnose

    facts = diagnose()
    assert set(facts["ops"]) == set(ops.OPS)
    text = "\n".join(line for _, line in _lines(facts))
    for op in ops.OPS:
        state = facts["ops"][op]
        assert f"{op}: auto takes {state['auto']['cpu']} on cpu" in text
        for impl in ops.IMPLS:
            reason = ops.why_not(op, impl)
            assert state["why_not"][impl] == reason
            assert reason is None or reason.partition(": ")[2] in text
