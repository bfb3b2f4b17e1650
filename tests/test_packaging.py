"""What is installed, what it requires, and what the repository promises about itself."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote

import click
import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import fastgen

ROOT = Path(__file__).resolve().parent.parent
STYLES = sorted((ROOT / "fastgen" / "styles").glob("*.safetensors"))
EXTRAS = {
    *("torch", "triton", "tensorrt", "train", "video", "web", "onnx", "ray"),
    *("bench", "peers", "test", "docs", "dev"),
}


def _requirements() -> list[Requirement]:
    return [Requirement(text) for text in metadata.requires("fastgen") or []]


def _extra(name: str) -> dict[str, Requirement]:
    """Requirements of an extra, the extras that it names itself included."""
    found: dict[str, Requirement] = {}
    for item in _requirements():
        if item.marker is None or not item.marker.evaluate({"extra": name}):
            continue
        if item.name == "fastgen":
            for other in item.extras:
                found |= _extra(other)
        else:
            found[item.name.lower()] = item
    return found


def _python(code: str, cwd: Path) -> str:
    run = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_version_has_one_source() -> None:
    assert fastgen.__version__ == metadata.version("fastgen")
    version = re.escape(fastgen.__version__)
    assert re.search(rf"^version: {version}$", (ROOT / "CITATION.cff").read_text("utf-8"), re.M)
    assert re.search(rf"^## {version}\b", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)


def test_metadata() -> None:
    info = metadata.metadata("fastgen")
    assert info["Requires-Python"] == ">=3.11"
    assert info["License-Expression"] == "Apache-2.0"
    scripts = metadata.entry_points(group="console_scripts", name="fastgen")
    assert [s.module.split(":")[0].partition(".")[0] for s in scripts] == ["fastgen"]


def test_base_install_is_small() -> None:
    base = {r.name.lower() for r in _requirements() if r.marker is None}
    assert base == {"numpy", "pillow", "safetensors", "click"}


def test_extras() -> None:
    assert set(metadata.metadata("fastgen").get_all("Provides-Extra") or []) == EXTRAS
    torch = _extra("torch")["torch"]
    assert Version("2.6.0") in torch.specifier
    assert Version("2.5.1") not in torch.specifier
    assert not [s for s in torch.specifier if s.operator in {"<", "<=", "=="}], "no upper cap"


@pytest.mark.parametrize("extra", ["test", "dev", "bench", "docs"])
def test_what_checks_install_needs_no_vendor_host(extra: str) -> None:
    names = set(_extra(extra))
    assert names
    assert not [n for n in names if n.startswith(("tensorrt", "nvidia", "torch-tensorrt"))]


def test_constraints_pin_what_the_tests_install() -> None:
    pins = {}
    for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            item = Requirement(line)
            assert [s.operator for s in item.specifier] == ["=="], line
            pins[item.name.lower()] = item
    assert str(pins["torch"].specifier) == "==2.13.0"
    for name in ("test", "dev", "bench"):
        assert set(_extra(name)) <= set(pins)


def test_import_is_light(tmp_path: Path) -> None:
    code = "import sys, json, fastgen; print(json.dumps(sorted(sys.modules)))"
    loaded = set(json.loads(_python(code, tmp_path)))
    assert not {"torch", "PIL", "click", "triton", "matplotlib"} & loaded


def test_subpackages_of_other_folders_are_installed(tmp_path: Path) -> None:
    code = "import sys, fastgen.kernels; print('triton' in sys.modules or 'torch' in sys.modules)"
    assert _python(code, tmp_path).strip() == "False"
    where = "from importlib.util import find_spec as f; print(f('fastgen.train').origin)"
    assert Path(_python(where, tmp_path).strip()).name == "__init__.py"


def test_typed_marker_ships() -> None:
    assert (Path(fastgen.__file__).parent / "py.typed").is_file()


@pytest.mark.skipif(not STYLES, reason="no trained style is shipped yet")
def test_shipped_styles_are_small_and_have_cards() -> None:
    from safetensors import safe_open

    for path in STYLES:
        assert path.stat().st_size < 4_000_000, f"{path.name} is too big to ship"
        card = path.with_name(f"{path.stem}.json")
        assert card.is_file(), f"{path.name} has no card"
        with safe_open(path, framework="numpy") as file:
            stored = [file.get_tensor(key) for key in file.keys()]  # noqa: SIM118
            meta = file.metadata()
        assert {t.dtype for t in stored} == {np.dtype(np.float16)}, path.name
        assert meta["format"] == "1"


def test_package_styles_are_the_ones_in_the_folder() -> None:
    assert sorted(fastgen.list_styles()) == sorted(path.stem for path in STYLES)


MARKDOWN = sorted(
    p for folder in (ROOT, ROOT / "docs", ROOT / "examples") for p in folder.glob("*.md")
)


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda p: str(p.relative_to(ROOT)))
def test_relative_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text("utf-8"), flags=re.S)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    for target in targets:
        if re.match(r"(https?:|mailto:|#)", target):
            continue
        assert (path.parent / unquote(target.partition("#")[0])).exists(), f"dead link: {target}"


def test_pyproject_is_strict_about_tests() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    options = config["tool"]["pytest"]["ini_options"]
    assert {"--strict-markers", "--strict-config"} <= set(options["addopts"])
    assert options["xfail_strict"] is True
    assert "error" in options["filterwarnings"]


def test_readme_names_the_commands_that_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.M))
    assert {"demo", "test", "bench", "lint", "format", "docs", "clean"} <= targets
    for name in ("README.md", "CONTRIBUTING.md"):
        used = set(re.findall(r"`?make ([a-z-]+)", (ROOT / name).read_text("utf-8")))
        assert used <= targets, f"{name}: {used - targets}"
    assert "make test" in (ROOT / ".ci" / "run").read_text("utf-8")


def _options(command: click.Command, name: str) -> list[tuple[str, str]]:
    found = [
        (name, option)
        for parameter in command.params
        for option in parameter.opts
        if option.startswith("--") and option != "--help"
    ]
    if isinstance(command, click.Group):
        context = click.Context(command)
        for sub in command.list_commands(context):
            child = command.get_command(context, sub)
            assert child is not None
            found += _options(child, f"{name} {sub}")
    return found


def test_every_command_and_option_is_documented() -> None:
    from fastgen.cli import app

    text = (ROOT / "docs" / "cli.md").read_text("utf-8")
    options = _options(app, "fastgen")
    assert len(options) > 40
    missing = [f"{name} {option}" for name, option in options if f"`{option}`" not in text]
    assert not missing
    for name in {name.removeprefix("fastgen ") for name, _ in options} - {"fastgen"}:
        assert f"\n## {name}\n" in text
