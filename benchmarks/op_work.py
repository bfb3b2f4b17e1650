"""What is measured, as functions: an operation of ours, what one writes without it, the truth.

Random parameters and inputs come from a seed, so that processes which compare with each other work
on the same numbers.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.op_cases import EPS, SLOPE, Case
from fastgen import ops

__all__ = [
    "LAYOUTS",
    "TOLERANCE",
    "error",
    "inputs",
    "layouts",
    "ours",
    "peer",
    "reference",
    "tolerance",
]

LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}

# ||found - expected|| / ||expected|| of a correct result: what rounding inputs, weights and output
# to the type costs. float32 leaves room for Winograd's F(4x4); "tf32" is the GPU's short float32.
TOLERANCE = {"float32": 1e-4, "tf32": 2e-3, "float16": 2e-3, "bfloat16": 1.2e-2}

Values = dict[str, Tensor]


def layouts(case: Case) -> tuple[str, ...]:
    """The memory formats at which ours is measured; a convolution's home is channels_last."""
    if case.op in ("gram_matrix", "concat_features"):
        return tuple(LAYOUTS)
    return ("channels_last",)


def inputs(case: Case, dtype: str, device: str = "cpu", layout: str = "channels_last") -> Values:
    """Input ``x`` (and ``style``) of the type, and float32 parameters of a convolution.

    Values are normal with variance 1, weights have He's deviation, norms a gain near 1.
    """
    random = torch.Generator().manual_seed(zlib.crc32(f"{case.op} {case.name}".encode()))

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=random) * scale

    def gain(count: int) -> Tensor:
        return torch.rand(count, generator=random) * 0.4 + 0.8

    format_ = LAYOUTS[layout]
    values = {"x": normal(*case.x)}
    if case.style:
        values["style"] = normal(*case.style)
    values = {k: v.to(device, getattr(torch, dtype)) for k, v in values.items()}
    values = {
        k: v.contiguous(memory_format=format_) if v.dim() == 4 else v for k, v in values.items()
    }
    if case.out:
        k = case.kernel
        parameters = {
            "weight": normal(case.out, case.channels, k, k, scale=(2 / case.channels) ** 0.5 / k),
            "gamma": gain(case.out),
            "beta": normal(case.out, scale=0.1),
            "mean": normal(case.out, scale=0.1),
            "var": gain(case.out),
        }
        if case.op == "conv_instance_norm":
            parameters |= {"scale": gain(case.x[0] * case.x[1]).reshape(case.x[:2])}
            parameters |= {"shift": normal(*case.x[:2], scale=0.1)}
        values |= {k: v.to(device) for k, v in parameters.items()}
    return values


# ------------------------------------------------------------------ plain PyTorch, as one writes it


def gram(x: Tensor) -> Tensor:
    """The Gram matrix by one batched product; float32 out, as a loss needs it."""
    n, channels, height, width = x.shape
    rows = x.reshape(n, channels, height * width)
    return _product(rows, rows.transpose(1, 2), channels, height * width)


def gram_positions(x: Tensor) -> Tensor:
    """The same from channels_last memory, where positions are the rows."""
    n, channels, height, width = x.shape
    rows = x.permute(0, 2, 3, 1).reshape(n, height * width, channels)
    return _product(rows.transpose(1, 2), rows, channels, height * width)


def _product(a: Tensor, b: Tensor, channels: int, positions: int) -> Tensor:
    if a.dtype == torch.float16:  # the plain sums would overflow; this is the same library call
        some = a.new_empty((1, 1, 1))  # ignored, as beta is 0
        return torch.baddbmm(some, a, b, beta=0, alpha=1 / positions).float() / channels
    return torch.bmm(a, b).float() / (channels * positions)


def concat(content: Tensor, style: Tensor) -> Tensor:
    """The concatenation; a style vector is repeated at all positions."""
    if style.dim() == 2:
        style = style[:, :, None, None].expand(-1, -1, *content.shape[2:])
    return torch.cat([content, style.expand(content.shape[0], -1, -1, -1)], 1)


