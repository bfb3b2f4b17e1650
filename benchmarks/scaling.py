"""What a second thread gives, how even the times are, and frames a second, uint8 in and out.

    python -m benchmarks.scaling [--networks full half small] [--sizes 256x256 640x480] [--save]

The engine with one thread and with all cores, each in a process of its own, in turns. *threads* is
the median over the rounds of the time with one thread divided by that with all: 2.00 would be
perfect for two. Before each timed frame come 20 ms of frames (one, where it takes longer) that are
not timed, as in a stream: the other process has had the caches, and cores that have slept are slow
for some milliseconds. *p95* is that of frames in a row beside their median, with all threads: the
median over stretches of at least 20 frames and half a second, spread over the whole run. Frames of
different stretches are not put together, as the machine's speed changes from one to the next.

*of the control* is the same figure of multiply-adds in registers that take as long, measured in
turns with the row: no memory, no dependence on the frame. What it varies by is the machine's.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import sys
import tempfile
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import machine
from benchmarks.networks import ARCHITECTURES, network
from benchmarks.report import ROOT, fill, table
from benchmarks.roofline import frame_size
from benchmarks.run import save
from fastgen.backends.cpu import precision_why_not
from fastgen.cli._app import one_line
from fastgen.cli._machine import usable_cores
from fastgen.cli._race import Process, percentile, take_turns
from fastgen.errors import FastgenError

__all__ = ["lines", "measure", "write"]

PAGE = ROOT / "docs" / "performance.md"
MARKS = "<!-- scaling:begin -->", "<!-- scaling:end -->"
PRECISIONS = ("fp32", "bf16", "int8")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that goes into the table."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for architecture in args.networks:
            style, note = network(architecture, Path(folder))
            for width, height in args.sizes:
                for precision in args.precisions:
                    spec = {"style": str(style), "backend": "cpu", "precision": precision}
                    spec |= {"width": width, "height": height}
                    if args.lead_in > 0:
                        spec["lead_in"] = args.lead_in
                    row = {"network": architecture, "weights": note, "size": f"{width}x{height}"}
                    rows.append(row | {"precision": precision, "spec": spec})
        # The machine's speed changes for seconds at a time: each row is measured in several passes
        # over all of them, so that no row has only a fast or only a slow stretch.
        for number in range(args.passes):
            for row in rows:
                for name, times in _turns(row["spec"], args, row).items():
                    row.setdefault("seconds", {}).setdefault(name, []).extend(times)
                if number == args.passes - 1:
                    print(*_cells(_summary(row)), file=sys.stderr, flush=True)
    return {
        "datetime": datetime.datetime.now().isoformat(timespec="seconds"),
        "machine_info": machine.describe(),
        "threads": args.threads,
        "rows": [_summary(row) for row in rows],
    }


def _turns(
    spec: dict[str, Any], args: argparse.Namespace, row: dict[str, Any]
) -> dict[str, list[float]]:
    """One pass over one row: the engine and the control, with one thread and with all.

    The stretches of frames in a row are added to the row's ``streams``.
    """
    processes = []
    try:
        for threads in (1, args.threads):
            processes.append(Process("fastgen.cli._race", spec | {"threads": threads}))
        one, every = processes
        for process in processes:
            process.ask("step")
        seconds = median(every.ask("step") for _ in range(3))
        control = Process(
            "benchmarks.control",
            {"seconds": seconds, "threads": args.threads, "lead_in": args.lead_in},
        )
        processes.append(control)
        steps = [(one, "step"), (every, "step"), (control, "one"), (control, "all")]
        times = take_turns(
            [partial(process.ask, command) for process, command in steps],
            args.seconds / args.passes,
            (-(-args.rounds // args.passes), 400),
        )
        frames = max(args.frames, math.ceil(0.5 / seconds))
        for _ in range(args.streams):
            for name, process in (("all", every), ("control all", control)):
                stretch = [round(t, 7) for t in process.ask(f"stream {frames}")]
                row.setdefault("streams", {}).setdefault(name, []).append(stretch)
    finally:
        for process in processes:
            process.close()
    return dict(zip(("one", "all", "control one", "control all"), times, strict=True))


def _summary(row: dict[str, Any]) -> dict[str, Any]:
    """A row with what the table says of its times."""

    def gain(one: str, every: str) -> float:
        pairs = zip(row["seconds"][one], row["seconds"][every], strict=True)
        return median(a / b for a, b in pairs)

    def tail(name: str) -> float:
        return median(percentile(times, 95) / median(times) for times in row["streams"][name])

    kept = ("network", "weights", "size", "precision", "seconds", "streams")
    summary = {key: row[key] for key in kept}
    return summary | {
        "median_s": median(row["seconds"]["all"]),
        "p95_over_p50": tail("all"),
        "control_p95_over_p50": tail("control all"),
        "scaling": gain("one", "all"),
        "control_scaling": gain("control one", "control all"),
    }


def _cells(row: dict[str, Any]) -> list[str]:
    """A line of the table."""
    return [
        row["network"],
        row["size"],
        row["precision"],
        f"{row['median_s'] * 1e3:.1f}",
        f"{1 / row['median_s']:.0f}",
        f"{row['p95_over_p50']:.2f}",
        f"{row['control_p95_over_p50']:.2f}",
        f"{row['scaling']:.2f}",
        f"{row['control_scaling']:.2f}",
    ]


def lines(result: dict[str, Any]) -> list[str]:
    """The page's text."""
    info = result["machine_info"]
    header = ["network", "frame", "precision", "p50 ms", "frames/s", "p95 / p50", "of the control"]
    header += [f"1 to {result['threads']} threads", "of the control"]
    return [
        f"uint8 in and out, {result['threads']} threads, {info['cpu']} "
        f"({', '.join(info['flags'])}), {result['datetime'][:10]}.",
        "",
        table(header, [_cells(row) for row in result["rows"]]),
    ]


