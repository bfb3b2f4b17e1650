"""Runs all measurements, writes one file for this machine and day, then the report.

python -m benchmarks.run [--seconds 10] [--rounds 7] [-k EXPRESSION]
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

from benchmarks import peak, report, whole_process
from benchmarks.machine import slug
from fastgen.cli._machine import usable_cores

ROOT = Path(__file__).resolve().parent.parent


def slim(result: dict[str, Any]) -> dict[str, Any]:
    """The pytest-benchmark file without what is of no use later (all rounds stay)."""
    for item in result["benchmarks"]:
        item.pop("options", None)
        item["stats"]["data"] = [round(s, 7) for s in item["stats"]["data"]]
    return result


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="for each pair (%(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="whole processes (%(default)s)")
    parser.add_argument("-k", default="", help="only some pairs, as in pytest; writes no report")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    if load > 0.25 * usable_cores():
        print(
            f"bench: other programs keep {load:.1f} of {usable_cores()} cores busy; thread pools "
            "that wait for each other suffer from that more than ours, so the ratios will flatter "
            "us. Run it again on a quiet machine.",
            file=sys.stderr,
        )
    # The whole-process parent must stay small, so it goes first, before anything is loaded here.
    whole = None if args.k else whole_process.measure(args.rounds)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "latency.json"
        command = [sys.executable, "-m", "pytest", "benchmarks/test_latency.py", "-q"]
        command += ["-k", args.k] if args.k else []
        command += [f"--benchmark-json={path}", "--benchmark-columns=median,min,max,rounds"]
        environment = os.environ | {"FASTGEN_BENCH_SECONDS": str(args.seconds)}
        code = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
        if code or args.k:
            return code
        result = slim(json.loads(path.read_text("utf-8")))
    result |= {"whole_process": whole, "peak": peak.measure(), "load_before": round(load, 2)}
    day = datetime.date.today().isoformat()
    target = report.RESULTS / f"{slug()}-{day}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    report.write(target)
    print(f"{target.relative_to(ROOT)}, {report.PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
