"""The application: page, REST and WebSocket."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import FastAPI, HTTPException, Query, Request, Response, WebSocket
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteHTTPException

from fastgen import __version__
from fastgen import image as image_module
from fastgen._masks import Mask
from fastgen.errors import FastgenError, ImageError
from fastgen.serve.form import FormError, files_of, is_form
from fastgen.serve.guard import Guard, address_of
from fastgen.serve.hub import Crowded, Hub
from fastgen.serve.metrics import CONTENT_TYPE
from fastgen.serve.settings import Settings
from fastgen.serve.stream import Stream
from fastgen.serve.studio import PAGE, Look, decode, own_words

__all__ = ["build"]

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".jpg": "image/jpeg",
}
_MEDIA = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}


_FILE = {"type": "string", "format": "binary"}
_FORM = {
    "type": "object",
    "required": ["photo"],
    "additionalProperties": False,
    "properties": {"photo": _FILE, "mask": _FILE},
}


class Problem(BaseModel):
    """Why a request was refused, in one line."""

    detail: str


class StyleOut(BaseModel):
    """A style that is served; ``size`` is small (for streams), half or full."""

    name: str
    title: str
    artist: str
    size: str
    licence: str
    thumbnail: str


class StylesOut(BaseModel):
    """All styles, and what this server takes."""

    styles: list[StyleOut]
    backend: str
    precision: str
    stabilize: bool
    max_pixels: int
    max_body: int
    max_frame_pixels: int
    version: str


class Health(BaseModel):
    """``ok``, or ``stopping`` with status 503."""

    status: Literal["ok", "stopping"]


def _problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    return {code: {"model": Problem} for code in codes}


_GUARDED = _problems(400, 401, 403, 429)


def build(settings: Settings) -> FastAPI:
    """See :func:`fastgen.serve.create_app`."""
    hub = Hub(settings)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        yield
        hub.stopping.set()
        hub.close()

    # No /docs: its page would load scripts from elsewhere. The description is at /openapi.json.
    app = FastAPI(
        title="fastgen",
        version=__version__,
        description="Photos as paintings. Streams of frames go over the WebSocket /ws.",
        docs_url=None,
        redoc_url=None,
        lifespan=life,
    )
    app.state.hub = hub
    app.add_middleware(Guard, hub=hub)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(StarletteHTTPException, _failed)
    _add_rest(app, hub)
    _add_page(app)

    @app.websocket("/ws")
    async def frames(socket: WebSocket) -> None:
        if not hub.rates.take(address_of(socket.scope)):
            hub.metrics.refused.labels("rate").inc()
            text = f"more than {settings.rate:g} streams a minute; slow down"
            if "websocket.http.response" in socket.scope.get("extensions", {}):
                refused = JSONResponse({"detail": text}, 429, {"retry-after": "10"})
                await socket.send_denial_response(refused)
            else:
                await socket.close(1013, text)
            return
        await Stream(socket, hub).run()

    return app


async def _invalid(request: Request, error: Exception) -> Response:
    """FastAPI's list of errors as one line."""
    if not isinstance(error, RequestValidationError):
        raise error
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:])
    given = repr(first.get("input"))[:60]
    message = str(first["msg"]).removeprefix("Input ").replace("should be", "must be")
    return JSONResponse({"detail": f"{where} is {given}: {message}"}, 422)


async def _failed(request: Request, error: Exception) -> Response:
    if not isinstance(error, StarletteHTTPException):
        raise error
    return JSONResponse({"detail": str(error.detail)}, error.status_code, headers=error.headers)


# ---------------------------------------------------------------------------- REST


