"""Options of the training commands as dataclasses, and click commands generated from them.

This module imports no torch: ``fastgen train style --help`` must be quick. Every field carries a
one-line ``help`` in its metadata; ``choices`` and ``short`` are optional.
"""
# ruff: noqa: RUF009  (option() is dataclasses.field() with a help text)

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any

import click

DEFAULT_STYLE_LAYERS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3")
DEFAULT_CONTENT_LAYERS = ("relu2_2",)


def option(default: Any = MISSING, *, help: str, **metadata: Any) -> Any:
    """A dataclass field with its help text; without ``default`` the option is required."""
    metadata["help"] = help
    if default is MISSING:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class ObjectiveOptions:
    """What is minimised: the loss network, its layers and the balance of Eq. 9."""

    vgg: Path | None = option(
        None, help="VGG-16 or VGG-19 weights, .safetensors or .pth (default: see docs/training.md)"
    )
    assume_normalisation: str | None = option(
        None,
        help="input convention of --vgg when its metadata lacks it, or to overrule the check",
        choices=("caffe", "torchvision"),
    )
    style_size: int = option(384, help="shorter side in pixels to which the painting is scaled")
    style_layers: tuple[str, ...] = option(
        DEFAULT_STYLE_LAYERS, help="relu layers of the style loss, comma separated"
    )
    content_layers: tuple[str, ...] = option(
        DEFAULT_CONTENT_LAYERS, help="relu layers of the feature loss, comma separated"
    )
    style_strength: float = option(
        1.0, help="multiplies the calibrated style weight: 0.5 is milder, 2 is wilder"
    )
    layer_weights: tuple[float, ...] = option(
        (), help="relative weight of each style layer, comma separated (default: all 1)"
    )
    tv_strength: float = option(1.0, help="multiplies the calibrated total-variation weight")


@dataclass
class StyleOptions(ObjectiveOptions):
    """Options of ``fastgen train style``: one network for one painting (Johnson et al. 2016)."""

    style: Path = option(Path(), help="the painting", required=True)
    content: Path = option(Path(), help="training photos: a folder or a .tar", required=True)
    output: Path = option(
        Path(), help="checkpoint to write (.safetensors)", required=True, short="o"
    )
    model: str = option("transformer_net", help="network to train, see `fastgen.models`")
    width: int | None = option(
        None, help="channels of the first layer (default: 16 for transformer_net)"
    )
    norm: str = option("instance", help="normalisation layers", choices=("instance", "batch"))
    init: Path | None = option(None, help="start from the weights of this checkpoint")
    size: int = option(160, help="side of the square training crops in pixels")
    steps: int = option(2000, help="optimiser steps at --size")
    batch: int = option(4, help="crops a step (on each process)")
    finish_size: int = option(256, help="side of the crops of the last stage")
    finish_steps: int = option(400, help="optimiser steps of the last stage, 0 for none")
    finish_batch: int | None = option(
        None, help="crops a step in the last stage (default: as many pixels as --batch at --size)"
    )
    optimizer: str = option(
        "adam", help="adam, or muon to finish a network of --init", choices=("adam", "muon")
    )
    lr: float = option(1e-3, help="learning rate")
    decay: float = option(
        0.6, help="fraction of all steps, at the end, with cosine decay of the rate"
    )
    clip: float = option(
        10.0, help="gradients with a larger norm are scaled down to it, 0 for never"
    )
    precision: str = option("bf16", help="bf16 autocast or plain fp32", choices=("bf16", "fp32"))
    device: str = option("auto", help="auto, cpu, cuda or cuda:N")
    threads: int | None = option(None, help="CPU threads (default: torch decides)")
    seed: int = option(0, help="seed of the initial weights and of the crops")
    run_dir: Path | None = option(
        None, help="folder for state, previews and log (default: OUTPUT without suffix + .run)"
    )
    resume: bool = option(False, help="continue from the state in the run folder")
    save_every: int = option(200, help="steps between saved states")
    preview: Path | None = option(
        None, help="folder or .tar of preview photos (default: four photos held out of --content)"
    )
    preview_every: int = option(200, help="steps between preview pictures, 0 for none")
    log_every: int = option(50, help="steps between lines of the log")
    tensorboard: bool = option(False, help="write TensorBoard events into the run folder")
    name: str | None = option(None, help="style name stored in the checkpoint (default: file name)")
    title: str | None = option(None, help="title of the painting, for the card")
    artist: str | None = option(None, help="painter, for the card")
    year: str | None = option(None, help="year of the painting, for the card")
    licence: str = option("", help="terms of the resulting checkpoint, for the card")
    photos_note: str = option("", help="what the photos are and their terms, for the card")
    vgg_note: str = option("", help="terms of the loss network, for the card")
    quiet: bool = option(False, help="no progress on stderr")


