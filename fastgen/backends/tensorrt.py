"""The ``tensorrt`` backend: engines of NVIDIA TensorRT, built when needed and kept on disk.

TensorRT is opened at run time (``FASTGEN_TENSORRT_LIB``, packages of pip, or the system's loader).
An engine serves all sizes up to those of its profile; a larger input gets another engine.
"""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from fastgen.backends import ImageIO, _tensorrt_lib, check_image_batch, padded_size
from fastgen.backends._engines import (
    EngineCache,
    Profile,
    engine_key,
    network_hash,
    profile_for,
    profile_holds,
)
from fastgen.backends._trt_frame import ImageFrame, TensorFrame
from fastgen.errors import BackendUnavailable, FastgenError, GraphError
from fastgen.graph import Graph

__all__ = [
    "PRECISIONS",
    "Runner",
    "auto_precision",
    "build_plan",
    "compile",
    "precision_why_not",
    "why_not",
]

PRECISIONS = ("fp32", "fp16")
SLOW_START = True  # `auto` serves with another backend until an engine is there
_ENGINES = 4  # loaded at once
_FRAMES = 4  # kinds of input of an engine that keep their buffers

Shapes = dict[str, tuple[int, ...]]
Progress = Callable[[str, int, int], bool | None]


def _cuda() -> ModuleType:
    from fastgen import _cuda

    return _cuda


def why_not() -> str | None:
    """None when engines can run here, else the reason with the remedy."""
    reason = _tensorrt_lib.extension_why_not()
    if reason is not None:
        return reason
    reason = _tensorrt_lib.extension().driver()["why_not"]
    if reason is not None:
        return str(reason)
    try:
        _cuda()
    except ImportError as error:
        return (
            f"the extension module that reads frames on the GPU is not built ({error}); install "
            "again with nvcc on PATH: FASTGEN_CUDA=ON pip install ."
        )
    return _tensorrt_lib.why_not()


