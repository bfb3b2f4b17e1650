"""The torch backend against an independent network written out by hand."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402
from tiny import tiny_model  # noqa: E402

from fastgen import models  # noqa: E402
from fastgen.backends import ImageIO, padded_size, reflect_index  # noqa: E402
from fastgen.backends.torch import GraphModule, compile  # noqa: E402
from fastgen.errors import GraphError  # noqa: E402


def random_weights(graph, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    result = {}
    for key, shape in graph.weight_shapes().items():
        fan = max(1, int(np.prod(shape[1:])))
        value = rng.normal(size=shape) / np.sqrt(fan)
        if key.endswith("running_var"):
            value = np.abs(value) + 0.5
        result[key] = value.astype(np.float32)
    return result


def by_hand(w: dict, x: torch.Tensor, blocks: int) -> torch.Tensor:
    """transformer_net with instance norm, in float64, from torch functionals only."""
    w = {k: torch.from_numpy(v).double() for k, v in w.items()}

    def conv(name, x, stride=1):
        weight = w[f"{name}.weight"]
        pad = weight.shape[-1] // 2
        return F.conv2d(F.pad(x, [pad] * 4, mode="reflect"), weight, w[f"{name}.bias"], stride)

    def norm(name, x):
        mean = x.mean((2, 3), keepdim=True)
        var = ((x - mean) ** 2).mean((2, 3), keepdim=True)
        scale, shift = (w[f"{name}_norm.{k}"].view(1, -1, 1, 1) for k in ("weight", "bias"))
        return (x - mean) / (var + 1e-5).sqrt() * scale + shift

    for name, stride in (("down0", 1), ("down1", 2), ("down2", 2)):
        x = norm(name, conv(name, x, stride)).clamp(min=0)
    for i in range(blocks):
        y = norm(f"res{i}_conv1", conv(f"res{i}_conv1", x)).clamp(min=0)
        x = x + norm(f"res{i}_conv2", conv(f"res{i}_conv2", y))
    for name in ("up1", "up0"):
        x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        x = norm(name, conv(name, x)).clamp(min=0)
    return conv("out", x)


def test_transformer_net_is_the_network_it_says() -> None:
    graph = models.create("transformer_net", width=4, blocks=2)
    weights = random_weights(graph)
    x = np.random.default_rng(1).random((2, 3, 24, 32), dtype=np.float32) * 255
    expected = by_hand(weights, torch.from_numpy(x).double(), 2).numpy()
    got = compile(graph, weights).run(x)
    np.testing.assert_allclose(got, expected, atol=2e-3)


@pytest.mark.parametrize("name", models.list_models())
def test_every_model_exports_and_compiles(name: str) -> None:
    graph, shapes = tiny_model(name)
    module = GraphModule(graph).load_weights(random_weights(graph)).eval()
    x = tuple(torch.rand(shape) for shape in shapes.values())
    expected = module(*x)
    program = torch.export.export(module, x)
    torch.testing.assert_close(program.module()(*x), expected)
    # backend="eager" checks that the whole graph is captured without asking for a compiler.
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*x), expected)


@pytest.mark.parametrize("name", models.list_models())
def test_weights_round_trip_and_gradients_reach_all_of_them(name: str) -> None:
    graph, shapes = tiny_model(name)
    weights = random_weights(graph)
    module = GraphModule(graph).load_weights(weights)
    for key, value in module.export_weights().items():
        np.testing.assert_array_equal(value, weights[key])
    (module(*(torch.rand(shape) * 255 for shape in shapes.values())) ** 2).mean().backward()
    for key, parameter in module.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key


def test_wrong_weights_are_refused() -> None:
    graph = models.create("compact_net", width=2)
    weights = random_weights(graph)
    with pytest.raises(GraphError, match="missing"):
        GraphModule(graph).load_weights({})
    with pytest.raises(GraphError, match="unknown"):
        GraphModule(graph).load_weights(weights | {"x.weight": np.zeros(1)})
    with pytest.raises(GraphError, match="shape"):
        GraphModule(graph).load_weights(weights | {"out.bias": np.zeros(4)})
    with pytest.raises(ValueError, match="precision"):
        compile(graph, weights, precision="fp8")


def test_reflect_index_is_a_triangle_wave() -> None:
    assert reflect_index(4, 11).tolist() == [0, 1, 2, 3, 2, 1, 0, 1, 2, 3, 2]
    assert reflect_index(1, 3).tolist() == [0, 0, 0]
    np.testing.assert_array_equal(reflect_index(9, 12), np.pad(np.arange(9), (0, 3), "reflect"))


def test_padded_size() -> None:
    graph = models.create("transformer_net", width=2)
    assert padded_size(graph, 256, 260) == (256, 260)
    assert padded_size(graph, 1, 257) == (8, 260)


@pytest.mark.parametrize("size", [(1, 1), (3, 7), (16, 20), (33, 50)])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_image_io_against_numpy(size: tuple[int, int], dtype: str) -> None:
    graph = models.create("compact_net", width=2, blocks=1)
    runner = compile(graph, random_weights(graph))
    rng = np.random.default_rng(2)
    photo = rng.integers(0, 256, (2, *size, 3)).astype(np.float64) / 255
    image = (photo * 255).round().astype(np.uint8) if dtype == "uint8" else photo.astype("float32")
    height, width = size
    rows, columns = padded_size(graph, height, width)
    x = photo[:, reflect_index(height, rows)][:, :, reflect_index(width, columns)]
    x = np.ascontiguousarray((x * 255).transpose(0, 3, 1, 2), dtype=np.float32)
    y = runner.run(x)[:, :, :height, :width].transpose(0, 2, 3, 1).astype(np.float64)
    y = np.clip(y / 255, 0, 1)
    scale, atol = (255, 1.01) if dtype == "uint8" else (1, 1e-4)

    def check(expected: np.ndarray, **io: object) -> None:
        got = runner.run(image, io=ImageIO(**io))
        assert got.dtype == image.dtype
        assert got.shape == image.shape
        np.testing.assert_allclose(got.astype(np.float64), expected * scale, atol=atol)

    check(y)
    check(photo * 0.75 + y * 0.25, strength=0.25)
    # Colour keep through YCbCr (BT.601, full range) and back, by the textbook matrices.
    to_ycc = np.array(
        [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
    )
    ycc = photo @ to_ycc.T
    ycc[..., 0] = (y @ to_ycc.T)[..., 0]
    check(np.clip(ycc @ np.linalg.inv(to_ycc).T, 0, 1), preserve_color=True)


def test_bgr_is_rgb_reversed() -> None:
    graph = models.create("compact_net", width=2, blocks=1)
    runner = compile(graph, random_weights(graph))
    image = np.random.default_rng(3).integers(0, 256, (1, 12, 16, 3)).astype(np.uint8)
    got = runner.run(np.ascontiguousarray(image[..., ::-1]), io=ImageIO(bgr=True))
    np.testing.assert_array_equal(got[..., ::-1], runner.run(image, io=ImageIO()))
