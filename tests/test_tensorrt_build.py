"""Engines of every model, built by TensorRT for RTX without a GPU: see docs/tensorrt.md."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import save_tiny

from fastgen import models
from fastgen.graph import Graph

PACKAGES = ("onnxruntime_ep_nv_tensorrt_rtx", "tensorrt_rtx_libs")


def why_not() -> str | None:
    if find_spec("fastgen._tensorrt") is None:
        return "fastgen._tensorrt is not built: set TENSORRT_ROOT and install again"
    if find_spec("onnx") is None:
        return "the package onnx is not installed"
    if not os.environ.get("FASTGEN_TENSORRT_LIB") and not any(map(find_spec, PACKAGES)):
        return f"TensorRT for RTX is not installed: none of the packages {', '.join(PACKAGES)}"
    return None


pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


@pytest.fixture(scope="module")
def rtx() -> dict[str, Any]:
    """The opened library. One in a process: the other tests open theirs in processes of theirs."""
    from fastgen.backends import _tensorrt_lib

    info = _tensorrt_lib.open_library()
    if info["flavour"] != "rtx":
        pytest.skip(f"{info['path']} is not TensorRT for RTX, which alone builds without a GPU")
    return info


def values(graph: Graph) -> dict[str, np.ndarray]:
    """Random weights of a trained network's size."""
    rng = np.random.default_rng(0)
    result = {}
    for key, shape in graph.weight_shapes().items():
        fan_in = np.prod(shape[1:]) if len(shape) > 1 else 10
        scaled = rng.normal(0, fan_in**-0.5, shape)
        result[key] = rng.uniform(0.5, 1.5, shape) if "norm" in key else scaled
    return {key: value.astype(np.float32) for key, value in result.items()}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", models.list_models())
def test_every_model_builds(rtx: dict[str, Any], name: str, precision: str) -> None:
    """Free batch and sizes, no parser errors, no errors in the log."""
    from fastgen import _tensorrt
    from fastgen.backends._engines import profile_for
    from fastgen.exporters.onnx import onnx_model

    graph = models.create(name)
    model = onnx_model(graph, values(graph), fp16=precision == "fp16")
    low = graph.smallest_shapes()
    shapes = {n: (2, *s[1:2], *(8 * d for d in s[2:])) for n, s in low.items()}
    free = {i.name: [isinstance(d, int) for d in i.shape] for i in graph.inputs}
    for input_name, fixed in free.items():
        sizes = zip(fixed, shapes[input_name], low[input_name], strict=True)
        shapes[input_name] = tuple(b if is_fixed else a for is_fixed, a, b in sizes)
    profile = profile_for(graph, shapes)
    for input_name, (smallest, _, largest) in profile.items():
        for axis, fixed_axis in enumerate(free[input_name]):
            assert fixed_axis == (smallest[axis] == largest[axis])
    said: list[tuple[int, str]] = []
    phases: set[str] = set()
    plan, _, layers = _tensorrt.build(
        model.SerializeToString(),
        [profile],
        tf32=precision != "fp32",
        log=lambda severity, text: said.append((severity, text)),
        progress=lambda phase, step, steps: phases.add(phase),
    )
    # Without a driver the library tries one once, and says so.
    errors = [t for s, t in said if s <= 1 and "cudaError 35" not in t and "CUDA init" not in t]
    assert errors == []
    assert layers >= len(graph.nodes) // 2
    assert len(plan) > 1000
    assert phases


def test_half_precision_is_in_the_engine(rtx: dict[str, Any]) -> None:
    """Strong typing: the model's types decide, so fp16 weights make a smaller engine."""
    from fastgen import _tensorrt
    from fastgen.backends._engines import profile_for
    from fastgen.exporters.onnx import onnx_model

    graph = models.create("transformer_net")
    weights = values(graph)
    profile = profile_for(graph, {"image": (1, 3, 256, 256)})
    sizes = {}
    for fp16 in (False, True):
        model = onnx_model(graph, weights, fp16=fp16).SerializeToString()
        sizes[fp16] = len(_tensorrt.build(model, [profile])[0])
    assert sizes[False] - sizes[True] > sum(v.nbytes for v in weights.values()) // 4


