"""Image files and Pillow images: decoding with limits, conversion to RGB, encoding, saving.

Arrays and tensors are converted in ``fastgen._convert``. Pillow is imported when the first image
needs it, and of Pillow only the plugin of the format that the file's first bytes announce.
"""

from __future__ import annotations

import io
import numbers
import os
import stat
import struct
import zlib
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from fastgen.errors import ImageError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image as PILImage

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "READ_SUFFIXES",
    "WRITE_SUFFIXES",
    "PillowPixels",
    "check_max_pixels",
    "decode",
    "decode_bytes",
    "encode",
    "is_output_suffix",
    "limit_side",
    "pixels_of",
    "save",
    "upright",
]

# 100 megapixels hold every camera photo; above that a small file is more likely an attack.
DEFAULT_MAX_PIXELS = 100_000_000

READ_SUFFIXES = tuple(
    ".jpg .jpeg .jpe .jfif .png .webp .bmp .dib .tif .tiff .gif .ppm .pgm .pbm .avif".split()
)

# Suffix -> Pillow format, plugin module, options. PNG level 1 is nearly as small as level 6 on
# stylised photos (2 % more) at three quarters of the time; chroma subsampling would smear strokes.
_WRITERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    ".png": ("PNG", "PngImagePlugin", {"compress_level": 1}),
    ".jpg": ("JPEG", "JpegImagePlugin", {"quality": 93, "subsampling": 0}),
    ".jpeg": ("JPEG", "JpegImagePlugin", {"quality": 93, "subsampling": 0}),
    ".webp": ("WEBP", "WebPImagePlugin", {"quality": 92}),
    ".bmp": ("BMP", "BmpImagePlugin", {}),
    ".tif": ("TIFF", "TiffImagePlugin", {"compression": "tiff_lzw"}),
    ".tiff": ("TIFF", "TiffImagePlugin", {"compression": "tiff_lzw"}),
    ".ppm": ("PPM", "PpmImagePlugin", {}),
}
WRITE_SUFFIXES = tuple(_WRITERS)
_HOLD_ALPHA = (".png", ".webp", ".tif", ".tiff")

# EXIF orientation -> name of the transposition that turns the picture upright.
_UPRIGHT = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
_ORIENTATION_TAG = 0x0112

# What Pillow's header parsers and decoders raise on damaged files (AVIF: RuntimeError; a file that
# was closed before it was read: AssertionError).
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    ArithmeticError,
    RuntimeError,
    AssertionError,
    struct.error,
    zlib.error,
)


def _plugin_of(head: bytes) -> tuple[str, str] | None:
    """Pillow's plugin module and class for a file that starts with these bytes."""
    if head.startswith(b"\xff\xd8\xff"):
        return "JpegImagePlugin", "JpegImageFile"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PngImagePlugin", "PngImageFile"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebPImagePlugin", "WebPImageFile"
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TiffImagePlugin", "TiffImageFile"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GifImagePlugin", "GifImageFile"
    if head.startswith(b"BM") and len(head) > 14:
        return "BmpImagePlugin", "BmpImageFile"
    if head[:2] in (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6") and head[2:3].isspace():
        return "PpmImagePlugin", "PpmImageFile"
    if head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis"):
        return "AvifImagePlugin", "AvifImageFile"
    return None


def decode(
    path: str | os.PathLike[str],
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    max_side: int | None = None,
) -> PILImage.Image:
    """Reads an image file completely; the first frame of an animation.

    Args:
        path: JPEG, PNG, WebP, BMP, TIFF, GIF, PPM/PGM/PBM or AVIF; recognised by content.
        max_pixels: largest width*height; checked on the header before anything is decoded.
        max_side: a hint: only this many pixels of the longer side are needed. A JPEG is then
            decoded at a fraction of its size, never below the hint.

    Returns:
        A loaded Pillow image as stored (orientation not applied yet).

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError: as for any file.
        ImageError: empty, not an image, damaged or too large.
    """
    check_max_pixels(max_pixels)
    path = os.fspath(path)
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except ValueError as error:  # a NUL byte in the name
        raise ImageError(f"{path!r}: not a file name: {error}") from None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"{path}: is a directory, must be an image file")
    if not stat.S_ISREG(mode):
        raise ImageError(f"{path}: not a regular file")
    with open(path, "rb") as file:
        head = file.read(16)
        file.seek(0)
        if not head:
            raise ImageError(f"{path}: empty file (0 bytes), must be an image")
        return _load(path, file, head, max_pixels, max_side)