@dataclass
class GatysOptions(ObjectiveOptions):
    """Options of ``fastgen train gatys``: one picture by projected L-BFGS on Eq. 9."""

    style: Path = option(Path(), help="the painting", required=True)
    content: Path = option(Path(), help="the photo", required=True)
    output: Path = option(Path(), help="picture to write", required=True, short="o")
    size: int = option(
        512, help="longer side of the result in pixels; smaller photos keep their size"
    )
    iterations: int = option(500, help="L-BFGS iterations, at most 500")
    start: str = option("noise", help="first picture", choices=("noise", "content"))
    calibrate: Path | None = option(
        None, help="photos whose features set the content unit (default: the photo itself)"
    )
    device: str = option("auto", help="auto, cpu, cuda or cuda:N")
    threads: int | None = option(None, help="CPU threads (default: torch decides)")
    seed: int = option(0, help="seed of the noise")
    quiet: bool = option(False, help="no progress on stderr")


@dataclass
class EvalStyleOptions:
    """Options of ``fastgen eval style``: Eq. 9 of a network against L-BFGS on held-out photos."""

    checkpoints: tuple[Path, ...] = option(
        (), help="style checkpoints, all trained for one painting", required=True, argument=True
    )
    style: Path | None = option(None, help="the painting", required=True)
    photos: Path | None = option(
        None, help="held-out photos: a folder or a .tar (default: BSDS test in $FASTGEN_DATA)"
    )
    output: Path | None = option(
        None, help="report to write (.json; a .md is written beside it)", short="o"
    )
    vgg: Path | None = option(None, help="loss network (default: as in training)")
    assume_normalisation: str | None = option(
        None, help="input convention of --vgg", choices=("caffe", "torchvision")
    )
    count: int = option(20, help="number of photos, the first by name")
    size: int = option(256, help="photos are scaled and centre-cropped to this square")
    iterations: int = option(50, help="L-BFGS iterations from noise")
    seeds: int = option(1, help="noise images a photo")
    baseline: Path | None = option(
        None, help="report whose L-BFGS curves are reused when painting and objective are the same"
    )
    device: str = option("auto", help="auto, cpu, cuda or cuda:N")
    threads: int | None = option(None, help="CPU threads (default: torch decides)")
    quiet: bool = option(False, help="no progress on stderr")


class _Numbers(click.ParamType):
    name = "a,b,..."

    def __init__(self, item: type) -> None:
        self.item = item

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[Any, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(self.item(part.strip()) for part in str(value).split(",") if part.strip())
        except ValueError:
            self.fail(
                f"{value!r} is not a comma separated list of {self.item.__name__}", param, ctx
            )


def click_params(cls: type) -> list[click.Parameter]:
    """The click parameters of an options dataclass, in the order of its fields.

    Args:
        cls: One of the dataclasses of this module.

    Returns:
        Options (``--like-this``) and, for fields marked ``argument``, arguments.
    """
    hints = typing.get_type_hints(cls)
    params: list[click.Parameter] = []
    required_first = sorted(
        dataclasses.fields(cls), key=lambda f: not f.metadata.get("required", False)
    )
    for f in required_first:
        kind, required = hints[f.name], bool(f.metadata.get("required"))
        if typing.get_origin(kind) in (types.UnionType, typing.Union):
            kind = next(t for t in typing.get_args(kind) if t is not type(None))
        if f.metadata.get("argument"):
            params.append(
                click.Argument(
                    [f.name], nargs=-1, required=required, type=click.Path(path_type=Path)
                )
            )
            continue
        names = [f.name, f"--{f.name.replace('_', '-')}"]
        if "short" in f.metadata:
            names.append(f"-{f.metadata['short']}")
        settings: dict[str, Any] = {"help": f.metadata["help"], "required": required}
        if not required:
            settings["default"] = f.default
            settings["show_default"] = f.default not in (None, (), "", False)
        if "choices" in f.metadata:
            settings["type"] = click.Choice(list(f.metadata["choices"]))
        elif kind is bool:
            settings["is_flag"] = True
        elif typing.get_origin(kind) is tuple:
            settings["type"] = _Numbers(typing.get_args(kind)[0])
            if settings.get("default"):
                settings["default"] = ",".join(str(v) for v in f.default)  # type: ignore[union-attr]
        elif kind is Path:
            settings["type"] = click.Path(path_type=Path)
        else:
            settings["type"] = kind
        params.append(click.Option(names, **settings))
    return params


def click_command(name: str, cls: type, run: Callable[[Any], int | None]) -> click.Command:
    """A click command that fills ``cls`` and passes it to ``run``.

    Args:
        name: Name of the command.
        cls: Options dataclass; its docstring's first line is the help text.
        run: Called with the filled options; a returned integer is the exit code.

    Returns:
        The command.
    """

    def callback(**values: Any) -> None:
        code = run(cls(**values))
        if code:
            sys.exit(code)

    doc = (cls.__doc__ or "").strip().split("\n")[0]
    return click.Command(name, params=click_params(cls), callback=callback, help=doc)


def main(name: str, cls: type, run: Callable[[Any], int | None]) -> None:
    """Entry point of ``python -m fastgen.train.X``: one line on stderr for expected errors."""
    try:
        click_command(name, cls, run).main(prog_name=name, standalone_mode=True)
    except (ValueError, TypeError, OSError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
