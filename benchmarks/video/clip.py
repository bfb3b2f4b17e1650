"""The clip that is measured: the example clip, enlarged and repeated."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
RATE = 25


def make_clip(path: Path, width: int, height: int, frames: int) -> Path:
    """Writes an H.264 clip without sound (x264 veryfast, crf 20) and returns its path.

    The example clip is cropped to the shape, scaled and played forth and back, so that no cut
    comes in between.

    Args:
        path: where, .mp4.
        width: pixels.
        height: pixels.
        frames: how many, at 25 a second.
    """
    import av
    from PIL import Image, ImageOps

    with av.open(str(ROOT / "examples" / "walk.mp4")) as file:
        pictures = [p.to_image() for p in file.decode(video=0)]
    images = [ImageOps.fit(p, (width, height), Image.Resampling.BICUBIC) for p in pictures]
    turn = images + images[-2:0:-1]
    with av.open(str(path), "w") as out:
        options = {"preset": "veryfast", "crf": "20"}
        stream = out.add_stream("libx264", rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for k in range(frames):
            frame = av.VideoFrame.from_image(turn[k % len(turn)])
            frame.pts, frame.time_base = k, Fraction(1, RATE)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path
