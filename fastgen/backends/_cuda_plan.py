"""What is launched for inputs of one kind: addresses, index maps and kernels of every step.

Everything is decided here once, so that a run is a list of launches, and with a captured graph a
single one. Tensors of the caller are read and written through a small table of addresses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from fastgen.backends import reflect_index
from fastgen.backends._cuda_memory import Layout, plan_layouts
from fastgen.backends._cuda_steps import (
    Kernels,
    Map,
    axis_map,
    conv_map,
    kernels_of,
    single_phases,
)
from fastgen.backends._steps import (
    ConvStep,
    CopyStep,
    GivenStep,
    Lowered,
    Norm,
    PlainStep,
    Source,
    StatsStep,
    Step,
    View,
)
from fastgen.ops._cuda_pack import DTYPES, pack_kernels

__all__ = ["Device", "ImageKind", "Launch", "Plan"]

_OWN, _FLOAT, _BYTE = 0, 1, 2  # Kind in csrc/cuda/conv_geometry.h
_PHOTO, _PICTURE, _FIRST_CHANNEL = 0, 1, 2  # the caller's tensors of a run on images
_RELU, _LEAKY = 1, 2

Shapes = Mapping[str, tuple[int, ...]]


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
            self.native.copy(
                memory.address, array.ctypes.data, array.nbytes, self.stream.handle
            )
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


class Plan:
    """The launches for one kind of input.

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
        shapes: Shapes,
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
        self._waiting: list[tuple[Any, str]] = []  # structures and fields that get the workspace
        launches: list[Launch] = []
        first = 0
        for position, step in enumerate(lowered.steps):
            if position == lowered.constant:
                first = len(launches)
            launches += self._step(position, step)
        if lowered.constant == len(lowered.steps):
            first = len(launches)
        self.constant = launches[:first] if keep else []
        self.launches = launches[first:] if keep else launches
        self._workspace = device.memory(4 * self._workspace_floats)
        for structure, name in self._waiting:
            setattr(structure, name, self._workspace.address)

    @property
    def bytes(self) -> int:
        """Memory of the device that this plan holds."""
        maps = sum(m.bytes for m in self._maps.values())
        slots = self._slots[0].bytes
        return int(self._arena.bytes + self._workspace.bytes + self.io.bytes + maps + slots)

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
                    self.device.kept(("slot", index, which), lambda v=vector: _float32(v))  # type: ignore[misc]
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

    # ------------------------------------------------------------------ steps

    def _step(self, position: int, step: Step) -> list[Launch]:
        if isinstance(step, ConvStep):
            kernels = kernels_of(step)
            if kernels is not None and fits(self.native, self.device, kernels, step.inputs):
                return [self._conv(position, step, kernels)]
            return self._direct(position, step)
        if isinstance(step, CopyStep):
            views = step.source.views
            return [self._apply(step.label, step.source, step.out, views)]
        if isinstance(step, StatsStep) and step.norm is not None:
            return [self._stats(step)]
        if isinstance(step, GivenStep) and step.norm is not None:
            return [self._given(step)]
        if isinstance(step, PlainStep):
            return self._plain(step)
        raise ValueError(f"step {step.label!r} has no implementation in the cuda backend")

    def _conv(self, position: int, step: ConvStep, kernels: Kernels) -> Launch:
        conv = self.native.NetConv()
        packed: list[Any] = []

        def pack(which: int) -> np.ndarray:
            if not packed:
                bias = np.zeros(step.outputs) if step.bias is None else step.bias
                packed.extend(pack_kernels(kernels.weights, _float32(bias), self.device.dtype))
            return packed[which]  # type: ignore[no-any-return]

        fields, height, width = self._reading(step.source.value)
        fields |= self._writing(step.out)
        out, source = self._layouts[step.out], self._layouts[step.source.value]
        count, phases, _, kernel_h, kernel_w = kernels.weights.shape
        phases = kernels.phases
        fields |= {
            "dtype": DTYPES[self.device.dtype],
            "n": out.n,
            "height": height,
            "width": width,
            "out_height": out.h,
            "out_width": out.w,
            "inputs": step.inputs,
            "outputs": step.outputs,
            "kernel_h": kernel_h,
            "kernel_w": kernel_w,
            "stride": step.stride,
            "phases": phases,
            "weights": self.device.kept(("weights", position), lambda: pack(0)),
            "bias": self.device.kept(("bias", position), lambda: pack(1)),
            "row_mode": row_mode(kernels, step.inputs, self.device.dtype),
        }
        rows = self._conv_map(step.source.value, kernels, True, step.stride, out.h)
        columns = self._conv_map(step.source.value, kernels, False, step.stride, out.w)
        if rows is None and columns is None:
            origins = kernels.origins
            point = (kernel_h, kernel_w, step.stride, phases) == (1, 1, 1, 1)
            if step.flat:  # every image is a pixel
                fields |= {"n": 1, "height": 1, "width": out.n, "out_height": 1}
                fields |= {"out_width": out.n, "x_pixel": source.image, "y_pixel": out.image}
            elif point and origins == ([0], [0]) and (height, width) == (out.h, out.w):
                plane = {"height": 1, "width": height * width}
                fields |= plane | {"out_height": 1, "out_width": height * width}
        else:
            rows = rows or self._whole_map(step.source.value, kernels, True, step.stride, out.h)
            columns = columns or self._whole_map(
                step.source.value, kernels, False, step.stride, out.w
            )
            origins = (
                [o - rows.first for o in kernels.origins[0]],
                [o - columns.first for o in kernels.origins[1]],
            )
            fields |= {
                "row_map": self._map(rows.index),
                "column_map": self._map(columns.index),
                "map_rows": len(rows.index),
                "map_columns": len(columns.index),
            }
        fields |= {"phase_origin_y": origins[0], "phase_origin_x": origins[1]}
        fields |= self._load_fields(step.source) | self._residual_fields(step)
        slope, activation = _rectifier(step.act, step.slope)
        fields |= {"slope": slope, "activation": activation}
        if fields.get("is_image") and self.image is not None:
            fields |= {"crop_rows": self.image.height, "crop_columns": self.image.width}
        _fill(conv, fields)
        if step.norm is not None:
            self._norm_fields(conv, step.norm, "out_scale", "out_shift")
            conv.eps = step.norm.eps
            # The most that any tile needs: which one is taken may change.
            floats = 0
            for tile in range(self.native.conv_tiles):
                conv.tile = tile
                try:
                    floats = max(floats, *self._tile_floats(conv))
                except ValueError:
                    continue
            conv.tile = -1
            self._wants(conv, "workspace", floats)
        return Launch(step.label, self.native.net_conv, (conv, *self.device.limits))

    def _tile_floats(self, conv: Any) -> list[int]:
        """Floats of workspace for every width of this tile that fits."""
        found = []
        for log in range(3, 9):
            conv.width_log = log
            try:
                found.append(self.native.net_conv_plan(conv, *self.device.limits)[0])
            except ValueError:
                continue
            finally:
                conv.width_log = -1
        return [0, *found]

    def _conv_map(
        self, index: int, kernels: Kernels, vertical: bool, stride: int, out: int
    ) -> Map | None:
        """The map of a convolution's rows or columns; None where positions show themselves."""
        layout = self._layouts[index]
        outside = layout.tensor >= 0 and self.image is not None
        if not kernels.views and kernels.pad_mode == 0 and not outside:
            return None
        return self._whole_map(index, kernels, vertical, stride, out)

    def _whole_map(
        self, index: int, kernels: Kernels, vertical: bool, stride: int, out: int
    ) -> Map:
        start = axis_map(kernels.views, self._start(index, vertical), vertical)
        origins = kernels.origins[0 if vertical else 1]
        taps = kernels.weights.shape[3 if vertical else 4]
        first = min(*origins, 0)
        last = max(
            (-(-(out - r) // kernels.phases) - 1) * stride + origin + taps - 1
            for r, origin in enumerate(origins)
        )
        return conv_map(start, first, max(last, 0) - first + 1, kernels.pad_mode)

    def _load_fields(self, source: Source) -> dict[str, Any]:
        """Norm and rectifier that a convolution applies while it loads."""
        fields: dict[str, Any] = {}
        if source.slot >= 0:
            scale, shift, image = self._slots[1][source.slot]
            fields |= {"scale": scale, "shift": shift, "scale_image": image}
        return fields | {"load_slope": _rectifier(source.pre, source.pre_slope)[0]}

    def _residual_fields(self, step: ConvStep) -> dict[str, Any]:
        if step.residual < 0:
            return {}
        layout, out = self._layouts[step.residual], self._layouts[step.out]
        same = (layout.h, layout.w) == (out.h, out.w)
        return {
            "residual": self._address(layout),
            "residual_image": layout.image,
            "residual_pixel": layout.image if step.flat else layout.pixel,
            "residual_side": 0 if same else layout.h,
        }

    def _norm_fields(self, structure: Any, norm: Norm, scale: str, shift: str) -> None:
        channels = self._lowered.slots[norm.slot].channels
        one, zero = np.ones(channels), np.zeros(channels)
        weight = one if norm.weight is None else norm.weight
        bias = zero if norm.bias is None else norm.bias
        key = ("norm", norm.slot)
        at = self._slots[1][norm.slot]
        fields = {
            "gamma": self.device.kept((*key, "gamma"), lambda: _float32(weight)),
            "beta": self.device.kept((*key, "beta"), lambda: _float32(bias)),
            scale: at[0],
            shift: at[1],
        }
        _fill(structure, fields)

    def _wants(self, structure: Any, name: str, floats: int) -> None:
        self._workspace_floats = max(self._workspace_floats, floats)
        self._waiting.append((structure, name))
        setattr(structure, name, 16)  # until its memory is there

    def _direct(self, position: int, step: ConvStep) -> list[Launch]:
        """The slow kernel, once for each phase."""
        reading, _, width = self._reading(step.source.value)
        out = self._layouts[step.out]
        bias = np.zeros(step.outputs) if step.bias is None else step.bias
        slope, activation = _rectifier(step.act, step.slope)
        launches = []
        for number, phase in enumerate(single_phases(step)):
            direct = self.native.Direct()
            kernels = Kernels(
                phase.weight[None],
                1,
                ([phase.dy], [phase.dx]),
                step.source.views,
                step.pad_mode,
            )
            maps = []
            for vertical, size in ((True, out.h), (False, out.w)):
                r = phase.ry if vertical else phase.rx
                count = -(-(size - r) // step.out_stride)
                found = self._whole_map(step.source.value, kernels, vertical, step.stride, count)
                origin = (phase.dy if vertical else phase.dx) - found.first
                maps.append(found.index[origin:])
            weight = phase.weight
            fields = {
                "weights": self.device.kept(
                    ("direct", position, number), lambda w=weight: _float32(w)
                ),
                "bias": self.device.kept(("direct bias", position), lambda: _float32(bias)),
                "row_map": self._map(maps[0]),
                "column_map": self._map(maps[1]),
                "n": out.n,
                "x_width": width,
                "out_height": out.h,
                "out_width": out.w,
                "inputs": step.inputs,
                "outputs": step.outputs,
                "groups": step.groups,
                "kernel_h": phase.weight.shape[2],
                "kernel_w": phase.weight.shape[3],
                "stride": step.stride,
                "phase_y": phase.ry,
                "phase_x": phase.rx,
                "out_stride": step.out_stride,
                "slope": slope,
                "activation": activation,
            }
            fields |= reading | self._writing(step.out) | self._residual_fields(step)
            _fill(direct, fields)
            launches.append(Launch(step.label, self.native.net_direct, (self._dtype, direct)))
        return launches

    @property
    def _dtype(self) -> int:
        return DTYPES[self.device.dtype]

    def _apply(
        self,
        label: str,
        source: Source,
        out: int,
        views: Sequence[View],
        channel: int = 0,
        still: bool = False,
    ) -> Launch:
        """Copies a source to a value, from its channel ``channel`` on; ``still``: one pixel."""
        args = self.native.Apply()
        fields, _, width = self._reading(source.value)
        fields |= self._writing(out)
        to, value = self._layouts[out], self._layouts[source.value]
        height_out, width_out = to.h, to.w
        if fields.get("is_image") and self.image is not None:
            height_out, width_out = self.image.height, self.image.width
        elif channel:
            fields["y"] += channel * self.device.itemsize
        fields |= {
            "n": to.n,
            "height": height_out,
            "width": width_out,
            "channels": value.c,
            "x_width": width,
        }
        starts = [self._start(source.value, vertical) for vertical in (True, False)]
        if still:
            maps = [np.zeros(height_out, np.int64), np.zeros(width_out, np.int64)]
        else:
            maps = [
                axis_map(views, start, vertical)
                for start, vertical in zip(starts, (True, False), strict=True)
            ]
        sizes = height_out, width_out
        plain = [np.array_equal(m[:size], np.arange(size)) for m, size in zip(maps, sizes, strict=True)]
        if not all(plain):
            fields["row_map"] = self._map(maps[0][: sizes[0]])
            fields["column_map"] = self._map(maps[1][: sizes[1]])
        if source.slot >= 0:
            scale, shift, image = self._slots[1][source.slot]
            fields |= {"scale": scale, "shift": shift, "scale_image": image}
        fields |= {
            "pre": source.pre,
            "pre_slope": source.pre_slope,
            "post": source.post,
            "post_slope": source.post_slope,
            "combine": source.combine,
        }
        if source.combine:
            fields |= self._combined(source, maps, sizes)
        _fill(args, fields)
        return Launch(label, self.native.net_apply, (self._dtype, args))

    def _combined(
        self, source: Source, maps: list[np.ndarray], sizes: tuple[int, int]
    ) -> dict[str, Any]:
        """Where the other operand is read."""
        other = self._layouts[source.residual]
        fields = {
            "residual": self._address(other),
            "residual_image": other.image,
            "residual_pixel": other.pixel,
            "residual_channel": 1,
            "residual_width": other.w,
        }
        if not source.residual_views:
            return fields
        for vertical, name in ((True, "residual_row_map"), (False, "residual_column_map")):
            start = np.arange(other.h if vertical else other.w, dtype=np.int64)
            own = axis_map(source.residual_views, start, vertical)
            index = maps[0 if vertical else 1][: sizes[0 if vertical else 1]]
            fields[name] = self._map(np.where(index < 0, -1, own[np.maximum(index, 0)]))
        return fields

    def _stats(self, step: StatsStep) -> Launch:
        assert step.norm is not None
        args = self.native.Stats()
        value = self._layouts[step.value]
        self._norm_fields(args, step.norm, "scale", "shift")
        fields = {
            "x": self._address(value),
            "n": value.n,
            "pixels": value.pixels,
            "x_image": value.image,
            "x_pixel": value.pixel,
            "x_channel": 1,
            "channels": value.c,
            "eps": step.norm.eps,
        }
        _fill(args, fields)
        chunks = int(self.native.stats_chunks(value.pixels))
        self._wants(args, "partial", 3 * value.n * value.c * chunks)
        return Launch(step.label, self.native.net_stats, (self._dtype, args))

    def _given(self, step: GivenStep) -> Launch:
        assert step.norm is not None
        args = self.native.Given()
        mean, variance = self._layouts[step.mean], self._layouts[step.var]
        self._norm_fields(args, step.norm, "scale", "shift")
        fields = {
            "mean": self._address(mean),
            "variance": self._address(variance),
            "n": mean.n,
            "mean_image": mean.image,
            "variance_image": variance.image,
            "channels": mean.c,
            "eps": step.norm.eps,
        }
        _fill(args, fields)
        return Launch(step.label, self.native.net_given, (self._dtype, args))

    def _plain(self, step: PlainStep) -> list[Launch]:
        out = self._layouts[step.out]
        if step.op == "concat":
            return [
                self._apply(step.label, Source(value), step.out, (), first)
                for value, first in zip(step.values, step.first, strict=True)
            ]
        value = self._layouts[step.values[0]]
        if step.op == "broadcast":
            return [self._apply(step.label, Source(step.values[0]), step.out, (), still=True)]
        fields: dict[str, Any] = {
            "x": self._address(value),
            "y": self._address(out),
            "x_image": value.image,
            "x_pixel": value.pixel,
            "y_image": out.image,
            "y_pixel": out.pixel,
            "n": out.n,
        }
        if step.op == "pool":
            kind, kernel, stride, padding = step.pool
            args = self.native.Pool()
            fields |= {
                "height": value.h,
                "width": value.w,
                "out_height": out.h,
                "out_width": out.w,
                "channels": out.c,
                "kind": kind,
                "kernel": kernel,
                "stride": stride,
                "padding": padding,
            }
            _fill(args, fields)
            return [Launch(step.label, self.native.net_pool, (self._dtype, args))]
        args = self.native.Reshape()
        fields |= {"x_pixels": value.pixels, "y_pixels": out.pixels, "y_channels": out.c}
        _fill(args, fields)
        return [Launch(step.label, self.native.net_reshape, (self._dtype, args))]


def row_mode(kernels: Kernels, inputs: int, dtype: str) -> bool:
    """Whether ``pack_kernels`` makes a tap of a whole kernel row."""
    few = np.zeros((1, 1, inputs, *kernels.weights.shape[3:]), np.float32)
    return inputs <= 16 and pack_kernels(few, np.zeros(1), dtype)[2]


def fits(native: ModuleType, device: Device, kernels: Kernels, inputs: int) -> bool:
    """Whether the tensor core kernel has enough shared memory for any tile."""
    conv = native.NetConv()
    _, outputs, _, kernel_h, kernel_w = kernels.weights.shape
    fields = {
        "dtype": DTYPES[device.dtype],
        "inputs": inputs,
        "outputs": outputs,
        "kernel_h": kernel_h,
        "kernel_w": kernel_w,
        "phases": kernels.phases,
        "row_mode": row_mode(kernels, inputs, device.dtype),
        "stride": 2,
    }
    _fill(conv, fields)
    try:
        native.net_conv_plan(conv, *device.limits)
    except ValueError:
        return False
    return True


def _rectifier(kind: int, slope: float) -> tuple[float, int]:
    """An activation as the slope below zero and what is left to do."""
    if kind == _RELU:
        return 0.0, 0
    if kind == _LEAKY:
        return float(slope), 0
    return 1.0, kind


def _float32(values: Any) -> np.ndarray:
    return np.ascontiguousarray(values, np.float32)


def _fill(structure: Any, fields: Mapping[str, Any]) -> None:
    for name, value in fields.items():
        setattr(structure, name, value)
