"""Stylises one photo with every shipped style; `make demo` runs this."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import fastgen


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photo", type=Path)
    parser.add_argument("-o", "--out", type=Path, default=Path("out"), help="folder for pictures")
    args = parser.parse_args()
    if not args.photo.is_file():
        print(f"demo: {args.photo} is not a file; name a photo", file=sys.stderr)
        return 1
    names = fastgen.list_styles()
    if not names:
        print("demo: this checkout ships no trained style; see docs/training.md", file=sys.stderr)
        return 1
    args.out.mkdir(parents=True, exist_ok=True)
    print(f"fastgen {fastgen.__version__}: {args.photo} in {len(names)} styles")
    begin = time.perf_counter()
    for name in names:
        stylizer = fastgen.Stylizer(name)
        start = time.perf_counter()
        picture = stylizer(args.photo)
        took = time.perf_counter() - start
        target = args.out / f"{args.photo.stem}-{name}.png"
        picture.save(target)
        size, info = f"{picture.width}x{picture.height}", stylizer.info
        print(f"  {target}  {size}  {took * 1000:6.0f} ms  ({info.backend} {info.precision})")
    total = time.perf_counter() - begin
    print(f"{len(names)} pictures in {args.out.resolve()}, {total:.1f} s with loading and saving")
    return 0


if __name__ == "__main__":
    sys.exit(main())
