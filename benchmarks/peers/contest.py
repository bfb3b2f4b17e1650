"""Lets all programs take turns on one network and size after the other."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from benchmarks.networks import ARCHITECTURES, network
from benchmarks.peers.programs import OURS, PROGRAMS, Program, why_not
from fastgen import backends, models
from fastgen.cli._machine import example_photo
from fastgen.cli._race import Process, percentile, take_turns
from fastgen.errors import FastgenError
from fastgen.styles import load_style, style_path

__all__ = ["contest"]

Size = tuple[int, int]  # width, height


def contest(
    architectures: Sequence[str],
    sizes: Sequence[Size],
    *,
    threads: int,
    seconds: float,
    rounds: tuple[int, int],
    programs: Sequence[Program] = PROGRAMS,
    progress: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Measures all programs on every network and size.

    Args:
        architectures: sizes of the style network.
        sizes: of the photo.
        threads: of every program.
        seconds: for the rounds of a network and size, about.
        rounds: at least and at most so many, whatever the time.
        programs: what is compared.
        progress: is told what is being done.

    Returns:
        A row for each network, size and program: ``network``, ``weights``, ``size``, ``program``,
        ``precision``; then ``refused`` (why it was not measured) or ``median_s``, ``p95_s``,
        ``gmac_s``, ``seconds`` (all rounds), ``max_abs``, ``psnr``, ``ssim``, ``gate``,
        ``passed``, ``build_s``; and for ours ``best_peer`` of the same precision with ``ratio``,
        the median over the rounds of its time divided by ours (above 1: we are faster); int8
        has ``best_peer_bf16`` and ``ratio_bf16`` too.

    Raises:
        FastgenError: PyTorch, the reference, is not installed, or a process ended.
    """
    torch = backends.get("torch")
    refused = {program.key: why_not(program) for program in programs}
    able = [program for program in programs if refused[program.key] is None]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for architecture in architectures:
            style, weights = network(architecture, folder)
            checkpoint = load_style(style)
            reference = torch.compile(checkpoint.graph, checkpoint.weights, "fp32", threads)
            low, high = checkpoint.meta["input_range"]
            processes: dict[str, Process] = {}
            try:
                for program in able:
                    spec: dict[str, Any] = {"program": program.key, "threads": threads}
                    spec |= {"checkpoint": str(style_path(style))}
                    processes[program.key] = Process("benchmarks.peers.side", spec)
                for size in sizes:
                    photo = _photo(size) * np.float32((high - low) / 255.0) + np.float32(low)
                    np.save(folder / "photo.npy", photo)
                    np.save(folder / "reference.npy", reference.run(photo))
                    table = _table(processes, folder, refused, seconds, rounds, progress)
                    cost = _multiply_adds(architecture, size)
                    common = {"network": architecture, "weights": weights}
                    common |= {"size": f"{size[0]}x{size[1]}"}
                    rows += [common | row for row in finish(programs, table, cost)]
            finally:
                reference.close()
                for process in processes.values():
                    process.close()
    return rows


def _table(
    processes: dict[str, Process],
    folder: Path,
    refused: dict[str, str | None],
    seconds: float,
    rounds: tuple[int, int],
    progress: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """For each program what was found about its result, and its rounds; or ``refused``."""
    found: dict[str, dict[str, Any]] = {k: {"refused": v} for k, v in refused.items() if v}
    order = {"photo": str(folder / "photo.npy"), "reference": str(folder / "reference.npy")}
    for key, process in processes.items():
        progress(f"preparing {key}")
        try:
            found[key] = process.ask(json.dumps(order))
        except FastgenError as error:
            found[key] = {"refused": f"failed: {error}"}
    able = [key for key in processes if "refused" not in found[key]]
    progress("taking turns")
    times = take_turns([partial(processes[key].ask, "step") for key in able], seconds, rounds)
    for key, values in zip(able, times, strict=True):
        found[key]["seconds"] = values
    return found


def finish(
    programs: Sequence[Program], table: dict[str, dict[str, Any]], cost: float
) -> list[dict[str, Any]]:
    """Rows of the programs with what follows from their rounds.

    Args:
        programs: in the order of the rows.
        table: by program key: ``refused``, or ``seconds`` and what was found about the result.
        cost: multiply-adds of a run.
    """
    middle = {k: median(v["seconds"]) for k, v in table.items() if "seconds" in v}
    rows = []
    for program in programs:
        row = {"program": program.name, "precision": program.precision} | table[program.key]
        if program.key in middle:
            row["median_s"] = middle[program.key]
            row["p95_s"] = percentile(row["seconds"], 95)
            row["gmac_s"] = cost / middle[program.key] / 1e9
            # int8 is no good where bf16 is as fast, so it is compared with both.
            compared = [("", program.precision)] + [("_bf16", "bf16")] * (
                program.precision == "int8"
            )
            for suffix, precision in compared if program.name == OURS else ():
                peers = [
                    peer.key
                    for peer in programs
                    if peer.key in middle and peer.name != OURS and peer.precision == precision
                ]
                if peers:
                    best = min(peers, key=middle.__getitem__)
                    pairs = zip(table[best]["seconds"], row["seconds"], strict=True)
                    row[f"best_peer{suffix}"] = best
                    row[f"ratio{suffix}"] = median(theirs / ours for theirs, ours in pairs)
        rows.append(row)
    return rows


def _photo(size: Size) -> np.ndarray:
    """The example photo at this size, float32 (1,3,H,W), 0..255."""
    with Image.open(example_photo()) as image:
        fitted = ImageOps.fit(image.convert("RGB"), size, Image.Resampling.LANCZOS)
    return np.ascontiguousarray(np.asarray(fitted, np.float32).transpose(2, 0, 1)[None])


def _multiply_adds(architecture: str, size: Size) -> float:
    builder, config = ARCHITECTURES[architecture]
    width, height = size
    return float(models.create(builder, **config).multiply_adds({"image": (1, 3, height, width)}))
