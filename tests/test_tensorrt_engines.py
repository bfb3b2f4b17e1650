"""Engines on disk: the key, the sizes that one serves, the cache."""

from __future__ import annotations

import inspect
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from fastgen import models
from fastgen.backends._engines import (
    EngineCache,
    engine_key,
    network_hash,
    profile_for,
    profile_holds,
)
from fastgen.cli import app
from fastgen.errors import GraphError

PROFILE = {"image": ((1, 3, 8, 8), (1, 3, 64, 64), (1, 3, 64, 64))}
FACTS: dict[str, Any] = dict(
    network="a",
    profile=PROFILE,
    precision="fp16",
    library="11.1.0.106",
    flavour="full",
    device="NVIDIA H200",
    capability="9.0",
    driver=13000,
    fastgen="0.1.0",
    options={},
)
CHANGES: dict[str, Any] = dict(
    network="b",
    profile={"image": ((1, 3, 8, 8), (1, 3, 64, 64), (2, 3, 64, 64))},
    precision="fp32",
    library="11.1.0.107",
    flavour="lean",
    device="NVIDIA H100",
    capability="10.0",
    driver=13010,
    fastgen="0.1.1",
    options={"level": 5},
)
TOLD = {"model": "m", "precision": "fp16", "largest": {"image": [1, 3, 64, 64]}}
TOLD |= {"library": "full 11.1.0.106", "device": "NVIDIA H200"}


def test_every_fact_changes_the_key() -> None:
    assert set(inspect.signature(engine_key).parameters) == set(FACTS) == set(CHANGES)
    keys = [engine_key(**FACTS), *(engine_key(**FACTS | {k: v}) for k, v in CHANGES.items())]
    assert len(set(keys)) == len(keys)
    assert all(len(k) == 32 and set(k) <= set("0123456789abcdef") for k in keys)
    assert engine_key(**FACTS) == keys[0]


def test_the_network_is_graph_and_weights() -> None:
    graph = models.create("compact_net", width=2, blocks=1)
    weights = {k: np.zeros(s, np.float32) for k, s in graph.weight_shapes().items()}
    first = network_hash(graph, weights)
    assert network_hash(graph, dict(reversed(weights.items()))) == first
    assert network_hash(graph, {k: v.astype(np.float16) for k, v in weights.items()}) == first
    weights["out.bias"] = weights["out.bias"].copy()
    weights["out.bias"][0] = np.float32(1e-30)
    assert network_hash(graph, weights) != first
    other = models.create("compact_net", width=2, blocks=1, norm="batch")
    assert network_hash(other, weights) != network_hash(graph, weights)


@pytest.mark.parametrize(
    ("shape", "largest"),
    [
        ((1, 3, 8, 8), (1, 3, 256, 256)),
        ((1, 3, 720, 1280), (1, 3, 768, 1280)),
        ((1, 3, 1080, 1920), (1, 3, 1088, 1920)),
        ((2, 3, 256, 260), (4, 3, 256, 512)),
        ((65, 3, 8, 7684), (128, 3, 256, 15360)),
    ],
)
def test_sizes_of_an_engine(shape: tuple[int, ...], largest: tuple[int, ...]) -> None:
    graph = models.create("compact_net", width=2, blocks=1)
    profile = profile_for(graph, {"image": shape})
    low, best, high = profile["image"]
    assert (low, best, high) == (graph.smallest_shapes()["image"], largest, largest)
    assert profile_holds(profile, {"image": shape})
    assert profile_holds(profile, {"image": low})
    assert not profile_holds(profile, {"image": (shape[0], 3, shape[2], largest[3] + 4)})
    assert not profile_holds(profile, {"other": shape})
    # The same engine serves everything below: its own largest size has the same profile.
    assert profile_for(graph, {"image": largest}) == profile


def test_sizes_that_do_not_fit_the_graph() -> None:
    graph = models.create("compact_net", width=2, blocks=1)
    with pytest.raises(GraphError):
        profile_for(graph, {"image": (1, 4, 64, 64)})


class _Build:
    def __init__(self, *plans: bytes) -> None:
        self.plans, self.calls = list(plans), 0

    def __call__(self) -> bytes:
        self.calls += 1
        return self.plans.pop(0)


def _open(plan: bytes) -> str:
    if plan.startswith(b"bad"):
        raise ValueError("not accepted")
    return plan.decode()


def test_built_once_then_found(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "new")
    build = _Build(b"plan")
    assert cache.get("k", TOLD, _open, build) == "plan"
    assert cache.get("k", TOLD, _open, build) == "plan"
    assert build.calls == 1
    (entry,) = cache.entries()
    assert (entry.key, entry.facts["model"]) == ("k", "m")
    assert os.listdir(tmp_path / "new") == ["k.engine"]
    assert (tmp_path / "new").stat().st_mode & 0o077 == 0


