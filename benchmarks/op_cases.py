"""The shapes at which the fused operations are measured, with what each costs as written.

One table for the CPU and the GPU suite. Multiply-adds count the operation as its formula is
written, so an algorithm that saves arithmetic (one triangle of a Gram matrix, Winograd, the phases
of an upsampling) shows as a higher rate; bytes count each input once and the output once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["CASES", "DTYPES", "OPS", "Case", "by_name", "itemsize"]

OPS = (
    "gram_matrix",
    "conv_bn_leaky_relu",
    "conv_instance_norm",
    "concat_features",
    "conv_concat",
)
DTYPES = {"float32": 4, "float16": 2, "bfloat16": 2}
EPS = 1e-5
SLOPE = 0.2  # of the LeakyReLU


def itemsize(dtype: str) -> int:
    """Bytes of a number of this type."""
    return DTYPES[dtype]


@dataclass(frozen=True)
class Case:
    """An operation at a shape.

    Attributes:
        op: name of the function in ``fastgen.ops``.
        x: (N,C,H,W) of the input, or of the content.
        style: shape of the style features of a concatenation, (N,C,H,W) or (N,C).
        out: output channels of a convolution.
        kernel: of a convolution, as are ``stride``, ``padding``, ``mode`` and ``upsample``.
    """

    op: str
    x: tuple[int, int, int, int]
    style: tuple[int, ...] = ()
    out: int = 0
    kernel: int = 0
    stride: int = 1
    padding: int = 0
    mode: str = "zeros"
    upsample: int = 1

    @property
    def name(self) -> str:
        """Unique within the table; letters, digits and ``+-_`` only."""
        parts = ["x".join(map(str, self.x))]
        if self.style:
            parts[0] += "+" + "x".join(map(str, self.style))
        if self.out:
            parts[0] += f"-{self.out}"
            parts.append(f"k{self.kernel}")
            parts += [f"s{self.stride}"] if self.stride > 1 else []
            parts += [f"up{self.upsample}"] if self.upsample > 1 else []
            parts += [self.mode] if self.padding else []
        return "_".join(parts)

    @property
    def channels(self) -> int:
        """Channels that the operation reads, a style's included."""
        return self.x[1] + (self.style[1] if self.style else 0)

    @property
    def output(self) -> tuple[int, ...]:
        """Shape of the (first) result."""
        n, channels, height, width = self.x
        if self.op == "gram_matrix":
            return n, channels, channels
        if not self.out:
            return n, self.channels, height, width
        size = [
            (side * self.upsample + 2 * self.padding - self.kernel) // self.stride + 1
            for side in (height, width)
        ]
        return n, self.out, size[0], size[1]

    @property
    def multiply_adds(self) -> int:
        """Of the formula; 0 for a copy."""
        n, channels, height, width = self.x
        if self.op == "gram_matrix":
            return n * channels * channels * height * width
        if not self.out:
            return 0
        _, _, rows, columns = self.output
        return n * self.out * rows * columns * self.channels * self.kernel**2

    @property
    def flops(self) -> int:
        """Two for each multiply-add."""
        return 2 * self.multiply_adds

    def bytes_moved(self, dtype: str) -> int:
        """The fewest bytes: every input and weight read once, the output written once."""
        size = itemsize(dtype)
        elements = _product(self.x) + (_product(self.style) if self.style else 0)
        elements += self.out * self.channels * self.kernel**2
        written = _product(self.output)
        return elements * size + written * (4 if self.op == "gram_matrix" else size)

    def tiny(self) -> Case:
        """The same kind of work in no time: for tests and dry runs."""
        n, channels, height, width = self.x

        def fewer(count: int) -> int:
            return min(count, 6 if count % 2 == 0 else 5)

        def smaller(side: int) -> int:
            return min(side, self.kernel + 5 if side % 2 == 0 else self.kernel + 4)

        x = (min(n, 2), fewer(channels), smaller(height), smaller(width))
        style = self.style
        if style:
            style = (min(style[0], 2), fewer(style[1]), *x[2:])[: len(style)]
        return replace(self, x=x, style=style, out=fewer(self.out) if self.out else 0)

    def asked_cpu(self, dtype: str) -> float:
        """The speed over the best peer that the project asks of the CPU at this shape."""
        if self.op == "gram_matrix":
            named = ((1, 64, 256, 256), (1, 128, 128, 128), (4, 256, 64, 64))
            return 1.5 if dtype == "float32" and self.x in named else 1.0
        if self.op == "conv_concat":
            return 1.8
        wide = self.op == "conv_bn_leaky_relu" and min(self.x[1], self.out) >= 64
        if wide and self.kernel == 3 and self.stride == 1:
            return {"float32": 1.3, "bfloat16": 1.15}.get(dtype, 1.0)
        return 1.0


