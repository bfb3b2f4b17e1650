"""Live: sources, sinks, what happens when something goes away."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from tiny import save_tiny

import fastgen
from fastgen.cli import app
from fastgen.live import _sink, _source, stylize_live

av = pytest.importorskip("av")

from clips import SIZE, frames, make, picture  # noqa: E402 (needs av)

FFMPEG = shutil.which("ffmpeg")
needs_ffmpeg = pytest.mark.skipif(FFMPEG is None, reason="needs the ffmpeg program as the peer")


@pytest.fixture(scope="module")
def style(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("style"))


@pytest.fixture(scope="module")
def paint(style: Path) -> fastgen.Stylizer:
    return fastgen.Stylizer(style)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return make(tmp_path / "clip.mkv", 20)


def paced(count: int, seconds: float = 0.02) -> Iterator[np.ndarray]:
    """Frames that come one by one."""
    for k in range(count):
        yield picture(k)
        time.sleep(seconds)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


# ---------------------------------------------------------------------- sources and sinks


def test_what_is_shown_is_painted(paint: fastgen.Stylizer) -> None:
    """An iterator in, a function out: results are those of frames, in order, with the last."""
    shown: list[np.ndarray] = []
    stats = stylize_live(paced(15), shown.append, paint)
    assert stats.ended == "source"
    assert stats.frames + stats.dropped == 15
    assert len(shown) == stats.frames
    expected = [paint(picture(k)) for k in range(15)]
    order = []
    for image in shown:
        (match,) = [k for k, e in enumerate(expected) if np.array_equal(image, e)]
        order.append(match)
    assert order == sorted(set(order))
    assert order[-1] == 14
    assert 0 < stats.latency(50) <= stats.latency(95)
    assert stats.as_dict()["latency_ms"]["p95"] > 0
    assert not [t for t in threading.enumerate() if t.name.startswith("fastgen")]


def test_frames_are_dropped_when_it_is_slow(paint: fastgen.Stylizer) -> None:
    """Latency does not grow with the length: what is shown is new."""
    stats = stylize_live(paced(60, 0.005), lambda image: time.sleep(0.05), paint)
    assert stats.dropped > 20
    assert stats.latency(100) < 1.0  # 60 frames kept would wait 3 s


def test_a_file_plays_in_real_time(clip: Path, paint: fastgen.Stylizer) -> None:
    began = time.perf_counter()
    stats = stylize_live(clip, "none", paint)
    assert time.perf_counter() - began >= 19 / 25
    assert stats.frames + stats.dropped == 20
    assert (stats.width, stats.height) == stats.painted == SIZE


def test_a_file_is_looped_until_the_time_is_over(clip: Path, paint: fastgen.Stylizer) -> None:
    stats = stylize_live(clip, "none", paint, loop=True, duration=1.6)
    assert stats.ended == "duration"
    assert 1.0 < stats.seconds < 10
    assert stats.frames + stats.dropped > 20  # more than the file has


def test_adaptive_size(paint: fastgen.Stylizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A painter that needs its pixels' time: the output keeps its size, the work does not."""
    sizes: list[tuple[int, int]] = []

    def slow(image: np.ndarray, **options: Any) -> np.ndarray:
        sizes.append(image.shape[1::-1])
        time.sleep(0.1 * image.size / (3 * 320 * 240))
        return 255 - image

    monkeypatch.setattr(paint, "__class__", fastgen.Stylizer)
    monkeypatch.setattr(fastgen.Stylizer, "__call__", lambda self, image, **o: slow(image))
    big = np.full((240, 320, 3), 60, np.uint8)
    shown: list[np.ndarray] = []

    def source() -> Iterator[np.ndarray]:
        for _ in range(120):
            yield big
            time.sleep(0.02)

    stats = stylize_live(source(), shown.append, paint, target_fps=25)
    assert stats.changes >= 1
    assert stats.painted[0] < 320
    assert {image.shape for image in shown} == {(240, 320, 3)}
    assert all(np.abs(image.astype(int) - 195).max() <= 2 for image in shown)
    assert 0.1 * stats.painted[0] * stats.painted[1] / (320 * 240) <= 1 / 25


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".webm"])
def test_a_recording(suffix: str, clip: Path, tmp_path: Path, paint: fastgen.Stylizer) -> None:
    out = tmp_path / "new" / f"out{suffix}"
    stats = stylize_live(clip, out, paint, strength=0.0, quality=4)
    found = frames(out)
    assert len(found) == stats.frames
    times = [f.time for f in found]
    assert times == sorted(set(times))
    assert float(times[-1] - times[0]) == pytest.approx(stats.seconds, abs=0.5)
    errors = [np.abs(found[-1].image.astype(int) - picture(19)).mean()]
    assert min(errors) < 8
    assert os.listdir(out.parent) == [out.name]


