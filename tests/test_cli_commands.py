"""The other commands of ``fastgen``: styles, doctor, import, parity, bench, train, eval."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from test_api_types import photo
from test_importers import network
from tiny import save_tiny

import fastgen
from fastgen import backends, metrics
from fastgen.cli import _race, app
from fastgen.cli.parity import GATES, verdict

COMMANDS = ("stylize", "styles", "doctor", "import", "parity", "bench")


def run(*args: object) -> Result:
    return CliRunner().invoke(app, [*map(str, args)])


def fails(code: int, text: str, *args: object) -> None:
    result = run(*args)
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1, result.stderr
    assert text in result.stderr


@pytest.fixture(scope="module")
def style(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("style"))


# ---------------------------------------------------------------------------- help


def test_help_is_light() -> None:
    code = (
        "import sys\n"
        "from fastgen.cli import app\n"
        "try:\n"
        "    app()\n"
        "finally:\n"
        "    print(sorted({'torch', 'numpy', 'PIL'} & set(sys.modules)), file=sys.stderr)\n"
    )
    for args in (["--help"], [], ["train", "--help"]):
        done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "[]\n")
        assert "Commands:" in done.stdout


@pytest.mark.parametrize(
    "command",
    [
        *COMMANDS,
        *("train style", "train gatys", "eval style", "eval saae", "eval saae-arms"),
        "eval saae-data",
    ],
)
def test_every_command_has_help(command: str) -> None:
    result = run(*command.split(), "--help")
    assert result.exit_code == 0, result.output
    assert "Usage: fastgen" in result.stdout
    assert "torch" not in str(result.exception)


def test_version_and_unknown_command() -> None:
    assert run("--version").stdout == f"fastgen {fastgen.__version__}\n"
    fails(2, "unknown command 'stylise'; did you mean 'stylize'?", "stylise", "a.jpg")
    fails(2, "one of: stylize, video", "qqqq")
    fails(2, "Missing option '--style'", "train", "style")


def test_missing_extra_names_the_pip_command(tmp_path: Path) -> None:
    """A module in front of the installed torch on the path fails as if torch were absent."""
    (tmp_path / "torch.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')"
    )
    (tmp_path / "a.pth").write_bytes(b"\x80\x02" + bytes(60))
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from fastgen.cli import main; main()"
    args = ["import", str(tmp_path / "a.pth"), "-o", str(tmp_path / "o.safetensors")]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), *args], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (
        1,
        "error: this needs torch: pip install 'fastgen[torch]'\n",
    )


# ---------------------------------------------------------------------------- styles, doctor


def test_styles() -> None:
    rows = json.loads(run("styles", "--json").stdout)
    assert [row["name"] for row in rows] == fastgen.list_styles()
    for row in rows:
        assert row["bytes"] == Path(row["path"]).stat().st_size
    listed = [line.split()[0] for line in run("styles").stdout.splitlines()]
    assert listed == fastgen.list_styles()
    for flags in ((), ("--json",)):
        result = run("styles", "no such*", *flags)
        assert result.exit_code == 1
        assert result.stderr.startswith("error: no style matches 'no such*'")


def test_doctor() -> None:
    facts = json.loads(run("doctor", "--json").stdout)
    assert set(facts["backends"]) == set(backends.names())
    for name, state in facts["backends"].items():
        assert state["why_not"] == backends.why_not(name)
        if state["why_not"] is None:
            module = backends.get(name)
            assert state["auto"]["precision"] == module.auto_precision()[0]
            assert set(state["precisions"]) == set(module.PRECISIONS)
            assert state["precisions"][state["auto"]["precision"]]["why_not"] is None
    assert facts["auto"]["backend"] == backends.choose("auto")[0]
    assert torch.__version__.startswith(facts["packages"]["torch"].partition("+")[0])
    assert facts["packages"]["numpy"] == np.__version__
    assert facts["cpu"]["threads"] >= 1
    text = run("doctor").stdout
    assert "torch: can run fp32, bf16; auto takes fp32: " in text
    for word in ("fastgen", "packages", "cpu", "gpu", "backend", "auto", "styles"):
        assert any(line.startswith(word) for line in text.splitlines()), word


def test_doctor_asks_the_cuda_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    class Extension:
        devices = ({"name": "Some GPU", "capability": (9, 0), "memory_bytes": 80 << 30},)

        def device_count(self) -> tuple[int, str | None]:
            return len(self.devices), None if self.devices else "no driver"

        def device(self, index: int) -> dict:
            return self.devices[index]

        def compiled_archs(self) -> str:
            return "80-real,80-virtual"

    extension = Extension()
    monkeypatch.setitem(sys.modules, "fastgen._cuda", extension)
    text = run("doctor").stdout
    assert "Some GPU, sm_90, 80 GiB; CUDA extension built: yes, for 80-real,80-virtual" in text
    monkeypatch.setattr(Extension, "devices", ())
    assert json.loads(run("doctor", "--json").stdout)["gpu"]["why_not"] == "CUDA: no driver"


def test_doctor_tells_of_a_bad_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTGEN_NUM_THREADS", "many")
    assert "FASTGEN_NUM_THREADS is 'many'" in run("doctor").stdout
    assert "'many'" in json.loads(run("doctor", "--json").stdout)["cpu"]["threads"]


# ---------------------------------------------------------------------------- import


def test_import(tmp_path: Path) -> None:
    torch.save(network(gordic=False).state_dict(), tmp_path / "candy.pth")
    out = tmp_path / "new" / "candy.safetensors"
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.fromarray(photo(40, 52)).save(photos / "a.png")
    result = run(
        *("import", tmp_path / "candy.pth", "-o", out, "--name", "sweet", "--licence", "BSD-3"),
        *("--calibrate", photos),
    )
    assert result.exit_code == 0, result.output
    ckpt = fastgen.load_style(out)
    assert (ckpt.meta["style"], ckpt.meta["licence"]) == ("sweet", "BSD-3")
    assert ckpt.meta["activation_ranges"]["down0"] == [0.0, 255.0]
    # Stored as it was: nothing is lost by importing.
    original = torch.load(tmp_path / "candy.pth", weights_only=True)["conv1.conv2d.weight"].numpy()
    np.testing.assert_array_equal(ckpt.weights["down0.weight"], original)


def test_import_refuses(tmp_path: Path, style: Path, example_photo: Path) -> None:
    out = tmp_path / "o.safetensors"
    fails(2, "must end in .safetensors", "import", style, "-o", tmp_path / "o.pth")
    fails(2, "is the input", "import", style, "-o", style)
    fails(1, "already a safetensors file", "import", style, "-o", out)
    fails(1, "supported: pytorch/examples", "import", example_photo, "-o", out)
    fails(1, "no such file", "import", tmp_path / "gone.pth", "-o", out)
    torch.save(network(gordic=True).state_dict(), tmp_path / "a.pth")
    (tmp_path / "empty").mkdir()
    fails(
        *(1, "no images in this folder", "import", tmp_path / "a.pth", "-o", out),
        *("--calibrate", tmp_path / "empty"),
    )
    assert not out.exists()


# ---------------------------------------------------------------------------- parity


def slow_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Wang et al. 2004 window by window: weighted mean, variance and covariance of 11x11 pixels."""
    grid = np.arange(11) - 5
    window = np.exp(-(grid[:, None] ** 2 + grid[None] ** 2) / (2 * 1.5**2))
    window = (window / window.sum())[:, :, None]
    values = []
    for y in range(a.shape[0] - 10):
        for x in range(a.shape[1] - 10):
            p, q = a[y : y + 11, x : x + 11], b[y : y + 11, x : x + 11]
            mp, mq = (window * p).sum((0, 1)), (window * q).sum((0, 1))
            vp, vq = (window * (p - mp) ** 2).sum((0, 1)), (window * (q - mq) ** 2).sum((0, 1))
            cov = (window * (p - mp) * (q - mq)).sum((0, 1))
            c1, c2 = 6.5025, 58.5225  # (0.01*255)^2, (0.03*255)^2
            values.append(
                (2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2))
            )
    return float(np.mean(values))


