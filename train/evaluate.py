"""How good is a style network by number: Eq. 9 of its pictures against projected L-BFGS.

    python -m fastgen.train.evaluate a.safetensors b.safetensors --style painting.jpg -o report.json

The protocol of Johnson et al. 2016, section 4.1: the objective of f_W(x) on held-out photos is
placed on the curve of the objective that L-BFGS from white noise reaches after each iteration. The
objective is rebuilt from the checkpoint's provenance: networks are judged by what they were trained
for.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastgen.backends.torch import GraphModule
from fastgen.checkpoint import Checkpoint, atomic_write, load_checkpoint
from fastgen.train.data import PhotoSet, centre_square
from fastgen.train.gatys import MAX_ITERATIONS, gatys
from fastgen.train.loop import Progress, pick_device
from fastgen.train.objective import Objective, Weights, build_objective, to_tensor
from fastgen.train.options import EvalStyleOptions, ObjectiveOptions, main

__all__ = ["EvalStyleOptions", "evaluate_style", "run"]

MARKS = (30, 50)
TERMS = ("total", "content", "style", "tv")


@dataclass
class _Network:
    path: Path
    checkpoint: Checkpoint
    weights: Weights
    style_size: int


def _load(path: Path) -> _Network:
    checkpoint = load_checkpoint(path)
    objective = (checkpoint.meta.get("provenance") or {}).get("objective")
    if checkpoint.meta["kind"] != "style" or not isinstance(objective, dict):
        raise ValueError(
            f"{path} has no training objective in its provenance; only styles of `fastgen train "
            "style` can be evaluated"
        )
    return _Network(path, checkpoint, Weights.from_json(objective), int(objective["style_size"]))


def _check_match(network: _Network, objective: Objective, painting: Path) -> None:
    """Refuses a painting or loss network other than the checkpoint's."""
    provenance = network.checkpoint.meta["provenance"]
    trained = provenance.get("loss_network", {}).get("sha256")
    if trained != objective.network.info["sha256"]:
        raise ValueError(
            f"{network.path} was trained with the loss network {str(trained)[:16]}, this one is "
            f"{objective.network.info['sha256'][:16]}; give the same file with --vgg"
        )
    norms = provenance["objective"].get("gram_norms", {})
    for layer, norm in norms.items():
        found = float(objective.grams[layer].square().sum())
        if abs(found - norm) > 0.02 * norm:
            raise ValueError(
                f"{network.path} was trained for another picture than {painting} (Gram norm of "
                f"{layer}: {norm:.4g}, here {found:.4g}); give its painting with --style"
            )


def default_photos() -> Path:
    """The BSDS archive in ``$FASTGEN_DATA``.

    Raises:
        ValueError: The variable is not set or holds no such archive.
    """
    data = os.environ.get("FASTGEN_DATA")
    found = sorted((Path(data) / "bsds500").glob("*.tar")) if data else []
    if not found:
        raise ValueError("no photos: give --photos FOLDER, or set FASTGEN_DATA (bsds500/*.tar)")
    return found[0]


def held_out(source: Path, count: int) -> PhotoSet:
    """The first ``count`` photos by name; of ``test/`` only, when the source has such a folder.

    Raises:
        ValueError: Fewer photos than that.
    """
    photos = PhotoSet(source)
    indices = [i for i, name in enumerate(photos.names) if name.startswith("test/")]
    indices = (indices or list(range(len(photos))))[:count]
    if count < 1 or len(indices) < count:
        raise ValueError(f"{source} holds {len(indices)} photos; {count} were asked for (--count)")
    return photos.restrict(indices)


