"""Who is let in: checked before anything else looks at a request.

- ``Host`` must be an address, ``localhost``, this machine's name or a name that was allowed.
  Otherwise a page whose name was made to point here (DNS rebinding) would count as our own.
- ``Origin``, which browsers send with WebSockets and posts, must be this server or one that was
  allowed: a foreign page must not use a visitor's server through his browser.
- The token, where one is set: ``Authorization: Bearer``, or the cookie that ``/?token=`` sets.
- Every response carries the headers that keep browsers from doing more than the page needs.
"""

from __future__ import annotations

import ipaddress
import json
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

from fastgen.serve.hub import Hub

__all__ = ["Guard", "address_of"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; media-src 'self' blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_HEADERS = [
    (b"content-security-policy", _CSP.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(self), microphone=(), geolocation=()"),
]
_OPEN = ("/healthz",)  # for supervisors, without a token
_PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443}


def address_of(scope: Scope) -> str:
    """The client's address; never from a header, which a client could write itself."""
    client = scope.get("client")
    return str(client[0]) if client else "unknown"


class Guard:
    """ASGI middleware.

    Args:
        app: what is behind.
        hub: settings and counters.
    """

    def __init__(self, app: Any, hub: Hub) -> None:
        self._app = app
        self._hub = hub
        own = socket.gethostname().lower()
        known = {"localhost", own, f"{own}.local", *(h.lower() for h in hub.settings.hosts)}
        self._hosts = known
        self._origins = {o.lower().rstrip("/") for o in hub.settings.origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        web = scope["type"] == "http"
        hub = self._hub

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                hub.metrics.responses.labels(str(message["status"])).inc()
                message["headers"] = [*message.get("headers", []), *_HEADERS]
            await send(message)

        headers: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            if name in (b"host", b"origin", b"authorization") and name in headers:
                await _refuse(scope, answer, 400, f"two {name.decode()} headers")
                return
            # Several cookie headers are one.
            headers[name] = headers[name] + b"; " + value if name in headers else value
        problem = self._foreign(scope, headers)
        if problem is not None:
            hub.metrics.refused.labels(problem[0]).inc()
            await _refuse(scope, answer, 403, problem[1])
            return
        if hub.settings.token is not None and scope["path"] not in _OPEN:
            if web and scope["method"] == "GET" and scope["path"] == "/":
                given = parse_qs(scope["query_string"].decode("latin-1")).get("token")
                if given:
                    await self._log_in(scope, answer, given[0])
                    return
            if not hub.knows(_shown(scope, headers)):
                await self._ask(scope, answer)
                return
        hub.working += 1
        try:
            await self._app(scope, receive, answer)
        finally:
            hub.working -= 1

    def _foreign(self, scope: Scope, headers: dict[bytes, bytes]) -> tuple[str, str] | None:
        """Why a request is not for this server, or not from its own page."""
        text = headers.get(b"host", b"").decode("latin-1").lower()
        host = _host_of(text)
        if host is None or not (host in self._hosts or _is_address(host)):
            return "host", (
                f"this server is not known as {text[:80]!r}; start it with --allow-host NAME"
            )
        if b"origin" not in headers:
            return None
        origin = headers[b"origin"].decode("latin-1").lower()
        if origin in self._origins or _same(origin, text, scope.get("scheme", "http")):
            return None
        return "origin", (
            f"pages of {origin[:80]!r} may not use this server; start it with --allow-origin"
        )

    async def _log_in(self, scope: Scope, send: Send, token: str) -> None:
        if not self._hub.knows(token):
            await self._ask(scope, send)
            return
        secure = "; Secure" if scope.get("scheme") == "https" else ""
        name = _cookie_name(scope)
        cookie = f"{name}={self._hub.settings.token}; Path=/; HttpOnly; SameSite=Strict{secure}"
        # The address without the token: it stays out of bookmarks and of what is copied.
        location = [(b"location", b"/"), (b"set-cookie", cookie.encode())]
        await _respond(send, 303, b"", [*location, (b"cache-control", b"no-store")])

    async def _ask(self, scope: Scope, send: Send) -> None:
        self._hub.metrics.refused.labels("token").inc()
        if not self._hub.rates.take(address_of(scope)):
            await _refuse(scope, send, 429, "too many wrong tokens; try again in a minute")
            return
        text = "this server needs its token: open /?token=..., or send Authorization: Bearer ..."
        await _refuse(scope, send, 401, text)


def _host_of(text: str) -> str | None:
    """The host of ``host:port``; None where that is not what the text is."""
    try:
        parts = urlsplit(f"//{text}")
        parts.port  # noqa: B018 (raises for a port that is no number)
    except ValueError:
        return None
    if parts.netloc != text or parts.username is not None or not parts.hostname:
        return None
    return parts.hostname


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _same(origin: str, host: str, scheme: str) -> bool:
    """Whether an origin is the server that a ``Host`` header names.

    Schemes may differ: a proxy in front may be the one that has the certificate. Ports must be
    equal.
    """
    try:
        theirs, ours = urlsplit(origin), urlsplit(f"//{host}")
        if theirs.scheme not in ("http", "https") or theirs.hostname != ours.hostname:
            return False
        default = _PORTS.get(scheme, 80)
        return (theirs.port or _PORTS[theirs.scheme]) in {
            ours.port or default,
            ours.port or _PORTS[theirs.scheme],
        }
    except ValueError:
        return False


def _cookie_name(scope: Scope) -> str:
    """Cookies of all ports of a host are one jar: two servers need two names."""
    server = scope.get("server")
    return f"fastgen_{server[1] if server else 0}"


def _shown(scope: Scope, headers: dict[bytes, bytes]) -> str | None:
    """The token that a request shows."""
    kind, _, value = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    if kind.lower() == "bearer":
        return value.strip()
    try:
        cookies = SimpleCookie(headers.get(b"cookie", b"").decode("latin-1"))
    except CookieError:
        return None
    found = cookies.get(_cookie_name(scope))
    return found.value if found is not None else None


async def _refuse(scope: Scope, send: Send, status: int, text: str) -> None:
    body = json.dumps({"detail": text}).encode()
    headers = [(b"content-type", b"application/json")]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if status == 429:
        headers.append((b"retry-after", b"60"))
    if scope["type"] == "http":
        await _respond(send, status, body, headers)
    elif "websocket.http.response" in scope.get("extensions", {}):
        await _respond(send, status, body, headers, "websocket.http.response")
    else:
        await send({"type": "websocket.close", "code": 1008, "reason": text[:100]})


async def _respond(
    send: Send,
    status: int,
    body: bytes,
    headers: list[tuple[bytes, bytes]],
    kind: str = "http.response",
) -> None:
    headers = [*headers, (b"content-length", str(len(body)).encode())]
    await send({"type": f"{kind}.start", "status": status, "headers": headers})
    await send({"type": f"{kind}.body", "body": body})