def test_metrics() -> None:
    a = photo(24, 30).astype(np.float64)
    b = np.clip(a + np.random.default_rng(0).normal(0, 20, a.shape), 0, 255)
    assert metrics.ssim(a, b) == pytest.approx(slow_ssim(a, b), abs=1e-9)
    assert metrics.ssim(a, a) == pytest.approx(1.0)
    assert metrics.psnr(a, a) == math.inf
    assert metrics.psnr(np.zeros((4, 4)), np.full((4, 4), 255.0)) == 0.0
    assert metrics.psnr(np.zeros(4), np.full(4, 2.55)) == pytest.approx(40.0)
    assert metrics.max_abs(np.array([1.0, 5.0]), np.array([2.0, 2.0])) == 3.0
    with pytest.raises(ValueError, match="at least 11x11"):
        metrics.ssim(np.zeros((5, 50)), np.zeros((5, 50)))
    with pytest.raises(ValueError, match="must be equal"):
        metrics.psnr(np.zeros((5, 5)), np.zeros((5, 6)))


def test_gates() -> None:
    wanted = [photo(40, 50)[None] / 255.0]

    def off_by(error: float) -> list[np.ndarray]:  # of 255, everywhere
        return [wanted[0] + error / 255.0]

    assert verdict("fp32", wanted, off_by(0.019))["passed"]
    assert not verdict("fp32", wanted, off_by(0.021))["passed"]
    assert verdict("bf16", wanted, off_by(2.5))["passed"]  # 40.2 dB
    assert not verdict("fp16", wanted, off_by(2.6))["passed"]  # 39.8 dB
    assert verdict("int8", wanted, off_by(7.0))["passed"]
    assert not verdict("int8", wanted, off_by(8.5))["passed"]  # 29.5 dB
    rng = np.random.default_rng(0)
    noisy = [wanted[0] + rng.normal(0, 7 / 255.0, wanted[0].shape)]
    row = verdict("fp8", [np.full_like(wanted[0], 0.5)], [noisy[0] - wanted[0] + 0.5])
    assert row["psnr"] > 30
    assert not row["passed"], "SSIM must count too"
    assert set(GATES) == {"fp32", "bf16", "fp16", "int8", "fp8"}


