"""Convolution that also returns the instance norm of its output, for the next one to apply."""

from __future__ import annotations

import sys
from typing import Any

from numpy import ndarray

from fastgen.ops import _check, _dispatch, _packed, _ref, _register
from fastgen.ops._check import Array, Geometry
from fastgen.ops._packed import PackedConv
from fastgen.ops._spec import ConvSpec
from fastgen.ops.conv_bn_leaky_relu import (
    check_input,
    check_packed_input,
    check_parameters,
)

__all__ = ["conv_instance_norm", "pack_conv_instance_norm"]

_OP = "conv_instance_norm"
_PAIR = (tuple, list)
_DEFAULTS = (1e-5, 1, 0, "zeros", 1, 1.0)  # of eps, geometry and load_slope


def conv_instance_norm(
    x: Array,
    weight: Array | PackedConv,
    bias: Array | None = None,
    gamma: Array | None = None,
    beta: Array | None = None,
    *,
    eps: float = 1e-5,
    stride: int = 1,
    padding: int = 0,
    padding_mode: str = "zeros",
    upsample: int = 1,
    norm: tuple[Array, Array] | None = None,
    load_slope: float = 1.0,
    residual: Array | None = None,
    impl: str = "auto",
) -> tuple[Array, Array, Array]:
    """A convolution and, as two numbers for each image and channel, the norm of its output.

    ``y = conv(pad(up(load(x)))) + bias``, with
    ``load(x) = leaky_relu(x scale_in + shift_in, load_slope) + residual``, and from mean and biased
    variance of each plane of y: ``scale = gamma / sqrt(var + eps)``,
    ``shift = beta - mean scale``. So the normalised output is ``y scale + shift``, which the next
    call applies as it reads (``norm=(scale, shift)``): an instance norm costs no pass over memory.
    Statistics are those of the sums before y is rounded to its dtype, robust to means that are
    large beside the spread. Zero padding pads ``load(x)``. Differentiable with respect to every
    tensor (for packed weights to x, norm and residual).

    Args:
        x: (N, I, H, W) float32, float16, bfloat16, or float64 (``ref`` only); contiguous or
            channels_last (others are copied). Torch tensor, or numpy array on the CPU.
        weight: (O, I, k, k) of any of these dtypes, k in 1..15; or a :class:`PackedConv` of
            :func:`pack_conv_instance_norm`, and then everything up to ``upsample`` and
            ``load_slope`` come from the packing and must not be given.
        bias: (O,), None: 0.
        gamma: (O,) factor of the instance norm, None: 1.
        beta: (O,) offset of the instance norm, None: 0.
        eps: keeps the variance away from 0; > 0.
        stride: 1 or 2.
        padding: pixels on every side; for ``"reflect"`` smaller than the (upsampled) input.
        padding_mode: ``"zeros"``, or ``"reflect"`` without repeating the border pixel.
        upsample: 2 for nearest x2 before the padding, else 1.
        norm: ``(scale, shift)`` of the call that made x, each (N, I) float32 (float64 for float64).
        load_slope: of the LeakyReLU on load, in 0..1: 0 is ReLU, 1 is none.
        residual: shape and dtype of x, added on load behind the activation.
        impl: ``"auto"``, ``"ref"``, ``"cpu"``, ``"cuda"`` or ``"triton"``.

    Returns:
        ``y`` (N, O, rows, columns), not normalised, in dtype and memory format of x; ``scale`` and
        ``shift``, each (N, O) float32 (float64 for float64).

    Raises:
        TypeError: not tensors or arrays, dtypes that differ or are not taken, or arguments beside a
            packed weight that it already has.
        ValueError: shapes, numbers or devices that do not fit, or an unknown ``impl``.
        ImplUnavailable: the named implementation cannot run here; the message says why.

    Source: Ulyanov, Vedaldi, Lempitsky, *Instance Normalization: The Missing Ingredient for Fast
    Stylization*, 2016.
    """
    if isinstance(weight, PackedConv):
        geometry = (eps, stride, padding, padding_mode, upsample, load_slope)
        if not (bias is gamma is beta is None and geometry == _DEFAULTS):
            raise TypeError(
                "packed weights already have bias, norm, slope and geometry; leave them out"
            )
        if residual is None and norm is not None:
            usual = _usual(x, weight, norm, impl)
            if usual is not None:
                return usual
        return _apply_packed(x, _check.dtype_name("x", x), weight, norm, residual, impl)
    dtype = _check.dtype_name("x", x)
    check_parameters(weight, (bias, gamma, beta), eps, stride, padding, padding_mode, upsample)
    _check.same_kind("weight", weight, "x", x, dtype=False)
    load_slope = _check.slope("load_slope", load_slope)
    where: Geometry = (stride, padding, padding_mode, upsample)
    check_input(x, tuple(weight.shape), where)
    scale, shift = _check_load(x, dtype, norm, load_slope, residual)
    _dispatch.check_impl(impl)
    x, residual = _check.as_dense(x), None if residual is None else _check.as_dense(residual)

    array = isinstance(x, ndarray)
    direct = array or _dispatch.is_direct(x, weight, bias, gamma, beta, scale, shift, residual)
    if impl == "ref" or direct:
        modules = _dispatch.candidates(_OP, impl, "cpu" if array else x.device.type, dtype)
        if modules[0] is _ref:
            rest = (bias, gamma, beta, scale, shift, residual, eps, load_slope, *where)
            return _ref.conv_instance_norm(x, weight, *rest)
    if not direct:
        import torch

        wide = torch.float64 if dtype == "float64" else torch.float32
        size = weight.shape[0]
        # Arithmetic on the parameters stays outside, for autograd; the operator takes all of them.
        bias = weight.new_zeros(size, dtype=wide) if bias is None else bias.to(wide)
        gamma = weight.new_ones(size, dtype=wide) if gamma is None else gamma.to(wide)
        beta = weight.new_zeros(size, dtype=wide) if beta is None else beta.to(wide)
        call = (scale, shift, residual, *where, eps, load_slope, impl, 0)
        return _register.call(_OP, x, weight.to(wide), bias, gamma, beta, *call)
    spec = _spec(weight, bias, gamma, beta, eps, where, load_slope, dtype)
    home = None if array or x.is_cpu else str(x.device)
    return _dispatch.run(
        modules, lambda m: m.conv_norm(x, m.pack_conv(spec, home), scale, shift, residual)
    )


