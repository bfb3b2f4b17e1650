"""One client's stream of frames over the WebSocket.

Three tasks pass frames on through places that hold one frame each, where a newer frame replaces
an older one: reading -> decoding -> painting. Every frame that came is answered once: with its
result, with ``dropped`` or with an error. So a client that keeps a fixed number of frames
unanswered is paced by the server, and nothing queues up anywhere.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from starlette.websockets import WebSocket, WebSocketDisconnect

from fastgen.errors import FastgenError
from fastgen.serve.hub import Bucket, Hub
from fastgen.serve.protocol import (
    VERSION,
    FrameRequest,
    ProtocolError,
    RequestError,
    pack,
    parse_request,
)
from fastgen.serve.studio import Look, Painted, decode, encode_jpeg, own_words
from fastgen.stabilizer import Stabilizer

__all__ = ["Stream"]

_SEND_SECONDS = 10.0  # a client that takes nothing for so long is gone
_JPEG_QUALITY = 88


@dataclass
class _Frame:
    """A frame on its way through the stages."""

    request: FrameRequest
    arrived: float
    cut: bool
    pixels: np.ndarray | None = None
    decode: float = 0.0


class _Place:
    """Holds the newest frame."""

    def __init__(self) -> None:
        self._frame: _Frame | None = None
        self._filled = asyncio.Event()

    def put(self, frame: _Frame) -> _Frame | None:
        """Puts a frame in; returns the one that it replaces."""
        old, self._frame = self._frame, frame
        self._filled.set()
        return old

    async def wait(self) -> None:
        """Returns when there is a frame."""
        await self._filled.wait()

    def take(self) -> _Frame:
        """The frame, which leaves its place empty."""
        frame, self._frame = self._frame, None
        self._filled.clear()
        if frame is None:
            raise RuntimeError("an empty place was asked for its frame")
        return frame


class _Refused(Exception):
    """The stream must end: close code and reason."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Stream:
    """Serves one WebSocket that was let in, until it ends.

    Args:
        socket: not accepted yet.
        hub: what all share.
    """

    def __init__(self, socket: WebSocket, hub: Hub) -> None:
        self._socket = socket
        self._hub = hub
        self._sending = asyncio.Lock()
        self._raw, self._ready = _Place(), _Place()
        self._unanswered = 0
        # The names of the styles, and it.
        self._stabilizer: tuple[tuple[str, str | None], Stabilizer] | None = None

    async def run(self) -> None:
        """Accepts the socket and works until the client leaves or the server stops."""
        hub = self._hub
        await self._socket.accept()
        if hub.streams >= hub.settings.max_clients:
            hub.metrics.refused.labels("clients").inc()
            text = f"{hub.streams} streams are open already, the limit is "
            text += f"{hub.settings.max_clients}; try again later"
            await self._end(1013, text)
            return
        hub.streams += 1
        hub.metrics.streams.inc()
        try:
            await self._send(self._greeting())
            await self._work()
        except WebSocketDisconnect:
            pass
        except _Refused as error:
            hub.metrics.refused.labels("stream").inc()
            await self._end(error.code, str(error))
        finally:
            hub.streams -= 1
            hub.metrics.streams.dec()

    def _greeting(self) -> dict[str, Any]:
        hub, s = self._hub, self._hub.settings
        return {
            "type": "hello",
            "version": VERSION,
            "styles": [asdict(style) for style in hub.studio.styles.values()],
            "limits": {
                "frame_pixels": s.max_frame_pixels,
                "message_bytes": s.max_message,
                "fps": s.max_fps,
            },
        }

    async def _work(self) -> None:
        """Runs the stages; the first that ends, ends the others."""
        stages = [self._read(), self._decode(), self._paint()]
        tasks = [asyncio.create_task(stage) for stage in stages]
        stop = asyncio.create_task(self._hub.stopping.wait())
        try:
            await asyncio.wait([*tasks, stop], return_when=asyncio.FIRST_COMPLETED)
            failed = next((t for t in tasks if t.done()), None)
            if failed is not None:
                failed.result()
                return
            # The server stops: no new frame is read, those that were get their answers.
            tasks[0].cancel()
            while self._unanswered and not any(t.done() for t in tasks[1:]):
                await asyncio.sleep(0.005)
            await self._end(1001, "the server stops")
        finally:
            for task in (*tasks, stop):
                task.cancel()
            await asyncio.gather(*tasks, stop, return_exceptions=True)

    # ------------------------------------------------------------------------ stages

    async def _read(self) -> None:
        s = self._hub.settings
        bucket = Bucket(s.max_fps, max(1.0, s.max_fps))
        while True:
            try:
                async with asyncio.timeout(s.idle):
                    message = await self._socket.receive()
            except TimeoutError:
                raise _Refused(1000, f"no frame for {s.idle:g} seconds") from None
            if message["type"] != "websocket.receive":
                return
            data = message.get("bytes")
            if data is None:
                raise _Refused(1003, "a text message; all messages are binary")
            if not bucket.take():
                await asyncio.sleep(bucket.seconds)  # read later: the socket slows the client down
                bucket.take()
            self._unanswered += 1
            try:
                request = parse_request(data, self._hub.studio.styles, s.max_frame_pixels)
            except ProtocolError as error:
                raise _Refused(1002, str(error)) from None
            except RequestError as error:
                await self._send({"type": "error", "id": error.id, "message": str(error)})
                continue
            await self._pass(self._raw, _Frame(request, time.perf_counter(), request.cut))

    async def _decode(self) -> None:
        while True:
            await self._raw.wait()
            frame = self._raw.take()
            request = frame.request
            start = time.perf_counter()
            try:
                frame.pixels = await self._hub.apart("decode", self._pixels, request)
            except (FastgenError, MemoryError) as error:
                await self._fail(request, error)
                continue
            frame.decode = time.perf_counter() - start
            await self._pass(self._ready, frame)

    def _pixels(self, request: FrameRequest) -> np.ndarray:
        if request.format == "file":
            return decode(request.payload, self._hub.settings.max_frame_pixels, "frame").rgb
        channels = 3 if request.format == "rgb" else 4
        shape = (request.height, request.width, channels)
        return _three(np.frombuffer(request.payload, np.uint8).reshape(shape))

    async def _paint(self) -> None:
        hub = self._hub
        answer: asyncio.Task[None] | None = None
        try:
            while True:
                await self._ready.wait()
                asked = time.perf_counter()
                frame, painted, turn = await hub.turns.run(self, self._choose)
                hub.metrics.seconds.labels("wait").observe(turn - asked)
                if answer is not None:
                    await answer  # results keep their order
                answer = asyncio.create_task(self._answer(frame, painted, turn - asked))
        finally:
            if answer is not None:
                answer.cancel()
                await asyncio.gather(answer, return_exceptions=True)

    def _choose(self) -> Callable[[], tuple[_Frame, Painted | FastgenError | MemoryError, float]]:
        """Called when the turn has come: the newest frame it is."""
        frame, turn = self._ready.take(), time.perf_counter()

        def work() -> tuple[_Frame, Painted | FastgenError | MemoryError, float]:
            request = frame.request
            look = Look(
                request.style,
                request.second,
                request.share,
                request.strength,
                request.preserve_color,
            )
            if frame.pixels is None:
                raise RuntimeError("a frame without pixels reached the engine")
            try:
                painted: Painted | FastgenError | MemoryError = self._hub.studio.paint(
                    look, frame.pixels, self._steady(request, look, frame.cut)
                )
            except (FastgenError, MemoryError) as error:
                painted = error
            return frame, painted, turn

        return work

    def _steady(self, request: FrameRequest, look: Look, cut: bool) -> Stabilizer | None:
        """This stream's stabilizer with the frame before in it; in the engine's thread."""
        if request.stabilize == 0:
            self._stabilizer = None
            return None
        styles = look.style, look.second
        if self._stabilizer is None or self._stabilizer[0] != styles:
            self._stabilizer = styles, Stabilizer(self._hub.studio.painter(look))
        stabilizer = self._stabilizer[1]
        stabilizer.strength = request.stabilize
        if cut:
            stabilizer.reset()
        return stabilizer

    # ------------------------------------------------------------------------ answers

    async def _fail(self, request: FrameRequest, error: Exception) -> None:
        """Says why a frame has no result; the stream goes on."""
        text = own_words(str(error))
        if isinstance(error, MemoryError):
            text = "not enough memory for this frame; send a smaller one"
        await self._send({"type": "error", "id": request.id, "message": text})

    async def _answer(
        self, frame: _Frame, painted: Painted | FastgenError | MemoryError, waited: float
    ) -> None:
        request, hub = frame.request, self._hub
        if not isinstance(painted, Painted):
            await self._fail(request, painted)
            return
        hub.metrics.seconds.labels("network").observe(painted.seconds)
        start = time.perf_counter()
        try:
            payload = await hub.apart("encode", _encode, painted.pixels, request.reply)
        except (FastgenError, MemoryError) as error:
            await self._fail(request, error)
            return
        encode = time.perf_counter() - start
        height, width = painted.pixels.shape[:2]
        milliseconds = {
            "decode": frame.decode,
            "wait": waited,
            "network": painted.seconds,
            "encode": encode,
            "total": time.perf_counter() - frame.arrived,
        }
        header = {
            "type": "frame",
            "id": request.id,
            "style": request.style,
            "width": width,
            "height": height,
            "format": request.reply,
            "ms": {name: round(value * 1000, 2) for name, value in milliseconds.items()},
            "streams": hub.streams,
        }
        start = time.perf_counter()
        await self._send(header, payload)
        hub.metrics.seconds.labels("send").observe(time.perf_counter() - start)
        hub.metrics.frames.labels(request.style).inc()

    async def _pass(self, place: _Place, frame: _Frame) -> None:
        old = place.put(frame)
        if old is not None:
            frame.cut |= old.cut
            self._hub.metrics.dropped.inc()
            await self._send({"type": "dropped", "id": old.request.id})

    async def _send(self, header: dict[str, Any], payload: Any = b"") -> None:
        try:
            async with asyncio.timeout(_SEND_SECONDS), self._sending:
                await self._socket.send_bytes(pack(header, payload))
            self._unanswered -= "id" in header
        except TimeoutError:
            raise _Refused(1008, f"nothing was taken for {_SEND_SECONDS:g} seconds") from None
        except RuntimeError as error:  # starlette: the socket was closed meanwhile
            raise WebSocketDisconnect(1006, str(error)) from None

    async def _end(self, code: int, reason: str) -> None:
        """Says why, and closes; a client that is gone already is not told."""
        try:
            async with asyncio.timeout(2.0):
                await self._send({"type": "error", "message": reason})
                # A close frame holds 123 bytes of reason.
                await self._socket.close(code, reason.encode()[:120].decode(errors="ignore"))
        except (TimeoutError, WebSocketDisconnect, _Refused, RuntimeError):
            pass


def _three(pixels: np.ndarray) -> np.ndarray:
    """(H,W,3) of (H,W,3) or (H,W,4), C-contiguous."""
    if pixels.shape[2] == 3:
        return pixels
    result = np.empty((*pixels.shape[:2], 3), np.uint8)
    for channel in range(3):  # four times as fast as all at once
        result[:, :, channel] = pixels[:, :, channel]
    return result


def _encode(pixels: np.ndarray, kind: str) -> Any:
    if kind == "jpeg":
        return encode_jpeg(pixels, _JPEG_QUALITY)
    if kind == "rgb":
        return np.ascontiguousarray(pixels)
    result = np.empty((*pixels.shape[:2], 4), np.uint8)
    for channel in range(3):
        result[:, :, channel] = pixels[:, :, channel]
    result[:, :, 3] = 255
    return result
