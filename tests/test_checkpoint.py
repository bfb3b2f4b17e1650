"""Checkpoints: round trip, atomic writing, and files that must be refused without a crash."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save
from tiny import tiny_model

from fastgen import models
from fastgen.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from fastgen.errors import CheckpointError

META = {
    "kind": "style",
    "style": "test",
    "input_range": [0, 255],
    "output_range": [0, 255],
    "channel_order": "rgb",
    "licence": "CC0-1.0",
    "provenance": {"steps": 3},
}


def make(name: str = "compact_net") -> Checkpoint:
    graph, _ = tiny_model(name)
    rng = np.random.default_rng(0)
    weights = {
        key: rng.normal(size=shape).astype(np.float32)
        for key, shape in graph.weight_shapes().items()
    }
    return Checkpoint(graph, weights, dict(META))


@pytest.mark.parametrize("name", models.list_models())
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_round_trip(name: str, dtype: str, tmp_path: Path) -> None:
    ckpt = make(name)
    save_checkpoint(tmp_path / "a.safetensors", ckpt, dtype)
    back = load_checkpoint(tmp_path / "a.safetensors")
    assert back.graph == ckpt.graph
    assert back.meta == ckpt.meta
    assert len(back.meta["sha256"]) == 64
    for key, value in ckpt.weights.items():
        np.testing.assert_array_equal(back.weights[key], value.astype(dtype).astype(np.float32))
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_the_sum_depends_on_the_content_only(tmp_path: Path) -> None:
    first, second, other = make(), make(), make()
    other.weights["out.bias"][0] += 1
    for name, ckpt in (("a", first), ("b", second), ("c", other)):
        save_checkpoint(tmp_path / name, ckpt)
    assert first.meta["sha256"] == second.meta["sha256"] != other.meta["sha256"]


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, make())
    before = path.read_bytes()
    bad = make()
    bad.weights["down1.weight"][0] = 1e9  # infinite as float16
    with pytest.raises(CheckpointError, match=r"down1\.weight"):
        save_checkpoint(path, bad)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.safetensors"]


def raw(tmp_path: Path, edit=lambda tensors, metadata: None) -> Path:
    """A checkpoint written by hand after ``edit`` changed its parts."""
    ckpt = make()
    save_checkpoint(tmp_path / "good.safetensors", ckpt, "float32")
    tensors = dict(ckpt.weights)
    metadata = {"format": "1", "graph": ckpt.graph.to_json(), "meta": json.dumps(ckpt.meta)}
    edit(tensors, metadata)
    path = tmp_path / "edited.safetensors"
    path.write_bytes(save(tensors, metadata=metadata))
    return path


def test_the_hand_written_file_is_accepted_when_nothing_is_changed(tmp_path: Path) -> None:
    load_checkpoint(raw(tmp_path))


def _nan(tensors, metadata):
    tensors["down1.weight"][0, 0, 0, 0] = np.nan


def _changed(tensors, metadata):
    tensors["down1.weight"][0, 0, 0, 0] += 1


def _reshaped(tensors, metadata):
    tensors["down1.weight"] = tensors["down1.weight"].reshape(-1)


def _missing(tensors, metadata):
    del tensors["out.bias"]


def _unknown(tensors, metadata):
    tensors["more.bias"] = np.zeros(3, np.float32)


def _integers(tensors, metadata):
    tensors["out.bias"] = np.zeros(3, np.int64)


def _newer(tensors, metadata):
    metadata["format"] = "2"


def _foreign(tensors, metadata):
    metadata.clear()


def _cyclic(tensors, metadata):
    metadata["graph"] = metadata["graph"].replace('"inputs":["image"]', '"inputs":["out"]')


def _huge(tensors, metadata):
    metadata["graph"] = metadata["graph"].replace('"out_channels":3', '"out_channels":1000000')


def _no_meta(tensors, metadata):
    del metadata["meta"]


def _bad_range(tensors, metadata):
    metadata["meta"] = json.dumps(META | {"input_range": [255, 0]})


def _nan_range(tensors, metadata):
    metadata["meta"] = json.dumps(META | {"input_range": [0, float("nan")]})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_nan, "sha256|NaN"),
        (_changed, "sha256"),
        (_reshaped, "shape"),
        (_missing, "missing"),
        (_unknown, "unknown"),
        (_integers, "I64"),
        (_newer, "upgrade"),
        (_foreign, "without a fastgen graph"),
        (_cyclic, "cycle"),
        (_huge, "shape"),
        (_no_meta, "metadata"),
        (_bad_range, "input_range"),
        (_nan_range, "input_range"),
    ],
)
def test_edited_files_are_refused(tmp_path: Path, edit, message: str) -> None:
    path = raw(tmp_path, edit)
    with pytest.raises(CheckpointError, match=message) as info:
        load_checkpoint(path)
    assert "\n" not in str(info.value)
    assert str(path) in str(info.value)


def test_nan_weights_with_a_right_sum_are_refused(tmp_path: Path) -> None:
    from fastgen import checkpoint as module

    ckpt = make()

    def edit(tensors, metadata):
        tensors["out.bias"][0] = np.nan
        meta = dict(META)
        meta["sha256"] = module._digest(ckpt.graph, {k: tensors[k] for k in ckpt.weights})
        metadata["meta"] = json.dumps(meta)

    with pytest.raises(CheckpointError, match=r"out\.bias.*NaN"):
        load_checkpoint(raw(tmp_path, edit))


def test_truncation_anywhere_is_refused(tmp_path: Path) -> None:
    data = raw(tmp_path).read_bytes()
    path = tmp_path / "cut.safetensors"
    for size in [0, 1, 7, 8, 9, 100, 1000, len(data) // 2, len(data) - 1]:
        path.write_bytes(data[:size])
        with pytest.raises(CheckpointError):
            load_checkpoint(path)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04\x95not a pickle either",
        b"PK\x03\x04" + b"\0" * 100,
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 60)
        + b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}',
        b"{" * 64,
    ],
)
def test_foreign_bytes_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "foreign.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        load_checkpoint(path)


def test_flipped_bytes_are_refused_or_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "flipped.safetensors"
    save_checkpoint(path, make(), "float32")
    good = load_checkpoint(path)
    data = path.read_bytes()
    # The order of the metadata in the file is random, so the header is tried everywhere.
    header = 8 + int.from_bytes(data[:8], "little")
    rng = np.random.default_rng(1)
    positions = [*range(8, header, 7), *rng.integers(0, len(data), 200)]
    refused = 0
    for position in positions:
        changed = bytearray(data)
        changed[position] ^= int(rng.integers(1, 256))
        path.write_bytes(changed)
        try:
            back = load_checkpoint(path)
        except CheckpointError:
            refused += 1
            continue
        # White space after the header and another spelling of the same JSON are harmless.
        assert (back.graph, back.meta) == (good.graph, good.meta), position
        for key, value in good.weights.items():
            np.testing.assert_array_equal(back.weights[key], value, err_msg=str(position))
    assert refused > 0.99 * len(positions)


@pytest.mark.parametrize("key", ["licence", "input_range"])
def test_changed_metadata_is_refused(key: str, tmp_path: Path) -> None:
    def edit(tensors, metadata):
        saved = load_checkpoint(tmp_path / "good.safetensors").meta["sha256"]
        good = json.dumps(META | {"sha256": saved})
        metadata["meta"] = good
        metadata["meta_sha256"] = hashlib.sha256(good.encode()).hexdigest()

    load_checkpoint(raw(tmp_path, edit))

    def damage(tensors, metadata):
        edit(tensors, metadata)
        metadata["meta"] = metadata["meta"].replace(json.dumps(META[key]), json.dumps([0, 7]))

    with pytest.raises(CheckpointError, match="metadata does not match its sha256"):
        load_checkpoint(raw(tmp_path, damage))


def test_unknown_metadata_is_refused(tmp_path: Path) -> None:
    def edit(tensors, metadata):
        metadata["meta_sha255"] = "0"

    with pytest.raises(CheckpointError, match="unknown metadata entry 'meta_sha255'"):
        load_checkpoint(raw(tmp_path, edit))


def test_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "gone.safetensors")
    with pytest.raises(IsADirectoryError):
        load_checkpoint(tmp_path)
