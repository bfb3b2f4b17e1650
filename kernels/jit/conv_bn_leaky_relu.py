"""Convolution as a matrix product whose left operand is gathered from the image while it runs.

Rows of the product are output positions, columns output channels, and the sum runs over kernel
taps and input channels. Padding and upsampling are index arithmetic of the gather.
"""

import triton
import triton.language as tl

from .common import dot, leaky, narrow


@triton.jit
def source(i, size, UP: tl.constexpr, EDGE: tl.constexpr):
    """Index into the input for index ``i`` of the upsampled, padded one, and whether it is there.

    EDGE: "zeros", "reflect" (the border is not repeated) or "clamp" (it is).
    """
    end = size * UP
    if EDGE == "zeros":
        return i // UP, (i >= 0) & (i < end)
    elif EDGE == "reflect":
        i = tl.abs(i)
        i = tl.minimum(i, 2 * (end - 1) - i)
        # Rows of the tile that are no output may lie beyond the reflection; they are dropped.
        return tl.maximum(i, 0) // UP, i == i
    else:
        return tl.minimum(tl.maximum(i, 0), end - 1) // UP, i == i


@triton.jit
def offset(row, column, width, channel, plane, CHANNELS: tl.constexpr, LAST: tl.constexpr):
    """Offset of an element of one image; operands broadcast; 64-bit where ``row`` is."""
    if LAST:
        return (row * width + column) * CHANNELS + channel
    else:
        return row * width + column + channel * plane


