"""The ``cpu`` backend: our C++ engine. Needs neither torch nor a GPU.

The instruction set is chosen at run time (``FASTGEN_CPU_ISA`` forces one), the number of threads
is the CPUs this process may use (``FASTGEN_NUM_THREADS`` or ``threads=`` say otherwise).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fastgen.backends import ImageIO, _steps, check_image_batch, padded_size
from fastgen.backends._lower import lower
from fastgen.backends._storage import half_values
from fastgen.errors import BackendUnavailable, GraphError
from fastgen.graph import Graph

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["PRECISIONS", "Runner", "auto_precision", "compile", "precision_why_not", "why_not"]

PRECISIONS = ("fp32", "bf16")
_BF16_ISA = "avx512_bf16"  # the instruction set that gains from bfloat16 products
_PLANS = 8  # input shapes whose plans are kept
_FLOAT32, _BFLOAT16 = 0, 2  # csrc/dtype.h


def _extension() -> ModuleType:
    from fastgen import _C

    return _C


def why_not() -> str | None:
    """None when the engine can run here, else the reason with the remedy."""
    try:
        _extension().Engine(threads=1)
    except ImportError as error:
        return f"its extension module is not built ({error}); reinstall fastgen: pip install ."
    except ValueError as error:
        return str(error)
    return None


def precision_why_not(precision: str) -> str | None:
    """None when the engine can run this precision here, else the reason with the remedy.

    Raises:
        ValueError: unknown precision.
    """
    _check_precision(precision)
    return why_not() or _lacks(precision, str(_extension().Engine(threads=1).isa))


def auto_precision() -> tuple[str, str]:
    """What ``precision="auto"`` is here, and one sentence that says why.

    Raises:
        ImportError: the extension module is not built. ValueError: the forced instruction set or
            number of threads is not possible.
    """
    isa = str(_extension().Engine(threads=1).isa)
    if isa == _BF16_ISA:
        return "bf16", f"the fastest above 40 dB of fp32 with the instruction set {isa}"
    return "fp32", f"bf16 gains nothing with the instruction set {isa}"


def _check_precision(precision: str) -> None:
    if precision not in PRECISIONS:
        raise ValueError(
            f"backend 'cpu' has no precision {precision!r}; has {', '.join(PRECISIONS)}"
        )


def _lacks(precision: str, isa: str) -> str | None:
    """Why a precision cannot run with an instruction set; None when it can."""
    if precision != "bf16" or isa == _BF16_ISA:
        return None
    return f"precision 'bf16' needs AVX512_BF16, the instruction set here is {isa}; take 'fp32'"


class Runner:
    """A compiled graph on the cpu backend; see ``fastgen.backends``.

    Calls from several Python threads are safe (one runs at a time), and so is forking. Memory is
    one arena whose size follows the largest recent input; ``close`` gives it back.

    Args:
        graph: the network.
        weights: arrays by weight name.
        threads: 1..1024; None takes ``FASTGEN_NUM_THREADS`` or the CPUs of this process.
        isa: an instruction set (``"avx512_bf16"``, ``"avx512"``, ``"avx2"``, ``"scalar"``); None
            takes ``FASTGEN_CPU_ISA`` or the best.
        precision: ``"fp32"``; ``"bf16"`` rounds the factors of the products to bfloat16 and sums
            in float32, and keeps what convolutions hand to each other as bfloat16. Only
            AVX512_BF16 gains from it.

    Raises:
        ValueError: threads or instruction set that this machine cannot give.
        GraphError: missing, unknown or wrongly shaped weights.
    """

    backend = "cpu"

    def __init__(
        self,
        graph: Graph,
        weights: Mapping[str, Any],
        threads: int | None = None,
        isa: str | None = None,
        precision: str = "fp32",
    ) -> None:
        if threads is not None and (type(threads) is not int or not 1 <= threads <= 1024):
            raise ValueError(f"threads is {threads!r}, must be an integer in 1..1024 or None")
        self.graph = graph
        self.precision = precision
        self._lowered = lower(graph, weights)
        self._engine = _extension().Engine(threads=threads or 0, isa=isa or "")
        _build(self._engine, self._lowered, precision == "bf16")
        self._half = half_values(self._lowered) if precision == "bf16" else frozenset()
        for step in self._lowered.steps:  # the engine holds its own packed weights
            if isinstance(step, _steps.ConvStep):
                step.phases = []
        self._plans: OrderedDict[Any, Any] = OrderedDict()
        self._closed = False

    @property
    def threads(self) -> int:
        """Threads of a run."""
        return int(self._engine.threads)

    @property
    def isa(self) -> str:
        """Instruction set in use."""
        return str(self._engine.isa)

    @property
    def profile(self) -> list[tuple[str, float, float]]:
        """(step, milliseconds, GFLOP/s) of the last run, after ``set_profile(True)``."""
        return list(self._engine.profile())

    def set_profile(self, on: bool) -> None:
        """Switches the timing of steps on or off."""
        self._engine.set_profile(bool(on))

    @property
    def steps(self) -> list[_steps.Step]:
        """The steps of a run, in the order of ``profile``."""
        return list(self._lowered.steps)

    def plan_facts(
        self, inputs: dict[str, tuple[int, ...]]
    ) -> tuple[list[int], list[tuple[float, float]]]:
        """What a run with these input shapes touches and does.

        Returns:
            Bytes of each lowered value; for each step the multiply-adds of its convolution as
            given, and those that are done.
        """
        shapes = self.graph.infer_shapes(inputs)
        values, floats, externals = plan_values(self._lowered, shapes, True, self._half)
        sizes = [4 * int(_extension().value_floats(value)) for value in values]
        return sizes, list(self._engine.plan(values, floats, externals).costs)

    def close(self) -> None:
        """Gives the memory and the threads back; the runner cannot be used any more."""
        self._closed = True
        self._plans.clear()
        self._engine.release_memory()

    def run(self, inputs: Any, io: ImageIO | None = None, out: Any = None) -> Any:
        """Runs the graph.

        Args:
            inputs: with ``io=None`` a float array (N,C,H,W), or a dict of them by input name, in
                the model's range; with ``io`` one image batch (N,H,W,3), uint8 or float32 0..1.
            io: how to convert an image batch to the model's range and back.
            out: array to write the result into, of the result's shape and dtype.

        Returns:
            float32 array (or a dict of them by output name when inputs were a dict or the graph
            has several outputs); with ``io`` an image batch like the one that came in.

        Raises:
            ValueError: wrong shapes. TypeError: wrong types. MemoryError: too large an input.
        """
        if self._closed:
            raise ValueError("this runner is closed; compile the graph again")
        if io is not None:
            return self._run_image(inputs, io, out)
        named = inputs if isinstance(inputs, Mapping) else {self.graph.inputs[0].name: inputs}
        arrays = {name: _float_array(name, array) for name, array in named.items()}
        shapes = {name: array.shape for name, array in arrays.items()}
        plan, values = self._plan(shapes, external=True)
        results: dict[str, np.ndarray] = {}
        single = len(self.graph.outputs) == 1
        for name in self._lowered.outputs:
            shape = values[self.graph.outputs[name]]
            results[name] = np.empty(shape, np.float32)
            if out is not None:
                if not single:
                    raise ValueError("out= needs a graph with one output")
                results[name] = _check_out(out, shape, np.dtype(np.float32))
        # A result may be written before the last step that reads an input: never into an input.
        written = {}
        for name, array in results.items():
            direct = array.flags.c_contiguous and array.flags.aligned
            if out is not None:
                direct &= not any(np.may_share_memory(array, other) for other in arrays.values())
            written[name] = array if direct else np.empty(array.shape, np.float32)
        self._engine.run(
            plan, [arrays[name] for name in self._lowered.inputs] + [*written.values()]
        )
        for name, array in written.items():
            if array is not results[name]:
                results[name][...] = array
        if single and not isinstance(inputs, Mapping):
            return next(iter(results.values()))
        return results

    def _run_image(self, image: Any, io: ImageIO, out: Any) -> np.ndarray:
        if not isinstance(image, np.ndarray):
            raise TypeError(f"image batch is {type(image).__name__}, must be a numpy array")
        check_image_batch(image)
        inputs, outputs = self.graph.inputs, self._lowered.outputs
        if len(inputs) != 1 or len(outputs) != 1 or len(inputs[0].shape) != 4:
            raise ValueError("io= needs a graph with one image input and one output")
        rows, columns = padded_size(self.graph, *image.shape[1:3])
        shape = (image.shape[0], 3, rows, columns)
        plan, values = self._plan({inputs[0].name: shape}, external=False)
        result_shape = values[next(iter(self.graph.outputs.values()))]
        if result_shape != shape:
            raise ValueError(
                f"io= needs an output of the input's shape {shape}, not {result_shape}"
            )
        result = None if out is None else _check_out(out, image.shape, image.dtype)
        photo = np.ascontiguousarray(image)
        direct = result is not None and result.flags.c_contiguous and result.flags.aligned
        target = result if direct and result is not None else np.empty_like(photo)
        if np.may_share_memory(target, photo):
            photo = photo.copy()
        self._engine.run_image(
            plan,
            self._lowered.inputs[inputs[0].name],
            next(iter(outputs.values())),
            photo,
            target,
            tuple(map(float, io.input_range)),
            tuple(map(float, io.output_range)),
            float(io.strength),
            bool(io.preserve_color),
            bool(io.bgr),
        )
        if result is not None and not direct:
            result[...] = target
            return result
        return target

    def _plan(
        self, inputs: dict[str, tuple[int, ...]], external: bool
    ) -> tuple[Any, dict[str, tuple[int, ...]]]:
        """The engine's plan and the shapes of all values for these input shapes."""
        key = (tuple(sorted(inputs.items())), external)
        plans = self._plans
        try:
            plans.move_to_end(key)
            return plans[key]  # type: ignore[no-any-return]
        except KeyError:
            pass
        shapes = self.graph.infer_shapes(inputs)
        values, floats, externals = plan_values(self._lowered, shapes, external, self._half)
        entry = (self._engine.plan(values, floats, externals), shapes)
        plans[key] = entry
        while len(plans) > _PLANS:
            try:
                plans.popitem(last=False)
            except KeyError:  # another thread was faster
                break
        return entry


