"""The ``cpu`` backend: our C++ engine. Needs neither torch nor a GPU.

The instruction set is chosen at run time (``FASTGEN_CPU_ISA`` forces one), the number of threads
is the CPUs this process may use (``FASTGEN_NUM_THREADS`` or ``threads=`` say otherwise).
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastgen.backends import ImageIO, _bands, _quantize, _steps, check_image_batch, padded_size
from fastgen.backends._arrays import check_out, constant_arrays, float_array
from fastgen.backends._bands import BandInfo, Bands, Plan
from fastgen.backends._build import build as _build
from fastgen.backends._build import for_batch, set_ranges
from fastgen.backends._lower import lower
from fastgen.backends._memory import plan_values, segment_steps
from fastgen.backends._norm_stats import NormStats
from fastgen.backends._products import products
from fastgen.backends._storage import half_values
from fastgen.errors import BackendUnavailable
from fastgen.graph import Graph

if TYPE_CHECKING:
    from types import ModuleType

__all__ = [
    "PRECISIONS",
    "Runner",
    "auto_precision",
    "compile",
    "precision_note",
    "precision_why_not",
    "why_not",
]

PRECISIONS = ("fp32", "bf16", "int8")
_BF16_ISA = "avx512_bf16"  # the instruction set that gains from bfloat16 products
_INT8_ISAS = ("avx512_vnni", _BF16_ISA)  # those that gain from products of bytes
_PLANS = 8  # input shapes whose plans are kept
_numbers = itertools.count(1)  # of contents of constant inputs


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


def precision_note(precision: str) -> str | None:
    """What to know before taking a precision that can run here; None when there is nothing.

    Raises:
        ImportError, ValueError: as :func:`auto_precision`; unknown precision.
    """
    _check_precision(precision)
    isa = str(_extension().Engine(threads=1).isa)
    if precision != "int8" or isa in _INT8_ISAS:
        return None
    return f"precision 'int8' gains nothing over fp32 with {isa}, which has no AVX512_VNNI"


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


def _has_halves(isa: str) -> bool:
    return isa == _BF16_ISA  # which converts to and from bfloat16 in no time


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
            ``"int8"`` takes bytes, summed in int32, where they are faster (see ``_products``).
        ranges: for int8: (low, high) of graph inputs by their names and of convolutions' inputs by
            the convolutions' names.

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
        ranges: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        if threads is not None and (type(threads) is not int or not 1 <= threads <= 1024):
            raise ValueError(f"threads is {threads!r}, must be an integer in 1..1024 or None")
        self.graph = graph
        self.precision = precision
        self._lowered = lower(graph, weights)
        self._engine = _extension().Engine(threads=threads or 0, isa=isa or "")
        self._segments = segment_steps(self._lowered)
        if precision == "int8":
            set_ranges(self._lowered, _quantize.spans(graph, weights, ranges))
        halves = precision != "fp32" and _has_halves(self.isa)
        self._products = products(self._lowered, precision, halves)
        _build(self._engine, self._lowered, self._products)
        self._half = half_values(self._lowered) if halves or precision == "bf16" else frozenset()
        for step in self._lowered.steps:  # the engine holds its own packed weights
            if isinstance(step, _steps.ConvStep):
                step.phases = []
        self._plans: OrderedDict[Any, Any] = OrderedDict()
        self._norms = NormStats(self._lowered)
        # Number of the contents of the constant inputs, and these by batch size.
        self._constants: tuple[int, dict[int, dict[str, np.ndarray]]] = (0, {})
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

    @property
    def products(self) -> list[str]:
        """The factors of each step's products: fp32, bf16 or int8."""
        return self._products

    def plan_facts(
        self, inputs: dict[str, tuple[int, ...]]
    ) -> tuple[list[int], list[tuple[float, float]]]:
        """What a run with these input shapes touches and does.

        Returns:
            Bytes of each lowered value; for each step the multiply-adds of its convolution as
            given, and those that are done.
        """
        shapes = self.graph.infer_shapes(inputs)
        floats_of = _extension().value_floats
        values, *rest = plan_values(self._lowered, shapes, True, floats_of, half=self._half)
        sizes = [4 * int(floats_of(value)) for value in values]
        return sizes, list(self._engine.plan(values, *rest).costs)

    def close(self) -> None:
        """Gives the memory and the threads back; the runner cannot be used any more."""
        self._closed = True
        self._plans.clear()
        self._engine.release_memory()

    def release(self) -> None:
        """Gives the memory back until the next run."""
        self._engine.release_memory()

    @property
    def norm_names(self) -> tuple[str, ...]:
        """Norms whose statistics are taken from the data: the names for ``norm_stats``."""
        return self._norms.names

    def band_info(
        self, shape: tuple[int, ...], band_rows: Any = "auto", recompute: str = "auto"
    ) -> BandInfo | None:
        """How ``run(..., band_rows=..., io=...)`` goes through an image batch (N,H,W,3).

        Returns:
            None where it takes the whole frame at once.
        """
        bands = _bands.check_bands(band_rows, recompute)
        return self._image_plan(shape, bands, False).info

    def run(
        self,
        inputs: Any,
        io: ImageIO | None = None,
        out: Any = None,
        norm_stats: Any = None,
        band_rows: Any = None,
        recompute: str = "auto",
    ) -> Any:
        """Runs the graph.

        Args:
            inputs: with ``io=None`` a float array (N,C,H,W), or a dict of them by input name, in
                the model's range; with ``io`` one image batch (N,H,W,3), uint8 or float32 0..1.
                Constant inputs (see :meth:`set_constants`) may be left out.
            io: how to convert an image batch to the model's range and back.
            out: array to write the result into, of the result's shape and dtype.
            norm_stats: statistics of the instance norms: None computes them; ``"return"`` returns
                them, too; a dict as returned (mean and variance, float32 (N,C), by the names of
                ``norm_names``) takes them instead of the data's.
            band_rows: rows of the frame that are worked on at a time. Less memory, and the same
                result. None: the whole frame at once. ``"auto"``: bands where the whole frame would
                not fit into the memory that is left.
            recompute: what a run in bands computes again instead of keeping it. ``"auto"``: as much
                as the memory that is left asks for, or with rows given the least memory for at most
                twice the arithmetic. ``"full"``: the least memory.

        Returns:
            float32 array (or a dict of them by output name when inputs were a dict or the graph
            has several outputs); with ``io`` an image batch like the one that came in. With
            ``norm_stats="return"`` that and the statistics.

        Raises:
            ValueError: wrong shapes or options. TypeError: wrong types. MemoryError: too large an
                input.
        """
        if self._closed:
            raise ValueError("this runner is closed; compile the graph again")
        bands = _bands.check_bands(band_rows, recompute)
        if io is not None:
            return self._run_image(inputs, io, out, norm_stats, bands)
        by_name = isinstance(inputs, dict | Mapping)
        named = inputs if by_name else {self.graph.inputs[0].name: inputs}
        arrays = {name: float_array(name, array) for name, array in named.items()}
        number, kept = self._constants
        if number:
            kept_arrays = for_batch(kept, arrays)
            own = norm_stats is None and bands == Bands()  # what is kept is of such runs
            number = 0 if any(name in arrays for name in kept_arrays) or not own else number
            arrays = kept_arrays | arrays
        shapes = {name: array.shape for name, array in arrays.items()}
        given = norm_stats is not None and not isinstance(norm_stats, str)
        plan = self._plan(shapes, True, bands, given, keep=number > 0)
        results: dict[str, np.ndarray] = {}
        single = len(self.graph.outputs) == 1
        for name in self._lowered.outputs:
            shape = plan.shapes[self.graph.outputs[name]]
            results[name] = np.empty(shape, np.float32)
            if out is not None:
                if not single:
                    raise ValueError("out= needs a graph with one output")
                results[name] = check_out(out, shape, np.dtype(np.float32))
        # A result may be written before the last step that reads an input: never into an input.
        written = {}
        for name, array in results.items():
            direct = array.flags.c_contiguous and array.flags.aligned
            if out is not None:
                direct &= not any(np.may_share_memory(array, other) for other in arrays.values())
            written[name] = array if direct else np.empty(array.shape, np.float32)
        images = next(iter(arrays.values())).shape[0]
        given_stats, wanted = self._norms.arrays(norm_stats, images)
        self._engine.run(
            plan.plan,
            [arrays[name] for name in self._lowered.inputs] + [*written.values()],
            given_stats,
            wanted,
            number,
        )
        for name, array in written.items():
            if array is not results[name]:
                results[name][...] = array
        result: Any = results
        if single and not by_name:
            result = next(iter(results.values()))
        return result if wanted is None else (result, self._norms.by_name(wanted, images))

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
        self._constants = (next(_numbers) if constants else 0, constants)

    def _run_image(self, image: Any, io: ImageIO, out: Any, norm_stats: Any, bands: Bands) -> Any:
        if not isinstance(image, np.ndarray):
            raise TypeError(f"image batch is {type(image).__name__}, must be a numpy array")
        check_image_batch(image)
        given, wanted = self._norms.arrays(norm_stats, image.shape[0])
        plan = self._image_plan(image.shape, bands, given is not None)
        result = None if out is None else check_out(out, image.shape, image.dtype)
        photo = np.ascontiguousarray(image)
        direct = result is not None and result.flags.c_contiguous and result.flags.aligned
        target = result if direct and result is not None else np.empty_like(photo)
        if np.may_share_memory(target, photo):
            photo = photo.copy()
        self._engine.run_image(
            plan.plan,
            *self._image_values(),
            photo,
            target,
            tuple(map(float, io.input_range)),
            tuple(map(float, io.output_range)),
            float(io.strength),
            bool(io.preserve_color),
            bool(io.bgr),
            given,
            wanted,
        )
        if result is not None and not direct:
            result[...] = target
            target = result
        return target if wanted is None else (target, self._norms.by_name(wanted, image.shape[0]))

    def _image_values(self) -> tuple[int, int]:
        return next(iter(self._lowered.inputs.values())), next(iter(self._lowered.outputs.values()))

    def _image_plan(self, image: tuple[int, ...], bands: Bands, given: bool) -> Plan:
        inputs = self.graph.inputs
        if len(inputs) != 1 or len(self.graph.outputs) != 1 or len(inputs[0].shape) != 4:
            raise ValueError("io= needs a graph with one image input and one output")
        shape = (image[0], 3, *padded_size(self.graph, *image[1:3]))
        plan = self._plan({inputs[0].name: shape}, False, bands, given, tuple(image[:3]))
        result = plan.shapes[next(iter(self.graph.outputs.values()))]
        if result != shape:
            raise ValueError(f"io= needs an output of the input's shape {shape}, not {result}")
        return plan

    def _plan(
        self,
        inputs: dict[str, tuple[int, ...]],
        external: bool,
        bands: Bands,
        given: bool,
        image: tuple[int, ...] | None = None,
        keep: bool = False,
    ) -> Plan:
        """The engine's plan for these input shapes."""
        # Only a run in bands has another plan for other statistics or another photo's size.
        key: Any = (tuple(sorted(inputs.items())), external, bands, keep)
        if bands.rows is not None:
            key = (*key, given, image)
        plans = self._plans
        try:
            plans.move_to_end(key)
            return plans[key]  # type: ignore[no-any-return]
        except KeyError:
            pass
        shapes = self.graph.infer_shapes(inputs)
        entry = self._make_plan(shapes, external, bands, given, image, keep)
        plans[key] = entry
        while len(plans) > _PLANS:
            try:
                plans.popitem(last=False)
            except KeyError:  # another thread was faster
                break
        return entry

    def _make_plan(
        self,
        shapes: dict[str, tuple[int, ...]],
        external: bool,
        bands: Bands,
        given: bool,
        image: tuple[int, ...] | None,
        keep: bool,
    ) -> Plan:
        batch, threads = shapes[self.graph.inputs[0].name][0], self.threads
        # Images that do not fill the threads evenly are better split themselves.
        apart = batch > 1 and (batch % threads == 0 or batch >= 4 * threads)
        values, floats, externals, segments = plan_values(
            self._lowered,
            shapes,
            external,
            _extension().value_floats,
            self._segments if apart else (),
            keep,
            self._half,
        )
        limit, why = 0, "as asked for"
        whole: Plan | None = None
        if not bands.rows:
            whole = Plan(self._engine.plan(values, floats, externals, segments), shapes, None)
        if whole and bands.rows is None:
            return whole
        if whole:
            left = int(_extension().memory_available()) + int(self._engine.arena_bytes)
            if whole.plan.bytes <= _bands.WHOLE_SHARE * left and not bands.full:
                return whole
            limit = 0 if bands.full else max(1, int(_bands.BANDED_SHARE * left))
            why = f"at once it takes {whole.plan.bytes >> 20} MiB, {left >> 20} MiB are left"
        shaped = [(*value[:-2], min(value[-2], 0), 0) for value in values]
        joins = [(index, *where) for index, where in self._lowered.inside.items()]
        rows = bands.rows or _bands.DEFAULT_ROWS
        photo = None if image is None else (*image, *self._image_values())
        most = float("inf") if bands.full else _bands.MOST_WORK
        plan = self._engine.plan_bands(shaped, externals, (rows, limit, most, given), photo, joins)
        if whole and plan.bytes >= whole.plan.bytes:
            return whole
        count, passes, kept, work = plan.bands
        info = BandInfo(rows, count, passes, int(plan.bytes), kept, work, why)
        return Plan(plan, shapes, info)


def compile(
    graph: Graph,
    weights: Mapping[str, Any],
    precision: str = "fp32",
    threads: int | None = None,
    ranges: Mapping[str, Sequence[float]] | None = None,
) -> Runner:
    """Compiles a graph for this CPU.

    Args:
        graph: the network.
        weights: arrays by weight name.
        precision: ``"fp32"``; ``"bf16"``, on a CPU with AVX512_BF16; ``"auto"``, which is bf16 on
            such a CPU and fp32 elsewhere (:func:`auto_precision`).
        threads: 1..1024; None takes ``FASTGEN_NUM_THREADS`` or the CPUs of this process.
        ranges: for int8, see :class:`Runner`; a checkpoint's are ``Checkpoint.ranges``.

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
        return Runner(graph, weights, threads, precision=precision, ranges=ranges)
    except ImportError as error:
        raise BackendUnavailable(f"backend 'cpu': {error}; reinstall: pip install .") from error
