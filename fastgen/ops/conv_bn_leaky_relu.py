"""Convolution, batch norm with stored statistics, residual and LeakyReLU in one pass."""

from __future__ import annotations

from typing import Any

from numpy import ndarray

from fastgen.ops import _check, _dispatch, _packed, _ref, _register
from fastgen.ops._check import Array, Geometry
from fastgen.ops._packed import PackedConv

__all__ = ["conv_bn_leaky_relu", "pack_conv_bn"]

_OP = "conv_bn_leaky_relu"


def conv_bn_leaky_relu(
    x: Array,
    weight: Array | PackedConv,
    bias: Array | None = None,
    gamma: Array | None = None,
    beta: Array | None = None,
    mean: Array | None = None,
    var: Array | None = None,
    *,
    eps: float = 1e-5,
    negative_slope: float = 0.2,
    stride: int = 1,
    padding: int = 0,
    padding_mode: str = "zeros",
    upsample: int = 1,
    residual: Array | None = None,
    impl: str = "auto",
) -> Array:
    """``leaky_relu((conv(pad(up(x))) + bias - mean) / sqrt(var + eps) * gamma + beta + residual)``.

    Batch norm with stored statistics is a factor and an offset for each output channel and folds
    into the convolution; padding and upsampling are never written to memory. Products are summed in
    float32. Differentiable with respect to every tensor (to x and residual for packed weights).

    Weights that are used more than once should be packed (:func:`pack_conv_bn`): without, every
    call folds and packs them.

    Args:
        x: (N, I, H, W) float32, float16, bfloat16, or float64 (``ref`` only); contiguous or
            channels_last (others are copied). Torch tensor, or numpy array on the CPU.
        weight: (O, I, k, k) of any of these dtypes, k in 1..15 (1, 3, 4, 5 and 9 are fast); or a
            :class:`PackedConv`, and then everything up to ``upsample`` comes from the packing and
            must not be given.
        bias: (O,), or None for 0, as for all of the following.
        gamma: (O,) factor of the batch norm; None: 1.
        beta: (O,) offset of the batch norm.
        mean: (O,) stored mean.
        var: (O,) stored variance; None: no division.
        eps: keeps the variance away from 0; > 0.
        negative_slope: of the LeakyReLU, in 0..1: 0 is ReLU, 1 is none.
        stride: 1 or 2.
        padding: pixels on every side; for ``"reflect"`` smaller than the (upsampled) input.
        padding_mode: ``"zeros"``, or ``"reflect"`` without repeating the border pixel.
        upsample: 2 for nearest x2 before the padding, else 1.
        residual: (N or 1, O, rows, columns), added before the activation; dtype of x.
        impl: ``"auto"``, ``"ref"``, ``"cpu"``, ``"cuda"`` or ``"triton"``.

    Returns:
        (N, O, rows, columns), dtype and memory format of x, with
        ``rows = (H upsample + 2 padding - k) // stride + 1``.

    Raises:
        TypeError: not tensors or arrays, dtypes that differ or are not taken, or arguments beside a
            packed weight that it already has.
        ValueError: shapes, numbers or devices that do not fit, or an unknown ``impl``.
        ImplUnavailable: the named implementation cannot run here; the message says why.

    Source: Ioffe, Szegedy, *Batch Normalization*, 2015, Alg. 2, line 11 (inference as an affine
    map); nearest upsampling before a convolution: Odena, Dumoulin, Olah, *Deconvolution and
    Checkerboard Artifacts*, 2016.
    """
    dtype = _check.dtype_name("x", x)
    if isinstance(weight, PackedConv):
        if not (
            bias is gamma is beta is mean is var is None
            and (eps, negative_slope, stride, padding) == (1e-5, 0.2, 1, 0)
            and padding_mode == "zeros"
            and upsample == 1
        ):
            raise TypeError(
                "packed weights already have bias, batch norm, slope and geometry; leave them out"
            )
        return apply_packed(x, dtype, weight, residual, impl)
    parameters = (bias, gamma, beta, mean, var)
    check_parameters(weight, parameters, eps, stride, padding, padding_mode, upsample)
    _check.same_kind("weight", weight, "x", x, dtype=False)
    negative_slope = _check.slope("negative_slope", negative_slope)
    where: Geometry = (stride, padding, padding_mode, upsample)
    size = check_input(x, tuple(weight.shape), where)
    if residual is not None:
        check_residual(residual, x, weight.shape[0], size)
    _dispatch.check_impl(impl)
    x, residual = _check.as_dense(x), None if residual is None else _check.as_dense(residual)

    array = isinstance(x, ndarray)
    direct = array or _dispatch.is_direct(x, weight, *parameters, residual)
    if impl == "ref" or direct:
        modules = _dispatch.candidates(_OP, impl, "cpu" if array else x.device.type, dtype)
        if modules[0] is _ref:
            return _ref.conv_bn_leaky_relu(
                x, weight, *parameters, residual, eps, negative_slope, *where
            )
    folded = _packed.fold(weight, *parameters, eps, dtype)
    if not direct:
        return _register.call(_OP, x, *folded, residual, *where, negative_slope, impl, 0)
    arrays = _packed.to_numpy(folded[0]), _packed.to_numpy(folded[1])
    spec = _packed.make_spec(*arrays, where, negative_slope=negative_slope, dtype=dtype)
    home = None if array or x.is_cpu else str(x.device)
    return _dispatch.run(modules, lambda m: m.conv(x, m.pack_conv(spec, home), residual))


