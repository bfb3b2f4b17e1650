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
from itertools import pairwise
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
# Frames of a round. Ours has enough of them that the frames at which the pipeline fills and empties
# (the encoder looks ahead by ten) are a small part; the other program has no such frames.
LEAST = {"fastgen": 12, "opencv": 1}
SHARE = {"fastgen": 1.0, "opencv": 0.5}  # of the seconds of a round
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
        seconds: that our part of a round should last, about; the other's lasts half as long.
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
                least = LEAST[program]
                took = side.ask(f"run {least}")["seconds"] / least
                if took < 0.1:  # opening the files weighs too much in so short a run
                    took = side.ask("run 24")["seconds"] / 24
                wanted = round(seconds * SHARE[program] / took)
                counts[program] = max(least, min(MOST, wanted))
            alone = max(4, counts["fastgen"] // 4)
            found: dict[str, list[Any]] = {"fastgen": [], "stages": [], "opencv": []}
            found["stages"].append(sides["fastgen"].ask(f"stages {alone}"))
            for _ in range(rounds):
                found["fastgen"].append(sides["fastgen"].ask(f"run {counts['fastgen']}"))
                found["stages"].append(sides["fastgen"].ask(f"stages {alone}"))
                found["opencv"].append(sides["opencv"].ask(f"run {counts['opencv']}"))
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


def _limit(found: dict[str, Any], counted: tuple[str, ...], cores: int) -> float:
    """Seconds of a frame if the network had all cores, and the stages shared them after it."""
    net = median(found["net"]["wall"])
    return float(net + sum(found[name]["cpu"] for name in counted) / cores)


def _ours(runs: list[Any], stages: list[Any], cores: int) -> dict[str, Any]:
    """Efficiency is the rate over what network, decoding and encoding alone would allow.

    Args:
        runs: of the whole pipeline.
        stages: alone, once before each run and once after the last: a run is held against the mean
            of its two, so that a machine that becomes slower or faster counts for both.
        cores: of the machine.
    """
    names = {"": ("decode", "encode"), "_with_colours": ("decode", "in", "out", "encode")}
    rates = {}
    for suffix, counted in names.items():
        limits = [_limit(found, counted, cores) for found in stages]
        rates[f"efficiency{suffix}_rounds"] = [
            round((before + after) / 2 / _per_frame(run), 3)
            for run, (before, after) in zip(runs, pairwise(limits), strict=True)
        ]
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
        **rates,
        **{name.removesuffix("_rounds"): round(median(r), 3) for name, r in rates.items()},
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
        "--seconds", type=float, default=3, help="of our runs; the other's are half (%(default)s)"
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
