"""Convolutions whose products take bytes: every instruction set, against integer arithmetic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cpu_cases import ISAS, image_graph, need_isa, random_weights, torch_reference
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from test_cpu_random import graphs

from fastgen import models
from fastgen.errors import CheckpointError, GraphError
from fastgen.graph import Dim, Graph, Input, Node

torch = pytest.importorskip("torch")
F = torch.nn.functional

# Input values are integers of this range, which 0..255 holds exactly.
LOW, HIGH = -100, 155

# images, inputs, height, width, outputs, kernel, stride, padding, mode, upsample
CASES = [
    (1, 3, 19, 23, 32, 9, 1, 4, "reflect", 1),  # few inputs: fours run over the taps of a row
    (2, 1, 9, 10, 17, 3, 1, 1, "zeros", 1),
    (1, 2, 9, 33, 40, 4, 2, 1, "zeros", 1),
    (1, 4, 8, 9, 16, 1, 1, 0, "zeros", 1),
    (1, 3, 12, 14, 5, 3, 2, 1, "reflect", 1),
    (1, 13, 11, 37, 24, 3, 1, 1, "zeros", 1),  # inputs that are no fours
    (2, 17, 10, 9, 33, 3, 2, 1, "reflect", 1),  # a single input in the last block
    (1, 37, 9, 11, 20, 1, 1, 0, "zeros", 1),
    (1, 64, 9, 40, 70, 3, 1, 1, "reflect", 1),
    (1, 32, 9, 17, 64, 3, 2, 1, "zeros", 1),
    (1, 8, 7, 9, 30, 3, 1, 1, "reflect", 2),  # four phases
    (1, 32, 20, 77, 3, 9, 1, 4, "reflect", 1),  # few outputs: lanes run over pixels
    (1, 5, 9, 130, 1, 3, 1, 1, "zeros", 1),
    (2, 18, 11, 12, 4, 5, 1, 2, "reflect", 2),
]


def _graph(case: tuple) -> Graph:
    _, inputs, _, _, outputs, kernel, stride, padding, mode, upsample = case
    attrs = {"out_channels": outputs, "kernel": kernel, "stride": stride}
    attrs |= {"padding": padding, "padding_mode": mode}
    nodes = []
    if upsample > 1:  # the pool leaves its map in blocks, which is then read through a view
        nodes = [
            Node("p", "pool", ("x",), {"kind": "max", "kernel": 1, "stride": 1}),
            Node("u", "upsample", ("p",), {"scale": upsample}),
        ]
    return image_graph(inputs, *nodes, Node("c", "conv", ("u" if nodes else "x",), attrs))


def _integers(case: tuple) -> np.ndarray:
    images, inputs, height, width, *_ = case
    rng = np.random.default_rng(2)
    return rng.integers(LOW, HIGH + 1, (images, inputs, height, width)).astype(np.float32)


def _quantised(weight: np.ndarray) -> np.ndarray:
    """The weights that the engine multiplies by, of phases that are the whole kernel."""
    scale = np.abs(weight.astype(np.float64)).max(axis=(1, 2, 3), keepdims=True) / 127
    return np.rint(weight / scale) * scale


def _upsampled_weights(weight: np.ndarray) -> np.ndarray:
    """A 3x3 kernel behind nearest x2 as its four 2x2 phases, quantised one by one: (4,O,I,2,2)."""
    parts = []
    for ry in range(2):
        for rx in range(2):
            part = np.zeros((*weight.shape[:2], 2, 2))
            for y in range(3):
                for x in range(3):
                    part[:, :, (y + 1 - ry) // 2, (x + 1 - rx) // 2] += weight[:, :, y, x]
            parts.append(_quantised(part))
    return np.stack(parts)


def _expected(case: tuple, x: np.ndarray, weights: dict[str, np.ndarray]) -> np.ndarray:
    """The convolution in exact arithmetic with the rounded weights."""
    *_, outputs, kernel, stride, padding, mode, upsample = case
    weight, bias = weights["c.weight"], torch.from_numpy(weights["c.bias"]).double()
    tensor = torch.from_numpy(x).double()

    def pad(t: torch.Tensor, p: int, how: str) -> torch.Tensor:
        return F.pad(t, [p] * 4, mode=how) if p and how != "zeros" else F.pad(t, [p] * 4)

    if upsample == 2 and kernel == 3 and outputs > 4:
        # Reflection of the large map by one pixel repeats the small map's border.
        padded = pad(tensor, 1, "replicate" if mode == "reflect" else mode)
        n, _, h, w = tensor.shape
        result = torch.empty(n, outputs, 2 * h, 2 * w, dtype=torch.float64)
        for i, part in enumerate(_upsampled_weights(weight)):
            ry, rx = divmod(i, 2)
            window = padded[:, :, ry : ry + h + 1, rx : rx + w + 1]
            result[:, :, ry::2, rx::2] = F.conv2d(window, torch.from_numpy(part), bias)
        return result.numpy()
    if upsample == 2:
        tensor = F.interpolate(tensor, scale_factor=2)
    rounded = torch.from_numpy(_quantised(weight))
    return F.conv2d(pad(tensor, padding, mode), rounded, bias, stride).numpy()


@pytest.fixture
def all_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes even where other factors are faster, and maps of float32."""
    from fastgen.backends import cpu

    monkeypatch.setattr(cpu, "_has_halves", lambda isa: False)
    monkeypatch.setattr(cpu, "products", lambda steps, kind, _: [kind] * len(steps.steps))