def pack_conv_bn(
    weight: Any,
    bias: Any = None,
    gamma: Any = None,
    beta: Any = None,
    mean: Any = None,
    var: Any = None,
    *,
    eps: float = 1e-5,
    negative_slope: float = 0.2,
    stride: int = 1,
    padding: int = 0,
    padding_mode: str = "zeros",
    upsample: int = 1,
    dtype: Any = None,
    device: Any = None,
    impl: str = "auto",
) -> PackedConv:
    """Folds batch norm into a convolution and packs it for one implementation, once.

    The result is given to :func:`conv_bn_leaky_relu` in place of ``weight``. Folding is done in
    float64 and rounded to float32 once.

    Args:
        weight: (O, I, k, k), torch tensor or numpy array; so are the others, as for
            :func:`conv_bn_leaky_relu`.
        bias: (O,) or None.
        gamma: (O,) or None.
        beta: (O,) or None.
        mean: (O,) or None.
        var: (O,) or None; var + eps must be positive.
        eps: > 0.
        negative_slope: in 0..1.
        stride: 1 or 2.
        padding: pixels on every side.
        padding_mode: ``"zeros"`` or ``"reflect"``.
        upsample: 1 or 2.
        dtype: of the tensors that it will be used on: a torch or numpy dtype or its name. None:
            the weight's.
        device: where those will be. None: where the weight is.
        impl: ``"auto"``, ``"ref"``, ``"cpu"``, ``"cuda"`` or ``"triton"``; auto decides now.

    Returns:
        The packed weights, a constant.

    Raises:
        TypeError, ValueError: as for :func:`conv_bn_leaky_relu`.
        ImplUnavailable: the named implementation cannot run here; the message says why.
    """
    parameters = (bias, gamma, beta, mean, var)
    check_parameters(weight, parameters, eps, stride, padding, padding_mode, upsample)
    negative_slope = _check.slope("negative_slope", negative_slope)
    name, home = _packed.target(weight, dtype, device)
    folded = fold_arrays(weight, parameters, eps, name)
    where: Geometry = (stride, padding, padding_mode, upsample)
    spec = _packed.make_spec(*folded, where, negative_slope=negative_slope, dtype=name)
    return PackedConv(_OP, spec, impl, home)


