"""A pytest plugin that notes every test as it ends, so that a run that is cut short still counts.

Writes JSON lines to the file that ``FASTGEN_SUITE_LOG`` names.
"""

from __future__ import annotations

import json
import os
from typing import Any

from benchmarks.gpu_suite.faults import is_lost


def _write(line: dict[str, Any]) -> None:
    path = os.environ.get("FASTGEN_SUITE_LOG")
    if path and "PYTEST_XDIST_WORKER" not in os.environ:  # the workers' parent hears it all
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _text(longrepr: Any) -> str:
    if isinstance(longrepr, tuple):  # of a skip: file, line, reason
        return str(longrepr[2])
    lines = [line for line in str(longrepr).splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("E ")]
    # The first line of an error says what happened; torch adds advice.
    text = errors[0].removeprefix("E") if errors else lines[-1] if lines else ""
    return text.strip()[:300]


def pytest_exception_interact(node: Any, call: Any, report: Any) -> None:
    """Ends a worker of xdist that has lost its GPU context; another takes its place."""
    if "PYTEST_XDIST_WORKER" in os.environ and is_lost(str(call.excinfo.value)):
        os._exit(70)  # the report of this test has already been sent


def pytest_runtest_logreport(report: Any) -> None:
    """One line for each test: what became of it."""
    if hasattr(report, "wasxfail"):
        return
    if report.when == "call" or report.outcome != "passed":
        reason = "" if report.outcome == "passed" else _text(report.longrepr)
        line = {"test": report.nodeid, "outcome": report.outcome, "reason": reason}
        _write(line | {"seconds": round(report.duration, 3)})


def pytest_collectreport(report: Any) -> None:
    """A file that cannot be imported is a failure too."""
    if report.failed:
        _write({"test": report.nodeid, "outcome": "failed", "reason": _text(report.longrepr)})


def pytest_collection_finish(session: Any) -> None:
    """How many tests there are."""
    _write({"collected": len(getattr(session, "items", []))})
