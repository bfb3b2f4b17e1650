"""Turns a trained generator into a shipped one: fp16 checkpoint and card.

    python -m fastgen.train.ship_saae digits.safetensors --name saae-mnist --data-note ... \
        --licence ... -o fastgen/generators

Maintainers run this after looking at the pictures; users only need the checkpoint itself.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from fastgen.checkpoint import Checkpoint, atomic_write, load_checkpoint, save_checkpoint

__all__ = ["card"]

MAX_BYTES = 8_000_000


def card(ckpt: Checkpoint) -> dict[str, Any]:
    """The card of a generator as JSON, from its checkpoint."""
    graph, meta = ckpt.graph, ckpt.meta
    provenance = meta["provenance"]
    return {
        "name": meta["name"],
        "licence": meta["licence"],
        "sha256": meta["sha256"],
        "paper": provenance["paper"],
        "network": {
            "model": graph.name,
            "parameters": graph.parameter_count(),
            "million_multiply_adds": round(graph.multiply_adds(graph.smallest_shapes()) / 1e6, 1),
            "stored_style_vectors": meta["style_bank"]["shape"][0],
        },
        "data": provenance["data"],
        "options": provenance["options"],
        "training": provenance["training"],
        "intended_use": "labelled pictures for training and testing recognisers; demonstrations",
        "limits": "draws its alphabet only; other glyphs come out as something between known "
        "ones. Pictures follow the training data with its biases and must not be passed off as "
        "real handwriting of a person.",
    }


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--name", required=True, help="name, e.g. saae-mnist")
@click.option("--licence", required=True, help="terms of the weights")
@click.option("--data-note", required=True, help="what the training images are, and their terms")
@click.option(
    "-o", "--output", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path)
)
def main(checkpoint: Path, name: str, licence: str, data_note: str, output: Path) -> None:
    """Writes CHECKPOINT and its card into the folder of shipped generators."""
    ckpt = load_checkpoint(checkpoint)
    ckpt.meta.update(name=name, licence=licence)
    ckpt.meta["provenance"]["data"]["note"] = data_note
    target = output / f"{name}.safetensors"
    save_checkpoint(target, ckpt, "float16")
    if target.stat().st_size > MAX_BYTES:
        target.unlink()
        raise click.ClickException(f"{name} is larger than {MAX_BYTES} bytes; lower --width")
    text = json.dumps(card(ckpt), indent=2, ensure_ascii=False)
    atomic_write(output / f"{name}.json", (text + "\n").encode())
    click.echo(str(target))


if __name__ == "__main__":
    main()
