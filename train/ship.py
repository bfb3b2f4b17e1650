"""Turns a trained style into a shipped one: fp16 checkpoint and card.

    python -m fastgen.train.ship wave.safetensors --name great_wave --title ... -o fastgen/styles

Maintainers run this after looking at the pictures; users only need the checkpoint itself.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from fastgen.calibrate import calibrate
from fastgen.checkpoint import atomic_write, load_checkpoint, save_checkpoint
from fastgen.train.data import PhotoSet, batch_at
from fastgen.train.style import RANGE_CROPS, training_history

__all__ = ["card"]

_RANGE_SIDE = 256


def card(meta: dict[str, Any], graph_name: str, parameters: int, megamacs: int) -> dict[str, Any]:
    """The card of a style as JSON, from its checkpoint's metadata.

    Args:
        meta: the checkpoint's metadata, with ``provenance`` as ``fastgen train style`` writes it.
        graph_name: the model.
        parameters: number of weights.
        megamacs: million multiply-adds for a 256x256 image.
    """
    provenance = meta["provenance"]
    return {
        "style": meta["style"],
        "licence": meta["licence"],
        "sha256": meta["sha256"],
        "painting": provenance["painting"],
        "network": {
            "model": graph_name,
            "parameters": parameters,
            "million_multiply_adds_256x256": megamacs,
        },
        "photos": provenance["photos"],
        "loss_network": provenance["loss_network"],
        "objective": provenance["objective"],
        "training": provenance["training"],
        "intended_use": "turning photos and video frames into pictures in the painting's manner",
        "limits": "faces lose detail; flat areas such as skies are filled with brushwork; every "
        "video frame is stylised on its own, so video flickers (--stabilize steadies it)",
    }


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--name", required=True, help="style name, e.g. great_wave.small")
@click.option("--title", required=True, help="title of the painting")
@click.option("--artist", required=True, help="painter and year of death")
@click.option("--year", required=True, help="year of the painting")
@click.option(
    "--earlier",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="checkpoints of the runs before, oldest first, when the checkpoint does not list them",
)
@click.option("--licence", default="Apache-2.0", show_default=True)
@click.option("--painting-terms", default="public domain (the artist died over 70 years ago)")
@click.option("--photos-note", required=True, help="what the photos are, and their terms")
@click.option("--vgg-note", required=True, help="where the loss network is from, and its terms")
@click.option(
    "--ranges",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="folder of photos to measure activation ranges with, where training did not store them",
)
@click.option(
    "-o", "--output", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path)
)
def main(
    checkpoint: Path,
    name: str,
    title: str,
    artist: str,
    year: str,
    earlier: tuple[Path, ...],
    licence: str,
    painting_terms: str,
    photos_note: str,
    vgg_note: str,
    ranges: Path | None,
    output: Path,
) -> None:
    """Writes CHECKPOINT and its card into the folder of shipped styles."""
    ckpt = load_checkpoint(checkpoint)
    provenance = ckpt.meta["provenance"]
    provenance["painting"].update(title=title, artist=artist, year=year, terms=painting_terms)
    if earlier:
        runs = [training_history(load_checkpoint(path))[-1] for path in earlier]
        provenance["training"].pop("init", None)
        provenance["training"]["earlier"] = runs
    provenance["photos"]["note"] = photos_note
    provenance["loss_network"]["note"] = vgg_note
    ckpt.meta.update(style=name, licence=licence)
    if ranges is not None:
        calibrate(ckpt, batch_at(PhotoSet(ranges), 0, _RANGE_SIDE, RANGE_CROPS, 0))
    save_checkpoint(output / f"{name}.safetensors", ckpt, "float16")
    megamacs = round(ckpt.graph.multiply_adds({"image": (1, 3, 256, 256)}) / 1e6)
    content = card(ckpt.meta, ckpt.graph.name, ckpt.graph.parameter_count(), megamacs)
    atomic_write(output / f"{name}.json", (json.dumps(content, indent=2) + "\n").encode())
    click.echo(f"{output / name}.safetensors")


if __name__ == "__main__":
    main()
