"""Pieces that several kernels share.

EMULATE is set for bfloat16 in the interpreter, which multiplies its bit patterns as integers and
rounds to it by truncation.
"""

import triton
import triton.language as tl


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr, EMULATE: tl.constexpr):
    """acc + a b, summed in float32."""
    if EMULATE:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    else:
        return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def narrow(v, TYPE: tl.constexpr, EMULATE: tl.constexpr):
    """float32 to TYPE, rounded to nearest even."""
    if EMULATE:
        bits = v.to(tl.int32, bitcast=True)
        bits = bits + 0x7FFF + ((bits >> 16) & 1)
        v = bits.to(tl.float32, bitcast=True)
    return v.to(TYPE)


@triton.jit
def leaky(v, slope, SLOPE: tl.constexpr):
    """LeakyReLU. SLOPE: "none", "zero" (an infinity times 0 would be NaN) or "any"; NaN stays."""
    if SLOPE == "zero":
        return tl.where(v < 0, 0.0, v)
    elif SLOPE == "any":
        return tl.where(v < 0, v * slope, v)
    else:
        return v
