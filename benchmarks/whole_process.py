"""Whole-process comparison: the `fastgen` command against a script that imports torch.

Both read a 512x512 photo, run the full style network with the same weights and write a PNG. They
take turns; wall time and peak resident memory are the operating system's, from start to exit.
This parent imports neither numpy nor torch, because a child's reported peak memory includes what
its parent held when it was started.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SIDE = 512  # px


def prepare(folder: Path) -> None:
    """Writes photo.png, network.json (what to give --style) and weights.pth into ``folder``."""
    import torch
    from PIL import Image, ImageOps

    import fastgen
    from benchmarks.networks import network

    with Image.open(ROOT / "examples" / "coffee.jpg") as image:
        photo = ImageOps.fit(image.convert("RGB"), (SIDE, SIDE), Image.Resampling.LANCZOS)
    photo.save(folder / "photo.png")
    style, note = network("full", folder)
    (folder / "network.json").write_text(json.dumps({"style": style, "weights": note}), "utf-8")
    renamed = {}
    for key, value in fastgen.load_style(style).weights.items():
        node, parameter = key.split(".")
        renamed[f"{_peer_name(node)}.{parameter}"] = torch.from_numpy(value)
    torch.save(renamed, folder / "weights.pth")


def _peer_name(node: str) -> str:
    """The name of a node's module in peer_script.py."""
    names = {"down0": 1, "down1": 2, "down2": 3, "up1": 4, "up0": 5}
    if node.startswith("res"):
        block, layer, *norm = node.split("_")
        number = layer.removeprefix("conv")
        name = f"res{int(block[3:]) + 1}"
        return f"{name}.in{number}" if norm else f"{name}.conv{number}.conv2d"
    if node.endswith("_norm"):
        return f"in{names[node.removesuffix('_norm')]}"
    if node in ("up1", "up0", "out"):
        return f"deconv{('up1', 'up0', 'out').index(node) + 1}.conv2d"
    return f"conv{names[node]}.conv2d"


def largest_difference(a: Path, b: Path) -> int:
    """Largest difference of two pictures in 8-bit steps; run in a process of its own."""
    import numpy as np
    from PIL import Image

    first, second = (np.asarray(Image.open(p).convert("RGB"), np.int16) for p in (a, b))
    return int(np.abs(first - second).max())


def _run(command: list[str], folder: Path) -> tuple[float, int]:
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with code {process.returncode}")
    return wall, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(rounds: int = 7) -> dict[str, Any]:
    """Alternates both programs.

    Args:
        rounds: of each, at least 5; one more of each before them is not counted.

    Returns:
        JSON-ready: for ``fastgen`` and ``torch`` the wall times (s) and peak memory (bytes) of
        each round and their medians, ``speedup`` (median of the rounds' ratios), ``weights``,
        ``size`` and ``largest_difference`` of the two pictures in 8-bit steps.

    Raises:
        ValueError: too few rounds.
        RuntimeError: a program failed.
    """
    if rounds < 5:
        raise ValueError(f"rounds is {rounds}, must be at least 5")
    me = [sys.executable, "-m", "benchmarks.whole_process"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([*me, "--prepare", name], cwd=ROOT, check=True)
        chosen = json.loads((folder / "network.json").read_text("utf-8"))
        tool = str(Path(sys.executable).with_name("fastgen"))
        script = str(ROOT / "benchmarks" / "peer_script.py")
        ours = [tool, "stylize", "photo.png", "-o", "a.png", "--style", chosen["style"]]
        commands = {
            "fastgen": [*ours, "--precision", "fp32"],  # the script's
            "torch": [sys.executable, script, "photo.png", "weights.pth", "b.png"],
        }
        found: dict[str, Any] = {side: {"wall_s": [], "peak_bytes": []} for side in commands}
        for index in range(rounds + 1):
            for side in sorted(commands, reverse=bool(index % 2)):
                wall, peak = _run(commands[side], folder)
                if index:
                    found[side]["wall_s"].append(wall)
                    found[side]["peak_bytes"].append(peak)
        pictures = [str(folder / "a.png"), str(folder / "b.png")]
        compare = subprocess.run(
            [*me, "--compare", *pictures], cwd=ROOT, check=True, capture_output=True, text=True
        )
    for side in found.values():
        side["wall_s_median"] = median(side["wall_s"])
        side["peak_bytes_median"] = median(side["peak_bytes"])
    ratios = zip(found["torch"]["wall_s"], found["fastgen"]["wall_s"], strict=True)
    return found | {
        "size": f"{SIDE}x{SIDE}",
        "weights": chosen["weights"],
        "speedup": median(peer / ours for peer, ours in ratios),
        "largest_difference": int(compare.stdout),
    }


def main() -> None:
    """Prints the comparison as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--compare", type=Path, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.prepare:
        prepare(args.prepare)
    elif args.compare:
        print(largest_difference(*args.compare))
    else:
        print(json.dumps(measure(args.rounds), indent=1))


if __name__ == "__main__":
    main()
