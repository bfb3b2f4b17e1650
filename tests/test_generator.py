"""Generator and generate: what goes in, what comes out, and that it is the graph's output."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cpu_cases import torch_reference
from PIL import Image
from tiny_saae import save_saae, tiny_saae

import fastgen
from fastgen import backends, models
from fastgen.errors import CheckpointError, GraphError
from fastgen.generator import Generator
from fastgen.generators import list_generators, load_generator
from fastgen.glyphs import Glyphs

pytest.importorskip("torch")
BACKENDS = [name for name in backends.names() if backends.why_not(name) is None]


def styles(count: int, channels: int = 1) -> np.ndarray:
    shape = (count, 8, 14) if channels == 1 else (count, 8, 14, 3)
    return np.random.default_rng(5).random(shape, dtype=np.float32)


def reference(ckpt: fastgen.Checkpoint, content: np.ndarray, style: np.ndarray) -> np.ndarray:
    """The whole graph in float64; content (N,H,W), style (N,H,W[,3])."""
    planes = style[:, None] if style.ndim == 3 else style.transpose(0, 3, 1, 2)
    inputs = {"content": content[:, None], "style": planes}
    image = torch_reference(ckpt.graph, ckpt.weights, inputs)["image"]
    return image[:, 0] if image.shape[1] == 1 else image.transpose(0, 2, 3, 1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_pairs_and_grid_are_the_graphs_output(backend: str, channels: int) -> None:
    ckpt = tiny_saae(channels)
    generator = Generator(ckpt, backend=backend, precision="fp32")
    glyphs = np.round(Glyphs((12, 10), margin=0.1)("A7B") * 255).astype(np.float32) / 255
    style = styles(3, channels)
    pairs = generator("A7B", style)
    assert pairs.dtype == np.float32
    assert pairs.shape == ((3, 12, 10) if channels == 1 else (3, 12, 10, 3))
    np.testing.assert_allclose(pairs, reference(ckpt, glyphs, style), atol=1e-5)
    one = generator("A7B", style[0])
    np.testing.assert_allclose(one, reference(ckpt, glyphs, style[[0, 0, 0]]), atol=1e-5)
    grid = generator("A7B", style[:2], mode="grid")
    expected = reference(ckpt, glyphs[[0, 1, 2, 0, 1, 2]], style[[0, 0, 0, 1, 1, 1]])
    np.testing.assert_allclose(grid, expected, atol=1e-5)
    # Contents as images are the same as their text.
    np.testing.assert_allclose(generator(glyphs, style), pairs, atol=1e-6)
    assert np.abs(grid[0] - grid[3]).max() > 0.01  # the style matters
    assert np.abs(grid[0] - grid[1]).max() > 0.01  # so does the content


def test_more_than_one_batch_is_the_same_one_by_one() -> None:
    generator = Generator(tiny_saae(), precision="fp32")
    text, style = "AB7" * 50, styles(150)
    whole = generator(text, style)
    for i in (0, 63, 64, 149):
        np.testing.assert_allclose(whole[i], generator(text[i], style[i])[0], atol=1e-5)


def test_stored_styles_follow_the_seed() -> None:
    ckpt = tiny_saae()
    generator = Generator(ckpt)
    first = generator("AAAA", seed=3)
    np.testing.assert_array_equal(first, generator("AAAA", seed=3))
    np.testing.assert_array_equal(generator("AB"), generator("AB", seed=0))
    assert any((generator("AAAA", seed=s) != first).any() for s in range(4, 8))
    assert generator("AB7", mode="grid").shape[0] == 3
    ckpt.meta["style_bank"] = None
    with pytest.raises(ValueError, match="no stored styles"):
        Generator(ckpt)("A")


def test_files_and_pillow_images_are_stretched(tmp_path: Path) -> None:
    generator = Generator(tiny_saae(3), precision="fp32")
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (31, 47, 3), np.uint8))
    photo.save(tmp_path / "word.png")
    small = photo.resize((14, 8), Image.Resampling.BICUBIC, reducing_gap=2.0)
    expected = generator("A", np.asarray(small))
    np.testing.assert_array_equal(generator("A", photo), expected)
    np.testing.assert_array_equal(generator("A", tmp_path / "word.png"), expected)
    np.testing.assert_array_equal(generator("A", str(tmp_path / "word.png")), expected)
    both = generator("AA", [photo, np.asarray(small, np.float32) / 255])
    np.testing.assert_allclose(both, expected[[0, 0]], atol=1e-5)
    grey = Generator(tiny_saae(), precision="fp32")  # colour becomes grey for a grey model
    np.testing.assert_array_equal(grey("A", photo), grey("A", photo.convert("L").convert("RGB")))


def test_characters_outside_the_alphabet_are_drawn() -> None:
    ckpt = tiny_saae()
    generator = Generator(ckpt, precision="fp32")
    assert generator.unfamiliar("A9B9C") == ["9", "C"]
    drawn = generator("9A", styles(2))
    glyph = Glyphs((12, 10), margin=0.1)("9")
    np.testing.assert_allclose(drawn[:1], reference(ckpt, glyph, styles(2)[:1]), atol=1e-5)


def test_generate_caches_by_file(tmp_path: Path) -> None:
    path = save_saae(tmp_path)
    expected = Generator(path)("AB", styles(2))
    np.testing.assert_array_equal(fastgen.generate("AB", styles(2), path), expected)
    np.testing.assert_array_equal(fastgen.generate("AB", styles(2), str(path)), expected)
    info = Generator(path, threads=1).info
    assert (info.name, info.alphabet, info.size, info.styles) == (
        "tiny",
        ("A", "B", "7"),
        (12, 10),
        4,
    )
    assert info.as_dict()["channels"] == 1


@pytest.mark.parametrize(
    ("content", "style", "config", "message"),
    [
        ("", None, {}, "at least one character"),
        ("A B", None, {}, "white space"),
        ("\U0010ffff", None, {}, "glyph for"),
        ("AB", np.zeros((3, 8, 14)), {}, "make no pairs"),
        ("A", np.zeros((14, 8)), {}, r"shape \(14, 8\).*\(8,14\)"),
        ("A", np.zeros((8, 14, 3)), {}, "shape"),
        ("A", np.zeros((0, 8, 14)), {}, "shape"),
        ("A", np.full((8, 14), 2.0), {}, "0..1"),
        ("A", np.full((8, 14), np.nan), {}, "0..1"),
        ("A", [], {}, "empty list"),
        (np.zeros((12, 12)), None, {}, "content has the shape"),
        ("A", None, {"mode": "all"}, "mode is 'all'"),
    ],
)
def test_bad_values(content: object, style: object, config: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as info:
        Generator(tiny_saae())(content, style, **config)
    assert "\n" not in str(info.value)


def test_bad_types(tmp_path: Path) -> None:
    generator = Generator(tiny_saae())
    for content, style in ((7, None), ("A", 7), ("A", np.zeros((8, 14), np.int32))):
        with pytest.raises(TypeError):
            generator(content, style)
    with pytest.raises(TypeError, match="seed"):
        generator("A", seed=1.5)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        generator("A", tmp_path / "none.png")


def test_models_of_images_take_no_text() -> None:
    generator = Generator(tiny_saae(glyphs=False))
    with pytest.raises(ValueError, match="content images of 10x12, not text"):
        generator("A")
    assert generator(np.zeros((2, 12, 10)), styles(1)).shape == (2, 12, 10)


def test_unknown_and_foreign_models(tmp_path: Path) -> None:
    from tiny import save_tiny

    with pytest.raises(ValueError, match="unknown model 'sae-mnist'"):
        fastgen.generate("1", model="sae-mnist")
    with pytest.raises(FileNotFoundError):
        load_generator(tmp_path / "none.safetensors")
    with pytest.raises(TypeError):
        load_generator(7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="kind is 'style'"):
        load_generator(save_tiny(tmp_path))


@pytest.mark.parametrize(
    "change",
    [
        {"style_bank": {"shape": [4, 9], "float16": ""}},
        {"style_bank": {"shape": "x"}},
        {"glyphs": "AAAA"},
        {"glyphs": None},
        {"alphabet": ["A"]},
    ],
)
def test_damaged_metadata(change: dict) -> None:
    ckpt = tiny_saae()
    ckpt.meta |= change
    with pytest.raises(CheckpointError, match="damaged"):
        Generator(ckpt)


def test_graphs_are_cut_only_where_they_can() -> None:
    graph = tiny_saae().graph
    part = graph.part(("style",), "style_code_relu")
    assert [i.name for i in part.inputs] == ["style"]
    assert part.inputs[0].constant
    for inputs, output, message in (
        (("style",), "image", "depends on 'content'"),
        (("style",), "nothing", "no value 'nothing'"),
    ):
        with pytest.raises(GraphError, match=message):
            graph.part(inputs, output)
    with pytest.raises(GraphError, match="any size"):
        models.create("compact_net", width=2).part(("image",), "down1")


def test_shipped_generators_have_names() -> None:
    for name in list_generators():
        assert fastgen.load_generator(name).meta["name"] == name
