"""``fastgen serve``: styles over HTTP and WebSocket, and a page for browsers.

Needs ``pip install 'fastgen[web]'``. :func:`run` serves until it is told to stop;
:func:`create_app` is the same as an ASGI application, for a server of your own (limits on slow
connections are then that server's business).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastgen.serve.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["Settings", "create_app", "run"]


def create_app(settings: Settings | None = None) -> FastAPI:
    """The ASGI application.

    Raises:
        ValueError: a setting outside its range, or no such style.
        BackendUnavailable: a named backend cannot run here.
    """
    from fastgen.serve.app import build

    return build(settings or Settings())


def run(settings: Settings | None = None, **options: Any) -> int:
    """Serves until SIGTERM or SIGINT, then finishes what is in hand.

    Args:
        settings: what is served, to whom, within which limits.
        options: ``host``, ``port``, ``ssl_certfile``, ``ssl_keyfile`` and ``started`` as for
            :func:`fastgen.serve.server.serve`.

    Returns:
        The exit code: 0 after a stop that was asked for.
    """
    from fastgen.serve.server import serve

    return serve(settings or Settings(), **options)
