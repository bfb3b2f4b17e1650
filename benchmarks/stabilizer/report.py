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
        "frames / neighbouring frames along the motion.",
        "",
    ]
    for name, style in report["styles"].items():
        price, value = style["price"], style["objective"]
        lines += [
            f"## {name}",
            "",
            f"{style['model']}, {style['precision']}, {style['threads']} threads. Price at "
            f"640x480: {price['stabilizer_ms']:.2f} ms, {100 * price['share']:.1f} % of the "
            f"network's {price['network_ms']:.2f} ms. Objective (Eq. 9) beside frame by frame: "
            f"total {value['total']:.3f}, style {value['style']:.3f}, content "
            f"{value['content']:.3f}. Starts again after cuts: "
            f"{'yes' if style['cut_resets'] else 'NO'}.",
            "",
            "| clip | E plain | E steady | cut | sharpness | PSNR, dB |",
            "|---|---|---|---|---|---|",
        ]
        cuts = []
        for clip, row in style["clips"].items():
            cuts.append(1 - row["steady_error"] / row["plain_error"])
            psnr = " / ".join(
                "-" if math.isnan(row[key]) else f"{row[key]:.1f}"
                for key in ("psnr_steady", "psnr_neighbours", "psnr_neighbours_along")
            )
            lines.append(
                f"| {clip} | {1e3 * row['plain_error']:.3f} | {1e3 * row['steady_error']:.3f} | "
                f"{100 * cuts[-1]:.0f} % | {row['sharpness']:.2f} | {psnr} |"
            )
        lines += [
            "",
            f"Least cut {100 * min(cuts):.0f} %, mean {100 * sum(cuts) / len(cuts):.0f} %.",
            "",
        ]
    return "\n".join(lines)
