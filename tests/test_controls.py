"""Masks, blends, stroke size and a part of the colours, against references of a few lines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_api_types import photo
from tiny import save_tiny, tiny_checkpoint

import fastgen
from fastgen import _resize, backends
from fastgen.backends import ImageIO
from fastgen.metrics import psnr

HEIGHT, WIDTH = 40, 56
STYLES = [tiny_checkpoint(seed, name=f"tiny{seed}") for seed in range(3)]
LEFT = np.zeros((HEIGHT, WIDTH), bool)
LEFT[:, WIDTH // 2 :] = True


@pytest.fixture(scope="module")
def single() -> list[fastgen.Stylizer]:
    return [fastgen.Stylizer(ckpt, precision="fp32", threads=1) for ckpt in STYLES]


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return photo(HEIGHT, WIDTH)


def refused(kind: type[Exception], text: str, call: Any, *args: Any, **options: Any) -> None:
    with pytest.raises(kind, match=text) as info:
        call(*args, **options)
    assert "\n" not in str(info.value)


# ---------------------------------------------------------------------------- masks


@pytest.mark.parametrize(
    "mask",
    [
        *(LEFT, LEFT.astype(np.uint8) * 255, LEFT.astype(np.uint16) * 65535, LEFT.astype(float)),
        *(LEFT.astype(np.int64), np.stack([~LEFT, LEFT]), torch.from_numpy(LEFT)[None]),
        *(torch.from_numpy(LEFT).double(), Image.fromarray(LEFT), [~LEFT, LEFT * np.float32(1)]),
    ],
    ids=["bool", "u1", "u2", "float", "i8", "weights", "tensor", "double", "pillow", "list"],
)
def test_a_hard_mask_takes_every_pixel_from_its_style(
    single: list[fastgen.Stylizer], image: np.ndarray, mask: Any
) -> None:
    result = fastgen.Stylizer(single[:2])(image, mask=mask)
    expected = np.where(LEFT[:, :, None], single[1](image), single[0](image))
    np.testing.assert_array_equal(result, expected)


def test_indices_and_the_photo(single: list[fastgen.Stylizer], image: np.ndarray) -> None:
    index = np.random.default_rng(0).integers(0, 4, (HEIGHT, WIDTH))
    mix = fastgen.Stylizer([single[0], "none", single[1], single[2]])
    pictures = np.stack([single[0](image), image, single[1](image), single[2](image)])
    expected = np.take_along_axis(pictures, index[None, :, :, None], 0)[0]
    np.testing.assert_array_equal(mix(image, mask=index), expected)
    np.testing.assert_array_equal(mix(image, mask=index.astype(np.uint8)), expected)
    assert mix.styles == ("tiny0", "none", "tiny1", "tiny2")


def test_weights_that_do_not_add_up(single: list[fastgen.Stylizer], image: np.ndarray) -> None:
    weights = np.random.default_rng(1).uniform(0, 1, (2, HEIGHT, WIDTH))
    floats = image / 255.0
    result = fastgen.Stylizer(single[:2])(floats, mask=weights)
    shares = weights / np.maximum(weights.sum(0), 1)
    expected = floats * (1 - shares.sum(0))[:, :, None]
    for share, style in zip(shares, single, strict=False):
        expected = expected + share[:, :, None] * style(floats)
    np.testing.assert_allclose(result, expected, atol=4e-5)


def test_files_of_masks(single: list[fastgen.Stylizer], image: np.ndarray, tmp_path: Path) -> None:
    index = np.random.default_rng(2).integers(0, 3, (HEIGHT, WIDTH)).astype(np.uint8)
    palette = Image.fromarray(index)
    palette.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    palette.save(tmp_path / "palette.png")
    Image.fromarray(index).save(tmp_path / "grey.png")
    mix = fastgen.Stylizer(single)
    expected = mix(image, mask=index)
    for name in ("palette.png", "grey.png"):
        np.testing.assert_array_equal(mix(image, mask=tmp_path / name), expected)
    # Stored sideways, upright by its EXIF orientation.
    turned = Image.fromarray(LEFT.astype(np.uint8) * 255).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    two = fastgen.Stylizer(single[:2])
    np.testing.assert_array_equal(
        two(image, mask=str(tmp_path / "turned.png")), two(image, mask=LEFT)
    )


@pytest.mark.parametrize("feather", [1, 3, 9, 200])
def test_feather_is_a_tent(feather: int) -> None:
    """The maps against a plain convolution, rows then columns, with a repeated border."""
    mask = np.random.default_rng(3).uniform(0, 1, (30, 41)) > 0.6
    tent = feather + 1 - np.abs(np.arange(-feather, feather + 1))
    expected = mask.astype(float)
    for axis in (0, 1):
        pad = [(feather, feather) if a == axis else (0, 0) for a in (0, 1)]
        padded = np.pad(expected, pad, mode="edge")
        expected = np.apply_along_axis(np.convolve, axis, padded, tent / tent.sum(), "valid")
    base, ((index, found),) = _maps(fastgen.Mask(mask, feather=feather), 2, 30, 41)
    assert (base, index) == (0, 1)
    np.testing.assert_allclose(found / 65535, expected, atol=2e-5)


def _maps(mask: fastgen.Mask, count: int, height: int, width: int) -> Any:
    regions = mask.regions(count, height, width)
    return regions.base, regions.maps


def test_feather_ends_where_it_says(single: list[fastgen.Stylizer], image: np.ndarray) -> None:
    result = fastgen.Stylizer(single[:2])(image, mask=LEFT, feather=5)
    edge = WIDTH // 2
    a, b = single[0](image), single[1](image)
    np.testing.assert_array_equal(result[:, : edge - 5], a[:, : edge - 5])
    np.testing.assert_array_equal(result[:, edge + 5 :], b[:, edge + 5 :])
    assert (result[:, edge - 5 : edge] != a[:, edge - 5 : edge]).any(axis=(0, 2)).all()
    assert (result[:, edge : edge + 5] != b[:, edge : edge + 5]).any(axis=(0, 2)).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (90, 1), (3, 2)])
def test_pictures_of_any_size(single: list[fastgen.Stylizer], size: tuple[int, int]) -> None:
    image = photo(*size)
    mix = fastgen.Stylizer([single[0], "none"])
    # Wider than the picture: every pixel has nearly as much of both.
    result = mix(image, mask=np.array([[0, 1], [1, 0]]), feather=2000)
    middle = (image + single[0](image).astype(float)) / 2
    assert np.abs(result - middle).max() <= 40
    assert np.abs(result - middle).mean() < 1
    assert mix(image, mask=LEFT, feather=3, stroke_size=10).shape == image.shape


@pytest.mark.parametrize("size", [(17, 23), (120, 90), (1, 1), (40, 7)])
def test_masks_are_stretched(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(4).uniform(0, 1, size).astype(np.float32)
    whole = Image.fromarray(values).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)
    monkeypatch.setattr(_resize, "_BLOCK", 300)  # a few rows at a time
    base, maps = _maps(fastgen.Mask(values), 2, HEIGHT, WIDTH)
    assert base == 0
    np.testing.assert_allclose(maps[0][1] / 65535, np.asarray(whole), atol=2e-5)


def test_a_style_that_is_not_seen_does_not_run(
    single: list[fastgen.Stylizer], image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []
    for number, style in enumerate(single):

        def paint(*args: Any, number: int = number, before: Any = style._paint_batch) -> Any:
            ran.append(number)
            return before(*args)

        monkeypatch.setattr(style, "_paint_batch", paint)
    mix = fastgen.Stylizer(single)
    index = np.full((HEIGHT, WIDTH), 2)
    mix(image, mask=index)
    index[0, 0] = 1
    mix(image, mask=index)
    fastgen.Stylizer(single[:2])(image, mask=np.ones((3, 3)), feather=2)
    fastgen.Stylizer(single[:2])(image, mask=np.zeros((3, 3)))
    fastgen.Stylizer({single[0]: 0, single[2]: 4})(image)
    np.testing.assert_array_equal(mix(image, mask=np.zeros((3, HEIGHT, WIDTH))), image)
    assert ran == [2, 1, 2, 1, 0, 2]


# ---------------------------------------------------------------------------- blends


def test_a_blend_is_the_weighted_mean(single: list[fastgen.Stylizer], image: np.ndarray) -> None:
    mix = fastgen.Stylizer({single[0]: 7, single[1]: 2, "none": 1})
    expected = 0.7 * single[0](image) + 0.2 * single[1](image) + 0.1 * image
    assert np.abs(mix(image) - expected).max() <= 0.501
    other = mix(image, blend={"tiny1": 3})
    np.testing.assert_array_equal(other, single[1](image))
    expected = 0.5 * (0.5 * single[0](image) + 0.5 * single[1](image)) + 0.5 * image
    half = mix(image, blend={single[0]: 1, "tiny1": 1.0}, strength=0.5)
    assert np.abs(half - expected).max() <= 1.001
    np.testing.assert_array_equal(mix(image, strength=0), image)
    np.testing.assert_array_equal(mix(image, blend={"none": 1}), image)
    huge = mix(image, blend={"tiny0": 1e308, "tiny1": 1e308})  # their sum is no float
    np.testing.assert_array_equal(huge, mix(image, blend={"tiny0": 1, "tiny1": 1}))


def test_stylize_takes_several_styles(tmp_path: Path, image: np.ndarray) -> None:
    a, b = (str(save_tiny(tmp_path, f"s{seed}", seed=seed)) for seed in (0, 1))
    pictures = fastgen.stylize(image, a), fastgen.stylize(image, b)
    result = fastgen.stylize(image, [a, b], mask=LEFT)
    np.testing.assert_array_equal(result, np.where(LEFT[:, :, None], *pictures[::-1]))
    mixed = fastgen.stylize(image, {a: 1, b: 3})
    assert np.abs(mixed - (pictures[0] / 4 + pictures[1] * 0.75)).max() <= 0.501
    info = fastgen.Stylizer({a: 1, b: 3}).info
    assert info.style == f"{a}+{b}"
    assert info.sha256 == "+".join(fastgen.load_checkpoint(p).meta["sha256"] for p in (a, b))


# ---------------------------------------------------------------------------- strokes


def _reference_strokes(stylizer: Any, image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The whole picture at once, with windows written out."""
    height, width = image.shape[:2]
    picture = Image.fromarray(image)
    small = np.asarray(picture.resize(size, Image.Resampling.LANCZOS))
    painted = stylizer(small)

    def large(values: np.ndarray, kind: Any) -> np.ndarray:
        return np.asarray(Image.fromarray(values).resize((width, height), kind), np.float64)

    luma = np.array(ImageIO.LUMA)
    guide, value = small @ luma / 255, painted @ luma / 255
    slope = np.empty(guide.shape, np.float32)
    g, v = (np.pad(x, 3, mode="edge") for x in (guide, value))
    for y, x in np.ndindex(*guide.shape):
        p, q = g[y : y + 7, x : x + 7].ravel(), v[y : y + 7, x : x + 7].ravel()
        covariance, variance = np.mean(p * q) - p.mean() * q.mean(), p.var()
        slope[y, x] = np.clip(covariance / (variance + 20 / 255**2), 0, 1)
    coarse = large((guide * 255).astype(np.float32), Image.Resampling.BICUBIC).clip(0, 255)
    detail = large(slope, Image.Resampling.BILINEAR) * (image @ luma - coarse)
    result = large(painted, Image.Resampling.BICUBIC) + detail[:, :, None]
    return result.clip(0, 255)


