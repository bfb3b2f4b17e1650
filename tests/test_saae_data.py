"""Data of the SAAE: what is read, split and drawn, and files that must be refused."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
from PIL import Image
from tiny_saae import save_folder

from fastgen.train.saae_batches import batch_at, parse_size
from fastgen.train.saae_data import hold_out, load, per_class


def idx(array: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4) for n in array.shape)
    return gzip.compress(head + array.tobytes())


def tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def jpeg(seed: int, width: int, height: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def test_mnist_files_and_parts(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for stem, count in (("train", 60_000), ("t10k", 30)):
        images = np.zeros((count, 28, 28), np.uint8)
        images[:, 0, 0] = np.arange(count) % 251
        (tmp_path / f"{stem}-images-idx3-ubyte.gz").write_bytes(idx(images))
        labels = rng.integers(0, 10, count, np.uint8)
        (tmp_path / f"{stem}-labels-idx1-ubyte.gz").write_bytes(idx(labels))
    train = load("mnist", tmp_path)
    held = load("mnist", tmp_path, "validation")
    assert (len(train), len(held), len(load("mnist", tmp_path, "test"))) == (50_000, 10_000, 30)
    # The split of the Parzen protocol: the last 10,000 training images.
    assert held.images[0, 0, 0, 0] == 50_000 % 251
    assert train.classes == tuple("0123456789")
    assert train.contents.shape == (10, 1, 28, 28)
    np.testing.assert_array_equal(train.styles, train.images)
    name = tmp_path / "t10k-images-idx3-ubyte.gz"
    name.write_bytes(gzip.compress(b"\0\0\x08\x03" + bytes(11)))
    with pytest.raises(ValueError, match="damaged"):
        load("mnist", tmp_path, "test")
    name.write_bytes(b"none")
    with pytest.raises(ValueError, match="cannot be read"):
        load("mnist", tmp_path, "test")


def test_words_are_cut_into_characters_of_36_classes(tmp_path: Path) -> None:
    words = [
        {
            "file": f"train/{i}.png",
            "text": "aB1",
            "boxes": [[2, 0, 10, 20], [14, 0, 9, 20], [25, 0, 2, 9]],
        }
        for i in range(16)
    ]
    files = {w["file"]: jpeg(i, 40, 20) for i, w in enumerate(words)}
    source = tar(tmp_path / "w.tar", files | {"labels.json": json.dumps(words).encode()})
    data = load("iiit5k", source)
    # Words 0 and 8 are for validation; the third box is too narrow for a character.
    assert len(data) == 14 * 2
    assert len(data.classes) == 36
    assert [data.classes[i] for i in data.labels[:2]] == ["A", "B"]
    assert [data.alphabet[i] for i in data.content_of[:2]] == ["a", "B"]
    assert data.styles.shape == (14, 3, 32, 96)
    assert data.style_of[:4].tolist() == [0, 0, 1, 1]
    with Image.open(io.BytesIO(files["train/1.png"])) as image:
        cut = image.crop((2, 0, 12, 20)).resize(
            (32, 32), Image.Resampling.BICUBIC, reducing_gap=2.0
        )
    np.testing.assert_array_equal(data.images[0], np.asarray(cut).transpose(2, 0, 1))
    assert len(load("iiit5k", source, "validation")) == 2 * 2


def test_faces_carry_their_class_in_the_style(tmp_path: Path) -> None:
    lines = ["file,age,gender(0=male,1=female)"]
    lines += [f"{i}.png,{20 + 15 * (i % 4)},{i % 2}" for i in range(40)]
    files = {f"{i}.png": jpeg(i, 20, 20) for i in range(40)}
    source = tar(tmp_path / "f.tar", files | {"labels.csv": "\n".join(lines).encode()})
    data = load("faces", source)
    assert not data.glyphs
    assert data.classes == ("male", "female")
    assert load("faces", source, attribute="age").classes == ("18-29", "30-44", "45-59", "60+")
    batch = batch_at(data, 0, 8, 4, 0, "cpu")
    np.testing.assert_array_equal(batch.other_labels, batch.labels)
    with pytest.raises(ValueError, match="hair"):
        load("faces", source, attribute="hair")


def test_parts_are_disjoint_and_fixed(tmp_path: Path) -> None:
    root = save_folder(tmp_path / "d", each=20)
    parts = [load("folder", root, part, size=(16, 16)) for part in ("train", "validation", "test")]
    assert [len(p) for p in parts] == [28, 4, 8]
    seen = [image.tobytes() for part in parts for image in part.images]
    assert len(set(seen)) == 40
    again = load("folder", root, "test", size=(16, 16))
    np.testing.assert_array_equal(again.images, parts[2].images)


def test_fewer_images_are_a_subset_and_keep_their_styles(tmp_path: Path) -> None:
    data = load("folder", save_folder(tmp_path / "d", each=12, styles=True), size=(16, 16))
    few, more = per_class(data, 3, seed=5), per_class(data, 5, seed=5)
    assert np.bincount(few.labels).tolist() == [3, 3]
    assert {i.tobytes() for i in few.images} < {i.tobytes() for i in more.images}
    assert len(few.styles) == 6  # only their own
    for image, style in zip(few.images, few.styles[few.style_of], strict=True):
        # The style of a row is the same picture, twice side by side, made smaller.
        corners = image[:, 1, 1].astype(int), style[:, 1, 1].astype(int)
        assert np.abs(corners[0] - corners[1]).max() <= 2
    assert {i.tobytes() for i in per_class(data, 3, seed=6).images} != {
        i.tobytes() for i in few.images
    }
    with pytest.raises(ValueError, match="at least 2"):
        per_class(data, 1)
    train, held = hold_out(per_class(data, 2), 0.5)
    assert len(train) == len(held) == 4  # nothing can be spared


def test_a_held_out_style_is_not_seen_in_training(tmp_path: Path) -> None:
    """As of plates: each style has several images, of several classes."""
    data = load("folder", save_folder(tmp_path / "d", each=12), size=(16, 16))
    style_of = np.random.default_rng(0).permutation(len(data)) // 3
    shared = replace(data, styles=data.styles[: style_of.max() + 1], style_of=style_of)
    shared.styles[:, 0, 0, 0] = np.arange(len(shared.styles))  # told from each other
    train, held = hold_out(shared, 0.3)
    assert len(train) + len(held) == len(data)
    assert 3 <= len(held) <= 0.4 * len(data)
    seen, kept = ({s.tobytes() for s in part.styles} for part in (train, held))
    assert not seen & kept
    assert np.bincount(train.labels, minlength=len(data.classes)).min() >= 2


def test_batches_visit_every_image_once_an_epoch(tmp_path: Path) -> None:
    data = load("folder", save_folder(tmp_path / "d", each=12), size=(16, 16))
    half = len(data) // 2
    epoch = [batch_at(data, step, half, 4, 7, "cpu") for step in range(2)]
    seen = {i.numpy().tobytes() for b in epoch for i in b.images}
    assert len(seen) == 2 * half
    # Two processes share one batch of twice the size; steps are pure functions.
    both = [batch_at(data, 0, half // 2, 4, 7, "cpu", rank, 2) for rank in (0, 1)]
    joined = np.concatenate([b.images.numpy() for b in both])
    np.testing.assert_array_equal(joined, epoch[0].images.numpy()[: len(joined)])
    first = epoch[0]
    glyphs = data.contents.astype(np.float32) / 255
    np.testing.assert_array_equal(first.contents.numpy(), glyphs[first.labels.numpy()])
    np.testing.assert_array_equal(first.others.numpy(), glyphs[first.other_labels.numpy()])
    assert (first.other_labels != first.labels).any()


def test_folder_by_label(tmp_path: Path) -> None:
    for label in ("7", "Z"):
        (tmp_path / label).mkdir()
        for i in range(4):
            (tmp_path / label / f"{i}.png").write_bytes(jpeg(i + ord(label), 9, 11))
    data = load("folder", tmp_path, size=(16, 8), grey=True)
    assert data.images.shape[1:] == (1, 16, 8)
    assert data.classes == ("7", "Z")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="label 'empty' has no image"):
        load("folder", tmp_path)


def test_labels_without_images_and_lonely_classes(tmp_path: Path) -> None:
    root = save_folder(tmp_path / "d")
    table = root / "labels.csv"
    text = table.read_text()
    table.write_text(text + "gone.png,C\n")
    with pytest.raises(ValueError, match=r"line 14: label 'C' has no image: .*gone\.png"):
        load("folder", root)
    (root / "gone.png").write_bytes(jpeg(3, 9, 9))
    with pytest.raises(ValueError, match="class 'C' has one image"):
        load("folder", root)
    table.write_text("name,class\n")
    with pytest.raises(ValueError, match="file,label"):
        load("folder", root)
    table.write_text("file,label\nA0.png,\n")
    with pytest.raises(ValueError, match="line 2: the label is empty"):
        load("folder", root)
    table.write_text("file,label\n")
    with pytest.raises(ValueError, match="neither"):
        load("folder", root)


def test_unreadable_files_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = save_folder(tmp_path / "d", each=60)
    (root / "A3.png").write_bytes(b"no picture")
    parts = [load("folder", root, part) for part in ("train", "validation", "test")]
    assert sum(map(len, parts)) == 119
    assert parts[0].skipped == 1
    assert "skipped 1 unreadable" in capsys.readouterr().err
    (root / "A4.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="2 of 120 files cannot be read, more than 1%"):
        load("folder", root)


def test_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="unknown"):
        load("cifar", tmp_path)
    with pytest.raises(ValueError, match="part"):
        load("mnist", tmp_path, "all")
    with pytest.raises(ValueError, match="does not exist"):
        load("mnist", tmp_path / "none")
    with pytest.raises(ValueError, match="--source FOLDER"):
        load("folder")
    monkeypatch.delenv("FASTGEN_DATA", raising=False)
    with pytest.raises(ValueError, match="FASTGEN_DATA"):
        load("mnist")
    (tmp_path / "x.tar").write_bytes(b"none")
    for name in ("iiit5k", "plates", "faces"):
        with pytest.raises(ValueError, match=r"not an uncompressed \.tar"):
            load(name, tmp_path / "x.tar")
    empty = tar(tmp_path / "y.tar", {"a": b""})
    for name in ("iiit5k", "plates", "faces"):
        with pytest.raises(ValueError, match=r"labels\."):
            load(name, empty)


@pytest.mark.parametrize("text", ["32", "32x", "ax8", "4x8", "8x1000", ""])
def test_sizes(text: str) -> None:
    assert parse_size("--size", "16x24") == (24, 16)
    with pytest.raises(ValueError, match="--size"):
        parse_size("--size", text)


@pytest.mark.skipif("FASTGEN_DATA" not in os.environ, reason="FASTGEN_DATA is not set")
def test_real_data() -> None:
    digits = load("mnist", part="test")
    assert np.bincount(digits.labels).tolist() == [
        980,
        1135,
        1032,
        1010,
        982,
        892,
        958,
        1028,
        974,
        1009,
    ]
    characters = load("iiit5k")
    assert len(characters) > 8000
    assert characters.images.shape[1:] == (3, 32, 32)


def test_plates_are_cut_into_seven(tmp_path: Path) -> None:
    rows, files = [["file", "label"]], {}
    for i in range(12):
        rows.append([f"{i}.png", "8A12345"])
        files[f"{i}.png"] = jpeg(i, 94, 24)
    table = io.StringIO()
    csv.writer(table).writerows(rows)
    source = tar(tmp_path / "p.tar", files | {"labels.csv": table.getvalue().encode()})
    data = load("plates", source)
    assert data.images.shape[1:] == (3, 24, 16)
    assert data.styles.shape[1:] == (3, 24, 96)
    assert data.classes == tuple("12345 8A".replace(" ", ""))
