"""Runs a graph on a GPU: see ``fastgen.backends.cuda``."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from fastgen.backends import ImageIO, check_image_batch, padded_size
from fastgen.backends._arrays import check_out, constant_arrays, float_array
from fastgen.backends._build import for_batch
from fastgen.backends._cuda_arrays import DeviceArray, DeviceInput, on_device
from fastgen.backends._cuda_places import Device, ImageKind
from fastgen.backends._cuda_plan import fits
from fastgen.backends._cuda_run import Lane, Replay
from fastgen.backends._cuda_steps import legalise
from fastgen.backends._cuda_tune import Tiles
from fastgen.backends._lower import lower
from fastgen.graph import Graph

__all__ = ["Runner"]

_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
_PLANS = 8  # kinds of input that keep their memory and their captured graph
_LANES = 3  # frames of a stream that are on their way
_numbers = itertools.count(1)  # of contents of constant inputs


class Runner:
    """A compiled graph on a GPU; see ``fastgen.backends``.

    Memory for one kind of input (shapes, image or tensors) is planned once and kept for the last
    eight kinds, with a captured CUDA graph: the first run launches step by step, later ones are one
    launch each. Calls from several threads are safe (they are launched
    one after the other). GPU tensors are read and written in place: PyTorch's on its current
    stream, other arrays (``__cuda_array_interface__``, DLPack) on the default stream.

    Args:
        graph: the network.
        weights: arrays by weight name.
        precision: ``"fp16"``, ``"bf16"``, or ``"fp32"`` (three TF32 products for one).
        device: index of the GPU.
        tune: measure which tile of each convolution is fastest when a kind of input is first seen
            (some milliseconds each; the choice is kept on disk).
        tiles: folder of these choices; None takes ``FASTGEN_TILE_CACHE`` or the user's cache.
        fuse: norms and activations are applied while the next convolution loads; else in a pass of
            their own.

    Raises:
        GraphError: missing, unknown or wrongly shaped weights.
    """

    backend = "cuda"
    threads = 1

    def __init__(
        self,
        graph: Graph,
        weights: Mapping[str, Any],
        precision: str = "fp16",
        device: int = 0,
        tune: bool = True,
        tiles: Path | None = None,
        fuse: bool = True,
    ) -> None:
        self.graph = graph
        self.precision = precision
        self.device_index = device
        from fastgen import _cuda as native

        self._native = native
        with self._on_device():
            self._device = Device(native, device, _DTYPES[precision])
            self._tiles = None
            if tune:
                self._tiles = Tiles(native, device, self._device.name, self._device.limits, tiles)
        self._lowered = legalise(
            lower(graph, weights, channels_last=True),
            lambda step, kernels: fits(native, self._device, kernels, step),
            fuse,
        )
        self._replays: OrderedDict[Any, Replay] = OrderedDict()
        self._lock = threading.RLock()
        self._constants: tuple[int, dict[int, dict[str, np.ndarray]]] = (0, {})
        self._closed = False

    def close(self) -> None:
        """Gives the GPU's memory back; the runner cannot be used any more."""
        with self._lock:
            self._closed = True
            self._native.synchronize(self._device.stream.handle)
            self._replays.clear()

    @property
    def memory_bytes(self) -> int:
        """Memory of the GPU that the kinds of input hold, without the weights."""
        return sum(replay.plan.bytes for replay in self._replays.values())

    def launches(self, inputs: Any, io: ImageIO | None = None) -> list[str]:
        """Labels of what one run of these inputs launches, in order."""
        with self._lock, self._on_device():
            if io is not None:
                return [launch.label for launch in self._image_replay(inputs, io).plan.launches]
            named, number = self._named(inputs)
            replay = self._tensor_replay(named, number > 0)
            return [launch.label for launch in replay.plan.launches]

    # ------------------------------------------------------------------ plans

    def _replay(self, key: Any, shapes: Mapping[str, tuple[int, ...]], **options: Any) -> Replay:
        if self._closed:
            raise ValueError("this runner is closed; compile the graph again")
        if key in self._replays:
            self._replays.move_to_end(key)
            return self._replays[key]
        while len(self._replays) >= _PLANS:  # before: memory of the GPU is short
            self._replays.popitem(last=False)
        full = self.graph.infer_shapes(dict(shapes))
        replay = Replay(self._device, self._lowered, full, self._tiles, **options)
        self._replays[key] = replay
        return replay

    def _image_replay(self, image: Any, io: ImageIO, planar: bool = False) -> Replay:
        inputs, outputs = self.graph.inputs, self.graph.outputs
        if len(inputs) != 1 or len(outputs) != 1 or len(inputs[0].shape) != 4:
            raise ValueError("io= needs a graph with one image input and one output")
        n, *size = image.shape
        height, width = size[1:] if planar else size[:2]
        shape = (n, 3, *padded_size(self.graph, height, width))
        is_byte = str(image.dtype).removeprefix("torch.") == "uint8"
        kind = ImageKind(n, height, width, is_byte, bool(io.bgr), planar)
        if kind not in self._replays:
            full = self.graph.infer_shapes({inputs[0].name: shape})
            found = full[next(iter(outputs.values()))]
            if found != shape:
                raise ValueError(f"io= needs an output of the input's shape {shape}, not {found}")
        return self._replay(kind, {inputs[0].name: shape}, image=kind)

    def _tensor_replay(self, named: Mapping[str, Any], keep: bool) -> Replay:
        shapes = {name: tuple(value.shape) for name, value in named.items()}
        key = (tuple(sorted(shapes.items())), keep)
        return self._replay(key, shapes, keep=keep)

    # ------------------------------------------------------------------ running

    def set_constants(self, inputs: Mapping[str, Any]) -> None:
        """Gives the inputs that the graph declares constant, such as a style image, once for all.

        The runs that follow leave them out; what depends on them alone is computed in the first
        run and kept, for as long as the other inputs keep their shapes.

        Args:
            inputs: float arrays by input name, all of the graph's constant inputs, or none at all
                to forget them. A batch of 1 serves every batch size. They are copied.

        Raises:
            ValueError: unknown, missing or wrongly shaped inputs. TypeError: wrong types.
        """
        constants = constant_arrays(self.graph, inputs)
        with self._lock:
            self._constants = (next(_numbers) if constants else 0, constants)

    def _named(self, inputs: Any) -> tuple[dict[str, Any], int]:
        """All inputs by name, and the number of the constant ones that are kept (0: none)."""
        named = inputs if isinstance(inputs, Mapping) else {self.graph.inputs[0].name: inputs}
        number, kept = self._constants
        if not number:
            return dict(named), 0
        ours = for_batch(kept, named)
        return ours | dict(named), 0 if any(name in named for name in ours) else number

    def run(self, inputs: Any, io: ImageIO | None = None, out: Any = None) -> Any:
        """Runs the graph.

        Args:
            inputs: with ``io=None`` a float32 array or GPU tensor (N,C,H,W), or a dict of them by
                input name, in the model's range; with ``io`` one image batch (N,H,W,3), uint8 or
                float32 0..1.
            io: how to convert an image batch to the model's range and back.
            out: where to write the result: of its kind, shape and dtype.

        Returns:
            What came in: arrays for arrays, tensors for tensors (without waiting for the GPU).

        Raises:
            ValueError: wrong shapes. TypeError: wrong types. MemoryError: the GPU's is too small.
        """
        with self._lock, self._on_device():
            if io is not None:
                check_image_batch(inputs)
                return self._run_image(inputs, io, out, False)
            return self._run_tensors(inputs, out)

    def run_planar(self, image: Any, io: ImageIO, out: Any = None) -> Any:
        """As :meth:`run` with ``io``, for GPU images (N,3,H,W).

        Raises:
            ValueError: wrong shapes. TypeError: wrong types. MemoryError: the GPU's is too small.
        """
        shape = tuple(image.shape)
        if len(shape) != 4 or shape[1] != 3 or 0 in shape:
            raise ValueError(f"image batch has the shape {shape}, must be (N,3,H,W) without zeros")
        if str(image.dtype).removeprefix("torch.") not in ("uint8", "float32"):
            raise TypeError(f"image batch has the dtype {image.dtype}, must be uint8 or float32")
        with self._lock, self._on_device():
            return self._run_image(image, io, out, True)

    def _run_image(self, image: Any, io: ImageIO, out: Any, planar: bool) -> Any:
        if isinstance(image, np.ndarray):
            if planar:
                raise TypeError("planar images must be GPU tensors; use run() for arrays")
            photo = np.ascontiguousarray(image)
            replay = self._image_replay(photo, io)
            result = (
                np.empty_like(photo) if out is None else check_out(out, photo.shape, photo.dtype)
            )
            with _taken(replay) as lane:
                lane.upload([photo], lane.stream)
                replay.execute(lane.image_io(io), lane.stream)
                lane.start_download(lane.stream)
                lane.finish_download([result])
            return result
        given = on_device(image, self.device_index)
        kind = self._image_replay(given, io, planar)
        result = given.like(given.shape) if out is None else out
        target = on_device(result, self.device_index)
        target.check("out", given.shape, given.dtype)
        kind.execute(kind.image_io(io, given.address, target.address), given.stream)
        return result

    def _run_tensors(self, inputs: Any, out: Any) -> Any:
        named, number = self._named(inputs)
        single = len(self.graph.outputs) == 1
        if out is not None and not single:
            raise ValueError("out= needs a graph with one output")
        if all(isinstance(value, np.ndarray) for value in named.values()):
            arrays = {name: float_array(name, value) for name, value in named.items()}
            replay = self._tensor_replay(arrays, number > 0)
            shapes = replay.output_shapes(self.graph)
            results: dict[str, Any] = {
                name: np.empty(shape, np.float32)
                if out is None
                else check_out(out, shape, np.dtype(np.float32))
                for name, shape in shapes.items()
            }
            with _taken(replay) as lane:
                lane.upload([arrays[item.name] for item in self.graph.inputs], lane.stream)
                replay.execute(lane.tensor_io(), lane.stream, number)
                lane.start_download(lane.stream)
                lane.finish_download(list(results.values()))
        else:
            results = self._tensors_on_device(named, number, out)
        named_result = isinstance(inputs, Mapping) or not single
        return results if named_result else next(iter(results.values()))

    def _tensors_on_device(self, named: Mapping[str, Any], number: int, out: Any) -> dict[str, Any]:
        given: dict[str, DeviceInput] = {}
        kept: list[Any] = []
        first = next(v for v in named.values() if not isinstance(v, np.ndarray))
        stream = on_device(first, self.device_index).stream
        for name, value in named.items():
            if isinstance(value, np.ndarray):  # a constant input that is kept on the host
                memory = self._device.upload(float_array(name, value))
                array = DeviceArray(memory, value.shape, "float32", self.device_index)
                kept.append(array)
                given[name] = on_device(array, self.device_index)
            else:
                given[name] = on_device(value, self.device_index)
            if given[name].dtype != "float32":
                raise TypeError(
                    f"input {name!r} has the dtype {given[name].dtype}, must be float32"
                )
        replay = self._tensor_replay(given, number > 0)
        results: dict[str, Any] = {}
        addresses = [given[item.name].address for item in self.graph.inputs]
        source = on_device(first, self.device_index)
        for name, shape in replay.output_shapes(self.graph).items():
            results[name] = source.like(shape) if out is None else out
            target = on_device(results[name], self.device_index)
            target.check("out", shape, "float32")
            addresses.append(target.address)
        replay.execute(replay.tensor_io(addresses), stream, number)
        if kept:  # their memory is needed until then
            self._native.synchronize(stream)
        return results

    def frames(self, images: Iterable[np.ndarray], io: ImageIO) -> Iterator[np.ndarray]:
        """Runs image batches (1 or more frames each) one after the other, as fast as they come.

        While the GPU works on one, the next is copied to it and the one before back, so results
        come two batches later than with :meth:`run`; all of them come.

        Args:
            images: batches (N,H,W,3), uint8 or float32 0..1; sizes may change.
            io: how to convert them.
        """
        waiting: deque[tuple[Lane, np.ndarray]] = deque()
        try:
            for image in images:
                check_image_batch(image)
                waiting.append(self._submit(np.ascontiguousarray(image), io))
                if len(waiting) == _LANES:
                    yield self._finish(waiting)
            while waiting:
                yield self._finish(waiting)
        finally:
            while waiting:  # the generator was closed, or something failed
                self._finish(waiting)

    def _submit(self, photo: np.ndarray, io: ImageIO) -> tuple[Lane, np.ndarray]:
        """Queues a run on streams of its own."""
        with self._lock, self._on_device():
            replay = self._image_replay(photo, io)
            lane = replay.lane()
            try:
                lane.upload([photo], lane.inward)
                lane.arrived.record(lane.inward)
                lane.arrived.wait(lane.stream)
                replay.execute(lane.image_io(io), lane.stream)
                lane.done.record(lane.stream)
                lane.done.wait(lane.outward)
                lane.start_download(lane.outward)
            except BaseException:
                lane.let_go()
                raise
            return lane, np.empty_like(photo)

    def _finish(self, waiting: deque[tuple[Lane, np.ndarray]]) -> np.ndarray:
        """The result that was queued first."""
        lane, result = waiting.popleft()
        try:
            lane.finish_download([result])
        finally:
            lane.let_go()
        return result

    def _on_device(self) -> Any:
        return _Current(self._native, self.device_index)


class _Current:
    """Makes a device current for a block of code."""

    def __init__(self, native: ModuleType, device: int) -> None:
        self._native, self._device = native, device

    def __enter__(self) -> None:
        self._held = self._native.OnDevice(self._device)

    def __exit__(self, *_: object) -> None:
        del self._held


@contextlib.contextmanager
def _taken(replay: Replay) -> Iterator[Lane]:
    """Memory for a run of the host's arrays."""
    lane = replay.lane()
    try:
        yield lane
    finally:
        lane.let_go()