def test_hls(clip: Path, tmp_path: Path, paint: fastgen.Stylizer) -> None:
    out = tmp_path / "hls" / "live.m3u8"
    stats = stylize_live(clip, out, paint)
    text = out.read_text()
    assert text.startswith("#EXTM3U")
    assert "#EXT-X-ENDLIST" in text
    assert len(frames(out)) == stats.frames


@needs_ffmpeg
def test_an_rtsp_sink(clip: Path, tmp_path: Path, paint: fastgen.Stylizer) -> None:
    """ffmpeg is the server that listens, and records what comes."""
    assert FFMPEG
    url, record = f"rtsp://127.0.0.1:{free_port()}/live", tmp_path / "got.mkv"
    listen = ["-rtsp_flags", "listen", "-i", url, "-c", "copy", str(record)]
    server = subprocess.Popen([FFMPEG, "-loglevel", "error", "-y", *listen])
    try:
        for _ in range(100):  # until it listens
            try:
                stats = stylize_live(clip, url, paint)
                break
            except OSError:
                time.sleep(0.1)
        assert server.wait(30) == 0
    finally:
        server.kill()
        server.wait()
    assert len(frames(record)) == pytest.approx(stats.frames, abs=1)


@needs_ffmpeg
def test_an_http_source(clip: Path, paint: fastgen.Stylizer) -> None:
    """ffmpeg serves a stream over HTTP once, in real time."""
    assert FFMPEG
    url = f"http://127.0.0.1:{free_port()}/live.ts"
    serve = ["-re", "-i", str(clip), "-c", "copy", "-f", "mpegts", "-listen", "1", url]
    server = subprocess.Popen([FFMPEG, "-loglevel", "error", *serve])
    try:
        for _ in range(100):
            try:
                stats = stylize_live(url, "none", paint)
                break
            except OSError:
                time.sleep(0.1)
        server.wait(30)
    finally:
        server.kill()
        server.wait()
    assert stats.ended == "source"
    assert stats.frames + stats.dropped == 20


class _Camera:
    """Stands in for a device: a container that fails after some frames."""

    def __init__(self, clip: Path, lives: int) -> None:
        self.clip, self.lives, self.opened = clip, lives, 0

    def __call__(self, kind: str, address: str, settings: Any) -> Any:
        self.opened += 1
        if self.opened > self.lives:
            raise OSError(19, "No such device", address)
        return av.open(str(self.clip))


