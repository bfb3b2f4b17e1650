"""``fastgen eval saae``, ``saae-arms`` and ``saae-data`` from training to report, made small."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastgen.train import (
    saae_batches,
    saae_compare,
    saae_eval,
    saae_eval_data,
    saae_recogniser,
)
from fastgen.train.judge import FitOptions
from fastgen.train.saae import train_saae
from fastgen.train.saae_data import SaaeData, load
from fastgen.train.saae_eval import evaluate_saae
from fastgen.train.saae_eval_data import EvalData, Part, load_data
from fastgen.train.saae_eval_models import load_model
from fastgen.train.saae_eval_options import (
    CompareSaaeOptions,
    EvalSaaeOptions,
    RecogniserOptions,
)
from fastgen.train.saae_options import SaaeOptions

SMALL = {"samples": 100, "styles": 30, "neighbours": 100, "threads": 1, "quiet": True}


# MNIST is unpacked once for all of these tests instead of once for every training run.
cached_load = lru_cache(maxsize=8)(load)


@pytest.fixture(autouse=True)
def unpacked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real data, kept in memory."""
    for module in (saae_batches, saae_eval_data, saae_recogniser):
        monkeypatch.setattr(module, "load", cached_load)


@pytest.fixture
def small(fastgen_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real data and judges of the real kind, fewer images and steps."""

    def few(name: str, source: Path | None = None, *attribute: str) -> EvalData:
        data = load_data(name, source, *attribute)
        parts = (
            Part(part.data.take(np.arange(count)))
            for part, count in ((data.train, 600), (data.validation, 200), (data.test, 300))
        )
        return EvalData(name, *parts)

    for module in (saae_eval, saae_compare):
        monkeypatch.setattr(module, "load_data", few)
    quick = FitOptions(steps=20, batch=32, width=4)
    monkeypatch.setattr(saae_eval, "JUDGES", dict.fromkeys(saae_eval.JUDGES, quick))


def _train(path: Path, **changes: object) -> Path:
    options = SaaeOptions(
        data="mnist",
        output=path,
        width=2,
        d_width=2,
        rec_steps=2,
        dis_steps=1,
        steps=2,
        per_class=5,
        preview_every=0,
        save_every=0,
        threads=1,
        quiet=True,
    )
    assert train_saae(replace(options, **changes)).finished  # type: ignore[arg-type]
    return path


def test_a_report_of_models_and_baselines(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [
        _train(tmp_path / "multi.safetensors"),
        _train(tmp_path / "cgan.safetensors", model="cgan"),
    ]
    output = tmp_path / "report" / "mnist.json"
    options = EvalSaaeOptions(checkpoints=tuple(paths), output=output, **SMALL)
    report = evaluate_saae(options)
    assert set(report["controls"]) == {"real", "blur", "k_means", "means_of_8"}
    saae, gan = report["models"]
    assert (saae["arm"], gan["arm"]) == ("multi-class, 5 a class", "conditional GAN, 5 a class")
    assert "swap" in saae
    assert "swap" not in gan
    assert saae["parzen"]["mean"] < report["controls"]["real"]["mean"]  # two steps are no training
    assert saae["swap"]["images"] == 9 * 30
    assert json.loads(output.read_text()) == json.loads(json.dumps(report))
    text = output.with_suffix(".md").read_text()
    for file in report["pictures"]:
        assert (output.parent / file).is_file()
        assert file in text

    def again(*args: object) -> None:
        raise AssertionError("measured twice")

    monkeypatch.setattr(saae_eval, "_measure", again)
    monkeypatch.setattr(saae_eval, "controls", again)
    assert evaluate_saae(options)["models"] == report["models"]
    grid = next(output.parent / file for file in report["pictures"] if "grid" in file)
    with Image.open(grid) as picture:
        whole = picture.size
    (output.parent / "again").mkdir()
    alone = replace(options, generated_only=True, output=output.parent / "again" / "mnist.json")
    shutil.copy(output, alone.output)
    pictures = evaluate_saae(alone)["pictures"]
    assert not [file for file in pictures if "nearest" in file]
    assert "training" not in "".join(pictures.values())
    with Image.open(alone.output.parent / grid.name) as picture:
        assert picture.size == (whole[0] - 30, whole[1])
    with pytest.raises(AssertionError, match="measured twice"):
        evaluate_saae(replace(options, styles=31))


def test_samples_are_the_models(small: None, tmp_path: Path) -> None:
    """The evaluated network is the checkpoint's: same images as its graph gives by hand."""
    model = load_model(_train(tmp_path / "m.safetensors"), torch.device("cpu"))
    data = saae_eval.load_data("mnist")
    a = model.samples(data, 40, torch.Generator().manual_seed(3))
    b = model.samples(data, 40, torch.Generator().manual_seed(3))
    assert a.shape == (40, 1, 28, 28)
    assert (a == b).all()
    generator = torch.Generator().manual_seed(3)
    index = torch.randint(len(data.train), (40,), generator=generator)
    drawn = torch.randint(10, (40,), generator=generator)
    content = torch.tensor(data.train.data.contents[drawn.numpy()] / 255.0).float()
    style = torch.tensor(data.train.data.images[index.numpy()] / 255.0).float()
    with torch.no_grad():
        torch.testing.assert_close(model.module(content, style), a, rtol=1e-4, atol=1e-5)


def test_arms_are_tuned_and_confirmed(small: None, tmp_path: Path) -> None:
    options = CompareSaaeOptions(
        output=tmp_path / "arms.json",
        adv_weights=(0.01, 0.1),
        seeds=2,
        joint=True,
        width=2,
        d_width=2,
        rec_steps=1,
        dis_steps=1,
        steps=1,
        samples=100,
        threads=1,
        quiet=True,
    )
    report = saae_compare.compare_arms(options)
    assert all(r["rec"] > 0 for r in report["models"])
    assert [(r["arm"], r["adv_weight"]) for r in report["tuning"]] == [
        ("multi", 0.01), ("multi", 0.1), ("binary", 0.01), ("binary", 0.1)
    ]  # fmt: skip
    for arm in ("multi", "binary"):
        rows = [r for r in report["tuning"] if r["arm"] == arm]
        best = max(rows, key=lambda r: r["validation"])
        assert [r["taken"] for r in rows] == [r is best for r in rows]
    found = [(r["arm"], r["seed"]) for r in report["models"]]
    assert found == [
        (arm, seed) for seed in (0, 1) for arm in ("multi-class", "binary", "multi-class, joint")
    ]
    joint = report["models"][2]["steps"]
    assert sum(joint.values()) == 3
    assert report["models"][0]["rec_level"] > 0
    verdicts = {r["criterion"]: r for r in report["acceptance"]}
    assert verdicts["A1"]["held"] is None  # two seeds decide nothing
    assert "A4" in verdicts


def test_generated_data_for_a_recogniser(fastgen_data: Path, tmp_path: Path) -> None:
    options = RecogniserOptions(
        output=tmp_path / "data.json",
        data="mnist",
        per_class=(4,),
        sizes=(20, 40),
        seeds=1,
        steps=10,
        batch=16,
        width=4,
        test_images=100,
        generator_width=2,
        rec_steps=2,
        dis_steps=1,
        generator_steps=2,
        threads=1,
        quiet=True,
    )
    report = saae_recogniser.compare_data(options)
    arms = ["real", "augment", "glyphs", "generated-20", "generated-40"]
    assert [run["arm"] for run in report["runs"]] == arms
    assert all(run["real"] == 40 for run in report["runs"])
    assert report["acceptance"][0]["held"] is None  # one seed decides nothing
    assert "n = 4" in options.output.with_suffix(".md").read_text()
    before = json.loads(options.output.read_text())["runs"]
    # a second seed continues: the first one's numbers are kept
    more = saae_recogniser.compare_data(replace(options, seeds=2))
    assert json.loads(json.dumps(more["runs"][:5])) == before
    assert len(more["runs"]) == 10
    with pytest.raises(ValueError, match="was made with steps 10, now 11"):
        saae_recogniser.compare_data(replace(options, steps=11))


def test_generators_see_only_the_few_reals(fastgen_data: Path, tmp_path: Path) -> None:
    """The generator's images and styles are a subset of the recogniser's real images."""
    from fastgen.train.saae_batches import data_of
    from fastgen.train.saae_data import per_class

    few = per_class(cached_load("mnist"), 4, 3)
    options = SaaeOptions(data="mnist", output=tmp_path / "x.safetensors", per_class=4, data_seed=3)
    train, validation = data_of(options)
    seen = {image.tobytes() for image in few.images}
    for part in (train, validation):
        assert {image.tobytes() for image in part.images} <= seen
        assert {style.tobytes() for style in part.styles} <= seen


def test_generated_sets_have_every_class(fastgen_data: Path, tmp_path: Path) -> None:
    data: SaaeData = cached_load("mnist").take(np.arange(60))
    model = load_model(_train(tmp_path / "m.safetensors"), torch.device("cpu"))
    images, labels = saae_recogniser.generate_set(model, data, 300, 1)
    assert images.shape == (300, 1, 28, 28)
    assert set(labels.tolist()) == set(range(10))
    glyphs, classes = saae_recogniser._rendered(data)
    assert len(glyphs) == 120
    assert torch.bincount(classes).tolist() == [12] * 10


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"checkpoints": ()}, "--data mnist"),
        ({"samples": 5}, "at least 100"),
        ({"output": Path("x.txt")}, "must end in .json"),
    ],
)
def test_bad_options(changes: dict[str, object], words: str) -> None:
    options = EvalSaaeOptions(checkpoints=(Path("a.safetensors"),), **SMALL)
    with pytest.raises(ValueError, match=words):
        evaluate_saae(replace(options, **changes))  # type: ignore[arg-type]


def test_other_models_are_refused(example_style: Path) -> None:
    options = EvalSaaeOptions(checkpoints=(example_style,), **SMALL)
    with pytest.raises(ValueError, match="none of `fastgen train saae`"):
        evaluate_saae(options)


@pytest.fixture
def example_style(repo_root: Path) -> Path:
    """A style network, which is no SAAE."""
    return sorted((repo_root / "fastgen" / "styles").glob("*.safetensors"))[0]
