"""Whole files as ffprobe sees them, and what happens when something breaks in the middle."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import save_tiny

from fastgen import video

pytest.importorskip("av")

from clips import frames, make, sound_of

FFPROBE, FFMPEG = shutil.which("ffprobe"), shutil.which("ffmpeg")


@pytest.fixture(scope="module")
def style(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("style"))


def probe(path: Path, kind: str) -> dict[str, Any]:
    """What ffprobe counts in the first stream of a kind, and how long the file is."""
    assert FFPROBE
    words = [FFPROBE, "-v", "error", "-count_frames", "-select_streams", f"{kind}:0"]
    words += ["-show_streams", "-show_format", "-of", "json", str(path)]
    found = json.loads(subprocess.run(words, capture_output=True, check=True, text=True).stdout)
    return {**found["streams"][0], "seconds": float(found["format"]["duration"])}


def sound_hash(path: Path) -> str:
    """The hash of the sound's packets, by another program than the one that copied them."""
    assert FFMPEG
    words = [FFMPEG, "-v", "error", "-i", str(path), "-map", "0:a", "-c", "copy"]
    done = subprocess.run([*words, "-f", "md5", "-"], capture_output=True, check=True, text=True)
    return done.stdout


@pytest.mark.skipif(FFPROBE is None or FFMPEG is None, reason="needs the ffmpeg programs")
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_ffprobe_agrees(suffix: str, tmp_path: Path, style: Path) -> None:
    """Frame count, duration, rate and sound of the output are the source's."""
    clip, out = make(tmp_path / f"clip{suffix}", 50, sound=True), tmp_path / f"out{suffix}"
    result = video.stylize_video(clip, out, style)
    before, after = probe(clip, "v"), probe(out, "v")
    assert int(after["nb_read_frames"]) == int(before["nb_read_frames"]) == result.frames == 50
    for key in ("width", "height", "r_frame_rate", "avg_frame_rate"):
        assert after[key] == before[key]
    assert after["seconds"] == pytest.approx(before["seconds"], abs=0.05)
    assert sound_hash(out) == sound_hash(clip)
    assert probe(out, "a")["codec_name"] == "aac"


def test_a_damaged_middle_is_painted_over(tmp_path: Path, style: Path) -> None:
    """What can be decoded is painted, what is damaged is counted, and the sound stays."""
    clip = make(tmp_path / "clip.mkv", 200, sound=True)
    data = bytearray(clip.read_bytes())
    half = len(data) // 2
    data[half : half + 600] = np.random.default_rng(0).bytes(600)
    clip.write_bytes(data)
    out = tmp_path / "out.mkv"
    result = video.stylize_video(clip, out, style)
    assert 100 < result.frames <= 200
    found = frames(out)
    assert len(found) == result.frames
    times = [f.time for f in found]
    assert times == sorted(set(times))
    assert set(sound_of(out)) <= set(sound_of(clip))
    assert len(sound_of(out)) > 50
    assert sorted(os.listdir(tmp_path)) == ["clip.mkv", "out.mkv"]


def test_a_file_that_ends_early(tmp_path: Path, style: Path) -> None:
    """A download that broke off: what is there is painted."""
    clip = make(tmp_path / "clip.mkv", 100)
    data = clip.read_bytes()
    clip.write_bytes(data[: len(data) * 2 // 3])
    result = video.stylize_video(clip, tmp_path / "out.mkv", style)
    assert 30 < result.frames < 100
    assert len(frames(tmp_path / "out.mkv")) == result.frames


@pytest.mark.skipif(sys.platform == "win32", reason="signals are others there")
def test_a_stop_by_signal_can_be_resumed(tmp_path: Path, style: Path) -> None:
    """SIGTERM while writing: no output yet, nobody left, and --resume has every frame."""
    clip, out = make(tmp_path / "clip.mkv", 900), tmp_path / "out.mkv"
    words = [sys.executable, "-m", "fastgen", "video", str(clip), "-o", str(out)]
    words += ["--style", str(style), "--threads", "1", "--preset", "veryslow"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True)
    pieces = Path(f"{out}.parts")
    for _ in range(1200):
        if list(pieces.glob("*.packets")) or process.poll() is not None:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "--resume goes on from here" in errors
    assert not out.exists()
    with pytest.raises(ProcessLookupError):  # nobody is left in its group
        os.killpg(process.pid, 0)
    done = subprocess.run(
        [*words, "--resume", "--json"], capture_output=True, check=True, text=True, timeout=120
    )
    record = json.loads(done.stdout)
    assert record["frames"] == 900
    assert record["resumed"] >= 240
    assert len(frames(out)) == 900
    assert sorted(os.listdir(tmp_path)) == ["clip.mkv", "out.mkv"]
