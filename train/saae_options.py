"""Options of ``fastgen train saae``. This module imports no torch, so that help is quick."""
# ruff: noqa: RUF009  (option() is dataclasses.field() with a help text)

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastgen.train.options import option

__all__ = ["SaaeOptions"]


@dataclass
class SaaeOptions:
    """Options of ``fastgen train saae``: an image generator steered by content and style."""

    data: str = option(
        "",
        help="data set",
        choices=("mnist", "iiit5k", "plates", "faces", "folder"),
        required=True,
    )
    output: Path = option(
        Path(), help="checkpoint to write (.safetensors)", required=True, short="o"
    )
    source: Path | None = option(
        None, help="where the data is (default: its place in $FASTGEN_DATA); needed for a folder"
    )
    model: str = option(
        "saae",
        help="what to train; all but saae are baselines",
        choices=("saae", "dcgan", "aae", "autoencoder", "cgan"),
    )
    width: int = option(16, help="channels of the generator's first convolutions")
    style_features: int = option(16, help="length of the style vector (baselines: of the latent)")
    style_map: str | None = option(
        None,
        help="map of the style vector by a layer of its own, or the vector at every pixel "
        "(default: full, for faces tile)",
        choices=("full", "tile"),
    )
    discriminator: str = option(
        "multi", help="k+1 classes, or real against fake", choices=("multi", "binary")
    )
    form: str = option(
        "sigmoid",
        help="outputs of the multi-class discriminator",
        choices=("sigmoid", "softmax"),
    )
    d_width: int = option(16, help="channels of the discriminator's first convolution")
    init: Path | None = option(
        None, help="start the generator from this checkpoint of an equal network"
    )
    schedule: str = option(
        "three-step",
        help="three-step: reconstruction, discriminator, both; per-iter: three updates in each "
        "iteration; joint: both from scratch",
        choices=("three-step", "per-iter", "joint"),
    )
    rec_steps: int = option(1000, help="at most so many updates of step 1 (reconstruction)")
    dis_steps: int = option(200, help="at most so many updates of step 2 (discriminator)")
    steps: int = option(3000, help="updates of step 3, or of the whole run without three steps")
    check_every: int = option(
        100, help="updates between the checks whether step 1 or 2 has reached a plateau"
    )
    patience: int = option(5, help="checks without a gain of 1 % that end step 1 or 2")
    batch: int = option(32, help="images for each update and process")
    lr: float = option(1e-3, help="learning rate of the generator (Adam, beta1 0.5)")
    d_lr: float | None = option(
        None, help="learning rate of the discriminator (default: 0.3 of --lr)"
    )
    decay: float = option(0.3, help="share of the last updates with a falling learning rate")
    adv_weight: float = option(0.01, help="lambda: weight of the adversarial loss")
    per_class: int | None = option(None, help="train on at most so many images of every class")
    data_seed: int = option(0, help="seed that chooses the images of --per-class")
    size: str = option("32x32", help="WIDTHxHEIGHT of the images of a folder")
    style_size: str | None = option(
        None, help="WIDTHxHEIGHT of the style images of a folder (default: --size)"
    )
    grey: bool = option(False, help="read the images of a folder as grey")
    attribute: str = option("gender", help="class of a face", choices=("gender", "age"))
    font: str | None = option(
        None, help="font file of the glyphs (default: Pillow's, then one of the system)"
    )
    bank: int = option(256, help="styles whose vectors the checkpoint keeps for style=None")
    run_dir: Path | None = option(None, help="folder of states and log (default: OUTPUT.run)")
    resume: bool = option(False, help="continue the run in the run folder")
    save_every: int = option(500, help="updates between saved states, 0 for none")
    preview_every: int = option(500, help="updates between sample grids, 0 for none")
    log_every: int = option(50, help="updates between lines of the log, 0 for none")
    tensorboard: bool = option(False, help="losses and sample grids for TensorBoard")
    precision: str = option("fp32", help="of training", choices=("fp32", "bf16"))
    device: str = option("auto", help="auto, cpu, cuda or cuda:N")
    threads: int | None = option(None, help="CPU threads (default: torch decides)")
    seed: int = option(0, help="seed of weights, batches and noise")
    name: str | None = option(None, help="name in the checkpoint (default: the file's)")
    licence: str = option("unknown", help="terms of the weights, for the checkpoint")
    data_note: str | None = option(None, help="what the images are and their terms")
    quiet: bool = option(False, help="no progress on stderr")
