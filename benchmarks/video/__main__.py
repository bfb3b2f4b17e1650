"""Measures video end to end and writes docs/video-latency.md.

    python -m benchmarks.video                                   everything
    python -m benchmarks.video --size 1280x720 --network full    one row; the others stay
    python -m benchmarks.video --print                           prints, writes nothing

Needs torch, PyAV and opencv-python-headless: pip install 'fastgen[bench,video]'.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import tempfile
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks.machine import describe, slug
from benchmarks.networks import network
from benchmarks.report import RESULTS
from benchmarks.video import report
from benchmarks.video.clip import make_clip
from benchmarks.video.side import STAGES
from fastgen.cli._machine import usable_cores
from fastgen.cli._race import Process, percentile

SIZES = ("640x480", "1280x720", "1920x1080")
NETWORKS = ("small", "full")
LEAST = 2  # frames of a round
MOST = 120


def spread(values: list[float]) -> dict[str, float]:
    """Milliseconds: p50, p95 and p99."""
    return {f"p{q}": round(1e3 * percentile(values, q), 3) for q in (50, 95, 99)}


def measure(
    size: str, architecture: str, rounds: int, seconds: float, precision: str
) -> dict[str, Any]:
    """One row: both programs in turns.

    Args:
        size: of the frames.
        architecture: the network's name in :mod:`benchmarks.networks`.
        rounds: that count.
        seconds: that a program's part of a round should last, about.
        precision: of our network; the other's is fp32.
    """
    width, height = map(int, size.split("x"))
    cores = usable_cores()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        style, note = network(architecture, folder)
        clip = make_clip(folder / "clip.mp4", width, height, MOST)
        spec = {"clip": str(clip), "style": style, "folder": name, "threads": cores}
        spec |= {"width": width, "height": height, "precision": precision}
        sides: dict[str, Process] = {}
        try:
            for program in ("fastgen", "opencv"):
                sides[program] = Process("benchmarks.video.side", spec | {"program": program})
            counts = {}
            for program, side in sides.items():
                side.ask(f"run {LEAST}")  # the first is slower
                took = side.ask(f"run {LEAST}")["seconds"] / LEAST
                if took < 0.1:  # opening the files weighs too much in so short a run
                    took = side.ask(f"run {16 * LEAST}")["seconds"] / (16 * LEAST)
                counts[program] = max(LEAST, min(MOST, round(seconds / took)))
            found: dict[str, list[Any]] = {"fastgen": [], "stages": [], "opencv": []}
            for _ in range(rounds):
                found["stages"].append(
                    sides["fastgen"].ask(f"stages {max(LEAST, counts['fastgen'] // 3)}")
                )
                for program, side in sides.items():
                    found[program].append(side.ask(f"run {counts[program]}"))
            info = {program: side.ask("info") for program, side in sides.items()}
        finally:
            for side in sides.values():
                side.close()
    return {
        "size": size,
        "network": architecture,
        "weights": note,
        "rounds": rounds,
        "fastgen": _ours(found["fastgen"], found["stages"], cores) | info["fastgen"],
        "opencv": _theirs(found["opencv"]) | info["opencv"],
        "speedup": round(
            median(
                _per_frame(theirs) / _per_frame(ours)
                for ours, theirs in zip(found["fastgen"], found["opencv"], strict=True)
            ),
            3,
        ),
    }


def _per_frame(run: dict[str, Any]) -> float:
    return float(run["seconds"] / run["frames"])


def _whole(runs: list[Any]) -> dict[str, Any]:
    rates = [1 / _per_frame(run) for run in runs]
    return {
        "frames": runs[0]["frames"],
        "fps": round(median(rates), 2),
        "fps_rounds": [round(rate, 2) for rate in rates],
        "interval_ms": spread([i for run in runs for i in run["intervals"]]),
        "cpu_ms": round(1e3 * median(run["cpu"] / run["frames"] for run in runs), 2),
    }


def _ours(runs: list[Any], stages: list[Any], cores: int) -> dict[str, Any]:
    """Efficiency is the rate over what network, decoding and encoding alone would allow."""
    limits, strict = [], []
    for found in stages:
        net = median(found["net"]["wall"])
        cpu = {name: found[name]["cpu"] for name in STAGES}
        strict.append(1 / (net + (cpu["decode"] + cpu["encode"]) / cores))
        rest = cpu["decode"] + cpu["in"] + cpu["out"] + cpu["encode"]
        limits.append(1 / (net + rest / cores))
    pairs = list(zip(runs, strict, limits, strict=True))
    return _whole(runs) | {
        "stages": {
            name: spread([w for found in stages for w in found[name]["wall"]])
            | {"cpu_ms": round(1e3 * median(found[name]["cpu"] for found in stages), 3)}
            for name in STAGES
        },
        "busy_ms": {
            name: round(1e3 * mean(run["busy"][name] / run["frames"] for run in runs), 2)
            for name in runs[0]["busy"]
        },
        "efficiency": round(median(1 / _per_frame(run) / s for run, s, _ in pairs), 3),
        "efficiency_rounds": [round(1 / _per_frame(run) / s, 3) for run, s, _ in pairs],
        "efficiency_with_colours": round(median(1 / _per_frame(r) / v for r, _, v in pairs), 3),
    }


def _theirs(runs: list[Any]) -> dict[str, Any]:
    stages = {name: [w for run in runs for w in run["stages"][name]] for name in STAGES}
    return _whole(runs) | {"stages": {name: spread(values) for name, values in stages.items()}}


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, help="only this one")
    parser.add_argument("--network", choices=NETWORKS, help="only this one")
    parser.add_argument("--precision", default="auto", help="of our network (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=1.5, help="of each program in a round (%(default)s)"
    )
    parser.add_argument("--print", action="store_true", help="write no report")
    args = parser.parse_args()
    day = datetime.date.today().isoformat()
    target = RESULTS / f"video-{slug()}-{day}.json"
    result: dict[str, Any] = {"rows": []}
    if target.exists():
        result = json.loads(target.read_text("utf-8"))
    result |= {"machine_info": describe(), "date": day}
    for size in [args.size] if args.size else SIZES:
        for architecture in [args.network] if args.network else NETWORKS:
            load = round(os.getloadavg()[0], 2)
            row = measure(size, architecture, args.rounds, args.seconds, args.precision)
            row["load_before"] = load
            if args.print:
                print(json.dumps(row, indent=1))
                continue
            rest = [r for r in result["rows"] if (r["size"], r["network"]) != (size, architecture)]
            result["rows"] = sorted([*rest, row], key=_order)
            target.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
            report.write(target)
            print(f"{size} {architecture}: {row['fastgen']['fps']} fps, {row['speedup']}x")
    return 0


def _order(row: dict[str, Any]) -> tuple[int, int]:
    return SIZES.index(row["size"]), NETWORKS.index(row["network"])


if __name__ == "__main__":
    sys.exit(main())
