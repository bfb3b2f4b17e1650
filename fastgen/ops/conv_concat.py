"""Convolution over content beside style features that never writes them side by side."""

from __future__ import annotations

from typing import Any

from numpy import ndarray

from fastgen.ops import _check, _dispatch, _packed, _ref, _register
from fastgen.ops._check import Array, Geometry
from fastgen.ops._packed import PackedConv, PackedConvConcat, StylePart
from fastgen.ops.concat_features import check_style
from fastgen.ops.conv_bn_leaky_relu import apply_packed, check_parameters, fold_arrays

__all__ = ["conv_concat", "pack_conv_concat", "style_part"]

_CONV = "conv_bn_leaky_relu"


def conv_concat(
    content: Array,
    style: Array | StylePart,
    weight: Array | PackedConvConcat,
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
    impl: str = "auto",
) -> Array:
    """``conv_bn_leaky_relu(concat_features(content, style), ...)`` without the concatenation.

    A convolution is linear: ``conv([a; b]) = conv_a(a) + conv_b(b)``. The style's half is
    computed once (:meth:`PackedConvConcat.style_part`) and added where the content's is stored. In
    float16 and bfloat16 the style's half is rounded once, as an output would be.
    Differentiable as :func:`fastgen.ops.conv_bn_leaky_relu`, and with respect to the style.

    Args:
        content: (N, Cc, H, W) float32, float16, bfloat16, or float64 (``ref`` only).
        style: (N or 1, Cs, H, W) or (N or 1, Cs), dtype and device of the content; or the
            :class:`StylePart` that ``weight``, then a :class:`PackedConvConcat`, has made of it.
        weight: (O, Cc + Cs, k, k); or a :class:`PackedConvConcat`, and then everything up to
            ``upsample`` comes from the packing and must not be given.
        bias: (O,) or None; this and all that follow as for
            :func:`fastgen.ops.conv_bn_leaky_relu`.
        gamma: (O,) or None.
        beta: (O,) or None.
        mean: (O,) or None.
        var: (O,) or None.
        eps: > 0.
        negative_slope: in 0..1.
        stride: 1 or 2.
        padding: pixels on every side.
        padding_mode: ``"zeros"`` or ``"reflect"``.
        upsample: 1 or 2.
        impl: ``"auto"``, ``"ref"``, ``"cpu"``, ``"cuda"`` or ``"triton"``.

    Returns:
        (N, O, rows, columns), dtype and memory format of the content.

    Raises:
        TypeError: not tensors or arrays, dtypes that differ or are not taken, a StylePart with
            weights that are not packed, or arguments beside packed weights that they already have.
        ValueError: shapes, numbers or devices that do not fit, a StylePart of other weights or
            another size, or an unknown ``impl``.
        ImplUnavailable: the named implementation cannot run here; the message says why.
    """
    dtype = _check.dtype_name("content", content)
    if isinstance(weight, PackedConvConcat):
        if not (
            bias is gamma is beta is mean is var is None
            and (eps, negative_slope, stride, padding) == (1e-5, 0.2, 1, 0)
            and padding_mode == "zeros"
            and upsample == 1
        ):
            raise TypeError(
                "packed weights already have bias, batch norm, slope and geometry; leave them out"
            )
        return _apply(content, dtype, style, weight, impl)
    if isinstance(style, StylePart):
        raise TypeError("style is a StylePart and the weights are not packed; give packed ones")
    parameters = (bias, gamma, beta, mean, var)
    check_parameters(weight, parameters, eps, stride, padding, padding_mode, upsample)
    _check.same_kind("weight", weight, "content", content, dtype=False)
    negative_slope = _check.slope("negative_slope", negative_slope)
    check_style(content, style)
    _check_channels(content.shape[1], style.shape[1], weight.shape[1])
    where: Geometry = (stride, padding, padding_mode, upsample)
    _check.output_size(tuple(content.shape[2:]), weight.shape[2], *where)
    _dispatch.check_impl(impl)
    content = _check.as_dense(content)

    array = isinstance(content, ndarray)
    direct = array or _dispatch.is_direct(content, style, weight, *parameters)
    if impl == "ref" or direct:
        kind = "cpu" if array else content.device.type
        modules = _dispatch.candidates("conv_concat", impl, kind, dtype)
        if modules[0] is _ref:
            both = _ref.concat_features(content, style)
            rest = (*parameters, None, eps, negative_slope, *where)
            return _ref.conv_bn_leaky_relu(both, weight, *rest)
    c = content.shape[1]
    if direct:
        home = "cpu" if array else str(content.device)
        folded = _packed.fold(weight, *parameters, eps, dtype)
        arrays = _packed.to_numpy(folded[0]), _packed.to_numpy(folded[1])
        packed = _pack(arrays, c, where, negative_slope, dtype, impl, home)
        return _apply(content, dtype, style, packed, "auto")
    full, offset = _packed.fold(weight, *parameters, eps, dtype)
    wide = _at_positions(style, content.shape[2], content.shape[3])
    nothing = full.new_zeros(full.shape[0])
    part = _register.call(
        _CONV, wide, full[:, c:].contiguous(), nothing, None, *where, 1.0, impl, 0
    )
    half = full[:, :c].contiguous()
    return _register.call(_CONV, content, half, offset, part, *where, negative_slope, impl, 0)


