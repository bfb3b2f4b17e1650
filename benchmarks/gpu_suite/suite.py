"""The parts of a run and their order."""

from __future__ import annotations

import datetime
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.gpu_suite import build, checks, network_plan, tables
from benchmarks.gpu_suite.budget import Budget
from benchmarks.gpu_suite.frame_jobs import LEAST_PSNR
from benchmarks.gpu_suite.processes import end_all, run_jobs
from benchmarks.gpu_suite.results import Results, write_atomically
from benchmarks.op_cases import CASES, DTYPES

__all__ = ["PARTS", "Options", "Suite", "slug"]

ROOT = Path(__file__).resolve().parent.parent.parent
PARTS = ("build", "tests", "ops", "networks", "compile")
_IMPLS = ("cuda", "triton")  # that a GPU run must have
_PRECISIONS = {
    "float16": ("fp16",),
    "float32": ("tf32", "fp32"),
    "bfloat16": ("bf16",),
}


@dataclass(frozen=True)
class Options:
    """What was asked for.

    Attributes:
        dry_run: on a CPU, with sizes that prove nothing about speed.
        output: folder of the result.
        minutes: for everything.
        parts: which of ``PARTS``.
        add: result of an earlier run on this device, to go on from.
    """

    dry_run: bool
    output: Path
    minutes: float
    parts: tuple[str, ...] = PARTS
    add: Path | None = None


