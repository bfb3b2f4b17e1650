"""The ops of a graph: attributes with their defaults and limits, shapes, weights, cost.

One table entry per op; nothing here knows about a backend. Semantics are PyTorch's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastgen.errors import GraphError

__all__ = ["MAX_SIZE", "OPS", "check_attrs", "infer_shape", "multiply_adds", "weight_shapes"]

Shape = tuple[int, ...]

MAX_SIZE = 1 << 24  # largest dimension
MAX_CHANNELS = 1 << 20
MAX_ELEMENTS = 1 << 40  # largest value, in elements; int64 index arithmetic stays far from overflow


class _Required:
    pass


_REQUIRED = _Required()


@dataclass(frozen=True)
class Attr:
    """Type, range and default of one attribute."""

    kind: str  # int | bool | float | choice | ints | scalars
    default: Any = _REQUIRED
    low: float = 0
    high: float = MAX_CHANNELS
    choices: tuple[str, ...] = ()
    length: int | None = None

    def check(self, where: str, key: str, value: Any) -> Any:
        def bad(expected: str) -> GraphError:
            text = repr(value)
            text = text if len(text) <= 60 else text[:57] + "..."
            return GraphError(f"{where}: attribute {key!r} is {text}, must be {expected}")

        if self.kind == "bool":
            if type(value) is not bool:
                raise bad("true or false")
            return value
        if self.kind == "choice":
            if value not in self.choices:
                raise bad(f"one of {list(self.choices)}")
            return value
        if self.kind == "int":
            if type(value) is not int or not self.low <= value <= self.high:
                raise bad(f"an integer in {self.low}..{self.high}")
            return value
        if self.kind == "float":
            if not _is_number(value) or not self.low <= value <= self.high:
                raise bad(f"a number in {self.low}..{self.high}")
            return float(value)
        if self.kind == "ints":
            ok = isinstance(value, list | tuple) and all(type(v) is int for v in value)
            if not ok or not all(self.low <= v <= self.high for v in value):
                raise bad(f"a list of integers in {self.low}..{self.high}")
            if self.length is not None and len(value) != self.length:
                raise bad(f"a list of {self.length} integers")
            return list(value)
        # scalars: one number, or a list with one per channel
        if _is_number(value):
            return float(value)
        is_list = isinstance(value, list | tuple) and 0 < len(value) <= MAX_CHANNELS
        if is_list and all(_is_number(v) for v in value):
            return [float(v) for v in value]
        raise bad("a finite number or a list of one finite number per channel")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) < 1e30


@dataclass(frozen=True)
class Op:
    """One op: operand count, attributes, shape rule, weights, cost."""

    operands: tuple[int, int]
    attrs: dict[str, Attr]
    shape: Callable[[str, Sequence[Shape], dict[str, Any]], Shape]
    weights: Callable[[Sequence[Shape], dict[str, Any]], dict[str, Shape]] = lambda _x, _a: {}
    cost: Callable[[Sequence[Shape], Shape, dict[str, Any]], int] = lambda _x, _o, _a: 0


def check_attrs(name: object, op: object, attrs: dict[str, Any]) -> dict[str, Any]:
    """Returns the attributes with defaults filled in; raises GraphError naming what is wrong."""
    where = f"node {name!r}"
    if not isinstance(op, str) or op not in OPS:
        raise GraphError(f"{where}: unknown op {op!r}; known: {', '.join(sorted(OPS))}")
    table = OPS[op].attrs
    unknown = sorted(str(k) for k in attrs if k not in table)
    if unknown:
        raise GraphError(f"{where}: op {op!r} has no attribute {unknown[0]!r}; has {list(table)}")
    result = {}
    for key, attr in table.items():
        value = attrs.get(key, attr.default)
        if isinstance(value, _Required):
            raise GraphError(f"{where}: op {op!r} needs the attribute {key!r}")
        result[key] = attr.check(f"{where} ({op})", key, value)
    return result


def infer_shape(name: str, op: str, operands: Sequence[Shape], attrs: dict[str, Any]) -> Shape:
    """Shape of the value of one node; raises GraphError when the operands do not fit."""
    entry, where = OPS[op], f"node {name!r} ({op})"
    low, high = entry.operands
    if op == "norm":
        low = high = 3 if attrs["kind"] == "given" else 1
    if not low <= len(operands) <= high:
        expected = str(low) if low == high else f"{low} to {high}"
        raise GraphError(f"{where}: has {len(operands)} operands, must have {expected}")
    shape = entry.shape(where, operands, attrs)
    if any(not 1 <= d <= MAX_SIZE for d in shape) or math.prod(shape) > MAX_ELEMENTS:
        raise GraphError(
            f"{where}: its value would have the shape {shape}; the input is too "
            f"small, or larger than {MAX_ELEMENTS} elements"
        )
    return shape


def weight_shapes(op: str, operands: Sequence[Shape], attrs: dict[str, Any]) -> dict[str, Shape]:
    """Parameter name -> shape of one node."""
    return OPS[op].weights(operands, attrs)


def multiply_adds(op: str, operands: Sequence[Shape], out: Shape, attrs: dict[str, Any]) -> int:
    """Multiply-adds of one node (convolutions and linear layers; 0 otherwise)."""
    return OPS[op].cost(operands, out, attrs)


# ---------------------------------------------------------------------- shape rules


def _image(where: str, shape: Shape) -> Shape:
    if len(shape) != 4:
        raise GraphError(f"{where}: operand has the shape {shape}, must be (N,C,H,W)")
    return shape


def _window(where: str, size: int, attrs: dict[str, Any]) -> int:
    padded = size + 2 * attrs["padding"]
    if padded < attrs["kernel"]:
        raise GraphError(
            f"{where}: kernel {attrs['kernel']} is larger than its input of {size}"
            f" px with padding {attrs['padding']}"
        )
    return (padded - attrs["kernel"]) // attrs["stride"] + 1


def _conv_shape(where: str, x: Sequence[Shape], a: dict[str, Any]) -> Shape:
    n, c, h, w = _image(where, x[0])
    if c % a["groups"] or a["out_channels"] % a["groups"]:
        raise GraphError(
            f"{where}: {c} -> {a['out_channels']} channels are not divisible by "
            f"{a['groups']} groups"
        )
    if a["padding_mode"] == "reflect":
        _check_reflect(where, a["padding"], min(h, w))
    return n, a["out_channels"], _window(where, h, a), _window(where, w, a)


def _check_reflect(where: str, padding: int, size: int) -> None:
    if padding >= size:
        raise GraphError(
            f"{where}: reflect padding {padding} needs a side of at least "
            f"{padding + 1} px, has {size}"
        )


def _conv_transpose_shape(where: str, x: Sequence[Shape], a: dict[str, Any]) -> Shape:
    n, _, h, w = _image(where, x[0])
    if a["output_padding"] >= a["stride"]:
        raise GraphError(f"{where}: output_padding {a['output_padding']} must be below the stride")

    def size(s: int) -> int:
        return (s - 1) * a["stride"] - 2 * a["padding"] + a["kernel"] + a["output_padding"]

    return n, a["out_channels"], size(h), size(w)


def _linear_shape(where: str, x: Sequence[Shape], a: dict[str, Any]) -> Shape:
    if len(x[0]) != 2:
        raise GraphError(f"{where}: operand has the shape {x[0]}, must be (N,F); reshape it")
    return x[0][0], a["out_features"]


def _norm_shape(where: str, x: Sequence[Shape], a: dict[str, Any]) -> Shape:
    n, c = x[0][0], x[0][1]
    if a["kind"] == "instance":
        _image(where, x[0])
    if a["kind"] == "given" and (x[1] != (n, c) or x[2] != (n, c)):
        raise GraphError(f"{where}: mean {x[1]} and variance {x[2]} must have the shape {(n, c)}")
    return x[0]


def _pool_shape(where: str, x: Sequence[Shape], a: dict[str, Any]) -> Shape:
    n, c, h, w = _image(where, x[0])
    if a["kind"] == "global_avg":
        return n, c, 1, 1
    if 2 * a["padding"] > a["kernel"]:
        raise GraphError(f"{where}: padding {a['padding']} is more than half the kernel")
    return n, c, _window(where, h, a), _window(where, w, a)


def _upsample_shape(where: str, x: Sequence[Shape], a: dict[str, Any]) -> Shape:
    n, c, h, w = _image(where, x[0])
    return n, c, h * a["scale"], w * a["scale"]


def _concat_shape(where: str, x: Sequence[Shape], a: dict[str, Any]) -> Shape:
    first = x[0]
    for other in x[1:]:
        if len(other) != len(first) or other[:1] + other[2:] != first[:1] + first[2:]:
            raise GraphError(f"{where}: shapes {first} and {other} differ beyond the channels")
    return (*first[:1], sum(s[1] for s in x), *first[2:])


def _same_shape(where: str, x: Sequence[Shape], a: dict[str, Any]) -> Shape:
    if x[0] != x[1]:
        raise GraphError(f"{where}: shapes {x[0]} and {x[1]} differ")
    return x[0]


def _affine_shape(where: str, x: Sequence[Shape], a: dict[str, Any]) -> Shape:
    for key in ("scale", "shift"):
        if isinstance(a[key], list) and len(a[key]) != x[0][1]:
            raise GraphError(f"{where}: {key} has {len(a[key])} entries for {x[0][1]} channels")
    return x[0]


def _pad_shape(where: str, x: Sequence[Shape], a: dict[str, Any]) -> Shape:
    n, c, h, w = _image(where, x[0])
    left, right, top, bottom = a["padding"]
    if a["mode"] == "reflect":
        _check_reflect(where, max(left, right), w)
        _check_reflect(where, max(top, bottom), h)
    return n, c, h + top + bottom, w + left + right


def _crop_shape(where: str, x: Sequence[Shape], a: dict[str, Any]) -> Shape:
    n, c, h, w = _image(where, x[0])
    left, right, top, bottom = a["crop"]
    return n, c, h - top - bottom, w - left - right


def _broadcast_shape(where: str, x: Sequence[Shape], a: dict[str, Any]) -> Shape:
    v, (n, _, h, w) = x[0], _image(where, x[1])
    if v[0] != n or v[2:] not in ((), (1, 1)):
        raise GraphError(f"{where}: {v} must be ({n},C) or ({n},C,1,1)")
    return n, v[1], h, w


def _reshape_shape(where: str, x: Sequence[Shape], a: dict[str, Any]) -> Shape:
    count, target = math.prod(x[0][1:]), list(a["shape"])
    if len(target) not in (1, 3) or target.count(-1) > 1 or any(d == 0 for d in target):
        raise GraphError(f"{where}: shape {target} must have 1 or 3 axes, one of them -1 at most")
    if -1 in target:
        rest = math.prod(d for d in target if d != -1)
        target[target.index(-1)] = count // rest if rest else 0
    if math.prod(target) != count:
        raise GraphError(f"{where}: {x[0][1:]} cannot be reshaped to {a['shape']}")
    return (x[0][0], *target)


# ---------------------------------------------------------------------- weights and cost


def _conv_weights(x: Sequence[Shape], a: dict[str, Any]) -> dict[str, Shape]:
    k, out = a["kernel"], a["out_channels"]
    weights: dict[str, Shape] = {"weight": (out, x[0][1] // a["groups"], k, k)}
    return weights | ({"bias": (out,)} if a["bias"] else {})


def _conv_transpose_weights(x: Sequence[Shape], a: dict[str, Any]) -> dict[str, Shape]:
    k, out = a["kernel"], a["out_channels"]
    weights: dict[str, Shape] = {"weight": (x[0][1], out, k, k)}
    return weights | ({"bias": (out,)} if a["bias"] else {})


def _linear_weights(x: Sequence[Shape], a: dict[str, Any]) -> dict[str, Shape]:
    weights: dict[str, Shape] = {"weight": (a["out_features"], x[0][1])}
    return weights | ({"bias": (a["out_features"],)} if a["bias"] else {})


def _norm_weights(x: Sequence[Shape], a: dict[str, Any]) -> dict[str, Shape]:
    c = (x[0][1],)
    weights: dict[str, Shape] = {"weight": c, "bias": c} if a["affine"] else {}
    return weights | ({"running_mean": c, "running_var": c} if a["kind"] == "batch" else {})


def _conv_cost(x: Sequence[Shape], out: Shape, a: dict[str, Any]) -> int:
    return math.prod(out) * (x[0][1] // a["groups"]) * a["kernel"] ** 2


def _conv_transpose_cost(x: Sequence[Shape], out: Shape, a: dict[str, Any]) -> int:
    return math.prod(x[0]) * a["out_channels"] * int(a["kernel"]) ** 2


_KERNEL = Attr("int", low=1, high=255)
_STRIDE = Attr("int", 1, low=1, high=64)
_PADDING = Attr("int", 0, high=254)
_BIAS = Attr("bool", True)

OPS: dict[str, Op] = {
    "conv": Op(
        (1, 1),
        {
            "out_channels": Attr("int", low=1),
            "kernel": _KERNEL,
            "stride": _STRIDE,
            "padding": _PADDING,
            "padding_mode": Attr("choice", "zeros", choices=("zeros", "reflect")),
            "groups": Attr("int", 1, low=1),
            "bias": _BIAS,
        },
        _conv_shape,
        _conv_weights,
        _conv_cost,
    ),
    "conv_transpose": Op(
        (1, 1),
        {
            "out_channels": Attr("int", low=1),
            "kernel": _KERNEL,
            "stride": _STRIDE,
            "padding": _PADDING,
            "output_padding": Attr("int", 0, high=63),
            "bias": _BIAS,
        },
        _conv_transpose_shape,
        _conv_transpose_weights,
        _conv_transpose_cost,
    ),
    "linear": Op(
        (1, 1),
        {"out_features": Attr("int", low=1), "bias": _BIAS},
        _linear_shape,
        _linear_weights,
        lambda x, out, a: math.prod(out) * x[0][1],
    ),
    "norm": Op(
        (1, 3),
        {
            "kind": Attr("choice", choices=("instance", "batch", "given")),
            "eps": Attr("float", 1e-5, low=0, high=1),
            "affine": Attr("bool", True),
        },
        _norm_shape,
        _norm_weights,
    ),
    "activation": Op(
        (1, 1),
        {
            "kind": Attr("choice", choices=("relu", "leaky_relu", "tanh", "sigmoid")),
            "slope": Attr("float", 0.2, low=-10, high=10),
        },
        lambda where, x, a: x[0],
    ),
    "upsample": Op(
        (1, 1),
        {"scale": Attr("int", 2, low=1, high=16)},
        _upsample_shape,
    ),
    "pool": Op(
        (1, 1),
        {
            "kind": Attr("choice", choices=("max", "avg", "global_avg")),
            "kernel": Attr("int", 2, low=1, high=255),
            "stride": Attr("int", 2, low=1, high=64),
            "padding": _PADDING,
        },
        _pool_shape,
    ),
    "concat": Op((2, 64), {}, _concat_shape),
    "add": Op((2, 2), {}, _same_shape),
    "mul": Op((2, 2), {}, _same_shape),
    "affine": Op(
        (1, 1),
        {"scale": Attr("scalars", 1.0), "shift": Attr("scalars", 0.0)},
        _affine_shape,
    ),
    "pad": Op(
        (1, 1),
        {
            "padding": Attr("ints", length=4, high=4096),
            "mode": Attr("choice", "zeros", choices=("zeros", "reflect")),
        },
        _pad_shape,
    ),
    "crop": Op((1, 1), {"crop": Attr("ints", length=4, high=1 << 24)}, _crop_shape),
    "broadcast": Op((2, 2), {}, _broadcast_shape),
    "reshape": Op((1, 1), {"shape": Attr("ints", low=-1, high=1 << 24)}, _reshape_shape),
}