def _product(shape: tuple[int, ...]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result


def _conv(
    x: tuple[int, int, int, int],
    out: int,
    kernel: int,
    mode: str = "zeros",
    *,
    op: str = "conv_bn_leaky_relu",
    stride: int = 1,
    upsample: int = 1,
    padding: int | None = None,
) -> Case:
    padding = kernel // 2 if padding is None else padding
    return Case(
        op, x, (), out, kernel, stride=stride, padding=padding, mode=mode, upsample=upsample
    )


_GRAM = (
    *((1, 64, 256, 256), (1, 128, 128, 128), (4, 256, 64, 64)),
    *((1, 512, 32, 32), (1, 3, 256, 256), (8, 64, 128, 128)),
)
_NORM = "conv_instance_norm"

CASES: tuple[Case, ...] = (
    *(Case("gram_matrix", x) for x in _GRAM),
    # The layers of the full style network at 256 px.
    _conv((1, 3, 256, 256), 32, 9, "reflect"),
    _conv((1, 32, 256, 256), 64, 3, "reflect", stride=2),
    _conv((1, 64, 128, 128), 128, 3, "reflect", stride=2),
    _conv((1, 128, 64, 64), 128, 3, "reflect"),
    _conv((1, 128, 64, 64), 64, 3, "reflect", upsample=2),
    _conv((1, 64, 128, 128), 32, 3, "reflect", upsample=2),
    _conv((1, 32, 256, 256), 3, 9, "reflect"),
    # Layers of other networks, and one of odd sizes.
    _conv((1, 64, 128, 128), 64, 3),
    _conv((1, 256, 32, 32), 256, 3),
    _conv((4, 64, 64, 64), 64, 3),
    _conv((1, 64, 256, 256), 64, 3),
    _conv((1, 64, 128, 128), 128, 4, stride=2, padding=1),
    _conv((1, 64, 64, 64), 64, 5),
    _conv((1, 256, 64, 64), 64, 1),
    _conv((1, 13, 37, 41), 24, 3),
    # The style network's layers again, with its instance norms.
    _conv((1, 128, 64, 64), 128, 3, "reflect", op=_NORM),
    _conv((1, 32, 256, 256), 64, 3, "reflect", op=_NORM, stride=2),
    _conv((1, 128, 64, 64), 64, 3, "reflect", op=_NORM, upsample=2),
    Case("concat_features", (1, 128, 64, 64), (1, 128, 64, 64)),
    Case("concat_features", (4, 256, 32, 32), (4, 64)),
    Case("concat_features", (1, 64, 256, 256), (1, 16)),
    Case("conv_concat", (1, 128, 64, 64), (1, 128, 64, 64), 128, 3, padding=1),
    Case("conv_concat", (1, 64, 128, 128), (1, 64), 64, 3, padding=1),
)


def by_name(op: str, name: str) -> Case:
    """A case of the table.

    Raises:
        ValueError: there is none of this name.
    """
    for case in CASES:
        if (case.op, case.name) == (op, name):
            return case
    known = ", ".join(case.name for case in CASES if case.op == op)
    raise ValueError(f"{op} is not measured at {name!r}; known: {known or 'no such operation'}")
