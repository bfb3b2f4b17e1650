"""fastgen.Stabilizer: less flicker, nothing else."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_stabilizer_kernels import cut, scene
from tiny import save_tiny

import fastgen
from fastgen import models
from fastgen.graph import Dim, Graph, Input, Node
from fastgen.stabilizer import DEFAULT_STRENGTH, _shifted, stabilizer_strength

SIZE = (96, 128)


@pytest.fixture(scope="module")
def paint(tmp_path_factory: pytest.TempPathFactory) -> fastgen.Stylizer:
    return fastgen.Stylizer(save_tiny(tmp_path_factory.mktemp("style")), backend="cpu")


def pan(count: int = 8, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    picture = scene(*SIZE, seed)
    frames = []
    for t in range(count):
        frame = cut(picture, *SIZE, 20 + 2 * t, 40 - t)  # whole pixels: the truth is a crop
        frames.append(np.clip(frame + rng.normal(0, 3, frame.shape), 0, 255).astype(np.uint8))
    return frames


def error(frames: list[np.ndarray]) -> float:
    """Mean squared difference along the motion of ``pan``."""
    return float(
        np.mean(
            [
                ((b[8:-8, 8:-8].astype(int) - a[7:-9, 10:-6]) ** 2).mean()
                for a, b in itertools.pairwise(frames[2:])
            ]
        )
    )


def test_less_flicker_at_more_strength(paint: fastgen.Stylizer) -> None:
    frames = pan()
    errors = []
    for strength in (0.0, 0.4, 1.0):
        stabilizer = fastgen.Stabilizer(paint, strength=strength)
        errors.append(error([stabilizer(frame) for frame in frames]))
    assert errors[1] < 0.8 * errors[0]
    assert errors[2] < 0.6 * errors[1]


def test_strength_0_is_the_stylizer_to_the_last_bit(paint: fastgen.Stylizer) -> None:
    stabilizer = fastgen.Stabilizer(paint, strength=0)
    for frame in pan(3):
        np.testing.assert_array_equal(stabilizer(frame), paint(frame))
    stabilizer.strength = 0.5  # nothing is known of the frames before
    np.testing.assert_array_equal(stabilizer(frame), paint(frame))
    assert (stabilizer(frame + 1) != paint(frame + 1)).any()


def test_it_starts_again_after_cuts_and_at_other_sizes(paint: fastgen.Stylizer) -> None:
    stabilizer = fastgen.Stabilizer(paint)
    first, second = pan(4), pan(4, seed=5)
    for frames in (first, second, [f[:60, :70] for f in first], first):
        for index, frame in enumerate(frames):
            out = stabilizer(frame)
            assert out.shape == frame.shape
            assert np.array_equal(out, paint(frame)) == (index == 0)
    stabilizer.reset()
    np.testing.assert_array_equal(stabilizer(first[-1]), paint(first[-1]))


def test_what_is_new_is_of_the_new_painting(paint: fastgen.Stylizer) -> None:
    """A patch that appears is not mixed with what was behind it."""
    frames = [pan(1)[0]] * 4
    appeared = frames[0].copy()
    appeared[40:72, 48:96] = 255 - appeared[40:72, 48:96]
    stabilizer = fastgen.Stabilizer(paint, strength=1)
    for frame in frames:
        stabilizer(frame)
    plain = paint(appeared).astype(int)
    change = np.abs(stabilizer(appeared).astype(int) - plain)
    before = np.abs(paint(frames[0]).astype(int) - plain)
    inside = np.s_[46:66, 54:90]
    assert before[inside].mean() > 20
    assert change[inside].mean() < 0.15 * before[inside].mean()


def _steady(paint: fastgen.Stylizer, frames: list[np.ndarray]) -> list[np.ndarray]:
    stabilizer = fastgen.Stabilizer(paint, strength=1e-9)  # nothing is mixed
    return [stabilizer(frame) for frame in frames]


def test_the_grid_of_the_network_goes_along(paint: fastgen.Stylizer) -> None:
    frames = pan()  # by (-2, 1), a network of stride 4
    assert error(_steady(paint, frames)) < 0.5 * error([paint(frame) for frame in frames])
    # What stands still is painted as it is.
    still = [frames[0]] * 3
    for out in _steady(paint, still):
        np.testing.assert_array_equal(out, paint(frames[0]))


def test_shifted_frames() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (37, 42, 3)).astype(np.uint8)
    for x, y in ((0, 1), (3, 0), (3, 2)):
        out = _shifted(frame, x, y, 4)
        assert out.shape == (40, 48, 3)
        around = ((y, 40 - 37 - y), (x, 48 - 42 - x), (0, 0))
        np.testing.assert_array_equal(out, np.pad(frame, around, mode="reflect"))


def test_frames_that_are_watched_count_for_the_grid(paint: fastgen.Stylizer) -> None:
    frames = pan(8)
    one, other = (fastgen.Stabilizer(paint, strength=1e-9) for _ in range(2))
    for frame in frames[:5]:
        one(frame)
        other.watch(frame)
    for frame in frames[5:]:
        np.testing.assert_array_equal(one(frame), other(frame))


@pytest.mark.parametrize("options", [{"stroke_size": 2.6}, {"mask": True}])
def test_where_the_grid_stays_as_much_is_mixed_as_before(
    paint: fastgen.Stylizer, options: dict[str, Any]
) -> None:
    stylizer: Any = paint
    if "mask" in options:
        stylizer = fastgen.Stylizer(["none", paint])
        options = {"mask": np.repeat([[0, 1]], 64, 1).repeat(96, 0).astype(bool)}
    one, other = (fastgen.Stabilizer(stylizer) for _ in range(2))
    other._stride = 1
    for frame in pan(4):
        np.testing.assert_array_equal(one(frame, **options), other(frame, **options))


def test_a_frame_that_was_not_painted_is_not_mixed_in(paint: fastgen.Stylizer) -> None:
    frames = pan(4)
    stabilizer = fastgen.Stabilizer(paint, strength=1)
    for frame in frames[:2]:
        stabilizer(frame)
    with pytest.raises(TypeError, match="speed"):
        stabilizer(frames[2], speed=3)
    grid = stabilizer._grid
    out = stabilizer(frames[3])
    assert stabilizer._grid != grid  # the motion is known, the painting is not
    plain = fastgen.Stabilizer(paint, strength=1e-9)
    for frame in frames:
        wanted = plain(frame)
    np.testing.assert_array_equal(out, wanted)


def test_networks_of_one_size_are_not_shifted() -> None:
    graph = models.create("compact_net", width=4, blocks=1)
    size = (Dim("N"), 3, 96, 128)
    fixed = Graph("fixed", (Input("image", size),), graph.nodes, graph.outputs)
    assert graph.stride() == 4
    assert fixed.stride() is None


def test_engines_for_sizes_get_frames_of_one_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastgen.backends import cpu

    style = save_tiny(tmp_path)
    assert fastgen.Stabilizer(fastgen.Stylizer(style, backend="cpu"))._stride == 4
    monkeypatch.setattr(cpu.Runner, "sized_engines", True, raising=False)  # as TensorRT's
    stylizer = fastgen.Stylizer(style, backend="cpu")
    stabilizer = fastgen.Stabilizer(stylizer)
    for frame in pan(3):
        stabilizer(frame)
    assert (stabilizer._stride, stabilizer._grid) == (1, (0, 0))


def test_stride_of_graphs() -> None:
    assert models.create("compact_net").stride() == 4
    assert models.create("saae_mnist").stride() is None
    size = (Dim("N"), 3, Dim("H", 4, 8), Dim("W", 4, 8))
    kernel = {"out_channels": 3, "kernel": 3, "padding": 1}
    nodes = [
        Node("down", "conv", ("x",), kernel | {"stride": 2}),
        Node("small", "pool", ("down",), {"stride": 3, "kernel": 3, "kind": "max"}),
        Node("up", "upsample", ("down",), {"scale": 2}),
        Node("sum", "add", ("up", "x"), {}),
    ]
    graph = Graph("two", (Input("x", size),), tuple(nodes), {"y": "sum", "z": "small"})
    assert graph.stride() == 6
    mean = Node("mean", "pool", ("down",), {"kind": "global_avg"})
    assert Graph("m", (Input("x", size),), (nodes[0], mean), {"y": "mean"}).stride() is None


def test_options_reach_the_stylizer(paint: fastgen.Stylizer) -> None:
    frame = pan(1)[0]
    options = {"strength": 0.5, "preserve_color": True, "bgr": True}
    out = fastgen.Stabilizer(paint)(frame, **options)
    np.testing.assert_array_equal(out, paint(frame, **options))


def test_frames_are_not_changed_and_need_not_be_contiguous(paint: fastgen.Stylizer) -> None:
    frames = pan(3)
    kept = [f.copy() for f in frames]
    a, b = fastgen.Stabilizer(paint), fastgen.Stabilizer(paint)
    for frame, copy in zip(frames, kept, strict=True):
        wide = np.zeros((*frame.shape[:2], 4), np.uint8)
        wide[..., :3] = frame
        np.testing.assert_array_equal(a(frame), b(wide[..., :3]))
        np.testing.assert_array_equal(frame, copy)


@pytest.mark.parametrize(
    ("frame", "error", "match"),
    [
        (np.zeros((8, 8, 3)), TypeError, "dtype float64"),
        ("a.png", TypeError, "frame is one str"),
        (np.zeros((8, 8), np.uint8), ValueError, r"shape \(8, 8\)"),
        (np.zeros((0, 8, 3), np.uint8), ValueError, "without zeros"),
        (np.zeros((1, 8, 8, 3), np.uint8), ValueError, "shape"),
    ],
)
def test_wrong_frames(
    paint: fastgen.Stylizer, frame: object, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        fastgen.Stabilizer(paint)(frame)


def test_wrong_arguments(paint: fastgen.Stylizer) -> None:
    with pytest.raises(TypeError, match="must be a fastgen"):
        fastgen.Stabilizer("starry_night")  # type: ignore[arg-type]
    for wrong, error in ((1.5, ValueError), ("much", TypeError), (None, TypeError)):
        with pytest.raises(error):
            fastgen.Stabilizer(paint, strength=wrong)  # type: ignore[arg-type]
        with pytest.raises(error, match="stabilize"):
            stabilizer_strength(wrong)
    stabilizer = fastgen.Stabilizer(paint)
    with pytest.raises(ValueError, match="strength"):
        stabilizer.strength = -1
    assert stabilizer.strength == DEFAULT_STRENGTH
    assert [stabilizer_strength(v) for v in (False, True, 0, 1, 0.25)] == [
        0,
        DEFAULT_STRENGTH,
        0,
        1,
        0.25,
    ]
    with pytest.raises(TypeError, match="speed"):
        stabilizer(np.zeros((8, 8, 3), np.uint8), speed=3)


def test_streams(paint: fastgen.Stylizer) -> None:
    frames = pan(4)
    stabilizer = fastgen.Stabilizer(paint, strength=0.5)
    expected = [stabilizer(frame) for frame in frames]
    for got, want in zip(paint.stream(frames, stabilize=0.5), expected, strict=True):
        np.testing.assert_array_equal(got, want)
    for got, frame in zip(paint.stream(frames), frames, strict=True):
        np.testing.assert_array_equal(got, paint(frame))
    with pytest.raises(ValueError, match="stabilize"):
        paint.stream(frames, stabilize=2)


def test_forked_children_have_threads_of_their_own(paint: fastgen.Stylizer) -> None:
    os = pytest.importorskip("os")
    if not hasattr(os, "fork"):
        pytest.skip("this system cannot fork")
    frames = pan(3)
    stabilizer = fastgen.Stabilizer(paint)
    for frame in frames[:2]:
        stabilizer(frame)
    child = os.fork()
    if child == 0:
        os._exit(0 if stabilizer(frames[2]).shape == frames[2].shape else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_clips(tmp_path: Path, paint: fastgen.Stylizer) -> None:
    pytest.importorskip("av")
    from clips import frames, make

    from fastgen import video
    from fastgen.video import _segments

    path = make(tmp_path / "clip.mkv", 30, sound=True)
    stabilizer = fastgen.Stabilizer(paint, strength=0.8)
    with video.read(path) as clip:
        expected = [stabilizer(frame.image) for frame in clip]
    options = {"stabilize": 0.8, "codec": "ffv1"}
    out = tmp_path / "out.mkv"
    video.stylize_video(path, out, paint, **options)
    whole = frames(out)
    assert len(whole) == 30
    difference = [
        np.abs(a.image.astype(int) - b).mean() for a, b in zip(whole, expected, strict=True)
    ]
    assert max(difference) < 3  # 4:2:0 in between
    plain = tmp_path / "plain.mkv"
    video.stylize_video(path, plain, paint, codec="ffv1")
    changed = [
        np.abs(a.image.astype(int) - b.image).mean()
        for a, b in zip(whole, frames(plain), strict=True)
    ]
    assert max(changed) > 3

    def stop(done: int, total: int | None) -> None:
        if done == 19:
            raise KeyboardInterrupt

    again = tmp_path / "again.mkv"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_segments, "FRAMES", 8)
        with pytest.raises(KeyboardInterrupt):
            video.stylize_video(path, again, paint, progress=stop, **options)
        with pytest.raises(ValueError, match=r"another run \(stabilize differ\)"):
            video.stylize_video(path, again, paint, resume=True, codec="ffv1")
        result = video.stylize_video(path, again, paint, resume=True, **options)
    assert (result.frames, result.resumed) == (30, 19)
    # Fewer frames than the stabilizer sees again, so nothing differs.
    for a, b in zip(frames(again), whole, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
