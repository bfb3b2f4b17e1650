"""Video files in and out: frames, times, colours, sound, resuming, pipes, bad input."""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from tiny import save_tiny

import fastgen
from fastgen import video
from fastgen.cli import app
from fastgen.video import _segments, _stylize

av = pytest.importorskip("av")

from clips import SIZE, frames, make, picture, sound_of  # noqa: E402 (needs av)


@pytest.fixture(scope="module")
def style(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("style"))


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return make(tmp_path / "clip.mkv", 20, sound=True)


# ---------------------------------------------------------------------- reading


def test_read(clip: Path) -> None:
    with video.read(clip) as opened:
        assert (opened.width, opened.height, opened.rate) == (*SIZE, 25)
        found = list(opened)
    assert [f.index for f in found] == list(range(20))
    assert [f.time for f in found] == [Fraction(k, 25) for k in range(20)]
    for frame in found:
        assert frame.image.dtype == np.uint8
        assert np.abs(frame.image.astype(int) - picture(frame.index)).mean() < 4
    assert opened.damaged == 0


def test_a_part(clip: Path) -> None:
    part = frames(clip, start=0.2, end=0.4)
    assert [f.time for f in part] == [Fraction(k, 25) for k in range(5, 10)]
    assert [f.index for f in part] == list(range(5))


