"""``fastgen doctor``: what can run here, what ``auto`` would take, and why not the others."""

from __future__ import annotations

import json
import os
import platform
from typing import Any

import click

__all__ = ["diagnose", "doctor"]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def doctor(as_json: bool) -> int:
    """Show what can run on this machine and why.

    Exit code 1 when no backend can run.
    """
    facts = diagnose()
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        for title, text in _lines(facts):
            click.echo(f"{title:<10}{text}")
    return 0 if facts["auto"]["backend"] else 1


def diagnose() -> dict[str, Any]:
    """The report as an object."""
    from fastgen import __version__, backends
    from fastgen.cli import _machine
    from fastgen.errors import BackendUnavailable
    from fastgen.styles import list_styles

    module, why = _machine.engine("_C")
    cuda, no_cuda = _machine.engine("_cuda")
    found, no_gpu = _machine.gpus()
    try:
        name, reason = backends.choose("auto")
    except BackendUnavailable as error:
        name, reason = "", str(error)
    return {
        "fastgen": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": _machine.versions(),
        "cpu": {
            "name": _machine.cpu_name(),
            "cores": _machine.usable_cores(),
            "engine": module is not None,
            "why_not": why or None,
            "instruction_sets": list(module.isa_available()) if module is not None else [],
            "instruction_set": _instruction_set(module),
            "threads": _threads(module),
            "forced": os.environ.get("FASTGEN_CPU_ISA"),
        },
        "gpu": {
            "found": found,
            "why_not": no_gpu or None,
            "extension_why_not": no_cuda or None,
            "extension_archs": None if cuda is None else cuda.compiled_archs(),
        },
        "tensorrt": _tensorrt(),
        "ops": _ops(cuda is not None and bool(found)),
        "backends": {n: _backend(n) for n in backends.names()},
        "auto": {"backend": name, "why": reason},
        "styles": list_styles(),
    }


def _tensorrt() -> dict[str, Any]:
    """The library that engines are built and run with; it can build without a GPU, too."""
    from fastgen.backends import _tensorrt_lib
    from fastgen.backends._engines import EngineCache
    from fastgen.errors import BackendUnavailable

    try:
        library, reason = _tensorrt_lib.open_library(), None
    except BackendUnavailable as error:
        library, reason = {}, str(error)
    return {
        "library": library,
        "why_not": reason,
        "engines": len(EngineCache().entries()),
    }


def _backend(name: str) -> dict[str, Any]:
    """Whether a backend can run; then also its precisions and what ``auto`` takes of them."""
    from fastgen import backends

    reason = backends.why_not(name)
    if reason is not None:
        return {"why_not": reason}
    module = backends.get(name)
    precision, why = module.auto_precision()
    note = getattr(module, "precision_note", lambda _: None)
    return {
        "why_not": None,
        "precisions": {
            p: {"why_not": module.precision_why_not(p), "note": note(p)} for p in module.PRECISIONS
        },
        "auto": {"precision": precision, "why": why},
    }


def _ops(gpu: bool) -> dict[str, Any]:
    """For each fused operation what ``auto`` would take, and why not the others."""
    from fastgen.ops import IMPLS, OPS, choose, why_not

    return {
        op: {
            "auto": {d: choose(op, d) for d in (("cpu", "cuda") if gpu else ("cpu",))},
            "why_not": {impl: why_not(op, impl) for impl in IMPLS},
        }
        for op in OPS
    }


def _instruction_set(module: Any) -> str | None:
    """The engine's choice; also says what is wrong with a forced one."""
    if module is None:
        return None
    try:
        return str(module.Engine(1).isa)
    except (RuntimeError, ValueError) as error:
        return f"none: {error}"


def _threads(module: Any) -> int | str | None:
    """How many threads the engine takes unless told; also what is wrong with a forced number."""
    if module is None:
        return None
    try:
        # The instruction set has a line of its own.
        return int(module.Engine(0, "scalar").threads)
    except (RuntimeError, ValueError) as error:
        return f"none: {error}"


def _precisions(state: dict[str, Any]) -> str:
    """What a backend can run here and what ``precision="auto"`` takes, in one line."""
    found = {name: p["why_not"] for name, p in state["precisions"].items()}
    able = ", ".join(name for name, reason in found.items() if reason is None)
    auto = state["auto"]
    text = f"can run {able}; auto takes {auto['precision']}: {auto['why']}"
    notes = [p["note"] for p in state["precisions"].values()]
    return "; ".join([text, *(words for words in [*found.values(), *notes] if words)])


def _lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    cpu, gpu = facts["cpu"], facts["gpu"]
    packages = [f"{k} {v or '-'}" for k, v in facts["packages"].items()]
    if cpu["engine"]:
        level = f"instruction set {cpu['instruction_set']} of {', '.join(cpu['instruction_sets'])}"
        level += f", threads {cpu['threads']}"
    else:
        level = f"engine missing: {cpu['why_not']}"
    if cpu["forced"]:
        level += f" (FASTGEN_CPU_ISA={cpu['forced']})"
    gpus = "; ".join(gpu["found"]) or f"none: {gpu['why_not']}"
    built = f"yes, for {gpu['extension_archs']}" if gpu["extension_archs"] else "no"
    lines = [
        ("fastgen", f"{facts['fastgen']}, Python {facts['python']}, {facts['system']}"),
        ("packages", ", ".join(packages)),
        ("cpu", f"{cpu['name']}, {cpu['cores']} cores, {level}"),
        ("gpu", f"{gpus}; CUDA extension built: {built}"),
    ]
    for name, state in facts["backends"].items():
        lines.append(("backend", f"{name}: {state['why_not'] or _precisions(state)}"))
    library = facts["tensorrt"]["library"]
    if library:
        able = "builds and runs" if library["builds"] else "runs"
        text = f"{library['flavour']} {library['version']}, {able} engines, {library['path']}"
        lines.append(("tensorrt", f"{text}; {facts['tensorrt']['engines']} engines in the cache"))
    for op, state in facts["ops"].items():
        chosen = ", ".join(f"{v or 'nothing'} on {k}" for k, v in state["auto"].items())
        lines.append(("op", f"{op}: auto takes {chosen}"))
    # Most reasons are the same for several ops: one line for each implementation and reason.
    reasons: dict[tuple[str, str], list[str]] = {}
    for op, state in facts["ops"].items():
        for impl, reason in state["why_not"].items():
            if reason:
                key = impl, reason.partition(": ")[2]
                reasons.setdefault(key, []).append(op)
    for (impl, reason), names in reasons.items():
        where = "" if len(names) == len(facts["ops"]) else f" of {', '.join(names)}"
        lines.append(("impl", f"{impl}{where}: {reason}"))
    auto = facts["auto"]
    lines.append(("auto", f"{auto['backend'] or 'nothing'}: {auto['why']}"))
    lines.append(("styles", ", ".join(facts["styles"]) or "none shipped"))
    return lines
