"""The stabilizer's figures as Markdown."""

from __future__ import annotations

import math
from typing import Any


def markdown(report: dict[str, Any]) -> str:
    """Tables of a report of ``python -m benchmarks.stabilizer``."""
    machine = report["machine"]
    lines = [
        "# The stabilizer, measured",
        "",
        f"`python -m benchmarks.stabilizer`, strength {report['strength']:g}, "
        f"{machine['cpu']}, {machine['cores']} cores. E: warping error x 1000 of the paintings "
        "frame by frame and stabilized; cut: how much less; sharpness: Laplacian energy beside "
        "frame by frame; PSNR in moving regions: stabilized to frame by frame / neighbouring "
        "frames / neighbouring frames along the motion; objective: Eq. 9 of two frames beside "
        "frame by frame.",
        "",
    ]
    for name, style in report["styles"].items():
        lines += [f"## {name}", "", _words(style), ""]
        if "clips" in style:
            lines += _table(style["clips"])
    return "\n".join(lines)


def _words(style: dict[str, Any]) -> str:
    text = [f"{style['model']}, {style['precision']}, {style['threads']} threads."]
    if "price" in style:
        prices = {"": style["price"], ", under a pan": style["price"].get("pan")}
        for when, price in prices.items():
            if price:
                text.append(
                    f"Price at 640x480{when}: {price['stabilizer_ms']:.2f} ms, "
                    f"{100 * price['share']:.1f} % of the network's {price['network_ms']:.2f} ms."
                )
    if "objective" in style:
        value = style["objective"]
        text.append(
            f"Objective (Eq. 9) beside frame by frame, {value['frames']} frames: total "
            f"{value['total']:.3f}, style {value['style']:.3f}, content {value['content']:.3f}. "
            f"Starts again after cuts: {'yes' if style['cut_resets'] else 'NO'}."
        )
    return " ".join(text)


def _table(clips: dict[str, Any]) -> list[str]:
    lines = [
        "| clip | E plain | E steady | cut | sharpness | PSNR, dB | objective |",
        "|---|---|---|---|---|---|---|",
    ]
    cuts = []
    for clip, row in clips.items():
        cuts.append(1 - row["steady_error"] / row["plain_error"])
        psnr = " / ".join(
            "-" if math.isnan(row[key]) else f"{row[key]:.1f}"
            for key in ("psnr_steady", "psnr_neighbours", "psnr_neighbours_along")
        )
        lines.append(
            f"| {clip} | {1e3 * row['plain_error']:.3f} | {1e3 * row['steady_error']:.3f} | "
            f"{100 * cuts[-1]:.0f} % | {row['sharpness']:.2f} | {psnr} | "
            f"{row['objective']['total']:.3f} |"
        )
    least, mean = 100 * min(cuts), 100 * sum(cuts) / len(cuts)
    return [*lines, "", f"Least cut {least:.0f} %, mean {mean:.0f} %.", ""]
