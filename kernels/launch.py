"""What a plan of launches is made of, and the one place that launches."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["Launch", "Machine", "index_bits", "interpreting", "machine_of", "pipeline", "run"]


@dataclass(frozen=True)
class Machine:
    """What a plan needs to know of the device.

    Attributes:
        multiprocessors: how many programs run at once is a multiple of this.
        capability: (major, minor) compute capability.
        shared: bytes of shared memory that one program may have.
        interpreted: the kernels run in Triton's interpreter on CPU tensors.
    """

    multiprocessors: int
    capability: tuple[int, int]
    shared: int
    interpreted: bool = False


@dataclass(frozen=True)
class Launch:
    """One kernel launch: everything that Triton needs, as data.

    Attributes:
        module: of ``fastgen.kernels.jit``.
        kernel: its name there.
        grid: programs, in one dimension (the others are limited to 65 535).
        args: run-time arguments by name.
        meta: compile-time arguments by name.
        warps: per program.
        stages: depth of the software pipeline.
    """

    module: str
    kernel: str
    grid: int
    args: dict[str, Any]
    meta: dict[str, Any]
    warps: int = 4
    stages: int = 3
    label: str = field(default="", compare=False)


def interpreting() -> bool:
    """Whether the kernels are interpreted: ``TRITON_INTERPRET`` decides when they are defined."""
    import triton

    return bool(triton.knobs.runtime.interpret)


@cache
def _cuda_machine(index: int) -> Machine:
    import torch
    from triton.runtime import driver

    # What Triton itself holds a kernel's shared memory against.
    properties = driver.active.utils.get_device_properties(index)
    return Machine(
        properties["multiprocessor_count"],
        torch.cuda.get_device_capability(index),
        properties["max_shared_mem"],
    )


def machine_of(x: torch.Tensor) -> Machine:
    """The machine that ``x`` is on."""
    if x.device.type == "cuda":
        return _cuda_machine(x.device.index)
    return Machine(multiprocessors=1, capability=(9, 0), shared=232448, interpreted=True)


def pipeline(machine: Machine, step_bytes: int) -> int:
    """Depth of the software pipeline: what fits in shared memory, 2 to 4.

    Args:
        machine: consumer boards have less than half the shared memory of data-centre ones.
        step_bytes: operands of one step.
    """
    # What is left holds an operand's parts (tf32x3) and reductions of the epilogue.
    usual = 4 if machine.capability[0] >= 9 else 3
    return max(2, min(usual, (machine.shared - 20 * 1024) // step_bytes))


def index_bits(*elements: int) -> int:
    """32 or 64: what offsets into tensors of so many elements need.

    A tile may reach past the end before its mask applies, hence the margin.
    """
    return 32 if max(elements) < 2**31 - 2**24 else 64


def run(launches: Iterable[Launch], x: torch.Tensor) -> None:
    """Launch in order on the current stream of the device of ``x``."""
    import torch

    # Contracting a * b + c is Triton's default for now, with a warning that it will not stay so.
    options = {} if interpreting() else {"enable_fp_fusion": True}
    # Triton launches on the current device, which need not be the tensor's.
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        for launch in launches:
            module = import_module(f".jit.{launch.module}", __package__)
            getattr(module, launch.kernel)[(launch.grid,)](
                **launch.args,
                **launch.meta,
                num_warps=launch.warps,
                num_stages=launch.stages,
                **options,
            )
