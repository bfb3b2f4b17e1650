"""Projected L-BFGS and the evaluation protocol."""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_vgg import picture, save_photos, save_tiny_vgg

from fastgen.checkpoint import load_checkpoint, save_checkpoint
from fastgen.train import evaluate
from fastgen.train import gatys as optimiser
from fastgen.train.evaluate import evaluate_style, first_at_most
from fastgen.train.gatys import gatys, minimise, white_noise
from fastgen.train.objective import Objective, build_objective, to_tensor
from fastgen.train.options import EvalStyleOptions, GatysOptions, ObjectiveOptions
from fastgen.train.style import StyleOptions, train_style


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A painting, photos and a loss network."""
    root = tmp_path_factory.mktemp("gatys")
    picture(99).save(root / "painting.png")
    save_photos(root / "photos", 3)
    save_tiny_vgg(root)
    return root


@pytest.fixture(scope="module")
def objective(folder: Path) -> Objective:
    """Eq. 9 for the painting."""
    options = ObjectiveOptions(vgg=folder / "tiny_vgg.safetensors", style_size=48)
    photo = to_tensor(np.asarray(picture(0))[None])
    return build_objective(options, folder / "painting.png", [photo], torch.device("cpu"))


@pytest.mark.parametrize("seed", [0, 1])
def test_box_constrained_quadratic_reaches_its_minimum(seed: int) -> None:
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(20, 20)))
    matrix = torch.from_numpy(basis @ np.diag(np.logspace(0, 2, 20)) @ basis.T)
    target = torch.from_numpy(rng.uniform(-100, 350, 20))

    def function(x: torch.Tensor) -> torch.Tensor:
        d = x - target
        return 0.5 * d @ matrix @ d

    result = minimise(function, torch.full((20,), 127.0, dtype=torch.float64), 300)
    x = result.image.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(x), x)
    x = x.detach()
    inside = (x > 0) & (x < 255)
    assert float(x.min()) >= 0
    assert float(x.max()) <= 255
    assert int(inside.sum()) < 20  # some bounds are active
    assert float(gradient[inside].abs().max()) < 1e-2
    assert bool((gradient[x <= 0] >= 0).all())
    assert bool((gradient[x >= 255] <= 0).all())


def test_the_objective_falls_and_pixels_stay_in_range(objective: Objective) -> None:
    photo = to_tensor(np.asarray(picture(1))[None])
    seen: list[tuple[int, float]] = []
    result = gatys(
        objective, photo, iterations=30, report=lambda i, v: seen.append((i, v)) is not None
    )
    curve = result.objective
    assert all(a >= b for a, b in pairwise(curve))
    assert curve[-1] < 0.2 * curve[0]
    assert seen == list(enumerate(curve[1:], 1))
    assert float(result.image.min()) >= 0
    assert float(result.image.max()) <= 255
    final = objective(result.image, objective.content_targets(photo))["total"]
    assert float(final) == pytest.approx(curve[-1], rel=1e-4)
    assert result.evaluations >= len(curve)


def test_it_is_at_least_as_good_as_clamped_torch_lbfgs(objective: Objective) -> None:
    photo = to_tensor(np.asarray(picture(1))[None])
    targets = objective.content_targets(photo)
    x = white_noise(48, 60, 0).requires_grad_()
    other = torch.optim.LBFGS([x], max_iter=1, history_size=20)

    def closure() -> torch.Tensor:
        other.zero_grad()
        value = objective(x, targets)["total"].sum()
        value.backward()
        return value.detach()

    for _ in range(40):
        other.step(closure)  # type: ignore[arg-type]
        with torch.no_grad():
            x.clamp_(0, 255)
    ours = gatys(objective, photo, iterations=40).objective[-1]
    assert ours < 1.1 * float(closure())


def test_wrong_arguments_are_refused(objective: Objective) -> None:
    photo = to_tensor(np.asarray(picture(1))[None])
    with pytest.raises(ValueError, match=r"iterations is 501; it must be in 1\.\.500"):
        gatys(objective, photo, iterations=501)
    with pytest.raises(ValueError, match="photo has shape"):
        gatys(objective, photo[0])
    with pytest.raises(ValueError, match="start has shape"):
        gatys(objective, photo, start=photo[..., :8])
    with pytest.raises(ValueError, match="objective is nan"):
        minimise(lambda x: x.sum() * float("nan"), torch.zeros(2), 5)


def test_noise_is_reproducible_and_fills_the_range() -> None:
    noise = white_noise(40, 30, 7)
    assert noise.shape == (1, 3, 40, 30)
    assert torch.equal(noise, white_noise(40, 30, 7))
    assert not torch.equal(noise, white_noise(40, 30, 8))
    assert 0 <= float(noise.min()) < 5
    assert 250 < float(noise.max()) <= 255


def test_the_command_writes_a_picture(folder: Path, tmp_path: Path) -> None:
    options = GatysOptions(
        style=folder / "painting.png",
        content=folder / "photos" / "photo00.png",
        output=tmp_path / "out.png",
        vgg=folder / "tiny_vgg.safetensors",
        size=40,
        style_size=48,
        iterations=3,
        start="content",
        calibrate=folder / "photos",
        device="cpu",
        quiet=True,
    )
    assert optimiser.run(options) == 0
    with Image.open(options.output) as image:
        assert image.size == (40, 32)
    for change, message in (
        ({"output": tmp_path / "out.xyz"}, "must be an image file name"),
        ({"output": tmp_path / "no" / "out.png"}, "create it first"),
        ({"size": 8}, "at least 32"),
        ({"content": tmp_path}, "is a folder"),
    ):
        with pytest.raises(ValueError, match=message):
            optimiser.run(dataclasses.replace(options, **change))


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    """A style of a few steps."""
    options = StyleOptions(
        style=folder / "painting.png",
        content=folder / "photos",
        output=folder / "tiny.safetensors",
        vgg=folder / "tiny_vgg.safetensors",
        model="compact_net",
        width=4,
        style_size=48,
        size=32,
        steps=3,
        finish_steps=0,
        preview_every=0,
        precision="fp32",
        device="cpu",
        quiet=True,
    )
    train_style(options)
    return options.output


@pytest.fixture
def evaluation(folder: Path, trained: Path, tmp_path: Path) -> EvalStyleOptions:
    """Options of a small evaluation."""
    return EvalStyleOptions(
        checkpoints=(trained,),
        style=folder / "painting.png",
        photos=folder / "photos",
        output=tmp_path / "report.json",
        vgg=folder / "tiny_vgg.safetensors",
        count=2,
        size=48,
        iterations=30,
        device="cpu",
        quiet=True,
    )


def test_report_places_networks_on_the_baseline_curve(evaluation: EvalStyleOptions) -> None:
    report = evaluate_style(evaluation)
    assert json.loads(evaluation.output.read_text())["networks"] == report["networks"]  # type: ignore[union-attr]
    (network,) = report["networks"]
    curve = report["baseline"][network["objective"]]["mean_curve"]
    curves = report["curves"][network["objective"]]
    assert len(curves) == 2
    np.testing.assert_allclose(np.mean(list(curves.values()), axis=0), curve)
    total = network["mean"]["total"]
    assert total == pytest.approx(np.mean(network["per_photo"]))
    assert total == pytest.approx(sum(network["mean"][k] for k in ("content", "style", "tv")))
    reached = network["lbfgs_iteration"]
    assert curve[reached] <= total < curve[reached - 1]
    assert network["versus"] == {"30": pytest.approx(total / curve[30])}
    table = evaluation.output.with_suffix(".md").read_text()  # type: ignore[union-attr]
    assert f"| tiny.safetensors | {total:.4g} |" in table


def test_curves_are_shared_and_reused(
    evaluation: EvalStyleOptions, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def counted(*args: object, **kwargs: object) -> object:
        calls.append(kwargs["seed"])
        return gatys(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(evaluate, "gatys", counted)
    twice = dataclasses.replace(evaluation, checkpoints=(trained, trained), iterations=3, seeds=2)
    first = evaluate_style(twice)
    assert calls == [0, 1, 0, 1]
    again = evaluate_style(dataclasses.replace(twice, baseline=twice.output, iterations=2))
    assert len(calls) == 4
    (before,), (after,) = first["baseline"].values(), again["baseline"].values()
    assert after["mean_curve"] == before["mean_curve"][:3]


def test_wrong_painting_network_or_files_are_refused(
    evaluation: EvalStyleOptions, folder: Path, trained: Path, tmp_path: Path
) -> None:
    def fails(message: str, **change: object) -> None:
        with pytest.raises(ValueError, match=message) as error:
            evaluate_style(dataclasses.replace(evaluation, **change))  # type: ignore[arg-type]
        assert "\n" not in str(error.value)

    picture(5).save(tmp_path / "other.png")
    fails("trained for another picture", style=tmp_path / "other.png")
    other = save_tiny_vgg(tmp_path / "vgg", note="other")
    fails("trained with the loss network", vgg=other)
    fails("holds 3 photos; 9 were asked", count=9)
    fails(r"iterations is 0", iterations=0)
    fails("multiple of 4", size=50)
    fails("at least one checkpoint", checkpoints=())
    fails(r"must end in \.json", output=tmp_path / "report.txt")
    fails("not a report", baseline=folder / "painting.png")
    checkpoint = load_checkpoint(trained)
    checkpoint.meta["provenance"] = {}
    save_checkpoint(tmp_path / "foreign.safetensors", checkpoint)
    fails("no training objective", checkpoints=(tmp_path / "foreign.safetensors",))


def test_photos_default_to_the_test_part_of_bsds(fastgen_data: Path) -> None:
    photos = evaluate.held_out(evaluate.default_photos(), 20)
    assert len(photos) == 20
    assert all(name.startswith("test/") for name in photos.names)
    assert photos.names == sorted(photos.names)


def test_first_at_most() -> None:
    assert first_at_most([3.0, 2.0, 1.0], 2.0) == 1
    assert first_at_most([3.0, 2.0, 1.0], 5.0) == 0
    assert first_at_most([3.0, 2.0, 1.0], 0.5) is None
