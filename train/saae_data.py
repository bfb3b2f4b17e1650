"""Data of the stylized adversarial autoencoder: targets, their classes, styles and contents.

Everything is small and kept in memory as uint8. Batches are a pure function of (seed, step,
process), so that resuming a run needs no state.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import sys
import tarfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from fastgen.glyphs import Glyphs
from fastgen.train.data import SUFFIXES, read_image

__all__ = ["SaaeData", "hold_out", "load", "per_class"]

BAD_SHARE = 0.01  # unreadable files above this share are an error
MARGIN = 0.12  # of the glyphs, as a share of the shorter side
LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
AGES = ((18, "18-29"), (30, "30-44"), (45, "45-59"), (60, "60+"))


@dataclass(frozen=True)
class SaaeData:
    """Images with their classes, and for each the content and style it is made of.

    Attributes:
        name: of the data set.
        images: (N,C,H,W) uint8, the targets x.
        labels: (N,) int64, the class of each.
        classes: what each class is called; for glyphs, the text that is drawn.
        styles: (M,C',H',W') uint8.
        style_of: (N,) int64, the style of each image.
        contents: (K,C,H,W) uint8.
        content_of: (N,) int64, the content from which each image is reconstructed.
        content_class: (K,) int64, the class of each content.
        alphabet: for glyphs, the text that each content draws; else empty. It is longer than
            ``classes`` where a class has several glyphs (upper and lower case).
        glyphs: True when the contents are glyphs of the classes, so that the content carries the
            class; False when they are images and the style carries it (faces).
        skipped: files that could not be read.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    styles: np.ndarray
    style_of: np.ndarray
    contents: np.ndarray
    content_of: np.ndarray
    content_class: np.ndarray
    alphabet: tuple[str, ...] = ()
    glyphs: bool = True
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: Sequence[int] | np.ndarray) -> SaaeData:
        """Only these images (styles and image contents that nobody uses any more are dropped)."""
        chosen = np.asarray(indices, np.int64)
        used, style_of = np.unique(self.style_of[chosen], return_inverse=True)
        contents, content_of = self.contents, self.content_of[chosen]
        content_class = self.content_class
        if not self.glyphs:
            kept, content_of = np.unique(content_of, return_inverse=True)
            contents, content_class = contents[kept], content_class[kept]
        return replace(
            self,
            images=self.images[chosen],
            labels=self.labels[chosen],
            styles=self.styles[used],
            style_of=style_of.astype(np.int64),
            contents=contents,
            content_of=content_of.astype(np.int64),
            content_class=content_class,
        )


def per_class(data: SaaeData, count: int, seed: int = 0) -> SaaeData:
    """At most ``count`` images of every class, chosen by the seed alone (all of a rarer class).

    The smaller of two counts is a subset of the larger one.

    Raises:
        ValueError: ``count`` below 2: a class of one image cannot be learnt.
    """
    if count < 2:
        raise ValueError(f"images per class is {count}, must be at least 2")
    order = np.random.default_rng([seed, 77]).permutation(len(data))
    mine = [order[data.labels[order] == i][:count] for i in range(len(data.classes))]
    return data.take(np.sort(np.concatenate(mine)))


def hold_out(data: SaaeData, share: float, seed: int = 0) -> tuple[SaaeData, SaaeData]:
    """Splits off a share of every class (a class keeps at least two images).

    Images of one style (the characters of a plate) stay together and count for the class of one
    of them: a style that was seen in training would not be held out.
    """
    order = np.random.default_rng([seed, 78]).permutation(len(data))
    groups: dict[int, list[int]] = {}
    for image in order.tolist():
        groups.setdefault(int(data.style_of[image]), []).append(image)
    left = np.bincount(data.labels, minlength=len(data.classes))
    held: list[int] = []
    for index in range(len(data.classes)):
        mine = [group for group in groups.values() if data.labels[group[0]] == index]
        wanted = int(share * len(mine))
        for group in mine:
            taken = np.bincount(data.labels[group], minlength=len(left))
            if wanted > 0 and (left - taken)[taken > 0].min() >= 2:
                held += group
                left = left - taken
                wanted -= 1
    rest = np.setdiff1d(np.arange(len(data)), held)
    if not held:
        return data, data
    return data.take(rest), data.take(np.sort(held))


