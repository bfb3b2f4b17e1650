"""Fused operations as functions on tensors, each with several implementations.

Torch tensors in, torch tensors out; on the CPU numpy arrays work too, without torch. ``impl`` names
the implementation: ``"ref"`` (plain PyTorch), ``"cpu"`` (C++), ``"cuda"`` (CUDA C++), ``"triton"``;
``"auto"`` takes the fastest that can run here. One that is named never falls back to another.
See docs/ops.md.
"""

from __future__ import annotations

from fastgen.ops._dispatch import IMPLS, OPS, choose, impls, why_not
from fastgen.ops._packed import PackedConv, PackedConvConcat, StylePart
from fastgen.ops.concat_features import concat_features
from fastgen.ops.conv_bn_leaky_relu import conv_bn_leaky_relu, pack_conv_bn
from fastgen.ops.conv_concat import conv_concat, pack_conv_concat
from fastgen.ops.conv_instance_norm import conv_instance_norm, pack_conv_instance_norm
from fastgen.ops.gram_matrix import gram_matrix

__all__ = [
    "IMPLS",
    "OPS",
    "PackedConv",
    "PackedConvConcat",
    "StylePart",
    "choose",
    "concat_features",
    "conv_bn_leaky_relu",
    "conv_concat",
    "conv_instance_norm",
    "gram_matrix",
    "impls",
    "pack_conv_bn",
    "pack_conv_concat",
    "pack_conv_instance_norm",
    "why_not",
]
