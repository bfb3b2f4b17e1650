"""The comparison of generators: that every program runs the same network with the same style."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastgen import backends

pytest.importorskip("torch")

from benchmarks.generate.__main__ import COMPARED
from benchmarks.generate.cases import inputs, network
from benchmarks.generate.side import Side
from benchmarks.peers.programs import Program, why_not

NETWORK, BATCH = "saae_plates", 2


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    ckpt = network(NETWORK)
    (wanted,) = (
        backends.get("torch")
        .compile(ckpt.graph, ckpt.weights, "fp32", 1)
        .run(inputs(ckpt.graph, BATCH))
        .values()
    )
    path = tmp_path_factory.mktemp("generate") / "wanted.npy"
    np.save(path, wanted)
    return path


# torch.compile needs a C++ compiler and half a minute: the benchmark checks it when it is used.
@pytest.mark.parametrize(
    "program", [p for p in COMPARED if p.name != "torch.compile"], ids=lambda p: p.key
)
@pytest.mark.parametrize("encoded", [True, False], ids=["encoded", "kept"])
def test_every_program_generates_the_same(program: Program, encoded: bool, reference: Path) -> None:
    if reason := why_not(program):
        pytest.skip(reason)
    side = Side(program.key, 1)
    found = side.prepare(NETWORK, BATCH, encoded, str(reference))
    assert found["passed"], found
    assert found["calls"] >= 1