def load(
    name: str,
    source: Path | None = None,
    part: str = "train",
    *,
    size: tuple[int, int] | None = None,
    style_size: tuple[int, int] | None = None,
    font: str | None = None,
    attribute: str = "gender",
    grey: bool = False,
) -> SaaeData:
    """Reads a data set.

    Args:
        name: ``"mnist"``, ``"iiit5k"``, ``"plates"``, ``"faces"`` or ``"folder"``.
        source: where it is; by default its folder in ``$FASTGEN_DATA``.
        part: ``"train"``, ``"validation"`` (MNIST: the last 10,000 training images) or ``"test"``.
        size: (height, width) of images and contents, for a folder; 32x32 by default.
        style_size: (height, width) of style images, for a folder; ``size`` by default.
        font: of the glyphs, see :class:`fastgen.glyphs.Glyphs`.
        attribute: ``"gender"`` or ``"age"``, for faces.
        grey: one channel, for a folder.

    Raises:
        ValueError: unknown data set or part; files that are missing, or too many unreadable ones;
            a class with one image; a label without an image.
    """
    if part not in ("train", "validation", "test"):
        raise ValueError(f"part {part!r} is unknown; use train, validation or test")
    loaders: dict[str, tuple[str, Callable[[Path], SaaeData]]] = {
        "mnist": ("mnist", lambda root: _mnist(root, part, font)),
        "iiit5k": ("iiit5k/iiit5k_h48.tar", lambda root: _iiit5k(root, part, font)),
        "plates": (
            "plates_cn/lprnet_ccpd_1000.tar",
            lambda root: _parts(_plates(root, font), part),
        ),
        "faces": (
            "utkface/utkface_adults_112.tar",
            lambda root: _parts(_faces(root, attribute), part),
        ),
        "folder": (
            "",
            lambda root: _parts(
                _folder(root, size or (32, 32), style_size or size or (32, 32), font, grey), part
            ),
        ),
    }
    if name not in loaders:
        raise ValueError(f"data set {name!r} is unknown; use one of {', '.join(loaders)}")
    place, loader = loaders[name]
    if source is None:
        root = os.environ.get("FASTGEN_DATA")
        if not place or not root:
            what = "--source FOLDER" if not place else "--source, or set FASTGEN_DATA"
            raise ValueError(f"where is the data set {name!r}? give {what}")
        source = Path(root) / place
    if not source.exists():
        raise ValueError(f"{source} does not exist; give the data of {name!r} with --source")
    return loader(source)


def _parts(data: SaaeData, part: str) -> SaaeData:
    """Fixed parts of a set that has none: 70 % train, 10 % validation, 20 % test."""
    if part == "test":
        return hold_out(data, 0.2, seed=1)[1]
    rest = hold_out(data, 0.2, seed=1)[0]
    train, validation = hold_out(rest, 0.125, seed=2)
    return train if part == "train" else validation


def _with_glyphs(
    name: str,
    images: Sequence[np.ndarray],
    texts: Sequence[str],
    styles: Sequence[np.ndarray],
    style_of: Sequence[int],
    font: str | None,
    alphabet: str = "",
    fold: Callable[[str], str] = str,
    skipped: int = 0,
) -> SaaeData:
    """Joins the pieces: one glyph for each text, one class for each folded text."""
    drawn = tuple(alphabet) if alphabet else tuple(sorted(set(texts)))
    classes = tuple(dict.fromkeys(fold(text) for text in drawn))
    content_class = np.array([classes.index(fold(text)) for text in drawn], np.int64)
    content_of = np.array([drawn.index(text) for text in texts], np.int64)
    stacked = np.stack(images)
    height, width = stacked.shape[2:]
    glyphs = Glyphs((height, width), font, MARGIN)(drawn)
    return SaaeData(
        name=name,
        images=stacked,
        labels=content_class[content_of],
        classes=classes,
        styles=np.stack(styles),
        style_of=np.asarray(style_of, np.int64),
        contents=np.round(glyphs[:, None] * 255).astype(np.uint8),
        content_of=content_of,
        content_class=content_class,
        alphabet=drawn,
        skipped=skipped,
    )


def _planes(image: Image.Image, size: tuple[int, int], grey: bool = False) -> np.ndarray:
    """(C,H,W) uint8 of a picture stretched to (height, width)."""
    image = image.convert("L") if grey else image
    small = np.asarray(image.resize(size[::-1], Image.Resampling.BICUBIC, reducing_gap=2.0))
    return small[None] if grey else np.ascontiguousarray(small.transpose(2, 0, 1))


def _too_many_bad(source: Path, bad: Sequence[str], count: int) -> None:
    if not bad:
        return
    if len(bad) > BAD_SHARE * count:
        raise ValueError(
            f"{source}: {len(bad)} of {count} files cannot be read, more than "
            f"{BAD_SHARE:.0%} (first: {bad[0]}); repair or remove them"
        )
    print(f"warning: {source}: skipped {len(bad)} unreadable files", file=sys.stderr)


