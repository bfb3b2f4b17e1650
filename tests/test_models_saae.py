"""The stylized adversarial autoencoder's graph against its formula written out by hand."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402
from cpu_cases import ISAS, need_isa, random_weights  # noqa: E402

from fastgen import models  # noqa: E402
from fastgen.backends.torch import GraphModule, compile  # noqa: E402
from fastgen.models.saae import saae_net  # noqa: E402

NAMES = models.list_models("saae")


def by_hand(w: dict, c: torch.Tensor, s: torch.Tensor, maps: int, tile: bool) -> torch.Tensor:
    """Dec([Enc_c(c); map(FC(Enc_s(s)))]) from torch functionals, in float64."""
    w = {k: torch.from_numpy(v).double() for k, v in w.items()}

    def block(name, x):
        x = F.conv2d(x, w[f"{name}.weight"], padding=1)
        mean, var, scale, shift = (
            w[f"{name}_norm.{k}"].view(1, -1, 1, 1)
            for k in ("running_mean", "running_var", "weight", "bias")
        )
        x = (x - mean) / (var + 1e-5).sqrt() * scale + shift
        return torch.maximum(x, 0.2 * x)

    def dense(name, x):
        x = x @ w[f"{name}.weight"].T + w[f"{name}.bias"]
        return torch.maximum(x, 0.2 * x)

    for i in (1, 2, 3):
        c, s = block(f"content{i}", c), block(f"style{i}", s)
    code = dense("style_code", s.flatten(1))
    if tile:
        style = code[:, :, None, None].repeat(1, 1, *c.shape[2:])
    else:
        style = dense("style_map", code).view(-1, maps, *c.shape[2:])
    assert style.shape == c.shape  # half content, half style
    x = block("dec2", block("dec1", torch.cat([c, style], 1)))
    return 1 / (1 + (-F.conv2d(x, w["dec3.weight"], w["dec3.bias"], padding=1)).exp())


@pytest.mark.parametrize("style_map", ["full", "tile"])
def test_the_generator_is_the_formula_it_says(style_map: str) -> None:
    graph = saae_net("g", (1, 8, 6), (3, 5, 9), 3, 4, 7, 5, style_map)
    weights = random_weights(graph)
    rng = np.random.default_rng(1)
    inputs = {
        "content": rng.random((3, 1, 8, 6), dtype=np.float32),
        "style": rng.random((3, 3, 5, 9), dtype=np.float32),
    }
    c, s = (torch.from_numpy(v).double() for v in inputs.values())
    expected = by_hand(weights, c, s, 8, style_map == "tile").numpy()
    got = compile(graph, weights).run(inputs)["image"]
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert got.std() > 0.01  # not a constant


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("style_map", ["full", "tile"])
def test_configurations(name: str, style_map: str) -> None:
    graph = models.create(name, width=2, style_map=style_map)
    shapes = graph.infer_shapes(graph.smallest_shapes())
    image, content = shapes[graph.outputs["image"]], shapes["content"]
    assert image[2:] == content[2:]
    assert shapes["joined"][1] == 2 * shapes["content3_relu"][1]
    assert "style_code_relu" in graph.constant_values()
    assert "content3_relu" not in graph.constant_values()
    text = " ".join(models.saae.__dict__[name].__doc__.split())
    assert f"{image[3]}x{image[2]}" in text
    default = models.create(name)
    assert f"defaults {default.parameter_count() / 1e6:.1f} million" in text


@pytest.mark.parametrize(
    "config",
    [{"width": 0}, {"width": 2.5}, {"style_features": 0}, {"style_map": "half"}],
)
@pytest.mark.parametrize("name", NAMES)
def test_bad_configurations_are_refused(name: str, config: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(config))):
        models.create(name, **config)


def test_bad_sizes_are_refused() -> None:
    for content, style, what in (
        ((0, 8, 8), (1, 8, 8), "content channels"),
        ((1, 8, 8), (1, 8, 513), "style width"),
        ((1, 8.5, 8), (1, 8, 8), "content height"),
    ):
        with pytest.raises(ValueError, match=what):
            saae_net("g", content, style, 1, 2)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", NAMES)
def test_cpu_engine_against_torch(name: str, isa: str) -> None:
    need_isa(isa)
    from fastgen.backends.cpu import Runner

    graph = models.create(name, width=8, style_features=24)
    weights = random_weights(graph)
    rng = np.random.default_rng(2)
    inputs = {
        key: rng.random((3, *shape[1:]), dtype=np.float32)
        for key, shape in graph.smallest_shapes().items()
    }
    module = GraphModule(graph).load_weights(weights).eval().double()
    with torch.inference_mode():
        expected = module(**{k: torch.from_numpy(v).double() for k, v in inputs.items()}).numpy()
    runner = Runner(graph, weights, isa=isa)
    got = runner.run(inputs)["image"]
    assert np.abs(got - expected).max() <= 0.02 / 255  # the gate of fp32
    one = runner.run({k: v[1:2] for k, v in inputs.items()})["image"]
    np.testing.assert_allclose(one, got[1:2], atol=1e-5)