@pytest.mark.parametrize("block", [1 << 20, 900])
def test_stroke_size(
    single: list[fastgen.Stylizer], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = np.asarray(Image.fromarray(photo(20, 33)).resize((99, 60), Image.Resampling.BICUBIC))
    monkeypatch.setattr(_resize, "_BLOCK", block)
    result = single[0](image, stroke_size=256 / 24)  # a short side of 24 pixels
    expected = _reference_strokes(single[0], image, (40, 24))
    # A pixel that rounds the other way before the network is a few steps behind it.
    assert np.abs(result - expected).max() <= (0.51 if block > 900 else 12)
    assert psnr(result, np.rint(expected)) > 50


def test_stroke_size_of_smaller_and_equal_pictures(
    single: list[fastgen.Stylizer], image: np.ndarray
) -> None:
    np.testing.assert_array_equal(single[0](image, stroke_size=256 / HEIGHT), single[0](image))
    large = Image.fromarray(image).resize((2 * WIDTH, 2 * HEIGHT), Image.Resampling.LANCZOS)
    painted = Image.fromarray(single[0](np.asarray(large)))
    expected = np.asarray(painted.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(single[0](image, stroke_size=256 / (2 * HEIGHT)), expected)
    for size in ((1, 1), (1, 300), (7, 3)):
        for stroke_size in (8, 2.5):
            result = single[0](photo(*size), stroke_size=stroke_size)
            assert result.shape == (*size, 3)


def test_preview_and_full_size_look_alike(example_photo: Path) -> None:
    style = fastgen.Stylizer("starry_night.small", precision="fp32", threads=1)
    with Image.open(example_photo) as opened:
        full = opened.convert("RGB")
    size = full.width // 2, full.height // 2
    preview = full.resize(size, Image.Resampling.LANCZOS)

    def agreement(**options: Any) -> float:
        large = style(full, **options).resize(size, Image.Resampling.LANCZOS)
        return psnr(np.asarray(large), np.asarray(style(preview, **options)))

    assert agreement(stroke_size=1.6) > 30 > 20 > agreement()


# ---------------------------------------------------------------------------- all together


def test_a_part_of_the_colours(single: list[fastgen.Stylizer], image: np.ndarray) -> None:
    floats = image / 255.0
    none, full = single[0](floats), single[0](floats, preserve_color=True)
    for keep in (0.25, np.float32(0.75)):
        expected = none + float(keep) * (full - none)
        np.testing.assert_allclose(single[0](floats, preserve_color=keep), expected, atol=1e-6)
        mixed = single[0](floats, preserve_color=keep, strength=0.4)
        np.testing.assert_allclose(mixed, floats + 0.4 * (expected - floats), atol=1e-6)
    for number, flag in ((0, False), (1.0, True), (1, True)):
        np.testing.assert_array_equal(
            single[0](image, preserve_color=number), single[0](image, preserve_color=flag)
        )
    turned = single[0](image[:, :, ::-1].copy(), preserve_color=0.5, bgr=True, stroke_size=12)
    straight = single[0](image, preserve_color=0.5, stroke_size=12)
    assert np.abs(turned[:, :, ::-1].astype(int) - straight).max() <= 1


CALLS: dict[str, tuple[Any, dict[str, Any]]] = {
    "mask": (list(range(2)), {"mask": LEFT, "feather": 4}),
    "blend": ([0, 1, 2], {}),
    "stroke": ([0], {"stroke_size": 256 / 30}),
    "all": ([0, 1], {"mask": LEFT, "stroke_size": 9, "preserve_color": 0.3, "strength": 0.8}),
}


def _made(which: list[int], backend: str, blend: bool) -> fastgen.Stylizer:
    parts = [fastgen.Stylizer(STYLES[i], backend=backend, precision="fp32") for i in which]
    if len(parts) == 1:
        return parts[0]
    return fastgen.Stylizer({p: 1 + i for i, p in enumerate(parts)} if blend else parts)


@pytest.mark.parametrize("backend", [name for name in backends.names() if name != "torch"])
@pytest.mark.parametrize("name", CALLS)
def test_every_backend(name: str, backend: str) -> None:
    if reason := backends.why_not(backend):
        pytest.skip(reason)
    which, options = CALLS[name]
    floats = photo(HEIGHT, WIDTH) / np.float32(255)
    wanted = _made(which, "torch", name == "blend")(floats, **options)
    result = _made(which, backend, name == "blend")(floats, **options)
    assert np.abs(result - wanted).max() <= 0.02 / 255


@pytest.mark.parametrize("name", CALLS)
def test_every_type(single: list[fastgen.Stylizer], name: str) -> None:
    which, options = CALLS[name]
    parts = [single[i] for i in which]
    style = parts[0]
    if len(parts) > 1:
        style = fastgen.Stylizer(dict.fromkeys(parts, 1) if name == "blend" else parts)  # type: ignore[arg-type]
    image = photo(HEIGHT, WIDTH)
    wanted = style(image, **options)
    batch = style(np.stack([image, image[::-1]]), **options)
    np.testing.assert_array_equal(batch[0], wanted)
    assert (batch[1] != wanted).any()
    tensor = style(torch.from_numpy(image).permute(2, 0, 1), **options)
    np.testing.assert_array_equal(tensor.permute(1, 2, 0).numpy(), wanted)
    alpha = np.dstack([image, image[:, :, :1]])
    np.testing.assert_array_equal(style(alpha, **options), np.dstack([wanted, alpha[:, :, 3:]]))
    np.testing.assert_array_equal(np.asarray(style(Image.fromarray(image), **options)), wanted)
    assert style(image.astype(np.uint16) * 257, **options).dtype == np.uint16
    before = image.copy()
    before.flags.writeable = False
    assert not np.shares_memory(style(before, **options), before)
    np.testing.assert_array_equal(before, image)
    frames = [image, image[:, ::-1].copy()]
    for one, frame in zip(style.stream(frames, **options), frames, strict=True):
        np.testing.assert_array_equal(one, style(frame, **options))


def test_bands() -> None:
    """Two networks in bands: the same picture, and the first gives its memory back."""
    parts = [
        fastgen.Stylizer(c, backend="cpu", precision="fp32", band_rows=rows)
        for rows in (16, None)
        for c in STYLES[:2]
    ]
    image = photo(90, 70)
    banded, whole = fastgen.Stylizer(parts[:2]), fastgen.Stylizer(parts[2:])
    mask = np.linspace(0, 1, 70)[None].repeat(90, 0)
    np.testing.assert_array_equal(banded(image, mask=mask), whole(image, mask=mask))
    arenas = [part._runner._engine.arena_bytes for part in parts]
    assert arenas[0] == 0 < arenas[1]
    assert arenas[2] > 0
    info = banded.band_info(70, 90)
    assert info is not None
    assert info.rows == 16
    assert whole.band_info(70, 90) is None
    assert parts[0].band_info(700, 900, stroke_size=4) == parts[0].band_info(64, 82)


def test_a_mask_of_another_byte_order(single: list[fastgen.Stylizer], image: np.ndarray) -> None:
    mix = fastgen.Stylizer(single[:2])
    mask = np.linspace(0, 65535, image.shape[1]).astype(np.uint16)[None]
    swapped = mask.astype(mask.dtype.newbyteorder())
    np.testing.assert_array_equal(mix(image, mask=swapped), mix(image, mask=mask))


def test_what_does_not_fit(single: list[fastgen.Stylizer], image: np.ndarray) -> None:
    one, two, three = single[0], fastgen.Stylizer(single[:2]), fastgen.Stylizer(single)
    blend = fastgen.Stylizer({single[0]: 1, single[1]: 2})
    for options in ({"mask": LEFT}, {"feather": 2}, {"blend": {"tiny0": 1}}):
        refused(ValueError, "is for several styles", one, image, **options)
    refused(ValueError, "2 styles in a list need a mask", two, image)
    refused(ValueError, "blend is for styles in a dict", two, image, mask=LEFT, blend={})
    refused(ValueError, "a blend has no regions for mask", blend, image, mask=LEFT)
    refused(ValueError, "a blend has no regions for feather", blend, image, feather=1)
    refused(
        ValueError, "blend names 'x', which is none of tiny0, tiny1", blend, image, blend={"x": 1}
    )
    refused(ValueError, "all weights of the blend are 0", blend, image, blend={"tiny0": 0})
    refused(ValueError, "weight of 'tiny0' is -1", blend, image, blend={"tiny0": -1})
    refused(ValueError, "weight of 'tiny0' is 1000", blend, image, blend={"tiny0": 10**400})
    refused(TypeError, "weight of 'tiny0' is '1'", blend, image, blend={"tiny0": "1"})
    refused(TypeError, "blend is 3, must be a dict", blend, image, blend=3)
    for mask, text in (
        (LEFT * np.uint8(1), "all but black"),
        (LEFT + 0.5, r"floats must be in 0\.\.1"),
        (np.where(LEFT, np.nan, 0.5), r"floats must be in 0\.\.1"),
        (LEFT * 5, "has the value 5; for 2 styles"),
        (LEFT * -1, "has the value -1"),
        (np.zeros((3, 4, 5)), "3 masks for 2 styles"),
        (np.zeros(4), r"must be \(H,W\) or \(K,H,W\)"),
        (np.zeros((0, 4)), r"must be \(H,W\) or \(K,H,W\)"),
        ([LEFT, LEFT[1:]], "have the sizes 56x40, 56x39, must have one"),
        ([], "empty list"),
    ):
        refused(ValueError, text, two, image, mask=mask)
    refused(ValueError, "one float array for 3 styles", three, image, mask=LEFT / 2)
    refused(TypeError, "dtype complex128", two, image, mask=LEFT * 1j)
    refused(TypeError, "mask is of type set", two, image, mask={1})
    refused(FileNotFoundError, "no such file", two, image, mask="nothing.png")
    for feather, kind in ((-1, ValueError), (1e9, ValueError), ("2", TypeError), (True, TypeError)):
        refused(kind, "feather is", two, image, mask=LEFT, feather=feather)
    refused(ValueError, "feather is part", two, image, mask=fastgen.Mask(LEFT), feather=1)
    for size in (0, -1, 100, float("nan")):
        refused(
            ValueError, r"stroke_size is .* must be in 0\.01\.\.16", one, image, stroke_size=size
        )
        refused(ValueError, "stroke_size is", two, image, mask=LEFT, stroke_size=size)
    refused(TypeError, "stroke_size is '1'", one, image, stroke_size="1")
    refused(
        ValueError, "makes 35840x25600 pixels .* limit is 100,000,000", one, image, stroke_size=0.01
    )
    refused(ValueError, "preserve_color is 1.5", one, image, preserve_color=1.5)
    for style, text in (
        ([], "0 styles in a list"),
        (["none", None], "every style is 'none'"),
        ({"tiny": 1}, "1 styles in a dict"),
        ([two, single[0]], "cannot be part of another"),
        ({single[0]: -1, single[1]: 1}, "weight of 'tiny0' is -1"),
        ({"none": 1, None: 2}, "names a style twice"),
    ):
        refused(ValueError, text, fastgen.Stylizer, style)
    refused(TypeError, "stream has no argument 'masks'", two.stream, [image], masks=LEFT)


def test_plain_runs_import_nothing_of_this(example_photo: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom fastgen.cli import app\n"
        "try:\n    app()\nfinally:\n"
        "    new = ('_controls', '_masks', '_mix', '_keyframes', '_resize', 'cli._controls')\n"
        "    print([n for n in new if f'fastgen.{n}' in sys.modules], file=sys.stderr)\n"
    )
    words = ["stylize", example_photo, "-o", tmp_path / "o.png", "-s", "starry_night.small"]
    words += ["--max-side", "64", "--strength", "0.5", "--preserve-color"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "[]\n")
