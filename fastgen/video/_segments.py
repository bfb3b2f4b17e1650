"""A long encode as short files that survive a crash, joined without encoding again."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from fastgen.checkpoint import atomic_write
from fastgen.video._av import av_module, errors
from fastgen.video._convert import Framer
from fastgen.video._write import Encoding, check_frame, open_encoder, set_up

__all__ = ["Segments", "join"]

FRAMES = 240  # a segment; what is lost at most when the process is killed
SUFFIX = "packets"
# Presentation time, decoding time (ticks), key frame, bytes. Packets are stored as the encoder made
# them: a container in between would round or shift their times.
_RECORD = struct.Struct("<qqBI")


class Segments:
    """Encoded pieces of one video in a folder beside it.

    A piece is named by its first frame and the number of its frames, and gets its name when it is
    complete. Pieces are only used again for the same source and the same options.

    Args:
        folder: where they are.
        encoding: of the frames.
        identity: everything that the frames depend on.
        resume: keep what is there; otherwise it is deleted.

    Raises:
        ValueError: ``resume`` with pieces of another source or other options.
        BlockingIOError: another process writes the same video.
    """

    def __init__(
        self, folder: Path, encoding: Encoding, identity: dict[str, Any], *, resume: bool
    ) -> None:
        self.folder = folder
        self.encoding = encoding
        self._frame = Framer(encoding)
        self._file: Any = None
        self._encoder: Any = None
        self._temporary = folder / "open.part"
        self._first = self._count = 0
        self._last: int | None = None
        self._lock = _lock(folder)
        job = folder / "job.json"
        if resume and job.exists():
            try:
                _check_identity(job, identity)
            except ValueError:
                self.close()
                raise
        else:
            for path in (*folder.glob(f"*.{SUFFIX}"), self._temporary):
                path.unlink(missing_ok=True)
            atomic_write(job, json.dumps(identity, indent=1, sort_keys=True).encode())
        self.frames = sum(count for _, count, _ in self.pieces())

    def pieces(self) -> list[tuple[int, int, Path]]:
        """(first frame, frames, path), in order and without a gap; the rest is deleted."""
        found = []
        for path in self.folder.glob(f"*-*.{SUFFIX}"):
            numbers = path.stem.split("-")
            found.append((int(numbers[0]), int(numbers[1]), path))
        result: list[tuple[int, int, Path]] = []
        expected = 0
        for first, count, path in sorted(found):
            if first != expected:
                path.unlink()
                continue
            result.append((first, count, path))
            expected += count
        return result

    def write(self, image: np.ndarray, time: Fraction) -> None:
        """Adds the next frame."""
        encoding = self.encoding
        check_frame(image, (encoding.width, encoding.height))
        if self._file is None:
            self._first, self._count = self.frames, 0
            self._file = self._temporary.open("wb")
            self._encoder = av_module().CodecContext.create(encoding.codec, "w")
            self._encoder.options = dict(encoding.options)
            set_up(self._encoder, encoding)
        ticks = round(time / encoding.time_base)
        if self._last is not None and ticks <= self._last:
            ticks = self._last + 1
        self._last = ticks
        self._encode(self._frame(image, ticks))
        self.frames += 1
        self._count += 1
        if self._count == FRAMES:
            self.finish()

    def _encode(self, frame: Any) -> None:
        with errors(str(self.folder)):
            packets = self._encoder.encode(frame)
        for packet in packets:
            data = bytes(packet)
            key = bool(packet.is_keyframe)
            with _named(self.folder):
                self._file.write(_RECORD.pack(packet.pts, packet.dts, key, len(data)))
                self._file.write(data)

    def finish(self) -> None:
        """Completes the open piece."""
        if self._file is None:
            return
        self._encode(None)
        file, self._file, self._encoder = self._file, None, None
        with _named(self.folder), file:
            file.flush()
            os.fsync(file.fileno())
        name = f"{self._first:09d}-{self._count}.{SUFFIX}"
        os.replace(self._temporary, self.folder / name)

    def abandon(self) -> None:
        """Drops the open piece."""
        if self._file is not None:
            file, self._file, self._encoder = self._file, None, None
            with contextlib.suppress(OSError):
                file.close()
        with contextlib.suppress(OSError):
            self._temporary.unlink()

    def remove(self) -> None:
        """Deletes the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.close()

    def close(self) -> None:
        """Lets another process go on with the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _lock(folder: Path) -> Any:
    """Makes the folder and holds it until the file is closed (where the system can lock files)."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:
        return None
    file = (folder / "lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise BlockingIOError(
            f"{folder}: another process is writing this video; wait for it or choose another output"
        ) from None
    return file


