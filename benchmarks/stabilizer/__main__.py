"""Measures the stabilizer: how much steadier, at which price, and what it must not cost.

    python -m benchmarks.stabilizer --output docs/results/video/stabilizer.json
    python -m benchmarks.stabilizer --output ... --part price    on an idle machine; the rest stays
    python -m benchmarks.stabilizer --clip docs/images/stabilizer.webp

Needs $FASTGEN_DATA (photos, clips, paintings, loss network), torch and opencv-python-headless.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import fastgen
from benchmarks.machine import describe
from benchmarks.stabilizer.clips import Clip, real, synthetic
from benchmarks.stabilizer.measures import steadiness
from benchmarks.stabilizer.report import markdown
from fastgen.checkpoint import atomic_write
from fastgen.stabilizer import DEFAULT_STRENGTH

STYLES = (
    "great_wave.small",
    "starry_night.small",
    "composition_vii.small",
    "great_wave",
    "starry_night",
)
ROOT = Path(__file__).resolve().parent.parent.parent
TERMS = ("total", "style", "content")
PARTS = ("quality", "price")
OBJECTIVE_FRAMES = (-1, -6)  # of each clip
OBJECTIVE_SIZE = 256


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stabilizer", description=__doc__)
    parser.add_argument("--styles", nargs="+", default=list(STYLES), metavar="STYLE")
    parser.add_argument("--strength", type=float, default=DEFAULT_STRENGTH)
    parser.add_argument("--part", choices=PARTS, help="measure only this")
    parser.add_argument("--photos", type=int, default=2, help="photos for synthetic clips, 1..4")
    parser.add_argument("--seconds", type=float, default=6.0, help="of timing, for each style")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--output", type=Path, help="JSON; the table goes beside it as .md")
    parser.add_argument("--clip", type=Path, help="write a clip side by side instead (.webp)")
    options = parser.parse_args()
    data = os.environ.get("FASTGEN_DATA")
    if not data:
        parser.error("FASTGEN_DATA is not set; it names the folder of photos and clips")
    cv2.setNumThreads(1)
    if options.clip:
        side_by_side(Path(data), options)
        return
    report: dict[str, Any] = {
        "kind": "stabilizer",
        "machine": describe(),
        "strength": options.strength,
        "opencv": cv2.__version__,
        "styles": {},
    }
    if options.output and options.output.exists():  # styles that are not measured again stay
        before = json.loads(options.output.read_text())
        if before["strength"] == options.strength and before["machine"] == report["machine"]:
            report["styles"] = before["styles"]
    coffee = ROOT / "examples" / "coffee.jpg"
    clips = [*synthetic(Path(data), coffee, options.photos), *real(Path(data))]
    for name in options.styles:
        print(name, flush=True)
        known = report["styles"].get(name, {})
        report["styles"][name] = known | measure(name, clips, Path(data), options)
        if options.output:
            options.output.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(options.output, json.dumps(report, indent=1).encode())
            atomic_write(options.output.with_suffix(".md"), markdown(report).encode())
    print(markdown(report))


def measure(name: str, clips: list[Clip], data: Path, options: Any) -> dict[str, Any]:
    """One style: every clip, the objective, a cut, the price."""
    stylizer = fastgen.Stylizer(name, backend="cpu", threads=options.threads)
    found: dict[str, Any] = {
        "model": stylizer.info.model,
        "precision": stylizer.info.precision,
        "threads": stylizer.info.threads,
    }
    if options.part != "price":
        found |= quality(name, stylizer, clips, data, options.strength)
    if options.part != "quality":
        found["price"] = price(stylizer, clips, options)
    return found


def quality(
    name: str, stylizer: fastgen.Stylizer, clips: list[Clip], data: Path, strength: float
) -> dict[str, Any]:
    """Everything but the price: what needs no idle machine."""
    rows: dict[str, Any] = {}
    terms = objective(name, data)
    totals = np.zeros((2, 3))
    for clip in clips:
        plain = [stylizer(frame) for frame in clip.frames]
        stabilizer = fastgen.Stabilizer(stylizer, strength=strength)
        steady = [stabilizer(frame) for frame in clip.frames]
        values = np.zeros((2, 3))
        for t in OBJECTIVE_FRAMES:
            values += terms(clip.frames[t], plain[t], steady[t])
        rows[clip.name] = {
            "kind": clip.kind,
            **steadiness(clip.frames, clip.flow, clip.valid, plain, steady),
            "objective": dict(zip(TERMS, values[1] / values[0], strict=True)),
        }
        totals += values
    return {
        "clips": rows,
        "objective": dict(zip(TERMS, totals[1] / totals[0], strict=True))
        | {"frames": len(OBJECTIVE_FRAMES) * len(clips)},
        "cut_resets": cut_resets(stylizer, clips, strength),
    }


def objective(name: str, data: Path) -> Callable[..., np.ndarray]:
    """A function of a frame, its plain and its steady painting: Eq. 9 of both, term by term.

    By the checkpoint's own weights and painting; its result is (2, 3), the terms are ``TERMS``.
    """
    import torch
    from PIL import Image

    from fastgen.styles import load_style
    from fastgen.train.data import centre_square
    from fastgen.train.objective import Weights, build_objective, to_tensor
    from fastgen.train.options import ObjectiveOptions

    provenance = load_style(name).meta["provenance"]["objective"]
    wanted = ObjectiveOptions(style_size=int(provenance["style_size"]))
    painting = data / "styles" / "public_domain" / f"{name.split('.')[0]}.jpg"
    built = build_objective(
        wanted, painting, None, torch.device("cpu"), weights=Weights.from_json(provenance)
    )

    def terms(*pictures: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            photo, *painted = (
                to_tensor(centre_square(Image.fromarray(x), OBJECTIVE_SIZE)[None]) for x in pictures
            )
            targets = built.content_targets(photo)
            found = [built(picture, targets) for picture in painted]
        return np.array([[float(f[term]) for term in TERMS] for f in found])

    return terms


def cut_resets(stylizer: fastgen.Stylizer, clips: list[Clip], strength: float) -> bool:
    """Whether the first frame after every cut is the plain painting, to the last bit."""
    stabilizer = fastgen.Stabilizer(stylizer, strength=strength)
    same = []
    for clip in (clips[0], clips[-2], clips[-1]):
        frames = [cv2.resize(frame, (480, 320)) for frame in clip.frames[:4]]
        outs = [stabilizer(frame) for frame in frames]
        same.append(np.array_equal(outs[0], stylizer(frames[0])))
        same.append(not np.array_equal(outs[-1], stylizer(frames[-1])))
    return all(same)


def price(stylizer: fastgen.Stylizer, clips: list[Clip], options: Any) -> dict[str, Any]:
    """Milliseconds of a 640x480 frame, painted alone and stabilized in turns.

    The camera's clip as it is, where the grid mostly stays, and the same under a pan of a pixel a
    frame, where it moves all the time.
    """
    clip = next(c for c in clips if c.frames[0].shape == (480, 640, 3))
    panned = [np.roll(frame, t, axis=1) for t, frame in enumerate(clip.frames)]
    still, pan = (_price(stylizer, frames, options) for frames in (clip.frames, panned))
    return still | {"pan": pan}


def _price(stylizer: fastgen.Stylizer, frames: list[np.ndarray], options: Any) -> dict[str, float]:
    stabilizer = fastgen.Stabilizer(stylizer, strength=options.strength)
    for frame in frames[:3]:
        stylizer(frame)
        stabilizer(frame)
    alone: list[float] = []
    extra: list[float] = []
    until = time.perf_counter() + options.seconds
    while time.perf_counter() < until or len(alone) < 30:
        for frame in frames:
            began = time.perf_counter()
            stylizer(frame)
            middle = time.perf_counter()
            stabilizer(frame)
            alone.append(middle - began)
            extra.append(time.perf_counter() - middle - alone[-1])
        stabilizer.reset()
    network, added = statistics.median(alone), statistics.median(extra)
    return {
        "network_ms": 1e3 * network,
        "stabilizer_ms": 1e3 * added,
        "share": added / network,
        "frames": len(alone),
    }


def side_by_side(data: Path, options: Any) -> None:
    """A real clip: painted frame by frame on the left, stabilized on the right."""
    from PIL import Image

    stylizer = fastgen.Stylizer(options.styles[0], threads=options.threads)
    stabilizer = fastgen.Stabilizer(stylizer, strength=options.strength)
    clip = next(iter(real(data)))
    pictures = []
    for frame in clip.frames:
        pair = np.concatenate([stylizer(frame), stabilizer(frame)], axis=1)
        height, width = pair.shape[:2]
        pictures.append(Image.fromarray(pair).resize((width * 3 // 4, height * 3 // 4)))
    options.clip.parent.mkdir(parents=True, exist_ok=True)
    pictures[0].save(
        options.clip,
        save_all=True,
        append_images=pictures[1:],
        duration=33,
        loop=0,
        quality=45,
        method=4,
    )
    print(f"{options.clip}: {options.clip.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
