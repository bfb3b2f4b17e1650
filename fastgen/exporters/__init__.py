"""Checkpoints in the formats of other runtimes; one file per format."""

from __future__ import annotations

from fastgen.exporters.onnx import export_onnx

__all__ = ["export_onnx"]
