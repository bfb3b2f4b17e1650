"""Runs networks of changing size for a long time and watches the memory of the process.

    python -m benchmarks.soak --minutes 30

Every round takes another size, network, precision and way in (float planes or a uint8 photo); now
and then a runner is closed and compiled again. Memory is the resident set of the process, after the
C library's allocator has given back what it keeps of freed memory (``malloc_trim``): blocks that
are freed between others stay with it, which looks like growth for a while and is none. It rises and
falls with the sizes and with runners that are made anew, so the median of the first third after the
warm-up (all sizes seen) is compared with that of the last third: the exit code is 1 when it grew by
more than ``--limit`` MiB. What the allocator keeps is printed, too.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.networks import ARCHITECTURES, network
from fastgen import backends
from fastgen.backends import ImageIO
from fastgen.checkpoint import Checkpoint
from fastgen.styles import load_style

__all__ = ["judge", "soak"]

SIZES = ((64, 64), (100, 37), (256, 256), (512, 384), (640, 480))  # width, height
_EVERY_S = 5.0  # between two looks at the memory
_RENEW = 0.02  # share of rounds before which the runner is compiled again


def resident() -> int:
    """Bytes of memory that the process holds now (Linux)."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _trim() -> None:
    """Gives back what the allocator keeps of freed memory, where the C library is glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _round(runner: Any, rng: random.Random, size: tuple[int, int]) -> None:
    width, height = size
    if rng.random() < 0.5:
        photo = np.full((1, height, width, 3), rng.randrange(256), np.uint8)
        runner.run(photo, io=ImageIO((0.0, 255.0), (0.0, 255.0)))
        return
    width, height = (-(-side // 4) * 4 for side in size)
    runner.run(np.full((1, 3, height, width), rng.random(), np.float32))


def soak(
    seconds: float,
    networks: Sequence[str],
    sizes: Sequence[tuple[int, int]] = SIZES,
    threads: int | None = None,
    seed: int = 0,
    tell: Callable[[float, int], None] = lambda elapsed, memory: None,
) -> dict[str, Any]:
    """Runs until the time is over, but at least three times as long as the warm-up took.

    Args:
        seconds: how long.
        networks: sizes of the style network.
        sizes: width and height of the photos.
        threads: of the engine; None takes its choice.
        seed: of the order.
        tell: is called with the seconds so far and the memory about once a minute.

    Returns:
        ``rounds``, ``seconds``, ``samples``: (seconds since the warm-up, resident bytes in use),
        and ``kept``: what the allocator kept besides, at the same times.
    """
    cpu = backends.get("cpu")
    precisions = [p for p in cpu.PRECISIONS if cpu.precision_why_not(p) is None]
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        loaded: list[Checkpoint] = [load_style(network(n, Path(name))[0]) for n in networks]
    keys = [(i, precision) for i in range(len(loaded)) for precision in precisions]

    def compiled(key: tuple[int, str]) -> Any:
        ckpt = loaded[key[0]]
        return cpu.compile(ckpt.graph, ckpt.weights, key[1], threads)

    runners = {key: compiled(key) for key in keys}
    begin = time.monotonic()
    for runner in runners.values():
        for size in sizes:
            for _ in range(4):  # both ways in
                _round(runner, rng, size)
    warm = time.monotonic()
    end = warm + max(seconds - (warm - begin), 3 * (warm - begin))
    samples: list[tuple[float, int]] = []
    kept: list[int] = []
    every = min(_EVERY_S, (end - warm) / 30)
    rounds, told, looked = 0, warm, warm
    while (now := time.monotonic()) < end:
        key = rng.choice(keys)
        if rng.random() < _RENEW:
            runners[key].close()
            runners[key] = compiled(key)
        _round(runners[key], rng, rng.choice(sizes))
        rounds += 1
        if now - looked < every:
            continue
        looked, before = now, resident()
        _trim()
        samples.append((round(now - warm, 3), resident()))
        kept.append(before - samples[-1][1])
        if now - told >= 60:
            told = now
            tell(now - begin, samples[-1][1])
    for runner in runners.values():
        runner.close()
    took = time.monotonic() - begin
    return {"rounds": rounds, "seconds": took, "samples": samples, "kept": kept}


def judge(samples: Sequence[tuple[float, int]]) -> tuple[int, int]:
    """Median memory of the first and of the last third of the time, in bytes."""
    if not samples:
        raise ValueError("nothing was measured; give it more minutes")
    length = samples[-1][0]
    first = [memory for at, memory in samples if at <= length / 3]
    last = [memory for at, memory in samples if at >= length * 2 / 3]
    return int(median(first)), int(median(last))


def main() -> int:
    """Returns the exit code: 1 when memory grew."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=30.0, help="how long (%(default)s)")
    parser.add_argument(
        "--networks", nargs="+", choices=ARCHITECTURES, default=["small", "half", "full"]
    )
    parser.add_argument("--threads", type=int, help="of the engine")
    parser.add_argument("--limit", type=float, default=16.0, help="MiB of growth (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print all samples")
    args = parser.parse_args()

    def tell(elapsed: float, memory: int) -> None:
        print(f"{elapsed / 60:5.1f} min  {memory / 2**20:.1f} MiB", file=sys.stderr, flush=True)

    result = soak(args.minutes * 60, args.networks, threads=args.threads, tell=tell)
    first, last = judge(result["samples"])
    grew = (last - first) / 2**20
    if args.json:
        print(json.dumps(result))
    else:
        print(
            f"{result['rounds']} runs in {result['seconds'] / 60:.1f} min; median resident memory "
            f"{first / 2**20:.1f} MiB in the first third, {last / 2**20:.1f} MiB in the last "
            f"({grew:+.1f} MiB); the allocator kept {median(result['kept']) / 2**20:.1f} MiB more"
        )
    return int(grew > args.limit)


if __name__ == "__main__":
    sys.exit(main())
