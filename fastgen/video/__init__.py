"""Video: clips in, the same clips stylised, and iterators for loops of your own.

>>> import fastgen
>>> fastgen.stylize_video("walk.mp4", "walk_wave.mp4", "great_wave.small")

>>> from fastgen import video
>>> with video.read("walk.mp4") as clip, video.write("out.mp4", like=clip) as out:
...     for frame in clip:
...         out.write(stylizer(frame.image), frame.time)

Decoding and encoding are FFmpeg's, through PyAV: ``pip install 'fastgen[video]'``.
"""

from __future__ import annotations

from fastgen.video._read import Clip, Frame, read
from fastgen.video._stylize import VideoResult, stylize_video
from fastgen.video._write import Writer, write

__all__ = ["Clip", "Frame", "VideoResult", "Writer", "read", "stylize_video", "write"]
