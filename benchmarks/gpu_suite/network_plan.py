"""Which whole networks are measured, at which sizes and in which order."""

from __future__ import annotations

from typing import Any

from benchmarks import networks

__all__ = ["SIZES", "jobs"]

Size = tuple[int, int, int]

# Width, height, batch; what matters most first.
SIZES: tuple[Size, ...] = (
    *((1920, 1080, 1), (1280, 720, 1), (3840, 2160, 1), (512, 512, 1)),
    *((1920, 1080, 8), (512, 512, 8), (1280, 720, 8), (3840, 2160, 8)),
)
_TINY = ((48, 32, 1), (16, 16, 2))
_GENERATORS = ("saae_mnist", "saae_characters", "saae_faces")  # their sizes are their own
_BATCHES = (1, 64)  # of generators
_STYLES = ("full", "half", "small")


def jobs(programs: list[str], dry: bool) -> list[dict[str, Any]]:
    """Jobs for the networks, in order: one full HD image in 16 bits comes first.

    Args:
        programs: see ``network_jobs.measure``. torch.compile takes minutes for each, so it gets
            single images of the style networks in fp16 only.
        dry: sizes that prove nothing, on a CPU.
    """
    sizes: tuple[Size, ...]
    kinds: tuple[str, ...]
    if dry:
        sizes, kinds, names, generators, batches = _TINY, ("fp32",), networks.names()[:1], 1, 1
    elif "compile" in programs:
        sizes, kinds, names, generators, batches = SIZES[:4], ("fp16",), list(_STYLES), 0, 0
    else:
        sizes, kinds, names = SIZES, ("fp16", "bf16", "tf32"), networks.names()
        generators, batches = len(_GENERATORS), len(_BATCHES)
    found = []
    for precision in kinds:
        for width, height, batch in sizes if precision != "tf32" else sizes[:1]:
            for name in names:
                what = (name, width, height, batch, precision)
                found.append(_job("network", what, programs, dry))
                if "compile" not in programs and (dry or batch == 1):
                    found.append(_job("frames", what, ["backends", "eager"], dry))
        for name in _GENERATORS[:generators]:
            for batch in _BATCHES[:batches]:
                found.append(_job("network", (name, 32, 32, batch, precision), programs, dry))
    # Stable: in fp16 first, single images before batches.
    found.sort(key=lambda job: (job["precision"] != kinds[0], job["batch"] > 1))
    return found


def _job(
    kind: str, what: tuple[str, int, int, int, str], programs: list[str], dry: bool
) -> dict[str, Any]:
    keys = ("network", "width", "height", "batch", "precision")
    return {
        "kind": kind,
        **dict(zip(keys, what, strict=True)),
        "programs": programs,
        "seconds": 0.002 if dry else 0.1,
        "mode": "max-autotune" if "compile" in programs and not dry else "default",
    }
