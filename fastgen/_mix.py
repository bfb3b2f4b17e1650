"""Several styles in one picture: a blend with weights, or regions of a mask."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fastgen._controls import Controls, check_stroke_size
from fastgen._masks import Mask
from fastgen.backends._bands import BandInfo
from fastgen.stylizer import Stylizer, StylizerInfo

__all__ = ["StyleMix", "check_weights", "names_of"]

NONE = "none"  # the style that is the photo itself
MAX_STYLES = 16


def names_of(style: Any) -> list[str]:
    """Names of a blend's or a list's styles, for messages and for ``blend=``."""
    names = []
    for item in style:
        if item is None:
            names.append(NONE)
        elif isinstance(item, str | os.PathLike):
            names.append(os.fspath(item))
        elif isinstance(item, Stylizer):
            names.append(item.info.style)
        else:
            names.append(str(getattr(item, "meta", {}).get("style", "")))
    return names


def check_weights(blend: object, names: Sequence[str]) -> list[float]:
    """Checks the weights of a blend.

    Args:
        blend: style -> weight; styles that are left out have the weight 0.
        names: the styles that there are.

    Returns:
        The weights in the order of ``names``.

    Raises:
        TypeError: not a mapping to numbers. ValueError: an unknown style, a negative weight, or
            none above 0.
    """
    if not isinstance(blend, Mapping):
        raise TypeError(f"blend is {blend!r}, must be a dict of styles and their weights")
    given = dict(zip(names_of(blend), blend.values(), strict=True))
    for name, weight in given.items():
        if name not in names:
            raise ValueError(f"blend names {name!r}, which is none of {', '.join(names)}")
        known = isinstance(weight, int | float | np.integer | np.floating)
        if isinstance(weight, bool) or not known:
            raise TypeError(f"weight of {name!r} is {weight!r}, must be a number of at least 0")
        # An integer may be larger than any float, for which math.isfinite has no answer.
        if not 0 <= weight <= sys.float_info.max:
            raise ValueError(f"weight of {name!r} is {weight}, must be finite and at least 0")
    weights = [float(given.get(name, 0.0)) for name in names]
    if not any(weights):
        raise ValueError("all weights of the blend are 0; give one style a weight above 0")
    return weights


class StyleMix(Stylizer):
    """What ``Stylizer`` makes of a list or a dict of styles; called in the same way.

    Each style runs on the whole picture (only then are the statistics that its norms take from the
    picture right), and only if it is seen: weight 0, or nowhere in the mask, costs nothing.

    Args:
        style: a dict of styles and weights, which are divided by their sum, for a blend; or a list
            for the regions of a mask. ``"none"`` (or None) is the photo itself. A style is what
            ``Stylizer`` takes, or a ``Stylizer``.
        load: makes the ``Stylizer`` of one of them.
        options: as for ``Stylizer``, when there is no ``load``.

    Raises:
        ValueError: fewer than two styles, or weights that are no weights.
    """

    def __init__(
        self, style: Any, *, load: Callable[[Any], Stylizer] | None = None, **options: Any
    ) -> None:
        self._names = names_of(style)
        if not 2 <= len(self._names) <= MAX_STYLES:
            raise ValueError(
                f"{len(self._names)} styles in a {type(style).__name__}, must be 2..{MAX_STYLES}; "
                "a single one is given by its name"
            )
        if len(set(self._names)) < len(self._names) and isinstance(style, Mapping):
            raise ValueError(f"blend of {', '.join(self._names)} names a style twice")
        self._weights = check_weights(style, self._names) if isinstance(style, Mapping) else None
        known: dict[str, Stylizer | None] = {NONE: None}
        parts: list[Stylizer | None] = []
        for name, item in zip(self._names, style, strict=True):
            if isinstance(item, StyleMix):
                raise ValueError("a mix of styles cannot be part of another; list its styles")
            if isinstance(item, Stylizer):
                parts.append(item)
                continue
            by_name = item is None or isinstance(item, str | os.PathLike)
            if not by_name or name not in known:
                known[name] = load(item) if load else Stylizer(item, **options)
            parts.append(known[name])
        self._parts = tuple(parts)
        self._networks = list(dict.fromkeys(part for part in parts if part is not None))
        if not self._networks:
            raise ValueError("every style is 'none'; give at least one that paints")
        strides = [part._stride for part in self._networks]
        self._stride = None if None in strides else math.lcm(*filter(None, strides))

    @property
    def styles(self) -> tuple[str, ...]:
        """Names of the styles, in order."""
        return tuple(self._names)

    @property
    def info(self) -> StylizerInfo:
        """What runs: names, digests and terms of all styles, and the first one's backend."""
        infos = [part.info for part in self._networks]
        first = infos[0]
        return StylizerInfo(
            style=("+" if self._weights else "|").join(self._names),
            model="+".join(dict.fromkeys(i.model for i in infos)),
            parameters=sum(i.parameters for i in infos),
            backend=first.backend,
            why=first.why,
            precision=first.precision,
            threads=first.threads,
            sha256="+".join(i.sha256 for i in infos),
            licence="; ".join(dict.fromkeys(i.licence for i in infos)),
        )

    def band_info(
        self, width: int, height: int, stroke_size: float | None = None
    ) -> BandInfo | None:
        """As for one style; of the first one that runs in bands."""
        infos = (part.band_info(width, height, stroke_size) for part in self._networks)
        return next((info for info in infos if info is not None), None)

    def warmup(self, width: int, height: int) -> None:
        """Runs every network once on an empty image of this size."""
        for part in self._networks:
            part.warmup(width, height)

    def _controls(self, mask: Any, feather: float, blend: Any, **rest: Any) -> Controls | None:
        if rest["stroke_size"] is not None:
            check_stroke_size(rest["stroke_size"])
        if self._weights is None:
            if blend is not None:
                raise ValueError("blend is for styles in a dict with weights, these are a list")
            if mask is None:
                raise ValueError(
                    f"{len(self._parts)} styles in a list need a mask; give a dict of weights for "
                    "a blend of whole pictures"
                )
            if not isinstance(mask, Mask):
                mask = Mask(mask, feather=feather, max_pixels=rest["max_pixels"])
            elif feather:
                raise ValueError("feather is part of a fastgen.Mask; give it there")
            mask.check(len(self._parts))
            return Controls(weights=(), mask=mask, **rest)
        if mask is not None or feather:
            what = "mask" if mask is not None else "feather"
            raise ValueError(f"a blend has no regions for {what}; give the styles as a list")
        weights = self._weights if blend is None else check_weights(blend, self._names)
        return Controls(weights=weights, mask=None, **rest)