def _add_rest(app: FastAPI, hub: Hub) -> None:
    settings = hub.settings
    # Annotations are strings here and cannot name what only this function knows.
    names: dict[str, Any] = {"enum": list(hub.studio.styles)}
    named = PathParameter(description="A name of GET /styles", json_schema_extra=names)
    which = Query(hub.studio.first, description="A name of GET /styles", json_schema_extra=names)
    other = Query(None, description="A style to mix in", json_schema_extra=names)

    @app.get("/healthz", response_model=Health, responses={503: {"model": Health}, **_GUARDED})
    async def healthz() -> Response:
        """Whether the server takes work."""
        stopping = hub.stopping.is_set()
        return JSONResponse({"status": "stopping" if stopping else "ok"}, 503 if stopping else 200)

    @app.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {CONTENT_TYPE: {}}}, **_GUARDED},
    )
    async def metrics() -> Response:
        """Counters in Prometheus' text format."""
        hub.metrics.waiting.set(hub.turns.waiting)
        return Response(hub.metrics.text(), headers={"content-type": CONTENT_TYPE})

    @app.get("/styles", responses=_GUARDED)
    async def styles() -> StylesOut:
        """The styles, and the limits of this server."""
        info = hub.studio.stylizer(hub.studio.first).info
        rows = [
            StyleOut(**asdict(s), thumbnail=f"/styles/{s.name}/thumbnail")
            for s in hub.studio.styles.values()
        ]
        return StylesOut(
            styles=rows,
            backend=info.backend,
            precision=info.precision,
            stabilize=hub.studio.stabilizes,
            max_pixels=settings.max_pixels,
            max_body=settings.max_body,
            max_frame_pixels=settings.max_frame_pixels,
            version=__version__,
        )

    @app.get(
        "/styles/{name}/thumbnail",
        response_class=Response,
        responses={200: {"content": {"image/jpeg": {}}}, **_GUARDED, **_problems(404, 422)},
    )
    async def thumbnail(name: str = named) -> Response:
        """The example photo in a style."""
        if name not in hub.studio.styles:
            raise HTTPException(404, f"no style {name[:60]!r}; GET /styles lists the names")
        data = await hub.thumbnail(name)
        headers = {"cache-control": "private, max-age=3600"}
        return Response(data, media_type="image/jpeg", headers=headers)

    body = {
        "requestBody": {
            "required": True,
            "description": "The file itself: JPEG, PNG or WebP. Or a form with it and a mask.",
            "content": {kind: {"schema": _FILE} for kind in _MEDIA.values()}
            | {"multipart/form-data": {"schema": _FORM}},
        }
    }
    images: dict[str, Any] = {"content": {kind: {} for kind in _MEDIA.values()}}

    @app.post(
        "/stylize",
        response_class=Response,
        openapi_extra=body,
        responses={
            200: images,
            **_GUARDED,
            **_problems(408, 411, 413, 415, 422, 503, 504),
        },
    )
    async def stylize(
        request: Request,
        style: str = which,
        second: str | None = other,
        share: Annotated[
            float, Query(ge=0, le=1, allow_inf_nan=False, description="Of the second style")
        ] = 0.5,
        feather: Annotated[
            int, Query(ge=0, le=1000, description="Pixels of the mask's soft edges")
        ] = 0,
        strength: Annotated[float, Query(ge=0, le=1, allow_inf_nan=False)] = 1.0,
        preserve_color: bool = False,
        format: Annotated[
            Literal["png", "jpeg", "webp"] | None, Query(description="The photo's unless given")
        ] = None,
    ) -> Response:
        """Paint one photo; the result has its size, upright, with its transparency.

        With a mask the second style (without one: the style) is where it is white, and the style
        (without a second one: the photo) where it is black.
        """
        if style not in hub.studio.styles:
            raise HTTPException(422, f"style is {style[:60]!r}; GET /styles lists the names")
        look = _look(hub, style, second, share, strength, preserve_color)
        address = address_of(request.scope)
        if hub.stopping.is_set():
            raise HTTPException(503, "the server stops", {"retry-after": "10"})
        if not hub.rates.take(address):
            hub.metrics.refused.labels("rate").inc()
            text = f"more than {settings.rate:g} photos a minute; slow down"
            raise HTTPException(429, text, {"retry-after": "10"})
        try:
            with hub.photo():
                return await _photo(hub, request, address, look, feather, format)
        except Crowded as error:
            hub.metrics.refused.labels("waiting").inc()
            raise HTTPException(error.status, str(error), {"retry-after": "5"}) from None


