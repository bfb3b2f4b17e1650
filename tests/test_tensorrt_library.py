"""The extension module ``_tensorrt``: what it links, which libraries it opens, its guards.

One library is opened in each process, so each case has a process. The libraries are compiled here
from a few lines of C; none has more than the functions that are looked up by name.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
SPEC = importlib.util.find_spec("fastgen._tensorrt")
COMPILER = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")
NO_GPU = "/nowhere/libcuda.so.1"

needs_module = pytest.mark.skipif(
    SPEC is None, reason="fastgen._tensorrt is not built: set TENSORRT_ROOT and install again"
)
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="there is no C compiler")

INFER = """
#include <stdint.h>
#include <stdlib.h>
int32_t getInferLibVersion(void) { return VERSION; }
int32_t getInferLibBuildVersion(void) { return 7; }
void* createInferRuntime_INTERNAL(void* logger, int32_t version) { abort(); }
#ifndef LEAN
void* createInferBuilder_INTERNAL(void* logger, int32_t version) { abort(); }
#endif
"""
PARSER = "void* createNvOnnxParser_INTERNAL(void* a, void* b, int c) { return 0; }"


def test_the_headers_compile() -> None:
    """Without building anything else: for machines that have the headers but not the module."""
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
    roots = [r for r in re.split("[:;]", os.environ.get("TENSORRT_ROOT", "")) if r]
    if not roots or compiler is None:
        pytest.skip("TENSORRT_ROOT names no headers, or there is no C++ compiler")
    cuda = next((p for p in _cuda_folders() if (p / "cuda_runtime_api.h").is_file()), None)
    if cuda is None:
        pytest.skip("cuda_runtime_api.h was not found; set CUDA_HOME")
    for root in map(Path, roots):
        folder = root / "include" if (root / "include").is_dir() else root
        text = (folder / "NvInferVersion.h").read_text()
        major = re.search(r"define (?:NV_TENSORRT_MAJOR|TRT_MAJOR_\w+) (\d+)", text)
        assert major is not None, f"{folder} has no version"
        command = [compiler, "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror"]
        command += ["-Wno-deprecated-declarations", "-isystem", str(folder), "-isystem", str(cuda)]
        command += [f"-DFASTGEN_TENSORRT_ABI={major[1]}", "-Dnvinfer1=nvinfer1_x"]
        command += ["-Dnvonnxparser=nvonnxparser_x", str(ROOT / "csrc" / "tensorrt" / "abi.cpp")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def _cuda_folders() -> list[Path]:
    named = [os.environ[k] for k in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(k)]
    return [Path(p) / "include" for p in (*named, "/usr/local/cuda")]


@needs_module
def test_nothing_of_tensorrt_or_cuda_is_linked() -> None:
    """Both are opened at run time: a module that links them cannot be imported without them."""
    nm, readelf = shutil.which("nm"), shutil.which("readelf")
    if nm is None or readelf is None:
        pytest.skip("nm and readelf (binutils) are not installed")
    assert SPEC is not None
    module = os.path.realpath(str(SPEC.origin))
    symbols = subprocess.run([nm, "-D", module], capture_output=True, text=True, check=True).stdout
    names = {line.split()[-1].partition("@")[0] for line in symbols.splitlines() if line.strip()}
    assert "PyInit__tensorrt" in names
    theirs = r"nvinfer|nvonnx|_INTERNAL$|getInfer|getNvOnnx|getPluginRegistry|^cu[A-Z]|^cuda[A-Z]"
    assert not [n for n in names if re.search(theirs, n)]
    needed = subprocess.run(
        [readelf, "-d", module], capture_output=True, text=True, check=True
    ).stdout
    libraries = re.findall(r"NEEDED.*\[(.+)\]", needed)
    assert libraries
    assert not [n for n in libraries if re.search("nvinfer|nvonnx|tensorrt|cuda", n)]


def test_the_check_of_linked_symbols_finds_one(tmp_path: Path) -> None:
    if COMPILER is None or shutil.which("nm") is None:
        pytest.skip("there is no C compiler, or no nm")
    source = tmp_path / "a.c"
    source.write_text(
        "void* createInferRuntime_INTERNAL(void*, int);\n"
        "void* f(void) { return createInferRuntime_INTERNAL(0, 1); }\n"
    )
    subprocess.run([COMPILER, "-shared", "-fPIC", source, "-o", tmp_path / "a.so"], check=True)
    found = subprocess.run(
        ["nm", "-D", tmp_path / "a.so"], capture_output=True, text=True, check=True
    )
    assert "U createInferRuntime_INTERNAL" in found.stdout


# ---------------------------------------------------------------------- opening


def library(folder: Path, name: str, text: str, *defines: str) -> Path:
    assert COMPILER is not None
    source = folder / f"{name}.c"
    source.write_text(text)
    flags = [f"-D{d}" for d in defines]
    command = [COMPILER, "-shared", "-fPIC", *flags, str(source), "-o", str(folder / name)]
    subprocess.run(command, check=True)
    source.unlink()
    return folder / name


def python(code: str, **environment: str) -> dict[str, Any]:
    """Runs code that sets ``result``, in a process without a GPU; a crash fails."""
    text = (
        "import json\n"
        "from fastgen import _tensorrt as trt\n"
        "from fastgen.errors import BackendUnavailable\n"
        "from fastgen.backends import _tensorrt_lib as lib\n"
        "def error(call, *args):\n"
        "    try:\n"
        "        call(*args)\n"
        "    except Exception as e:\n"
        "        return [type(e).__name__, str(e)]\n"
        f"{code}\n"
        "print(json.dumps(result))\n"
    )
    for name in ("FASTGEN_TENSORRT_LIB", "FASTGEN_CUDA_DRIVER"):
        environment.setdefault(name, {"FASTGEN_CUDA_DRIVER": NO_GPU}.get(name, ""))
    done = subprocess.run(
        [sys.executable, "-P", "-c", text],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)} | environment,
    )
    assert done.returncode == 0, done.stderr
    return {"result": json.loads(done.stdout)}


def majors() -> set[int]:
    from fastgen import _tensorrt

    return set(_tensorrt.abis())


@needs_module
@needs_compiler
@pytest.mark.parametrize("major", [10, 11])
def test_a_full_library(tmp_path: Path, major: int) -> None:
    if major not in majors():
        pytest.skip(f"this build has no headers of TensorRT {major}")
    path = library(tmp_path, f"libnvinfer.so.{major}", INFER, f"VERSION={major}0203")
    parser = library(tmp_path, f"libnvonnxparser.so.{major}", PARSER)
    found = python(
        "a = lib.open_library()\nb = lib.open_library()\n"
        "result = [a, b == a, trt.library() == a, error(trt.open_library, '/other.so')]",
        FASTGEN_TENSORRT_LIB=str(tmp_path),
    )["result"]
    assert found[0] == {
        **{"path": str(path), "parser_path": str(parser), "flavour": "full", "builds": True},
        **{"version": f"{major}.2.3.7", "headers": found[0]["headers"]},
    }
    assert found[0]["headers"].startswith(f"{major}.")
    assert found[1:3] == [True, True]
    assert found[3][0] == "BackendUnavailable"
    assert "a process can hold one TensorRT library" in found[3][1]


@needs_module
@needs_compiler
def test_without_a_gpu_nothing_of_the_library_is_called(tmp_path: Path) -> None:
    """TensorRT's own factories return pointers to nothing there; these ones end the process."""
    major = max(majors() & {10, 11})
    library(tmp_path, f"libnvinfer.so.{major}", INFER, f"VERSION={major}0203")
    library(tmp_path, f"libnvonnxparser.so.{major}", PARSER)
    found = python(
        "lib.open_library()\n"
        "from fastgen.backends import tensorrt\n"
        "result = [error(trt.build, b'', []), error(trt.Engine, b'plan'), error(trt.Stream, 0),"
        " error(trt.Buffer, 0, 16), error(trt.device, 0), trt.driver(), tensorrt.why_not()]",
        FASTGEN_TENSORRT_LIB=str(tmp_path),
    )["result"]
    for kind, text in found[:5]:
        assert kind == "BackendUnavailable"
        assert (
            text == f"the NVIDIA driver was not found ({NO_GPU}); install it, or use another "
            "machine"
        )
    assert found[5] == {"version": 0, "devices": 0, "why_not": found[0][1]}
    assert found[6] == found[0][1]


