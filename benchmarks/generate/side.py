"""One program of the comparison, in a process of its own: ``python -m ... SPEC``.

The spec is ``{"program": "OpenVINO bf16", "threads": 2}``. Each line on stdin is ``step``, answered
with the seconds of one call, or a JSON object ``{"network", "batch", "encoded", "reference"}`` that
says what is next, answered with what was found about the result.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from typing import Any

import numpy as np

from benchmarks.generate.cases import inputs, network, without_style
from benchmarks.peers.programs import BY_NAME, OURS, Call
from fastgen.checkpoint import Checkpoint
from fastgen.cli._app import one_line
from fastgen.cli.parity import verdict

__all__ = ["Side", "main"]

_STEP_S = 0.010  # a step lasts at least about so long
_PAUSE_S = 0.030  # spinning threads of the other programs go to sleep
_LEAD_IN_S = 0.005  # and this one's wake up


class Side:
    """What this process measures at the moment."""

    def __init__(self, program: str, threads: int) -> None:
        self._program = BY_NAME[program]
        self._threads = threads
        self._call: Call | None = None
        self._calls = 1
        self._lead_in = 1

    def prepare(self, network: str, batch: int, encoded: bool, reference: str) -> dict[str, Any]:
        """Builds the program for a case and checks its result against the file ``reference``."""
        self._call = None
        self._call = call = self._build(network, batch, encoded)
        result = np.array(call())
        wanted = np.load(reference)
        pictures = [[x.transpose(0, 2, 3, 1).clip(0, 1)] for x in (wanted, result)]
        found = verdict(self._program.precision, *pictures)
        once = min(_timed(call, 1) for _ in range(5))
        self._calls = max(1, math.ceil(_STEP_S / once))
        self._lead_in = max(1, math.ceil(_LEAD_IN_S / once))
        return found | {"calls": self._calls}

    def _build(self, name: str, batch: int, encoded: bool) -> Call:
        whole = network(name)
        arrays = inputs(whole.graph, batch)
        if encoded:
            return self._program.build(whole, arrays, self._threads)
        if self._program.name != OURS:
            return self._program.build(*without_style(whole, arrays), self._threads)
        return _kept_style(whole, arrays, self._program.precision, self._threads)

    def step(self) -> float:
        """Seconds for one call."""
        if self._call is None:
            raise ValueError("nothing was prepared")
        time.sleep(_PAUSE_S)
        _timed(self._call, self._lead_in)
        return _timed(self._call, self._calls) / self._calls


def _kept_style(
    whole: Checkpoint, arrays: dict[str, np.ndarray], precision: str, threads: int
) -> Call:
    """Our engine, which keeps what depends on the constant inputs."""
    from fastgen import backends

    runner = backends.get("cpu").compile(whole.graph, whole.weights, precision, threads)
    constant = {item.name for item in whole.graph.inputs if item.constant}
    runner.set_constants({name: arrays[name] for name in constant})
    rest = {name: array for name, array in arrays.items() if name not in constant}
    (output,) = whole.graph.outputs
    return lambda: runner.run(rest)[output]


def _timed(call: Call, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return time.perf_counter() - start


def main() -> None:
    """Serves the spec on the command line; what goes wrong is one more answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    # Libraries write to standard output what they please; the answers get a channel of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    side: Side | None = None
    answer: object
    for line in sys.stdin:
        try:
            if side is None:
                side = Side(**json.loads(sys.argv[1]))
            answer = side.step() if line.strip() == "step" else side.prepare(**json.loads(line))
        except Exception as error:  # whatever a peer raises: it is one row of the table
            answer = {"failed": one_line(error)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
