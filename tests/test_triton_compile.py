"""The Triton kernels compile ahead of time for GPUs that this machine need not have."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from cases import required

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("capability", "dtypes"),
    [(80, ["bfloat16"]), (89, ["float32"]), (90, ["float16", "float32"])],
)
def test_compiles_within_limits(capability: int, dtypes: list[str]) -> None:
    # A GPU's own tests compile what they run; this is for machines that run nothing.
    if find_spec("triton") is None:
        reason = "Triton is not installed; pip install 'fastgen[triton]'"
        if "triton" in required():
            pytest.fail(f"FASTGEN_REQUIRE_IMPLS names it: {reason}")
        pytest.skip(reason)
    # Interpreted kernels cannot be compiled, and Triton reads this variable when it is imported.
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([*sys.path, str(ROOT)])
    command = [sys.executable, "-P", "-m", "benchmarks.triton_resources", "--few"]
    command += ["--capability", str(capability)]
    for dtype in dtypes:
        command += ["--dtype", dtype]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # The command complains of missing matrix instructions, of spills and of shared memory.
    for kernel in ("gram", "gram_reduce", "conv", "conv+norm", "conv_statistics", "concat"):
        found = re.findall(rf"^sm_{capability} {re.escape(kernel)} .*$", done.stdout, re.M)
        assert found, f"no {kernel} was compiled"
        assert all(re.search(r" registers=[1-9]", line) for line in found)


def test_limits_are_enforced() -> None:
    from benchmarks.triton_resources import MACHINES, SPILL_LIMIT, complaints, launches

    name, launch = next(iter(launches(MACHINES[90], ("float16",), every=False)))
    good = {"spill_bytes": SPILL_LIMIT, "shared_bytes": 1024, "wgmma": 4, "mma": 0}
    assert complaints(name, launch, good, 90) == []
    for key, value in (("spill_bytes", SPILL_LIMIT + 1), ("shared_bytes", 2**20), ("wgmma", 0)):
        assert len(complaints(name, launch, good | {key: value}, 90)) == 1


def test_long_sums_are_split_on_a_busy_machine() -> None:
    # Matrix units round towards zero; a batch that fills the machine is no reason for long sums.
    torch = pytest.importorskip("torch")
    from benchmarks.triton_resources import MACHINES
    from fastgen.kernels import gram_matrix

    x = torch.empty(1000, 8, 128, 128, device="meta")
    _, launches = gram_matrix.plan(x, True, MACHINES[90])
    assert launches[0].meta["SPLITS"] == 128 * 128 // gram_matrix.MAX_POSITIONS