def convolve(case: Case, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Upsampling, padding and convolution, each by its own call where PyTorch has no fused one."""
    if case.upsample > 1:
        x = F.interpolate(x, scale_factor=float(case.upsample), mode="nearest")
    if case.mode == "reflect":
        x = F.pad(x, [case.padding] * 4, mode="reflect")
        return F.conv2d(x, weight, bias, case.stride)
    return F.conv2d(x, weight, bias, case.stride, case.padding)


def fold(values: Values) -> tuple[Tensor, Tensor]:
    """Weight and bias with the batch norm in them."""
    scale = values["gamma"] / (values["var"] + EPS).sqrt()
    return values["weight"] * scale[:, None, None, None], values["beta"] - values["mean"] * scale


def peer(case: Case, values: Values, layout: str) -> tuple[Callable[..., Any], tuple[Tensor, ...]]:
    """A function of tensors that does the operation's work without fastgen, and its arguments.

    A batch norm is folded and weights are in the memory format beforehand. The peer of
    ``conv_instance_norm`` is the layer that it stands for in a network: convolution, instance norm
    and ReLU; ours applies norm and ReLU of the layer before on load, which is as much work.
    """
    x = values["x"]
    if case.op == "gram_matrix":
        return (gram if layout == "nchw" else gram_positions), (x,)
    if case.op == "concat_features":
        return concat, (x, values["style"])

    def ready(weight: Tensor) -> Tensor:
        return weight.to(x.dtype).contiguous(memory_format=LAYOUTS[layout])

    if case.op == "conv_instance_norm":
        gamma, beta = values["gamma"].to(x.dtype), values["beta"].to(x.dtype)

        def layer(x: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
            y = convolve(case, x, weight, None)
            return F.relu(F.instance_norm(y, weight=gamma, bias=beta, eps=EPS))

        return layer, (x, ready(values["weight"]), gamma, beta)
    weight, bias = fold(values)
    arguments = (ready(weight), bias.to(x.dtype))
    if case.op == "conv_concat":

        def joined(x: Tensor, style: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return F.leaky_relu(convolve(case, concat(x, style), weight, bias), SLOPE)

        return joined, (x, values["style"], *arguments)

    def fused(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.leaky_relu(convolve(case, x, weight, bias), SLOPE)

    return fused, (x, *arguments)


# ------------------------------------------------------------------ ours, and the truth


def ours(case: Case, values: Values, impl: str) -> Callable[[], Any]:
    """A call of the public function with everything packed beforehand that can be."""
    x = values["x"]
    if case.op == "gram_matrix":
        return lambda: ops.gram_matrix(x, impl=impl)
    if case.op == "concat_features":
        style = values["style"]
        return lambda: ops.concat_features(x, style, impl=impl)
    geometry: dict[str, Any] = {
        "stride": case.stride,
        "padding": case.padding,
        "padding_mode": case.mode,
        "upsample": case.upsample,
    }
    target: dict[str, Any] = {"dtype": x.dtype, "device": x.device, "impl": impl}
    weight, gamma, beta = (values[k] for k in ("weight", "gamma", "beta"))
    if case.op == "conv_instance_norm":
        packed = ops.pack_conv_instance_norm(
            weight, None, gamma, beta, eps=EPS, load_slope=0.0, **geometry, **target
        )
        norm = (values["scale"], values["shift"])
        return lambda: ops.conv_instance_norm(x, packed, norm=norm, impl=impl)
    batch_norm = (weight, None, gamma, beta, values["mean"], values["var"])
    options: dict[str, Any] = {"eps": EPS, "negative_slope": SLOPE, **geometry, **target}
    if case.op == "conv_bn_leaky_relu":
        folded = ops.pack_conv_bn(*batch_norm, **options)
        return lambda: ops.conv_bn_leaky_relu(x, folded, impl=impl)
    joint = ops.pack_conv_concat(*batch_norm, content_channels=case.x[1], **options)
    part = joint.style_part(values["style"], *case.x[2:])
    return lambda: ops.conv_concat(x, part, joint, impl=impl)


def reference(case: Case, values: Values, *, of_peer: bool = False) -> list[Tensor]:
    """The results in float64, from the same rounded inputs and unrounded parameters.

    Args:
        case: what.
        values: from :func:`inputs`.
        of_peer: of the layer that :func:`peer` computes; differs for ``conv_instance_norm`` only.
    """
    v = {key: value.double() for key, value in values.items()}
    x = v["x"]
    if case.op == "gram_matrix":
        rows = x.flatten(2)
        return [rows @ rows.transpose(1, 2) / (x.shape[1] * x.shape[2] * x.shape[3])]
    if case.op == "concat_features":
        return [concat(x, v["style"])]
    if case.op == "conv_instance_norm":
        if not of_peer:
            per = (*case.x[:2], 1, 1)
            x = F.relu(x * v["scale"].reshape(per) + v["shift"].reshape(per))
        y = convolve(case, x, v["weight"], None)
        var, mean = torch.var_mean(y, dim=(2, 3), correction=0)
        scale = v["gamma"] / (var + EPS).sqrt()
        shift = v["beta"] - mean * scale
        if of_peer:
            return [F.relu(y * scale[:, :, None, None] + shift[:, :, None, None])]
        return [y, scale, shift]
    weight, bias = fold(v)
    if case.op == "conv_concat":
        x = concat(x, v["style"])
    return [F.leaky_relu(convolve(case, x, weight, bias), SLOPE)]


def tolerance(case: Case, precision: str) -> float:
    """The largest :func:`error` of a correct result; a copy has none."""
    return 0.0 if case.op == "concat_features" else TOLERANCE[precision]


def error(found: Any, expected: list[Tensor]) -> float:
    """The largest ``||found - expected|| / ||expected||`` of the results; NaN counts as infinite.

    Raises:
        ValueError: a shape or the number of results is wrong.
    """
    results = list(found) if isinstance(found, tuple | list) else [found]
    if [tuple(a.shape) for a in results] != [tuple(b.shape) for b in expected]:
        raise ValueError(
            f"results have the shapes {[tuple(a.shape) for a in results]}, must be "
            f"{[tuple(b.shape) for b in expected]}"
        )
    worst = 0.0
    for a, b in zip(results, expected, strict=True):
        size = float(b.norm())
        value = float((a.detach().to(b.device, torch.float64) - b).norm()) / (size or 1.0)
        worst = max(worst, value if value == value else float("inf"))
    return worst