def test_a_camera_that_is_gone(
    clip: Path, tmp_path: Path, paint: fastgen.Stylizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of one line, and the recording is complete."""
    monkeypatch.setattr(_source, "_open_camera", _Camera(clip, 1))
    out = tmp_path / "out.mp4"
    with pytest.raises(OSError, match="camera: the camera is gone"):
        stylize_live("camera", out, paint)
    assert len(frames(out)) >= 1
    assert sorted(os.listdir(tmp_path)) == ["clip.mkv", "out.mp4"]


def test_a_camera_that_comes_back(
    clip: Path, paint: fastgen.Stylizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_source, "_open_camera", _Camera(clip, 3))
    monkeypatch.setattr(_source, "FIRST_WAIT", 0.05)
    lines: list[str] = []
    stats = stylize_live("camera", "none", paint, reconnect=True, duration=0.4, tell=lines.append)
    assert stats.reconnects >= 1
    assert lines[:2] == ["camera: ended; waiting for it", "camera: is back"]


def test_camera_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    assert _source.camera("camera") == ("v4l2", "/dev/video0")
    assert _source.camera("camera:2") == ("v4l2", "/dev/video2")
    assert _source.camera("/dev/video7") == ("v4l2", "/dev/video7")
    assert _source.camera("rtsp://x/camera") is None
    assert _source.camera("clip.mkv") is None
    monkeypatch.setattr(sys, "platform", "darwin")
    assert _source.camera("camera") == ("avfoundation", "0:none")
    monkeypatch.setattr(sys, "platform", "win32")
    assert _source.camera("camera:USB Camera") == ("dshow", "video=USB Camera")


def test_the_formats_of_cameras_are_there() -> None:
    """The wheels of PyAV bring what cameras and virtual cameras need."""
    kinds = {"linux": "v4l2", "darwin": "avfoundation", "win32": "dshow"}
    if sys.platform not in kinds:
        pytest.skip(f"no cameras are known on {sys.platform}")
    av.format.ContainerFormat(kinds[sys.platform], "r")
    if sys.platform == "linux":
        av.format.ContainerFormat("v4l2", "w")


def test_virtual_cameras(tmp_path: Path) -> None:
    for name in ("video10", "video2", "other"):
        (tmp_path / name).mkdir()
    assert _sink.loopback_devices(tmp_path) == ["/dev/video2", "/dev/video10"]
    if sys.platform == "linux" and not _sink.loopback_devices():
        shape = _sink.Shape(*SIZE, Fraction(25), _source.Color())
        with pytest.raises(fastgen.FastgenError, match="modprobe v4l2loopback"):
            _sink.open_sink("virtual", shape, None, None, None, "")


def test_a_full_disk_keeps_what_was_recorded(
    tmp_path: Path, paint: fastgen.Stylizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recording fails in the middle: its first part has its name and plays."""
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    show, count = _sink.Encoded.show, 0

    def fail(self: Any, image: np.ndarray, seconds: float) -> None:
        nonlocal count
        count += 1
        if count == 80:  # the part with the first key frame is written
            # The real thing: FFmpeg writes to a disk that is full.
            descriptor = os.open(full, os.O_WRONLY)
            for held in Path("/proc/self/fd").iterdir():
                if os.path.exists(held) and os.readlink(held) == self._target:
                    os.dup2(descriptor, int(held.name))
        show(self, image, seconds)

    def source() -> Iterator[np.ndarray]:
        for k in range(400):
            yield picture(k)
            time.sleep(0.01)

    monkeypatch.setattr(_sink.Encoded, "show", fail)
    out = tmp_path / "out.mkv"
    with pytest.raises(OSError, match="No space left"):
        stylize_live(source(), out, paint, preset="ultrafast")
    assert len(frames(out)) >= 10
    assert os.listdir(tmp_path) == ["out.mkv"]


# ---------------------------------------------------------------------- command


def test_a_signal_completes_the_recording(clip: Path, tmp_path: Path, style: Path) -> None:
    if sys.platform == "win32":
        pytest.skip("signals are others there")
    out = tmp_path / "out.mp4"
    words = [sys.executable, "-m", "fastgen", "live", str(clip), "-o", str(out)]
    process = subprocess.Popen(
        [*words, "--loop", "--style", str(style), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    part = tmp_path / f".{out.name}.{process.pid}.part"
    for _ in range(600):
        if part.exists() and part.stat().st_size:
            break
        time.sleep(0.1)
    time.sleep(1.0)
    process.send_signal(signal.SIGTERM)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    record = json.loads(printed)
    assert record["ended"] == "interrupted"
    assert len(frames(out)) == record["frames"]
    assert sorted(os.listdir(tmp_path)) == ["clip.mkv", "out.mp4"]
    with pytest.raises(ProcessLookupError):  # nobody is left in its group
        os.killpg(process.pid, 0)


def run(*words: object) -> Any:
    return CliRunner().invoke(app, ["live", *map(str, words)])


def test_command(clip: Path, tmp_path: Path, style: Path) -> None:
    result = run(clip, "-o", tmp_path / "a.mp4", "--style", style, "--max-height", 24)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("32x24  ")
    assert "latency" in result.stdout


def test_a_blend(clip: Path, tmp_path: Path, style: Path) -> None:
    other = save_tiny(tmp_path, "other", seed=1)
    seen: list[np.ndarray] = []
    weights = {str(style): 0.25, str(other): 0.75}
    stylize_live(iter([picture(3)]), seen.append, weights)
    np.testing.assert_array_equal(seen[0], fastgen.Stylizer(weights)(picture(3)))
    words = "-o", "none", "--json", "--blend", f"{style}=1,{other}=3"
    result = run(clip, *words)
    assert result.exit_code == 0, result.output
    assert "+" in json.loads(result.stdout)["style"]


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("gone.mp4", "-o", "none"), 1, "a camera is called camera or camera:1"),
        (("text.mp4", "-o", "none"), 1, "text.mp4: Invalid data"),
        (("clip.mkv", "-o", "a.txt"), 1, "a.txt is no output of live; use window, virtual"),
        (("clip.mkv", "-o", "ftp://host/a"), 1, "ftp:// is no stream here"),
        (("clip.mkv", "-o", "none", "--target-fps", "0"), 1, "target_fps is 0.0, must be"),
        (("clip.mkv", "-o", "none", "--duration", "-1"), 1, "duration is -1.0, must be"),
        (("clip.mkv", "-o", "none", "--option", "x"), 2, "'x' is not NAME=VALUE"),
        (("clip.mkv", "-o", "none", "--size", "x"), 2, "'x' is not WIDTHxHEIGHT"),
        (("clip.mkv", "-o", "none", "--blend", "a=1,b=1"), 2, "so --style cannot be given, too"),
        (("clip.mkv", "-o", "none", "--strength", "2"), 2, "strength is 2.0"),
        (("clip.mkv", "-o", "a.mp4", "--codec", "h265000"), 1, "no encoder 'h265000'"),
        (("camera:77", "-o", "none"), 1, "/dev/video77: no such camera"),
        (("clip.mkv", "-o", "virtual:/dev/video77"), 1, "/dev/video77: no such device"),
    ],
)
def test_wrong_input(
    words: tuple[str, ...],
    code: int,
    text: str,
    clip: Path,
    style: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "/dev/video77" in text and sys.platform != "linux":
        pytest.skip("cameras have other names here")
    monkeypatch.chdir(clip.parent)
    Path("text.mp4").write_text("this is no video " * 100)
    before = sorted(os.listdir())
    result = run(*words, "--style", style)
    assert result.exit_code == code, result.output
    assert text in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert sorted(os.listdir()) == before


def test_no_display(clip: Path, style: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tkinter")
    if sys.platform != "linux":
        pytest.skip("there is always a display")
    monkeypatch.delenv("DISPLAY", raising=False)
    result = run(clip, "--style", style)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: no window can be opened here")


def test_a_window(clip: Path, paint: fastgen.Stylizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a display of its own: the painting is on the screen, and q closes the window."""
    server = shutil.which("Xvfb")
    if server is None:
        pytest.skip("needs Xvfb")
    pytest.importorskip("tkinter")
    read, write = os.pipe()
    screen = ["-displayfd", str(write), "-screen", "0", "200x120x24", "-nolisten", "tcp"]
    display = subprocess.Popen(
        [server, *screen], pass_fds=[write], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    os.close(write)
    try:
        with os.fdopen(read) as file:
            number = file.readline().strip()
        assert number
        monkeypatch.setenv("DISPLAY", f":{number}")
        seen: list[np.ndarray] = []

        def progress(stats: fastgen.LiveStats) -> None:
            if stats.frames == 5:
                options = {"video_size": "200x120"}
                with av.open(f":{number}", format="x11grab", options=options) as grab:
                    seen.append(next(grab.decode(video=0)).to_ndarray(format="rgb24"))
                import tkinter

                root = tkinter._default_root  # type: ignore[attr-defined]
                root.focus_force()
                root.update()
                root.event_generate("<KeyPress-q>")

        stats = stylize_live(clip, "window", paint, loop=True, duration=30, progress=progress)
    finally:
        display.terminate()
        display.wait()
    assert stats.ended == "closed"
    (shot,) = seen
    expected = [paint(picture(k)).astype(int) for k in range(20)]
    height, width = expected[0].shape[:2]
    differences = [
        np.abs(shot[y : y + height, x : x + width] - image).mean()
        for image in expected
        for y in range(0, 4)
        for x in range(0, 4)
    ]
    assert min(differences) < 6
