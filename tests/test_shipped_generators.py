"""Every shipped generator: size, card, the engine against torch, and whether it draws its text."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

import fastgen
from fastgen.errors import BackendUnavailable
from fastgen.generators import generator_path

pytest.importorskip("torch")
NAMES = fastgen.list_generators()


def test_the_default_of_generate_is_shipped() -> None:
    assert "saae-mnist" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_size_and_card(name: str) -> None:
    path = generator_path(name)
    assert path.stat().st_size < 8_000_000
    card = json.loads(path.with_suffix(".json").read_text("utf-8"))
    ckpt = fastgen.load_generator(name)
    assert card["sha256"] == ckpt.meta["sha256"]
    assert card["name"] == ckpt.meta["name"] == name
    assert card["licence"] == ckpt.meta["licence"]
    assert card["network"]["parameters"] == ckpt.graph.parameter_count()
    assert card["data"]["note"]
    # Nothing of the machine that trained it.
    assert "/" not in json.dumps(card["options"])


@pytest.mark.parametrize("name", NAMES)
def test_engine_is_within_the_gates_of_the_reference(name: str) -> None:
    reference = fastgen.Generator(name, backend="torch", precision="fp32")
    text = "".join(reference.info.alphabet) * 3
    expected = reference(text, seed=1)
    got = fastgen.Generator(name, backend="cpu", precision="fp32")(text, seed=1)
    assert np.abs(got - expected).max() * 255 <= 0.02
    try:
        low = fastgen.Generator(name, backend="cpu", precision="bf16")
    except BackendUnavailable as error:
        pytest.skip(str(error))
    error = np.square(low(text, seed=1).astype(np.float64) - expected).mean()
    assert -10 * np.log10(error) >= 40


@pytest.mark.parametrize("name", NAMES)
def test_styles_matter(name: str) -> None:
    generator = fastgen.Generator(name)
    char = generator.info.alphabet[0]
    images = generator(char * 32, seed=2)
    assert images.std(0).mean() > 0.02


@pytest.mark.skipif("FASTGEN_DATA" not in os.environ, reason="FASTGEN_DATA is not set")
def test_digits_read_as_their_text() -> None:
    """By the nearest of 5000 real digits: on pixels, so specks and odd strokes count as errors."""
    from fastgen.train.saae_data import load

    real, held = load("mnist"), load("mnist", part="test")

    def read(images: np.ndarray) -> np.ndarray:
        known = real.images[:5000].reshape(5000, -1).astype(np.float32) / 255
        flat = images.reshape(len(images), -1)
        distance = (known**2).sum(1) - 2 * flat @ known.T
        return real.labels[:5000][distance.argmin(1)]

    text = "0123456789" * 30
    labels = np.array([int(c) for c in text])
    images = fastgen.Generator("saae-mnist", precision="fp32")(text, seed=3)
    generated = (read(images) == labels).mean()
    reference = (read(held.images[:300].astype(np.float32) / 255) == held.labels[:300]).mean()
    assert reference > 0.9
    assert generated > 0.7  # a tenth by chance
