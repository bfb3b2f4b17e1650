"""The comparison of video pipelines, on a clip of few pixels."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from tiny import save_tiny

pytest.importorskip("av")

from benchmarks.video import __main__ as comparison
from benchmarks.video import report
from benchmarks.video.clip import make_clip
from benchmarks.video.side import STAGES, OpenCV, Ours


@pytest.fixture
def spec(tmp_path: Path) -> dict[str, object]:
    clip = make_clip(tmp_path / "clip.mp4", 64, 48, 12)
    return {
        "clip": str(clip),
        "style": str(save_tiny(tmp_path)),
        "folder": str(tmp_path),
        "threads": 1,
        "width": 64,
        "height": 48,
        "precision": "auto",
    }


def test_our_side(spec: dict[str, object]) -> None:
    side = Ours(spec)
    run = side.run(10)
    assert run["frames"] == 10
    assert len(run["intervals"]) == 9
    stages = side.stages(6)
    assert tuple(stages) == STAGES
    assert all(len(stages[name]["wall"]) == 6 for name in STAGES)
    assert all(min(stages[name]["wall"]) > 0 for name in STAGES)


def test_both_sides_and_the_page(spec: dict[str, object]) -> None:
    if importlib.util.find_spec("cv2") is None:
        pytest.skip("needs opencv-python-headless")
    pytest.importorskip("torch")
    ours, theirs = Ours(spec), OpenCV(spec)
    runs, stages = [ours.run(6) for _ in range(2)], [ours.stages(4) for _ in range(3)]
    other = [theirs.run(4) for _ in range(2)]
    assert other[0]["frames"] == 4
    row = {
        "size": "64x48",
        "network": "small",
        "weights": "random",
        "rounds": 2,
        "speedup": 2.0,
        "fastgen": comparison._ours(runs, stages, 2) | ours.info(),
        "opencv": comparison._theirs(other) | theirs.info(),
    }
    alone = [s["net"]["wall"][1] for s in stages]
    assert row["fastgen"]["efficiency"] > 0
    assert row["fastgen"]["stages"]["net"]["p99"] >= 1e3 * min(alone)
    info = {"cpu": "test", "cores": 2, "system": "x", "machine": "y", "python": "3"}
    text = report.page({"rows": [row], "machine_info": info, "date": "today"}, "here.json")
    lines = text.splitlines()
    assert any(line.startswith("| 64x48 small | fastgen, CPU time |") for line in lines)
    assert any(line.startswith("| 64x48 small | OpenCV + torch eager | fp32 |") for line in lines)


def test_efficiency() -> None:
    """10 ms of network, 8 ms of decoding and encoding on 2 cores: 14 ms a frame is 1."""

    def stages(net: float) -> dict[str, dict[str, object]]:
        found = {name: {"wall": [net] * 3, "cpu": 0.001} for name in STAGES}
        found["decode"]["cpu"], found["encode"]["cpu"] = 0.002, 0.006
        return found

    run = {"seconds": 0.14, "frames": 10, "cpu": 0.2, "intervals": [0.01] * 9, "busy": {"read": 1}}
    found = comparison._ours([run], [stages(0.01)] * 2, 2)
    assert found["efficiency"] == 1.0
    assert found["efficiency_with_colours"] == pytest.approx(15 / 14, rel=1e-2)
    assert found["fps"] == pytest.approx(71.43)
    # A machine whose speed changes: each run beside what came before and after it.
    found = comparison._ours([run, run], [stages(s) for s in (0.01, 0.012, 0.016)], 2)
    assert found["efficiency_rounds"] == pytest.approx([15 / 14, 18 / 14], abs=1e-3)
    assert found["efficiency"] == pytest.approx(16.5 / 14, abs=1e-3)