def write(path: Path) -> None:
    """Writes the page's part from a result file."""
    result = json.loads(path.read_text("utf-8"))
    source = f"From `benchmarks/results/{path.name}`, by `python -m benchmarks.scaling --save`."
    body = "\n".join([*lines(result), "", source])
    PAGE.write_text(fill(PAGE.read_text("utf-8"), body, MARKS), "utf-8")


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sizes = [(256, 256), (512, 512), (640, 480), (1280, 720)]
    able = [p for p in PRECISIONS if precision_why_not(p) is None]
    parser.add_argument("--networks", nargs="+", choices=ARCHITECTURES, default=[*ARCHITECTURES])
    parser.add_argument("--sizes", type=frame_size, nargs="+", default=sizes)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=able)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--seconds", type=float, default=8.0, help="a row (%(default)s)")
    parser.add_argument("--rounds", type=int, default=21, help="at least (%(default)s)")
    parser.add_argument(
        "--lead-in", type=float, default=0.02, help="seconds (%(default)s); 0: frames one by one"
    )
    parser.add_argument("--streams", type=int, default=2, help="a row and pass (%(default)s)")
    parser.add_argument(
        "--frames", type=int, default=20, help="of a stream, at least (%(default)s)"
    )
    parser.add_argument("--passes", type=int, default=3, help="over all rows (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results and the page")
    args = parser.parse_args()
    if args.threads < 2:
        parser.error(f"--threads is {args.threads}, must be at least 2")
    for name, low in (("passes", 1), ("streams", 1), ("frames", 2), ("lead_in", 0)):
        if getattr(args, name) < low:
            value = f"{getattr(args, name):g}, must be at least {low}"
            parser.error(f"--{name.replace('_', '-')} is {value}")
    try:
        result = measure(args)
        if args.save:
            write(save(result, "scaling-"))
    except (FastgenError, ValueError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    print(json.dumps(result, indent=1) if args.json else "\n".join(lines(result)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
