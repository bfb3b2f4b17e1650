"""The ``triton`` implementation: kernels of ``fastgen.kernels`` on CUDA tensors.

With ``TRITON_INTERPRET=1`` in the environment before Triton is first imported the same kernels
run in Triton's interpreter on CPU tensors: slow, and meant for tests.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from fastgen.kernels import concat_features as _concat
from fastgen.kernels import conv_bn_leaky_relu as _conv
from fastgen.kernels import conv_weights
from fastgen.kernels import gram_matrix as _gram
from fastgen.kernels.launch import interpreting

if TYPE_CHECKING:
    import torch

    from ._spec import ConvSpec

__all__ = ["concat_features", "conv", "conv_norm", "gram_matrix", "pack_conv", "why_not"]

OPS = ("gram_matrix", "conv_bn_leaky_relu", "conv_instance_norm", "concat_features")
MIN_CAPABILITY = (8, 0)  # bfloat16 and tf32 on the matrix units, and cp.async, begin there


@cache
def _machine_why_not() -> str | None:
    try:
        import torch
    except ImportError:
        return "torch is not installed; pip install 'fastgen[triton]'"
    try:
        import triton
    except ImportError:
        return "Triton is not installed; pip install 'fastgen[triton]'"
    if not hasattr(triton, "knobs"):
        return f"Triton is {triton.__version__}, 3.6 or newer is needed; pip install -U triton"
    if interpreting():
        return None
    if not torch.cuda.is_available():
        return "torch sees no CUDA device; to interpret the kernels on the CPU: TRITON_INTERPRET=1"
    if torch.version.cuda is None:
        return "torch was built for ROCm; these kernels are written for NVIDIA GPUs"
    best = max(
        torch.cuda.get_device_capability(device) for device in range(torch.cuda.device_count())
    )
    if best < MIN_CAPABILITY:
        needed = ".".join(map(str, MIN_CAPABILITY))
        return f"the GPU has compute capability {best[0]}.{best[1]}, {needed} or higher is needed"
    return None


def why_not(op: str) -> str | None:
    """Why ``op`` cannot run here, or None if it can."""
    if op not in OPS:
        return f"Triton has no {op}; it has {', '.join(OPS)}"
    return _machine_why_not()


def gram_matrix(x: torch.Tensor, deterministic: bool) -> torch.Tensor:
    """See ``fastgen.ops.gram_matrix``; ``x`` is dense."""
    return _gram.gram_matrix(x, deterministic)


def concat_features(content: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
    """See ``fastgen.ops.concat_features``; ``content`` is dense."""
    return _concat.concat_features(content, style)


def pack_conv(spec: ConvSpec, device: str | None) -> conv_weights.PackedWeights:
    """Pack ``spec`` on ``device``: by default the current CUDA device, the CPU if interpreted."""
    return conv_weights.pack(
        spec.weight,
        spec.bias,
        stride=spec.stride,
        padding=spec.padding,
        padding_mode=spec.padding_mode,
        upsample=spec.upsample,
        dtype=spec.dtype,
        device=device or ("cpu" if interpreting() else "cuda"),
        negative_slope=spec.negative_slope,
        load_slope=spec.load_slope,
        gamma=spec.gamma,
        beta=spec.beta,
        eps=spec.eps,
    )


def conv(
    x: torch.Tensor, handle: conv_weights.PackedWeights, residual: torch.Tensor | None
) -> torch.Tensor:
    """See ``fastgen.ops.conv_bn_leaky_relu``; ``x`` is dense and on the handle's device."""
    (y,) = _conv.conv(x, handle, residual=residual)
    return y


def conv_norm(
    x: torch.Tensor,
    handle: conv_weights.PackedWeights,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    residual: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See ``fastgen.ops.conv_instance_norm``; ``x`` is dense and on the handle's device."""
    norm = None
    if scale is not None and shift is not None:
        norm = (scale.contiguous(), shift.contiguous())
    y, out_scale, out_shift = _conv.conv(
        x, handle, norm=norm, residual=residual, residual_on_load=True
    )
    return y, out_scale, out_shift