def decode_bytes(
    data: bytes | bytearray | memoryview,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    formats: tuple[str, ...] = (),
    name: str = "image",
) -> PILImage.Image:
    """Reads an image that is in memory, with the checks of :func:`decode`.

    Args:
        data: the bytes of the file.
        max_pixels: largest width*height; checked on the header before anything is decoded.
        formats: Pillow's names of the formats that are allowed; all that fastgen reads if empty.
        name: what messages call it.

    Raises:
        ImageError: empty, not an image, a format that is not allowed, damaged or too large.
    """
    check_max_pixels(max_pixels)
    head = bytes(data[:16])
    if not head:
        raise ImageError(f"{name}: empty (0 bytes), must be an image")
    if formats:
        plugin = _plugin_of(head)
        kind = plugin[0].removesuffix("ImagePlugin").upper() if plugin else None
        if kind not in formats:
            found = f"is {kind}" if kind else "is no image that fastgen reads"
            raise ImageError(f"{name}: {found}, must be {' or '.join(formats)}")
    return _load(name, io.BytesIO(data), head, max_pixels, None)


def _load(
    path: str, file: BinaryIO, head: bytes, max_pixels: int, max_side: int | None
) -> PILImage.Image:
    image = _open(path, file, head)
    _check_size(path, image, max_pixels)
    if max_side is not None:
        # Twice the size asked for keeps the later resampling sharp.
        scale = max(image.size) / (2 * max_side)
        if scale > 1:
            image.draft(None, (int(image.width / scale), int(image.height / scale)))
    try:
        image.load()
    except _DAMAGE as error:
        raise ImageError(f"{path}: truncated or damaged: {_line(error)}") from None
    except MemoryError:
        raise _too_large(path, image) from None
    return image


def _too_large(path: str, image: PILImage.Image) -> MemoryError:
    size = f"{image.width}x{image.height}"
    return MemoryError(f"{path}: {size} pixels do not fit into memory; shrink the image first")


def _open(path: str, file: BinaryIO, head: bytes) -> PILImage.Image:
    plugin = _plugin_of(head)
    if plugin is None:
        raise ImageError(
            f"{path}: not an image that fastgen reads (JPEG, PNG, WebP, BMP, TIFF, GIF, PPM, AVIF)"
        )
    from PIL import Image

    try:
        module = import_module(f"PIL.{plugin[0]}")
    except ImportError:
        raise ImageError(f"{path}: this Pillow has no {plugin[0]}; pip install -U pillow") from None
    try:
        # The class itself instead of Image.open: that imports every plugin and has a limit of its
        # own, which only a process-wide setting could raise.
        return getattr(module, plugin[1])(file, path)
    except (*_DAMAGE, MemoryError, Image.DecompressionBombError) as error:
        raise ImageError(f"{path}: truncated or damaged: {_line(error)}") from None


def check_max_pixels(max_pixels: object) -> None:
    """Checks that a limit is a whole number of pixels, at least 1; ValueError otherwise."""
    # numbers.Integral is Python's and numpy's integers, without importing numpy.
    known = isinstance(max_pixels, numbers.Integral) and not isinstance(max_pixels, bool)
    if not known or max_pixels < 1:  # type: ignore[operator]
        raise ValueError(f"max_pixels is {max_pixels!r}, must be an integer of at least 1")


