"""Runs the measurements, writes one file for each kind, machine and day, then the pages.

python -m benchmarks.run                            everything
python -m benchmarks.run --only ops [--quick]       the fused operations
python -m benchmarks.run --only ops -k gram_matrix  some of them; prints, writes nothing
python -m benchmarks.run --only generate            generation of images (benchmarks/generate)
python -m benchmarks.run --only video               video end to end (benchmarks/video)
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import op_report, peak, report, whole_process
from benchmarks.machine import slug
from fastgen.cli._machine import usable_cores

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = "--benchmark-columns=median,min,max,rounds"


def slim(result: dict[str, Any]) -> dict[str, Any]:
    """The pytest-benchmark file without what is of no use later (all rounds stay)."""
    for item in result["benchmarks"]:
        item.pop("options", None)
        item["stats"]["data"] = [round(s, 7) for s in item["stats"]["data"]]
    return result


def slim_ops(result: dict[str, Any]) -> dict[str, Any]:
    """As :func:`slim`, and what pytest-benchmark derives from the rounds goes too: many rows."""
    for item in slim(result)["benchmarks"]:
        item["stats"] = {key: item["stats"][key] for key in ("median", "rounds", "data")}
        item.pop("params", None)
    return result


def collect(file: str, select: str, environment: dict[str, str]) -> tuple[int, dict[str, Any]]:
    """Runs one file of measurements; the exit code and what pytest-benchmark wrote."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        command = [sys.executable, "-m", "pytest", f"benchmarks/{file}", "-q", COLUMNS]
        command += ["-k", select] if select else []
        command += [f"--benchmark-json={path}"]
        done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, check=False)
        text = path.read_text("utf-8") if path.exists() else ""
    return done.returncode, json.loads(text) if text else {"benchmarks": []}


def save(result: dict[str, Any], prefix: str) -> Path:
    """Writes benchmarks/results/PREFIXmachine-date.json."""
    day = datetime.date.today().isoformat()
    target = report.RESULTS / f"{prefix}{slug()}-{day}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    return target


def latency(args: argparse.Namespace, load: float) -> int:
    """Whole networks; returns the exit code."""
    # The whole-process parent must stay small, so it goes first, before anything is loaded here.
    partial = bool(args.k or args.quick)
    whole = None if partial else whole_process.measure(args.rounds)
    seconds = 0.5 if args.quick else args.seconds
    select = args.k or ("256x256" if args.quick else "")
    code, result = collect("test_latency.py", select, {"FASTGEN_BENCH_SECONDS": str(seconds)})
    if code or partial:
        return code
    result = slim(result) | {"whole_process": whole, "peak": peak.measure(), "load_before": load}
    target = save(result, "")
    report.write(target)
    print(f"{target.relative_to(ROOT)}, {report.PAGE.relative_to(ROOT)}")
    return 0


def fused(args: argparse.Namespace, load: float) -> int:
    """The fused operations; returns the exit code."""
    environment = {"FASTGEN_BENCH_QUICK": "1"} if args.quick else {}
    code, result = collect("test_ops.py", args.k, environment)
    if not result["benchmarks"]:
        return code
    result = slim_ops(result) | {"peak": peak.measure(0.2), "load_before": load}
    result["threads"] = usable_cores()
    if args.k or args.quick:
        print(op_report.page(result, "this run, which was not kept"))
        return code
    target = save(result, "ops-")
    op_report.write(target)
    print(f"{target.relative_to(ROOT)}, {op_report.PAGE.relative_to(ROOT)}")
    return code


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", choices=("latency", "ops", "generate", "video"), help="one kind of measurement"
    )
    parser.add_argument("--quick", action="store_true", help="a minute's look; writes no report")
    parser.add_argument(
        "--seconds", type=float, default=6.0, help="for each pair of networks (%(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=7, help="whole processes (%(default)s)")
    parser.add_argument("-k", default="", help="only some rows, as in pytest; writes no report")
    args = parser.parse_args()
    load = round(os.getloadavg()[0], 2)
    if load > 0.25 * usable_cores():
        print(
            f"bench: other programs keep {load:.1f} of {usable_cores()} cores busy; thread pools "
            "that wait for each other suffer from that more than ours, so the ratios will flatter "
            "us. Run it again on a quiet machine.",
            file=sys.stderr,
        )
    codes = []
    if args.only in (None, "latency"):
        codes.append(latency(args, load))
    if args.only in (None, "ops"):
        codes.append(fused(args, load))
    if args.only in (None, "generate"):
        command = [sys.executable, "-m", "benchmarks.generate"]
        command += ["--batches", "1", "--seconds", "1"] if args.quick else ["--save"]
        codes.append(subprocess.run(command, cwd=ROOT, check=False).returncode)
    if args.only in (None, "video"):
        command = [sys.executable, "-m", "benchmarks.video"]
        command += ["--size", "640x480", "--rounds", "2", "--print"] if args.quick else []
        codes.append(subprocess.run(command, cwd=ROOT, check=False).returncode)
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
