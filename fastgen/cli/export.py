"""``fastgen export``: checkpoints in the formats of other runtimes."""

from __future__ import annotations

import os
from pathlib import Path

import click

from fastgen.cli._app import Commands

__all__ = ["export", "onnx_"]


@click.command("onnx")
@click.option(
    "-s",
    "--style",
    required=True,
    help="Name of a shipped style, or a checkpoint file of any kind.",
)
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="*.onnx to write."
)
@click.option("--fp16", is_flag=True, help="Compute in float16; normalisation stays in float32.")
@click.option(
    "--any-size",
    is_flag=True,
    help="Pad and crop inside the model, so that every size from the smallest on works.",
)
def onnx_(style: str, output: Path, fp16: bool, any_size: bool) -> int:
    """Write a checkpoint as an ONNX model with free batch and image sizes.

    Input and output are float32 RGB in [0,1], (N,3,H,W).
    """
    if output.suffix != ".onnx":
        raise click.UsageError(f"-o {output}: the name must end in .onnx")
    from fastgen.exporters.onnx import describe, export_onnx

    output.parent.mkdir(parents=True, exist_ok=True)
    export_onnx(style, output, fp16=fp16, any_size=any_size)
    size = os.path.getsize(output) / 1e6
    click.echo(f"{output}  {size:.2f} MB  {describe(output)}")
    return 0


export = Commands(
    "export",
    {"onnx": ("fastgen.cli.export:onnx_", "An ONNX model with free batch and image sizes.")},
    help="Write a checkpoint in the format of another runtime.",
)