def _check_size(path: str, image: PILImage.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(
            f"{path}: {width}x{height} is {width * height:,} pixels, the limit is "
            f"{max_pixels:,}; for a trusted file raise max_pixels (--max-pixels)"
        )


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


# ---------------------------------------------------------------------------- Pillow <-> pixels


class PillowPixels:
    """The pixels of a Pillow image and what is needed to give the same kind of image back.

    Attributes:
        rgb: uint8 array (H, W, 3), upright, sRGB where the profile could be converted.
    """

    def __init__(self, rgb: np.ndarray, alpha: np.ndarray | None, icc: bytes | None) -> None:
        self.rgb = rgb
        self._alpha = alpha
        self._icc = icc

    def image(self, rgb: np.ndarray) -> PILImage.Image:
        """A Pillow image of new colours (uint8 (H,W,3)) with the old alpha and profile."""
        from PIL import Image

        result = Image.fromarray(rgb)
        if self._alpha is not None:
            result.putalpha(Image.fromarray(self._alpha))
        if self._icc is not None:
            result.info["icc_profile"] = self._icc
        return result


def pixels_of(image: PILImage.Image) -> PillowPixels:
    """Turns a Pillow image of any mode upright and into 8-bit RGB plus alpha.

    Grey becomes RGB; 16-bit grey (``I;16``, and ``I`` in 0..65535) is rounded to 8 bit, ``F`` must
    lie in [0,1]; palettes are resolved; CMYK and wide-gamut pictures are converted to sRGB through
    their embedded profile. The image itself is not changed.

    Raises:
        ImageError: no pixels, damaged, or values outside what the mode can mean.
    """
    import numpy as np

    if 0 in image.size:
        raise ImageError(f"image has {image.width}x{image.height} pixels, must be at least 1x1")
    try:
        image.load()
    except AssertionError:  # Pillow's check that a lazily read file is still open
        raise ImageError(
            "the image's file was closed before it was read; call load() first"
        ) from None
    except _DAMAGE as error:
        raise ImageError(f"image is truncated or damaged: {_line(error)}") from None
    image = upright(image)
    if image.mode == "F" or image.mode.startswith("I"):
        grey, alpha = _deep_grey(image)
        return PillowPixels(np.repeat(grey[:, :, None], 3, axis=2), alpha, None)
    alpha_plane: np.ndarray | None = None
    if image.mode == "La":
        image = image.convert("LA")  # Pillow has no direct way to RGBA
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        alpha_plane = np.array(image.getchannel("A"))
    image, icc = _to_srgb(image)
    return PillowPixels(np.array(image), alpha_plane, icc)


def upright(image: PILImage.Image) -> PILImage.Image:
    """Turns an image as its EXIF orientation says."""
    from PIL import Image

    try:
        turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION_TAG, 1))
    except _DAMAGE:  # damaged EXIF says nothing; the picture itself is whole
        return image
    return image if turn is None else image.transpose(getattr(Image.Transpose, turn))


