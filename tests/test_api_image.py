"""Image files and Pillow images: modes, orientation, transparency, profiles, formats."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from test_api_types import photo
from tiny import tiny_checkpoint

import fastgen
from fastgen import image as image_module


@pytest.fixture(scope="module")
def paint() -> fastgen.Stylizer:
    return fastgen.Stylizer(tiny_checkpoint())


def array(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


def test_path_and_pillow_give_pillow(
    paint: fastgen.Stylizer, example_photo: Path, tmp_path: Path
) -> None:
    with Image.open(example_photo) as image:
        image.load()
    expected = paint(array(image))
    for given in (str(example_photo), example_photo, image):
        result = paint(given)
        assert isinstance(result, Image.Image)
        assert result.mode == "RGB"
        assert result.size == image.size
        np.testing.assert_array_equal(array(result), expected)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBX", "CMYK", "YCbCr", "HSV"])
def test_other_modes_become_rgb(paint: fastgen.Stylizer, mode: str) -> None:
    image = Image.fromarray(photo()).convert(mode)
    before = image.tobytes()
    result = paint(image)
    assert result.mode == "RGB"
    np.testing.assert_array_equal(array(result), paint(array(image.convert("RGB"))))
    assert image.tobytes() == before
    assert image.mode == mode


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "La"])
def test_alpha_is_kept(paint: fastgen.Stylizer, mode: str) -> None:
    opaque = Image.fromarray(photo()).convert("P" if mode == "PA" else "RGB")
    alpha = Image.fromarray(np.linspace(0, 255, 24 * 36).reshape(24, 36).astype(np.uint8))
    image = opaque.convert("PA" if mode == "PA" else "LA" if mode in ("LA", "La") else "RGBA")
    image.putalpha(alpha)
    image = image.convert(mode) if mode in ("RGBa", "La") else image
    result = paint(image)
    assert result.mode == "RGBA"
    np.testing.assert_array_equal(array(result.getchannel("A")), array(alpha))


def test_transparent_palette_and_colour(paint: fastgen.Stylizer, tmp_path: Path) -> None:
    palette = Image.fromarray(photo()).quantize(16)
    palette.save(tmp_path / "p.png", transparency=3)
    result = paint(tmp_path / "p.png")
    assert result.mode == "RGBA"
    np.testing.assert_array_equal(array(result)[..., 3] == 0, array(palette) == 3)

    image = photo()
    image[5:9, 5:9] = (1, 2, 3)
    Image.fromarray(image).save(tmp_path / "k.png", transparency=(1, 2, 3))
    result = paint(tmp_path / "k.png")
    np.testing.assert_array_equal(array(result)[..., 3] == 0, (image == (1, 2, 3)).all(-1))


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I", "F"])
def test_deep_grey(paint: fastgen.Stylizer, mode: str) -> None:
    values = photo()[:, :, 0].astype(np.uint16) * 257
    if mode == "F":
        image = Image.fromarray((values / 65535.0).astype(np.float32))
    elif mode == "I":
        image = Image.fromarray(values.astype(np.int32))
    else:
        order = ">u2" if mode == "I;16B" else "<u2"
        image = Image.frombytes(mode, (36, 24), values.astype(order).tobytes())
    assert image.mode == mode
    np.testing.assert_array_equal(array(paint(image)), paint(photo()[:, :, 0]))


def test_deep_grey_file(paint: fastgen.Stylizer, tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(photo()[:, :, 0].astype(np.uint16) * 257).save(path)
    np.testing.assert_array_equal(array(paint(path)), paint(photo()[:, :, 0]))


# What each EXIF orientation says the stored array is, compared with the upright picture.
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_exif_orientation(
    paint: fastgen.Stylizer, tmp_path: Path, orientation: int, suffix: str
) -> None:
    upright = photo()
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned{suffix}"
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    stored.save(path, exif=exif, **({"lossless": True} if suffix == ".webp" else {}))
    expected = paint(upright)
    np.testing.assert_array_equal(array(paint(path)), expected)
    with Image.open(path) as opened:
        result = paint(opened)
    np.testing.assert_array_equal(array(result), expected)
    assert result.getexif().get(0x0112, 1) == 1, "the result must not be turned again"


def test_wide_gamut_is_converted_and_srgb_is_kept(tmp_path: Path) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = Image.fromarray(photo())
    image.info["icc_profile"] = srgb
    pixels = image_module.pixels_of(image)
    np.testing.assert_array_equal(pixels.rgb, photo())
    assert pixels.image(pixels.rgb).info["icc_profile"] == srgb

    # A profile that is sRGB with red and blue exchanged: the conversion must exchange them back.
    swapped = bytearray(srgb)
    tags = {bytes(swapped[o : o + 4]): o for o in range(132, 132 + 12 * 20, 12)}
    red, blue = tags[b"rXYZ"] + 4, tags[b"bXYZ"] + 4
    swapped[red : red + 8], swapped[blue : blue + 8] = srgb[blue : blue + 8], srgb[red : red + 8]
    name = bytes(swapped).find("sRGB".encode("utf-16-be"))
    while name >= 0:
        swapped[name : name + 2] = "x".encode("utf-16-be")
        name = bytes(swapped).find("sRGB".encode("utf-16-be"))
    image.info["icc_profile"] = bytes(swapped)
    pixels = image_module.pixels_of(image)
    assert "icc_profile" not in pixels.image(pixels.rgb).info
    assert np.abs(pixels.rgb.astype(int) - photo()[:, :, ::-1].astype(int)).max() <= 2

    image.info["icc_profile"] = b"not a profile"
    np.testing.assert_array_equal(image_module.pixels_of(image).rgb, photo())


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".tiff", ".ppm", ".PNG"])
def test_lossless_formats_round_trip(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "new" / f"a{suffix}"
    image_module.save(Image.fromarray(photo()), path)
    np.testing.assert_array_equal(image_module.pixels_of(image_module.decode(path)).rgb, photo())
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".webp"])
def test_lossy_formats_are_close(tmp_path: Path, suffix: str) -> None:
    smooth = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)[..., None].repeat(3, -1)
    path = tmp_path / f"a{suffix}"
    image_module.save(Image.fromarray(smooth), path)
    result = image_module.pixels_of(image_module.decode(path)).rgb
    assert np.abs(result.astype(int) - smooth).max() <= 6


def test_transparency_is_never_lost_silently(tmp_path: Path) -> None:
    image = Image.fromarray(photo()).convert("RGBA")
    image_module.save(image, tmp_path / "opaque.jpg")  # nothing to lose
    image.putpixel((0, 0), (1, 2, 3, 254))
    with pytest.raises(fastgen.ImageError, match=r"JPEG cannot hold the transparency.*\.png"):
        image_module.save(image, tmp_path / "lost.jpg")
    for suffix in (".png", ".webp", ".tif"):
        image_module.save(image, tmp_path / f"kept{suffix}")
        back = image_module.decode(tmp_path / f"kept{suffix}")
        assert back.getchannel("A").getextrema() == (254, 255)


def test_format_is_recognised_by_content(paint: fastgen.Stylizer, tmp_path: Path) -> None:
    for kind in ("PNG", "BMP", "GIF", "TIFF", "PPM", "WEBP", "JPEG"):
        path = tmp_path / "picture.jpg"
        Image.fromarray(photo()).save(path, kind)
        assert paint(path).size == (36, 24)


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.fromarray(photo(seed=s)).quantize(64) for s in range(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    result = image_module.pixels_of(image_module.decode(tmp_path / "a.gif")).rgb
    np.testing.assert_array_equal(result, array(frames[0].convert("RGB")))


def test_limit_side(tmp_path: Path) -> None:
    image = Image.fromarray(photo(100, 300))
    assert image_module.limit_side(image, 300) is image
    assert image_module.limit_side(image, 150).size == (150, 50)
    assert image_module.limit_side(image, 1).size == (1, 1)
    assert image_module.limit_side(Image.new("RGB", (1, 5000)), 100).size == (1, 100)
    for mode in ("1", "P", "PA", "LA", "I;16", "F", "CMYK"):
        if mode == "PA":
            other = image.convert("P").convert(mode)
        elif mode in ("I;16", "F"):
            bits = np.where(photo(100, 300)[..., 0] > 127, 1.0, 0.0)
            top = 65535 if mode == "I;16" else 1
            other = Image.fromarray((bits * top).astype("uint16" if top > 1 else "float32"))
        else:
            other = image.convert(mode)
        small = image_module.limit_side(other, 60)
        assert image_module.pixels_of(small).rgb.shape == (20, 60, 3)


def test_large_jpeg_is_decoded_small(tmp_path: Path) -> None:
    path = tmp_path / "big.jpg"
    Image.new("RGB", (1600, 800), (10, 200, 30)).save(path)
    decoded = image_module.decode(path, max_side=100)
    assert 200 <= max(decoded.size) < 1600
    small = image_module.limit_side(decoded, 100)
    assert small.size == (100, 50)


def test_save_follows_links_and_keeps_the_old_file_on_failure(tmp_path: Path) -> None:
    target = tmp_path / "real.png"
    (tmp_path / "link.png").symlink_to(target)
    image_module.save(Image.new("RGB", (2, 2)), tmp_path / "link.png")
    assert target.is_file()
    assert (tmp_path / "link.png").is_symlink()
    before = target.read_bytes()
    with pytest.raises(fastgen.ImageError):
        image_module.save(Image.new("RGBA", (2, 2)), tmp_path / "real.jpg")
    assert target.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["link.png", "real.png"]
    mask = os.umask(0)
    os.umask(mask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~mask


def test_pillow_from_memory(paint: fastgen.Stylizer, example_photo: Path) -> None:
    image = Image.open(io.BytesIO(example_photo.read_bytes()))
    assert paint(image).size == (600, 400)
