"""``fastgen eval saae-data``: recognisers with few real images, with and without generated ones.

    fastgen eval saae-data --data iiit5k -o docs/results/saae/iiit5k_data.json

For every number n of real images a class and every seed, an SAAE is trained on those n alone; then
recognisers of all arms (see ``recogniser.py``) train for equal steps. Finished runs are kept: the
same command continues.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastgen.checkpoint import atomic_write
from fastgen.train.eval_stats import text
from fastgen.train.judge import FitOptions
from fastgen.train.loop import pick_device
from fastgen.train.options import main
from fastgen.train.recogniser import arms_for, markdown, run_arm, summarise
from fastgen.train.saae_data import SaaeData, load, per_class
from fastgen.train.saae_eval_data import Part
from fastgen.train.saae_eval_models import EvalModel, load_model, trained
from fastgen.train.saae_eval_options import RecogniserOptions

__all__ = ["RecogniserOptions", "compare_data", "run"]

# Options that may differ when a report is continued; the others decide the numbers.
_FREE = {"output", "run_dir", "source", "per_class", "seeds", "device", "threads", "quiet"}


def _rendered(data: SaaeData) -> tuple[Tensor, Tensor]:
    """Every glyph in twelve pairs of grey values, light on dark and dark on light."""
    glyphs = torch.tensor(data.contents, dtype=torch.float32) / 255
    labels = torch.tensor(data.content_class)
    pairs = [(0.0, 1.0), (0.2, 0.9), (0.1, 0.7), (0.3, 1.0), (0.0, 0.6), (0.4, 0.8)]
    images = [low + (high - low) * glyphs for low, high in pairs]
    images += [high - (high - low) * glyphs for low, high in pairs]
    joined = torch.cat(images).expand(-1, data.images.shape[1], -1, -1)
    return joined.contiguous(), labels.repeat(len(images))


def generate_set(model: EvalModel, data: SaaeData, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images for training: every class equally often, in the style of a random real image.

    Args:
        model: Trained on ``data`` and nothing else.
        data: The n real images of each class.
        count: Images to make.
        seed: Draws contents and styles.

    Returns:
        (count, C, H, W) in [0, 1], in random order, and labels.
    """
    rng = np.random.default_rng([seed, 5])
    label = rng.integers(0, len(data.classes), count)
    places = [np.flatnonzero(data.content_class == k) for k in range(len(data.classes))]
    content = np.array([rng.choice(places[k]) for k in label])
    style = data.style_of[rng.integers(0, len(data), count)]
    parts = []
    for first in range(0, count, 500):
        window = slice(first, first + 500)
        glyphs = torch.tensor(data.contents[content[window]], dtype=torch.float32) / 255
        styles = torch.tensor(data.styles[style[window]], dtype=torch.float32) / 255
        parts.append(model(glyphs, styles))
    return torch.cat(parts), torch.tensor(label)


def _generator(options: RecogniserOptions, run_dir: Path, count: int, seed: int) -> EvalModel:
    """The SAAE of one n and seed, trained unless it is there already."""
    path = trained(
        run_dir / f"{options.data}-n{count}-s{seed}.safetensors",
        options,
        font=options.font,
        width=options.generator_width,
        d_width=options.generator_width,
        adv_weight=options.adv_weight,
        steps=options.generator_steps,
        per_class=count,
        data_seed=seed,
        seed=seed,
    )
    return load_model(path, pick_device(options.device))