def test_another_rate(clip: Path) -> None:
    whole = frames(clip)
    half, double = frames(clip, fps=12.5), frames(clip, fps=50)
    assert [f.time for f in half] == [Fraction(2 * k, 25) for k in range(10)]
    for k, frame in enumerate(half):
        np.testing.assert_array_equal(frame.image, whole[2 * k].image)
    assert [f.time for f in double] == [Fraction(k, 50) for k in range(39)]
    for k, frame in enumerate(double):
        np.testing.assert_array_equal(frame.image, whole[k // 2].image)


def test_broadcast_rates() -> None:
    from fastgen.video._read import check_rate

    assert check_rate(29.97) == Fraction(30000, 1001)
    assert check_rate(23.976) == Fraction(24000, 1001)
    assert (check_rate(25), check_rate(12.5), check_rate(0.5)) == (25, Fraction(25, 2), 0.5)


def test_smaller(clip: Path) -> None:
    (first, *_) = frames(clip, max_height=24)
    assert first.image.shape == (24, 32, 3)
    assert frames(clip, max_height=480)[0].image.shape == (48, 64, 3)


@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_rotation_is_applied(degrees: int, tmp_path: Path) -> None:
    path = make(tmp_path / "turned.mp4", 3, rotation=degrees)
    found = frames(path)
    with av.open(str(path)) as file:
        stored = next(file.decode(video=0))
    assert (stored.rotation - degrees) % 360 == 0
    # A display rotation is counterclockwise, as np.rot90 is.
    expected = np.rot90(picture(0), degrees // 90)
    assert found[0].image.shape == expected.shape
    assert np.abs(found[0].image.astype(int) - expected).mean() < 4


@pytest.mark.parametrize("colors", [(1, 1), (1, 2), (5, 1), (5, 2)])
def test_colours_survive(colors: tuple[int, int], tmp_path: Path, style: Path) -> None:
    """BT.709 and BT.601, limited and full range: the right matrix is used in and out."""
    path = make(tmp_path / "tagged.mp4", 3, colors=colors)
    (first, *_) = frames(path)
    inside = (slice(4, -4), slice(24, -4))  # away from the bar, whose chroma is halved
    error = first.image[inside].astype(int) - picture(0)[inside]
    assert np.abs(error).mean() < 2
    out = tmp_path / "out.mp4"
    video.stylize_video(path, out, style, strength=0.0, quality=1)
    with video.read(out) as opened:
        assert (opened.color.space, opened.color.range) == colors
        (again, *_) = opened
    assert np.abs(again.image[inside].astype(int) - picture(0)[inside]).mean() < 3


def test_a_damaged_middle(tmp_path: Path) -> None:
    path = make(tmp_path / "clip.mkv", 200)
    data = bytearray(path.read_bytes())
    half = len(data) // 2
    data[half : half + 400] = np.random.default_rng(0).bytes(400)
    path.write_bytes(data)
    found = frames(path)
    assert 100 < len(found) <= 200
    times = [f.time for f in found]
    assert times == sorted(set(times))


def test_numbered_pictures(tmp_path: Path) -> None:
    pattern = tmp_path / "frames" / "%03d.png"
    with video.write(pattern, size=SIZE, fps=10) as out:
        for k in range(4):
            out.write(picture(k))
    assert sorted(os.listdir(pattern.parent)) == ["001.png", "002.png", "003.png", "004.png"]
    with video.read(pattern, fps=10) as opened:
        assert (opened.frames, opened.duration) == (4, 0.4)
        for k, frame in enumerate(opened):
            assert frame.time == Fraction(k, 10)
            np.testing.assert_array_equal(frame.image, picture(k))


# ---------------------------------------------------------------------- writing


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm", ".gif"])
def test_write_every_format(suffix: str, tmp_path: Path, clip: Path) -> None:
    path = tmp_path / f"out{suffix}"
    with video.read(clip) as source, video.write(path, like=source) as out:
        for frame in source:
            out.write(frame.image, frame.time)
    found = frames(path)
    assert len(found) == 20
    assert [f.time for f in found] == [Fraction(k, 25) for k in range(20)]
    for frame in found:
        assert np.abs(frame.image.astype(int) - picture(frame.index)).mean() < 12
    assert sorted(os.listdir(tmp_path)) == ["clip.mkv", f"out{suffix}"]


def test_odd_sizes(tmp_path: Path) -> None:
    path = tmp_path / "odd.mp4"
    with video.write(path, size=(33, 17), fps=25, quality=1) as out:
        for k in range(3):
            out.write(picture(k, (33, 17)))
    found = frames(path)
    assert found[2].image.shape == (17, 33, 3)
    assert np.abs(found[2].image.astype(int) - picture(2, (33, 17))).mean() < 3


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    def write(*pictures: np.ndarray) -> None:
        with video.write(tmp_path / "out.mp4", size=SIZE) as out:
            for image in pictures:
                out.write(image)

    with pytest.raises(ValueError, match="frame is 10x10, the video is 64x48"):
        write(picture(0), np.zeros((10, 10, 3), np.uint8))
    with pytest.raises(ValueError, match="no frame was written"):
        write()
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------- stylize_video


def test_every_frame_is_painted(clip: Path, tmp_path: Path, style: Path) -> None:
    """A lossless encoder shows that the frames are those of `Stylizer`, in order."""
    out = tmp_path / "out.mkv"
    stylizer = fastgen.Stylizer(style)
    result = video.stylize_video(clip, out, stylizer, codec="ffv1")
    assert (result.frames, result.resumed, result.width, result.height) == (20, 0, *SIZE)
    painted = frames(out)
    assert len(painted) == 20
    for before, after in zip(frames(clip), painted, strict=True):
        assert before.time == after.time
        np.testing.assert_array_equal(after.image, stylizer(before.image))
    assert sorted(os.listdir(tmp_path)) == ["clip.mkv", "out.mkv"]
    assert set(result.busy) == {"read", "paint", "write"}


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_sound_is_copied_bit_by_bit(suffix: str, clip: Path, tmp_path: Path, style: Path) -> None:
    out = tmp_path / f"out{suffix}"
    assert video.stylize_video(clip, out, style).left_out == []
    assert sound_of(out) == sound_of(clip)
    silent = tmp_path / "silent.mp4"
    video.stylize_video(clip, silent, style, sound=False)
    with av.open(str(silent)) as file:
        assert not file.streams.audio


def test_sound_that_does_not_fit(clip: Path, tmp_path: Path, style: Path) -> None:
    result = video.stylize_video(clip, tmp_path / "out.webm", style, end=0.2)
    assert result.left_out == ["audio aac does not fit into webm"]
    assert result.frames == 5


def test_a_trimmed_clip_keeps_its_sound_in_step(tmp_path: Path, style: Path) -> None:
    path = make(tmp_path / "clip.mkv", 75, sound=True)
    out = tmp_path / "out.mkv"
    video.stylize_video(path, out, style, start=1.0, end=2.0)
    found = frames(out)
    assert [f.time for f in found] == [Fraction(k, 25) for k in range(25)]
    with av.open(str(path)) as file:
        packets = [p for p in file.demux(file.streams.audio[0]) if p.size]
        taken = [bytes(p) for p in packets if 1 <= p.dts * p.time_base < 2]
    assert sound_of(out) == taken


def test_variable_rate(tmp_path: Path, style: Path) -> None:
    times = [Fraction(t, 1000) for t in (0, 40, 80, 500, 517, 1200, 1201, 3000)]
    path = make(tmp_path / "clip.mkv", times)
    out = tmp_path / "out.mkv"
    video.stylize_video(path, out, style)
    assert [f.time for f in frames(out)] == times


def test_pieces_do_not_show(tmp_path: Path, style: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many short pieces give the frames, times and sound of one long one."""
    times = [Fraction(k, 25) + Fraction(k % 3, 1000) for k in range(30)]
    path = make(tmp_path / "clip.mkv", times, sound=True)
    monkeypatch.setattr(_segments, "FRAMES", 7)
    for suffix in (".mp4", ".mkv"):
        out = tmp_path / f"out{suffix}"
        video.stylize_video(path, out, style)
        found = frames(out)
        assert len(found) == 30
        assert all(abs(f.time - t) <= Fraction(1, 1000) for f, t in zip(found, times, strict=True))
        assert sound_of(out) == sound_of(path)


def test_gif_and_pictures(clip: Path, tmp_path: Path, style: Path) -> None:
    assert video.stylize_video(clip, tmp_path / "out.gif", style).frames == 20
    assert len(frames(tmp_path / "out.gif")) == 20
    video.stylize_video(tmp_path / "out.gif", tmp_path / "again.mp4", style, end=0.2)
    assert len(frames(tmp_path / "again.mp4")) == 5
    video.stylize_video(clip, tmp_path / "p" / "%02d.png", style, end=0.12)
    stylizer = fastgen.Stylizer(style)
    for before, after in zip(frames(clip)[:3], frames(tmp_path / "p" / "%02d.png"), strict=True):
        np.testing.assert_array_equal(after.image, stylizer(before.image))


def test_memory_does_not_depend_on_the_length(style: Path, tmp_path: Path) -> None:
    """Never more frames alive than the queues hold, however fast one side is."""
    alive = {"now": 0, "most": 0}

    class Counted(video.Frame):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            alive["now"] += 1
            alive["most"] = max(alive["most"], alive["now"])

        def __del__(self) -> None:
            alive["now"] -= 1

    def endless() -> Any:
        for k in range(200):
            yield Counted(picture(k), Fraction(k, 25), k)

    source = video.Clip("x", *SIZE, Fraction(25), Fraction(1, 25), 200, 8.0, _frames=endless())
    _stylize._run(source, lambda f: f.image, lambda f: None, 0, video.VideoResult(), None)
    assert 1 < alive["most"] <= 2 * _stylize.AHEAD + 4


# ---------------------------------------------------------------------- command


def run(*words: object) -> Any:
    return CliRunner().invoke(app, ["video", *map(str, words)])


def test_command(clip: Path, tmp_path: Path, style: Path) -> None:
    result = run(clip, "-o", tmp_path / "new" / "out.mp4", "--style", style, "--max-height", 24)
    assert result.exit_code == 0, result.output
    assert "32x24  20 frames in " in result.output
    assert len(frames(tmp_path / "new" / "out.mp4")) == 20
    result = run(clip, "-o", tmp_path / "a.mp4", "-s", style, "--end", 0.2, "--json")
    assert '"frames": 5' in result.stdout


def test_pipes(tmp_path: Path, style: Path) -> None:
    """y4m in and y4m out, and plain RGB; the frames are those of `Stylizer`."""
    size = (32, 16)
    pictures = np.stack([picture(k, size) for k in range(3)])
    words = [sys.executable, "-m", "fastgen", "video", "-", "-o", "-", "--style", str(style)]
    words += ["--precision", "fp32"]
    raw = subprocess.run(
        [*words, "--raw-size", "32x16", "--pipe", "rgb24"],
        input=pictures.tobytes(),
        capture_output=True,
        check=True,
        timeout=120,
    )
    painted = np.frombuffer(raw.stdout, np.uint8).reshape(pictures.shape)
    stylizer = fastgen.Stylizer(style, precision="fp32")
    np.testing.assert_array_equal(painted, stylizer(pictures))
    y4m = subprocess.run(
        [*words, "--raw-size", "32x16"],
        input=pictures.tobytes(),
        capture_output=True,
        check=True,
        timeout=120,
    )
    (tmp_path / "a.y4m").write_bytes(y4m.stdout)
    found = frames(tmp_path / "a.y4m")
    assert len(found) == 3
    smooth = subprocess.run(
        [*words, "--strength", "0", "--pipe", "rgb24"],
        input=y4m.stdout,
        capture_output=True,
        check=True,
        timeout=120,
    )
    again = np.frombuffer(smooth.stdout, np.uint8).reshape(pictures.shape)
    np.testing.assert_array_equal(again[2], found[2].image)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("gone.mp4", "-o", "a.mp4"), "gone.mp4: no such file"),
        (("text.mp4", "-o", "a.mp4"), "text.mp4: Invalid data"),
        (("clip.mkv", "-o", "a.txt"), ".txt is no video format that is written here"),
        (("clip.mkv", "-o", "clip.mkv"), "is the source, which is never overwritten"),
        (("clip.mkv", "-o", "a.mp4", "--codec", "h265000"), "no encoder 'h265000'"),
        (("clip.mkv", "-o", "a.mp4", "--start", "2", "--end", "1"), "must be after start"),
        (("clip.mkv", "-o", "a.mp4", "--start", "9"), "no frame in the chosen part"),
        (("clip.mkv", "-o", "a.mp4", "--fps", "0"), "fps is 0.0, must be"),
        (("clip.mkv", "-o", "a.mp4", "--hwaccel", "warp"), "hwaccel 'warp' is unknown"),
        (("clip.mkv", "-o", "a.gif", "--resume"), "only an encoded file can be resumed"),
        (("sound.m4a", "-o", "a.mp4"), "sound.m4a: has no video"),
        (("%03d.png", "-o", "a.mp4"), "no picture matches"),
        (("clip.mkv", "-o", "a.mov", "--codec", "mpeg4", "--quality", "3"), "has no quality"),
    ],
)
def test_wrong_input(
    words: tuple[str, ...], text: str, clip: Path, style: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(clip.parent)
    Path("text.mp4").write_text("this is no video " * 100)
    with av.open("sound.m4a", "w", format="mp4") as file:
        voice = file.add_stream("aac", rate=16000)
        block = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        block.sample_rate = 16000
        file.mux(voice.encode(block))
        file.mux(voice.encode(None))
    before = sorted(os.listdir())
    result = run(*words, "--style", style)
    assert result.exit_code == 1, result.output
    assert text in result.stderr
    assert result.stderr.count("\n") == 1
    assert sorted(os.listdir()) == before


def test_without_the_package(monkeypatch: pytest.MonkeyPatch, clip: Path) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(fastgen.FastgenError, match=r"pip install 'fastgen\[video\]'"):
        video.read(clip)
