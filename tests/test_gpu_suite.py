"""The GPU suite's own logic, and a dry run of all of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_suite import build, checks, faults, processes, tables
from benchmarks.gpu_suite.budget import Budget
from benchmarks.gpu_suite.results import Results, write_atomically
from benchmarks.gpu_suite.suite import slug
from benchmarks.op_cases import CASES, DTYPES, OPS, by_name

ROOT = Path(__file__).resolve().parent.parent


# ---------------------------------------------------------------------------- the table of shapes


def test_every_op_has_cases_with_names_of_their_own() -> None:
    assert {case.op for case in CASES} == set(OPS)
    names = [(case.op, case.name) for case in CASES]
    assert len(set(names)) == len(names)
    assert all(by_name(*name) == case for name, case in zip(names, CASES, strict=True))
    with pytest.raises(ValueError, match="known: 1x64x256x256"):
        by_name("gram_matrix", "9x9x9x9")


def test_costs_by_hand() -> None:
    gram = by_name("gram_matrix", "1x3x256x256")
    assert gram.flops == 2 * 3 * 3 * 65536
    assert gram.bytes_moved("float16") == 3 * 65536 * 2 + 9 * 4  # the result is float32
    up = by_name("conv_bn_leaky_relu", "1x128x64x64-64_k3_up2_reflect")
    assert up.output == (1, 64, 128, 128)
    assert up.multiply_adds == 64 * 128 * 128 * 128 * 9
    join = by_name("concat_features", "4x256x32x32+4x64")
    assert join.output == (4, 320, 32, 32)
    assert join.bytes_moved("float32") == 4 * (4 * 256 * 1024 + 4 * 64 + 4 * 320 * 1024)
    strided = by_name("conv_bn_leaky_relu", "1x64x128x128-128_k4_s2_zeros")
    assert strided.output == (1, 128, 64, 64)


def test_tiny_cases_are_small_and_of_the_same_kind() -> None:
    for case in CASES:
        tiny = case.tiny()
        assert tiny.flops < 2e6
        assert (tiny.kernel, tiny.stride, tiny.mode, tiny.upsample) == (
            *(case.kernel, case.stride, case.mode, case.upsample),
        )
        assert len(tiny.style) == len(case.style)
        assert all(side > case.padding for side in tiny.x[2:])


def test_what_is_asked_of_the_cpu() -> None:
    asked = {(case.op, case.name): case.asked_cpu("float32") for case in CASES}
    assert asked["gram_matrix", "1x64x256x256"] == 1.5
    assert asked["gram_matrix", "1x3x256x256"] == 1.0
    assert asked["conv_bn_leaky_relu", "1x64x128x128-64_k3_zeros"] == 1.3
    assert asked["conv_bn_leaky_relu", "1x256x64x64-64_k1"] == 1.0
    assert asked["conv_concat", "1x64x128x128+1x64-64_k3_zeros"] == 1.8
    wide = by_name("conv_bn_leaky_relu", "1x256x32x32-256_k3_zeros")
    assert wide.asked_cpu("bfloat16") == 1.15


# ---------------------------------------------------------------------------- time and processes


def test_budget_counts_down_and_keeps_a_reserve() -> None:
    now = [100.0]
    budget = Budget(60, clock=lambda: now[0])
    assert 40 < budget.left() < 60
    assert budget.share(5) == 5
    now[0] += 55
    assert budget.left() == 0
    assert budget.elapsed() == 55


def _fake_worker(tmp_path: Path, body: str) -> dict[str, str]:
    """An environment in which the worker module is a script of ours."""
    package = tmp_path / "benchmarks" / "gpu_suite"
    package.mkdir(parents=True)
    (tmp_path / "benchmarks" / "__init__.py").touch()
    (package / "__init__.py").touch()
    head = (
        "import json, sys, time, os\n"
        "spec = json.loads(sys.argv[1])\n"
        "jobs = json.load(open(spec['jobs']))\n"
        "def say(**m): print(json.dumps(m), flush=True)\n"
    )
    (package / "worker.py").write_text(head + body, "utf-8")
    return os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": "1"}


def test_jobs_survive_a_crash_and_a_hang(tmp_path: Path) -> None:
    env = _fake_worker(
        tmp_path,
        "for i in range(spec['first'], len(jobs)):\n"
        "    say(started=i)\n"
        "    print('a library says hello')\n"
        "    if jobs[i]['do'] == 'crash': os._exit(9)\n"
        "    if jobs[i]['do'] == 'hang': time.sleep(60)\n"
        "    say(done=i, result={'ok': jobs[i]['do']})\n",
    )
    found: list[tuple[str, dict[str, Any]]] = []
    jobs = [{"do": d} for d in ("a", "crash", "b", "hang", "c")]
    left = processes.run_jobs(
        jobs,
        device="cpu",
        folder=tmp_path / "logs",
        name="jobs",
        env=env,
        seconds=60,
        each=3,
        on_result=lambda job, result: found.append((job["do"], result)),
    )
    assert not left
    assert [do for do, _ in found] == ["a", "crash", "b", "hang", "c"]
    assert found[0][1] == {"ok": "a"}
    assert "code 9" in found[1][1]["failed"]
    assert "3 s" in found[3][1]["failed"]
    assert found[4][1] == {"ok": "c"}


def test_jobs_without_time_are_handed_back(tmp_path: Path) -> None:
    env = _fake_worker(tmp_path, "say(started=0)\ntime.sleep(60)\n")
    found: list[Any] = []
    jobs = [{"do": "a"}, {"do": "b"}]
    left = processes.run_jobs(
        jobs,
        device="cpu",
        folder=tmp_path / "logs",
        name="jobs",
        env=env,
        seconds=1,
        each=30,
        on_result=lambda job, result: found.append(result),
    )
    assert left == jobs
    assert not found


def test_a_worker_that_cannot_start_is_an_error_with_its_words(tmp_path: Path) -> None:
    env = _fake_worker(tmp_path, "raise ImportError('no such engine')\n")
    with pytest.raises(RuntimeError, match=r"did not start \(code 1\).*no such engine"):
        processes.run_jobs(
            [{"do": "a"}],
            device="cpu",
            folder=tmp_path / "logs",
            name="jobs",
            env=env,
            seconds=30,
            each=30,
            on_result=lambda job, result: None,
        )


# ---------------------------------------------------------------------------- build and checks


def test_architecture_names() -> None:
    assert build.architecture((8, 0)) == "80-real"
    assert build.architecture((9, 0)) == "90a-real"


def test_names_of_result_files() -> None:
    assert slug("NVIDIA H200") == "h200"
    assert slug("NVIDIA A100-SXM4-80GB") == "a100-sxm4-80gb"
    assert slug("NVIDIA") == "gpu"


def test_staged_package_has_sources_and_modules(tmp_path: Path) -> None:
    built = tmp_path / "cmake"
    built.mkdir()
    with pytest.raises(build.BuildError, match="no extension module"):
        build.stage(ROOT, built, tmp_path / "package")
    (built / "_cuda.cpython-311-x86_64-linux-gnu.so").write_bytes(b"")
    package = build.stage(ROOT, built, tmp_path / "package") / "fastgen"
    assert (package / "__init__.py").samefile(ROOT / "fastgen" / "__init__.py")
    assert (package / "kernels").samefile(ROOT / "kernels")
    assert [path.name.split(".")[0] for path in package.glob("*.so")] == ["_cuda"]


def _test_line(test: str, outcome: str) -> dict[str, Any]:
    return {"test": test, "outcome": outcome, "reason": "because"}


def test_a_skipped_gpu_test_is_a_problem(tmp_path: Path) -> None:
    lines = [
        _test_line("tests/test_ops.py::test_a[cpu]", "passed"),
        _test_line("tests/test_ops.py::test_a[arm]", "skipped"),
        _test_line("tests/test_ops.py::test_a[cuda]", "skipped"),
        _test_line("tests/test_triton.py::test_b", "failed"),
    ]
    facts, problems = checks.judge_tests(lines[:2], 0, tmp_path / "log")
    assert facts["passed"] == 1
    assert not problems
    _, problems = checks.judge_tests(lines, 1, tmp_path / "log")
    assert [p.split(":")[0] for p in problems] == ["test failed", "GPU test was skipped"]
    _, problems = checks.judge_tests(lines[:2], None, tmp_path / "log")
    assert "did not end in time" in problems[0]
    _, problems = checks.judge_tests([], 0, tmp_path / "log")
    assert problems == ["no test was run"]
    (tmp_path / "log").write_text("INTERNALERROR\n", "utf-8")
    _, problems = checks.judge_tests(lines[:2], 3, tmp_path / "log")
    assert "INTERNALERROR" in problems[0]


def test_pytest_plugin_notes_every_outcome(tmp_path: Path) -> None:
    (tmp_path / "test_x.py").write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2\n"
        "def test_skip(): pytest.skip('no such device')\n",
        "utf-8",
    )
    log = tmp_path / "log.jsonl"
    env = os.environ | {"FASTGEN_SUITE_LOG": str(log), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "benchmarks.gpu_suite.pytest_log"]
    command += ["-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, check=False)
    lines = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    facts, problems = checks.judge_tests(lines, done.returncode, tmp_path / "out")
    assert facts["collected"] == 3
    assert facts["passed"] == 1
    assert "no such device" in facts["skipped"][0]["reason"]
    assert len(problems) == 1
    assert "assert 1 == 2" in problems[0]


def test_what_a_memory_checker_says_is_read(tmp_path: Path) -> None:
    log = tmp_path / "memcheck.log"
    good = json.dumps({"done": 0, "result": {"rows": [{"side": "cuda", "error": 1e-7}]}})
    log.write_text(f"{good}\n========= ERROR SUMMARY: 0 errors\n", "utf-8")
    facts, problems = checks.judge_sanitizer("memcheck", log, 0, 1, True)
    assert facts["calls"] == 1
    assert not problems
    _, problems = checks.judge_sanitizer("memcheck", log, 9, 1, True)
    assert problems == ["memcheck ended with code 9: ERROR SUMMARY: 0 errors"]
    _, problems = checks.judge_sanitizer("memcheck", log, None, 2, True)
    assert "1 of 2 jobs" in problems[0]
    bad = json.dumps({"done": 0, "result": {"rows": [{"side": "cuda", "wrong": "too far off"}]}})
    log.write_text(bad + "\n", "utf-8")
    _, problems = checks.judge_sanitizer("memcheck", log, 0, 1, True)
    assert len(problems) == 3  # wrong, no summary, nothing good


# ---------------------------------------------------------------------------- results


def _data() -> dict[str, Any]:
    def row(side: str, precision: str, time: float, layout: str = "nchw") -> dict[str, Any]:
        return {
            **{"side": side, "layout": layout, "precision": precision, "error": 1e-7},
            **{"p50_us": time, "p20_us": time, "p80_us": time, "call_us": time, "repeats": 9},
        }

    gram = by_name("gram_matrix", "1x64x256x256")
    return {
        "dry_run": False,
        "date": "2026-01-02",
        "elapsed_s": 12.0,
        "device": {"device": "NVIDIA X1", "capability": [9, 0], "memory_gib": 80, "torch": "2.9"},
        "host": {"cpu": "a CPU", "cores": 4},
        "peaks": {
            "copy_gb_s": 1000.0,
            "tflop_s": dict.fromkeys(("fp16", "bf16", "tf32", "fp32"), 100.0),
            "empty_us": 2.0,
        },
        "parts": {"tests": {"passed": 3, "failed": [], "skipped": [], "collected": 3}},
        "problems": [],
        "skipped": ["a long thing"],
        "networks": [],
        "ops": [
            {
                **{"op": gram.op, "case": gram.name, "dtype": "float32", "tiny": False},
                **{"flops": gram.flops, "bytes": gram.bytes_moved("float32")},
                "rows": [
                    row("cuda", "tf32", 40.0),
                    row("cuda", "tf32", 20.0, "channels_last"),
                    row("eager", "tf32", 70.0),
                    row("eager", "tf32", 50.0, "channels_last"),
                    row("eager", "fp32", 10.0),  # another precision: no peer
                    {"side": "triton", "layout": "nchw", "refused": "no"},
                ],
            }
        ],
    }


def test_comparison_takes_the_best_peer_of_the_same_precision() -> None:
    data = _data()
    (line,) = tables.compare(data["ops"][0], data["peaks"])
    assert (line["impl"], line["layout"], line["p50_us"]) == ("cuda", "channels_last", 20.0)
    assert line["over_eager"] == 2.5
    assert "over_compile" not in line
    floor = data["ops"][0]["bytes"] / 1000e3  # us; the copy binds
    assert line["of_roof"] == pytest.approx(floor / 20)
    assert line["reached"] == {"of_roof >= 0.7": True, "over_eager >= 1.5": True}


def test_compiled_rows_join_the_others() -> None:
    data = _data()
    more = {k: v for k, v in data["ops"][0].items() if k != "rows"}
    peer = data["ops"][0]["rows"][2] | {"side": "compile", "p50_us": 30.0}
    tables.merge(data["ops"], more | {"rows": [peer]})
    assert len(data["ops"]) == 1
    (line,) = tables.compare(data["ops"][0], data["peaks"])
    assert line["over_compile"] == 1.5
    tables.merge(data["ops"], more | {"rows": [peer | {"p50_us": 60.0}]})  # measured again
    (line,) = tables.compare(data["ops"][0], data["peaks"])
    assert line["over_compile"] == 3.0
    tables.merge(data["ops"], more | {"dtype": "float16", "rows": []})
    assert len(data["ops"]) == 2


def test_a_second_run_goes_on_from_the_first(tmp_path: Path) -> None:
    earlier = {"kind": "gpu", "dry_run": False, **_data()}
    new = {"kind": "gpu", "dry_run": False, "device": {"device": "NVIDIA X1"}}
    results = Results(tmp_path / "a.json", new)
    results.continue_from(earlier)
    assert results.data["ops"] == earlier["ops"]
    results.done("a long thing")
    results.done("what was never skipped")
    assert results.data["skipped"] == []
    with pytest.raises(ValueError, match="measured on NVIDIA X1, this is NVIDIA X2"):
        Results(tmp_path / "b.json", new | {"device": {"device": "NVIDIA X2"}}).continue_from(
            earlier
        )
    with pytest.raises(ValueError, match="no result of the GPU suite"):
        results.continue_from({"kind": "cpu"})


def test_what_ruins_a_process_is_told_from_what_does_not() -> None:
    assert faults.is_lost("conv failed: an illegal memory access was encountered")
    assert faults.is_lost("CUDA error: misaligned address\nCompile with ...")
    assert not faults.is_lost("CUDA out of memory. Tried to allocate 2 GiB")
    assert not faults.is_lost("CUDA error: invalid argument")


def test_a_ruined_process_leaves_the_rest_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    from benchmarks.gpu_suite import op_jobs

    called = []

    def ruined(case: Any, values: Any, program: str, layout: str, mode: Any) -> Any:
        called.append(program)
        if program == "cuda":
            raise RuntimeError("gram_matrix failed: an illegal memory access was encountered")
        return lambda: op_jobs.op_work.reference(case, values)[0]

    monkeypatch.setattr(op_jobs, "_call", ruined)
    job = {
        **{"op": "gram_matrix", "case": "1x3x256x256", "dtype": "float32", "tiny": True},
        **{"programs": ["ref", "cuda", "triton", "eager"], "precisions": ("fp32",)},
    }
    result = op_jobs.measure(job, None, "cpu")
    assert called == ["ref", "cuda"]
    assert result["rest"] == ["triton", "eager"]
    assert [row["side"] for row in result["rows"]] == ["ref", "cuda"]
    assert "illegal memory access" in result["rows"][1]["failed"]


def test_page_and_summary_say_what_was_found() -> None:
    data = _data()
    text = tables.markdown(data, "x1-2026-01-02")
    for expected in ("NVIDIA X1", "2.50x", "1x64x256x256", "a long thing", "| tf32 | cuda | NHWC"):
        assert expected in text
    assert "passed" in tables.summary(data).splitlines()[-1]
    data["problems"].append("something broke")
    assert "something broke" in tables.markdown(data, "x1")
    assert "FAILED" in tables.summary(data).splitlines()[-1]


def test_results_are_replaced_as_a_whole(tmp_path: Path) -> None:
    results = Results(tmp_path / "new" / "a.json", {"kind": "gpu"})
    results.save()
    results.problem("p")
    results.save()
    assert json.loads(results.path.read_text("utf-8"))["problems"] == ["p"]
    assert [p.name for p in results.path.parent.iterdir()] == ["a.json"]
    write_atomically(tmp_path / "t.md", "x")
    assert (tmp_path / "t.md").read_text("utf-8") == "x"


# ---------------------------------------------------------------------------- all of it


def test_dry_run_takes_the_whole_path(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    command = [sys.executable, "-m", "benchmarks.gpu_suite", "--dry-run", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.glob("dry-run-*.json")
    data = json.loads(path.read_text("utf-8"))
    assert data["problems"] == []
    assert data["skipped"] == []
    measured = {(entry["op"], entry["case"]) for entry in data["ops"]}
    assert measured == {(case.op, case.name) for case in CASES}
    rows = [(e["op"], e["dtype"], r) for e in data["ops"] for r in e["rows"]]
    for op, reasons in data["impls"].items():
        for impl in ("cpu", "triton", "ref"):
            if reasons[impl] is None:
                assert any(o == op and r["side"] == impl and "p50_us" in r for o, _, r in rows)
    assert {d for _, d, _ in rows} <= set(DTYPES)
    assert any(r["side"] == "compile" for _, _, r in rows)
    assert any("p50_us" in r for entry in data["networks"] for r in entry["rows"])
    assert data["parts"]["memcheck"]["calls"] > 0
    assert data["parts"]["tests"]["collected"] > 0
    assert "gram_matrix" in path.with_suffix(".md").read_text("utf-8")


def test_wrong_usage_is_told() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu_suite", "--minutes", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "must be in 0.5..600" in done.stderr
