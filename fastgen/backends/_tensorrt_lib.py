"""Finding TensorRT's libraries and opening one of them.

``FASTGEN_TENSORRT_LIB`` (a file, or a folder with one) names it; otherwise packages installed by
pip, then names that the system's loader knows. Full TensorRT comes before TensorRT for RTX, and
the lean runtime, which cannot build engines, comes last.
"""

from __future__ import annotations

import os
import threading
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from fastgen.errors import BackendUnavailable

__all__ = ["candidates", "extension", "extension_why_not", "open_library", "why_not"]

VARIABLE = "FASTGEN_TENSORRT_LIB"
_REMEDY = f"pip install 'fastgen[tensorrt]', or name the library in {VARIABLE}"

# (packages that have it, stem of the file, versions, newest first), best library first.
_KINDS = (
    (("tensorrt_libs",), "libnvinfer.so", ("11", "10")),
    (("tensorrt_rtx_libs", "onnxruntime_ep_nv_tensorrt_rtx"), "libtensorrt_rtx.so", ("1",)),
    (("tensorrt_lean_libs",), "libnvinfer_lean.so", ("11", "10")),
)

_lock = threading.Lock()
_opened: dict[str, Any] | None = None


def extension() -> ModuleType:
    """The extension module.

    Raises:
        ImportError: it was not built.
    """
    from fastgen import _tensorrt

    return _tensorrt


def extension_why_not() -> str | None:
    """None when the extension module is there, else the reason and the remedy."""
    try:
        extension()
    except ImportError as error:
        return (
            f"its extension module is not built ({error}); install again with TensorRT's headers: "
            "TENSORRT_ROOT=FOLDER pip install ."
        )
    return None


def candidates() -> list[str]:
    """Paths, and names for the loader, in the order in which they are tried.

    Raises:
        BackendUnavailable: FASTGEN_TENSORRT_LIB names nothing.
    """
    named = os.environ.get(VARIABLE)
    if named:
        path = Path(named)
        if path.is_dir():
            found = [p for _, stem, versions in _KINDS for p in _in_folder(path, stem, versions)]
            if not found:
                stems = ", ".join(stem for _, stem, _ in _KINDS)
                raise BackendUnavailable(f"{VARIABLE} is {named}, which has none of {stems}")
            return found
        if os.sep in named and not path.is_file():
            raise BackendUnavailable(f"{VARIABLE} is {named}, which does not exist")
        return [named]
    result: list[str] = []
    for packages, stem, versions in _KINDS:
        for package in packages:
            spec = find_spec(package)
            for folder in (spec.submodule_search_locations or []) if spec else []:
                result += _in_folder(Path(folder), stem, versions)
        result += [f"{stem}.{version}" for version in versions]
    return result


def _in_folder(folder: Path, stem: str, versions: tuple[str, ...]) -> list[str]:
    """The files of a library in a folder: exact names first, then longer versions."""
    result = []
    for version in versions:
        exact = folder / f"{stem}.{version}"
        files = [exact] if exact.is_file() else sorted(folder.glob(f"{stem}.{version}.*"))[-1:]
        result += [str(p) for p in files]
    return result


def open_library() -> dict[str, Any]:
    """Opens the best library that fits, once in a process.

    Returns:
        ``path``, ``parser_path``, ``flavour`` (full, rtx, lean), ``version``, ``headers``,
        ``builds``.

    Raises:
        BackendUnavailable: none was found, or none fits the extension module.
    """
    global _opened
    with _lock:
        if _opened is not None:
            return _opened
        reason = extension_why_not()
        if reason is not None:
            raise BackendUnavailable(reason)
        already = extension().library()
        if already is not None:
            _opened = already
            return already
        reasons = []
        for path in candidates():
            try:
                _opened = dict(extension().open_library(path))
                return _opened
            except BackendUnavailable as error:
                # A name that the loader does not know is no news.
                if os.sep in path or "cannot open shared object file" not in str(error):
                    reasons.append(str(error))
                elif os.environ.get(VARIABLE):
                    raise BackendUnavailable(f"{VARIABLE} is {path}: {error}") from None
        if reasons:
            raise BackendUnavailable("; ".join(reasons))
        raise BackendUnavailable(f"TensorRT was not found; {_REMEDY}")


def why_not() -> str | None:
    """None when a library can be opened, else the reason with the remedy."""
    try:
        open_library()
    except BackendUnavailable as error:
        return str(error)
    return None
