"""Launches of the fused convolutions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from .conv_weights import PackedWeights
from .launch import Launch, Machine, index_bits, machine_of, pipeline, run

if TYPE_CHECKING:
    import torch

__all__ = ["Tile", "choose_tile", "conv", "plan", "tiles", "tune"]

# (positions, channels, warps) per program, the most efficient first. The first that keeps every
# multiprocessor busy is taken: see choose_tile. Float32 runs three products for each (tf32x3) and
# splits its operands in registers, so its tiles are smaller.
Tile = tuple[int, int, int]
TILES_16: tuple[Tile, ...] = ((128, 128, 8), (128, 64, 4), (64, 64, 4), (64, 32, 4), (64, 16, 4))
TILES_32: tuple[Tile, ...] = ((128, 64, 8), (64, 64, 4), (64, 32, 4), (64, 16, 4))


def tiles(packed: PackedWeights) -> list[Tile]:
    """The tiles that fit the packed weights."""
    known = TILES_32 if packed.dtype == "float32" else TILES_16
    columns = packed.group * packed.out_channels
    # Columns beyond the last are computed for nothing: at most a quarter of the work.
    fewest = -(-columns // 16) * 16
    fitting = [
        t
        for t in known
        if packed.columns % t[1] == 0 and -(-columns // t[1]) * t[1] <= max(16, 1.25 * fewest)
    ]
    return fitting or [known[-1]]


def choose_tile(packed: PackedWeights, rows: int, images: int, machine: Machine) -> Tile:
    """The largest tile with at least one program per multiprocessor, else the smallest.

    Args:
        packed: what is multiplied with.
        rows: of the product, in one image and phase.
        images: batch size times phases.
        machine: that runs it.
    """
    fitting = tiles(packed)
    columns = packed.group * packed.out_channels
    for tile in fitting:
        programs = -(-rows // tile[0]) * -(-columns // tile[1]) * images
        if programs >= machine.multiprocessors:
            return tile
    return fitting[-1]


def _slope(value: float) -> str:
    return "none" if value == 1.0 else "zero" if value == 0.0 else "any"


def plan(
    x: torch.Tensor,
    packed: PackedWeights,
    machine: Machine,
    *,
    norm: tuple[torch.Tensor, torch.Tensor] | None = None,
    residual: torch.Tensor | None = None,
    residual_on_load: bool = False,
    tile: Tile | None = None,
) -> tuple[tuple[torch.Tensor, ...], list[Launch]]:
    """Allocate the results and say what fills them.

    Args:
        x: (N, I, H, W) dense, contiguous or channels_last, in the packed weights' dtype.
        packed: from ``conv_weights.pack``.
        machine: that it is planned for.
        norm: (N, I) float32 scale and shift applied on load.
        residual: like the output (or like ``x`` if it is added on load); batch 1 broadcasts.
        residual_on_load: where the residual is added.
        tile: in place of ``choose_tile``'s.

    Returns:
        (y,), or (y, scale, shift) if ``packed`` has a norm; and the launches.
    """
    import torch

    n, channels, height, width = x.shape
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    form = torch.channels_last if last else torch.contiguous_format
    in_last = last or (height == width == 1)
    if not in_last and not packed.by_row:
        # Gathered channel by channel, planes would cost a transaction an element: turn them once.
        x = x.contiguous(memory_format=torch.channels_last)
        in_last = True
    in_form = torch.channels_last if in_last else torch.contiguous_format
    if residual is not None:
        residual = residual.contiguous(memory_format=in_form if residual_on_load else form)
    out_height, out_width = packed.output_size(height, width)
    y = torch.empty(
        (n, packed.out_channels, out_height, out_width),
        dtype=x.dtype,
        device=x.device,
        memory_format=form,
    )
    halves = 2 if packed.phases == 4 else 1
    phase_height, phase_width = out_height // halves, out_width // halves
    rows = phase_height * -(-phase_width // packed.group)
    block_m, block_n, warps = tile or choose_tile(packed, rows, n * packed.phases, machine)
    count = -(-rows // block_m)
    column_tiles = -(-packed.group * packed.out_channels // block_n)
    statistics = packed.gamma is not None
    nothing = packed.bias  # a pointer where the kernel reads none
    partials = nothing
    if statistics:
        shape = (n, count * packed.phases, 2, packed.out_channels)
        partials = torch.empty(shape, dtype=torch.float32, device=x.device)
    operands = block_m + block_n + block_m * (residual is not None and residual_on_load)
    stages = pipeline(machine, operands * packed.block_k * x.element_size())
    first = Launch(
        "conv_bn_leaky_relu",
        "conv",
        n * count * packed.phases * column_tiles,
        {
            "x": x,
            "weight": packed.weight,
            "bias": packed.bias,
            "residual": nothing if residual is None else residual,
            "scale": nothing if norm is None else norm[0],
            "shift": nothing if norm is None else norm[1],
            "y": y,
            "partials": partials,
            "height": height,
            "width": width,
            "out_height": phase_height,
            "out_width": phase_width,
            "tiles": count,
            "residual_batch": 0
            if residual is None or residual.shape[0] < n
            else residual[0].numel(),
            "slope": packed.negative_slope,
            "load_slope": packed.load_slope,
        },
        {
            "IN": channels,
            "OUT": packed.out_channels,
            "COLUMNS": packed.columns,
            "DEPTH": packed.depth,
            "KH": packed.kernel[0],
            "KW": packed.kernel[1],
            "STRIDE": packed.stride,
            "PADDING": packed.padding,
            "EDGE": packed.edge,
            "UP": packed.upsample,
            "PHASES": packed.phases,
            "GROUP": packed.group,
            "BY_ROW": packed.by_row,
            "IN_LAST": in_last,
            "OUT_LAST": last,
            "NORM": norm is not None,
            "LOAD_SLOPE": _slope(packed.load_slope),
            "LOAD_RESIDUAL": residual is not None and residual_on_load,
            "OUT_RESIDUAL": residual is not None and not residual_on_load,
            "SLOPE": _slope(packed.negative_slope),
            "STATISTICS": statistics,
            "PRECISION": "tf32x3" if packed.dtype == "float32" else "ieee",
            "EMULATE": machine.interpreted and packed.dtype == "bfloat16",
            "INDEX_BITS": index_bits(x[0].numel(), y[0].numel()),
            "BLOCK_M": block_m,
            "BLOCK_N": block_n,
            "BLOCK_K": packed.block_k,
        },
        warps,
        stages,
    )
    if packed.gamma is None or packed.beta is None:
        return (y,), [first]
    scale = torch.empty((n, packed.out_channels), dtype=torch.float32, device=x.device)
    shift = torch.empty_like(scale)
    block_o = 8
    second = Launch(
        "conv_bn_leaky_relu",
        "conv_statistics",
        n * -(-packed.out_channels // block_o),
        {
            "partials": partials,
            "gamma": packed.gamma,
            "beta": packed.beta,
            "scale": scale,
            "shift": shift,
            "tiles": count,
            "rows": rows,
            "eps": packed.eps,
        },
        {
            "OUT": packed.out_channels,
            "PHASES": packed.phases,
            "BLOCK_M": block_m,
            # All tiles of a usual image in one step: the kernel is bound by latency.
            "BLOCK_T": min(512, max(16, 1 << (count * packed.phases - 1).bit_length())),
            "BLOCK_O": block_o,
        },
        warps=4,
        stages=2,
    )
    return (y, scale, shift), [first, second]


def conv(
    x: torch.Tensor,
    packed: PackedWeights,
    *,
    norm: tuple[torch.Tensor, torch.Tensor] | None = None,
    residual: torch.Tensor | None = None,
    residual_on_load: bool = False,
    tile: Tile | None = None,
) -> tuple[torch.Tensor, ...]:
    """(y,), or (y, scale, shift) if the packed weights have a norm; see ``plan``."""
    results, launches = plan(
        x,
        packed,
        machine_of(x),
        norm=norm,
        residual=residual,
        residual_on_load=residual_on_load,
        tile=tile,
    )
    run(launches, x)
    return results


def tune(
    x: torch.Tensor,
    packed: PackedWeights,
    measure: Callable[[Callable[[], Any]], float] | None = None,
    **inputs: Any,
) -> list[tuple[Tile, float]]:
    """Every tile that fits with its time, the quickest first: what to enter into the tables.

    Nothing calls this while the op is used; a first call that searches would take seconds.

    Args:
        x: input of ``conv``.
        packed: weights of ``conv``.
        measure: milliseconds that a call takes; by default Triton's median on the GPU.
        inputs: further arguments of ``conv``.
    """
    if measure is None:
        from triton.testing import do_bench

        measure = partial(do_bench, return_mode="median")
    times = [
        (tile, measure(partial(conv, x, packed, tile=tile, **inputs))) for tile in tiles(packed)
    ]
    return sorted(times, key=lambda entry: entry[1])