@needs_module
@needs_compiler
def test_the_lean_runtime_builds_nothing(tmp_path: Path) -> None:
    major = max(majors() & {10, 11})
    path = library(tmp_path, f"libnvinfer_lean.so.{major}", INFER, f"VERSION={major}0203", "LEAN")
    found = python(
        "info = lib.open_library()\nresult = [info, error(trt.build, b'', [])]",
        FASTGEN_TENSORRT_LIB=str(path),
    )["result"]
    assert (found[0]["flavour"], found[0]["builds"]) == ("lean", False)
    assert found[1] == [
        "BackendUnavailable",
        f"the lean runtime {path} cannot build engines; install TensorRT, or bring engines from "
        "where it is",
    ]


@needs_module
@needs_compiler
def test_a_builder_without_its_parser(tmp_path: Path) -> None:
    major = max(majors() & {10, 11})
    path = library(tmp_path, f"libnvinfer.so.{major}", INFER, f"VERSION={major}0203")
    found = python(
        "info = lib.open_library()\nresult = [info['builds'], error(trt.build, b'', [])]",
        FASTGEN_TENSORRT_LIB=str(path),
    )["result"]
    assert found[0] is False
    assert f"(libnvonnxparser.so.{major}) was not found beside {path}" in found[1][1]


@needs_module
@needs_compiler
@pytest.mark.parametrize(
    ("name", "version", "text"),
    [
        ("libnvinfer.so.12", "120000", "is TensorRT 12.0.0, this build of fastgen has the headers"),
        ("libnvinfer.so.8", "8601", "is TensorRT 8.6.1, this build of fastgen has the headers"),
        ("libtensorrt_rtx.so.1", "10300", "is TensorRT for RTX 1.3.0, whose classes only its own"),
        ("libnvinfer_dispatch.so.11", "110100", "is the dispatch runtime"),
    ],
)
def test_libraries_that_do_not_fit(tmp_path: Path, name: str, version: str, text: str) -> None:
    path = library(tmp_path, name, INFER, f"VERSION={version}")
    kind, message = python("result = error(lib.open_library)", FASTGEN_TENSORRT_LIB=str(path))[
        "result"
    ]
    assert kind == "BackendUnavailable"
    assert f"{path} {text}" in message
    assert "\n" not in message


