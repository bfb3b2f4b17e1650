"""One program of the comparison, in a process of its own: ``python -m benchmarks.video.side SPEC``.

The spec names the program (``fastgen`` or ``opencv``), the clip, the style and a folder to write
into. Each line on stdin is ``run N`` or, of fastgen, ``stages N`` (N frames), answered with JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.video.clip import RATE
from fastgen.cli._app import one_line

STAGES = ("decode", "in", "net", "out", "encode")


class Ours:
    """``stylize_video``, and its parts one after the other."""

    def __init__(self, spec: dict[str, Any]) -> None:
        import fastgen

        self._clip, self._folder = spec["clip"], Path(spec["folder"])
        self._stylizer = fastgen.Stylizer(
            spec["style"], precision=spec["precision"], threads=spec["threads"]
        )
        self._stylizer.warmup(spec["width"], spec["height"])

    def info(self) -> dict[str, Any]:
        """What runs."""
        import av

        return {"precision": self._stylizer.info.precision, "library": f"PyAV {av.__version__}"}

    def run(self, frames: int) -> dict[str, Any]:
        """The whole pipeline: file in, file out.

        Returns:
            ``seconds``, ``cpu`` (seconds of all threads), ``frames``, ``intervals`` between
            finished frames (s), ``busy`` seconds of each thread.
        """
        from fastgen.video import stylize_video

        done: list[float] = []
        cpu, start = time.process_time(), time.perf_counter()
        result = stylize_video(
            self._clip,
            self._folder / "ours.mp4",
            self._stylizer,
            end=(frames - 0.5) / RATE,
            progress=lambda *_: done.append(time.perf_counter()),
        )
        seconds = time.perf_counter() - start
        return {
            "seconds": seconds,
            "cpu": time.process_time() - cpu,
            "frames": result.frames,
            "intervals": [b - a for a, b in pairwise(done)],
            "busy": result.busy,
        }

    def stages(self, frames: int) -> dict[str, Any]:
        """Each stage alone, with all cores to itself.

        Returns:
            Stage -> ``wall``: seconds of each frame (decoding and encoding, which work ahead in
            threads of their own: the mean), ``cpu``: mean seconds of all threads.
        """
        import av

        from fastgen.video._convert import Converter, Framer
        from fastgen.video._read import pictures, read
        from fastgen.video._write import encoding_for, set_up

        with read(self._clip) as clip:
            encoding = encoding_for(clip, ".mp4", None, None, None)
        found: dict[str, dict[str, Any]] = {s: {"wall": [], "cpu": 0.0} for s in STAGES}

        def measure(stage: str, work: Any, count: int = 1) -> Any:
            cpu, start = time.process_time(), time.perf_counter()
            result = work()
            found[stage]["wall"] += [(time.perf_counter() - start) / count] * count
            found[stage]["cpu"] += (time.process_time() - cpu) / frames
            return result

        def decode() -> list[Any]:
            taken = []
            with av.open(self._clip) as file:
                stream = file.streams.video[0]
                stream.thread_type = "AUTO"
                for picture, _, _ in pictures(file, stream, self._clip, 10**8):
                    taken.append(picture)
                    if len(taken) == frames:
                        break
            return taken

        decoded = measure("decode", decode, frames)
        convert, frame_of, encode_in = Converter(), Framer(encoding), []
        for k, picture in enumerate(decoded):
            image = measure("in", lambda p=picture: convert(p))
            image = measure("net", lambda i=image: self._stylizer(i))
            encode_in.append(measure("out", lambda i=image, k=k: frame_of(i, k)))
        del decoded

        def encode() -> None:
            encoder: Any = av.CodecContext.create(encoding.codec, "w")
            encoder.options = dict(encoding.options)
            set_up(encoder, encoding)
            for k, frame in enumerate(encode_in):
                frame.pts = round(Fraction(k, RATE) / encoding.time_base)
                encoder.encode(frame)
            encoder.encode(None)

        measure("encode", encode, frames)
        return found


class OpenCV:
    """What people write today: read, network, write, frame by frame, in fp32 eager mode."""

    def __init__(self, spec: dict[str, Any]) -> None:
        import cv2
        import torch

        import fastgen
        from fastgen.backends.torch import GraphModule

        if spec["threads"]:
            torch.set_num_threads(spec["threads"])
        ckpt = fastgen.load_style(spec["style"])
        self._net = GraphModule(ckpt.graph).load_weights(ckpt.weights).eval()
        low, high = ckpt.meta["input_range"]
        first, last = ckpt.meta["output_range"]
        self._in = (high - low) / 255, low
        self._out = 255 / (last - first), first
        self._clip, self._target = spec["clip"], str(Path(spec["folder"]) / "opencv.mp4")
        self._cv2, self._torch = cv2, torch
        self._loop(1)

    def info(self) -> dict[str, Any]:
        """What runs."""
        versions = f"OpenCV {self._cv2.__version__}, torch {self._torch.__version__}"
        return {"precision": "fp32", "library": versions}

    def _loop(self, frames: int) -> list[list[float]]:
        cv2, torch = self._cv2, self._torch
        capture = cv2.VideoCapture(self._clip)
        size = int(capture.get(3)), int(capture.get(4))
        # OpenCV's wheels bring no x264; this codec of theirs costs less.
        writer = cv2.VideoWriter(self._target, cv2.VideoWriter.fourcc(*"mp4v"), RATE, size)
        times: list[list[float]] = []
        with torch.inference_mode():
            for _ in range(frames):
                t = [time.perf_counter()]
                good, bgr = capture.read()
                if not good:
                    raise ValueError(f"{self._clip}: ends before frame {len(times)}")
                t.append(time.perf_counter())
                rgb = np.ascontiguousarray(bgr[..., ::-1])
                x = torch.from_numpy(rgb).permute(2, 0, 1).unsqueeze(0).float()
                x = x * self._in[0] + self._in[1]
                t.append(time.perf_counter())
                y = self._net(x)
                t.append(time.perf_counter())
                y = (y[0] - self._out[1]) * self._out[0]
                image = y.clamp(0, 255).round().byte().permute(1, 2, 0).numpy()
                image = np.ascontiguousarray(image[..., ::-1])
                t.append(time.perf_counter())
                writer.write(image)
                t.append(time.perf_counter())
                times.append(t)
        writer.release()
        capture.release()
        return times

    def run(self, frames: int) -> dict[str, Any]:
        """The loop over a file; as of :class:`Ours`, and ``stages``: seconds of each frame."""
        cpu, start = time.process_time(), time.perf_counter()
        times = self._loop(frames)
        return {
            "seconds": time.perf_counter() - start,
            "cpu": time.process_time() - cpu,
            "frames": len(times),
            "intervals": [t[-1] - t[0] for t in times],
            "stages": {s: [t[i + 1] - t[i] for t in times] for i, s in enumerate(STAGES)},
        }


def main() -> None:
    """Serves the spec on the command line; what goes wrong is one more answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's; it closes stdin
    # Programs print to stdout what they like; answers go to what it was.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        spec = json.loads(sys.argv[1])
        side: Any = {"fastgen": Ours, "opencv": OpenCV}[spec["program"]](spec)
        for line in sys.stdin:
            command, *count = line.split()
            answer = getattr(side, command)(*map(int, count))
            print(json.dumps(answer), file=answers, flush=True)
    except (ValueError, TypeError, OSError, RuntimeError, ImportError) as error:
        print(json.dumps({"failed": one_line(error)}), file=answers, flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