def _no_lonely_class(source: Path, labels: Iterable[str]) -> None:
    counts: dict[str, int] = {}
    for label in labels:
        counts[label] = counts.get(label, 0) + 1
    lonely = sorted(label for label, count in counts.items() if count == 1)
    if lonely:
        raise ValueError(
            f"{source}: class {lonely[0]!r} has one image (and {len(lonely) - 1} more classes); "
            "a class needs at least 2: add images, or remove it"
        )


# ---------------------------------------------------------------------------- data sets


def _idx(path: Path) -> np.ndarray:
    """One of MNIST's files: magic number, sizes, bytes."""
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise ValueError(f"{path} cannot be read ({error}); --source needs MNIST's .gz") from error
    axes = data[3] if len(data) > 3 else 0
    shape = tuple(int.from_bytes(data[4 + 4 * i : 8 + 4 * i]) for i in range(axes))
    if data[:3] != b"\0\0\x08" or len(data) != 4 + 4 * axes + int(np.prod(shape)):
        raise ValueError(f"{path} is not one of MNIST's idx files, or is damaged")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)


def _mnist(root: Path, part: str, font: str | None) -> SaaeData:
    stem = "t10k" if part == "test" else "train"
    images = _idx(root / f"{stem}-images-idx3-ubyte.gz")
    labels = _idx(root / f"{stem}-labels-idx1-ubyte.gz").astype(np.int64)
    if stem == "train":  # the split of the Parzen protocol
        window = slice(0, 50_000) if part == "train" else slice(50_000, 60_000)
        images, labels = images[window], labels[window]
    glyphs = Glyphs((28, 28), font, MARGIN)("0123456789")
    targets, digits = np.ascontiguousarray(images[:, None]), tuple("0123456789")
    return SaaeData(
        name="mnist",
        images=targets,
        labels=labels,
        classes=digits,
        styles=targets,
        style_of=np.arange(len(labels)),
        contents=np.round(glyphs[:, None] * 255).astype(np.uint8),
        content_of=labels,
        content_class=np.arange(10),
        alphabet=digits,
    )


def _members(source: Path) -> dict[str, bytes]:
    """All files of an uncompressed .tar."""
    try:
        with tarfile.open(source, "r:") as archive:
            files = [(m.name, archive.extractfile(m)) for m in archive.getmembers() if m.isfile()]
            return {name: file.read() for name, file in files if file is not None}
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"{source} is not an uncompressed .tar ({error})") from error


def _iiit5k(source: Path, part: str, font: str | None) -> SaaeData:
    """Characters cut by the boxes; the style is the whole word. 36 case-insensitive classes."""
    files = _members(source)
    if "labels.json" not in files:
        raise ValueError(f"{source} has no labels.json; --source needs the IIIT5K .tar")
    words = json.loads(files["labels.json"])
    folder = "test/" if part == "test" else "train/"
    words = [word for word in words if word["file"].startswith(folder)]
    # Characters of one word stay in one part: every eighth training word is for validation.
    if part != "test":
        words = [w for i, w in enumerate(words) if (i % 8 == 0) == (part == "validation")]
    images, labels, styles, style_of, bad = [], [], [], [], []
    for word in words:
        try:
            picture = read_image(files[word["file"]], word["file"])
        except (ValueError, KeyError):
            bad.append(word["file"])
            continue
        styles.append(_planes(picture, (32, 96)))
        for char, (x, y, w, h) in zip(word["text"], word["boxes"], strict=True):
            box = max(0, x), max(0, y), min(picture.width, x + w), min(picture.height, y + h)
            if char not in LETTERS or box[2] - box[0] < 3 or box[3] - box[1] < 3:
                continue
            images.append(_planes(_cut(picture, box), (32, 32)))
            labels.append(char)
            style_of.append(len(styles) - 1)
    _too_many_bad(source, bad, len(words))
    return _with_glyphs(
        "iiit5k", images, labels, styles, style_of, font, LETTERS, str.upper, len(bad)
    )


def _cut(picture: Image.Image, box: Sequence[float]) -> Image.Image:
    left, top, right, bottom = (round(v) for v in box)
    return picture.crop((left, top, right, bottom))


# Left edges and width of the seven characters of a Chinese plate of 440 mm (GA 36-2014).
_PLATE_MM = (15.5, 72.5, 151.5, 208.5, 265.5, 322.5, 379.5)
_CHAR_MM, _SIDE_MM = 45.0, 5.0


