"""Trains a feedforward style network with perceptual losses (Johnson, Alahi, Fei-Fei, ECCV 2016).

    python -m fastgen.train.style --style painting.jpg --content photos/ -o my_style.safetensors

The recipe in short: random crops of photos -> network -> VGG features; Gram matrices are pulled to
the painting's, relu2_2 to the photo's, Adam. See docs/training.md for the balance of the terms.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import fastgen
from fastgen import models
from fastgen.backends.torch import GraphModule
from fastgen.calibrate import calibrate
from fastgen.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from fastgen.graph import Graph
from fastgen.train.data import PhotoSet, batch_at, centre_square
from fastgen.train.loop import (
    Processes,
    Progress,
    StateFolder,
    clock,
    open_tensorboard,
    stop_requests,
)
from fastgen.train.objective import (
    Objective,
    Weights,
    build_objective,
    crops_for_calibration,
    to_tensor,
)
from fastgen.train.optim import make_optimizer
from fastgen.train.options import StyleOptions, main

__all__ = ["StyleOptions", "StyleResult", "run", "train_style"]

HELD_OUT = 4
RANGE_CROPS = 16  # that activation ranges are measured on
TERMS = ("total", "content", "style", "tv")
# Options that may change when a run is resumed; everything else decides the result.
FREE_OPTIONS = frozenset(
    "output run_dir resume save_every preview preview_every log_every tensorboard name title "
    "artist year licence photos_note vgg_note quiet threads device content style vgg init".split()
)


@dataclass(frozen=True)
class StyleResult:
    """What a training run did.

    Attributes:
        finished: False after Ctrl-C; the state is saved then and no checkpoint is written.
        step: Steps done in total.
        losses: Means of the last (up to 50) steps: total, content, style, tv.
        output: The checkpoint.
        run_dir: State, previews and log.
    """

    finished: bool
    step: int
    losses: dict[str, float]
    output: Path
    run_dir: Path


@dataclass(frozen=True)
class Stage:
    """Crops of one size for a number of steps."""

    size: int
    batch: int
    steps: int


def stages(options: StyleOptions) -> list[Stage]:
    """The stages of a run.

    Raises:
        ValueError: A size, batch or number of steps out of range.
    """
    for name, low in (("size", 16), ("batch", 1), ("steps", 0), ("finish_steps", 0)):
        if getattr(options, name) < low:
            raise ValueError(f"{name} is {getattr(options, name)}; it must be at least {low}")
    found = [Stage(options.size, options.batch, options.steps)]
    if options.finish_steps:
        size = options.finish_size
        batch = options.finish_batch or max(1, round(options.batch * (options.size / size) ** 2))
        found.append(Stage(size, batch, options.finish_steps))
    for stage in found:
        if stage.size % 4 or stage.size < 16 or stage.batch < 1:
            raise ValueError(f"crop size {stage.size} must be a multiple of 4 and at least 16")
    if not sum(stage.steps for stage in found):
        raise ValueError("steps and finish_steps are both 0; nothing to train")
    return found


def stage_at(plan: list[Stage], step: int) -> Stage:
    """The stage to which a step (from 0) belongs."""
    for stage in plan:
        if step < stage.steps:
            return stage
        step -= stage.steps
    return plan[-1]


def learning_rate(options: StyleOptions, step: int, total: int) -> float:
    """Rises over 30 steps, stays, then a half cosine to 2 % over the last ``decay`` of the steps.

    The rise keeps a finished network (``--init``) from being thrown off by the first steps, whose
    momentum and second moments know a handful of crops only.
    """
    rate = options.lr * min(1.0, (step + 1) / 30)
    tail = options.decay * total
    done = (step - (total - tail)) / tail if tail > 0 else -1.0
    if done <= 0:
        return rate
    return rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def build_graph(options: StyleOptions) -> Graph:
    """The graph to train: ``--model``, ``--width``, ``--norm``."""
    config: dict[str, object] = {"norm": options.norm}
    if options.width is not None:
        config["width"] = options.width
    elif options.model == "transformer_net":
        config["width"] = 16
    return models.create(options.model, **config)


@torch.no_grad()
def photo_sets(options: StyleOptions) -> tuple[PhotoSet, PhotoSet]:
    """Training photos and preview photos, disjoint unless there are too few to spare any."""
    photos = PhotoSet(options.content)
    if options.preview is not None:
        return photos, PhotoSet(options.preview)
    if len(photos) < 4 * HELD_OUT:
        return photos, photos
    held = [round((i + 0.5) * len(photos) / HELD_OUT) for i in range(HELD_OUT)]
    rest = [i for i in range(len(photos)) if i not in held]
    return photos.restrict(rest), photos.restrict(held)


def preview_grid(
    module: GraphModule, photos: PhotoSet, device: torch.device, side: int = 256
) -> Image.Image:
    """Photos in the upper row, stylised below."""
    count = min(HELD_OUT, len(photos))
    batch = np.stack([centre_square(photos.load_or_next(i), side) for i in range(count)])
    module.eval()
    with torch.inference_mode():
        out = module(to_tensor(batch, device)).clamp(0, 255).round().byte()
    module.train()
    below = out.permute(0, 2, 3, 1).cpu().numpy()
    return Image.fromarray(np.concatenate([np.concatenate(batch, 1), np.concatenate(below, 1)], 0))


@torch.no_grad()
def match_range(module: GraphModule, photos: Tensor) -> None:
    """Scales a fresh network's last convolution to the photos' mean and a third of their contrast.

    PyTorch's initial weights give outputs around 0 +- 1; Adam moves each weight by at most the
    learning rate a step and would spend the first hundreds of steps on reaching 0..255. Not the
    whole contrast: an untrained network's picture is noise, which strong is far from any painting.
    Measured on a half-width network: the style loss of step 200 comes at step 50. Does nothing
    when the output does not come straight from a convolution.

    Args:
        module: Network with one output.
        photos: (N, 3, H, W) in 0..255.
    """
    graph = module.graph
    last = next(node for node in graph.nodes if node.name in graph.outputs.values())
    layer = module.get_submodule(last.name) if last.op == "conv" else None
    if not isinstance(layer, torch.nn.Conv2d) or layer.bias is None:
        return
    out = module(photos)
    gain = photos.std((0, 2, 3)) / 3 / out.std((0, 2, 3)).clamp_min(1e-6)
    layer.weight *= gain.view(-1, 1, 1, 1)
    layer.bias.copy_(photos.mean((0, 2, 3)) - (out.mean((0, 2, 3)) - layer.bias) * gain)


def _comparable(options: StyleOptions) -> dict[str, Any]:
    values = dataclasses.asdict(options)
    return json.loads(
        json.dumps({k: v for k, v in values.items() if k not in FREE_OPTIONS}, default=str)
    )


def _check_same(options: StyleOptions, state: dict[str, Any]) -> None:
    saved = state.get("options", {})
    for key, value in _comparable(options).items():
        if key in saved and saved[key] != value:
            raise ValueError(
                f"cannot resume with {key}={value!r}, the saved run has {saved[key]!r}; use the "
                "same options or start a new run with --init"
            )


def training_history(ckpt: Checkpoint) -> list[dict[str, Any]]:
    """All runs that led to a checkpoint, oldest first, as the ``earlier`` of the next run.

    Args:
        ckpt: a checkpoint that a run starts from (``--init``).

    Returns:
        One entry a run: style, sha256, painting, stages, steps, learning rate and strength; a
        checkpoint that was not trained here (an imported one) gives only its name and sha256.
    """
    provenance = ckpt.meta.get("provenance") or {}
    training, objective = provenance.get("training") or {}, provenance.get("objective") or {}
    entry = {"style": ckpt.meta.get("style"), "sha256": ckpt.meta.get("sha256")}
    entry |= {"painting": (provenance.get("painting") or {}).get("file")}
    entry |= {
        k: training[k] for k in ("stages", "steps", "optimizer", "lr", "seed") if k in training
    }
    entry |= {k: objective[k] for k in ("style_strength", "tv_per_value") if k in objective}
    return [*(training.get("earlier") or []), entry]


def _provenance(
    options: StyleOptions,
    objective: Objective,
    photos: PhotoSet,
    plan: list[Stage],
    step: int,
    losses: dict[str, float],
    seconds: float,
    world: int,
) -> dict[str, Any]:
    painting = {k: getattr(options, k) for k in ("title", "artist", "year")}
    return {
        "painting": {
            "file": options.style.name,
            **{k: v for k, v in painting.items() if v is not None},
            "short_side": options.style_size,
        },
        "photos": {
            "source": options.content.name,
            "count": len(photos),
            "names_sha256": photos.digest(),
            "note": options.photos_note,
        },
        "loss_network": {**objective.network.info, "note": options.vgg_note},
        "objective": {
            **objective.weights.to_json(),
            "style_strength": options.style_strength,
            "style_size": options.style_size,
            "gram_norms": {
                k: float(f"{float(g.square().sum()):.6g}") for k, g in objective.grams.items()
            },
        },
        "training": {
            "steps": step,
            "stages": [dataclasses.asdict(stage) for stage in plan],
            "processes": world,
            "optimizer": options.optimizer,
            "lr": options.lr,
            "precision": options.precision,
            "seed": options.seed,
            "earlier": training_history(load_checkpoint(options.init)) if options.init else [],
            "losses": {k: float(f"{v:.5g}") for k, v in losses.items()},
            "seconds": round(seconds),
            "torch": torch.__version__,
            "fastgen": getattr(fastgen, "__version__", "unknown"),
        },
    }


def _check_output(options: StyleOptions) -> Path:
    if options.output.is_dir() or options.output.suffix != ".safetensors":
        raise ValueError(f"output {options.output} must be a file name ending in .safetensors")
    if not options.output.parent.is_dir():
        raise ValueError(f"folder {options.output.parent} does not exist; create it first")
    return options.run_dir or options.output.with_suffix(".run")


def train_style(options: StyleOptions) -> StyleResult:
    """Trains one style network and writes its checkpoint (fp16).

    Args:
        options: See :class:`StyleOptions`. Under ``torchrun`` every process gets the same ones.

    Returns:
        What was done; ``finished`` is False after Ctrl-C.

    Raises:
        ValueError: Wrong options or unreadable files; also a loss that is not finite.
    """
    plan = stages(options)
    run_dir = _check_output(options)
    if options.threads:
        torch.set_num_threads(options.threads)
    processes = Processes(options.device)
    clean = False
    try:
        result = _train(options, plan, run_dir, processes)
        clean = True
        return result
    finally:
        processes.close(clean)


def _train(
    options: StyleOptions, plan: list[Stage], run_dir: Path, processes: Processes
) -> StyleResult:
    device = processes.device
    total = sum(stage.steps for stage in plan)
    folder = StateFolder(run_dir / "state")
    if not options.resume and folder.steps():
        raise ValueError(
            f"{run_dir} holds a run saved at step {folder.steps()[-1]}; add --resume, or delete it"
        )
    photos, held = photo_sets(options)
    graph = build_graph(options)
    torch.manual_seed(options.seed)
    module = GraphModule(graph)
    if options.init is not None:
        start_from = load_checkpoint(options.init)
        if start_from.graph.weight_shapes() != graph.weight_shapes():
            raise ValueError(
                f"{options.init} holds {start_from.graph.name!r} of another shape than this "
                f"{graph.name!r}; use the same --model, --width and --norm"
            )
        module.load_weights(start_from.weights)
    module.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    if options.init is None:
        match_range(module, to_tensor(batch_at(photos, 0, 64, 8, options.seed), device))
    processes.same(module)
    optimizer = make_optimizer(options.optimizer, module.parameters(), options.lr)
    first, seconds_before, weights = 0, 0.0, None
    recent: list[list[float]] = []  # terms of the last steps
    if options.resume:
        state = folder.load(module, optimizer)
        _check_same(options, state)
        first, seconds_before = int(state["step"]), float(state["seconds"])
        weights = Weights.from_json(state["objective"])
        recent = state.get("recent", [])
    low = torch.bfloat16 if options.precision == "bf16" else torch.float32
    crops = crops_for_calibration(photos, device)
    objective = build_objective(options, options.style, crops, device, low, weights)
    progress = Progress(total, first, options.log_every, options.quiet or not processes.main)
    writer = (
        open_tensorboard(run_dir / "tensorboard")
        if options.tensorboard and processes.main
        else None
    )
    if processes.main:
        run_dir.mkdir(parents=True, exist_ok=True)
    info = {
        "options": _comparable(options),
        "objective": objective.weights.to_json(),
        "graph": graph.to_json(),
    }
    began = time.monotonic()
    step, stopped = first, False

    def elapsed() -> float:
        return seconds_before + time.monotonic() - began

    def save() -> None:
        if processes.main:
            folder.save(step, module, optimizer, {**info, "seconds": elapsed(), "recent": recent})

    with stop_requests() as stop_asked:
        while step < total and not stopped:
            stage = stage_at(plan, step)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(options, step, total)
            batch = batch_at(
                photos, step, stage.size, stage.batch, options.seed, processes.rank, processes.world
            )
            losses = _step(
                module, objective, to_tensor(batch, device), optimizer, options, processes
            )
            step += 1
            # one message carries the losses and whether anybody was asked to stop
            *values, asked = processes.mean(
                torch.cat([losses, losses.new_tensor([float(stop_asked())])])
            ).tolist()
            stopped = asked > 0
            if not all(math.isfinite(v) for v in values):
                raise ValueError(
                    f"the loss is not finite at step {step}; lower --lr or use --precision "
                    f"fp32; the last good state is in {folder.folder}"
                )
            recent = [*recent[-49:], values]
            means = dict(zip(TERMS, np.mean(recent, axis=0).tolist(), strict=True))
            progress.update(step, means)
            if processes.main and options.log_every and step % options.log_every == 0:
                _log(run_dir, writer, step, means, optimizer.param_groups[0]["lr"])
            if processes.main and options.preview_every and step % options.preview_every == 0:
                grid = preview_grid(module, held, device)
                grid.save(run_dir / f"preview-{step:06d}.png")
                if writer is not None:
                    writer.add_image("preview", np.asarray(grid), step, dataformats="HWC")
            if options.save_every and step % options.save_every == 0 and step < total:
                save()
        if stopped and step < total:
            save()
            progress.say(f"stopped at step {step}; run the same command with --resume to continue")
    if writer is not None:
        writer.close()
    means = dict(zip(TERMS, np.mean(recent, axis=0).tolist(), strict=True)) if recent else {}
    if step < total:
        return StyleResult(False, step, means, options.output, run_dir)
    if processes.main:
        save()  # so that the last weights also exist in float32
        preview_grid(module, held, device).save(run_dir / "preview-final.png")
        meta = {
            "kind": "style",
            "input_range": [0, 255],
            "output_range": [0, 255],
            "channel_order": "rgb",
            "style": options.name or options.output.stem,
            "licence": options.licence,
            "provenance": _provenance(
                options, objective, photos, plan, step, means, elapsed(), processes.world
            ),
        }
        checkpoint = Checkpoint(graph, module.export_weights(), meta)
        calibrate(checkpoint, batch_at(held, 0, options.size, RANGE_CROPS, options.seed))
        save_checkpoint(options.output, checkpoint, dtype="float16")
        progress.say(f"{options.output}  {step} steps in {clock(elapsed())}")
    return StyleResult(True, step, means, options.output, run_dir)


def _step(
    module: GraphModule,
    objective: Objective,
    crops: Tensor,
    optimizer: torch.optim.Optimizer,
    options: StyleOptions,
    processes: Processes,
) -> Tensor:
    """One update; returns the mean total, content, style and TV terms of this process's crops."""
    targets = objective.content_targets(crops)
    with torch.autocast(crops.device.type, torch.bfloat16, enabled=options.precision == "bf16"):
        images = module(crops)
    # The loss sees the unclamped picture: a clamp has no gradient where the network overshoots.
    terms = objective(images.float(), targets)
    optimizer.zero_grad(set_to_none=True)
    terms["total"].mean().backward()
    processes.average(module)
    if options.clip > 0:
        torch.nn.utils.clip_grad_norm_(module.parameters(), options.clip)
    optimizer.step()
    return torch.stack([terms[name].detach().mean() for name in TERMS])


def _log(run_dir: Path, writer: Any, step: int, means: dict[str, float], lr: float) -> None:
    with open(run_dir / "log.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, "lr": lr, **means}) + "\n")
    if writer is not None:
        for name, value in means.items():
            writer.add_scalar(f"loss/{name}", value, step)
        writer.add_scalar("lr", lr, step)


def run(options: StyleOptions) -> int:
    """Runs :func:`train_style` for a command line.

    Returns:
        Exit code: 0, or 130 after Ctrl-C.
    """
    return 0 if train_style(options).finished else 130


if __name__ == "__main__":
    main("fastgen train style", StyleOptions, run)