@needs_module
@needs_compiler
def test_what_is_no_tensorrt(tmp_path: Path) -> None:
    path = library(tmp_path, "libother.so", "int nothing;")
    code = "result = error(lib.open_library)"
    _, message = python(code, FASTGEN_TENSORRT_LIB=str(path))["result"]
    assert message == f"{path} is not a TensorRT library: it has no getInferLibVersion"
    path.write_bytes(b"text")
    _, message = python(code, FASTGEN_TENSORRT_LIB=str(path))["result"]
    assert str(path) in message
    _, message = python(code, FASTGEN_TENSORRT_LIB=str(tmp_path / "gone.so"))["result"]
    assert message.endswith("gone.so, which does not exist")
    (tmp_path / "empty").mkdir()
    _, message = python(code, FASTGEN_TENSORRT_LIB=str(tmp_path / "empty"))["result"]
    assert "has none of libnvinfer.so, libtensorrt_rtx.so, libnvinfer_lean.so" in message
    _, message = python(code, FASTGEN_TENSORRT_LIB="libnvinfer_nowhere.so.11")["result"]
    assert message.startswith("FASTGEN_TENSORRT_LIB is libnvinfer_nowhere.so.11: ")


@needs_module
@needs_compiler
def test_the_next_library_is_tried(tmp_path: Path) -> None:
    """In a folder of a package: 11 cannot be served, 10 can, or the other way round."""
    have = max(majors() & {10, 11})
    other = 21 - have
    library(tmp_path, f"libnvinfer.so.{other}", INFER, "VERSION=120000")
    library(tmp_path, f"libnvinfer.so.{have}", INFER, f"VERSION={have}0203")
    found = python("result = lib.open_library()", FASTGEN_TENSORRT_LIB=str(tmp_path))["result"]
    assert found["path"].endswith(f"libnvinfer.so.{have}")


