"""Values that change over time: keyframes, linear in between."""

from __future__ import annotations

import bisect
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Track", "blend_from_text", "is_constant", "read_keyframes", "track", "track_from_text"]

NAMES = ("strength", "preserve_color", "blend")
MAX_BYTES = 10_000_000


@dataclass(frozen=True)
class Track:
    """Keyframes of one value.

    Attributes:
        times: seconds, rising.
        values: the value at each; before the first and after the last it does not change.
    """

    times: tuple[float, ...]
    values: tuple[float, ...]

    def at(self, time: float) -> float:
        """The value at a second."""
        after = bisect.bisect_right(self.times, time)
        if after == 0:
            return self.values[0]
        if after == len(self.times):
            return self.values[-1]
        begin, end = self.times[after - 1], self.times[after]
        first, last = self.values[after - 1], self.values[after]
        return first + (last - first) * ((time - begin) / (end - begin))

    def as_list(self) -> list[list[float]]:
        """Pairs of time and value, for JSON."""
        return [list(pair) for pair in zip(self.times, self.values, strict=True)]


def is_constant(value: object) -> bool:
    """Whether a value is one number (or flag) and no keyframes."""
    return isinstance(value, int | float | np.integer | np.floating | np.bool_)


def track(what: str, value: Any, top: float = 1.0) -> Track:
    """Keyframes as a :class:`Track`.

    Args:
        what: for messages.
        value: a number, a dict {seconds: value} (of JSON, with seconds as text), or pairs
            (seconds, value).
        top: the largest value; the smallest is 0.

    Raises:
        TypeError: something else. ValueError: times that do not rise, values out of range.
    """
    if isinstance(value, Track):
        return value
    if is_constant(value):
        return Track((0.0,), (_number(what, "value", value, 0.0, top),))
    if isinstance(value, Mapping):
        pairs: list[Any] = list(value.items())
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        pairs = list(value)
    else:
        raise TypeError(
            f"{what} is {value!r}, must be a number or keyframes such as {{0: 0.0, 2.5: 1.0}}"
        )
    if not pairs:
        raise ValueError(f"{what} has no keyframe; give at least one, such as {{0: 1.0}}")
    times: list[float] = []
    values: list[float] = []
    for pair in pairs:
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise ValueError(f"{what} has the keyframe {pair!r}, must be a pair [seconds, value]")
        time = pair[0]
        if isinstance(time, str):
            time = _float(what, "time", time)
        time = _number(what, "time", time, 0.0, math.inf)
        if times and time <= times[-1]:
            raise ValueError(
                f"{what} has a keyframe at {time:g} s behind that at {times[-1]:g} s; times must "
                "rise"
            )
        times.append(time)
        values.append(_number(what, "value", pair[1], 0.0, top))
    return Track(tuple(times), tuple(values))


def track_from_text(what: str, text: str, top: float = 1.0) -> Track:
    """Keyframes as the command line has them: ``0.8``, or ``0:0,2.5:1`` (seconds:value)."""
    if ":" not in text:
        return track(what, _float(what, "value", text), top)
    pairs = []
    for item in text.split(","):
        time, colon, value = item.partition(":")
        if not colon:
            raise ValueError(f"{what} has {item!r}, must be SECONDS:VALUE, such as 0:0,2.5:1")
        pairs.append((_float(what, "time", time), _float(what, "value", value)))
    return track(what, pairs, top)


def blend_from_text(what: str, text: str) -> dict[str, Track]:
    """Weights as the command line has them: ``A=0.7,B=0.3``, or ``A=0:1,3:0,B=0:0,3:1``."""
    words: dict[str, list[str]] = {}
    name = None
    for item in text.split(","):
        head, equals, value = item.rpartition("=")
        if equals:
            name = head.strip()
            if not name or name in words:
                fault = "names a style twice" if name else "has a weight without a style"
                raise ValueError(f"{what} {text!r} {fault}; write STYLE=WEIGHT,STYLE=WEIGHT")
            words[name] = [value]
        elif name is None:
            raise ValueError(f"{what} is {text!r}, must be STYLE=WEIGHT,STYLE=WEIGHT")
        else:
            words[name].append(value)
    tracks = {
        name: track_from_text(f"{what}: {name}", ",".join(values), math.inf)
        for name, values in words.items()
    }
    check_blend(what, tracks)
    return tracks


def check_blend(what: str, tracks: Mapping[str, Track]) -> None:
    """Checks that at no time all weights are 0.

    A sum of linear pieces is 0 only where one of them begins or ends, as no weight is negative.
    """
    for time in sorted({time for item in tracks.values() for time in item.times}):
        if not any(item.at(time) > 0 for item in tracks.values()):
            raise ValueError(f"{what}: all weights are 0 at {time:g} s; give one a weight above 0")


def read_keyframes(source: Any) -> dict[str, Any]:
    """Keyframes of several values, from a JSON file or a dict of the same form.

    ``{"strength": {"0": 0, "2.5": 1}, "preserve_color": 0.5, "blend": {"A": [[0, 1], [3, 0]],
    "B": [[0, 0], [3, 1]]}}``: each is a number, an object {seconds: value} or pairs.

    Returns:
        A :class:`Track` for ``strength`` and ``preserve_color``, a dict of them for ``blend``;
        only those that are there.

    Raises:
        OSError: the file cannot be read. ValueError: it is no such JSON. TypeError: no path or
            dict.
    """
    name = ""
    if isinstance(source, str | os.PathLike):
        name = f"{os.fspath(source)}: "
        with open(source, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ValueError(f"{name}is larger than {MAX_BYTES:,} bytes, no file of keyframes")
        try:
            source = json.loads(data, object_pairs_hook=_without_twins)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{name}is no JSON of keyframes: {error}") from None
        if not isinstance(source, dict):
            raise ValueError(f"{name}holds a {type(source).__name__}, must be an object")
    elif not isinstance(source, Mapping):
        raise TypeError(f"keyframes is of type {type(source).__name__}, must be a path or a dict")
    result: dict[str, Any] = {}
    for key, value in source.items():
        if key not in NAMES:
            raise ValueError(f"{name}unknown name {key!r}, must be one of {', '.join(NAMES)}")
        if key != "blend":
            result[key] = track(name + key, value)
            continue
        if not isinstance(value, Mapping) or not value:
            raise ValueError(f"{name}blend must be an object of styles and their weights")
        result[key] = {
            style: track(f"{name}blend: {style}", weights, math.inf)
            for style, weights in value.items()
        }
        check_blend(f"{name}blend", result[key])
    return result


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen = set()
    for key, _ in pairs:
        if key in seen:
            raise ValueError(f"{key!r} is there twice")
        seen.add(key)
    return dict(pairs)


def _float(what: str, part: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{what} has the {part} {text!r}, must be a number") from None


def _number(what: str, part: str, value: object, low: float, top: float) -> float:
    if not is_constant(value) or (part == "time" and isinstance(value, bool | np.bool_)):
        raise TypeError(f"{what} has the {part} {value!r}, must be a number")
    try:
        number = float(value)  # type: ignore[arg-type]
    except OverflowError:  # an integer above all floats
        number = math.inf
    if not (low <= number <= top and math.isfinite(number)):
        limit = "finite and at least 0" if top == math.inf else f"in {low:g}..{top:g}"
        raise ValueError(f"{what} has the {part} {number:g}, must be {limit}")
    return number
