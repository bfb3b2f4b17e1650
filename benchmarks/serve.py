"""What ``fastgen serve`` adds to the network: frames over a WebSocket on this machine.

    python -m benchmarks.serve
    python -m benchmarks.serve --format file --reply jpeg --clients 4 -o serve.json

Starts ``fastgen serve`` as a process of its own and sends it frames as a page does: the next frame
leaves when the answer to the one before is there. For every frame: milliseconds from before the
message is packed until the answer is unpacked, and what the server says the network took. The
difference is what serving adds: both ways over the socket, decoding, encoding, and with several
clients waiting for the others, which is given by itself too. In turns with it, in this process,
the same ``Stylizer`` without a server.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from fastgen import Stylizer

__all__ = ["measure", "serving"]

_WARMUP = 5
_PHOTO = Path(__file__).resolve().parent.parent / "examples" / "coffee.jpg"


@contextmanager
def serving(*options: str) -> Iterator[str]:
    """Runs ``fastgen serve`` on a free port; gives ``host:port``, stops it in the end."""
    command = [sys.executable, "-P", "-m", "fastgen", "serve", "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            found = re.search(r"//(\S+:\d+)/", line)
            if found is None:
                raise RuntimeError(f"fastgen serve did not start: {line!r}")
            yield found[1]
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()


def _frames(width: int, height: int, kind: str, count: int = 8) -> list[bytes]:
    """Different cuts of a photo, as raw pixels or JPEG files."""
    from PIL import Image

    photo = Image.open(_PHOTO).convert("RGB").resize((width + count, height + count))
    frames = []
    for i in range(count):
        cut = photo.crop((i, i, i + width, i + height))
        if kind == "file":
            buffer = io.BytesIO()
            cut.save(buffer, "JPEG", quality=85)
            frames.append(buffer.getvalue())
        else:
            frames.append(np.asarray(cut.convert("RGBA" if kind == "rgba" else "RGB")).tobytes())
    return frames


class _Client:
    """One stream; its answers' milliseconds."""

    def __init__(self, host: str, header: dict[str, Any], frames: list[bytes]) -> None:
        from websockets.sync.client import connect

        from fastgen.serve import protocol

        self._protocol = protocol
        self._stack = ExitStack()
        self._socket = self._stack.enter_context(
            connect(f"ws://{host}/ws", max_size=None, compression=None, proxy=None)
        )
        self._header, self._frames = header, frames
        self.total: list[float] = []
        self.network: list[float] = []
        self.wait: list[float] = []
        greeting, _ = protocol.unpack(self._socket.recv())  # type: ignore[arg-type]
        if greeting["type"] != "hello":
            raise RuntimeError(f"not greeted: {greeting}")

    def frame(self, number: int) -> None:
        """Sends one frame and waits for its answer."""
        payload = self._frames[number % len(self._frames)]
        start = time.perf_counter()
        self._socket.send(self._protocol.pack({**self._header, "id": number}, payload))
        answer, _ = self._protocol.unpack(self._socket.recv())  # type: ignore[arg-type]
        seconds = time.perf_counter() - start
        if answer["type"] != "frame" or answer["id"] != number:
            raise RuntimeError(f"frame {number} was answered by {answer}")
        self.total.append(seconds * 1000)
        self.network.append(answer["ms"]["network"])
        self.wait.append(answer["ms"]["wait"])

    def forget(self) -> None:
        """Drops what was measured so far."""
        self.total, self.network, self.wait = [], [], []

    def close(self) -> None:
        self._stack.close()


