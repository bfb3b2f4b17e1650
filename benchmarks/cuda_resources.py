"""What the CUDA kernels take of a multiprocessor, and which instructions they became.

``python -m benchmarks.cuda_resources`` compiles every kernel for sm_80 and sm_90a and writes
``benchmarks/results/cuda-resources.json`` and ``docs/cuda-resources.md``. Needs nvcc, but no GPU;
the instructions also need cuobjdump (of the CUDA toolkit, or the one that Triton carries).
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "csrc" / "cuda"
JSON = ROOT / "benchmarks" / "results" / "cuda-resources.json"
TABLE = ROOT / "docs" / "cuda-resources.md"
ARCHS = ("sm_80", "sm_90a")
SPILL_LIMIT = 0  # bytes; a kernel that needs more gets a smaller tile, not a higher limit
REGISTER_LIMIT = 255

# Tensor cores, copies past the registers, 16-byte accesses, local memory.
INSTRUCTIONS = {
    "HMMA": r"HMMA\.",
    "LDSM": r"LDSM\.",
    "LDGSTS.128": r"LDGSTS\.\S*128",
    "LDG.128": r"LDG\.\S*128",
    "STG.128": r"STG\.\S*128",
    "local": r"(?:LDL|STL)",
}


def why_not() -> str | None:
    """The reason why nothing can be compiled here, or None."""
    if nvcc() is None:
        return "no nvcc was found; put it on PATH or set CUDACXX"
    return None


def nvcc() -> str | None:
    """The compiler that the build would take."""
    return shutil.which(os.environ.get("CUDACXX", "nvcc"))


def cuobjdump() -> str | None:
    """The disassembler of the toolkit, or Triton's."""
    found = shutil.which("cuobjdump")
    if found:
        return found
    spec = importlib.util.find_spec("triton")
    if spec is not None and spec.origin is not None:
        path = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        if path.is_file():
            return str(path)
    return None


def measure() -> list[dict[str, Any]]:
    """One entry per kernel and architecture; kept in build/ until a source changes."""
    compiler = nvcc()
    if compiler is None:
        raise RuntimeError(why_not())
    cache = ROOT / "build" / "cuda_resources" / f"{_digest(compiler)}.json"
    if cache.is_file():
        return json.loads(cache.read_text())
    sources = [path for path in sorted(SOURCES.glob("*.cu")) if path.name != "device.cu"]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        parts = pool.map(lambda path: _compile(compiler, path), sources)
    entries = [entry for part in parts for entry in part]
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.write_text(json.dumps(entries))
    return entries


