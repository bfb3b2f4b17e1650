"""The CUDA kernels compile for both architectures, within their registers, to what was meant."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks import cuda_resources

PTXAS = """\
ptxas info    : Compiling entry function '_Z1kPf' for 'sm_80'
ptxas info    : Function properties for _Z1kPf
    48 bytes stack frame, 40 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 360 bytes cmem[0]
"""
SASS = """\
        Function : _Z1kPf
        /*0000*/                   LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;
        /*0010*/              @!P0 HMMA.16816.F32 R4, R8, R12, R4 ;
        /*0020*/                   STL [R1], R4 ;
"""


@pytest.fixture(scope="module")
def entries() -> list[dict[str, Any]]:
    reason = cuda_resources.why_not()
    if reason:
        pytest.skip(reason)
    return cuda_resources.measure()


def test_reading_the_compiler() -> None:
    (entry,) = cuda_resources.parse_ptxas(PTXAS)
    assert entry == {
        "symbol": "_Z1kPf",
        "arch": "sm_80",
        "stack": 48,
        "spills": 40,
        "registers": 40,
    }
    counts = cuda_resources.count_instructions(SASS)["_Z1kPf"]
    assert (counts["HMMA"], counts["LDG.128"], counts["local"], counts["LDSM"]) == (1, 1, 1, 0)
    bad = {**entry, "kernel": "conv_kernel float", "instructions": counts}
    assert [line.split(" for sm_80 ")[1] for line in cuda_resources.problems([bad])] == [
        "spills 40 bytes, stack 48",
        "has no LDGSTS.128",
    ]
    silent = {**bad, "kernel": "sum_kernel", "stack": 0, "spills": 0}
    assert [line.split(" for sm_80 ")[1] for line in cuda_resources.problems([silent])] == [
        "uses local memory that the compiler did not report"
    ]


def test_every_kernel_keeps_the_rules(entries: list[dict[str, Any]]) -> None:
    assert {entry["arch"] for entry in entries} == set(cuda_resources.ARCHS)
    assert cuda_resources.problems(entries) == []


def test_the_committed_table_names_every_kernel(entries: list[dict[str, Any]]) -> None:
    committed = json.loads(cuda_resources.JSON.read_text())["kernels"]
    assert {(e["kernel"], e["arch"]) for e in committed} == {
        (e["kernel"], e["arch"]) for e in entries
    }, "run python -m benchmarks.cuda_resources"
