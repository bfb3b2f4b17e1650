"""Weights that were folded and packed once, for one implementation, dtype and device."""

from __future__ import annotations

import secrets
import sys
import weakref
from typing import Any

import numpy as np

from fastgen.ops import _check, _dispatch
from fastgen.ops._spec import ConvSpec

__all__ = ["PackedConv", "PackedConvConcat", "StylePart", "find", "fold"]

MOST_SIZES = 64  # of inputs, remembered for each packing

# Packed weights that are alive, by key: how torch.ops.fastgen finds the packing of the weights that
# it is given. Keys are random, so that one in a saved program never meets another's weights.
_alive: weakref.WeakValueDictionary[int, PackedConv] = weakref.WeakValueDictionary()


class PackedConv:
    """A convolution's weights as one implementation wants them.

    Made by :func:`fastgen.ops.pack_conv_bn` or :func:`fastgen.ops.pack_conv_instance_norm` and
    given in place of ``weight``. It is a constant: later changes of the arrays that it was made
    from do not reach it, and no gradient flows to them. Pickling keeps the folded weights and packs
    them again when loaded.

    Attributes:
        op: ``"conv_bn_leaky_relu"`` or ``"conv_instance_norm"``.
        impl: the implementation that it was packed for.
        device: where tensors must be, e.g. ``"cpu"`` or ``"cuda:0"``.
        dtype: name of the dtype that tensors must have.
        spec: the folded weights and everything else that was packed.
    """

    def __init__(self, op: str, spec: ConvSpec, impl: str, device: str) -> None:
        self.op = op
        self.spec = spec
        self.device = device
        self.dtype = spec.dtype
        self._asked = impl
        kind = device.partition(":")[0]
        modules = _dispatch.candidates(op, impl, kind, spec.dtype)
        home = None if device == "cpu" else device
        self.module, self.handle = _dispatch.run(modules, lambda m: (m, m.pack_conv(spec, home)))
        self.impl = _dispatch.name_of(self.module)
        # Plain numbers beside the spec, because compilers read them.
        self.shape = tuple(spec.weight.shape)
        self.geometry = (spec.stride, spec.padding, spec.padding_mode, spec.upsample)
        self.negative_slope, self.load_slope, self.eps = (
            spec.negative_slope,
            spec.load_slope,
            spec.eps,
        )
        # Of inputs that have been checked: their shape -> rows and columns of the output.
        self.sizes: dict[tuple[int, ...], tuple[int, int]] = {}
        self.key = secrets.randbits(62) | 1
        self.tensors: tuple[Any, ...] | None = None
        if sys.modules.get("torch") is not None:
            self.as_tensors()
        _alive[self.key] = self

    def as_tensors(self) -> tuple[Any, ...]:
        """Folded weight, bias, gamma and beta as torch tensors (None where there is none)."""
        if self.tensors is None:
            import torch

            arrays = (self.spec.weight, self.spec.bias, self.spec.gamma, self.spec.beta)
            self.tensors = tuple(
                None if a is None else torch.from_numpy(a).to(self.device) for a in arrays
            )
        return self.tensors

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedConv, (self.op, self.spec, self._asked, self.device)

    def __repr__(self) -> str:
        o, i, k, _ = self.shape
        stride, padding, mode, upsample = self.geometry
        up = f", upsample {upsample}" if upsample > 1 else ""
        return (
            f"PackedConv({self.op}: {i} -> {o} channels, {k}x{k}, stride {stride}, padding "
            f"{padding} {mode}{up}; {self.dtype} for impl {self.impl!r} on {self.device})"
        )


class PackedConvConcat:
    """A convolution over concatenated content and style features, as its two halves.

    Made by :func:`fastgen.ops.pack_conv_concat` and given to :func:`fastgen.ops.conv_concat` in
    place of ``weight``.

    Attributes:
        content: the convolution of the content's channels, with bias and activation.
        style: the convolution of the style's channels: no bias, no activation.
    """

    def __init__(self, content: PackedConv, style: PackedConv) -> None:
        self.content = content
        self.style = style

    def style_part(
        self, style: Any, height: int | None = None, width: int | None = None
    ) -> StylePart:
        """The style's share of every output, computed once and reused for many contents.

        Args:
            style: (N or 1, Cs, H, W), or (N or 1, Cs) for a style that is the same everywhere.
            height: rows of the contents that it is for; needed for a style without positions.
            width: columns of those.

        Raises:
            TypeError, ValueError: a style or size that does not fit.
        """
        from fastgen.ops.conv_concat import style_part

        return style_part(self, style, height, width)

    def __repr__(self) -> str:
        return f"PackedConvConcat({self.style.shape[1]} style channels and {self.content!r})"


