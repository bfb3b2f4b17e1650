"""The GPU tests, where a skip is a failure, and the memory checker over the CUDA kernels."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_suite.processes import run_command, tail, worker_command
from fastgen.cli._machine import usable_cores

__all__ = ["judge_sanitizer", "judge_tests", "run_sanitizer", "run_tests"]

# The other tests of kernels compile, interpret or emulate them, which needs no GPU but minutes.
_FILES = ("tests/test_ops*.py", "tests/test_cuda_gpu.py")
_GPU = ("cuda", "triton")


def run_tests(
    root: Path, folder: Path, stage: Path | None, env: dict[str, str], seconds: float, dry: bool
) -> tuple[dict[str, Any], list[str]]:
    """Runs the tests of the operations; a dry run only collects them.

    Returns:
        Counts and what failed or was skipped; and the problems.
    """
    files = sorted(str(p.relative_to(root)) for f in _FILES for p in root.glob(f))
    log = folder / "tests.jsonl"
    log.unlink(missing_ok=True)
    if not files:
        return {}, [f"there are no tests {', '.join(_FILES)}"]
    command = [sys.executable, "-m", "pytest", *files, "-q", "-p", "no:cacheprovider"]
    command += ["-p", "benchmarks.gpu_suite.pytest_log", "-W", "default"]
    command += ["-p", "no:benchmark"]  # it warns about xdist
    # Before the sources, whose package has no extension modules.
    command += ["-o", f"pythonpath={stage}"] if stage else ["-o", "pythonpath="]
    if dry:
        command += ["--collect-only"]
    elif importlib.util.find_spec("xdist"):
        command += ["-n", str(max(2, min(12, usable_cores() - 4)))]
    # One pool of compilers for each test process would be too many.
    env = env | {"FASTGEN_SUITE_LOG": str(log), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    if not dry:
        env["FASTGEN_REQUIRE_IMPLS"] = ",".join(_GPU)
    output = folder / "tests.log"
    code = run_command(command, env=env, log=output, seconds=seconds, cwd=root)
    lines = log.read_text("utf-8").splitlines() if log.exists() else []
    return judge_tests([json.loads(line) for line in lines], code, output, dry)


def judge_tests(
    lines: Sequence[dict[str, Any]], code: int | None, output: Path, dry: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """Counts and problems of a test run.

    Args:
        lines: of ``pytest_log``.
        code: pytest's exit code; None when time was up.
        output: pytest's log.
        dry: nothing but the collection was asked for.
    """
    tests = [line for line in lines if "test" in line]
    by = {kind: [t for t in tests if t["outcome"] == kind] for kind in ("passed", "failed")}
    skipped = [t for t in tests if t["outcome"] == "skipped"]
    gpu_skips = [t for t in skipped if any(word in t["test"].lower() for word in _GPU)]
    collected = max([line["collected"] for line in lines if "collected" in line], default=0)
    found = {
        "passed": len(by["passed"]),
        "failed": by["failed"],
        "skipped": skipped,
        "collected": collected,
        "exit_code": code,
    }
    problems = [f"test failed: {t['test']}: {t['reason']}" for t in by["failed"]]
    problems += [f"GPU test was skipped: {t['test']}: {t['reason']}" for t in gpu_skips]
    if code is None:
        problems.append(f"the tests did not end in time; {len(tests)} had ended, see {output}")
    elif code and not by["failed"]:
        problems.append(f"pytest ended with code {code}; {output}: {tail(output)}")
    if code == 0 and not (collected if dry else by["passed"]):
        problems.append("no test was run")
    return found, problems


def run_sanitizer(
    tool: str,
    jobs: Sequence[dict[str, Any]],
    folder: Path,
    env: dict[str, str],
    seconds: float,
    device: str,
    root: Path,
) -> tuple[dict[str, Any], list[str]]:
    """Runs checks of small sizes under compute-sanitizer; on a CPU without it.

    Args:
        tool: ``"memcheck"`` or ``"racecheck"``.
        jobs: check jobs.
        folder: for the log.
        env: environment.
        seconds: at most.
        device: ``"cuda"`` or ``"cpu"``.
        root: of the sources.
    """
    prefix: list[str] = []
    if device == "cuda":
        program = shutil.which("compute-sanitizer", path=env.get("PATH"))
        if program is None:
            return {}, ["compute-sanitizer was not found; it is part of the CUDA toolkit"]
        prefix = [program, "--tool", tool, "--error-exitcode", "9"]
        # Libraries ask the driver for things that it may not have; our calls check themselves.
        prefix += ["--report-api-errors", "no"] if tool == "memcheck" else []
        if tool == "racecheck":  # it is slow; only kernels of ours
            prefix += ["--kernel-regex", "kns=fastgen"]
        # Every tensor its own allocation, so that running over its end is seen.
        env = env | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    log = folder / f"{tool}.log"
    command = worker_command(jobs, folder, tool, device)
    code = run_command([*prefix, *command], env=env, log=log, seconds=seconds, cwd=root)
    return judge_sanitizer(tool, log, code, len(jobs), bool(prefix))


def judge_sanitizer(
    tool: str, log: Path, code: int | None, jobs: int, checked: bool
) -> tuple[dict[str, Any], list[str]]:
    """What the log of a memory checker says.

    Args:
        tool: its name.
        log: of checker and worker.
        code: exit code; None when time was up.
        jobs: how many there were.
        checked: whether the checker itself ran.
    """
    text = log.read_text("utf-8", errors="replace")
    results = [
        json.loads(line)["result"] for line in text.splitlines() if line.startswith('{"done"')
    ]
    rows = [row for result in results for row in result.get("rows", [])]
    good = [row for row in rows if "error" in row and "wrong" not in row]
    bad = [r["failed"] for r in [*results, *rows] if "failed" in r]
    bad += [row["wrong"] for row in rows if "wrong" in row]
    summary = [line.strip("= \t") for line in text.splitlines() if "SUMMARY:" in line]
    found = {
        "exit_code": code,
        "jobs": len(results),
        "of": jobs,
        "calls": len(good),
        "summary": summary,
    }
    problems = [f"{tool}: {text}" for text in dict.fromkeys(bad)]
    if code is None:
        problems.append(f"{tool} did not end in time ({len(results)} of {jobs} jobs); see {log}")
    elif code:
        problems.append(f"{tool} ended with code {code}: {'; '.join(summary) or tail(log)}")
    elif checked and not summary:
        problems.append(f"{tool} gave no summary; see {log}")
    if code == 0 and not good:
        problems.append(f"{tool}: nothing was checked; see {log}")
    return found, problems
