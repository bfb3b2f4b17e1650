"""Compile the Triton kernels ahead of time and record what each costs; no GPU is needed.

Every configuration that the launchers can choose for the listed shapes is compiled for sm_80 and
sm_90. Recorded: registers and spilled bytes per thread (``ptxas``), shared memory, and which
matrix instructions the PTX has.

    python -m benchmarks.triton_resources [--output FILE] [--capability 90] [--dtype float16]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastgen.kernels import concat_features, conv_bn_leaky_relu, conv_weights, gram_matrix
from fastgen.kernels.launch import Launch, Machine

if TYPE_CHECKING:
    import torch

# The boards that are planned for: A100; GeForce of the Ada generation, for its small shared memory;
# H100 and H200.
MACHINES = {
    80: Machine(108, (8, 0), shared=163 * 1024),
    89: Machine(128, (8, 9), shared=99 * 1024),
    90: Machine(132, (9, 0), shared=227 * 1024),
}
# Bytes per thread. A few registers of addresses spilled outside the loop cost nothing that can be
# measured; an accumulator or an operand does not fit in this.
SPILL_LIMIT = 64
DTYPES = ("float16", "bfloat16", "float32")
GRAM = ((1, 64, 256, 256), (4, 256, 64, 64), (1, 512, 32, 32), (1, 3, 256, 256), (8, 64, 128, 128))
# N, I, H, W -> O, kernel, stride, upsampling, padding, mode
CONVS = (
    (1, 3, 256, 256, 32, 9, 1, 1, 4, "reflect"),
    (1, 32, 256, 256, 64, 3, 2, 1, 1, "reflect"),
    (1, 128, 64, 64, 128, 3, 1, 1, 1, "reflect"),
    (1, 128, 64, 64, 64, 3, 1, 2, 1, "reflect"),
    (1, 64, 128, 128, 32, 3, 1, 2, 1, "reflect"),
    (1, 32, 256, 256, 3, 9, 1, 1, 4, "reflect"),
    (1, 64, 128, 128, 128, 4, 2, 1, 1, "zeros"),
    (1, 256, 64, 64, 64, 1, 1, 1, 0, "zeros"),
    (1, 13, 37, 41, 24, 3, 1, 1, 1, "zeros"),
    (8, 128, 128, 128, 128, 3, 1, 1, 1, "zeros"),
)
CONCATS = (
    ((1, 128, 64, 64), (1, 128, 64, 64)),
    ((4, 256, 32, 32), (4, 64)),
    ((1, 64, 256, 256), (1, 16)),
)


def _meta(shape: tuple[int, ...], dtype: str, last: bool) -> torch.Tensor:
    import torch

    form = torch.channels_last if last else torch.contiguous_format
    made = torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
    return made.contiguous(memory_format=form) if last else made


def _pack(
    case: tuple[Any, ...], dtype: str, statistics: bool, slope: float
) -> conv_weights.PackedWeights:
    _, i, _, _, o, k, stride, up, padding, mode = case
    packed = conv_weights.pack(
        np.zeros((o, i, k, k), np.float32),
        np.zeros(o, np.float32),
        stride=stride,
        padding=padding,
        padding_mode=mode,
        upsample=up,
        dtype=dtype,
        device="cpu",
        negative_slope=slope,
        load_slope=0.0 if statistics else 1.0,
        gamma=np.ones(o, np.float32) if statistics else None,
        beta=np.ones(o, np.float32) if statistics else None,
    )
    return replace(packed, weight=packed.weight.to("meta"))


def launches(
    machine: Machine, dtypes: tuple[str, ...] = DTYPES, every: bool = True
) -> Iterator[tuple[str, Launch]]:
    """(name, launch) for the listed shapes.

    Args:
        machine: that is planned for.
        dtypes: of the tensors.
        every: all that any machine could choose; otherwise a few shapes with the tile that
            ``machine`` chooses, for tests.
    """
    for dtype in dtypes:
        for shape in GRAM if every else GRAM[:2]:
            for last in (False, True):
                _, made = gram_matrix.plan(_meta(shape, dtype, last), True, machine)
                for launch in made:
                    yield f"{launch.kernel} {dtype} {_text(shape)}{' nhwc' * last}", launch
        for case in CONVS if every else CONVS[:7]:
            n, i, h, w, o = case[:5]
            x = _meta((n, i, h, w), dtype, True)
            name = f"{dtype} {_text((n, i, h, w))} -> {o} k{case[5]} s{case[6]} up{case[7]}"
            plain = _pack(case, dtype, False, 0.2)
            y, _ = conv_bn_leaky_relu.plan(x, plain, machine)
            residual = y[0]
            for tile in conv_bn_leaky_relu.tiles(plain) if every else [None]:
                _, made = conv_bn_leaky_relu.plan(x, plain, machine, residual=residual, tile=tile)
                yield f"conv {name} {tile}", made[0]
            if o > 8:
                norm = (_meta((n, i), "float32", False), _meta((n, i), "float32", False))
                packed = _pack(case, dtype, True, 1.0)
                for tile in conv_bn_leaky_relu.tiles(packed) if every else [None]:
                    _, made = conv_bn_leaky_relu.plan(
                        x, packed, machine, norm=norm, residual=x, residual_on_load=True, tile=tile
                    )
                    yield f"conv+norm {name} {tile}", made[0]
                yield f"{made[1].kernel} {name}", made[1]
        planes = _meta((1, 64, 128, 128), dtype, False)
        packed = _pack((1, 64, 128, 128, 64, 3, 1, 1, 1, "zeros"), dtype, False, 0.2)
        _, made = conv_bn_leaky_relu.plan(planes, packed, machine)
        yield f"conv {dtype} nchw", made[0]
        for content, style in CONCATS:
            for last in (False, True):
                _, made = concat_features.plan(
                    _meta(content, dtype, last), _meta(style, dtype, False)
                )
                label = f"{_text(content)} + {_text(style)}{' nhwc' * last}"
                yield f"concat {dtype} {label}", made[0]


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _type(value: Any) -> str:
    import torch

    names = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
    if isinstance(value, torch.Tensor):
        return "*" + names[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def specialise(launch: Launch) -> tuple[dict[str, str], dict[str, Any], tuple[int, ...]]:
    """Types, compile-time values and indices of arguments that 16 divides, as a launch has them."""
    types, constants, aligned = {}, dict(launch.meta), []
    for i, (name, value) in enumerate(launch.args.items()):
        # Triton compiles an integer 1 in, and tells 16 dividing an integer or an address.
        if isinstance(value, int) and value == 1:
            constants[name] = 1
            types[name] = "constexpr"
            continue
        types[name] = _type(value)
        if not isinstance(value, int | float) or (isinstance(value, int) and value % 16 == 0):
            aligned.append(i)
    types.update(dict.fromkeys(launch.meta, "constexpr"))
    return types, constants, tuple(aligned)


def compile_launch(launch: Launch, capability: int) -> dict[str, Any]:
    """Compile one launch for sm_<capability>; what it costs, by ``ptxas`` and in its PTX."""
    from importlib import import_module

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module = import_module(f"fastgen.kernels.jit.{launch.module}")
    function = getattr(module, launch.kernel)
    types, constants, aligned = specialise(launch)
    source = ASTSource(
        fn=function,
        signature=types,
        constexprs=constants,
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    made = triton.compile(
        source,
        target=GPUTarget("cuda", capability, 32),
        options={
            "num_warps": launch.warps,
            "num_stages": launch.stages,
            "enable_fp_fusion": True,
        },
    )
    ptx = made.asm["ptx"]
    registers, spills = _ptxas(made.asm["cubin"])
    return {
        "registers": registers,
        "spill_bytes": spills,
        "shared_bytes": made.metadata.shared,
        "threads": 32 * launch.warps,
        "stages": launch.stages,
        "wgmma": ptx.count("wgmma.mma_async"),
        "mma": len(re.findall(r"\bmma\.sync", ptx)),
        "async_copies": ptx.count("cp.async.c"),
    }


def _ptxas(cubin: bytes) -> tuple[int, int]:
    """Registers, and bytes of stack, which holds nothing but spills here, per thread."""
    import triton

    tool = triton.knobs.nvidia.cuobjdump.path
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        command = [tool, "--dump-resource-usage", str(path)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if found is None:
        raise RuntimeError(f"{tool} printed no registers: {text.strip()!r}")
    return int(found[1]), int(found[2])


def complaints(name: str, launch: Launch, row: dict[str, Any], capability: int) -> list[str]:
    """What of ``row`` is beyond the limits."""
    found = []
    if row["spill_bytes"] > SPILL_LIMIT:
        found.append(f"{name}: {row['spill_bytes']} bytes spilled, limit {SPILL_LIMIT}")
    limit = MACHINES[capability].shared
    if row["shared_bytes"] > limit:
        found.append(f"{name}: {row['shared_bytes']} bytes of shared memory, limit {limit}")
    if launch.kernel in ("conv", "gram"):
        wanted = "wgmma" if capability >= 90 and launch.meta.get("BLOCK_M", 64) >= 64 else "mma"
        if launch.kernel == "gram" and launch.meta["BLOCK_C"] < 64:
            wanted = "mma"
        if not row[wanted]:
            found.append(f"{name}: no {wanted} instruction")
    return found


def table(
    capability: int, dtypes: tuple[str, ...] = DTYPES, every: bool = True
) -> tuple[dict[str, Any], list[str]]:
    """Costs by name, and complaints. Launches that compile alike are compiled once."""
    rows: dict[str, Any] = {}
    wrong: list[str] = []
    seen: dict[str, str] = {}
    for name, launch in launches(MACHINES[capability], dtypes, every):
        key = repr((launch.kernel, specialise(launch), launch.warps, launch.stages))
        if key in seen:
            continue
        seen[key] = name
        rows[name] = compile_launch(launch, capability)
        wrong += complaints(name, launch, rows[name], capability)
    return rows, wrong


def main() -> int:
    """Command line; 1 if a kernel is beyond the limits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--capability", type=int, choices=sorted(MACHINES), action="append")
    parser.add_argument("--dtype", choices=DTYPES, action="append")
    parser.add_argument("--few", action="store_true", help="what tests compile")
    options = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET"):
        parser.error("TRITON_INTERPRET is set: interpreted kernels cannot be compiled; unset it")
    import triton

    result: dict[str, Any] = {"triton": triton.__version__, "spill_limit": SPILL_LIMIT}
    wrong: list[str] = []
    for capability in options.capability or sorted(MACHINES):
        rows, found = table(capability, tuple(options.dtype or DTYPES), not options.few)
        result[f"sm_{capability}"] = rows
        wrong += [f"sm_{capability} {line}" for line in found]
        for name, row in rows.items():
            cells = " ".join(f"{key}={value}" for key, value in row.items())
            print(f"sm_{capability} {name}: {cells}", flush=True)
    if options.output is not None:
        options.output.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
