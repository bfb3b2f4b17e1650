"""Where the engine's threads run: woken beside the caller, not behind it, and left as they were."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
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

    def during_a_run(self, look: Callable[[set[int]], bool]) -> bool:
        """Shows the worker's CPUs all along runs of another thread, until ``look`` has enough."""
        for _ in range(50):  # on a busy machine a run can be over before it is looked at
            self.wait_asleep()
            thread = threading.Thread(target=self.runner.run, args=(self.image,))
            thread.start()
            enough = False
            while thread.is_alive() and not enough:
                enough = look(self.cpus())
                time.sleep(0.0002)
            thread.join()
            if enough:
                return True
        return False


@pytest.fixture
def watched() -> Watched:
    need_isa("scalar")
    return Watched()


def test_a_woken_worker_is_kept_off_the_callers_cpu(watched: Watched) -> None:
    everywhere = os.sched_getaffinity(0)
    watched.wait_asleep()
    assert watched.cpus() == everywhere
    assert watched.during_a_run(
        lambda cpus: cpus < everywhere and len(everywhere - cpus) == 1,
    )
    watched.wait_asleep()
    assert watched.cpus() == everywhere
    np.testing.assert_array_equal(watched.runner.run(watched.image), watched.expected)


def test_cpus_that_were_chosen_meanwhile_stay(watched: Watched) -> None:
    everywhere = os.sched_getaffinity(0)
    (first, *_) = everywhere
    watched.wait_asleep()
    os.sched_setaffinity(watched.worker, {first})  # asleep
    assert not watched.during_a_run(lambda cpus: cpus != {first})
    watched.wait_asleep()
    assert watched.cpus() == {first}
    os.sched_setaffinity(watched.worker, everywhere)

    chosen: set[int] = set()

    def choose(cpus: set[int]) -> bool:
        if cpus == everywhere:
            return False
        chosen.update(everywhere - cpus)  # the caller's
        os.sched_setaffinity(watched.worker, chosen)  # awake
        return True

    assert watched.during_a_run(choose)
    watched.wait_asleep()
    assert watched.cpus() == chosen
