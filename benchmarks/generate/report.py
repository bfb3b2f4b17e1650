"""Turns what was measured into text and a section of docs/performance.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.generate.cases import Case
from benchmarks.peers.report import PAGE, columns, machine_line, peak_line
from benchmarks.report import ROOT, fill, ratio, table

__all__ = ["PAGE", "lines", "section", "write"]

MARKS = "<!-- generate:begin -->", "<!-- generate:end -->"
HEADER = (
    *("program", "precision", "p50 us/image", "p95 us/image", "images/s", "max error", "gate"),
    *("over torch.compile", "over the best peer"),
)


def cases(rows: list[dict[str, Any]]) -> dict[Case, list[dict[str, Any]]]:
    """The rows by case, in their order."""
    found: dict[Case, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(Case(row["network"], row["batch"], row["encoded"]), []).append(row)
    return found


def cells(row: dict[str, Any]) -> list[str]:
    """One row of a table; a program that did not run gives its reason in place of figures."""
    head = [row["program"], row["precision"]]
    if "refused" in row:
        return [*head, *["-"] * (len(HEADER) - 3), row["refused"]]
    each = 1e6 / row["batch"]
    compared = f"{ratio(row['ratio'])} {row['best_peer']}" if "ratio" in row else ""
    fp32 = row["precision"] == "fp32" and "over_compile" in row
    return [
        *head,
        f"{row['median_s'] * each:.1f}",
        f"{row['p95_s'] * each:.1f}",
        f"{row['images_s']:.0f}",
        f"{row['max_abs']:.4f}",
        "held" if row["passed"] else "FAILED",
        ratio(row["over_compile"]) if fp32 else "",
        compared,
    ]


def lines(result: dict[str, Any]) -> list[str]:
    """The report for a terminal."""
    text = [machine_line(result), peak_line(result)]
    for case, rows in cases(result["rows"]).items():
        text += ["", case.name]
        text += columns([HEADER, *(cells(row) for row in rows)])
    return text


def overview(result: dict[str, Any]) -> str:
    """One row for each case: ours, and the ratios."""
    header = (
        *("network", "batch", "style", "fp32 us/image", "over torch.compile", "over the best"),
        *("bf16 us/image", "over the best"),
    )
    body = []
    for case, rows in cases(result["rows"]).items():
        ours = {r["precision"]: r for r in rows if r["program"] == "fastgen" and "median_s" in r}
        row = [case.network, str(case.batch), "encoded" if case.encoded else "kept"]
        for precision in ("fp32", "bf16"):
            found = ours.get(precision)
            if not found:
                row += ["-"] * (3 if precision == "fp32" else 2)
                continue
            row.append(f"{found['median_s'] * 1e6 / case.batch:.1f}")
            if precision == "fp32":
                row.append(ratio(found["over_compile"]) if "over_compile" in found else "-")
            best = found.get("best_peer", "").rpartition(" ")[0]
            row.append(f"{ratio(found['ratio'])} {best}" if best else "-")
        body.append(row)
    return table(header, body)


def section(result: dict[str, Any], source: str) -> str:
    """What stands between the marks of docs/performance.md."""
    text = [
        f"Machine: {machine_line(result)}. Before the run, other programs kept "
        f"{result['load_before']:.1f} cores busy. {peak_line(result)}",
        "",
        overview(result),
    ]
    for case, rows in cases(result["rows"]).items():
        rounds = max((len(row["seconds"]) for row in rows if "seconds" in row), default=0)
        body = table(HEADER, [cells(row) for row in rows])
        text += ["", f"**{case.name}** ({rounds} rounds)", "", body]
    text += ["", f"From `{source}`, by `fastgen bench --generate --save`."]
    return "\n".join(text)


def write(source: Path) -> None:
    """Writes the page's section from one result file."""
    result = json.loads(source.read_text("utf-8"))
    name = source.resolve().relative_to(ROOT).as_posix()
    PAGE.write_text(fill(PAGE.read_text("utf-8"), section(result, name), MARKS), "utf-8")
