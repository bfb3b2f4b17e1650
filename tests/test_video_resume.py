"""Interrupted, killed and failed videos, and going on with them."""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import save_tiny

import fastgen
from fastgen import video
from fastgen.video import _segments, _stylize

pytest.importorskip("av")

from clips import frames, make, sound_of


@pytest.fixture(scope="module")
def style(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("style"))


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return make(tmp_path / "clip.mkv", 20, sound=True)


class _StopAt:
    def __init__(self, frame: int) -> None:
        self.frame = frame

    def __call__(self, done: int, total: int | None) -> None:
        assert total in range(28, 33)  # mkv says only how long it is
        if done == self.frame:
            raise KeyboardInterrupt


def test_resume(tmp_path: Path, style: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "clip.mkv", 30, sound=True)
    monkeypatch.setattr(_segments, "FRAMES", 8)
    whole = tmp_path / "whole.mkv"
    video.stylize_video(path, whole, style, codec="ffv1")
    out = tmp_path / "out.mkv"
    with pytest.raises(KeyboardInterrupt):
        video.stylize_video(path, out, style, codec="ffv1", progress=_StopAt(19))
    assert not out.exists()
    with pytest.raises(ValueError, match=r"another run \(strength differ\)"):
        video.stylize_video(path, out, style, codec="ffv1", strength=0.5, resume=True)
    result = video.stylize_video(path, out, style, codec="ffv1", resume=True)
    assert result.frames == 30
    assert result.resumed == 19  # the open piece was completed when the run was interrupted
    for a, b in zip(frames(whole), frames(out), strict=True):
        assert a.time == b.time
        np.testing.assert_array_equal(a.image, b.image)
    assert sound_of(out) == sound_of(path)
    assert sorted(os.listdir(tmp_path)) == ["clip.mkv", "out.mkv", "whole.mkv"]