def precision_why_not(precision: str) -> str | None:
    """None when engines of this precision can run here, else the reason with the remedy.

    Raises:
        ValueError: unknown precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(
            f"backend 'tensorrt' has no precision {precision!r}; has {', '.join(PRECISIONS)}"
        )
    return why_not()


def auto_precision() -> tuple[str, str]:
    """What ``precision="auto"`` is, and one sentence that says why."""
    return "fp16", "the fastest above 40 dB of fp32; norms stay in fp32"


# ---------------------------------------------------------------------- building


def build_plan(
    onnx: bytes,
    profile: Profile,
    *,
    precision: str,
    device: int = 0,
    cache: EngineCache | None = None,
    version_compatible: bool = False,
    progress: Progress | None = None,
    log: Callable[[int, str], None] | None = None,
) -> bytes:
    """Builds an engine for this machine's GPU; with TensorRT for RTX for any, without one.

    Args:
        onnx: a model; its types are the engine's types, also those around QuantizeLinear.
        profile: smallest, best and largest shape of every input.
        precision: ``"fp32"`` keeps float32 products exact; the others may use TF32 for what is
            float32 in the model.
        device: index of the GPU.
        cache: keeps the timings of kernels; None: they are measured anew.
        version_compatible: the engine also runs in the lean runtime and in newer versions.
        progress: called with phase, step and steps; returns False to stop.
        log: called with severity (0 worst, 4 least) and text.

    Raises:
        BackendUnavailable: no library, no builder, or no GPU where one is needed.
        ValueError: the model or the profile is not accepted.
        FastgenError: the build failed or was stopped.
    """
    library = _tensorrt_lib.open_library()
    name = f"{library['flavour']}-{library['version']}-{_device(library, device)[0]}"
    name = "".join(c if c.isalnum() or c in ".-" else "_" for c in name)
    try:
        plan, timing, _ = _tensorrt_lib.extension().build(
            onnx,
            [profile],
            tf32=precision != "fp32",
            version_compatible=version_compatible,
            timing_cache=cache.timing(name) if cache is not None else b"",
            device=device,
            progress=progress,
            log=log,
        )
    except FastgenError:
        raise
    except RuntimeError as error:
        raise FastgenError(" ".join(str(error).split())) from error
    if cache is not None and timing:
        cache.store_timing(name, timing)
    return bytes(plan)


def _device(library: Mapping[str, Any], device: int) -> tuple[str, str, int]:
    """Name and compute capability of the GPU and the driver's version, as far as engines depend.

    Engines of TensorRT for RTX are made for all GPUs, and finished by the runtime on the one.
    """
    if library["flavour"] == "rtx":
        return "any", "any", 0
    trt = _tensorrt_lib.extension()
    facts = trt.device(device)
    major, minor = divmod(facts["capability"], 10)
    return facts["name"], f"{major}.{minor}", trt.driver()["version"]


class _Slot:
    """A loaded engine and the kinds of input that it ran on."""

    def __init__(self, engine: Any, profile: Profile) -> None:
        self.engine = engine
        self.profile = profile
        self.frames: OrderedDict[Any, Any] = OrderedDict()

    def frame(self, key: Any, make: Callable[[], Any]) -> Any:
        if key in self.frames:
            self.frames.move_to_end(key)
        else:
            while len(self.frames) >= _FRAMES:  # before: memory of the GPU is short
                self.frames.popitem(last=False)
            self.frames[key] = make()
        return self.frames[key]


class Runner:
    """A compiled graph on TensorRT; see ``fastgen.backends``.

    Engines are made for the sizes that come. Calls from several threads are safe; they run one
    after the other. GPU tensors (PyTorch, or anything with ``__cuda_array_interface__`` and
    ``out=``) are read and written in place, on PyTorch's current stream for its tensors, else on
    the default stream.

    Args:
        graph: the network.
        weights: arrays by weight name.
        precision: ``"fp32"`` or ``"fp16"``.
        device: index of the GPU.
        cache: where engines are kept.

    Raises:
        GraphError: missing, unknown or wrongly shaped weights.
    """

    backend = "tensorrt"
    threads = 1
    sized_engines = True  # a frame a few pixels larger may need another engine

    def __init__(
        self,
        graph: Graph,
        weights: Mapping[str, np.ndarray],
        precision: str = "fp32",
        device: int = 0,
        cache: EngineCache | None = None,
    ) -> None:
        expected = graph.weight_shapes()
        wrong = [k for k, s in expected.items() if k not in weights or weights[k].shape != s]
        if wrong or len(weights) != len(expected):
            raise GraphError(f"weights do not fit the graph: {(wrong or sorted(weights))[:5]}")
        self.graph = graph
        self.precision = precision
        self._weights = dict(weights)
        self._device = device
        self.cache = cache or EngineCache()
        self._network = network_hash(graph, weights)
        self._slots: list[_Slot] = []
        self._lock = threading.Lock()  # of running and of the list of engines
        self._building = threading.Lock()
        self._closed = False

    def close(self) -> None:
        """Gives the GPU's memory back; the runner cannot be used any more."""
        with self._lock:
            self._closed = True
            self._slots.clear()

    # ------------------------------------------------------------------ engines

    def shapes_of(self, inputs: Any, io: ImageIO | None = None) -> Shapes:
        """Shapes of the network's inputs for what :meth:`run` would be given."""
        if io is None:
            named = inputs if isinstance(inputs, Mapping) else {self.graph.inputs[0].name: inputs}
            shapes = {name: tuple(value.shape) for name, value in named.items()}
        else:
            check_image_batch(inputs)
            if len(self.graph.inputs) != 1 or len(self.graph.outputs) != 1:
                raise ValueError("io= needs a graph with one image input and one output")
            sides = padded_size(self.graph, *inputs.shape[1:3])
            shapes = {self.graph.inputs[0].name: (inputs.shape[0], 3, *sides)}
        self.graph.infer_shapes(shapes)
        return shapes

    def ready(self, shapes: Shapes) -> bool:
        """Whether an engine for these shapes is loaded."""
        return self._find(shapes) is not None

    def _find(self, shapes: Shapes) -> _Slot | None:
        for slot in self._slots:
            if profile_holds(slot.profile, shapes):
                return slot
        return None

    def prepare(self, shapes: Shapes, progress: Progress | None = None) -> None:
        """Loads the engine for these shapes, or builds it, which can take minutes.

        Runs on other sizes go on meanwhile.

        Raises:
            FastgenError: it cannot be built.
        """
        with self._building:
            if self.ready(shapes):
                return
            profile = profile_for(self.graph, shapes)
            key, facts = self._key(profile)
            trt = _tensorrt_lib.extension()
            engine = self.cache.get(
                key,
                facts,
                lambda plan: trt.Engine(plan, self._device),
                lambda: self._build(profile, progress),
            )
            with self._lock:
                if not self._closed:
                    self._slots.append(_Slot(engine, profile))
                    del self._slots[:-_ENGINES]

    def make(self, shapes: Shapes, progress: Progress | None = None) -> tuple[str, bool]:
        """Builds the engine for these shapes into the cache, without loading it.

        Returns:
            Its key, and whether it had to be built.

        Raises:
            FastgenError: it cannot be built.
        """
        profile = profile_for(self.graph, shapes)
        key, facts = self._key(profile)
        if self.cache.load(key) is not None:
            return key, False
        self.cache.store(key, self._build(profile, progress), facts)
        return key, True

    def _build(self, profile: Profile, progress: Progress | None) -> bytes:
        from fastgen.exporters.onnx import onnx_model

        model = onnx_model(self.graph, self._weights, fp16=self.precision == "fp16")
        return build_plan(
            model.SerializeToString(),
            profile,
            precision=self.precision,
            device=self._device,
            cache=self.cache,
            progress=progress,
        )

    def _key(self, profile: Profile) -> tuple[str, dict[str, Any]]:
        """The key of an engine, and what is told about it."""
        library = _tensorrt_lib.open_library()
        device, capability, driver = _device(library, self._device)
        key = engine_key(
            network=self._network,
            profile=profile,
            precision=self.precision,
            library=library["version"],
            flavour=library["flavour"],
            device=device,
            capability=capability,
            driver=driver,
            fastgen=sys.modules["fastgen"].__version__,  # not an import: arrows point down
            options={},
        )
        largest = {name: list(sizes[2]) for name, sizes in profile.items()}
        return key, {
            "model": self.graph.name,
            "precision": self.precision,
            "largest": largest,
            "library": f"{library['flavour']} {library['version']}",
            "device": device,
        }

    # ------------------------------------------------------------------ running

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
            FastgenError: no engine can be built.
        """
        shapes = self.shapes_of(inputs, io)
        while True:
            with self._lock:
                if self._closed:
                    raise ValueError("this runner is closed; compile the graph again")
                slot = self._find(shapes)
                if slot is not None:
                    if io is not None:
                        return self._run_image(slot, shapes, inputs, io, out)
                    return self._run_tensors(slot, shapes, inputs, out)
            self.prepare(shapes)

    def _run_image(self, slot: _Slot, shapes: Shapes, image: Any, io: ImageIO, out: Any) -> Any:
        host = isinstance(image, np.ndarray)
        is_byte = str(image.dtype).removeprefix("torch.") == "uint8"
        trt, args = _tensorrt_lib.extension(), (slot.engine, shapes, self._device, host)
        size = tuple(image.shape[1:3])
        frame = slot.frame(
            ("image", image.shape[0], size, is_byte, io, host),
            lambda: ImageFrame(trt, *args, cuda=_cuda(), size=size, is_byte=is_byte, io=io),
        )
        with trt.Current(self._device):
            if host:
                result = np.empty_like(image, order="C") if out is None else out
                _check_result(result, image.shape, image.dtype)
                frame.run_host(image, result)
                return result
            photo, stream = self._on_device(image)
            result = _like(photo, image.shape) if out is None else out
            _check_result(result, image.shape, image.dtype)
            frame.run_device(_address(photo), _address(result), stream)
            return result

    def _run_tensors(self, slot: _Slot, shapes: Shapes, inputs: Any, out: Any) -> Any:
        named = inputs if isinstance(inputs, Mapping) else {next(iter(shapes)): inputs}
        host = any(isinstance(v, np.ndarray) for v in named.values())
        for name, value in named.items():
            if str(value.dtype).removeprefix("torch.") != "float32":
                raise TypeError(f"input {name!r} has the dtype {value.dtype}, must be float32")
        trt, args = _tensorrt_lib.extension(), (slot.engine, shapes, self._device, host)
        frame = slot.frame(
            ("tensors", tuple(sorted(shapes.items())), host), lambda: TensorFrame(trt, *args)
        )
        if out is not None and len(frame.outputs) > 1:
            raise ValueError("out= needs a graph with one output")
        with trt.Current(self._device):
            if host:
                results = {
                    name: np.empty(frame.shapes[name], np.float32) if out is None else out
                    for name in frame.outputs
                }
                for name, result in results.items():
                    _check_result(result, frame.shapes[name], np.dtype(np.float32))
                frame.run_host(named, results)
            else:
                results = self._tensors_on_device(frame, named, out)
        single = len(results) == 1 and not isinstance(inputs, Mapping)
        return next(iter(results.values())) if single else results

    def _tensors_on_device(self, frame: Any, named: Mapping[str, Any], out: Any) -> dict[str, Any]:
        placed, stream = {}, 0
        for name, value in named.items():
            placed[name], stream = self._on_device(value)
        first = next(iter(placed.values()))
        results = {}
        for name in frame.outputs:
            results[name] = _like(first, frame.shapes[name]) if out is None else out
            _check_result(results[name], frame.shapes[name], first.dtype)
        frame.run_device({k: _address(v) for k, v in (placed | results).items()}, stream)
        return results

    def _on_device(self, value: Any) -> tuple[Any, int]:
        """A dense tensor on this GPU, and the stream that it is used on."""
        if hasattr(value, "is_cuda"):  # torch
            if not value.is_cuda or value.device.index != self._device:
                raise ValueError(
                    f"a tensor is on {value.device}, this runner on cuda:{self._device}; move the "
                    "tensor, or compile with device="
                )
            import torch

            stream = torch.cuda.current_stream(value.device).cuda_stream
            return value.detach().contiguous(), int(stream)
        if not hasattr(value, "__cuda_array_interface__"):
            kind = type(value).__name__
            raise TypeError(f"input is {kind}, must be a numpy array or a GPU tensor")
        return value, 0


def _like(value: Any, shape: tuple[int, ...]) -> Any:
    if not hasattr(value, "new_empty"):  # torch has it
        raise TypeError(f"a result for {type(value).__name__} must be given with out=")
    return value.new_empty(tuple(shape))


def _address(value: Any) -> int:
    """Where a dense GPU array starts."""
    facts = value.__cuda_array_interface__
    dense, step = [], np.dtype(facts["typestr"]).itemsize
    for size in reversed(facts["shape"]):
        dense.append(step)
        step *= size
    if facts.get("strides") is not None and tuple(facts["strides"]) != tuple(reversed(dense)):
        raise ValueError("a GPU array is not contiguous; make it so")
    return int(facts["data"][0])


def _check_result(out: Any, shape: tuple[int, ...], dtype: Any) -> None:
    if tuple(out.shape) != tuple(shape) or out.dtype != dtype:
        raise ValueError(
            f"out has the shape {tuple(out.shape)} and dtype {out.dtype}, must be {tuple(shape)} "
            f"and {dtype}"
        )


def compile(
    graph: Graph,
    weights: Mapping[str, np.ndarray],
    precision: str = "auto",
    threads: int | None = None,
    ranges: Mapping[str, Sequence[float]] | None = None,
    device: int = 0,
) -> Runner:
    """Compiles a graph for TensorRT; the engine itself is made when the first input comes.

    Args:
        graph: the network.
        weights: float arrays by weight name.
        precision: ``"fp32"``, ``"fp16"``, or ``"auto"``, which is fp16.
        threads: ignored, the GPU has its own.
        ranges: ignored, there is no int8 here.
        device: index of the GPU.

    Raises:
        ValueError: an unknown precision.
        BackendUnavailable: TensorRT cannot run here.
    """
    if precision == "auto":
        precision, _ = auto_precision()
    reason = precision_why_not(precision)
    if reason is not None:
        raise BackendUnavailable(f"backend 'tensorrt' cannot run here: {reason}")
    return Runner(graph, weights, precision, device)
