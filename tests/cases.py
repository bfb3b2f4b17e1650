"""Cases of the fused operations with an oracle in numpy: every implementation passes all of them.

``check(case, impl, dtype, device)`` runs one case. A new case is one line here, a new
implementation none.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from fastgen import ops

DTYPES = ("float32", "float16", "bfloat16")

# Largest error allowed, as a fraction of the largest expected magnitude. Sixteen bits: half a unit
# in the last place for storing the result (2^-9 of bfloat16, 2^-12 of float16), as much for each
# rounded weight (which averages out), and room for Winograd, which adds up to 3 bits. float32: room
# for Winograd F(4x4, 3x3), whose transforms amplify rounding some twenty times.
TOLERANCE = {"float64": 1e-12, "float32": 1e-4, "float16": 2e-3, "bfloat16": 1.6e-2}
# Gram matrices are sums of exact products of the inputs, in float32 for every input type.
GRAM_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Case:
    """One call: sizes and options; ``arrays`` makes its data.

    Attributes:
        op: which op.
        shape: (N, C, H, W) of x or content.
        layout: ``contiguous``, ``channels_last``, ``sliced`` (a window of a larger tensor) or
            ``transposed`` (columns before rows).
        out: output channels.
        k: kernel size.
        bn: which of bias b, gamma g, beta o, mean m, var v are given.
        options: keyword arguments of the call that are numbers or names.
        residual: "", "full" or "one" (batch of 1).
        norm: whether a norm is applied on load.
        style: ``Cs`` with shape "4", "2", and "1" appended for a batch of 1; e.g. "5:41".
        offset: added to x, or to the bias of a convolution.
        size: factor of x.
        grad: whether gradients are compared, too.
    """

    op: str
    shape: tuple[int, int, int, int]
    layout: str = "contiguous"
    out: int = 0
    k: int = 0
    bn: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    residual: str = ""
    norm: bool = False
    style: str = ""
    offset: float = 0.0
    size: float = 1.0
    grad: bool = False

    def __str__(self) -> str:
        n, c, h, w = self.shape
        parts = [f"{n}x{c}x{h}x{w}"]
        if self.out:
            parts.append(f"to{self.out}_k{self.k}")
        parts += [f"{key}={value}" for key, value in self.options.items()]
        parts += [self.bn, self.layout if self.layout != "contiguous" else ""]
        parts += [f"residual_{self.residual}" if self.residual else "", "norm" if self.norm else ""]
        parts += [f"style{self.style}" if self.style else "", "offset" if self.offset else ""]
        parts += ["large" if self.size != 1 else ""]
        return "-".join(p for p in parts if p)

    def arrays(self) -> dict[str, np.ndarray]:
        """The data by argument name, float64, the same on every run."""
        rng = np.random.default_rng(zlib.crc32(str(self).encode()))
        n, c, h, w = self.shape
        x = rng.standard_normal(self.shape) * self.size
        if not self.out:
            data = {"x": x + self.offset}
        else:
            data = {"x": x, **self._parameters(rng, c + self._style_channels())}
        if self.residual:
            shape = self.shape if self.norm_op else self._output_shape()
            shape = (1 if self.residual == "one" else n, *shape[1:])
            data["residual"] = rng.standard_normal(shape)
        if self.norm:
            data["scale"] = rng.uniform(0.5, 1.5, (n, c))
            data["shift"] = rng.standard_normal((n, c))
        if self.style:
            batch = 1 if self.style.endswith("1") else n
            plane = (h, w) if self.style.partition(":")[2][0] == "4" else ()
            data["style"] = rng.standard_normal((batch, self._style_channels(), *plane))
        return data

    @property
    def norm_op(self) -> bool:
        """Whether this is a ``conv_instance_norm``."""
        return self.op == "conv_instance_norm"

    def _style_channels(self) -> int:
        return int(self.style.partition(":")[0]) if self.style else 0

    def _parameters(self, rng: np.random.Generator, channels: int) -> dict[str, np.ndarray]:
        o, k = self.out, self.k
        data = {"weight": rng.standard_normal((o, channels, k, k)) / np.sqrt(channels * k * k)}
        makers = {
            "b": ("bias", lambda: rng.standard_normal(o) + self.offset),
            "g": ("gamma", lambda: rng.uniform(0.5, 1.5, o) * rng.choice((-1, 1), o)),
            "o": ("beta", lambda: rng.standard_normal(o)),
            "m": ("mean", lambda: rng.standard_normal(o)),
            "v": ("var", lambda: rng.uniform(0.5, 2.0, o)),
        }
        return data | {makers[letter][0]: makers[letter][1]() for letter in self.bn}

    def _output_shape(self) -> tuple[int, ...]:
        n, _, h, w = self.shape
        up, pad = self.options.get("upsample", 1), self.options.get("padding", 0)
        stride = self.options.get("stride", 1)
        size = ((s * up + 2 * pad - self.k) // stride + 1 for s in (h, w))
        return (n, self.out, *size)


def _gram() -> Iterator[Case]:
    for shape in ((1, 1, 1, 1), (1, 3, 37, 41), (2, 5, 1, 7), (3, 17, 9, 8), (1, 64, 24, 20)):
        for layout in ("contiguous", "channels_last"):
            yield Case("gram_matrix", shape, layout, grad=shape[1] < 20)
    yield Case("gram_matrix", (2, 130, 6, 5), grad=True)
    yield Case("gram_matrix", (1, 33, 70, 31), "channels_last")
    yield Case("gram_matrix", (2, 8, 11, 13), "sliced", grad=True)
    yield Case("gram_matrix", (1, 9, 12, 10), "transposed")
    yield Case("gram_matrix", (1, 16, 16, 16), size=3000.0, offset=5000.0)  # squares exceed half


def _concat() -> Iterator[Case]:
    for style in ("5:4", "5:41", "5:2", "5:21"):
        for layout in ("contiguous", "channels_last"):
            yield Case("concat_features", (2, 3, 5, 7), layout, style=style, grad=True)
    yield Case("concat_features", (1, 16, 9, 11), style="32:4")
    yield Case("concat_features", (1, 17, 1, 1), "channels_last", style="1:2")
    yield Case("concat_features", (1, 1, 1, 1), style="1:4")
    yield Case("concat_features", (3, 8, 6, 10), "sliced", style="8:2")
    yield Case("concat_features", (2, 64, 16, 15), "transposed", style="64:41")


def _conv() -> Iterator[Case]:
    op = "conv_bn_leaky_relu"
    every = "bgomv"

    def case(shape: Any, out: int, k: int, bn: str = every, **rest: Any) -> Case:
        known = {n: rest.pop(n) for n in ("layout", "residual", "grad") if n in rest}
        return Case(op, shape, out=out, k=k, bn=bn, options=rest, **known)

    # Every kernel size, stride, padding and upsampling, in both layouts.
    for k in (1, 2, 3, 4, 5, 7, 9):
        pad = k // 2
        yield case((1, 5, 13, 11), 7, k, padding=pad, grad=k == 3)
        yield case((2, 8, 12, 14), 16, k, stride=2, padding=pad, layout="channels_last")
        if pad:
            yield case((1, 3, 11, 10), 6, k, padding=pad, padding_mode="reflect", grad=k == 4)
    yield case((1, 3, 20, 17), 32, 9, padding=4, padding_mode="reflect", layout="channels_last")
    yield case((1, 4, 16, 18), 3, 15, padding=7)
    for mode in ("zeros", "reflect"):
        for stride in (1, 2):
            more = {"padding": 1, "padding_mode": mode, "upsample": 2, "stride": stride}
            yield case((2, 6, 7, 5), 10, 3, grad=True, **more)
            yield case((1, 32, 9, 8), 16, 3, layout="channels_last", **more)
    yield case((1, 4, 5, 6), 4, 5, padding=2, upsample=2)
    yield case((1, 4, 5, 6), 4, 1, upsample=2)
    # Slopes, residuals and parts of the batch norm.
    for slope in (0.0, 0.2, 1.0):
        yield case((2, 9, 8, 9), 12, 3, padding=1, negative_slope=slope, residual="full", grad=True)
        yield case((2, 16, 9, 7), 24, 3, padding=1, negative_slope=slope, layout="channels_last")
    yield case((3, 4, 6, 5), 5, 3, padding=1, residual="one", grad=True)
    yield case((2, 16, 8, 8), 16, 3, padding=1, residual="one", layout="channels_last")
    for bn in ("", "b", "mv", "gomv", "bo", "g"):
        yield case((1, 5, 6, 7), 9, 3, bn, padding=1, eps=1e-3, grad=True)
    # Shapes that faster kernels take: many channels, odd borders, several images.
    yield case((1, 64, 24, 20), 64, 3, padding=1)
    yield case((1, 64, 23, 21), 64, 3, padding=1, layout="channels_last", residual="full")
    yield case((2, 96, 10, 13), 80, 3, padding=1, negative_slope=0.0)
    yield case((1, 128, 9, 9), 128, 3, padding=1, padding_mode="reflect", negative_slope=0.0)
    yield case((1, 13, 37, 41), 24, 3, padding=1)
    yield case((1, 256, 8, 9), 64, 1)
    yield case((1, 64, 16, 17), 96, 4, stride=2, padding=1)
    yield case((1, 65, 7, 30), 33, 5, padding=2)
    # Small, thin and odd in memory.
    yield case((1, 1, 1, 1), 1, 1)
    yield case((2, 3, 1, 1), 5, 3, padding=1, layout="channels_last")
    yield case((1, 2, 1, 19), 3, 3, padding=1)
    yield case((1, 2, 19, 1), 3, 3, padding=2)
    yield case((1, 2, 3, 3), 4, 3)  # one output pixel
    yield case((1, 2, 4, 4), 4, 3, padding=3)  # more padding than the kernel reaches
    yield case((1, 2, 3, 3), 4, 3, padding=2, padding_mode="reflect", stride=2)
    yield case((2, 7, 9, 10), 8, 3, padding=1, layout="sliced", residual="full", grad=True)
    yield case((1, 16, 10, 9), 8, 3, padding=1, layout="transposed")


def _norm() -> Iterator[Case]:
    op = "conv_instance_norm"

    def case(shape: Any, out: int, k: int, bn: str = "bgo", **rest: Any) -> Case:
        known = ("layout", "residual", "norm", "offset", "grad")
        own = {n: rest.pop(n) for n in known if n in rest}
        return Case(op, shape, out=out, k=k, bn=bn, options=rest, **own)

    reflect = {"padding": 1, "padding_mode": "reflect"}
    yield case((1, 3, 20, 17), 32, 9, padding=4, padding_mode="reflect")
    for layout in ("contiguous", "channels_last"):
        yield case((2, 8, 13, 11), 16, 3, layout=layout, stride=2, **reflect)
        yield case((2, 8, 9, 10), 8, 3, layout=layout, norm=True, load_slope=0.0, **reflect)
        yield case((1, 17, 10, 9), 9, 3, layout=layout, norm=True, residual="full", padding=1)
        yield case((1, 8, 7, 6), 12, 3, layout=layout, norm=True, upsample=2, **reflect)
    yield case((2, 4, 6, 7), 5, 3, padding=1, norm=True, load_slope=0.2, residual="full", grad=True)
    yield case((1, 4, 5, 6), 3, 3, norm=True, load_slope=0.2, upsample=2, grad=True, **reflect)
    yield case((1, 4, 7, 6), 3, 4, stride=2, padding=1, grad=True)
    yield case((2, 3, 6, 5), 4, 3, "", padding=1, grad=True)  # no bias, no gamma, no beta
    yield case((1, 4, 6, 5), 4, 3, padding=1, residual="full", load_slope=0.0)  # load, no norm
    yield case((1, 4, 6, 5), 4, 3, padding=1, load_slope=0.5)
    yield case((1, 8, 33, 31), 8, 3, padding=1, offset=1000.0)  # the mean is 1000 spreads
    yield case((1, 64, 24, 20), 64, 3, norm=True, load_slope=0.0, **reflect)
    yield case((1, 64, 18, 19), 48, 3, norm=True, residual="full", padding=1, eps=1e-3)
    yield case((2, 6, 9, 8), 8, 1, layout="sliced", norm=True)
    yield case((1, 5, 8, 8), 6, 5, layout="transposed", padding=2, residual="full", norm=True)
    yield case((1, 3, 1, 1), 4, 1)  # one pixel: no variance


def _conv_concat() -> Iterator[Case]:
    op = "conv_concat"
    for style in ("5:4", "5:41", "5:2", "5:21"):
        for layout in ("contiguous", "channels_last"):
            more = {"out": 6, "k": 3, "bn": "bgomv", "style": style, "options": {"padding": 1}}
            yield Case(op, (2, 4, 6, 7), layout, grad=layout == "contiguous", **more)
    options = {"padding": 1, "padding_mode": "reflect", "negative_slope": 0.0}
    yield Case(op, (1, 16, 9, 8), out=8, k=3, bn="b", style="16:2", options=options)
    options = {"padding": 1, "stride": 2, "negative_slope": 1.0}
    yield Case(op, (1, 3, 9, 8), "sliced", out=8, k=4, style="2:4", options=options)
    options = {"padding": 1, "upsample": 2}
    yield Case(op, (2, 3, 5, 4), out=5, k=3, bn="bgomv", style="3:2", options=options)
    yield Case(op, (1, 64, 12, 10), out=64, k=3, bn="bgomv", style="64:4", options={"padding": 1})
    yield Case(op, (1, 2, 1, 1), out=3, k=1, bn="b", style="1:2")


CASES: tuple[Case, ...] = (*_gram(), *_concat(), *_conv(), *_norm(), *_conv_concat())
POSITIONAL = ("bias", "gamma", "beta", "mean", "var")


def required() -> frozenset[str]:
    """Implementations that must run here: the environment variable FASTGEN_REQUIRE_IMPLS."""
    return frozenset(filter(None, os.environ.get("FASTGEN_REQUIRE_IMPLS", "").split(",")))


def require(op: str, impl: str) -> None:
    """Skips the test when an implementation cannot run here; fails it when it is required."""
    reason = ops.why_not(op, impl)
    if reason is not None and impl in required():
        pytest.fail(f"FASTGEN_REQUIRE_IMPLS names it: {reason}")
    if reason is not None:
        pytest.skip(reason)


def targets(op: str) -> list[tuple[str, str]]:
    """(impl, device) of everything that can run here."""
    devices = {"ref": ["cpu"], "cpu": ["cpu"], "cuda": ["cuda"], "triton": ["cuda"]}
    if torch.cuda.is_available():
        devices["ref"].append("cuda")
    if os.environ.get("TRITON_INTERPRET") == "1":
        devices["triton"] = ["cpu"]
    return [(impl, device) for impl in reversed(ops.impls(op)) for device in devices[impl]]


# ---------------------------------------------------------------- the oracle


def oracle(case: Case, data: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    """The results of a case in float64 numpy, from the formulas of the documentation."""
    x = data["x"]
    n, c, h, w = x.shape
    if case.op == "gram_matrix":
        flat = x.reshape(n, c, h * w)
        return (flat @ flat.transpose(0, 2, 1) / (c * h * w),)
    if case.style:
        style = data["style"]
        style = style[:, :, None, None] if style.ndim == 2 else style
        x = np.concatenate([x, np.broadcast_to(style, (n, style.shape[1], h, w))], 1)
        if case.op == "concat_features":
            return (x,)
    per_channel = {k: v[:, None, None] for k, v in data.items() if k in POSITIONAL}
    if case.norm_op:
        if case.norm:
            x = x * data["scale"][:, :, None, None] + data["shift"][:, :, None, None]
        x = np.where(x > 0, x, x * case.options.get("load_slope", 1.0))
        x = x + data.get("residual", 0.0)
    y = convolve(x, data["weight"], case.options) + per_channel.get("bias", 0.0)
    eps = case.options.get("eps", 1e-5)
    gamma, beta = data.get("gamma", 1.0), data.get("beta", 0.0)
    if case.norm_op:
        scale = gamma / np.sqrt(y.var((2, 3)) + eps)
        return y, scale, beta - y.mean((2, 3)) * scale
    y = y - per_channel.get("mean", 0.0)
    y = y / np.sqrt(per_channel["var"] + eps) if "var" in data else y
    y = y * per_channel.get("gamma", 1.0) + per_channel.get("beta", 0.0)
    y = y + data.get("residual", 0.0)
    return (np.where(y > 0, y, y * case.options.get("negative_slope", 0.2)),)


def convolve(x: np.ndarray, weight: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    """Upsampling, padding and convolution, by windows."""
    up, pad = options.get("upsample", 1), options.get("padding", 0)
    x = x.repeat(up, 2).repeat(up, 3)
    mode = "reflect" if options.get("padding_mode") == "reflect" else "constant"
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)), mode)
    k, stride = weight.shape[2], options.get("stride", 1)
    windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), (2, 3))
    windows = windows[:, :, ::stride, ::stride]
    return np.tensordot(windows, weight, ((1, 4, 5), (1, 2, 3))).transpose(0, 3, 1, 2)


# ---------------------------------------------------------------- running a case


def laid_out(value: torch.Tensor, layout: str) -> torch.Tensor:
    """The same values at other places in memory."""
    if value.dim() != 4 or layout == "contiguous":
        return value.contiguous()
    if layout == "channels_last":
        return value.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return value.transpose(2, 3).contiguous().transpose(2, 3)
    n, c, h, w = value.shape
    larger = torch.full((n, c + 1, 2 * h, w + 3), float("nan"), dtype=value.dtype)
    larger = larger.to(value.device)
    larger[:, 1:, ::2, 2:-1] = value
    return larger[:, 1:, ::2, 2:-1]


def tensors(case: Case, dtype: str, device: str) -> dict[str, torch.Tensor]:
    """The case's data as tensors: images in ``dtype`` and the case's layout, the rest float32."""
    kind = getattr(torch, dtype)
    wide = torch.float64 if dtype == "float64" else torch.float32
    images = ("x", "residual", "style")
    result = {}
    for name, value in case.arrays().items():
        tensor = torch.from_numpy(value).to(kind if name in images else wide).to(device)
        result[name] = laid_out(tensor, case.layout) if name in images else tensor
    return result


def call(case: Case, data: dict[str, Any], impl: str, packed: bool = False) -> tuple[Any, ...]:
    """Calls the public function with a case's data (tensors or arrays); a tuple of results."""
    own = dict(data)
    options = dict(case.options)
    x, style, residual = own.pop("x"), own.pop("style", None), own.pop("residual", None)
    more = {} if residual is None else {"residual": residual}
    if case.op == "gram_matrix":
        return (ops.gram_matrix(x, impl=impl),)
    if case.op == "concat_features":
        return (ops.concat_features(x, style, impl=impl),)
    norm = (own.pop("scale"), own.pop("shift")) if case.norm else None
    weight = own.pop("weight")
    if packed:
        kind = {"dtype": x.dtype, "impl": impl}
        if case.op == "conv_concat":
            kind["content_channels"] = x.shape[1]
            weights = ops.pack_conv_concat(weight, **own, **options, **kind)
            part = weights.style_part(style, *x.shape[2:])
            return (ops.conv_concat(x, part, weights, impl=impl),)
        pack = ops.pack_conv_instance_norm if case.norm_op else ops.pack_conv_bn
        weight, own, options = pack(weight, **own, **options, **kind), {}, {}
    if case.op == "conv_concat":
        return (ops.conv_concat(x, style, weight, **own, **options, impl=impl),)
    if case.norm_op:
        more["norm"] = norm
        return ops.conv_instance_norm(x, weight, **own, **options, **more, impl=impl)
    return (ops.conv_bn_leaky_relu(x, weight, **own, **options, **more, impl=impl),)


