"""A labelled data set of generated pictures: a folder, or tar files, written shard by shard.

A shard appears complete or not at all, so that an interrupted export (disk full, Ctrl-C, power) is
continued where it was. What a shard holds depends on the options and its number only.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np

from fastgen.checkpoint import atomic_write
from fastgen.cli._app import progress
from fastgen.generator import Generator

__all__ = ["DatasetJob"]

SHARD = 1000  # pictures


class DatasetJob:
    """An export.

    A folder gets ``00000/000000.png`` and so on, and ``labels.csv`` (file,label), which ``fastgen
    train saae --data folder`` and most tools read. ``NAME.tar`` becomes ``NAME-00000.tar`` and so
    on, with ``000000.png`` and its label in ``000000.txt`` (the layout of WebDataset).

    Args:
        generator: the model.
        count: pictures; every label equally often, up to one.
        output: a folder, or a name ending in ``.tar``.
        text: the characters to draw; None for the model's alphabet.
        styles: style images; empty for the model's stored styles.
        seed: chooses styles and their blends.
        mix: blend two style vectors at random for each picture.

    Raises:
        ValueError: no characters, or no styles.
    """

    def __init__(
        self,
        generator: Generator,
        count: int,
        output: str,
        text: str | None,
        styles: list[str],
        seed: int,
        mix: bool,
    ) -> None:
        self.labels = list(dict.fromkeys(text or generator.info.alphabet))
        if not self.labels:
            raise ValueError(f"model {generator.info.name!r} has no alphabet; it draws no data set")
        self.generator, self.count, self.seed, self.mix = generator, count, seed, mix
        self.target, self.tar = Path(output), output.endswith(".tar")
        self.contents = generator.contents(self.labels)
        self.codes = generator.encode(styles) if styles else generator.all_styles()
        self.plan = {
            "count": count,
            "labels": self.labels,
            "styles": [os.path.basename(s) for s in styles] or "stored",
            "seed": seed,
            "mix": mix,
            "model": generator.info.name,
            "sha256": generator.info.sha256,
        }

    def run(self, resume: bool = False) -> None:
        """Writes what is not there yet.

        Args:
            resume: continue; without it an existing export is an error.

        Raises:
            ValueError: an export is there already, or one with other options is to be continued.
            OSError: a file cannot be written; the unfinished shard is removed.
        """
        folder = self.target.parent if self.tar else self.target
        folder.mkdir(parents=True, exist_ok=True)
        card = self.target.with_suffix(".json") if self.tar else self.target / "dataset.json"
        if card.exists():
            if not resume:
                raise ValueError(f"{card} exists; add --resume to continue it, or take another -o")
            if json.loads(card.read_text(encoding="utf-8")) != self.plan:
                raise ValueError(f"{card} is of other options; use the same, or take another -o")
        elif not self.tar and any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty and holds no export; take another -o")
        atomic_write(card, (json.dumps(self.plan, ensure_ascii=False, indent=1) + "\n").encode())
        shards = -(-self.count // SHARD)
        line = progress(shards, "shard")
        for number in range(shards):
            path = self._path(number)
            line.step(number + 1, str(path))
            if not path.exists():
                self._write(number, path)
        line.clear()
        if not self.tar:
            self._write_labels(shards)

    def _path(self, number: int) -> Path:
        if self.tar:
            return self.target.with_name(f"{self.target.stem}-{number:05d}.tar")
        return self.target / f"{number:05d}"

    def _items(self, number: int) -> range:
        return range(number * SHARD, min(self.count, (number + 1) * SHARD))

    def _label(self, index: int) -> int:
        """Labels in an order that shuffles every round of all of them."""
        turn, place = divmod(index, len(self.labels))
        order = np.random.default_rng([abs(self.seed), 1, turn]).permutation(len(self.labels))
        return int(order[place])

    def _pictures(self, number: int) -> np.ndarray:
        items = self._items(number)
        rng = np.random.default_rng([abs(self.seed), 2, number])
        codes = self.codes[rng.integers(0, len(self.codes), len(items))]
        if self.mix:
            other = self.codes[rng.integers(0, len(self.codes), len(items))]
            share = rng.uniform(0, 1, (len(items), 1)).astype(np.float32)
            codes = share * codes + (1 - share) * other
        labels = np.array([self._label(i) for i in items])
        images = self.generator.decode(self.contents, codes, labels)
        return np.round(images * 255).astype(np.uint8)

    def _write(self, number: int, path: Path) -> None:
        part = path.with_name(f".{path.name}.part")
        _remove(part)
        try:
            pictures = self._pictures(number)
            if self.tar:
                with tarfile.open(part, "w") as archive:
                    for index, pixels in zip(self._items(number), pictures, strict=True):
                        label = self.labels[self._label(index)].encode()
                        for name, data in (("png", _png(pixels)), ("txt", label)):
                            member = tarfile.TarInfo(f"{index:06d}.{name}")
                            member.size = len(data)
                            archive.addfile(member, io.BytesIO(data))
            else:
                part.mkdir()
                for index, pixels in zip(self._items(number), pictures, strict=True):
                    (part / f"{index:06d}.png").write_bytes(_png(pixels))
            os.replace(part, path)
        except BaseException:
            _remove(part)
            raise

    def _write_labels(self, shards: int) -> None:
        text = io.StringIO(newline="")
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["file", "label"])
        for number in range(shards):
            for index in self._items(number):
                table.writerow([f"{number:05d}/{index:06d}.png", self.labels[self._label(index)]])
        atomic_write(self.target / "labels.csv", text.getvalue().encode())


def _png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    from fastgen.image import encode

    return encode(Image.fromarray(pixels), ".png")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
