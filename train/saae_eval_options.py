"""Options of the evaluations of stylized autoencoders; imports no torch."""
# ruff: noqa: RUF009  (option() is dataclasses.field() with a help text)

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastgen.train.options import option

__all__ = ["EvalSaaeOptions"]


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
    seed: int = option(0, help="seed of styles and classes that are drawn")
    device: str = option("auto", help="auto, cpu, cuda or cuda:N")
    threads: int | None = option(None, help="CPU threads (default: torch decides)")
    quiet: bool = option(False, help="no progress on stderr")
