"""The cuda backend: on the emulated card everywhere, on a GPU where there is one.

What runs on the emulated card is the shipped path, from arrays to arrays: planning, the bindings, a
captured graph and the kernels' sources. Only the device itself is emulated (tests/cuda_emulation).
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from cpu_cases import image_graph, random_weights, torch_reference
from cuda_emulation.backend import emulate
from cuda_emulation.card import SMALL
from hypothesis import HealthCheck, assume, given, settings
from test_cpu_joins import _graphs as graphs_of_two_inputs
from test_cpu_random import graphs

import fastgen
from fastgen import backends, models
from fastgen.backends import ImageIO, _cuda_tune, cuda
from fastgen.backends._cuda_steps import axis_map, conv_map
from fastgen.errors import BackendUnavailable, GraphError
from fastgen.graph import Graph, Node
from fastgen.metrics import psnr

torch = pytest.importorskip("torch")
RANDOM = settings(max_examples=12, suppress_health_check=list(HealthCheck))
STYLE = ImageIO((0.0, 255.0), (0.0, 255.0))


@pytest.fixture
def emulated(native: Any, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return emulate(native, monkeypatch)


def runner(graph: Graph, precision: str = "fp32", **config: Any) -> cuda.Runner:
    config = {"tune": False} | config  # measuring tiles on the emulated card takes its time
    return cuda.Runner(graph, random_weights(graph), precision, **config)


def inputs_for(graph: Graph, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        k: rng.normal(size=shapes[k]).astype(np.float32) for k in (i.name for i in graph.inputs)
    }


def assert_parity(graph: Graph, inputs: dict[str, np.ndarray], **config: Any) -> list[str]:
    """fp32 against torch in float64, launched one by one and captured; the launches' labels."""
    expected = torch_reference(graph, random_weights(graph), inputs)
    ours = runner(graph, **config)
    for _ in range(3):
        got = ours.run(inputs)
        assert got.keys() == expected.keys()
        for name, reference in expected.items():
            assert got[name].shape == reference.shape
            assert got[name].dtype == np.float32
            bound = 1e-3 * max(1.0, float(np.abs(reference).max()))
            np.testing.assert_allclose(got[name], reference, rtol=0, atol=bound)
    return ours.launches(inputs)


# ---------------------------------------------------------------------- whole networks

NETWORKS = {
    "instance": ("transformer_net", {"width": 8, "blocks": 1}),
    "batch": ("transformer_net", {"width": 8, "blocks": 1, "norm": "batch"}),
    "small": ("compact_net", {"width": 8, "blocks": 1}),
    "paper": ("johnson_net", {"width": 8, "blocks": 1}),
}


