"""Several styles, masks, strokes and keyframes on the command line."""

from __future__ import annotations

from typing import Any

import click

from fastgen._controls import check_stroke_size
from fastgen._keyframes import Track, blend_from_text, track_from_text
from fastgen._masks import Mask, check_feather

__all__ = ["choose", "color", "over_time"]


def choose(
    styles: tuple[str, ...],
    default: str,
    blend: str | None,
    masks: tuple[str, ...],
    feather: float,
    stroke_size: float | None,
    *,
    moving: bool,
) -> tuple[Any, dict[str, Any]]:
    """What to load, and the arguments for every picture.

    Args:
        styles: of ``--style``.
        default: the style when none is named.
        blend: of ``--blend``.
        masks: of ``--mask``.
        feather: of ``--feather``.
        stroke_size: of ``--stroke-size``.
        moving: weights may be keyframes, and masks are read where they are used.

    Raises:
        click.UsageError: what does not fit together. OSError, ValueError: a mask that cannot be
            read.
    """
    options: dict[str, Any] = {}
    try:
        if stroke_size is not None:
            options["stroke_size"] = check_stroke_size(stroke_size)
        check_feather(feather)
        tracks = None if blend is None else blend_from_text("--blend", blend)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if feather and not masks:
        raise click.UsageError("--feather is for the edges of a --mask, and there is none")
    if tracks is not None:
        if styles or masks:
            what = "--style" if styles else "--mask"
            raise click.UsageError(f"--blend names its styles, so {what} cannot be given, too")
        if moving:
            return dict.fromkeys(tracks, 1.0), options | {"blend": tracks}
        for name, item in tracks.items():
            if len(item.times) > 1:
                raise click.UsageError(
                    f"--blend: {name} has keyframes, which are for files of video"
                )
        return {name: item.values[0] for name, item in tracks.items()}, options
    if len(styles) < 2:
        if masks:
            raise click.UsageError(
                "--mask needs two styles or more; give --style twice (none is the photo)"
            )
        return (styles or (default,))[0], options
    if not masks:
        raise click.UsageError(
            f"{len(styles)} styles need a --mask; --blend A=0.5,B=0.5 mixes whole pictures"
        )
    source: Any = masks[0] if len(masks) == 1 else list(masks)
    if moving:
        return list(styles), options | {"mask": source, "feather": feather}
    mask = Mask(source, feather=feather)
    try:
        mask.check(len(styles))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    return list(styles), options | {"mask": mask}


def over_time(option: str, text: str) -> float | Track:
    """A number, or keyframes.

    Raises:
        click.UsageError: neither.
    """
    try:
        item = track_from_text(option, text)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    return item if len(item.times) > 1 else item.values[0]


def color(flag: bool, amount: Any) -> Any:
    """How much colour is kept, of ``--preserve-color`` and ``--color-keep``."""
    if flag and amount is not None:
        raise click.UsageError("--preserve-color is --color-keep 1; give one of them")
    return flag if amount is None else amount
