"""The op x impl table: what can run here, what ``auto`` takes, and when a call may be direct."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

from fastgen.errors import ImplUnavailable

__all__ = ["IMPLS", "OPS", "candidates", "choose", "impls", "is_direct", "run", "why_not"]

OPS = (
    "gram_matrix",
    "conv_bn_leaky_relu",
    "conv_instance_norm",
    "concat_features",
    "conv_concat",
)
# Fastest first: `auto` takes the first that can run here and takes tensors of that device.
IMPLS = ("cuda", "triton", "cpu", "ref")

# conv_concat is conv_bn_leaky_relu with the style's part as the residual: the same kernels.
_KERNEL = {op: op for op in OPS} | {"conv_concat": "conv_bn_leaky_relu"}
_MODULES = {
    (op, impl): "_cpu_conv" if impl == "cpu" and op.startswith("conv") else f"_{impl}"
    for op in OPS
    for impl in IMPLS
}

_state: Any = None  # functions that tell what torch is doing, and its module of forward-mode AD
_usable: dict[tuple[str, str], ModuleType] = {}
_resolved: dict[tuple[str, str, str, str], tuple[ModuleType, ...]] = {}


def why_not(op: str, impl: str) -> str | None:
    """None when this implementation of the op can run here, else the reason with the remedy.

    Args:
        op: one of ``fastgen.ops.OPS``.
        impl: one of ``fastgen.ops.IMPLS``.

    Raises:
        ValueError: unknown op or implementation.
    """
    if op not in OPS:
        raise ValueError(f"unknown op {op!r}; known: {', '.join(OPS)}")
    if impl not in IMPLS:
        raise _unknown(impl)
    try:
        _module(op, impl)
    except ImplUnavailable as error:
        return str(error)
    return None


def impls(op: str) -> tuple[str, ...]:
    """The implementations of an op that can run here, fastest first.

    Args:
        op: one of ``fastgen.ops.OPS``.

    Raises:
        ValueError: unknown op.
    """
    return tuple(impl for impl in IMPLS if why_not(op, impl) is None)


def choose(op: str, device: str, dtype: str = "float32") -> str | None:
    """What ``auto`` takes for tensors of a device type ("cpu", "cuda"); None: nothing can run."""
    for impl in _suited(device, dtype):
        if why_not(op, impl) is None:
            return impl
    return None


def candidates(op: str, impl: str, device: str, dtype: str) -> tuple[ModuleType, ...]:
    """The modules to try for a call, best first; more than one only for ``auto``.

    Args:
        op: one of ``OPS``.
        impl: ``"auto"`` or one of ``IMPLS``.
        device: type of the tensors' device, ``"cpu"`` for arrays.
        dtype: name of the tensors' dtype.

    Raises:
        ValueError: unknown ``impl``, or one for tensors of another device.
        TypeError: an ``impl`` that does not take this dtype.
        ImplUnavailable: ``impl`` cannot run here.
    """
    found = _resolved.get((op, impl, device, dtype))
    if found is None:
        if impl == "auto":
            found = _all_usable(op, device, dtype)
        elif impl in IMPLS:
            found = (_module(op, impl),)
            _check_takes(impl, device, dtype)
        else:
            raise _unknown(impl)
        _resolved[op, impl, device, dtype] = found
    return found


def run(modules: tuple[ModuleType, ...], call: Callable[[ModuleType], Any]) -> Any:
    """``call(module)`` of the first module that takes the case.

    A module raises ImplUnavailable for a case that it does not cover; only ``auto`` has another.
    """
    for module in modules[:-1]:
        try:
            return call(module)
        except ImplUnavailable:
            continue
    return call(modules[-1])


def run_next(modules: tuple[ModuleType, ...], name: str, *args: Any) -> Any:
    """After the first module has raised ImplUnavailable: the others, or that error again."""
    if len(modules) == 1:
        raise  # called while the error is being handled
    return run(modules[1:], lambda module: getattr(module, name)(*args))


def is_direct(*tensors: Any) -> bool:
    """Whether an implementation may be called directly: there is nothing for torch to dispatch.

    False when a gradient is wanted, a compiler or exporter looks on, or a mode or transform
    (vmap, forward-mode AD, fake tensors, tracing) is active; the call then goes through
    ``torch.ops.fastgen``, a few microseconds slower.

    Args:
        tensors: torch tensors on one device, or None behind the first one.
    """
    global _state
    if _state is None:
        import torch

        if torch.compiler.is_compiling():
            return False
        c = torch._C
        _state = (
            torch.compiler.is_compiling,
            c.is_grad_enabled,
            c._len_torch_dispatch_stack,
            c._len_torch_function_stack,
            c._functorch.peek_interpreter_stack,
            c._get_tracing_state,
            torch.autograd.forward_ad,
            torch.Tensor,
            torch.nn.Parameter,
        )
    (
        compiling,
        grad_enabled,
        modes,
        function_modes,
        transform,
        tracing,
        forward,
        plain,
        parameter,
    ) = _state
    if compiling():  # first of all: a compiler must not trace the rest
        return False
    if (
        tensors[0].is_meta  # the others are where the first one is
        or modes()
        or function_modes()
        or transform() is not None
        or tracing() is not None
        or forward._current_level >= 0
    ):
        return False
    grad = grad_enabled()
    for tensor in tensors:
        # A Parameter without gradient is as plain as a Tensor; other subclasses may do anything.
        # A tensor that is stored with the opposite sign is made an ordinary one by torch.
        if tensor is not None and (
            (type(tensor) is not plain and type(tensor) is not parameter)
            or (grad and tensor.requires_grad)
            or tensor.is_neg()
        ):
            return False
    return True


def check_impl(impl: object) -> None:
    """``impl`` is "auto" or one of ``IMPLS``.

    Raises:
        ValueError: it is not.
    """
    if impl != "auto" and impl not in IMPLS:
        raise _unknown(impl)


def name_of(module: ModuleType) -> str:
    """The implementation that a module belongs to."""
    return module.__name__.rpartition("._")[2].partition("_")[0]


def _unknown(impl: object) -> ValueError:
    return ValueError(f"unknown impl {impl!r}; known: auto, {', '.join(IMPLS)}")


def _module(op: str, impl: str) -> ModuleType:
    module = _usable.get((op, impl))
    if module is not None:
        return module
    name = f"fastgen.ops.{_MODULES[op, impl]}"
    try:
        module = import_module(name)
        reason = module.why_not(_KERNEL[op])
    except ImportError as error:
        module = None
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            reason = "this version of fastgen has none; name another impl"
        else:
            reason = " ".join(str(error).split())
    if module is None or reason is not None:
        raise ImplUnavailable(f"impl {impl!r} of {op} cannot run here: {reason}")
    _usable[op, impl] = module
    return module


def _device_of(impl: str) -> str:
    """The device type that an implementation other than ref works on."""
    if impl == "cpu":
        return "cpu"
    # Triton's interpreter runs kernels on the host; the variable decides when triton is imported.
    interpreted = impl == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
    return "cpu" if interpreted else "cuda"


def _suited(device: str, dtype: str) -> tuple[str, ...]:
    """What ``auto`` considers; the interpreter is for debugging and never considered."""
    fast = ("cpu",) if device == "cpu" else ("cuda", "triton") if device == "cuda" else ()
    return (*(fast if dtype != "float64" else ()), "ref")


def _all_usable(op: str, device: str, dtype: str) -> tuple[ModuleType, ...]:
    found, reasons = [], []
    for impl in _suited(device, dtype):
        try:
            found.append(_module(op, impl))
        except ImplUnavailable as error:
            reasons.append(str(error))
    if not found:
        raise ImplUnavailable(f"no impl of {op} can run here for {dtype}: {'; '.join(reasons)}")
    return tuple(found)


def _check_takes(impl: str, device: str, dtype: str) -> None:
    if impl == "ref":
        return
    if dtype == "float64":
        raise TypeError(
            f"impl {impl!r} takes float32, float16 and bfloat16, not float64; convert or name 'ref'"
        )
    home = _device_of(impl)
    if home != device:
        raise ValueError(f"impl {impl!r} takes tensors on {home}, got one on {device}; move it")