def picture(n: int, height: int, width: int, dtype: Any = np.uint8) -> np.ndarray:
    rng = np.random.default_rng(1)
    rough = rng.integers(0, 256, (n, height // 4 + 2, width // 4 + 2, 3))
    photo = rough.repeat(4, 1).repeat(4, 2)[:, :height, :width].astype(np.uint8)
    return photo if dtype == np.uint8 else photo.astype(np.float32) / np.float32(255)


def style_weights(graph: Graph) -> dict[str, np.ndarray]:
    """Random weights whose pictures use the range 0..255."""
    weights = random_weights(graph)
    for name in graph.outputs.values():
        if f"{name}.weight" in weights:
            weights[f"{name}.weight"] *= np.float32(40)
            weights[f"{name}.bias"] = weights[f"{name}.bias"] + np.float32(127)
    return weights


def reference_pictures(graph: Graph, photo: np.ndarray, io: ImageIO) -> np.ndarray:
    torch_runner = backends.get("torch").compile(graph, style_weights(graph), "fp32", 1)
    return torch_runner.run(photo, io)  # type: ignore[no-any-return]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_style_networks(emulated: ModuleType, name: str, precision: str) -> None:
    """Photos of odd sizes, a batch, strength, colour and channel order, in 16 bits: 40 dB."""
    model, config = NETWORKS[name]
    graph = models.create(model, **config)
    ours = cuda.Runner(graph, style_weights(graph), precision, tune=False)
    io = ImageIO(strength=0.75, preserve_color=True, bgr=True)
    for photo, how in ((picture(1, 13, 18), STYLE), (picture(2, 9, 11, np.float32), io)):
        expected = reference_pictures(graph, photo, how)
        for _ in range(3):
            got = ours.run(photo, how)
            assert got.dtype == photo.dtype
            assert psnr(expected, got) >= 40


def test_fp32_pictures(emulated: ModuleType) -> None:
    graph = models.create("transformer_net", width=8, blocks=1)
    ours = cuda.Runner(graph, style_weights(graph), "fp32", tune=False)
    photo = picture(1, 10, 14, np.float32)
    difference = np.abs(reference_pictures(graph, photo, STYLE) - ours.run(photo, STYLE))
    assert difference.max() * 255 <= 0.02


def test_launches_of_the_style_network(emulated: ModuleType) -> None:
    """One launch for each convolution and one for each residual sum: nothing else."""
    graph = models.create("transformer_net", width=8, blocks=2)
    names = runner(graph).launches(picture(1, 16, 16), STYLE)
    convs = [node.name for node in graph.nodes if node.op == "conv"]
    assert [name for name in names if not name.endswith(" in")] == convs
    assert [n for n in names if n.endswith(" in")] == ["res0_conv1 in", "res1_conv1 in", "up1 in"]
    apart = runner(graph, fuse=False).launches(picture(1, 16, 16), STYLE)
    assert len(apart) > len(names)


def test_columns_as_outputs_of_pictures(emulated: ModuleType) -> None:
    """The last layer of a wide network writes the caller's image, in every layout."""
    attrs = {"padding_mode": "reflect"}
    nodes = (
        conv("a", "x", out_channels=16, **attrs),
        Node("r", "activation", ("a",), {"kind": "relu"}),
        conv("c", "r", out_channels=3, kernel=9, padding=4, **attrs),
    )
    graph = image_graph(3, *nodes)
    ours = cuda.Runner(graph, style_weights(graph), "fp16", tune=False)
    for photo in (picture(1, 13, 41), picture(2, 37, 12, np.float32)):
        io = ImageIO(strength=0.5, bgr=True)
        expected = reference_pictures(graph, photo, io)
        assert psnr(expected, ours.run(photo, io)) >= 40
    (last,) = (launch for launch in next(iter(ours._replays.values())).plan.launches[-1:])
    assert (last.conv.outputs, last.conv.fold) == (27, 8)


@pytest.mark.parametrize("name", ["saae_plates", "saae_faces"])
def test_generators(emulated: ModuleType, name: str) -> None:
    graph = models.create(name, width=4, style_features=8)
    shapes = graph.infer_shapes(graph.smallest_shapes())
    inputs = {k: np.abs(v) % 1 for k, v in inputs_for(graph, shapes).items()}
    expected = torch_reference(graph, random_weights(graph), inputs)["image"]
    ours = runner(graph)
    assert np.abs(ours.run(inputs)["image"] - expected).max() < 1e-4
    ours.set_constants({"style": inputs["style"]})
    labels = ours.launches({"content": inputs["content"]})
    assert not any("style" in label for label in labels)
    for style in (inputs["style"], 1 - inputs["style"]):
        ours.set_constants({"style": style})
        expected = torch_reference(graph, random_weights(graph), inputs | {"style": style})["image"]
        for _ in range(3):
            got = ours.run({"content": inputs["content"]})["image"]
            assert np.abs(got - expected).max() < 1e-4


# ---------------------------------------------------------------------- graphs


def test_random_graphs(native: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        emulate(native, patch)

        @RANDOM
        @given(graphs())
        def check(graph: Graph) -> None:
            shape = (2, graph.inputs[0].shape[1], 7, 9)
            try:
                shapes = graph.infer_shapes({"v0": shape})
            except GraphError:
                assume(False)
            assume(max(int(np.prod(s)) for s in shapes.values()) < 20_000)
            assert_parity(graph, inputs_for(graph, shapes))

        check()


def test_random_graphs_of_two_inputs(native: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        emulate(native, patch)

        @RANDOM
        @given(graphs_of_two_inputs())
        def check(graph: Graph) -> None:
            shapes = graph.infer_shapes(graph.smallest_shapes())
            assume(max(int(np.prod(s)) for s in shapes.values()) < 20_000)
            assert_parity(graph, inputs_for(graph, shapes))

        check()


def conv(name: str, source: str, **attrs: Any) -> Node:
    return Node(name, "conv", (source,), {"out_channels": 8, "kernel": 3, "padding": 1} | attrs)


UNUSUAL = {
    "groups": [conv("c", "x", groups=2)],
    "depthwise, strided": [conv("c", "x", groups=4, stride=3, padding_mode="reflect")],
    "large kernel": [conv("c", "x", kernel=17, padding=8)],
    "stride 3": [conv("c", "x", stride=3)],
    "transposed, stride 3": [
        Node("c", "conv_transpose", ("x",), {"out_channels": 5, "kernel": 4, "stride": 3})
    ],
    "transposed, kernel below stride": [
        Node("c", "conv_transpose", ("x",), {"out_channels": 5, "kernel": 2, "stride": 4})
    ],
    "upsampled by 3": [
        Node("u", "upsample", ("x",), {"scale": 3}),
        conv("c", "u", padding_mode="reflect"),
    ],
    "upsampled, wide reflection": [
        Node("u", "upsample", ("x",), {"scale": 2}),
        conv("c", "u", kernel=5, padding=2, padding_mode="reflect"),
    ],
    "upsampled twice": [
        Node("u", "upsample", ("x",), {"scale": 2}),
        Node("v", "upsample", ("u",), {"scale": 2}),
        conv("c", "v", padding_mode="reflect"),
    ],
    "cropped, upsampled, padded": [
        Node("k", "crop", ("x",), {"crop": [1, 0, 0, 2]}),
        Node("u", "upsample", ("k",), {"scale": 2}),
        Node("p", "pad", ("u",), {"padding": [1, 1, 1, 0], "mode": "reflect"}),
        conv("c", "p", padding=0),
    ],
    "residual behind statistics": [
        conv("a", "x", out_channels=8),
        Node("r", "activation", ("a",), {"kind": "relu"}),
        Node("n", "norm", ("r",), {"kind": "instance"}),
        Node("s", "mul", ("n", "r"), {}),
        conv("c", "s", out_channels=24),
    ],
    "columns as outputs": [
        conv("a", "x", out_channels=24),
        conv("c", "a", out_channels=3, kernel=9, padding=4, padding_mode="reflect"),
    ],
    "columns as outputs, upsampled": [
        conv("a", "x", out_channels=12),
        Node("u", "upsample", ("a",), {"scale": 2}),
        conv("c", "u", out_channels=4, kernel=5, padding=2, padding_mode="reflect"),
        Node("y", "activation", ("c",), {"kind": "tanh"}),
    ],
    "squashed": [
        conv("a", "x"),
        Node("n", "norm", ("a",), {"kind": "instance"}),
        Node("t", "activation", ("n",), {"kind": "tanh"}),
        conv("c", "t"),
        Node("y", "activation", ("c",), {"kind": "sigmoid"}),
    ],
    "pooled and reshaped": [
        Node("m", "pool", ("x",), {"kind": "avg", "kernel": 3, "stride": 2, "padding": 1}),
        Node("g", "pool", ("m",), {"kind": "global_avg"}),
        Node("f", "reshape", ("g",), {"shape": [-1]}),
        Node("l", "linear", ("f",), {"out_features": 12}),
        Node("q", "reshape", ("l",), {"shape": [3, 2, 2]}),
    ],
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_graphs(emulated: ModuleType, name: str) -> None:
    graph = image_graph(4, *UNUSUAL[name])
    size = graph.smallest_shapes()["x"][2] + 3
    assert_parity(graph, inputs_for(graph, {"x": (2, 4, size, size + 2)}))


def test_kernels_that_do_not_fit_the_card(native: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small card takes the slow kernel for what needs more shared memory."""
    emulate(native, monkeypatch, shared=SMALL)
    graph = image_graph(4, conv("c", "x", kernel=15, padding=7, stride=2, out_channels=3))
    assert_parity(graph, inputs_for(graph, {"x": (1, 4, 17, 18)}))


# ---------------------------------------------------------------------- maps


def test_maps() -> None:
    index = axis_map([(0, 2, 0, 0, 0), (3, 1, 2, 0, 0)], np.arange(3), vertical=False)
    assert index.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 1]
    assert axis_map([(2, 0, 0, 1, 0), (1, 0, 0, 0, 2)], np.arange(3), True).tolist() == [-1, 0]
    for mode, expected in ((0, [-1, -1, 0, 1, 2, -1]), (1, [2, 1, 0, 1, 2, 1])):
        found = conv_map(np.arange(3), -2, 6, mode)
        assert found.index.tolist() == expected
        assert found.first == -2
    assert conv_map(np.arange(3), -1, 5, 2).index.tolist() == [0, 0, 1, 2, 2]
    assert conv_map(np.arange(9), 0, 4, 1).index.tolist() == [0, 1, 2, 3]


# ---------------------------------------------------------------------- runs


@pytest.fixture
def small_net() -> Graph:
    return models.create("compact_net", width=4, blocks=0)


def test_results_in_the_callers_memory(emulated: ModuleType, small_net: Graph) -> None:
    ours = runner(small_net, "fp16")
    photo = picture(1, 12, 8)
    expected = ours.run(photo, STYLE)
    out = np.zeros((1, 12, 16, 3), np.uint8)[:, :, ::2]
    assert ours.run(photo, STYLE, out=out) is out
    assert np.array_equal(out, expected)
    x = np.ones((1, 3, 8, 8), np.float32)
    single = ours.run(x)
    given_out = np.empty_like(single)
    assert ours.run(x, out=given_out) is given_out
    assert np.array_equal(single, given_out)
    with pytest.raises(ValueError, match="must be a writable array"):
        ours.run(photo, STYLE, out=np.zeros((1, 8, 8, 3), np.uint8))
    with pytest.raises(TypeError, match="int64"):
        ours.run(np.ones((1, 3, 8, 8), np.int64))


def test_a_captured_graph_serves_every_strength(emulated: ModuleType, small_net: Graph) -> None:
    ours = runner(small_net, "fp16")
    photo = picture(1, 8, 8)
    launched = native_launches(emulated)
    results = [ours.run(photo, ImageIO(strength=s)) for s in (1.0, 0.5, 0.0)]
    assert len(ours._replays) == 1
    assert native_launches(emulated) > launched
    assert np.array_equal(results[2], photo)
    half = results[0].astype(int) + photo.astype(int)
    assert np.abs(results[1].astype(int) * 2 - half).max() <= 2


def native_launches(module: ModuleType) -> int:
    return int(module.counts()["launches"])


def test_kinds_of_input_are_bounded(
    emulated: ModuleType, small_net: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "_PLANS", 2)
    ours = runner(small_net, "fp16")
    first = ours.run(picture(1, 8, 8), STYLE)
    for width in (8, 12, 16, 8):
        ours.run(picture(1, 8, width), STYLE)
    assert len(ours._replays) == 2
    assert ours.memory_bytes > 0
    assert np.array_equal(ours.run(picture(1, 8, 8), STYLE), first)
    ours.close()
    assert ours.memory_bytes == 0
    with pytest.raises(ValueError, match="closed"):
        ours.run(picture(1, 8, 8), STYLE)


def test_too_little_memory(emulated: ModuleType, small_net: Graph) -> None:
    ours = runner(small_net, "fp16")
    expected = ours.run(picture(1, 8, 8), STYLE)
    emulated.set_memory_limit(1 << 14)
    try:
        with pytest.raises(MemoryError, match=r"GPU's memory is too small.*take smaller images"):
            ours.run(picture(1, 256, 256), STYLE)
    finally:
        emulated.set_memory_limit(1 << 40)
    assert np.array_equal(ours.run(picture(1, 8, 8), STYLE), expected)


def test_streams_of_frames(emulated: ModuleType, small_net: Graph) -> None:
    ours = runner(small_net, "fp16")
    photos = [np.roll(picture(1, 8, 8 + 4 * (i > 3)), i, 1) for i in range(6)]
    expected = [ours.run(photo, STYLE) for photo in photos]
    got = list(ours.frames(photos, STYLE))
    assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))
    some = ours.frames(photos, STYLE)
    assert np.array_equal(next(some), expected[0])
    some.close()
    lanes = [lane for replay in ours._replays.values() for lane in replay._lanes]
    assert len(lanes) > 2
    assert not any(lane.busy for lane in lanes)
    assert list(ours.frames([], STYLE)) == []


class OnCard:
    """An array of some library on the emulated card."""

    def __init__(self, array: np.ndarray, module: Any, strides: Any = None) -> None:
        self.array, self.shape, self.dtype = array, array.shape, array.dtype
        module.declare(array.ctypes.data, array.nbytes, True, "an array of the caller")
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (array.ctypes.data, False),
            "strides": strides,
        }


def test_arrays_of_other_libraries(emulated: ModuleType, small_net: Graph) -> None:
    """Read and written in place, in both layouts; results of our own where none are given."""
    ours = runner(small_net, "fp16")
    photo = picture(2, 9, 7)
    expected = ours.run(photo, STYLE)
    given_photo = OnCard(photo.copy(), emulated)
    for _ in range(3):  # captured, and at another address every time
        out = OnCard(np.zeros_like(photo), emulated)
        assert ours.run(given_photo, STYLE, out=out) is out
        assert np.array_equal(out.array, expected)
    planes = OnCard(np.ascontiguousarray(photo.transpose(0, 3, 1, 2)), emulated)
    out = OnCard(np.zeros_like(planes.array), emulated)
    ours.run_planar(planes, STYLE, out)
    assert np.array_equal(out.array.transpose(0, 2, 3, 1), expected)
    x = OnCard(np.ones((1, 3, 8, 8), np.float32), emulated)
    result = ours.run(x)
    assert result.shape == (1, 3, 8, 8)
    facts = result.__cuda_array_interface__
    host = np.empty(result.shape, np.float32)
    emulated.copy(host.ctypes.data, facts["data"][0], host.nbytes, 0)
    assert np.array_equal(host, ours.run(x.array))
    with pytest.raises(ValueError, match="not contiguous"):
        ours.run(OnCard(x.array, emulated, strides=(768, 256, 4, 32)))
    with pytest.raises(TypeError, match="is list, must be"):
        ours.run([x])
    with pytest.raises(ValueError, match="on cpu, this runner on cuda:0"):
        ours.run(torch.ones(1, 3, 8, 8))


def test_dlpack(emulated: ModuleType, small_net: Graph) -> None:
    """Our results are DLPack arrays, and those of others are read in place."""
    ours = runner(small_net, "fp16")
    x = OnCard(np.ones((1, 3, 8, 8), np.float32), emulated)
    result = ours.run(x)
    assert result.__dlpack_device__() == (2, 0)
    address, shape, strides, code, bits = emulated.from_dlpack(result.__dlpack__())
    assert address == result.__cuda_array_interface__["data"][0]
    assert (tuple(shape), strides, code, bits) == ((1, 3, 8, 8), None, 2, 32)

    class Other:
        shape, dtype = result.shape, result.dtype

        def __dlpack_device__(self) -> tuple[int, int]:
            return result.__dlpack_device__()

        def __dlpack__(self, stream: int) -> Any:
            return result.__dlpack__(stream=stream)

    again = ours.run(Other())
    host = np.empty(again.shape, np.float32)
    emulated.copy(host.ctypes.data, again.__cuda_array_interface__["data"][0], host.nbytes, 0)
    first = ours.run(np.ones((1, 3, 8, 8), np.float32))
    assert np.array_equal(host, ours.run(first))
    with pytest.raises(ValueError, match="DLPack"):
        emulated.from_dlpack(3)


# ---------------------------------------------------------------------- tiles


@pytest.fixture
def few_tiles(monkeypatch: pytest.MonkeyPatch) -> Graph:
    """One convolution, and few rectangles to choose from."""
    monkeypatch.setattr(_cuda_tune, "_WIDTHS", (4,))
    monkeypatch.setattr(_cuda_tune, "_REPEATS", 1)
    return image_graph(4, conv("c", "x"))


def test_tiles_are_measured_once(emulated: ModuleType, few_tiles: Graph, tmp_path: Path) -> None:
    x = np.ones((1, 4, 8, 8), np.float32)
    expected = runner(few_tiles, "fp16").run(x)

    def run() -> int:
        before = native_launches(emulated)
        got = runner(few_tiles, "fp16", tune=True, tiles=tmp_path).run(x)
        assert np.allclose(got, expected, atol=1e-2)
        return native_launches(emulated) - before

    measured, known = run(), run()
    assert known < measured / 3
    (file,) = tmp_path.iterdir()
    data = json.loads(file.read_text())
    assert data["gpu"] == "Emulated card"
    assert data["fastgen"] == fastgen.__version__
    assert all(0 <= tile < emulated.conv_tiles for tile, _ in data["tiles"].values())
    for damage in ("{", '{"tiles": 3}', json.dumps(data | {"driver": 1})):
        file.write_text(damage)
        assert run() > known
        assert json.loads(file.read_text())["driver"] == data["driver"]
    impossible = {key: [4, 20] for key in data["tiles"]}
    file.write_text(json.dumps(data | {"tiles": impossible}))
    assert run() > known


def test_a_folder_that_cannot_be_written(
    emulated: ModuleType, few_tiles: Graph, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    ours = runner(few_tiles, "fp16", tune=True, tiles=tmp_path / "file" / "below")
    assert ours.run(np.ones((1, 4, 8, 8), np.float32)).shape == (1, 8, 8, 8)


# ---------------------------------------------------------------------- choosing it


def test_why_not(native: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    emulate(native, monkeypatch)
    assert cuda.why_not() is None
    assert cuda.why_not(3) == "there is no CUDA device 3, only 1; take 0..0"
    with pytest.raises(ValueError, match="has no precision 'int8'; has fp32, fp16, bf16"):
        cuda.precision_why_not("int8")
    module = emulate(native, monkeypatch, devices=0)
    assert cuda.why_not() == "no CUDA device: no driver; install NVIDIA's driver"
    module.device_count = lambda: (1, None)
    module.device = lambda index: {"name": "Old", "capability": (7, 5)}
    assert cuda.why_not() == "Old has compute capability 7.5, 8.0 or newer is needed"
    monkeypatch.setitem(sys.modules, "fastgen._cuda", None)
    monkeypatch.delattr(fastgen, "_cuda")
    reason = cuda.why_not()
    assert reason is not None
    assert "FASTGEN_CUDA=ON pip install ." in reason


def test_a_named_backend_without_a_device(native: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    emulate(native, monkeypatch, devices=0)
    with pytest.raises(BackendUnavailable, match="backend 'cuda' cannot run here: no CUDA device"):
        fastgen.Stylizer(fastgen.list_styles()[0], backend="cuda")
    assert backends.choose("auto")[0] != "cuda"


def test_auto_takes_the_card(emulated: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTGEN_TILE_CACHE", "/nonexistent")
    name, why = backends.choose("auto")
    assert name == "cuda"
    assert "tensorrt" in why
    assert backends.choose("auto", "bf16")[0] == "cuda"


# ---------------------------------------------------------------------- on a GPU

gpu = pytest.mark.skipif(cuda.why_not() is not None, reason=str(cuda.why_not()))


@gpu
@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("name", fastgen.list_styles())
def test_gpu_shipped_styles(name: str, precision: str, tmp_path: Path) -> None:
    style = fastgen.load_style(name)
    reference = backends.get("torch").compile(style.graph, style.weights, "fp32", None)
    ours = cuda.Runner(style.graph, style.weights, precision, tiles=tmp_path)
    for size in ((1, 257, 383), (2, 64, 100), (1, 540, 960), (1, 5, 3)):
        photo = picture(*size)
        expected = reference.run(photo, STYLE)
        for _ in range(3):
            assert psnr(expected, ours.run(photo, STYLE)) >= (40 if precision != "fp32" else 55)


@gpu
def test_gpu_tensors_and_streams(tmp_path: Path) -> None:
    """Tensors in place on the current stream, in both layouts, from two threads."""
    graph = models.create("transformer_net", width=16, blocks=2)
    ours = cuda.Runner(graph, style_weights(graph), "fp16", tiles=tmp_path)
    photos = [np.roll(picture(1, 96, 128), 7 * i, 2) for i in range(8)]
    expected = [ours.run(photo, STYLE) for photo in photos]
    failures: list[str] = []

    def work() -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for photo, right in zip(photos, expected, strict=True):
                on_card = torch.from_numpy(photo).cuda()
                planes = on_card.permute(0, 3, 1, 2).contiguous()
                results = [ours.run(on_card, STYLE), ours.run_planar(planes, STYLE)]
                rows = [results[0], results[1].permute(0, 2, 3, 1)]
                if not all(np.array_equal(r.cpu().numpy(), right) for r in rows):
                    failures.append("a result is not what the host got")

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    got = list(ours.frames(photos, STYLE))
    assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))


@gpu
def test_gpu_part_of_the_callers_graph(tmp_path: Path) -> None:
    graph = models.create("compact_net", width=8, blocks=1)
    ours = cuda.Runner(graph, style_weights(graph), "fp16", tiles=tmp_path)
    x = torch.rand(1, 3, 64, 64, device="cuda") * 255
    expected = ours.run(x)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    out = torch.empty_like(expected)
    with torch.cuda.stream(side):
        ours.run(x, out=out)
    torch.cuda.current_stream().wait_stream(side)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        ours.run(x, out=out)
    out.zero_()
    captured.replay()
    assert torch.equal(out, expected)


@gpu
def test_gpu_memory_does_not_grow(tmp_path: Path) -> None:
    graph = models.create("transformer_net", width=16, blocks=2)
    ours = cuda.Runner(graph, style_weights(graph), "fp16", tiles=tmp_path)
    native = cuda._extension()
    photo = picture(1, 240, 320)
    first = [ours.run(photo, STYLE) for _ in range(3)][-1]
    before = native.memory_info(0)[0]
    for _ in range(200):
        last = ours.run(photo, STYLE)
    assert np.array_equal(first, last)
    assert native.memory_info(0)[0] >= before - (1 << 20)
