"""Photo sets and crops."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_vgg import picture, save_photos

from fastgen.train.data import PhotoSet, batch_at, centre_square, random_crop, read_image, resized


def test_folder_and_tar_hold_the_same_photos(tmp_path: Path) -> None:
    folder = save_photos(tmp_path / "photos", 4)
    (folder / "notes.txt").write_text("not a photo")
    archive = tmp_path / "photos.tar"
    with tarfile.open(archive, "w") as tar:
        for name in ("photo03.png", "photo01.png", "photo00.png", "photo02.png", "notes.txt"):
            tar.add(folder / name, name)
    a, b = PhotoSet(folder), PhotoSet(archive)
    assert a.names == b.names == [f"photo{i:02d}.png" for i in range(4)]
    assert a.digest() == b.digest()
    for i in range(4):
        assert (np.asarray(a.load(i)) == np.asarray(b.load(i))).all()
    assert a.restrict([2, 0]).names == ["photo02.png", "photo00.png"]


def test_any_picture_becomes_upright_rgb(tmp_path: Path) -> None:
    grey = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8))
    grey.save(tmp_path / "grey.png")
    deep = Image.fromarray((np.arange(48).reshape(6, 8) * 1300).astype(np.uint16))
    deep.save(tmp_path / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees when shown
    picture(0, 40, 20).save(tmp_path / "turned.jpg", exif=exif)
    assert np.asarray(read_image(tmp_path / "grey.png"))[5, 7].tolist() == [47] * 3
    assert np.asarray(read_image(tmp_path / "deep.png"))[5, 7].tolist() == [238] * 3
    assert read_image(tmp_path / "turned.jpg").size == (20, 40)


def test_unreadable_photos_are_replaced_by_their_neighbour(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_photos(tmp_path / "photos", 2)
    (folder / "photo00.png").write_bytes(b"broken")
    photos = PhotoSet(folder)
    for _ in range(2):
        assert (np.asarray(photos.load_or_next(0)) == np.asarray(picture(1))).all()
    assert capsys.readouterr().err.count("warning: skipped") == 1
    (folder / "photo01.png").write_bytes(b"broken too")
    with pytest.raises(ValueError, match="none of its 2 images"):
        PhotoSet(folder).load_or_next(1)


def test_a_small_cache_gives_the_same_photos(tmp_path: Path) -> None:
    folder = save_photos(tmp_path / "photos", 3)
    tight = PhotoSet(folder, cache_bytes=60 * 48 * 4)
    for i in (0, 1, 2, 1):
        assert (np.asarray(tight.load(i)) == np.asarray(picture(i))).all()
    assert len(tight._cache) == 1


def test_sources_without_photos_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.tar").write_text("not an archive")
    cases = [("missing", "does not exist"), ("empty", "holds no image"), ("file.tar", "not an un")]
    for name, message in cases:
        with pytest.raises(ValueError, match=message):
            PhotoSet(tmp_path / name)
    for name, message in (("empty", "is a folder"), ("no.png", "not exist"), ("file.tar", "read")):
        with pytest.raises(ValueError, match=message):
            read_image(tmp_path / name)


def test_batches_depend_on_nothing_but_their_arguments(tmp_path: Path) -> None:
    photos = PhotoSet(save_photos(tmp_path / "photos", 5))
    first = batch_at(photos, 7, 32, 3, seed=1)
    assert first.shape == (3, 32, 32, 3)
    assert first.dtype == np.uint8
    assert (first == batch_at(photos, 7, 32, 3, seed=1)).all()
    assert (first != batch_at(photos, 8, 32, 3, seed=1)).any()
    assert (first != batch_at(photos, 7, 32, 3, seed=2)).any()


def test_processes_share_the_batch_of_a_single_one(tmp_path: Path) -> None:
    photos = PhotoSet(save_photos(tmp_path / "photos", 5))
    whole = batch_at(photos, 3, 32, 4, seed=0)
    parts = [batch_at(photos, 3, 32, 2, seed=0, rank=r, world=2) for r in range(2)]
    assert (whole == np.concatenate(parts)).all()


def test_an_epoch_shows_every_photo_once(tmp_path: Path) -> None:
    folder = tmp_path / "flat"
    folder.mkdir()
    for i in range(6):
        Image.new("RGB", (40, 40), (i * 40, 0, 0)).save(folder / f"{i}.png")
    photos = PhotoSet(folder)
    for epoch in range(2):
        seen = [batch_at(photos, epoch * 3 + i, 16, 2, seed=4)[:, 0, 0, 0] for i in range(3)]
        assert sorted(np.concatenate(seen) // 40) == list(range(6))


@pytest.mark.parametrize("size", [(60, 48), (20, 90), (16, 16), (9, 200)])
def test_crops_of_any_photo(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        crop = random_crop(picture(0, *size), 16, rng)
        assert crop.shape == (16, 16, 3)


def test_resizing_helpers() -> None:
    assert resized(picture(0, 60, 30), short=15).size == (30, 15)
    assert resized(picture(0, 60, 30), long=30).size == (30, 15)
    assert centre_square(picture(0, 60, 30), 20).shape == (20, 20, 3)
