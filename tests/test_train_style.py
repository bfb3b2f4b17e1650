"""The style recipe: training, provenance, resuming, Ctrl-C, two processes, bad input."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tiny_vgg import picture, save_photos, save_tiny_vgg

from fastgen.backends.torch import GraphModule
from fastgen.checkpoint import load_checkpoint
from fastgen.train import style as recipe
from fastgen.train.loop import Processes
from fastgen.train.options import ObjectiveOptions, click_params
from fastgen.train.style import StyleOptions, learning_rate, stage_at, stages, train_style


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def options(tmp_path: Path) -> StyleOptions:
    """A run of a few small steps."""
    painting = tmp_path / "painting.png"
    picture(99).save(painting)
    return StyleOptions(
        style=painting,
        content=save_photos(tmp_path / "photos"),
        output=tmp_path / "tiny.safetensors",
        vgg=save_tiny_vgg(tmp_path / "vgg"),
        width=2,
        style_size=48,
        size=32,
        steps=6,
        batch=2,
        finish_size=48,
        finish_steps=2,
        precision="fp32",
        device="cpu",
        preview_every=0,
        save_every=3,
        log_every=2,
        quiet=True,
    )


def _state(run_dir: Path) -> dict[str, np.ndarray]:
    (folder,) = (run_dir / "state").iterdir()
    return load_file(folder / "model.safetensors")


def test_a_run_writes_a_style_with_its_provenance(options: StyleOptions) -> None:
    result = train_style(dataclasses.replace(options, title="Noise", artist="Nobody", year="2016"))
    assert result.finished
    assert result.step == 8
    checkpoint = load_checkpoint(options.output)
    assert options.output.stat().st_size < 100_000
    meta, provenance = checkpoint.meta, checkpoint.meta["provenance"]
    assert (meta["kind"], meta["style"], meta["input_range"]) == ("style", "tiny", [0, 255])
    assert provenance["painting"]["artist"] == "Nobody"
    assert provenance["photos"]["count"] == 6
    assert provenance["loss_network"]["file"] == "tiny_vgg.safetensors"
    assert len(provenance["loss_network"]["sha256"]) == 64
    assert provenance["training"]["steps"] == 8
    assert provenance["training"]["stages"][1] == {"size": 48, "batch": 1, "steps": 2}
    assert set(provenance["objective"]["style"]) == set(options.style_layers)
    assert provenance["training"]["losses"]["total"] == pytest.approx(result.losses["total"], 1e-3)
    ranges = meta["activation_ranges"]
    assert set(ranges) == {n.name for n in checkpoint.graph.nodes if n.op == "conv"}
    low, high = ranges["down0"]
    assert 0 <= low < high <= 255
    assert ranges["out"][0] == 0 < ranges["out"][1]  # behind a ReLU
    # fp16 of exactly the weights that were trained
    for key, value in _state(result.run_dir).items():
        stored = value.astype(np.float16).astype(np.float32)
        assert (checkpoint.weights[key] == stored).all()


def _log(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]


def test_a_run_leaves_pictures_and_a_log(options: StyleOptions) -> None:
    result = train_style(dataclasses.replace(options, preview_every=4))
    names = {p.name for p in result.run_dir.iterdir()}
    expected = {"preview-000004.png", "preview-000008.png", "preview-final.png", "log.jsonl"}
    assert expected | {"state"} == names
    lines = _log(result.run_dir)
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    assert all(set(line) == {"step", "lr", "total", "content", "style", "tv"} for line in lines)


def test_training_lowers_the_loss(options: StyleOptions) -> None:
    run = dataclasses.replace(options, steps=60, finish_steps=0, width=4, lr=3e-3, log_every=10)
    lines = _log(train_style(run).run_dir)
    assert lines[-1]["total"] < 0.8 * lines[0]["total"]


@pytest.mark.parametrize(
    "change",
    [
        {"model": "compact_net", "width": 4},
        {"norm": "batch"},
        {"precision": "bf16"},
        {"model": "johnson_net", "size": 48},
        {"finish_steps": 0, "finish_size": 50},
    ],
)
def test_other_models_and_precisions(options: StyleOptions, change: dict[str, Any]) -> None:
    run = dataclasses.replace(options, **change, steps=2, batch=2)
    result = train_style(run)
    assert result.finished
    checkpoint = load_checkpoint(run.output)
    assert checkpoint.graph.name == run.model
    image = torch.rand(1, 3, 48, 48) * 255
    module = GraphModule(checkpoint.graph).load_weights(checkpoint.weights).eval()
    assert torch.isfinite(module(image)).all()


def _interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    calls, original = 0, recipe._step

    def wrapped(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == step:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*args)

    monkeypatch.setattr(recipe, "_step", wrapped)


@pytest.mark.parametrize(("at", "optimizer"), [(4, "adam"), (7, "adam"), (5, "muon")])
def test_a_resumed_run_equals_an_uninterrupted_one(
    options: StyleOptions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at: int,
    optimizer: str,
) -> None:
    options = dataclasses.replace(options, optimizer=optimizer)
    whole = train_style(dataclasses.replace(options, output=tmp_path / "whole.safetensors"))
    with monkeypatch.context() as patch:
        _interrupt_at(patch, at)
        stopped = train_style(options)
    assert (stopped.finished, stopped.step) == (False, at)
    assert not options.output.exists()
    assert [p.name for p in (stopped.run_dir / "state").iterdir()] == [f"step-{at:06d}"]
    resumed = train_style(dataclasses.replace(options, resume=True))
    assert resumed.finished
    a, b = _state(whole.run_dir), _state(resumed.run_dir)
    assert all((a[key] == b[key]).all() for key in a)
    assert resumed.losses == pytest.approx(whole.losses)
    again = train_style(dataclasses.replace(options, resume=True))  # nothing left to do
    assert again.losses == resumed.losses


def test_states_hold_no_pickle_and_a_broken_one_is_refused(options: StyleOptions) -> None:
    run_dir = train_style(options).run_dir
    (folder,) = (run_dir / "state").iterdir()
    names = sorted(p.name for p in folder.iterdir())
    assert names == ["model.safetensors", "optimizer.safetensors", "state.json"]
    assert json.loads((folder / "state.json").read_text())["options"]["width"] == 2
    with pytest.raises(ValueError, match="add --resume"):
        train_style(options)
    again = dataclasses.replace(options, resume=True)
    with pytest.raises(ValueError, match=r"cannot resume with lr=0.5"):
        train_style(dataclasses.replace(again, lr=0.5))
    (folder / "optimizer.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match="cannot be resumed"):
        train_style(again)
    (folder / "state.json").unlink()  # an incomplete folder is no state
    with pytest.raises(ValueError, match="no saved state"):
        train_style(again)


def test_init_continues_from_another_style(options: StyleOptions, tmp_path: Path) -> None:
    train_style(options)
    second = dataclasses.replace(
        options, init=options.output, output=tmp_path / "second.safetensors", lr=1e-9
    )
    train_style(second)
    first, later = load_checkpoint(options.output), load_checkpoint(second.output)
    for key, value in first.weights.items():
        np.testing.assert_allclose(later.weights[key], value, atol=1e-3)
    with pytest.raises(ValueError, match="another shape"):
        train_style(dataclasses.replace(second, width=3, output=tmp_path / "third.safetensors"))


def test_seeds_decide_the_result(options: StyleOptions, tmp_path: Path) -> None:
    runs = [
        train_style(dataclasses.replace(options, seed=seed, output=tmp_path / f"{n}.safetensors"))
        for n, seed in enumerate((0, 0, 1))
    ]
    a, b, c = (_state(run.run_dir) for run in runs)
    assert all((a[key] == b[key]).all() for key in a)
    assert (a["out.weight"] != c["out.weight"]).any()


def test_a_loss_that_is_not_finite_stops_the_run(options: StyleOptions) -> None:
    with pytest.raises(ValueError, match="not finite at step"):
        train_style(dataclasses.replace(options, lr=1e30, steps=20, decay=0))
    assert not options.output.exists()


BAD = [
    ({"output": Path("x.pth")}, "must be a file name ending in .safetensors"),
    ({"output": Path("missing/x.safetensors")}, "does not exist; create it"),
    ({"size": 34}, "multiple of 4"),
    ({"size": 8}, "at least 16"),
    ({"batch": 0}, "at least 1"),
    ({"steps": 0, "finish_steps": 0}, "nothing to train"),
    ({"style": Path("no.png")}, r"no\.png does not exist"),
    ({"content": Path("no")}, "no does not exist"),
    ({"model": "unet"}, "unet"),
    ({"width": 0}, "width"),
    ({"norm": "layer"}, "norm"),
    ({"device": "tpu"}, "use auto, cpu, cuda"),
    ({"device": "cuda:99"}, "device"),
    ({"style_layers": ()}, "at least one content layer"),
    ({"style_size": 4}, "style size 4"),
    ({"style_layers": ("conv1",)}, "no layer 'conv1'"),
    ({"resume": True}, "no saved state"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_options_are_one_line_errors(
    options: StyleOptions, change: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=message) as error:
        train_style(dataclasses.replace(options, **change))
    assert "\n" not in str(error.value)
    assert not list(options.output.parent.glob("*.safetensors"))


def test_stages_and_learning_rate(options: StyleOptions) -> None:
    run = dataclasses.replace(
        options, size=160, batch=4, steps=70, finish_size=256, finish_steps=30, decay=0.3
    )
    plan = stages(run)
    assert [(s.size, s.batch, s.steps) for s in plan] == [(160, 4, 70), (256, 2, 30)]
    assert [stage_at(plan, i).size for i in (0, 69, 70, 99, 100)] == [160, 160, 256, 256, 256]
    rates = [learning_rate(run, i, 100) for i in range(101)]
    assert rates[:29] == pytest.approx([run.lr * (i + 1) / 30 for i in range(29)])
    assert rates[29:71] == [run.lr] * 42
    assert all(a > b for a, b in pairwise(rates[70:]))
    assert rates[85] == pytest.approx(0.51 * run.lr)
    assert rates[100] == pytest.approx(0.02 * run.lr)


def test_every_option_has_a_help_text() -> None:
    for cls in (StyleOptions, ObjectiveOptions):
        assert all(len(f.metadata["help"]) > 10 for f in dataclasses.fields(cls))
        assert len(click_params(cls)) == len(dataclasses.fields(cls))


def test_tensorboard_events_are_written(options: StyleOptions) -> None:
    pytest.importorskip("tensorboard")
    result = train_style(dataclasses.replace(options, tensorboard=True))
    (events,) = (result.run_dir / "tensorboard").iterdir()
    assert events.stat().st_size > 500


def _command(options: StyleOptions, **change: Any) -> list[str]:
    """The options as a command line of ``python -m fastgen.train.style``."""
    words = []
    for f in dataclasses.fields(StyleOptions):
        value = change.get(f.name, getattr(options, f.name))
        if value == f.default or value is None:
            continue
        words.append(f"--{f.name.replace('_', '-')}")
        if isinstance(value, tuple):
            value = ",".join(map(str, value))
        if value is not True:
            words.append(str(value))
    return words


def test_ctrl_c_saves_and_says_how_to_go_on(options: StyleOptions) -> None:
    command = _command(options, steps=100_000, quiet=False, log_every=1, threads=1)
    with subprocess.Popen(
        [sys.executable, "-m", "fastgen.train.style", *command],
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if line.startswith("step 3/"):
                process.send_signal(signal.SIGINT)
    output = "".join(lines)
    assert process.returncode == 130, output
    assert "--resume" in lines[-1]
    assert "\r" not in output  # no live line when stderr is not a terminal
    (state,) = (options.output.with_suffix(".run") / "state").iterdir()
    assert int(state.name.removeprefix("step-")) >= 3


DDP_SCRIPT = """
import sys, torch
from safetensors.torch import save_file
torch.set_num_threads(1)
from fastgen.train import style as recipe
from fastgen.train.options import click_command, StyleOptions
import os
kept, original = [], recipe._step
def step(module, *rest):
    kept[:] = [module]
    return original(module, *rest)
