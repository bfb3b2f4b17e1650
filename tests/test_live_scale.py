"""The choice of the size that a live stream is painted at."""

from __future__ import annotations

import pytest

from fastgen.live import Ladder


class Machine:
    """A network whose time grows with the pixels, and a clock."""

    def __init__(self, ladder: Ladder, per_pixel: float) -> None:
        self.ladder, self.per_pixel, self.now = ladder, per_pixel, 0.0

    def run(self, seconds: float, period: float) -> list[tuple[int, int]]:
        """The sizes that were painted."""
        sizes, end = [], self.now + seconds
        while self.now < end:
            width, height = self.ladder.size
            took = width * height * self.per_pixel
            self.now += max(took, period)
            sizes.append((width, height))
            self.ladder.add(self.now, took)
        return sizes


def test_a_fast_machine_keeps_the_size() -> None:
    machine = Machine(Ladder(640, 480, 25), 0.02 / (640 * 480))
    assert set(machine.run(20, 1 / 25)) == {(640, 480)}
    assert machine.ladder.changes == 0


def test_without_a_rate_the_size_stays() -> None:
    machine = Machine(Ladder(640, 480), 10 / (640 * 480))
    assert set(machine.run(100, 0.04)) == {(640, 480)}


def test_a_slow_machine_paints_smaller_and_then_stays() -> None:
    machine = Machine(Ladder(640, 480, 25), 0.1 / (640 * 480))  # 10 fps at the full size
    machine.run(3, 1 / 25)
    width, height = machine.ladder.size
    assert 0.1 * width * height / (640 * 480) <= 1 / 25
    assert width / height == pytest.approx(640 / 480, rel=0.05)
    before = machine.ladder.changes
    assert before == 1  # as many steps as needed at once
    machine.run(60, 1 / 25)
    assert machine.ladder.changes == before


def test_the_size_comes_back_and_does_not_swing() -> None:
    machine = Machine(Ladder(640, 480, 25), 0.1 / (640 * 480))
    machine.run(3, 1 / 25)
    machine.per_pixel /= 5
    machine.run(40, 1 / 25)
    assert machine.ladder.size == (640, 480)

    # A machine whose larger size is slower than its pixels say: it is tried ever more seldom.
    ladder = Ladder(640, 480, 25)
    now, tried = 0.0, []
    for _ in range(25 * 300):
        took = 0.06 if ladder.step == 0 else 0.02
        now += max(took, 1 / 25)
        before = ladder.step
        ladder.add(now, took)
        if ladder.step == 0 and before == 1:
            tried.append(now)
    assert 2 <= len(tried) <= 12
    assert tried[-1] - tried[-2] > 4 * (tried[1] - tried[0])


def test_sizes() -> None:
    sizes = Ladder(1280, 720, 25).sizes
    assert sizes[0] == (1280, 720)
    assert len(sizes) <= 8  # plans that a runner keeps
    assert all(w % 8 == h % 8 == 0 for w, h in sizes[1:])
    assert sizes == sorted(set(sizes), reverse=True)
    assert Ladder(20, 18, 25).sizes == [(20, 18), (16, 16)]
    with pytest.raises(ValueError, match="target_fps is 0, must be"):
        Ladder(64, 64, 0)
