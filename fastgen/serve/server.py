"""Serving with uvicorn: connections that time out, and a stop that finishes what is in hand."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import ssl
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from fastgen.serve.app import build
from fastgen.serve.hub import Hub
from fastgen.serve.settings import Settings

__all__ = ["Server", "prepare", "serve"]

_HEAD_SECONDS = 10.0  # for a request's first line and headers
_STALL_SECONDS = 30.0  # a response that the client does not take
_KEEP_ALIVE = 5


class _Patience:
    """Mixed into uvicorn's protocols: who takes nothing of what was written is cut off."""

    transport: asyncio.Transport
    loop: asyncio.AbstractEventLoop
    _stalled: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        super().pause_writing()  # type: ignore[misc]
        self._stalled = self.loop.call_later(_STALL_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        self._calm()
        super().resume_writing()  # type: ignore[misc]

    def connection_lost(self, exc: Exception | None) -> None:
        self._calm()
        super().connection_lost(exc)  # type: ignore[misc]

    def _calm(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None


class _Http(_Patience, H11Protocol):
    """uvicorn has no limit for the time that a request's head takes; slow ones would pile up."""

    _head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def on_response_complete(self) -> None:
        self._expect_head()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._head is not None:
            self._head.cancel()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        if self._head is not None:
            self._head.cancel()
        self._head = self.loop.call_later(_HEAD_SECONDS, self._late)

    def _late(self) -> None:
        upgraded = self not in self.connections
        busy = self.cycle is not None and not self.cycle.response_complete
        if not upgraded and not busy and not self.transport.is_closing():
            self.transport.abort()


class _WebSocket(_Patience, WebSocketsSansIOProtocol):
    pass


class Server(uvicorn.Server):
    """Stops in two steps: no new work, and when what is in hand is done, no more connections."""

    def __init__(
        self, config: uvicorn.Config, hub: Hub, started: Callable[[int], None] | None
    ) -> None:
        super().__init__(config)
        self._hub = hub
        self._told = started
        self._stop: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.asked: int | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started and self._told is not None:
            self._told(self.servers[0].sockets[0].getsockname()[1])

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.asked is not None or self._loop is None or not self.started:
            self.should_exit = self.force_exit = True  # the second time is meant
            return
        self.asked = sig
        self._loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        self._stop = asyncio.get_running_loop().create_task(self._finish())

    async def _finish(self) -> None:
        hub = self._hub
        hub.stopping.set()
        deadline = asyncio.get_running_loop().time() + hub.settings.grace
        while hub.working and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)
        self.should_exit = True


def serve(
    settings: Settings,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    ssl_certfile: str | os.PathLike[str] | None = None,
    ssl_keyfile: str | os.PathLike[str] | None = None,
    started: Callable[[int], None] | None = None,
) -> int:
    """Serves until SIGTERM or SIGINT; call it in the main thread.

    Args:
        settings: what is served.
        host: address to listen on; ``0.0.0.0`` or ``::`` for all of this machine's.
        port: 0 takes a free one.
        ssl_certfile: PEM file of the certificate (and its chain); makes it https.
        ssl_keyfile: PEM file of the key, if it is not in the same file.
        started: called with the port when connections are accepted.

    Returns:
        0.

    Raises:
        OSError: the address cannot be used, or a file cannot be read.
        ValueError: a certificate that cannot be used; settings that are wrong.
    """
    if threading.current_thread() is not threading.main_thread():
        raise ValueError("serve() handles signals, so it must be called in the main thread")
    server, listening = prepare(settings, host, port, ssl_certfile, ssl_keyfile, started)
    with listening:
        server.run(sockets=[listening])
    return 0


def prepare(
    settings: Settings,
    host: str,
    port: int,
    ssl_certfile: str | os.PathLike[str] | None = None,
    ssl_keyfile: str | os.PathLike[str] | None = None,
    started: Callable[[int], None] | None = None,
) -> tuple[Server, socket.socket]:
    """A server that can run, and the socket that it must be given; see :func:`serve`."""
    if ssl_keyfile is not None and ssl_certfile is None:
        raise ValueError("a key needs its certificate: give ssl_certfile too")
    for path in (ssl_certfile, ssl_keyfile):
        if path is not None:
            Path(path).open("rb").close()  # the error names the file
    app = build(settings)
    hub: Hub = app.state.hub
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=_Http,
        ws=_WebSocket,
        ws_max_size=settings.max_message,
        ws_per_message_deflate=False,  # pictures are compressed or on their way to this machine
        ws_ping_interval=20.0,
        ws_ping_timeout=20.0,
        log_level="error",
        access_log=False,
        proxy_headers=False,  # a client could write its own address into them
        server_header=False,
        limit_concurrency=settings.max_clients + settings.max_waiting + 64,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=2,
        h11_max_incomplete_event_size=16_384,
        ssl_certfile=ssl_certfile,
        ssl_keyfile=ssl_keyfile,
    )
    try:
        if ssl_certfile is not None:
            # First without uvicorn: OpenSSL would ask the terminal for a password.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                ssl_certfile, ssl_keyfile, partial(_no_password, ssl_keyfile or ssl_certfile)
            )
        config.load()
    except ssl.SSLError:
        text = "no certificate in PEM format, or not with this key"
        raise ValueError(f"{ssl_certfile}: {text}") from None
    # The same object each time, which a logger takes once.
    logging.getLogger("uvicorn.error").addFilter(_not_cut_off)
    return Server(config, hub, started), _listen(host, port)


def _not_cut_off(record: logging.LogRecord) -> bool:
    """False for what a stop cuts off, an upload that does not end: that is no fault."""
    kind = record.exc_info[0] if record.exc_info else None
    if kind is not None and issubclass(kind, asyncio.CancelledError):
        return False
    return not str(record.msg).startswith("Cancel %s running task(s)")


def _no_password(path: str | os.PathLike[str]) -> str:
    raise ValueError(
        f"{path}: the key has a password; `openssl pkey -in OLD -out NEW` takes it off"
    )


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket; the error says which address."""
    if not host:
        # For a socket that is every address of the machine, which nobody asked for.
        raise ValueError("host is empty; give an address, or 0.0.0.0 for all of this machine's")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        reason = error.strerror or str(error)
        unknown = isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL
        raise OSError(
            f"cannot listen on {host}:{port}: {reason}; choose another "
            f"{'--host' if unknown else '--port'}"
        ) from None
    return sock
