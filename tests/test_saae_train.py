"""Runs of ``fastgen train saae``: checkpoints, resuming, processes, warnings, wrong options."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from tiny_saae import save_folder  # noqa: E402

import fastgen  # noqa: E402
from fastgen.backends.torch import compile  # noqa: E402
from fastgen.checkpoint import load_checkpoint  # noqa: E402
from fastgen.train.saae import phases, train_saae  # noqa: E402
from fastgen.train.saae_options import SaaeOptions  # noqa: E402


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_folder(tmp_path_factory.mktemp("data") / "d", each=16, styles=True)


def options(folder: Path, source: Path, **changes: object) -> SaaeOptions:
    settings = {
        "data": "folder",
        "source": source,
        "output": folder / "m.safetensors",
        "size": "16x12",
        "style_size": "20x12",
        "width": 2,
        "d_width": 2,
        "style_features": 6,
        "rec_steps": 4,
        "dis_steps": 3,
        "steps": 5,
        "batch": 4,
        "bank": 5,
        "check_every": 2,
        "save_every": 0,
        "preview_every": 0,
        "log_every": 4,
        "device": "cpu",
        "threads": 1,
        "quiet": True,
    }
    return SaaeOptions(**(settings | changes))  # type: ignore[arg-type]


def weights(path: Path) -> dict[str, np.ndarray]:
    return load_checkpoint(path).weights


def test_a_run_ends_in_a_generator(tmp_path: Path, pictures: Path) -> None:
    result = train_saae(options(tmp_path, pictures, tensorboard=True, preview_every=6))
    assert result.finished
    assert result.step == 12
    assert set(result.losses) == {"rec", "d", "accuracy", "adv"}
    ckpt = load_checkpoint(result.output)
    training = ckpt.meta["provenance"]["training"]
    assert set(training["losses"]) == set(result.losses)
    assert [p["kind"] for p in training["phases"]] == ["rec", "dis", "joint"]
    assert ckpt.meta["alphabet"] == ["A", "B"]
    assert sorted(p.name for p in result.run_dir.glob("preview*")) == [
        "preview-000006.png",
        "preview-000012.png",
        "preview-final.png",
    ]
    lines = [json.loads(x) for x in (result.run_dir / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 8, 12]
    assert list((result.run_dir / "tensorboard").iterdir())
    generator = fastgen.Generator(result.output, precision="fp32")
    assert generator.info.styles == 5
    images = generator("ABBA", seed=1)
    assert images.shape == (4, 12, 16, 3)
    # A stored style vector is what the encoder makes of a training style.
    from fastgen.train.saae_batches import data_of

    data, _ = data_of(options(tmp_path, pictures))
    codes = generator.encode(list(data.styles.transpose(0, 2, 3, 1)))
    for code in generator.all_styles():
        assert np.abs(codes - code).max(1).min() < 2e-3


@pytest.mark.parametrize("schedule", ["three-step", "per-iter", "joint"])
def test_a_resumed_run_is_the_uninterrupted_one(
    schedule: str, tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastgen.train import saae

    whole = train_saae(options(tmp_path, pictures, schedule=schedule))
    (tmp_path / "b").mkdir()
    changes = {"schedule": schedule, "save_every": 2}
    real, calls = saae.batch_at, []

    def interrupted(*args, **kwargs):
        calls.append(args[1])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(saae, "batch_at", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_saae(options(tmp_path / "b", pictures, **changes))
    monkeypatch.setattr(saae, "batch_at", real)
    with pytest.raises(ValueError, match="--resume"):
        train_saae(options(tmp_path / "b", pictures, **changes))
    with pytest.raises(ValueError, match="cannot resume with lr"):
        train_saae(options(tmp_path / "b", pictures, resume=True, lr=0.5, **changes))
    again = train_saae(options(tmp_path / "b", pictures, resume=True, **changes))
    assert again.step == whole.step
    for key, value in weights(whole.output).items():
        np.testing.assert_array_equal(weights(again.output)[key], value, err_msg=key)


def test_seeds_decide_the_result(tmp_path: Path, pictures: Path) -> None:
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        output = train_saae(options(tmp_path / name, pictures, seed=seed)).output
        found.append(weights(output)["dec1.weight"])
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0] != found[2]).any()


def test_step_1_ends_at_a_plateau(tmp_path: Path, pictures: Path) -> None:
    changes = {"rec_steps": 50, "lr": 0.0, "patience": 3, "dis_steps": 0, "steps": 2}
    result = train_saae(options(tmp_path, pictures, **changes))
    # With a learning rate of 0 only batch norm's sums change: 1 check sets the level.
    assert result.step < 52
    kinds = load_checkpoint(result.output).meta["provenance"]["training"]["phases"]
    assert kinds[0]["steps"] % 2 == 0
    assert kinds[0]["steps"] < 50


def test_a_run_starts_from_a_checkpoint(tmp_path: Path, pictures: Path) -> None:
    first = train_saae(options(tmp_path, pictures)).output
    (tmp_path / "b").mkdir()
    changes = {"init": first, "rec_steps": 0, "dis_steps": 0, "steps": 1, "lr": 0.0, "seed": 9}
    second = train_saae(options(tmp_path / "b", pictures, **changes)).output
    before, after = weights(first), weights(second)
    for key in before:
        if "running" not in key:
            np.testing.assert_array_equal(after[key], before[key], err_msg=key)
    meta = load_checkpoint(second).meta["provenance"]
    assert meta["training"]["earlier"]["sha256"] == load_checkpoint(first).meta["sha256"]
    assert "init" not in meta["options"]
    (tmp_path / "c").mkdir()
    with pytest.raises(ValueError, match="another shape"):
        train_saae(options(tmp_path / "c", pictures, init=first, width=3))


@pytest.mark.parametrize("model", ["dcgan", "cgan", "aae", "autoencoder"])
def test_baselines_end_in_a_graph_from_latent_to_image(
    model: str, tmp_path: Path, pictures: Path
) -> None:
    result = train_saae(options(tmp_path, pictures, model=model, preview_every=5))
    ckpt = load_checkpoint(result.output)
    assert ckpt.meta["kind"] == "saae-baseline"
    assert ckpt.meta["model"] == model
    size = ckpt.graph.smallest_shapes()["latent"][1]
    assert size == 6 + (2 if model == "cgan" else 0)
    noise = np.random.default_rng(0).normal(size=(3, size)).astype(np.float32)
    assert compile(ckpt.graph, ckpt.weights).run(noise).shape == (3, 3, 12, 16)
    with pytest.raises(ValueError, match="saae-baseline"):
        fastgen.Generator(result.output)


def test_collapse_is_said_and_recorded(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from fastgen.train.saae_watch import Watch

    changes = {"quiet": False, "lr": 0.0, "schedule": "joint"}  # random weights ignore the style
    result = train_saae(options(tmp_path, pictures, **changes))
    share = load_checkpoint(result.output).meta["provenance"]["training"]["diversity"]
    said = "mode collapse" in capsys.readouterr().err
    assert said == (share < Watch.DIVERSE)
    assert said == ("mode collapse" in result.warnings)


def test_a_loss_that_is_not_finite_stops_the_run(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastgen.train import saae

    real = saae.batch_at

    def damaged(*args, **kwargs):
        found = real(*args, **kwargs)
        if args[1] == 5:
            found.images[0, 0, 0, 0] = float("nan")
        return found

    monkeypatch.setattr(saae, "batch_at", damaged)
    with pytest.raises(ValueError, match=r"not finite at step 6; lower --lr .*state"):
        train_saae(options(tmp_path, pictures, save_every=2))
    assert not (tmp_path / "m.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 1}, "batch is 1"),
        ({"steps": -1}, "steps is -1"),
        ({"steps": 0, "rec_steps": 0, "dis_steps": 0}, "nothing to train"),
        ({"lr": 2.0}, "lr is 2"),
        ({"adv_weight": float("nan")}, "adv_weight"),
        ({"size": "big"}, "--size is 'big'"),
        ({"output": Path("x.pt")}, "safetensors"),
        ({"output": Path("no/x.safetensors")}, "does not exist"),
        ({"per_class": 1}, "per class"),
        ({"device": "abacus"}, "device"),
        ({"model": "dcgan", "size": "18x12"}, "multiples of 4"),
    ],
)
def test_wrong_options(changes: dict, message: str, tmp_path: Path, pictures: Path) -> None:
    with pytest.raises(ValueError, match=message) as info:
        train_saae(options(tmp_path, pictures, **changes))
    assert "\n" not in str(info.value)


def test_schedules() -> None:
    def kinds(**changes: object) -> list[tuple[str, int]]:
        return [(p.kind, p.steps) for p in phases(options(Path(), Path(), **changes))]

    assert kinds() == [("rec", 4), ("dis", 3), ("joint", 5)]
    assert kinds(schedule="joint") == [("joint", 5)]
    assert kinds(schedule="per-iter") == [("per-iter", 5)]
    assert kinds(dis_steps=0) == [("rec", 4), ("joint", 5)]
    assert kinds(model="aae") == [("per-iter", 5)]


def test_two_processes_train_one_model(tmp_path: Path, pictures: Path) -> None:
    """Two processes of 2 images: weights stay equal, and near one process of 4 images."""
    arguments = ["--data", "folder", "--source", str(pictures), "--quiet", "--device", "cpu"]
    arguments += ["--size", "16x12", "--style-size", "20x12", "--width", "2", "--d-width", "2"]
    arguments += ["--schedule", "joint", "--steps", "3", "--batch", "2", "--threads", "1"]
    arguments += ["-o", str(tmp_path / "m.safetensors")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    environment |= {"MASTER_PORT": str(20000 + os.getpid() % 20000), "WORLD_SIZE": "2"}
    jobs = [
        subprocess.Popen(
            [sys.executable, "-P", "-m", "fastgen.train.saae", *arguments],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    for job in jobs:
        error = job.communicate(timeout=300)[1]
        assert job.returncode == 0, error
    ckpt = load_checkpoint(tmp_path / "m.safetensors")
    assert ckpt.meta["provenance"]["training"]["processes"] == 2
    assert all(np.isfinite(v).all() for v in ckpt.weights.values())
