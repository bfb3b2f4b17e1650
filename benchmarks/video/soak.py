"""Paints video for a long time and watches the memory of the process.

    python -m benchmarks.video.soak --minutes 30            a live stream, in real time
    python -m benchmarks.video.soak --minutes 30 --file     one long file, as fast as possible

The stream is a looped clip, written as HLS with the adaptive size on; the file is the same clip
repeated. Memory is the resident set. After a warm-up of a tenth of the time, at least 10 seconds,
the median of the first third is compared with that of the last: the exit code is 1 when they differ
by more than ``--limit`` MiB.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

from benchmarks.soak import judge, resident
from benchmarks.video.clip import RATE, make_clip

__all__ = ["soak"]

SHORT = 130  # frames of the clip that is repeated
WARM = 10.0  # seconds at least
FASTEST = 200 * 640 * 480  # pixels a second that a long file is prepared for
MOST = 5000  # frames a second, of small ones


class _Enough(Exception):
    pass


def repeat(clip: Path, path: Path, frames: int) -> Path:
    """A long clip of the same packets again and again, not encoded anew."""
    import av

    with av.open(str(clip)) as source, av.open(str(path), "w") as out:
        stream = source.streams.video[0]
        copy = out.add_stream_from_template(stream)
        packets = [p for p in source.demux(stream) if p.size]
        data = [(bytes(p), p.pts or 0, p.dts or 0, p.is_keyframe) for p in packets]
        base = packets[0].time_base
        turn = round(Fraction(len(data), RATE) / base)
        for k in range(-(-frames // len(data))):
            for content, pts, dts, key in data:
                packet = av.Packet(content)
                packet.pts, packet.dts, packet.time_base = pts + k * turn, dts + k * turn, base
                packet.is_keyframe, packet.stream = key, copy
                out.mux(packet)
    return path


def soak(seconds: float, size: tuple[int, int], style: str, is_file: bool) -> dict[str, Any]:
    """Runs for so long.

    Args:
        seconds: of the wall.
        size: (width, height) of the frames.
        style: of the network.
        is_file: one long file by ``stylize_video``, else a stream by ``stylize_live``.

    Returns:
        ``frames``, ``seconds`` and ``samples``: (seconds since the warm-up, resident bytes), about
        ten a second.
    """
    import fastgen

    warm = max(WARM, seconds / 10)
    samples: list[tuple[float, int]] = []
    begin = time.monotonic()
    frames = 0

    def look(*_: Any) -> None:
        nonlocal frames
        frames += 1
        at = time.monotonic() - begin
        if at >= warm and (not samples or at - warm - samples[-1][0] >= 0.1):
            samples.append((round(at - warm, 3), resident()))
        if at >= seconds + warm:
            raise _Enough

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clip = make_clip(folder / "clip.mp4", *size, SHORT)
        try:
            if is_file:
                rate = min(MOST, FASTEST / (size[0] * size[1]))
                long = repeat(clip, folder / "long.mkv", round((seconds + warm) * rate))
                begin = time.monotonic()
                fastgen.stylize_video(long, folder / "out.mkv", style, progress=look)
            else:
                sink = folder / "out.m3u8"
                fastgen.stylize_live(clip, sink, style, loop=True, target_fps=RATE, progress=look)
        except _Enough:
            pass
    return {"frames": frames, "seconds": time.monotonic() - begin, "samples": samples}


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0, help="(%(default)s)")
    parser.add_argument("--size", default="640x480", help="WIDTHxHEIGHT (%(default)s)")
    parser.add_argument("--style", default="starry_night.small", help="(%(default)s)")
    parser.add_argument("--file", action="store_true", help="one long file, not a stream")
    parser.add_argument("--limit", type=float, default=5.0, help="MiB (%(default)s)")
    args = parser.parse_args()
    width, height = map(int, args.size.split("x"))
    result = soak(60 * args.minutes, (width, height), args.style, args.file)
    first, last = judge(result["samples"])
    grown = (last - first) / 2**20
    memory = [m for _, m in result["samples"]]
    print(
        json.dumps(
            {
                "kind": "file" if args.file else "stream",
                "size": args.size,
                "seconds": round(result["seconds"], 1),
                "frames": result["frames"],
                "first_mib": round(first / 2**20, 1),
                "last_mib": round(last / 2**20, 1),
                "grown_mib": round(grown, 2),
                "least_mib": round(min(memory) / 2**20, 1),
                "most_mib": round(max(memory) / 2**20, 1),
            }
        )
    )
    return int(abs(grown) > args.limit)


if __name__ == "__main__":
    sys.exit(main())
