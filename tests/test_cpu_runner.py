"""The cpu backend's runner: threads, forks, memory, image conversion, wrong input."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from cpu_cases import ISAS, need_isa, random_weights

import fastgen
from fastgen import models
from fastgen.backends import ImageIO, reflect_index
from fastgen.errors import BackendUnavailable, GraphError
from fastgen.graph import Dim, Graph, Input, Node


@pytest.fixture(autouse=True)
def _engine() -> None:
    need_isa("scalar")


def _runner(threads: int | None = 2, isa: str | None = None):
    from fastgen.backends.cpu import Runner

    graph = models.create("compact_net", width=4, blocks=1)
    return Runner(graph, random_weights(graph), threads, isa)


def _image(height: int = 16, width: int = 24, n: int = 1) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (n, 3, height, width)).astype(np.float32)


def _identity() -> Graph:
    image = Input("x", (Dim("N"), 3, Dim("H", 4, 8), Dim("W", 4, 8)))
    return Graph("same", (image,), (Node("y", "affine", ("x",), {}),), {"y": "y"})


# ---------------------------------------------------------------------- image conversion


def _expected(photo: np.ndarray, io: ImageIO) -> np.ndarray:
    """What an identity network must give, in float64."""
    rgb = photo.astype(np.float64) / (255 if photo.dtype == np.uint8 else 1)
    rgb = rgb[..., ::-1] if io.bgr else rgb
    low, high = io.input_range
    y = rgb * (high - low) + low
    low, high = io.output_range
    y = np.clip(np.nan_to_num((y - low) / (high - low), nan=0.0), 0, 1)
    if io.preserve_color:
        y = np.clip(rgb + ((y - rgb) @ np.array(ImageIO.LUMA))[..., None], 0, 1)
    y = rgb + (y - rgb) * io.strength if io.strength != 1 else y
    y = y[..., ::-1] if io.bgr else y
    return np.rint(y * 255) if photo.dtype == np.uint8 else y


@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512", "avx512_bf16"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize(
    "io",
    [
        ImageIO(),
        ImageIO((0.0, 1.0), (0.1, 0.731)),
        ImageIO((-1.0, 1.0), (-1.5, 0.5), strength=0.3),
        ImageIO((-1.0, 1.0), (-1.5, 0.5), preserve_color=True, bgr=True),
        ImageIO((-1.0, 1.0), (-1.5, 0.5), strength=0.0, preserve_color=True),
    ],
)
def test_image_conversion(isa: str, dtype: type, io: ImageIO) -> None:
    need_isa(isa)
    from fastgen.backends.cpu import Runner

    runner = Runner(_identity(), {}, 2, isa)
    for shape in ((1, 1, 1, 3), (2, 7, 35, 3), (1, 64, 3, 3)):
        photo = np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)
        photo = photo if dtype is np.uint8 else (photo / 255).astype(np.float32)
        got = runner.run(photo, io)
        assert got.dtype == photo.dtype
        difference = np.abs(got.astype(np.float64) - _expected(photo, io))
        if dtype is np.uint8:
            assert difference.max() <= 1  # a tie may round either way
            assert (difference > 0).mean() <= 0.02
        else:
            assert difference.max() <= 2e-6
        if io.strength == 0:
            np.testing.assert_allclose(got, photo, atol=2e-7)


def test_padding_is_generalised_reflection() -> None:
    """The mean of each padded row and column shows what the network was given."""
    from fastgen.backends.cpu import Runner

    image = Input("x", (Dim("N"), 3, Dim("H", 4, 8), Dim("W", 4, 8)))
    nodes = (
        Node("m", "pool", ("x",), {"kind": "global_avg"}),
        Node("y", "broadcast", ("m", "x"), {}),
    )
    runner = Runner(Graph("mean", (image,), nodes, {"y": "y"}), {}, 1)
    photo = np.random.default_rng(2).uniform(0, 1, (1, 3, 5, 3)).astype(np.float32)
    padded = photo[:, reflect_index(3, 8)][:, :, reflect_index(5, 8)]
    got = runner.run(photo, ImageIO())
    np.testing.assert_allclose(got[0, 0, 0], padded.mean((0, 1, 2)), atol=1e-6)


def test_nan_becomes_black() -> None:
    from fastgen.backends.cpu import Runner

    photo = np.full((1, 8, 8, 3), 0.5, np.float32)
    photo[0, 2, 3, 1] = np.nan
    got = Runner(_identity(), {}, 1).run(photo, ImageIO())
    assert got[0, 2, 3, 1] == 0
    assert np.isfinite(got).all()


# ---------------------------------------------------------------------- threads and processes


def test_threads() -> None:
    from fastgen import _C

    assert _runner(threads=1).threads == 1
    assert _runner(threads=3).threads == 3
    assert _runner(threads=None).threads == _C.default_threads() >= 1
    for threads in (0, -1, 1025, 2.0, True):
        with pytest.raises(ValueError, match="threads"):
            _runner(threads=threads)  # type: ignore[arg-type]


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastgen.backends import cpu

    monkeypatch.setenv("FASTGEN_NUM_THREADS", "3")
    assert _runner(threads=None).threads == 3
    for text in ("0", "many", "2x", "5000"):
        monkeypatch.setenv("FASTGEN_NUM_THREADS", text)
        with pytest.raises(ValueError, match="FASTGEN_NUM_THREADS"):
            _runner(threads=None)
    monkeypatch.delenv("FASTGEN_NUM_THREADS")
    monkeypatch.setenv("FASTGEN_CPU_ISA", "mmx")
    with pytest.raises(ValueError, match=r"FASTGEN_CPU_ISA.*mmx.*scalar"):
        _runner()
    assert "mmx" in str(cpu.why_not())


def test_concurrent_calls_of_one_runner() -> None:
    runner = _runner()
    images = [_image(16, 16 + 4 * i, 1 + i % 2) for i in range(4)]
    expected = [runner.run(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(runner.run, images * 6))
    for i, result in enumerate(results):
        np.testing.assert_array_equal(result, expected[i % 4])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_can_run() -> None:
    runner = _runner(threads=2)
    expected = runner.run(_image())
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover
        same = False
        try:
            same = bool(np.array_equal(runner.run(_image()), expected))
        finally:
            os.write(writer, b"y" if same else b"n")
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        assert stream.read() == b"y"
    os.waitpid(child, 0)
    np.testing.assert_array_equal(runner.run(_image()), expected)


def test_exit_with_live_threads_is_clean() -> None:
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "import test_cpu_runner as t\n"
        "r = t._runner(threads=2); r.run(t._image()); keep = [r]\n"
    )
    here = os.path.dirname(__file__)
    package = os.path.dirname(os.path.dirname(os.path.abspath(fastgen.__file__)))
    done = subprocess.run(
        [sys.executable, "-c", code, package, here],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------------- memory and arguments


def test_values_that_are_alive_together_do_not_overlap() -> None:
    from fastgen.backends.cpu import plan_values

    runner = _runner()
    lowered = runner._lowered
    shapes = runner.graph.infer_shapes({"image": (1, 3, 32, 32)})
    values, total, externals = plan_values(lowered, shapes, external=False)
    assert externals == 0
    sizes = [n * (c if planar else -(-c // 16) * 16) * h * w for n, c, h, w, planar, *_ in values]
    assert total < sum(sizes)
    alive: dict[int, list[int]] = {index: [-1] for index in lowered.inputs.values()}
    for position, step in enumerate(lowered.steps):
        for index in step.reads() + step.writes():
            alive.setdefault(index, []).append(position)
    for index in lowered.outputs.values():
        alive[index].append(len(lowered.steps))
    for a in alive:
        assert values[a][6] + sizes[a] <= total
        for b in alive:
            together = min(alive[a]) <= max(alive[b]) and min(alive[b]) <= max(alive[a])
            apart = values[a][6] + sizes[a] <= values[b][6]
            assert a == b or not together or apart or values[b][6] + sizes[b] <= values[a][6]


def test_inputs_of_any_layout() -> None:
    runner = _runner()
    image = _image()
    expected = runner.run(image)
    np.testing.assert_array_equal(runner.run(np.asfortranarray(image)), expected)
    np.testing.assert_array_equal(runner.run(image[..., ::-1].copy()[..., ::-1]), expected)
    np.testing.assert_array_equal(runner.run(image.astype(np.float64)), expected)
    named = runner.run({"image": image})
    np.testing.assert_array_equal(named["stylized"], expected)


def test_out_that_is_the_input() -> None:
    from fastgen.backends.cpu import Runner

    image = Input("x", (Dim("N"), 3, Dim("H"), Dim("W")))
    node = Node("y", "conv", ("x",), {"out_channels": 3, "kernel": 3, "padding": 1})
    graph = Graph("blur", (image,), (node,), {"y": "y"})
    runner = Runner(graph, random_weights(graph), 2)
    array = _image(32, 40)
    expected = runner.run(array)
    assert runner.run(array, out=array) is array
    np.testing.assert_array_equal(array, expected)


def test_out() -> None:
    runner = _runner()
    image = _image()
    expected = runner.run(image)
    out = np.zeros_like(expected)
    assert runner.run(image, out=out) is out
    np.testing.assert_array_equal(out, expected)
    strided = np.zeros((*expected.shape[:3], 2 * expected.shape[3]), np.float32)[..., ::2]
    assert runner.run(image, out=strided) is strided
    np.testing.assert_array_equal(strided, expected)
    photo = np.random.default_rng(0).integers(0, 256, (1, 9, 11, 3)).astype(np.uint8)
    stylised = runner.run(photo, ImageIO(strength=0.5))
    assert runner.run(photo, ImageIO(strength=0.5), out=photo) is photo
    np.testing.assert_array_equal(photo, stylised)
    read_only = np.zeros_like(expected)
    read_only.flags.writeable = False
    for bad in (np.zeros((1, 3, 16, 20), np.float32), expected.astype(np.float64), read_only):
        with pytest.raises(ValueError, match="out has the shape"):
            runner.run(image, out=bad)
    with pytest.raises(TypeError, match="out is list"):
        runner.run(image, out=[])


@pytest.mark.parametrize(
    ("image", "error", "text"),
    [
        (_image().astype(np.int32), TypeError, "int32"),
        (np.array([object()]), TypeError, "object"),
        ([1.0], TypeError, "list"),
        (_image()[0], GraphError, "axes"),
        (_image()[:, :2], GraphError, "must be 3"),
        (_image(15, 16), GraphError, "multiple of 4"),
        (_image()[:0], GraphError, "N is 0"),
        ({"picture": _image()}, GraphError, "picture"),
        ({}, GraphError, "missing"),
    ],
)
def test_wrong_arrays(image: object, error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        _runner().run(image)


def test_wrong_images() -> None:
    runner = _runner()
    for bad in (np.zeros((1, 8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.uint8)):
        with pytest.raises(ValueError, match="image batch"):
            runner.run(bad, ImageIO())
    for bad in (np.zeros((1, 8, 8, 3), np.float64), [1]):
        with pytest.raises(TypeError, match="image batch"):
            runner.run(bad, ImageIO())


def test_wrong_weights_and_precision() -> None:
    from fastgen.backends import cpu

    graph = models.create("compact_net", width=4, blocks=1)
    weights = random_weights(graph)
    with pytest.raises(ValueError, match=r"int3.*fp32"):
        cpu.compile(graph, weights, precision="int3")
    # Every instruction set computes the same numbers; only one is faster for it.
    x = np.random.default_rng(0).random((1, 3, 32, 40), np.float32)
    results = [
        cpu.Runner(graph, weights, 1, isa, precision="bf16").run(x)
        for isa in cpu._extension().isa_available()
    ]
    exact = cpu.compile(graph, weights, precision="fp32").run(x)
    for result in results:
        assert 0 < np.abs(result - exact).max() < 0.05 * np.abs(exact).max()
        assert np.abs(result - results[0]).mean() < 2e-3 * np.abs(exact).max()
    with pytest.raises(GraphError, match=r"missing.*down1"):
        cpu.compile(graph, {k: v for k, v in weights.items() if k != "down1.weight"})
    with pytest.raises(GraphError, match=r"unknown.*extra"):
        cpu.compile(graph, weights | {"extra": np.zeros(3)})
    with pytest.raises(GraphError, match=r"down1.bias"):
        cpu.compile(graph, weights | {"down1.bias": np.zeros(3, np.float32)})


@pytest.mark.parametrize("isa", ISAS)
def test_auto_precision(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    need_isa(isa)
    from fastgen.backends import cpu

    monkeypatch.setenv("FASTGEN_CPU_ISA", isa)
    graph = models.create("compact_net", width=4, blocks=1)
    weights = random_weights(graph)
    wanted = "bf16" if isa == "avx512_bf16" else "fp32"
    precision, why = cpu.auto_precision()
    assert precision == wanted
    assert isa in why
    x = np.random.default_rng(0).random((1, 3, 32, 40), np.float32)
    runner = cpu.compile(graph, weights, precision="auto")
    assert (runner.precision, runner.isa) == (wanted, isa)
    named = cpu.Runner(graph, weights, isa=isa, precision=wanted)
    np.testing.assert_array_equal(runner.run(x), named.run(x))
    assert cpu.precision_why_not("fp32") is None
    if wanted == "bf16":
        assert cpu.precision_why_not("bf16") is None
    else:
        assert isa in str(cpu.precision_why_not("bf16"))
        with pytest.raises(BackendUnavailable, match=rf"AVX512_BF16.*{isa}; take 'fp32'"):
            cpu.compile(graph, weights, precision="bf16")
    with pytest.raises(ValueError, match="int3"):
        cpu.precision_why_not("int3")


def test_too_large_an_input_is_a_memory_error() -> None:
    image = Input("x", (Dim("N"), 1))
    nodes = (
        Node("r", "reshape", ("x",), {"shape": [1, 1, 1]}),
        Node("u", "pad", ("r",), {"padding": [4000, 4000, 4000, 4000], "mode": "zeros"}),
        Node("v", "upsample", ("u",), {"scale": 16}),
        Node("m", "pool", ("v",), {"kind": "global_avg"}),
    )
    from fastgen.backends.cpu import Runner

    runner = Runner(Graph("huge", (image,), nodes, {"y": "m"}), {}, 1)
    with pytest.raises(MemoryError, match=r"MiB|elements"):
        runner.run(np.zeros((1, 1), np.float32))
    assert _runner().run(_image()).shape == (1, 3, 16, 24)


def test_close() -> None:
    runner = _runner()
    runner.run(_image())
    runner.close()
    with pytest.raises(ValueError, match="closed"):
        runner.run(_image())


def test_profile() -> None:
    runner = _runner()
    runner.run(_image())
    assert runner.profile == []
    runner.set_profile(True)
    runner.run(_image())
    labels = [label for label, _, _ in runner.profile]
    assert labels[0] == "down1"
    assert "out" in labels
    assert all(milliseconds >= 0 for _, milliseconds, _ in runner.profile)


def test_machine_limits() -> None:
    from fastgen import _C

    for isa in _C.isa_available():
        assert _C.peak_flops(isa, 0.01, 1) > 1e8
    assert _C.copy_bandwidth(1 << 20, 0.01, 1) > 1e7
    with pytest.raises(ValueError, match="seconds"):
        _C.peak_flops("", 0.0, 1)


def test_raw_engine_rejects_sizes_that_do_not_fit() -> None:
    """The extension itself checks everything: no Python mistake may become a crash."""
    from fastgen.backends.cpu import _build, plan_values

    runner = _runner()
    lowered, engine = runner._lowered, runner._engine
    shapes = runner.graph.infer_shapes({"image": (1, 3, 16, 16)})
    values, total, externals = plan_values(lowered, shapes, external=True)
    engine.plan(values, total, externals)
    bad = [
        (values, total // 2, externals),
        (values[:-1], total, externals),
        ([(1, 99, *values[0][2:]), *values[1:]], total, externals),
        ([(0, *values[0][1:]), *values[1:]], total, externals),
        ([(1 << 60, *values[0][1:]), *values[1:]], total, externals),
        ([*values[:2], (*values[2][:6], 8), *values[3:]], total, externals),
        (values, total, 0),
    ]
    for arguments in bad:
        with pytest.raises((ValueError, MemoryError)):
            engine.plan(*arguments)
    plan = engine.plan(values, total, externals)
    good = [np.zeros((1, 3, 16, 16), np.float32)] * 2
    with pytest.raises(ValueError, match="arrays"):
        engine.run(plan, good[:1])
    with pytest.raises(ValueError, match="array"):
        engine.run(plan, [good[0], np.zeros(3, np.float32)])
    with pytest.raises(ValueError, match="another engine"):
        _runner()._engine.run(plan, good)
    with pytest.raises(MemoryError, match="TiB"):
        engine.plan(values, 1 << 41, externals)
    with pytest.raises(ValueError, match="taps"):
        _build(runner._engine, lowered)  # the weights were handed over and dropped
