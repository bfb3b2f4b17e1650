"""One program of the comparison, in a process of its own: ``python -m ... SPEC``.

The spec is ``{"program": "OpenVINO bf16", "threads": 2}``. Each line on stdin is ``step``, answered
with the seconds of one call, or a JSON object ``{"network", "batch", "encoded", "reference"}`` that
says what is next, answered with what was found about the result.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from benchmarks.generate.cases import inputs, network, without_style
from benchmarks.peers.programs import BY_NAME, OURS, Call
from benchmarks.served import Served, serve, timed
from fastgen.checkpoint import Checkpoint
from fastgen.cli.parity import verdict

__all__ = ["Side"]

_STEP_S = 0.010  # a step lasts at least about so long
_LEAD_IN_S = 0.005  # and is led in for about so long


class Side(Served):
    """What this process measures at the moment."""

    def __init__(self, program: str, threads: int) -> None:
        self._program = BY_NAME[program]
        self._threads = threads

    def prepare(self, network: str, batch: int, encoded: bool, reference: str) -> dict[str, Any]:
        """Builds the program for a case and checks its result against the file ``reference``."""
        self.call = None
        self.call = call = self._build(network, batch, encoded)
        result = np.array(call())
        wanted = np.load(reference)
        pictures = [[x.transpose(0, 2, 3, 1).clip(0, 1)] for x in (wanted, result)]
        found = verdict(self._program.precision, *pictures)
        once = min(timed(call, 1) for _ in range(5))
        self.calls = max(1, math.ceil(_STEP_S / once))
        self.lead_in = max(1, math.ceil(_LEAD_IN_S / once))
        return found | {"calls": self.calls}

    def _build(self, name: str, batch: int, encoded: bool) -> Call:
        whole = network(name)
        arrays = inputs(whole.graph, batch)
        if encoded:
            return self._program.build(whole, arrays, self._threads)
        if self._program.name != OURS:
            return self._program.build(*without_style(whole, arrays), self._threads)
        return _kept_style(whole, arrays, self._program.precision, self._threads)


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


if __name__ == "__main__":
    serve(Side)
