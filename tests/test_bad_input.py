"""Everything wrong that users hand in ends in one line that says what, the limit and the remedy."""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_api_types import photo
from tiny import save_tiny, tiny_checkpoint

import fastgen
from fastgen import backends
from fastgen.graph import Dim, Graph, Input, Node
from fastgen.image import decode, pixels_of
from fastgen.styles import _unknown


@pytest.fixture(scope="module")
def paint() -> fastgen.Stylizer:
    return fastgen.Stylizer(tiny_checkpoint())


def refused(error: type[Exception], text: str, call: Any, *args: Any, **options: Any) -> None:
    """The call must raise exactly this family of error, in one line that contains the text."""
    with pytest.raises(error) as caught:
        call(*args, **options)
    message = str(caught.value)
    assert re.search(text, message), message
    assert "\n" not in message
    assert len(message) < 400


# ---------------------------------------------------------------------------- files


def test_missing_file(paint: fastgen.Stylizer, tmp_path: Path) -> None:
    refused(FileNotFoundError, r"gone\.jpg: no such file", paint, tmp_path / "gone.jpg")
    refused(FileNotFoundError, "no such file", paint, "")
    refused(ValueError, "not a file name", paint, "a\0b.jpg")


def test_directory(paint: fastgen.Stylizer, tmp_path: Path) -> None:
    refused(IsADirectoryError, "is a directory, must be an image", paint, tmp_path)


def test_empty_file(paint: fastgen.Stylizer, tmp_path: Path) -> None:
    path = tmp_path / "empty.png"
    path.touch()
    refused(fastgen.ImageError, r"empty\.png: empty file \(0 bytes\)", paint, path)


@pytest.mark.parametrize("text", ["hello", "P", "BM", "not a picture at all\n" * 50, "P9\n1 1\n"])
def test_text_named_jpg(paint: fastgen.Stylizer, tmp_path: Path, text: str) -> None:
    path = tmp_path / "notes.jpg"
    path.write_text(text)
    refused(ValueError, r"notes\.jpg: not an image that fastgen reads \(JPEG, PNG", paint, path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.97])
def test_truncated(paint: fastgen.Stylizer, tmp_path: Path, kind: str, share: float) -> None:
    path = tmp_path / "cut"
    Image.fromarray(photo(64, 64)).save(path, kind)
    whole = path.read_bytes()
    path.write_bytes(whole[: max(16, int(len(whole) * share))])
    refused(fastgen.ImageError, r"cut: truncated or damaged", paint, path)


def test_damaged_bytes_never_crash(tmp_path: Path) -> None:
    path = tmp_path / "bad"
    rng = np.random.default_rng(0)
    messages = []
    for kind in ("JPEG", "PNG", "WEBP", "TIFF", "GIF"):
        Image.fromarray(photo(32, 32)).save(path, kind)
        whole = bytearray(path.read_bytes())
        for _ in range(12):
            broken = whole.copy()
            for where in rng.integers(12, len(broken), 6):
                broken[where] = rng.integers(0, 256)
            path.write_bytes(broken)
            try:
                rgb = pixels_of(decode(path, max_pixels=1_000_000)).rgb
            except fastgen.ImageError as error:
                messages.append(str(error))
            else:
                assert rgb.dtype == np.uint8
    assert len(messages) > 10
    assert not any("\n" in message for message in messages)


