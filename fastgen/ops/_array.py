"""CPU tensors of torch and numpy arrays as the C++ kernels take them: an address, sizes, strides.

Everything here is on the path of every call, so it is short: no chains of checks, no conversion
of what fits already. torch is never imported; a tensor brings it along.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

try:
    from fastgen._C import array_address
except ImportError:  # then nothing reads an address, either; see why_not of the implementations

    def array_address(array: Any) -> int:
        """Where the first element of a numpy array lies."""
        return array.ctypes.data


__all__ = [
    "FLOAT32",
    "Dense",
    "Described",
    "address",
    "channels_last",
    "contiguous",
    "dense",
    "describe",
    "empty",
    "empty_like",
]

# Address, shape, strides in elements, dtype code.
Described = tuple[int, tuple[int, ...], tuple[int, ...], int]
# The same with "channels last" in place of the strides.
Dense = tuple[int, tuple[int, ...], bool, int]

FLOAT32 = 0  # DType of csrc/fastgen.h; float16 is 1, bfloat16 is 2
_NAMES = ("float32", "float16", "bfloat16")
_CODES: dict[Any, int] = {np.dtype(np.float32): 0, np.dtype(np.float16): 1}
_NUMPY = (np.dtype(np.float32), np.dtype(np.float16))
_TORCH: list[Any] = []  # torch.dtype by code, filled by the first tensor


def describe(x: Any) -> Described:
    """What a kernel needs to know of a tensor.

    Args:
        x: a CPU torch tensor (float32, float16, bfloat16) or numpy array (float32, float16) of any
            strides. The caller keeps it alive while the address is in use.

    Returns:
        (address, shape, strides in elements, dtype code of csrc/fastgen.h).

    Raises:
        TypeError: another dtype, or a numpy array whose bytes are swapped.
        ValueError: a numpy array whose strides are no whole elements (a field of a record).
    """
    if isinstance(x, np.ndarray):
        code = _CODES.get(x.dtype)
        if code is None:
            raise _wrong_dtype(x.dtype)
        size = 2 if code else 4
        a, b, c, d = x.strides if x.ndim == 4 else (0, 0, 0, 0)
        if (a | b | c | d) % size == 0 and x.ndim == 4:
            strides: tuple[int, ...] = (a // size, b // size, c // size, d // size)
        else:
            if any(s % size for s in x.strides):
                raise ValueError(
                    f"strides of {x.strides} bytes are no multiple of the {size} bytes of "
                    f"{x.dtype}; pass numpy.ascontiguousarray(x)"
                )
            strides = tuple(s // size for s in x.strides)
        return array_address(x), x.shape, strides, code
    code = _CODES.get(x.dtype)
    if code is None:
        code = _torch_code(x.dtype)
    return x.data_ptr(), x.shape, x.stride(), code


def dense(x: Any) -> tuple[Any, Dense]:
    """A (N,C,H,W) tensor, or a contiguous copy where it is dense in neither order.

    Args:
        x: as for :func:`describe`.

    Returns:
        The tensor, to be kept alive, and its description.
    """
    if isinstance(x, np.ndarray):
        at, shape, strides, code = describe(x)
        last = channels_last(shape, strides)
        if last is None:
            x = contiguous(x)
            at, last = array_address(x), False
        return x, (at, shape, last, code)
    code_ = _CODES.get(x.dtype)
    if code_ is None:
        code_ = _torch_code(x.dtype)
    last = False
    if not x.is_contiguous():
        last = x.is_contiguous(memory_format=sys.modules["torch"].channels_last)
        if not last:
            x = x.contiguous()
    return x, (x.data_ptr(), x.shape, last, code_)


def address(x: Any) -> int:
    """Where the first element of a tensor lies."""
    return array_address(x) if isinstance(x, np.ndarray) else x.data_ptr()


def channels_last(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool | None:
    """The memory format of a (N,C,H,W) tensor.

    Axes of size 1 have a meaningless stride; they decide only where nothing else does.

    Returns:
        False for dense (N,C,H,W), True for dense (N,H,W,C), None for anything else.
    """
    n, c, h, w = shape
    plane = h * w
    sn, sc, sh, sw = strides
    if n == 1:
        sn = c * plane
    if sn == c * plane:
        if sw == 1 and sh == w and sc == plane:
            return False
        if sc == 1 and sw == c and sh == w * c:
            return True
    if _dense(shape, strides, (0, 1, 2, 3)):
        return False
    return True if _dense(shape, strides, (0, 2, 3, 1)) else None


def contiguous(x: Any) -> Any:
    """A dense (N,C,H,W) copy of a tensor of other strides."""
    return np.array(x, order="C") if isinstance(x, np.ndarray) else x.contiguous()


def empty(like: Any, shape: tuple[int, ...], last: bool = False, code: int | None = None) -> Any:
    """A new tensor of the kind of ``like``, not initialised.

    Args:
        like: torch tensor or numpy array.
        shape: (N,C,H,W), or any other where ``last`` is False.
        last: memory order (N,H,W,C).
        code: dtype code of csrc/fastgen.h; None for the dtype of ``like``.
    """
    if isinstance(like, np.ndarray):
        dtype = like.dtype if code is None else _NUMPY[code]
        if not last:
            return np.empty(shape, dtype)
        n, c, h, w = shape
        return np.empty((n, h, w, c), dtype).transpose(0, 3, 1, 2)
    torch = sys.modules["torch"]
    if code is not None and not _TORCH:
        _fill_torch()
    dtype = like.dtype if code is None else _TORCH[code]
    # Sizes one by one: torch takes a tuple 0.3 us later.
    if last:
        return torch.empty(*shape, dtype=dtype, memory_format=torch.channels_last)
    return torch.empty(*shape, dtype=dtype)


def empty_like(x: Any) -> Any:
    """A new tensor of the sizes and memory order of a dense one, not initialised."""
    return np.empty_like(x) if isinstance(x, np.ndarray) else sys.modules["torch"].empty_like(x)


def _dense(shape: tuple[int, ...], strides: tuple[int, ...], order: tuple[int, ...]) -> bool:
    step = 1
    for axis in reversed(order):
        if shape[axis] != 1 and strides[axis] != step:
            return False
        step *= shape[axis]
    return True


def _fill_torch() -> None:
    torch = sys.modules["torch"]
    dtypes = [getattr(torch, name) for name in _NAMES]
    _CODES.update({dtype: code for code, dtype in enumerate(dtypes)})
    _TORCH[:] = dtypes


def _torch_code(dtype: Any) -> int:
    if "torch" in sys.modules:
        _fill_torch()
    if dtype not in _CODES:
        raise _wrong_dtype(dtype)
    return _CODES[dtype]


def _wrong_dtype(dtype: Any) -> TypeError:
    swapped = isinstance(dtype, np.dtype) and not dtype.isnative
    why = f"{dtype} with swapped bytes" if swapped else str(dtype)
    return TypeError(
        f"the dtype is {why}; the C++ kernels take {', '.join(_NAMES[:2])} and (torch) "
        f"{_NAMES[2]}; convert it first"
    )
