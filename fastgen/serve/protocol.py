"""The messages of the WebSocket, ``/ws``: one binary layout in both directions.

A message is four bytes, a little-endian unsigned length n; n bytes of UTF-8 JSON, an object, the
header; then the payload (pixels or a file), which may be empty. docs/serve.md lists the headers.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

__all__ = [
    "INPUTS",
    "OUTPUTS",
    "VERSION",
    "FrameRequest",
    "ProtocolError",
    "RequestError",
    "pack",
    "parse_request",
    "unpack",
]

VERSION = 1
MAX_HEADER = 4096  # of what clients send; ours may be longer
INPUTS = ("rgb", "rgba", "file")
OUTPUTS = ("rgb", "rgba", "jpeg")
_CHANNELS = {"rgb": 3, "rgba": 4}
_LENGTH = struct.Struct("<I")


class ProtocolError(ValueError):
    """A message that is none of the protocol: the stream ends."""


class RequestError(ValueError):
    """A frame that cannot be painted; the stream goes on.

    Attributes:
        id: the frame's number.
    """

    def __init__(self, message: str, id: int) -> None:
        super().__init__(message)
        self.id = id


@dataclass(frozen=True)
class FrameRequest:
    """One frame to paint; the fields are those of the header.

    Attributes:
        id: the client's number, which comes back.
        style: a name of the list in the server's greeting.
        second: another one, blended in, or None.
        share: of ``second`` in the blend, 0..1; without one it means nothing.
        strength: 0 photo, 1 painting.
        preserve_color: keep the photo's colours.
        stabilize: 0 off, 1 the steadiest.
        cut: this frame does not continue the one before.
        format: ``"rgb"``, ``"rgba"`` or ``"file"``.
        reply: ``"rgb"``, ``"rgba"`` or ``"jpeg"``.
        width: of raw pixels; 0 for a file, which says so itself.
        height: likewise.
        payload: the pixels row by row, or the bytes of a file.
    """

    id: int
    style: str
    second: str | None
    share: float
    strength: float
    preserve_color: bool
    stabilize: float
    cut: bool
    format: str
    reply: str
    width: int
    height: int
    payload: memoryview


def pack(header: dict[str, Any], payload: Any = b"") -> bytes:
    """A message.

    Args:
        header: what can be JSON.
        payload: contiguous bytes of any kind, also an array.
    """
    text = json.dumps(header, separators=(",", ":")).encode()
    return b"".join((_LENGTH.pack(len(text)), text, memoryview(payload).cast("B")))


def unpack(message: bytes, *, limit: int | None = None) -> tuple[dict[str, Any], memoryview]:
    """A message's header and payload.

    Args:
        message: what came over the socket.
        limit: largest header in bytes; None takes any.

    Raises:
        ProtocolError: too short, or the header is no JSON object.
    """
    view = memoryview(message)
    if len(view) < _LENGTH.size:
        raise ProtocolError(f"a message of {len(view)} bytes, must have at least {_LENGTH.size}")
    (size,) = _LENGTH.unpack_from(view)
    if limit is not None and size > limit:
        raise ProtocolError(f"a header of {size} bytes, the limit is {limit}")
    if size > len(view) - _LENGTH.size:
        raise ProtocolError(f"a header of {size} bytes in a message of {len(view)}")
    end = _LENGTH.size + size
    try:
        header = json.loads(bytes(view[_LENGTH.size : end]))
    except (ValueError, RecursionError):
        raise ProtocolError("the header is not JSON") from None
    if not isinstance(header, dict):
        raise ProtocolError("the header is not a JSON object")
    return header, view[end:]


def parse_request(message: bytes, styles: Collection[str], max_pixels: int) -> FrameRequest:
    """Checks a client's message.

    Args:
        message: what came over the socket.
        styles: names that are served.
        max_pixels: largest width*height of raw pixels.

    Raises:
        ProtocolError: not a message, or not of type ``frame`` with a number.
        RequestError: a frame with values that cannot be.
    """
    header, payload = unpack(message, limit=MAX_HEADER)
    if header.get("type") != "frame":
        raise ProtocolError(f"the type is {_short(header.get('type'))}, must be 'frame'")
    number: Any = header.get("id")
    if not _is_int(number) or not 0 <= number < 1 << 53:
        raise ProtocolError(f"the id is {_short(number)}, must be an integer of 0..2^53-1")
    try:
        return _frame(number, header, payload, styles, max_pixels)
    except _Wrong as error:
        raise RequestError(str(error), number) from None


class _Wrong(ValueError):
    pass


def _frame(
    number: int,
    header: dict[str, Any],
    payload: memoryview,
    styles: Collection[str],
    max_pixels: int,
) -> FrameRequest:
    style = header.get("style")
    if not isinstance(style, str) or style not in styles:
        raise _Wrong(f"the style is {_short(style)}; GET /styles lists the names")
    second = header.get("second")
    if second is not None and (not isinstance(second, str) or second not in styles):
        raise _Wrong(f"second is {_short(second)}; GET /styles lists the names")
    kind, reply = header.get("format", "file"), header.get("reply", "jpeg")
    for what, value, known in (("format", kind, INPUTS), ("reply", reply, OUTPUTS)):
        if value not in known:
            raise _Wrong(f"the {what} is {_short(value)}, must be one of {', '.join(known)}")
    width: Any = 0
    height: Any = 0
    if kind in _CHANNELS:
        width, height = header.get("width"), header.get("height")
        for what, value in (("width", width), ("height", height)):
            if not _is_int(value) or value < 1:
                raise _Wrong(f"the {what} is {_short(value)}, must be an integer of at least 1")
        if width * height > max_pixels:
            raise _Wrong(f"{width}x{height} is above the limit of {max_pixels:,} pixels a frame")
        expected = width * height * _CHANNELS[kind]
        if len(payload) != expected:
            raise _Wrong(f"{len(payload)} bytes of pixels, {width}x{height} {kind} has {expected}")
    flags = {}
    for what in ("preserve_color", "cut"):
        flags[what] = header.get(what, False)
        if not isinstance(flags[what], bool):
            raise _Wrong(f"{what} is {_short(flags[what])}, must be true or false")
    return FrameRequest(
        id=number,
        style=style,
        second=None if second == style else second,
        share=_fraction(header, "share", 0.5),
        strength=_fraction(header, "strength", 1.0),
        stabilize=_fraction(header, "stabilize", 0.0),
        format=kind,
        reply=reply,
        width=width,
        height=height,
        payload=payload,
        **flags,
    )


def _fraction(header: dict[str, Any], what: str, default: float) -> float:
    value = header.get(what, default)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # The comparison is False for NaN, and holds for integers that no float can hold.
    if not is_number or not 0 <= value <= 1:
        raise _Wrong(f"{what} is {_short(value)}, must be a number in 0..1")
    return float(value)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _short(value: object) -> str:
    text = "missing" if value is None else repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
