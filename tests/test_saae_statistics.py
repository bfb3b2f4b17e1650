"""Statistics, judges, distortion and measures of the evaluation against independent values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fastgen.train.augment import distort
from fastgen.train.eval_pictures import beside, sheet
from fastgen.train.eval_stats import interval, paired, quantile_t, text
from fastgen.train.judge import (
    FitOptions,
    accuracy,
    balanced,
    cached_judge,
    features,
    fit,
    frechet,
    from_set,
)
from fastgen.train.recogniser import Arm, arms_for, mixed, run_arm, summarise
from fastgen.train.saae_measures import (
    copying,
    pearson,
    pixel_std,
    style_use,
    swap_test,
    thickness,
)


@pytest.mark.parametrize(
    ("level", "df", "value"),  # printed tables of Student's distribution
    [(0.95, 1, 12.7062), (0.95, 2, 4.3027), (0.95, 4, 2.7764), (0.95, 9, 2.2622), (0.99, 5, 4.0321),
     (0.90, 30, 1.6973), (0.95, 100, 1.9840)],
)  # fmt: skip
def test_quantiles_of_student(level: float, df: int, value: float) -> None:
    assert quantile_t(level, df) == pytest.approx(value, abs=1e-4)


def test_intervals_cover_as_often_as_they_say() -> None:
    random = np.random.default_rng(0)
    found = [interval(row.tolist()) for row in random.normal(3, 2, (4000, 4))]
    inside = np.mean([f["low"] <= 3 <= f["high"] for f in found])
    assert inside == pytest.approx(0.95, abs=0.012)


def test_pairs() -> None:
    found = paired([3.0, 5.0, 4.0], [1.0, 2.0, 3.0])  # differences 2, 3, 1
    assert found["mean"] == pytest.approx(2)
    assert found["se"] == pytest.approx(1 / 3**0.5)
    assert found["high"] - found["mean"] == pytest.approx(4.3027 / 3**0.5, abs=1e-4)
    assert found["two_se"] is True
    assert found["above"] is False
    alone = paired([3.0], [1.0])
    assert (alone["mean"], alone["above"], alone["two_se"]) == (2, None, None)
    assert text(alone, 1) == "2.0"
    assert text(found, 1) == "2.0 [-0.5, 4.5]"
    with pytest.raises(ValueError, match="equal numbers"):
        paired([1.0], [1.0, 2.0])


def test_frechet_of_known_gaussians() -> None:
    """In one dimension it is (m1 - m2)^2 + (s1 - s2)^2; rotations change nothing."""
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(5000, 3, generator=generator, dtype=torch.float64)
    a = (a - a.mean(0)) / a.std(0)
    # Uncorrelated exactly, so that the closed form of diagonal covariances holds.
    a = a @ torch.linalg.inv(torch.linalg.cholesky(a.T @ a / 4999)).T
    b = a * torch.tensor([1.0, 2.0, 0.5]) + torch.tensor([0.0, 1.0, -2.0])
    assert frechet(a, b) == pytest.approx(0 + (1 + 1) + (4 + 0.25), rel=1e-6)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))[0]
    assert frechet(a @ turn, b @ turn) == pytest.approx(6.25, rel=1e-6)
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)


def _bars(widths: list[int], size: int = 28) -> Tensor:
    images = torch.zeros(len(widths), 1, size, size)
    for image, width in zip(images, widths, strict=True):
        image[0, 4:-4, 8 : 8 + width] = 1
    return images


def test_thickness_is_the_width_of_a_stroke() -> None:
    widths = [1, 2, 3, 5]
    found = thickness(_bars(widths))
    # Twice area over outline, without the ends: w * L / (L + w).
    expected = torch.tensor([w * 20 / (20 + w) for w in widths])
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)
    torch.testing.assert_close(thickness(1 - _bars(widths)), found, rtol=1e-4, atol=1e-4)
    assert float(thickness(torch.full((1, 3, 8, 8), 0.4))[0]) == 0


def _digits(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Three easy classes of 16x16: bar on top, bar on the left, both; random grey and shift."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=generator)
    images = 0.2 * torch.rand(count, 1, 16, 16, generator=generator)
    for image, label in zip(images, labels.tolist(), strict=True):
        row, column = torch.randint(2, 6, (2,), generator=generator).tolist()
        if label != 1:
            image[0, row : row + 3] += 0.7
        if label != 0:
            image[0, :, column : column + 3] += 0.7
    return images.clamp(0, 1), labels


OPTIONS = FitOptions(steps=60, batch=32, distort=False, width=4)


def test_a_judge_learns_and_is_kept(tmp_path: Path) -> None:
    train, held_out = _digits(300, 2), _digits(200, 3)
    said: list[str] = []
    judge, info = cached_judge(*train, held_out, 3, OPTIONS, tmp_path, "toy", said.append)
    assert info["accuracy"] == accuracy(judge, *held_out) > 0.95
    again, same = cached_judge(*train, held_out, 3, OPTIONS, tmp_path, "toy", said.append)
    assert same == info
    assert len(said) == 1
    torch.testing.assert_close(features(again, held_out[0]), features(judge, held_out[0]))
    file = next(tmp_path.glob("toy-*.safetensors"))
    file.write_bytes(file.read_bytes()[:100])
    cached_judge(*train, held_out, 3, OPTIONS, tmp_path, "toy", said.append)
    assert "unusable" in said[1]


def test_the_same_seed_gives_the_same_judge() -> None:
    batches = from_set(*_digits(100, 4))
    a, b, c = (
        fit(batches, (1, 16, 16), 3, FitOptions(5, 16, distort=True, width=4, seed=s))
        for s in (0, 0, 1)
    )
    images = _digits(10, 5)[0]
    assert (features(a, images) == features(b, images)).all()
    assert (features(a, images) != features(c, images)).any()


def test_distortion() -> None:
    images = _digits(6, 6)[0].repeat(1, 3, 1, 1)
    off = {"rotate": 0.0, "scale": 0.0, "shear": 0.0, "shift": 0.0, "elastic": 0.0}
    generator = torch.Generator().manual_seed(0)
    torch.testing.assert_close(distort(images, generator, **off), images, atol=1e-5, rtol=0)
    a = distort(images, torch.Generator().manual_seed(1))
    b = distort(images, torch.Generator().manual_seed(1))
    assert (a == b).all()
    assert (a[0] != a[1]).any()
    # a shift is what it says: the centre of mass moves by at most that much
    dot = torch.zeros(64, 1, 33, 33)
    dot[:, :, 15:18, 15:18] = 1
    moved = distort(dot, torch.Generator().manual_seed(2), **{**off, "shift": 0.1})
    place = torch.arange(33.0)
    centre = (moved.sum(2)[:, 0] * place).sum(1) / moved.sum((1, 2, 3))
    assert float((centre - 16).abs().max()) <= 3.3 + 1e-3
    assert float((centre - 16).abs().max()) > 2.5
    # a rotation of a square frame keeps distances from the centre, also in wide images
    wide = torch.zeros(1, 1, 21, 63)
    wide[0, 0, 10, 41] = 1
    turned = distort(wide, torch.Generator().manual_seed(3), **{**off, "rotate": 45.0})
    y, x = divmod(int(turned.flatten().argmax()), 63)
    assert (y - 10) ** 2 + (x - 31) ** 2 == pytest.approx(100, rel=0.15)


def test_swap_test_tells_obedient_from_deaf() -> None:
    train, styles = _digits(300, 7), _digits(60, 8)
    judge = fit(from_set(*train), (1, 16, 16), 3, OPTIONS)
    glyphs = [(train[0][train[1] == k][0], k) for k in range(3)]
    obedient = swap_test(lambda c, s: c, judge, glyphs, *styles)
    assert obedient["accuracy"] == 1
    assert obedient["images"] == 2 * 60
    deaf = swap_test(lambda c, s: s, judge, glyphs, *styles)
    assert deaf["accuracy"] < 0.1
    assert deaf["same"] > 0.9


def test_style_use_is_one_for_real_images_of_the_class() -> None:
    real, labels = _digits(600, 9)
    styles, style_labels = _digits(300, 10)
    glyphs = [(real[labels == k][0], k) for k in range(3)]
    frozen = style_use(lambda c, s: c, glyphs, styles, style_labels, real, labels)
    assert frozen["ratio"] == 0
    assert frozen["thickness"] == 0
    copied = style_use(lambda c, s: s, glyphs, styles, style_labels, real, labels)
    assert copied["ratio"] > 0.9
    assert copied["thickness"] == pytest.approx(1, abs=1e-6)
    assert pixel_std(torch.tensor([0.0, 1.0])[:, None, None, None].expand(2, 1, 2, 2)) == 0.5
    a, b = torch.rand(2, 30, generator=torch.Generator().manual_seed(11))
    assert pearson(a, b) == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-6)


def test_copying_is_seen() -> None:
    train, test = torch.rand(2, 300, 1, 6, 6, generator=torch.Generator().manual_seed(12))
    fresh = torch.rand(300, 1, 6, 6, generator=torch.Generator().manual_seed(13))
    assert copying(train[:100], train, test)["below"] == 1
    assert copying(fresh, train, test)["below"] < 0.05


def test_recogniser_arms() -> None:
    real, test = _digits(12, 14), _digits(300, 15)
    extra = _digits(400, 16)
    arms = arms_for(_digits(30, 17), extra, (100, 400))
    assert [arm.name for arm in arms] == [
        "real",
        "augment",
        "glyphs",
        "generated-100",
        "generated-400",
    ]
    assert len(arms[3].extra[0]) == 100  # type: ignore[index]
    draw = mixed(
        from_set(torch.zeros(5, 1, 2, 2), torch.zeros(5)),
        from_set(torch.ones(5, 1, 2, 2), torch.ones(5)),
    )
    images, labels = draw(9, torch.Generator())
    assert labels.sum() == 4
    assert images.mean() == pytest.approx(4 / 9)
    outcomes = {
        a.name: run_arm(a, real, test, 3, OPTIONS, points=4) for a in (Arm("real"), arms[-1])
    }
    assert outcomes["real"].steps == [15, 30, 45, 60]
    assert outcomes["generated-400"].final > 0.9
    assert outcomes["generated-400"].to_95 in outcomes["real"].steps
    with pytest.raises(ValueError, match="--sizes"):
        arms_for(extra, extra, (401,))


def test_recogniser_summary() -> None:
    runs = [
        {"per_class": 10, "seed": s, "arm": arm, "final": base + 0.01 * s, "to_95": 100}
        for s in range(3)
        for arm, base in (("real", 0.5), ("augment", 0.6), ("glyphs", 0.55), ("generated-9", 0.58))
    ]
    rows = summarise(runs)
    assert [row["arm"] for row in rows] == ["real", "augment", "glyphs", "generated-9"]
    versus = rows[3]["versus"]
    assert versus["real"]["mean"] == pytest.approx(0.08)
    assert versus["real"]["above"] is True
    assert versus["augment"]["high"] < 0


def test_balanced() -> None:
    labels = torch.tensor([0, 1, 2] * 10 + [1] * 5)
    found = balanced(labels, 4, torch.Generator().manual_seed(0))
    assert torch.bincount(labels[found]).tolist() == [4, 4, 4]
    assert len(set(found.tolist())) == 12
    with pytest.raises(ValueError, match="class 0 has 10 images; 11"):
        balanced(labels, 11, torch.Generator())


def test_sheets() -> None:
    a, b = torch.zeros(1, 3, 4), torch.ones(3, 2, 2) * torch.tensor([1.0, 0.0, 0.0])[:, None, None]
    page = sheet([[a, b], [b]], scale=1)
    assert page.shape == (2 * 5 + 2, 2 * 6 + 2, 3)
    assert (page[2:5, 2:6] == 0).all()
    assert page[2, 9].tolist() == [255, 0, 0]
    assert (page[0] == 255).all()
    assert sheet([[a]], scale=3).shape == (21, 24, 3)
    assert beside([page, page], gap=4).shape == (12, 32, 3)
