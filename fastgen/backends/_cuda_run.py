"""Running a plan: the captured graph, and memory that frames of the host pass through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastgen.backends import ImageIO
from fastgen.backends._cuda_places import Device, ImageKind
from fastgen.backends._cuda_plan import Plan
from fastgen.backends._cuda_tune import Tiles
from fastgen.backends._steps import Lowered
from fastgen.graph import Graph

__all__ = ["Lane", "Replay"]

_CHUNK = 2 << 20  # bytes: while one is copied by the GPU, the host copies the next


class Replay:
    """What runs when one kind of input comes again.

    Args:
        device: where.
        lowered: legal steps.
        shapes: shapes of all graph values.
        tiles: measured choices; None takes those that are expected to be fastest.
        image: see :class:`Plan`.
        keep: see :class:`Plan`.
    """

    def __init__(
        self,
        device: Device,
        lowered: Lowered,
        shapes: Mapping[str, tuple[int, ...]],
        tiles: Tiles | None,
        image: ImageKind | None = None,
        keep: bool = False,
    ) -> None:
        self.device, self.native = device, device.native
        self.plan = Plan(device, lowered, shapes, image, keep)
        self._inputs = len(lowered.inputs)
        self._graph: Any = None
        self._number = 0  # of the constants that the arena holds what depends on
        self._done = self.native.Event(device.index)
        self._last: int | None = None
        self._lanes: list[Lane] = []
        if tiles is not None:
            self._tune(tiles)

    def _tune(self, tiles: Tiles) -> None:
        stream = self.device.stream.handle
        lane = Lane(self, self._tensor_shapes())
        self._lanes.append(lane)
        io = lane.tensor_io() if self.plan.image is None else lane.image_io(ImageIO())
        self.native.write_io(self.plan.io.address, io, stream)
        for launch in [*self.plan.constant, *self.plan.launches]:
            if launch.conv is not None:
                tiles.choose(launch.conv, stream)
        self.native.synchronize(stream)
        tiles.save()

    def _tensor_shapes(self) -> list[tuple[tuple[int, ...], Any]]:
        """Shape and type of the caller's tensors: inputs, then outputs."""
        image = self.plan.image
        if image is not None:
            return [(image.shape, np.dtype(np.uint8 if image.is_byte else np.float32))] * 2
        return [(shape, np.dtype(np.float32)) for shape in self.plan.tensors]

    def output_shapes(self, graph: Graph) -> dict[str, tuple[int, ...]]:
        """Shapes of the graph's outputs by their names."""
        return {name: self.plan.shapes[value] for name, value in graph.outputs.items()}

    # ------------------------------------------------------------------ the caller's tensors

    def image_io(self, io: ImageIO, photo: int, picture: int) -> Any:
        """The table for a run on images at these addresses."""
        image = self.plan.image
        assert image is not None
        table = self.native.Io()
        itemsize, most = (1, 255.0) if image.is_byte else (4, 1.0)
        first = photo + 2 * image.step * itemsize if image.bgr else photo
        low, high = io.input_range
        out_low, out_high = io.output_range
        table.address = [photo, picture, first]
        table.gain, table.low = (high - low) / most, low
        table.out_low, table.out_scale = out_low, 1.0 / (out_high - out_low)
        table.photo_scale, table.strength = 1.0 / most, io.strength
        table.preserve_color, table.bgr = int(io.preserve_color), int(io.bgr)
        return table

    def tensor_io(self, addresses: Sequence[int]) -> Any:
        """The table for a run on float tensors: inputs, then outputs."""
        table = self.native.Io()
        table.address = list(addresses)
        table.gain, table.low = 1.0, 0.0
        return table

    # ------------------------------------------------------------------ running

    def execute(self, io: Any, stream: int, constants: int = 0) -> None:
        """Launches everything on a stream of this device, without waiting.

        Args:
            io: the table of the caller's tensors.
            stream: a handle; runs on several streams wait for each other.
            constants: number of the contents of the constant inputs; 0: they are new.
        """
        native, plan = self.native, self.plan
        if native.is_capturing(stream):  # a graph of the caller, of which this becomes a part
            native.write_io(plan.io.address, io, stream)
            for launch in [*plan.constant, *plan.launches]:
                launch(stream)
            return
        if self._last not in (None, stream):
            self._done.wait(stream)
        native.write_io(plan.io.address, io, stream)
        if plan.constant and (not constants or constants != self._number):
            for launch in plan.constant:
                launch(stream)
        self._number = constants
        if self._graph is not None:
            self._graph.launch(stream)
        else:
            for launch in plan.launches:  # loads the kernels, which a capture must not
                launch(stream)
            self._graph = self._capture()
        self._done.record(stream)
        self._last = stream

    def _capture(self) -> Any:
        stream = self.device.stream.handle
        self.native.begin_capture(stream)
        done = False
        try:
            for launch in self.plan.launches:
                launch(stream)
            done = True
        finally:  # what has begun must end, and must not be replayed where it failed
            graph = self.native.end_capture(self.device.index, stream, done)
        return graph

    def lane(self) -> Lane:
        """Memory for one run of the host's arrays; it is busy until it is let go."""
        for lane in self._lanes:
            if not lane.busy:
                break
        else:
            lane = Lane(self, self._tensor_shapes())
            self._lanes.append(lane)
        lane.busy = True
        return lane

    @property
    def inputs(self) -> int:
        """How many of the caller's tensors are read."""
        return 1 if self.plan.image is not None else self._inputs