def check_parameters(
    weight: Any,
    parameters: tuple[Any, ...],
    eps: Any,
    stride: Any,
    padding: Any,
    padding_mode: Any,
    upsample: Any,
) -> None:
    """Everything about a convolution that does not depend on its input.

    Raises:
        TypeError, ValueError: as the public functions.
    """
    _check.dtype_name("weight", weight)
    _check.geometry(weight, stride, padding, padding_mode, upsample)
    _check.epsilon(eps)
    for name, value in zip(("bias", "gamma", "beta", "mean", "var"), parameters, strict=False):
        _check.vector(name, value, weight.shape[0], weight)


def check_input(x: Any, shape: tuple[int, ...], where: Geometry) -> tuple[int, int]:
    """The input fits a convolution with weights of this shape: rows and columns of the output.

    Raises:
        TypeError, ValueError: as the public functions.
    """
    _, channels, h, w = _check.features("x", x)
    if channels != shape[1]:
        raise ValueError(f"x has {channels} channels, these weights take {shape[1]}; check both")
    return _check.output_size((h, w), shape[2], *where)


def check_packed_input(x: Any, packed: PackedConv, direct: bool) -> tuple[int, int]:
    """:func:`check_input` for packed weights.

    Shapes that fit are remembered, but for ``direct`` calls only: a compiler would take a
    remembered shape for a constant.

    Raises:
        TypeError, ValueError: as the public functions.
    """
    if not direct:
        return check_input(x, packed.shape, packed.geometry)
    try:
        return packed.sizes[x.shape]
    except (KeyError, RuntimeError):  # RuntimeError: a nested tensor
        pass
    found = check_input(x, packed.shape, packed.geometry)
    if len(packed.sizes) >= _packed.MOST_SIZES:
        packed.sizes.clear()
    packed.sizes[tuple(x.shape)] = found
    return found


def check_residual(residual: Any, x: Any, outputs: int, size: tuple[int, int]) -> None:
    """The residual fits the output.

    Raises:
        TypeError, ValueError: as the public functions.
    """
    _check.same_kind("residual", residual, "x", x)
    got, n = residual.shape, x.shape[0]
    if got[1:] != (outputs, *size) or (got[0] != n and got[0] != 1):
        raise ValueError(
            f"residual has the shape {tuple(got)}, must be the output's "
            f"({n} or 1, {outputs}, {size[0]}, {size[1]})"
        )


def apply_packed(
    x: Any, dtype: str, packed: PackedConv, residual: Any, impl: str, direct: bool | None = None
) -> Any:
    """:func:`conv_bn_leaky_relu` of a checked array or tensor with packed weights.

    ``direct`` says whether :func:`_dispatch.is_direct` holds for x and residual, None: not known.
    """
    _packed.check_use(packed, _OP, x, dtype, impl)
    if direct is None:
        direct = isinstance(x, ndarray) or _dispatch.is_direct(x, residual)
    size = check_packed_input(x, packed, direct)
    if residual is not None:
        check_residual(residual, x, packed.shape[0], size)
    if direct and packed.impl == "cpu":  # does as_dense itself
        return packed.module.conv(x, packed.handle, residual)
    x, residual = _check.as_dense(x), None if residual is None else _check.as_dense(residual)
    if direct:
        return packed.module.conv(x, packed.handle, residual)
    weight, bias, _, _ = packed.as_tensors()
    where, slope = packed.geometry, packed.negative_slope
    return _register.call(_OP, x, weight, bias, residual, *where, slope, packed.impl, packed.key)


def fold_arrays(
    weight: Any, parameters: tuple[Any, ...], eps: float, dtype: str
) -> tuple[Any, Any]:
    """Folded weight and bias as arrays of their own.

    Raises:
        ValueError: a variance that is too small.
    """
    bias, gamma, beta, mean, var = map(_packed.to_numpy, parameters)
    if var is not None and not (var + eps > 0).all():
        raise ValueError(f"var has the value {var.min()}, var + eps must be > 0; check the weights")
    whole = _packed.to_numpy(weight), bias, gamma, beta, mean, var
    folded = _packed.fold(*whole, eps, dtype)
    return _packed.to_numpy(folded[0]), _packed.to_numpy(folded[1])
