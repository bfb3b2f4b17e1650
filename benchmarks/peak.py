"""The machine's own limits, measured: a multiply-add loop for each instruction set, and a copy."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from benchmarks.machine import describe
from fastgen.cli._machine import usable_cores

SOURCE = Path(__file__).with_name("peak.cpp")

# Name -> what the processor must have, compiler flags, floats in a vector.
LEVELS = {
    "portable": ((), ("-DWIDTH=4",)),
    "avx2": (("avx2", "fma"), ("-mavx2", "-mfma", "-DWIDTH=8")),
    "avx512": (("avx512f",), ("-mavx512f", "-DWIDTH=16")),
}


def measure() -> dict[str, dict[str, float]]:
    """Compiles and runs the loops.

    Returns:
        Level -> ``gmac_s`` (1e9 multiply-adds a second, all cores) and ``copy_gb_s`` (1e9 bytes a
        second read and written). Levels that the processor lacks are left out; empty without a
        compiler.
    """
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if compiler is None:
        return {}
    flags = describe()["flags"]
    known = set(flags) if isinstance(flags, list) else set()
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        for level, (needed, options) in LEVELS.items():
            if not set(needed) <= known:
                continue
            program = Path(folder) / level
            command = [compiler, "-O3", "-std=c++17", "-pthread", *options, str(SOURCE)]
            subprocess.run([*command, "-o", str(program)], check=True)
            text = subprocess.run(
                [str(program), str(usable_cores())], check=True, capture_output=True, text=True
            ).stdout
            multiply_adds, copied = (float(part) for part in text.split())
            result[level] = {"gmac_s": multiply_adds / 1e9, "copy_gb_s": copied / 1e9}
    return result
