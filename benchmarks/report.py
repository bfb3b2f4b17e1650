"""Turns a file of benchmarks/results into docs/benchmarks.md, its picture and the README's table.

    python -m benchmarks.report [RESULT.json]        (default: the newest)

Nothing in those places is typed by hand: what stands there was measured, and the file is named.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
PICTURE = ROOT / "docs" / "images" / "latency.png"
README = ROOT / "README.md"
PATTERN = "[!gopv]*-[0-9]*c-*.json"  # generate-, ops-, peers- and video- have reports of their own
MARKS = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"


@dataclass(frozen=True)
class Row:
    """One network at one size: our engine and PyTorch eager, measured in turns."""

    size: str
    architecture: str
    ours: dict[str, Any]
    peer: dict[str, Any]

    @property
    def speedup(self) -> float:
        """Median ratio of the rounds; above 1 we are faster."""
        return float(self.ours["speedup_over_torch"])


def rows(result: dict[str, Any]) -> list[Row]:
    """The pairs in a pytest-benchmark file, in its order.

    Raises:
        ValueError: a row of ours without its peer.
    """
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for item in result["benchmarks"]:
        info = item["extra_info"]
        found.setdefault((info["size"], info["architecture"]), {})[info["backend"]] = info
    lonely = [key for key, pair in found.items() if set(pair) != {"cpu", "torch"}]
    if lonely:
        raise ValueError(f"{lonely[0]} was not measured on both sides; run make bench again")
    return [Row(size, arch, pair["cpu"], pair["torch"]) for (size, arch), pair in found.items()]


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is left-aligned, the others right."""
    marks = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, marks, *lines))


def machine_line(result: dict[str, Any]) -> str:
    """One sentence about the machine and the versions."""
    info = result["machine_info"]
    torch = next(
        b["extra_info"]["versions"]["torch"]
        for b in result["benchmarks"]
        if b["extra_info"]["backend"] == "torch"
    )
    flags = ", ".join(info["flags"]) or "no vector extensions listed"
    return (
        f"{info['cpu']} ({flags}), {info['cores']} cores, {info['system']} {info['machine']}, "
        f"Python {info['python']}, torch {torch}, {result['datetime'][:10]}"
    )


def ratio(value: float) -> str:
    """A speedup as text."""
    return f"{value:.2f}x"


def summary(result: dict[str, Any], source: str) -> str:
    """The README's section: ratios only, because the machines are shared and noisy."""
    found = rows(result)
    sizes = list(dict.fromkeys(r.size for r in found))
    architectures = list(dict.fromkeys(r.architecture for r in found))
    by = {(r.size, r.architecture): r for r in found}
    lines = []
    for size in sizes:
        cells = [size]
        for architecture in architectures:
            row = by[size, architecture]
            ours, peer = row.ours["memory_growth_mib"], row.peer["memory_growth_mib"]
            cells += [ratio(row.speedup), f"{ours:.0f} / {peer:.0f} MiB"]
        lines.append(cells)
    header = ["frame"]
    for architecture in architectures:
        header += [f"{architecture}: speed", "memory"]
    text = [
        'Speed of `backend="cpu"` over PyTorch eager, fp32 both, same network and threads '
        "(median ratio of alternating rounds; above 1 fastgen is faster), and growth of memory "
        "above what the imports take (fastgen / PyTorch):",
        "",
        table(header, lines),
    ]
    whole = result.get("whole_process")
    if whole:
        ours, peer = whole["fastgen"], whole["torch"]
        text += [
            "",
            f"The `fastgen` command as a whole process on a {whole['size']} photo, full network: "
            f"{ratio(whole['speedup'])} the speed of a script that imports torch, "
            f"{ours['peak_bytes_median'] / 2**20:.0f} MiB instead of "
            f"{peer['peak_bytes_median'] / 2**20:.0f} MiB at the peak "
            f"(median of {len(ours['wall_s'])} alternating runs).",
        ]
    text += ["", f"Machine: {machine_line(result)}. From `{source}`, by `make bench`."]
    return "\n".join(text)


