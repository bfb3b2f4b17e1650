"""``stylize_video``: reading, painting and writing at the same time."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fastgen._keyframes import read_keyframes
from fastgen.image import DEFAULT_MAX_PIXELS
from fastgen.stabilizer import Stabilizer, stabilizer_strength
from fastgen.stylizer import Style, Stylizer
from fastgen.video._controls import FrameControls, style_and_blend
from fastgen.video._read import Clip, Frame, is_pattern, read, state_of
from fastgen.video._segments import Segments, join
from fastgen.video._write import Encoding, Pipe, encoding_for, write

__all__ = ["VideoResult", "stylize_video"]

AHEAD = 4  # frames in each queue: enough to overlap, and memory stays constant
PIPES = ("y4m", "rgb24")
WARM_UP = 48  # frames before a resumed run that a stabilizer sees: what is older has faded


@dataclass
class VideoResult:
    """What was done.

    Attributes:
        frames: written, those of an earlier run that was resumed included.
        resumed: of these, how many were there already.
        width: pixels.
        height: pixels.
        seconds: wall time of this run.
        busy: seconds that reading, painting and writing took, each in its own thread.
        damaged: packets that could not be decoded.
        left_out: streams that the format of the output cannot hold.
    """

    frames: int = 0
    resumed: int = 0
    width: int = 0
    height: int = 0
    seconds: float = 0.0
    busy: dict[str, float] = field(default_factory=dict)
    damaged: int = 0
    left_out: list[str] = field(default_factory=list)

    @property
    def fps(self) -> float:
        """Frames a second of this run."""
        return (self.frames - self.resumed) / self.seconds if self.seconds else 0.0


def stylize_video(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    style: Style | Stylizer | None = None,
    *,
    strength: Any = 1.0,
    preserve_color: Any = False,
    stroke_size: float | None = None,
    mask: Any = None,
    feather: float = 0,
    blend: Any = None,
    keyframes: Any = None,
    stabilize: bool | float = False,
    backend: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    start: float | None = None,
    end: float | None = None,
    fps: float | None = None,
    max_height: int | None = None,
    codec: str | None = None,
    quality: int | None = None,
    preset: str | None = None,
    sound: bool = True,
    resume: bool = False,
    raw: tuple[int, int] | None = None,
    pipe: str = "y4m",
    hwaccel: str | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    progress: Callable[[int, int | None], None] | None = None,
) -> VideoResult:
    """Paints every frame of a video in a style; sound and subtitles are copied unchanged.

    Frame count, times (variable rates too), size and colour tags are kept; rotated clips are
    written upright. Reading, painting and writing overlap, in constant memory for any length. An
    encoded output is written in pieces beside it (``OUTPUT.parts``) and joined at the end, so that
    an interrupted run loses at most 240 frames: call again with ``resume=True``.

    Args:
        source: what :func:`fastgen.video.read` takes.
        output: a file (.mp4, .mov, .mkv, .webm, .gif), a pattern of numbered pictures
            (``out/%05d.png``), or ``"-"`` for standard output.
        style: name, checkpoint, or a ``Stylizer`` to use; several as for :func:`fastgen.stylize`.
            None: ``"starry_night.small"``, or what ``blend`` names.
        strength: 0 the clip, 1 the painting. A number, or keyframes that it follows in straight
            lines: ``{0: 0.0, 2.5: 1.0}`` or pairs (second of the clip, value).
        preserve_color: how much of the clip's colours is kept, True, False or 0..1; or keyframes.
        stroke_size: as for :func:`fastgen.stylize`.
        mask: as for :func:`fastgen.stylize`, for every frame the same; or, for two styles, the
            path of a video or of numbered pictures, whose grey of a frame's time is its mask.
        feather: as for :func:`fastgen.stylize`.
        blend: styles and their weights, each a number or keyframes.
        keyframes: ``strength``, ``preserve_color`` and ``blend`` in a dict, or the path of a JSON
            file with them.
        stabilize: less flicker, by a :class:`fastgen.Stabilizer`: True, or its strength in 0..1.
            A resumed run repeats what it needs of the frames before, and goes on as the whole run
            would have done but for rounding.
        backend: as for :func:`fastgen.stylize`.
        precision: as for :func:`fastgen.stylize`.
        threads: CPU threads of the network.
        start: second of the clip to begin at.
        end: second of the clip to stop before.
        fps: another, constant frame rate; frames are dropped or repeated.
        max_height: larger frames are scaled down first.
        codec: FFmpeg's name of an encoder (``libx265``, ``h264_nvenc``, ...).
        quality: its constant quality, 0 is best.
        preset: its speed preset.
        sound: copy sound and subtitles.
        resume: go on where an earlier call with the same arguments stopped.
        raw: (width, height) of plain rgb24 frames on standard input.
        pipe: ``"y4m"`` or ``"rgb24"`` for standard output.
        hwaccel: decode on this device type of FFmpeg.
        max_pixels: largest width*height of a frame.
        progress: called with (frames done, frames in all or None) after each.

    Raises:
        FastgenError: PyAV is not installed.
        ValueError, TypeError: a wrong argument, a file that is no video, another style.
        OSError: a file cannot be read or written.
        KeyboardInterrupt: what was finished is kept for ``resume``.
    """
    target, name = os.fspath(output), os.fspath(source)
    if pipe not in PIPES:
        raise ValueError(f"pipe is {pipe!r}, must be one of {', '.join(PIPES)}")
    suffix = Path(target).suffix.lower()
    # The frames of a GIF depend on a common palette, so it is written in one go.
    encoded = target != "-" and not is_pattern(target) and suffix != ".gif"
    if resume and not encoded:
        raise ValueError("only an encoded file can be resumed; leave resume out")
    if resume and name == "-":
        raise ValueError("standard input cannot be read again; leave resume out")
    if encoded and name != "-" and os.path.exists(target) and os.path.samefile(name, target):
        raise ValueError(f"output {target} is the source, which is never overwritten")
    steadiness = stabilizer_strength(stabilize)
    began = time.perf_counter()
    moving = {} if keyframes is None else read_keyframes(keyframes)
    style, weights = style_and_blend(style, blend, moving)
    clip = read(
        source,
        start=start,
        end=end,
        fps=fps,
        max_height=max_height,
        raw=raw,
        hwaccel=hwaccel,
        max_pixels=max_pixels,
    )
    with clip, contextlib.ExitStack() as stack:
        if encoded:
            encoding = encoding_for(clip, suffix, codec, quality, preset)
        if not isinstance(style, Stylizer):
            style = Stylizer(style, backend=backend, precision=precision, threads=threads)
        result = VideoResult(width=clip.width, height=clip.height)
        begin = Fraction(start or 0).limit_denominator(1_000_000)
        painter: Any = Stabilizer(style, strength=steadiness) if steadiness else style
        controls = stack.enter_context(
            FrameControls(
                style,
                clip,
                strength=strength,
                preserve_color=preserve_color,
                stroke_size=stroke_size,
                mask=mask,
                feather=feather,
                blend=weights,
                keyframes=moving,
                max_pixels=max_pixels,
            )
        )

        def paint(frame: Frame) -> Any:
            return painter(frame.image, **controls(frame))

        if not encoded:
            with Pipe(pipe, clip) if target == "-" else write(target, like=clip) as sink:
                _run(
                    clip, paint, lambda f: sink.write(f.image, f.time - begin), 0, result, progress
                )
        else:
            identity = {
                **_identity(name, style, encoding),
                **controls.identity,
                "stabilize": steadiness,
                "window": [str(start), str(end), str(fps)],
                "size": [clip.width, clip.height],
            }
            parts = Path(f"{target}.parts")
            watch = None
            if steadiness:
                watch = partial(painter.watch, grid=mask is None and stroke_size is None)
            segments = _encode(
                clip, paint, parts, encoding, identity, resume, watch, begin, result, progress
            )
            has_sound = sound and name != "-" and not is_pattern(name)
            window = begin if start else None, None if end is None else Fraction(end)
            result.left_out = join(segments, target, name if has_sound else None, window)
            segments.remove()
    result.damaged = clip.damaged
    result.seconds = time.perf_counter() - began
    return result


def _identity(name: str, style: Stylizer, encoding: Encoding) -> dict[str, Any]:
    info = style.info
    state = state_of(name)
    identity: dict[str, Any] = {
        "source": os.path.abspath(name) if state is not None else name,
        "style": info.sha256 or info.style,
        "precision": info.precision,
        "encoding": [encoding.codec, *map(list, encoding.options), str(encoding.time_base)],
    }
    if state is not None:
        identity["source_state"] = state
    return identity


def _encode(
    clip: Clip,
    paint: Callable[[Frame], Any],
    parts: Path,
    encoding: Encoding,
    identity: dict[str, Any],
    resume: bool,
    watch: Callable[[np.ndarray], None] | None,
    begin: Fraction,
    result: VideoResult,
    progress: Callable[[int, int | None], None] | None,
) -> Segments:
    parts.parent.mkdir(parents=True, exist_ok=True)
    segments = Segments(parts, encoding, identity, resume=resume)
    result.resumed = segments.frames
    try:
        _run(
            clip,
            paint,
            lambda f: segments.write(f.image, f.time - begin),
            segments.frames,
            result,
            progress,
            watch,
        )
        segments.finish()
    except BaseException:
        # What is complete stays for `resume`; a piece that can still be completed, too.
        try:
            segments.finish()
        except Exception:
            segments.abandon()
        if segments.pieces():
            segments.close()
        else:
            segments.remove()
        raise
    if not segments.frames:
        segments.remove()
        raise ValueError(f"{clip.name}: no frame in the chosen part of the clip")
    return segments


def _run(
    clip: Clip,
    paint: Callable[[Frame], Any],
    put: Callable[[Frame], None],
    skip: int,
    result: VideoResult,
    progress: Callable[[int, int | None], None] | None,
    watch: Callable[[np.ndarray], None] | None = None,
) -> None:
    """Reads and writes in threads of their own; this one paints.

    Of the frames that are skipped a stabilizer gets the last ones painted, though they are not
    written, and those before are given to ``watch``.
    """
    number = first = max(0, skip - (WARM_UP if watch else 0))
    busy = result.busy = {"read": 0.0, "paint": 0.0, "write": 0.0}
    stop = threading.Event()
    ahead: queue.Queue[Frame | None] = queue.Queue(AHEAD)
    behind: queue.Queue[Frame | None] = queue.Queue(AHEAD)
    failures: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # handed to the calling thread
            failures.append(error)
            stop.set()

    def reading() -> None:
        frames = _timed(iter(clip), busy)
        for index, frame in enumerate(frames):
            if index < first:
                if stop.is_set():
                    return
                if watch is not None:
                    watch(frame.image)
            elif not _put(ahead, frame, stop):
                return
        _put(ahead, None, stop)

    def writing() -> None:
        while (frame := _get(behind, stop)) is not None:
            started = time.perf_counter()
            put(frame)
            busy["write"] += time.perf_counter() - started
            result.frames += 1
            if progress is not None:
                progress(result.frames, clip.frames)

    result.frames = skip
    threads = [
        threading.Thread(target=guarded, args=(work,), name=f"fastgen {work.__name__}")
        for work in (reading, writing)
    ]
    for thread in threads:
        thread.start()
    finished = False
    try:
        while (frame := _get(ahead, stop)) is not None:
            started = time.perf_counter()
            frame.image = paint(frame)
            busy["paint"] += time.perf_counter() - started
            number += 1
            if number <= skip:
                continue
            if not _put(behind, frame, stop):
                break
        finished = True
    finally:
        if finished and not stop.is_set():
            _put(behind, None, stop)
        else:
            stop.set()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]


def _timed(frames: Iterator[Frame], busy: dict[str, float]) -> Iterator[Frame]:
    while True:
        started = time.perf_counter()
        frame = next(frames, None)
        busy["read"] += time.perf_counter() - started
        if frame is None:
            return
        yield frame


def _put(line: queue.Queue[Frame | None], item: Frame | None, stop: threading.Event) -> bool:
    while not stop.is_set():
        try:
            line.put(item, timeout=0.1)
            return True
        except queue.Full:
            continue
    return False


def _get(line: queue.Queue[Frame | None], stop: threading.Event) -> Frame | None:
    while not stop.is_set():
        try:
            return line.get(timeout=0.1)
        except queue.Empty:
            continue
    return None
