"""Measures generation with the stylized autoencoders beside other ways of running them.

python -m benchmarks.generate [--networks saae_mnist] [--batches 1 256] [--save]
python -m benchmarks.generate --page RESULT.json      the page of an older run
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.generate import report
from benchmarks.generate.cases import BATCHES, NETWORKS, Case, inputs, network
from benchmarks.peers.__main__ import record
from benchmarks.peers.contest import finish
from benchmarks.peers.programs import PROGRAMS, why_not
from benchmarks.report import RESULTS
from benchmarks.run import save
from fastgen import backends
from fastgen.cli._app import one_line
from fastgen.cli._machine import usable_cores
from fastgen.cli._race import Process, take_turns
from fastgen.errors import FastgenError

# ncnn takes batches of one; what quantises a network for OpenVINO takes one input.
COMPARED = tuple(p for p in PROGRAMS if p.name != "ncnn" and p.precision != "int8")


def measure_case(
    case: Case, processes: dict[str, Process], folder: Path, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """Rows of one case, as ``benchmarks.peers.contest`` makes them."""
    checkpoint = network(case.network)
    arrays = inputs(checkpoint.graph, case.batch)
    torch = backends.get("torch")
    reference = torch.compile(checkpoint.graph, checkpoint.weights, "fp32", args.threads)
    wanted = reference.run(arrays)
    np.save(folder / "wanted.npy", next(iter(wanted.values())))
    reference.close()
    order = {"network": case.network, "batch": case.batch, "encoded": case.encoded}
    order |= {"reference": str(folder / "wanted.npy")}
    table: dict[str, dict[str, Any]] = {}
    compared = [
        program
        for program in COMPARED
        if not args.programs or any(text in program.key for text in args.programs)
    ]
    for program in compared:
        if reason := why_not(program):
            table[program.key] = {"refused": reason}
            continue
        try:
            if program.key not in processes:
                spec = {"program": program.key, "threads": args.threads}
                processes[program.key] = Process("benchmarks.generate.side", spec)
            table[program.key] = processes[program.key].ask(json.dumps(order))
        except FastgenError as error:
            table[program.key] = {"refused": f"failed: {error}"}
    able = [program.key for program in compared if "refused" not in table[program.key]]
    steps = [partial(processes[key].ask, "step") for key in able]
    for key, times in zip(able, take_turns(steps, args.seconds, (args.rounds, 60)), strict=True):
        table[key]["seconds"] = times
    shapes = {name: array.shape for name, array in arrays.items()}
    rows = finish(compared, table, float(checkpoint.graph.multiply_adds(shapes)))
    compiled = table.get("torch.compile fp32", {}).get("seconds")
    for row in rows:
        row |= {"network": case.network, "batch": case.batch, "encoded": case.encoded}
        if "seconds" in row:
            row["images_s"] = case.batch / row["median_s"]
            if row["program"] == "fastgen" and compiled:
                pairs = zip(compiled, row["seconds"], strict=True)
                row["over_compile"] = median(theirs / ours for theirs, ours in pairs)
            row["seconds"] = [round(s, 8) for s in row["seconds"]]
    return rows


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Runs the comparison; what goes into the result file."""
    load = round(os.getloadavg()[0], 2)
    rows: list[dict[str, Any]] = []
    for name in args.networks:
        processes: dict[str, Process] = {}
        try:
            with tempfile.TemporaryDirectory() as folder:
                for batch in args.batches:
                    for encoded in (True, False):
                        case = Case(name, batch, encoded)
                        if sys.stderr.isatty():
                            print(f"\r\033[K{case.name} ...", end="", file=sys.stderr, flush=True)
                        rows += measure_case(case, processes, Path(folder), args)
        finally:
            for process in processes.values():
                process.close()
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    return record(rows, args.threads, load)


def merged(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of both, those of a case from the newer; by network, batch and style."""

    def case(row: dict[str, Any]) -> tuple[int, int, bool]:
        return NETWORKS.index(row["network"]), row["batch"], not row["encoded"]

    measured = {case(row) for row in new}
    return sorted([row for row in old if case(row) not in measured] + new, key=case)


def main() -> int:
    """Returns the exit code: 1 when a gate of ours failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.generate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument(
        "--programs", nargs="+", metavar="NAME", help="only those whose name contains one of these"
    )
    parser.add_argument("--threads", type=int, default=usable_cores(), help="of each program")
    parser.add_argument("--seconds", type=float, default=5.0, help="a case (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="at least (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument(
        "--save", action="store_true", help="write benchmarks/results, docs/performance.md"
    )
    parser.add_argument(
        "--add", type=Path, help="keep the rows of this result file that are not measured again"
    )
    parser.add_argument("--page", type=Path, help="write the page from this file, measure nothing")
    args = parser.parse_args()
    if args.page:
        report.write(args.page)
        return 0
    if any(not 1 <= batch <= 4096 for batch in args.batches):
        parser.error("a batch must be in 1..4096")
    try:
        result = measure(args)
    except (FastgenError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    if args.add:
        result["rows"] = merged(json.loads(args.add.read_text("utf-8"))["rows"], result["rows"])
    print(json.dumps(result, indent=1) if args.json else "\n".join(report.lines(result)))
    if args.save:
        target = save(result, "generate-")
        report.write(target)
        print(f"{target.relative_to(RESULTS.parent.parent)}, {report.PAGE}", file=sys.stderr)
    return int(not all(r["passed"] for r in result["rows"] if _ours(r)))


def _ours(row: dict[str, Any]) -> bool:
    return row["program"] == "fastgen" and "passed" in row


if __name__ == "__main__":
    sys.exit(main())
