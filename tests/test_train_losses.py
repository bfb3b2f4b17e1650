"""Losses and the calibrated objective against formulas written out in numpy, in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_vgg import picture, save_photos, save_tiny_vgg

from fastgen.train.data import PhotoSet
from fastgen.train.losses import feature_loss, gram_matrix, style_loss, total_variation
from fastgen.train.objective import (
    STYLE_WEIGHT,
    TV_WEIGHT,
    Objective,
    Weights,
    calibrate,
    crops_for_calibration,
    painting_grams,
    to_tensor,
)
from fastgen.train.vgg import load_loss_network

STYLE_LAYERS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3")


def _random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def _gram(features: np.ndarray) -> np.ndarray:
    c, h, w = features.shape
    out = np.zeros((c, c))
    for a in range(c):
        for b in range(c):
            out[a, b] = (features[a] * features[b]).sum() / (c * h * w)
    return out


def test_gram_matrix_is_equation_7() -> None:
    x = _random(2, 5, 7, 4)
    expected = np.stack([_gram(image) for image in x])
    got = gram_matrix(torch.from_numpy(x))
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12)
    wide = torch.from_numpy(x).float().contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(gram_matrix(wide).numpy(), expected, rtol=1e-4, atol=1e-6)


def test_gram_matrix_of_large_half_precision_features_does_not_overflow() -> None:
    x = torch.full((1, 3, 8, 8), 15000.0, dtype=torch.float16)
    assert torch.allclose(gram_matrix(x), torch.full((1, 3, 3), 15000.0**2 / 3), rtol=1e-5)


def test_style_loss_is_equation_8() -> None:
    x, y = _random(2, 4, 6, 5), _random(1, 4, 9, 3, seed=1)
    expected = [((_gram(image) - _gram(y[0])) ** 2).sum() for image in x]
    gram = gram_matrix(torch.from_numpy(y))[0]
    got = style_loss(torch.from_numpy(x), gram)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12)


def test_feature_loss_is_equation_6() -> None:
    x, y = _random(2, 4, 6, 5), _random(2, 4, 6, 5, seed=1)
    expected = [((a - b) ** 2).sum() / (4 * 6 * 5) for a, b in zip(x, y, strict=True)]
    got = feature_loss(torch.from_numpy(x), torch.from_numpy(y))
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12)


def test_total_variation_is_the_sum_of_squared_differences() -> None:
    x = _random(2, 3, 5, 4)
    expected = np.zeros(2)
    for n in range(2):
        for c in range(3):
            for i in range(5):
                for j in range(4):
                    if i + 1 < 5:
                        expected[n] += (x[n, c, i + 1, j] - x[n, c, i, j]) ** 2
                    if j + 1 < 4:
                        expected[n] += (x[n, c, i, j + 1] - x[n, c, i, j]) ** 2
    np.testing.assert_allclose(total_variation(torch.from_numpy(x)).numpy(), expected, rtol=1e-12)


@pytest.fixture(scope="module")
def objective(tmp_path_factory: pytest.TempPathFactory) -> tuple[Objective, torch.Tensor]:
    """The calibrated objective of a tiny network and the photos of its calibration."""
    path = save_tiny_vgg(tmp_path_factory.mktemp("vgg"))
    network = load_loss_network(path, STYLE_LAYERS)
    painting = to_tensor(np.asarray(picture(99))[None])
    photos = to_tensor(np.stack([np.asarray(picture(i)) for i in range(3)]))
    grams = painting_grams(network, painting, STYLE_LAYERS)
    weights = calibrate(
        network,
        grams,
        [photos[:2], photos[2:]],
        content_layers=("relu2_2",),
        style_strength=2.0,
        layer_weights=(1, 2, 3, 2),
        tv_strength=3.0,
    )
    return Objective(network, grams, weights), photos


def test_calibrated_terms_have_their_documented_units(
    objective: tuple[Objective, torch.Tensor],
) -> None:
    made, photos = objective
    features = made.network(photos, ("relu2_2",))["relu2_2"].double().numpy()
    variance = features.var(axis=(2, 3)).mean()
    assert made.weights.content == pytest.approx({"relu2_2": 1 / variance}, rel=1e-5)
    for layer, part in zip(STYLE_LAYERS, (1, 2, 3, 2), strict=True):
        norm = (made.grams[layer].double().numpy() ** 2).sum()
        expected = 2.0 * STYLE_WEIGHT * part / 8 / norm
        assert made.weights.style[layer] == pytest.approx(expected, rel=1e-5)
    variation = total_variation(photos).mean().item() / photos[0].numel()
    assert made.weights.tv == pytest.approx(3.0 * TV_WEIGHT / variation, rel=1e-5)


def test_objective_is_equation_9(objective: tuple[Objective, torch.Tensor]) -> None:
    made, photos = objective
    images = photos.flip(0) * 0.7 + 20
    terms = made(images, made.content_targets(photos))
    of_images = made.network(images, STYLE_LAYERS)
    of_photos = made.network(photos, STYLE_LAYERS)
    for n in range(3):
        content = sum(
            mu * ((of_images[k][n] - of_photos[k][n]).double().numpy() ** 2).mean()
            for k, mu in made.weights.content.items()
        )
        style = sum(
            mu * ((_gram(of_images[k][n].double().numpy()) - made.grams[k].numpy()) ** 2).sum()
            for k, mu in made.weights.style.items()
        )
        assert terms["content"][n].item() == pytest.approx(content, rel=1e-4)
        assert terms["style"][n].item() == pytest.approx(style, rel=1e-3)
        total = content + style + terms["tv"][n].item()
        assert terms["total"][n].item() == pytest.approx(total, rel=1e-3)


def test_terms_of_reference_pictures(objective: tuple[Objective, torch.Tensor]) -> None:
    made, photos = objective
    same = made(photos, made.content_targets(photos))
    assert float(same["content"].abs().max()) == 0
    assert float(same["tv"].mean()) == pytest.approx(3.0 * TV_WEIGHT, rel=1e-5)
    painting = to_tensor(np.asarray(picture(99))[None])
    of_painting = made(painting, made.content_targets(photos[:1]))
    assert float(of_painting["style"]) == pytest.approx(0, abs=1e-6)


def test_weights_survive_json_and_refuse_nonsense() -> None:
    weights = Weights({"relu2_2": 0.25}, {"relu1_2": 3e-7}, 1e-5)
    assert Weights.from_json(weights.to_json()) == weights
    for bad in ({}, {**weights.to_json(), "tv_per_value": float("nan")}, {"content": 3}):
        with pytest.raises(ValueError, match="objective weights"):
            Weights.from_json(bad)


def test_calibration_refuses_constant_photos_and_bad_factors(tmp_path: Path) -> None:
    network = load_loss_network(save_tiny_vgg(tmp_path), STYLE_LAYERS)
    grams = {"relu1_2": torch.eye(4)}
    flat, photo = torch.full((1, 3, 32, 32), 80.0), to_tensor(np.asarray(picture(0))[None])
    with pytest.raises(ValueError, match="constant"):
        calibrate(network, grams, [], content_layers=("relu2_2",))
    with pytest.raises(ValueError, match="constant"):
        calibrate(network, grams, [flat], content_layers=("relu1_1",))
    with pytest.raises(ValueError, match="must be >= 0"):
        calibrate(network, grams, [photo], content_layers=("relu2_2",), style_strength=-1)
    with pytest.raises(ValueError, match="layer weights"):
        calibrate(network, grams, [photo], content_layers=("relu2_2",), layer_weights=(1, 2))


def test_calibration_crops_depend_on_the_photos_only(tmp_path: Path) -> None:
    photos = PhotoSet(save_photos(tmp_path / "photos", 4))
    first, again = (list(crops_for_calibration(photos)) for _ in range(2))
    assert [tuple(batch.shape) for batch in first] == [(4, 3, 160, 160)] * 2
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
