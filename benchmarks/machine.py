"""Which machine this is, without naming it."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

from fastgen.cli._machine import cpu_name, usable_cores

_FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "sve")


def _flags() -> list[str]:
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return []
    found = re.search(r"^(flags|Features)\s*:\s*(.+)$", text, re.M)
    known = set(found.group(2).split()) if found else set()
    return [flag for flag in _FLAGS if flag in known]


def describe() -> dict[str, object]:
    """Processor, its vector instructions, cores, memory, operating system, Python."""
    memory = 0.0
    if "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return {
        "cpu": cpu_name(),
        "flags": _flags(),
        "cores": usable_cores(),
        "memory_gib": round(memory, 1),
        "system": platform.system(),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }


def slug() -> str:
    """A file name's worth of it, e.g. ``amd-epyc-9r14-2c``."""
    name = str(describe()["cpu"]).lower()
    name = re.sub(r"\((r|tm)\)|\b(cpu|processor|\d+-core)\b|@.*$", " ", name)
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-") + f"-{usable_cores()}c"