def _continue(options: RecogniserOptions, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Finished runs of an earlier report at the same place.

    Raises:
        ValueError: It was made with other settings.
    """
    if not options.output.is_file():
        return []
    try:
        report = json.loads(options.output.read_text(encoding="utf-8"))
        found, known = report["runs"], report["settings"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{options.output} is no report of `fastgen eval saae-data`") from error
    changed = sorted(k for k in settings if settings[k] != known.get(k))
    if changed:
        raise ValueError(
            f"{options.output} was made with {changed[0]} {known.get(changed[0])}, now "
            f"{settings[changed[0]]}; choose another --output"
        )
    return list(found)


def compare_data(options: RecogniserOptions) -> dict[str, Any]:
    """Runs the comparison; JSON and Markdown are written after every recogniser.

    Args:
        options: See :class:`RecogniserOptions`.

    Returns:
        The report: ``runs`` (one a recogniser), ``rows`` (means, intervals, paired differences) and
        ``acceptance`` (A3).

    Raises:
        ValueError: Unusable settings or data.
    """
    if options.output.suffix != ".json":
        raise ValueError(f"output {options.output} must end in .json")
    if options.seeds < 1 or not options.per_class or not options.sizes:
        raise ValueError("give at least one of --seeds, --per-class and --sizes")
    if options.threads:
        torch.set_num_threads(options.threads)
    settings = {
        f.name: list(v) if isinstance(v := getattr(options, f.name), tuple) else v
        for f in dataclasses.fields(options)
        if f.name not in _FREE
    }
    run_dir = options.run_dir or options.output.with_suffix(".run")
    run_dir.mkdir(parents=True, exist_ok=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    runs = _continue(options, settings)
    done = {(r["per_class"], r["seed"], r["arm"]) for r in runs}
    train = load(options.data, options.source, "train", font=options.font)
    test = _test_set(options)
    report: dict[str, Any] = {
        "kind": "eval saae-data",
        "data": options.data,
        "settings": settings,
        "test": len(test[0]),
        "classes": len(train.classes),
        "torch": torch.__version__,
        "runs": runs,
    }
    for seed in range(options.seeds):
        for count in options.per_class:
            few = per_class(train, count, seed)
            real = (Part(few).images(), Part(few).labels)
            names = ["real", "augment", "glyphs", *(f"generated-{s}" for s in options.sizes)]
            if all((count, seed, name) in done for name in names):
                continue
            model = _generator(options, run_dir, count, seed)
            made = generate_set(model, few, max(options.sizes), seed)
            for arm in arms_for(_rendered(few), made, options.sizes):
                if (count, seed, arm.name) in done:
                    continue
                began = time.perf_counter()
                fit = FitOptions(options.steps, options.batch, seed=seed, width=options.width)
                outcome = run_arm(arm, real, test, len(train.classes), fit)
                runs.append(
                    {
                        "per_class": count,
                        "seed": seed,
                        "arm": arm.name,
                        "real": len(few),
                        **dataclasses.asdict(outcome),
                        "seconds": round(time.perf_counter() - began, 1),
                    }
                )
                if not options.quiet:
                    told = f"n {count}, seed {seed}, {arm.name}: {100 * outcome.final:.1f} %"
                    print(told, file=sys.stderr, flush=True)
                _save(options.output, report)
    _save(options.output, report)
    return report


def _test_set(options: RecogniserOptions) -> tuple[Tensor, Tensor]:
    data = load(options.data, options.source, "test", font=options.font)
    order = np.random.default_rng(0).permutation(len(data))[: options.test_images]
    part = Part(data)
    index = torch.tensor(order)
    return part.images(index), part.labels[index]


def _save(path: Path, report: dict[str, Any]) -> None:
    report["rows"] = summarise(report["runs"])
    report["acceptance"] = acceptance(report)
    atomic_write(path, json.dumps(report, indent=1).encode())
    atomic_write(path.with_suffix(".md"), report_markdown(report).encode())


def acceptance(report: dict[str, Any]) -> list[dict[str, Any]]:
    """A3 for each n: generated data adds to real images, more of it does no harm, it takes longer.

    The comparison that matters to a user is with the best arm that needs no generator; it is part
    of the reason, not of the paper's claim.
    """
    found = []
    for count in sorted({row["per_class"] for row in report["rows"]}):
        rows = {r["arm"]: r for r in report["rows"] if r["per_class"] == count}
        made = sorted(
            (r for name, r in rows.items() if name.startswith("generated-")),
            key=lambda r: int(r["arm"].split("-")[1]),
        )
        claim = f"n = {count}: generated images raise the accuracy over real images alone"
        if not made or "real" not in made[-1]["versus"]:
            continue
        last = made[-1]["versus"]
        finals = [rows["real"]["final"]["mean"], *(r["final"]["mean"] for r in made)]
        rising = all(b >= a for a, b in itertools.pairwise(finals))
        why = (
            f"{made[-1]['arm']} minus real {text(last['real'], 1, True)} points"
            + "".join(
                f", minus {other} {text(last[other], 1, True)}"
                for other in ("augment", "glyphs")
                if other in last
            )
            + f"; accuracy {'never falls' if rising else 'does not always rise'} with more "
            f"generated images; steps to 95 % of the end: {rows['real']['to_95']['mean']:.0f} "
            f"real, {made[-1]['to_95']['mean']:.0f} generated; {last['real']['n']} seed(s)"
        )
        above = last["real"]["two_se"]
        held = None if above is None else bool(above and last["real"]["above"] and rising)
        found.append({"criterion": "A3", "claim": claim, "held": held, "why": why})
    return found


def report_markdown(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    from fastgen.train.saae_report import verdicts

    s = report["settings"]
    return "\n".join(
        [
            f"# Generated data for a recogniser: {report['data']}",
            "",
            *verdicts(report["acceptance"]),
            "",
            f"Accuracy on {report['test']} test images of {report['classes']} classes after "
            f"{s['steps']} steps of {s['batch']} images, the same network and initial weights in "
            "all arms of a seed. Generators saw the same n real images of each class (and the "
            "style images that these were cut from) and nothing else: width "
            f"{s['generator_width']}, up to {s['rec_steps']} + {s['dis_steps']} + "
            f"{s['generator_steps']} updates, lambda {s['adv_weight']}. Intervals are 95 %, "
            "differences paired by seed.",
            "",
            *markdown(report["rows"]),
            "",
            "## Accuracy against steps (mean over seeds, %)",
            "",
            *_curves(report["runs"]),
            "",
        ]
    )


def _curves(runs: list[dict[str, Any]]) -> list[str]:
    if not runs:
        return []
    steps = runs[0]["steps"]
    lines = [
        "| n | arm | " + " | ".join(str(s) for s in steps) + " |",
        "|---|---|" + "---|" * len(steps),
    ]
    for count, arm in dict.fromkeys((r["per_class"], r["arm"]) for r in runs):
        mine = [r["curve"] for r in runs if (r["per_class"], r["arm"]) == (count, arm)]
        cells = " | ".join(f"{100 * v:.1f}" for v in np.mean(mine, axis=0))
        lines.append(f"| {count} | {arm} | {cells} |")
    return lines


def run(options: RecogniserOptions) -> int:
    """Runs :func:`compare_data` and prints the report on stdout.

    Returns:
        Exit code 0.
    """
    print(report_markdown(compare_data(options)))
    return 0


if __name__ == "__main__":
    main("fastgen eval saae-data", RecogniserOptions, run)
