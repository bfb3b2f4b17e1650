"""Steady video from networks that paint every frame on its own."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from fastgen.errors import BackendUnavailable
from fastgen.stylizer import Stylizer, check_strength

__all__ = ["DEFAULT_STRENGTH", "Stabilizer", "stabilizer_strength"]

DEFAULT_STRENGTH = 0.5
_MOST_STRIDE = 16  # of a network: so many rows and columns more have to be painted
# Of strength 1: the most of the painting before that is mixed into the new one where the picture
# moves, and where it stands still.
_MOVING = 0.8
_STILL = 0.9


class Stabilizer:
    """Paints the frames of one video so that they flicker less, with any checkpoint.

    Each frame is painted by the stylizer. A network with strides paints on a grid, and what moves
    by a part of it changes its texture; so the frame is shifted until the grid goes along with most
    of the picture (not with ``mask`` or ``stroke_size``). Then the result before it, moved along
    with the picture, is mixed in where the two frames show the same thing; what is new, hidden or
    different is of the new painting alone. After a cut, at first, or at another size it starts
    again by itself.

    Frames of one video, in order: one object is one stream. Calls from several threads run one
    after the other.

    Args:
        stylizer: what paints; it may be shared by several streams.
        strength: 0 leaves every frame as the stylizer paints it, to the last bit; 1 is the
            steadiest. May be changed between frames.

    Raises:
        TypeError: ``stylizer`` is no Stylizer, or ``strength`` no number.
        ValueError: ``strength`` is outside 0..1.
        BackendUnavailable: fastgen's extension module is not built.

    Source: motion as in Kroeger et al. 2016, "Fast Optical Flow using Dense Inverse Search";
    the paintings are blended along it as in Ruder et al. 2016, "Artistic Style Transfer for
    Videos", without its optimisation; the grid is chosen as the phases of Chaman and Dokmanic 2021,
    "Truly Shift-Invariant Convolutional Neural Networks", but by the motion.
    """

    def __init__(self, stylizer: Stylizer, *, strength: float = DEFAULT_STRENGTH) -> None:
        if not isinstance(stylizer, Stylizer):
            kind = type(stylizer).__qualname__
            raise TypeError(f"stylizer is one {kind}, must be a fastgen.Stylizer")
        try:
            from fastgen import _C
        except ImportError as error:
            raise BackendUnavailable(
                f"the stabilizer needs fastgen's extension module ({error}); "
                "reinstall fastgen: pip install ."
            ) from None
        self.strength = strength
        self._stylizer = stylizer
        self._core = _C.Stabilizer(threads=min(stylizer.info.threads, 1024))
        self._lock = threading.Lock()
        stride = stylizer._stride
        self._stride = stride if stride is not None and stride <= _MOST_STRIDE else 1
        self._grid = (0, 0)  # how far right and down the picture is shifted before it is painted

    @property
    def strength(self) -> float:
        """0..1; may be set."""
        return self._strength

    @strength.setter
    def strength(self, value: float) -> None:
        check_strength(value)
        self._strength = float(value)

    def __repr__(self) -> str:
        return f"Stabilizer({self._stylizer!r}, strength={self._strength:g})"

    def reset(self) -> None:
        """Forgets the frames so far: the next one is the first of another video."""
        with self._lock:
            self._core.reset()
            self._grid = (0, 0)

    def __call__(self, frame: np.ndarray, **options: Any) -> np.ndarray:
        """Paints the next frame.

        Args:
            frame: uint8 (H,W,3). Another size than before starts again.
            **options: as for calling the :class:`Stylizer`.

        Returns:
            uint8 (H,W,3).

        Raises:
            TypeError: the frame is no uint8 array, or an unknown option.
            ValueError: the frame has another shape, or a wrong option.
        """
        _check_frame(frame)
        if self._strength == 0:
            self.reset()
            return self._stylizer(frame, **options)  # type: ignore[no-any-return]
        with self._lock:
            strength = self._strength
            frame = np.ascontiguousarray(frame)
            self._follow(frame, options.get("mask") is None and options.get("stroke_size") is None)
            painting = self._paint_on_grid(frame, options)
            return self._core.blend(  # type: ignore[no-any-return]
                painting, _MOVING * strength, _STILL * strength
            )

    def watch(self, frame: np.ndarray, *, grid: bool = True) -> None:
        """Follows the motion of a frame that is not painted.

        A run that is to end as another one, which has painted more frames before, watches those.

        Args:
            frame: as for a call.
            grid: whether the network's grid goes along; False for frames that are painted with
                ``mask`` or ``stroke_size``.

        Raises:
            TypeError, ValueError: as a call.
        """
        _check_frame(frame)
        if self._strength == 0:
            self.reset()
            return
        with self._lock:
            self._follow(np.ascontiguousarray(frame), grid)

    def _follow(self, frame: np.ndarray, grid: bool) -> None:
        follows = self._core.motion(frame)
        if not follows or not grid or min(frame.shape[:2]) < 2 * _MOST_STRIDE:
            self._grid = (0, 0)
        elif self._stride > 1:
            moved = self._core.shift(self._stride)
            x, y = ((g - m) % self._stride for g, m in zip(self._grid, moved, strict=True))
            self._grid = (x, y)

    def _paint_on_grid(self, frame: np.ndarray, options: dict[str, Any]) -> np.ndarray:
        x, y = self._grid
        height, width = frame.shape[:2]
        if x or y:
            frame = _shifted(frame, x, y, self._stride)
        painting = np.ascontiguousarray(self._stylizer(frame, **options))
        return painting[y : y + height, x : x + width]


def _shifted(frame: np.ndarray, x: int, y: int, stride: int) -> np.ndarray:
    """A frame at (x, y) of a larger one, whose size is the same for all x and y below the stride.

    What is around it is mirrored, as the networks do it.
    """
    height, width = frame.shape[:2]
    # Whole strides, which is what the network makes of any size.
    rows, columns = (-(-(side + stride - 1) // stride) * stride for side in (height, width))
    below, right = rows - height - y, columns - width - x
    out = np.empty((rows, columns, 3), np.uint8)
    middle = out[y : y + height]
    middle[:, x : x + width] = frame
    middle[:, :x] = frame[:, x:0:-1]
    middle[:, x + width :] = frame[:, -2 : -2 - right : -1]
    out[:y] = middle[y:0:-1]
    out[y + height :] = middle[-2 : -2 - below : -1]
    return out


def stabilizer_strength(stabilize: object) -> float:
    """What ``stabilize=`` means: False is 0, True the default, a number itself.

    Raises:
        TypeError: no bool and no number.
        ValueError: outside 0..1.
    """
    if isinstance(stabilize, bool | np.bool_):
        return DEFAULT_STRENGTH if stabilize else 0.0
    try:
        check_strength(stabilize)
    except (TypeError, ValueError) as error:
        raise type(error)(f"stabilize: {error}; True takes {DEFAULT_STRENGTH}") from None
    return float(stabilize)  # type: ignore[arg-type]


def _check_frame(frame: object) -> None:
    if not isinstance(frame, np.ndarray):
        kind = type(frame).__qualname__
        raise TypeError(f"frame is one {kind}, the stabilizer takes uint8 arrays (H,W,3)")
    if frame.dtype != np.uint8:
        raise TypeError(f"frame has the dtype {frame.dtype}, the stabilizer takes uint8 (H,W,3)")
    if frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
        raise ValueError(f"frame has the shape {frame.shape}, must be (H,W,3) without zeros")
