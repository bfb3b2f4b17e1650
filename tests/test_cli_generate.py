"""``fastgen generate``: pictures, sheets, data sets, and what it refuses."""

from __future__ import annotations

import csv
import errno
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")
from tiny_saae import save_saae

from fastgen.cli import _dataset, app
from fastgen.generator import Generator


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_saae(tmp_path, channels=3)


def call(*args: object) -> int:
    with pytest.raises(SystemExit) as info:
        app.main(["generate", *map(str, args)])
    return int(info.value.code or 0)


def fails(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str]:
    code = call(*args)
    lines = capsys.readouterr().err.strip().splitlines()
    assert code
    assert len(lines) == 1, lines
    return code, lines[0]


def photo(path: Path, seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_text_and_style_to_a_folder(model: Path, tmp_path: Path) -> None:
    style, out = photo(tmp_path / "word.png"), tmp_path / "out"
    assert call("--text", "A7B", "--style", style, "--model", model, "-o", out) == 0
    assert sorted(os.listdir(out)) == ["000-A.png", "001-7.png", "002-B.png"]
    expected = np.round(Generator(model)("A7B", style) * 255)
    np.testing.assert_array_equal(read(out / "001-7.png"), expected[1])


def test_grid_to_a_sheet_and_to_a_folder(model: Path, tmp_path: Path) -> None:
    styles = [photo(tmp_path / f"{i}.png", i) for i in (0, 1)]
    args = ["--text", "A7B", "--style", styles[0], "--style", styles[1], "--mode", "grid"]
    args += ["--model", model, "-o"]
    assert call(*args, tmp_path / "sheet.png") == 0
    sheet = read(tmp_path / "sheet.png")
    assert sheet.shape == (2 * 12, 3 * 10, 3)
    expected = np.round(Generator(model)("A7B", styles, mode="grid") * 255)
    np.testing.assert_array_equal(sheet[12:, 10:20], expected[4])
    assert call(*args, tmp_path / "g") == 0
    assert "004-01-7.png" in os.listdir(tmp_path / "g")
    np.testing.assert_array_equal(read(tmp_path / "g" / "004-01-7.png"), expected[4])


def test_stored_styles_and_content_files(model: Path, tmp_path: Path) -> None:
    assert call("--text", "AB", "--model", model, "--seed", 3, "-o", tmp_path / "a.png") == 0
    expected = np.round(Generator(model)("AB", seed=3) * 255)
    np.testing.assert_array_equal(read(tmp_path / "a.png")[:, 10:], expected[1])
    content = photo(tmp_path / "c.png")
    assert call("--content", content, "--model", model, "-o", tmp_path / "o") == 0
    assert os.listdir(tmp_path / "o") == ["000-c.png"]


def test_unfamiliar_characters_are_said(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("--text", "A9", "--model", model, "-o", tmp_path / "o") == 0
    assert "trained with AB7; 9 may come out wrong" in capsys.readouterr().err
    assert call("--text", "/", "--model", model, "-o", tmp_path / "o") == 0
    assert "000-u002f.png" in os.listdir(tmp_path / "o")


def test_usage_errors(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    style, out = photo(tmp_path / "s.png"), ["-o", tmp_path / "out"]
    base = ["--model", model, *out]
    for args, code, message in (
        (base, 2, "--text, --content or --dataset"),
        ([*base, "--text", "A", "--content", style], 2, "exclude"),
        ([*base, "--text", "A", "--resume"], 2, "--resume"),
        ([*base, "--dataset", 3, "--content", style], 2, "--content"),
        ([*base, "--text", "AB", "--style", style, "--style", style, "--style", style], 2, "pairs"),
        ([*out, "--text", "A", "--model", "nothing"], 2, "unknown model"),
        ([*base, "--text", ""], 1, "at least one character"),
        ([*base, "--text", "A B"], 1, "white space"),
        ([*base, "--text", "A\U0010ffff"], 1, "glyph for"),
        ([*base, "--text", "A", "--style", tmp_path / "none.png"], 1, "none.png"),
        ([*base, "--text", "A", "--font", tmp_path / "none.ttf"], 2, "font"),
        (["--model", model, "--text", "A", "-o", style.with_suffix(".jpg")], 2, "is a file"),
    ):
        if str(args[-1]).endswith(".jpg"):
            style.with_suffix(".jpg").write_bytes(b"")
        found, line = fails(capsys, *args)
        assert message in line
        assert found == code, line


# ---------------------------------------------------------------------------- data sets


def pictures(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.png")}


def test_a_folder_ready_for_training(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastgen.train.saae_data import load

    monkeypatch.setattr(_dataset, "SHARD", 10)
    out = tmp_path / "set"
    args = ["--dataset", 24, "--model", model, "-o", out, "--seed", 5]
    assert call(*args) == 0
    with open(out / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24
    counts = [sum(r["label"] == c for r in rows) for c in "AB7"]
    assert counts == [8, 8, 8]
    assert sorted(p.name for p in out.iterdir() if p.is_dir()) == ["00000", "00001", "00002"]
    assert len({read(out / r["file"]).tobytes() for r in rows}) == 24  # blends of styles differ
    # Each picture is what its label and a blend of stored styles give: it reads as training data.
    data = load("folder", out, size=(12, 10))
    assert data.classes == ("7", "A", "B")
    again = tmp_path / "again"
    assert call(*args[:-3], again, "--seed", 5) == 0
    assert pictures(again) == pictures(out)
    card = json.loads((out / "dataset.json").read_text())
    assert card["labels"] == ["A", "B", "7"]


def test_without_blending_pictures_are_of_the_given_styles(model: Path, tmp_path: Path) -> None:
    styles = [photo(tmp_path / f"{i}.png", i) for i in (0, 1)]
    args = ["--dataset", 12, "--text", "AB", "--style", styles[0], "--style", styles[1]]
    assert call(*args, "--no-mix", "--model", model, "-o", tmp_path / "set") == 0
    grid = np.round(Generator(model)("AB", styles, mode="grid") * 255).astype(np.uint8)
    allowed = {image.tobytes() for image in grid}
    found = {read(p).tobytes() for p in (tmp_path / "set").rglob("*.png")}
    assert found <= allowed
    assert len(found) > 1


def test_tar_shards(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dataset, "SHARD", 10)
    assert call("--dataset", 15, "--model", model, "-o", tmp_path / "x" / "set.tar") == 0
    names = sorted(os.listdir(tmp_path / "x"))
    assert names == ["set-00000.tar", "set-00001.tar", "set.json"]
    with tarfile.open(tmp_path / "x" / "set-00001.tar") as archive:
        members = archive.getnames()
        assert members[:2] == ["000010.png", "000010.txt"]
        assert len(members) == 10
        label = archive.extractfile("000010.txt").read().decode()
    assert label in "AB7"


@pytest.mark.parametrize("name", ["set", "set.tar"])
def test_a_full_disk_leaves_no_part_and_can_be_resumed(
    name: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(_dataset, "SHARD", 10)
    whole, out = tmp_path / "a" / name, tmp_path / "b" / name
    assert call("--dataset", 24, "--model", model, "-o", whole) == 0
    real, calls = _dataset._png, []

    def full(pixels: np.ndarray) -> bytes:
        calls.append(1)
        if len(calls) == 14:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(pixels)

    monkeypatch.setattr(_dataset, "_png", full)
    capsys.readouterr()
    code, line = fails(capsys, "--dataset", 24, "--model", model, "-o", out)
    assert code == 1
    assert "No space left" in line
    left = sorted(p.name for p in (tmp_path / "b").rglob("*") if p.suffix != ".png")
    assert not any("part" in n for n in left), left
    assert {"00000", "set-00000.tar"} & set(left)
    assert not {"00001", "set-00001.tar"} & set(left)
    monkeypatch.setattr(_dataset, "_png", real)
    assert "--resume" in fails(capsys, "--dataset", 24, "--model", model, "-o", out)[1]
    wrong = ["--dataset", 30, "--model", model, "-o", out, "--resume"]
    assert "other options" in fails(capsys, *wrong)[1]
    assert call("--dataset", 24, "--model", model, "-o", out, "--resume") == 0
    if name == "set":
        assert pictures(out) == pictures(whole)
        assert (out / "labels.csv").read_bytes() == (whole / "labels.csv").read_bytes()
    else:
        for n in range(3):
            with (
                tarfile.open(tmp_path / "a" / f"set-{n:05d}.tar") as first,
                tarfile.open(tmp_path / "b" / f"set-{n:05d}.tar") as second,
            ):
                for member in first.getnames():
                    data = [a.extractfile(member).read() for a in (first, second)]
                    assert data[0] == data[1]


def test_a_foreign_folder_is_not_touched(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("x")
    args = ["--dataset", 5, "--model", model, "-o", tmp_path / "mine"]
    assert "not empty" in fails(capsys, *args)[1]
    assert os.listdir(tmp_path / "mine") == ["file"]
