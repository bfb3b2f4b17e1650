"""Types and states at the edge of what an image is: refused in one line, or right."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_api_types import photo
from test_bad_input import refused
from tiny import tiny_checkpoint

import fastgen


@pytest.fixture(scope="module")
def paint() -> fastgen.Stylizer:
    return fastgen.Stylizer(tiny_checkpoint(), threads=2)


def test_array_subclasses_are_their_data(paint: fastgen.Stylizer) -> None:
    image = photo(12, 16)
    masked = np.ma.masked_array(image, mask=image > 100)
    np.testing.assert_array_equal(paint(masked), paint(image))
    # A mask must not hide values that are no colours.
    hidden = np.ma.masked_array(np.full((4, 4, 3), 7.0), mask=True)
    refused(ValueError, r"values in 7\.\.7, must be in 0\.\.1", paint, hidden)
    with pytest.warns(PendingDeprecationWarning):
        matrix = np.matrix(image[:, :, 0])
    np.testing.assert_array_equal(paint(matrix), paint(image[:, :, 0]))


def test_tensors_without_values(paint: fastgen.Stylizer) -> None:
    tensor = torch.rand(3, 4, 4)
    refused(TypeError, "meta device", paint, tensor.to("meta"))
    refused(TypeError, "torch.sparse_coo, not dense", paint, tensor.to_sparse())


def test_tensor_that_is_negated_when_read(paint: fastgen.Stylizer) -> None:
    half = torch.full((3, 4, 4), 0.5)
    lazy = torch.complex(half, -half).conj().imag
    assert lazy.is_neg()
    torch.testing.assert_close(paint(lazy), paint(half), rtol=0, atol=0)


def test_pillow_image_whose_file_is_closed(paint: fastgen.Stylizer, example_photo: Path) -> None:
    with Image.open(example_photo) as image:
        pass
    refused(fastgen.ImageError, "closed before it was read|closed image|closed file", paint, image)


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0\x7f\0\0\0\x08"])
def test_damaged_exif(paint: fastgen.Stylizer, tmp_path: Path, exif: bytes) -> None:
    picture = Image.fromarray(photo(8, 10))
    picture.save(tmp_path / "a.png", exif=exif)
    assert paint(tmp_path / "a.png").tobytes() == paint(picture).tobytes()


def test_damaged_avif(paint: fastgen.Stylizer, tmp_path: Path) -> None:
    path = tmp_path / "a.avif"
    path.write_bytes(b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(200))
    refused(fastgen.ImageError, "truncated or damaged|has no AvifImagePlugin", paint, path)


def test_out_of_memory_names_the_picture(
    paint: fastgen.Stylizer, example_photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import JpegImagePlugin

    def load(self: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", load)
    refused(MemoryError, "coffee.jpg: 600x400 pixels do not fit into memory", paint, example_photo)


def test_names_of_another_type(paint: fastgen.Stylizer) -> None:
    ckpt = tiny_checkpoint()
    for options in ({"backend": ["cpu"]}, {"precision": None}):
        refused(TypeError, "must be a string such as 'auto'", fastgen.Stylizer, ckpt, **options)
        refused(TypeError, "must be a string", fastgen.stylize, photo(4, 4), "x", **options)
    assert fastgen.Stylizer(ckpt, threads=np.int64(1)).info.threads == 1


def test_one_picture_is_not_a_stream(paint: fastgen.Stylizer, example_photo: Path) -> None:
    single = photo(4, 4), torch.rand(3, 4, 4), str(example_photo), example_photo
    for frames in (*single, Image.fromarray(single[0]), 5):
        refused(TypeError, r"frames is one .*; use \[image\] for one", paint.stream, frames)
    assert len(list(paint.stream(np.stack([photo(4, 4)] * 3)))) == 3


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork_while_another_thread_paints(paint: fastgen.Stylizer) -> None:
    image = photo(8, 8)
    expected = paint(image)
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()

    def child() -> None:
        results.put(bool((paint(image) == expected).all()))

    # The state that a fork may find: the lock is held by a thread that the child does not have.
    with paint._lock:
        process = context.Process(target=child)
        process.start()
        process.join(30)
    if process.is_alive():
        process.kill()
        pytest.fail("the child waits for a lock that nobody will release")
    assert results.get() is True
