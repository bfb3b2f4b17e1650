"""Measures a whole network: plain PyTorch in its variants, and every backend of ours that can."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_suite.peaks import PRECISIONS, allow_tf32
from benchmarks.gpu_suite.timing import Timer
from benchmarks.networks import ARCHITECTURES, network, random_checkpoint
from fastgen import backends, load_style, models
from fastgen.backends.torch import GraphModule
from fastgen.checkpoint import load_checkpoint
from fastgen.cli._app import one_line
from fastgen.graph import Dim, Graph

__all__ = ["load", "measure"]

_VARIANTS = ("eager nchw", "eager channels_last", "graph channels_last", "compile channels_last")


def example_shapes(
    graph: Graph, width: int, height: int, batch: int = 1
) -> dict[str, tuple[int, ...]]:
    """Input shapes at about this picture size, sides rounded up to what is allowed."""
    sizes: dict[str, int] = {}

    def bound(dim: int | Dim, wanted: int) -> int:
        if isinstance(dim, int):
            return dim
        least = max(wanted, dim.minimum)
        return sizes.setdefault(dim.symbol, -(-least // dim.divisor) * dim.divisor)

    wanted = (batch, 1, height, width)
    return {
        item.name: tuple(bound(d, wanted[i]) for i, d in enumerate(item.shape))
        for item in graph.inputs
    }


def load(name: str, folder: Path) -> tuple[Graph, dict[str, Any], str]:
    """Graph and weights of a network that is measured, and what to say about the weights."""
    if name in ARCHITECTURES:
        style, note = network(name, folder)
        checkpoint = load_style(style)
    else:
        note = "random weights"
        path = random_checkpoint(models.create(name), folder / f"{name}.safetensors")
        checkpoint = load_checkpoint(path)
    return checkpoint.graph, checkpoint.weights, note


def measure(job: dict[str, Any], timer: Timer, device: str) -> dict[str, Any]:
    """Runs a job.

    Args:
        job: ``network``, ``width``, ``height``, ``batch``, ``precision``, ``programs``
            (``"eager"``, ``"graph"``, ``"compile"``, ``"backends"``, ``"onnxruntime"``),
            ``seconds``, ``mode`` of torch.compile.
        timer: of the device.
        device: ``"cuda"`` or ``"cpu"``.

    Returns:
        The job's identity, costs, and ``rows``: one for each side. ``error`` is relative to eager
        float32, and so is ``psnr``, of pictures in the range of the first input.
    """
    with tempfile.TemporaryDirectory() as folder:
        graph, weights, note = load(job["network"], Path(folder))
    dtype = getattr(torch, PRECISIONS[job["precision"]][0])
    shapes = example_shapes(graph, job["width"], job["height"], job["batch"])
    random = torch.Generator().manual_seed(0)
    high = 255.0 if "image" in shapes else 1.0
    plain = {k: (torch.rand(s, generator=random) * high).to(device) for k, s in shapes.items()}
    module: Any = GraphModule(graph).load_weights(weights).eval().requires_grad_(False).to(device)
    allow_tf32(False)
    truth = _tensors(module(**plain))
    rows = []
    for variant in _VARIANTS:
        program, layout = variant.split()
        if program not in job["programs"]:
            continue
        row: dict[str, Any] = {"side": program, "layout": layout}
        try:
            allow_tf32(PRECISIONS[job["precision"]][1])
            format_ = {"nchw": torch.contiguous_format}.get(layout, torch.channels_last)
            net = module.to(dtype=dtype, memory_format=format_)
            feed = {k: _formatted(v.to(dtype), format_) for k, v in plain.items()}
            call = _variant(program, net, feed, job.get("mode"))
            row |= _quality(_tensors(call()), truth, high)
            row |= timer.measure(call, job["seconds"])
        except Exception as error:  # compilers raise what they like
            row["failed"] = one_line(error)
        rows.append(row)
    if "backends" in job["programs"]:
        rows += _backends(job, graph, weights, plain, truth, high, timer, device)
    if "onnxruntime" in job["programs"] and device == "cuda":
        row = {"side": "onnxruntime", "layout": "nchw"}
        try:
            call = _onnxruntime(graph, weights, plain, job["precision"])
            row |= _quality(_tensors(call()), truth, high)
            row |= timer.measure(call, job["seconds"])
        except Exception as error:  # it is not there, or cannot
            row["refused"] = one_line(error) or type(error).__name__
        rows.append(row)
    allow_tf32(False)
    identity = {k: job[k] for k in ("network", "width", "height", "batch", "precision")}
    flops = 2 * graph.multiply_adds(shapes)
    return {**identity, "weights": note, "flops": flops, "rows": rows}


def _variant(
    program: str, net: Any, feed: dict[str, torch.Tensor], mode: str | None
) -> Callable[[], Any]:
    if program == "compile":
        torch.compiler.reset()
        for tensor in feed.values():
            torch._dynamo.mark_static_address(tensor)
        compiled = torch.compile(net, dynamic=False, fullgraph=True, mode=mode)
        return lambda: compiled(**feed)
    if program != "graph" or next(iter(feed.values())).device.type != "cuda":
        return lambda: net(**feed)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries choose their algorithms before the capture
        for _ in range(3):
            net(**feed)
    torch.cuda.current_stream().wait_stream(side)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        result = net(**feed)

    def replay() -> Any:
        captured.replay()
        return result

    return replay


def _backends(
    job: dict[str, Any],
    graph: Graph,
    weights: dict[str, Any],
    plain: dict[str, torch.Tensor],
    truth: list[torch.Tensor],
    high: float,
    timer: Timer,
    device: str,
) -> list[dict[str, Any]]:
    """Backends other than torch's, which the variants above are; on a GPU none of the CPU."""
    rows = []
    for name in backends.names():
        if name == "torch" or (name == "cpu") != (device == "cpu") or backends.why_not(name):
            continue
        row: dict[str, Any] = {"side": f"backend {name}", "layout": "nchw"}
        precision = {"tf32": "fp32"}.get(job["precision"], job["precision"])
        try:
            runner = backends.get(name).compile(graph, weights, precision, None)
            feed = {k: v.numpy() for k, v in plain.items()} if name == "cpu" else plain
            call = partial(runner.run, feed)
            row |= _quality(_tensors(call()), truth, high)
            row |= timer.measure(call, job["seconds"])
        except (ValueError, TypeError, RuntimeError) as error:
            row["refused"] = one_line(error)
        rows.append(row)
    return rows


