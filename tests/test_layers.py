"""The arrows of docs/architecture.md: imports only point down, and C++ knows nothing of torch."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Bottom to top. A module belongs to the longest prefix that names it, and may import its own
# layer and those below. The command line starts everything, so it is on top.
LAYERS: list[tuple[str, tuple[str, ...]]] = [
    (
        "kernels, csrc",
        (
            *("fastgen.kernels", "fastgen._C", "fastgen._cuda", "fastgen._tensorrt"),
            "fastgen.errors",
        ),
    ),
    ("ops", ("fastgen.ops",)),
    (
        "models, graph",
        ("fastgen.models", "fastgen.graph", "fastgen._graph_ops", "fastgen.checkpoint"),
    ),
    ("styles, exporters", ("fastgen.styles", "fastgen.exporters")),
    ("backends", ("fastgen.backends",)),
    (
        "public API",
        (
            *("fastgen", "fastgen.image", "fastgen.stylizer", "fastgen.stabilizer"),
            "fastgen.live",
            "fastgen.importers",
            *("fastgen.glyphs", "fastgen.generator", "fastgen.generators", "fastgen._pictures"),
            *("fastgen.metrics", "fastgen.calibrate", "fastgen._convert"),
            *("fastgen._stream", "fastgen.video", "fastgen._controls", "fastgen._keyframes"),
            *("fastgen._masks", "fastgen._mix", "fastgen._resize"),
        ),
    ),
    ("train", ("fastgen.train",)),
    (
        "programs",
        (
            "fastgen.cli",
            "fastgen.serve",
            "fastgen.__main__",
            "benchmarks",
            "tests",
            "examples",
            "docs",
        ),
    ),
]
LEVEL = {prefix: i for i, (_, prefixes) in enumerate(LAYERS) for prefix in prefixes}

# Folders of the checkout and the import name of what is in them.
SOURCES = {
    "fastgen": "fastgen",
    "kernels": "fastgen.kernels",
    "train": "fastgen.train",
    "benchmarks": "benchmarks",
    "tests": "tests",
    "examples": "examples",
    "docs": "docs",
}
CXX = sorted(
    p for p in (ROOT / "csrc").rglob("*") if p.suffix in {".cpp", ".h", ".inl", ".cu", ".cuh"}
)


def _modules() -> dict[str, Path]:
    found = {}
    for folder, package in SOURCES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join((package, *parts))] = path
    return found


MODULES = _modules()


def _level(module: str) -> int | None:
    name = module
    while name:
        # `fastgen` itself is the public API's __init__, not a home for whatever is not listed.
        if name in LEVEL and (name != "fastgen" or module == "fastgen"):
            return LEVEL[name]
        name = name.rpartition(".")[0]
    return None


def _absolute(node: ast.ImportFrom, module: str, path: Path) -> str:
    if not node.level:
        return node.module or ""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for _ in range(node.level - 1):
        package = package.rpartition(".")[0]
    return f"{package}.{node.module}" if node.module else package


def _imports(tree: ast.AST, module: str, path: Path) -> list[tuple[int, str]]:
    """(line, absolute module name) of every import below ``tree``, nested ones included."""
    result = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            result += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, module, path)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                result.append((node.lineno, full if full in MODULES or full in LEVEL else base))
    return result


def _at_import_time(tree: ast.Module) -> ast.Module:
    """The module's statements that run when it is imported: no functions, no TYPE_CHECKING."""

    class Strip(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> ast.AST | None:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                return None
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                return None
            return self.generic_visit(node)

    stripped = Strip().visit(tree)
    if not isinstance(stripped, ast.Module):
        raise TypeError("a module stays a module")
    return stripped


def test_every_module_has_a_layer() -> None:
    homeless = [name for name in MODULES if _level(name) is None]
    assert not homeless, f"name the layer of these modules in LAYERS: {homeless}"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_down(module: str) -> None:
    path = MODULES[module]
    own = _level(module)
    if own is None:
        pytest.fail(f"{module} has no layer")
    for line, target in _imports(ast.parse(path.read_text("utf-8")), module, path):
        if target.partition(".")[0] not in {"fastgen", *SOURCES}:
            continue
        level = _level(target)
        where = f"{path.relative_to(ROOT)}:{line}"
        assert level is not None, f"{where} imports {target}, which has no layer"
        assert level <= own, (
            f"{where}: {module} ({LAYERS[own][0]}) imports {target} ({LAYERS[level][0]}), "
            "an arrow that points up"
        )


# Only code that needs torch (or, for the kernels, Triton) anyway ever imports these.
NEEDS_TORCH = ("fastgen.backends.torch", "fastgen.train", "fastgen.kernels.jit")


@pytest.mark.parametrize(
    "module",
    sorted(m for m in MODULES if m.startswith("fastgen") and not m.startswith(NEEDS_TORCH)),
)
def test_heavy_libraries_are_imported_lazily(module: str) -> None:
    path = MODULES[module]
    tree = _at_import_time(ast.parse(path.read_text("utf-8")))
    heavy = {"torch", "triton", "torchvision", "tensorboard", "matplotlib", "onnx", "av"}
    found = [(line, t) for line, t in _imports(tree, module, path) if t.split(".")[0] in heavy]
    assert not found, f"{path.relative_to(ROOT)} imports {found} at import time"


def test_there_is_cpp_to_check() -> None:
    assert CXX


@pytest.mark.parametrize("path", CXX, ids=lambda p: str(p.relative_to(ROOT)))
def test_cpp_includes(path: Path) -> None:
    includes = re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text("utf-8"), re.M)
    libtorch = [i for i in includes if re.match(r"(torch|ATen|c10|caffe2)/", i)]
    assert not libtorch, "csrc takes plain pointers; libtorch ties a binary to one torch version"
    python = [i for i in includes if i.startswith("pybind11/") or i == "Python.h"]
    if not re.fullmatch(r"bindings\w*\.cpp", path.name):
        assert not python, "only bindings*.cpp know Python"


@pytest.mark.parametrize("path", [*MODULES.values(), *CXX], ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_readable(path: Path) -> None:
    lines = len(path.read_text("utf-8").splitlines())
    assert lines <= 500, f"{lines} lines; split it by subject"