def pack_conv_instance_norm(
    weight: Any,
    bias: Any = None,
    gamma: Any = None,
    beta: Any = None,
    *,
    eps: float = 1e-5,
    stride: int = 1,
    padding: int = 0,
    padding_mode: str = "zeros",
    upsample: int = 1,
    load_slope: float = 1.0,
    dtype: Any = None,
    device: Any = None,
    impl: str = "auto",
) -> PackedConv:
    """Packs the weights of a :func:`conv_instance_norm` for one implementation, once.

    Args:
        weight: (O, I, k, k), torch tensor or numpy array; so are the others.
        bias: (O,) or None.
        gamma: (O,) or None.
        beta: (O,) or None.
        eps: > 0.
        stride: 1 or 2.
        padding: pixels on every side.
        padding_mode: ``"zeros"`` or ``"reflect"``.
        upsample: 1 or 2.
        load_slope: in 0..1.
        dtype: of the tensors that it will be used on: a torch or numpy dtype or its name. None:
            the weight's.
        device: where those will be. None: where the weight is.
        impl: ``"auto"``, ``"ref"``, ``"cpu"``, ``"cuda"`` or ``"triton"``; auto decides now.

    Returns:
        The packed weights, a constant.

    Raises:
        TypeError, ValueError: as for :func:`conv_instance_norm`.
        ImplUnavailable: the named implementation cannot run here; the message says why.
    """
    check_parameters(weight, (bias, gamma, beta), eps, stride, padding, padding_mode, upsample)
    load_slope = _check.slope("load_slope", load_slope)
    name, home = _packed.target(weight, dtype, device)
    where: Geometry = (stride, padding, padding_mode, upsample)
    spec = _spec(weight, bias, gamma, beta, eps, where, load_slope, name)
    return PackedConv(_OP, spec, impl, home)


