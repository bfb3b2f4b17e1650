"""One program of the comparison, in a process of its own: ``python -m ... SPEC``.

The spec is ``{"program": "OpenVINO bf16", "checkpoint": PATH, "threads": 2}``. Each line on stdin
is ``step``, answered with the seconds of one call, or a JSON object that says which input is next
(see :meth:`Side.prepare`), answered with what was found about the result.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np

from benchmarks.peers.programs import BY_NAME
from benchmarks.served import Served, serve, timed
from fastgen.checkpoint import load_checkpoint
from fastgen.cli.parity import verdict

_STEP_S = 0.020  # a step lasts at least about so long
_LEAD_IN_S = 0.100  # calls that are longer than that need no lead-in


class Side(Served):
    """What this process measures at the moment."""

    def __init__(self, program: str, checkpoint: str, threads: int) -> None:
        self._program = BY_NAME[program]
        self._checkpoint = load_checkpoint(checkpoint)
        self._threads = threads

    def prepare(self, photo: str, reference: str) -> dict[str, Any]:
        """Builds the program for an input and checks its result.

        Args:
            photo: .npy file of the input, float32 (1,3,H,W).
            reference: .npy file of PyTorch's fp32 result.

        Returns:
            ``max_abs``, ``psnr``, ``ssim``, ``gate`` and ``passed``, on the 0..255 scale of
            pictures; ``build_s``, the seconds until the first result.
        """
        self.call = None
        start = time.perf_counter()
        inputs = {self._checkpoint.graph.inputs[0].name: np.load(photo)}
        call = self._program.build(self._checkpoint, inputs, self._threads)
        result = np.array(call())
        took = time.perf_counter() - start
        found = verdict(
            self._program.precision, [self._picture(np.load(reference))], [self._picture(result)]
        )
        once = min(timed(call, 1) for _ in range(2))
        self.calls = max(1, math.ceil(_STEP_S / once))
        self.lead_in = self.calls if once < _LEAD_IN_S else 0
        self.call = call
        return found | {"build_s": took, "calls": self.calls}

    def _picture(self, output: np.ndarray) -> np.ndarray:
        """The network's output as pictures (N,H,W,3), 0..1."""
        low, high = self._checkpoint.meta["output_range"]
        return ((output.transpose(0, 2, 3, 1) - low) / (high - low)).clip(0.0, 1.0)


if __name__ == "__main__":
    serve(Side)
