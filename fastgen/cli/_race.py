"""Measuring programs against each other: each in a process of its own, taking turns.

On a shared machine absolute times drift by tens of per cent within minutes; the ratio of two
programs that take turns, round by round, does not. ``python -m fastgen.cli._race SPEC`` is such a
process: it answers every line on stdin with one line of JSON.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import IO, Any

from fastgen.cli._app import one_line
from fastgen.errors import FastgenError

__all__ = ["Process", "Runner", "percentile", "race", "ratio", "take_turns"]

# Thread pools of the runner that has just finished may spin for a moment; let them go to sleep.
_PAUSE_S = 0.005


@dataclass
class Runner:
    """One program and what was measured of it.

    Attributes:
        spec: ``style``, ``backend``, ``precision``, ``threads`` (or None), ``width``, ``height``;
            ``lead_in``, seconds of untimed runs, at least one, before each timed one (none).
        seconds: one time for each round.
        memory: growth of peak resident memory over what the imports took, in bytes.
        info: the Stylizer's info.
    """

    spec: dict[str, Any]
    seconds: list[float] = field(default_factory=list)
    memory: int = 0
    info: dict[str, Any] = field(default_factory=dict)


def percentile(values: list[float], q: float) -> float:
    """Percentile ``q`` in 0..100, linearly interpolated between the sorted values."""
    data = sorted(values)
    if not data or not 0 <= q <= 100:
        raise ValueError(f"percentile {q} of {len(data)} values; q must be in 0..100")
    position = (len(data) - 1) * q / 100
    low = int(position)
    high = min(low + 1, len(data) - 1)
    return data[low] + (data[high] - data[low]) * (position - low)


def ratio(runner: Runner, baseline: Runner) -> float:
    """Median over the rounds of the baseline's time / the runner's; above 1 it is faster."""
    pairs = zip(baseline.seconds, runner.seconds, strict=True)
    return median(theirs / ours for theirs, ours in pairs)


def race(
    specs: list[dict[str, Any]], *, seconds: float, rounds: tuple[int, int], warmup: int = 2
) -> list[Runner]:
    """Runs all programs in turns; who goes first changes every round.

    Args:
        specs: see :class:`Runner`.
        seconds: stop after about so long.
        rounds: at least and at most so many rounds, whatever the time.
        warmup: untimed runs of each before the first round.

    Raises:
        FastgenError: a process failed; in its own words.
    """
    runners = [Runner(spec) for spec in specs]
    processes: list[Process] = []
    try:
        for spec in specs:
            processes.append(Process("fastgen.cli._race", spec))
        for process in processes:
            for _ in range(warmup):
                process.ask("step")
        steps: list[Callable[[], float]] = [partial(p.ask, "step") for p in processes]
        for runner, times in zip(runners, take_turns(steps, seconds, rounds), strict=True):
            runner.seconds = times
        for runner, process in zip(runners, processes, strict=True):
            runner.memory = process.ask("memory")
            runner.info = process.ask("info")
    finally:
        for process in processes:
            process.close()
    return runners


def take_turns(
    steps: Sequence[Callable[[], float]], seconds: float, rounds: tuple[int, int]
) -> list[list[float]]:
    """Times of each step, round by round; who goes first changes every round.

    Args:
        steps: each does its work once and returns its own time in seconds.
        seconds: stop after about so long.
        rounds: at least and at most so many rounds, whatever the time.
    """
    start = time.perf_counter()
    low, high = rounds
    times: list[list[float]] = [[] for _ in steps]
    order = list(range(len(steps)))
    done = 0
    while done < low or (done < high and time.perf_counter() - start < seconds):
        for index in order:
            time.sleep(_PAUSE_S)
            times[index].append(steps[index]())
        order.append(order.pop(0))
        done += 1
    return times


class Process:
    """A measured program: ``python -m MODULE SPEC``, which answers lines on stdin with JSON."""

    def __init__(self, module: str, spec: dict[str, Any]) -> None:
        command = [sys.executable, "-m", module, json.dumps(spec)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the measured process has no pipes")
        self._stdin: IO[str] = self._process.stdin
        self._stdout: IO[str] = self._process.stdout

    def ask(self, command: str) -> Any:
        """Sends one line and returns the answer.

        Raises:
            FastgenError: the process failed (in its own words) or ended.
        """
        try:
            self._stdin.write(command + "\n")
            self._stdin.flush()
            line = self._stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            raise FastgenError(f"a measured process ended with code {code}; see its message above")
        answer = json.loads(line)
        if isinstance(answer, dict) and "failed" in answer:
            raise FastgenError(answer["failed"])
        return answer

    def close(self) -> None:
        """Ends the process."""
        for stream in (self._stdin, self._stdout):
            try:
                stream.close()
            except BrokenPipeError:
                pass
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


# ---------------------------------------------------------------------------- the measured process


def _memory(field_name: str) -> int:
    """A field of this process's status in bytes; elsewhere than on Linux the peak so far."""
    try:
        lines = Path("/proc/self/status").read_text("ascii").splitlines()
    except OSError:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    found = [line for line in lines if line.startswith(f"{field_name}:")]
    return int(found[0].split()[1]) * 1024 if found else 0


def serve(spec: dict[str, Any]) -> None:
    """Answers ``step``, ``stream N``, ``memory`` and ``info`` until stdin ends."""
    import numpy as np

    from fastgen import backends
    from fastgen.stylizer import Stylizer

    backends.get(spec["backend"])  # the imports are not part of the memory that is compared
    try:
        Path("/proc/self/clear_refs").write_text("5", "ascii")  # the peak starts from here
    except OSError:
        pass
    baseline = _memory("VmRSS")
    stylizer = Stylizer(
        spec["style"],
        backend=spec["backend"],
        precision=spec["precision"],
        threads=spec["threads"],
    )
    rng = np.random.default_rng(0)
    rows, columns = spec["height"], spec["width"]
    blocks = rng.integers(0, 256, (rows // 16 + 1, columns // 16 + 1, 3), np.uint8)
    frame = blocks.repeat(16, 0).repeat(16, 1)[:rows, :columns].copy()
    answer: object
    for line in sys.stdin:
        command = line.strip()
        if command == "step":
            start = time.perf_counter()
            while "lead_in" in spec:
                stylizer(frame)
                if time.perf_counter() - start >= spec["lead_in"]:
                    break
            start = time.perf_counter()
            stylizer(frame)
            answer = time.perf_counter() - start
        elif command.startswith("stream "):
            stylizer(frame)
            times = []
            for _ in range(int(command.split()[1])):
                start = time.perf_counter()
                stylizer(frame)
                times.append(time.perf_counter() - start)
            answer = times
        elif command == "memory":
            answer = max(0, _memory("VmHWM") - baseline)
        else:
            answer = stylizer.info.as_dict()
        print(json.dumps(answer), flush=True)


def main() -> None:
    """Serves the spec on the command line; what goes wrong is one more answer."""
    # Ctrl-C is the parent's: it closes stdin, which ends this process too.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        serve(json.loads(sys.argv[1]))
    except (FastgenError, ValueError, TypeError, OSError, RuntimeError, MemoryError) as error:
        print(json.dumps({"failed": one_line(error)}), flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
