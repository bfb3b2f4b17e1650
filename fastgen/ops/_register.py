"""``torch.ops.fastgen``: the operators as torch sees them, for compilers, exporters and autograd.

Defined once, when a tensor is first given to an op. Each operator has a kernel (which picks the
implementation when it runs), a fake (shapes, dtype and memory format only) and a backward made of
torch operators. Convolutions take folded float32 weights: folding is ordinary, differentiable
tensor arithmetic before them, so gradients of every batch norm parameter come with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastgen.errors import ImplUnavailable
from fastgen.ops import _check, _dispatch, _packed, _ref
from fastgen.ops._spec import ConvSpec

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["call", "ensure", "op"]

OLDEST = (2, 6)

_library: Any = None

_SCHEMAS = {
    "gram_matrix": "(Tensor x, bool deterministic, str impl) -> Tensor",
    "concat_features": "(Tensor content, Tensor style, str impl) -> Tensor",
    "conv_bn_leaky_relu": (
        "(Tensor x, Tensor weight, Tensor bias, Tensor? residual, int stride, int padding, "
        "str padding_mode, int upsample, float negative_slope, str impl, int key) -> Tensor"
    ),
    "conv_instance_norm": (
        "(Tensor x, Tensor weight, Tensor bias, Tensor gamma, Tensor beta, Tensor? scale, "
        "Tensor? shift, Tensor? residual, int stride, int padding, str padding_mode, "
        "int upsample, float eps, float load_slope, str impl, int key) -> (Tensor, Tensor, Tensor)"
    ),
}


def ensure() -> bool:
    """Defines the operators if they are not yet defined.

    Raises:
        ImplUnavailable: torch is too old.
    """
    if _library is None:
        _define()
    return True


# The mark of torch.compiler.assume_constant_result, without importing torch: a compiler that meets
# the first use of an op runs this function instead of tracing it.
ensure._dynamo_marked_constant = True  # type: ignore[attr-defined]


def op(name: str) -> Any:
    """``torch.ops.fastgen.<name>``, the operator."""
    ensure()
    import torch

    return getattr(torch.ops.fastgen, name)


def call(name: str, *args: Any) -> Any:
    """Calls ``torch.ops.fastgen.<name>``.

    Raises:
        NotImplementedError: an argument carries a forward-mode tangent, which would get lost, or
            is differentiated by torch.func.
    """
    operator = op(name)
    import torch

    if torch.compiler.is_compiling():
        return operator(*args)
    functions = torch._C._functorch
    if functions.peek_interpreter_stack() is not None:
        for value in args:
            if isinstance(value, torch.Tensor) and functions.is_gradtrackingtensor(value):
                raise NotImplementedError(
                    f"{name} is not differentiated by torch.func; name impl 'ref', or use backward"
                )
    if torch.autograd.forward_ad._current_level >= 0:
        for value in args:
            if isinstance(value, torch.Tensor):
                _, tangent = torch.autograd.forward_ad.unpack_dual(value)
                if tangent is not None:
                    raise NotImplementedError(
                        f"{name} has no forward-mode derivative; name impl 'ref', or use backward"
                    )
    return operator(*args)


def _define() -> None:
    global _library
    import torch

    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < OLDEST:
        raise ImplUnavailable(
            f"fastgen.ops needs torch >= {OLDEST[0]}.{OLDEST[1]}, found {torch.__version__}; update"
        )
    # Kernels are told the layout of their inputs by their strides, so compilers must keep them.
    tag = getattr(torch.Tag, "needs_exact_strides", torch.Tag.needs_fixed_stride_order)
    library = torch.library.Library("fastgen", "DEF")
    parts: dict[str, tuple[Any, Any, Any, Any]] = {
        "gram_matrix": (_gram, _gram_fake, _gram_setup, _gram_backward),
        "concat_features": (_concat, _concat_fake, _concat_setup, _concat_backward),
        "conv_bn_leaky_relu": (_conv, _conv_fake, _conv_setup, _conv_backward),
        "conv_instance_norm": (_norm, _norm_fake, _norm_setup, _norm_backward),
    }
    for name, (kernel, fake, setup, backward) in parts.items():
        full = f"fastgen::{name}"
        library.define(name + _SCHEMAS[name], tags=(tag, torch.Tag.pt2_compliant_tag))
        library.impl(name, kernel, "CompositeExplicitAutograd")
        torch.library.register_fake(full, fake, lib=library)
        torch.library.register_autograd(full, backward, setup_context=setup, lib=library)
    _library = library


def _modules(op_name: str, impl: str, x: Tensor) -> Any:
    return _dispatch.candidates(op_name, impl, x.device.type, _check.dtype_name("x", x))


def _empty(shape: tuple[Any, ...], like: Tensor) -> Tensor:
    """What a kernel returns for ``like``, without values."""
    import torch

    form = torch.channels_last if _check.channels_last(like) else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=form)


def _wide(x: Tensor) -> Tensor:
    import torch

    return x if x.dtype == torch.float64 else x.float()


# ---------------------------------------------------------------- gram_matrix


def _gram(x: Tensor, deterministic: bool, impl: str) -> Tensor:
    modules = _modules("gram_matrix", impl, x)
    x = _check.as_dense(x)
    return _dispatch.run(modules, lambda m: m.gram_matrix(x, deterministic))


def _gram_fake(x: Tensor, deterministic: bool, impl: str) -> Tensor:
    import torch

    n, c, _, _ = x.shape
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty((n, c, c), dtype=dtype)


def _gram_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])


def _gram_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (x,) = ctx.saved_tensors
    n, c, h, w = x.shape
    both = (grad + grad.transpose(1, 2)) / (c * h * w)
    if _check.channels_last(x):
        rows = _wide(x).permute(0, 2, 3, 1).reshape(n, h * w, c) @ both
        dx = rows.to(x.dtype).reshape(n, h, w, c).permute(0, 3, 1, 2)
    else:
        dx = (both @ _wide(x).reshape(n, c, h * w)).to(x.dtype).reshape(n, c, h, w)
    return dx, None, None


# ---------------------------------------------------------------- concat_features


def _concat(content: Tensor, style: Tensor, impl: str) -> Tensor:
    modules = _modules("concat_features", impl, content)
    content = _check.as_dense(content)
    style = _check.as_dense(style) if style.dim() == 4 else style.contiguous()
    return _dispatch.run(modules, lambda m: m.concat_features(content, style))


def _concat_fake(content: Tensor, style: Tensor, impl: str) -> Tensor:
    n, c, h, w = content.shape
    return _empty((n, c + style.shape[1], h, w), content)


def _concat_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    content, style, _ = inputs
    ctx.channels, ctx.style_shape = content.shape[1], style.shape


def _concat_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    style = grad[:, ctx.channels :]
    if len(ctx.style_shape) == 2:
        style = style.sum((2, 3))
    if ctx.style_shape[0] != grad.shape[0]:
        style = style.sum(0, keepdim=True)
    return grad[:, : ctx.channels], style, None


# ---------------------------------------------------------------- convolutions


def _out_size(x: Tensor, weight: Tensor, stride: int, padding: int, upsample: int) -> Any:
    k = weight.shape[2]
    return tuple((s * upsample + 2 * padding - k) // stride + 1 for s in x.shape[2:])


def _conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    stride: int,
    padding: int,
    padding_mode: str,
    upsample: int,
    negative_slope: float,
    impl: str,
    key: int,
) -> Tensor:
    x = _check.as_dense(x)
    residual = None if residual is None else _check.as_dense(residual)
    packed = _packed.find(key, weight)
    if packed is not None:
        return packed.module.conv(x, packed.handle, residual)
    spec = ConvSpec(
        _numpy(weight),
        _numpy(bias),
        stride,
        padding,
        padding_mode,
        upsample,
        negative_slope,
        _check.dtype_name("x", x),
    )
    modules = _modules("conv_bn_leaky_relu", impl, x)
    home = None if x.device.type == "cpu" else str(x.device)
    return _dispatch.run(modules, lambda m: m.conv(x, m.pack_conv(spec, home), residual))


def _numpy(value: Tensor) -> Any:
    return value.detach().cpu().resolve_neg().contiguous().numpy()


def _conv_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    stride: int,
    padding: int,
    padding_mode: str,
    upsample: int,
    negative_slope: float,
    impl: str,
    key: int,
) -> Tensor:
    size = _out_size(x, weight, stride, padding, upsample)
    return _empty((x.shape[0], weight.shape[0], *size), x)


def _conv_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, residual, stride, padding, mode, upsample, slope, _, _ = inputs
    # The sign of the output is the sign of what the activation saw; slope 1 needs neither.
    ctx.save_for_backward(x, weight, output if slope != 1 else None)
    ctx.geometry, ctx.slope = (stride, padding, mode, upsample), slope
    ctx.residual_batch = None if residual is None else residual.shape[0]


def _conv_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    import torch

    x, weight, output = ctx.saved_tensors
    need_x, need_weight, need_bias, need_residual = ctx.needs_input_grad[:4]
    dz = _wide(grad)
    if ctx.slope != 1:
        dz = torch.where(output > 0, dz, dz * ctx.slope)
    dx = dw = db = dr = None
    if need_x or need_weight:
        dx, dw = _conv_gradients(dz, _wide(x), weight, ctx.geometry, need_x, need_weight)
        dx = None if dx is None else dx.to(x.dtype)
    if need_bias:
        db = dz.sum((0, 2, 3))
    if need_residual:
        dr = dz if ctx.residual_batch == dz.shape[0] else dz.sum(0, keepdim=True)
        dr = dr.to(x.dtype)
    return dx, dw, db, dr, *[None] * 7


def _conv_gradients(
    dy: Tensor, x: Tensor, weight: Tensor, geometry: Any, need_x: bool, need_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of ``conv(pad(upsample(x)), weight)`` with respect to x and weight."""
    import torch

    stride, padding, mode, upsample = geometry
    large = x
    if upsample > 1:
        large = x.repeat_interleave(upsample, 2).repeat_interleave(upsample, 3)
    reflect = mode == "reflect" and padding > 0
    padded = _ref._spread(large, padding, mode, 1) if reflect else large
    own = 0 if reflect else padding
    dx, dw, _ = torch.ops.aten.convolution_backward(
        dy,
        padded,
        weight,
        None,
        [stride, stride],
        [own, own],
        [1, 1],
        False,
        [0, 0],
        1,
        [need_x, need_weight, False],
    )
    if dx is None:
        return None, dw
    if reflect:
        dx = torch.ops.aten.reflection_pad2d_backward(dx, large, [padding] * 4)
    if upsample > 1:
        n, c, h, w = x.shape
        dx = dx.reshape(n, c, h, upsample, w, upsample).sum((3, 5))
    return dx, dw


