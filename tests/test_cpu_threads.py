"""Where the engine's threads run: woken beside the caller, not behind it, and left as they were."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from cpu_cases import need_isa, random_weights

from fastgen import models

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or len(os.sched_getaffinity(0)) < 2,
    reason="needs Linux and two CPUs",
)


def _tasks() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/task")}


class Watched:
    """A runner of two threads, its worker's thread id, and an image that takes a while."""

    def __init__(self) -> None:
        from fastgen.backends.cpu import Runner

        graph = models.create("compact_net", width=16, blocks=2)
        before = _tasks()
        self.runner = Runner(graph, random_weights(graph), 2)
        self.image = np.random.default_rng(0).uniform(0, 255, (1, 3, 512, 512)).astype(np.float32)
        self.expected = self.runner.run(self.image)  # starts the worker
        (self.worker,) = _tasks() - before

    def cpus(self) -> set[int]:
        return os.sched_getaffinity(self.worker)

    def wait_asleep(self) -> None:
        """Some 0.2 ms after its last job, where no other program has the CPU."""
        for _ in range(2000):
            stat = Path(f"/proc/self/task/{self.worker}/stat").read_text("ascii")
            if stat.rpartition(")")[2].split()[0] == "S":
                return
            time.sleep(0.005)
        raise TimeoutError("the worker does not go to sleep")

    def during_a_run(self) -> list[set[int]]:
        """The worker's CPUs, looked at all along a run of another thread."""
        thread = threading.Thread(target=self.runner.run, args=(self.image,))
        seen = []
        thread.start()
        while thread.is_alive():
            seen.append(self.cpus())
            time.sleep(0.0005)
        thread.join()
        return seen


@pytest.fixture
def watched() -> Watched:
    need_isa("scalar")
    return Watched()


def test_a_woken_worker_is_kept_off_the_callers_cpu(watched: Watched) -> None:
    everywhere = os.sched_getaffinity(0)
    watched.wait_asleep()
    assert watched.cpus() == everywhere
    apart = [cpus for cpus in watched.during_a_run() if cpus != everywhere]
    assert apart
    assert all(cpus < everywhere for cpus in apart)
    assert all(len(everywhere - cpus) == 1 for cpus in apart)
    watched.wait_asleep()
    assert watched.cpus() == everywhere
    np.testing.assert_array_equal(watched.runner.run(watched.image), watched.expected)


def test_cpus_that_were_chosen_meanwhile_stay(watched: Watched) -> None:
    (first, *_) = os.sched_getaffinity(0)
    watched.wait_asleep()
    os.sched_setaffinity(watched.worker, {first})  # asleep
    assert all(cpus == {first} for cpus in watched.during_a_run())
    watched.wait_asleep()
    assert watched.cpus() == {first}
    os.sched_setaffinity(watched.worker, os.sched_getaffinity(0))

    thread = threading.Thread(target=watched.runner.run, args=(watched.image,))
    thread.start()
    everywhere = os.sched_getaffinity(0)
    while (apart := watched.cpus()) == everywhere and thread.is_alive():
        time.sleep(0.0002)
    (callers, *_) = everywhere - apart
    os.sched_setaffinity(watched.worker, {callers})  # awake
    thread.join()
    watched.wait_asleep()
    assert watched.cpus() == {callers}
