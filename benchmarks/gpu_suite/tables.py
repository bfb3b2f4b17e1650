"""From the rows of a run to comparisons, the Markdown page and the short summary."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from benchmarks.op_cases import OPS, by_name
from benchmarks.op_report import describe
from benchmarks.report import ratio, table

__all__ = ["compare", "markdown", "merge", "summary"]

_LAYOUT = {"nchw": "NCHW", "channels_last": "NHWC", "flat": ""}
_PEERS = ("eager", "compile", "copy")


def merge(entries: list[dict[str, Any]], result: dict[str, Any]) -> None:
    """Adds a job's rows to the entry of the same operation, case and type; they replace older."""
    identity = _identity(result)
    new = [_side(row) for row in result["rows"]]
    for entry in entries:
        if _identity(entry) == identity:
            entry["rows"] = [r for r in entry["rows"] if _side(r) not in new] + result["rows"]
            return
    entries.append(result)


def _identity(entry: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in entry.items() if k not in ("rows", "flops", "bytes", "weights")}


def _side(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["side"], row["layout"], row.get("precision")


def _fastest(rows: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    return min((r for r in rows if "p50_us" in r), key=lambda r: r["p50_us"], default=None)


def compare(entry: dict[str, Any], peaks: dict[str, Any]) -> list[dict[str, Any]]:
    """Each implementation of ours at its faster layout, beside its peers at the same precision.

    Returns:
        For each: ``impl``, ``layout``, ``precision``, ``p50_us``, ``tflop_s``, ``gb_s``,
        ``of_roof``, and where there is the peer ``eager_us``, ``compile_us``, ``copy_us`` with
        ``over_eager``, ``over_compile``, ``of_copy``; ``reached`` says for each thing that is asked
        whether it is met.
    """
    found = []
    ours = [r for r in entry["rows"] if r["side"] not in _PEERS]
    for impl in dict.fromkeys(r["side"] for r in ours):
        row = _fastest(r for r in ours if r["side"] == impl)
        if row is None:
            continue
        time, precision = row["p50_us"], row["precision"]
        line = {k: row[k] for k in ("layout", "precision", "p50_us", "call_us", "error")}
        line |= {"impl": impl, "op": entry["op"], "case": entry["case"]}
        line["tflop_s"] = entry["flops"] / time / 1e6
        line["gb_s"] = entry["bytes"] / time / 1e3
        if peaks:
            floor = max(
                entry["flops"] / peaks["tflop_s"][precision] / 1e6,
                entry["bytes"] / peaks["copy_gb_s"] / 1e3,
            )
            line["of_roof"] = floor / time
        for peer in _PEERS:
            same = (r for r in entry["rows"] if r["side"] == peer and r["precision"] == precision)
            best = _fastest(same)
            if best:
                line[f"{peer}_us"] = best["p50_us"]
                line[f"over_{peer}"] = best["p50_us"] / time
        line["reached"] = _reached(line)
        found.append(line)
    return found


def _reached(line: dict[str, Any]) -> dict[str, bool]:
    """What the project asks of this operation on a GPU -> whether it is met, where measured."""
    asked = {
        "gram_matrix": {"of_roof": 0.7, "over_eager": 1.5},
        "concat_features": {"over_copy": 0.9},
    }.get(line["op"], {"over_compile": 1.0, "over_eager": 1.5})
    return {
        f"{key} >= {least:g}": line[key] >= least for key, least in asked.items() if key in line
    }


def _cell(line: dict[str, Any], key: str, form: str) -> str:
    return form.format(line[key]) if key in line else "-"


def op_table(data: dict[str, Any], op: str) -> str:
    """The Markdown table of an operation."""
    header = ["shape", "type", "impl", "memory", "p50 us", "TFLOP/s", "GB/s", "of the roof"]
    header += ["eager us", "speed", "compile us", "speed", "copy us", "of copy", "call us", "error"]
    lines = []
    for entry in data["ops"]:
        if entry["op"] != op:
            continue
        for line in compare(entry, data.get("peaks", {})):
            mark = "" if all(line["reached"].values()) else "**"
            lines.append(
                [
                    describe(by_name(op, line["case"])),
                    line["precision"],
                    line["impl"],
                    _LAYOUT[line["layout"]],
                    f"{mark}{line['p50_us']:.1f}{mark}",
                    f"{line['tflop_s']:.1f}",
                    f"{line['gb_s']:.0f}",
                    _cell(line, "of_roof", "{:.0%}"),
                    _cell(line, "eager_us", "{:.1f}"),
                    ratio(line["over_eager"]) if "over_eager" in line else "-",
                    _cell(line, "compile_us", "{:.1f}"),
                    ratio(line["over_compile"]) if "over_compile" in line else "-",
                    _cell(line, "copy_us", "{:.1f}"),
                    _cell(line, "over_copy", "{:.0%}"),
                    f"{line['call_us']:.1f}",
                    f"{line['error']:.0e}",
                ]
            )
    return table(header, lines) if lines else ""


def network_table(data: dict[str, Any]) -> str:
    """The Markdown table of whole networks."""
    lines = []
    rates = data.get("peaks", {}).get("tflop_s", {})
    for entry in data["networks"]:
        for row in entry["rows"]:
            if "p50_us" in row:
                rate = entry["flops"] / row["p50_us"] / 1e6
                peak = rates.get(entry["precision"])
                images = entry.get("batch", 1)
                lines.append(
                    [
                        _size(entry),
                        entry["precision"],
                        f"{row['side']} {_LAYOUT[row['layout']]}",
                        f"{row['p50_us'] / 1e3:.3f}",
                        f"{row['call_us'] / 1e3:.3f}",
                        f"{images * 1e6 / max(row['p50_us'], row['call_us']):.0f}",
                        f"{rate:.1f}",
                        f"{rate / peak:.0%}" if peak else "-",
                        f"{row['psnr']:.1f}" if "psnr" in row else "-",
                        f"{row['error']:.0e}",
                    ]
                )
    header = ["network", "type", "how", "device ms", "call ms", "images/s", "TFLOP/s"]
    header += ["of the matrix rate", "PSNR dB", "error"]
    return table(header, lines) if lines else ""


def frame_table(data: dict[str, Any]) -> str:
    """The Markdown table of frames of the host."""
    lines = []
    for entry in data.get("frames", []):
        for row in entry["rows"]:
            if "frame_us" in row:
                lines.append(
                    [
                        _size(entry),
                        entry["precision"],
                        row["side"],
                        f"{row['frame_us'] / 1e3:.3f}",
                        f"{1e6 / row['frame_us']:.0f}",
                        f"{row['latency_us'] / 1e3:.3f}",
                        f"{row['psnr']:.1f}",
                    ]
                )
    header = ["network", "type", "how", "ms a frame", "frames/s", "latency ms", "PSNR dB"]
    return table(header, lines) if lines else ""


def _size(entry: dict[str, Any]) -> str:
    batch = entry.get("batch", 1)
    many = f" batch {batch}" if batch > 1 else ""
    return f"{entry['network']} {entry['width']}x{entry['height']}{many}"


def machine_line(data: dict[str, Any]) -> str:
    """One sentence about the machine and the versions."""
    device, host = data["device"], data["host"]
    parts = [str(device.get("device") or host["cpu"])]
    if "capability" in device:
        parts.append("compute capability " + ".".join(map(str, device["capability"])))
        parts.append(f"{device['memory_gib']:.0f} GiB")
    parts += [f"{k} {device[k]}" for k in ("torch", "triton", "cuda", "cudnn") if device.get(k)]
    return ", ".join([*parts, f"{host['cores']} CPU cores", data["date"]])


def _bullets(title: str, items: list[str]) -> list[str]:
    return ["", f"## {title}", "", *(f"- {item}" for item in items)] if items else []


def markdown(data: dict[str, Any], name: str) -> str:
    """The page that lies beside the JSON file."""
    text = [
        f"# {name}: fused operations and networks on a GPU",
        "",
        f"Written by `python -m benchmarks.gpu_suite`; edit nothing here. {machine_line(data)}.",
        "",
        "Times are medians on the device (CUDA events, inputs from memory, not from the cache); "
        "*call us* is the time of calls back to back by the host's clock. *speed* is the faster "
        "layout of PyTorch at the same precision over ours: eager (cuDNN chooses by measuring) "
        "and `torch.compile` (max-autotune), batch norm folded beforehand. tf32 is float32 input "
        "with products rounded to TF32. *of the roof* is the least time that the measured matrix "
        "rate and copy bandwidth allow, divided by ours; *copy* is a plain copy of as many bytes. "
        "**Bold**: below what the project asks.",
    ]
    peaks = data.get("peaks")
    if peaks:
        rates = ", ".join(f"{k} {v:.0f}" for k, v in peaks["tflop_s"].items())
        text += [
            "",
            f"Measured limits: copy {peaks['copy_gb_s']:.0f} GB/s (read + written); matrix "
            f"product {rates} TFLOP/s; an empty measurement {peaks['empty_us']:.1f} us.",
        ]
    text += _bullets("Problems", data["problems"])
    for op in OPS:
        lines = op_table(data, op)
        text += ["", f"## {op}", "", lines] if lines else []
    lines = network_table(data)
    text += ["", "## Networks", "", lines] if lines else []
    lines = frame_table(data)
    said = "uint8 frames of the host, from array to array, the copies overlapped where it can be."
    text += ["", "## Frames", "", said, "", lines] if lines else []
    text += _bullets("For lack of time not done", data["skipped"])
    return "\n".join(text) + "\n"


def summary(data: dict[str, Any]) -> str:
    """What one wants to know first, in a few lines."""
    lines = [machine_line(data)]
    tests = data["parts"].get("tests", {})
    if tests:
        lines.append(
            f"tests: {tests.get('passed', 0)} passed, {len(tests.get('failed', []))} failed, "
            f"{len(tests.get('skipped', []))} skipped, {tests.get('collected', 0)} collected"
        )
    for tool in ("memcheck", "racecheck"):
        found = data["parts"].get(tool, {})
        if found:
            said = "; ".join(found.get("summary", [])) or "not under the checker"
            lines.append(f"{tool}: {found.get('calls', 0)} calls checked, {said}")
    rows = []
    for op in OPS:
        found = [
            line
            for entry in data["ops"]
            if entry["op"] == op
            for line in compare(entry, data.get("peaks", {}))
        ]
        for impl in dict.fromkeys(line["impl"] for line in found):
            mine = [line for line in found if line["impl"] == impl]
            goals: dict[str, list[bool]] = {}
            for line in mine:
                for goal, met in line["reached"].items():
                    goals.setdefault(goal, []).append(met)
            said = ", ".join(f"{g}: {sum(m)}/{len(m)}" for g, m in goals.items())
            worst = min((line["over_eager"] for line in mine if "over_eager" in line), default=0.0)
            speed = "" if data["dry_run"] else f"  least over eager {worst:5.2f}x  {said}"
            rows.append(f"  {op:20} {impl:7} {len(mine):3} rows{speed}")
    lines += ["operations:", *rows] if rows else []
    for kind in ("networks", "frames"):
        lines += [f"{kind}: {len(data[kind])} measured"] if data.get(kind) else []
    lines += [f"skipped: {item}" for item in data["skipped"][:8]]
    more = len(data["skipped"]) - 8
    lines += [f"skipped: ... and {more} more"] if more > 0 else []
    lines += [f"PROBLEM: {item}" for item in data["problems"][:20]]
    more = len(data["problems"]) - 20
    lines += [f"PROBLEM: ... and {more} more"] if more > 0 else []
    lines.append(f"{data.get('elapsed_s', 0):.0f} s, {'FAILED' if data['problems'] else 'passed'}")
    return "\n".join(lines)
