"""Checks and measures one operation at one shape and type, all sides in turn on one device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks import op_work
from benchmarks.gpu_suite.faults import is_lost
from benchmarks.gpu_suite.peaks import PRECISIONS, allow_tf32
from benchmarks.gpu_suite.timing import Timer
from benchmarks.op_cases import Case, by_name
from fastgen.cli._app import one_line
from fastgen.errors import ImplUnavailable

__all__ = ["measure"]

_PEERS = ("eager", "compile")


def measure(job: dict[str, Any], timer: Timer | None, device: str) -> dict[str, Any]:
    """Runs a job.

    Args:
        job: ``op``, ``case``, ``dtype``, ``programs`` (names of implementations, ``"eager"``,
            ``"compile"``), ``precisions`` of the peers, ``seconds`` for each side, ``tiny``,
            ``mode`` of torch.compile.
        timer: None only checks.
        device: ``"cuda"`` or ``"cpu"``.

    Returns:
        The job's identity, costs, and ``rows``: one for each side, layout and precision. When a
        program has ruined the process, ``rest`` names those that another process has to run.
    """
    case = by_name(job["op"], job["case"])
    case = case.tiny() if job["tiny"] else case
    rows: list[dict[str, Any]] = []
    # The truth is computed where no kernel under test runs: tiny ones on the host.
    home = "cpu" if job["tiny"] else device
    truth: dict[bool, list[torch.Tensor]] = {}
    rest: dict[str, list[str]] = {}
    for at, program in enumerate(job["programs"]):
        rows += _rows(case, job, program, truth, home, timer, device)
        if is_lost(rows[-1].get("failed", "")):
            rest = {"rest": job["programs"][at + 1 :]}
            break
    if timer and case.op == "concat_features" and "eager" in job["programs"] and not rest:
        rows.append(_copy(case, job, timer, device))
    allow_tf32(False)
    identity = {key: job[key] for key in ("op", "case", "dtype", "tiny")}
    costs = {"flops": case.flops, "bytes": case.bytes_moved(job["dtype"])}
    return {**identity, **costs, "rows": rows, **rest}


def _rows(
    case: Case,
    job: dict[str, Any],
    program: str,
    truth: dict[bool, list[torch.Tensor]],
    home: str,
    timer: Timer | None,
    device: str,
) -> list[dict[str, Any]]:
    """One program in its layouts and precisions, up to an error that ruins the process."""
    rows: list[dict[str, Any]] = []
    of_peer = program in _PEERS
    for layout in _layouts(case, program):
        values = op_work.inputs(case, job["dtype"], device, layout)
        if of_peer not in truth:
            truth[of_peer] = _truth(case, values, home, of_peer)
        for precision in job["precisions"] if of_peer else ("own",):
            row: dict[str, Any] = {"side": program, "layout": layout}
            rows.append(row)
            allow_tf32(of_peer and PRECISIONS[precision][1])
            try:
                call = _call(case, values, program, layout, job.get("mode"))
                row |= _checked(case, job["dtype"], precision, call, truth[of_peer])
                if timer and "wrong" not in row:
                    row |= timer.measure(call, job["seconds"])
            except ImplUnavailable as error:
                row["refused"] = one_line(error)
            except Exception as error:  # compilers raise what they like
                row["failed"] = one_line(error) or type(error).__name__
                if is_lost(str(error)):
                    return rows
    return rows


def _truth(case: Case, values: op_work.Values, home: str, of_peer: bool) -> list[torch.Tensor]:
    there = {k: v.to(home) for k, v in values.items()}
    chooses = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False  # trying out float64 algorithms takes seconds
    try:
        return op_work.reference(case, there, of_peer=of_peer)
    finally:
        torch.backends.cudnn.benchmark = chooses


def _layouts(case: Case, program: str) -> tuple[str, ...]:
    if program == "compile" and case.op != "concat_features":
        # A compiled product is the same library call in any layout; convolutions like NHWC.
        return ("nchw",) if case.op == "gram_matrix" else ("channels_last",)
    return ("nchw",) if program == "ref" else tuple(op_work.LAYOUTS)


def _call(
    case: Case, values: op_work.Values, program: str, layout: str, mode: str | None
) -> Callable[[], Any]:
    if program not in _PEERS:
        return op_work.ours(case, values, program)
    function, arguments = op_work.peer(case, values, layout)
    if program == "compile":
        torch.compiler.reset()
        for tensor in arguments:
            # Else CUDA graphs copy every input on each call, which nobody deploys.
            torch._dynamo.mark_static_address(tensor)
        function = torch.compile(function, dynamic=False, fullgraph=True, mode=mode)
    return lambda: function(*arguments)


def _checked(
    case: Case, dtype: str, precision: str, call: Callable[[], Any], truth: list[torch.Tensor]
) -> dict[str, Any]:
    """The error of a first result and the precision that it amounts to."""
    found = op_work.error(call(), truth)
    name = {"float16": "fp16", "bfloat16": "bf16", "float32": precision}[dtype]
    if dtype == "float32" and precision == "own":
        # Ours says nothing about TF32: what it did shows in the result.
        name = "fp32" if found <= op_work.tolerance(case, "float32") else "tf32"
    limit = op_work.tolerance(case, "tf32" if name == "tf32" else dtype)
    wrong = {} if found <= limit else {"wrong": f"relative error {found:.2e} above {limit:.0e}"}
    return {"precision": name, "error": found, **wrong}


def _copy(case: Case, job: dict[str, Any], timer: Timer, device: str) -> dict[str, Any]:
    """A plain copy that moves as many bytes as the concatenation: the roof at this size."""
    source = torch.randn(case.bytes_moved(job["dtype"]) // 8, device=device)
    target = torch.empty_like(source)
    precision = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}[job["dtype"]]
    row = {"side": "copy", "layout": "flat", "precision": precision, "error": 0.0}
    return row | timer.measure(lambda: target.copy_(source), job["seconds"])
