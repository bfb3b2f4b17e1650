"""Where a run on the cuda backend finds things: memory, index maps, tensors of the caller."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from fastgen.backends import reflect_index
from fastgen.backends._cuda_memory import Layout, plan_layouts
from fastgen.backends._steps import Lowered, Norm
from fastgen.ops._cuda_pack import DTYPES

__all__ = ["Device", "ImageKind", "Launch", "Places", "fill", "float32"]

_OWN, _FLOAT, _BYTE = 0, 1, 2  # Kind in csrc/cuda/conv_geometry.h
_PHOTO, _PICTURE, _FIRST_CHANNEL = 0, 1, 2  # the caller's tensors of a run on images


@dataclass(frozen=True)
class ImageKind:
    """Images of the caller: (n, height, width, 3), or (n, 3, height, width) when planar."""

    n: int
    height: int
    width: int
    is_byte: bool
    bgr: bool
    planar: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the caller's array."""
        size = self.height, self.width
        return (self.n, 3, *size) if self.planar else (self.n, *size, 3)

    @property
    def step(self) -> int:
        """Elements from one channel of a pixel to the next."""
        return self.height * self.width if self.planar else 1

    @property
    def pixel(self) -> int:
        """Elements from one pixel to the next."""
        return 1 if self.planar else 3


class Device:
    """A GPU, and the weights of one network on it.

    Args:
        native: the extension module.
        index: of the GPU.
        dtype: a key of ``DTYPES``: of values and weights.
    """

    def __init__(self, native: ModuleType, index: int, dtype: str) -> None:
        self.native, self.index, self.dtype = native, index, dtype
        facts = native.device(index)
        self.name = str(facts["name"])
        self.limits = int(facts["multiprocessors"]), int(facts["shared_bytes"])
        self.itemsize = 4 if dtype == "float32" else 2
        self.stream = native.Stream(index)
        self._arrays: dict[Any, Any] = {}

    def memory(self, size: int, host: bool = False) -> Any:
        """Memory of the device, or page-locked memory, of at least one byte."""
        return self.native.Buffer(self.index, max(int(size), 1), host)

    def upload(self, array: np.ndarray) -> Any:
        """A copy on the device."""
        array = np.ascontiguousarray(array)
        memory = self.memory(array.nbytes)
        if array.nbytes:
            self.native.copy(memory.address, array.ctypes.data, array.nbytes, self.stream.handle)
            self.native.synchronize(self.stream.handle)
        return memory

    def kept(self, key: Any, make: Callable[[], np.ndarray]) -> int:
        """Address of an array that is uploaded when it is first asked for."""
        if key not in self._arrays:
            self._arrays[key] = self.upload(make())
        return int(self._arrays[key].address)


@dataclass
class Launch:
    """One step: a kernel and its arguments."""

    label: str
    function: Callable[..., None]
    args: tuple[Any, ...]

    def __call__(self, stream: int) -> None:
        self.function(*self.args, stream)

    @property
    def conv(self) -> Any:
        """Arguments of a tensor core convolution, which has tiles to choose from; else None."""
        return self.args[0] if hasattr(self.args[0], "width_log") else None