def _plates(source: Path, font: str | None) -> SaaeData:
    """Characters cut at the standard's positions; the style is the whole plate.

    Classes with fewer than five characters (provinces that hardly occur) are left out.
    """
    files = _members(source)
    rows = list(csv.DictReader(io.StringIO(files.get("labels.csv", b"").decode())))
    if not rows:
        raise ValueError(f"{source} has no labels.csv; --source needs the plates' .tar")
    images, labels, styles, style_of, bad = [], [], [], [], []
    for row in rows:
        if len(row["label"]) != len(_PLATE_MM):
            continue
        try:
            picture = read_image(files[row["file"]], row["file"])
        except (ValueError, KeyError):
            bad.append(row["file"])
            continue
        styles.append(_planes(picture, (24, 96)))
        scale = picture.width / 440
        for char, left in zip(row["label"], _PLATE_MM, strict=True):
            box = (left - _SIDE_MM) * scale, 0, (left + _CHAR_MM + _SIDE_MM) * scale, picture.height
            images.append(_planes(_cut(picture, box), (24, 16)))
            labels.append(char)
            style_of.append(len(styles) - 1)
    _too_many_bad(source, bad, len(rows))
    frequent = {c for c in set(labels) if labels.count(c) >= 5}
    keep = [i for i, c in enumerate(labels) if c in frequent]
    return _with_glyphs(
        "plates",
        [images[i] for i in keep],
        [labels[i] for i in keep],
        styles,
        [style_of[i] for i in keep],
        font,
        skipped=len(bad),
    )


def _faces(source: Path, attribute: str) -> SaaeData:
    """Adults' faces; the class is gender or age group, the content is the face itself."""
    if attribute not in ("gender", "age"):
        raise ValueError(f"attribute {attribute!r} is unknown; use gender or age")
    files = _members(source)
    rows = list(csv.DictReader(io.StringIO(files.get("labels.csv", b"").decode())))
    if not rows:
        raise ValueError(f"{source} has no labels.csv; --source needs the faces' .tar")
    images, labels, bad = [], [], []
    column = next(key for key in rows[0] if key.startswith(attribute))
    for row in rows:
        try:
            images.append(_planes(read_image(files[row["file"]], row["file"]), (64, 64)))
        except (ValueError, KeyError):
            bad.append(row["file"])
            continue
        value = int(row[column])
        if attribute == "age":
            value = max(i for i, (low, _) in enumerate(AGES) if value >= low)
        labels.append(value)
    _too_many_bad(source, bad, len(rows))
    classes = tuple(name for _, name in AGES) if attribute == "age" else ("male", "female")
    stacked, own = np.stack(images), np.arange(len(images))
    numbers = np.array(labels, np.int64)
    return SaaeData(
        name="faces",
        images=stacked,
        labels=numbers,
        classes=classes,
        styles=stacked,
        style_of=own,
        contents=stacked,
        content_of=own,
        content_class=numbers,
        glyphs=False,
        skipped=len(bad),
    )


def _folder(
    root: Path, size: tuple[int, int], style_size: tuple[int, int], font: str | None, grey: bool
) -> SaaeData:
    """A folder of the user's own: ``labels.csv`` (file,label[,style]) or one folder per label."""
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder; --data folder needs one")
    rows: list[tuple[Path, str, Path]] = []
    table = root / "labels.csv"
    if table.is_file():
        with open(table, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if not {"file", "label"} <= set(reader.fieldnames or ()):
                raise ValueError(f"{table} needs a first line with file,label and perhaps style")
            for number, row in enumerate(reader, 2):
                target = root / (row["file"] or "")
                if not row["label"]:
                    raise ValueError(f"{table}, line {number}: the label is empty")
                style = root / row["style"] if row.get("style") else target
                for path in (target, style):
                    if not path.is_file():
                        raise ValueError(
                            f"{table}, line {number}: label {row['label']!r} has no image: {path} "
                            "does not exist; add it, or remove the line"
                        )
                rows.append((target, row["label"], style))
    else:
        for folder in sorted(p for p in root.iterdir() if p.is_dir()):
            files = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
            if not files:
                raise ValueError(
                    f"label {folder.name!r} has no image: {folder} is empty; add images, or "
                    "remove the folder"
                )
            rows += [(path, folder.name, path) for path in files]
    if not rows:
        raise ValueError(f"{root} has neither a labels.csv nor folders of images named by label")
    images, labels, style_of, bad = [], [], [], []
    styles: list[np.ndarray] = []
    known: dict[Path, int] = {}
    for path, label, style in rows:
        try:
            image = _planes(read_image(path), size, grey)
            if style not in known:
                styles.append(_planes(read_image(style), style_size, grey))
                known[style] = len(styles) - 1
        except ValueError as error:
            bad.append(str(error))
            continue
        images.append(image)
        labels.append(label)
        style_of.append(known[style])
    _too_many_bad(root, bad, len(rows))
    _no_lonely_class(root, labels)
    return _with_glyphs("folder", images, labels, styles, style_of, font, skipped=len(bad))
