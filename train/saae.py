"""Trains a stylized adversarial autoencoder (Zhao et al., ACM MM 2017) or one of its baselines.

    python -m fastgen.train.saae --data mnist -o digits.safetensors

**Our reconstruction**: the paper trains "step by step" and does not say which three steps. Here
step 1 trains the generator alone on the reconstruction until that reaches a plateau, step 2 the
discriminator alone against the frozen generator, step 3 both, in turns. ``--schedule per-iter``
makes three updates in each iteration (discriminator, reconstruction, adversarial), ``joint`` is
step 3 from scratch. See docs/saae.md.
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

from fastgen.backends.torch import GraphModule
from fastgen.checkpoint import load_checkpoint, save_checkpoint
from fastgen.train.loop import (
    Processes,
    Progress,
    StateFolder,
    clock,
    open_tensorboard,
    stop_requests,
)
from fastgen.train.options import main
from fastgen.train.saae_batches import batch_at, build_system, data_of, grid, images_of
from fastgen.train.saae_data import SaaeData
from fastgen.train.saae_export import export
from fastgen.train.saae_options import SaaeOptions
from fastgen.train.saae_systems import Saae, System
from fastgen.train.saae_update import update
from fastgen.train.saae_watch import Plateau, Watch, diversity

__all__ = ["Phase", "SaaeResult", "phases", "run", "train_saae"]

# Options that may change when a run is resumed; everything else decides the result.
FREE_OPTIONS = frozenset(
    "output run_dir resume save_every preview_every log_every tensorboard name licence data_note "
    "quiet threads device source bank init".split()
)


@dataclass(frozen=True)
class SaaeResult:
    """What a training run did.

    Attributes:
        finished: False after Ctrl-C; the state is saved then and no checkpoint is written.
        step: updates done in total.
        losses: means of the last (up to 50) updates.
        warnings: collapse and divergence, by kind.
        output: the checkpoint.
        run_dir: state, previews and log.
    """

    finished: bool
    step: int
    losses: dict[str, float]
    warnings: dict[str, str]
    output: Path
    run_dir: Path


@dataclass(frozen=True)
class Phase:
    """Updates of one kind: ``rec``, ``dis``, ``joint`` or ``per-iter``."""

    kind: str
    steps: int
    may_end_early: bool = False


def phases(options: SaaeOptions) -> list[Phase]:
    """The phases of a run.

    Raises:
        ValueError: an option outside its limits.
    """
    for name, low in (
        ("steps", 0),
        ("rec_steps", 0),
        ("dis_steps", 0),
        ("batch", 2),
        ("width", 1),
        ("d_width", 1),
        ("style_features", 1),
        ("check_every", 1),
        ("patience", 1),
        ("bank", 0),
    ):
        if getattr(options, name) < low:
            raise ValueError(f"{name} is {getattr(options, name)}; it must be at least {low}")
    for name, high in (("lr", 1.0), ("decay", 1.0), ("adv_weight", 1000.0)):
        value = getattr(options, name)
        if not 0 <= value <= high:
            raise ValueError(f"{name} is {value}; it must be in 0..{high:g}")
    if options.model == "autoencoder":
        plan = [Phase("rec", options.steps)]
    elif options.model == "aae":  # the three updates of its paper
        plan = [Phase("per-iter", options.steps)]
    elif options.model in ("dcgan", "cgan"):
        plan = [Phase("joint", options.steps)]
    elif options.schedule == "three-step":
        plan = [
            Phase("rec", options.rec_steps, True),
            Phase("dis", options.dis_steps, True),
            Phase("joint", options.steps),
        ]
    else:
        plan = [Phase(options.schedule, options.steps)]
    plan = [phase for phase in plan if phase.steps]
    if not plan:
        raise ValueError("all numbers of steps are 0; nothing to train")
    return plan


def _rates(options: SaaeOptions, local: int, phase: Phase, last: bool) -> tuple[float, float]:
    """Learning rates: constant, falling to a hundredth over the last updates of the run."""
    d_lr = 0.3 * options.lr if options.d_lr is None else options.d_lr
    tail = options.decay * phase.steps
    left = (phase.steps - local) / tail if last and tail >= 1 else 1.0
    factor = max(0.01, min(1.0, left))
    return options.lr * factor, d_lr * factor


def train_saae(options: SaaeOptions) -> SaaeResult:
    """Trains one model and writes its checkpoint (fp16).

    Args:
        options: see :class:`SaaeOptions`. Under ``torchrun`` every process gets the same ones.

    Raises:
        ValueError: wrong options or data; also a loss that is not finite.
    """
    plan = phases(options)
    if options.output.is_dir() or options.output.suffix != ".safetensors":
        raise ValueError(f"output {options.output} must be a file name ending in .safetensors")
    if not options.output.parent.is_dir():
        raise ValueError(f"folder {options.output.parent} does not exist; create it first")
    if options.threads:
        torch.set_num_threads(options.threads)
    processes = Processes(options.device)
    clean = False
    try:
        result = _Run(options, plan, processes).train()
        clean = True
        return result
    finally:
        processes.close(clean)


def _start_from(system: System, path: Path) -> None:
    """Loads a checkpoint's weights into the generator; the discriminator stays fresh."""
    ckpt = load_checkpoint(path)
    generator: GraphModule = system.generator  # type: ignore[assignment]
    if ckpt.graph.weight_shapes() != generator.graph.weight_shapes():
        raise ValueError(
            f"{path} holds {ckpt.graph.name!r} of another shape than this "
            f"{generator.graph.name!r}; use the same --data, --model, --width and --style-features"
        )
    generator.load_weights(ckpt.weights)


