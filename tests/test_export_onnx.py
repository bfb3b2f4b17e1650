"""ONNX export: checked by onnx.checker, and by ONNX Runtime against the torch backend."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from tiny import save_tiny, tiny_checkpoint

import fastgen
from fastgen import backends, models
from fastgen.checkpoint import Checkpoint, load_checkpoint
from fastgen.cli import app
from fastgen.exporters.onnx import OPSET, export_onnx, onnx_model
from fastgen.graph import Dim, Graph, Input, Node

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

IMAGE = Input("image", (Dim("N"), 3, Dim("H", 1, 8), Dim("W", 1, 8)))
VECTOR = Input("vector", (Dim("N"), 3))
RANGES = {"ranges": ((0.0, 4.0), (-20.0, 20.0))}


def values(graph: Graph, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights that keep the size of values through a deep network."""
    rng = np.random.default_rng(seed)
    result = {}
    for key, shape in graph.weight_shapes().items():
        fan_in = np.prod(shape[1:]) if len(shape) > 1 else 10
        scaled = rng.normal(0, fan_in**-0.5, shape)
        result[key] = rng.uniform(0.5, 1.5, shape) if "norm" in key else scaled
    return {key: value.astype(np.float32) for key, value in result.items()}


def session(model: Any) -> Any:
    data = model if isinstance(model, bytes) else model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def reference(graph: Graph, weights: Any, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    result: dict[str, np.ndarray] = backends.get("torch").compile(graph, weights).run(inputs)
    return result


def ops_of(model: Any) -> set[str]:
    return {node.op_type for node in model.graph.node}


CASES: dict[str, tuple[Node, ...]] = {
    "conv": (Node("y", "conv", ("image",), {"out_channels": 5, "kernel": 3, "padding": 1}),),
    "conv, reflect, stride 2, no bias": (
        Node(
            "y",
            "conv",
            ("image",),
            {
                **{"out_channels": 4, "kernel": 5, "stride": 2, "padding": 2, "bias": False},
                "padding_mode": "reflect",
            },
        ),
    ),
    "conv in groups": (
        Node("y", "conv", ("image",), {"out_channels": 6, "kernel": 3, "groups": 3}),
    ),
    "conv_transpose": (
        Node(
            "y",
            "conv_transpose",
            ("image",),
            {"out_channels": 5, "kernel": 3, "stride": 2, "padding": 1, "output_padding": 1},
        ),
    ),
    "linear": (Node("y", "linear", ("vector",), {"out_features": 7}),),
    "instance norm": (Node("y", "norm", ("image",), {"kind": "instance", "eps": 0.1}),),
    "instance norm without weights": (
        Node("y", "norm", ("image",), {"kind": "instance", "affine": False}),
    ),
    "batch norm": (Node("y_norm", "norm", ("image",), {"kind": "batch", "eps": 0.1}),),
    "batch norm without weights": (
        Node("y_norm", "norm", ("image",), {"kind": "batch", "affine": False}),
    ),
    "batch norm of vectors": (Node("y_norm", "norm", ("vector",), {"kind": "batch"}),),
    "given norm": (
        Node("sigmoid", "activation", ("vector",), {"kind": "sigmoid"}),
        Node("y_norm", "norm", ("image", "vector", "sigmoid"), {"kind": "given", "eps": 0.01}),
    ),
    "given norm without weights": (
        Node("sigmoid", "activation", ("vector",), {"kind": "sigmoid"}),
        Node("y", "norm", ("image", "vector", "sigmoid"), {"kind": "given", "affine": False}),
    ),
    "conv with batch norm": (
        Node("c", "conv", ("image",), {"out_channels": 5, "kernel": 3, "bias": False}),
        Node("c_norm", "norm", ("c",), {"kind": "batch", "eps": 0.1}),
        Node("y", "activation", ("c_norm",), {"kind": "leaky_relu", "slope": 0.3}),
    ),
    "conv_transpose with batch norm at the end": (
        Node("c", "conv_transpose", ("image",), {"out_channels": 5, "kernel": 4, "stride": 2}),
        Node("y_norm", "norm", ("c",), {"kind": "batch", "affine": False}),
    ),
    "linear with batch norm": (
        Node("c", "linear", ("vector",), {"out_features": 5}),
        Node("c_norm", "norm", ("c",), {"kind": "batch"}),
        Node("y", "reshape", ("c_norm",), {"shape": [5, 1, 1]}),
    ),
    "a conv that two read keeps its batch norm": (
        Node("c", "conv", ("image",), {"out_channels": 5, "kernel": 3}),
        Node("c_norm", "norm", ("c",), {"kind": "batch"}),
        Node("y", "mul", ("c", "c_norm")),
    ),
    **{kind: (Node("y", "activation", ("image",), {"kind": kind}),) for kind in ("relu", "tanh")},
    "upsample": (Node("y", "upsample", ("image",), {"scale": 3}),),
    "max pool": (Node("y", "pool", ("image",), {"kind": "max", "kernel": 3, "padding": 1}),),
    "average pool": (Node("y", "pool", ("image",), {"kind": "avg", "kernel": 3, "padding": 1}),),
    "global pool": (Node("y", "pool", ("image",), {"kind": "global_avg"}),),
    "concat, add": (
        Node("c", "concat", ("image", "image")),
        Node("y", "add", ("c", "c")),
    ),
    "affine": (Node("y", "affine", ("image",), {"scale": [1.0, 2.0, 3.0], "shift": 0.5}),),
    "affine of vectors": (Node("y", "affine", ("vector",), {"scale": 2.0, "shift": [1, 2, 3]}),),
    "pad": (Node("y", "pad", ("image",), {"padding": [1, 2, 3, 0]}),),
    "pad, reflect": (Node("y", "pad", ("image",), {"padding": [1, 2, 3, 0], "mode": "reflect"}),),
    "crop": (Node("y", "crop", ("image",), {"crop": [1, 0, 2, 3]}),),
    "broadcast": (Node("y", "broadcast", ("vector", "image")),),
    "broadcast of pixels": (
        Node("c", "pool", ("image",), {"kind": "global_avg"}),
        Node("y", "broadcast", ("c", "image")),
    ),
    "reshape": (
        Node("c", "pool", ("image",), {"kind": "global_avg"}),
        Node("y", "reshape", ("c",), {"shape": [-1]}),
    ),
}


def build(name: str) -> Graph:
    nodes = CASES[name]
    read = {s for n in nodes for s in n.inputs}
    inputs = tuple(i for i in (IMAGE, VECTOR) if i.name in read)
    return Graph("case", inputs, nodes, {"y": nodes[-1].name})


@pytest.mark.parametrize("fp16", [False, True], ids=["fp32", "fp16"])
@pytest.mark.parametrize("ranges", [None, RANGES["ranges"]], ids=["own range", "unit range"])
@pytest.mark.parametrize("name", CASES)
def test_every_op_against_torch(name: str, ranges: Any, fp16: bool) -> None:
    graph = build(name)
    weights = values(graph)
    model = session(onnx_model(graph, weights, ranges=ranges, fp16=fp16))
    rng = np.random.default_rng(1)
    for n, height, width in ((1, 8, 8), (2, 13, 9)):
        whole = {
            "image": rng.uniform(0, 1, (n, 3, height, width)).astype(np.float32),
            "vector": rng.uniform(0, 1, (n, 3)).astype(np.float32),
        }
        inputs = {i.name: whole[i.name] for i in graph.inputs}
        result = model.run(["y"], inputs)[0]
        if ranges is None:
            expected = reference(graph, weights, inputs)["y"]
        else:
            (low, high), (bottom, top) = ranges
            scaled = {k: low + (high - low) * v for k, v in inputs.items()}
            expected = reference(graph, weights, scaled)["y"]
            expected = ((expected - bottom) / (top - bottom)).clip(0, 1)
        assert result.dtype == np.float32
        assert result.shape == expected.shape
        assert expected.std() > 0
        scale = max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(result, expected, atol=(6e-3 if fp16 else 2e-5) * scale)


def test_all_ops_have_a_case() -> None:
    from fastgen._graph_ops import OPS

    assert {n.op for nodes in CASES.values() for n in nodes} == set(OPS)


@pytest.mark.parametrize("fp16", [False, True], ids=["fp32", "fp16"])
@pytest.mark.parametrize("name", models.list_models())
def test_every_model_against_torch(name: str, fp16: bool, tmp_path: Path) -> None:
    graph = models.create(name)
    weights = values(graph)
    model = session(onnx_model(graph, weights, fp16=fp16))
    smallest = graph.smallest_shapes()
    rng = np.random.default_rng(2)
    for n, steps in ((1, 0), (2, 1)):
        inputs = {}
        for item in graph.inputs:
            sizes = zip(item.shape[1:], smallest[item.name][1:], strict=True)
            shape = [s + steps * d.divisor if isinstance(d, Dim) else s for d, s in sizes]
            inputs[item.name] = rng.uniform(0, 1, (n, *shape)).astype(np.float32)
        expected = reference(graph, weights, inputs)
        found = dict(zip(graph.outputs, model.run(list(graph.outputs), inputs), strict=True))
        for key, value in expected.items():
            scale = max(1.0, float(np.abs(value).max()))
            assert found[key].shape == value.shape
            np.testing.assert_allclose(found[key], value, atol=(2e-2 if fp16 else 1e-4) * scale)


@pytest.mark.parametrize("style", fastgen.list_styles())
@pytest.mark.parametrize("fp16", [False, True], ids=["fp32", "fp16"])
def test_shipped_styles_keep_their_gates(style: str, fp16: bool, tmp_path: Path) -> None:
    """fp32 within 0.02 of 255, fp16 at least 40 dB, on the example photo."""
    from PIL import Image

    root = Path(__file__).resolve().parent.parent
    photo = Image.open(root / "examples" / "coffee.jpg").convert("RGB").resize((200, 152))
    pixels = np.asarray(photo, np.float32) / 255
    model = session(export_onnx(style, tmp_path / "a.onnx", fp16=fp16).read_bytes())
    result = model.run(["stylized"], {"image": pixels.transpose(2, 0, 1)[None]})[0]
    expected = fastgen.stylize(pixels, style, backend="torch", precision="fp32")
    error = np.abs(result[0].transpose(1, 2, 0) - expected)
    if fp16:
        assert 10 * np.log10(1 / np.mean(error**2)) >= 40
    else:
        assert error.max() * 255 <= 0.02


def test_only_the_promised_operators(tmp_path: Path) -> None:
    """What every runtime has kernels for: no chains of shape arithmetic, no lone batch norms."""
    model = onnx.load(export_onnx("starry_night", tmp_path / "a.onnx"))
    convs = {"Pad", "Conv", "InstanceNormalization", "Resize", "Relu", "Add", "Clip"}
    assert ops_of(model) == convs
    assert model.opset_import[0].version == OPSET
    (image,), (stylized,) = model.graph.input, model.graph.output
    assert (image.name, stylized.name) == ("image", "stylized")
    for value in (image, stylized):
        dims = value.type.tensor_type.shape.dim
        assert [d.dim_param or d.dim_value for d in dims] == ["N", 3, "H", "W"]
    for node in model.graph.node:
        pads = {c.name: onnx.numpy_helper.to_array(c) for c in model.graph.initializer}
        if node.op_type == "Pad":
            assert node.attribute[0].s == b"reflect"
            assert pads[node.input[1]].min() == 0
    notes = {p.key: p.value for p in model.metadata_props}
    assert (notes["size_divisor"], notes["size_minimum"]) == ("4", "8")
    assert notes["fastgen.sha256"] == fastgen.load_style("starry_night").meta["sha256"]
    batch = models.create("transformer_net", width=2, norm="batch")
    assert "BatchNormalization" not in ops_of(onnx_model(batch, values(batch)))


@pytest.mark.parametrize("size", [(8, 8), (9, 8), (11, 14), (17, 23)])
def test_any_size(size: tuple[int, int], tmp_path: Path) -> None:
    path = save_tiny(tmp_path)
    model = session(export_onnx(path, tmp_path / "a.onnx", any_size=True).read_bytes())
    pixels = np.random.default_rng(0).uniform(0, 1, (2, *size, 3)).astype(np.float32)
    result = model.run(None, {"image": pixels.transpose(0, 3, 1, 2)})[0].transpose(0, 2, 3, 1)
    expected = fastgen.stylize(pixels, path, backend="torch", precision="fp32")
    assert result.shape == expected.shape
    np.testing.assert_allclose(result, expected, atol=1e-4)


def test_any_size_needs_one_image() -> None:
    with pytest.raises(ValueError, match="any_size needs a network with one image"):
        onnx_model(build("broadcast"), {}, any_size=True)


def test_fixed_shapes() -> None:
    graph = build("conv")
    model = onnx_model(graph, values(graph), shapes={"image": (2, 3, 10, 12)})
    dims = model.graph.output[0].type.tensor_type.shape.dim
    assert [d.dim_value for d in dims] == [2, 5, 10, 12]


def test_fp16_statistics_do_not_overflow() -> None:
    """Half a million values near 200: their sum is far beyond the largest float16."""
    graph = Graph(
        "case",
        (IMAGE,),
        (Node("y_norm", "norm", ("image",), {"kind": "instance", "affine": False}),),
        {"y": "y_norm"},
    )
    x = np.random.default_rng(0).normal(200, 10, (1, 3, 400, 400)).astype(np.float32)
    result = session(onnx_model(graph, {}, fp16=True)).run(None, {"image": x})[0]
    expected = reference(graph, {}, {"image": x})["y"]
    np.testing.assert_allclose(result, expected, atol=0.05)


def test_a_value_named_like_an_output() -> None:
    nodes = (
        Node("stylized", "conv", ("image",), {"out_channels": 3, "kernel": 1}),
        Node("other", "activation", ("stylized",), {"kind": "relu"}),
    )
    graph = Graph("case", (IMAGE,), nodes, {"stylized": "other", "twice": "other", "in": "image"})
    weights = values(graph)
    model = session(onnx_model(graph, weights))
    x = np.random.default_rng(0).normal(size=(1, 3, 8, 9)).astype(np.float32)
    expected = reference(graph, weights, {"image": x})
    for key, value in zip(graph.outputs, model.run(list(graph.outputs), {"image": x}), strict=True):
        np.testing.assert_allclose(value, expected[key], atol=1e-5)


def test_command(tmp_path: Path) -> None:
    style, out = save_tiny(tmp_path), tmp_path / "new" / "a.onnx"
    result = CliRunner().invoke(app, ["export", "onnx", "--style", str(style), "-o", str(out)])
    assert result.exit_code == 0, result.output
    assert (
        "image (N,3,H,W) -> stylized (N,3,H,W), opset 17, sides in multiples of 4" in result.output
    )
    onnx.checker.check_model(str(out), full_check=True)
    assert os.listdir(out.parent) == ["a.onnx"]


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (("-s", "starry_night", "-o", "a.pt"), 2, "must end in .onnx"),
        (("-s", "nothing_like_it", "-o", "a.onnx"), 1, "unknown style 'nothing_like_it'"),
        (("-s", "gone.safetensors", "-o", "a.onnx"), 1, "no such checkpoint"),
    ],
)
def test_wrong_usage(args: tuple[str, ...], code: int, text: str, tmp_path: Path) -> None:
    words = [str(tmp_path / a) if a.startswith("a.") else a for a in args]
    result = CliRunner().invoke(app, ["export", "onnx", *words])
    assert result.exit_code == code
    assert text in result.stderr
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_without_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(fastgen.FastgenError, match=r"pip install 'fastgen\[onnx\]'"):
        export_onnx(tiny_checkpoint(), tmp_path / "a.onnx")


def test_a_checkpoint_of_another_kind(tmp_path: Path) -> None:
    ckpt = tiny_checkpoint(kind="something")
    fastgen.save_checkpoint(tmp_path / "a.safetensors", ckpt)
    again: Checkpoint = load_checkpoint(tmp_path / "a.safetensors")
    model = session(export_onnx(tmp_path / "a.safetensors", tmp_path / "a.onnx").read_bytes())
    x = np.random.default_rng(0).uniform(0, 1, (1, 3, 16, 16)).astype(np.float32)
    expected = reference(again.graph, again.weights, {"image": x * 255})
    (value,) = expected.values()
    np.testing.assert_allclose(
        model.run(None, {"image": x})[0], (value / 255).clip(0, 1), atol=1e-4
    )