def _norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    gamma: Tensor,
    beta: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    stride: int,
    padding: int,
    padding_mode: str,
    upsample: int,
    eps: float,
    load_slope: float,
    impl: str,
    key: int,
) -> tuple[Tensor, Tensor, Tensor]:
    x = _check.as_dense(x)
    residual = None if residual is None else _check.as_dense(residual)
    if (scale is None) != (shift is None):
        raise ValueError("scale and shift belong together; give both or none")
    if scale is not None and shift is not None:
        _check.norm_pair(scale, shift, x, _check.dtype_name("x", x))
        scale, shift = scale.contiguous(), shift.contiguous()
    packed = _packed.find(key, weight)
    if packed is not None:
        return packed.module.conv_norm(x, packed.handle, scale, shift, residual)
    spec = ConvSpec(
        _numpy(weight),
        _numpy(bias),
        stride,
        padding,
        padding_mode,
        upsample,
        1.0,
        _check.dtype_name("x", x),
        load_slope,
        _numpy(gamma),
        _numpy(beta),
        eps,
    )
    modules = _modules("conv_instance_norm", impl, x)
    home = None if x.device.type == "cpu" else str(x.device)
    return _dispatch.run(
        modules, lambda m: m.conv_norm(x, m.pack_conv(spec, home), scale, shift, residual)
    )