recipe._step = step
def run(options):
    result = recipe.train_style(options)
    state = {k: v.contiguous() for k, v in kept[0].state_dict().items()}
    losses = {"losses": torch.tensor(list(result.losses.values()))}
    save_file({**state, **losses}, f"{options.output}.{os.environ['RANK']}")
click_command("train", StyleOptions, run)()
"""


def test_two_processes_train_one_network(options: StyleOptions, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(DDP_SCRIPT)
    pair = dataclasses.replace(
        options, batch=1, steps=3, finish_size=32, finish_steps=1, finish_batch=1, threads=1
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, str(script), *_command(pair)],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    a, b = (load_file(f"{pair.output}.{rank}") for rank in range(2))
    assert all((a[key] == b[key]).all() for key in a)
    assert load_checkpoint(pair.output).meta["provenance"]["training"]["processes"] == 2
    # The same as one process with the whole batch. Biases before instance norm have no gradient but
    # rounding, which Adam amplifies, so the pictures are compared and not the weights.
    one = dataclasses.replace(pair, batch=2, finish_batch=2, output=tmp_path / "one.safetensors")
    alone = train_style(one)
    np.testing.assert_allclose(list(alone.losses.values()), a["losses"], rtol=2e-3)
    image = torch.from_numpy(np.asarray(picture(3)).copy()).permute(2, 0, 1)[None].float()
    pictures = []
    for path in (pair.output, one.output):
        checkpoint = load_checkpoint(path)
        pictures.append(GraphModule(checkpoint.graph).load_weights(checkpoint.weights)(image))
    torch.testing.assert_close(pictures[0], pictures[1], rtol=0, atol=1.0)


def test_a_single_process_needs_no_group() -> None:
    alone = Processes("cpu")
    values = torch.tensor([1.0, 2.0])
    assert (alone.rank, alone.world, alone.main) == (0, 1, True)
    assert alone.mean(values) is values
    alone.close()
