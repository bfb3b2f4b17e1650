"""Runs jobs in worker processes that may hang or crash, within a time."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

__all__ = ["end_all", "run_command", "run_jobs", "tail", "worker_command"]

Job = dict[str, Any]

_running: set[subprocess.Popen[str]] = set()


def run_jobs(
    jobs: Sequence[Job],
    *,
    device: str,
    folder: Path,
    name: str,
    env: dict[str, str],
    seconds: float,
    each: float,
    on_result: Callable[[Job, dict[str, Any]], None],
) -> list[Job]:
    """Runs jobs one after the other in a worker, and in a new worker after a crash.

    Args:
        jobs: see ``worker.run``.
        device: ``"cuda"`` or ``"cpu"``.
        folder: for the list of jobs and what the worker says on stderr.
        name: of the files there.
        env: environment of the worker.
        seconds: for all jobs.
        each: for one job; a worker that takes longer is ended and the job has failed.
        on_result: called with each job and its result (``{"failed": why}`` after a crash).

    Returns:
        The jobs for which there was no time.

    Raises:
        RuntimeError: the worker does not even start.
    """
    end = time.monotonic() + seconds
    first = 0
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.log").open("w", encoding="utf-8") as log:
        while first < len(jobs) and time.monotonic() < end:
            worker = _Worker(worker_command(jobs, folder, name, device, first), env, log)
            try:
                first = _drain(worker, jobs, first, end, each, on_result)
            except ChildProcessError as error:
                raise RuntimeError(f"{error}; {log.name}: {tail(Path(log.name))}") from error
            finally:
                worker.end()
    return list(jobs[first:])


def worker_command(
    jobs: Sequence[Job], folder: Path, name: str, device: str, first: int = 0
) -> list[str]:
    """Writes the jobs to a file and returns the command that works them off."""
    folder.mkdir(parents=True, exist_ok=True)
    listing = folder / f"{name}.json"
    listing.write_text(json.dumps(list(jobs)), "utf-8")
    spec = json.dumps({"jobs": str(listing), "first": first, "device": device})
    return [sys.executable, "-m", "benchmarks.gpu_suite.worker", spec]


def tail(log: Path, lines: int = 3) -> str:
    """The last lines of a log in one."""
    text = log.read_text("utf-8", errors="replace") if log.exists() else ""
    return " | ".join(line.strip() for line in text.splitlines()[-lines:] if line.strip())


def _drain(
    worker: _Worker,
    jobs: Sequence[Job],
    first: int,
    end: float,
    each: float,
    on_result: Callable[[Job, dict[str, Any]], None],
) -> int:
    """Takes results until the worker ends, hangs or time is up; the next job to start."""
    at, started = first, -1
    while at < len(jobs):
        wait = min(each, end - time.monotonic())
        message = worker.next(wait)
        if message is None:  # ended
            code = worker.code()
            if started < 0:
                raise ChildProcessError(f"the worker did not start (code {code})")
            if started == at:
                on_result(jobs[at], {"failed": f"the process ended with code {code}"})
                at += 1
            return at
        if not message:  # silent for too long
            if wait < each:
                return at
            on_result(jobs[at], {"failed": f"it took more than {each:.0f} s"})
            return at + 1
        started = message.get("started", started)
        if "done" in message:
            on_result(jobs[message["done"]], message["result"])
            at = message["done"] + 1
    return at


class _Worker:
    def __init__(self, command: Sequence[str], env: dict[str, str], log: IO[str]) -> None:
        self._process = _start(command, env, stdout=subprocess.PIPE, stderr=log)
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self._process.stdout or ():
            self._lines.put(line)
        self._lines.put(None)

    def next(self, seconds: float) -> dict[str, Any] | None:
        """The next message; {} when there is none in time, None when the process has ended."""
        end = time.monotonic() + seconds
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                return {}
            if line is None:
                return None
            if line.startswith('{"'):  # libraries print too
                return dict(json.loads(line))

    def code(self) -> int:
        return self._process.wait(timeout=30)

    def end(self) -> None:
        _end(self._process)
        self._reader.join(timeout=5)
        if self._process.stdout:
            self._process.stdout.close()


def run_command(
    command: Sequence[str], *, env: dict[str, str], log: Path, seconds: float, cwd: Path
) -> int | None:
    """Runs a command with its output in a file; its exit code, or None when time was up."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as file:
        process = _start(command, env, stdout=file, stderr=subprocess.STDOUT, cwd=cwd)
        try:
            return process.wait(timeout=max(0.1, seconds))
        except subprocess.TimeoutExpired:
            return None
        finally:
            _end(process)


def _start(command: Sequence[str], env: dict[str, str], **options: Any) -> subprocess.Popen[str]:
    # A session of its own: compilers and test workers that it starts end with it.
    process = subprocess.Popen(
        list(command),
        env=env,
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        **options,
    )
    _running.add(process)
    return process


def end_all() -> None:
    """Ends everything that is still running; for a user who does not want to wait."""
    for process in list(_running):
        _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    for sign in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            break
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            break
        try:
            process.wait(timeout=3)
        except subprocess.TimeoutExpired:
            continue
    try:  # what is left of its group
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    process.wait()
    _running.discard(process)