def png_header(width: int, height: int) -> bytes:
    """A valid PNG header that claims any size, with a few bytes of content."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + content + chunk(b"IEND", b"")


def test_decompression_bomb(paint: fastgen.Stylizer, tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(30_000, 30_000))
    refused(
        fastgen.ImageError,
        r"30000x30000 is 900,000,000 pixels, the limit is 100,000,000; .* raise max_pixels",
        paint,
        path,
    )
    refused(ValueError, "900,000,000 pixels", fastgen.stylize, path, tiny_checkpoint())


def test_the_limit_can_be_moved(paint: fastgen.Stylizer, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(photo(20, 50)).save(path)
    refused(
        fastgen.ImageError, "50x20 is 1,000 pixels, the limit is 999", paint, path, max_pixels=999
    )
    assert paint(path, max_pixels=1000).size == (50, 20)
    assert paint(path, max_pixels=np.int64(1000)).size == (50, 20)
    # Above Pillow's own limit too: the header is accepted and only then is the content short.
    path.write_bytes(png_header(14_000, 14_000))
    refused(fastgen.ImageError, "truncated or damaged", paint, path, max_pixels=200_000_000)
    for value in (0, -1, 2.5, True, "9"):
        for image in (path, photo(4, 4)):
            refused(
                ValueError, "max_pixels is .* integer of at least 1", paint, image, max_pixels=value
            )


def test_truncated_pillow_image(paint: fastgen.Stylizer, tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    Image.fromarray(photo(64, 64)).save(path)
    path.write_bytes(path.read_bytes()[:900])
    with Image.open(path) as image:
        refused(fastgen.ImageError, "truncated or damaged", paint, image)
    refused(fastgen.ImageError, "0x5 pixels, must be at least 1x1", paint, Image.new("RGB", (0, 5)))
    wild = Image.fromarray(np.full((4, 4), 3.0, np.float32))
    refused(fastgen.ImageError, r"mode 'F' has values in 3\.\.3, must be in 0\.\.1", paint, wild)
    wild = Image.fromarray(np.full((4, 4), -5, np.int32))
    refused(fastgen.ImageError, r"mode 'I' has values in -5\.\.-5", paint, wild)


# ---------------------------------------------------------------------------- arrays and tensors


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite(paint: fastgen.Stylizer, bad: float) -> None:
    image = photo() / 255.0
    image[3, 4, 1] = bad
    refused(ValueError, "contains NaN or infinity, must be finite", paint, image)
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    refused(ValueError, "contains NaN or infinity, must be finite", paint, tensor)


@pytest.mark.parametrize(("scale", "remedy"), [(255.0, "divide by 255"), (1.1, "clip or scale")])
def test_floats_outside_the_range(paint: fastgen.Stylizer, scale: float, remedy: str) -> None:
    image = photo() / 255.0 * scale
    refused(ValueError, rf"values in 0\.\.{scale:g}, must be in 0\.\.1; {remedy}", paint, image)
    refused(ValueError, "must be in 0..1", paint, torch.from_numpy(image).permute(2, 0, 1))
    refused(ValueError, r"values in -0\.5\.\.", paint, photo() / 255.0 - 0.5)


@pytest.mark.parametrize("channels", [2, 5, 36])
def test_wrong_channels(paint: fastgen.Stylizer, channels: int) -> None:
    image = np.zeros((24, 36, channels), np.uint8)
    refused(ValueError, rf"has {channels} channels .* must be 1, 3 or 4", paint, image)
    tensor = torch.zeros((channels, 24, 36), dtype=torch.uint8)
    refused(ValueError, rf"has {channels} channels .* must be 1, 3 or 4", paint, tensor)


def test_channels_in_the_wrong_place(paint: fastgen.Stylizer) -> None:
    refused(ValueError, "move the channels to the end", paint, np.zeros((3, 24, 36), np.uint8))
    refused(ValueError, "move the channels first", paint, torch.zeros(24, 36, 3))


@pytest.mark.parametrize("shape", [(), (5,), (2, 2, 5, 5, 3)])
def test_wrong_rank(paint: fastgen.Stylizer, shape: tuple[int, ...]) -> None:
    refused(ValueError, "array has the shape", paint, np.zeros(shape, np.uint8))
    refused(ValueError, "tensor has the shape", paint, torch.zeros(shape))


@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 0, 3), (0, 5, 5, 3), (0, 0)])
def test_empty(paint: fastgen.Stylizer, shape: tuple[int, ...]) -> None:
    refused(ValueError, "an empty image has no pixels", paint, np.zeros(shape, np.uint8))
    if len(shape) > 2:
        refused(ValueError, "an empty image has no pixels", paint, torch.zeros(shape))


@pytest.mark.parametrize(
    ("dtype", "remedy"),
    [
        (object, "stack images of one size"),
        (bool, "multiply a mask by 255"),
        (np.int64, "astype"),
        (np.int8, "astype"),
        (np.uint32, "astype"),
        (np.complex64, "float32"),
        ("U3", "float32"),
        ("datetime64[s]", "float32"),
    ],
)
def test_wrong_dtypes(paint: fastgen.Stylizer, dtype: Any, remedy: str) -> None:
    refused(TypeError, f"must be uint8, .*{remedy}", paint, np.zeros((4, 4, 3), dtype))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.complex64])
def test_wrong_tensor_dtypes(paint: fastgen.Stylizer, dtype: torch.dtype) -> None:
    refused(TypeError, "tensor has the dtype", paint, torch.zeros((3, 4, 4), dtype=dtype))


@pytest.mark.parametrize("image", [None, 5, b"a.jpg", object(), {"a": 1}, np.uint8(3)])
def test_not_an_image(paint: fastgen.Stylizer, image: object) -> None:
    refused(TypeError, "must be a path, a Pillow image, a numpy array", paint, image)


def test_list_of_images(paint: fastgen.Stylizer) -> None:
    refused(TypeError, "type list, .*Stylizer.stream", paint, [photo(), photo()])


def test_bgr_is_not_for_files(paint: fastgen.Stylizer, example_photo: Path) -> None:
    refused(ValueError, "bgr=True is for arrays", paint, example_photo, bgr=True)
    refused(ValueError, "bgr=True is for arrays", paint, Image.new("RGB", (4, 4)), bgr=True)


# ---------------------------------------------------------------------------- options


@pytest.mark.parametrize("strength", [-0.01, 1.01, 200, float("nan"), float("inf")])
def test_strength_outside(paint: fastgen.Stylizer, strength: float) -> None:
    refused(ValueError, r"strength is .*, must be in 0\.\.1", paint, photo(), strength=strength)


@pytest.mark.parametrize("strength", [True, "0.5", None, np.bool_(True), [0.5]])
def test_strength_of_another_type(paint: fastgen.Stylizer, strength: object) -> None:
    refused(TypeError, "strength is .*, must be a number", paint, photo(), strength=strength)


def test_flags_of_another_type(paint: fastgen.Stylizer) -> None:
    for name, value in (("preserve_color", "yes"), ("bgr", 1)):
        refused(TypeError, f"{name} is {value!r}, must be True", paint, photo(), **{name: value})


def test_unknown_backend_and_precision() -> None:
    ckpt = tiny_checkpoint()
    refused(
        ValueError, "unknown backend 'gpu'; known: auto, ", fastgen.Stylizer, ckpt, backend="gpu"
    )
    for backend in ("auto", *backends.names()):
        if backend == "auto" or backends.why_not(backend) is None:
            refused(
                ValueError,
                "precision 'fp7'",
                fastgen.Stylizer,
                ckpt,
                backend=backend,
                precision="fp7",
            )
    for threads in (0, -1, 1.5, True):
        refused(ValueError, "threads is ", fastgen.Stylizer, ckpt, threads=threads)


# ---------------------------------------------------------------------------- styles


def test_unknown_style_names_the_nearest() -> None:
    shipped = ["great_wave", "starry_night", "starry_night.small"]
    for wrong in ("stary_night", "starry-night", "Starry Night", "starry", "starrynight"):
        assert "did you mean 'starry_night'?" in _unknown(wrong, shipped)
    assert "did you mean 'great_wave'?" in _unknown("wave", shipped)
    assert "`fastgen styles`" in _unknown("qqq", shipped)
    refused(ValueError, "unknown style 'no_such_style'", fastgen.load_style, "no_such_style")
    refused(ValueError, "unknown style ''", fastgen.stylize, photo(), "")
    for name in fastgen.list_styles():
        refused(
            ValueError, f"did you mean '{re.escape(name)}'", fastgen.load_style, name[:-1] + "_"
        )


def test_style_files(tmp_path: Path, example_photo: Path) -> None:
    missing = tmp_path / "no.safetensors"
    refused(FileNotFoundError, "no such checkpoint", fastgen.load_style, missing)
    refused(FileNotFoundError, "no such checkpoint", fastgen.load_style, str(missing))
    refused(IsADirectoryError, "is a directory", fastgen.load_style, tmp_path)
    refused(fastgen.CheckpointError, "not a safetensors", fastgen.load_style, example_photo)
    for value in (None, 5, ["a"]):
        refused(TypeError, "must be a name, a path or a Checkpoint", fastgen.load_style, value)


def test_checkpoint_without_metadata() -> None:
    ckpt = fastgen.Checkpoint(tiny_checkpoint().graph, tiny_checkpoint().weights)
    refused(fastgen.CheckpointError, "metadata 'kind' is None", fastgen.Stylizer, ckpt)
    ckpt.meta["kind"] = "style"
    refused(fastgen.CheckpointError, "'input_range' is None", fastgen.stylize, photo(), ckpt)


def test_style_that_changes_the_size() -> None:
    graph = Graph(
        "bigger",
        (Input("image", (Dim("N"), 3, Dim("H"), Dim("W"))),),
        (Node("up", "upsample", ("image",), {"scale": 2}),),
        {"stylized": "up"},
    )
    refused(
        fastgen.CheckpointError,
        r"turns the shape \(1, 3, 1, 1\) into \(1, 3, 2, 2\); a style keeps it",
        *(fastgen.Stylizer, fastgen.Checkpoint(graph, {}, tiny_checkpoint().meta)),
    )


def test_checkpoint_of_another_kind(tmp_path: Path) -> None:
    path = save_tiny(tmp_path, kind="superres")
    text = "is of the kind 'superres', a 'style' is needed"
    refused(fastgen.CheckpointError, text, fastgen.load_style, path)
    refused(ValueError, text, fastgen.stylize, photo(), path)
    refused(ValueError, text, fastgen.Stylizer, tiny_checkpoint(kind="superres"))
