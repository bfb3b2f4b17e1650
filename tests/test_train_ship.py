"""From a trained style to a shipped one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from fastgen.checkpoint import load_checkpoint, save_checkpoint

pytest.importorskip("torch")

from tiny import tiny_checkpoint
from tiny_vgg import save_photos

from fastgen.train.ship import main


def test_ranges_are_measured_where_training_did_not(tmp_path: Path) -> None:
    ckpt = tiny_checkpoint()
    training = {"steps": 1, "seconds": 2.0}
    ckpt.meta["provenance"] = {"painting": {}, "photos": {}, "loss_network": {}}
    ckpt.meta["provenance"] |= {"objective": {}, "training": training}
    save_checkpoint(tmp_path / "trained.safetensors", ckpt)
    (tmp_path / "out").mkdir()
    text = {"--name": "wave.small", "--title": "The Wave", "--artist": "Nobody (1849)"}
    text |= {"--year": "1831", "--photos-note": "noise", "--vgg-note": "noise"}
    text |= {"--ranges": str(save_photos(tmp_path / "photos")), "-o": str(tmp_path / "out")}
    arguments = [str(tmp_path / "trained.safetensors"), *(x for pair in text.items() for x in pair)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    shipped = load_checkpoint(tmp_path / "out" / "wave.small.safetensors")
    convs = {n.name for n in shipped.graph.nodes if n.op == "conv"}
    assert set(shipped.meta["activation_ranges"]) == convs
    card = json.loads((tmp_path / "out" / "wave.small.json").read_text())
    assert card["painting"]["title"] == "The Wave"
    assert card["sha256"] == shipped.meta["sha256"]
