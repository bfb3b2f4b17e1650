"""What runs when one kind of input comes again: static buffers, a context, a captured graph.

The first run launches one by one, as TensorRT requires before a capture; the second one captures
what it launches; every later run is one launch of the captured graph. A frame owns its execution
context, so the shapes that a captured graph was made for never change under it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from fastgen.backends import ImageIO

__all__ = ["Frame", "ImageFrame", "TensorFrame"]

Shape = tuple[int, ...]
_FLOAT = np.dtype(np.float32).itemsize


class Frame:
    """Shared by images and tensors.

    Args:
        trt: the extension module ``_tensorrt``.
        engine: a loaded engine.
        shapes: shape of every input of the engine.
        device: index of the GPU.
        host: inputs and results are arrays of the host, copied through page-locked memory.
    """

    def __init__(
        self, trt: ModuleType, engine: Any, shapes: Mapping[str, Shape], device: int, host: bool
    ) -> None:
        self.trt, self.device, self.host = trt, device, host
        self.stream = trt.Stream(device)
        self.context = engine.context(0, self.stream.handle)
        self.shapes: dict[str, Shape] = dict(shapes)
        for name, shape in shapes.items():
            self.context.set_shape(name, list(shape))
        self.outputs = [t["name"] for t in engine.tensors() if not t["input"]]
        for name in self.outputs:
            self.shapes[name] = tuple(self.context.shape(name))
        self.copies_in: list[tuple[Any, Any]] = []  # (page-locked, device)
        self.copies_out: list[tuple[Any, Any]] = []
        self._graph: Any = None
        self._warm = False
        self._last_stream: int | None = None
        self.stream.synchronize()

    def memory(self, shape: Shape, itemsize: int = _FLOAT) -> Any:
        """Device memory for an array."""
        return self.trt.Buffer(self.device, int(np.prod(shape)) * itemsize)

    def staged(self, shape: Shape, dtype: Any) -> tuple[np.ndarray, Any]:
        """Page-locked memory as an array, and its buffer."""
        buffer = self.trt.Buffer(self.device, int(np.prod(shape)) * np.dtype(dtype).itemsize, True)
        return np.frombuffer(buffer.view(), dtype).reshape(shape), buffer

    def bind(self, name: str, address: int) -> None:
        """Says where the engine reads or writes a tensor."""
        self.context.set_address(name, address)

    def enqueue(self, stream: int) -> bool:
        """Launches everything; False when TensorRT failed."""
        for host, memory in self.copies_in:
            memory.copy(host, host.bytes, stream)
        done = self.before(stream) and self.context.enqueue(stream) and self.after(stream)
        if done:
            for host, memory in self.copies_out:
                host.copy(memory, host.bytes, stream)
        return bool(done)

    def before(self, stream: int) -> bool:
        """What is launched before the engine."""
        return True

    def after(self, stream: int) -> bool:
        """What is launched after the engine."""
        return True

    def replay(self) -> None:
        """Runs once on the frame's own stream and waits for it."""
        if self._graph is not None:
            self._graph.launch(self.stream.handle)
        elif self._warm:
            self._graph = self._capture()
            self._graph.launch(self.stream.handle)
        else:
            self.check(self.enqueue(self.stream.handle))
            self._warm = True
        self.stream.synchronize()

    def launch(self, stream: int) -> None:
        """Launches on a stream of the caller, without waiting."""
        if self._last_stream not in (None, stream):
            # The activations of the run before are still in use there.
            self.trt.synchronize(self._last_stream, self.device)
        self._last_stream = stream
        self.check(self.enqueue(stream))

    def _capture(self) -> Any:
        self.stream.begin_capture()
        done = False
        try:
            done = self.enqueue(self.stream.handle)
        finally:
            # A capture that failed must end all the same, and must not be replayed.
            graph = self.stream.end_capture(done)
        self.check(done)
        return graph

    def check(self, done: bool) -> None:
        """Raises RuntimeError with TensorRT's words when a launch failed."""
        if not done:
            raise RuntimeError(f"TensorRT cannot run the engine: {self.trt.take_errors()}")


class TensorFrame(Frame):
    """Float arrays in the network's own range."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.arrays: dict[str, np.ndarray] = {}
        self._memory = []
        if not self.host:
            return
        for name, shape in self.shapes.items():
            memory = self.memory(shape)
            self._memory.append(memory)
            self.bind(name, memory.address)
            self.arrays[name], staged = self.staged(shape, np.float32)
            copies = self.copies_out if name in self.outputs else self.copies_in
            copies.append((staged, memory))

    def run_host(self, inputs: Mapping[str, np.ndarray], results: dict[str, np.ndarray]) -> None:
        """Runs on arrays and fills ``results``."""
        for name, array in inputs.items():
            self.arrays[name][...] = array
        self.replay()
        for name, result in results.items():
            result[...] = self.arrays[name]

    def run_device(self, addresses: Mapping[str, int], stream: int) -> None:
        """Launches on a stream of the caller; addresses of all inputs and outputs."""
        for name, address in addresses.items():
            self.bind(name, address)
        self.launch(stream)


class ImageFrame(Frame):
    """Image batches (N,H,W,3): converted to the network's range and back on the device."""

    def __init__(
        self,
        *args: Any,
        cuda: ModuleType,
        size: Shape,
        is_byte: bool,
        io: ImageIO,
    ) -> None:
        super().__init__(*args)
        (name, (n, _, rows, columns)), *_ = self.shapes.items()
        (output,) = self.outputs
        self._cuda, self._io, self._is_byte = cuda, io, is_byte
        self._sizes = (n, *size, rows, columns)
        self._x = self.memory(self.shapes[name])
        self._y = self.memory(self.shapes[output])
        self.bind(name, self._x.address)
        self.bind(output, self._y.address)
        self._photo = self._result = 0
        if self.host:
            shape = (n, *size, 3)
            dtype = np.dtype(np.uint8 if is_byte else np.float32)
            photo = self.memory(shape, dtype.itemsize)
            result = self.memory(shape, dtype.itemsize)
            self._memory = photo, result
            self._photo, self._result = photo.address, result.address
            self.source, staged = self.staged(shape, dtype)
            self.copies_in.append((staged, photo))
            self.target, staged = self.staged(shape, dtype)
            self.copies_out.append((staged, result))

    def before(self, stream: int) -> bool:
        low, high = self._io.input_range
        self._cuda.image_load(
            self._photo,
            self._x.address,
            *self._sizes,
            low,
            high,
            self._io.bgr,
            self._is_byte,
            stream,
        )
        return True

    def after(self, stream: int) -> bool:
        low, high = self._io.output_range
        self._cuda.image_store(
            self._y.address,
            self._photo,
            self._result,
            *self._sizes,
            low,
            high,
            self._io.strength,
            self._io.preserve_color,
            self._io.bgr,
            self._is_byte,
            stream,
        )
        return True

    def run_host(self, photo: np.ndarray, result: np.ndarray) -> None:
        """Runs on an array."""
        self.source[...] = photo
        self.replay()
        result[...] = self.target

    def run_device(self, photo: int, result: int, stream: int) -> None:
        """Launches on a stream of the caller."""
        self._photo, self._result = photo, result
        self.launch(stream)
