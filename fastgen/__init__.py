"""fastgen: real-time feedforward image generation.

>>> import fastgen
>>> picture = fastgen.stylize("photo.jpg", "starry_night")
>>> picture.save("starry.png")

Everything public is in ``__all__`` and is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastgen import ops, video
    from fastgen._masks import Mask
    from fastgen.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
    from fastgen.errors import BackendUnavailable, CheckpointError, FastgenError, ImageError
    from fastgen.exporters import export_onnx
    from fastgen.generator import Generator, generate
    from fastgen.generators import list_generators, load_generator
    from fastgen.live import LiveStats, stylize_live
    from fastgen.stabilizer import Stabilizer
    from fastgen.styles import list_styles, load_style
    from fastgen.stylizer import StreamStats, Stylizer, stylize
    from fastgen.video import stylize_video

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailable",
    "Checkpoint",
    "CheckpointError",
    "FastgenError",
    "Generator",
    "ImageError",
    "LiveStats",
    "Mask",
    "Stabilizer",
    "StreamStats",
    "Stylizer",
    "__version__",
    "export_onnx",
    "generate",
    "list_generators",
    "list_styles",
    "load_checkpoint",
    "load_generator",
    "load_style",
    "ops",
    "save_checkpoint",
    "stylize",
    "stylize_live",
    "stylize_video",
    "video",
]

_HOME = {
    "BackendUnavailable": "errors",
    "Checkpoint": "checkpoint",
    "CheckpointError": "errors",
    "FastgenError": "errors",
    "Generator": "generator",
    "ImageError": "errors",
    "Mask": "_masks",
    "LiveStats": "live",
    "Stabilizer": "stabilizer",
    "StreamStats": "stylizer",
    "Stylizer": "stylizer",
    "export_onnx": "exporters",
    "generate": "generator",
    "list_generators": "generators",
    "list_styles": "styles",
    "load_checkpoint": "checkpoint",
    "load_generator": "generators",
    "load_style": "styles",
    "ops": "",
    "save_checkpoint": "checkpoint",
    "stylize": "stylizer",
    "stylize_live": "live",
    "stylize_video": "video",
    "video": "",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fastgen' has no attribute {name!r}")
    from importlib import import_module

    home = _HOME[name]
    value = (
        getattr(import_module(f"fastgen.{home}"), name)
        if home
        else import_module(f"fastgen.{name}")
    )
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
