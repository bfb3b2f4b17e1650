"""The ``fastgen`` command; one file per command, imported when it is called."""

from __future__ import annotations

from fastgen.cli._app import Commands

__all__ = ["app", "main"]

app = Commands(
    "fastgen",
    {
        "stylize": ("fastgen.cli.stylize:stylize", "Paint photos in a style."),
        "video": ("fastgen.cli.video:video", "Paint every frame of a video."),
        "live": ("fastgen.cli.live:live", "Paint a camera or stream as it is seen."),
        "serve": ("fastgen.cli.serve:serve", "Serve a page and an HTTP interface."),
        "styles": ("fastgen.cli.styles:styles", "List the shipped styles."),
        "generate": (
            "fastgen.cli.generate:generate",
            "Generate pictures of a content in a style.",
        ),
        "doctor": ("fastgen.cli.doctor:doctor", "Show what can run on this machine and why."),
        "import": (
            "fastgen.cli.importing:import_",
            "Convert a checkpoint of another project (needs torch).",
        ),
        "export": (
            "fastgen.cli.export:export",
            "Write a checkpoint for another runtime (ONNX, Triton Inference Server).",
        ),
        "engine": ("fastgen.cli.engine:engine", "Build, list and delete TensorRT engines."),
        "train": ("fastgen.cli.train:train", "Train a style, or optimise one picture."),
        "eval": ("fastgen.cli.train:evaluate", "Measure trained networks on held-out photos."),
        "parity": ("fastgen.cli.parity:parity", "Compare every backend with PyTorch fp32."),
        "bench": ("fastgen.cli.bench:bench", "Measure latency against PyTorch, side by side."),
    },
    help="Real-time feedforward image generation: photos as paintings.",
)


def main() -> None:
    """Entry point of the ``fastgen`` command; always ends in ``SystemExit``."""
    app()
