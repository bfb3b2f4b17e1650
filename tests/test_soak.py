"""The soak, roofline and scaling commands, briefly."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import control, roofline, scaling, soak

_C = pytest.importorskip("fastgen._C")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow() -> None:
    result = soak.soak(3, ["small"], sizes=((32, 32), (50, 21), (96, 64)), threads=2)
    first, last = soak.judge(result["samples"])
    assert result["rounds"] >= 20
    assert last - first < 8 << 20


def test_growth_is_found() -> None:
    flat = [(float(i), 100 << 20) for i in range(30)]
    assert soak.judge(flat) == (100 << 20, 100 << 20)
    rising = [(float(i), (100 + i) << 20) for i in range(31)]
    assert soak.judge(rising) == (105 << 20, 125 << 20)
    with pytest.raises(ValueError, match="nothing"):
        soak.judge([])


def test_layers_of_a_network() -> None:
    from cpu_cases import random_weights

    from fastgen import models
    from fastgen.backends.cpu import Runner

    graph = models.create("transformer_net", width=16, blocks=2)
    runner = Runner(graph, random_weights(graph), threads=1)
    rows = roofline.layers(runner, (64, 48), 0.01)
    by_step = {row["step"]: row for row in rows}
    assert [row["step"] for row in rows] == [step.label for step in runner.steps]
    assert all(row["ms"] > 0 for row in rows)
    first, block, up = by_step["down0"], by_step["res0_conv1"], by_step["up0"]
    assert first["macs"] == 3 * 16 * 81 * 64 * 48
    assert first["products"] == first["macs"] / 2  # 6 rows of products for 4 x 3 of taps
    assert block["products"] == block["macs"] / 4
    assert up["macs"] == 32 * 16 * 4 * 64 * 48  # four 2x2 phases, not 3x3
    # Its input, what the addition reads later (normalised), its output.
    assert block["bytes"] == 3 * 64 * (64 // 4) * (48 // 4) * 4
    total = sum(row["macs"] for row in rows)
    result = {
        "network": "half",
        "threads": 1,
        "machine_info": {"cpu": "test"},
        "peak": {"fp32": 100.0, "bf16": 200.0, "copy_gb_s": 10.0},
        "tables": [{"precision": "fp32", "size": "64x48", "layers": rows}],
    }
    text = "\n".join(roofline.lines(result)).splitlines()
    assert any(line.startswith("| res*_conv1 (2) |") for line in text)
    assert any(line.startswith("| sum |") for line in text)
    assert total > 0
    del first["factors"]  # as in results from before int8
    assert "\n".join(roofline.lines(result)).splitlines() == text
    mixed = [row | {"factors": "bf16" if "conv" in row["step"] else "fp32"} for row in rows]
    result["tables"] = [{"precision": "int8", "size": "64x48", "layers": mixed}]
    lines = "\n".join(roofline.lines(result)).splitlines()
    share = sum(r["products"] / (2e8 if "conv" in r["step"] else 1e8) for r in rows)
    share /= sum(r["ms"] for r in rows)
    assert f"| {share:.0%} |" in next(line for line in lines if line.startswith("| sum |"))
    assert next(line for line in lines if line.startswith("| res*_conv1")).split(" | ")[1] == "bf16"


def test_threads_of_a_network(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = "scaling --networks small --sizes 48x40 --precisions fp32 --threads 2"
    monkeypatch.setattr(
        sys,
        "argv",
        [*f"{command} --seconds 0 --rounds 3 --passes 1 --streams 3 --frames 5 --json".split()],
    )
    assert scaling.main() == 0
    result = json.loads(capsys.readouterr().out)
    (row,) = result["rows"]
    for prefix in ("", "control "):
        one, two = row["seconds"][prefix + "one"], row["seconds"][prefix + "all"]
        assert len(one) == len(two) == 3
        key = prefix.replace(" ", "_")
        assert row[key + "scaling"] == sorted(a / b for a, b in zip(one, two, strict=True))[1]
        streams = row["streams"][prefix + "all"]
        assert len(streams) == 3
        assert all(len(times) >= 5 for times in streams)
        tails = sorted(float(np.percentile(times, 95) / np.median(times)) for times in streams)
        assert row[key + "p95_over_p50"] == pytest.approx(tails[1])
    assert row["median_s"] == sorted(row["seconds"]["all"])[1]
    line = scaling.lines(result)[-1].splitlines()[-1]
    assert line.startswith("| small | 48x40 | fp32 |")


def test_control_does_the_work_it_is_given() -> None:
    rounds = control.rounds_for(0.02, 1)
    short, long = (min(_C.fixed_work_seconds("", n, 1, 5)) for n in (rounds, 4 * rounds))
    assert long > 1.5 * short > 0
    with pytest.raises(ValueError, match="rounds must be in"):
        _C.fixed_work_seconds("", 0, 1, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("is_file", [False, True])
def test_memory_of_video(is_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av")
    from tiny import save_tiny

    from benchmarks.video import soak as video_soak

    monkeypatch.setattr(video_soak, "WARM", 0.5)
    result = video_soak.soak(2.0, (64, 48), str(save_tiny(tmp_path)), is_file)
    assert result["frames"] >= 20
    first, last = soak.judge(result["samples"])
    assert abs(last - first) < 16 << 20
