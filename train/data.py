"""Photos for training: a folder or a .tar, decoded once, cropped by a function of (seed, step)."""

from __future__ import annotations

import hashlib
import io
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


def read_image(source: Path | bytes, label: str = "") -> Image.Image:
    """Opens one image as upright 8-bit RGB.

    Args:
        source: File, or the bytes of one.
        label: Name for the error message when ``source`` is bytes.

    Returns:
        A loaded RGB image.

    Raises:
        ValueError: The file is missing, a folder, or not a readable image.
    """
    name = label or str(source)
    if isinstance(source, Path):
        if source.is_dir():
            raise ValueError(f"{name} is a folder; give an image file")
        if not source.exists():
            raise ValueError(f"{name} does not exist; give an image file")
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} is not a readable image ({error})") from error
    if upright.mode.startswith("I;16") or upright.mode == "I":
        high = np.asarray(upright, dtype=np.float64) / 257.0
        upright = Image.fromarray(np.clip(high + 0.5, 0, 255).astype(np.uint8))
    return upright.convert("RGB")


class PhotoSet:
    """Photos of a folder (searched recursively) or of a .tar, sorted by name.

    Photos are decoded on first use and kept as long as ``cache_bytes`` allows; the rest is decoded
    again each time. A photo that cannot be read is reported once and its neighbour takes its place.

    Args:
        source: Folder or .tar file of images.
        cache_bytes: Limit of the decoded photos kept in memory.

    Raises:
        ValueError: ``source`` is missing, of another kind, or has no image.
    """

    def __init__(self, source: Path, cache_bytes: int = 4 << 30) -> None:
        self.source = Path(source)
        self.names: list[str] = []
        self._files: list[Path | tuple[int, int]] = []
        self._cache: dict[int, Image.Image] = {}
        self._cache_left = cache_bytes
        self._bad: set[int] = set()
        if self.source.is_dir():
            for file in sorted(self.source.rglob("*")):
                if file.suffix.lower() in SUFFIXES and file.is_file():
                    self.names.append(file.relative_to(self.source).as_posix())
                    self._files.append(file)
        elif self.source.is_file():
            try:
                with tarfile.open(self.source, "r:") as archive:
                    members = [m for m in archive.getmembers() if m.isfile()]
            except tarfile.TarError as error:
                raise ValueError(
                    f"{self.source} is not an uncompressed .tar ({error}); give a folder or a .tar"
                ) from error
            for member in sorted(members, key=lambda m: m.name):
                if Path(member.name).suffix.lower() in SUFFIXES:
                    self.names.append(member.name)
                    self._files.append((member.offset_data, member.size))
        else:
            raise ValueError(f"{self.source} does not exist; give a folder or a .tar of photos")
        if not self.names:
            raise ValueError(f"{self.source} holds no image ({', '.join(SUFFIXES)})")

    def __len__(self) -> int:
        return len(self.names)

    def restrict(self, indices: Sequence[int]) -> PhotoSet:
        """A view with only the photos of ``indices``, in that order."""
        view = object.__new__(PhotoSet)
        view.source = self.source
        view.names = [self.names[i] for i in indices]
        view._files = [self._files[i] for i in indices]
        view._cache, view._cache_left, view._bad = {}, self._cache_left, set()
        return view

    def load(self, index: int) -> Image.Image:
        """The decoded photo; do not modify it.

        Raises:
            ValueError: The photo cannot be read.
        """
        if index in self._cache:
            return self._cache[index]
        file = self._files[index]
        if isinstance(file, tuple):
            with open(self.source, "rb") as archive:
                archive.seek(file[0])
                image = read_image(archive.read(file[1]), f"{self.source}:{self.names[index]}")
        else:
            image = read_image(file)
        size = image.width * image.height * 4
        if size <= self._cache_left:
            self._cache[index] = image
            self._cache_left -= size
        return image

    def load_or_next(self, index: int) -> Image.Image:
        """The photo, or the next one that can be read.

        Raises:
            ValueError: No photo of the set can be read.
        """
        for offset in range(len(self)):
            i = (index + offset) % len(self)
            if i in self._bad:
                continue
            try:
                return self.load(i)
            except ValueError as error:
                self._bad.add(i)
                print(f"warning: skipped: {error}", file=sys.stderr)
        raise ValueError(f"{self.source}: none of its {len(self)} images can be read")

    def digest(self) -> str:
        """sha256 (16 hex digits) of the names, for provenance."""
        return hashlib.sha256("\n".join(self.names).encode()).hexdigest()[:16]


def random_crop(image: Image.Image, size: int, rng: np.random.Generator) -> np.ndarray:
    """Random square of the photo, resized to (size, size), flipped half of the time.

    The square's side is between half and all of the shorter side, uniform, but not smaller than
    ``size`` when the photo allows it, so that crops are not blown up.

    Args:
        image: RGB photo.
        size: Side of the result in pixels.
        rng: Source of randomness.

    Returns:
        (size, size, 3) uint8.
    """
    short = min(image.size)
    low = min(short, max(size, short // 2))
    side = int(rng.integers(low, short + 1))
    left = int(rng.integers(0, image.width - side + 1))
    top = int(rng.integers(0, image.height - side + 1))
    flip = bool(rng.integers(0, 2))
    box = (left, top, left + side, top + side)
    crop = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))
    return crop[:, ::-1] if flip else crop


def batch_at(
    photos: PhotoSet, step: int, size: int, batch: int, seed: int, rank: int = 0, world: int = 1
) -> np.ndarray:
    """The crops of one step: a pure function of its arguments, so that resuming needs no state.

    Photos are drawn in epochs: every photo once in a random order, then the next order.

    Args:
        photos: Training photos.
        step: Number of the step, from 0.
        size: Side of the crops in pixels.
        batch: Crops for each process.
        seed: Seed of the run.
        rank: This process.
        world: Number of processes; all of them together take ``batch * world`` photos a step.

    Returns:
        (batch, size, size, 3) uint8.
    """
    out = np.empty((batch, size, size, 3), np.uint8)
    for i in range(batch):
        position = (step * world + rank) * batch + i
        epoch, place = divmod(position, len(photos))
        order = np.random.default_rng([seed, 1, epoch]).permutation(len(photos))
        rng = np.random.default_rng([seed, 2, position])
        out[i] = random_crop(photos.load_or_next(int(order[place])), size, rng)
    return out


def centre_square(image: Image.Image, size: int) -> np.ndarray:
    """The centre square of a photo, resized to (size, size, 3) uint8."""
    square = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(square)


def resized(
    image: Image.Image, *, short: int | None = None, long: int | None = None
) -> Image.Image:
    """The image scaled so that its shorter (or longer) side has the given number of pixels."""
    reference = min(image.size) if short is not None else max(image.size)
    scale = (short if short is not None else long or reference) / reference
    new = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(new, Image.Resampling.LANCZOS)
