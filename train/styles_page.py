"""Fills the tables of docs/styles.md from the cards and the reports of `fastgen eval style`.

python -m fastgen.train.styles_page docs/styles.md fastgen/styles docs/results/style
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from fastgen.checkpoint import atomic_write

__all__ = ["quality_table", "styles_table", "total_steps"]


def total_steps(training: dict[str, Any]) -> int:
    """Optimiser steps of a card's run and of the runs that it started from."""
    return training["steps"] + sum(run.get("steps", 0) for run in training.get("earlier", []))


def styles_table(folder: Path) -> str:
    """Markdown table of all cards in a folder, sorted by name."""
    rows = [
        "| style | painting | network | weights | MMAC at 256x256 | steps | sha256 |",
        "|---|---|---|---|---|---|---|",
    ]
    for path in sorted(folder.glob("*.json")):
        c = json.loads(path.read_text(encoding="utf-8"))
        p, n = c["painting"], c["network"]
        rows.append(
            f"| `{c['style']}` | {p['title']}, {p['artist']}, {p['year']} | {n['model']} | "
            f"{n['parameters']:,} | {n['million_multiply_adds_256x256']:,} | "
            f"{total_steps(c['training'])} | `{c['sha256'][:12]}` |"
        )
    return "\n".join(rows) + "\n"


def quality_table(reports: list[Path]) -> str:
    """Markdown table of `fastgen eval style` reports: each network on its L-BFGS curve."""
    rows = [
        "| style | Eq. 9 | content | style | equals L-BFGS iteration | L-BFGS@30 | L-BFGS@50 |",
        "|---|---|---|---|---|---|---|",
    ]
    for path in sorted(reports):
        report = json.loads(path.read_text(encoding="utf-8"))
        for network in report["networks"]:
            curve = report["baseline"][network["objective"]]["mean_curve"]
            mean, name = network["mean"], Path(network["file"]).stem
            reached = network["lbfgs_iteration"]
            rows.append(
                f"| `{name}` | {mean['total']:.3f} | {mean['content']:.3f} | {mean['style']:.3f} | "
                f"{'none' if reached is None else reached} | {curve[30]:.3f} | {curve[50]:.3f} |"
            )
    return "\n".join(rows) + "\n"


def fill(page: Path, marker: str, text: str) -> None:
    """Replaces what stands between ``<!-- marker:begin -->`` and ``<!-- marker:end -->``."""
    begin, end = f"<!-- {marker}:begin -->\n", f"<!-- {marker}:end -->"
    head, rest = page.read_text("utf-8").split(begin)
    atomic_write(page, (head + begin + text + end + rest.split(end, 1)[1]).encode())


def main(page: Path, styles: Path, results: Path) -> None:
    """Rewrites both tables of the page."""
    fill(page, "styles", styles_table(styles))
    fill(page, "quality", quality_table(sorted(results.glob("*.json"))))


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*(Path(a) for a in sys.argv[1:]))
