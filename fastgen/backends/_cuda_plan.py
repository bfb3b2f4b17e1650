"""What is launched for inputs of one kind: addresses, index maps and kernels of every step.

Everything is decided here once, so that a run is a list of launches, and with a captured graph a
single one. Tensors of the caller are read and written through a small table of addresses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np

from fastgen.backends._cuda_places import Device, ImageKind, Launch, Places, fill, float32
from fastgen.backends._cuda_steps import (
    Kernels,
    Map,
    axis_map,
    conv_map,
    kernels_of,
)
from fastgen.backends._joins import FEW
from fastgen.backends._steps import (
    ConvStep,
    CopyStep,
    GivenStep,
    Lowered,
    PlainStep,
    Source,
    StatsStep,
    Step,
    View,
)
from fastgen.ops._cuda_pack import DTYPES, pack_kernels

__all__ = ["Plan", "fits"]

_RELU, _LEAKY = 1, 2
_MOST_COLUMNS = 32  # outputs of a tile


class Plan(Places):
    """The launches for one kind of input; arguments as for :class:`Places`.

    Attributes:
        launches: of a run, in order.
        constant: those that run when the constant inputs change, where they are apart.
    """

    def __init__(
        self,
        device: Device,
        lowered: Lowered,
        shapes: Mapping[str, tuple[int, ...]],
        image: ImageKind | None = None,
        keep: bool = False,
    ) -> None:
        super().__init__(device, lowered, shapes, image, keep)
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

    # ------------------------------------------------------------------ steps

    def _step(self, position: int, step: Step) -> list[Launch]:
        if isinstance(step, ConvStep):
            kernels = kernels_of(step)
            if kernels is not None and fits(self.native, self.device, kernels, step):
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
                bias = np.zeros(len(weights[0]), np.float32)
                bias[: step.outputs] = 0.0 if step.bias is None else step.bias
                packed.extend(pack_kernels(weights, bias, self.device.dtype))
            return packed[which]  # type: ignore[no-any-return]

        rows_of_taps = row_mode(kernels, step.inputs, self.device.dtype)
        weights, fold = kernels.weights, 0
        if folds(step, kernels) and not rows_of_taps:
            weights, fold = columns_as_outputs(weights), weights.shape[4] - 1
        fields, height, width = self._reading(step.source.value)
        fields |= self._writing(step.out)
        out, source = self._layouts[step.out], self._layouts[step.source.value]
        outputs, _, kernel_h, kernel_w = weights.shape[1:]
        phases = kernels.phases
        fields |= {
            "dtype": DTYPES[self.device.dtype],
            "n": out.n,
            "height": height,
            "width": width,
            "out_height": out.h,
            "out_width": out.w,
            "inputs": step.inputs,
            "outputs": outputs,
            "fold": fold,
            "kernel_h": kernel_h,
            "kernel_w": kernel_w,
            "stride": step.stride,
            "phases": phases,
            "weights": self.device.kept(("weights", position), lambda: pack(0)),
            "bias": self.device.kept(("bias", position), lambda: pack(1)),
            "row_mode": rows_of_taps,
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
        fill(conv, fields)
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

    def _direct(self, position: int, step: ConvStep) -> list[Launch]:
        """The slow kernel, once for each phase."""
        reading, _, width = self._reading(step.source.value)
        out = self._layouts[step.out]
        bias = np.zeros(step.outputs) if step.bias is None else step.bias
        slope, activation = _rectifier(step.act, step.slope)
        launches = []
        for number, phase in enumerate(step.phases):
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
            fields = {
                "weights": self.device.kept(
                    ("direct", position, number), partial(float32, phase.weight)
                ),
                "bias": self.device.kept(("direct bias", position), lambda: float32(bias)),
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
            fill(direct, fields)
            launches.append(Launch(step.label, self.native.net_direct, (self._dtype, direct)))
        return launches

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
        plain = [
            np.array_equal(m[:size], np.arange(size)) for m, size in zip(maps, sizes, strict=True)
        ]
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
            fields |= self._combined(source, maps)
        fill(args, fields)
        return Launch(label, self.native.net_apply, (self._dtype, args))

    def _combined(self, source: Source, maps: list[np.ndarray]) -> dict[str, Any]:
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
            index = maps[0 if vertical else 1]
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
        fill(args, fields)
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
        fill(args, fields)
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
            fill(args, fields)
            return [Launch(step.label, self.native.net_pool, (self._dtype, args))]
        args = self.native.Reshape()
        fields |= {"x_pixels": value.pixels, "y_pixels": out.pixels, "y_channels": out.c}
        fill(args, fields)
        return [Launch(step.label, self.native.net_reshape, (self._dtype, args))]


def row_mode(kernels: Kernels, inputs: int, dtype: str) -> bool:
    """Whether ``pack_kernels`` makes a tap of a whole kernel row."""
    few = np.zeros((1, 1, inputs, *kernels.weights.shape[3:]), np.float32)
    return inputs <= 16 and pack_kernels(few, np.zeros(1), dtype)[2]


def folds(step: ConvStep, kernels: Kernels) -> bool:
    """Whether kernel columns become outputs: so few of them leave most of the matrix units idle.

    Then a kernel row is one product of the map with all its columns, and a pixel's sum is
    collected from its neighbours', in shared memory.
    """
    width = kernels.weights.shape[4]
    plain = step.norm is None and step.residual < 0 and step.stride == 1 and kernels.phases == 1
    return plain and width >= 3 and step.outputs <= FEW and step.outputs * width <= _MOST_COLUMNS


def columns_as_outputs(weights: np.ndarray) -> np.ndarray:
    """(1, O, I, kh, kw) as (1, O*kw, I, kh, 1)."""
    _, outputs, inputs, height, width = weights.shape
    turned = weights.transpose(0, 1, 4, 2, 3)
    return np.ascontiguousarray(turned).reshape(1, outputs * width, inputs, height, 1)


def fits(native: ModuleType, device: Device, kernels: Kernels, step: ConvStep) -> bool:
    """Whether the tensor core kernel has enough shared memory for any tile."""
    conv = native.NetConv()
    kernel_h, kernel_w = kernels.weights.shape[3:]
    fields = {
        "dtype": DTYPES[device.dtype],
        "inputs": step.inputs,
        "outputs": step.outputs,
        "kernel_h": kernel_h,
        "kernel_w": kernel_w,
        "phases": kernels.phases,
        "row_mode": row_mode(kernels, step.inputs, device.dtype),
        "stride": step.stride,
    }
    fill(conv, fields)
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
