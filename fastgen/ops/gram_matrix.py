"""Gram matrix of feature maps: what style losses compare."""

from __future__ import annotations

from numpy import ndarray

from fastgen.errors import ImplUnavailable
from fastgen.ops import _check, _dispatch, _register
from fastgen.ops._check import Array

__all__ = ["gram_matrix"]


def gram_matrix(x: Array, *, impl: str = "auto", deterministic: bool = False) -> Array:
    """Gram matrix of each image: ``G[n,i,j] = sum_p x[n,i,p] x[n,j,p] / (C H W)``.

    Sums are accumulated in float32 whatever the input is, and the result is float32: squares of
    activations overflow half precision. Differentiable with a backward of its own,
    ``dx = (G' + G'^T) x / (C H W)``: one product, and nothing but x is kept for it.

    Args:
        x: (N, C, H, W) float32, float16, bfloat16, or float64 (``ref`` only); contiguous or
            channels_last (others are copied). Torch tensor, or numpy array on the CPU.
        impl: ``"auto"``, ``"ref"``, ``"cpu"``, ``"cuda"`` or ``"triton"``.
        deterministic: the same bits on every run on this machine, also where parts are summed in
            parallel; can be slower.

    Returns:
        (N, C, C), symmetric; float32, or float64 for float64.

    Raises:
        TypeError: not a tensor or array, or a dtype that the implementation does not take.
        ValueError: not four sizes, an empty one, unknown ``impl`` or one for another device.
        ImplUnavailable: the named implementation cannot run here; the message says why.

    Source: Johnson, Alahi, Fei-Fei, *Perceptual Losses for Real-Time Style Transfer and
    Super-Resolution*, 2016, Eq. 7; Gatys, Ecker, Bethge, *Image Style Transfer Using Convolutional
    Neural Networks*, CVPR 2016 (who do not divide by C H W).
    """
    _dispatch.check_impl(impl)
    dtype = _check.dtype_name("x", x)
    _check.features("x", x)
    if isinstance(x, ndarray):
        modules = _dispatch.candidates("gram_matrix", impl, "cpu", dtype)
    else:
        if impl != "ref" and not _dispatch.is_direct(x):
            return _register.call("gram_matrix", _check.as_dense(x), bool(deterministic), impl)
        kind = "cpu" if x.is_cpu else x.device.type  # the second is slow
        modules = _dispatch.candidates("gram_matrix", impl, kind, dtype)
    x = _check.as_dense(x)
    try:
        return modules[0].gram_matrix(x, deterministic)
    except ImplUnavailable:
        return _dispatch.run_next(modules, "gram_matrix", x, deterministic)
