"""What the JSON says about the machine: its processor, not its name."""

from __future__ import annotations

from typing import Any

from benchmarks.machine import describe


def pytest_benchmark_update_machine_info(config: object, machine_info: dict[str, Any]) -> None:
    """Replaces host name and kernel by what matters for a time."""
    machine_info.clear()
    machine_info |= describe()


def pytest_benchmark_update_commit_info(config: object, commit_info: dict[str, Any]) -> None:
    """Keeps which commit it was and drops branch and project."""
    for key in ("branch", "project", "author_time"):
        commit_info.pop(key, None)
