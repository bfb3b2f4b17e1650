"""F F^T of each image: the lower triangle in square tiles, positions split among programs."""

import triton
import triton.language as tl

from .common import dot


@triton.jit
def triangle(pair):
    """Row and column of the ``pair``-th tile of a lower triangle that is numbered by rows."""
    row = ((tl.sqrt(8.0 * pair.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int32)
    row = tl.where(row * (row + 1) // 2 > pair, row - 1, row)
    row = tl.where((row + 1) * (row + 2) // 2 <= pair, row + 1, row)
    return row, pair - row * (row + 1) // 2


@triton.jit
def strip(
    image,
    channel,
    position,
    channels,
    positions,
    CHANNELS_LAST: tl.constexpr,
    INDEX_BITS: tl.constexpr,
):
    """(channel, position) tile of the features."""
    if INDEX_BITS == 64:
        channel = channel.to(tl.int64)
        position = position.to(tl.int64)
    if CHANNELS_LAST:
        # The tile is read the way it lies, and turned in registers or by the matrix unit.
        tile = tl.load(
            image + position[:, None] * channels + channel[None, :],
            mask=(position[:, None] < positions) & (channel[None, :] < channels),
            other=0.0,
        )
        return tl.trans(tile)
    else:
        return tl.load(
            image + channel[:, None] * positions + position[None, :],
            mask=(channel[:, None] < channels) & (position[None, :] < positions),
            other=0.0,
        )


@triton.jit
def gram(
    x,
    out,
    channels,
    positions,
    blocks,
    blocks_per_split,
    factor,
    PAIRS: tl.constexpr,
    SPLITS: tl.constexpr,
    TARGET: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATE: tl.constexpr,
    INDEX_BITS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """One tile over one split of the positions.

    TARGET: "result" writes the tile and its mirror image, "sum" adds both atomically, and
    "workspace" leaves the tile in ``out`` for ``gram_reduce``.
    """
    pid = tl.program_id(0)
    split = pid % SPLITS
    pair = (pid // SPLITS) % PAIRS
    image_index = pid // (SPLITS * PAIRS)
    row, column = triangle(pair)
    image = x + image_index.to(tl.int64) * channels * positions
    lane = tl.arange(0, BLOCK_C)
    row_channel = row * BLOCK_C + lane
    column_channel = column * BLOCK_C + lane
    acc = tl.zeros((BLOCK_C, BLOCK_C), tl.float32)
    first = split * blocks_per_split
    last = tl.minimum(first + blocks_per_split, blocks)
    for block in range(first, last):
        position = block * BLOCK_P + tl.arange(0, BLOCK_P)
        a = strip(image, row_channel, position, channels, positions, CHANNELS_LAST, INDEX_BITS)
        if PAIRS == 1:
            b = a
        else:
            b = strip(
                image, column_channel, position, channels, positions, CHANNELS_LAST, INDEX_BITS
            )
        acc = dot(a, tl.trans(b), acc, PRECISION, EMULATE)
    if TARGET == "workspace":
        tile = out + pid.to(tl.int64) * BLOCK_C * BLOCK_C
        tl.store(tile + lane[:, None] * BLOCK_C + lane[None, :], acc)
    else:
        acc = acc * factor
        # On the diagonal both halves are there, rounded in different orders: keep the lower one.
        apart = (lane * 0 + row) != column  # a block: masks of blocks and scalars do not mix
        keep = apart[:, None] | (lane[:, None] >= lane[None, :])
        mirror = tl.trans(acc)
        acc = tl.where(keep, acc, mirror)
        result = out + image_index.to(tl.int64) * channels * channels
        here = result + row_channel[:, None] * channels + column_channel[None, :]
        inside = (row_channel[:, None] < channels) & (column_channel[None, :] < channels)
        there = result + column_channel[:, None] * channels + row_channel[None, :]
        inside_there = (column_channel[:, None] < channels) & (row_channel[None, :] < channels)
        inside_there = inside_there & apart[:, None]
        if TARGET == "sum":
            tl.atomic_add(here, acc, mask=inside, sem="relaxed")
            if PAIRS > 1:
                tl.atomic_add(there, mirror, mask=inside_there, sem="relaxed")
        else:
            tl.store(here, acc, mask=inside)
            if PAIRS > 1:
                tl.store(there, mirror, mask=inside_there)


@triton.jit
def gram_reduce(
    workspace,
    out,
    channels,
    factor,
    PAIRS: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """Sum a tile's splits in a fixed order; write it and its mirror image."""
    pid = tl.program_id(0)
    parts: tl.constexpr = BLOCK_C * BLOCK_C // BLOCK_E
    part = pid % parts
    pair = (pid // parts) % PAIRS
    image_index = pid // (parts * PAIRS)
    row, column = triangle(pair)
    element = part * BLOCK_E + tl.arange(0, BLOCK_E)
    r = element // BLOCK_C
    c = element % BLOCK_C
    # On the diagonal both halves were computed: take the lower one twice, so that the result is
    # symmetric to the last bit.
    source_r = tl.where(row == column, tl.maximum(r, c), r)
    source_c = tl.where(row == column, tl.minimum(r, c), c)
    source = source_r * BLOCK_C + source_c
    tile = workspace + (image_index.to(tl.int64) * PAIRS + pair) * SPLITS * BLOCK_C * BLOCK_C
    total = tl.zeros((BLOCK_E,), tl.float32)
    for first in range(0, SPLITS, BLOCK_S):
        split = first + tl.arange(0, BLOCK_S)
        values = tl.load(
            tile + split[:, None] * (BLOCK_C * BLOCK_C) + source[None, :],
            mask=split[:, None] < SPLITS,
            other=0.0,
        )
        total += tl.sum(values, axis=0)
    total = total * factor
    i = row * BLOCK_C + r
    j = column * BLOCK_C + c
    inside = (i < channels) & (j < channels)
    result = out + image_index.to(tl.int64) * channels * channels
    tl.store(result + i * channels + j, total, mask=inside)
    tl.store(result + j * channels + i, total, mask=inside & (i - r != j - c))
