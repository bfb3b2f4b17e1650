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
            "frames": [],
        }

    def continue_from(self, earlier: dict[str, Any]) -> None:
        """Goes on from what an earlier run on the same device found.

        Raises:
            ValueError: it is no result of this suite, or of another device.
        """
        if earlier.get("kind") != "gpu" or not {"device", "ops", "parts"} <= earlier.keys():
            raise ValueError("it is no result of the GPU suite")
        ours, theirs = (d["device"].get("device") for d in (self.data, earlier))
        if (ours, self.data["dry_run"]) != (theirs, earlier["dry_run"]):
            raise ValueError(f"it was measured on {theirs}, this is {ours}; start a new file")
        self.data |= earlier

    def done(self, text: str) -> None:
        """Takes back what an earlier :meth:`skip` said."""
        while text in self.data["skipped"]:
            self.data["skipped"].remove(text)

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
