"""The result of a run as one JSON file that is complete after every part."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

__all__ = ["Results"]


class Results:
    """What was found so far, written after every change worth keeping.

    Attributes:
        data: JSON-ready; see docs/gpu.md for its keys.
        path: of the JSON file; the table is beside it.
    """

    def __init__(self, path: Path, data: dict[str, Any]) -> None:
        self.path = path
        self.data: dict[str, Any] = data | {
            "parts": {},
            "problems": [],
            "skipped": [],
            "ops": [],
            "networks": [],
        }

    def problem(self, text: str) -> None:
        """Notes what makes the run a failure."""
        self.data["problems"].append(text)

    def skip(self, text: str) -> None:
        """Notes what the time did not allow."""
        self.data["skipped"].append(text)

    def save(self) -> None:
        """Writes the JSON file; a reader sees the old or the new one, never half of it."""
        write_atomically(self.path, json.dumps(self.data, indent=1) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file under a temporary name and renames it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, "utf-8")
    os.replace(temporary, path)