def page(result: dict[str, Any], source: str) -> str:
    """docs/benchmarks.md."""
    lines = []
    for row in rows(result):
        for who, info in (("fastgen cpu", row.ours), ("torch eager", row.peer)):
            lines.append(
                [
                    f"{row.size} {row.architecture}",
                    who,
                    info["precision"],
                    f"{info['p50_ms']:.1f}",
                    f"{info['p95_ms']:.1f}",
                    f"{info['p99_ms']:.1f}",
                    f"{info['fps']:.1f}",
                    f"{info['mpix_s']:.2f}",
                    f"{info['gmac_s']:.1f}",
                    f"{info['memory_growth_mib']:.0f}",
                    ratio(row.speedup) if info is row.ours else "1",
                    str(info["rounds"]),
                ]
            )
    header = [
        *("frame, network", "backend", "precision", "p50 ms", "p95 ms", "p99 ms", "fps"),
        *("MPix/s", "GMAC/s", "memory MiB", "speed", "rounds"),
    ]
    weights = sorted({(r.architecture, r.ours["weights"]) for r in rows(result)})
    text = [
        "# Latency",
        "",
        f"Written by `make bench` from `{source}`; edit nothing here.",
        "",
        f"Machine: {machine_line(result)}.",
        "",
        "![Speed and memory beside PyTorch eager](images/latency.png)",
        "",
        summary(result, source),
        "",
        "## All figures",
        "",
        "One uint8 frame in, one out, through `Stylizer`: conversion, padding and rounding "
        "included. Both programs run in processes of their own and take turns, round by round. "
        f"Before the run, other programs kept {result['load_before']:.1f} cores busy. "
        "*speed* is the median over the rounds of PyTorch's time divided by ours. The machine is "
        "shared with other work, so compare times within a pair only. *memory* is the peak of "
        "resident memory above what it was after the imports. *GMAC/s* counts the multiply-adds "
        "of the network as written, so savings of arithmetic show as a higher rate.",
        "",
        table(header, lines),
        "",
        "Weights: " + "; ".join(f"{arch}: {note}" for arch, note in weights) + ".",
    ]
    peak = result.get("peak")
    if peak:
        text += [
            "",
            "## The machine's own limits, in the same run",
            "",
            table(
                ["instruction set", "multiply-adds, GMAC/s", "copy, GB/s read + written"],
                [[k, f"{v['gmac_s']:.0f}", f"{v['copy_gb_s']:.0f}"] for k, v in peak.items()],
            ),
        ]
    whole = result.get("whole_process")
    if whole:
        sides = (("`fastgen stylize`", "fastgen"), ("script with torch", "torch"))
        text += [
            "",
            "## Whole process",
            "",
            f"From start to exit: read a {whole['size']} photo, load the full network "
            f"({whole['weights']}), stylise, write a PNG "
            "(`benchmarks/peer_script.py` is the other program). The two pictures differ by at "
            f"most {whole['largest_difference']} of 255.",
            "",
            table(
                ["program", "wall s, median", "wall s, all", "peak MiB, median"],
                [
                    [
                        name,
                        f"{whole[key]['wall_s_median']:.2f}",
                        " ".join(f"{s:.2f}" for s in whole[key]["wall_s"]),
                        f"{whole[key]['peak_bytes_median'] / 2**20:.0f}",
                    ]
                    for name, key in sides
                ],
            ),
            "",
            f"Median ratio of the rounds: {ratio(whole['speedup'])}.",
        ]
    return "\n".join(text) + "\n"


def fill(text: str, content: str, marks: tuple[str, str] = MARKS) -> str:
    """Replaces what stands between the two marks.

    Raises:
        ValueError: the marks are missing or out of order.
    """
    head, begin, rest = text.partition(marks[0])
    _, end, tail = rest.partition(marks[1])
    if not begin or not end:
        raise ValueError(f"the text lacks {marks[0]} ... {marks[1]}")
    return f"{head}{begin}\n{content}\n{end}{tail}"


def picture(result: dict[str, Any], path: Path) -> None:
    """Writes the bar charts: speed over PyTorch eager, and memory of both."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = rows(result)
    sizes = list(dict.fromkeys(r.size for r in found))
    architectures = list(dict.fromkeys(r.architecture for r in found))
    by = {(r.size, r.architecture): r for r in found}
    colors = ["#2a9d8f", "#e9a23b", "#d1495b", "#30638e"]
    bar = 0.8 / len(architectures)
    figure, (speed, memory) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for i, architecture in enumerate(architectures):
        at = [k + (i - (len(architectures) - 1) / 2) * bar for k in range(len(sizes))]
        pairs = [by[size, architecture] for size in sizes]
        color = colors[i % len(colors)]
        bars = speed.bar(at, [r.speedup for r in pairs], bar * 0.92, color=color)
        speed.bar_label(bars, fmt="%.1fx", fontsize=8)
        ours = [r.ours["memory_growth_mib"] for r in pairs]
        peer = [r.peer["memory_growth_mib"] for r in pairs]
        memory.bar(at, peer, bar * 0.92, color=color, alpha=0.3)
        memory.bar(at, ours, bar * 0.92, color=color, label=architecture)
    speed.axhline(1, color="black", linewidth=1)
    speed.set_title("speed over PyTorch eager, fp32 (1 = the same)")
    memory.set_title("memory above the imports, MiB (pale: PyTorch)")
    for axes in (speed, memory):
        axes.set_xticks(range(len(sizes)), sizes)
        axes.spines[["top", "right"]].set_visible(False)
    memory.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def newest(pattern: str) -> Path | None:
    """The result file of this name pattern that was written last."""
    files = sorted(RESULTS.glob(pattern), key=lambda p: p.stat().st_mtime)
    return files[-1] if files else None


def write(source: Path) -> None:
    """Writes the page, the picture and the README's section from one result file."""
    result = json.loads(source.read_text("utf-8"))
    name = source.resolve().relative_to(ROOT).as_posix()
    content = fill(README.read_text("utf-8"), summary(result, name))
    picture(result, PICTURE)
    PAGE.write_text(page(result, name), "utf-8")
    README.write_text(content, "utf-8")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", type=Path, nargs="?")
    source = parser.parse_args().result or newest(PATTERN)
    if source is None:
        parser.error(f"{RESULTS} holds no {PATTERN}; run make bench")
    write(source)
    print(f"{PAGE.relative_to(ROOT)}, {PICTURE.relative_to(ROOT)} and the README from {source}")


if __name__ == "__main__":
    main()
