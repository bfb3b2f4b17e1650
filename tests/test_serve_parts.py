"""Parts of ``fastgen serve`` by themselves: messages, turns, limits, settings."""

from __future__ import annotations

import asyncio
import io
import json
import re
import struct
import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fastgen import image as image_module
from fastgen.errors import ImageError
from fastgen.serve import Settings
from fastgen.serve.protocol import ProtocolError, RequestError, pack, parse_request, unpack

STYLES = {"a", "b"}
PIXELS = 10_000


def request(payload: bytes = b"", **header: Any) -> Any:
    return parse_request(
        pack({"type": "frame", "id": 1, "style": "a", **header}, payload), STYLES, PIXELS
    )


# ---------------------------------------------------------------------------- messages


def test_layout_is_the_documented_one() -> None:
    message = pack({"type": "frame", "id": 7}, b"\x01\x02\x03")
    (size,) = struct.unpack_from("<I", message)
    assert json.loads(message[4 : 4 + size]) == {"type": "frame", "id": 7}
    assert message[4 + size :] == b"\x01\x02\x03"
    header, payload = unpack(message)
    assert header == {"type": "frame", "id": 7}
    assert bytes(payload) == b"\x01\x02\x03"


def test_a_frame() -> None:
    frame = request(
        bytes(24), id=3, format="rgba", reply="rgb", width=3, height=2, strength=0.25, cut=True
    )
    assert (frame.id, frame.style, frame.width, frame.height) == (3, "a", 3, 2)
    assert (frame.strength, frame.stabilize, frame.preserve_color, frame.cut) == (
        0.25,
        0.0,
        False,
        True,
    )
    assert len(frame.payload) == 24
    assert (frame.second, frame.share) == (None, 0.5)
    blend = request(second="b", share=1)
    assert (blend.style, blend.second, blend.share) == ("a", "b", 1.0)
    assert request(second="a").second is None  # a style with itself is the style
    assert (request(b"x").format, request(b"x").reply) == ("file", "jpeg")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"style": "c"}, "the style is 'c'"),
        ({"style": "../../etc/passwd"}, "the style is '../../etc/passwd'"),
        ({"style": ["a"]}, "the style is"),
        ({"second": "c"}, "second is 'c'; GET /styles lists the names"),
        ({"second": {}}, "second is {}"),
        ({"second": "b", "share": 2}, "share is 2, must be a number in 0..1"),
        ({"share": None}, "share is missing, must be a number"),
        ({"strength": 1.01}, "strength is 1.01, must be a number in 0..1"),
        ({"strength": float("nan")}, "strength is nan"),
        ({"strength": 10**400}, "strength is 1000"),
        ({"stabilize": -(10**400)}, "stabilize is -1000"),
        ({"strength": True}, "strength is True"),
        ({"stabilize": -1}, "stabilize is -1"),
        ({"preserve_color": 1}, "preserve_color is 1, must be true or false"),
        ({"format": "bmp"}, "the format is 'bmp'"),
        ({"format": {}}, "the format is {}"),
        ({"reply": None}, "the reply is missing"),
        ({"format": "rgb"}, "the width is missing"),
        ({"format": "rgb", "width": 2.0, "height": 2}, "the width is 2.0"),
        ({"format": "rgb", "width": 2, "height": 0}, "the height is 0"),
        ({"format": "rgb", "width": 2, "height": 2}, "0 bytes of pixels, 2x2 rgb has 12"),
        (
            {"format": "rgb", "width": 9999, "height": 9999},
            "9999x9999 is above the limit",
        ),
    ],
)
def test_wrong_frames_name_the_value(header: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match="^" + re.escape(message)) as caught:
        request(**header)
    assert caught.value.id == 1
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"abc",
        struct.pack("<I", 5000) + bytes(5000),
        struct.pack("<I", 100) + b"{}",
        struct.pack("<I", 2) + b"[]",
        struct.pack("<I", 4096) + b"[" * 4096,
        struct.pack("<I", 4) + b"\xff\xfe\xfd\xfc",
        pack({"type": "frame"}),
        pack({"type": "frame", "id": -1}),
        pack({"type": "frame", "id": 1 << 53}),
        pack({"type": "frame", "id": True}),
        pack({"type": "open", "path": "/etc/passwd"}),
    ],
)
def test_what_is_no_message_ends_the_stream(message: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_request(message, STYLES, PIXELS)


@given(st.binary(max_size=300))
def test_no_bytes_do_more_than_be_refused(data: bytes) -> None:
    for message in (data, struct.pack("<I", len(data)) + data):
        with pytest.raises((ProtocolError, RequestError)):
            parse_request(message, STYLES, PIXELS)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)
FIELDS = (
    "style",
    "format",
    "reply",
    "width",
    "height",
    "strength",
    "stabilize",
    "cut",
    "preserve_color",
)


@given(
    st.dictionaries(st.sampled_from(FIELDS), VALUES | st.sampled_from(["a", "rgb", "file", 1, 2]))
)
def test_any_values_make_a_checked_frame_or_are_refused(header: dict[str, Any]) -> None:
    try:
        frame = request(bytes(12), **header)
    except RequestError:
        return
    assert frame.style in STYLES
    assert 0 <= frame.strength <= 1
    assert 0 <= frame.stabilize <= 1
    assert frame.width * frame.height <= PIXELS


