"""The ``cuda`` backend: our kernels on an NVIDIA GPU, a captured CUDA graph for each kind of input.

Needs the extension module ``_cuda`` and a driver; no torch, no cuDNN. What runs a graph is in
``_cuda_runner``, which is imported only where there is a GPU: programs on machines without one
start sooner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from fastgen.errors import BackendUnavailable
from fastgen.graph import Graph

if TYPE_CHECKING:
    from fastgen.backends._cuda_runner import Runner

__all__ = ["PRECISIONS", "auto_precision", "compile", "precision_why_not", "why_not"]

PRECISIONS = ("fp32", "fp16", "bf16")
_OLDEST = (8, 0)  # cp.async, mma of bf16 and tf32


def _extension() -> ModuleType:
    from fastgen import _cuda

    return _cuda


def why_not(device: int = 0) -> str | None:
    """None when the backend can run here, else the reason with the remedy."""
    try:
        native = _extension()
    except ImportError as error:
        return (
            f"its extension module is not built ({error}); install again with nvcc on PATH: "
            "FASTGEN_CUDA=ON pip install ."
        )
    count, reason = native.device_count()
    if count == 0:
        return f"no CUDA device: {reason or 'none was found'}; install NVIDIA's driver"
    if not 0 <= device < count:
        return f"there is no CUDA device {device}, only {count}; take 0..{count - 1}"
    try:
        facts = native.device(device)
    except ValueError as error:
        return f"{error}; check nvidia-smi"
    if tuple(facts["capability"]) < _OLDEST:
        found = ".".join(map(str, facts["capability"]))
        return f"{facts['name']} has compute capability {found}, 8.0 or newer is needed"
    return None


def precision_why_not(precision: str) -> str | None:
    """None when the backend can run this precision here, else the reason with the remedy.

    Raises:
        ValueError: unknown precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(
            f"backend 'cuda' has no precision {precision!r}; has {', '.join(PRECISIONS)}"
        )
    return why_not()


def auto_precision() -> tuple[str, str]:
    """What ``precision="auto"`` is, and one sentence that says why."""
    return "fp16", "the fastest above 40 dB of fp32; sums and statistics stay in fp32"


def compile(
    graph: Graph,
    weights: Mapping[str, np.ndarray],
    precision: str = "auto",
    threads: int | None = None,
    ranges: Mapping[str, Sequence[float]] | None = None,
    device: int = 0,
) -> Runner:
    """Compiles a graph for a GPU.

    Args:
        graph: the network.
        weights: arrays by weight name.
        precision: ``"fp16"``, ``"bf16"``, ``"fp32"``, or ``"auto"``, which is fp16.
        threads: ignored, the GPU has its own.
        ranges: ignored, there is no int8 here.
        device: index of the GPU.

    Raises:
        ValueError: an unknown precision.
        GraphError: missing, unknown or wrongly shaped weights.
        BackendUnavailable: no such GPU, or the extension module is missing.
    """
    if precision == "auto":
        precision, _ = auto_precision()
    reason = precision_why_not(precision) or why_not(device)
    if reason is not None:
        raise BackendUnavailable(f"backend 'cuda' cannot run here: {reason}")
    from fastgen.backends._cuda_runner import Runner

    return Runner(graph, weights, precision, device)
