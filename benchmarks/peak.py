"""The machine's own limits, measured with the engine's multiply-add loops and a copy."""

from __future__ import annotations

from fastgen.cli._machine import usable_cores

_COPY_BYTES = 256 << 20  # far more than any cache


def measure(seconds: float = 0.5, rounds: int = 3) -> dict[str, dict[str, float]]:
    """Runs each instruction set's loop on all cores; the best of the rounds counts.

    Args:
        seconds: for each loop and round.
        rounds: of each.

    Returns:
        Instruction set -> ``gmac_s`` (1e9 multiply-adds a second, of float32 factors, for
        ``avx512_bf16`` of bfloat16 factors) and ``copy_gb_s`` (1e9 bytes a second, read and
        written).
    """
    from fastgen import _C

    threads = usable_cores()
    copy = max(_C.copy_bandwidth(_COPY_BYTES, seconds, threads) for _ in range(rounds)) / 1e9
    result = {}
    for isa in _C.isa_available():
        flops = max(_C.peak_flops(isa, seconds, threads) for _ in range(rounds))
        result[isa] = {"gmac_s": flops / 2e9, "copy_gb_s": copy}
    return result
