"""Live: a camera, a stream or a file in; a window, a virtual camera, a stream or a file out.

>>> import fastgen
>>> fastgen.stylize_live("camera", "window", "great_wave.small", target_fps=25)

Only the newest frame is painted, so that nothing falls behind; latency is measured. Capturing and
encoding are FFmpeg's, through PyAV: ``pip install 'fastgen[video]'``.
"""

from __future__ import annotations

from fastgen.live._loop import LiveStats, stylize_live
from fastgen.live._scale import Ladder

__all__ = ["Ladder", "LiveStats", "stylize_live"]
