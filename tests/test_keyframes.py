"""Keyframes, and controls of videos and of the command line."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_api_types import photo, read
from tiny import save_tiny

import fastgen
from fastgen import video
from fastgen._keyframes import blend_from_text, read_keyframes, track, track_from_text
from fastgen.cli import app

LEFT = np.zeros((48, 64), bool)
LEFT[:, 32:] = True


@pytest.fixture(scope="module")
def styles(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("styles")
    return [str(save_tiny(folder, f"s{seed}", seed=seed)) for seed in (0, 1)]


# ---------------------------------------------------------------------------- values over time


@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=6, unique=True).map(sorted),
    st.data(),
)
def test_linear_in_between(times: list[int], data: Any) -> None:
    values = [data.draw(st.floats(0, 1)) for _ in times]
    pairs = list(zip(times, values, strict=True))
    asked = [-1.0, *times, *np.linspace(0, 61, 40)]
    expected = np.interp(asked, times, values)
    text = ",".join(f"{t}:{v!r}" for t, v in pairs)
    for made in (
        track("x", pairs),
        track("x", dict(pairs)),
        track("x", {str(t): v for t, v in pairs}),
        track_from_text("x", text),
    ):
        np.testing.assert_allclose([made.at(t) for t in asked], expected, atol=1e-12)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([], "no keyframe"),
        ([(0, 1, 2)], "must be a pair"),
        ([3], "must be a pair"),
        ([(1, 0), (1, 1)], "times must rise"),
        ([(2, 0), (1, 1)], "times must rise"),
        ([(-1, 0)], "time -1, must be finite"),
        ([(float("inf"), 0)], "must be finite"),
        ([(0, 1.2)], r"value 1\.2, must be in 0\.\.1"),
        ([(0, float("nan"))], r"must be in 0\.\.1"),
        ({"x": 1}, "time 'x', must be a number"),
    ],
)
def test_keyframes_that_are_none(value: Any, text: str) -> None:
    with pytest.raises(ValueError, match=f"strength .*{text}"):
        track("strength", value)


def test_keyframes_of_another_type() -> None:
    for value in ("0:1", None, {0: "1"}, {0: None}, [(True, 1)]):
        with pytest.raises(TypeError, match="strength"):
            track("strength", value)


def test_blends_as_text() -> None:
    tracks = blend_from_text("--blend", "a=0:1,3:0,b/c=d.safetensors=0:0,3:1,e=2")
    assert {k: v.as_list() for k, v in tracks.items()} == {
        "a": [[0, 1], [3, 0]],
        "b/c=d.safetensors": [[0, 0], [3, 1]],
        "e": [[0, 2]],
    }
    for text, fault in (
        ("a", "must be STYLE=WEIGHT"),
        ("=1", "a weight without a style"),
        ("a=1,a=2", "names a style twice"),
        ("a=x", "value 'x'"),
        ("a=-1", "must be finite and at least 0"),
        ("a=0:1,2:0,b=0:1,1:0", "all weights are 0 at 2 s"),
        ("a=0,b=0", "all weights are 0"),
        ("a=1,2", "SECONDS:VALUE|value '1,2'"),
    ):
        with pytest.raises(ValueError, match=fault):
            blend_from_text("--blend", text)


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "k.json"
    path.write_text('{"strength": {"0": 0, "2.5": 1}, "blend": {"a": 1, "b": [[0, 0], [1, 2]]}}')
    found = read_keyframes(path)
    assert found["strength"].as_list() == [[0, 0], [2.5, 1]]
    assert found["blend"]["b"].at(0.5) == 1
    for text, fault in (
        ('{"strenght": 1}', "unknown name 'strenght'"),
        ('{"strength": {"0": 1, "0": 2}}', "'0' is there twice"),
        ('{"strength": ', "is no JSON"),
        ("[1]", "holds a list, must be an object"),
        ('{"blend": 3}', "blend must be an object"),
        ('{"blend": {"a": 0}}', "all weights are 0"),
        ('{"strength": {"0": 3}}', "strength has the value 3"),
        ("\xff", "is no JSON"),
        ('{"strength": 1' + "0" * 400 + "}", "strength has the value inf"),
        (" " * 10_000_001, "is larger than"),
    ):
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(ValueError, match=f"k.json: .*{fault}"):
            read_keyframes(path)
    with pytest.raises(TypeError, match="must be a path or a dict"):
        read_keyframes(3)


# ---------------------------------------------------------------------------- videos


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    pytest.importorskip("av")
    from clips import make

    return make(tmp_path / "clip.mkv", 20)


def _painted(clip: Path, stylizer: Any, options: Any, **window: Any) -> list[np.ndarray]:
    """What each frame should be: options is a function of the second."""
    with video.read(clip, **window) as frames:
        return [stylizer(f.image, **options(float(f.time))) for f in frames]


def _same(out: Path, expected: list[np.ndarray]) -> None:
    """FFV1 keeps YCbCr, so a colour may be off by the conversion."""
    with video.read(out) as frames:
        found = [frame.image for frame in frames]
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert np.abs(a.astype(int) - b).mean() < 1.5


@pytest.mark.parametrize("window", [{}, {"start": 0.3}, {"fps": 10}], ids=["all", "trim", "fps"])
def test_strength_and_color_follow_the_clip(
    clip: Path, styles: list[str], tmp_path: Path, window: dict[str, Any]
) -> None:
    out = tmp_path / "%03d.png"
    keys = {"preserve_color": {"0.2": 0, "0.7": 1}}
    done = fastgen.stylize_video(
        clip, out, styles[0], strength={0: 0, 0.5: 1}, keyframes=keys, **window
    )

    def options(t: float) -> dict[str, Any]:
        return {
            "strength": float(np.interp(t, [0, 0.5], [0, 1])),
            "preserve_color": float(np.interp(t, [0.2, 0.7], [0, 1])),
        }

    expected = _painted(clip, fastgen.Stylizer(styles[0]), options, **window)
    assert done.frames == len(expected)
    files = sorted(tmp_path.glob("*.png"))
    for path, picture in zip(files, expected, strict=True):
        np.testing.assert_array_equal(read(path), picture)


def test_a_blend_over_time(clip: Path, styles: list[str], tmp_path: Path) -> None:
    a, b = styles
    mix = fastgen.Stylizer({a: 1, b: 1})

    def options(t: float) -> dict[str, Any]:
        return {"blend": {a: 1.0, b: float(np.interp(t, [0.1, 0.6], [0, 2]))}}

    expected = _painted(clip, mix, options)
    tracks = {a: 1, b: [(0.1, 0), (0.6, 2)]}
    calls: list[dict[str, Any]] = [
        {"blend": tracks},
        {"style": tracks},
        {"keyframes": {"blend": tracks}},
        {"style": mix, "blend": tracks},
    ]
    for number, call in enumerate(calls):
        folder = tmp_path / str(number)
        fastgen.stylize_video(clip, folder / "%03d.png", **call)
        for path, picture in zip(sorted(folder.iterdir()), expected, strict=True):
            np.testing.assert_array_equal(read(path), picture)


def test_several_styles_are_stabilized_as_one_picture(
    clip: Path, styles: list[str], tmp_path: Path
) -> None:
    mix = fastgen.Stylizer(["none", *styles])
    index = LEFT * 1 + (np.arange(48) > 20)[:, None] * LEFT
    options: dict[str, Any] = {"mask": fastgen.Mask(index, feather=2), "preserve_color": 0.5}
    with video.read(clip, end=0.3) as opened:
        images = [frame.image for frame in opened]
    plain = [mix(image, **options) for image in images]
    stabilizer = fastgen.Stabilizer(mix, strength=1)
    steady = [stabilizer(image, **options) for image in images]
    np.testing.assert_array_equal(steady[0], plain[0])
    assert (steady[-1] != plain[-1]).any()
    stream = mix.stream(images, stabilize=1.0, **options)
    np.testing.assert_array_equal(list(stream), steady)
    out = tmp_path / "%03d.png"
    folder = tmp_path / "blend"
    fastgen.stylize_video(
        clip, out, mix, mask=index, feather=2, preserve_color=0.5, stabilize=1.0, end=0.3
    )
    for path, picture in zip(sorted(tmp_path.glob("*.png")), steady, strict=True):
        np.testing.assert_array_equal(read(path), picture)
    weights = {styles[0]: {0: 1, 0.5: 0}, styles[1]: 1}
    fastgen.stylize_video(clip, folder / "%03d.png", weights, stabilize=True, end=0.3)
    assert len(list(folder.iterdir())) == len(images)


def test_masks_of_videos(clip: Path, styles: list[str], tmp_path: Path) -> None:
    mix = fastgen.Stylizer(["none", styles[0]])
    for number in range(12):  # fewer than frames: the last one stays
        Image.fromarray(np.roll(LEFT, 4 * number, axis=1)).save(tmp_path / f"m{number:03d}.png")
    fixed = _painted(clip, mix, lambda _: {"mask": LEFT, "feather": 3}, start=0.2)
    moving = _painted(
        clip,
        mix,
        lambda t: {"mask": np.roll(LEFT, 4 * min(round(t * 25), 11), axis=1), "feather": 3},
        start=0.2,
    )
    masks: list[Any] = [LEFT, tmp_path / "m000.png", fastgen.Mask(LEFT, feather=3)]
    masks.append(tmp_path / "m%03d.png")
    for number, mask in enumerate(masks):
        folder = tmp_path / f"out{number}"
        fastgen.stylize_video(
            clip,
            folder / "%03d.png",
            ["none", styles[0]],
            mask=mask,
            feather=0 if number == 2 else 3,
            start=0.2,
        )
        expected = moving if number == 3 else fixed
        for path, picture in zip(sorted(folder.iterdir()), expected, strict=True):
            np.testing.assert_array_equal(read(path), picture)
    # A clip as a mask: its own lightness.
    out = tmp_path / "own.mkv"
    fastgen.stylize_video(clip, out, ["none", styles[0]], mask=clip, codec="ffv1")
    luma = np.array([0.299, 0.587, 0.114])
    with video.read(clip) as frames:
        own = [mix(f.image, mask=f.image @ luma / 255) for f in frames]
    _same(out, own)


def test_resume_with_keyframes(
    clip: Path, styles: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastgen.video import _segments

    monkeypatch.setattr(_segments, "FRAMES", 4)
    options: dict[str, Any] = {
        "style": ["none", styles[0]],
        "mask": LEFT,
        "feather": 2,
        "strength": {0: 0, 0.7: 1},
        "codec": "ffv1",
    }

    def stop(done: int, total: int | None) -> None:
        if done == 9:
            raise KeyboardInterrupt

    whole, out = tmp_path / "whole.mkv", tmp_path / "out.mkv"
    fastgen.stylize_video(clip, whole, **options)
    with pytest.raises(KeyboardInterrupt):
        fastgen.stylize_video(clip, out, progress=stop, **options)
    others = ({"strength": {0: 0, 0.6: 1}}, {"mask": ~LEFT}, {"feather": 4}, {"stroke_size": 6})
    for other in others:
        with pytest.raises(ValueError, match=r"another run \((controls|strength) differ\)"):
            fastgen.stylize_video(clip, out, resume=True, **(options | other))
    result = fastgen.stylize_video(clip, out, resume=True, **options)
    assert (result.frames, result.resumed) == (20, 9)
    with video.read(whole) as a, video.read(out) as b:
        for one, other_frame in zip(a, b, strict=True):
            assert one.time == other_frame.time
            np.testing.assert_array_equal(one.image, other_frame.image)


def test_videos_that_do_not_fit(clip: Path, styles: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out.mkv"
    a, b = styles
    cases: list[tuple[dict[str, Any], str]] = [
        ({"style": [a, b]}, "need a mask"),
        ({"style": a, "mask": LEFT}, "mask is for several styles"),
        ({"style": a, "mask": clip}, "mask is for several styles"),
        ({"style": [a, b, "none"], "mask": clip}, "is a clip, which is for two styles, not 3"),
        ({"style": [a, b], "mask": tmp_path / "gone.png"}, "no such file"),
        ({"style": a, "blend": {a: 1, b: 1}}, "leave style out"),
        ({"style": {a: 1, b: 1}, "blend": {a: 1, b: 1}}, "leave one out"),
        ({"blend": {a: 1, b: 1}, "keyframes": {"blend": {a: 1, b: 1}}}, "leave one out"),
        ({"blend": {a: {0: 1, 1: 0}, b: {0: 0, 1: 0}}}, "all weights are 0 at 1 s"),
        ({"style": a, "strength": 0.5, "keyframes": {"strength": 1}}, "given twice"),
        ({"style": a, "stroke_size": 0}, "stroke_size is 0"),
        ({"style": a, "strength": {0: 2}}, "strength has the value 2"),
        ({"style": a, "strength": 2}, r"strength is 2, must be in 0\.\.1"),
        ({"style": [a, b], "mask": "-"}, "standard input"),
    ]
    for options, text in cases:
        with pytest.raises((ValueError, OSError), match=text):
            fastgen.stylize_video(clip, out, **options)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clip.mkv"]


def test_times_of_frames_are_the_clips(tmp_path: Path, styles: list[str]) -> None:
    """Keyframes count seconds as the clip has them, also where its frames are not even."""
    pytest.importorskip("av")
    from clips import make

    times = [Fraction(t, 1000) for t in (0, 40, 200, 240, 500, 1000)]
    clip = make(tmp_path / "uneven.mkv", times)
    fastgen.stylize_video(clip, tmp_path / "%d.png", styles[0], strength={0: 0, 1: 1})
    expected = _painted(clip, fastgen.Stylizer(styles[0]), lambda t: {"strength": min(t, 1.0)})
    for number, picture in enumerate(expected):
        path = sorted(tmp_path.glob("*.png"), key=lambda p: int(p.stem))[number]
        np.testing.assert_array_equal(read(path), picture)


# ---------------------------------------------------------------------------- command line


def run(command: str, *words: object) -> Result:
    return CliRunner().invoke(app, [command, *map(str, words)])


def test_command_for_photos(styles: list[str], tmp_path: Path) -> None:
    a, b = styles
    image = photo(48, 64)
    Image.fromarray(image).save(tmp_path / "in.png")
    Image.fromarray(LEFT * np.uint8(255)).save(tmp_path / "m.png")
    Image.fromarray(~LEFT).save(tmp_path / "n.png")
    base = [tmp_path / "in.png", "-o", tmp_path / "out.png"]
    masked = fastgen.stylize(image, [a, b], mask=LEFT, feather=3)
    cases: list[tuple[list[Any], np.ndarray]] = [
        (["-s", a, "-s", b, "--mask", tmp_path / "m.png", "--feather", 3], masked),
        (
            ["-s", a, "-s", "none", "--mask", tmp_path / "n.png", "--mask", tmp_path / "m.png"],
            fastgen.stylize(image, [a, "none"], mask=LEFT),
        ),
        (["--blend", f"{a}=0.7,{b}=0.3"], fastgen.stylize(image, {a: 0.7, b: 0.3})),
        (
            ["-s", a, "--stroke-size", 8, "--color-keep", 0.5],
            fastgen.stylize(image, a, stroke_size=8, preserve_color=0.5),
        ),
    ]
    for words, expected in cases:
        result = run("stylize", *base, *words)
        assert result.exit_code == 0, result.output
        np.testing.assert_array_equal(read(tmp_path / "out.png"), expected)
    for words, text in (
        (["-s", a, "-s", b], "2 styles need a --mask"),
        (["--mask", tmp_path / "m.png"], "--mask needs two styles"),
        (["--feather", 3], "--feather is for the edges of a --mask"),
        (["--blend", "a=1,b=1", "-s", a], "so --style cannot be given"),
        (["--blend", "a=1,b=1", "--mask", "m.png"], "so --mask cannot be given"),
        (["--blend", ""], "must be STYLE=WEIGHT"),
        (["--blend", "a=0:1,1:0,b=1"], "keyframes, which are for files of video"),
        (["--blend", f"{a}=1"], "1 styles in a dict"),
        (["--stroke-size", 0], "stroke_size is 0.0"),
        (["--color-keep", 2], "preserve_color is 2.0"),
        (["--color-keep", 1, "--preserve-color"], "give one of them"),
        (["-s", a, "-s", b, "-s", "none", "--mask", tmp_path / "m.png"], "for 3 styles"),
    ):
        result = run("stylize", *base, *words)
        assert result.exit_code == 2, result.output
        assert text in result.stderr
        assert result.stderr.count("\n") == 1


def test_command_for_videos(clip: Path, styles: list[str], tmp_path: Path) -> None:
    a, b = styles
    Image.fromarray(LEFT).save(tmp_path / "m.png")
    (tmp_path / "k.json").write_text(json.dumps({"strength": {"0": 0, "0.5": 1}}))
    base = [clip, "-o", tmp_path / "out" / "%03d.png", "--end", 0.2]
    one, two = fastgen.Stylizer(a), fastgen.Stylizer({a: 1, b: 1})
    half = fastgen.Stylizer(["none", a])
    cases: list[tuple[list[Any], Any, Any]] = [
        (["-s", a, "--strength", "0:0,0.5:1"], one, lambda t: {"strength": 2 * t}),
        (["-s", a, "--keyframes", tmp_path / "k.json"], one, lambda t: {"strength": 2 * t}),
        (["-s", a, "--color-keep", "0:0,0.5:1"], one, lambda t: {"preserve_color": 2 * t}),
        (["--blend", f"{a}=0:1,1:0,{b}=0:0,1:1"], two, lambda t: {"blend": {a: 1 - t, b: t}}),
        (
            ["-s", "none", "-s", a, "--mask", tmp_path / "m.png", "--feather", 2],
            half,
            lambda _: {"mask": LEFT, "feather": 2},
        ),
        (["-s", a, "--stroke-size", 8], one, lambda _: {"stroke_size": 8}),
    ]
    for words, stylizer, options in cases:
        result = run("video", *base, *words)
        assert result.exit_code == 0, result.output
        expected = _painted(clip, stylizer, options, end=0.2)
        for path, picture in zip(sorted((tmp_path / "out").iterdir()), expected, strict=True):
            assert np.abs(read(path).astype(int) - picture).max() <= 1
    for words, text in (
        (["-s", a, "--strength", "x"], "--strength has the value 'x'"),
        (["-s", a, "--strength", "1:0,0:1"], "times must rise"),
        (["-s", a, "--color-keep", "0:2"], "--color-keep has the value 2"),
        (["-s", a, "--blend", "a=1,b=1"], "so --style cannot be given"),
        (["-s", a, "-s", b], "2 styles need a --mask"),
    ):
        result = run("video", *base, *words)
        assert result.exit_code == 2, result.output
        assert text in result.stderr
        assert result.stderr.count("\n") == 1
