"""Latency of the public API on uint8 frames, beside PyTorch eager fp32. Run by `make bench`.

For every network and size two processes take turns, as in `fastgen bench`: one with our engine, one
with the torch backend, which runs the same graph with plain PyTorch layers. The tests below hand
the recorded rounds to pytest-benchmark, one row for each of the two, grouped by size.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from typing import Any

import pytest

from benchmarks import recorded
from benchmarks.networks import ARCHITECTURES, network
from fastgen import models
from fastgen.cli._race import Runner, percentile, race, ratio

SIZES = ((256, 256), (512, 512), (640, 480), (1280, 720))
BACKENDS = ("cpu", "torch")
BUDGET_S = float(os.environ.get("FASTGEN_BENCH_SECONDS", "10"))
ROUNDS = (7, 60)  # at least, at most
PACKAGES = ("fastgen", "numpy", "torch")


@pytest.fixture(scope="module")
def pair(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str, int, int], tuple[dict[str, Runner], str]]:
    """Measures a network at a size once; both of its rows read the same rounds."""
    folder = tmp_path_factory.mktemp("networks")

    @cache
    def measure(architecture: str, width: int, height: int) -> tuple[dict[str, Runner], str]:
        checkpoint, weights = network(architecture, folder)
        common = {
            "precision": "fp32",
            "style": checkpoint,
            "width": width,
            "height": height,
            "threads": None,
        }
        specs = [common | {"backend": backend} for backend in BACKENDS]
        runners = race(specs, seconds=BUDGET_S, rounds=ROUNDS)
        return dict(zip(BACKENDS, runners, strict=True)), weights

    return measure


@pytest.mark.benchmark(timer=recorded.clock, disable_gc=False)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_latency(
    benchmark: Any,
    pair: Callable[[str, int, int], tuple[dict[str, Runner], str]],
    size: tuple[int, int],
    architecture: str,
    backend: str,
) -> None:
    width, height = size
    sides, weights = pair(architecture, width, height)
    side = sides[backend]
    builder, config = ARCHITECTURES[architecture]
    cost = models.create(builder, **config).multiply_adds({"image": (1, 3, height, width)})
    p50, p95, p99 = (percentile(side.seconds, q) for q in (50, 95, 99))
    benchmark.group = f"{width}x{height} {architecture}"
    benchmark.extra_info |= {
        "size": f"{width}x{height}",
        "architecture": architecture,
        "weights": weights,
        "backend": backend,
        "precision": "fp32",
        "p50_ms": p50 * 1e3,
        "p95_ms": p95 * 1e3,
        "p99_ms": p99 * 1e3,
        "fps": 1 / p50,
        "mpix_s": width * height / p50 / 1e6,
        "gmac": cost / 1e9,
        "gmac_s": cost / p50 / 1e9,
        "memory_growth_mib": side.memory / 2**20,
        "speedup_over_torch": ratio(side, sides["torch"]),
        "rounds": len(side.seconds),
        "versions": {package: version(package) for package in PACKAGES},
        "info": side.info,
    }
    recorded.replay(benchmark, side.seconds)
