"""The Triton kernels by Triton's interpreter, on the CPU; the checks are in triton_checks.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from cases import required
from triton_checks import CHECKS

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def interpreter() -> Iterator[subprocess.Popen[str]]:
    """A process in which Triton interprets its kernels."""
    if find_spec("triton") is None:
        reason = "Triton is not installed; pip install 'fastgen[triton]'"
        if "triton" in required():
            pytest.fail(f"FASTGEN_REQUIRE_IMPLS names it: {reason}")
        pytest.skip(reason)
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, str(HERE / "triton_checks.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        yield process
        # Its input ends here, and with it the process.
        if process.stdin is not None:
            process.stdin.close()


@pytest.mark.parametrize("name", CHECKS)
def test_interpreted(name: str, interpreter: subprocess.Popen[str]) -> None:
    if interpreter.stdin is None or interpreter.stdout is None:
        pytest.fail("the interpreter's pipes are missing")
    interpreter.stdin.write(name + "\n")
    interpreter.stdin.flush()
    answer = interpreter.stdout.readline()
    if not answer:
        pytest.fail(f"the interpreter died with status {interpreter.wait()}")
    error = json.loads(answer)["error"]
    if error is not None:
        pytest.fail(error)
