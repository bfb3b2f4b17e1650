"""``fastgen parity``: each style, backend and precision against PyTorch fp32 on real photos."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import click

__all__ = ["GATES", "parity", "verdict"]

# Precision -> what must hold on the 0..255 scale: largest error, PSNR in dB, SSIM.
GATES: dict[str, dict[str, float]] = {
    "fp32": {"max_abs": 0.02},
    "bf16": {"psnr": 40.0},
    "fp16": {"psnr": 40.0},
    "int8": {"psnr": 30.0, "ssim": 0.95},
    "fp8": {"psnr": 30.0, "ssim": 0.95},
}


@click.command()
@click.option(
    "-s", "--style", "styles", multiple=True, help="Name or checkpoint; all shipped else."
)
@click.option(
    "--photos",
    type=click.Path(path_type=Path),
    help="Photo, folder or pattern; the example photo otherwise.",
)
@click.option("--backend", "names", multiple=True, help="Only this backend (repeatable).")
@click.option(
    "--precision",
    "precisions",
    type=click.Choice(list(GATES)),
    multiple=True,
    help="Only this precision (repeatable).",
)
@click.option("--max-side", type=click.IntRange(16), default=512, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def parity(
    styles: tuple[str, ...],
    photos: Path | None,
    names: tuple[str, ...],
    precisions: tuple[str, ...],
    max_side: int,
    as_json: bool,
) -> int:
    """Compare every backend with PyTorch fp32.

    Gates: fp32 max error 0.02 of 255; bf16 and fp16 PSNR 40 dB; int8 and fp8 PSNR 30 dB and SSIM
    0.95. Exit code 1 when one fails.
    """
    from fastgen import backends
    from fastgen.styles import list_styles

    unknown = [n for n in names if n not in backends.names()]
    if unknown:
        raise click.UsageError(
            f"unknown backend {unknown[0]!r}; known: {', '.join(backends.names())}"
        )
    backends.get("torch")  # the reference; says how to install it
    chosen = styles or tuple(list_styles())
    if not chosen:
        raise click.UsageError(
            "no style is shipped with this build; name a checkpoint with --style"
        )
    pictures = _pictures(photos, max_side)
    rows: list[dict[str, Any]] = []
    for style in chosen:
        for row in _compare(style, names or backends.names(), precisions, pictures):
            rows.append(row)
            if not as_json:
                click.echo(_line(row))
    passed = all(row["passed"] for row in rows)
    if as_json:
        click.echo(json.dumps({"passed": passed, "photos": len(pictures), "rows": rows}, indent=2))
    elif not rows:
        click.echo("nothing to compare: no other backend can run here (see fastgen doctor)")
    return 0 if passed else 1


def _pictures(photos: Path | None, max_side: int) -> list[Any]:
    import numpy as np

    from fastgen.cli._machine import example_photo
    from fastgen.cli.stylize import expand
    from fastgen.image import decode, limit_side, pixels_of

    files, failures = expand((str(photos) if photos is not None else str(example_photo()),))
    if failures:
        raise FileNotFoundError(failures[0][1])
    result = []
    for file in files:
        rgb = pixels_of(limit_side(decode(file, max_side=max_side), max_side)).rgb
        result.append(rgb[None].astype(np.float32) / np.float32(255.0))
    return result


def _compare(
    style: str, names: tuple[str, ...], precisions: tuple[str, ...], pictures: list[Any]
) -> list[dict[str, Any]]:
    from fastgen import backends
    from fastgen.cli._app import style_error
    from fastgen.errors import FastgenError
    from fastgen.styles import load_style

    try:
        ckpt = load_style(style)
    except ValueError as error:
        raise style_error(error) from None
    io = backends.ImageIO(tuple(ckpt.meta["input_range"]), tuple(ckpt.meta["output_range"]))
    reference = backends.get("torch").compile(ckpt.graph, ckpt.weights, "fp32")
    wanted = [reference.run(picture, io) for picture in pictures]
    rows = []
    for name in names:
        why_not = backends.why_not(name)
        if why_not is not None:
            continue
        module = backends.get(name)
        for precision in module.PRECISIONS:
            if (name, precision) == ("torch", "fp32") or precision not in (precisions or GATES):
                continue
            row: dict[str, Any] = {"style": style, "backend": name, "precision": precision}
            try:
                runner = module.compile(ckpt.graph, ckpt.weights, precision, None, ckpt.ranges)
            except FastgenError as error:
                # A precision that this processor lacks, say: not a failure, but not silent.
                rows.append({**row, "passed": True, "skipped": str(error)})
                continue
            results = [runner.run(picture, io) for picture in pictures]
            runner.close()
            rows.append({**row, **verdict(precision, wanted, results)})
    return rows


def verdict(precision: str, wanted: list[Any], results: list[Any]) -> dict[str, Any]:
    """The worst numbers over all photos, and whether they pass the gate of the precision.

    Args:
        precision: a key of ``GATES``.
        wanted: float batches (N, H, W, 3) in 0..1 of the reference.
        results: the same from what is tested.
    """
    from fastgen import metrics

    worst = {"max_abs": 0.0, "psnr": math.inf, "ssim": 1.0}
    for reference, result in zip(wanted, results, strict=True):
        for a, b in zip(reference * 255.0, result * 255.0, strict=True):
            worst["max_abs"] = max(worst["max_abs"], metrics.max_abs(a, b))
            worst["psnr"] = min(worst["psnr"], metrics.psnr(a, b))
            if min(a.shape[:2]) >= 11:
                worst["ssim"] = min(worst["ssim"], metrics.ssim(a, b))
    passed = all(
        worst[key] <= limit if key == "max_abs" else worst[key] >= limit
        for key, limit in GATES[precision].items()
    )
    # JSON has no infinity: equal pictures have no PSNR.
    psnr = None if math.isinf(worst["psnr"]) else round(worst["psnr"], 2)
    return {
        "max_abs": round(worst["max_abs"], 6),
        "psnr": psnr,
        "ssim": round(worst["ssim"], 6),
        "gate": GATES[precision],
        "passed": passed,
    }


def _line(row: dict[str, Any]) -> str:
    head = f"{row['style']:<28} {row['backend']:<7} {row['precision']:<5}"
    if "skipped" in row:
        return f"{head} skipped: {row['skipped']}"
    psnr = "equal" if row["psnr"] is None else f"{row['psnr']:.1f} dB"
    mark = "pass" if row["passed"] else "FAIL"
    return f"{head} max {row['max_abs']:.4f}  PSNR {psnr:<9} SSIM {row['ssim']:.4f}  {mark}"
