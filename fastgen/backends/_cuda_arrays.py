"""Arrays on a GPU: those that come, of whatever library, and our own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["DeviceArray", "DeviceInput", "on_device"]

_DLPACK_CUDA = 2
_KINDS = "a numpy array or a GPU tensor (PyTorch, __cuda_array_interface__ or DLPack)"


class DeviceArray:
    """A dense array on a GPU, for any library that knows ``__cuda_array_interface__`` or DLPack.

    Args:
        memory: a ``_cuda.Buffer`` that holds it.
        shape: of the array.
        dtype: name of its type, ``"float32"`` or ``"uint8"``.
        device: index of the GPU.
    """

    def __init__(self, memory: Any, shape: tuple[int, ...], dtype: str, device: int) -> None:
        self._memory, self._device = memory, device
        self.shape = tuple(shape)
        self.dtype = np.dtype(dtype)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self._memory.address, False),
            "strides": None,
            "stream": 1,  # the default stream
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return _DLPACK_CUDA, self._device

    def __dlpack__(self, *, stream: int | None = None, **_: Any) -> Any:
        from fastgen import _cuda

        if stream not in (None, -1, 0, 1):  # what writes here was launched on the default stream
            event = _cuda.Event(self._device)
            event.record(0)
            event.wait(stream)
        size = self.dtype.itemsize
        return _cuda.to_dlpack(
            self._memory, list(self.shape), self.dtype.kind == "f", size, self._device
        )


@dataclass(frozen=True)
class DeviceInput:
    """A dense array on the GPU of a run.

    Attributes:
        address: of its first element.
        shape: its shape.
        dtype: name of its type.
        stream: that its contents are made and used on.
        like: makes an array of its kind and type.
        owner: keeps the memory.
    """

    address: int
    shape: tuple[int, ...]
    dtype: str
    stream: int
    like: Callable[[tuple[int, ...]], Any]
    owner: Any

    def check(self, name: str, shape: tuple[int, ...], dtype: str) -> None:
        """Raises ValueError where shape or type are others."""
        if self.shape != tuple(shape) or self.dtype != dtype:
            raise ValueError(
                f"{name} has the shape {self.shape} and dtype {self.dtype}, must be "
                f"{tuple(shape)} and {dtype}"
            )


def on_device(value: Any, device: int, out: bool = False) -> DeviceInput:
    """What is known of an array of whatever library.

    Args:
        value: the array; one of PyTorch is made contiguous, others must be.
        device: index of the GPU that it must be on.
        out: it will be written, so it must be contiguous as it is.

    Raises:
        TypeError: it is none. ValueError: it is elsewhere or not contiguous.
    """
    if isinstance(value, DeviceInput):
        return value
    if hasattr(value, "is_cuda"):
        return _of_torch(value, device, out)
    if hasattr(value, "__cuda_array_interface__"):
        facts = value.__cuda_array_interface__
        shape = tuple(int(size) for size in facts["shape"])
        dtype = np.dtype(facts["typestr"])
        strides = facts.get("strides")
        if strides is not None and not _dense(shape, strides, dtype.itemsize):
            raise ValueError("a GPU array is not contiguous; make it so")
        address, stream = int(facts["data"][0]), facts.get("stream") or 0
        stream = 0 if stream == 1 else int(stream)
        return DeviceInput(address, shape, dtype.name, stream, _maker(dtype, device), value)
    if hasattr(value, "__dlpack__"):
        return _of_dlpack(value, device)
    raise TypeError(f"input is {type(value).__name__}, must be {_KINDS}")


def _of_torch(value: Any, device: int, out: bool) -> DeviceInput:
    import torch

    if not value.is_cuda or value.device.index != device:
        raise ValueError(
            f"a tensor is on {value.device}, this runner on cuda:{device}; move the tensor, or "
            "compile with device="
        )
    if out and not value.is_contiguous():
        raise ValueError("out is not contiguous; make it so")
    dense = value.detach().contiguous()
    stream = int(torch.cuda.current_stream(value.device).cuda_stream)
    dtype = str(value.dtype).removeprefix("torch.")
    return DeviceInput(
        int(dense.data_ptr()),
        tuple(dense.shape),
        dtype,
        stream,
        lambda shape: torch.empty(shape, dtype=value.dtype, device=value.device),
        dense,
    )


def _of_dlpack(value: Any, device: int) -> DeviceInput:
    from fastgen import _cuda

    kind, where = (int(v) for v in value.__dlpack_device__())
    if (kind, where) != (_DLPACK_CUDA, device):
        raise ValueError(
            f"an array is on DLPack device ({kind}, {where}), this runner on GPU {device}; move it"
        )
    # It is ours to wait for: what fills the array precedes what follows on the default stream.
    capsule = value.__dlpack__(stream=1)
    address, shape, strides, code, bits = _cuda.from_dlpack(capsule)
    dtype = {(2, 32): "float32", (1, 8): "uint8"}.get((code, bits), f"type {code} of {bits} bits")
    if strides is not None and not _dense(tuple(shape), strides, 1):
        raise ValueError("a GPU array is not contiguous; make it so")
    maker = _maker(np.dtype("uint8" if bits == 8 else "float32"), device)
    return DeviceInput(int(address), tuple(shape), dtype, 0, maker, (value, capsule))


def _dense(shape: tuple[int, ...], strides: Any, step: int) -> bool:
    for size, stride in zip(reversed(shape), reversed(tuple(strides)), strict=True):
        if size != 1 and stride != step:
            return False
        step *= size
    return True


def _maker(dtype: np.dtype, device: int) -> Callable[[tuple[int, ...]], DeviceArray]:
    def make(shape: tuple[int, ...]) -> DeviceArray:
        from fastgen import _cuda

        memory = _cuda.Buffer(device, max(1, int(np.prod(shape)) * dtype.itemsize))
        return DeviceArray(memory, shape, dtype.name, device)

    return make
