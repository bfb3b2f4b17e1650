"""Lets the programs of benchmarks/op_side.py take turns on one operation after the other."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks import op_work
from benchmarks.op_cases import Case
from fastgen.cli._machine import usable_cores
from fastgen.cli._race import Process, take_turns

__all__ = ["OURS", "Comparison", "Programs", "sides"]

OURS = ("cpu", "ref")
PEERS = ("eager", "compile")


def sides(case: Case) -> list[str]:
    """What is measured of a case, as ``PROGRAM LAYOUT``."""
    both = op_work.layouts(case)
    layouts = {program: both for program in (*OURS, *PEERS)}
    layouts["ref"] = both[:1]
    if case.op == "gram_matrix":  # a compiled product is the same library call in any layout
        layouts["compile"] = both[:1]
    return [f"{program} {layout}" for program in layouts for layout in layouts[program]]


@dataclass
class Comparison:
    """All sides of a case at a precision; the lists of seconds are aligned by round.

    Attributes:
        case: what was measured.
        dtype: of the input.
        seconds: side -> one time for each round.
        errors: side -> relative error against the float64 reference.
        refused: side -> why it cannot do this.
    """

    case: Case
    dtype: str
    seconds: dict[str, list[float]] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def best_peer(self, side: str) -> str:
        """The side of plain PyTorch with the smallest median.

        The memory format of a concatenation's result is that of its input, so its peers have the
        side's own; a Gram matrix has none, and its peer is the best of both.
        """
        peers = [peer for peer in self.seconds if peer.split()[0] in PEERS]
        if self.case.op == "concat_features":
            peers = [peer for peer in peers if peer.split()[1] == side.split()[1]]
        return min(peers, key=lambda peer: median(self.seconds[peer]))

    def ratio(self, side: str) -> float:
        """Median over the rounds of the best peer's time / the side's; above 1 it is faster."""
        pairs = zip(self.seconds[self.best_peer(side)], self.seconds[side], strict=True)
        return median(theirs / mine for theirs, mine in pairs)

    def wrong(self) -> dict[str, float]:
        """Sides whose result is not what it should be, with their errors."""
        limit = op_work.tolerance(self.case, self.dtype)
        return {side: error for side, error in self.errors.items() if not error <= limit}


class Programs:
    """The measured processes, started when they are first needed."""

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads or usable_cores()
        self._processes: dict[str, Process] = {}

    def compare(
        self,
        case: Case,
        dtype: str,
        folder: Path,
        *,
        seconds: float,
        rounds: tuple[int, int],
        tiny: bool = False,
        only: tuple[str, ...] = (*OURS, *PEERS),
    ) -> Comparison:
        """Checks and measures all sides of a case.

        Args:
            case: what.
            dtype: of the input.
            folder: for the reference results.
            seconds: stop after about so long.
            rounds: at least and at most so many, whatever the time.
            tiny: measure the case's tiny size.
            only: these programs.

        Raises:
            FastgenError: a process ended.
        """
        found = Comparison(case, dtype)
        chosen = [side for side in sides(case) if side.split()[0] in only]
        prepared: set[str] = set()
        for side in chosen:
            program, layout = side.split()
            order = {
                "op": case.op,
                "name": case.name,
                "dtype": dtype,
                "layout": layout,
                "reference": str(_reference(case, dtype, program in PEERS, tiny, folder)),
                "tiny": tiny,
                "keep": program in prepared,
            }
            answer = self._ask(program, json.dumps(order))
            prepared.add(program)
            if "refused" in answer:
                found.refused[side] = answer["refused"]
            else:
                found.errors[side] = answer["error"]
        able = [side for side in chosen if side in found.errors]
        steps = [partial(self._ask, s.split()[0], f"step {s.split()[1]}") for s in able]
        times = take_turns(steps, seconds, rounds)
        found.seconds = dict(zip(able, times, strict=True))
        return found

    def _ask(self, program: str, line: str) -> Any:
        if program not in self._processes:
            spec = {"side": program, "threads": self.threads}
            self._processes[program] = Process("benchmarks.op_side", spec)
        return self._processes[program].ask(line)

    def close(self) -> None:
        """Ends the processes."""
        for process in self._processes.values():
            process.close()
        self._processes.clear()


def _reference(case: Case, dtype: str, of_peer: bool, tiny: bool, folder: Path) -> Path:
    of_peer = of_peer and case.op == "conv_instance_norm"
    path = folder / f"{case.op}_{case.name}_{dtype}_{of_peer:d}{tiny:d}.npz"
    if not path.exists():
        case = case.tiny() if tiny else case
        with torch.inference_mode():
            results = op_work.reference(case, op_work.inputs(case, dtype), of_peer=of_peer)
        np.savez(path, *(result.numpy() for result in results))
    return path
