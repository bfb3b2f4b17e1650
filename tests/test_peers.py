"""The comparison with other runtimes: that it compares the same network, and what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from tiny import save_tiny

from fastgen import load_checkpoint, models
from fastgen.checkpoint import Checkpoint
from fastgen.cli import app
from fastgen.cli._race import Process
from fastgen.errors import FastgenError

pytest.importorskip("torch")

from benchmarks.networks import random_checkpoint
from benchmarks.peers import contest, programs, report
from benchmarks.peers.programs import OURS, PROGRAMS, Program


@pytest.fixture
def tiny(tmp_path: Path) -> Checkpoint:
    return load_checkpoint(save_tiny(tmp_path))


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (1, 3, 24, 32)).astype(np.float32)


def _reference(ckpt: Checkpoint, x: np.ndarray) -> np.ndarray:
    from fastgen import backends

    result: np.ndarray = backends.get("torch").compile(ckpt.graph, ckpt.weights).run(x)
    return result


# torch.compile needs a C++ compiler and half a minute: benchmarks/peers checks it when it is used.
QUICK = [p for p in PROGRAMS if p.name != "torch.compile"]


@pytest.mark.parametrize("program", QUICK, ids=lambda p: p.key)
def test_every_program_runs_the_same_network(
    program: Program, tiny: Checkpoint, image: np.ndarray
) -> None:
    reason = programs.why_not(program)
    if reason is not None:
        pytest.skip(reason)
    expected = _reference(tiny, image)
    call = program.build(tiny, {"image": image}, 1)
    first = np.array(call())
    assert first.shape == expected.shape
    scale = np.abs(expected).max()
    error = np.abs(first - expected).max() / scale
    assert error <= (1e-4 if program.precision == "fp32" else 0.1)
    np.testing.assert_allclose(call(), first, atol=1e-4 * scale)  # nothing is used up


def test_the_ncnn_writer_refuses_what_it_cannot_write(tmp_path: Path) -> None:
    from benchmarks.peers import to_ncnn

    path = random_checkpoint(models.create("johnson_net", width=2), tmp_path / "a.safetensors")
    ckpt = load_checkpoint(path)
    with pytest.raises(ValueError, match=r"op '\w+' cannot be written for ncnn"):
        to_ncnn.write(ckpt.graph, ckpt.weights, tmp_path)


def test_random_networks_fill_the_range_of_pictures(tmp_path: Path, image: np.ndarray) -> None:
    """Otherwise an error of theirs would be small beside 255 however wrong they are."""
    for name in ("transformer_net", "compact_net"):
        path = random_checkpoint(models.create(name, width=8), tmp_path / f"{name}.safetensors")
        result = _reference(load_checkpoint(path), image)
        assert 25 < result.clip(0, 255).std() < 100


@pytest.fixture
def side(tmp_path: Path) -> Iterator[Any]:
    """Starts measured processes and ends them."""
    started: list[Process] = []

    def start(program: str) -> Process:
        spec = {"program": program, "checkpoint": str(save_tiny(tmp_path)), "threads": 1}
        started.append(Process("benchmarks.peers.side", spec))
        return started[-1]

    yield start
    for process in started:
        process.close()


def test_a_measured_process(side: Any, tmp_path: Path, tiny: Checkpoint, image: np.ndarray) -> None:
    expected = _reference(tiny, image)
    np.save(tmp_path / "x.npy", image)
    np.save(tmp_path / "same.npy", expected)
    np.save(tmp_path / "other.npy", 255.0 - expected)
    process = side("PyTorch eager fp32")
    with pytest.raises(FastgenError, match="nothing was prepared"):
        process.ask("step")
    photo = str(tmp_path / "x.npy")
    good = process.ask(json.dumps({"photo": photo, "reference": str(tmp_path / "same.npy")}))
    assert good["passed"]
    assert good["max_abs"] <= 0.02
    assert process.ask("step") > 0
    bad = process.ask(json.dumps({"photo": photo, "reference": str(tmp_path / "other.npy")}))
    assert not bad["passed"]
    with pytest.raises(FastgenError, match=r"gone\.npy"):  # and it lives on
        process.ask(json.dumps({"photo": str(tmp_path / "gone.npy"), "reference": photo}))
    assert process.ask(json.dumps({"photo": photo, "reference": str(tmp_path / "same.npy")}))


def test_contest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two that can run and one that is not installed; the report has all three."""
    path = save_tiny(tmp_path)
    monkeypatch.setattr(contest, "network", lambda name, folder: (str(path), "a tiny network"))
    absent = replace(PROGRAMS[-1], name="absent", packages=("no_such_package",))
    chosen = [p for p in PROGRAMS if p.key in ("PyTorch eager fp32", f"{OURS} fp32")]
    able = [p.key for p in chosen if programs.why_not(p) is None]
    rows = contest.contest(
        ["small"], [(32, 24)], threads=1, seconds=0, rounds=(2, 2), programs=[*chosen, absent]
    )
    assert [f"{r['program']} {r['precision']}" for r in rows] == [
        *(p.key for p in chosen),
        "absent fp32",
    ]
    for row in rows:
        key = f"{row['program']} {row['precision']}"
        assert (row["network"], row["size"]) == ("small", "32x24")
        if key in able:
            assert row["passed"]
            assert len(row["seconds"]) == 2
        else:
            assert row["refused"]
    assert rows[-1]["refused"] == "not installed: pip install no_such_package"
    text = "\n".join(report.lines(_result(rows)))
    assert "not installed: pip install no_such_package" in text
    assert "small network, 32x24 (a tiny network)" in text


