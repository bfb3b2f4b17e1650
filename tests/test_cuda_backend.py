"""Runs of the cuda backend on the emulated card: memory, arrays, tiles, choosing it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from cpu_cases import image_graph
from cuda_cases import STYLE, conv, picture, runner
from cuda_emulation.backend import emulate

import fastgen
from fastgen import backends, models
from fastgen.backends import ImageIO, _cuda_runner, _cuda_tune, cuda
from fastgen.errors import BackendUnavailable
from fastgen.graph import Graph

torch = pytest.importorskip("torch")

# ---------------------------------------------------------------------- runs


@pytest.fixture
def small_net() -> Graph:
    return models.create("compact_net", width=4, blocks=0)


def test_results_in_the_callers_memory(emulated: ModuleType, small_net: Graph) -> None:
    ours = runner(small_net, "fp16")
    photo = picture(1, 12, 8)
    expected = ours.run(photo, STYLE)
    out = np.zeros((1, 12, 16, 3), np.uint8)[:, :, ::2]
    assert ours.run(photo, STYLE, out=out) is out
    assert np.array_equal(out, expected)
    x = np.ones((1, 3, 8, 8), np.float32)
    single = ours.run(x)
    given_out = np.empty_like(single)
    assert ours.run(x, out=given_out) is given_out
    assert np.array_equal(single, given_out)
    with pytest.raises(ValueError, match="must be a writable array"):
        ours.run(photo, STYLE, out=np.zeros((1, 8, 8, 3), np.uint8))
    with pytest.raises(TypeError, match="int64"):
        ours.run(np.ones((1, 3, 8, 8), np.int64))


def test_a_captured_graph_serves_every_strength(emulated: ModuleType, small_net: Graph) -> None:
    ours = runner(small_net, "fp16")
    photo = picture(1, 8, 8)
    launched = native_launches(emulated)
    results = [ours.run(photo, ImageIO(strength=s)) for s in (1.0, 0.5, 0.0)]
    assert len(ours._replays) == 1
    assert native_launches(emulated) > launched
    assert np.array_equal(results[2], photo)
    half = results[0].astype(int) + photo.astype(int)
    assert np.abs(results[1].astype(int) * 2 - half).max() <= 2


def native_launches(module: ModuleType) -> int:
    return int(module.counts()["launches"])


def test_kinds_of_input_are_bounded(
    emulated: ModuleType, small_net: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cuda_runner, "_PLANS", 2)
    ours = runner(small_net, "fp16")
    first = ours.run(picture(1, 8, 8), STYLE)
    for width in (8, 12, 16, 8):
        ours.run(picture(1, 8, width), STYLE)
    assert len(ours._replays) == 2
    assert ours.memory_bytes > 0
    assert np.array_equal(ours.run(picture(1, 8, 8), STYLE), first)
    ours.close()
    assert ours.memory_bytes == 0
    with pytest.raises(ValueError, match="closed"):
        ours.run(picture(1, 8, 8), STYLE)


def test_too_little_memory(emulated: ModuleType, small_net: Graph) -> None:
    ours = runner(small_net, "fp16")
    expected = ours.run(picture(1, 8, 8), STYLE)
    emulated.set_memory_limit(1 << 14)
    try:
        with pytest.raises(MemoryError, match=r"GPU's memory is too small.*take smaller images"):
            ours.run(picture(1, 256, 256), STYLE)
    finally:
        emulated.set_memory_limit(1 << 40)
    assert np.array_equal(ours.run(picture(1, 8, 8), STYLE), expected)


def test_streams_of_frames(emulated: ModuleType, small_net: Graph) -> None:
    ours = runner(small_net, "fp16")
    photos = [np.roll(picture(1, 8, 8 + 4 * (i > 3)), i, 1) for i in range(6)]
    expected = [ours.run(photo, STYLE) for photo in photos]
    got = list(ours.frames(photos, STYLE))
    assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))
    some = ours.frames(photos, STYLE)
    assert np.array_equal(next(some), expected[0])
    some.close()
    lanes = [lane for replay in ours._replays.values() for lane in replay._lanes]
    assert len(lanes) > 2
    assert not any(lane.busy for lane in lanes)
    assert list(ours.frames([], STYLE)) == []


class OnCard:
    """An array of some library on the emulated card."""

    def __init__(self, array: np.ndarray, module: Any, strides: Any = None) -> None:
        self.array, self.shape, self.dtype = array, array.shape, array.dtype
        module.declare(array.ctypes.data, array.nbytes, True, "an array of the caller")
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (array.ctypes.data, False),
            "strides": strides,
        }


def test_arrays_of_other_libraries(emulated: ModuleType, small_net: Graph) -> None:
    """Read and written in place, in both layouts; results of our own where none are given."""
    ours = runner(small_net, "fp16")
    photo = picture(2, 9, 7)
    expected = ours.run(photo, STYLE)
    given_photo = OnCard(photo.copy(), emulated)
    for _ in range(3):  # captured, and at another address every time
        out = OnCard(np.zeros_like(photo), emulated)
        assert ours.run(given_photo, STYLE, out=out) is out
        assert np.array_equal(out.array, expected)
    planes = OnCard(np.ascontiguousarray(photo.transpose(0, 3, 1, 2)), emulated)
    out = OnCard(np.zeros_like(planes.array), emulated)
    ours.run_planar(planes, STYLE, out)
    assert np.array_equal(out.array.transpose(0, 2, 3, 1), expected)
    x = OnCard(np.ones((1, 3, 8, 8), np.float32), emulated)
    result = ours.run(x)
    assert result.shape == (1, 3, 8, 8)
    facts = result.__cuda_array_interface__
    host = np.empty(result.shape, np.float32)
    emulated.copy(host.ctypes.data, facts["data"][0], host.nbytes, 0)
    assert np.array_equal(host, ours.run(x.array))
    with pytest.raises(ValueError, match="not contiguous"):
        ours.run(OnCard(x.array, emulated, strides=(768, 256, 4, 32)))
    with pytest.raises(TypeError, match="is list, must be"):
        ours.run([x])
    with pytest.raises(ValueError, match="on cpu, this runner on cuda:0"):
        ours.run(torch.ones(1, 3, 8, 8))


def test_dlpack(emulated: ModuleType, small_net: Graph) -> None:
    """Our results are DLPack arrays, and those of others are read in place."""
    ours = runner(small_net, "fp16")
    x = OnCard(np.ones((1, 3, 8, 8), np.float32), emulated)
    result = ours.run(x)
    assert result.__dlpack_device__() == (2, 0)
    address, shape, strides, code, bits = emulated.from_dlpack(result.__dlpack__())
    assert address == result.__cuda_array_interface__["data"][0]
    assert (tuple(shape), strides, code, bits) == ((1, 3, 8, 8), None, 2, 32)

    class Other:
        shape, dtype = result.shape, result.dtype

        def __dlpack_device__(self) -> tuple[int, int]:
            return result.__dlpack_device__()

        def __dlpack__(self, stream: int) -> Any:
            return result.__dlpack__(stream=stream)

    again = ours.run(Other())
    host = np.empty(again.shape, np.float32)
    emulated.copy(host.ctypes.data, again.__cuda_array_interface__["data"][0], host.nbytes, 0)
    first = ours.run(np.ones((1, 3, 8, 8), np.float32))
    assert np.array_equal(host, ours.run(first))
    with pytest.raises(ValueError, match="DLPack"):
        emulated.from_dlpack(3)


# ---------------------------------------------------------------------- tiles


@pytest.fixture
def few_tiles(monkeypatch: pytest.MonkeyPatch) -> Graph:
    """One convolution, and few rectangles to choose from."""
    monkeypatch.setattr(_cuda_tune, "_WIDTHS", (4,))
    monkeypatch.setattr(_cuda_tune, "_REPEATS", 1)
    return image_graph(4, conv("c", "x"))


def test_tiles_are_measured_once(emulated: ModuleType, few_tiles: Graph, tmp_path: Path) -> None:
    x = np.ones((1, 4, 8, 8), np.float32)
    expected = runner(few_tiles, "fp16").run(x)

    def run() -> int:
        before = native_launches(emulated)
        got = runner(few_tiles, "fp16", tune=True, tiles=tmp_path).run(x)
        assert np.allclose(got, expected, atol=1e-2)
        return native_launches(emulated) - before

    measured, known = run(), run()
    assert known < measured / 3
    (file,) = tmp_path.iterdir()
    data = json.loads(file.read_text())
    assert data["gpu"] == "Emulated card"
    assert data["fastgen"] == fastgen.__version__
    assert all(0 <= tile < emulated.conv_tiles for tile, _ in data["tiles"].values())
    for damage in ("{", '{"tiles": 3}', json.dumps(data | {"driver": 1})):
        file.write_text(damage)
        assert run() > known
        assert json.loads(file.read_text())["driver"] == data["driver"]
    impossible = {key: [4, 20] for key in data["tiles"]}
    file.write_text(json.dumps(data | {"tiles": impossible}))
    assert run() > known


def test_a_folder_that_cannot_be_written(
    emulated: ModuleType, few_tiles: Graph, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    ours = runner(few_tiles, "fp16", tune=True, tiles=tmp_path / "file" / "below")
    assert ours.run(np.ones((1, 4, 8, 8), np.float32)).shape == (1, 8, 8, 8)


# ---------------------------------------------------------------------- choosing it


def test_why_not(native: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    emulate(native, monkeypatch)
    assert cuda.why_not() is None
    assert cuda.why_not(3) == "there is no CUDA device 3, only 1; take 0..0"
    with pytest.raises(ValueError, match="has no precision 'int8'; has fp32, fp16, bf16"):
        cuda.precision_why_not("int8")
    module = emulate(native, monkeypatch, devices=0)
    assert cuda.why_not() == "no CUDA device: no driver; install NVIDIA's driver"
    module.device_count = lambda: (1, None)
    module.device = lambda index: {"name": "Old", "capability": (7, 5)}
    assert cuda.why_not() == "Old has compute capability 7.5, 8.0 or newer is needed"
    monkeypatch.setitem(sys.modules, "fastgen._cuda", None)
    monkeypatch.delattr(fastgen, "_cuda")
    reason = cuda.why_not()
    assert reason is not None
    assert "FASTGEN_CUDA=ON pip install ." in reason


def test_a_named_backend_without_a_device(native: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    emulate(native, monkeypatch, devices=0)
    with pytest.raises(BackendUnavailable, match="backend 'cuda' cannot run here: no CUDA device"):
        fastgen.Stylizer(fastgen.list_styles()[0], backend="cuda")
    assert backends.choose("auto")[0] != "cuda"


def test_auto_takes_the_card(emulated: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTGEN_TILE_CACHE", "/nonexistent")
    name, why = backends.choose("auto")
    assert name == "cuda"
    assert "tensorrt" in why
    assert backends.choose("auto", "bf16")[0] == "cuda"