def _look(
    hub: Hub,
    style: str,
    second: str | None,
    share: float,
    strength: float,
    preserve_color: bool,
) -> Look:
    if second is not None and second not in hub.studio.styles:
        raise HTTPException(422, f"second is {second[:60]!r}; GET /styles lists the names")
    return Look(style, None if second == style else second, share, strength, preserve_color)


async def _photo(
    hub: Hub,
    request: Request,
    address: str,
    look: Look,
    feather: int,
    format: str | None,
) -> Response:
    start = time.perf_counter()
    try:
        async with asyncio.timeout(hub.settings.timeout):
            with hub.upload(address):
                data = await _body(request, hub.settings.max_body)
    except TimeoutError:
        raise HTTPException(
            408, f"the photo did not come within {hub.settings.timeout:g} seconds"
        ) from None
    drawn: bytes | None = None
    kind = request.headers.get("content-type", "")
    if is_form(kind):
        try:
            files = files_of(data, kind)
        except FormError as error:
            raise HTTPException(415, str(error)) from None
        data, drawn = files["photo"], files.get("mask")
    try:
        async with asyncio.timeout(hub.settings.timeout - (time.perf_counter() - start)):
            pixels = await hub.apart("decode", decode, data, hub.settings.max_pixels, "photo")
            mask: Mask | None = None
            if drawn is not None:
                mask = await hub.apart("decode", _mask, drawn, hub.settings.max_pixels, feather)
            painted = await hub.turns.run(
                address, lambda: lambda: hub.studio.paint(look, pixels.rgb, mask=mask)
            )
            suffix = format or _kind(data)
            result = pixels.image(painted.pixels)
            if suffix == "jpeg" and result.mode == "RGBA":
                result = result.convert("RGB")  # asked for by name: the transparency goes
            body = await hub.apart("encode", image_module.encode, result, f".{suffix}")
    except TimeoutError:
        raise HTTPException(
            504, f"the photo was not done within {hub.settings.timeout:g} seconds"
        ) from None
    except ImageError as error:
        large = "pixels, the limit is" in str(error)
        raise HTTPException(413 if large else 415, own_words(str(error))) from None
    except FastgenError as error:
        raise HTTPException(503, str(error)) from None
    except MemoryError:
        raise HTTPException(503, "not enough memory for this photo; send a smaller one") from None
    hub.metrics.photos.labels(look.style).inc()
    hub.metrics.seconds.labels("network").observe(painted.seconds)
    headers = {"server-timing": f"network;dur={painted.seconds * 1000:.1f}"}
    headers["cache-control"] = "no-store"
    return Response(body, media_type=_MEDIA[suffix], headers=headers)


def _mask(data: bytes, max_pixels: int, feather: int) -> Mask:
    rgb = decode(data, max_pixels, "mask").rgb
    # Floats: of bytes a picture whose white is dark is taken for one of indices.
    grey = rgb @ np.asarray((0.299, 0.587, 0.114), np.float32) / np.float32(255)
    return Mask(grey.clip(0, 1), feather=feather)


async def _body(request: Request, limit: int) -> bytes:
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limit:
        raise HTTPException(413, f"a body of {int(length):,} bytes, the limit is {limit:,}")
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise HTTPException(413, f"a body of more than {limit:,} bytes, which is the limit")
        parts.append(part)
    return b"".join(parts)


def _kind(data: bytes) -> str:
    if data.startswith(b"\xff\xd8"):
        return "jpeg"
    return "webp" if data[:4] == b"RIFF" else "png"


# ---------------------------------------------------------------------------- the page


def _add_page(app: FastAPI) -> None:
    """The files of the page by their names: no request's path is ever looked up on disk."""
    for path in sorted(PAGE.iterdir()):
        if path.suffix in _TYPES:
            route = "/" if path.name == "index.html" else f"/page/{path.name}"
            app.add_api_route(
                route, _file(path), methods=["GET"], include_in_schema=False, name=path.name
            )


def _file(path: Path) -> Any:
    data = path.read_bytes()

    async def send() -> Response:
        headers = {"cache-control": "no-cache", "content-type": _TYPES[path.suffix]}
        return Response(data, headers=headers)

    return send