def _row(seconds: list[float], passed: bool = True) -> dict[str, Any]:
    found = {"max_abs": 0.5, "psnr": 48.25, "ssim": 1.0, "gate": {"psnr": 40}, "build_s": 0.1}
    return found | {"seconds": seconds, "passed": passed}


def _rows() -> list[dict[str, Any]]:
    table: dict[str, dict[str, Any]] = {
        p.key: {"refused": "not installed: pip install x"} for p in PROGRAMS
    }
    table[f"{OURS} bf16"] = _row([0.010, 0.020, 0.040])
    table["OpenVINO bf16"] = _row([0.030, 0.020, 0.060], passed=False)
    table["PyTorch eager bf16"] = _row([0.9, 0.9, 0.9])
    table["ONNX Runtime fp32"] = _row([0.001, 0.001, 0.001])
    table[f"{OURS} int8"] = _row([0.005, 0.010, 0.010])
    table["OpenVINO int8"] = _row([0.020, 0.015, 0.010])
    common = {"network": "full", "weights": "w", "size": "256x256"}
    return [common | row for row in contest.finish(PROGRAMS, table, 1e9)]


def _result(rows: list[dict[str, Any]]) -> dict[str, Any]:
    machine = {"cpu": "c", "flags": [], "system": "s", "machine": "m", "python": "3"}
    return {
        **{"datetime": "2026-01-02T03:04:05", "machine_info": machine, "threads": 2},
        **{"versions": {"torch": "2.13", "ncnn": None}, "load_before": 0.0, "rows": rows},
        "peak": {"avx2": {"gmac_s": 30.0, "copy_gb_s": 10.0}},
    }


def test_ratio_is_to_the_best_peer_of_the_same_precision() -> None:
    rows = {f"{r['program']} {r['precision']}": r for r in _rows()}
    ours = rows[f"{OURS} bf16"]
    assert (ours["best_peer"], ours["ratio"]) == ("OpenVINO bf16", 1.5)  # 3, 1, 1.5
    assert ours["gmac_s"] == pytest.approx(50)
    ours = rows[f"{OURS} int8"]  # beside those of bf16, too: 6, 2, 6
    assert (ours["best_peer"], ours["ratio"]) == ("OpenVINO int8", 1.5)
    assert (ours["best_peer_bf16"], ours["ratio_bf16"]) == ("OpenVINO bf16", 6)
    assert "ratio" not in rows["OpenVINO bf16"]
    assert "median_s" not in rows[f"{OURS} fp32"]


def test_report(tmp_path: Path) -> None:
    result = _result(_rows())
    text = report.section(result, "benchmarks/results/peers-x.json")
    for expected in (
        "| fastgen | bf16 | 20.0 | 38.0 | 50 | 0.5000 | 48.2 | held | 1.50x OpenVINO bf16 |",
        "| FAILED |",
        "not installed: pip install x",
        "avx2 30",
        "peers-x.json",
        "| held | 1.50x OpenVINO int8, 6.00x OpenVINO bf16 |",
    ):
        assert expected in text
    assert "ncnn None" not in text
    assert report.fill(report.PAGE.read_text("utf-8"), text, report.MARKS).count(text) == 1
    pytest.importorskip("matplotlib")
    report.picture(result, tmp_path / "peers.png")
    assert (tmp_path / "peers.png").read_bytes().startswith(b"\x89PNG")


def test_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(subprocess, "run", run)
    arguments = "bench --peers --sizes 64x48 32x16 --networks small half --threads 2 --save"
    assert CliRunner().invoke(app, arguments.split()).exit_code == 3
    (command,) = commands
    assert command[:3] == [sys.executable, "-m", "benchmarks.peers"]
    text = " ".join(command[3:])
    assert text.startswith("--save ")
    assert "--sizes 64x48 32x16 " in text
    assert "--networks small half " in text
    assert text.endswith("--threads 2")
    for wrong in ("--save", "--networks full", "--peers -s starry_night", "--peers --peer cpu"):
        result = CliRunner().invoke(app, ["bench", *wrong.split()])
        assert result.exit_code == 2, wrong
        assert "--peers" in result.stderr
    assert len(commands) == 1
