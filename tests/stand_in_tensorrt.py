"""Stands in for the extension modules ``_tensorrt`` and ``_cuda`` where there is no GPU.

Engines are run by ONNX Runtime on the model that they were built from, "device" memory is memory
of the host, and streams behave like CUDA's: what is launched while a stream captures does not run,
it becomes a graph with the addresses and shapes of that moment. Mistakes that would go unnoticed
on a GPU are errors here.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime


def at(address: int, shape: Any, dtype: Any = np.float32) -> np.ndarray:
    """The array at an address."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = (ctypes.c_char * size).from_address(address)
    return np.frombuffer(memory, dtype).reshape(shape)


class Streams:
    """All streams by handle; 0 is the default stream."""

    def __init__(self) -> None:
        self.captures: dict[int, list[Callable[[], None]] | None] = {0: None}
        self.launches = 0

    def launch(self, stream: int, work: Callable[[], None]) -> None:
        captured = self.captures[stream]
        if captured is not None:
            captured.append(work)
        else:
            self.launches += 1
            work()


class StandIn:
    """The module ``_tensorrt``."""

    def __init__(self) -> None:
        self.streams = streams = Streams()
        self.device_why_not: str | None = None
        self.info = {
            **{"path": "/lib/libnvinfer.so.11", "parser_path": "", "flavour": "full"},
            **{"version": "11.1.0.106", "headers": "11.1.0", "builds": True},
        }
        self.builds: list[dict[str, Any]] = []
        self.before_build: Callable[[], None] = lambda: None
        self.refuse: set[bytes] = set()  # plans that are not accepted
        self.fail_enqueue = False
        self.graphs = 0
        self.waited: list[int] = []
        stand_in = self

        class Stream:
            def __init__(self, device: int = 0) -> None:
                self.handle = len(streams.captures)
                streams.captures[self.handle] = None

            def synchronize(self) -> None:
                assert streams.captures[self.handle] is None, "waiting for a capture"

            def begin_capture(self) -> None:
                assert streams.captures[self.handle] is None, "a capture in a capture"
                streams.captures[self.handle] = []

            def end_capture(self, keep: bool) -> Graph | None:
                work = streams.captures[self.handle]
                assert work is not None, "no capture to end"
                streams.captures[self.handle] = None
                return Graph(work) if keep else None

        class Graph:
            def __init__(self, work: list[Callable[[], None]]) -> None:
                self.work = work
                stand_in.graphs += 1

            def launch(self, stream: int) -> None:
                streams.launches += 1
                for work in self.work:
                    work()

        class Buffer:
            def __init__(self, device: int, bytes: int, host: bool = False) -> None:
                self._array = np.full(bytes, 0xAB, np.uint8)
                self.bytes, self.host = bytes, host
                self.address = self._array.ctypes.data

            def view(self) -> memoryview:
                assert self.host
                return memoryview(self._array)

            def copy(self, source: Buffer, bytes: int, stream: int) -> None:
                assert self.host != source.host
                assert bytes <= min(self.bytes, source.bytes)

                def work() -> None:
                    self._array[:bytes] = source._array[:bytes]

                streams.launch(stream, work)

        class Context:
            def __init__(self, engine: Engine) -> None:
                self.engine = engine
                self.shapes: dict[str, tuple[int, ...]] = {}
                self.addresses: dict[str, int] = {}
                self.ran = False

            def set_shape(self, name: str, shape: list[int]) -> None:
                low, _, high = self.engine.profile[name]
                if not all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True)):
                    raise ValueError(f"{name}: {shape} is outside the profile")
                self.shapes[name] = tuple(shape)

            def shape(self, name: str) -> list[int]:
                if name in self.shapes:
                    return list(self.shapes[name])
                zeros = {n: np.zeros(s, np.float32) for n, s in self.shapes.items()}
                return list(self.engine.session.run([name], zeros)[0].shape)

            def set_address(self, name: str, address: int) -> None:
                self.addresses[name] = address

            def enqueue(self, stream: int) -> bool:
                if stand_in.fail_enqueue:
                    return False
                capturing = streams.captures[stream] is not None
                assert self.ran or not capturing, "TensorRT must run once before a capture"
                self.ran = True
                shapes, places = dict(self.shapes), dict(self.addresses)
                outputs = [t["name"] for t in self.engine.tensors() if not t["input"]]

                def work() -> None:
                    inputs = {n: at(places[n], s).copy() for n, s in shapes.items()}
                    for name, value in zip(
                        outputs, self.engine.session.run(outputs, inputs), strict=True
                    ):
                        at(places[name], value.shape)[...] = value

                streams.launch(stream, work)
                return True

        class Engine:
            def __init__(self, plan: bytes, device: int = 0) -> None:
                if plan in stand_in.refuse or plan not in stand_in.plans:
                    raise ValueError("TensorRT 11.1.0.106 does not accept the engine")
                model, self.profile = stand_in.plans[plan]
                self.session = onnxruntime.InferenceSession(
                    model, providers=["CPUExecutionProvider"]
                )

            def tensors(self) -> list[dict[str, Any]]:
                s = self.session
                return [{"name": v.name, "input": True} for v in s.get_inputs()] + [
                    {"name": v.name, "input": False} for v in s.get_outputs()
                ]

            def context(self, profile: int, stream: int) -> Context:
                return Context(self)

        class Current:
            def __init__(self, device: int) -> None:
                pass

            def __enter__(self) -> None:
                pass

            def __exit__(self, *_: object) -> None:
                pass

        self.plans: dict[bytes, tuple[bytes, Any]] = {}
        self.Stream, self.Buffer, self.Engine, self.Current = Stream, Buffer, Engine, Current

    def driver(self) -> dict[str, Any]:
        return {"version": 13000, "devices": 1, "why_not": self.device_why_not}

    def device(self, index: int) -> dict[str, Any]:
        return {"name": "GPU", "capability": 90}

    def library(self) -> dict[str, Any]:
        return self.info

    def synchronize(self, stream: int, device: int) -> None:
        assert self.streams.captures[stream] is None, "waiting for a capture"
        self.waited.append(stream)

    def take_errors(self) -> str:
        return "the words of TensorRT"

    def build(self, onnx: bytes, profiles: list[Any], **options: Any) -> tuple[bytes, bytes, int]:
        self.before_build()
        self.builds.append({"onnx": onnx, "profiles": profiles, **options})
        progress = options["progress"]
        if progress is not None and progress("phase", 0, 1) is False:
            raise RuntimeError("the build of the engine was stopped")
        plan = b"plan %d" % len(self.builds)
        self.plans[plan] = onnx, profiles[0]
        return plan, b"timings", 1


