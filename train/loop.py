"""What every training loop needs: saved states, Ctrl-C, progress, processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """The torch device for ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ValueError: Unknown name, or no such GPU.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r} is unknown; use auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device {name!r} is not supported; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        index = local_rank if device.index is None else device.index
        if index >= count:
            raise ValueError(f"device {name!r}: torch sees {count} CUDA devices; use --device cpu")
        device = torch.device("cuda", index)
    return device


class Processes:
    """The processes of a ``torchrun`` job, or the single process of an ordinary run.

    Attributes:
        rank: This process.
        world: Number of processes.
        local_rank: This process on its machine, picks the GPU.
    """

    def __init__(self, device: str) -> None:
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self.device = pick_device(device, self.local_rank)
        self.started = False
        if self.world > 1:
            backend = "nccl" if self.device.type == "cuda" else "gloo"
            if self.device.type == "cuda":
                torch.cuda.set_device(self.device)
            dist.init_process_group(backend)
            self.started = True

    @property
    def main(self) -> bool:
        """True on the process that writes files."""
        return self.rank == 0

    def average(self, module: nn.Module) -> None:
        """Replaces every gradient by its mean over the processes, in one message."""
        if self.world == 1:
            return
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in gradients])
        dist.all_reduce(flat)
        flat /= self.world
        offset = 0
        for g in gradients:
            g.copy_(flat[offset : offset + g.numel()].view_as(g))
            offset += g.numel()

    def same(self, module: nn.Module) -> None:
        """Gives every process the weights and buffers of the first."""
        if self.world > 1:
            for tensor in module.state_dict().values():
                dense = tensor.contiguous()  # gloo takes no channels_last
                dist.broadcast(dense, 0)
                tensor.copy_(dense)

    def mean(self, values: Tensor) -> Tensor:
        """Mean of a tensor over the processes."""
        if self.world > 1:
            dist.all_reduce(values)
            values /= self.world
        return values

    def close(self, clean: bool = True) -> None:
        """Leaves the group; after a clean run all processes wait for the slowest first."""
        if self.started:
            if clean:
                dist.barrier()
            dist.destroy_process_group()
            self.started = False


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Turns the first Ctrl-C or SIGTERM into a flag; the second one interrupts at once.

    Yields:
        A function that says whether a stop was asked for.
    """
    asked = False

    def handler(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    previous: dict[int, Any] = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, handler)
    except ValueError:
        pass  # not the main thread: signals stay with whoever owns them
    try:
        yield lambda: asked
    finally:
        for key, old in previous.items():
            signal.signal(key, old)


class StateFolder:
    """Resumable states of a run: ``step-NNNNNN/{model,optimizer}.safetensors + state.json``.

    A state is written under a temporary name and renamed: a folder with its final name is complete.

    Args:
        folder: The run folder's ``state``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def steps(self) -> list[int]:
        """Steps of the complete states, ascending."""
        found = self.folder.glob("step-*") if self.folder.is_dir() else ()
        return sorted(
            int(p.name[5:]) for p in found if p.name[5:].isdigit() and (p / "state.json").is_file()
        )

    def save(
        self,
        step: int,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        info: Mapping[str, Any],
    ) -> Path:
        """Writes a state and deletes the older ones.

        Args:
            step: Finished steps.
            module: Its whole ``state_dict`` is saved.
            optimizer: Over ``module.parameters()``, one group; its states are tensors.
            info: JSON-ready: options, history, objective.

        Returns:
            The folder of the state.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        final = self.folder / f"step-{step:06d}"
        part = self.folder / f".step-{step:06d}.{os.getpid()}.tmp"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        save_file(
            {k: v.contiguous() for k, v in module.state_dict().items()}, part / "model.safetensors"
        )
        names = [name for name, _ in module.named_parameters()]
        moments: dict[str, Tensor] = {}
        for index, entry in optimizer.state_dict()["state"].items():
            for key, value in entry.items():
                moments[f"{names[index]}.{key}"] = torch.as_tensor(value).contiguous()
        save_file(moments, part / "optimizer.safetensors")
        random = {"torch": bytes(torch.get_rng_state().tolist()).hex()}
        state = {"format": 1, "step": step, "random": random, **info}
        (part / "state.json").write_text(json.dumps(state, allow_nan=False), encoding="utf-8")
        if final.exists():
            shutil.rmtree(part)  # the same step of the same run: nothing to add
        else:
            os.rename(part, final)
        for old in self.steps():
            if old != step:
                shutil.rmtree(self.folder / f"step-{old:06d}", ignore_errors=True)
        return final

    def load(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Restores the newest state into ``module``, ``optimizer`` and torch's random state.

        Returns:
            The content of ``state.json``.

        Raises:
            ValueError: There is no state, or it does not fit.
        """
        steps = self.steps()
        if not steps:
            raise ValueError(f"{self.folder} holds no saved state; start without --resume")
        folder = self.folder / f"step-{steps[-1]:06d}"
        try:
            state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            if state.get("format") != 1:
                raise ValueError(f"format {state.get('format')!r}, this version reads 1")
            module.load_state_dict(load_file(folder / "model.safetensors"))
            moments = load_file(folder / "optimizer.safetensors")
            current = optimizer.state_dict()
            entries: dict[int, dict[str, Tensor]] = {}
            for index, (name, parameter) in enumerate(module.named_parameters()):
                if f"{name}.step" not in moments:
                    continue
                entries[index] = {"step": moments[f"{name}.step"]}
                for key in ("exp_avg", "exp_avg_sq"):
                    if f"{name}.{key}" not in moments:
                        continue  # Muon's matrices have no second moment
                    # in the parameter's memory layout, as in an uninterrupted run
                    moment = torch.empty_like(parameter, requires_grad=False)
                    entries[index][key] = moment.copy_(moments[f"{name}.{key}"])
            optimizer.load_state_dict({**current, "state": entries})
            raw = bytes.fromhex(state["random"]["torch"])
            torch.set_rng_state(torch.frombuffer(bytearray(raw), dtype=torch.uint8))
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            reason = str(error).split("\n")[0][:200]
            raise ValueError(
                f"{folder} cannot be resumed ({reason}); delete it to start again"
            ) from error
        return state


