"""Options of the evaluations of stylized autoencoders; imports no torch."""
# ruff: noqa: RUF009  (option() is dataclasses.field() with a help text)

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastgen.train.options import option

__all__ = ["CompareSaaeOptions", "EvalSaaeOptions", "RecogniserOptions"]


@dataclass
class EvalSaaeOptions:
    """Options of ``fastgen eval saae``: likelihood, swap test, style, copying, pictures."""

    checkpoints: tuple[Path, ...] = option(
        (), help="models of one data set, several seeds and arms together", argument=True
    )
    data: str | None = option(
        None,
        help="data set (default: the models'); without models: only the controls of mnist",
        choices=("mnist", "iiit5k", "plates", "faces"),
    )
    source: Path | None = option(None, help="where the data set is (default: in $FASTGEN_DATA)")
    output: Path | None = option(
        None, help="report to write (.json; .md and .png are written beside it)", short="o"
    )
    cache: Path | None = option(
        None, help="folder of trained judges (default: OUTPUT without suffix + .cache)"
    )
    samples: int = option(10_000, help="images for the likelihood and the Frechet distance")
    styles: int = option(500, help="unseen style images of the swap test")
    neighbours: int = option(2000, help="samples whose nearest training image is looked for")
    columns: int = option(36, help="contents in the grid pictures, at most")
    generated_only: bool = option(
        False, help="show no real image in the pictures, as of data that must not be published"
    )
    seed: int = option(0, help="seed of styles and classes that are drawn")
    device: str = option("auto", help="auto, cpu, cuda or cuda:N")
    threads: int | None = option(None, help="CPU threads (default: torch decides)")
    quiet: bool = option(False, help="no progress on stderr")


@dataclass
class CompareSaaeOptions:
    """Options of ``fastgen eval saae-arms``: tune both discriminators, confirm on fresh seeds."""

    output: Path = option(
        Path(), help="report to write (.json; .md and .png beside it)", required=True, short="o"
    )
    run_dir: Path | None = option(
        None, help="folder of the trained models (default: OUTPUT without suffix + .run)"
    )
    data: str = option("mnist", help="data set", choices=("mnist",))
    source: Path | None = option(None, help="where the data set is (default: in $FASTGEN_DATA)")
    adv_weights: tuple[float, ...] = option(
        (0.003, 0.01, 0.03), help="values of lambda that both arms try, comma separated"
    )
    seeds: int = option(5, help="fresh seeds of the confirmation, at least 2")
    joint: bool = option(
        False, help="also train the multi-class arm jointly from scratch, for criterion A4"
    )
    width: int = option(16, help="channels of the generator's first convolutions")
    d_width: int = option(16, help="channels of the discriminator's first convolution")
    style_features: int = option(16, help="length of the style vector")
    d_lr: float | None = option(None, help="learning rate of the discriminator, as in training")
    rec_steps: int = option(1000, help="updates of step 1, at most")
    dis_steps: int = option(200, help="updates of step 2, at most")
    steps: int = option(3000, help="updates of step 3")
    batch: int = option(32, help="images a step")
    precision: str = option("fp32", help="of training", choices=("fp32", "bf16"))
    samples: int = option(10_000, help="images for the likelihood and the Frechet distance")
    cache: Path | None = option(
        None, help="folder of trained judges (default: OUTPUT without suffix + .cache)"
    )
    device: str = option("auto", help="auto, cpu, cuda or cuda:N")
    threads: int | None = option(None, help="CPU threads (default: torch decides)")
    quiet: bool = option(False, help="no progress on stderr")


@dataclass
class RecogniserOptions:
    """Options of ``fastgen eval saae-data``: does generated data help a recogniser?"""

    output: Path = option(
        Path(), help="report to write (.json; a .md is written beside it)", required=True, short="o"
    )
    run_dir: Path | None = option(
        None, help="folder of the trained generators (default: OUTPUT without suffix + .run)"
    )
    data: str = option("iiit5k", help="data set", choices=("mnist", "iiit5k", "plates"))
    source: Path | None = option(None, help="where the data set is (default: in $FASTGEN_DATA)")
    font: str | None = option(None, help="font file of the glyphs (default: as in training)")
    per_class: tuple[int, ...] = option(
        (10, 30, 100), help="numbers of real images a class, comma separated"
    )
    sizes: tuple[int, ...] = option(
        (1000, 5000, 20_000), help="numbers of generated images, comma separated"
    )
    seeds: int = option(5, help="seeds: of the real images, generators and recognisers")
    steps: int = option(1500, help="optimiser steps of every recogniser")
    batch: int = option(64, help="images a step of a recogniser")
    width: int = option(16, help="channels of the recogniser's first convolution")
    test_images: int = option(5000, help="test images, at most")
    generator_width: int = option(16, help="channels of the generator's first convolutions")
    style_features: int = option(16, help="length of the generator's style vector")
    d_lr: float | None = option(None, help="learning rate of the discriminator, as in training")
    adv_weight: float = option(0.01, help="lambda of the generator")
    rec_steps: int = option(1000, help="updates of the generator's step 1, at most")
    dis_steps: int = option(200, help="updates of the generator's step 2, at most")
    generator_steps: int = option(3000, help="updates of the generator's step 3")
    precision: str = option("fp32", help="of the generators' training", choices=("fp32", "bf16"))
    device: str = option("auto", help="auto, cpu, cuda or cuda:N")
    threads: int | None = option(None, help="CPU threads (default: torch decides)")
    quiet: bool = option(False, help="no progress on stderr")