def test_one_that_is_not_accepted_is_built_again_once(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    cache.store("k", b"bad old one", TOLD)
    build = _Build(b"plan")
    assert cache.get("k", TOLD, _open, build) == "plan"
    assert (build.calls, cache.load("k")) == (1, b"plan")
    cache.store("k", b"bad old one", TOLD)
    build = _Build(b"bad new one", b"never asked for")
    with pytest.raises(ValueError, match="not accepted"):
        cache.get("k", TOLD, _open, build)
    assert (build.calls, cache.load("k")) == (1, None)


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign", "header", "empty"])
def test_damaged_files_are_no_engines(tmp_path: Path, damage: str) -> None:
    cache = EngineCache(tmp_path)
    cache.store("k", b"plan" * 100, TOLD)
    path = tmp_path / "k.engine"
    data = path.read_bytes()
    path.write_bytes(
        {
            "cut": data[:-1],
            "flipped": data[:-1] + bytes([data[-1] ^ 1]),
            "foreign": b"something else\n" + data,
            "header": data.replace(b"{", b"[", 1),
            "empty": b"",
        }[damage]
    )
    assert cache.load("k") is None
    assert not path.exists()


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> bytes:
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        EngineCache(tmp_path).get("k", TOLD, _open, fail)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_costs_no_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = EngineCache(tmp_path / "file" / "engines")
    assert cache.get("k", TOLD, _open, _Build(b"plan")) == "plan"
    assert cache.entries() == []
    cache.store_timing("t", b"1")
    assert cache.timing("t") == b""


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path, limit=3500)
    for number, key in enumerate("abc"):
        cache.store(key, b"x" * 900, TOLD)
        os.utime(tmp_path / f"{key}.engine", (number, number))
    assert cache.load("a")  # now the newest
    cache.store("d", b"x" * 900, TOLD)
    assert {e.key for e in cache.entries()} == {"a", "c", "d"}
    cache.store("e", b"x" * 9000, TOLD)  # larger than everything: kept, alone
    assert [e.key for e in cache.entries()] == ["e"]


def test_the_limit_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTGEN_ENGINE_CACHE_BYTES", "1000")
    assert EngineCache().limit == 1000
    monkeypatch.setenv("FASTGEN_ENGINE_CACHE_BYTES", "4GB")
    with pytest.raises(ValueError, match="FASTGEN_ENGINE_CACHE_BYTES is '4GB'"):
        EngineCache()


def test_the_folder_comes_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("FASTGEN_ENGINE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert EngineCache().folder == tmp_path / "fastgen" / "engines"
    monkeypatch.setenv("FASTGEN_ENGINE_CACHE", str(tmp_path / "mine"))
    assert EngineCache().folder == tmp_path / "mine"


def test_timing_caches(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    assert cache.timing("full-11") == b""
    cache.store_timing("full-11", b"measured")
    assert cache.timing("full-11") == b"measured"
    assert cache.timing("full-10") == b""
    assert cache.entries() == []
    cache.store("k", b"plan", TOLD)
    assert cache.clear() == 1
    assert not list(tmp_path.iterdir())


def test_commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FASTGEN_ENGINE_CACHE", str(tmp_path))
    EngineCache().store("k", b"plan", TOLD)
    (tmp_path / "damaged.engine").write_bytes(b"")
    listed = CliRunner().invoke(app, ["engine", "list"])
    assert listed.exit_code == 0, listed.output
    assert "m fp16, up to image 1x3x64x64, full 11.1.0.106 for NVIDIA H200" in listed.output
    assert "2 engines" in listed.output
    rows = json.loads(CliRunner().invoke(app, ["engine", "list", "--json"]).output)
    assert {r["key"] for r in rows["engines"]} == {"k", "damaged"}
    cleared = CliRunner().invoke(app, ["engine", "clear"])
    assert cleared.output.startswith("2 engines deleted")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("-o", "a.plan", "--size", "8x8", "--size", "9x9"), "-o takes one --size"),
        (("--version-compatible",), "--version-compatible is for engines in files"),
        (("--precision", "int8"), "'int8' is not one of"),
        (("--size", "1280"), "'1280' is not WIDTHxHEIGHT"),
    ],
)
def test_wrong_usage(args: tuple[str, ...], text: str) -> None:
    result = CliRunner().invoke(app, ["engine", "build", "-s", "starry_night", *args])
    assert result.exit_code == 2
    assert text in result.stderr
    assert result.stderr.count("\n") == 1
