"""The measuring itself: statistics, the peer program, and the report made of the results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import machine, report
from benchmarks.networks import ARCHITECTURES, random_checkpoint
from fastgen import models
from fastgen.cli._machine import usable_cores


def test_small_network_is_small() -> None:
    cost = {}
    for name, (builder, config) in ARCHITECTURES.items():
        cost[name] = models.create(builder, **config).multiply_adds({"image": (1, 3, 256, 256)})
    assert cost["small"] * 12 <= cost["full"]


def test_random_checkpoint_keeps_activations_finite(tmp_path: Path) -> None:
    import fastgen

    path = random_checkpoint(models.create("compact_net"), tmp_path / "net.safetensors")
    photo = np.random.default_rng(2).integers(0, 256, (32, 40, 3), np.uint8)
    result = fastgen.stylize(photo, path, backend="torch")
    assert result.shape == photo.shape
    assert result.std() > 0


def test_peer_script_is_the_same_network(tmp_path: Path) -> None:
    """The script that the whole-process figure compares with computes the same function."""
    torch = pytest.importorskip("torch")
    from benchmarks.peer_script import TransformerNet
    from benchmarks.whole_process import _peer_name
    from fastgen import backends, load_checkpoint

    path = random_checkpoint(models.create("transformer_net", width=4), tmp_path / "a.safetensors")
    ckpt = load_checkpoint(path)
    net = TransformerNet(width=4).eval()
    net.load_state_dict(
        {
            f"{_peer_name(key.split('.')[0])}.{key.split('.')[1]}": torch.from_numpy(value)
            for key, value in ckpt.weights.items()
        }
    )
    x = np.random.default_rng(3).uniform(0, 255, (1, 3, 24, 32)).astype(np.float32)
    with torch.inference_mode():
        expected = net(torch.from_numpy(x)).numpy()
    found = backends.get("torch").compile(ckpt.graph, ckpt.weights).run(x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4 * np.abs(expected).max())


def test_machine_is_described_but_not_named() -> None:
    facts = {"cpu", "flags", "cores", "memory_gib", "system", "machine", "python"}
    assert set(machine.describe()) == facts
    json.dumps(machine.describe())
    assert machine.slug().endswith(f"-{usable_cores()}c")


def _result() -> dict[str, Any]:
    benchmarks = []
    for size, architecture, ratio in (("256x256", "small", 2.5), ("512x512", "small", 1.25)):
        for backend in ("cpu", "torch"):
            info = {
                "size": size,
                "architecture": architecture,
                "backend": backend,
                "precision": "fp32",
                "weights": "random weights",
                **{key: 1.5 for key in ("p50_ms", "p95_ms", "p99_ms", "fps", "mpix_s", "gmac_s")},
                "memory_growth_mib": 10.0 if backend == "cpu" else 70.0,
                "speedup_over_torch": ratio if backend == "cpu" else 1.0,
                "rounds": 7,
                "versions": {"torch": "2.13.0"},
            }
            benchmarks.append({"extra_info": info})
    side = {"wall_s": [1.0, 2.0], "wall_s_median": 1.5, "peak_bytes_median": 2**26}
    return {
        "benchmarks": benchmarks,
        "machine_info": machine.describe(),
        "datetime": "2026-01-02T03:04:05",
        "load_before": 0.25,
        "peak": {"avx2": {"gmac_s": 30.0, "copy_gb_s": 10.0}},
        "whole_process": {
            **{"fastgen": side, "torch": side, "speedup": 4.0},
            **{"size": "512x512", "weights": "random weights", "largest_difference": 1},
        },
    }


def test_report_says_what_was_measured() -> None:
    text = report.page(_result(), "benchmarks/results/x.json")
    for expected in (
        "2.50x",
        "1.25x",
        "10 / 70 MiB",
        "4.00x",
        "64 MiB",
        "2026-01-02",
        "x.json",
        "0.2 cores",
    ):
        assert expected in text
    begin, end = report.MARKS
    readme = report.fill(f"a\n{begin}\nold\n{end}\nb\n", "new")
    assert readme == f"a\n{begin}\nnew\n{end}\nb\n"
    with pytest.raises(ValueError, match="lacks"):
        report.fill("no marks", "new")


def test_report_refuses_half_a_pair() -> None:
    result = _result()
    result["benchmarks"].pop()
    with pytest.raises(ValueError, match="both sides"):
        report.rows(result)


def test_report_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report.picture(_result(), tmp_path / "latency.png")
    assert (tmp_path / "latency.png").read_bytes().startswith(b"\x89PNG")
