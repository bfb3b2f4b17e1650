"""The process that has the device: ``python -m benchmarks.gpu_suite.worker SPEC``.

A kernel that writes out of bounds ruins its process, so measurements run here and their parent goes
on in a new one. The spec names a file of jobs and the first to run; each job is answered by a line
that it starts and a line with its result, so that nothing is lost when time is up.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_suite import frame_jobs, network_jobs, op_jobs, peaks
from benchmarks.gpu_suite.faults import is_lost
from benchmarks.gpu_suite.timing import Timer, make_timer
from benchmarks.op_cases import OPS
from fastgen import ops
from fastgen.cli._app import one_line


def probe(device: str) -> dict[str, Any]:
    """What the device is, versions, and which implementations can run."""
    found: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda}
    if importlib.util.find_spec("triton"):
        import triton

        found["triton"] = triton.__version__
    if device == "cuda":
        if not torch.cuda.is_available():
            return found | {"device": None}
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "device": properties.name,
            "capability": [properties.major, properties.minor],
            "multiprocessors": properties.multi_processor_count,
            "l2_mib": properties.L2_cache_size / 2**20,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "cudnn": torch.backends.cudnn.version(),
        }
    return found


def impls() -> dict[str, dict[str, str | None]]:
    """Operation -> implementation -> why it cannot run here, or None."""
    return {op: {impl: ops.why_not(op, impl) for impl in ops.IMPLS} for op in OPS}


def run(job: dict[str, Any], timer: Timer, device: str) -> dict[str, Any]:
    """Runs one job; see the functions that it calls for its fields."""
    kind = job["kind"]
    if kind == "probe":
        return probe(device)
    if kind == "impls":
        return impls()
    if kind == "peaks":
        return peaks.measure(timer, device, job["tiny"])
    if kind == "network":
        return network_jobs.measure(job, timer, device)
    if kind == "frames":
        return frame_jobs.measure(job, device)
    return op_jobs.measure(job, None if kind == "check" else timer, device)


def main() -> None:
    """Works off the jobs of the spec; an error of one does not stop the next."""
    spec = json.loads(sys.argv[1])
    device, first = spec["device"], spec["first"]
    jobs = json.loads(Path(spec["jobs"]).read_text("utf-8"))
    warnings.simplefilter("ignore")  # of libraries, about what they choose
    torch.backends.cudnn.benchmark = True
    timer: Timer | None = None
    with torch.inference_mode():
        for index in range(first, len(jobs)):
            _say({"started": index})
            try:
                if timer is None:
                    lazy = jobs[index]["kind"] in ("probe", "check", "impls")
                    timer = None if lazy else make_timer(device)
                result = run(jobs[index], timer, device)  # type: ignore[arg-type]
            except Exception as error:  # whatever a library raises belongs to this job only
                result = {"failed": one_line(error) or type(error).__name__}
                _say({"done": index, "result": result})
                if is_lost(str(error)):
                    sys.exit(3)
                continue
            _say({"done": index, "result": result})
            if "rest" in result:
                sys.exit(3)


def _say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main()
