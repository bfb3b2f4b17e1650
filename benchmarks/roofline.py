"""Where the time of a network goes, layer by layer, beside what the machine can do.

    python -m benchmarks.roofline [--network full] [--sizes 256x256 1280x720] [--save]

For each step of the engine: its median time; multiply-adds a second of the convolution as it was
given; the multiply-adds that are really done (Winograd tiles need fewer) as a share of the
machine's peak for such factors; the bytes of its inputs and outputs, each once, as a share of the
bandwidth of a copy. *bound* is the larger of the two: what the step would take if nothing but the
slower of both counted, as a share of its time. The peaks are measured in the same run, with as many
threads. Times are of steps timed one by one, so their sum is a little more than a run takes.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.networks import ARCHITECTURES, network
from benchmarks.report import ROOT, table
from benchmarks.run import save
from fastgen import _C
from fastgen.backends.cpu import PRECISIONS, Runner, precision_note, precision_why_not
from fastgen.cli._app import one_line
from fastgen.cli._machine import usable_cores
from fastgen.errors import FastgenError
from fastgen.styles import load_style

__all__ = ["frame_size", "layers", "lines", "write"]

PAGE = ROOT / "docs" / "performance.md"
MARKS = "<!-- roofline:begin -->", "<!-- roofline:end -->"
_COPY_BYTES = 256 << 20
_SUMS = ("ms", "macs", "products", "bytes", "least")


def peaks(threads: int, isa: str, seconds: float = 0.3, rounds: int = 3) -> dict[str, float]:
    """Multiply-adds (GMAC/s) of fp32, bf16 and int8 factors, and ``copy_gb_s``."""
    plain = isa.removesuffix("_bf16").removesuffix("_vnni")

    def best(name: str) -> float:
        return max(_C.peak_flops(name, seconds, threads) for _ in range(rounds)) / 2e9

    found = {"fp32": best(plain)}
    found["bf16"] = best(isa) if isa.endswith("_bf16") else found["fp32"]
    found["int8"] = best("avx512_vnni") if isa != plain else found["fp32"]
    found["copy_gb_s"] = (
        max(_C.copy_bandwidth(_COPY_BYTES, seconds, threads) for _ in range(rounds)) / 1e9
    )
    return found


def layers(runner: Runner, size: tuple[int, int], seconds: float) -> list[dict[str, Any]]:
    """Times every step of a runner.

    Args:
        runner: of a network that takes an image.
        size: width and height.
        seconds: to spend, at least five runs.

    Returns:
        For each step ``step``, ``ms`` (median), ``macs`` (multiply-adds as given), ``products``
        (those that are done), ``factors`` (of these products: fp32, bf16 or int8) and ``bytes``
        (inputs, outputs and weights are not counted twice).
    """
    width, height = size
    image = np.random.default_rng(0).uniform(0, 255, (1, 3, height, width)).astype(np.float32)
    runner.set_profile(True)
    runner.run(image)
    times: list[list[float]] = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        runner.run(image)
        times.append([ms for _, ms, _ in runner.profile])
    runner.set_profile(False)
    values, costs = runner.plan_facts({runner.graph.inputs[0].name: image.shape})
    rows = []
    steps = zip(runner.steps, runner.products, strict=True)
    for (step, factors), ms, (macs, products) in zip(
        steps, map(median, zip(*times, strict=True)), costs, strict=True
    ):
        moved = sum(values[index] for index in {*step.reads(), *step.writes()})
        rows.append(
            {"step": step.label, "ms": ms, "macs": macs, "products": products}
            | {"factors": factors, "bytes": moved}
        )
    return rows


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that goes into the table."""
    with tempfile.TemporaryDirectory() as name:
        style, note = network(args.network, Path(name))
        ckpt = load_style(style)
    tables = []
    peak: dict[str, float] = {}
    for precision in args.precisions:
        runner = Runner(
            ckpt.graph, ckpt.weights, args.threads, precision=precision, ranges=ckpt.ranges
        )
        peak = peak or peaks(args.threads, runner.isa)
        for size in args.sizes:
            rows = layers(runner, size, args.seconds)
            tables.append({"precision": precision, "size": f"{size[0]}x{size[1]}", "layers": rows})
        runner.close()
    return {
        "datetime": datetime.datetime.now().isoformat(timespec="seconds"),
        "machine_info": machine.describe(),
        "threads": args.threads,
        "network": args.network,
        "weights": note,
        "peak": peak,
        "tables": tables,
    }