# ---------------------------------------------------------------------------- turns


def test_clients_take_turns_however_much_each_asks_for() -> None:
    from fastgen.serve.turns import Turns

    order: list[str] = []
    first = threading.Event()

    async def run() -> None:
        turns = Turns()

        def work(name: str) -> Any:
            return lambda: lambda: order.append(name)

        async def blocker() -> None:
            await turns.run("z", lambda: lambda: first.wait(10))

        held = asyncio.create_task(blocker())
        await asyncio.sleep(0)
        tasks = [asyncio.create_task(turns.run("a", work(f"a{i}"))) for i in range(4)]
        tasks += [asyncio.create_task(turns.run("b", work("b0")))]
        tasks += [asyncio.create_task(turns.run("c", work(f"c{i}"))) for i in range(2)]
        await asyncio.sleep(0)
        assert turns.waiting == 7
        first.set()
        await asyncio.gather(held, *tasks)
        assert turns.waiting == 0
        turns.close()

    asyncio.run(run())
    assert order == ["a0", "b0", "c0", "a1", "c1", "a2", "a3"]


def test_who_gives_up_holds_nobody_up() -> None:
    from fastgen.serve.turns import Turns

    async def run() -> tuple[list[str], float]:
        turns, done, release = Turns(), [], threading.Event()
        held = asyncio.create_task(turns.run("a", lambda: lambda: release.wait(10)))
        await asyncio.sleep(0.01)
        waiting = [
            asyncio.create_task(turns.run(n, lambda n=n: lambda: done.append(n))) for n in "bcd"
        ]
        await asyncio.sleep(0)
        waiting[0].cancel()
        held.cancel()  # its thread works on: the turn lasts
        await asyncio.sleep(0.05)
        assert done == []
        release.set()
        await asyncio.gather(*waiting[1:])
        with pytest.raises(asyncio.CancelledError):
            await waiting[0]

        def fail() -> None:
            raise ValueError("no")

        with pytest.raises(ValueError, match=r"^no$"):
            await turns.run("a", lambda: fail)
        with pytest.raises(ValueError, match=r"^no$"):
            await turns.run("a", fail)  # type: ignore[arg-type]
        assert await turns.run("a", lambda: lambda: 5) == 5
        turns.close()
        return done, 0.0

    assert asyncio.run(run())[0] == ["c", "d"]


def test_rates_are_of_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("prometheus_client", reason="needs the extra [web]")
    from fastgen.serve.hub import Bucket, Rates

    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    rates = Rates(per_minute=60)
    assert sum(rates.take("10.0.0.1") for _ in range(40)) == 15
    assert rates.take("10.0.0.2")
    now[0] += 2
    assert sum(rates.take("10.0.0.1") for _ in range(40)) == 2
    # An IPv6 host has a network of addresses.
    assert sum(rates.take(f"2001:db8::{i}") for i in range(40)) == 15
    assert rates.take("2001:db8:0:1::1")
    for i in range(Rates.KEPT + 10):
        rates.take(f"10.1.{i // 256}.{i % 256}")
    assert len(rates._buckets) == Rates.KEPT
    bucket = Bucket(10, 1)
    assert bucket.take()
    assert not bucket.take()
    assert bucket.seconds == pytest.approx(0.1)


# ---------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("max_clients", 0, ValueError),
        ("max_clients", 2.5, TypeError),
        ("max_clients", True, TypeError),
        ("timeout", float("nan"), ValueError),
        ("timeout", "3", TypeError),
        ("max_body", 10, ValueError),
        ("token", "short", ValueError),
        ("token", "with space and more", ValueError),
        ("token", "line\r\nSet-Cookie: x", ValueError),
    ],
)
def test_settings_are_checked(name: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=name if name != "token" else "token must"):
        Settings(**{name: value})


def test_settings_do_not_show_the_token() -> None:
    assert "12345678" not in repr(Settings(token="12345678"))


# ---------------------------------------------------------------------------- images in memory


def _file(kind: str, size: tuple[int, int] = (6, 4)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (200, 10, 30)).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_decode_bytes(kind: str) -> None:
    image = image_module.decode_bytes(_file(kind))
    assert image.size == (6, 4)


def test_decode_bytes_refuses() -> None:
    formats = ("JPEG", "PNG", "WEBP")
    for data, message in [
        (b"", "x: empty"),
        (b"hello", "x: is no image that fastgen reads, must be JPEG or PNG or WEBP"),
        (_file("TIFF"), "x: is TIFF, must be JPEG or PNG or WEBP"),
        (_file("PNG")[:50], "x: truncated or damaged"),
        (_file("PNG", (64, 64)), "x: 64x64 is 4,096 pixels, the limit is 1,000"),
    ]:
        with pytest.raises(ImageError, match=message):
            image_module.decode_bytes(data, formats=formats, max_pixels=1000, name="x")
