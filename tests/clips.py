"""Small clips made with PyAV alone, and what is in a clip."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from fastgen import video

SIZE = (64, 48)


def picture(index: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A gradient with a bright bar that moves, so that every frame is told from the others."""
    width, height = size
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.linspace(0, 200, width)
    image[..., 1] = np.linspace(0, 200, height)[:, None]
    image[..., 2] = 40
    left = index * 3 % (width - 6)
    image[:, left : left + 6] = 230
    return image


def make(
    path: Path,
    times: list[Fraction] | int = 20,
    *,
    size: tuple[int, int] = SIZE,
    sound: bool = False,
    rotation: int = 0,
    colors: tuple[int, int] | None = None,
    codec: str = "libx264",
) -> Path:
    """A clip made with PyAV alone; times in seconds, or a number of frames at 25 a second."""
    if isinstance(times, int):
        times = [Fraction(k, 25) for k in range(times)]
    with av.open(str(path), "w") as file:
        options = {"crf": "1"} if codec == "libx264" else {}
        stream = file.add_stream(codec, rate=25, options=options)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p" if codec == "libx264" else "bgr0"
        stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        if colors is not None:
            stream.codec_context.colorspace, stream.codec_context.color_range = colors
        voice = file.add_stream("aac", rate=16000) if sound else None
        for index, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(index, size), format="rgb24")
            if colors is not None:
                space, full = colors
                frame = frame.reformat(
                    format="yuv420p", dst_colorspace=space, src_color_range=2, dst_color_range=full
                )
            frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
        if voice is not None:
            noise = np.random.default_rng(0).normal(0, 0.1, (1, 1024)).astype(np.float32)
            for k in range(int(float(times[-1]) * 16000 / 1024) + 1):
                block = av.AudioFrame.from_ndarray(
                    noise * (1 + k % 3), format="fltp", layout="mono"
                )
                block.sample_rate, block.pts = 16000, k * 1024
                file.mux(voice.encode(block))
            file.mux(voice.encode(None))
    return path


def frames(path: Path, **options: Any) -> list[video.Frame]:
    with video.read(path, **options) as clip:
        return list(clip)


def sound_of(path: Path) -> list[bytes]:
    with av.open(str(path)) as file:
        return [bytes(p) for p in file.demux(file.streams.audio[0]) if p.size]