@needs_module
@needs_compiler
def test_packages_of_pip(tmp_path: Path) -> None:
    major = max(majors() & {10, 11})
    (tmp_path / "tensorrt_lean_libs").mkdir()
    (tmp_path / "tensorrt_libs").mkdir()
    lean = tmp_path / "tensorrt_lean_libs"
    library(lean, f"libnvinfer_lean.so.{major}", INFER, f"VERSION={major}0203", "LEAN")
    name = f"libnvinfer.so.{major}.2.3"  # some packages have the whole version only
    library(tmp_path / "tensorrt_libs", name, INFER, f"VERSION={major}0203")
    code = f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nresult = lib.open_library()['path']"
    assert python(code)["result"] == str(tmp_path / "tensorrt_libs" / name)


# ---------------------------------------------------------------------- the driver

FUNCTIONS = """
cuDriverGetVersion cuGetErrorString cuDeviceGet cuDeviceGetName cuDeviceGetAttribute
cuDevicePrimaryCtxRetain cuCtxGetCurrent cuCtxSetCurrent cuMemAlloc_v2 cuMemFree_v2 cuMemHostAlloc
cuMemFreeHost cuMemcpyHtoDAsync_v2 cuMemcpyDtoHAsync_v2 cuStreamCreate cuStreamDestroy_v2
cuStreamSynchronize cuStreamBeginCapture_v2 cuStreamEndCapture cuGraphInstantiateWithFlags
cuGraphLaunch cuGraphExecDestroy cuGraphDestroy
""".split()
DRIVER = "\n".join(
    [
        "int cuInit(unsigned flags) { return INIT; }",
        "int cuDeviceGetCount(int* count) { *count = COUNT; return 0; }",
        *(f"int {name}(void) {{ return 1; }}" for name in FUNCTIONS),
    ]
)


@needs_module
@needs_compiler
@pytest.mark.parametrize(
    ("text", "defines", "reason"),
    [
        (DRIVER, ("INIT=0", "COUNT=0"), "there is no NVIDIA GPU; see nvidia-smi"),
        (DRIVER, ("INIT=100", "COUNT=1"), "finds no usable device: unknown error"),
        ("int cuInit(unsigned f) { return 0; }", (), "too old: PATH has no cuDriverGetVersion"),
    ],
)
def test_drivers_without_a_device(
    tmp_path: Path, text: str, defines: tuple[str, ...], reason: str
) -> None:
    path = library(tmp_path, "libcuda.so.1", text, *defines)
    code = "result = [trt.driver(), error(trt.Stream, 0)]"
    driver, error = python(code, FASTGEN_CUDA_DRIVER=str(path))["result"]
    assert driver["devices"] == 0
    assert reason.replace("PATH", str(path)) in driver["why_not"]
    assert error == ["BackendUnavailable", driver["why_not"]]


def test_the_backend_says_what_is_missing() -> None:
    """With the module and without: one line, and ``fastgen doctor`` shows it."""
    from fastgen import backends
    from fastgen.cli.doctor import diagnose

    reason = diagnose()["backends"]["tensorrt"]["why_not"]
    assert reason == backends.why_not("tensorrt")
    if reason is None:
        pytest.skip("TensorRT can run here")
    assert "\n" not in reason
    if SPEC is None:
        assert "TENSORRT_ROOT=FOLDER pip install ." in reason
