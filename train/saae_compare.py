"""``fastgen eval saae-arms``: multi-class against binary discriminator, both tuned alike.

    fastgen eval saae-arms -o docs/results/saae/mnist_arms.json

Both arms train with every lambda on one seed and are scored on validation images; each goes on
with its best. The confirmation trains both on fresh seeds, which share data order, initial weights
and styles pair by pair, and measures them on test images (criterion A1). With ``--joint`` the
multi-class arm is trained jointly from scratch as well (criterion A4). Finished models are kept:
the same command continues.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from fastgen.train.loop import pick_device
from fastgen.train.options import main
from fastgen.train.parzen import SIGMAS, log_likelihood
from fastgen.train.saae_eval import VALIDATION, evaluate_saae
from fastgen.train.saae_eval_data import EvalData, load_data
from fastgen.train.saae_eval_models import load_model, trained
from fastgen.train.saae_eval_options import CompareSaaeOptions, EvalSaaeOptions
from fastgen.train.saae_report import markdown

__all__ = ["CompareSaaeOptions", "compare_arms", "run"]

TUNING_SEED = 1000
ARMS = ("multi", "binary")


def _train(
    options: CompareSaaeOptions, folder: Path, arm: str, weight: float, seed: int, schedule: str
) -> Path:
    """One model, trained unless it is there already."""
    name = f"{options.data}-{arm}-{schedule}-l{weight:g}-s{seed}"
    path = folder / f"{name}.safetensors"
    # Joint training gets the updates of all three steps, so that no arm learns for longer.
    steps = options.steps
    if schedule == "joint":
        steps += options.rec_steps + options.dis_steps
    return trained(
        path,
        options,
        width=options.width,
        d_width=options.d_width,
        discriminator=arm,
        schedule=schedule,
        adv_weight=weight,
        steps=steps,
        batch=options.batch,
        seed=seed,
        log_every=200,
    )


def _rec_level(path: Path) -> float | None:
    """The held-out loss at the end of step 1, from the state that the run left."""
    states = sorted((path.with_suffix(".run") / "state").glob("step-*/state.json"))
    if not states:
        return None
    return json.loads(states[-1].read_text(encoding="utf-8"))["watch"]["rec_level"]


def _score(path: Path, data: EvalData, count: int, device: torch.device) -> float:
    """Log-likelihood of validation images with the best width."""
    model = load_model(path, device)
    samples = model.samples(data, count, torch.Generator().manual_seed(1))
    points = data.validation.images()[:VALIDATION]
    return float(log_likelihood(points, samples, SIGMAS).mean(1).max())


def compare_arms(options: CompareSaaeOptions) -> dict[str, Any]:
    """Tunes, confirms and reports.

    Args:
        options: See :class:`CompareSaaeOptions`.

    Returns:
        The report of ``fastgen eval saae`` on the confirming models, with ``tuning``.

    Raises:
        ValueError: Unusable settings or data.
    """
    if options.output.suffix != ".json":
        raise ValueError(f"output {options.output} must end in .json")
    if options.seeds < 2 or not options.adv_weights:
        raise ValueError(f"seeds is {options.seeds}, at least 2 (--seeds), and one --adv-weights")
    if options.threads:
        torch.set_num_threads(options.threads)
    folder = options.run_dir or options.output.with_suffix(".run")
    folder.mkdir(parents=True, exist_ok=True)
    device = pick_device(options.device)
    data = load_data(options.data, options.source)
    tuning: list[dict[str, Any]] = []
    best: dict[str, float] = {}
    for arm in ARMS:
        rows = []
        for weight in options.adv_weights:
            score = float("nan")
            if len(options.adv_weights) > 1:
                path = _train(options, folder, arm, weight, TUNING_SEED, "three-step")
                score = _score(path, data, options.samples, device)
                if not options.quiet:
                    print(f"{arm}, lambda {weight}: {score:.2f}", file=sys.stderr, flush=True)
                rows.append({"arm": arm, "adv_weight": weight, "validation": score})
        chosen = max(rows, key=lambda row: row["validation"], default=None)
        best[arm] = chosen["adv_weight"] if chosen else options.adv_weights[0]
        tuning += [{**row, "taken": row is chosen} for row in rows]
    paths, levels = [], {}
    for seed in range(options.seeds):
        for arm in ARMS:
            path = _train(options, folder, arm, best[arm], seed, "three-step")
            levels[path.name] = _rec_level(path)
            paths.append(path)
        if options.joint:
            paths.append(_train(options, folder, "multi", best["multi"], seed, "joint"))
    settings = EvalSaaeOptions(
        checkpoints=tuple(paths),
        source=options.source,
        output=options.output,
        cache=options.cache,
        samples=options.samples,
        device=options.device,
        threads=options.threads,
        quiet=options.quiet,
    )
    return evaluate_saae(settings, {"tuning": tuning, "rec_level": levels})


def run(options: CompareSaaeOptions) -> int:
    """Runs :func:`compare_arms` and prints the report on stdout.

    Returns:
        Exit code 0.
    """
    print(markdown(compare_arms(options)))
    return 0


if __name__ == "__main__":
    main("fastgen eval saae-arms", CompareSaaeOptions, run)
