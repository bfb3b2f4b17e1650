"""Builds the CUDA kernels against the emulation of csrc/cuda/common.cuh and calls them.

The very same sources that nvcc compiles become a host library; see emulate.h for what it checks.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
KERNELS = [
    ROOT / "csrc/cuda" / name
    for name in (
        "concat_features.cu",
        "conv_bf16.cu",
        "conv_bn_leaky_relu.cu",
        "conv_fp16.cu",
        "conv_fp32.cu",
        "conv_plan.cpp",
        "gram_matrix.cu",
        "network_conv.cu",
        "network_steps.cu",
        "statistics.cu",
    )
]
HOST = [HERE / "emulate.cpp", HERE / "faulty.cpp", HERE / "runtime.cpp"]
BINDINGS = [
    ROOT / "csrc/bindings_cuda_ops.cpp",
    ROOT / "csrc/bindings_cuda_dlpack.cpp",
    ROOT / "csrc/bindings_cuda_network.cpp",
    ROOT / "csrc/bindings_cuda_structures.cpp",
    HERE / "module.cpp",
]
NAME = "fastgen_cuda_emulated"
FLAGS = [
    *("-std=c++17", "-fPIC", "-DFASTGEN_EMULATE", "-fno-strict-aliasing", "-fvisibility=hidden"),
    *("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-U_FORTIFY_SOURCE"),
]


def why_not() -> str | None:
    """The reason why the emulation cannot be built here, or None."""
    if sys.platform != "linux":
        return "the emulation's fibers are written for Linux"
    if shutil.which(_compiler()) is None:
        return f"no C++ compiler '{_compiler()}' was found"
    if _pybind11() is None:
        return "pybind11's headers were not found (pip install pybind11)"
    return None


def _compiler() -> str:
    return os.environ.get("CXX", "g++")


def _pybind11() -> Path | None:
    """Headers of pybind11, or those that torch carries."""
    for package, folder in (("pybind11", "include"), ("torch", "include")):
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            path = Path(spec.origin).parent / folder
            if (path / "pybind11/pybind11.h").is_file():
                return path
    return None


def _digests() -> dict[Path, str]:
    """For every source what its object file depends on: itself, all headers, the compiler."""
    headers = [ROOT / "csrc/fastgen.h", ROOT / "csrc/dtype.h"]
    for folder in (ROOT / "csrc/cuda", HERE):
        headers += [p for p in folder.iterdir() if p.suffix in (".h", ".cuh")]
    version = subprocess.run([_compiler(), "-v"], capture_output=True, text=True, check=True)
    common = hashlib.sha256(repr((FLAGS, version.stderr, sys.version, _pybind11())).encode())
    for path in sorted(headers):
        common.update(path.name.encode() + b"\0" + path.read_bytes())
    found = {}
    for source in [*BINDINGS, *KERNELS, *HOST]:  # the longest first
        digest = common.copy()
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
        found[source] = digest.hexdigest()[:16]
    return found


def load() -> ModuleType:
    """The library as a module, compiled where no earlier build fits its sources."""
    folder = ROOT / "build" / "cuda_emulation"
    digests = _digests()
    together = hashlib.sha256("".join(digests.values()).encode()).hexdigest()[:16]
    library = folder / together / f"{NAME}{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not library.is_file():
        _build(folder / "objects", library, digests)
    spec = importlib.util.spec_from_file_location(NAME, library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _build(folder: Path, library: Path, digests: dict[Path, str]) -> None:
    for path in (folder, library.parent):
        path.mkdir(parents=True, exist_ok=True)
    include = [f"-I{HERE}", f"-I{_pybind11()}", f"-I{sysconfig.get_path('include')}"]

    def compile_one(source: Path) -> Path:
        target = folder / f"{source.name}.{digests[source]}.o"
        if target.is_file():
            return target
        partial = target.with_suffix(f".{os.getpid()}.o")
        # The bindings are not what takes the time at run time.
        level = "-O0" if source in BINDINGS else "-O2"
        command = [_compiler(), level, *FLAGS, *include, "-x", "c++", "-c", source, "-o", partial]
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{source.name} does not compile for the emulation:\n{done.stderr}")
        partial.replace(target)
        return target

    workers = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(workers) as pool:
        objects = list(pool.map(compile_one, digests))
    partial = library.with_name(f"{library.name}.{os.getpid()}")
    subprocess.run([_compiler(), "-shared", *map(str, objects), "-o", str(partial)], check=True)
    partial.replace(library)
