"""``fastgen generate``: text or pictures in, pictures in a style out; whole data sets, too."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
import numpy as np

from fastgen.cli._app import progress, style_error

__all__ = ["generate"]


@click.command()
@click.option("--text", default=None, help="Characters to draw, one glyph each.")
@click.option(
    "--content",
    multiple=True,
    metavar="FILE",
    help="Content images instead of --text; may be repeated.",
)
@click.option(
    "--style",
    multiple=True,
    metavar="FILE",
    help="Style image; may be repeated. Without it stored styles are drawn by --seed.",
)
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="OUT",
    help="Folder, or a .png for one sheet (a row for each style); with --dataset a folder or .tar.",
)
@click.option(
    "--model", default="saae-mnist", show_default=True, metavar="MODEL", help="Name or checkpoint."
)
@click.option(
    "--mode",
    type=click.Choice(["pairs", "grid"]),
    default="pairs",
    show_default=True,
    help="One style for each content (or for all), or every content in every style.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Chooses stored styles.")
@click.option(
    "--dataset",
    type=click.IntRange(min=1),
    default=None,
    metavar="N",
    help="Write N labelled pictures, ready for training.",
)
@click.option("--resume", is_flag=True, help="Continue an unfinished --dataset.")
@click.option(
    "--mix/--no-mix",
    default=True,
    show_default=True,
    help="In a --dataset: blend two styles at random instead of taking one.",
)
@click.option("--font", default=None, metavar="FILE", help="Font of glyphs the model lacks.")
@click.option("--backend", default="auto", show_default=True, help="auto, cpu or torch.")
@click.option("--precision", default="auto", show_default=True, help="auto, fp32 or bf16.")
@click.option("--threads", type=click.IntRange(min=1), default=None, help="CPU threads.")
def generate(
    text: str | None,
    content: tuple[str, ...],
    style: tuple[str, ...],
    output: str,
    model: str,
    mode: str,
    seed: int,
    dataset: int | None,
    resume: bool,
    mix: bool,
    font: str | None,
    backend: str,
    precision: str,
    threads: int | None,
) -> int:
    """Generate pictures of a content in a style (stylized adversarial autoencoder)."""
    from fastgen.generator import Generator

    if text is not None and content:
        raise click.UsageError("--text and --content exclude each other")
    if text is None and not content and dataset is None:
        raise click.UsageError("give --text, --content or --dataset")
    if resume and dataset is None:
        raise click.UsageError("--resume is for --dataset")
    if dataset is not None and content:
        raise click.UsageError("--dataset takes --text (the characters to draw), not --content")
    try:
        generator = Generator(
            model, backend=backend, precision=precision, threads=threads, font=font
        )
    except ValueError as error:
        raise style_error(error) from None
    if dataset is not None:
        from fastgen.cli._dataset import DatasetJob

        job = DatasetJob(generator, dataset, output, text, list(style), seed, mix)
        _note(generator, job.labels)
        job.run(resume)
        click.echo(f"{job.target}  {dataset} pictures, {len(job.labels)} classes")
        return 0
    contents: Any = text if text is not None else list(content)
    planes = generator.contents(contents) if text is not None else _files(generator, content)
    _note(generator, text or "")
    names = list(text) if text is not None else [Path(f).stem for f in content]
    # Stored styles in a grid: one for each row of a sheet would need a number; one is drawn.
    codes = generator.encode(list(style)) if style else None
    if codes is None:
        codes = generator.stored_styles(len(planes) if mode == "pairs" else 1, seed)
    count = len(planes)
    if mode == "pairs" and len(codes) not in (1, count):
        raise click.UsageError(
            f"{count} contents and {len(codes)} styles make no pairs; give one style or {count}, "
            "or --mode grid"
        )
    if mode == "grid":
        rows, columns = np.divmod(np.arange(len(codes) * count), count)
    else:
        columns = np.arange(count)
        rows = columns if len(codes) == count else np.zeros(count, np.int64)
    images = generator.decode(planes, codes, columns, rows)
    pixels = np.round(images * 255).astype(np.uint8)
    if output.lower().endswith(".png"):
        lines = [
            np.concatenate(list(pixels[i : i + count]), 1) for i in range(0, len(pixels), count)
        ]
        _save(np.concatenate(lines, 0), output)
        click.echo(click.format_filename(output))
        return 0
    if os.path.exists(output) and not os.path.isdir(output):
        raise click.UsageError(f"-o {output} is a file; give a folder or a name ending in .png")
    os.makedirs(output, exist_ok=True)
    line = progress(len(pixels), "picture")
    for number, picture in enumerate(pixels):
        suffix = f"-{rows[number]:02d}" if mode == "grid" else ""
        target = os.path.join(output, f"{number:03d}{suffix}-{_safe(names[columns[number]])}.png")
        line.step(number + 1, target)
        _save(picture, target)
    line.clear()
    click.echo(f"{click.format_filename(output)}  {len(pixels)} pictures")
    return 0


def _note(generator: Any, text: Any) -> None:
    """Says which characters the model does not know."""
    unfamiliar = "".join(generator.unfamiliar(text))
    if unfamiliar:
        known = "".join(generator.info.alphabet)
        click.echo(
            f"note: {generator.info.name} was trained with {known}; {unfamiliar} may come out "
            "wrong",
            err=True,
        )


def _files(generator: Any, files: tuple[str, ...]) -> np.ndarray:
    """Content images; as paths, since strings would be text."""
    return generator.contents([Path(f) for f in files])


def _safe(name: str) -> str:
    """A character as a part of a file name: itself, or its code point."""
    return "".join(c if c.isalnum() or c in "-_" else f"u{ord(c):04x}" for c in name)


def _save(pixels: np.ndarray, target: str) -> None:
    from PIL import Image

    from fastgen.image import save

    save(Image.fromarray(pixels), target)
