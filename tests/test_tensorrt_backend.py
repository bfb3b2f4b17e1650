"""The tensorrt backend's Python, from frames to launches, on a stand-in for GPU and library."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import tiny_checkpoint

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from stand_in_tensorrt import ImageKernels, StandIn

import fastgen
from fastgen import backends
from fastgen.backends import ImageIO, _switching, _tensorrt_lib, tensorrt
from fastgen.backends._engines import EngineCache
from fastgen.errors import BackendUnavailable, FastgenError, GraphError
from fastgen.graph import Dim, Graph, Input, Node

CKPT = tiny_checkpoint()
PHOTO = np.random.default_rng(0).integers(0, 256, (2, 21, 18, 3), np.uint8)


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> StandIn:
    stand_in = StandIn()
    monkeypatch.setattr(_tensorrt_lib, "extension", lambda: stand_in)
    monkeypatch.setattr(_tensorrt_lib, "_opened", None)
    monkeypatch.setattr(tensorrt, "_cuda", lambda: ImageKernels(stand_in.streams))
    monkeypatch.setenv("FASTGEN_ENGINE_CACHE", str(tmp_path / "engines"))
    return stand_in


def runner(precision: str = "fp32") -> tensorrt.Runner:
    return tensorrt.compile(CKPT.graph, CKPT.weights, precision)


def reference(image: np.ndarray, io: ImageIO) -> np.ndarray:
    torch = backends.get("torch").compile(CKPT.graph, CKPT.weights)
    result: np.ndarray = torch.run(image, io)
    return result


def test_controls(trt: StandIn) -> None:
    """Several styles, strokes and a part of the colours, as on the reference."""
    mask = np.linspace(0, 1, 18)[None].repeat(21, 0)
    photo = PHOTO.astype(np.float32) / 255
    for options in (
        {"mask": mask, "feather": 2, "strength": 0.7},
        {"mask": mask, "stroke_size": 16, "preserve_color": 0.4},
    ):
        results = []
        for backend in ("tensorrt", "torch"):
            parts = [
                fastgen.Stylizer(c, backend=backend, precision="fp32")
                for c in (CKPT, tiny_checkpoint(seed=1))
            ]
            results.append(fastgen.Stylizer(parts)(photo, **options))
        assert np.abs(results[0] - results[1]).max() <= 1e-4


@pytest.mark.parametrize(
    "io",
    [ImageIO(), ImageIO(strength=0.4, preserve_color=True, bgr=True)],
    ids=["plain", "mixed, colour, bgr"],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_frames(trt: StandIn, io: ImageIO, dtype: Any) -> None:
    photo = PHOTO if dtype == np.uint8 else PHOTO.astype(np.float32) / 255
    expected = reference(photo, io)
    tensor_rt = runner()
    for turn in range(4):  # one by one, captured, replayed twice
        frame = np.roll(photo, turn, axis=2)
        result = tensor_rt.run(frame, io)
        expected = reference(frame, io)
        assert (result.shape, result.dtype) == (frame.shape, frame.dtype)
        difference = np.abs(result.astype(np.float64) - expected)
        assert difference.max() <= (1 if dtype == np.uint8 else 1e-4)
        assert expected.std() > 0
    assert trt.graphs == 1
    assert len(trt.builds) == 1
    out = np.empty_like(photo)
    assert tensor_rt.run(photo, io, out=out) is out
    assert np.array_equal(out, tensor_rt.run(photo, io))


def test_a_replay_is_one_launch(trt: StandIn) -> None:
    tensor_rt = runner()
    for _ in range(3):
        tensor_rt.run(PHOTO, ImageIO())
    before = trt.streams.launches
    tensor_rt.run(PHOTO, ImageIO())
    assert trt.streams.launches == before + 1


def test_tensors(trt: StandIn) -> None:
    x = np.random.default_rng(1).uniform(0, 255, (1, 3, 24, 16)).astype(np.float32)
    torch = backends.get("torch").compile(CKPT.graph, CKPT.weights)
    tensor_rt = runner()
    for _ in range(3):
        np.testing.assert_allclose(tensor_rt.run(x), torch.run(x), atol=1e-2)
        x = x + 1
    named = tensor_rt.run({"image": x})
    assert list(named) == ["stylized"]
    np.testing.assert_allclose(named["stylized"], torch.run(x), atol=1e-2)


def test_several_inputs_and_outputs(trt: StandIn) -> None:
    n = Dim("N")
    graph = Graph(
        "two",
        (Input("image", (n, 3, Dim("H", 2, 4), Dim("W", 2, 4))), Input("vector", (n, 3))),
        (
            Node("spread", "broadcast", ("vector", "image")),
            Node("sum", "add", ("spread", "image")),
            Node("mean", "pool", ("sum",), {"kind": "global_avg"}),
        ),
        {"sum": "sum", "mean": "mean"},
    )
    rng = np.random.default_rng(2)
    inputs = {
        "image": rng.normal(size=(2, 3, 6, 4)).astype(np.float32),
        "vector": rng.normal(size=(2, 3)).astype(np.float32),
    }
    tensor_rt = tensorrt.compile(graph, {}, "fp32")
    result = tensor_rt.run(inputs)
    total = inputs["image"] + inputs["vector"][:, :, None, None]
    np.testing.assert_allclose(result["sum"], total, rtol=1e-6)
    np.testing.assert_allclose(result["mean"], total.mean((2, 3), keepdims=True), rtol=1e-5)
    assert trt.builds[0]["profiles"][0]["vector"] == ((1, 3), (4, 3), (4, 3))
    with pytest.raises(ValueError, match="one output"):
        tensor_rt.run(inputs, out=total)


class OnGpu:
    """An array that says that it is on a GPU."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self.array.__array_interface__ | {"strides": self.array.strides}


