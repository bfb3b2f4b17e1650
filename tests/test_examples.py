"""The example media and the two small programs beside them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.networks import random_checkpoint
from examples import contact_sheet, demo
from fastgen import list_styles, models


@pytest.fixture(scope="module")
def style(tmp_path_factory: pytest.TempPathFactory) -> Path:
    graph = models.create("compact_net", width=4, blocks=1)
    return random_checkpoint(graph, tmp_path_factory.mktemp("style") / "tiny.safetensors")


def test_every_file_names_its_licence(repo_root: Path) -> None:
    text = (repo_root / "examples" / "README.md").read_text("utf-8")
    files = [p.name for p in (repo_root / "examples").iterdir() if p.is_file()]
    assert [name for name in files if f"`{name}`" not in text] == ["README.md"]
    assert "CC0" in text
    assert "CC BY 4.0, credit: Intel" in text


def test_media_are_what_they_say(repo_root: Path, example_photo: Path) -> None:
    with Image.open(example_photo) as image:
        assert (image.size, image.mode, image.format) == ((600, 400), "RGB", "JPEG")
    clip = repo_root / "examples" / "walk.mp4"
    assert clip.read_bytes()[4:8] == b"ftyp"
    assert clip.stat().st_size < 1_000_000


def test_contact_sheet(style: Path, example_photo: Path, tmp_path: Path) -> None:
    Image.new("L", (50, 90), 128).save(tmp_path / "b.png")
    Image.open(example_photo).save(tmp_path / "a.jpg")
    (tmp_path / "notes.txt").write_text("not a photo", "utf-8")
    photos = contact_sheet.find_photos([tmp_path])
    assert [p.name for p in photos] == ["a.jpg", "b.png"]
    picture = contact_sheet.sheet(photos, [str(style)], 40, 32)
    gap, label = contact_sheet.GAP, contact_sheet.LABEL
    assert picture.size == (2 * 40 + gap, label + 2 * 32 + gap)
    pixels = np.asarray(picture)
    original = np.asarray(contact_sheet.load(photos[0], 40, 32))
    np.testing.assert_array_equal(pixels[label : label + 32, :40], original)
    assert (pixels[label : label + 32, 40 + gap :] != original).any()


def test_demo_names_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["demo", str(tmp_path / "none.jpg")])
    assert demo.main() == 1
    assert "none.jpg" in capsys.readouterr().err


@pytest.mark.skipif(not list_styles(), reason="no trained style is shipped yet")
def test_demo_paints_every_style(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = tmp_path / "photo.png"
    Image.new("RGB", (33, 21), (200, 120, 40)).save(photo)
    monkeypatch.setattr(sys, "argv", ["demo", str(photo), "-o", str(tmp_path / "out")])
    assert demo.main() == 0
    written = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert written == sorted(f"photo-{name}.png" for name in list_styles())
    printed = capsys.readouterr().out
    assert str(tmp_path / "out") in printed
    assert " ms" in printed
