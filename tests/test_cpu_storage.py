"""Values that are bfloat16 in memory at precision bf16."""

from __future__ import annotations

import numpy as np
import pytest
from cpu_cases import ISAS, image_graph, need_isa, random_weights, torch_reference

from fastgen import models
from fastgen.backends._lower import lower
from fastgen.backends._storage import half_values
from fastgen.backends.cpu import Runner
from fastgen.graph import Node

CONV = {"out_channels": 32, "kernel": 3, "padding": 1}


def _names(graph, weights) -> tuple[set[str], set[str]]:
    """Names of the values that are bfloat16, and of those that are float32."""
    lowered = lower(graph, weights)
    half = half_values(lowered)
    names = [name for name, _ in lowered.values]
    return {names[i] for i in half}, {n for i, n in enumerate(names) if i not in half}


def test_everything_between_the_convolutions_of_a_style_network() -> None:
    graph = models.create("transformer_net", width=16)
    half, full = _names(graph, random_weights(graph))
    assert full == {"image", "out"}
    assert {"down0", "res0_conv1", "res3_add", "up0"} <= half


def test_what_other_steps_read_or_write_stays_float32() -> None:
    graph = image_graph(
        16,
        Node("a", "conv", ("x",), CONV),
        Node("p", "pool", ("a",), {"kind": "max"}),
        Node("b", "conv", ("p",), CONV),
        Node("d", "conv", ("b",), CONV | {"groups": 32}),
        Node("e", "conv", ("d",), CONV),
        Node("f", "conv", ("e",), CONV),
    )
    half, full = _names(graph, random_weights(graph))
    assert half >= {"b", "e"}
    assert full >= {"x", "a", "p", "d"}


def test_a_residual_has_the_type_of_what_it_is_added_to() -> None:
    graph = image_graph(
        32,
        Node("a", "conv", ("x",), CONV),
        Node("n", "norm", ("a",), {"kind": "instance"}),
        Node("s", "add", ("n", "x")),
        Node("b", "conv", ("s",), CONV),
        Node("c", "conv", ("b",), CONV),
    )
    half, full = _names(graph, random_weights(graph))
    assert "b" in half
    assert "a" in full


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("model", ["transformer_net", "compact_net", "johnson_net"])
def test_results_stay_close(isa: str, model: str) -> None:
    need_isa(isa)
    pytest.importorskip("torch")
    config = {"width": 16} | ({"blocks": 2} if model == "johnson_net" else {})
    graph = models.create(model, **config)
    weights = random_weights(graph)
    x = np.random.default_rng(3).uniform(0, 255, (1, 3, 52, 64)).astype(np.float32)
    expected = torch_reference(graph, weights, {"image": x})["stylized"]
    runner = Runner(graph, weights, isa=isa, precision="bf16")
    error = np.sqrt(np.mean((runner.run(x) - expected) ** 2))
    assert 20 * np.log10(expected.std() / error) > 24
    np.testing.assert_array_equal(runner.run(x), runner.run(x))


def test_memory_of_activations_is_halved() -> None:
    graph = models.create("transformer_net", width=32)
    weights = random_weights(graph)
    sizes = {}
    for precision in ("fp32", "bf16"):
        runner = Runner(graph, weights, threads=1, precision=precision)
        values, _ = runner.plan_facts({"image": (1, 3, 512, 512)})
        sizes[precision] = sum(values)
    image = 2 * 3 * 512 * 512 * 4  # input and output
    assert sizes["bf16"] - image == (sizes["fp32"] - image) / 2