def _spec(
    weight: Any,
    bias: Any,
    gamma: Any,
    beta: Any,
    eps: float,
    where: Geometry,
    load_slope: float,
    dtype: str,
) -> ConvSpec:
    import numpy as np

    wide = np.float64 if dtype == "float64" else np.float32
    size = weight.shape[0]

    def array(value: Any, default: float) -> np.ndarray:
        found = _packed.to_numpy(value)
        return np.full(size, default, wide) if found is None else found.astype(wide)

    return _packed.make_spec(
        array(weight, 0.0),
        array(bias, 0.0),
        where,
        dtype=dtype,
        load_slope=load_slope,
        gamma=array(gamma, 1.0),
        beta=array(beta, 0.0),
        eps=eps,
    )


def _check_load(x: Any, dtype: str, norm: Any, load_slope: float, residual: Any) -> tuple[Any, Any]:
    """The scale and shift that are applied on load; None where nothing is done on load."""
    if residual is not None:
        _check.same_kind("residual", residual, "x", x)
        if tuple(residual.shape) != tuple(x.shape):
            raise ValueError(
                f"residual has the shape {tuple(residual.shape)}, must be that of x, "
                f"{tuple(x.shape)}: it is added on load"
            )
    if norm is None:
        if load_slope == 1.0 and residual is None:
            return None, None
        # A load without norm that still does something: the identity as norm, so that an
        # implementation has one case less.
        return _identity(x, dtype)
    if not isinstance(norm, _PAIR) or len(norm) != 2:
        raise TypeError("norm must be the pair (scale, shift) of an earlier call")
    scale, shift = norm
    _check.norm_pair(scale, shift, x, dtype)
    return _check.as_contiguous(scale), _check.as_contiguous(shift)


def _identity(x: Any, dtype: str) -> tuple[Any, Any]:
    wide = "float64" if dtype == "float64" else "float32"
    shape = tuple(x.shape[:2])
    if isinstance(x, ndarray):
        import numpy as np

        return np.ones(shape, wide), np.zeros(shape, wide)
    import torch

    kind = getattr(torch, wide)
    return x.new_ones(shape, dtype=kind), x.new_zeros(shape, dtype=kind)


def _apply_packed(
    x: Any, dtype: str, packed: PackedConv, norm: Any, residual: Any, impl: str
) -> Any:
    _packed.check_use(packed, _OP, x, dtype, impl)
    scale, shift = norm if isinstance(norm, _PAIR) and len(norm) == 2 else (None, None)
    direct = isinstance(x, ndarray) or _dispatch.is_direct(x, scale, shift, residual)
    check_packed_input(x, packed, direct)
    scale, shift = _check_load(x, dtype, norm, packed.load_slope, residual)
    x, residual = _check.as_dense(x), None if residual is None else _check.as_dense(residual)
    if direct:
        return packed.module.conv_norm(x, packed.handle, scale, shift, residual)
    weight, bias, gamma, beta = packed.as_tensors()
    rest = (scale, shift, residual, *packed.geometry, packed.eps, packed.load_slope)
    return _register.call(_OP, x, weight, bias, gamma, beta, *rest, packed.impl, packed.key)


def _usual(x: Any, packed: PackedConv, norm: Any, impl: str) -> Any:
    """The call, if it is what nearly every one on the CPU is; None where one must look closely."""
    if (
        _check.TORCH.get(getattr(x, "dtype", None)) != packed.dtype
        or packed.impl != "cpu"
        or packed.op != _OP
        or (impl != "auto" and impl != "cpu")
        or type(norm) not in _PAIR
        or len(norm) != 2
    ):
        return None
    scale, shift = norm
    if scale is None or shift is None or not _dispatch.is_direct(x, scale, shift):
        return None
    try:
        shape, kind = x.shape, scale.dtype
        if (
            shape not in packed.sizes
            or not (x.is_cpu and scale.is_cpu and shift.is_cpu)
            or kind is not shift.dtype
            or _check.TORCH.get(kind) != "float32"
            or not (scale.shape == shift.shape == (shape[0], shape[1]))
            or not (scale.is_contiguous() and shift.is_contiguous())
            or x.layout is not sys.modules["torch"].strided
        ):
            return None
    except RuntimeError:  # another layout
        return None
    return packed.module.conv_norm_plain(x, packed.handle, scale, shift, shape)
