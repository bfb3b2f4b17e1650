"""Controls of a video: values that follow keyframes, and masks that follow the frames."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from fastgen._keyframes import Track, check_blend, is_constant, track
from fastgen._masks import Mask
from fastgen._mix import StyleMix
from fastgen.image import READ_SUFFIXES
from fastgen.stylizer import Style, Stylizer, check_color, check_strength
from fastgen.video._read import Clip, Frame, is_pattern, read, state_of

__all__ = ["FrameControls", "style_and_blend"]

_PLAIN = "starry_night.small"


def style_and_blend(
    style: Style | Stylizer | None, blend: Any, keyframes: Mapping[str, Any]
) -> tuple[Style | Stylizer, dict[Any, Track] | None]:
    """What to load, and the weights of a blend over time.

    Raises:
        ValueError: weights given in two places.
    """
    given = blend
    if "blend" in keyframes:
        if blend is not None:
            raise ValueError("blend is given twice, in keyframes, too; leave one out")
        given = keyframes["blend"]
    if isinstance(style, Mapping):
        if given is not None:
            raise ValueError("style is a dict of weights, and blend is given, too; leave one out")
        given = style
    if given is None:
        return _PLAIN if style is None else style, None
    if not isinstance(given, Mapping):
        raise TypeError(f"blend is {given!r}, must be a dict of styles and their weights")
    tracks = {name: track(f"blend: {name}", value, float("inf")) for name, value in given.items()}
    check_blend("blend", tracks)
    if style is None or isinstance(style, Mapping):
        return dict.fromkeys(tracks, 1.0), tracks
    if not isinstance(style, Stylizer):
        raise ValueError("blend names its styles itself; leave style out")
    return style, tracks


class FrameControls:
    """The arguments of a ``Stylizer`` for each frame.

    Args:
        stylizer: is asked whether they fit.
        clip: what is painted.
        keyframes: as from ``read_keyframes``; the rest as for ``stylize_video``.

    Raises:
        ValueError, TypeError: what does not fit together. OSError: a mask that cannot be read.
    """

    def __init__(
        self,
        stylizer: Stylizer,
        clip: Clip,
        *,
        strength: Any,
        preserve_color: Any,
        blend: dict[Any, Track] | None,
        stroke_size: float | None,
        mask: Any,
        feather: float,
        keyframes: Mapping[str, Any],
        max_pixels: int,
    ) -> None:
        for name, value, plain in (
            ("strength", strength, 1.0),
            ("preserve_color", preserve_color, False),
        ):
            if name in keyframes and not (is_constant(value) and value == plain):
                raise ValueError(f"{name} is given twice, in keyframes, too; leave one out")
        strength = keyframes.get("strength", strength)
        preserve_color = keyframes.get("preserve_color", preserve_color)
        if is_constant(strength) or isinstance(strength, str | None):
            check_strength(strength)
        if is_constant(preserve_color) or isinstance(preserve_color, str | None):
            check_color(preserve_color)
        self._tracks = {
            "strength": track("strength", strength),
            "preserve_color": track("preserve_color", preserve_color),
        }
        self._blend = blend
        self._fixed: dict[str, Any] = {"stroke_size": stroke_size, "max_pixels": max_pixels}
        self._masks: _MaskClip | None = None
        self.identity: dict[str, Any] = {
            name: item.values[0] if len(item.times) == 1 else item.as_list()
            for name, item in self._tracks.items()
        }
        others: dict[str, Any] = {}
        if stroke_size is not None:
            others["stroke_size"] = stroke_size
        if blend is not None:
            others["blend"] = {str(name): item.as_list() for name, item in blend.items()}
        if mask is not None and _is_clip(mask):
            count = len(stylizer.styles) if isinstance(stylizer, StyleMix) else 1
            if count > 2:
                raise ValueError(
                    f"mask {os.fspath(mask)} is a clip, which is for two styles, not {count}; "
                    "give one picture per style"
                )
            self._masks = _MaskClip(mask, clip, feather, max_pixels)
            others["mask"] = [os.fspath(mask), self._masks.state, feather]
        elif mask is not None:
            if isinstance(mask, Mask) and feather:
                raise ValueError("feather is part of a fastgen.Mask; give it there")
            whole = mask if isinstance(mask, Mask) else Mask(mask, feather=feather)
            self._fixed["mask"] = whole
            others["mask"] = [whole.digest(), whole.feather]
        elif feather:
            self._fixed["feather"] = feather
        if others:
            self.identity["controls"] = others
        try:
            stylizer.check_controls(**self._at(Fraction(0), self._first_mask()))
        except BaseException:
            self.__exit__()
            raise

    def __call__(self, frame: Frame) -> dict[str, Any]:
        """The arguments for a frame; call it for frames in their order."""
        return self._at(frame.time, None if self._masks is None else self._masks.at(frame.time))

    def __enter__(self) -> FrameControls:
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the clip of masks."""
        if self._masks is not None:
            self._masks.close()

    def _first_mask(self) -> Mask | None:
        # A frame of a clip is grey; whether that fits does not depend on which.
        return None if self._masks is None else Mask(np.zeros((1, 1), np.float32))

    def _at(self, time: Fraction, mask: Mask | None) -> dict[str, Any]:
        seconds = float(time)
        options: dict[str, Any] = {name: item.at(seconds) for name, item in self._tracks.items()}
        if self._blend is not None:
            options["blend"] = {name: item.at(seconds) for name, item in self._blend.items()}
        if mask is not None:
            options["mask"] = mask
        return options | self._fixed


def _is_clip(mask: Any) -> bool:
    if not isinstance(mask, str | os.PathLike):
        return False
    suffix = os.path.splitext(os.fspath(mask))[1].lower()
    return is_pattern(os.fspath(mask)) or suffix == ".gif" or suffix not in READ_SUFFIXES


class _MaskClip:
    """Masks from a video or numbered pictures: for each frame the one of its time.

    Numbered pictures have the clip's frame rate. When the masks end, the last one stays.
    """

    def __init__(self, path: Any, clip: Clip, feather: float, max_pixels: int) -> None:
        name = os.fspath(path)
        if name == "-":
            raise ValueError("a mask cannot be read from standard input; give a file")
        rate = float(clip.rate) if is_pattern(name) else None
        self._clip = read(path, fps=rate, max_pixels=max_pixels)
        self._frames: Iterator[Frame] = iter(self._clip)
        self._next = next(self._frames, None)
        self._grey: np.ndarray | None = None
        self._mask = Mask(np.zeros((1, 1), np.float32), feather=feather)
        self._half = 1 / clip.rate / 2  # times of files are rounded
        self.state = state_of(name)

    def at(self, time: Fraction) -> Mask:
        due: Frame | None = None
        while self._next is not None and (
            self._next.time <= time + self._half or (self._grey is None and due is None)
        ):
            due, self._next = self._next, next(self._frames, None)
        if due is not None:
            # Floats: in a lossy clip black may be 1 of 255, which as bytes is taken for a mistake.
            grey = due.image @ np.asarray((0.299, 0.587, 0.114), np.float32) / np.float32(255)
            if self._grey is None or not np.array_equal(grey, self._grey):
                self._grey = grey
                self._mask = Mask(grey.clip(0, 1), feather=self._mask.feather)
        return self._mask

    def close(self) -> None:
        self._clip.close()
