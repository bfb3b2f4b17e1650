"""Launches of the Gram matrix: G = F F^T / (C H W) with fp32 accumulation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .launch import Launch, Machine, index_bits, machine_of, pipeline, run

if TYPE_CHECKING:
    import torch

__all__ = ["gram_matrix", "plan"]

# Up to so many programs add to one element atomically; beyond, they would queue for it, and a
# workspace with a second kernel is quicker.
MAX_ATOMIC_SPLITS = 8
# The matrix units round their sums towards zero: a sum of squares loses 2^-24 of itself with every
# product, so no program adds up more positions than this.
MAX_POSITIONS = 4096


def plan(
    x: torch.Tensor,
    deterministic: bool,
    machine: Machine,
    block_c: int | None = None,
    block_p: int | None = None,
) -> tuple[torch.Tensor, list[Launch]]:
    """Allocate the result and say what fills it.

    Args:
        x: (N, C, H, W) dense, contiguous or channels_last; float32, float16 or bfloat16.
        deterministic: the same bits on every run, and a result that is symmetric to the last bit.
        machine: that it is planned for.
        block_c: channels per tile; 16, 32, 64 or 128.
        block_p: positions per step.

    Returns:
        The (N, C, C) float32 result and the launches.
    """
    import torch

    n, c, h, w = x.shape
    positions = h * w
    wide = x.dtype == torch.float32
    if block_c is None:
        block_c = min(128 if not wide else 64, max(16, 1 << (c - 1).bit_length()))
    if block_p is None:
        block_p = 32 if wide else 64
    tiles = -(-c // block_c)
    pairs = tiles * (tiles + 1) // 2
    blocks = -(-positions // block_p)
    # Two programs per multiprocessor, each with enough steps to fill its pipeline.
    splits = max(1, min(2 * machine.multiprocessors // (n * pairs), blocks // 4))
    splits = max(splits, -(-positions // MAX_POSITIONS))
    per_split = -(-blocks // splits)
    splits = -(-blocks // per_split)
    factor = 1.0 / (c * positions)
    if splits == 1:
        target = "result"
    elif deterministic or splits > MAX_ATOMIC_SPLITS:
        target = "workspace"
    else:
        target = "sum"
    make = torch.zeros if target == "sum" else torch.empty
    out = make((n, c, c), dtype=torch.float32, device=x.device)
    into = out
    if target == "workspace":
        shape = (n * pairs * splits, block_c, block_c)
        into = torch.empty(shape, dtype=torch.float32, device=x.device)
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    large = block_c == 128
    first = Launch(
        "gram_matrix",
        "gram",
        n * pairs * splits,
        {
            "x": x,
            "out": into,
            "channels": c,
            "positions": positions,
            "blocks": blocks,
            "blocks_per_split": per_split,
            "factor": factor,
        },
        {
            "PAIRS": pairs,
            "SPLITS": splits,
            "TARGET": target,
            "CHANNELS_LAST": last,
            "PRECISION": "tf32x3" if wide else "ieee",
            "EMULATE": machine.interpreted and x.dtype == torch.bfloat16,
            "INDEX_BITS": index_bits(c * positions),
            "BLOCK_C": block_c,
            "BLOCK_P": block_p,
        },
        warps=8 if large else 4,
        stages=pipeline(machine, 2 * block_c * block_p * x.element_size()),
    )
    if target != "workspace":
        return out, [first]
    elements = 256
    second = Launch(
        "gram_matrix",
        "gram_reduce",
        n * pairs * (block_c * block_c // elements),
        {"workspace": into, "out": out, "channels": c, "factor": factor},
        {
            "PAIRS": pairs,
            "SPLITS": splits,
            "BLOCK_C": block_c,
            "BLOCK_S": min(16, 1 << (splits - 1).bit_length()),
            "BLOCK_E": elements,
        },
        warps=4,
        stages=2,
    )
    return out, [first, second]


def gram_matrix(x: torch.Tensor, deterministic: bool = False) -> torch.Tensor:
    """(N, C, H, W) -> (N, C, C) float32; see ``plan``."""
    out, launches = plan(x, deterministic, machine_of(x))
    run(launches, x)
    return out