class StylePart:
    """What a style adds to the output of a :func:`fastgen.ops.conv_concat`.

    Attributes:
        value: (N or 1, O, rows, columns) tensor or array, in the packing's dtype.
        height: rows of the contents that it fits.
        width: columns of those.
        packed: the weights that it was computed with; it fits no others.
    """

    def __init__(self, value: Any, height: int, width: int, packed: PackedConvConcat) -> None:
        self.value = value
        self.height = height
        self.width = width
        self.packed = packed
        self.fits: set[tuple[int, ...]] = set()  # shapes of contents that have been checked
        self._last: Any = None

    def beside(self, content: Any) -> Any:
        """The value in the memory format of the contents, made at the first use of that format.

        Otherwise every call would turn it anew, which takes longer than the convolution.
        """
        array = isinstance(content, np.ndarray)
        if (content.strides[1] // content.itemsize if array else content.stride(1)) != 1:
            return self.value
        if self._last is None:
            if self.value.shape[1] == 1:
                self._last = self.value
            elif isinstance(self.value, np.ndarray):
                rows = np.ascontiguousarray(self.value.transpose(0, 2, 3, 1))
                self._last = rows.transpose(0, 3, 1, 2)
            else:
                import torch

                self._last = self.value.contiguous(memory_format=torch.channels_last)
        return self._last

    def remember(self, shape: tuple[int, ...]) -> None:
        """Contents of this shape have been checked, and so has the value for them."""
        if len(self.fits) >= MOST_SIZES:
            self.fits.clear()
        self.fits.add(tuple(shape))

    def __repr__(self) -> str:
        n, o, _, _ = self.value.shape
        return f"StylePart({n} style(s), {o} channels, for contents of {self.width}x{self.height})"


def find(key: int, weight: Any) -> PackedConv | None:
    """The living packing of exactly this weight tensor, if there is one."""
    packed = _alive.get(key) if key else None
    if packed is None or packed.tensors is None:
        return None
    # A program that was saved, copied or moved has weights of its own, and may have changed them.
    return packed if packed.tensors[0].data_ptr() == weight.data_ptr() else None


def target(weight: Any, dtype: Any, device: Any) -> tuple[str, str]:
    """Names of the dtype and device that weights are packed for.

    Raises:
        TypeError: not a dtype or device.
        ValueError: a dtype that ops do not take.
    """
    if dtype is None:
        name = _check.dtype_name("weight", weight)
    else:
        name = str(dtype).removeprefix("torch.")
        if name not in _check.DTYPES:
            name = getattr(np.dtype(dtype), "name", name) if name.startswith("<class") else name
        if name not in _check.DTYPES:
            raise ValueError(f"dtype is {dtype!r}, must be one of {', '.join(_check.DTYPES)}")
    if device is None:
        home = "cpu" if isinstance(weight, np.ndarray) else str(weight.device)
    else:
        home = str(device)
        if home.partition(":")[0] not in ("cpu", "cuda", "mps", "xpu"):
            raise ValueError(f"device is {device!r}, must be 'cpu' or 'cuda'")
    if home == "cuda":
        import torch

        home = f"cuda:{torch.cuda.current_device()}"
    return name, home


def check_use(packed: PackedConv, op: str, x: Any, dtype: str, impl: str) -> None:
    """Packed weights are for this op, dtype, device and implementation.

    Raises:
        TypeError: another op or dtype.
        ValueError: another device or implementation.
    """
    if packed.op != op:
        raise TypeError(f"these weights were packed for {packed.op}, not for {op}; pack them anew")
    if packed.dtype != dtype:
        raise TypeError(
            f"x is {dtype}, these weights were packed for {packed.dtype}; convert x or pack with "
            f"dtype={dtype!r}"
        )
    home = "cpu" if isinstance(x, np.ndarray) or x.is_cpu else str(x.device)
    if packed.device != home and home != "meta":
        raise ValueError(
            f"x is on {home}, these weights were packed for {packed.device}; move x or pack with "
            f"device={home!r}"
        )
    if impl != "auto" and impl != packed.impl:
        raise ValueError(
            f"impl is {impl!r}, these weights were packed for {packed.impl!r}; pack with that impl"
        )


def fold(
    weight: Any, bias: Any, gamma: Any, beta: Any, mean: Any, var: Any, eps: float, dtype: str
) -> tuple[Any, Any]:
    """Batch norm folded into a convolution, in float64: (weight, bias) in float32.

    ``w' = w gamma / sqrt(var + eps)``, ``b' = (bias - mean) gamma / sqrt(var + eps) + beta``;
    what is None is left out. float64 when ``dtype`` is. Differentiable for torch tensors.
    """
    if isinstance(weight, np.ndarray):
        result: Any = np.float64 if dtype == "float64" else np.float32
        zeros: Any = np.zeros(weight.shape[0], result)

        def cast(v: Any, to: Any) -> Any:
            return v.astype(to)

        double: Any = np.float64
    else:
        import torch

        result = torch.float64 if dtype == "float64" else torch.float32
        zeros = torch.zeros(weight.shape[0], dtype=result, device=weight.device)

        def cast(v: Any, to: Any) -> Any:
            return v.to(to)

        double = torch.float64
    factor = None if var is None else (cast(var, double) + eps) ** -0.5
    if gamma is not None:
        factor = cast(gamma, double) if factor is None else factor * cast(gamma, double)
    offset = None if bias is None else cast(bias, double)
    if mean is not None:
        offset = -cast(mean, double) if offset is None else offset - cast(mean, double)
    if factor is not None:
        weight = cast(weight, double) * factor[:, None, None, None]
        offset = None if offset is None else offset * factor
    if beta is not None:
        offset = cast(beta, double) if offset is None else offset + cast(beta, double)
    return cast(weight, result), zeros if offset is None else cast(offset, result)


def make_spec(weight: Any, bias: Any, where: Any, **rest: Any) -> ConvSpec:
    """A spec from folded arrays and a geometry (stride, padding, padding mode, upsampling)."""
    stride, padding, padding_mode, upsample = where
    return ConvSpec(weight, bias, stride, padding, padding_mode, upsample, **rest)


def to_numpy(value: Any) -> Any:
    """A C-contiguous copy, as an array, of what an array or tensor holds; None stays None."""
    if value is None:
        return None
    if isinstance(value, np.ndarray):
        return np.array(value, order="C")
    import torch

    # numpy has no bfloat16, and no tensors that are stored with the opposite sign.
    plain = value.detach().cpu().resolve_neg()
    plain = plain.float() if plain.dtype == torch.bfloat16 else plain
    return np.array(plain.numpy(), order="C")
