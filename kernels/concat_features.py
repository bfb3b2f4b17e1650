"""Launches of the concatenation over channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .launch import Launch, run

if TYPE_CHECKING:
    import torch

__all__ = ["concat_features", "plan"]


@dataclass(frozen=True)
class _Rows:
    """One half as rows of contiguous elements; strides in elements, of an image and of a row."""

    per_image: int
    length: int
    image: int
    row: int
    target_row: int

    def block(self, elements: int) -> tuple[int, int]:
        """Rows and columns of a program's block: long enough for wide accesses, then tall."""
        length = min(elements, 1 << (self.length - 1).bit_length())
        return elements // length, length

    def blocks(self, images: int, elements: int) -> int:
        """Programs that copy all of it."""
        r, length = self.block(elements)
        return -(-images * self.per_image // r) * -(-self.length // length)


def plan(
    content: torch.Tensor, style: torch.Tensor, elements: int = 2048
) -> tuple[torch.Tensor, list[Launch]]:
    """Allocate the result and say what fills it.

    Args:
        content: (N, Cc, H, W) dense, contiguous or channels_last.
        style: (N or 1, Cs, H, W), or (N or 1, Cs) for every position alike; content's dtype.
        elements: per program.

    Returns:
        (N, Cc + Cs, H, W) in the memory format of ``content``, and the launches.
    """
    import torch

    n, channels, height, width = content.shape
    added = style.shape[1]
    plane = height * width
    last = content.is_contiguous(memory_format=torch.channels_last) and not content.is_contiguous()
    form = torch.channels_last if last else torch.contiguous_format
    style = style.contiguous(memory_format=form) if style.ndim == 4 else style.contiguous()
    out = torch.empty(
        (n, channels + added, height, width),
        dtype=content.dtype,
        device=content.device,
        memory_format=form,
    )
    total = channels + added
    # A style of one image is read again for each: its images are 0 elements apart.
    apart = 0 if style.shape[0] == 1 else added
    spread = False
    if last:
        first = _Rows(plane, channels, plane * channels, channels, total)
        if style.ndim == 4:
            second = _Rows(plane, added, plane * apart, added, total)
        else:
            second = _Rows(plane, added, apart, 0, total)
        offset = channels
    else:
        first = _Rows(1, channels * plane, channels * plane, 0, 0)
        if style.ndim == 4:
            second = _Rows(1, added * plane, apart * plane, 0, 0)
        else:
            second = _Rows(added, plane, apart, 1, plane)
            spread = True
        offset = channels * plane
    first_block, second_block = first.block(elements), second.block(elements)
    first_count = first.blocks(n, elements)
    launch = Launch(
        "concat_features",
        "concat",
        first_count + second.blocks(n, elements),
        {
            "content": content,
            "style": style,
            "out": out,
            "content_blocks": first_count,
            "content_rows": n * first.per_image,
            "content_rows_per_image": first.per_image,
            "content_length": first.length,
            "content_image": first.image,
            "content_row": first.row,
            "style_rows": n * second.per_image,
            "style_rows_per_image": second.per_image,
            "style_length": second.length,
            "style_image": second.image,
            "style_row": second.row,
            "style_offset": offset,
            "out_image": plane * total,
            "out_content_row": first.target_row,
            "out_style_row": second.target_row,
        },
        {
            "SPREAD": spread,
            "CONTENT_R": first_block[0],
            "CONTENT_L": first_block[1],
            "STYLE_R": second_block[0],
            "STYLE_L": second_block[1],
        },
        warps=4,
        stages=1,
    )
    return out, [launch]


def concat_features(content: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
    """Concatenate over channels; see ``plan``."""
    out, launches = plan(content, style)
    run(launches, content)
    return out