@triton.jit
def conv(
    x,
    weight,
    bias,
    residual,
    scale,
    shift,
    y,
    partials,
    height,
    width,
    out_height,
    out_width,
    tiles,
    residual_batch,
    slope,
    load_slope,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    EDGE: tl.constexpr,
    UP: tl.constexpr,
    PHASES: tl.constexpr,
    GROUP: tl.constexpr,
    BY_ROW: tl.constexpr,
    IN_LAST: tl.constexpr,
    OUT_LAST: tl.constexpr,
    NORM: tl.constexpr,
    LOAD_SLOPE: tl.constexpr,
    LOAD_RESIDUAL: tl.constexpr,
    OUT_RESIDUAL: tl.constexpr,
    SLOPE: tl.constexpr,
    STATISTICS: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATE: tl.constexpr,
    INDEX_BITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One tile of the output of one image.

    ``out_height`` x ``out_width`` are of one phase: with PHASES = 4 the output is twice as large
    each way, and the kernel is the one that the upsampled kernel folds to for its parity.
    With GROUP > 1 a row of the product is GROUP neighbours in x, and its columns are their
    channels, one neighbour after the other. BY_ROW: the sum's blocks are kernel rows, with
    (tap, channel) flattened; otherwise they are single taps with a block of channels.
    ``weight`` is (PHASES, COLUMNS, DEPTH): the sum's index is the contiguous one.
    """
    pid = tl.program_id(0)
    columns_tiles: tl.constexpr = (GROUP * OUT + BLOCK_N - 1) // BLOCK_N
    column_tile = pid % columns_tiles
    pid = pid // columns_tiles
    phase = pid % PHASES
    pid = pid // PHASES
    tile = pid % tiles
    image = pid // tiles

    if INDEX_BITS == 64:
        tile = tile.to(tl.int64)
        height = height.to(tl.int64)
        out_height = out_height.to(tl.int64)
    groups = (out_width + GROUP - 1) // GROUP
    m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    rows = out_height * groups
    inside = m < rows
    out_row = m // groups
    out_column = (m % groups) * GROUP
    if PHASES == 4:
        top = out_row + phase // 2 - 1
        left = out_column + phase % 2 - 1
    else:
        top = out_row * STRIDE - PADDING
        left = out_column * STRIDE - PADDING

    plane = height * width
    x_image = x + image.to(tl.int64) * plane * IN
    if LOAD_RESIDUAL:
        residual_image = residual + image.to(tl.int64) * residual_batch

    k = tl.arange(0, BLOCK_K)
    n = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    weights = weight + (phase * COLUMNS + n)[None, :] * DEPTH + k[:, None]
    if BY_ROW:
        channel = k % IN
        column, there = source(left[:, None] + (k // IN)[None, :], width, UP, EDGE)
        column_mask = there & (k < KW * IN)[None, :] & inside[:, None]
        channel_mask = k < KW * IN
    channel_blocks: tl.constexpr = (IN + BLOCK_K - 1) // BLOCK_K
    steps: tl.constexpr = KH if BY_ROW else KH * KW * channel_blocks
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(0, steps):
        if BY_ROW:
            row, row_there = source(top + step, height, UP, EDGE)
            mask = column_mask & row_there[:, None]
        else:
            tap = step // channel_blocks
            channel = (step % channel_blocks) * BLOCK_K + k
            row, row_there = source(top + tap // KW, height, UP, EDGE)
            column, there = source(left + tap % KW, width, UP, EDGE)
            mask = (row_there & there & inside)[:, None]
            column = column[:, None]
            channel_mask = channel < IN
            if IN % BLOCK_K != 0:
                mask = mask & channel_mask[None, :]
        at = offset(row[:, None], column, width, channel[None, :], plane, IN, IN_LAST)
        a = tl.load(x_image + at, mask=mask, other=0.0)
        if NORM or LOAD_RESIDUAL or LOAD_SLOPE != "none":
            wide = a.to(tl.float32)
            if NORM:
                s = tl.load(scale + image * IN + channel, mask=channel_mask, other=0.0)
                t = tl.load(shift + image * IN + channel, mask=channel_mask, other=0.0)
                wide = wide * s[None, :] + t[None, :]
            wide = leaky(wide, load_slope, LOAD_SLOPE)
            if LOAD_RESIDUAL:
                wide += tl.load(residual_image + at, mask=mask, other=0.0).to(tl.float32)
            # Zero padding comes after the norm: what is outside is 0, not `shift`.
            a = narrow(tl.where(mask, wide, 0.0), x.dtype.element_ty, EMULATE)
        b = tl.load(weights + step * BLOCK_K)
        acc = dot(a, b, acc, PRECISION, EMULATE)

    acc += tl.load(bias + n)[None, :]
    if STATISTICS:
        # Mean and sum of squared deviations of this tile: no cancellation, however large the mean.
        count = tl.minimum(rows - tile * BLOCK_M, BLOCK_M).to(tl.float32)
        mean = tl.sum(tl.where(inside[:, None], acc, 0.0), axis=0) / count
        deviation = tl.where(inside[:, None], acc - mean[None, :], 0.0)
        squares = tl.sum(deviation * deviation, axis=0)
        slot = (image.to(tl.int64) * tiles + tile) * PHASES + phase
        tl.store(partials + (slot * 2) * OUT + n, mean, mask=n < OUT)
        tl.store(partials + (slot * 2 + 1) * OUT + n, squares, mask=n < OUT)

    out_plane = out_height * out_width * PHASES
    if PHASES == 4:
        at = offset(
            (2 * out_row + phase // 2)[:, None],
            (2 * out_column + phase % 2)[:, None],
            2 * out_width,
            n[None, :],
            out_plane,
            OUT,
            OUT_LAST,
        )
        mask = inside[:, None] & (n < OUT)[None, :]
    elif GROUP > 1:
        column = out_column[:, None] + (n // OUT)[None, :]
        at = offset(
            out_row[:, None], column, out_width, (n % OUT)[None, :], out_plane, OUT, OUT_LAST
        )
        mask = inside[:, None] & (n < GROUP * OUT)[None, :] & (column < out_width)
    else:
        # Positions are numbered like the output's: contiguous, which the compiler can see.
        at = offset(0, m[:, None], 0, n[None, :], out_plane, OUT, OUT_LAST)
        mask = inside[:, None] & (n < OUT)[None, :]
    if OUT_RESIDUAL:
        from_image = residual + image.to(tl.int64) * residual_batch
        acc += tl.load(from_image + at, mask=mask, other=0.0).to(tl.float32)
    acc = leaky(acc, slope, SLOPE)
    y_image = y + image.to(tl.int64) * out_plane * OUT
    tl.store(y_image + at, narrow(acc, y.dtype.element_ty, EMULATE), mask=mask)


@triton.jit
def conv_statistics(
    partials,
    gamma,
    beta,
    scale,
    shift,
    tiles,
    rows,
    eps,
    OUT: tl.constexpr,
    PHASES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """Combine the tiles' means and squared deviations into the norm's scale and shift.

    Two passes: the mean, taken relative to the first tile's so that a large one costs no digits,
    then the deviations, each tile's own and its mean's.
    """
    pid = tl.program_id(0)
    channel_tiles: tl.constexpr = (OUT + BLOCK_O - 1) // BLOCK_O
    o = (pid % channel_tiles) * BLOCK_O + tl.arange(0, BLOCK_O)
    image = pid // channel_tiles
    slots = tiles * PHASES
    base = partials + image.to(tl.int64) * slots * 2 * OUT
    there = o < OUT
    pivot = tl.load(base + o, mask=there, other=0.0)
    total = 1.0 * rows * PHASES
    surplus = tl.zeros((BLOCK_O,), tl.float32)
    for first in range(0, slots, BLOCK_T):
        slot = first + tl.arange(0, BLOCK_T)
        mask = (slot < slots)[:, None] & there[None, :]
        count = tl.minimum(rows - (slot // PHASES) * BLOCK_M, BLOCK_M).to(tl.float32)
        mean = tl.load(base + (slot * 2)[:, None] * OUT + o[None, :], mask=mask, other=0.0)
        surplus += tl.sum(tl.where(mask, (mean - pivot[None, :]) * count[:, None], 0.0), axis=0)
    surplus = surplus / total
    squares = tl.zeros((BLOCK_O,), tl.float32)
    for first in range(0, slots, BLOCK_T):
        slot = first + tl.arange(0, BLOCK_T)
        mask = (slot < slots)[:, None] & there[None, :]
        count = tl.minimum(rows - (slot // PHASES) * BLOCK_M, BLOCK_M).to(tl.float32)
        at = (slot * 2)[:, None] * OUT + o[None, :]
        mean = tl.load(base + at, mask=mask, other=0.0)
        own = tl.load(base + at + OUT, mask=mask, other=0.0)
        apart = (mean - pivot[None, :]) - surplus[None, :]
        squares += tl.sum(tl.where(mask, own + apart * apart * count[:, None], 0.0), axis=0)
    factor = tl.load(gamma + o, mask=there, other=0.0) / tl.sqrt(squares / total + eps)
    average = pivot + surplus
    added = tl.load(beta + o, mask=there, other=0.0) - average * factor
    tl.store(scale + image * OUT + o, factor, mask=there)
    tl.store(shift + image * OUT + o, added, mask=there)
