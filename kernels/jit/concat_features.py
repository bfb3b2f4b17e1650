"""Concatenation over channels as two strided copies that share one launch."""

import triton
import triton.language as tl


@triton.jit
def copy_rows(
    source,
    target,
    block,
    rows,
    rows_per_image,
    length,
    image_stride,
    row_stride,
    target_image,
    target_row,
    SPREAD: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """Copy one block of rows; row r of image n starts n * image_stride + r * row_stride.

    SPREAD: a row is one value, repeated.
    """
    across = (length + BLOCK_L - 1) // BLOCK_L
    row = (block // across) * BLOCK_R + tl.arange(0, BLOCK_R)
    at = (block % across) * BLOCK_L + tl.arange(0, BLOCK_L)
    image = (row // rows_per_image).to(tl.int64)
    inner = (row % rows_per_image).to(tl.int64)
    start = image * image_stride + inner * row_stride
    end = image * target_image + inner * target_row
    mask = (row < rows)[:, None] & (at < length)[None, :]
    if SPREAD:
        value = tl.load(source + start, mask=row < rows, other=0.0)[:, None]
        value = tl.broadcast_to(value, (BLOCK_R, BLOCK_L))
    else:
        value = tl.load(source + start[:, None] + at[None, :], mask=mask, other=0.0)
    tl.store(target + end[:, None] + at[None, :], value, mask=mask)


@triton.jit
def concat(
    content,
    style,
    out,
    content_blocks,
    content_rows,
    content_rows_per_image,
    content_length,
    content_image,
    content_row,
    style_rows,
    style_rows_per_image,
    style_length,
    style_image,
    style_row,
    style_offset,
    out_image,
    out_content_row,
    out_style_row,
    SPREAD: tl.constexpr,
    CONTENT_R: tl.constexpr,
    CONTENT_L: tl.constexpr,
    STYLE_R: tl.constexpr,
    STYLE_L: tl.constexpr,
):
    """The first ``content_blocks`` programs copy the content, the others the style.

    Each half has its own programs, so that its rows start where its own alignment allows wide
    accesses; a mask over both in one block would make them narrow.
    """
    pid = tl.program_id(0)
    if pid < content_blocks:
        copy_rows(
            content,
            out,
            pid,
            content_rows,
            content_rows_per_image,
            content_length,
            content_image,
            content_row,
            out_image,
            out_content_row,
            False,
            CONTENT_R,
            CONTENT_L,
        )
    else:
        copy_rows(
            style,
            out + style_offset,
            pid - content_blocks,
            style_rows,
            style_rows_per_image,
            style_length,
            style_image,
            style_row,
            out_image,
            out_style_row,
            SPREAD,
            STYLE_R,
            STYLE_L,
        )
