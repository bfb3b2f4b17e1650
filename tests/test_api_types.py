"""The same type out as in, and the same picture whatever the type."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_checkpoint

import fastgen


@pytest.fixture(scope="module")
def paint() -> fastgen.Stylizer:
    return fastgen.Stylizer(tiny_checkpoint())


def photo(height: int = 24, width: int = 36, channels: int = 3, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 4 + 1, width // 4 + 1, channels))
    fine = rng.integers(-20, 21, (height, width, channels))
    smooth = coarse.repeat(4, 0).repeat(4, 1)[:height, :width]
    return np.clip(smooth + fine, 0, 255).astype(np.uint8)


def read(path: Path) -> np.ndarray:
    """The pixels of an image file as Pillow reads them."""
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.fixture(scope="module")
def wanted(paint: fastgen.Stylizer) -> np.ndarray:
    """The stylised photo on a 0..1 scale, from float64."""
    return paint(photo() / 255.0)


def test_float64(wanted: np.ndarray) -> None:
    assert wanted.dtype == np.float64
    assert wanted.shape == (24, 36, 3)
    assert 0.0 <= wanted.min() < 0.2
    assert 0.8 < wanted.max() <= 1.0


def test_uint8(paint: fastgen.Stylizer, wanted: np.ndarray) -> None:
    result = paint(photo())
    assert result.dtype == np.uint8
    assert result.shape == (24, 36, 3)
    assert np.abs(result / 255.0 - wanted).max() <= 0.51 / 255


def test_uint16(paint: fastgen.Stylizer, wanted: np.ndarray) -> None:
    result = paint(photo().astype(np.uint16) * 257)
    assert result.dtype == np.uint16
    assert np.abs(result / 65535.0 - wanted).max() < 1e-4
    assert len(np.unique(result)) > 256, "the result has more than 8 bits"


@pytest.mark.parametrize("dtype", ["float16", "float32", ">f4", ">f8", ">u2"])
def test_other_dtypes(paint: fastgen.Stylizer, wanted: np.ndarray, dtype: str) -> None:
    scale = 65535.0 if "u" in dtype else 1.0
    image = (photo() / 255.0 * scale).astype(dtype)
    result = paint(image)
    assert result.dtype == np.dtype(dtype)
    assert np.abs(result.astype(np.float64) / scale - wanted).max() < 0.02


def test_batch_is_images_one_by_one(paint: fastgen.Stylizer) -> None:
    images = np.stack([photo(seed=s) for s in range(3)])
    result = paint(images)
    assert result.shape == images.shape
    for image, styled in zip(images, result, strict=True):
        np.testing.assert_array_equal(paint(image), styled)


def test_grey_array_gives_three_channels(paint: fastgen.Stylizer) -> None:
    grey = photo()[:, :, 0]
    expected = paint(np.stack([grey] * 3, axis=-1))
    np.testing.assert_array_equal(paint(grey), expected)
    np.testing.assert_array_equal(paint(grey[:, :, None]), expected)


def test_alpha_of_an_array_is_kept(paint: fastgen.Stylizer) -> None:
    image = photo(channels=4)
    result = paint(image)
    np.testing.assert_array_equal(result[:, :, 3], image[:, :, 3])
    np.testing.assert_array_equal(result[:, :, :3], paint(image[:, :, :3].copy()))


def test_strides_do_not_matter(paint: fastgen.Stylizer) -> None:
    image = photo(48, 72)
    for view in (image[::2, ::2], image[::-1], image[:, ::-1], image.transpose(1, 0, 2)):
        assert not view.flags.c_contiguous
        np.testing.assert_array_equal(paint(view), paint(view.copy()))
    bgr_view = image[:, :, ::-1]
    np.testing.assert_array_equal(paint(bgr_view), paint(np.ascontiguousarray(bgr_view)))


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_input_is_not_modified(paint: fastgen.Stylizer, strength: float) -> None:
    image = photo()
    before = image.copy()
    image.flags.writeable = False
    result = paint(image, strength=strength)
    np.testing.assert_array_equal(image, before)
    assert not np.shares_memory(result, image)
    result[:] = 0  # and the result is the caller's


def test_bgr_is_rgb_reversed(paint: fastgen.Stylizer) -> None:
    image = photo()
    bgr = np.ascontiguousarray(image[:, :, ::-1])
    for preserve in (False, True):
        expected = paint(image, preserve_color=preserve)[:, :, ::-1]
        result = paint(bgr, bgr=True, preserve_color=preserve)
        assert np.abs(result.astype(int) - expected.astype(int)).max() <= 1


def test_strength_mixes_linearly(paint: fastgen.Stylizer, wanted: np.ndarray) -> None:
    image = photo() / 255.0
    for strength in (0.25, np.float32(0.5), 1):
        expected = image + (wanted - image) * float(strength)
        np.testing.assert_allclose(paint(image, strength=strength), expected, atol=1e-6)
    np.testing.assert_array_equal(paint(photo(), strength=0), photo())
    deep = photo().astype(np.uint16) * 251 + 3
    np.testing.assert_array_equal(paint(deep, strength=0.0), deep)


def test_preserve_color_keeps_chroma(paint: fastgen.Stylizer, wanted: np.ndarray) -> None:
    # BT.601, full range, from the definition of Y, Cb and Cr.
    to_ycc = np.array(
        [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
    )
    image = photo() / 255.0
    result = paint(image, preserve_color=True)
    inside = ((result > 0.001) & (result < 0.999)).all(axis=-1)  # where nothing was clipped
    assert inside.mean() > 0.2
    ours, photo_ycc, styled = (x[inside] @ to_ycc.T for x in (result, image, wanted))
    np.testing.assert_allclose(ours[:, 0], styled[:, 0], atol=1e-5)
    np.testing.assert_allclose(ours[:, 1:], photo_ycc[:, 1:], atol=1e-5)


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 5000), (5000, 1), (3, 7), (2, 2), (33, 47), (4, 4), (65, 8)]
)
def test_output_has_the_size_of_the_input(paint: fastgen.Stylizer, size: tuple[int, int]) -> None:
    image = photo(*size)
    result = paint(image)
    assert result.shape == image.shape
    assert paint(Image.fromarray(image)).size == (size[1], size[0])
    assert tuple(paint(torch.from_numpy(image).permute(2, 0, 1)).shape) == (3, *size)


# ---------------------------------------------------------------------------- tensors


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
def test_tensor(paint: fastgen.Stylizer, wanted: np.ndarray, dtype: torch.dtype) -> None:
    tensor = torch.from_numpy(photo()).permute(2, 0, 1)
    scale = 255.0 if dtype == torch.uint8 else 1.0
    tensor = tensor if dtype == torch.uint8 else (tensor / 255.0).to(dtype)
    result = paint(tensor)
    assert result.dtype == dtype
    assert result.device == tensor.device
    assert tuple(result.shape) == (3, 24, 36)
    error = result.double().permute(1, 2, 0).numpy() / scale - wanted
    assert np.abs(error).max() < 0.05
    if dtype == torch.float32:
        assert np.abs(error).max() < 1e-5


def test_tensor_batch_grey_and_alpha(paint: fastgen.Stylizer) -> None:
    images = torch.stack([torch.from_numpy(photo(seed=s)).permute(2, 0, 1) for s in range(2)])
    result = paint(images)
    assert tuple(result.shape) == (2, 3, 24, 36)
    assert result.is_contiguous()
    torch.testing.assert_close(paint(images[1]), result[1], rtol=0, atol=0)
    grey = images[0, :1]
    torch.testing.assert_close(paint(grey), paint(grey.expand(3, -1, -1)), rtol=0, atol=0)
    alpha = torch.cat([images[0], images[1, :1]])
    torch.testing.assert_close(paint(alpha), torch.cat([result[0], images[1, :1]]), rtol=0, atol=0)


def test_tensor_views_and_gradients(paint: fastgen.Stylizer) -> None:
    tensor = (torch.from_numpy(photo()).permute(2, 0, 1) / 255.0).requires_grad_()
    before = tensor.detach().clone()
    result = paint(tensor)
    assert not result.requires_grad
    torch.testing.assert_close(tensor.detach(), before, rtol=0, atol=0)
    view = tensor.flip(-1)[:, ::2]
    torch.testing.assert_close(paint(view), paint(view.detach().contiguous()), rtol=0, atol=0)