def test_parity(style: Path, tmp_path: Path) -> None:
    Image.fromarray(photo(64, 80)).save(tmp_path / "a.png")
    result = run("parity", "-s", style, "--photos", tmp_path / "a.png", "--json")
    report = json.loads(result.stdout)
    rows = {(row["backend"], row["precision"]): row for row in report["rows"]}
    assert ("torch", "bf16") in rows
    assert ("torch", "fp32") not in rows, "the reference is not compared with itself"
    for name in backends.names():
        if backends.why_not(name) is None and name != "torch":
            assert rows[name, "fp32"]["passed"], rows[name, "fp32"]
    assert (result.exit_code == 0) == report["passed"] == all(r["passed"] for r in rows.values())
    for row in rows.values():
        assert row["style"] == str(style)
    text = run("parity", "-s", style, "--photos", tmp_path / "a.png").stdout
    assert len(text.splitlines()) == len(rows)
    fails(2, "unknown backend 'x'", "parity", "-s", style, "--backend", "x")
    fails(2, "unknown style 'no_such'", "parity", "-s", "no_such")
    fails(1, "no such file", "parity", "-s", style, "--photos", tmp_path / "gone.png")


# ---------------------------------------------------------------------------- bench


def test_percentile_and_ratio() -> None:
    values = list(np.random.default_rng(0).random(37))
    for q in (0, 5, 50, 95, 100):
        assert _race.percentile(values, q) == pytest.approx(np.percentile(values, q))
    ours, peer = _race.Runner({}, [1.0, 2.0, 4.0]), _race.Runner({}, [3.0, 4.0, 4.0])
    assert _race.ratio(ours, peer) == 2.0  # rounds are compared with each other: 3, 2, 1


def test_bench(style: Path, example_photo: Path) -> None:
    args = [
        "bench",
        "-s",
        style,
        "--size",
        "32x24",
        "--seconds",
        "0",
        "--rounds",
        "2",
        "--threads",
        1,
    ]
    result = run(*args, "--peer", "torch:bf16", "--json")
    assert result.exit_code == 0, result.output
    (table,) = json.loads(result.stdout)["sizes"]
    assert (table["width"], table["height"], table["rounds"]) == (32, 24, 2)
    eager, peer = table["rows"]
    assert (eager["backend"], eager["precision"], eager["ratio"]) == ("torch", "fp32", 1.0)
    assert (peer["backend"], peer["precision"]) == ("torch", "bf16")
    assert peer["baseline"] == "torch fp32"
    assert all(len(row["seconds"]) == 2 and min(row["seconds"]) > 0 for row in (eager, peer))
    if backends.why_not("cpu") is None:
        (table,) = json.loads(run(*args, "--json").stdout)["sizes"]
        compared = {
            (row["backend"], row["precision"]): (row["baseline"], row["seconds"])
            for row in table["rows"]
        }
        able = [p for p in ("fp32", "bf16") if backends.get("cpu").precision_why_not(p) is None]
        assert set(compared) == {(b, p) for b in ("torch", "cpu") for p in able}
        for precision in able:
            assert compared["cpu", precision][0] == f"torch {precision}"
        row = next(r for r in table["rows"] if (r["backend"], r["precision"]) == ("cpu", able[-1]))
        pairs = zip(compared["torch", able[-1]][1], row["seconds"], strict=True)
        assert row["ratio"] == pytest.approx(np.median([theirs / ours for theirs, ours in pairs]))
    fails(2, "is not WIDTHxHEIGHT", "bench", "-s", style, "--size", "32")
    fails(2, "unknown backend 'x'", "bench", "-s", style, "--peer", "x")
    fails(2, "has no precision 'int3'", "bench", "-s", style, "--peer", "torch:int3")
    fails(2, "1<=x<=1024", "bench", "-s", style, "--threads", 5000)
    fails(1, "not a safetensors file", "bench", "-s", example_photo)
    fails(2, "unknown style 'no_such'", "bench", "-s", "no_such")


def test_a_measured_process_that_fails_says_so_in_one_line(style: Path, capfd: Any) -> None:
    spec = {"style": "gone.safetensors", "backend": "cpu", "precision": "auto", "threads": 1}
    spec |= {"width": 8, "height": 8}
    with pytest.raises(fastgen.FastgenError, match=r"gone\.safetensors: no such checkpoint"):
        _race.race([spec], seconds=0, rounds=(1, 1))
    assert capfd.readouterr().err == ""
