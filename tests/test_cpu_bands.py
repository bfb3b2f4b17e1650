"""Runs in bands of the cpu backend: the same numbers as at once, in less memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cpu_cases import ISAS, need_isa, random_weights
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from test_cpu_random import graphs

from fastgen import models
from fastgen.backends import ImageIO
from fastgen.errors import GraphError
from fastgen.graph import Dim, Graph, Input, Node

PRECISIONS = ("fp32", "bf16", "int8")
NETWORKS: list[tuple[str, dict[str, Any]]] = [
    ("transformer_net", {"width": 16, "blocks": 2}),
    ("transformer_net", {"width": 5, "blocks": 1, "norm": "batch"}),
    ("compact_net", {"width": 8, "blocks": 2}),
    ("johnson_net", {"width": 8, "blocks": 1, "norm": "instance"}),
    ("johnson_net", {"width": 16, "blocks": 1}),
]


def _runner(name: str, precision: str = "fp32", isa: str | None = None, **config: Any) -> Any:
    from fastgen.backends.cpu import Runner

    graph = models.create(name, **config)
    return Runner(graph, random_weights(graph), 2, isa, precision)


def _image(height: int, width: int, n: int = 1) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(n, 3, height, width)).astype(np.float32)


def _photo(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (1, height, width, 3)).astype(np.uint8)


# ---------------------------------------------------------------------- equal to a run at once


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_graphs(isa: str, precision: str) -> None:
    need_isa(isa)
    from fastgen.backends.cpu import Runner

    @settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
    @given(
        graphs(),
        st.sampled_from([1, 3]),
        st.integers(6, 40),
        st.integers(6, 17),
        st.integers(1, 41),
        st.sampled_from(["auto", "full"]),
    )
    def check(graph: Graph, n: int, height: int, width: int, rows: int, recompute: str) -> None:
        shape = (n, graph.inputs[0].shape[1], height, width)
        try:
            shapes = graph.infer_shapes({"v0": shape})
        except GraphError:
            assume(False)
        assume(max(int(np.prod(s)) for s in shapes.values()) < 300_000)
        x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        runner = Runner(graph, random_weights(graph), 2, isa, precision)
        expected = runner.run({"v0": x})
        got = runner.run({"v0": x}, band_rows=rows, recompute=recompute)
        for name, reference in expected.items():
            np.testing.assert_array_equal(got[name], reference, strict=True)

    check()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("name", "config"), NETWORKS)
def test_networks(name: str, config: dict[str, Any], precision: str, isa: str) -> None:
    need_isa(isa)
    runner = _runner(name, precision, isa, **config)
    image = _image(200, 24, 3)  # a batch of 2 is split by images: equal to rounding
    expected = runner.run(image)
    for rows in (1, 9, 32, 500):
        for recompute in ("auto", "full"):
            got = runner.run(image, band_rows=rows, recompute=recompute)
            np.testing.assert_array_equal(got, expected)


def test_every_height_of_bands() -> None:
    runner = _runner("transformer_net", width=4, blocks=1)
    image = _image(40, 24)
    expected = runner.run(image)
    for rows in range(1, 42):
        np.testing.assert_array_equal(runner.run(image, band_rows=rows), expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (5, 7), (63, 31), (130, 9), (64, 64)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_photos_of_any_size(size: tuple[int, int], dtype: type) -> None:
    photo = _photo(*size)
    photo = photo if dtype is np.uint8 else (photo / 255).astype(np.float32)
    io = ImageIO((0.0, 255.0), (-0.5, 0.7), strength=0.8, preserve_color=True, bgr=True)
    for name, config in NETWORKS[:3]:
        runner = _runner(name, **config)
        expected = runner.run(photo, io)
        for rows in (1, 16, 64):
            np.testing.assert_array_equal(runner.run(photo, io, band_rows=rows), expected)
        # The photo is read in every pass: it must not be overwritten by the first bands.
        out = photo.copy()
        assert runner.run(out, io, out=out, band_rows=16) is out
        np.testing.assert_array_equal(out, expected)


def test_steps_that_see_everything_or_one_row() -> None:
    """Global pools, linear layers, reshapes, given and unfused norms, joins, grouped ones."""
    from fastgen.backends.cpu import Runner

    image = Input("x", (Dim("N"), 6, Dim("H", 1, 8), Dim("W", 1, 8)))
    style = Input("s", (Dim("N"), 5))
    nodes = (
        Node("a", "conv", ("x",), {"out_channels": 20, "kernel": 3, "padding": 1}),
        Node("d", "conv", ("a",), {"out_channels": 20, "kernel": 3, "padding": 1, "groups": 20}),
        Node("dn", "norm", ("d",), {"kind": "instance"}),
        Node("g", "pool", ("dn",), {"kind": "global_avg"}),
        Node("gf", "reshape", ("g",), {"shape": [20]}),
        Node("gl", "linear", ("gf",), {"out_features": 20}),
        Node("sl", "linear", ("s",), {"out_features": 20}),
        Node("sv", "activation", ("sl",), {"kind": "sigmoid"}),
        Node("gn", "norm", ("dn", "gl", "sv"), {"kind": "given"}),
        Node("b", "broadcast", ("s", "gn"), {}),
        Node("j", "concat", ("gn", "b", "a"), {}),
        Node("jn", "norm", ("j",), {"kind": "instance"}),
        Node("p", "pool", ("jn",), {"kind": "max", "kernel": 3, "stride": 2, "padding": 1}),
        Node("u", "upsample", ("p",), {"scale": 2}),
        Node("y", "conv", ("u",), {"out_channels": 3, "kernel": 5, "padding": 2}),
    )
    graph = Graph("mixed", (image, style), nodes, {"y": "y", "pooled": "p"})
    runner = Runner(graph, random_weights(graph), 2)
    rng = np.random.default_rng(0)
    inputs = {
        "x": rng.normal(size=(3, 6, 75, 52)).astype(np.float32),
        "s": rng.normal(size=(3, 5)).astype(np.float32),
    }
    expected = runner.run(inputs)
    for rows in (1, 7, 25, 75):
        for recompute in ("auto", "full"):
            got = runner.run(inputs, band_rows=rows, recompute=recompute)
            for name, reference in expected.items():
                np.testing.assert_array_equal(got[name], reference)


def test_profile_adds_up() -> None:
    runner = _runner("compact_net", width=4, blocks=1)
    image = _image(64, 32)
    runner.set_profile(True)
    runner.run(image, band_rows=8)
    labels = [label for label, _, _ in runner.profile]
    assert len(set(labels)) == len(labels)
    assert {"down1", "out"} <= set(labels)


# ---------------------------------------------------------------------- memory


def test_only_small_maps_are_kept() -> None:
    """Of a network at 1920x1080: two maps of a quarter of the resolution, and some rows."""
    runner = _runner("transformer_net", width=32, blocks=5)
    shape = (1, 1080, 1920, 3)
    whole = runner._image_plan(shape, _none(), False).plan.bytes
    info = runner.band_info(shape, 32)
    quarter = 270 * 480 * 128 * 4
    assert info.kept <= 2.3 * quarter
    assert info.memory <= 0.5 * whole
    assert 1 < info.arithmetic < 1.6
    assert info.passes == 16  # one more than norms that follow on another
    # At 7680x4320 as planned: below 3 GB, and a full recomputation below that.
    large = (1, 4320, 7680, 3)
    assert runner.band_info(large, 64).memory < 3e9
    full = runner.band_info(large, 64, "full")
    assert full.memory < 0.6 * runner.band_info(large, 64).memory
    assert full.arithmetic > 2


def test_known_statistics_need_one_pass() -> None:
    for name, config in (NETWORKS[1], NETWORKS[4]):
        info = _runner(name, **config).band_info((1, 1080, 256, 3), 16)
        assert info.passes == 1
        assert info.arithmetic == pytest.approx(1, abs=0.02)
        assert info.kept == 0


def test_auto_follows_the_memory_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastgen import _C

    assert _C.memory_available() > 1 << 20
    runner = _runner("transformer_net", width=8, blocks=2)
    photo = _photo(512, 256)
    whole = runner._image_plan(photo.shape, _none(), False).plan.bytes
    assert runner.band_info(photo.shape) is None  # this machine has more than enough
    expected = runner.run(photo, ImageIO(), band_rows="auto")
    runner.close()
    runner = _runner("transformer_net", width=8, blocks=2)
    monkeypatch.setattr(_C, "memory_available", lambda: int(1.2 * whole))
    info = runner.band_info(photo.shape)
    assert info.memory <= 0.6 * whole
    assert "MiB are left" in info.why
    np.testing.assert_array_equal(runner.run(photo, ImageIO(), band_rows="auto"), expected)
    # Less memory asks for more arithmetic, and where nothing fits the least is taken.
    tight = _runner("transformer_net", width=8, blocks=2)
    monkeypatch.setattr(_C, "memory_available", lambda: whole // 1000)
    least = tight.band_info(photo.shape)
    assert least.memory <= info.memory
    assert least.arithmetic >= info.arithmetic
    # An image for which bands save nothing is run at once.
    assert tight.band_info((1, 8, 8, 3)) is None


def _none() -> Any:
    from fastgen.backends._bands import Bands

    return Bands()


# ---------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"band_rows": 0}, ValueError, "band_rows is 0"),
        ({"band_rows": -3}, ValueError, "band_rows is -3"),
        ({"band_rows": 1 << 25}, ValueError, "band_rows is 33554432"),
        ({"band_rows": "many"}, ValueError, "'many'"),
        ({"band_rows": 1.5}, TypeError, "1.5"),
        ({"band_rows": True}, TypeError, "True"),
        ({"band_rows": 8, "recompute": "none"}, ValueError, "recompute is 'none'"),
        ({"recompute": "full"}, ValueError, "give band_rows"),
        ({"norm_stats": "keep"}, ValueError, "norm_stats is 'keep'"),
        ({"norm_stats": {}}, ValueError, "missing"),
        ({"norm_stats": 3}, ValueError, "norm_stats is 3"),
    ],
)
def test_wrong_options(options: dict[str, Any], error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        _runner("compact_net", width=4, blocks=1).run(_image(16, 16), **options)


def test_raw_engine_rejects_what_does_not_fit() -> None:
    from fastgen import _C
    from fastgen.backends.cpu import plan_values

    runner = _runner("compact_net", width=4, blocks=1)
    shapes = runner.graph.infer_shapes({"image": (1, 3, 16, 16)})
    values, *_ = plan_values(runner._lowered, shapes, False, _C.value_floats)
    values = [(*value[:-2], 0, 0) for value in values]
    engine, spec = runner._engine, (8, 0, 2.0, False)
    image = (1, 16, 16, *runner._image_values())
    plan = engine.plan_bands(values, 0, spec, image)
    photo = np.zeros((1, 16, 16, 3), np.uint8)
    io = (*runner._image_values(), photo, photo.copy(), (0.0, 1.0), (0.0, 1.0), 1.0, False, False)
    engine.run_image(plan, *io)
    bad = [
        (values[:-1], 0, spec, image),
        (values, 0, (0, 0, 2.0, False), image),
        (values, 0, (8, -1, 2.0, False), image),
        (values, 0, (8, 0, 0.5, False), image),
        (values, 0, spec, (1, 17, 16, *image[3:])),
        (values, 0, spec, (2, 16, 16, *image[3:])),
        (values, 0, spec, (1, 16, 16, 99, 0)),
        (values, -1, spec, image),
        (values, 0, spec, image, [(2, 3, 0), (3, 2, 0)]),
        (values, 0, spec, image, [(2, 99, 0)]),
        (values, 0, spec, image, [(2, 3, 5)]),
    ]
    for arguments in bad:
        with pytest.raises(ValueError, match=r"."):
            engine.plan_bands(*arguments)
    small = np.zeros((1, 12, 16, 3), np.uint8)
    with pytest.raises(ValueError, match="another size"):
        engine.run_image(plan, *io[:2], small, small.copy(), *io[4:])
    stats = np.zeros(engine.norm_floats(plan), np.float32)
    with pytest.raises(ValueError, match="given statistics"):
        engine.run_image(plan, *io, stats)
    with pytest.raises(ValueError, match="planned size"):
        engine.run_image(plan, *io, None, stats[1:])
    with pytest.raises(ValueError, match="the plan"):
        _runner("compact_net", width=4, blocks=1)._engine.run_image(plan, *io)


# ---------------------------------------------------------------------- statistics in and out


@pytest.mark.parametrize("band_rows", [None, 16])
def test_statistics_of_one_run_for_another(band_rows: int | None) -> None:
    runner = _runner("transformer_net", width=8, blocks=2)
    first, second = _image(48, 32, 2), 2 * _image(48, 32, 2) + 1
    expected = runner.run(first)
    got, stats = runner.run(first, norm_stats="return", band_rows=band_rows)
    np.testing.assert_array_equal(got, expected)
    assert tuple(stats) == runner.norm_names
    assert {array.shape for array in stats["down0_norm"]} == {(2, 8)}
    again = runner.run(first, norm_stats=stats, band_rows=band_rows)
    np.testing.assert_allclose(again, expected, atol=1e-4 * np.abs(expected).max())
    # With another frame's statistics the second frame is not normalised by its own.
    other = runner.run(second, norm_stats=stats, band_rows=band_rows)
    assert np.abs(other - runner.run(second)).max() > 0.05
    photo = _photo(47, 30)
    _, shown = runner.run(photo, ImageIO(), norm_stats="return", band_rows=band_rows)
    same = runner.run(photo, ImageIO(), norm_stats=shown, band_rows=band_rows)
    assert np.abs(same.astype(int) - runner.run(photo, ImageIO())).max() <= 1


def test_statistics_are_those_of_the_data() -> None:
    torch = pytest.importorskip("torch")
    from fastgen.backends.torch import GraphModule

    runner = _runner("transformer_net", width=8, blocks=1)
    weights = random_weights(runner.graph)
    module = GraphModule(runner.graph).load_weights(weights).eval().double()
    seen = {}
    for name in runner.norm_names:
        module.get_submodule(name).register_forward_hook(
            lambda _m, x, _y, name=name: seen.update({name: x[0]})
        )
    image = _image(40, 28, 2)
    with torch.inference_mode():
        module(torch.from_numpy(image).double())
    _, stats = runner.run(image, norm_stats="return")
    for name, (mean, variance) in stats.items():
        value = seen[name].numpy()
        np.testing.assert_allclose(mean, value.mean((2, 3)), atol=1e-5)
        np.testing.assert_allclose(variance, value.var((2, 3)), rtol=1e-4)


def test_wrong_statistics() -> None:
    runner = _runner("compact_net", width=4, blocks=1)
    image = _image(16, 16)
    _, stats = runner.run(image, norm_stats="return")
    name = runner.norm_names[0]
    mean, variance = stats[name]
    for pair in ((mean,), (mean[:, 1:], variance), (mean, -variance - 1), (mean * np.nan, mean)):
        with pytest.raises(ValueError, match=name):
            runner.run(image, norm_stats=stats | {name: pair})
    with pytest.raises(ValueError, match="'extra' is missing or unknown"):
        runner.run(image, norm_stats=stats | {"extra": (mean, variance)})
    with pytest.raises(ValueError, match="float arrays"):
        runner.run(_image(16, 16, 2), norm_stats=stats)


@pytest.mark.parametrize("name", models.names())
def test_registered_models(name: str) -> None:
    from fastgen.backends.cpu import Runner

    graph = models.create(name)
    shapes = graph.smallest_shapes()
    grown = {
        item.name: tuple(
            4 * size if isinstance(dim, Dim) and dim.symbol in ("H", "W") else size
            for size, dim in zip(shapes[item.name], item.shape, strict=True)
        )
        for item in graph.inputs
    }
    rng = np.random.default_rng(0)
    inputs = {k: rng.uniform(0, 1, shape).astype(np.float32) for k, shape in grown.items()}
    runner = Runner(graph, random_weights(graph), 2)
    expected = runner.run(inputs)
    for rows in (1, 8):
        got = runner.run(inputs, band_rows=rows, recompute="full")
        for key, reference in expected.items():
            np.testing.assert_array_equal(got[key], reference)
