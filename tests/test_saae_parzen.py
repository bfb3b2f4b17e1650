"""Parzen windows, nearest neighbours and k-means against loops in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastgen.train import parzen
from fastgen.train.parzen import SIGMAS, controls, k_means, log_likelihood, nearest


def _numbers(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def _by_definition(points: np.ndarray, samples: np.ndarray, sigma: float) -> np.ndarray:
    """The formula, one point and one sample at a time, in float64."""
    values = []
    for x in points:
        terms = [-((x - g) ** 2).sum() / (2 * sigma**2) for g in samples]
        highest = max(terms)
        mean = sum(math.exp(t - highest) for t in terms) / len(samples)
        values.append(highest + math.log(mean) - x.size * math.log(sigma * math.sqrt(2 * math.pi)))
    return np.array(values)


@pytest.mark.parametrize("sigma", [0.1, 0.17, 1.0])
def test_log_likelihood_is_the_formula(sigma: float) -> None:
    points, samples = _numbers(0, 23, 28, 28), _numbers(1, 41, 28, 28)
    found = log_likelihood(points, samples, [sigma])[0].numpy()
    flat = points.reshape(23, -1).double().numpy(), samples.reshape(41, -1).double().numpy()
    np.testing.assert_allclose(found, _by_definition(*flat, sigma), rtol=2e-6, atol=2e-3)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    points, samples = _numbers(2, 50, 9), _numbers(3, 31, 9)
    whole = log_likelihood(points, samples, SIGMAS)
    distances, index = nearest(points, samples, 3)
    monkeypatch.setattr(parzen, "_BLOCK", 31 * 7)
    torch.testing.assert_close(log_likelihood(points, samples, SIGMAS), whole, rtol=1e-6, atol=1e-5)
    again, same = nearest(points, samples, 3)
    assert (same == index).all()
    torch.testing.assert_close(again, distances, rtol=1e-5, atol=1e-5)


def test_density_integrates_to_one() -> None:
    samples = torch.tensor([[0.2], [0.5], [0.9]])
    line = torch.linspace(-3, 4, 7001)[:, None]
    density = log_likelihood(line, samples, [0.3])[0].exp()
    assert float(density.sum() * 0.001) == pytest.approx(1, abs=1e-6)


def test_a_gaussian_is_scored_as_its_own_entropy() -> None:
    """With many samples of N(0, 0.3^2 I) the score nears the density of N(0, 0.3^2 + s^2)."""
    generator = torch.Generator().manual_seed(4)
    samples = 0.3 * torch.randn(5_000, 2, generator=generator)
    points = 0.3 * torch.randn(1_000, 2, generator=generator)
    sigma = 0.1
    variance = 0.3**2 + sigma**2
    exact = -math.log(2 * math.pi * variance) - points.square().sum(1) / (2 * variance)
    found = log_likelihood(points, samples, [sigma])[0]
    assert float((found - exact).mean()) == pytest.approx(0, abs=0.03)


def test_the_width_is_chosen_on_validation_only() -> None:
    samples = _numbers(5, 60, 4)
    validation, test = samples + 0.3, samples[:20]
    found = parzen.parzen(samples, validation, test)
    curve = [
        _by_definition(validation.double().numpy(), samples.double().numpy(), s).mean()
        for s in SIGMAS
    ]
    assert found.sigma == SIGMAS[int(np.argmax(curve))]
    np.testing.assert_allclose(found.validation, curve, rtol=1e-5, atol=1e-4)
    scores = _by_definition(test.double().numpy(), samples.double().numpy(), found.sigma)
    assert found.mean == pytest.approx(scores.mean(), abs=1e-4)
    assert found.se == pytest.approx(scores.std() / math.sqrt(20), rel=1e-4)


def test_nearest_is_brute_force() -> None:
    points, samples = _numbers(6, 17, 3, 5), _numbers(7, 29, 3, 5)
    table = np.linalg.norm(
        points.reshape(17, 1, 15).double().numpy() - samples.reshape(1, 29, 15).double().numpy(),
        axis=2,
    )
    distances, index = nearest(points, samples, 4)
    assert (index.numpy() == np.argsort(table, axis=1)[:, :4]).all()
    np.testing.assert_allclose(distances, np.sort(table, axis=1)[:, :4], rtol=1e-4)
    one, first = nearest(points, samples)
    assert (first == index[:, :1]).all()
    torch.testing.assert_close(one, distances[:, :1])
    assert float(nearest(samples, samples)[0].max()) < 2e-3


def test_k_means_finds_separated_groups() -> None:
    generator = torch.Generator().manual_seed(8)
    middles = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]])
    data = (middles[:, None] + 0.1 * torch.randn(3, 40, 2, generator=generator)).reshape(-1, 2)
    best = None
    for seed in range(8):
        centres = k_means(data, 3, 20, torch.Generator().manual_seed(seed))
        cost = float(nearest(data, centres)[0].square().sum())
        best = cost if best is None else min(best, cost)
    exact = sum(float((g - g.mean(0)).square().sum()) for g in data.reshape(3, 40, 2))
    assert best == pytest.approx(exact, rel=1e-3)


def test_controls_rank_blur_above_data(fastgen_data: object) -> None:
    """The known weakness of the measure, on a small part of MNIST."""
    from fastgen.train.saae_data import load

    train = load("mnist", fastgen_data / "mnist").images[:3000, 0]  # type: ignore[operator]
    images = torch.tensor(train, dtype=torch.float32) / 255
    found = controls(
        images[:2000], images[2000:2300], images[2300:], 1000, names=("real", "blur", "means_of_8")
    )
    assert found["real"].mean < found["blur"].mean < found["means_of_8"].mean


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: log_likelihood(torch.zeros(2, 4), torch.zeros(2, 5), [1.0]), "equal sizes"),
        (lambda: log_likelihood(torch.zeros(2, 4), torch.zeros(2, 4), [0.0]), "above 0"),
        (lambda: log_likelihood(torch.zeros(0, 4), torch.zeros(2, 4), [1.0]), "N >= 1"),
        (lambda: nearest(torch.zeros(2, 4), torch.zeros(2, 4), 3), "ask for 1..2"),
        (lambda: k_means(torch.zeros(2, 4), 3, 1, torch.Generator()), "ask for 1..2"),
    ],
)
def test_bad_input(call: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()  # type: ignore[operator]
