"""How even the machine itself is: the same multiply-adds in registers, again and again.

``python -m benchmarks.control SPEC`` is a process that :class:`fastgen.cli._race.Process` asks for
the time of one run or, with ``stream N``, of N in a row. It reads no memory, and nothing in it
depends on the frame, so what its times vary by, and what its second thread gives less than 2, is
the machine's: other guests of the host, its clock rate.
"""

from __future__ import annotations

import json
import math
import sys
from statistics import median

from fastgen import _C

_PROBE_ROUNDS = 4_000_000  # some 10 ms: long enough to calibrate from


def rounds_for(seconds: float, threads: int) -> int:
    """Loop rounds that take about so long on so many threads, from the median of several probes."""
    took = median(_C.fixed_work_seconds("", _PROBE_ROUNDS, threads, 9))
    return max(64, round(_PROBE_ROUNDS * seconds / took))


def main() -> None:
    """Answers ``one`` and ``all`` with the seconds of a run on one thread and on all of them.

    ``stream N``: those of N runs in a row, on all threads.
    """
    spec = json.loads(sys.argv[1])
    rounds = rounds_for(spec["seconds"], spec["threads"])
    for line in sys.stdin:
        if line.startswith("stream "):
            times = _C.fixed_work_seconds("", rounds, spec["threads"], int(line.split()[1]) + 1)
            print(json.dumps(times[1:]), flush=True)
            continue
        threads = 1 if line.strip() == "one" else spec["threads"]
        # As for the engine: runs that are not timed come before each that is.
        repeats = math.ceil(spec["lead_in"] / spec["seconds"]) + 1
        print(json.dumps(_C.fixed_work_seconds("", rounds, threads, repeats)[-1]), flush=True)


if __name__ == "__main__":
    main()
