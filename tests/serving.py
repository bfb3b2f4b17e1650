"""Real servers for the tests of ``fastgen serve``: in a thread, or as a process of their own."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

for _name in ("fastapi", "uvicorn", "websockets", "prometheus_client"):
    pytest.importorskip(_name, reason="needs the extra [web]")
httpx = pytest.importorskip("httpx", reason="these tests send their requests with httpx")

from fastgen.serve import protocol  # noqa: E402
from fastgen.serve.server import Server, prepare  # noqa: E402
from fastgen.serve.settings import Settings  # noqa: E402

__all__ = ["Running", "Stream", "httpx", "process", "running"]


class Running:
    """A server in a thread of this process.

    Attributes:
        host: ``127.0.0.1:PORT``.
        server: the object, for its counters.
        thread: in which it runs.
    """

    def __init__(self, host: str, server: Server, thread: threading.Thread) -> None:
        self.host = host
        self.server = server
        self.thread = thread
        self.url = f"http://{host}"

    @property
    def hub(self) -> Any:
        """What its requests share."""
        return self.server._hub


@contextmanager
def running(**settings: Any) -> Iterator[Running]:
    """Serves while the block runs."""
    settings.setdefault("styles", ("starry_night.small", "great_wave.small"))
    server, listening = prepare(Settings(**settings), "127.0.0.1", 0)
    started = threading.Event()
    server._told = lambda port: started.set()
    thread = threading.Thread(target=lambda: server.run(sockets=[listening]), daemon=True)
    thread.start()
    try:
        assert started.wait(60), "the server did not start"
        yield Running(f"127.0.0.1:{listening.getsockname()[1]}", server, thread)
    finally:
        server.handle_exit(15, None)
        thread.join(60)
        listening.close()
    assert not thread.is_alive(), "the server did not stop"


@contextmanager
def process(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``fastgen serve`` as a process; gives it and its address (http://127.0.0.1:PORT)."""
    command = [sys.executable, "-P", "-m", "fastgen", "serve", "--port", "0", *options]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdout is not None
            line = child.stdout.readline()
            found = re.search(r"(https?://\S+:\d+)/", line)
            assert found, f"{line!r} {child.stderr.read() if child.stderr else ''}"
            yield child, found[1]
        finally:
            child.kill()


class Stream:
    """A client of the WebSocket; closes it in the end.

    Args:
        host: ``ADDRESS:PORT``.
        options: of ``websockets.sync.client.connect``.
    """

    def __init__(self, host: str, **options: Any) -> None:
        from websockets.sync.client import connect

        options.setdefault("max_size", None)
        options.setdefault("open_timeout", 60)
        scheme = "wss" if "ssl" in options else "ws"
        self._context = connect(f"{scheme}://{host}/ws", compression=None, proxy=None, **options)
        self.socket = self._context.__enter__()
        try:
            self.hello = self.answer()[0]
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._context.__exit__(None, None, None)

    def send(self, payload: Any, **header: Any) -> None:
        """A frame; the style is the first one unless named."""
        header = {"type": "frame", "style": "starry_night.small", **header}
        self.socket.send(protocol.pack(header, payload))

    def answer(self, timeout: float = 60) -> tuple[dict[str, Any], memoryview]:
        """The next message."""
        message = self.socket.recv(timeout)
        assert isinstance(message, bytes)
        return protocol.unpack(message)