class _Run:
    """One training run: its networks, where it stands, and what it writes."""

    def __init__(self, options: SaaeOptions, plan: list[Phase], processes: Processes) -> None:
        self.options, self.plan, self.processes = options, plan, processes
        self.run_dir = options.run_dir or options.output.with_suffix(".run")
        self.folder = StateFolder(self.run_dir / "state")
        if not options.resume and self.folder.steps():
            raise ValueError(
                f"{self.run_dir} holds a run saved at step {self.folder.steps()[-1]}; "
                "add --resume, or delete it"
            )
        self.data, self.validation = data_of(options)
        torch.manual_seed(options.seed)
        self.system = build_system(options, self.data).to(processes.device).train()
        if options.init is not None:
            _start_from(self.system, options.init)
        processes.same(self.system)
        self.optimizer = torch.optim.Adam(
            self.system.parameters(), lr=options.lr, betas=(0.5, 0.999)
        )
        self.watch, self.plateau = Watch(), Plateau(options.patience)
        self.phase, self.local, self.step, self.seconds = 0, 0, 0, 0.0
        self.lengths: list[int] = []  # of the finished phases
        self.recent: list[dict[str, float]] = []
        if options.resume:
            self._load()
        self.began = time.monotonic()

    # ------------------------------------------------------------------ states

    def _comparable(self) -> dict[str, Any]:
        values = dataclasses.asdict(self.options)
        kept = {k: v for k, v in values.items() if k not in FREE_OPTIONS}
        return json.loads(json.dumps(kept, default=str))

    def _load(self) -> None:
        state = self.folder.load(self.system, self.optimizer)
        saved = state.get("options", {})
        for key, value in self._comparable().items():
            if key in saved and saved[key] != value:
                raise ValueError(
                    f"cannot resume with {key}={value!r}, the saved run has {saved[key]!r}; use "
                    "the same options or start a new run"
                )
        self.step, self.seconds = int(state["step"]), float(state["seconds"])
        self.phase, self.local, self.lengths = state["phase"], state["local"], state["lengths"]
        self.recent = state["recent"]
        self.watch.load(state["watch"])
        self.plateau.load(state["plateau"])

    def _save(self) -> None:
        if not self.processes.main:
            return
        info = {
            "options": self._comparable(),
            "seconds": self.elapsed(),
            "phase": self.phase,
            "local": self.local,
            "lengths": self.lengths,
            "recent": self.recent,
            "watch": self.watch.to_json(),
            "plateau": self.plateau.to_json(),
        }
        self.folder.save(self.step, self.system, self.optimizer, info)

    def elapsed(self) -> float:
        """Seconds of all sessions of the run."""
        return self.seconds + time.monotonic() - self.began

    # ------------------------------------------------------------------ the loop

    def train(self) -> SaaeResult:
        options, processes = self.options, self.processes
        total = sum(self.lengths) + sum(p.steps for p in self.plan[self.phase :])
        progress = Progress(
            total, self.step, options.log_every, options.quiet or not processes.main
        )
        writer = None
        if processes.main:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            if options.tensorboard:
                writer = open_tensorboard(self.run_dir / "tensorboard")
        stopped = False
        with stop_requests() as stop_asked:
            while self.phase < len(self.plan) and not stopped:
                phase = self.plan[self.phase]
                values, stopped = self._one(phase, stop_asked())
                self.recent = [*self.recent[-49:], values]
                means = self._means()
                progress.update(self.step, {phase.kind: self.local, **means})
                if phase.kind in ("joint", "per-iter"):
                    for text in self.watch.update(self.step, values):
                        progress.say(text)
                if options.log_every and self.step % options.log_every == 0:
                    self._log(writer, phase.kind, means)
                if options.preview_every and self.step % options.preview_every == 0:
                    self._preview(writer, progress)
                if self._phase_ends(phase):
                    self.lengths.append(self.local)
                    total = sum(self.lengths) + sum(p.steps for p in self.plan[self.phase + 1 :])
                    progress.total = total
                    if len(self.plan) > 1:
                        progress.say(f"step {self.step}: {phase.kind} ends after {self.local}")
                    self.phase, self.local = self.phase + 1, 0
                    if self.phase < len(self.plan):  # those of the last phase are reported
                        self.recent = []
                    self.plateau = Plateau(options.patience)
                if options.save_every and self.step % options.save_every == 0:
                    self._save()
        if self.phase < len(self.plan):
            self._save()
            progress.say(
                f"stopped at step {self.step}; run the same command with --resume to continue"
            )
        else:
            self._finish(writer, progress)
        if writer is not None:
            writer.close()
        warnings = self.watch.warnings
        done = self.phase >= len(self.plan)
        return SaaeResult(done, self.step, means, warnings, options.output, self.run_dir)

    def _one(self, phase: Phase, asked: bool) -> tuple[dict[str, float], bool]:
        """One update; returns its terms, averaged over processes, and whether to stop."""
        options, processes = self.options, self.processes
        batch = batch_at(
            self.data,
            self.step,
            options.batch,
            options.style_features,
            options.seed,
            processes.device,
            processes.rank,
            processes.world,
        )
        rates = _rates(options, self.local, phase, self.phase == len(self.plan) - 1)
        low = options.precision == "bf16"
        terms = update(
            self.system,
            self.optimizer,
            batch,
            phase.kind,
            rates,
            options.adv_weight,
            processes,
            low,
        )
        packed = torch.stack([*(t.float() for t in terms.values()), torch.tensor(float(asked))])
        *values, stop = processes.mean(packed).tolist()
        self.step, self.local = self.step + 1, self.local + 1
        if not all(math.isfinite(v) for v in values):
            raise ValueError(
                f"the loss is not finite at step {self.step}; lower --lr or use --precision fp32; "
                f"the last good state is in {self.folder.folder}"
            )
        return dict(zip(terms, values, strict=True)), stop > 0

    def _means(self) -> dict[str, float]:
        keys = self.recent[-1] if self.recent else {}
        return {key: float(np.mean([v[key] for v in self.recent if key in v])) for key in keys}

    def _phase_ends(self, phase: Phase) -> bool:
        """Whether its updates are done, or a plateau is reached (checked on held-out data)."""
        done = self.local >= phase.steps
        if not phase.may_end_early or not (done or self.local % self.options.check_every == 0):
            return done
        value = self._validate(phase.kind)
        if phase.kind == "rec":
            self.watch.rec_level = value
        return self.plateau.reached(value) or done

    @torch.no_grad()
    def _validate(self, kind: str) -> float:
        """Held-out reconstruction loss, or the discriminator's share of errors."""
        count, seed = min(256, len(self.validation)), self.options.seed + 1
        latent, device = self.options.style_features, self.processes.device
        batch = batch_at(self.validation, 0, count, latent, seed, device)
        self.system.eval()
        if kind == "rec":
            value = self.system.rec_loss(self.system.rebuild(batch), batch)
        else:
            value = 1 - self.system.d_loss(self.system.outputs(batch), batch)[1]
        self.system.train()
        return float(self.processes.mean(value.detach().clone()))

    # ------------------------------------------------------------------ what it writes

    def _log(self, writer: Any, kind: str, means: dict[str, float]) -> None:
        if not self.processes.main:
            return
        with open(self.run_dir / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self.step, "phase": kind, **means}) + "\n")
        if writer is not None:
            for name, value in means.items():
                writer.add_scalar(f"loss/{name}", value, self.step)

    def _preview(self, writer: Any, progress: Progress, name: str = "") -> float | None:
        """Writes the sample grid and checks whether the style is used."""
        if not self.processes.main:
            return None
        latent, device = self.options.style_features, self.processes.device
        picture = grid(self.system, self.validation, device, latent)
        picture.save(self.run_dir / f"preview-{name or f'{self.step:06d}'}.png")
        if writer is not None:
            writer.add_image("samples", np.asarray(picture), self.step, dataformats="HWC")
        if not isinstance(self.system, Saae) or not self.data.glyphs:
            return None
        share = self._diversity(self.system, self.validation, device)
        if self.plan[min(self.phase, len(self.plan) - 1)].kind in ("joint", "per-iter"):
            for text in self.watch.diversity(self.step, share):
                progress.say(text)
        return share

    @staticmethod
    def _diversity(system: Saae, data: SaaeData, device: torch.device) -> float:
        most = int(np.bincount(data.labels).argmax())
        mine = np.flatnonzero(data.labels == most)[:200]
        styles = np.random.default_rng(4).choice(len(data.styles), min(64, len(data.styles)))
        content = images_of(data.contents[data.content_of[mine[:1]]], device)[0]
        system.eval()
        share = diversity(
            system,
            content,
            images_of(data.styles[styles], device),
            images_of(data.images[mine], device),
        )
        system.train()
        return share

    def _finish(self, writer: Any, progress: Progress) -> None:
        if not self.processes.main:
            return
        share = self._preview(writer, progress, "final")
        self._save()  # so that the last weights also exist in float32
        record = {
            "phases": [
                {"kind": p.kind, "steps": n} for p, n in zip(self.plan, self.lengths, strict=True)
            ],
            "losses": {k: float(f"{v:.5g}") for k, v in self._means().items()},
            "warnings": self.watch.warnings,
            "diversity": None if share is None else float(f"{share:.3g}"),
            "seconds": round(self.elapsed()),
            "processes": self.processes.world,
        }
        checkpoint = export(self.options, self.system, self.data, record)
        save_checkpoint(self.options.output, checkpoint, dtype="float16")
        progress.say(f"{self.options.output}  {self.step} steps in {clock(self.elapsed())}")


def run(options: SaaeOptions) -> int:
    """Runs :func:`train_saae` for a command line; exit code 0, or 130 after Ctrl-C."""
    return 0 if train_saae(options).finished else 130


if __name__ == "__main__":
    main("fastgen train saae", SaaeOptions, run)
