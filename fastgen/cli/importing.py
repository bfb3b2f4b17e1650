"""``fastgen import``: checkpoints of other projects."""

from __future__ import annotations

import os
from pathlib import Path

import click

__all__ = ["import_"]

_CALIBRATION_SIDE = 512


@click.command("import")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="*.safetensors to write."
)
@click.option("--name", help="Style name to store; the file's name otherwise.")
@click.option("--licence", help="Terms of the weights to store.")
@click.option(
    "--calibrate",
    type=click.Path(path_type=Path),
    help="Folder of photos: also store activation ranges for int8.",
)
def import_(
    checkpoint: Path, output: Path, name: str | None, licence: str | None, calibrate: Path | None
) -> int:
    """Convert a checkpoint of another project.

    Reads pytorch/examples fast_neural_style and gordicaleksa's Johnson networks. Nothing in the
    file is executed.
    """
    if output.suffix != ".safetensors":
        raise click.UsageError(f"-o {output}: the name must end in .safetensors")
    if output.exists() and checkpoint.exists() and os.path.samefile(output, checkpoint):
        raise click.UsageError(f"-o {output} is the input, which is never overwritten")
    from fastgen.checkpoint import save_checkpoint
    from fastgen.importers import import_checkpoint

    ckpt = import_checkpoint(checkpoint, name=name, licence=licence)
    if calibrate is not None:
        from fastgen.calibrate import calibrate as measure
        from fastgen.image import decode, limit_side, pixels_of

        measure(
            ckpt,
            (
                pixels_of(limit_side(decode(p, max_side=_CALIBRATION_SIDE), _CALIBRATION_SIDE)).rgb
                for p in _photos(calibrate)
            ),
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    # float32: the result is to equal the original network, not to be small.
    save_checkpoint(output, ckpt, dtype="float32")
    click.echo(f"{output}  {ckpt.graph.name}  {ckpt.graph.parameter_count():,} weights")
    return 0


def _photos(folder: Path) -> list[str]:
    from fastgen.cli.stylize import expand

    photos, failures = expand((str(folder),))
    if failures:
        raise ValueError(failures[0][1])
    return photos
