"""Every shipped style on the example photo: the engine against the torch reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fastgen
from fastgen import metrics
from fastgen.errors import BackendUnavailable

pytest.importorskip("torch")
PHOTO = Path(__file__).resolve().parents[1] / "examples" / "coffee.jpg"


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    with Image.open(PHOTO) as image:
        # An odd size, so that padding and cropping take part.
        small = image.convert("RGB").resize((247, 165), Image.Resampling.LANCZOS)
    return np.asarray(small, np.float32) / 255


@pytest.mark.parametrize("name", fastgen.list_styles())
def test_engine_is_within_the_gate_of_the_reference(name: str, photo: np.ndarray) -> None:
    ours = fastgen.stylize(photo, name, backend="cpu", precision="fp32")
    reference = fastgen.stylize(photo, name, backend="torch", precision="fp32")
    assert np.abs(ours - reference).max() * 255 <= 0.02
    # The picture is neither the photo nor flat.
    assert np.abs(ours - photo).mean() > 0.05
    assert ours.std() > 0.1


@pytest.mark.parametrize("name", fastgen.list_styles())
def test_bf16_is_within_the_gate_of_the_reference(name: str, photo: np.ndarray) -> None:
    try:
        stylizer = fastgen.Stylizer(name, backend="cpu", precision="bf16")
    except BackendUnavailable as error:
        pytest.skip(str(error))
    ours = stylizer(photo)
    reference = fastgen.stylize(photo, name, backend="torch", precision="fp32")
    error = np.square(np.float64(ours) - reference).mean()
    # The gate is 40 dB. Above 80 it would not be bfloat16.
    assert 40 <= -10 * np.log10(error) <= 80
    assert stylizer.info.precision == "bf16"


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("name", fastgen.list_styles())
def test_int8_is_within_the_gate_of_the_reference(
    name: str, calibrated: bool, photo: np.ndarray
) -> None:
    ckpt = fastgen.load_style(name)
    if calibrated and "activation_ranges" not in ckpt.meta:
        pytest.skip("ships no activation ranges")
    ckpt.meta = {k: v for k, v in ckpt.meta.items() if calibrated or k != "activation_ranges"}
    stylizer = fastgen.Stylizer(ckpt, backend="cpu", precision="int8")
    ours = stylizer(photo)
    reference = fastgen.stylize(photo, name, backend="torch", precision="fp32")
    # The gate is 30 dB and 0.95, held with a margin. Above 60 dB it would not be int8.
    assert 34 <= metrics.psnr(ours * 255, reference * 255) <= 60
    assert metrics.ssim(ours * 255, reference * 255) >= 0.97
    assert stylizer.info.precision == "int8"


def test_three_paintings_in_two_sizes_are_shipped() -> None:
    paintings = {name.partition(".")[0] for name in fastgen.list_styles()}
    assert len(paintings) >= 3
    assert set(fastgen.list_styles("*.small")) == {f"{p}.small" for p in paintings}
    assert "starry_night" in paintings  # the default of fastgen.stylize
