"""A program that is compared with others: a process that answers lines on stdin with JSON."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from fastgen.cli._app import one_line

__all__ = ["Served", "serve", "timed"]

# Threads of the other programs that spin for a while after their work go to sleep: ONNX Runtime's
# after 25 ms, the others' after at most 5.
_PAUSE_S = 0.030


class Served(ABC):
    """What the process measures at the moment.

    Attributes:
        call: what is measured.
        calls: calls in a step.
        lead_in: calls before a step that are not timed, so that threads wake up and data comes
            back into the caches.
    """

    call: Callable[[], object] | None = None
    calls = 1
    lead_in = 1

    @abstractmethod
    def prepare(self, *args: Any, **order: Any) -> dict[str, Any]:
        """Sets the attributes as a line on stdin orders; returns what was found meanwhile."""

    def step(self) -> float:
        """Seconds for one call."""
        if self.call is None:
            raise ValueError("nothing was prepared")
        time.sleep(_PAUSE_S)
        timed(self.call, self.lead_in)
        return timed(self.call, self.calls) / self.calls


def timed(call: Callable[[], object], calls: int) -> float:
    """Seconds for so many calls."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return time.perf_counter() - start


def serve(make: Callable[..., Served]) -> None:
    """Answers stdin: ``step`` with the seconds of one call, an order with what was found.

    Args:
        make: makes the side from the JSON object on the command line. What goes wrong is one more
            answer, ``{"failed": reason}``: a peer may raise anything, it is one row of the table.
    """
    # Ctrl-C is the parent's: it closes stdin, which ends this process too.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Libraries write to standard output what they please; the answers get a channel of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    side: Served | None = None
    answer: object
    for line in sys.stdin:
        try:
            if side is None:
                side = make(**json.loads(sys.argv[1]))
            answer = side.step() if line.strip() == "step" else side.prepare(**json.loads(line))
        except Exception as error:
            answer = {"failed": one_line(error)}
        print(json.dumps(answer), file=answers, flush=True)
