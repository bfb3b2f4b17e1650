"""Measures our engine beside other ways of running the same network; see docs/performance.md.

python -m benchmarks.peers [--sizes 256x256 512x512] [--networks full half] [--save]
python -m benchmarks.peers --page RESULT.json      the page and the chart of an older run
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks import machine, peak
from benchmarks.networks import ARCHITECTURES
from benchmarks.peers import report
from benchmarks.peers.contest import contest
from benchmarks.report import RESULTS
from benchmarks.run import save
from fastgen.cli._app import one_line
from fastgen.cli._machine import usable_cores
from fastgen.errors import FastgenError

PACKAGES = ("torch", "onnx", "onnxruntime", "openvino", "ncnn", "numpy")


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def record(rows: list[dict[str, Any]], threads: int, load: float) -> dict[str, Any]:
    """What goes into the result file: the rows, and where and with what they were measured.

    Args:
        rows: one for each program and case.
        threads: of each program.
        load: cores that other programs kept busy before the run.
    """
    return {
        "datetime": datetime.datetime.now().isoformat(timespec="seconds"),
        "machine_info": machine.describe(),
        "threads": threads,
        "versions": _versions(),
        "load_before": load,
        "peak": peak.measure(0.3),
        "rows": rows,
    }


def _size(text: str) -> tuple[int, int]:
    width, cross, height = text.partition("x")
    if not (cross and width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT, such as 1280x720")
    size = int(width), int(height)
    if any(side < 16 or side % 4 for side in size):
        raise argparse.ArgumentTypeError(f"{text}: sides must be multiples of 4, at least 16")
    return size


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Runs the comparison; what goes into the result file."""

    def progress(text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{text} ...", end="", file=sys.stderr, flush=True)

    load = round(os.getloadavg()[0], 2)
    rows = contest(
        args.networks,
        args.sizes,
        threads=args.threads,
        seconds=args.seconds,
        rounds=(args.rounds, 100),
        progress=progress,
    )
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    return record(rows, args.threads, load)


def slim(result: dict[str, Any]) -> dict[str, Any]:
    """The result with rounds of sensible length."""
    for row in result["rows"]:
        if "seconds" in row:
            row["seconds"] = [round(s, 7) for s in row["seconds"]]
    return result


def main() -> int:
    """Returns the exit code: 1 when a gate of ours failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--sizes", type=_size, nargs="+", default=[(256, 256), (512, 512), (1280, 720)]
    )
    parser.add_argument("--networks", nargs="+", choices=ARCHITECTURES, default=["full"])
    parser.add_argument("--threads", type=int, default=usable_cores(), help="of each program")
    parser.add_argument("--seconds", type=float, default=10.0, help="a size (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="at least (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument(
        "--save", action="store_true", help="write benchmarks/results, docs/performance.md"
    )
    parser.add_argument("--page", type=Path, help="write the page from this file, measure nothing")
    parser.add_argument(
        "--picture", type=Path, default=Path("out/peers.png"), help="the chart (%(default)s)"
    )
    args = parser.parse_args()
    if args.page:
        report.write(args.page)
        return 0
    try:
        result = slim(measure(args))
    except (FastgenError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    text = [json.dumps(result, indent=1)] if args.json else report.lines(result)
    print("\n".join(text))
    notes = sys.stderr if args.json else sys.stdout
    try:
        if args.save:
            target = save(result, "peers-")
            report.write(target)
            print(f"{target.relative_to(RESULTS.parent.parent)}, {report.PAGE}", file=notes)
        else:
            report.picture(result, args.picture)
            print(args.picture, file=notes)
    except ImportError as error:
        print(f"no chart: {one_line(error)}", file=notes)
    return int(not all(row["passed"] for row in result["rows"] if _ours(row)))


def _ours(row: dict[str, Any]) -> bool:
    return row["program"] == "fastgen" and "passed" in row


if __name__ == "__main__":
    sys.exit(main())
