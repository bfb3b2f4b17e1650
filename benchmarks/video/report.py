"""Turns a file of results into docs/video-latency.md.

python -m benchmarks.video.report [RESULT.json]        (default: the newest)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.report import RESULTS, ROOT, ratio, table
from benchmarks.video.side import STAGES

PAGE = ROOT / "docs" / "video-latency.md"
WHO = (("fastgen", "fastgen"), ("opencv", "OpenCV + torch eager"))


def _three(values: dict[str, float]) -> str:
    return " / ".join(f"{values[key]:.1f}" for key in ("p50", "p95", "p99"))


def page(result: dict[str, Any], source: str) -> str:
    """The page's text."""
    info = result["machine_info"]
    first = result["rows"][0]
    summary, ends, stages = [], [], []
    for row in result["rows"]:
        name = f"{row['size']} {row['network']}"
        ours = row["fastgen"]
        summary.append(
            [
                name,
                f"{ours['fps']:.1f}",
                f"{row['opencv']['fps']:.2f}",
                ratio(row["speedup"]),
                f"{ours['efficiency']:.2f}",
                f"{ours['efficiency_with_colours']:.2f}",
            ]
        )
        for key, label in WHO:
            side = row[key]
            ends.append(
                [
                    name,
                    label,
                    side["precision"],
                    f"{side['fps']:.2f}",
                    _three(side["interval_ms"]),
                    f"{side['cpu_ms']:.1f}",
                    f"{row['rounds']} x {side['frames']}",
                ]
            )
            cells = [_three(side["stages"][stage]) for stage in STAGES]
            stages.append([name, label, *cells])
        cells = [f"{ours['stages'][stage]['cpu_ms']:.1f}" for stage in STAGES]
        stages.append([name, "fastgen, CPU time", *cells])
    versions = f"{first['fastgen']['library']}; {first['opencv']['library']}"
    text = [
        "# Video latency",
        "",
        f"Written by `python -m benchmarks.video` from `{source}`; edit nothing here.",
        "",
        f"Machine: {info['cpu']}, {info['cores']} cores, {info['system']} {info['machine']}, "
        f"Python {info['python']}, {versions}, {result['date']}.",
        "",
        "A clip in, a clip out: H.264 decoded, painted, and encoded with x264 veryfast at crf 20, "
        "by `fastgen.stylize_video`; beside it the loop that people write: `cv2.VideoCapture`, the "
        "same network in PyTorch eager (fp32), `cv2.VideoWriter` (mp4v: OpenCV's wheels have no "
        "x264, and this codec is cheaper). Each program runs in a process of its own, they take "
        "turns, and *speed* is the median of the rounds' ratios. The clip is the example clip, "
        "enlarged and repeated.",
        "",
        table(
            [
                "frame, network",
                "fastgen fps",
                "eager loop fps",
                "speed",
                "efficiency",
                "with colours",
            ],
            summary,
        ),
        "",
        "*efficiency* is the rate beside 1 / (time of the network + CPU time of decoding and "
        "encoding / cores), each measured alone before and after the run: what a pipeline without "
        "any cost of its own would reach. It is the median of the rounds, each a whole file with "
        "the frames at which the pipeline fills and empties. *with colours* counts the conversion "
        "between YCbCr and RGB as work that has to be done, too. Both can exceed 1 where the "
        "machine was faster during the run.",
        "",
        "## End to end",
        "",
        "Milliseconds between two finished frames, and CPU milliseconds of a frame.",
        "",
        table(
            [
                *("frame, network", "program", "precision", "fps"),
                *("p50 / p95 / p99 ms", "CPU ms", "rounds x frames"),
            ],
            ends,
        ),
        "",
        "## Stage by stage",
        "",
        "Milliseconds of a frame, p50 / p95 / p99. *in* and *out* are colours and layout. "
        "Ours are measured one after the other, each alone; in the pipeline they overlap. Our "
        "decoder and encoder work ahead in threads of their own, so that for them each round has "
        "one mean.",
        "",
        table(["frame, network", "program", *STAGES], stages),
        "",
        "Weights: "
        + "; ".join(sorted({f"{r['network']}: {r['weights']}" for r in result["rows"]}))
        + ".",
    ]
    return "\n".join(text) + "\n"


def write(source: Path) -> None:
    """Writes the page from a file of results."""
    result = json.loads(source.read_text("utf-8"))
    name = source.relative_to(ROOT).as_posix() if source.is_relative_to(ROOT) else source.name
    PAGE.write_text(page(result, name), "utf-8")


def main() -> int:
    """Returns the exit code."""
    found = sorted(RESULTS.glob("video-*.json"))
    if len(sys.argv) < 2 and not found:
        print("video report: no results; run python -m benchmarks.video first", file=sys.stderr)
        return 1
    write(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else found[-1])
    return 0


if __name__ == "__main__":
    sys.exit(main())