def test_quantised_models_pass_through(rtx: dict[str, Any]) -> None:
    """int8 by QuantizeLinear and DequantizeLinear around a convolution."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from fastgen import _tensorrt

    weight = np.random.default_rng(0).normal(size=(16, 16, 3, 3)).astype(np.float32)
    quantised = np.clip(np.rint(weight / 0.05), -127, 127).astype(np.int8)
    constants = {
        "scale": np.array(0.1, np.float32),
        "zero": np.array(0, np.int8),
        "weight_scale": np.full(16, 0.05, np.float32),
        "weight_zero": np.zeros(16, np.int8),
        "weight": quantised,
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["x"]),
        helper.make_node(
            "DequantizeLinear", ["weight", "weight_scale", "weight_zero"], ["w"], axis=0
        ),
        helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[3, 3]),
    ]
    shape = ["N", 16, "H", "W"]
    graph = helper.make_graph(
        nodes,
        "quantised",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 16, "h", "w"])],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    profile = {"image": ((1, 16, 8, 8), (1, 16, 64, 64), (2, 16, 256, 256))}
    plan, _, layers = _tensorrt.build(model.SerializeToString(), [profile])
    assert len(plan) > 1000
    assert layers >= 4


def test_errors_of_the_library(rtx: dict[str, Any]) -> None:
    from fastgen import _tensorrt
    from fastgen.backends.tensorrt import build_plan
    from fastgen.errors import FastgenError
    from fastgen.exporters.onnx import onnx_model

    graph = models.create("compact_net", width=2, blocks=1)
    model = onnx_model(graph, values(graph)).SerializeToString()
    profile = {"image": ((1, 3, 8, 8), (1, 3, 64, 64), (1, 3, 64, 64))}
    with pytest.raises(ValueError, match=r"cannot read the ONNX model: .*Failed to parse"):
        _tensorrt.build(model[:-100], [profile])
    with pytest.raises(ValueError, match=r"refuses a profile: .*MIN<=OPT<=MAX"):
        _tensorrt.build(model, [{"image": ((2, 3, 8, 8), *profile["image"][1:])}])
    with pytest.raises(FastgenError, match="image is missing dimensions in profile 0"):
        build_plan(model, {"other": profile["image"]}, precision="fp32")
    with pytest.raises(FastgenError, match="the build of the engine was stopped"):
        build_plan(model, profile, precision="fp32", progress=lambda *_: False)
    with pytest.raises(ZeroDivisionError):
        _tensorrt.build(model, [profile], progress=lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        _tensorrt.build(model, [profile], log=lambda *_: 1 / 0)
    # None of these spoils the next build, and a damaged timing cache does not either.
    plan = build_plan(model, profile, precision="fp32")
    assert len(_tensorrt.build(model, [profile], timing_cache=b"damaged")[0]) > len(plan) // 2


def test_python_runs_while_an_engine_is_built(rtx: dict[str, Any]) -> None:
    """The GIL is released: another thread works during the steps of a build."""
    import threading

    from fastgen import _tensorrt
    from fastgen.backends._engines import profile_for
    from fastgen.exporters.onnx import onnx_model

    graph = models.create("transformer_net")
    model = onnx_model(graph, values(graph)).SerializeToString()
    profile = profile_for(graph, {"image": (1, 3, 64, 64)})
    turns, ended = 0, threading.Event()

    def work() -> None:
        nonlocal turns
        while not ended.wait(0.001):
            turns += 1

    thread = threading.Thread(target=work)
    thread.start()
    try:
        _tensorrt.build(model, [profile])
    finally:
        ended.set()
        thread.join()
    assert turns > 3


@pytest.mark.parametrize("precision", ["auto", "fp32"])
def test_command(rtx: dict[str, Any], tmp_path: Path, precision: str) -> None:
    """``fastgen engine build`` twice, ``list``, and a file for other programs."""
    style = save_tiny(tmp_path)
    environment = os.environ | {"FASTGEN_ENGINE_CACHE": str(tmp_path / "cache")}
    # Where there is a GPU too, this is about building without one.
    environment |= {"FASTGEN_CUDA_DRIVER": "/nowhere/libcuda.so.1"}
    environment |= {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    environment |= {"FASTGEN_TENSORRT_LIB": rtx["path"]}

    def run(*args: str) -> str:
        command = [sys.executable, "-P", "-m", "fastgen", "engine", *args]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    build = ("build", "-s", str(style), "--size", "640x480", "--precision", precision)
    expected = "fp16" if precision == "auto" else precision
    first = run(*build)
    assert f"compact_net {expected}, up to image 1x3x512x768, rtx {rtx['version']}" in first
    assert "built in" in first
    assert "was there already" in run(*build)
    (row,) = json.loads(run("list", "--json"))["engines"]
    assert (row["key"], row["device"]) == (first.split()[0], "any")
    out = tmp_path / "new" / "tiny.plan"
    text = run(*build, "--batch", "4", "-o", str(out))
    assert f"{expected}, up to image 4x3x480x640" in text
    assert out.stat().st_size > 1000