def measure(
    style: str,
    size: tuple[int, int],
    *,
    kind: str = "rgb",
    reply: str = "rgb",
    clients: int = 1,
    seconds: float = 10.0,
    threads: int | None = None,
) -> dict[str, Any]:
    """Serves frames for some seconds, one second at a time in turns with the bare network.

    Args:
        style: a shipped style.
        size: width and height.
        kind: what is sent: ``rgb``, ``rgba`` or ``file`` (JPEG).
        reply: what comes back: ``rgb``, ``rgba`` or ``jpeg``.
        clients: streams at the same time.
        seconds: of serving.
        threads: of the network; None takes its choice.

    Returns:
        Percentiles in milliseconds: ``total``, ``network`` (as the server saw it), ``added``, the
        difference frame by frame, ``wait`` (for other clients), ``alone`` (no server); and frames a
        second.
    """
    width, height = size
    header = {"type": "frame", "style": style, "format": kind, "reply": reply}
    if kind != "file":
        header |= {"width": width, "height": height}  # type: ignore[dict-item]
    frames = _frames(width, height, kind)
    stylizer = Stylizer(style, threads=threads)
    picture = np.frombuffer(_frames(width, height, "rgb", 1)[0], np.uint8)
    picture = picture.reshape(height, width, 3)
    alone: list[float] = []
    limits = ("--max-fps", "1000", "--rate", "1000000", "--max-clients", str(clients))
    more = ("--threads", str(threads)) if threads else ()
    with serving("--style", style, *limits, *more) as host:
        streams = [_Client(host, header, frames) for _ in range(clients)]
        for stream in streams:
            for number in range(_WARMUP):
                stream.frame(number)
            stream.forget()
        served = 0.0
        number = _WARMUP
        while served < seconds:
            end = time.perf_counter() + 0.5
            while time.perf_counter() < end:
                start = time.perf_counter()
                stylizer(picture)
                alone.append((time.perf_counter() - start) * 1000)
            start = time.perf_counter()
            _all(streams, number, start + 1.0)
            served += time.perf_counter() - start
            number += 100_000
        for stream in streams:
            stream.close()
    total = [t for s in streams for t in s.total]
    network = [n for s in streams for n in s.network]
    added = [t - n for t, n in zip(total, network, strict=True)]
    return {
        "style": style,
        "size": f"{width}x{height}",
        "backend": stylizer.info.backend,
        "precision": stylizer.info.precision,
        "threads": stylizer.info.threads,
        "format": kind,
        "reply": reply,
        "clients": clients,
        "frames": len(total),
        "fps": round(len(total) / served, 2),
        "frames_of_each": [len(s.total) for s in streams],
        "total": _percentiles(total),
        "network": _percentiles(network),
        "added": _percentiles(added),
        "wait": _percentiles([w for s in streams for w in s.wait]),
        "alone": _percentiles(alone),
    }


def _all(streams: list[_Client], number: int, end: float) -> None:
    """All clients at the same time, each in a thread, until the time is over."""
    failures: list[BaseException] = []

    def work(stream: _Client) -> None:
        at = number
        try:
            while time.perf_counter() < end:
                stream.frame(at)
                at += 1
        except BaseException as error:
            failures.append(error)

    if len(streams) == 1:
        work(streams[0])
    else:
        threads = [threading.Thread(target=work, args=(s,)) for s in streams]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]


def _percentiles(values: list[float]) -> dict[str, float]:
    found = np.percentile(values, (50, 95, 99))
    return {f"p{p}": round(float(v), 2) for p, v in zip((50, 95, 99), found, strict=True)}


def _main() -> int:
    parser = argparse.ArgumentParser(description="what `fastgen serve` adds to the network")
    parser.add_argument("--style", default="starry_night.small")
    parser.add_argument("--size", default="640x480")
    parser.add_argument("--format", choices=("rgb", "rgba", "file"), default="rgb")
    parser.add_argument("--reply", choices=("rgb", "rgba", "jpeg"), default="rgb")
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("-o", "--output", type=Path, help="add the result to this JSON file")
    given = parser.parse_args()
    width, height = (int(v) for v in given.size.split("x"))
    result = measure(
        given.style,
        (width, height),
        kind=given.format,
        reply=given.reply,
        clients=given.clients,
        seconds=given.seconds,
        threads=given.threads,
    )
    print(json.dumps(result, indent=2))
    if given.output is not None:
        old = json.loads(given.output.read_text("utf-8")) if given.output.exists() else None
        runs = old["runs"] if old else []
        record = {"machine": machine.describe(), "runs": [*runs, result]}
        given.output.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(_main())
