"""Makes one picture out of photos and styles: a row for each photo, a column for each style."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

import fastgen

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
LABEL = 22  # height of the line of names, px
GAP = 4


def find_photos(paths: list[Path]) -> list[Path]:
    """Files as they are, folders by what they contain (sorted)."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
        else:
            found.append(path)
    return found


def load(path: Path, width: int, height: int) -> Image.Image:
    """The photo, upright, RGB, scaled and cropped around its middle to width x height."""
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    return ImageOps.fit(upright, (width, height), Image.Resampling.LANCZOS)


def sheet(photos: list[Path], styles: list[str], width: int, height: int) -> Image.Image:
    """The contact sheet.

    Args:
        photos: one row each.
        styles: names of styles, or checkpoint files; one column each, after the photo's own.
        width: of a cell, px.
        height: of a cell, px.
    """
    columns = 1 + len(styles)
    size = (
        columns * width + (columns - 1) * GAP,
        LABEL + len(photos) * height + (len(photos) - 1) * GAP,
    )
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(14)
    originals = [load(path, width, height) for path in photos]
    for column, style in enumerate(["photo", *styles]):
        left = column * (width + GAP)
        name = Path(style).stem if style.endswith(".safetensors") else style
        draw.text((left + width // 2, LABEL // 2), name, "black", font, anchor="mm")
        stylizer = fastgen.Stylizer(style) if column else None
        for row, photo in enumerate(originals):
            cell = stylizer(photo) if stylizer else photo
            canvas.paste(cell, (left, LABEL + row * (height + GAP)))
    return canvas


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path, nargs="+", help="photos, or folders of photos")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--styles", nargs="*", help="names or files; default: all shipped styles")
    parser.add_argument("--cell", default="320x240", help="WIDTHxHEIGHT of a cell (%(default)s)")
    parser.add_argument("--limit", type=int, default=12, help="at most so many photos")
    args = parser.parse_args()
    try:
        width, height = (int(part) for part in args.cell.split("x"))
    except ValueError:
        parser.error(f"--cell is {args.cell!r}, must be WIDTHxHEIGHT")
    photos = find_photos(args.photos)[: args.limit]
    styles = args.styles or fastgen.list_styles()
    if not photos or not styles:
        parser.error(f"there are {len(photos)} photos and {len(styles)} styles to show")
    picture = sheet(photos, styles, width, height)
    options = {"quality": 88} if args.out.suffix.lower() in {".jpg", ".jpeg"} else {}
    picture.save(args.out, **options)
    print(f"{args.out}: {picture.width}x{picture.height}, {len(photos)} photos")
    return 0


if __name__ == "__main__":
    sys.exit(main())