class ImageKernels:
    """The module ``_cuda``, as far as frames need it: see ``csrc/cuda/image.cu``."""

    def __init__(self, streams: Streams) -> None:
        self.streams = streams

    def device_count(self) -> tuple[int, str]:
        """For the backend ``cuda``, which this is not."""
        return 0, "a stand-in"

    def image_load(
        self, photo: int, out: int, n: int, h: int, w: int, rows: int, columns: int, *rest: Any
    ) -> None:
        low, high, bgr, is_byte, stream = rest

        def work() -> None:
            x = _unit(at(photo, (n, h, w, 3), np.uint8 if is_byte else np.float32), bgr)
            pads = ((0, 0), (0, rows - h), (0, columns - w), (0, 0))
            x = np.pad(x, pads, mode="reflect") * (high - low) + low
            at(out, (n, 3, rows, columns))[...] = x.transpose(0, 3, 1, 2)

        self.streams.launch(stream, work)

    def image_store(
        self,
        y: int,
        photo: int,
        out: int,
        n: int,
        h: int,
        w: int,
        rows: int,
        columns: int,
        *rest: Any,
    ) -> None:
        low, high, strength, preserve_color, bgr, is_byte, stream = rest

        def work() -> None:
            dtype = np.uint8 if is_byte else np.float32
            x = _unit(at(photo, (n, h, w, 3), dtype), bgr)
            z = at(y, (n, 3, rows, columns)).transpose(0, 2, 3, 1)[:, :h, :w]
            z = np.clip((z - low) / (high - low), 0, 1)
            if preserve_color:
                luma = np.array([0.299, 0.587, 0.114])
                z = np.clip(x + ((z - x) @ luma)[..., None], 0, 1)
            z = x + (z - x) * strength
            z = z[..., ::-1] if bgr else z
            at(out, (n, h, w, 3), dtype)[...] = np.rint(z * 255) if is_byte else z

        self.streams.launch(stream, work)


def _unit(image: np.ndarray, bgr: bool) -> np.ndarray:
    x = image / 255.0 if image.dtype == np.uint8 else image.astype(np.float64)
    return x[..., ::-1] if bgr else x