def _merged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Residual blocks are alike: one row each for their first and second convolutions."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        head, _, tail = str(row["step"]).partition("_")
        block = head.startswith("res") and head[3:].isdecimal()
        groups.setdefault(f"res*_{tail}" if block else str(row["step"]), []).append(row)
    merged = []
    for name, members in groups.items():
        label = name if len(members) == 1 else f"{name} ({len(members)})"
        total = {k: sum(m[k] for m in members) for k in _SUMS}
        factors = "/".join(sorted({m["factors"] for m in members}))
        merged.append({"step": label, "factors": factors, **total})
    return merged


def lines(result: dict[str, Any]) -> list[str]:
    """The page's text."""
    peak = result["peak"]
    rates = ", ".join(f"{k} {peak[k]:.0f}" for k in ("fp32", "bf16", "int8") if k in peak)
    text = [
        f"Network {result['network']}, {result['threads']} threads, "
        f"{result['machine_info']['cpu']}. Peaks in the same run: {rates} GMAC/s, copy "
        f"{peak['copy_gb_s']:.0f} GB/s.",
        "",
    ]
    header = ["step", "factors", "ms", "share of time", "GMAC/s as given", "done / given"]
    header += ["share of peak", "MB", "share of copy", "bound"]
    for part in result["tables"]:
        layers = [{"factors": part["precision"]} | row for row in part["layers"]]
        for row in layers:  # ms that the products alone take
            row["least"] = row["products"] / 1e6 / peak[row["factors"]]
        rows = _merged(layers)
        whole = sum(row["ms"] for row in rows)
        rows.append({"step": "sum", "factors": ""} | {k: sum(r[k] for r in rows) for k in _SUMS})
        cells = []
        for row in rows:
            rate = row["least"] / row["ms"]
            moved = row["bytes"] / row["ms"] / 1e6 / peak["copy_gb_s"]
            given = row["macs"]
            cells.append(
                [
                    row["step"],
                    row["factors"],
                    f"{row['ms']:.2f}",
                    f"{row['ms'] / whole:.0%}",
                    f"{given / row['ms'] / 1e6:.0f}" if given else "",
                    f"{row['products'] / given:.2f}" if given else "",
                    f"{rate:.0%}" if given else "",
                    f"{row['bytes'] / 1e6:.1f}",
                    f"{moved:.0%}",
                    f"{max(rate, moved):.0%}",
                ]
            )
        text += [f"**{part['precision']}, {part['size']}**", "", table(header, cells), ""]
    return text[:-1]


def write(path: Path) -> None:
    """Writes the page's part from a result file."""
    result = json.loads(path.read_text("utf-8"))
    page = PAGE.read_text("utf-8")
    before, found, rest = page.partition(MARKS[0])
    _, closed, after = rest.partition(MARKS[1])
    if not (found and closed):
        raise ValueError(f"{PAGE} has no {MARKS[0]} ... {MARKS[1]}")
    body = "\n".join(lines(result))
    source = f"From `benchmarks/results/{path.name}`, by `python -m benchmarks.roofline --save`."
    PAGE.write_text(f"{before}{found}\n{body}\n\n{source}\n{closed}{after}", "utf-8")


def frame_size(text: str) -> tuple[int, int]:
    """Width and height from ``WIDTHxHEIGHT``, as argparse wants it."""
    width, cross, height = text.partition("x")
    if not (cross and width.isdecimal() and height.isdecimal()) or int(width) % 4 + int(height) % 4:
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT with multiples of 4")
    return int(width), int(height)


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.roofline",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--network", choices=ARCHITECTURES, default="full")
    parser.add_argument("--sizes", type=frame_size, nargs="+", default=[(256, 256), (1280, 720)])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--seconds", type=float, default=3.0, help="a table (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results and the page")
    args = parser.parse_args()
    able = [p for p in PRECISIONS if precision_why_not(p) is None and precision_note(p) is None]
    args.precisions = args.precisions or able
    try:
        result = measure(args)
        if args.save:
            target = save(result, "per-layer-")
            write(target)
    except (FastgenError, ValueError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    print(json.dumps(result, indent=1) if args.json else "\n".join(lines(result)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
