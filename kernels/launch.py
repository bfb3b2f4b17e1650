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

__all__ = ["Launch", "Machine", "index_bits", "interpreting", "machine_of", "run"]


@dataclass(frozen=True)
class Machine:
    """What a plan needs to know of the device.

    Attributes:
        multiprocessors: how many programs run at once is a multiple of this.
        capability: (major, minor) compute capability.
        interpreted: the kernels run in Triton's interpreter on CPU tensors.
    """

    multiprocessors: int
    capability: tuple[int, int]
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

    properties = torch.cuda.get_device_properties(index)
    return Machine(properties.multi_processor_count, (properties.major, properties.minor))


def machine_of(x: torch.Tensor) -> Machine:
    """The machine that ``x`` is on."""
    if x.device.type == "cuda":
        return _cuda_machine(x.device.index)
    return Machine(multiprocessors=4, capability=(9, 0), interpreted=True)


def index_bits(*elements: int) -> int:
    """32 or 64: what offsets into tensors of so many elements need.

    A tile may reach past the end before its mask applies, hence the margin.
    """
    return 32 if max(elements) < 2**31 - 2**24 else 64


def run(launches: Iterable[Launch], x: torch.Tensor) -> None:
    """Launch in order on the current stream of the device of ``x``."""
    import torch

    # Triton launches on the current device, which need not be the tensor's.
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        for launch in launches:
            module = import_module(f".jit.{launch.module}", __package__)
            getattr(module, launch.kernel)[(launch.grid,)](
                **launch.args,
                **launch.meta,
                num_warps=launch.warps,
                num_stages=launch.stages,
            )
