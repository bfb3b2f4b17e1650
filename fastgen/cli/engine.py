"""``fastgen engine``: TensorRT engines, built before they are needed."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from fastgen.cli._app import Commands, Size, progress

__all__ = ["build", "clear", "engine", "list_"]


@click.command("build")
@click.option(
    "-s",
    "--style",
    required=True,
    help="Name of a shipped style, or a checkpoint file of any kind.",
)
@click.option(
    "--size",
    "sizes",
    type=Size(),
    multiple=True,
    default=["1280x720"],
    show_default=True,
    help="Size of the frames (repeatable).",
)
@click.option("--batch", type=click.IntRange(1, 1024), default=1, show_default=True)
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "fp16"]),
    default="auto",
    show_default=True,
)
@click.option("--device", type=click.IntRange(0), default=0, show_default=True, help="GPU.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write an engine for other programs, with input and output in [0,1], to this file.",
)
@click.option(
    "--version-compatible",
    is_flag=True,
    help="With -o: the engine also runs in TensorRT's lean runtime and in newer versions.",
)
def build(
    style: str,
    sizes: tuple[tuple[int, int], ...],
    batch: int,
    precision: str,
    device: int,
    output: Path | None,
    version_compatible: bool,
) -> int:
    """Build the engines that a style's frames need, into the cache or a file.

    With TensorRT for RTX no GPU is needed, and the engine serves all GPUs.
    """
    if output is not None and len(sizes) != 1:
        raise click.UsageError("-o takes one --size, the largest that the engine will serve")
    if version_compatible and output is None:
        raise click.UsageError("--version-compatible is for engines in files; name one with -o")
    from fastgen.backends.tensorrt import auto_precision
    from fastgen.checkpoint import load_checkpoint
    from fastgen.styles import style_path

    if precision == "auto":
        precision, _ = auto_precision()
    ckpt = load_checkpoint(style_path(style))
    if output is not None:
        _build_file(ckpt, sizes[0], batch, precision, device, output, version_compatible)
        return 0
    from fastgen.backends.tensorrt import Runner

    runner = Runner(ckpt.graph, ckpt.weights, precision, device)
    for size in sizes:
        start = time.perf_counter()
        with _Steps() as steps:
            key, built = runner.make(_shapes(ckpt.graph, size, batch), steps.step)
        entry = next((e for e in runner.cache.entries() if e.key == key), None)
        how = f"built in {time.perf_counter() - start:.1f} s" if built else "was there already"
        text = _describe(entry.facts) if entry is not None else "not kept: cannot write the cache"
        click.echo(f"{key}  {text}, {how}")
    return 0


def _build_file(
    ckpt: Any,
    size: tuple[int, int],
    batch: int,
    precision: str,
    device: int,
    output: Path,
    version_compatible: bool,
) -> None:
    from fastgen.backends.tensorrt import build_plan
    from fastgen.checkpoint import atomic_write
    from fastgen.exporters.onnx import checkpoint_model

    low, high = ckpt.graph.smallest_shapes(), _shapes(ckpt.graph, size, batch)
    with _Steps() as steps:
        plan = build_plan(
            checkpoint_model(ckpt, fp16=precision == "fp16").SerializeToString(),
            {name: (low[name], high[name], high[name]) for name in low},
            precision=precision,
            device=device,
            version_compatible=version_compatible,
            progress=steps.step,
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(output, plan)
    sizes = ", ".join(f"{n} {'x'.join(map(str, s))}" for n, s in high.items())
    click.echo(f"{output}  {len(plan) / 1e6:.2f} MB, {precision}, up to {sizes}")


class _Steps:
    """A build's progress as a line on stderr."""

    def __init__(self) -> None:
        self._lines: dict[int, progress] = {}

    def __enter__(self) -> _Steps:
        return self

    def __exit__(self, *_: object) -> None:
        for line in self._lines.values():
            line.clear()

    def step(self, phase: str, step: int, steps: int) -> None:
        line = self._lines.setdefault(steps, progress(steps, "step"))
        line.step(step, phase)


def _shapes(graph: Any, size: tuple[int, int], batch: int) -> dict[str, tuple[int, ...]]:
    """Input shapes for frames of a size, padded as the backend pads them."""
    from fastgen.backends import padded_size

    shapes = {n: (batch, *s[1:]) for n, s in graph.smallest_shapes().items()}
    first = graph.inputs[0]
    if len(first.shape) == 4:
        rows, columns = padded_size(graph, size[1], size[0])
        shapes[first.name] = (batch, first.shape[1], rows, columns)
        for item in graph.inputs[1:]:  # equal symbols have equal sizes
            known = {
                d.symbol: s
                for d, s in zip(first.shape, shapes[first.name], strict=True)
                if not isinstance(d, int)
            }
            shapes[item.name] = tuple(
                d if isinstance(d, int) else known.get(d.symbol, s)
                for d, s in zip(item.shape, shapes[item.name], strict=True)
            )
    return shapes


def _describe(facts: dict[str, Any]) -> str:
    if not facts:
        return "damaged"
    sizes = ", ".join(f"{n} {'x'.join(map(str, s))}" for n, s in facts["largest"].items())
    device = "" if facts["device"] == "any" else f" for {facts['device']}"
    return f"{facts['model']} {facts['precision']}, up to {sizes}, {facts['library']}{device}"


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def list_(as_json: bool) -> int:
    """List the engines in the cache, last used first."""
    from fastgen.backends._engines import EngineCache

    cache = EngineCache()
    entries = cache.entries()
    if as_json:
        rows = [{"key": e.key, "bytes": e.bytes, "used": e.used, **e.facts} for e in entries]
        click.echo(json.dumps({"folder": str(cache.folder), "engines": rows}, indent=2))
        return 0
    for entry in entries:
        click.echo(f"{entry.key}  {entry.bytes / 1e6:8.2f} MB  {_describe(entry.facts)}")
    total = sum(e.bytes for e in entries) / 1e6
    click.echo(f"{len(entries)} engines, {total:.2f} of {cache.limit / 1e6:.0f} MB, {cache.folder}")
    return 0


@click.command("clear")
def clear() -> int:
    """Delete all engines and timing caches."""
    from fastgen.backends._engines import EngineCache

    cache = EngineCache()
    click.echo(f"{cache.clear()} engines deleted from {cache.folder}")
    return 0


engine = Commands(
    "engine",
    {
        "build": (
            "fastgen.cli.engine:build",
            "Build engines for a style, into the cache or a file.",
        ),
        "list": ("fastgen.cli.engine:list_", "List the engines in the cache."),
        "clear": ("fastgen.cli.engine:clear", "Delete all engines."),
    },
    help="TensorRT engines: built before they are needed, listed, deleted.",
)
