"""Builds the extension modules from the tree and lays out a package around them.

Nothing is installed and nothing is written into the sources: a folder with links to the Python
files and the new modules comes first on the module path of everything that the suite starts.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu_suite.processes import run_command, tail

__all__ = ["BuildError", "architecture", "build", "stage"]


class BuildError(RuntimeError):
    """The build failed; the message says where its log is."""


def architecture(capability: tuple[int, int]) -> str:
    """What CMake calls this GPU's own machine code, e.g. ``90a-real``."""
    major, minor = capability
    # From 9.0 on there are instructions that only the architecture-specific target has.
    return f"{major}{minor}{'a' if major >= 9 else ''}-real"


def build(
    root: Path, folder: Path, capability: tuple[int, int], env: dict[str, str], seconds: float
) -> Path:
    """Builds ``_C`` and ``_cuda`` for one GPU and stages the package.

    Args:
        root: of the sources.
        folder: for everything that is written.
        capability: of the GPU.
        env: environment of the compilers.
        seconds: at most.

    Returns:
        The folder to put first on the module path.

    Raises:
        BuildError: a tool is missing, a step failed, or time was up.
    """
    if shutil.which("cmake", path=env.get("PATH")) is None:
        raise BuildError("cmake was not found; install CMake >= 3.20")
    found = subprocess.run(
        [sys.executable, "-m", "pybind11", "--cmakedir"], capture_output=True, text=True, env=env
    )
    if found.returncode:
        raise BuildError("pybind11 was not found; python -m pip install pybind11")
    target = folder / "cmake"
    configure = ["cmake", "-S", str(root), "-B", str(target), "-DFASTGEN_CUDA=ON"]
    configure += ["-G", "Ninja"] if shutil.which("ninja") else []
    configure += [
        f"-DCMAKE_CUDA_ARCHITECTURES={architecture(capability)}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={found.stdout.strip()}",
    ]
    log = folder / "build.log"
    compile_ = ["cmake", "--build", str(target), "--parallel", str(os.cpu_count() or 1)]
    for command in (configure, compile_):
        code = run_command(command, env=env, log=log, seconds=seconds, cwd=root)
        if code != 0:
            why = "took too long" if code is None else f"ended with code {code}"
            raise BuildError(f"{' '.join(command[:2])} {why}; {log}: {tail(log)}")
    return stage(root, target, folder / "package")


def stage(root: Path, built: Path, target: Path) -> Path:
    """Lays out ``fastgen`` as it is installed, with the modules found in ``built``.

    Raises:
        BuildError: there is no extension module.
    """
    package = target / "fastgen"
    shutil.rmtree(target, ignore_errors=True)
    package.mkdir(parents=True)
    links = {path.name: path for path in (root / "fastgen").iterdir() if path.suffix != ".so"}
    links |= {"kernels": root / "kernels", "train": root / "train"}
    modules = [path for path in built.glob("_*.so") if path.is_file()]
    if not modules:
        raise BuildError(f"{built} holds no extension module")
    links |= {path.name: path for path in modules}
    for name, path in links.items():
        (package / name).symlink_to(path.resolve())
    return target