def _key(objective: Objective, style_size: int, size: int) -> str:
    """Names everything a baseline curve depends on besides the photo and the seed."""
    content = {
        "weights": objective.weights.to_json(),
        "vgg": objective.network.info["sha256"],
        "input": objective.network.info["input"],
        "style_size": style_size,
        "size": size,
        "grams": {k: f"{float(g.square().sum()):.4g}" for k, g in objective.grams.items()},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def first_at_most(curve: Sequence[float], value: float) -> int | None:
    """The first iteration at which a curve is at or below a value, None when it never is."""
    return next((i for i, v in enumerate(curve) if v <= value), None)


def _fingerprint(photo: Tensor) -> str:
    return hashlib.sha256(photo.byte().cpu().numpy().tobytes()).hexdigest()[:16]


def _network_terms(
    network: _Network, objective: Objective, photos: Sequence[Tensor]
) -> tuple[list[dict[str, float]], float]:
    """Terms of each photo in float32, clamped as L-BFGS is, and seconds per picture."""
    module = GraphModule(network.checkpoint.graph).load_weights(network.checkpoint.weights)
    module.to(photos[0].device).eval()
    rows, seconds = [], 0.0
    with torch.inference_mode():
        for photo in photos:
            began = time.perf_counter()
            picture = module(photo).clamp(0, 255)
            seconds += time.perf_counter() - began
            terms = objective(picture, objective.content_targets(photo))
            rows.append({name: float(terms[name]) for name in TERMS})
    return rows, seconds / len(photos)


def _baseline(
    objective: Objective,
    photos: Sequence[tuple[str, Tensor]],
    curves: dict[str, list[float]],
    options: EvalStyleOptions,
    save: Any,
) -> tuple[list[float], float]:
    """Mean L-BFGS curve; curves that are already known and long enough are not computed again."""
    wanted = [(name, photo, seed) for name, photo in photos for seed in range(options.seeds)]
    progress = Progress(len(wanted), 0, 1, options.quiet)
    rows, seconds, computed = [], 0.0, 0
    for number, (name, photo, seed) in enumerate(wanted, 1):
        key = f"{name}:{_fingerprint(photo)}:{seed}"
        curve = curves.get(key, [])
        if len(curve) <= options.iterations:
            began = time.perf_counter()
            result = gatys(objective, photo, iterations=options.iterations, seed=seed)
            seconds += time.perf_counter() - began
            computed += len(result.objective) - 1
            curve = [float(f"{v:.6g}") for v in result.objective]
            # A run that can get no lower keeps its value.
            curve += [curve[-1]] * (options.iterations + 1 - len(curve))
            curves[key] = curve
            save()
        rows.append(curve[: options.iterations + 1])
        progress.update(number, {f"L-BFGS@{options.iterations}": rows[-1][-1]})
    return np.mean(rows, axis=0).tolist(), seconds / max(1, computed)


def evaluate_style(options: EvalStyleOptions) -> dict[str, Any]:
    """Evaluates style checkpoints of one painting; writes JSON and Markdown when asked to.

    The report is saved after every baseline curve; passing it as ``baseline`` continues from there.

    Args:
        options: See :class:`EvalStyleOptions`.

    Returns:
        The report: ``networks`` (mean terms, the L-BFGS iteration that reaches them, ratios to
        L-BFGS at 30 and 50 iterations) and ``baseline`` (mean curve per objective).

    Raises:
        ValueError: Unusable files, or a painting or loss network other than in training.
    """
    if not options.checkpoints or options.style is None:
        raise ValueError("give at least one checkpoint and the painting (--style)")
    if not 1 <= options.iterations <= MAX_ITERATIONS:
        raise ValueError(
            f"iterations is {options.iterations}; it must be in 1..{MAX_ITERATIONS} (--iterations)"
        )
    if options.size % 4 or options.size < 32 or options.seeds < 1:
        raise ValueError(
            f"size {options.size} must be a multiple of 4 and >= 32, seeds {options.seeds} >= 1"
        )
    if options.output is not None and options.output.suffix != ".json":
        raise ValueError(f"output {options.output} must end in .json")
    if options.threads:
        torch.set_num_threads(options.threads)
    device = pick_device(options.device)
    networks = [_load(path) for path in options.checkpoints]
    source = held_out(options.photos or default_photos(), options.count)
    photos = [
        (name, to_tensor(centre_square(source.load(i), options.size)[None], device))
        for i, name in enumerate(source.names)
    ]
    curves: dict[str, dict[str, list[float]]] = {}
    if options.baseline is not None:
        curves = _read_baseline(options.baseline)
    report: dict[str, Any] = {
        "kind": "eval style",
        "painting": options.style.name,
        "size": options.size,
        "photos": source.names,
        "iterations": options.iterations,
        "seeds": options.seeds,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": str(device),
        "networks": [],
        "baseline": {},
        "curves": curves,
    }

    def save() -> None:
        if options.output is not None:
            atomic_write(options.output, json.dumps(report, indent=1).encode())

    objectives: dict[str, Objective] = {}
    for network in networks:
        wanted = ObjectiveOptions(
            vgg=options.vgg,
            assume_normalisation=options.assume_normalisation,
            style_size=network.style_size,
        )
        objective = build_objective(wanted, options.style, None, device, weights=network.weights)
        _check_match(network, objective, options.style)
        key = _key(objective, network.style_size, options.size)
        objective = objectives.setdefault(key, objective)
        rows, seconds = _network_terms(network, objective, [photo for _, photo in photos])
        report["networks"].append(
            {
                "file": network.path.name,
                "sha256": network.checkpoint.meta.get("sha256"),
                "objective": key,
                "mean": {k: float(np.mean([row[k] for row in rows])) for k in TERMS},
                "per_photo": [row["total"] for row in rows],
                "seconds_per_picture": seconds,
            }
        )
    save()
    for key, objective in objectives.items():
        known = curves.setdefault(key, {})
        mean, pace = _baseline(objective, photos, known, options, save)
        report["baseline"][key] = {
            "weights": objective.weights.to_json(),
            "mean_curve": mean,
            "seconds_per_iteration": pace,
        }
    for entry in report["networks"]:
        curve = report["baseline"][entry["objective"]]["mean_curve"]
        total = entry["mean"]["total"]
        entry["lbfgs_iteration"] = first_at_most(curve, total)
        entry["versus"] = {str(m): total / curve[m] for m in MARKS if m <= options.iterations}
    save()
    if options.output is not None:
        atomic_write(options.output.with_suffix(".md"), markdown(report).encode())
    return report


def _read_baseline(path: Path) -> dict[str, dict[str, list[float]]]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return {
            str(key): {str(k): [float(v) for v in curve] for k, curve in curves.items()}
            for key, curves in data["curves"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a report of `fastgen eval style` ({error})") from error


def markdown(report: Mapping[str, Any]) -> str:
    """The report as a Markdown table with a line on how to read it."""
    photos, size, iterations = len(report["photos"]), report["size"], report["iterations"]
    lines = [
        f"# {report['painting']}: Eq. 9 on {photos} held-out photos, {size}x{size}",
        "",
        "| network | objective | content | style | TV | equals L-BFGS iteration | "
        + " | ".join(f"ratio to L-BFGS@{m}" for m in MARKS if m <= iterations)
        + " |",
        "|---|---|---|---|---|---|" + "---|" * sum(m <= iterations for m in MARKS),
    ]
    for entry in report["networks"]:
        mean, reached = entry["mean"], entry["lbfgs_iteration"]
        cells = [entry["file"], *(f"{mean[k]:.4g}" for k in TERMS)]
        cells.append(f"> {iterations}" if reached is None else str(reached))
        cells += [f"{v:.3f}" for v in entry["versus"].values()]
        lines.append("| " + " | ".join(cells) + " |")
    for key, baseline in report["baseline"].items():
        curve = baseline["mean_curve"]
        points = [i for i in (0, 10, 20, 30, 40, 50, 100, 200, 500) if i < len(curve)]
        lines += [
            "",
            f"Projected L-BFGS from noise ({report['seeds']} seed(s), objective {key}): "
            + ", ".join(f"@{i} {curve[i]:.4g}" for i in points)
            + ".",
        ]
    lines += ["", "Means over the photos, float32. A ratio below 1 favours the network.", ""]
    return "\n".join(lines)


def run(options: EvalStyleOptions) -> int:
    """Runs :func:`evaluate_style` and prints the table on stdout.

    Returns:
        Exit code 0.
    """
    print(markdown(evaluate_style(options)))
    return 0


if __name__ == "__main__":
    main("fastgen eval style", EvalStyleOptions, run)
