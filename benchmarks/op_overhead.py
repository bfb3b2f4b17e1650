"""What a call of a fused operation costs beside its kernel: ``python -m benchmarks.op_overhead``.

For each op and implementation on the CPU that can run here: the time of the public call on a tensor
of one pixel, the time of the C++ entry point alone, called again and again with the same ready
integers (as they were in such a call), and the difference. For the reference, which has no entry
point, the whole call. Microseconds, the best of many short alternating rounds: what disturbs a
call of microseconds only ever adds to it. The budget is 6.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import click
import torch

from fastgen import ops

BUDGET_US = 6.0

__all__ = ["calls", "measure"]


class _Recorder:
    """Stands in for a C++ function once, to keep the arguments that the public call gives it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.arguments: tuple[Any, ...] = ()

    def __call__(self, *arguments: Any) -> Any:
        self.arguments = arguments
        return self.function(*arguments)


def calls(impl: str) -> dict[str, tuple[Callable[[], Any], Any, str]]:
    """Name of the call -> (public call, object that holds the C++ function, its name there)."""
    x = torch.zeros(1, 8, 1, 1)
    weight, gamma = torch.zeros(8, 8, 1, 1), torch.ones(8)
    found: dict[str, tuple[Callable[[], Any], Any, str]] = {}
    entry = _entry_module(impl)
    if ops.why_not("gram_matrix", impl) is None:
        found["gram_matrix"] = (lambda: ops.gram_matrix(x, impl=impl), entry, "gram_matrix")
    if ops.why_not("concat_features", impl) is None:
        found["concat_features"] = (
            lambda: ops.concat_features(x, x, impl=impl),
            entry,
            "concat_features",
        )
    if ops.why_not("conv_bn_leaky_relu", impl) is None:
        conv = ops.pack_conv_bn(weight, gamma, impl=impl)
        found["conv_bn_leaky_relu, packed"] = (
            lambda: ops.conv_bn_leaky_relu(x, conv),
            conv.handle,
            "run",
        )
        found["conv_bn_leaky_relu, residual"] = (
            lambda: ops.conv_bn_leaky_relu(x, conv, residual=x),
            conv.handle,
            "run",
        )
        both = ops.pack_conv_concat(torch.zeros(8, 16, 1, 1), content_channels=8, impl=impl)
        part = both.style_part(x)
        found["conv_concat, style reused"] = (
            lambda: ops.conv_concat(x, part, both),
            both.content.handle,
            "run",
        )
    if ops.why_not("conv_instance_norm", impl) is None:
        norm = ops.pack_conv_instance_norm(weight, gamma, impl=impl)
        _, *pair = ops.conv_instance_norm(x, norm)
        scale = (pair[0], pair[1])
        found["conv_instance_norm, packed"] = (
            lambda: ops.conv_instance_norm(x, norm, norm=scale),
            norm.handle,
            "run",
        )
    return found


def _entry_module(impl: str) -> Any:
    if impl != "cpu" or ops.why_not("gram_matrix", impl) is not None:
        return None
    from fastgen import _C

    return _C


def _per_call(function: Callable[[], Any], count: int) -> float:
    begin = time.perf_counter()
    for _ in range(count):
        function()
    return (time.perf_counter() - begin) / count * 1e6


def measure(
    public: Callable[[], Any], holder: Any, name: str, rounds: int, count: int
) -> tuple[float, float]:
    """Least microseconds of the public call and of the entry point alone (0: there is none)."""
    entry: Callable[[], Any] | None = None
    if holder is not None and hasattr(holder, name):
        recorder = _Recorder(getattr(holder, name))
        setattr(holder, name, recorder)
        kept = public()  # its memory must outlive the recorded addresses
        setattr(holder, name, recorder.function)
        function, arguments = recorder.function, recorder.arguments

        def entry() -> Any:
            function(*arguments)
            return kept

    whole, inner = [], []
    for _ in range(rounds):
        whole.append(_per_call(public, count))
        if entry is not None:
            inner.append(_per_call(entry, count))
    return min(whole), min(inner) if inner else 0.0


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=200, show_default=True)
@click.option("--count", type=click.IntRange(1), default=200, show_default=True)
def main(rounds: int, count: int) -> None:
    """Print the call overhead of every op and implementation that can run here on the CPU."""
    torch.set_num_threads(1)
    click.echo(f"{'impl':<6}{'call':<32}{'public us':>10}{'entry us':>10}{'overhead us':>13}")
    for impl in ("cpu", "ref"):
        for name, (public, holder, attribute) in calls(impl).items():
            whole, inner = measure(public, holder, attribute, rounds, count)
            text = f"{whole - inner:>13.2f}" if inner else f"{'-':>13}"
            over = " above the budget" if inner and whole - inner > BUDGET_US else ""
            click.echo(f"{impl:<6}{name:<32}{whole:>10.2f}{inner:>10.2f}{text}{over}")


if __name__ == "__main__":
    main()
