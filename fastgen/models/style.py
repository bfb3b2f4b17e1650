"""Style networks: feedforward image transformation networks after Johnson et al. 2016.

All take ``image`` (N,3,H,W), RGB 0..255, and give ``stylized`` of the same shape and range (not
clamped). Source: Johnson, Alahi, Fei-Fei, "Perceptual Losses for Real-Time Style Transfer and
Super-Resolution", ECCV 2016, and its supplementary material; instance normalisation after
Ulyanov et al. 2016; nearest upsampling followed by a convolution after Odena et al. 2016.
"""

from __future__ import annotations

from fastgen.graph import Dim, Graph, Input, Node
from fastgen.models import register

__all__ = ["compact_net", "johnson_net", "transformer_net"]


class _Builder:
    """Collects nodes; every method returns the name of the value that it appended."""

    def __init__(self, norm: str) -> None:
        if norm not in ("instance", "batch"):
            raise ValueError(f"norm is {norm!r}, must be 'instance' or 'batch'")
        self.norm_kind = norm
        self.nodes: list[Node] = []

    def add(self, name: str, op: str, *inputs: str, **attrs: object) -> str:
        self.nodes.append(Node(name, op, inputs, attrs))
        return name

    def conv(self, name: str, x: str, channels: int, kernel: int, **attrs: object) -> str:
        """A convolution that keeps the size: reflect padding of half the kernel, by default."""
        attrs = {"padding": kernel // 2, "padding_mode": "reflect"} | attrs
        return self.add(name, "conv", x, out_channels=channels, kernel=kernel, **attrs)

    def norm(self, name: str, x: str, relu: bool = True) -> str:
        x = self.add(f"{name}_norm", "norm", x, kind=self.norm_kind, eps=1e-5)
        return self.add(f"{name}_relu", "activation", x, kind="relu") if relu else x

    def conv_norm(self, name: str, x: str, channels: int, kernel: int, **attrs: object) -> str:
        return self.norm(name, self.conv(name, x, channels, kernel, **attrs))

    def residual(self, name: str, x: str, channels: int) -> str:
        """Residual block of two 3x3 convolutions; nothing after the addition."""
        y = self.conv_norm(f"{name}_conv1", x, channels, 3)
        y = self.norm(f"{name}_conv2", self.conv(f"{name}_conv2", y, channels, 3), relu=False)
        return self.add(f"{name}_add", "add", x, y)

    def graph(self, name: str, output: str, minimum: int = 8) -> Graph:
        height, width = Dim("H", 4, minimum), Dim("W", 4, minimum)
        image = Input("image", (Dim("N"), 3, height, width))
        return Graph(name, (image,), tuple(self.nodes), {"stylized": output})


def _check(what: str, value: int, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{what} is {value!r}, must be an integer in {low}..{high}")


@register
def transformer_net(width: int = 32, norm: str = "instance", blocks: int = 5) -> Graph:
    """The style network: reflect same-padding everywhere, nearest x2 then convolution, no tanh.

    With ``width=32`` and ``blocks=5`` it has 1,679,235 weights (instance norm) and the layout of
    the networks of pytorch/examples; ``width=16`` ("half") takes about a quarter of the
    multiply-adds.

    Args:
        width: channels at full resolution, 1..256; twice and four times that below.
        norm: ``"instance"`` (from the data) or ``"batch"`` (stored statistics).
        blocks: residual blocks at a quarter of the resolution, 0..32.

    Returns:
        Graph with input ``image`` (N,3,H,W), H and W multiples of 4 and at least 8, RGB 0..255,
        and output ``stylized`` of the same shape.
    """
    _check("width", width, 1, 256)
    _check("blocks", blocks, 0, 32)
    b = _Builder(norm)
    x = b.conv_norm("down0", "image", width, 9)
    x = b.conv_norm("down1", x, 2 * width, 3, stride=2)
    x = b.conv_norm("down2", x, 4 * width, 3, stride=2)
    for i in range(blocks):
        x = b.residual(f"res{i}", x, 4 * width)
    x = b.conv_norm("up1", b.add("up1_resize", "upsample", x, scale=2), 2 * width, 3)
    x = b.conv_norm("up0", b.add("up0_resize", "upsample", x, scale=2), width, 3)
    return b.graph("transformer_net", b.conv("out", x, 3, 9))


@register
def compact_net(width: int = 16, norm: str = "instance", blocks: int = 3) -> Graph:
    """The small style network for real time on a CPU: no wide map at full resolution.

    The first convolution already halves the resolution and the last one reads the half-resolution
    map through a nearest x2, so only the 3-channel images live at full size. With the defaults it
    takes less than 1/12 of the multiply-adds of ``transformer_net(width=32)``.

    Args:
        width: channels at half resolution, 1..256; three times that at a quarter.
        norm: ``"instance"`` or ``"batch"``.
        blocks: residual blocks at a quarter of the resolution, 0..32.

    Returns:
        Graph like that of :func:`transformer_net`.
    """
    _check("width", width, 1, 256)
    _check("blocks", blocks, 0, 32)
    b = _Builder(norm)
    x = b.conv_norm("down1", "image", width, 5, stride=2)
    x = b.conv_norm("down2", x, 3 * width, 3, stride=2)
    for i in range(blocks):
        x = b.residual(f"res{i}", x, 3 * width)
    x = b.conv_norm("up1", b.add("up1_resize", "upsample", x, scale=2), width, 3)
    x = b.add("up0_resize", "upsample", x, scale=2)
    return b.graph("compact_net", b.conv("out", x, 3, 5))


@register
def johnson_net(width: int = 32, norm: str = "batch", blocks: int = 5) -> Graph:
    """The layout of the paper's supplementary material, kept for comparison.

    The image is reflection-padded by 40 px once; residual blocks use convolutions without padding
    and crop the identity by 2 px on each side; upsampling is a transposed convolution of stride
    1/2; the output is ``150*tanh`` around the middle of the range (the paper: "a scaled tanh to
    ensure that the output has pixels in the range [0, 255]").

    Args:
        width: channels at full resolution, 1..256.
        norm: ``"batch"`` (the paper) or ``"instance"``.
        blocks: residual blocks, 0..32. The padding is 8 px for each (40 px for five).

    Returns:
        Graph with input ``image`` (N,3,H,W), RGB 0..255, H and W multiples of 4, and output
        ``stylized`` of the same shape.
    """
    _check("width", width, 1, 256)
    _check("blocks", blocks, 0, 32)
    b = _Builder(norm)
    margin = 8 * blocks  # two 3x3 convolutions at a quarter resolution take 2*4 px per block
    x = b.add("start", "pad", "image", padding=[margin] * 4, mode="reflect") if margin else "image"
    x = b.conv_norm("down0", x, width, 9, padding_mode="zeros")
    x = b.conv_norm("down1", x, 2 * width, 3, stride=2, padding_mode="zeros")
    x = b.conv_norm("down2", x, 4 * width, 3, stride=2, padding_mode="zeros")
    valid = {"padding": 0, "padding_mode": "zeros"}
    for i in range(blocks):
        y = b.conv_norm(f"res{i}_conv1", x, 4 * width, 3, **valid)
        y = b.conv(f"res{i}_conv2", y, 4 * width, 3, **valid)
        y = b.norm(f"res{i}_conv2", y, relu=False)
        x = b.add(f"res{i}_crop", "crop", x, crop=[2, 2, 2, 2])
        x = b.add(f"res{i}_add", "add", x, y)
    for name, channels in (("up1", 2 * width), ("up0", width)):
        x = b.add(
            name,
            "conv_transpose",
            x,
            out_channels=channels,
            kernel=3,
            stride=2,
            padding=1,
            output_padding=1,
        )
        x = b.norm(name, x)
    x = b.conv("out", x, 3, 9, padding_mode="zeros")
    x = b.add("out_tanh", "activation", x, kind="tanh")
    x = b.add("out_range", "affine", x, scale=150.0, shift=127.5)
    return b.graph("johnson_net", x, minimum=max(8, 4 * (margin // 4 + 1)))