class Lane:
    """Memory of the device and page-locked memory for the tensors of one run, and its streams."""

    def __init__(self, replay: Replay, shapes: Sequence[tuple[tuple[int, ...], Any]]) -> None:
        device = replay.device
        self._replay, self._native, self._device = replay, replay.native, device
        self.busy = False
        self._shapes = list(shapes)
        self._bytes = [int(np.prod(shape)) * dtype.itemsize for shape, dtype in shapes]
        self._memory = [device.memory(size) for size in self._bytes]
        self._pinned: list[Any] = [None] * len(self._bytes)
        self._views: list[Any] = [None] * len(self._bytes)
        self.stream = device.stream.handle
        self._copies: Any = None
        self.arrived, self.done = (self._native.Event(device.index) for _ in range(2))
        self._events: list[Any] = []

    @property
    def _copy_streams(self) -> Any:
        if self._copies is None:
            self._copies = [self._native.Stream(self._device.index) for _ in range(2)]
        return self._copies

    @property
    def inward(self) -> int:
        """Stream of copies to the device, beside what it computes."""
        return int(self._copy_streams[0].handle)

    @property
    def outward(self) -> int:
        """Stream of copies from the device."""
        return int(self._copy_streams[1].handle)

    def image_io(self, io: ImageIO) -> Any:
        """The table for a run on this memory."""
        photo, picture = (memory.address for memory in self._memory)
        return self._replay.image_io(io, photo, picture)

    def tensor_io(self) -> Any:
        """The table for a run on this memory."""
        return self._replay.tensor_io([memory.address for memory in self._memory])

    def _bytes_of(self, index: int) -> np.ndarray:
        """The page-locked bytes of a tensor."""
        if self._pinned[index] is None:
            self._pinned[index] = self._device.memory(self._bytes[index], host=True)
            self._views[index] = np.frombuffer(self._pinned[index].view(), np.uint8)
        return self._views[index]  # type: ignore[no-any-return]

    def _chunks(self, index: int) -> list[tuple[int, int]]:
        size = self._bytes[index]
        return [(at, min(size, at + _CHUNK)) for at in range(0, size, _CHUNK)]

    def upload(self, arrays: Sequence[np.ndarray], stream: int) -> None:
        """Copies the inputs to the device; contiguous arrays of the right type."""
        for index, array in enumerate(arrays):
            pinned, source = self._bytes_of(index), _raw(array)
            for low, high in self._chunks(index):
                pinned[low:high] = source[low:high]
                self._native.copy(
                    self._memory[index].address + low,
                    self._pinned[index].address + low,
                    high - low,
                    stream,
                )

    def start_download(self, stream: int) -> None:
        """Queues the copies of the outputs."""
        event = 0
        for index in range(self._replay.inputs, len(self._bytes)):
            self._bytes_of(index)
            for low, high in self._chunks(index):
                self._native.copy(
                    self._pinned[index].address + low,
                    self._memory[index].address + low,
                    high - low,
                    stream,
                )
                if event == len(self._events):
                    self._events.append(self._native.Event(self._device.index))
                self._events[event].record(stream)
                event += 1

    def finish_download(self, results: Sequence[np.ndarray]) -> None:
        """Waits, and copies the outputs to arrays."""
        event = 0
        for index, result in enumerate(results, self._replay.inputs):
            direct = result.flags.c_contiguous
            target = result if direct else np.empty_like(result, order="C")
            pinned, raw = self._bytes_of(index), _raw(target)
            for low, high in self._chunks(index):
                self._events[event].synchronize()
                raw[low:high] = pinned[low:high]
                event += 1
            if not direct:
                result[...] = target

    def let_go(self) -> None:
        """Another run may take it."""
        self.busy = False


def _raw(array: np.ndarray) -> np.ndarray:
    """The bytes of a contiguous array."""
    return array.reshape(-1).view(np.uint8)