def as_float64(value: Any) -> np.ndarray:
    """An array or tensor of any dtype as float64 numpy."""
    if isinstance(value, np.ndarray):
        return value.astype(np.float64)
    return value.detach().cpu().double().numpy()


def tolerance(case: Case, dtype: str) -> float:
    """The error that is allowed, as a fraction of the largest expected magnitude."""
    if case.op == "concat_features":
        return 0.0
    if case.op == "gram_matrix" and dtype != "float64":
        return GRAM_TOLERANCE
    return TOLERANCE[dtype]


def poison(results: tuple[np.ndarray, ...], dtype: torch.dtype, device: str) -> None:
    """Leaves NaN in the memory that results of these shapes will probably be given."""
    for expected in results:
        for kind in (dtype, torch.float32):
            torch.full(expected.shape, float("nan"), dtype=kind, device=device)


def check(case: Case, impl: str, dtype: str, device: str = "cpu", packed: bool = False) -> None:
    """One case on one implementation: values, dtype, device, memory format, inputs untouched.

    Args:
        case: one of ``CASES``.
        impl: the implementation's name.
        dtype: name of the images' dtype.
        device: where the tensors are.
        packed: whether the weights are packed beforehand.
    """
    data = tensors(case, dtype, device)
    wide = {name: as_float64(value) for name, value in data.items()}
    expected = oracle(case, wide)
    x = data["x"]
    poison(expected, x.dtype, device)
    results = call(case, data, impl, packed)
    assert len(results) == len(expected)
    for name, value in data.items():
        assert np.array_equal(as_float64(value), wide[name]), f"{name} was changed"
    narrow = "float64" if dtype == "float64" else "float32"
    for index, (got, want) in enumerate(zip(results, expected, strict=True)):
        kind = narrow if index or case.op == "gram_matrix" else dtype
        assert got.dtype == getattr(torch, kind)
        assert got.device.type == device
        assert tuple(got.shape) == want.shape
        if not index and case.op != "gram_matrix":
            last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
            form = torch.channels_last if last else torch.contiguous_format
            like = torch.empty(want.shape, device="meta", memory_format=form)
            # The stride of an axis of one has no meaning.
            steps = zip(want.shape, got.stride(), like.stride(), strict=True)
            assert all(a == b for size, a, b in steps if size > 1), "memory format"
        close(as_float64(got), want, tolerance(case, dtype), f"result {index}")


def close(got: np.ndarray, want: np.ndarray, allowed: float, what: str) -> None:
    """Largest error below ``allowed`` times the largest expected magnitude; NaN never passes."""
    scale = float(np.abs(want).max())
    error = float(np.abs(got - want).max())
    where = np.unravel_index(np.argmax(np.abs(got - want)), want.shape)
    assert error <= allowed * scale, (
        f"{what}: error {error:.3g} at {tuple(map(int, where))} is {error / max(scale, 1e-300):.3g}"
        f" of the largest magnitude {scale:.3g}, {allowed:.3g} is allowed"
    )
