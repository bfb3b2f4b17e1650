"""The comparison of the fused operations with PyTorch: right results, honest ratios, the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from benchmarks import machine, op_report, op_turns, op_work, run  # noqa: E402
from benchmarks.op_cases import CASES, Case, by_name  # noqa: E402
from fastgen import ops  # noqa: E402

TINY = [pytest.param(case.tiny(), id=f"{case.op}-{case.name}") for case in CASES]


@pytest.mark.parametrize("layout", op_work.LAYOUTS)
@pytest.mark.parametrize("case", TINY)
def test_peers_do_the_same_work(case: Case, layout: str) -> None:
    values = op_work.inputs(case, "float32", layout=layout)
    function, arguments = op_work.peer(case, values, layout)
    expected = op_work.reference(case, values, of_peer=True)
    assert op_work.error(function(*arguments), expected) <= op_work.tolerance(case, "float32")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", TINY)
def test_ours_is_measured_doing_the_right_thing(case: Case, dtype: str) -> None:
    values = op_work.inputs(case, dtype)
    expected = op_work.reference(case, values)
    limit = op_work.tolerance(case, dtype)
    tried = [impl for impl in ("ref", "cpu") if ops.why_not(case.op, impl) is None]
    assert "ref" in tried
    for impl in tried:
        assert op_work.error(op_work.ours(case, values, impl)(), expected) <= limit, impl


def test_a_gram_matrix_in_half_precision_does_not_overflow() -> None:
    case = by_name("gram_matrix", "1x3x256x256")
    for layout in op_work.LAYOUTS:
        values = op_work.inputs(case, "float16", layout=layout)
        function, arguments = op_work.peer(case, values, layout)
        found = op_work.error(function(*arguments), op_work.reference(case, values))
        assert found <= op_work.tolerance(case, "float16")


def test_inputs_are_the_same_in_every_process_and_not_trivial() -> None:
    case = by_name("conv_instance_norm", "1x128x64x64-128_k3_reflect").tiny()
    first, second = (op_work.inputs(case, "float32") for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert all(value.std() > 0 for value in first.values())
    other = by_name("conv_instance_norm", "1x128x64x64-64_k3_up2_reflect").tiny()
    assert not torch.equal(first["x"], op_work.inputs(other, "float32")["x"])


def test_error_sees_what_is_wrong() -> None:
    a = torch.ones(2, 3, dtype=torch.float64)
    assert op_work.error(a.float(), [a]) == 0
    assert op_work.error(a * 1.1, [a]) == pytest.approx(0.1)
    assert op_work.error(a * float("nan"), [a]) == float("inf")
    with pytest.raises(ValueError, match="shapes"):
        op_work.error(a[:1], [a])
    with pytest.raises(ValueError, match="shapes"):
        op_work.error((a, a), [a])


def test_ratio_is_to_the_best_peer_round_by_round() -> None:
    case = by_name("gram_matrix", "1x3x256x256")
    found = op_turns.Comparison(case, "float32")
    found.seconds = {
        "cpu nchw": [1.0, 2.0, 1.0],
        "eager nchw": [9.0, 9.0, 9.0],
        "compile nchw": [2.0, 8.0, 3.0],
    }
    found.seconds["eager channels_last"] = [2.5, 9.0, 9.0]
    assert found.best_peer("cpu nchw") == "compile nchw"
    assert found.ratio("cpu nchw") == 3.0  # of 2, 4, 3
    join = op_turns.Comparison(by_name("concat_features", "4x256x32x32+4x64"), "float32")
    join.seconds = {"eager nchw": [1.0], "eager channels_last": [5.0], "compile nchw": [2.0]}
    assert join.best_peer("cpu channels_last") == "eager channels_last"  # as its result must be
    found.errors = {"cpu nchw": float("inf"), "eager nchw": 1e-6}
    assert list(found.wrong()) == ["cpu nchw"]


def test_programs_take_turns(tmp_path: Path) -> None:
    programs = op_turns.Programs(threads=1)
    try:
        for name in ("4x256x32x32+4x64", "1x64x256x256+1x16"):
            found = programs.compare(
                by_name("concat_features", name),
                "bfloat16",
                tmp_path,
                seconds=0,
                rounds=(2, 2),
                tiny=True,
                only=("ref", "eager"),
            )
            assert set(found.seconds) == {"ref nchw", "eager nchw", "eager channels_last"}
            assert all(len(times) == 2 and min(times) > 0 for times in found.seconds.values())
            assert not found.wrong()
            assert not found.refused
    finally:
        programs.close()


def _result() -> dict[str, Any]:
    def item(case: Case, side: str, time: float, **more: Any) -> dict[str, Any]:
        program, layout = side.split()
        info = {
            **{"op": case.op, "case": case.name, "dtype": "float32", "side": program},
            **{"layout": layout, "p50_us": time, "p95_us": time, "flops": case.flops},
            **{"bytes": case.bytes_moved("float32"), "gflop_s": case.flops / time / 1e3},
            **{"gb_s": 3.5, "best_peer": "eager nchw", "asked": case.asked_cpu("float32")},
            **{"speedup_over_best_peer": 300 / time, "error": 1e-7, "rounds": 3, "refused": {}},
            **{"versions": {"torch": "2.13.0"}, **more},
        }
        stats = {"median": time, "rounds": 1, "data": [time / 1e6], "mean": 1.0}
        return {"extra_info": info, "stats": stats, "options": {}, "params": {}}

    gram = by_name("gram_matrix", "1x64x256x256")
    join = by_name("concat_features", "4x256x32x32+4x64")
    return {
        "benchmarks": [
            item(gram, "cpu nchw", 250.0),
            item(gram, "cpu channels_last", 100.0),
            item(gram, "eager nchw", 300.0),
            item(join, "cpu nchw", 300.0, refused={"cpu channels_last": "too narrow"}),
            item(join, "eager nchw", 300.0),
        ],
        "machine_info": machine.describe(),
        "datetime": "2026-01-02T03:04:05",
        "threads": 2,
        "load_before": 0.5,
        "peak": {"avx512": {"gmac_s": 2000.0, "copy_gb_s": 500.0}},
    }


def test_report_shows_every_row_and_marks_what_is_below_what_was_asked() -> None:
    text = op_report.page(run.slim_ops(_result()), "benchmarks/results/x.json")
    assert "**1.20x** | 1.5x" in text  # 300/250 where 1.5 is asked
    assert "3.00x | 1.5x" in text
    assert "1.00x | 1x" in text
    assert "3 of 3 rows are at least as fast as the best peer, 2 as asked." in text
    assert "too narrow" in text
    gram = by_name("gram_matrix", "1x64x256x256")
    assert f"{gram.flops / 4e12 / 250e-6:.0%}" in text  # the multiply-adds bind
    json.dumps(_result())


def test_the_roof_is_of_the_same_precision() -> None:
    peak = {
        "avx512": {"gmac_s": 10.0, "copy_gb_s": 5.0},
        "avx2": {"gmac_s": 6.0, "copy_gb_s": 5.0},
        "avx512-bf16": {"gmac_s": 20.0, "copy_gb_s": 5.0},
    }
    assert op_report.roof(peak, "float32") == (20e9, 5e9)
    assert op_report.roof(peak, "bfloat16") == (40e9, 5e9)
    peak["avx512-bf16"]["gmac_s"] = 10.5  # a loop of float32
    assert op_report.roof(peak, "bfloat16") is None
    del peak["avx512-bf16"]
    assert op_report.roof(peak, "bfloat16") is None
