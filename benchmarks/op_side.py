"""One side of a comparison of operations, in a process of its own: ``python -m ... SPEC``.

The spec is ``{"side": "cpu"|"ref"|"eager"|"compile", "threads": 2}``. Each line on stdin is either
``step LAYOUT``, answered with seconds for one call (the mean of enough calls to be measurable), or
a JSON object that says what to work on next, answered with what was found about it.
"""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks import op_work
from benchmarks.op_cases import by_name
from fastgen.cli._app import one_line
from fastgen.errors import FastgenError

_STEP_S = 0.010  # a step lasts at least about so long, so that the clock and the pipe do not count
# Not timed, at the start of each step: the other programs' threads go to sleep, this one's wake and
# spread over the cores, and its data comes back into the caches.
_LEAD_IN_S = 0.004
_WARM_UP_S = 0.03


class Side:
    """What this process measures at the moment: one function for each memory format."""

    def __init__(self, side: str) -> None:
        self.side = side
        self._steps: dict[str, Callable[[], float]] = {}

    def prepare(
        self, op: str, name: str, dtype: str, layout: str, reference: str, tiny: bool, keep: bool
    ) -> dict[str, Any]:
        """Builds and checks one function.

        Args:
            op: operation.
            name: of the case.
            dtype: of the input.
            layout: memory format of the input.
            reference: file with the float64 results, by result number.
            tiny: work at the case's tiny size.
            keep: keep what was prepared before for other layouts.

        Returns:
            ``error`` against the reference and ``calls`` in a step, or ``refused`` with the reason.
        """
        case = by_name(op, name)
        case = case.tiny() if tiny else case
        if not keep:
            self._steps.clear()
            if self.side == "compile":  # elsewhere this would load the compiler for nothing
                torch.compiler.reset()
        values = op_work.inputs(case, dtype, layout=layout)
        try:
            function = self._function(case, values, layout)
            result = function()
        except (FastgenError, ValueError, TypeError, RuntimeError) as error:
            return {"refused": one_line(error)}
        with np.load(reference) as file:
            expected = [torch.from_numpy(file[f"arr_{i}"]) for i in range(len(file.files))]
        found = op_work.error(result, expected)
        once = _seconds(function)
        calls = max(1, math.ceil(_STEP_S / once))
        self._steps[layout] = lambda: _timed(function, calls, _LEAD_IN_S)
        return {"error": found, "calls": calls}

    def _function(self, case: Any, values: op_work.Values, layout: str) -> Callable[[], Any]:
        if self.side not in ("eager", "compile"):
            return op_work.ours(case, values, self.side)
        function, arguments = op_work.peer(case, values, layout)
        if self.side == "compile":
            function = torch.compile(function, dynamic=False, fullgraph=True)
        return lambda: function(*arguments)

    def step(self, layout: str) -> float:
        """Seconds for one call."""
        return self._steps[layout]()


def _timed(function: Callable[[], Any], calls: int, lead_in: float = 0.0) -> float:
    start = time.perf_counter()
    while time.perf_counter() - start < lead_in:
        function()
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - start) / calls


def _seconds(function: Callable[[], Any]) -> float:
    """The fastest of some calls; they also warm up."""
    best = math.inf
    start = time.perf_counter()
    while time.perf_counter() - start < _WARM_UP_S or best == math.inf:
        best = min(best, _timed(function, 1))
    return best


def main() -> None:
    """Serves the spec on the command line; what goes wrong is one more answer."""
    # Ctrl-C is the parent's: it closes stdin, which ends this process too.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    spec = json.loads(sys.argv[1])
    torch.set_num_threads(spec["threads"])
    side = Side(spec["side"])
    answer: object
    with torch.inference_mode():
        for line in sys.stdin:
            try:
                word, _, rest = line.strip().partition(" ")
                answer = side.step(rest) if word == "step" else side.prepare(**json.loads(line))
            except (FastgenError, ValueError, TypeError, RuntimeError, MemoryError) as error:
                answer = {"failed": one_line(error)}
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
