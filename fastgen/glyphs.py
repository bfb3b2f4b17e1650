"""Glyphs: pictures of characters without style, texture or background, from an open font.

The default font is the one that Pillow brings with it (Aileron Regular, CC0), so that Latin text
needs no font file. Every other alphabet takes a font of the system (``fonts-noto-cjk`` or
``fonts-droid-fallback`` of Debian have the Chinese province characters) or a file that is named.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL import ImageFont

__all__ = ["DEFAULT_FONT", "Glyphs", "find_font"]

DEFAULT_FONT = "default"
_SIZE = 96  # pixels at which a glyph is drawn before it is scaled to its box
_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts")
_SUFFIXES = (".ttf", ".otf", ".ttc")
# No font maps this noncharacter, so it shows what the font draws for a character that it lacks.
_NOWHERE = "\U0010ffff"


@lru_cache(maxsize=8)
def _open(font: str) -> ImageFont.FreeTypeFont:
    from PIL import ImageFont, features

    if not features.check("freetype2"):
        raise ValueError("this Pillow has no FreeType to draw glyphs; pip install pillow")
    if font == DEFAULT_FONT:
        return ImageFont.load_default(_SIZE)  # type: ignore[return-value]
    path = Path(font).expanduser()
    if not path.is_file():
        raise ValueError(
            f"font {font!r} does not exist; give a .ttf, .otf or .ttc file, or {DEFAULT_FONT!r}"
        )
    try:
        return ImageFont.truetype(str(path), _SIZE)
    except OSError as error:
        raise ValueError(f"font {font!r} cannot be read ({error}); give another file") from None


def _mask(font: ImageFont.FreeTypeFont, text: str) -> np.ndarray:
    """What the font draws, cropped to its ink: (h,w) uint8, (0,0) when there is none."""
    from PIL import Image, ImageDraw

    left, top, right, bottom = font.getbbox(text)
    size = max(1, round(right - left) + 8), max(1, round(bottom - top) + 8)
    image = Image.new("L", size, 0)
    ImageDraw.Draw(image).text((4 - left, 4 - top), text, fill=255, font=font)
    box = image.getbbox()
    return np.asarray(image.crop(box)) if box else np.zeros((0, 0), np.uint8)


def _lacks(font: ImageFont.FreeTypeFont, char: str) -> bool:
    if char.isspace():
        return False
    mask = _mask(font, char)
    return mask.size == 0 or np.array_equal(mask, _mask(font, _NOWHERE))


@lru_cache(maxsize=4096)
def find_font(text: str) -> str:
    """A font that has all characters of a text: the default one, else a font of the system.

    Returns:
        ``"default"`` or the path of a font file.

    Raises:
        ValueError: no font has them; the message names the characters.
    """
    lacking = _lacking(DEFAULT_FONT, text)
    if not lacking:
        return DEFAULT_FONT
    for path in _system_fonts():
        try:
            missing = _lacking(path, text)
        except (ValueError, OSError):
            continue
        if not missing:
            return path
        lacking = missing if len(missing) < len(lacking) else lacking
    raise ValueError(
        f"no font here has a glyph for {', '.join(map(repr, lacking))}; name one that does (font=, "
        "--font), e.g. of the Debian packages fonts-droid-fallback or fonts-noto-cjk"
    )


def _lacking(font: str, text: str) -> str:
    return "".join(c for c in dict.fromkeys(text) if _lacks(_open(font), c))


@lru_cache(maxsize=1)
def _system_fonts() -> tuple[str, ...]:
    roots = [Path(folder).expanduser() for folder in _FOLDERS]
    return tuple(
        str(path)
        for root in roots
        if root.is_dir()
        for path in sorted(root.rglob("*"), key=lambda p: (len(p.name), p.name))
        if path.suffix.lower() in _SUFFIXES
    )


class Glyphs:
    """Draws characters white on black, as large as fits into a box of one size.

    Args:
        size: (height, width) of the pictures in pixels, 4..512 each.
        font: ``"default"``; the path of a font file, behind which the default font draws what
            that one lacks (a Chinese font without Latin letters); None for the default font and,
            for what that lacks, the first font of the system that has it.
        margin: empty border on every side as a share of the smaller side, 0..0.45.
        upright: keep the proportions of a glyph (the default); False stretches it to the box.

    Raises:
        ValueError: an argument outside its limits, or a font that cannot be read.
    """

    def __init__(
        self,
        size: tuple[int, int],
        font: str | os.PathLike[str] | None = None,
        margin: float = 0.1,
        upright: bool = True,
    ) -> None:
        height, width = (int(v) for v in size)
        if not (4 <= height <= 512 and 4 <= width <= 512):
            raise ValueError(f"glyph size is {width}x{height}, each side must be 4..512 px")
        if not 0 <= margin <= 0.45:
            raise ValueError(f"margin is {margin}, must be in 0..0.45")
        self.size, self.margin, self.upright = (height, width), float(margin), bool(upright)
        self.font = None if font is None else os.fspath(font)
        if self.font is not None:
            _open(self.font)

    def __call__(self, texts: str | Sequence[str]) -> np.ndarray:
        """Draws glyphs.

        Args:
            texts: a string (one glyph for each of its characters) or a list of strings (one glyph
                each; several characters share a box).

        Returns:
            (N,H,W) float32 in 0..1, white on black.

        Raises:
            ValueError: no text, or a character that the font lacks.
            TypeError: anything but strings.
        """
        items = list(texts)
        if not items or not all(isinstance(t, str) for t in items):
            if items:
                raise TypeError("glyphs are drawn from a string or a list of strings")
            raise ValueError("there is no character to draw; give at least one")
        if any(not t for t in items):
            raise ValueError("an empty string has no glyph; leave it out")
        if self.font is not None:
            missing = _lacking(DEFAULT_FONT, _lacking(self.font, "".join(items)))
            if missing:
                name = "Pillow's default font" if self.font == DEFAULT_FONT else repr(self.font)
                raise ValueError(
                    f"{name} has no glyph for {', '.join(map(repr, missing))}; name a font that "
                    "has (font=, --font)"
                )
        return np.stack([self._draw(_open(self._font(item)), item) for item in items])

    def _font(self, text: str) -> str:
        if self.font is None:
            return find_font(text)
        return DEFAULT_FONT if _lacking(self.font, text) else self.font

    def _draw(self, font: Any, text: str) -> np.ndarray:
        from PIL import Image

        height, width = self.size
        mask = _mask(font, text)
        canvas = np.zeros(self.size, np.float32)
        if not mask.size:  # white space
            return canvas
        border = round(self.margin * min(height, width))
        room_h, room_w = max(1, height - 2 * border), max(1, width - 2 * border)
        high, wide = room_h, room_w
        if self.upright:
            scale = min(room_h / mask.shape[0], room_w / mask.shape[1])
            if mask.shape[0] < 0.45 * _SIZE:  # a full stop or a dash stays small
                scale = min(scale, room_h / (0.75 * _SIZE))
            high = max(1, min(room_h, round(mask.shape[0] * scale)))
            wide = max(1, min(room_w, round(mask.shape[1] * scale)))
        small = Image.fromarray(mask).resize((wide, high), Image.Resampling.BOX)
        top, left = (height - high) // 2, (width - wide) // 2
        canvas[top : top + high, left : left + wide] = np.asarray(small, np.float32) / 255
        return canvas
