"""What this machine is and which versions are installed, without importing anything heavy."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

__all__ = ["cpu_name", "engine", "example_photo", "gpus", "usable_cores", "versions"]

_PACKAGES = ("numpy", "pillow", "safetensors", "click", "torch", "tensorboard", "triton")


def versions() -> dict[str, str | None]:
    """Package -> installed version, None when it is not installed."""
    found: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def cpu_name() -> str:
    """The processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def gpus() -> tuple[list[str], str]:
    """The NVIDIA GPUs, and if there are none, why.

    Asks the CUDA extension, which sees what a program may use (``CUDA_VISIBLE_DEVICES``); where it
    was not built, ``nvidia-smi``.
    """
    module, _ = engine("_cuda")
    if module is None:
        return _gpus_of_driver()
    count, error = module.device_count()
    found = []
    for index in range(count):
        device = module.device(index)
        major, minor = device["capability"]
        memory = device["memory_bytes"] / (1 << 30)
        found.append(f"{device['name']}, sm_{major}{minor}, {memory:.0f} GiB")
    return found, "" if found else f"CUDA: {error or 'no device'}"


def _gpus_of_driver() -> tuple[list[str], str]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return [], "nvidia-smi was not found"
    query = [tool, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], f"nvidia-smi failed: {error}"
    if done.returncode:
        return [], (done.stdout + done.stderr).strip().partition("\n")[0] or "nvidia-smi failed"
    return [line.strip() for line in done.stdout.splitlines() if line.strip()], ""


def engine(name: str = "_C") -> tuple[Any, str]:
    """An extension module of fastgen, or None and why it cannot be imported."""
    try:
        return import_module(f"fastgen.{name}"), ""
    except ImportError as error:
        return None, " ".join(str(error).split())


def example_photo() -> Path:
    """The example photo of the source tree.

    Raises:
        FileNotFoundError: fastgen was installed without its source tree.
    """
    import fastgen

    for root in (Path(fastgen.__file__).resolve().parent.parent, Path.cwd()):
        path = root / "examples" / "coffee.jpg"
        if path.is_file():
            return path
    raise FileNotFoundError("the example photo is only in the source tree; name one with --photos")