def _deep_grey(image: PILImage.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """8-bit grey (H,W) of a 16-bit, 32-bit or float image, and alpha for a transparent value."""
    import numpy as np

    values = np.asarray(image)
    low, high = values.min(), values.max()
    top = 1.0 if image.mode == "F" else 65535.0
    if not (low >= 0 and high <= top):
        raise ImageError(
            f"image of mode {image.mode!r} has values in {low:g}..{high:g}, must be in 0..{top:g}; "
            "scale it"
        )
    grey = np.rint(values * np.float32(255.0 / top)).astype(np.uint8)
    key = image.info.get("transparency")
    alpha = np.where(values == key, 0, 255).astype(np.uint8) if isinstance(key, int) else None
    return grey, alpha


def _to_srgb(image: PILImage.Image) -> tuple[PILImage.Image, bytes | None]:
    """An RGB image and the profile that still describes it (None: sRGB)."""
    profile = image.info.get("icc_profile")
    if image.mode == "RGBA":
        image = image.convert("RGB")
    if not profile or image.mode not in ("RGB", "L", "CMYK"):
        return image.convert("RGB"), None
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if image.mode == "RGB" and "sRGB" in ImageCms.getProfileDescription(source):
            return image, profile
        target = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
        if converted is not None:
            return converted, None
    except (ImageCms.PyCMSError, ImportError, OSError, ValueError, TypeError):
        pass  # a broken profile, or a Pillow without colour management: keep the numbers
    return image.convert("RGB"), profile if image.mode == "RGB" else None


def limit_side(image: PILImage.Image, max_side: int) -> PILImage.Image:
    """Shrinks an image so that its longer side is at most ``max_side`` (>= 1); never enlarges."""
    from PIL import Image

    longest = max(image.size)
    if longest <= max_side:
        return image
    width, height = (max(1, round(side * max_side / longest)) for side in image.size)
    if "transparency" in image.info or image.mode == "PA":
        image = image.convert("RGBA")
    elif image.mode in ("P", "1"):
        image = image.convert("RGB")  # colour indices cannot be averaged
    # Deep grey has no clamping, so it takes a filter that cannot overshoot its range.
    deep = image.mode == "F" or image.mode.startswith("I")
    kind = Image.Resampling.BILINEAR if deep else Image.Resampling.LANCZOS
    return image.resize((width, height), kind, reducing_gap=3.0)


# ---------------------------------------------------------------------------- writing


def is_output_suffix(path: str | os.PathLike[str]) -> bool:
    """Whether the file name ends in a format that :func:`save` writes."""
    return Path(path).suffix.lower() in _WRITERS


def encode(image: PILImage.Image, suffix: str) -> bytes:
    """Encodes an image.

    Args:
        image: RGB or RGBA.
        suffix: one of ``WRITE_SUFFIXES``; case does not matter.

    Raises:
        ImageError: an unknown suffix, or transparency that the format cannot hold.
    """
    from PIL import Image

    suffix = suffix.lower()
    if suffix not in _WRITERS:
        what = repr(suffix) if suffix else "a file without suffix"
        raise ImageError(f"cannot write {what}; use one of {' '.join(WRITE_SUFFIXES)}")
    kind, plugin, options = _WRITERS[suffix]
    if image.mode == "RGBA" and suffix not in _HOLD_ALPHA:
        low = image.getchannel("A").getextrema()[0]
        if low != 255:
            raise ImageError(
                f"{kind} cannot hold the transparency of the image; write .png instead"
            )
        image = image.convert("RGB")
    import_module(f"PIL.{plugin}")
    buffer = io.BytesIO()
    write = Image.SAVE.get(kind)
    if write is None:
        raise ImageError(f"this Pillow cannot write {kind}; pip install -U pillow")
    try:
        image.save(buffer, kind, **options)
    except (OSError, ValueError) as error:  # a WebP above 16383 px, say
        raise ImageError(f"cannot encode {image.width}x{image.height} as {kind}: {error}") from None
    return buffer.getvalue()


def save(image: PILImage.Image, path: str | os.PathLike[str]) -> None:
    """Writes an image file; it appears complete or not at all.

    The format follows the suffix. Missing folders are created. A symbolic link is followed.

    Raises:
        ImageError: the format cannot hold the image, or ``path`` is no regular file.
        OSError: the file cannot be written; nothing is left behind.
    """
    from fastgen.checkpoint import atomic_write

    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        what = "a directory" if target.is_dir() else "not a regular file"
        raise ImageError(f"{path}: is {what}, cannot be replaced by an image")
    data = encode(image, Path(path).suffix)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(target, data)
    except OSError as error:
        # The temporary name would only confuse: say what could not be written.
        failure = type(error)(f"{path}: cannot be written: {error.strerror or error}")
        failure.errno = error.errno
        raise failure from None
