"""One program of the comparison, in a process of its own: ``python -m ... SPEC``.

The spec is ``{"program": "OpenVINO bf16", "checkpoint": PATH, "threads": 2}``. Each line on stdin
is ``step``, answered with the seconds of one call, or a JSON object that says which input is next
(see :meth:`Side.prepare`), answered with what was found about the result.
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

from benchmarks.peers.programs import BY_NAME, Call
from fastgen.checkpoint import load_checkpoint
from fastgen.cli._app import one_line
from fastgen.cli.parity import verdict

_STEP_S = 0.020  # a step lasts at least about so long
# Not timed, at the start of each step: threads of the other programs that spin for a while after
# their work go to sleep, this one's wake up, and its data comes back into the caches.
_PAUSE_S = 0.030  # ONNX Runtime spins for 25 ms, the others for up to 5
_LEAD_IN_S = 0.100  # calls that are longer than that need none


class Side:
    """What this process measures at the moment."""

    def __init__(self, program: str, checkpoint: str, threads: int) -> None:
        self._program = BY_NAME[program]
        self._checkpoint = load_checkpoint(checkpoint)
        self._threads = threads
        self._call: Call | None = None
        self._calls = 1
        self._lead_in = 1

    def prepare(self, photo: str, reference: str) -> dict[str, Any]:
        """Builds the program for an input and checks its result.

        Args:
            photo: .npy file of the input, float32 (1,3,H,W).
            reference: .npy file of PyTorch's fp32 result.

        Returns:
            ``max_abs``, ``psnr``, ``ssim``, ``gate`` and ``passed``, on the 0..255 scale of
            pictures; ``build_s``, the seconds until the first result.
        """
        self._call = None
        start = time.perf_counter()
        inputs = {self._checkpoint.graph.inputs[0].name: np.load(photo)}
        call = self._program.build(self._checkpoint, inputs, self._threads)
        result = np.array(call())
        took = time.perf_counter() - start
        found = verdict(
            self._program.precision, [self._picture(np.load(reference))], [self._picture(result)]
        )
        once = min(_timed(call, 1) for _ in range(2))
        self._calls = max(1, math.ceil(_STEP_S / once))
        self._lead_in = self._calls if once < _LEAD_IN_S else 0
        self._call = call
        return found | {"build_s": took, "calls": self._calls}

    def step(self) -> float:
        """Seconds for one call."""
        if self._call is None:
            raise ValueError("nothing was prepared")
        time.sleep(_PAUSE_S)
        _timed(self._call, self._lead_in)
        return _timed(self._call, self._calls) / self._calls

    def _picture(self, output: np.ndarray) -> np.ndarray:
        """The network's output as pictures (N,H,W,3), 0..1."""
        low, high = self._checkpoint.meta["output_range"]
        return ((output.transpose(0, 2, 3, 1) - low) / (high - low)).clip(0.0, 1.0)


def _timed(call: Call, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return time.perf_counter() - start


def main() -> None:
    """Serves the spec on the command line; what goes wrong is one more answer."""
    # Ctrl-C is the parent's: it closes stdin, which ends this process too.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
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