def plan_values(
    lowered: _steps.Lowered,
    shapes: Mapping[str, tuple[int, ...]],
    external: bool,
    half: frozenset[int] = frozenset(),
) -> tuple[list[tuple[int, int, int, int, bool, int, int]], int, int]:
    """Places all values in one arena; values that are never alive together may share memory.

    Args:
        lowered: the steps.
        shapes: shapes of all graph values.
        external: whether inputs and outputs are arrays of the caller, not parts of the arena.
        half: values that are bfloat16 in memory.

    Returns:
        Per value (n, c, h, w, planar, dtype, offset in floats, or -1 - index of an external
        array); the arena's size in floats; the number of external arrays.
    """
    floats_of = _extension().value_floats
    ends = {index: len(lowered.steps) for index in lowered.outputs.values()}
    starts = dict.fromkeys(lowered.inputs.values(), -1)
    for position, step in enumerate(lowered.steps):
        for index in step.writes():
            starts.setdefault(index, position)
            ends.setdefault(index, position)
        for index in step.reads():
            ends[index] = max(position, ends.get(index, position))
    outside = [*lowered.inputs.values(), *lowered.outputs.values()] if external else []
    offsets = {index: -1 - i for i, index in enumerate(outside)}
    full = []
    for index, (name, planar) in enumerate(lowered.values):
        n, c, h, w = (*shapes[name], 1, 1)[:4]
        full.append((n, c, h, w, planar, _BFLOAT16 if index in half else _FLOAT32))
    sizes = [-(-floats_of((*shape, 0)) // 16) * 16 for shape in full]
    placed: list[int] = []
    total = 0
    for index in sorted(range(len(full)), key=lambda i: (-sizes[i], i)):
        if index in offsets:
            continue
        begin, end = starts.get(index, -1), ends.get(index, -1)
        neighbours = sorted(
            (offsets[other], offsets[other] + sizes[other])
            for other in placed
            if starts.get(other, -1) <= end and begin <= ends.get(other, -1)
        )
        offset = 0
        for low, high in neighbours:
            if offset + sizes[index] <= low:
                break
            offset = max(offset, high)
        offsets[index] = offset
        placed.append(index)
        total = max(total, offset + sizes[index])
    return [(*full[i], offsets[i]) for i in range(len(full))], total, len(outside)


def _build(engine: Any, lowered: _steps.Lowered, bf16: bool = False) -> None:
    """Gives the steps to the engine, which packs the weights."""
    for _ in lowered.values:
        engine.add_value()
    for slot in lowered.slots:
        engine.add_slot(slot.channels, slot.scale, slot.shift)
    for step in lowered.steps:
        if isinstance(step, _steps.ConvStep):
            engine.add_conv(step, bf16)
        elif isinstance(step, _steps.CopyStep):
            engine.add_copy(step.label, step.source, step.out)
        elif isinstance(step, _steps.StatsStep):
            engine.add_stats(step.label, step.value, step.norm)
        elif isinstance(step, _steps.GivenStep):
            engine.add_given(step.label, step.mean, step.var, step.norm)
        elif isinstance(step, _steps.PlainStep):
            if step.op == "pool":
                engine.add_pool(step.label, step.values[0], step.out, *step.pool)
            elif step.op == "concat":
                engine.add_concat(step.label, step.values, step.out)
            elif step.op == "broadcast":
                engine.add_broadcast(step.label, step.values[0], step.out)
            else:
                engine.add_reshape(step.label, step.values[0], step.out)
        else:
            raise GraphError(f"step {step.label!r} has no implementation in the cpu backend")


def _float_array(name: str, array: Any) -> np.ndarray:
    if not isinstance(array, np.ndarray):
        raise TypeError(f"input {name!r} is {type(array).__name__}, must be a numpy array")
    if array.dtype.kind != "f":
        raise TypeError(f"input {name!r} has the dtype {array.dtype}, must be float32")
    return np.require(array, np.float32, ["C", "A"])


def _check_out(out: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out is {type(out).__name__}, must be a numpy array")
    if out.shape != tuple(shape) or out.dtype != dtype or not out.flags.writeable:
        raise ValueError(
            f"out has the shape {out.shape} and dtype {out.dtype}, must be a writable array of "
            f"the shape {tuple(shape)} and dtype {dtype}"
        )
    return out


def compile(
    graph: Graph,
    weights: Mapping[str, Any],
    precision: str = "fp32",
    threads: int | None = None,
) -> Runner:
    """Compiles a graph for this CPU.

    Args:
        graph: the network.
        weights: arrays by weight name.
        precision: ``"fp32"``; ``"bf16"``, on a CPU with AVX512_BF16; ``"auto"``, which is bf16 on
            such a CPU and fp32 elsewhere (:func:`auto_precision`).
        threads: 1..1024; None takes ``FASTGEN_NUM_THREADS`` or the CPUs of this process.

    Raises:
        ValueError: unknown precision, or threads out of range.
        GraphError: missing, unknown or wrongly shaped weights.
        BackendUnavailable: the extension module is missing, or the CPU has no bfloat16 products.
    """
    if precision != "auto":
        _check_precision(precision)
    try:
        if precision == "auto":
            precision, _ = auto_precision()
        elif reason := _lacks(precision, str(_extension().Engine(threads=1).isa)):
            raise BackendUnavailable(f"backend 'cpu': {reason}")
        return Runner(graph, weights, threads, precision=precision)
    except ImportError as error:
        raise BackendUnavailable(f"backend 'cpu': {error}; reinstall: pip install .") from error