def _norm_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    gamma: Tensor,
    beta: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    stride: int,
    padding: int,
    padding_mode: str,
    upsample: int,
    eps: float,
    load_slope: float,
    impl: str,
    key: int,
) -> tuple[Tensor, Tensor, Tensor]:
    size = _out_size(x, weight, stride, padding, upsample)
    y = _empty((x.shape[0], weight.shape[0], *size), x)
    stats = (x.shape[0], weight.shape[0])
    return y, weight.new_empty(stats, device=x.device), weight.new_empty(stats, device=x.device)


def _norm_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, _, gamma, _, scale, shift, residual, stride, padding, mode, upsample = inputs[:12]
    ctx.save_for_backward(x, weight, gamma, scale, shift, residual, output[0])
    ctx.geometry = (stride, padding, mode, upsample)
    ctx.eps, ctx.load_slope = inputs[12], inputs[13]


def _norm_backward(ctx: Any, dy: Tensor, dscale: Tensor, dshift: Tensor) -> tuple[Any, ...]:
    """Through scale = gamma r and shift = beta - mean gamma r, with r = (var + eps)^-1/2."""
    import torch

    x, weight, gamma, scale, shift, residual, y = ctx.saved_tensors
    need = ctx.needs_input_grad
    wide, y = _wide(x), _wide(y)
    count = y.shape[2] * y.shape[3]
    var, mean = torch.var_mean(y, (2, 3), correction=0)
    r = (var + ctx.eps).rsqrt()
    along = dscale - dshift * mean
    dgamma, dbeta = (along * r).sum(0), dshift.sum(0)
    dmean = -dshift * gamma * r
    dvar = along * gamma * (-0.5) * r * r * r
    centred = y - mean[:, :, None, None]
    dz = _wide(dy) + (dmean[:, :, None, None] + 2 * dvar[:, :, None, None] * centred) / count
    # What the convolution saw.
    value = wide if scale is None else wide * scale[:, :, None, None] + shift[:, :, None, None]
    loaded = value if ctx.load_slope == 1 else torch.where(value > 0, value, value * ctx.load_slope)
    loaded = loaded if residual is None else loaded + _wide(residual)
    need_load = bool(need[0] or need[5] or need[6] or need[7])
    du, dw = _conv_gradients(dz, loaded, weight, ctx.geometry, need_load, bool(need[1]))
    dx = dscale_in = dshift_in = dresidual = None
    if du is not None:
        dresidual = du.to(x.dtype) if residual is not None else None
        if ctx.load_slope != 1:
            du = torch.where(value > 0, du, du * ctx.load_slope)
        if scale is not None:
            dscale_in, dshift_in = (du * wide).sum((2, 3)), du.sum((2, 3))
            du = du * scale[:, :, None, None]
        dx = du.to(x.dtype)
    dbias = dz.sum((0, 2, 3)) if need[2] else None
    grads = (dx, dw, dbias, dgamma, dbeta, dscale_in, dshift_in, dresidual)
    return *grads, *[None] * 8