def test_a_steadied_video_goes_on_on_the_same_grid(
    tmp_path: Path, style: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_stabilizer_kernels import cut, scene

    (tmp_path / "in").mkdir()
    picture = scene(96, 128)
    for t in range(30):  # 3 pixels to the left in every frame: the grid has moved by 3 * 19
        frame = cut(picture, 96, 128, 3 * t, 2)
        Image.fromarray(frame).save(tmp_path / "in" / f"{t:05d}.png")
    source = str(tmp_path / "in" / "%05d.png")
    monkeypatch.setattr(_segments, "FRAMES", 8)
    monkeypatch.setattr(_stylize, "WARM_UP", 5)  # from frame 14, whose grid is 2 pixels off
    options: dict[str, Any] = {"codec": "ffv1", "stabilize": True, "fps": 30}
    whole, out = tmp_path / "whole.mkv", tmp_path / "out.mkv"
    video.stylize_video(source, whole, style, **options)
    with pytest.raises(KeyboardInterrupt):
        video.stylize_video(source, out, style, progress=_StopAt(19), **options)
    assert video.stylize_video(source, out, style, resume=True, **options).resumed == 19
    for a, b in zip(frames(whole)[19:], frames(out)[19:], strict=True):
        assert np.abs(a.image.astype(int) - b.image).mean() < 1


@pytest.mark.parametrize("changed", ["masks/00007.png", "frames/00009.png", "masks/00099.png"])
def test_numbered_pictures_that_changed_are_another_run(
    changed: str, tmp_path: Path, style: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the source and of the mask; the same pictures are the same run."""
    monkeypatch.setattr(_segments, "FRAMES", 8)
    for folder in ("masks", "frames"):
        (tmp_path / folder).mkdir()
        for k in range(30):
            grey = Image.new("L", (16, 12), 8 * k)
            grey.convert("RGB").save(tmp_path / folder / f"{k:05d}.png")
    source, out = str(tmp_path / "frames/%05d.png"), tmp_path / "out.mkv"
    options: dict[str, Any] = {"mask": str(tmp_path / "masks/%05d.png"), "codec": "ffv1"}
    with pytest.raises(KeyboardInterrupt):
        video.stylize_video(source, out, ["none", style], progress=_StopAt(19), **options)
    before = (tmp_path / changed).read_bytes() if (tmp_path / changed).exists() else None
    known = os.stat(tmp_path / changed) if before else None
    Image.new("RGB", (16, 12), (200, 9, 9)).save(tmp_path / changed)
    what = "controls" if changed.startswith("masks") else "source_state"
    with pytest.raises(ValueError, match=rf"another run \({what} differ\)"):
        video.stylize_video(source, out, ["none", style], resume=True, **options)
    if before is None or known is None:
        (tmp_path / changed).unlink()
    else:
        (tmp_path / changed).write_bytes(before)
        os.utime(tmp_path / changed, ns=(known.st_atime_ns, known.st_mtime_ns))
    result = video.stylize_video(source, out, ["none", style], resume=True, **options)
    assert (result.resumed, result.frames) == (19, 30)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_named(
    clip: Path, style: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = _segments.Segments.__init__

    def on_a_full_disk(self: Any, *args: Any, **options: Any) -> None:
        made(self, *args, **options)
        self._temporary.symlink_to("/dev/full")

    out = tmp_path / "out.mkv"
    with monkeypatch.context() as patch:
        patch.setattr(_segments.Segments, "__init__", on_a_full_disk)
        with pytest.raises(OSError, match="No space left") as caught:
            video.stylize_video(clip, out, style, codec="ffv1")
    assert caught.value.filename == f"{out}.parts"
    assert not out.exists()
    assert video.stylize_video(clip, out, style, codec="ffv1", resume=True).frames == 20


def test_a_killed_run_can_be_resumed(tmp_path: Path, style: Path) -> None:
    path = make(tmp_path / "clip.mkv", 30)
    out = tmp_path / "out.mkv"
    code = (
        "import os, sys\n"
        "from fastgen import video\n"
        "from fastgen.video import _segments\n"
        "_segments.FRAMES = 8\n"
        "stop = lambda done, total: done == 20 and os._exit(9)\n"
        "video.stylize_video(*sys.argv[1:4], codec='ffv1', precision='fp32', progress=stop)\n"
    )
    words = [sys.executable, "-P", "-c", code, str(path), str(out), str(style)]
    assert subprocess.run(words, check=False, timeout=120).returncode == 9
    assert not out.exists()
    stylizer = fastgen.Stylizer(style, precision="fp32")
    result = video.stylize_video(path, out, stylizer, codec="ffv1", resume=True)
    assert (result.frames, result.resumed) == (30, 16)
    for before, after in zip(frames(path), frames(out), strict=True):
        expected = stylizer(before.image).astype(int)  # sums over threads: to rounding
        assert np.abs(after.image - expected).max() <= 1


def test_a_new_run_does_not_use_old_pieces(
    tmp_path: Path, style: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path / "clip.mkv", 30)
    monkeypatch.setattr(_segments, "FRAMES", 8)
    out = tmp_path / "out.mkv"
    with pytest.raises(KeyboardInterrupt):
        video.stylize_video(path, out, style, progress=_StopAt(19))
    assert video.stylize_video(path, out, style).resumed == 0
    assert len(frames(out)) == 30


def test_a_full_disk(tmp_path: Path, style: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "clip.mkv", 30)
    monkeypatch.setattr(_segments, "FRAMES", 8)
    write = _segments.Segments.write

    def full(self: Any, image: np.ndarray, time: Fraction) -> None:
        if self.frames == 20:
            raise OSError(28, "No space left on device")
        write(self, image, time)

    out = tmp_path / "out.mkv"
    with monkeypatch.context() as context:
        context.setattr(_segments.Segments, "write", full)
        with pytest.raises(OSError, match="No space left"):
            video.stylize_video(path, out, style)
    assert not out.exists()
    assert video.stylize_video(path, out, style, resume=True).resumed >= 16


def test_two_at_once(tmp_path: Path, style: Path, clip: Path) -> None:
    pytest.importorskip("fcntl")
    out = tmp_path / "out.mkv"
    held = _segments._lock(Path(f"{out}.parts"))
    with pytest.raises(BlockingIOError, match="another process is writing this video"):
        video.stylize_video(clip, out, style)
    held.close()
    assert video.stylize_video(clip, out, style).frames == 20