class Places:
    """Memory of the device for one kind of input, and where each value is read and written.

    Args:
        device: where to run.
        lowered: legal steps.
        shapes: shapes of all graph values.
        image: the caller's images where the network's only input and output are some.
        keep: constant steps are launched on their own, when the constants change.
    """

    def __init__(
        self,
        device: Device,
        lowered: Lowered,
        shapes: Mapping[str, tuple[int, ...]],
        image: ImageKind | None = None,
        keep: bool = False,
    ) -> None:
        self.device, self.native = device, device.native
        self._lowered = lowered
        self.image = image
        self.shapes = dict(shapes)
        self._layouts, self.arena_bytes = plan_layouts(lowered, shapes, device.itemsize, keep)
        self._external = list(lowered.inputs.values()), list(lowered.outputs.values())
        tensors = sum(map(len, self._external))
        if tensors > self.native.io_tensors - 1:
            most = self.native.io_tensors - 1
            raise ValueError(f"the graph has {tensors} inputs and outputs, {most} are possible")
        self._arena = device.memory(self.arena_bytes)
        self.io = device.memory(self.native.Io.bytes)
        self._slots = self._make_slots()
        self._maps: dict[bytes, Any] = {}
        self._workspace_floats = 1
        self._workspace: Any = None
        self._waiting: list[tuple[Any, str]] = []  # structures and fields that get the workspace

    @property
    def bytes(self) -> int:
        """Memory of the device that this plan holds."""
        maps = sum(m.bytes for m in self._maps.values())
        rest = [self._arena, self._workspace, self.io, self._slots[0]]
        return int(maps + sum(memory.bytes for memory in rest))

    @property
    def tensors(self) -> list[tuple[int, ...]]:
        """Shapes of the network's inputs and outputs, whose numbers the caller has or gets."""
        found = [self._layouts[i] for ends in self._external for i in ends]
        return [(layout.n, layout.c, layout.h, layout.w) for layout in found]

    # ------------------------------------------------------------------ memory

    def _make_slots(self) -> tuple[Any, list[tuple[int, int, int]]]:
        """Memory of all scales and shifts, and (scale, shift, image stride) of each slot."""
        n = max(layout.n for layout in self._layouts)
        places, total = [], 0
        for slot in self._lowered.slots:
            places.append(total)
            total += 2 * -(-4 * n * slot.channels // 256) * 256
        memory = self.device.memory(total)
        result = []
        for index, (slot, place) in enumerate(zip(self._lowered.slots, places, strict=True)):
            if slot.scale is not None and slot.shift is not None:
                pair = [
                    self.device.kept(("slot", index, which), lambda v=vector: float32(v))  # type: ignore[misc]
                    for which, vector in enumerate((slot.scale, slot.shift))
                ]
                result.append((pair[0], pair[1], 0))
            else:
                scale = memory.address + place
                shift = scale + -(-4 * n * slot.channels // 256) * 256
                result.append((scale, shift, slot.channels))
        return memory, result

    def _map(self, index: np.ndarray) -> int:
        index = np.ascontiguousarray(index, np.int32)
        key = index.tobytes()
        if key not in self._maps:
            self._maps[key] = self.device.upload(index)
        return int(self._maps[key].address)

    def _address(self, layout: Layout) -> int:
        return int(self._arena.address + layout.offset)

    def _reading(self, index: int) -> tuple[dict[str, Any], int, int]:
        """Fields that say where a value is read, and its rows and columns there."""
        layout = self._layouts[index]
        if layout.tensor < 0:
            fields = {
                "x": self._address(layout),
                "x_tensor": -1,
                "x_kind": _OWN,
                "x_image": layout.image,
                "x_pixel": layout.pixel,
                "x_channel": 1,
            }
            return fields, layout.h, layout.w
        image = self.image
        if image is None:
            fields = {
                "x_tensor": layout.tensor,
                "x_kind": _FLOAT,
                "x_image": layout.c * layout.pixels,
                "x_pixel": 1,
                "x_channel": layout.pixels,
            }
            return fields | {"io": self.io.address}, layout.h, layout.w
        fields = {
            "io": self.io.address,
            "x_tensor": _FIRST_CHANNEL,
            "x_kind": _BYTE if image.is_byte else _FLOAT,
            "x_image": 3 * image.height * image.width,
            "x_pixel": image.pixel,
            "x_channel": -image.step if image.bgr else image.step,
        }
        return fields, image.height, image.width

    def _writing(self, index: int) -> dict[str, Any]:
        """Fields that say where a value is written."""
        layout = self._layouts[index]
        if layout.tensor < 0:
            return {
                "y": self._address(layout),
                "y_tensor": -1,
                "y_kind": _OWN,
                "y_image": layout.image,
                "y_pixel": layout.pixel,
                "y_channel": 1,
            }
        if self.image is None:
            return {
                "io": self.io.address,
                "y_tensor": layout.tensor,
                "y_kind": _FLOAT,
                "y_image": layout.c * layout.pixels,
                "y_pixel": 1,
                "y_channel": layout.pixels,
            }
        return {
            "io": self.io.address,
            "y_tensor": _PICTURE,
            "y_kind": _BYTE if self.image.is_byte else _FLOAT,
            "y_image": 3 * self.image.height * self.image.width,
            "y_pixel": self.image.pixel,
            "y_channel": self.image.step,
            "is_image": True,
        }

    def _start(self, index: int, vertical: bool) -> np.ndarray:
        """Rows (columns) of the caller's tensor that those of a value show."""
        layout = self._layouts[index]
        size = layout.h if vertical else layout.w
        if layout.tensor >= 0 and self.image is not None:
            return reflect_index(self.image.height if vertical else self.image.width, size)
        return np.arange(size, dtype=np.int64)

    def _norm_fields(self, structure: Any, norm: Norm, scale: str, shift: str) -> None:
        channels = self._lowered.slots[norm.slot].channels
        one, zero = np.ones(channels), np.zeros(channels)
        weight = one if norm.weight is None else norm.weight
        bias = zero if norm.bias is None else norm.bias
        key = ("norm", norm.slot)
        at = self._slots[1][norm.slot]
        fields = {
            "gamma": self.device.kept((*key, "gamma"), lambda: float32(weight)),
            "beta": self.device.kept((*key, "beta"), lambda: float32(bias)),
            scale: at[0],
            shift: at[1],
        }
        fill(structure, fields)

    def _wants(self, structure: Any, name: str, floats: int) -> None:
        self._workspace_floats = max(self._workspace_floats, floats)
        self._waiting.append((structure, name))
        setattr(structure, name, 16)  # until its memory is there

    @property
    def _dtype(self) -> int:
        return DTYPES[self.device.dtype]


def float32(values: Any) -> np.ndarray:
    """A contiguous float32 array."""
    return np.ascontiguousarray(values, np.float32)


def fill(structure: Any, fields: Mapping[str, Any]) -> None:
    """Sets fields of a native structure."""
    for name, value in fields.items():
        setattr(structure, name, value)
