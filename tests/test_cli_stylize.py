"""``fastgen stylize``: what goes where, what is refused, what is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from test_api_types import photo, read
from test_bad_input import png_header
from tiny import save_tiny, tiny_checkpoint

import fastgen
from fastgen.cli import app
from fastgen.cli._app import one_line


@pytest.fixture(scope="module")
def style(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("style")))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """in/ with three photos and other things."""
    source = tmp_path / "in"
    (source / "below").mkdir(parents=True)
    for i, name in enumerate(("a.png", "b.jpg", "c.gif", "below/d.png")):
        Image.fromarray(photo(20 + i, 30, seed=i)).save(source / name)
    (source / "notes.txt").write_text("not a photo")
    return tmp_path


def run(*args: object) -> Result:
    return CliRunner().invoke(app, ["stylize", *map(str, args)])


def fails(code: int, text: str, *args: object) -> None:
    """The command must end in this code with one line on stderr that contains the text."""
    result = run(*args)
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1, result.stderr
    assert text in result.stderr


def tree(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_one_photo(folder: Path, style: str) -> None:
    out = folder / "new" / "folder" / "out.png"
    result = run(folder / "in/a.png", "-o", out, "-s", style, "--strength", 0.5)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{out}  30x20")
    assert result.stderr == ""
    expected = fastgen.stylize(photo(20, 30, seed=0), style, strength=0.5)
    np.testing.assert_array_equal(read(out), expected)
    assert os.listdir(out.parent) == ["out.png"]


def test_options(folder: Path, style: str) -> None:
    out = folder / "out.png"
    result = run(
        *(folder / "in/a.png", "-o", out, "-s", style, "--preserve-color", "--max-side", 15),
        *("--backend", "torch", "--precision", "fp32", "--threads", 1, "--json"),
    )
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["backend"] == "torch"
    assert record["precision"] == "fp32"
    assert record["threads"] == 1
    (file,) = record["files"]
    assert (file["input"], file["output"]) == (str(folder / "in/a.png"), str(out))
    assert (file["width"], file["height"]) == (15, 10)
    assert file["seconds"] > 0
    small = Image.fromarray(read(folder / "in/a.png")).resize((15, 10), Image.Resampling.LANCZOS)
    expected = fastgen.stylize(np.asarray(small), style, preserve_color=True)
    assert np.abs(read(out).astype(int) - expected.astype(int)).max() <= 1


def test_folder(folder: Path, style: str) -> None:
    out = folder / "out"
    result = run(folder / "in", "-o", out, "-s", style)
    assert result.exit_code == 0, result.output
    assert tree(out) == ["a.png", "b.jpg", "c.png"]
    assert len(result.stdout.splitlines()) == 3


def test_pattern_and_several_inputs(folder: Path, style: str) -> None:
    out = folder / "out"
    result = run(
        folder / "in/*.png", folder / "in/b.jpg", folder / "in/a.png", "-o", out, "-s", style
    )
    assert result.exit_code == 0, result.output
    assert tree(out) == ["a.png", "b.jpg"]
    result = run(folder / "in/**/*.png", "-o", folder / "deep", "-s", style)
    assert result.exit_code == 0, result.output
    assert tree(folder / "deep") == ["a.png", "d.png"]


def test_one_photo_into_a_folder(folder: Path, style: str) -> None:
    assert run(folder / "in/a.png", "-o", f"{folder}/new/", "-s", style).exit_code == 0
    (folder / "there").mkdir()
    assert run(folder / "in/c.gif", "-o", folder / "there", "-s", style).exit_code == 0
    assert tree(folder / "new") == ["a.png"]
    assert tree(folder / "there") == ["c.png"]


def test_names_with_wildcard_characters(folder: Path, style: str) -> None:
    odd = folder / "in" / "what [1] *.png"
    (folder / "in/a.png").rename(odd)
    assert run(odd, "-o", folder / "out.png", "-s", style).exit_code == 0
    assert (folder / "out.png").is_file()


def test_a_bad_file_does_not_stop_the_others(folder: Path, style: str) -> None:
    (folder / "in/a.jpg").write_text("text")
    (folder / "in/b2.png").write_bytes(png_header(30_000, 30_000))
    result = run(
        folder / "in", folder / "gone.png", folder / "x*.png", "-o", folder / "out", "-s", style
    )
    assert result.exit_code == 1
    assert tree(folder / "out") == ["a.png", "b.jpg", "c.png"]
    errors = result.stderr.splitlines()
    assert len(errors) == 4
    assert all(line.startswith("error: ") for line in errors)
    for text in (
        "a.jpg: not an image",
        "b2.png: 30000x30000",
        "gone.png: no such",
        "no file match",
    ):
        assert any(text in line for line in errors), text


def test_json_of_failures(folder: Path, style: str) -> None:
    (folder / "in/a.jpg").write_text("text")
    result = run(
        folder / "in/a.jpg", folder / "gone.png", "-o", folder / "out", "-s", style, "--json"
    )
    assert result.exit_code == 1
    files = json.loads(result.stdout)["files"]
    assert {Path(f["input"]).name for f in files} == {"a.jpg", "gone.png"}
    assert all("error" in f for f in files)


def test_the_limit_can_be_moved(folder: Path, style: str) -> None:
    args = (folder / "in/a.png", "-o", folder / "o.png", "-s", style, "--max-pixels")
    fails(1, "30x20 is 600 pixels, the limit is 599", *args, 599)
    assert run(*args, 600).exit_code == 0


def test_bands(folder: Path, style: str) -> None:
    target = folder / "o.png"
    args = (folder / "in/a.png", "-o", target, "-s", style, "--precision", "fp32")
    assert run(*args, "--band-rows", "none").exit_code == 0
    expected = read(target)
    result = run(*args, "--band-rows", 6, "--recompute", "full")
    assert result.exit_code == 0
    assert "bands of 6 rows" in result.stdout
    assert "times the arithmetic: as asked for" in result.stdout
    np.testing.assert_array_equal(read(target), expected)
    made = json.loads(run(*args, "--band-rows", 6, "--json").stdout)["files"][0]["bands"]
    assert made["rows"] == 6
    assert made["memory"] > made["kept"] >= 0
    assert json.loads(run(*args, "--json").stdout)["files"][0]["bands"] is None
    for value in ("0", "-1", "x"):
        fails(2, f"{value}", *args, f"--band-rows={value}")
    fails(2, "does not run in bands", *args, "--band-rows", 8, "--backend", "torch")
    fails(2, "give band_rows", *args, "--band-rows", "none", "--recompute", "full")


# ---------------------------------------------------------------------------- wrong usage: code 2


def test_wrong_usage(folder: Path, style: str) -> None:
    a = folder / "in/a.png"
    fails(2, "Missing argument 'INPUT...'", "-o", folder / "o.png")
    fails(2, "Missing option '-o'", a)
    fails(2, "cannot write '.xyz'; use one of .png", a, "-o", folder / "o.xyz", "-s", style)
    fails(2, "cannot write a file without suffix", a, "-o", folder / "o", "-s", style)
    for value in ("1.5", "-0.1", "nan"):
        fails(2, "must be in 0..1", a, "-o", folder / "o.png", "-s", style, "--strength", value)
    fails(2, "unknown style 'nope_nope'", a, "-o", folder / "o.png", "-s", "nope_nope")
    fails(2, "unknown backend 'gpu'", a, "-o", folder / "o.png", "-s", style, "--backend", "gpu")
    fails(2, "precision 'x'", a, "-o", folder / "o.png", "-s", style, "--precision", "x")
    fails(2, "--max-side", a, "-o", folder / "o.png", "--max-side", 0)
    fails(2, "several photos need a folder", folder / "in", "-o", folder / "o.png")
    (folder / "file").touch()
    fails(2, "is a file", folder / "in", "-o", folder / "file")
    fails(2, "No such option", a, "--colour")
    assert not (folder / "o.png").exists()


def test_two_photos_with_one_output(folder: Path, style: str) -> None:
    Image.fromarray(photo()).save(folder / "a.png")
    text = "would both be written to"
    fails(2, text, folder / "a.png", folder / "in/a.png", "-o", folder / "out", "-s", style)
    Image.fromarray(photo()).save(folder / "in/c.png")
    fails(2, text, folder / "in", "-o", folder / "out", "-s", style)


def test_an_input_is_never_overwritten(folder: Path, style: str) -> None:
    a = folder / "in/a.png"
    before = {p: p.read_bytes() for p in (folder / "in").rglob("*") if p.is_file()}
    (folder / "soft.png").symlink_to(a)
    os.link(a, folder / "hard.png")
    text = "is an input, which is never overwritten"
    for out in (a, folder / "in/../in/a.png", folder / "soft.png", folder / "hard.png"):
        fails(2, text, a, "-o", out, "-s", style)
    fails(2, text, folder / "soft.png", "-o", a, "-s", style)
    fails(2, text, folder / "in", "-o", folder / "in", "-s", style)
    (folder / "other").symlink_to(folder / "in")
    fails(2, text, folder / "in", "-o", folder / "other", "-s", style)
    assert {p: p.read_bytes() for p in before} == before


# ---------------------------------------------------------------------------- failures: code 1


def test_failures(folder: Path, style: str) -> None:
    a, out = folder / "in/a.png", folder / "o.png"
    fails(1, "gone.png: no such file", folder / "gone.png", "-o", out, "-s", style)
    fails(1, "no file matches", folder / "q*.png", "-o", out, "-s", style)
    fails(1, "no images in this folder", folder, "-o", folder / "out", "-s", style)
    fails(1, "no such checkpoint", a, "-o", out, "-s", folder / "x.safetensors")
    other = save_tiny(folder, name="other", kind="superres")
    fails(1, "is of the kind 'superres'", a, "-o", out, "-s", other)
    fails(1, "not a safetensors file", a, "-o", out, "-s", a)
    Image.new("RGBA", (8, 8), (1, 2, 3, 4)).save(folder / "in/alpha.png")
    fails(
        1,
        "cannot hold the transparency",
        folder / "in/alpha.png",
        "-o",
        folder / "o.jpg",
        "-s",
        style,
    )
    assert not out.exists()


def test_output_that_cannot_be_written(folder: Path, style: str) -> None:
    a = folder / "in/a.png"
    (folder / "file").touch()
    fails(1, "cannot be written", a, "-o", folder / "file/o.png", "-s", style)
    (folder / "dir.png").mkdir()
    assert (
        run(a, "-o", folder / "dir.png", "-s", style).exit_code == 0
    )  # a folder, whatever its name
    assert tree(folder / "dir.png") == ["a.png"]
    os.mkfifo(folder / "pipe.png")
    fails(1, "not a regular file", a, "-o", folder / "pipe.png", "-s", style)


def test_read_only_folder(folder: Path, style: str) -> None:
    locked = folder / "locked"
    locked.mkdir()
    if os.geteuid() == 0:
        locked = Path("/sys/kernel")  # read-only for the superuser too
    else:
        locked.chmod(0o555)
    fails(1, "o.png: cannot be written", folder / "in/a.png", "-o", locked / "o.png", "-s", style)
    assert not (locked / "o.png").exists()


def test_full_disk_leaves_nothing(folder: Path, style: str) -> None:
    """A limit on file sizes stands in for a full disk: write() fails in the same way."""
    Image.fromarray(photo(200, 200)).save(folder / "in/big.png")
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "from fastgen.cli import main\n"
        "main()\n"
    )
    (folder / "out").mkdir()
    command = [sys.executable, "-c", code, "stylize", folder / "in/big.png", "-s", style]
    done = subprocess.run(
        [*map(str, command), "-o", str(folder / "out/big.png")], capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: ")
    assert "cannot be written: File too large" in done.stderr
    assert done.stderr.count("\n") == 1
    assert tree(folder / "out") == []


# ---------------------------------------------------------------------------- the process


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "fastgen", *map(str, args)]


def test_process_exit_codes_and_no_torch(folder: Path, style: str) -> None:
    gone = subprocess.run(
        command("stylize", folder / "gone.png", "-o", folder / "o.png", "-s", style),
        capture_output=True,
        text=True,
    )
    assert (gone.returncode, gone.stdout) == (1, "")
    assert gone.stderr == f"error: {folder / 'gone.png'}: no such file\n"
    code = (
        "import sys\n"
        "from fastgen.cli import app\n"
        "try:\n"
        "    app()\n"
        "finally:\n"
        "    print('torch' in sys.modules, file=sys.stderr)\n"
    )
    args = ["stylize", folder / "in/a.png", "-o", folder / "o.png", "-s", style, "--backend", "cpu"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "False\n")
    assert read(folder / "o.png").shape == (20, 30, 3)


def test_ctrl_c(folder: Path, style: str) -> None:
    """Interrupted in the middle of many photos: 130, finished files whole, nothing half-written."""
    many = folder / "many"
    many.mkdir()
    for i in range(150):
        Image.fromarray(photo(300, 400, seed=0)).save(many / f"{i:03}.png", compress_level=0)
    out = folder / "out"
    process = subprocess.Popen(
        command("stylize", many, "-o", out, "-s", style),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Programs that a script starts in the background begin with SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 50
    while time.monotonic() < deadline and not (out.is_dir() and len(os.listdir(out)) > 2):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=50)
    assert process.returncode == 130, errors
    assert errors.strip() == "interrupted"
    files = tree(out)
    assert 1 < len(files) < 150  # the third may have been a temporary name
    assert all(name.endswith(".png") and not name.startswith(".") for name in files)
    for name in files:
        assert read(out / name).shape == (300, 400, 3)


def test_traceback_only_with_debug(folder: Path) -> None:
    bad = folder / "bad.safetensors"
    bad.write_text("x" * 100)
    args = ["stylize", folder / "in/a.png", "-o", folder / "o.png", "-s", bad]
    plain = subprocess.run(command(*args), capture_output=True, text=True)
    assert plain.returncode == 1
    assert "Traceback" not in plain.stderr
    for words in (["--debug", *args], [*args, "--debug"]):
        debug = subprocess.run(command(*words), capture_output=True, text=True)
        assert debug.returncode == 1
        assert "Traceback" in debug.stderr
        assert "CheckpointError" in debug.stderr


def test_debug_shows_where_a_photo_failed_and_why_usage_is_wrong(folder: Path, style: str) -> None:
    bad = folder / "bad.png"
    bad.write_text("not an image")
    out = folder / "o.png"
    for args, kind in (
        ((bad, "-o", out, "-s", style), "ImageError"),
        ((folder / "in/a.png", "-o", out, "-s", "no such style"), "ValueError"),
    ):
        result = subprocess.run(
            command("stylize", *args, "--debug"), capture_output=True, text=True
        )
        assert result.returncode == 1
        assert "Traceback" in result.stderr
        assert kind in result.stderr


def test_folder_with_a_folder_that_looks_like_a_photo(folder: Path, style: str) -> None:
    (folder / "in/album.jpg").mkdir()
    assert run(folder / "in", "-o", folder / "out", "-s", style).exit_code == 0
    assert tree(folder / "out") == ["a.png", "b.jpg", "c.png"]


def test_damaged_exif_is_ignored_without_a_word(folder: Path, style: str) -> None:
    for suffix in ("jpg", "png"):
        for exif in (b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff"):
            source = folder / f"exif.{suffix}"
            Image.fromarray(photo(6, 8)).save(source, exif=exif)
            done = subprocess.run(
                command("stylize", source, "-o", folder / "o.png", "-s", style),
                capture_output=True,
                text=True,
            )
            assert (done.returncode, done.stderr) == (0, "")


def test_errors_of_the_system_are_named_without_their_number(folder: Path, style: str) -> None:
    assert one_line(PermissionError(13, "Permission denied", "a.png")) == "a.png: Permission denied"
    assert one_line(OSError(28, "No space left on device")) == "No space left on device"
    assert "a.png: 9x9 pixels; a smaller image" in one_line(MemoryError("a.png: 9x9 pixels"))
    fails(1, "'': no such file", "", "-o", folder / "o.png", "-s", style)
    fails(2, "cannot write a file without suffix", folder / "in/a.png", "-o", "", "-s", style)


def test_checkpoint_written_by_the_api_is_the_one_that_runs(folder: Path) -> None:
    path = save_tiny(folder, name="mine", seed=4)
    result = run(folder / "in/a.png", "-o", folder / "o.png", "-s", path, "--json")
    assert json.loads(result.stdout)["sha256"] == fastgen.load_style(path).meta["sha256"]
    expected = fastgen.Stylizer(tiny_checkpoint(seed=4))(photo(20, 30, seed=0))
    np.testing.assert_array_equal(read(folder / "o.png"), expected)