def pack_conv_concat(
    weight: Any,
    bias: Any = None,
    gamma: Any = None,
    beta: Any = None,
    mean: Any = None,
    var: Any = None,
    *,
    content_channels: int,
    eps: float = 1e-5,
    negative_slope: float = 0.2,
    stride: int = 1,
    padding: int = 0,
    padding_mode: str = "zeros",
    upsample: int = 1,
    dtype: Any = None,
    device: Any = None,
    impl: str = "auto",
) -> PackedConvConcat:
    """Folds and packs the weights of a :func:`conv_concat` for one implementation, once.

    Args:
        weight: (O, Cc + Cs, k, k), torch tensor or numpy array; so are the others, as for
            :func:`fastgen.ops.conv_bn_leaky_relu`.
        bias: (O,) or None.
        gamma: (O,) or None.
        beta: (O,) or None.
        mean: (O,) or None.
        var: (O,) or None.
        content_channels: Cc, in 1..Cc + Cs - 1: the first channels are the content's.
        eps: > 0.
        negative_slope: in 0..1.
        stride: 1 or 2.
        padding: pixels on every side.
        padding_mode: ``"zeros"`` or ``"reflect"``.
        upsample: 1 or 2.
        dtype: of the tensors that it will be used on. None: the weight's.
        device: where those will be. None: where the weight is.
        impl: ``"auto"``, ``"ref"``, ``"cpu"``, ``"cuda"`` or ``"triton"``; auto decides now.

    Returns:
        The packed weights; ``packed.style_part(style)`` makes what is reused.

    Raises:
        TypeError, ValueError: as for :func:`conv_concat`.
        ImplUnavailable: the named implementation cannot run here; the message says why.
    """
    parameters = (bias, gamma, beta, mean, var)
    check_parameters(weight, parameters, eps, stride, padding, padding_mode, upsample)
    negative_slope = _check.slope("negative_slope", negative_slope)
    _check.channel_split(content_channels, weight.shape[1])
    name, home = _packed.target(weight, dtype, device)
    arrays = fold_arrays(weight, parameters, eps, name)
    where: Geometry = (stride, padding, padding_mode, upsample)
    return _pack(arrays, content_channels, where, negative_slope, name, impl, home)


def style_part(
    packed: PackedConvConcat, style: Any, height: int | None, width: int | None
) -> StylePart:
    """See :meth:`PackedConvConcat.style_part`."""
    dtype = _check.dtype_name("style", style)
    shape = style.shape
    if len(shape) not in (2, 4) or 0 in shape:
        raise ValueError(
            f"style has the shape {tuple(shape)}, must be (N,C,H,W) or (N,C) with every size >= 1"
        )
    if len(shape) == 4:
        if (height or shape[2], width or shape[3]) != tuple(shape[2:]):
            raise ValueError(
                f"style is {shape[3]}x{shape[2]}, not {width}x{height}; leave the size out"
            )
        height, width = shape[2], shape[3]
    elif height is None or width is None:
        raise ValueError("a style without positions needs height and width of the contents")
    wide = _at_positions(style, _check.size("height", height), _check.size("width", width))
    value = apply_packed(wide, dtype, packed.style, None, "auto")
    return StylePart(value, height, width, packed)


def _apply(content: Any, dtype: str, style: Any, packed: PackedConvConcat, impl: str) -> Any:
    if isinstance(style, StylePart):
        usual = _usual(content, dtype, style, packed, impl)
        if usual is not None:
            return usual
    _, _, h, w = _check.features("content", content)
    if not isinstance(style, StylePart):
        check_style(content, style)
        style = style_part(packed, style, h, w)
    elif style.packed is not packed:
        raise ValueError("style is a StylePart of other weights; make it with style_part of these")
    if (style.height, style.width) != (h, w):
        raise ValueError(
            f"content is {w}x{h} and the StylePart is for {style.width}x{style.height}; "
            "make one for this size"
        )
    value = style.value
    # Compilers see one tensor; only calls that are carried out at once keep another format of it.
    direct = isinstance(content, ndarray) or _dispatch.is_direct(content, value)
    if direct:
        value = style.beside(content)
    y = apply_packed(content, dtype, packed.content, value, impl, direct)
    if direct:
        style.remember(content.shape)
    return y


def _usual(content: Any, dtype: str, style: StylePart, packed: PackedConvConcat, impl: str) -> Any:
    """The call on the CPU with a size that has been checked; None where one must look closely."""
    conv, value = packed.content, style.value
    array = isinstance(content, ndarray)
    if (
        conv.impl != "cpu"
        or style.packed is not packed
        or isinstance(value, ndarray) is not array
        or not (array or _dispatch.is_direct(content, value))
    ):
        return None
    try:
        if content.shape not in style.fits:
            return None
    except RuntimeError:  # a nested tensor
        return None
    _packed.check_use(conv, _CONV, content, dtype, impl)
    return conv.module.conv(content, conv.handle, style.beside(content))


def _pack(
    arrays: tuple[Any, Any],
    content_channels: int,
    where: Geometry,
    negative_slope: float,
    dtype: str,
    impl: str,
    device: str,
) -> PackedConvConcat:
    import numpy as np

    weight, bias = arrays
    left, right = (
        np.ascontiguousarray(half)
        for half in (weight[:, :content_channels], weight[:, content_channels:])
    )
    spec = _packed.make_spec(left, bias, where, negative_slope=negative_slope, dtype=dtype)
    content = PackedConv(_CONV, spec, impl, device)
    spec = _packed.make_spec(right, np.zeros_like(bias), where, dtype=dtype)
    return PackedConvConcat(content, PackedConv(_CONV, spec, content.impl, device))


def _check_channels(content: int, style: int, weight: int) -> None:
    if content + style != weight:
        raise ValueError(
            f"content and style have {content} + {style} channels, the weights take {weight}"
        )


def _at_positions(style: Any, height: int, width: int) -> Any:
    """A style at every position, when it has none of its own."""
    if len(style.shape) == 4:
        return style
    n, c = style.shape
    if isinstance(style, ndarray):
        import numpy as np

        return np.broadcast_to(style[:, :, None, None], (n, c, height, width))
    return style[:, :, None, None].expand(n, c, height, width)
