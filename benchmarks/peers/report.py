"""Turns what benchmarks/peers measured into text, a page's section and a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.programs import OURS
from benchmarks.report import ROOT, fill, ratio, table

__all__ = ["PAGE", "PICTURE", "columns", "lines", "picture", "section", "write"]

PAGE = ROOT / "docs" / "performance.md"
PICTURE = ROOT / "docs" / "images" / "peers.png"
MARKS = "<!-- peers:begin -->", "<!-- peers:end -->"
HEADER = (
    *("program", "precision", "p50 ms", "p95 ms", "GMAC/s", "max error", "PSNR dB", "gate"),
    "ratio to the best peer",
)


def tables(rows: list[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The rows by network and size, in their order."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["network"], row["size"]), []).append(row)
    return found


def cells(row: dict[str, Any]) -> list[str]:
    """One row of a table; a program that did not run gives its reason in place of figures."""
    head = [row["program"], row["precision"]]
    if "refused" in row:
        return [*head, *["-"] * (len(HEADER) - 3), row["refused"]]
    psnr = "equal" if row["psnr"] is None else f"{row['psnr']:.1f}"
    compared = ", ".join(
        f"{ratio(row[f'ratio{suffix}'])} {row[f'best_peer{suffix}']}"
        for suffix in ("", "_bf16")
        if f"ratio{suffix}" in row
    )
    return [
        *head,
        f"{row['median_s'] * 1e3:.1f}",
        f"{row['p95_s'] * 1e3:.1f}",
        f"{row['gmac_s']:.0f}",
        f"{row['max_abs']:.4f}",
        psnr,
        "held" if row["passed"] else "FAILED",
        compared,
    ]


def peak_line(result: dict[str, Any]) -> str:
    """The machine's own limits."""
    limits = ", ".join(f"{k} {v['gmac_s']:.0f}" for k, v in result["peak"].items())
    copies = next(iter(result["peak"].values()))["copy_gb_s"]
    return (
        f"The machine's peak in the same run, multiply-adds in GMAC/s: {limits} (avx512_bf16: of "
        f"bf16 factors, avx512_vnni: of bytes, the others fp32); copy {copies:.0f} GB/s."
    )


def machine_line(result: dict[str, Any]) -> str:
    """One sentence about the machine and the versions."""
    info = result["machine_info"]
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items() if v)
    flags = ", ".join(info["flags"]) or "no vector extensions listed"
    return (
        f"{info['cpu']} ({flags}), {result['threads']} threads each, {info['system']} "
        f"{info['machine']}, Python {info['python']}, {versions}, {result['datetime'][:10]}"
    )


def columns(body: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: two columns to the left, numbers to the right, the last one as it is."""
    widths = [max(len(row[i]) for row in body) for i in range(len(body[0]) - 1)]
    text = []
    for row in body:
        padded = [
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=False))
        ]
        text.append("  ".join([*padded, row[-1]]).rstrip())
    return text


def lines(result: dict[str, Any]) -> list[str]:
    """The report for a terminal."""
    text = [machine_line(result), peak_line(result)]
    for (network, size), rows in tables(result["rows"]).items():
        text += ["", f"{network} network, {size} ({rows[0]['weights']})"]
        text += columns([HEADER, *(cells(row) for row in rows)])
    return text


def section(result: dict[str, Any], source: str) -> str:
    """What stands between the marks of docs/performance.md."""
    text = [
        f"Machine: {machine_line(result)}. Before the run, other programs kept "
        f"{result['load_before']:.1f} cores busy. {peak_line(result)}",
        "",
        "![Speed of each program](images/peers.png)",
    ]
    for (network, size), rows in tables(result["rows"]).items():
        rounds = max((len(row["seconds"]) for row in rows if "seconds" in row), default=0)
        text += [
            "",
            f"**{network}, {size}** ({rows[0]['weights']}; {rounds} rounds)",
            "",
            table(HEADER, [cells(row) for row in rows]),
        ]
    text += [
        "",
        f"From `{source}`, by `fastgen bench --peers --save`.",
    ]
    return "\n".join(text)


def picture(result: dict[str, Any], path: Path) -> None:
    """Writes the bar chart: speed of each program over the best fp32 peer."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = tables(result["rows"])
    networks = list(dict.fromkeys(network for network, _ in found))
    names = list(dict.fromkeys(row["program"] for row in result["rows"]))
    figure, axes_list = plt.subplots(
        1, len(networks), figsize=(1.5 + 5.5 * len(networks), 4.2), squeeze=False
    )
    for axes, network in zip(axes_list[0], networks, strict=True):
        sizes = [size for other, size in found if other == network]
        kinds = list(
            dict.fromkeys(
                (r["program"], r["precision"])
                for s in sizes
                for r in found[network, s]
                if "median_s" in r
            )
        )
        bar = 0.86 / max(1, len(kinds))
        for i, (program, precision) in enumerate(kinds):
            at, heights = [], []
            for k, size in enumerate(sizes):
                rows = [r for r in found[network, size] if "median_s" in r]
                peers = [r for r in rows if r["program"] != OURS and r["precision"] == "fp32"]
                mine = [r for r in rows if (r["program"], r["precision"]) == (program, precision)]
                if peers and mine:
                    best = min(r["median_s"] for r in peers)
                    at.append(k + (i - (len(kinds) - 1) / 2) * bar)
                    heights.append(best / mine[0]["median_s"])
            axes.bar(
                at,
                heights,
                bar * 0.92,
                color=f"C{names.index(program)}",
                hatch={"bf16": "///", "int8": "xxx"}.get(precision),
                edgecolor="white",
                linewidth=0.5,
                label=f"{program} {precision}",
            )
        axes.axhline(1, color="black", linewidth=1)
        axes.set_xticks(range(len(sizes)), sizes)
        axes.set_title(f"{network} network: speed over the best fp32 peer")
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes_list[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8)
    figure.set_layout_engine("constrained")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write(source: Path) -> None:
    """Writes the page's section and the picture from one result file."""
    result = json.loads(source.read_text("utf-8"))
    name = source.resolve().relative_to(ROOT).as_posix()
    content = fill(PAGE.read_text("utf-8"), section(result, name), MARKS)
    picture(result, PICTURE)
    PAGE.write_text(content, "utf-8")