def test_gpu_arrays_are_used_in_place(trt: StandIn) -> None:
    io = ImageIO()
    result = OnGpu(np.zeros_like(PHOTO))
    tensor_rt = runner()
    assert tensor_rt.run(OnGpu(PHOTO), io, out=result) is result
    assert np.abs(result.array.astype(int) - reference(PHOTO, io)).max() <= 1
    x = np.random.default_rng(1).uniform(0, 255, (1, 3, 24, 16)).astype(np.float32)
    y = OnGpu(np.zeros_like(x))
    assert tensor_rt.run(OnGpu(x), out=y) is y
    torch = backends.get("torch").compile(CKPT.graph, CKPT.weights)
    np.testing.assert_allclose(y.array, torch.run(x), atol=1e-2)
    assert trt.graphs == 0
    with pytest.raises(TypeError, match="must be given with out="):
        tensor_rt.run(OnGpu(PHOTO), io)
    with pytest.raises(ValueError, match="not contiguous"):
        tensor_rt.run(OnGpu(PHOTO[:, ::2]), io, out=OnGpu(np.zeros_like(PHOTO[:, ::2])))


def test_another_stream_waits_for_the_one_before(
    trt: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The activations of an engine are used by one stream at a time."""
    tensor_rt = runner()
    streams = [0, 0, trt.Stream().handle, 0]
    give = tensor_rt._on_device
    for stream in streams:
        monkeypatch.setattr(tensor_rt, "_on_device", lambda v, s=stream: (give(v)[0], s))
        tensor_rt.run(OnGpu(PHOTO), ImageIO(), out=OnGpu(np.zeros_like(PHOTO)))
    assert trt.waited == [0, streams[2]]


def test_tensors_of_torch_must_be_on_the_gpu(trt: StandIn) -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(ValueError, match=r"on cpu, this runner on cuda:0"):
        runner().run(torch.zeros(1, 3, 16, 16))


def test_one_engine_for_smaller_sizes_and_another_for_larger(trt: StandIn) -> None:
    tensor_rt = runner()
    for side in (40, 200, 16):
        tensor_rt.run(np.zeros((1, side, side, 3), np.uint8), ImageIO())
    assert len(trt.builds) == 1
    tensor_rt.run(np.zeros((1, 300, 16, 3), np.uint8), ImageIO())
    assert [b["profiles"][0]["image"][2] for b in trt.builds] == [
        (1, 3, 256, 256),
        (1, 3, 512, 256),
    ]


def test_engines_are_kept_on_disk(trt: StandIn) -> None:
    io = ImageIO()
    first = runner("fp16").run(PHOTO, io)
    assert np.array_equal(runner("fp16").run(PHOTO, io), first)
    assert len(trt.builds) == 1
    runner("fp32").run(PHOTO, io)
    assert [b["tf32"] for b in trt.builds] == [True, False]
    assert trt.builds[1]["timing_cache"] == b"timings"
    trt.refuse.add(b"plan 1")  # say, after an update of the driver
    assert np.array_equal(runner("fp16").run(PHOTO, io), first)
    assert len(trt.builds) == 3
    assert len(EngineCache().entries()) == 2
    trt.info["version"] = "11.2.0.1"
    runner("fp16").run(PHOTO, io)
    assert len(trt.builds) == 4


def test_a_launch_that_fails(trt: StandIn) -> None:
    tensor_rt = runner()
    expected = tensor_rt.run(PHOTO, ImageIO())
    trt.fail_enqueue = True
    with pytest.raises(RuntimeError, match="cannot run the engine: the words of TensorRT"):
        tensor_rt.run(PHOTO, ImageIO())  # in the capture, which must be ended
    trt.fail_enqueue = False
    assert trt.graphs == 0
    for _ in range(3):
        assert np.array_equal(tensor_rt.run(PHOTO, ImageIO()), expected)
    assert trt.graphs == 1


def test_wrong_inputs(trt: StandIn) -> None:
    tensor_rt = runner()
    with pytest.raises(ValueError, match=r"must be \(N,H,W,3\)"):
        tensor_rt.run(np.zeros((2, 2, 4), np.uint8), ImageIO())
    with pytest.raises(TypeError, match="must be float32"):
        tensor_rt.run(np.zeros((1, 3, 16, 16)))
    with pytest.raises(ValueError, match="out has the shape"):
        tensor_rt.run(PHOTO, ImageIO(), out=np.empty((1, 2, 3, 3), np.uint8))
    with pytest.raises(GraphError, match="weights do not fit"):
        tensorrt.compile(CKPT.graph, {}, "fp32")
    with pytest.raises(ValueError, match="has no precision 'int8'"):
        tensorrt.compile(CKPT.graph, CKPT.weights, "int8")
    tensor_rt.close()
    with pytest.raises(ValueError, match="closed"):
        tensor_rt.run(PHOTO, ImageIO())


@pytest.mark.parametrize("lacks", ["module", "device", "kernels", "library"])
def test_why_not(trt: StandIn, monkeypatch: pytest.MonkeyPatch, lacks: str) -> None:
    def missing() -> Any:
        raise ImportError("No module named 'x'")

    assert tensorrt.why_not() is None
    assert backends.choose("auto")[0] == "tensorrt"
    remedy = {"module": "TENSORRT_ROOT", "device": "nvidia-smi"}
    remedy |= {"kernels": "FASTGEN_CUDA=ON", "library": "FASTGEN_TENSORRT_LIB"}
    if lacks == "module":
        monkeypatch.setattr(_tensorrt_lib, "extension", missing)
    elif lacks == "device":
        trt.device_why_not = "there is no NVIDIA GPU; see nvidia-smi"
    elif lacks == "kernels":
        monkeypatch.setattr(tensorrt, "_cuda", missing)
    else:

        def not_there(path: str) -> None:
            raise BackendUnavailable(f"{path}: cannot open shared object file: no such file")

        monkeypatch.setattr(_tensorrt_lib, "_opened", None)
        monkeypatch.setattr(trt, "library", lambda: None)
        monkeypatch.setattr(trt, "open_library", not_there, raising=False)
        monkeypatch.setattr(_tensorrt_lib, "find_spec", lambda name: None)
        monkeypatch.delenv("FASTGEN_TENSORRT_LIB", raising=False)
    reason = tensorrt.why_not()
    assert reason is not None
    assert remedy[lacks] in reason
    assert "\n" not in reason
    with pytest.raises(BackendUnavailable, match="backend 'tensorrt' cannot run here"):
        backends.get("tensorrt")
    with pytest.raises(BackendUnavailable, match="backend 'tensorrt' cannot run here"):
        runner()
    assert backends.choose("auto")[0] != "tensorrt"


# ---------------------------------------------------------------------- auto


def wait_for(stylizer: fastgen.Stylizer, backend: str) -> np.ndarray:
    """Frames until one comes from a backend; its result."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        result: np.ndarray = stylizer(PHOTO[:1])
        if stylizer.info.backend == backend:
            return result
        time.sleep(0.01)
    pytest.fail(f"{backend} never served: {stylizer.info.why}")


def test_auto_serves_while_an_engine_is_built(
    trt: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "fastgen")
    begun, go_on = threading.Event(), threading.Event()

    def build() -> None:
        begun.set()
        assert go_on.wait(60)

    trt.before_build = build
    stylizer = fastgen.Stylizer(CKPT)
    slow = backends.choose("auto", skip=("tensorrt",))[0]
    assert stylizer.info.backend == slow
    first = stylizer(PHOTO[:1])
    assert not begun.is_set()  # a single picture starts no build
    stylizer(PHOTO[:1])
    assert begun.wait(60)
    for _ in range(3):
        assert np.array_equal(stylizer(PHOTO[:1]), first)
    info = stylizer.info
    assert (info.backend, info.precision) != ("tensorrt", "fp16")
    assert f"prepares an engine for 20x24, {slow} serves meanwhile" in info.why
    go_on.set()
    result = wait_for(stylizer, "tensorrt")
    info = stylizer.info
    assert (info.backend, info.precision, info.threads) == ("tensorrt", "fp16", 1)
    assert "its engine for 20x24 is there" in info.why
    error = np.mean((result.astype(np.float64) - first) ** 2)
    assert 10 * np.log10(255**2 / max(error, 1e-9)) >= 40
    assert len(trt.builds) == 1
    said = [r.getMessage() for r in caplog.records if r.name == "fastgen"]
    assert [("serves meanwhile" in s, "is there" in s) for s in said] == [
        (True, False),
        (False, True),
    ]


def test_auto_goes_on_when_an_engine_cannot_be_built(
    trt: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise RuntimeError("no memory\nat all")

    trt.before_build = fail
    stylizer = fastgen.Stylizer(CKPT)
    first = stylizer(PHOTO[:1])
    for _ in range(3):
        assert np.array_equal(stylizer(PHOTO[:1]), first)
        threads = [t for t in threading.enumerate() if t.name == "fastgen-engine"]
        for thread in threads:
            thread.join(60)
    assert "failed for 20x24 (no memory at all)" in stylizer.info.why
    assert [r.levelname for r in caplog.records if r.name == "fastgen"] == ["WARNING"]
    with pytest.raises(FastgenError, match="no memory at all"):
        fastgen.Stylizer(CKPT, backend="tensorrt")(PHOTO[:1])


def test_auto_finds_an_engine_of_an_earlier_process(trt: StandIn) -> None:
    fastgen.Stylizer(CKPT, backend="tensorrt")(PHOTO[:1])
    assert len(trt.builds) == 1
    wait_for(fastgen.Stylizer(CKPT), "tensorrt")
    assert len(trt.builds) == 1


def test_a_build_is_stopped_when_python_ends(trt: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    stop = threading.Event()
    monkeypatch.setattr(_switching, "_stop", stop)
    monkeypatch.setattr(trt, "before_build", stop.set)
    stylizer = fastgen.Stylizer(CKPT)
    for _ in range(2):
        stylizer(PHOTO[:1])
    _switching._at_exit()
    assert not [t for t in threading.enumerate() if t.name == "fastgen-engine"]
    assert "was stopped" in stylizer.info.why
    assert EngineCache().entries() == []


def test_auto_takes_a_backend_that_has_the_precision(trt: StandIn) -> None:
    assert backends.choose("auto", "fp16")[0] == "tensorrt"
    name, why = backends.choose("auto", "bf16")
    assert name != "tensorrt"
    assert "backend 'tensorrt' has no precision 'bf16'" in why
    with pytest.raises(ValueError, match="has no precision 'int3'"):
        backends.choose("auto", "int3")
    # Nothing else has fp16: frames wait for the engine.
    assert fastgen.Stylizer(CKPT, precision="fp16").info.backend == "tensorrt"


def test_a_named_backend_waits_for_its_engine(trt: StandIn) -> None:
    stylizer = fastgen.Stylizer(CKPT, backend="tensorrt")
    assert stylizer.info.why == "it was named"
    stylizer(PHOTO[:1])
    assert len(trt.builds) == 1
