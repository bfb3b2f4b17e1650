"""Measures frames of the host: uint8 in and uint8 out, with the copies to the GPU and back."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_suite.network_jobs import load
from benchmarks.gpu_suite.peaks import PRECISIONS
from fastgen import backends
from fastgen.backends import ImageIO
from fastgen.backends.torch import GraphModule
from fastgen.cli._app import one_line
from fastgen.metrics import psnr

__all__ = ["LEAST_PSNR", "measure"]

LEAST_PSNR = {"fp16": 40.0, "bf16": 40.0, "tf32": 40.0, "fp32": 60.0}
_LEAST_FRAMES = 4

Source = Callable[[int], list[np.ndarray]]


def measure(job: dict[str, Any], device: str) -> dict[str, Any]:
    """Runs a job.

    Args:
        job: ``network``, ``width``, ``height``, ``batch``, ``precision``, ``seconds``.
        device: ``"cuda"`` or ``"cpu"``.

    Returns:
        The job's identity, and ``rows``: for each side ``frame_us`` (frames follow each other as
        fast as they can), ``latency_us`` (one batch, from array to array; the median) and ``psnr``
        to PyTorch in float32.
    """
    with tempfile.TemporaryDirectory() as folder:
        graph, weights, note = load(job["network"], Path(folder))
    shape = (job["batch"], job["height"], job["width"], 3)
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (shape[0], shape[1] // 8 + 1, shape[2] // 8 + 1, 3))
    photo = coarse.repeat(8, 1).repeat(8, 2)[:, : shape[1], : shape[2]].astype(np.uint8)
    photo = np.ascontiguousarray(photo)
    io = ImageIO()
    module = GraphModule(graph).load_weights(weights).eval().requires_grad_(False).to(device)
    truth = _eager(module, torch.float32, device)(photo)
    rows = []

    def add(side: str, run: Callable[[np.ndarray], np.ndarray], stream: Any = None) -> None:
        row: dict[str, Any] = {"side": side, "layout": "nchw"}
        try:
            row["psnr"] = round(min(99.0, float(psnr(truth, run(photo)))), 2)
            row |= _times(run, stream, photo, job["seconds"])
        except Exception as error:  # compilers and libraries raise what they like
            row["failed"] = one_line(error) or type(error).__name__
        rows.append(row)

    for name in backends.names():
        if name == "torch" or (name == "cpu") != (device == "cpu") or backends.why_not(name):
            continue
        precision = {"tf32": "fp32"}.get(job["precision"], job["precision"])
        try:
            runner = backends.get(name).compile(graph, weights, precision, None)
        except (ValueError, TypeError, RuntimeError) as error:
            rows.append({"side": f"backend {name}", "layout": "nchw", "refused": one_line(error)})
            continue
        frames = getattr(runner, "frames", None)
        add(
            f"backend {name}",
            lambda x, r=runner: r.run(x, io),  # type: ignore[misc]
            None if frames is None else lambda images, f=frames: f(images, io),  # type: ignore[misc]
        )
    add("eager", _eager(module, getattr(torch, PRECISIONS[job["precision"]][0]), device))
    keys = ("network", "width", "height", "batch", "precision")
    return {**{k: job[k] for k in keys}, "weights": note, "rows": rows}


def _times(
    run: Callable[[np.ndarray], np.ndarray], stream: Any, photo: np.ndarray, seconds: float
) -> dict[str, float]:
    for _ in range(2):
        run(photo)
    times: list[float] = []
    until = time.perf_counter() + seconds
    while len(times) < _LEAST_FRAMES or time.perf_counter() < until:
        start = time.perf_counter()
        run(photo)
        times.append(time.perf_counter() - start)
    latency = sorted(times)[len(times) // 2]
    found = {"latency_us": latency * 1e6, "frame_us": latency * 1e6 / len(photo)}
    if stream is not None:
        count = max(_LEAST_FRAMES, int(seconds / latency))
        for _ in stream(repeat(photo, 4)):
            pass
        start = time.perf_counter()
        for _ in stream(repeat(photo, count)):
            pass
        found["frame_us"] = (time.perf_counter() - start) / count / len(photo) * 1e6
    return found


def _eager(module: Any, dtype: torch.dtype, device: str) -> Callable[[np.ndarray], np.ndarray]:
    """Plain PyTorch in channels_last, with page-locked memory where there is a GPU."""
    pinned: dict[str, torch.Tensor] = {}

    def buffer(name: str, like: torch.Tensor) -> torch.Tensor:
        if name not in pinned or pinned[name].shape != like.shape:
            pinned[name] = torch.empty(like.shape, dtype=torch.uint8, pin_memory=device == "cuda")
        return pinned[name]

    def run(photo: np.ndarray) -> np.ndarray:
        net = module.to(dtype=dtype, memory_format=torch.channels_last)
        host = buffer("in", torch.from_numpy(photo))
        host.copy_(torch.from_numpy(photo))
        x = host.to(device, non_blocking=True).permute(0, 3, 1, 2).to(dtype)
        y = net(x).clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        out = buffer("out", y)
        out.copy_(y, non_blocking=True)
        if device == "cuda":
            torch.cuda.synchronize()
        return out.numpy().copy()

    return run
