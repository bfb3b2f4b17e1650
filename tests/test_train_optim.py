"""The optimisers of the trainer."""

from __future__ import annotations

import pytest
import torch

from fastgen.train.optim import Muon, make_optimizer, orthogonalise


@pytest.mark.parametrize("shape", [(16, 27), (27, 16), (8, 8), (1, 40), (40, 1)])
def test_orthogonalise_is_close_to_the_polar_factor(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape, dtype=torch.float64) * 1e-4
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonalise(matrix).double()
    singular = torch.linalg.svdvals(found)
    assert singular.min() > 0.6
    assert singular.max() < 1.3
    assert torch.nn.functional.cosine_similarity(found.flatten(), (u @ vh).flatten(), 0) > 0.97


def test_orthogonalise_of_zero_is_zero() -> None:
    assert not orthogonalise(torch.zeros(4, 6)).any()


def test_muon_steps_vectors_as_adam_does() -> None:
    torch.manual_seed(1)
    start = torch.randn(32)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    optimisers = [Muon([ours], lr=0.01), torch.optim.Adam([theirs], lr=0.01)]
    for _ in range(20):
        for parameter, optimiser in zip((ours, theirs), optimisers, strict=True):
            optimiser.zero_grad()
            (parameter**4).sum().backward()
            optimiser.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_muon_moves_every_direction_of_a_matrix_alike() -> None:
    weight = torch.nn.Parameter(torch.zeros(6, 4, 1, 1))
    gradient = torch.randn(6, 4, generator=torch.Generator().manual_seed(2))
    gradient *= torch.tensor([30.0, 10.0, 3.0, 1.0])  # badly scaled columns
    weight.grad = gradient.view_as(weight).clone()
    Muon([weight], lr=0.5).step()
    step = torch.linalg.svdvals(weight.detach().view(6, 4))
    expected = 0.5 * 0.2 * 6**0.5
    assert step.tolist() == pytest.approx([expected] * 4, rel=0.4)  # the gradient's differ 30-fold


def test_unknown_optimizer_is_named() -> None:
    with pytest.raises(ValueError, match="optimizer 'sgd' is unknown; use adam or muon"):
        make_optimizer("sgd", [torch.nn.Parameter(torch.zeros(1))], 0.1)


def test_closure_is_refused() -> None:
    with pytest.raises(ValueError, match="takes no closure"):
        Muon([torch.nn.Parameter(torch.zeros(1))]).step(lambda: 0.0)