def slug(name: str) -> str:
    """A file name's worth of a GPU's name, e.g. ``h200``."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower().replace("nvidia", "")).strip("-") or "gpu"


class Suite:
    """One run.

    Args:
        options: what was asked for.
        say: called with lines about progress.
    """

    def __init__(self, options: Options, say: Callable[[str], None]) -> None:
        self.options = options
        self.dry = options.dry_run
        self.device = "cpu" if self.dry else "cuda"
        self.say = say
        self.budget = Budget(options.minutes * 60)
        self.folder = ROOT / "build" / "gpu_suite"
        self.stage: Path | None = None
        self.results: Results | None = None
        self._elapsed_before = 0.0
        self._again: list[dict[str, Any]] = []  # what is left of jobs that ruined their process

    # ------------------------------------------------------------------ running

    def run(self) -> int:
        """Runs the parts; 0 when all is well, 1 with problems, 2 when there is no device."""
        probe = self._one({"kind": "probe"}, "probe")
        if not self.dry and not probe.get("device"):
            reason = probe.get("failed", "torch sees no CUDA device")
            print(f"gpu_suite: no GPU to measure ({reason}); try --dry-run", file=sys.stderr)
            return 2
        today = datetime.date.today().isoformat()
        name = "dry-run" if self.dry else slug(probe["device"])
        self.results = Results(
            self.options.output / f"{name}-{today}.json",
            {
                "kind": "gpu",
                "dry_run": self.dry,
                "date": today,
                "commit": _commit(),
                "device": probe,
                "host": machine.describe(),
            },
        )
        if self.options.add:
            try:
                earlier = json.loads(self.options.add.read_text("utf-8"))
                self.results.continue_from(earlier)
            except (OSError, ValueError) as error:
                print(f"gpu_suite: --add {self.options.add}: {error}", file=sys.stderr)
                return 2
            self.results.path = self.options.output / self.options.add.name
            self._elapsed_before = float(earlier.get("elapsed_s", 0))
        if "build" in self.options.parts and not self._part("build", self._build):
            return self._finish()  # nothing of ours can be shown without it
        if "tests" in self.options.parts:
            self._untimed()
        if {"ops", "networks", "compile"} & set(self.options.parts):
            self._part("peaks", self._peaks)
        for part in ("networks", "ops", "compile"):
            if part in self.options.parts:
                self._part(part, getattr(self, f"_{part}"))
        return self._finish()

    @property
    def found(self) -> Results:
        """The results; there are some from the probe on."""
        if self.results is None:
            raise RuntimeError("the device has not been asked yet")
        return self.results

    def _finish(self) -> int:
        results = self.found
        results.data["elapsed_s"] = round(self._elapsed_before + self.budget.elapsed(), 1)
        self._save()
        print(tables.summary(results.data))
        print(f"{results.path} and {results.path.with_suffix('.md')}")
        return 1 if results.data["problems"] else 0

    def _save(self) -> None:
        results = self.found
        results.save()
        write_atomically(
            results.path.with_suffix(".md"), tables.markdown(results.data, results.path.stem)
        )

    def _part(self, name: str, work: Callable[[], Any]) -> bool:
        """Runs a part and keeps what it found; False when it could not be run at all."""
        self.say(f"{name} ({self.budget.left():.0f} s left)")
        start = time.monotonic()
        facts: dict[str, Any] = {}
        try:
            facts = work() or {}
        except (RuntimeError, OSError) as error:  # BuildError, a worker that does not start
            self.found.problem(f"{name}: {error}")
            facts = {"broken": str(error)}
        facts["seconds"] = round(time.monotonic() - start, 1)
        self.found.data["parts"].setdefault(name, {}).update(facts)
        self._save()
        return "broken" not in facts

    def _env(self) -> dict[str, str]:
        """Environment of everything that is started: the staged package first, then the tree."""
        path = [str(self.stage)] if self.stage else []
        path += [p for p in (os.environ.get("PYTHONPATH", ""), str(ROOT)) if p]
        env = os.environ | {
            "PYTHONPATH": os.pathsep.join(path),
            "PYTHONSAFEPATH": "1",  # the tree's package has no extension modules
            "PYTHONUNBUFFERED": "1",
        }
        # The toolkit is not on every machine's path.
        homes = [
            os.environ.get("CUDA_HOME", ""),
            os.environ.get("CUDA_PATH", ""),
            "/usr/local/cuda",
        ]
        tools = [os.path.join(home, "bin") for home in homes if home]
        env["PATH"] = os.pathsep.join([env.get("PATH", os.defpath), *filter(os.path.isdir, tools)])
        if self.dry:
            env |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
        return env

    def _jobs(
        self,
        jobs: Sequence[dict[str, Any]],
        name: str,
        seconds: float,
        each: float,
        on_result: Callable[[dict[str, Any], dict[str, Any]], None],
    ) -> None:
        left = run_jobs(
            jobs,
            device=self.device,
            folder=self.folder,
            name=name,
            env=self._env(),
            seconds=self.budget.share(seconds),
            each=each,
            on_result=on_result,
        )
        for job in left:
            self.found.skip(_title(job))

    def _one(self, job: dict[str, Any], name: str) -> dict[str, Any]:
        """The result of a single job."""
        answers: list[dict[str, Any]] = []
        try:
            run_jobs(
                [job],
                device=self.device,
                folder=self.folder,
                name=name,
                env=self._env(),
                seconds=self.budget.share(120),
                each=120,
                on_result=lambda _, result: answers.append(result),
            )
        except RuntimeError as error:
            return {"failed": str(error)}
        return answers[0] if answers else {"failed": "no time was left"}

    # ------------------------------------------------------------------ parts

    def _build(self) -> dict[str, Any]:
        if not self.dry:
            capability = self.found.data["device"]["capability"]
            self.stage = build.build(
                ROOT,
                self.folder,
                (capability[0], capability[1]),
                self._env(),
                self.budget.share(240),
            )
        impls = self._one({"kind": "impls"}, "impls")
        if "failed" in impls:
            raise RuntimeError(impls["failed"])
        self.found.data["impls"] = impls
        if not self.dry:
            for op, reasons in impls.items():
                for impl in _IMPLS:
                    if reasons[impl]:
                        self.found.problem(f"{op} has no {impl} here: {reasons[impl]}")
        return {"built": not self.dry}

    def _usable(self) -> list[str]:
        """Implementations that can run an operation here, the device's first."""
        impls = self.found.data.get("impls") or self._one({"kind": "impls"}, "impls")
        self.found.data["impls"] = impls
        wanted = ("cpu", "triton", "ref") if self.dry else (*_IMPLS, "ref")
        return [i for i in wanted if any(reasons[i] is None for reasons in impls.values())]

    def _untimed(self) -> None:
        """Tests and memory checkers: nothing is timed, so they share the machine."""
        seconds = self.budget.share(self.options.minutes * 60 * 0.4)
        env = self._env()
        small = [job for dtype in DTYPES for job in self._op_jobs("check", dtype, tiny=True)]
        for job in small:
            job["programs"] = ["cpu" if self.dry else "cuda"]
        tools = ("memcheck",) if self.dry else ("memcheck", "racecheck")
        small = small[::7] if self.dry else small

        def sanitize(tool: str) -> tuple[dict[str, Any], list[str]]:
            # The race checker is the slowest; nothing else waits for it that long.
            most = self.budget.share(150 if tool == "racecheck" else seconds)
            return checks.run_sanitizer(tool, small, self.folder, env, most, self.device, ROOT)

        def tests() -> tuple[dict[str, Any], list[str]]:
            return checks.run_tests(ROOT, self.folder, self.stage, env, seconds, self.dry)

        self.say(f"tests, {', '.join(tools)} ({self.budget.left():.0f} s left)")
        with ThreadPoolExecutor() as pool:
            pending = {"tests": pool.submit(tests)}
            pending |= {tool: pool.submit(sanitize, tool) for tool in tools}
            pending |= {
                f"warm-up {i}": pool.submit(self._warm_up, i, seconds)
                for i in range(0 if self.dry else 4)
            }
            try:
                wait(pending.values())
            except BaseException:  # else the pool waits for them
                end_all()
                raise
        for name, future in pending.items():
            try:
                facts, problems = future.result()
            except (RuntimeError, OSError) as error:
                facts, problems = {}, [f"{name}: {error}"]
            if name in ("racecheck",) and facts.get("exit_code") is None and facts:
                # It is the slowest tool: what it did not get to is no failure.
                self.found.skip(problems.pop())
            for problem in problems:
                self.found.problem(problem)
            if facts:
                self.found.data["parts"][name] = facts
        self._save()

    def _warm_up(self, index: int, seconds: float) -> tuple[dict[str, Any], list[str]]:
        """Compiles a quarter of the Triton kernels into its cache, off the clock.

        What fails here fails again, and is noted, when it is measured.
        """
        jobs = [job for dtype in DTYPES for job in self._op_jobs("check", dtype)][index::4]
        for job in jobs:
            job["programs"] = ["triton"]
        run_jobs(
            jobs,
            device=self.device,
            folder=self.folder,
            name=f"warm-up-{index}",
            env=self._env(),
            seconds=seconds,
            each=60,
            on_result=lambda job, result: None,
        )
        return {}, []

    def _peaks(self) -> None:
        peaks = self._one({"kind": "peaks", "tiny": self.dry}, "peaks")
        if "failed" in peaks:
            raise RuntimeError(peaks["failed"])
        self.found.data["peaks"] = peaks

    def _op_jobs(self, kind: str, dtype: str, tiny: bool = False) -> list[dict[str, Any]]:
        return [
            {
                "kind": kind,
                "op": case.op,
                "case": case.name,
                "dtype": dtype,
                "precisions": _PRECISIONS[dtype][-1:] if self.dry else _PRECISIONS[dtype],
                "programs": [],
                "seconds": 0.002 if self.dry else 0.04,
                "tiny": tiny or self.dry,
            }
            for case in CASES
        ]

    def _keep_op(self, job: dict[str, Any], result: dict[str, Any]) -> None:
        results = self.found
        if "failed" in result:
            # What a peer cannot do, or not in time, is no fault of ours.
            note = results.skip if set(job["programs"]) <= {"eager", "compile"} else results.problem
            note(f"{_title(job)}: {result['failed']}")
        else:
            if rest := result.pop("rest", []):
                self._again.append(job | {"programs": rest})
            for row in result["rows"]:
                ours = row["side"] not in ("eager", "compile", "copy")
                said = row.get("wrong") or row.get("failed")
                if said and (ours or "wrong" in row):
                    results.problem(f"{_title(job)} {row['side']} {row['layout']}: {said}")
                elif said:
                    results.skip(f"{_title(job)} {row['side']} {row['layout']}: {said}")
            tables.merge(results.data["ops"], result)
            results.done(_title(job))
        results.save()

    def _ops(self) -> None:
        usable = self._usable()
        jobs = []
        for dtype in DTYPES if not self.dry else ("float32", "bfloat16"):
            for job in self._op_jobs("op", dtype):
                job["programs"] = [*usable, "eager"]
                if self.dry and (dtype, job["case"]) != ("float32", _least(job["op"])):
                    # Triton's interpreter is slow: one case of each operation.
                    job["programs"] = [p for p in job["programs"] if p != "triton"]
                jobs.append(job)
        order = {"float16": 0, "float32": 1, "bfloat16": 2}
        jobs.sort(key=lambda job: order[job["dtype"]])
        self._jobs(jobs, "ops", 200, 60, self._keep_op)
        while self._again:
            jobs, self._again = self._again, []
            self._jobs(jobs, "ops-again", 60, 60, self._keep_op)

    def _networks(self) -> None:
        self._run_networks(["eager", "graph", "backends", "onnxruntime"], 150, 40)

    def _run_networks(self, programs: list[str], seconds: float, each: float) -> None:
        jobs = network_plan.jobs(programs, self.dry)
        self._jobs(jobs, f"networks-{programs[0]}", seconds, each, self._keep_network)

    def _keep_network(self, job: dict[str, Any], result: dict[str, Any]) -> None:
        if "failed" in result:
            self.found.problem(f"{_title(job)}: {result['failed']}")
        else:
            least = LEAST_PSNR[job["precision"]]
            for row in result["rows"]:
                if not row["side"].startswith("backend"):
                    continue
                if "failed" in row:
                    self.found.problem(f"{_title(job)} {row['side']}: {row['failed']}")
                elif row.get("psnr", least) < least and not self.dry:
                    said = f"{row['psnr']:.1f} dB, {least:.0f} are asked for"
                    self.found.problem(f"{_title(job)} {row['side']}: {said}")
            part = "frames" if job["kind"] == "frames" else "networks"
            tables.merge(self.found.data[part], result)
            self.found.done(_title(job))
        self.found.save()

    def _compile(self) -> None:
        """torch.compile is slow to start, so it comes last and takes what is left."""
        dtypes = ("float32",) if self.dry else ("float16", "float32", "bfloat16")
        known = {
            (entry["op"], entry["case"], entry["dtype"])
            for entry in self.found.data["ops"]
            if any(row["side"] == "compile" and "p50_us" in row for row in entry["rows"])
        }
        jobs = [
            job
            for dtype in dtypes
            for job in self._op_jobs("op", dtype)
            if (job["op"], job["case"], job["dtype"]) not in known
        ]
        for job in jobs:
            job["programs"] = ["compile"]
            job["mode"] = "default" if self.dry else "max-autotune"
        if self.dry:
            jobs = [job | {"precisions": ("fp32",)} for job in jobs[:1]]
        else:
            self._run_networks_if_time(len(jobs))
        self._jobs(jobs, "compile", 400, 90, self._keep_op)

    def _run_networks_if_time(self, jobs: int) -> None:
        """The compiled style network first, when the time is enough for some operations too."""
        if self.budget.left() > 2.0 * jobs:
            self._run_networks(["compile"], 60, 60)


def _least(op: str) -> str:
    """The case of an operation with the least work in a dry run."""
    cases = [case for case in CASES if case.op == op]
    return min(cases, key=lambda c: (c.tiny().flops, c.tiny().bytes_moved("float32"))).name


def _title(job: dict[str, Any]) -> str:
    if job["kind"] in ("network", "frames"):
        return (
            f"{job['kind']} {job['network']} {job['batch']}x{job['width']}x{job['height']} "
            f"{job['precision']} ({', '.join(job['programs'])})"
        )
    return f"{job['op']} {job['case']} {job['dtype']} ({', '.join(job['programs'])})"


def _commit() -> str:
    """The commit of the tree, with + when files differ from it; empty without git."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return ""
    return done.stdout.strip()
