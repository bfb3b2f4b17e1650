"""The data of an evaluation as tensors: three parts that never mix, and the contents."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastgen.train.saae_data import SaaeData, load

__all__ = ["EvalData", "Part", "load_data"]


@dataclass(frozen=True)
class Part:
    """Images of one part with their labels and styles.

    Attributes:
        data: As the trainer reads them.
    """

    data: SaaeData

    def __len__(self) -> int:
        return len(self.data)

    @property
    def labels(self) -> Tensor:
        """(N,) classes."""
        return torch.tensor(self.data.labels, dtype=torch.int64)

    def images(self, index: Tensor | None = None) -> Tensor:
        """(N, C, H, W) float32 in [0, 1], all or those of ``index``."""
        return _floats(self.data.images if index is None else self.data.images[index.numpy()])

    def styles(self, index: Tensor) -> Tensor:
        """The style images that belong to the images of ``index``, float32 in [0, 1]."""
        return _floats(self.data.styles[self.data.style_of[index.numpy()]])

    def contents(self, index: Tensor) -> Tensor:
        """The content images from which those of ``index`` are reconstructed."""
        return _floats(self.data.contents[self.data.content_of[index.numpy()]])


def _floats(values: np.ndarray) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).div_(255)


@dataclass(frozen=True)
class EvalData:
    """A data set for evaluation.

    Attributes:
        name: ``"mnist"``, ``"iiit5k"``, ``"plates"`` or ``"faces"``.
        train: What generators and judges learn from.
        validation: Chooses settings.
        test: Measures; nothing is chosen or trained on it.
    """

    name: str
    train: Part
    validation: Part
    test: Part

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.train.data.classes

    @property
    def has_glyphs(self) -> bool:
        """Whether the contents are one glyph a class; else they are images (faces)."""
        return self.train.data.glyphs

    @property
    def glyphs(self) -> list[tuple[Tensor, int]]:
        """The content images (C, H, W) in [0, 1] and the class of each."""
        data = self.train.data
        pairs = zip(_floats(data.contents), data.content_class.tolist(), strict=True)
        return [(glyph, int(label)) for glyph, label in pairs]


def load_data(name: str, source: Path | None = None, attribute: str = "gender") -> EvalData:
    """Reads the three parts of a data set.

    Args:
        name: Of the data set.
        source: Where it is; by default its folder in ``$FASTGEN_DATA``.
        attribute: For faces.
    """
    parts = (
        Part(load(name, source, part, attribute=attribute))
        for part in ("train", "validation", "test")
    )
    return EvalData(name, *parts)