@pytest.mark.usefixtures("all_bytes")
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels_against_integers(isa: str, case: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    need_isa(isa)
    from fastgen.backends import cpu
    from fastgen.backends.cpu import Runner

    graph, x = _graph(case), _integers(case)
    weights = random_weights(graph)
    expected = _expected(case, x, weights)
    x[0, 0, 0, :2] = LOW, HIGH  # so that measured ranges are the given ones
    expected = _expected(case, x, weights)
    for ranges in ({"x": (LOW, HIGH)}, None):
        if ranges is None and case[0] > 1:
            continue  # a range for each image
        runner = Runner(graph, weights, 2, isa, "int8", ranges)
        np.testing.assert_allclose(
            runner.run(x), expected, rtol=0, atol=2e-6 * np.abs(expected).max()
        )
    monkeypatch.setattr(cpu, "_has_halves", lambda isa: True)  # the result passes through bfloat16
    halves = Runner(graph, weights, 2, isa, "int8", {"x": (LOW, HIGH)}).run(x)
    np.testing.assert_allclose(halves, expected, 2**-8, 2e-6 * np.abs(expected).max())
    assert (halves != runner.run(x)).any() or case[4] <= 4  # few outputs are written at once


@pytest.mark.parametrize("isa", ISAS)
def test_every_image_has_its_own_range(isa: str) -> None:
    need_isa(isa)
    from fastgen.backends.cpu import Runner

    graph = _graph((1, 6, 8, 8, 8, 3, 1, 1, "zeros", 1))
    runner = Runner(graph, random_weights(graph), 2, isa, "int8")
    x = np.random.default_rng(0).normal(size=(3, 6, 9, 11)).astype(np.float32)
    x *= np.float32([1e-3, 1.0, 1e4])[:, None, None, None]
    result = runner.run(x)
    for image, one in zip(x, result, strict=True):
        np.testing.assert_array_equal(runner.run(image[None])[0], one)
    exact = Runner(graph, random_weights(graph), 2, isa).run(x)
    error = np.abs(result - exact).max(axis=(1, 2, 3)) / np.abs(exact).max(axis=(1, 2, 3))
    assert (error > 1e-5).all()  # it is int8
    assert (error < 0.03).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("value", [0.0, np.nan, np.inf, 1e-40, 3e38])
def test_images_without_a_range(isa: str, value: float) -> None:
    need_isa(isa)
    from fastgen.backends.cpu import Runner

    graph = _graph((1, 6, 8, 8, 8, 3, 1, 1, "zeros", 1))
    weights = random_weights(graph)
    runner = Runner(graph, weights, 1, isa, "int8")
    result = runner.run(np.full((1, 6, 9, 11), value, np.float32))
    if value in (0.0, 1e-40):
        wanted = np.broadcast_to(weights["c.bias"][:, None, None], result.shape[1:])
        np.testing.assert_allclose(result[0], wanted, 2**-8, 1e-6)  # it may pass through bfloat16
    # Whatever came before leaves no trace.
    x = np.random.default_rng(0).normal(size=(1, 6, 9, 11)).astype(np.float32)
    fresh = Runner(graph, weights, 1, isa, "int8").run(x)
    np.testing.assert_array_equal(runner.run(x), fresh)
    assert np.isfinite(fresh).all()


# images, inputs, height, width, outputs, padding, mode
WINOGRAD = [
    (2, 64, 13, 17, 40, 1, "reflect"),
    (1, 33, 9, 8, 33, 1, "zeros"),  # inputs that are no blocks
    (1, 48, 5, 66, 64, 0, "zeros"),
    (1, 128, 7, 9, 70, 1, "reflect"),
    (1, 32, 4, 4, 32, 1, "zeros"),
]


def _behind_a_norm(case: tuple) -> tuple[Graph, dict[str, np.ndarray], np.ndarray]:
    """A convolution that reads a norm, its weights, and an input that the norm describes well."""
    images, inputs, height, width, outputs, padding, mode = case
    attrs = {"out_channels": outputs, "kernel": 3, "padding": padding, "padding_mode": mode}
    nodes = (
        Node("n", "norm", ("x",), {"kind": "batch", "eps": 0.25}),
        Node("r", "activation", ("n",), {"kind": "relu"}),
        Node("y", "conv", ("r",), attrs),
    )
    rng = np.random.default_rng(1)
    graph = image_graph(inputs, *nodes)
    weights = random_weights(graph)
    weights["n.weight"] = np.geomspace(0.01, 10, inputs).astype(np.float32)  # a range for each
    weights["n.bias"] = (weights["n.weight"] * rng.uniform(-1, 3, inputs)).astype(np.float32)
    x = rng.normal(size=(images, inputs, height, width))
    spread = np.sqrt(weights["n.running_var"] + 0.25)[:, None, None]
    x = x * spread + weights["n.running_mean"][:, None, None]
    return graph, weights, x.astype(np.float32)


@pytest.mark.usefixtures("all_bytes")
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", WINOGRAD, ids=str)
def test_winograd_error(isa: str, case: tuple) -> None:
    need_isa(isa)
    from fastgen.backends.cpu import Runner, _extension

    graph, weights, x = _behind_a_norm(case)
    (expected,) = torch_reference(graph, weights, {"x": x}).values()
    simplest = _extension().isa_available()[-1]
    results = [Runner(graph, weights, 2, i, "int8").run(x) for i in (simplest, isa)]
    # Against the map's own variation: a bias is no signal.
    signal = (expected - expected.mean((2, 3), keepdims=True)).std()
    decibels = 20 * np.log10(signal / (results[1] - expected).std())
    # Points rounded to bytes, of channels with spreads of 0.01 to 10: 27 dB. float32 would be
    # above 100; a wrong centre, scale or point is below 20.
    assert 24 < decibels < 36
    # The same sums of bytes everywhere, but for bytes that rounding takes the other way.
    difference = np.abs(results[0] - results[1])
    assert np.quantile(difference, 0.95) <= 2e-6 * np.abs(expected).max()


@pytest.mark.parametrize("bytes_only", [True, False])
@pytest.mark.parametrize("isa", ISAS)
def test_random_graphs(isa: str, bytes_only: bool, request: pytest.FixtureRequest) -> None:
    need_isa(isa)
    from fastgen.backends.cpu import Runner

    if bytes_only:
        request.getfixturevalue("all_bytes")

    @settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(graphs(), st.integers(1, 2), st.integers(6, 17), st.integers(6, 17))
    def check(graph: Graph, n: int, height: int, width: int) -> None:
        shape = (n, graph.inputs[0].shape[1], height, width)
        try:
            shapes = graph.infer_shapes({"v0": shape})
        except GraphError:
            assume(False)
        assume(max(int(np.prod(s)) for s in shapes.values()) < 300_000)
        x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        weights = random_weights(graph)
        expected = torch_reference(graph, weights, {"v0": x})
        for ranges in (None, {"v0": (float(x.min()), float(x.max()))}):
            got = Runner(graph, weights, 2, isa, "int8", ranges).run({"v0": x})
            for name, reference in expected.items():
                error = np.sqrt(np.square(got[name] - reference).mean())
                # 8 bits through up to nine nodes; a wrong tap, channel or zero is far more.
                assert error <= 0.1 * max(float(np.sqrt(np.square(reference).mean())), 0.1)

    check()


@pytest.mark.parametrize("halves", [True, False])
def test_instruction_sets_agree(halves: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of bytes are exact, so only the rounding of what is between them can differ."""
    from fastgen.backends import cpu

    monkeypatch.setattr(cpu, "_has_halves", lambda isa: halves)
    graph = models.create("compact_net", width=16, blocks=1)
    weights = random_weights(graph)
    x = np.random.default_rng(0).uniform(0, 255, (1, 3, 40, 52)).astype(np.float32)
    exact = cpu.Runner(graph, weights, 1).run(x)
    results = [
        cpu.Runner(graph, weights, 1, isa, "int8", {"image": (0, 255)}).run(x)
        for isa in cpu._extension().isa_available()
    ]
    for result in results:
        assert 1e-3 * exact.std() < np.abs(result - exact).mean() < 0.1 * exact.std()
        # Rounding to a byte goes the other way now and then.
        assert np.abs(result - results[0]).mean() < 5e-3 * exact.std()


def test_a_graph_without_convolutions_and_other_layers() -> None:
    from fastgen.backends import cpu

    x = np.random.default_rng(0).random((1, 4, 6, 5), np.float32)
    graph = image_graph(4, Node("y", "affine", ("x",), {"scale": 2.0}))
    np.testing.assert_array_equal(cpu.compile(graph, {}, "int8").run(x), 2 * x)
    # Grouped convolutions and linear layers keep factors of float32.
    attrs = {"out_channels": 4, "kernel": 3, "padding": 1, "groups": 4}
    nodes = (
        Node("g", "conv", ("x",), attrs),
        Node("p", "pool", ("g",), {"kind": "global_avg"}),
        Node("v", "reshape", ("p",), {"shape": [4]}),
        Node("y", "linear", ("v",), {"out_features": 3}),
    )
    graph = image_graph(4, *nodes)
    weights = random_weights(graph)
    exact = cpu.compile(graph, weights, "fp32").run(x)
    # The factors, that is: what lies between may be bfloat16, which rounds by half of 2**-8.
    np.testing.assert_allclose(cpu.compile(graph, weights, "int8").run(x), exact, 2**-8)


@pytest.mark.usefixtures("all_bytes")
def test_sums_that_int32_does_not_hold_stay_float32() -> None:
    from fastgen.backends import cpu

    attrs = {"out_channels": 5, "kernel": 3, "padding": 1}
    for inputs, same in ((7360, False), (7376, True)):  # 2^31 / (255*127) is 66311 products
        shape = (Dim("N"), inputs, Dim("H", 1, 3), Dim("W", 1, 3))
        graph = Graph("wide", (Input("x", shape),), (Node("y", "conv", ("x",), attrs),), {"y": "y"})
        weights = {"y.weight": np.ones((5, inputs, 3, 3), np.float32), "y.bias": np.zeros(5)}
        x = np.random.default_rng(0).uniform(0.9, 1, (1, inputs, 3, 3)).astype(np.float32)
        got = cpu.compile(graph, weights, "int8").run(x)
        exact = x.astype(np.float64).sum()
        assert abs(got[0, 0, 1, 1] - exact) < 3e-3 * exact
        assert np.array_equal(got, cpu.compile(graph, weights, "fp32").run(x)) == same


def test_residual_blocks_take_other_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastgen.backends import cpu

    graph = models.create("transformer_net", width=16, norm="instance")
    weights = random_weights(graph)

    def kinds(halves: bool) -> dict[str, str]:
        monkeypatch.setattr(cpu, "_has_halves", lambda isa: halves)
        runner = cpu.Runner(graph, weights, 1, precision="int8", ranges={"image": (0, 255)})
        return dict(zip((step.label for step in runner.steps), runner.products, strict=True))

    # With bytes, what reads a norm and a ReLU has Winograd tiles, too; a sum of blocks has none.
    for name, factors in kinds(True).items():
        assert factors == ("bf16" if name.startswith("res") else "int8"), name
    for name, factors in kinds(False).items():
        assert factors == ("fp32" if name.endswith("conv1") else "int8"), name
    # Without a norm before it a convolution has no Winograd tiles of bytes.
    attrs = {"out_channels": 32, "kernel": 3, "padding": 1}
    graph = image_graph(32, Node("conv2", "conv", ("x",), attrs))
    weights = random_weights(graph)
    assert kinds(False)["conv2"] == "fp32"
    for change in ({"kernel": 5}, {"stride": 2}, {"out_channels": 4}, {"groups": 4}):
        graph = image_graph(32, Node("conv2", "conv", ("x",), attrs | change))
        weights = random_weights(graph)
        assert kinds(True)["conv2"] == kinds(False)["conv2"] == "int8"
    assert set(cpu.Runner(graph, weights, 1).products) == {"fp32"}


def test_wrong_ranges() -> None:
    from fastgen.checkpoint import Checkpoint, save_checkpoint

    graph = models.create("compact_net", width=4, blocks=1)
    meta = {"kind": "style", "channel_order": "rgb"}
    meta |= {"input_range": [0, 1], "output_range": [0, 255]}
    for bad in ([1, 0], [0], "01", [0, float("nan")], [None, 1], {"low": 0}):
        ckpt = Checkpoint(graph, random_weights(graph), meta | {"activation_ranges": {"out": bad}})
        with pytest.raises(CheckpointError, match="activation range of 'out'"):
            save_checkpoint("never.safetensors", ckpt)
    ckpt = Checkpoint(graph, random_weights(graph), meta | {"activation_ranges": [1]})
    with pytest.raises(CheckpointError, match="activation_ranges"):
        save_checkpoint("never.safetensors", ckpt)
    ckpt.meta["activation_ranges"] = {"out": [0, 3]}
    assert ckpt.ranges == {"image": (0.0, 1.0), "out": (0.0, 3.0)}


def test_detection() -> None:
    _c = pytest.importorskip("fastgen._C")
    info = Path("/proc/cpuinfo")
    if not info.exists():
        pytest.skip("no /proc/cpuinfo to compare with")
    flags = info.read_text().split("flags", 1)[-1].split("\n", 1)[0].split()
    if "avx512bw" not in flags:
        pytest.skip("no AVX-512")
    assert ("avx512_vnni" in _c.isa_available()) == ("avx512_vnni" in flags)


@pytest.mark.parametrize("isa", ISAS)
def test_it_says_where_it_gains_nothing(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    need_isa(isa)
    from fastgen.backends import cpu

    monkeypatch.setenv("FASTGEN_CPU_ISA", isa)
    assert cpu.precision_why_not("int8") is None
    note = cpu.precision_note("int8")
    assert (note is None) == (isa in ("avx512_vnni", "avx512_bf16"))
    assert note is None or isa in note
    assert cpu.precision_note("fp32") is None
    assert cpu.auto_precision()[0] != "int8"


@pytest.mark.parametrize("model", models.list_models("style"))
def test_models(model: str) -> None:
    """Random weights are harder than trained ones: nothing they compute is redundant."""
    from fastgen.backends import cpu

    graph = models.create(model, width=8, norm="instance")
    weights = random_weights(graph)
    coarse = np.random.default_rng(3).uniform(0, 255, (1, 3, 12, 16)).astype(np.float32)
    photo = F.interpolate(torch.from_numpy(coarse), (96, 128), mode="bicubic").clamp(0, 255)
    ours = cpu.compile(graph, weights, "int8", 1, {"image": (0, 255)}).run(photo.numpy())
    exact = cpu.compile(graph, weights, "fp32", 1).run(photo.numpy())
    assert 15 < 20 * np.log10(exact.std() / (ours - exact).std()) < 45