def clock(seconds: float) -> str:
    """``75`` as ``1:15``, ``3675`` as ``1:01:15``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """Live losses and ETA on a terminal, one line now and then elsewhere.

    Args:
        total: Steps of the run.
        start: First step of this process's run (after resuming).
        every: Steps between permanent lines, 0 for none.
        quiet: Print nothing.
        stream: Where to print, stderr by default.
    """

    def __init__(
        self, total: int, start: int, every: int, quiet: bool, stream: TextIO | None = None
    ) -> None:
        self.total, self.start, self.every, self.quiet = total, start, every, quiet
        self.stream = stream or sys.stderr
        self.live = not quiet and self.stream.isatty()
        self.began = self.shown = time.monotonic()

    def update(self, step: int, values: Mapping[str, float]) -> None:
        """Reports that ``step`` steps are done; cheap enough to call every step."""
        if self.quiet:
            return
        now = time.monotonic()
        line = bool(self.every) and (step % self.every == 0 or step == self.total)
        if not line and not (self.live and now - self.shown > 0.2):
            return
        self.shown = now
        pace = (now - self.began) / max(1, step - self.start)
        losses = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        text = (
            f"step {step}/{self.total}  {losses}  {pace:.2f} s/step  "
            f"left {clock(pace * (self.total - step))}"
        )
        if self.live:
            self.stream.write(f"\r\x1b[2K{text}" + ("\n" if line else ""))
        else:
            self.stream.write(text + "\n")
        self.stream.flush()

    def say(self, text: str) -> None:
        """Prints a line without disturbing the live one."""
        if not self.quiet:
            self.stream.write(("\r\x1b[2K" if self.live else "") + text + "\n")
            self.stream.flush()


def open_tensorboard(folder: Path) -> Any:
    """A TensorBoard writer for ``folder``.

    Raises:
        ValueError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(
            "--tensorboard needs the package tensorboard; pip install 'fastgen[train]'"
        ) from error
    return SummaryWriter(str(folder))