def _check_identity(job: Path, identity: dict[str, Any]) -> None:
    try:
        known = json.loads(job.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    changed = sorted(k for k in {*known, *identity} if known.get(k) != identity.get(k))
    if changed:
        raise ValueError(
            f"{job.parent} is of another run ({', '.join(changed)} differ); use the same options, "
            "or run without resume to start again"
        )


def join(
    segments: Segments,
    path: str,
    source: str | None,
    window: tuple[Fraction | None, Fraction | None],
) -> list[str]:
    """Joins pieces to one file and copies the source's sound and subtitles into it, unchanged.

    Args:
        segments: complete.
        path: the file to write; it appears complete or not at all.
        source: file with the other streams, None for none.
        window: seconds of the source that were taken, None for its ends; times start at the first.

    Returns:
        What could not be copied, a line each.
    """
    av = av_module()
    folder, base = os.path.split(os.path.abspath(path))
    temporary = os.path.join(folder, f".{base}.{os.getpid()}.part")
    suffix = os.path.splitext(base)[1].lower()
    kind = {".m4v": "mp4", ".mkv": "matroska"}.get(suffix, suffix[1:])
    left_out: list[str] = []
    with contextlib.ExitStack() as stack:
        stack.callback(_unlink, temporary)
        with errors(path):
            options = {"movflags": "+faststart"} if kind in ("mp4", "mov") else {}
            output = stack.enter_context(av.open(temporary, "w", format=kind, options=options))
            video = open_encoder(output, segments.encoding)
            others: Iterator[tuple[Fraction, Any]] = iter(())
            if source is not None:
                origin = stack.enter_context(av.open(source))
                output.metadata.update(origin.metadata)
                others = _others(origin, output, window, left_out)
            waiting = next(others, None)
            for time, packet in _video(segments, video):
                while waiting is not None and waiting[0] <= time:
                    output.mux(waiting[1])
                    waiting = next(others, None)
                output.mux(packet)
            while waiting is not None:
                output.mux(waiting[1])
                waiting = next(others, None)
            output.close()
        os.replace(temporary, path)
    return left_out


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors of writing say where; Python's own, of a full disk, do not."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), os.fspath(path)) from None


def _unlink(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)


def _video(segments: Segments, stream: Any) -> Iterator[tuple[Fraction, Any]]:
    """Packets of all pieces; decoding times go on rising where two meet."""
    tick = segments.encoding.time_base
    last: int | None = None
    for _, _, path in segments.pieces():
        with path.open("rb") as file:
            while head := file.read(_RECORD.size):
                pts, dts, key, size = _RECORD.unpack(head)
                packet = av_module().Packet(file.read(size))
                dts = dts if last is None else max(dts, last + 1)
                packet.pts, packet.dts, packet.time_base = pts, min(dts, pts), tick
                packet.is_keyframe = bool(key)
                packet.stream = stream
                last = dts
                yield dts * tick, packet


def _others(
    origin: Any, output: Any, window: tuple[Fraction | None, Fraction | None], left_out: list[str]
) -> Iterator[tuple[Fraction, Any]]:
    """Packets of sound and subtitles with their times, in order."""
    copies = {}
    for stream in (*origin.streams.audio, *origin.streams.subtitles):
        codec = getattr(stream.codec_context, "name", None)
        if codec not in output.supported_codecs:
            left_out.append(f"{stream.type} {codec} does not fit into {output.format.name}")
            continue
        copies[stream.index] = output.add_stream_from_template(stream)
        copies[stream.index].metadata.update(stream.metadata)
    if not copies:
        return iter(())
    return _copied(origin, copies, window)


def _copied(
    origin: Any, copies: dict[int, Any], window: tuple[Fraction | None, Fraction | None]
) -> Iterator[tuple[Fraction, Any]]:
    begin, end = window
    av = av_module()
    packets = origin.demux([origin.streams[i] for i in copies])
    while True:
        try:
            packet = next(packets, None)
        except av.error.InvalidDataError:
            continue
        if packet is None:
            return
        if packet.pts is None and packet.dts is None:
            continue
        tick = Fraction(packet.time_base)
        time = (packet.dts if packet.dts is not None else packet.pts) * tick
        # Encoder delay before 0 s belongs to the whole clip; a part begins where it was cut.
        if (begin is not None and time < begin) or (end is not None and time >= end):
            continue
        shift = round((begin or 0) / tick)
        if shift:
            packet.pts = None if packet.pts is None else packet.pts - shift
            packet.dts = None if packet.dts is None else packet.dts - shift
        packet.stream = copies[packet.stream_index]
        yield time - (begin or 0), packet
