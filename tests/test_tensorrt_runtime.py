"""The extension module's way from an engine to results, on a library and a driver made for it.

``fake_libnvinfer.cpp`` implements TensorRT's runtime with the headers that the module was built
with, and the driver beside it. What runs here is all of our C++ and Python up to their functions.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
CLASSES = ("VRuntime", "VCudaEngine", "VExecutionContext")


def header_folders() -> dict[int, Path]:
    """Major version -> folder with TensorRT's headers, of those in TENSORRT_ROOT."""
    found: dict[int, Path] = {}
    for root in filter(None, re.split("[:;]", os.environ.get("TENSORRT_ROOT", ""))):
        for folder in (Path(root) / "include", Path(root)):
            if (folder / "NvInferImpl.h").is_file():
                text = (folder / "NvInferVersion.h").read_text()
                number = re.search(r"define (?:NV_TENSORRT_MAJOR|TRT_MAJOR_\w+) (\d+)", text)
                if number is not None:
                    found.setdefault(int(number[1]), folder)
                break
    return found


def stubs(header: str) -> str:
    """Classes with a function that ends the process for every pure virtual one."""
    text = re.sub(r"//[^\n]*", "", header)
    result = []
    for name in CLASSES:
        body = re.search(rf"class {name} : public VRoot\s*{{(.*?)\n}};", text, re.S)
        assert body is not None, f"NvInferImpl.h has no {name}"
        result.append(f"struct Stub_{name} : nvinfer1::apiv::{name} {{")
        pattern = r"virtual\s+([\w:*& ]+?[\s*&])(\w+)\(([^()]*)\)\s*(const )?noexcept\s*= 0;"
        functions = re.findall(pattern, body[1])
        assert len(functions) == body[1].count("= 0;")
        for kind, function, arguments, const in functions:
            types = " ".join(arguments.split())
            result.append(
                f"  {kind.strip()} {function}({types}) {const}noexcept override "
                f'{{ missing("{function}"); }}'
            )
        result.append("};")
    return (
        "namespace nvinfer1 {\n"
        + "\n".join(result)
        + "\n}\n"
        + "".join(f"using nvinfer1::Stub_{name};\n" for name in CLASSES)
    )


