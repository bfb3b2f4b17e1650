"""``fastgen bench``: latency against PyTorch eager at the same precision, side by side."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import click
from click.core import ParameterSource

from fastgen.cli._app import Size
from fastgen.cli._race import percentile, race, ratio

__all__ = ["bench"]


class _Command(click.Command):
    """Lets several values follow ``--sizes``, ``--networks`` and ``--batches``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        spread: list[str] = []
        option = ""
        for arg in args:
            if arg.startswith("-"):
                option = arg if arg in ("--sizes", "--networks", "--batches") else ""
                spread += [] if option else [arg]
            else:
                spread += [option, arg] if option else [arg]
        return super().parse_args(ctx, spread)


class _Peer(click.ParamType):
    name = "BACKEND[:PRECISION]"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, str]:
        backend, _, precision = str(value).partition(":")
        return backend, precision or "auto"


@click.command(cls=_Command)
@click.option(
    "-s", "--style", default="starry_night", show_default=True, help="Name or checkpoint."
)
@click.option(
    "--size",
    "--sizes",
    "sizes",
    type=Size(),
    multiple=True,
    default=["256x256", "512x512", "1280x720"],
    show_default=True,
    help="Size of the frame (repeatable; several may follow --sizes).",
)
@click.option(
    "--peer",
    "peers",
    type=_Peer(),
    multiple=True,
    help="What is measured against PyTorch (repeatable); every other backend, in every precision "
    "that PyTorch has too, otherwise.",
)
@click.option(
    "--peers",
    "others",
    is_flag=True,
    help="Compare with torch.compile, ONNX Runtime, OpenVINO and ncnn too (in a checkout).",
)
@click.option(
    "--networks",
    type=click.Choice(["full", "half", "small"]),
    multiple=True,
    default=["full"],
    show_default=True,
    help="With --peers: sizes of the style network (several may follow).",
)
@click.option(
    "--generate",
    is_flag=True,
    help="Compare how fast images are generated: the SAAE networks, beside the same programs.",
)
@click.option(
    "--batches",
    type=click.IntRange(1, 4096),
    multiple=True,
    default=[1, 16, 64, 256],
    show_default=True,
    help="With --generate: images of a call (several may follow).",
)
@click.option(
    "--save", is_flag=True, help="With --peers or --generate: write the result file and the page."
)
@click.option(
    "--threads", type=click.IntRange(1, 1024), help="CPU threads of each; all cores otherwise."
)
@click.option(
    "--seconds", type=click.FloatRange(0), default=10.0, show_default=True, help="A size."
)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="At least.")
@click.option("--json", "as_json", is_flag=True, help="Print all rounds as JSON.")
def bench(
    style: str,
    sizes: tuple[tuple[int, int], ...],
    peers: tuple[tuple[str, str], ...],
    others: bool,
    networks: tuple[str, ...],
    generate: bool,
    batches: tuple[int, ...],
    save: bool,
    threads: int | None,
    seconds: float,
    rounds: int,
    as_json: bool,
) -> int:
    """Measure latency against PyTorch eager at the same precision.

    Each runs in a process of its own on the same uint8 frame, in turns; the ratio is the median
    over the rounds of PyTorch's time divided by the peer's, so above 1 is faster than PyTorch.
    PyTorch itself, and a precision that it lacks, are compared with its fp32.
    """
    context = click.get_current_context()
    explicit = {
        name
        for name in context.params
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    if generate and others:
        raise click.UsageError("--peers does not go with --generate; call them one by one")
    mode = "--generate" if generate else "--peers" if others else ""
    refused = {
        "": {"networks": "needs --peers", "batches": "needs --generate", "save": "needs --peers"},
        "--peers": dict.fromkeys(("style", "peers", "batches"), "does not go with --peers"),
        "--generate": dict.fromkeys(
            ("style", "peers", "sizes", "networks"), "does not go with --generate"
        ),
    }[mode]
    for name in sorted(explicit & refused.keys()):
        raise click.UsageError(f"--{name.replace('peers', 'peer')} {refused[name]}")
    common: dict[str, Sequence[Any]] = {"rounds": [rounds], "seconds": [seconds]}
    common |= {"threads": [threads]} if threads else {}
    flags = [*["--json"] * as_json, *["--save"] * save]
    if generate:
        return _compare("generate", [*flags, *_arguments(common | {"batches": batches})])
    if others:
        chosen: dict[str, Sequence[Any]] = {"networks": networks}
        chosen |= {"sizes": [f"{w}x{h}" for w, h in sizes]}
        return _compare("peers", [*flags, *_arguments(chosen | common)])
    from fastgen import backends
    from fastgen.cli import _machine
    from fastgen.cli._app import style_error
    from fastgen.styles import load_style, style_path

    backends.get("torch")  # the baseline; says how to install it
    try:
        path = str(style_path(style))
        load_style(path)  # what is wrong with it is better said before the race
        for name, precision in peers:
            known = ("auto", *backends.get(name).PRECISIONS)
            if precision not in known:
                raise ValueError(
                    f"backend {name!r} has no precision {precision!r}; has {', '.join(known)}"
                )
    except ValueError as error:
        raise style_error(error) from None
    threads = threads or _machine.usable_cores()
    entrants = _entrants(peers)
    tables = []
    peaks = _peaks(threads)
    if not as_json:
        click.echo(f"{_machine.cpu_name()}, {threads} threads, style {style}")
        if peaks:
            rates = ", ".join(f"{name} {peak / 1e9:.0f}" for name, peak in peaks.items())
            click.echo(f"peak multiply-add rates in GFLOP/s: {rates}")
    for width, height in sizes:
        specs = [
            {
                "style": path,
                "backend": backend,
                "precision": precision,
                "threads": threads,
                "width": width,
                "height": height,
            }
            for backend, precision in entrants
        ]
        runners = race(specs, seconds=seconds, rounds=(rounds, 200))
        table = _table(width, height, runners)
        tables.append(table)
        if not as_json:
            for row in table["rows"]:
                click.echo(_line(table, row))
    if as_json:
        facts = {"cpu": _machine.cpu_name(), "threads": threads, "peak_flops": peaks}
        facts |= {"style": style, "versions": _machine.versions(), "sizes": tables}
        click.echo(json.dumps(facts, indent=2))
    return 0


def _arguments(options: Mapping[str, Sequence[Any]]) -> list[str]:
    """The options as a command line."""
    return [text for name, values in options.items() for text in (f"--{name}", *map(str, values))]


def _compare(kind: str, arguments: list[str]) -> int:
    """Runs a package of benchmarks of the source tree, which is not installed with fastgen."""
    import fastgen

    root = Path(fastgen.__file__).resolve().parent.parent
    if not (root / "benchmarks" / kind / "__main__.py").is_file():
        raise FileNotFoundError(f"--{kind} needs the source tree: git clone, then pip install -e .")
    command = [sys.executable, "-m", f"benchmarks.{kind}", *arguments]
    return subprocess.run(command, cwd=root, check=False).returncode


def _entrants(peers: tuple[tuple[str, str], ...]) -> list[tuple[str, str]]:
    """PyTorch at every precision that is compared, then the others; without ``auto``."""
    from fastgen import backends

    eager = backends.get("torch")
    chosen: list[tuple[str, str]] = []
    for name, precision in peers:
        taken = precision
        if precision == "auto":
            taken, _ = backends.get(name).auto_precision()
        chosen.append((name, taken))
    if not peers:
        for name in backends.names():
            if name != "torch" and backends.why_not(name) is None:
                module = backends.get(name)
                able = [p for p in module.PRECISIONS if module.precision_why_not(p) is None]
                chosen += [(name, p) for p in able if p in eager.PRECISIONS]
    baselines = [("torch", p) for _, p in chosen if p in eager.PRECISIONS]
    return list(dict.fromkeys([("torch", "fp32"), *baselines, *chosen]))


def _peaks(threads: int) -> dict[str, float]:
    """Floating-point operations a second of the engine's multiply-add loops, by instruction set."""
    from fastgen.cli import _machine

    module, _ = _machine.engine()
    if module is None:
        return {}
    used = [str(module.Engine(1).isa)]
    if used[0].endswith("_bf16"):  # its loop takes bfloat16 factors; float32 runs as without it
        used.append(used[0].removesuffix("_bf16"))
    return {isa: float(module.peak_flops(isa, threads=threads)) for isa in used}


def _table(width: int, height: int, runners: list[Any]) -> dict[str, Any]:
    eager = {r.info["precision"]: r for r in runners if r.info["backend"] == "torch"}
    rows = []
    for runner in runners:
        middle = median(runner.seconds)
        precision = runner.info["precision"]
        same = runner.info["backend"] != "torch" and precision in eager
        baseline = precision if same else "fp32"
        rows.append(
            {
                "backend": runner.info["backend"],
                "precision": precision,
                "median_s": middle,
                "p95_s": percentile(runner.seconds, 95),
                "fps": 1.0 / middle,
                "mpix_per_s": width * height / 1e6 / middle,
                "ratio": ratio(runner, eager[baseline]),
                "baseline": f"torch {baseline}",
                "memory_bytes": runner.memory,
                "seconds": runner.seconds,
            }
        )
    return {"width": width, "height": height, "rounds": len(runners[0].seconds), "rows": rows}


def _line(table: dict[str, Any], row: dict[str, Any]) -> str:
    size = f"{table['width']}x{table['height']}"
    who = f"{row['backend']} {row['precision']}"
    return (
        f"{size:<10} {who:<12} median {row['median_s'] * 1e3:8.1f} ms  p95 "
        f"{row['p95_s'] * 1e3:8.1f} ms  {row['fps']:6.2f} fps  +{row['memory_bytes'] / 2**20:.0f} "
        f"MiB  {row['ratio']:.2f}x {row['baseline']}"
    )
