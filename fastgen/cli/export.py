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


@click.command("triton-server")
@click.option(
    "-s",
    "--style",
    required=True,
    help="Name of a shipped style, or a checkpoint file of any kind.",
)
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Model repository: the folder that tritonserver is given.",
)
@click.option("--name", help="Name of the model in the repository (the style's unless given).")
@click.option(
    "--plan",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A TensorRT engine from `fastgen engine build -o`, instead of an ONNX model.",
)
@click.option("--fp16", is_flag=True, help="Compute in float16 (of the ONNX model).")
@click.option("--any-size", is_flag=True, help="Pad and crop inside the ONNX model.")
@click.option(
    "--max-batch",
    type=click.IntRange(1, 1024),
    help="Images that the server may put together: 8, with --plan 1, unless given.",
)
def triton_server(
    style: str,
    output: Path,
    name: str | None,
    plan: Path | None,
    fp16: bool,
    any_size: bool,
    max_batch: int | None,
) -> int:
    """Write a model repository for NVIDIA Triton Inference Server.

    Input and output are float32 RGB in [0,1], (N,3,H,W).
    """
    if plan is not None and (fp16 or any_size):
        raise click.UsageError("--fp16 and --any-size are for ONNX models; a plan is as it is")
    from fastgen.exporters.triton_server import export_triton_server

    folder = export_triton_server(
        style, output, name=name, plan=plan, fp16=fp16, any_size=any_size, max_batch=max_batch
    )
    click.echo(f"{folder}  (tritonserver --model-repository={output.resolve()})")
    return 0


export = Commands(
    "export",
    {
        "onnx": ("fastgen.cli.export:onnx_", "An ONNX model with free batch and image sizes."),
        "triton-server": (
            "fastgen.cli.export:triton_server",
            "A model repository for NVIDIA Triton Inference Server.",
        ),
    },
    help="Write a checkpoint in the format of another runtime.",
)
