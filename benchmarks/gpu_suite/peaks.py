"""What the device reaches at best, measured by plain PyTorch in the same run."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks.gpu_suite.timing import Timer

__all__ = ["PRECISIONS", "allow_tf32", "measure"]

# Precision -> dtype and whether float32 products may be rounded to TF32.
PRECISIONS = {
    "fp16": ("float16", True),
    "bf16": ("bfloat16", True),
    "tf32": ("float32", True),
    "fp32": ("float32", False),
}


def allow_tf32(allowed: bool) -> None:
    """Sets whether PyTorch may use TF32 in float32 products and convolutions."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def measure(timer: Timer, device: str, tiny: bool) -> dict[str, Any]:
    """Copy bandwidth, matrix rate at each precision, and what an empty measurement shows.

    Args:
        timer: of the device.
        device: ``"cuda"`` or ``"cpu"``.
        tiny: sizes that prove nothing and take no time.

    Returns:
        ``copy_gb_s`` (read and written), ``tflop_s`` by precision, ``empty_us``.
    """
    count = 1 << (16 if tiny else 29)  # float32: 2 GiB each way, many times any cache
    best = _copy_us(timer, device, count)
    found: dict[str, Any] = {"copy_gb_s": 2 * 4 * count / best / 1e3, "tflop_s": {}}
    for precision, (dtype, tf32) in PRECISIONS.items():
        side = 64 if tiny else (4096 if precision == "fp32" else 8192)
        a, b = (torch.randn(side, side, device=device).to(getattr(torch, dtype)) for _ in range(2))
        allow_tf32(tf32)
        best = timer.measure(partial(torch.matmul, a, b), 0.2)["p20_us"]
        found["tflop_s"][precision] = 2 * side**3 / best / 1e6
    allow_tf32(False)
    found["empty_us"] = timer.measure(lambda: None, 0.01)["p50_us"]
    return found


def _copy_us(timer: Timer, device: str, count: int) -> float:
    source = torch.randn(count, device=device)
    target = torch.empty_like(source)
    return timer.measure(lambda: target.copy_(source), 0.2)["p20_us"]