def _onnxruntime(
    graph: Graph, weights: dict[str, Any], plain: dict[str, torch.Tensor], precision: str
) -> Callable[[], Any]:
    """ONNX Runtime's CUDA provider on tensors of the GPU, without a copy."""
    import onnxruntime

    from fastgen.exporters.onnx import onnx_model

    if precision == "bf16":
        raise ValueError("no bf16 model is exported")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise ValueError("this build of onnxruntime has no CUDA")
    model = onnx_model(graph, weights, fp16=precision == "fp16").SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CUDAExecutionProvider"])
    binding = session.io_binding()
    for item in session.get_inputs():
        x = plain[item.name].contiguous()
        binding.bind_input(item.name, "cuda", 0, "float32", tuple(x.shape), x.data_ptr())
    shapes = graph.infer_shapes({k: tuple(v.shape) for k, v in plain.items()})
    results = {}
    for name, value in graph.outputs.items():
        y = torch.empty(shapes[value], device="cuda")
        binding.bind_output(name, "cuda", 0, "float32", tuple(y.shape), y.data_ptr())
        results[name] = y

    def call() -> Any:
        session.run_with_iobinding(binding)
        return results

    return call


def _formatted(tensor: torch.Tensor, format_: Any) -> torch.Tensor:
    return tensor.contiguous(memory_format=format_) if tensor.dim() == 4 else tensor


def _tensors(result: Any) -> list[torch.Tensor]:
    found = list(result.values()) if isinstance(result, dict) else [result]
    return [torch.as_tensor(t).float() for t in found]


def _quality(found: list[torch.Tensor], truth: list[torch.Tensor], high: float) -> dict[str, float]:
    """How far results are from the truth: relative error, and PSNR of what a picture shows."""
    square = max(
        float(((a.to(b.device).clamp(0, high) - b.clamp(0, high)) / high).square().mean())
        for a, b in zip(found, truth, strict=True)
    )
    return {
        "error": _distance(found, truth),
        "psnr": round(-10 * math.log10(max(square, 1e-10)), 2) if math.isfinite(square) else 0.0,
    }


def _distance(found: list[torch.Tensor], truth: list[torch.Tensor]) -> float:
    pairs = zip(found, truth, strict=True)
    return max(float((a.to(b.device) - b).norm() / b.norm()) for a, b in pairs)