def _digest(compiler: str) -> str:
    digest = hashlib.sha256(repr((ARCHS, cuobjdump() is None)).encode())
    digest.update(subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout)
    for path in sorted([*SOURCES.iterdir(), ROOT / "csrc" / "fastgen.h", Path(__file__)]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _compile(compiler: str, source: Path) -> list[dict[str, Any]]:
    codes = [f"-gencode=arch={a.replace('sm', 'compute')},code={a}" for a in ARCHS]
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / f"{source.stem}.o"
        command: list[str] = [
            compiler,
            "-std=c++17",
            "-O3",
            *codes,
            "-Xptxas",
            "-v",
            "-c",
            str(source),
        ]
        done = subprocess.run([*command, "-o", str(target)], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{source.name} does not compile:\n{done.stderr}")
        entries = parse_ptxas(done.stderr)
        dump = cuobjdump()
        for arch in ARCHS if dump else ():
            sass = subprocess.run(
                [str(dump), "-arch", arch, "--dump-sass", str(target)],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            found = count_instructions(sass)
            for entry in entries:
                if entry["arch"] == arch:
                    entry["instructions"] = found[entry["symbol"]]
    names = _demangle([entry["symbol"] for entry in entries])
    for entry, name in zip(entries, names, strict=True):
        entry["source"], entry["kernel"] = source.name, short_name(name)
    return entries


def parse_ptxas(text: str) -> list[dict[str, Any]]:
    """Registers, stack and spills from the output of ``ptxas -v``."""
    entries: list[dict[str, Any]] = []
    for line in text.splitlines():
        if found := re.search(r"Compiling entry function '(\S+)' for '(\S+)'", line):
            entries.append({"symbol": found[1], "arch": found[2]})
        elif found := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores", line):
            entries[-1]["stack"], entries[-1]["spills"] = int(found[1]), int(found[2])
        elif found := re.search(r"Used (\d+) registers", line):
            entries[-1]["registers"] = int(found[1])
    return entries


def count_instructions(sass: str) -> dict[str, dict[str, int]]:
    """Per function: how often the instructions that matter occur."""
    counts: dict[str, dict[str, int]] = {}
    for part in sass.split("Function : ")[1:]:
        symbol, _, body = part.partition("\n")
        words = Counter(re.findall(r"\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", body))
        counts[symbol.strip()] = {
            name: sum(n for word, n in words.items() if re.match(pattern, word))
            for name, pattern in INSTRUCTIONS.items()
        }
    return counts


def _demangle(symbols: list[str]) -> list[str]:
    tool = shutil.which("c++filt")
    if tool is None:
        return symbols
    done = subprocess.run(
        [tool], input="\n".join(symbols), capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def short_name(name: str) -> str:
    """``conv_kernel half_t 128, 64, 4, 2`` of a demangled signature."""
    name = re.sub(r"\(anonymous namespace\)::|fastgen::|gpu::|^void ", "", name)
    name = name.partition("(")[0]
    name = re.sub(r"(?:ConvTile|GramTile)<([^>]*)>", r"\1", name)
    return re.sub(r"[<>]", " ", name).strip()


def problems(entries: list[dict[str, Any]]) -> list[str]:
    """What breaks the rules: spills, missing tensor core or 16-byte instructions."""
    found = []
    for entry in entries:
        what = f"{entry['kernel']} for {entry['arch']}"
        if entry["spills"] > SPILL_LIMIT or entry["stack"] > SPILL_LIMIT:
            found.append(f"{what} spills {entry['spills']} bytes, stack {entry['stack']}")
        if entry["registers"] > REGISTER_LIMIT:
            found.append(f"{what} takes {entry['registers']} registers")
        counts = entry.get("instructions")
        if counts is None:
            continue
        needed: tuple[str, ...] = ()
        if entry["kernel"].startswith(("conv_kernel", "gram_kernel")):
            needed = ("HMMA", "LDGSTS.128")
        if entry["kernel"].startswith("concat_kernel Vec16"):
            needed = ("LDG.128", "STG.128")
        found += [f"{what} has no {name}" for name in needed if counts[name] == 0]
        if counts["local"] and entry["stack"] == 0:
            found.append(f"{what} uses local memory that the compiler did not report")
    return found


def write(entries: list[dict[str, Any]]) -> None:
    """The JSON file and the page."""
    compiler = subprocess.run(
        [str(nvcc()), "--version"], capture_output=True, text=True, check=True
    ).stdout
    found = re.search(r"release [\d.]+, V([\d.]+)", compiler)
    version = found[1] if found else "unknown"
    kept = [{k: v for k, v in entry.items() if k != "symbol"} for entry in entries]
    JSON.write_text(json.dumps({"nvcc": version, "kernels": kept}, indent=1) + "\n")
    names = list(INSTRUCTIONS)
    lines = [
        "# CUDA kernels: registers and instructions",
        "",
        f"Written by `python -m benchmarks.cuda_resources` with nvcc {version}; no GPU is needed.",
        "Registers and spilled bytes are per thread; more than",
        f"{SPILL_LIMIT} bytes fail `tests/test_cuda_compile.py`. The other columns count machine",
        "instructions in the kernel: tensor core products (HMMA), their operand loads (LDSM),",
        "copies of 16 bytes from global to shared memory past the registers (LDGSTS), loads and",
        "stores of 16 bytes, and accesses to local memory.",
        "",
        "| kernel | architecture | registers | spills | " + " | ".join(names) + " |",
        "|---|---|--:|--:|" + "--:|" * len(names),
    ]
    for entry in kept:
        counts = entry.get("instructions", {})
        cells = [entry["kernel"], entry["arch"], entry["registers"], entry["spills"]]
        cells += [counts.get(name, "") for name in names]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    TABLE.write_text("\n".join(lines) + "\n")


def main() -> int:
    """Compile, write the tables, report what breaks the rules."""
    reason = why_not()
    if reason:
        print(f"cuda_resources: {reason}", file=sys.stderr)
        return 1
    entries = measure()
    write(entries)
    found = problems(entries)
    for line in found:
        print(f"cuda_resources: {line}", file=sys.stderr)
    print(f"{len(entries)} kernels; {TABLE.relative_to(ROOT)} and {JSON.relative_to(ROOT)}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
