"""``fastgen stylize``: photos in, paintings out."""

from __future__ import annotations

import glob
import json
import os
import time
from pathlib import Path
from typing import Any

import click

from fastgen.cli._app import debugging, one_line, progress, report, style_error
from fastgen.image import (
    DEFAULT_MAX_PIXELS,
    READ_SUFFIXES,
    WRITE_SUFFIXES,
    decode,
    is_output_suffix,
    limit_side,
    save,
)

__all__ = ["expand", "plan", "stylize"]

DEFAULT_STYLE = "starry_night"
_WILD = "*?["


@click.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option(
    "-o", "--output", required=True, metavar="OUT", help="File for one photo, folder for several."
)
@click.option(
    "-s",
    "--style",
    "styles",
    multiple=True,
    help=f"Name or checkpoint [default: {DEFAULT_STYLE}]; several with --mask.",
)
@click.option("--blend", metavar="A=W,B=W", help="Mix of several styles, by weights.")
@click.option("--mask", "masks", multiple=True, help="Where each --style is seen: a picture.")
@click.option("--feather", type=float, default=0, metavar="PIXELS", help="Soft edges of the mask.")
@click.option("--stroke-size", type=float, help="Size of strokes in the picture; 1 as in training.")
@click.option("--strength", type=float, default=1.0, show_default=True, help="0 photo, 1 painting.")
@click.option("--preserve-color", is_flag=True, help="Keep the colours of the photo.")
@click.option("--color-keep", type=float, help="Keep a part of them: 0 none, 1 all.")
@click.option("--max-side", type=click.IntRange(1), help="Shrink photos to this longer side first.")
@click.option("--backend", default="auto", show_default=True, help="auto, cpu or torch.")
@click.option("--precision", default="auto", show_default=True, help="auto, fp32, bf16, ...")
@click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads.")
@click.option(
    "--band-rows",
    default="auto",
    show_default=True,
    metavar="ROWS",
    help="Work on so many rows at a time, to save memory; auto, none or a number.",
)
@click.option(
    "--recompute",
    type=click.Choice(("auto", "full")),
    default="auto",
    show_default=True,
    help="What runs in bands compute again: full takes the least memory.",
)
@click.option(
    "--max-pixels",
    type=click.IntRange(1),
    default=DEFAULT_MAX_PIXELS,
    show_default=True,
    help="Refuse larger files.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
def stylize(
    inputs: tuple[str, ...],
    output: str,
    styles: tuple[str, ...],
    blend: str | None,
    masks: tuple[str, ...],
    feather: float,
    stroke_size: float | None,
    strength: float,
    preserve_color: bool,
    color_keep: float | None,
    max_side: int | None,
    backend: str,
    precision: str,
    threads: int | None,
    band_rows: str,
    recompute: str,
    max_pixels: int,
    as_json: bool,
) -> int:
    """Paint photos in a style.

    INPUT is a photo, a folder (its photos, not those in folders below) or a pattern such as
    'trip/*.jpg'. The result has the size of the photo. A file that fails does not stop the others.
    """
    from fastgen.stylizer import Stylizer, check_color, check_strength

    try:
        check_strength(strength)
        check_color(0.0 if color_keep is None else color_keep)
        bands = _band_options(band_rows, recompute)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    style: Any = styles[0] if styles else DEFAULT_STYLE
    options: dict[str, Any] = {"strength": strength, "preserve_color": preserve_color}
    if len(styles) > 1 or masks or blend is not None or feather or stroke_size is not None:
        from fastgen.cli._controls import choose

        style, controls = choose(
            styles, DEFAULT_STYLE, blend, masks, feather, stroke_size, moving=False
        )
        options |= controls
    if color_keep is not None:
        from fastgen.cli._controls import color

        options["preserve_color"] = color(preserve_color, color_keep)
    photos, failures = expand(inputs)
    jobs = plan(photos, output, _wants_folder(inputs, output)) if photos else []
    for _, text in failures:
        report(text)
    records: list[dict[str, Any]] = [{"input": n, "error": t} for n, t in failures]
    info: dict[str, Any] = {}
    if jobs:
        try:
            stylizer = Stylizer(
                style, backend=backend, precision=precision, threads=threads, **bands
            )
        except ValueError as error:
            raise style_error(error) from None
        info = stylizer.info.as_dict()
        line = progress(len(jobs), "photo")
        for number, (source, target) in enumerate(jobs, 1):
            line.step(number, source)
            start = time.perf_counter()
            try:
                photo = decode(source, max_pixels=max_pixels, max_side=max_side)
                if max_side is not None:
                    photo = limit_side(photo, max_side)
                result = stylizer(photo, max_pixels=max_pixels, **options)
                width, height = result.size
                in_bands = stylizer.band_info(width, height, stroke_size)
                save(result, target)
            except (OSError, ValueError, MemoryError) as error:
                line.clear()
                text = one_line(error)
                if source not in text and target not in text:
                    text = f"{source}: {text}"
                if debugging():
                    report(error)
                else:
                    report(text)
                records.append({"input": source, "error": text})
                continue
            seconds = time.perf_counter() - start
            records.append(
                {
                    "input": source,
                    "output": target,
                    "width": width,
                    "height": height,
                    "seconds": round(seconds, 4),
                    "bands": in_bands.as_dict() if in_bands else None,
                }
            )
            line.clear()
            if not as_json:
                name = click.format_filename(target)
                click.echo(f"{name}  {width}x{height}  {seconds:.2f} s")
                if in_bands:
                    click.echo(f"  in {in_bands}")
    if as_json:
        click.echo(json.dumps({**info, "files": records}, indent=2))
    return 1 if any("error" in r for r in records) else 0


def _band_options(band_rows: str, recompute: str) -> dict[str, Any]:
    from fastgen.backends._bands import check_bands

    rows: int | str | None = None if band_rows == "none" else band_rows
    if band_rows.lstrip("-").isdigit():
        rows = int(band_rows)
    elif band_rows not in ("auto", "none"):
        raise ValueError(f"--band-rows is {band_rows!r}, must be auto, none or a number of rows")
    check_bands(rows, recompute)
    return {"band_rows": rows, "recompute": recompute}


def expand(inputs: tuple[str, ...]) -> tuple[list[str], list[tuple[str, str]]]:
    """Files of all inputs in order, without repetition, and (input, error) for those without."""
    found: dict[str, None] = {}
    failures = []
    for item in inputs:
        if os.path.isdir(item):
            names = sorted(os.listdir(item))
            files = [os.path.join(item, n) for n in names if n.lower().endswith(READ_SUFFIXES)]
            files = [f for f in files if not os.path.isdir(f)]
            if not files:
                failures.append((item, f"{item}: no images in this folder"))
        elif not os.path.lexists(item) and any(c in item for c in _WILD):
            files = [f for f in sorted(glob.glob(item, recursive=True)) if os.path.isfile(f)]
            if not files:
                failures.append((item, f"{item}: no file matches"))
        else:
            files = [item]
            if not os.path.exists(item):
                failures.append((item, f"{item or repr(item)}: no such file"))
                continue
        found.update(dict.fromkeys(files))
    return list(found), failures


def _wants_folder(inputs: tuple[str, ...], output: str) -> bool:
    several = len(inputs) > 1 or os.path.isdir(inputs[0]) or not os.path.lexists(inputs[0])
    return several or os.path.isdir(output) or output.endswith(("/", os.sep))


def plan(photos: list[str], output: str, folder: bool) -> list[tuple[str, str]]:
    """Pairs of input and output file.

    In a folder an output keeps the name of its input; formats that are not written become PNG.

    Raises:
        click.UsageError: a suffix that cannot be written, a file where a folder is needed, two
            photos with one output, or an output that is one of the inputs.
    """
    if not folder:
        if not is_output_suffix(output):
            suffix = os.path.splitext(output)[1]
            what = repr(suffix) if suffix else "a file without suffix"
            raise click.UsageError(
                f"-o {output!r}: cannot write {what}; use one of "
                f"{' '.join(WRITE_SUFFIXES)}, or end the name with / for a folder"
            )
        jobs = [(photos[0], output)]
    else:
        if is_output_suffix(output) and not os.path.isdir(output):
            raise click.UsageError(f"-o {output} is a file name, several photos need a folder")
        if os.path.exists(output) and not os.path.isdir(output):
            raise click.UsageError(f"-o {output} is a file, several photos need a folder")
        jobs = []
        taken: dict[str, str] = {}
        for photo in photos:
            name = Path(photo).name
            if not is_output_suffix(name):
                name = Path(name).with_suffix(".png").name
            target = os.path.join(output, name)
            if target in taken:
                raise click.UsageError(
                    f"{taken[target]} and {photo} would both be written to {target}; "
                    "use two output folders"
                )
            taken[target] = photo
            jobs.append((photo, target))
    sources = {_identity(photo): photo for photo in photos}
    for _, target in jobs:
        if _identity(target) in sources:
            raise click.UsageError(f"-o {output}: {target} is an input, which is never overwritten")
    return jobs


def _identity(path: str) -> object:
    """Equal for two names of one file, through symbolic and hard links."""
    try:
        state = os.stat(path)
    except OSError:
        return os.path.realpath(path)
    return state.st_dev, state.st_ino