@pytest.fixture(scope="module", params=[10, 11])
def fake(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library, compiled against the headers of a major version."""
    major = request.param
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
    if importlib.util.find_spec("fastgen._tensorrt") is None:
        pytest.skip("fastgen._tensorrt is not built: set TENSORRT_ROOT and install again")
    from fastgen import _tensorrt

    folder = header_folders().get(major)
    if compiler is None or folder is None or major not in _tensorrt.abis():
        pytest.skip(f"no headers of TensorRT {major} in TENSORRT_ROOT, or no C++ compiler")
    homes = [os.environ.get(k, "") for k in ("CUDA_HOME", "CUDA_PATH")] + ["/usr/local/cuda"]
    cuda = [Path(h) / "include" for h in homes if h and (Path(h) / "include/cuda.h").is_file()]
    if not cuda:
        pytest.skip("cuda.h was not found; set CUDA_HOME")
    out = tmp_path_factory.mktemp(f"fake{major}")
    (out / "stubs.inc").write_text(stubs((folder / "NvInferImpl.h").read_text()))
    library = out / f"libnvinfer.so.{major}"
    command = [compiler, "-std=c++17", "-O0", "-shared", "-fPIC", "-w", f"-DFAKE_MAJOR={major}"]
    command += ["-fvisibility=hidden", "-I", str(out), "-isystem", str(folder)]
    command += ["-isystem", str(cuda[0]), str(HERE / "fake_libnvinfer.cpp"), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return library


def run(fake: Path, code: str, **environment: str) -> str:
    """Runs code in a process that takes the library for TensorRT and for the driver."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "FASTGEN_TENSORRT_LIB": str(fake),
        "FASTGEN_CUDA_DRIVER": str(fake),
        **environment,
    }
    code = (
        "import ctypes, gc, sys\nimport numpy as np\nfrom fastgen import _tensorrt as trt\n"
        "from fastgen.backends import _tensorrt_lib as lib\n"
        f"alive = ctypes.CDLL({str(fake)!r}).fake_alive\n{code}"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_from_a_plan_to_a_replayed_graph(fake: Path) -> None:
    run(
        fake,
        """
info = lib.open_library()
assert (info["flavour"], info["builds"]) == ("lean", False), info
assert trt.driver() == {"version": 13000, "devices": 1, "why_not": None}
assert trt.device(0) == {"name": "Fake GPU", "capability": 90}
try:
    trt.device(1)
except Exception as e:
    assert str(e) == "CUDA device 1 does not exist; there are 1", e
engine = trt.Engine(b"ENGINE")
assert alive() == 101
assert engine.profiles == 1
assert engine.range("image") == ([1, 3, 8, 8], [1, 3, 64, 64], [1, 3, 64, 64])
assert [(t["name"], t["input"], t["dtype"], t["shape"]) for t in engine.tensors()] == [
    ("image", True, "float32", [-1, 3, -1, -1]), ("stylized", False, "float32", [-1, 3, -1, -1])]
stream = trt.Stream(0)
context = engine.context(0, stream.handle)
del engine
gc.collect()
assert alive() == 101  # the context needs it
try:
    context.set_shape("image", [1, 3, 65, 8])
    raise SystemExit("a wrong shape was taken")
except ValueError as e:
    assert "refuses the shape of input 'image'" in str(e)
context.set_shape("image", [1, 3, 8, 8])
assert context.shape("stylized") == [1, 3, 8, 8]
count = 3 * 8 * 8
host, x, y = trt.Buffer(0, 4 * count, True), trt.Buffer(0, 4 * count), trt.Buffer(0, 4 * count)
values = np.frombuffer(host.view(), np.float32)
context.set_address("image", x.address)
context.set_address("stylized", y.address)

def everything():
    x.copy(host, host.bytes, stream.handle)
    assert context.enqueue(stream.handle)
    host.copy(y, host.bytes, stream.handle)

values[:] = 1
everything()
stream.synchronize()
assert (values == 2).all()
stream.begin_capture()
everything()
assert (values == 2).all()  # nothing runs in a capture
graph = stream.end_capture(True)
for turn in range(3):
    graph.launch(stream.handle)
    assert (values == 3 + turn).all()
stream.begin_capture()
everything()
assert stream.end_capture(False) is None
assert (values == 5).all()
for wrong in (lambda: x.copy(y, 4, 0), lambda: x.copy(host, 4 * count + 1, 0), lambda: x.view(),
              lambda: trt.Buffer(0, 0)):
    try:
        wrong()
        raise SystemExit("a wrong call was taken")
    except ValueError:
        pass
try:
    trt.Buffer(0, 1 << 40)
    raise SystemExit("there was memory for everything")
except MemoryError as e:
    assert str(e) == "cuMemAlloc: fake error"
trt.synchronize(stream.handle)
with trt.Current(0):
    context.enqueue(stream.handle)
del context
gc.collect()
assert alive() == 0
""",
    )


def test_plans_that_are_not_accepted(fake: Path) -> None:
    out = run(
        fake,
        """
lib.open_library()
try:
    trt.Engine(b"other")
except ValueError as e:
    print(e)
assert alive() == 0
""",
    )
    assert "does not accept the engine: this is no plan" in out


def test_a_runner(fake: Path, tmp_path: Path) -> None:
    """The backend's own runner, with an engine from the cache."""
    code = """
from fastgen.backends.tensorrt import Runner
from fastgen.backends._engines import profile_for
from fastgen.graph import Dim, Graph, Input, Node
graph = Graph("plus", (Input("image", (Dim("N"), 3, Dim("H"), Dim("W"))),),
    (Node("y", "affine", ("image",), {"scale": 1.0, "shift": 1.0}),), {"stylized": "y"})
runner = Runner(graph, {}, "fp32")
profile = profile_for(graph, {"image": (1, 3, 8, 8)})
runner.cache.store(runner._key(profile)[0], b"ENGINE", {})
"""
    folder = str(tmp_path)
    run(
        fake,
        code
        + """
for turn in range(4):
    x = np.random.default_rng(turn).normal(size=(1, 3, 8, 9)).astype(np.float32)
    assert np.array_equal(runner.run(x), x + 1)
assert runner._slots[0].frames
runner.close()
del runner
gc.collect()
assert alive() == 0
""",
        FASTGEN_ENGINE_CACHE=folder,
    )
    text = run(
        fake,
        code
        + """
try:
    runner.run(np.zeros((1, 3, 8, 8), np.float32))
except RuntimeError as e:
    print(e)
""",
        FASTGEN_ENGINE_CACHE=folder,
        FAKE_FAILS="1",
    )
    assert text.startswith("TensorRT cannot run the engine: ")
