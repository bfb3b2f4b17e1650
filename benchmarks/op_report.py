"""Turns a file ops-MACHINE-DATE.json of benchmarks/results into docs/op-benchmarks.md.

python -m benchmarks.op_report [RESULT.json]        (default: the newest)
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.op_cases import OPS, Case, by_name
from benchmarks.report import RESULTS, ROOT, newest, ratio, table

PAGE = ROOT / "docs" / "op-benchmarks.md"
PATTERN = "ops-*.json"
_SHORT = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
_LAYOUT = {"nchw": "NCHW", "channels_last": "NHWC"}


def describe(case: Case) -> str:
    """A case in words that fit a table."""
    text = "x".join(map(str, case.x))
    if case.style:
        text += " + " + "x".join(map(str, case.style))
    if not case.out:
        return text
    text += f" -> {case.out}, {case.kernel}x{case.kernel}"
    text += f" stride {case.stride}" if case.stride > 1 else ""
    text += f" up {case.upsample}" if case.upsample > 1 else ""
    return text + (f" {case.mode}" if case.mode == "reflect" else "")


def roof(peak: dict[str, dict[str, float]], dtype: str) -> tuple[float, float] | None:
    """FLOP/s and bytes/s that the machine reached at this precision, or None if not measured."""
    if not peak:
        return None
    wide = max(peak[isa]["gmac_s"] for isa in peak if "bf16" not in isa)
    short = max([peak[isa]["gmac_s"] for isa in peak if "bf16" in isa], default=0.0)
    if dtype == "bfloat16" and short < 1.2 * wide:
        return None  # that instruction set's loop multiplies float32 too: no limit for bf16
    copy = max(values["copy_gb_s"] for values in peak.values())
    return (short if dtype == "bfloat16" else wide) * 2e9, copy * 1e9


def of_roof(info: dict[str, Any], peak: dict[str, dict[str, float]]) -> str:
    """The time that the binding limit allows at least / the time measured."""
    limits = roof(peak, info["dtype"])
    if limits is None:
        return "-"
    floor = max(info["flops"] / limits[0], info["bytes"] / limits[1])
    return f"{floor / (info['p50_us'] * 1e-6):.0%}"


def infos(result: dict[str, Any]) -> list[dict[str, Any]]:
    """What was measured, a row for each side."""
    return [item["extra_info"] for item in result["benchmarks"]]


def lines(result: dict[str, Any], op: str) -> list[list[str]]:
    """The table of an operation: a line for each shape, precision and memory format of ours."""
    found = [info for info in infos(result) if info["op"] == op]
    times = {(i["case"], i["dtype"], f"{i['side']} {i['layout']}"): i["p50_us"] for i in found}
    rows = []
    for info in found:
        if info["side"] != "cpu":
            continue
        speed, asked = info["speedup_over_best_peer"], info["asked"]
        peer = info["best_peer"]
        amount = f"{info['gflop_s']:.0f} GFLOP/s" if info["flops"] else f"{info['gb_s']:.1f} GB/s"
        rows.append(
            [
                describe(by_name(op, info["case"])),
                _SHORT[info["dtype"]],
                _LAYOUT[info["layout"]],
                f"{info['p50_us']:.0f}",
                f"{info['p95_us']:.0f}",
                f"{peer.split()[0]} {_LAYOUT[peer.split()[1]]}",
                f"{times[info['case'], info['dtype'], peer]:.0f}",
                f"**{ratio(speed)}**" if speed < asked else ratio(speed),
                f"{asked:g}x",
                amount,
                of_roof(info, result.get("peak", {})),
                f"{info['error']:.0e}",
            ]
        )
    return rows


HEADER = [
    *("shape", "type", "memory", "ours p50 us", "p95 us", "best peer", "its p50 us", "speed"),
    *("asked", "rate", "of the roof", "error"),
]


def refusals(result: dict[str, Any]) -> list[str]:
    """What ours could not do, once for each operation, precision and reason."""
    said: dict[tuple[str, str, str], int] = {}
    seen = set()
    for info in infos(result):
        for side, reason in info["refused"].items():
            if (info["op"], info["case"], info["dtype"], side) not in seen:
                seen.add((info["op"], info["case"], info["dtype"], side))
                key = (f"{info['op']} on {side.split()[0]}", _SHORT[info["dtype"]], reason)
                said[key] = said.get(key, 0) + 1
    return [f"- {who}, {dtype}, {n} rows: {why}" for (who, dtype, why), n in said.items()]


def score(result: dict[str, Any]) -> str:
    """How many of our rows are at or above what is asked, and above the peer."""
    ours = [info for info in infos(result) if info["side"] == "cpu"]
    reached = sum(info["speedup_over_best_peer"] >= info["asked"] for info in ours)
    ahead = sum(info["speedup_over_best_peer"] >= 1 for info in ours)
    return f"{ahead} of {len(ours)} rows are at least as fast as the best peer, {reached} as asked."


def page(result: dict[str, Any], source: str) -> str:
    """docs/op-benchmarks.md."""
    info = result["machine_info"]
    versions = infos(result)[0]["versions"]
    flags = ", ".join(info["flags"]) or "no vector extensions listed"
    text = [
        "# Fused operations on the CPU",
        "",
        f"Written by `make bench` from `{source}`; edit nothing here.",
        "",
        f"Machine: {info['cpu']} ({flags}), {info['cores']} cores, {info['system']} "
        f"{info['machine']}, Python {info['python']}, torch {versions['torch']}, "
        f"{result['datetime'][:10]}; {result['threads']} threads on every side. Before the run, "
        f"other programs kept {result['load_before']:.1f} cores busy.",
        "",
        "*speed* is the median over the rounds of the best peer's time divided by ours, **bold** "
        "where it is below what this project asks of the shape (*asked*). The peers do the same "
        "work at the same precision in plain PyTorch, eager and under `torch.compile`, with the "
        "batch norm folded and weights and input in channels_last memory beforehand; reflection "
        "and upsampling are `F.pad` and `F.interpolate`, as one writes them. Gram matrix and "
        "concatenation are measured in both memory formats; the peer of a Gram matrix is the best "
        "of both, that of a concatenation has the same. "
        "Every side is a process of its own; they take turns, round by round. The machine is "
        "shared with other work: compare times within a row only.",
        "",
        "*rate* counts the formula's multiply-adds twice (or the fewest bytes), so savings of "
        "arithmetic show as a higher rate. *of the roof* is the least time that the machine's "
        "measured multiply-add rate and copy bandwidth allow, divided by ours; small tensors "
        "stay in the cache and can pass it. *error* is the relative error (2-norm) against "
        "float64.",
        "",
        score(result),
    ]
    for op in OPS:
        rows = lines(result, op)
        if rows:
            text += ["", f"## {op}", "", table(HEADER, rows)]
    left = refusals(result)
    if left:
        text += ["", "## Not measured", "", *left]
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
    return "\n".join(text) + "\n"


def write(source: Path) -> None:
    """Writes the page from one result file."""
    result = json.loads(source.read_text("utf-8"))
    PAGE.write_text(page(result, source.resolve().relative_to(ROOT).as_posix()), "utf-8")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", type=Path, nargs="?")
    source = parser.parse_args().result or newest(PATTERN)
    if source is None:
        parser.error(f"{RESULTS} holds no {PATTERN}; run make bench")
    write(source)
    print(f"{PAGE.relative_to(ROOT)} from {source}")


if __name__ == "__main__":
    main()
