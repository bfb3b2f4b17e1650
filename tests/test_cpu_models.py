"""Every registered model on every instruction set of the cpu backend, against torch."""

from __future__ import annotations

import numpy as np
import pytest
from cpu_cases import ISAS, need_isa, random_weights

from fastgen import models
from fastgen.backends import ImageIO

CASES = [
    ("transformer_net", {"width": 8, "blocks": 2}, (20, 28)),
    ("transformer_net", {"width": 8, "blocks": 1, "norm": "batch"}, (28, 20)),
    ("transformer_net", {"width": 5, "blocks": 1}, (12, 16)),
    ("transformer_net", {"width": 32, "blocks": 1}, (36, 68)),
    ("compact_net", {}, (36, 60)),
    ("compact_net", {"width": 3, "norm": "batch"}, (8, 12)),
    ("johnson_net", {"width": 8, "blocks": 2}, (36, 44)),
    ("johnson_net", {"width": 6, "blocks": 1, "norm": "instance"}, (20, 24)),
]
FP32_GATE = 0.02  # of 255


@pytest.fixture(autouse=True)
def _torch() -> None:
    pytest.importorskip("torch")


def _output_scale(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Makes the last convolution spread over 0..255, the range that the gate speaks of."""
    weights["out.weight"] = weights["out.weight"] * 40
    weights["out.bias"] = weights["out.bias"] + 128
    return weights


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("name", "config", "size"), CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)]
)
def test_model_against_torch(isa: str, name: str, config: dict, size: tuple[int, int]) -> None:
    need_isa(isa)
    from fastgen.backends import torch as reference
    from fastgen.backends.cpu import Runner

    graph = models.create(name, **config)
    weights = random_weights(graph)
    if name != "johnson_net":  # that one is scaled by its own tanh
        weights = _output_scale(weights)
    x = np.random.default_rng(1).uniform(0, 255, (2, 3, *size)).astype(np.float32)
    expected = reference.compile(graph, weights).run(x)
    one = Runner(graph, weights, threads=1, isa=isa).run(x)
    assert np.abs(one - expected).max() <= FP32_GATE
    # Tiles are summed in a fixed order, so the result does not depend on the threads.
    np.testing.assert_array_equal(Runner(graph, weights, threads=2, isa=isa).run(x), one)
    # A second run and another batch size reuse nothing stale.
    runner = Runner(graph, weights, threads=2, isa=isa)
    runner.run(x[:, :, :12, :12] if min(size) >= 12 and name != "johnson_net" else x)
    np.testing.assert_allclose(runner.run(x[1:]), one[1:], rtol=0, atol=1e-3)


@pytest.mark.parametrize("isa", ISAS)
def test_environment_forces_the_instruction_set(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    need_isa(isa)
    from fastgen.backends import cpu

    monkeypatch.setenv("FASTGEN_CPU_ISA", isa)
    graph = models.create("compact_net", width=2, blocks=0)
    assert cpu.compile(graph, random_weights(graph)).isa == isa


def test_wide_image_has_several_tiles_per_row() -> None:
    need_isa("scalar")
    from fastgen.backends import cpu
    from fastgen.backends import torch as reference

    graph = models.create("transformer_net", width=16, blocks=1)
    weights = _output_scale(random_weights(graph))
    x = np.random.default_rng(2).uniform(0, 255, (1, 3, 24, 1304)).astype(np.float32)
    expected = reference.compile(graph, weights).run(x)
    assert np.abs(cpu.compile(graph, weights).run(x) - expected).max() <= FP32_GATE


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (9, 33), (40, 40)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_image_batches_against_torch(size: tuple[int, int], dtype: type) -> None:
    need_isa("scalar")
    from fastgen.backends import cpu
    from fastgen.backends import torch as reference

    graph = models.create("compact_net", width=4, blocks=1)
    weights = _output_scale(random_weights(graph))
    photo = np.random.default_rng(3).uniform(0, 1, (2, *size, 3))
    photo = (photo * 255).astype(np.uint8) if dtype is np.uint8 else photo.astype(np.float32)
    for io in (ImageIO(), ImageIO(strength=0.4, preserve_color=True, bgr=True)):
        expected = reference.compile(graph, weights).run(photo, io)
        got = cpu.compile(graph, weights).run(photo, io)
        assert got.dtype == dtype
        assert got.shape == photo.shape
        unit = 1 if dtype is np.uint8 else FP32_GATE / 255
        assert np.abs(got.astype(np.float64) - expected).max() <= unit
        if dtype is np.uint8:  # at most a value here and there rounds the other way
            assert (got != expected).mean() < 0.01
