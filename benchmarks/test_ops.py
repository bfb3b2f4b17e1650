"""The fused operations on the CPU beside plain PyTorch at the same precision. Run by `make bench`.

Every side is a process of its own and they take turns, round by round (benchmarks/op_side.py). The
peers are eager PyTorch and torch.compile, with the batch norm folded and weights and input in
channels_last memory; the Gram matrix and the concatenation are given to both sides in both memory
formats. The tests below hand the recorded rounds to pytest-benchmark, one row for each side.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cache
from statistics import median
from typing import Any

import numpy
import pytest
import torch

import fastgen
from benchmarks import op_turns, recorded
from benchmarks.op_cases import CASES, OPS, Case
from fastgen.cli._race import percentile

QUICK = os.environ.get("FASTGEN_BENCH_QUICK") == "1"
BUDGET_S = float(os.environ.get("FASTGEN_BENCH_OP_SECONDS", "0.2" if QUICK else "0.8"))
COPY_BUDGETS = 1 if QUICK else 4  # both sides copy memory: it takes more rounds to tell them apart
ROUNDS = (3, 9) if QUICK else (7, 41)  # at least, at most
DTYPES = ("float32",) if QUICK else ("float32", "bfloat16")


def _rows() -> list[Any]:
    cases = list(CASES)
    if QUICK:
        cases = [c for op in OPS for c in [case for case in CASES if case.op == op][:2]]
    return [
        pytest.param(case, dtype, side, id=f"{case.op}-{case.name}-{dtype}-{side}")
        for case in cases
        for dtype in DTYPES
        for side in op_turns.sides(case)
    ]


@pytest.fixture(scope="module")
def measured(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[Case, str], op_turns.Comparison]]:
    """Measures a case at a precision once; all of its rows read the same rounds."""
    folder = tmp_path_factory.mktemp("references")
    programs = op_turns.Programs()

    @cache
    def measure(case: Case, dtype: str) -> op_turns.Comparison:
        seconds = BUDGET_S * (COPY_BUDGETS if case.op == "concat_features" else 1)
        return programs.compare(case, dtype, folder, seconds=seconds, rounds=ROUNDS)

    yield measure
    programs.close()


@pytest.mark.benchmark(timer=recorded.clock, disable_gc=False)
@pytest.mark.parametrize(("case", "dtype", "side"), _rows())
def test_op(
    benchmark: Any,
    measured: Callable[[Case, str], op_turns.Comparison],
    case: Case,
    dtype: str,
    side: str,
) -> None:
    found = measured(case, dtype)
    if side in found.refused:
        pytest.skip(f"{side} cannot do this: {found.refused[side]}")
    assert side not in found.wrong(), f"a relative error of {found.errors[side]}"
    times = found.seconds[side]
    p50 = median(times)
    program, layout = side.split()
    benchmark.group = f"{case.op} {case.name} {dtype}"
    benchmark.extra_info |= {
        "op": case.op,
        "case": case.name,
        "dtype": dtype,
        "side": program,
        "layout": layout,
        "p50_us": p50 * 1e6,
        "p95_us": percentile(times, 95) * 1e6,
        "flops": case.flops,
        "bytes": case.bytes_moved(dtype),
        "gflop_s": case.flops / p50 / 1e9,
        "gb_s": case.bytes_moved(dtype) / p50 / 1e9,
        "best_peer": found.best_peer(side),
        "speedup_over_best_peer": found.ratio(side),
        "asked": case.asked_cpu(dtype),
        "error": found.errors[side],
        "refused": found.refused,
        "rounds": len(times),
        "versions": {m.__name__: str(m.__version__) for m in (fastgen, numpy, torch)},
    }
    recorded.replay(benchmark, times)
