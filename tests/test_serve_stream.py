"""``fastgen serve`` over the WebSocket: results, pace, several clients, faults, and the end."""

from __future__ import annotations

import io
import json
import re
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image
from serving import Running, Stream, httpx, process, running

import fastgen
from fastgen.serve import protocol

STYLE = "starry_night.small"
BIG = (1280, 720)  # takes a while


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(rate=1_000_000, max_clients=8, max_fps=1000, max_frame_pixels=1 << 20) as found:
        yield found


@pytest.fixture(scope="module")
def stylizer() -> fastgen.Stylizer:
    return fastgen.Stylizer(STYLE)


def picture(width: int = 64, height: int = 48, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


def coded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=90)
    return buffer.getvalue()


def jpeg(pixels: np.ndarray) -> bytes:
    return coded(Image.fromarray(pixels), "JPEG")


def raw(pixels: np.ndarray, **header: Any) -> dict[str, Any]:
    height, width = pixels.shape[:2]
    return {"format": "rgb", "reply": "rgb", "width": width, "height": height, **header}


def image(header: dict[str, Any], payload: memoryview, channels: int = 3) -> np.ndarray:
    assert header["type"] == "frame", header
    return np.frombuffer(payload, np.uint8).reshape(header["height"], header["width"], channels)


def eventually(condition: Callable[[], bool], seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


# ---------------------------------------------------------------------------- results


def test_a_frame_is_what_fastgen_makes_of_it(server: Running, stylizer: fastgen.Stylizer) -> None:
    frame = picture(65, 47)
    with Stream(server.host) as stream:
        assert stream.hello["type"] == "hello"
        assert stream.hello["version"] == protocol.VERSION == 1
        assert [s["name"] for s in stream.hello["styles"]] == [STYLE, "great_wave.small"]
        assert stream.hello["limits"]["frame_pixels"] == 1 << 20
        for number, options in enumerate(
            [{}, {"strength": 0.3}, {"preserve_color": True}, {"strength": 0}]
        ):
            stream.send(frame, id=number, **raw(frame), **options)
            header, payload = stream.answer()
            assert header["id"] == number
            np.testing.assert_array_equal(image(header, payload), stylizer(frame, **options))
            assert header["ms"]["total"] > 0
        stream.send(frame, id=9, **raw(frame, style="great_wave.small"))
        expected = fastgen.stylize(frame, "great_wave.small")
        np.testing.assert_array_equal(image(*stream.answer()), expected)


def test_layouts(server: Running, stylizer: fastgen.Stylizer) -> None:
    frame = picture()
    expected = stylizer(frame)
    with Stream(server.host) as stream:
        four = np.dstack([frame, np.full(frame.shape[:2], 7, np.uint8)])
        stream.send(four, id=1, **raw(frame, format="rgba", reply="rgba"))
        found = image(*stream.answer(), 4)
        np.testing.assert_array_equal(found[..., :3], expected)
        assert (found[..., 3] == 255).all()
        stream.send(jpeg(frame), id=2, format="file", reply="rgb")
        decoded = np.asarray(Image.open(io.BytesIO(jpeg(frame))))
        np.testing.assert_array_equal(image(*stream.answer()), stylizer(decoded))
        stream.send(frame, id=3, **raw(frame, reply="jpeg"))
        header, payload = stream.answer()
        assert header["format"] == "jpeg"
        back = np.asarray(Image.open(io.BytesIO(payload)), np.int16)
        assert np.abs(back - expected).mean() < 8


def test_a_stream_is_stabilized_on_its_own(stylizer: fastgen.Stylizer) -> None:
    pytest.importorskip("fastgen._C", reason="the stabilizer is compiled")
    noise = np.random.default_rng(3).integers(-12, 13, (6, 96, 128, 3))
    frames = np.clip(picture(128, 96, 4) + noise, 0, 255).astype(np.uint8)
    steady, other = fastgen.Stabilizer(stylizer, strength=0.7), frames[::-1]
    with running() as server, Stream(server.host) as one, Stream(server.host) as two:
        different = 0
        for number, frame in enumerate(frames):
            cut = number == 4
            if cut:
                steady.reset()
            one.send(frame, id=number, **raw(frame, stabilize=0.7, cut=cut))
            two.send(other[number], id=number, **raw(frame))
            found = image(*one.answer())
            np.testing.assert_array_equal(found, steady(frame))
            np.testing.assert_array_equal(image(*two.answer()), stylizer(other[number]))
            different += bool((found != stylizer(frame)).any())
        assert different == 4  # all but the first of each scene


def test_a_stream_of_two_styles(server: Running) -> None:
    pytest.importorskip("fastgen._C", reason="the stabilizer is compiled")
    names = STYLE, "great_wave.small"
    mix = fastgen.Stylizer(dict.fromkeys(names, 1.0))
    steady = fastgen.Stabilizer(mix, strength=0.7)
    noise = np.random.default_rng(5).integers(-12, 13, (4, 96, 128, 3))
    frames = np.clip(picture(128, 96, 4) + noise, 0, 255).astype(np.uint8)
    with Stream(server.host) as stream:
        for number, frame in enumerate(frames):  # the share moves, the stabilizer goes on
            blend = dict(zip(names, (1 - number / 4, number / 4), strict=True))
            options = {"second": names[1], "share": number / 4, "stabilize": 0.7}
            stream.send(frame, id=number, **raw(frame, cut=number == 0, **options))
            np.testing.assert_array_equal(image(*stream.answer()), steady(frame, blend=blend))
        stream.send(frame, id=9, **raw(frame, second=names[1]))
        np.testing.assert_array_equal(image(*stream.answer()), mix(frame))


# ---------------------------------------------------------------------------- pace


def test_the_newest_frame_wins_and_every_frame_is_answered(server: Running) -> None:
    count = 12
    with Stream(server.host) as stream:
        frames = [jpeg(picture(*BIG, seed=i)) for i in range(count)]
        for number, data in enumerate(frames):
            stream.send(data, id=number, format="file")
        answers = [stream.answer()[0] for _ in range(count)]
    kinds = {a["id"]: a["type"] for a in answers}
    assert sorted(kinds) == list(range(count))
    assert kinds[count - 1] == "frame"
    assert "dropped" in kinds.values()
    painted = [a["id"] for a in answers if a["type"] == "frame"]
    assert painted == sorted(painted)


def test_frames_that_come_too_fast_are_read_later() -> None:
    with running(max_fps=10.0) as server, Stream(server.host) as stream:
        frame = picture(16, 16)
        start = time.monotonic()
        for number in range(14):
            stream.send(frame, id=number, **raw(frame))
            assert stream.answer()[0]["id"] == number
        assert time.monotonic() - start > 0.3  # ten at once, the other four at their pace


def test_an_idle_stream_is_closed() -> None:
    with running(idle=1.0) as server, Stream(server.host) as stream:
        header, _ = stream.answer()
        assert header == {"type": "error", "message": "no frame for 1 seconds"}


# ---------------------------------------------------------------------------- several


def test_clients_share_fairly(stylizer: fastgen.Stylizer) -> None:
    """Each gets its own pictures, and none starves beside those that send two at a time."""
    clients, count = 6, 12
    done = [0] * clients
    at_end: list[list[int]] = []
    failures: list[BaseException] = []
    ready = threading.Barrier(clients)

    def work(index: int, host: str) -> None:
        frame = picture(320, 240, seed=index)
        expected = stylizer(frame)
        ahead = 1 + index % 2
        try:
            with Stream(host) as stream:
                ready.wait(60)
                sent = answered = 0
                while done[index] < count:
                    while sent < answered + ahead:
                        stream.send(frame, id=sent, **raw(frame))
                        sent += 1
                    header, payload = stream.answer()
                    answered += 1
                    if header["type"] == "dropped":  # by the newer one
                        assert ahead > 1
                        continue
                    np.testing.assert_array_equal(image(header, payload), expected)
                    done[index] += 1
                at_end.append(list(done))
        except BaseException as error:
            failures.append(error)

    with process("--style", STYLE, "--rate", "100000") as (_, url):
        host = url.removeprefix("http://")
        threads = [threading.Thread(target=work, args=(i, host)) for i in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(90)
        metrics = httpx.get(f"{url}/metrics", trust_env=False).text
    assert not failures, failures[0]
    assert done == [count] * clients
    assert min(at_end[0]) >= count // 3, at_end[0]
    found = re.search(rf'fastgen_frames_total{{style="{STYLE}"}} (\d+)', metrics)
    assert found is not None
    assert int(found[1]) >= clients * count


def test_the_number_of_streams_is_limited() -> None:
    with running(max_clients=1) as server, Stream(server.host) as first:
        with Stream(server.host) as second:
            assert second.hello == {
                "type": "error",
                "message": "1 streams are open already, the limit is 1; try again later",
            }
            assert closed(second) == 1013
        frame = picture(16, 16)
        first.send(frame, id=0, **raw(frame))
        assert first.answer()[0]["type"] == "frame"
        first.close()
        assert eventually(lambda: server.hub.streams == 0)
        with Stream(server.host) as third:
            assert third.hello["type"] == "hello"


# ---------------------------------------------------------------------------- faults


def closed(stream: Stream) -> int:
    """The code with which the server closes; answers before it are left out."""
    from websockets.exceptions import ConnectionClosed

    while True:
        try:
            stream.answer()
        except ConnectionClosed as end:
            if end.rcvd is None:
                raise
            return end.rcvd.code


def test_frames_that_cannot_be_painted(server: Running) -> None:
    frame, long = picture(16, 16), np.zeros((66_000, 1, 3), np.uint8)
    with Stream(server.host) as stream:
        for number, (payload, header, message) in enumerate(
            [
                (b"", {"style": "/etc/passwd"}, "the style is '/etc/passwd'"),
                (b"", raw(frame), "0 bytes of pixels, 16x16 rgb has 768"),
                (frame, raw(frame, strength=2), "strength is 2"),
                (b"", raw(frame, width=4096, height=4096), "4096x4096 is above the limit"),
                (b"no image", {"format": "file"}, "frame: is no image"),
                (jpeg(picture(1200, 1000)), {"format": "file"}, "frame: 1200x1000 is 1,200,000"),
                (jpeg(frame)[:200], {"format": "file"}, "frame: truncated or damaged"),
                (long, raw(long, reply="jpeg"), "1x66000 is no JPEG"),
            ]
        ):
            stream.send(payload, id=number, **header)
            answer, _ = stream.answer()
            assert (answer["type"], answer["id"]) == ("error", number)
            assert answer["message"].startswith(message)
            assert "max_pixels" not in answer["message"]  # what only the server's owner can do
        stream.send(frame, id=99, **raw(frame))  # and the stream goes on
        assert stream.answer()[0]["id"] == 99


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"\x00", 1002),
        (struct.pack("<I", 1 << 31) + b"{}", 1002),
        (protocol.pack({"type": "shell", "id": 1}), 1002),
        ("text", 1003),
    ],
)
def test_what_is_not_the_protocol_ends_the_stream(
    server: Running, message: bytes | str, code: int
) -> None:
    with Stream(server.host) as stream:
        stream.socket.send(message)
        assert closed(stream) == code
    assert eventually(lambda: server.hub.streams == 0)


def test_messages_have_a_limit() -> None:
    with running(max_frame_pixels=1000, max_body=2000) as server, Stream(server.host) as stream:
        stream.socket.send(bytes(4 * 1000 + 8192 + 1))
        assert closed(stream) == 1009


def test_a_client_that_leaves_in_the_middle(server: Running) -> None:
    """A reset while its frame is painted, and one in the middle of a message."""
    for half in (False, True):
        stream = Stream(server.host)
        if half:
            plain = stream.socket.socket
            plain.sendall(b"\x82\xff" + struct.pack(">Q", 1 << 20) + bytes(4) + bytes(5000))
        else:
            stream.send(jpeg(picture(*BIG)), id=0, format="file")
            time.sleep(0.02)
        plain = stream.socket.socket
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        plain.close()
        assert eventually(lambda: server.hub.streams == 0)
    with Stream(server.host) as other:
        frame = picture(16, 16)
        other.send(frame, id=0, **raw(frame))
        assert other.answer()[0]["type"] == "frame"
    assert server.hub.turns.waiting == 0


def by_hand(server: Running) -> socket.socket:
    """A WebSocket that reads nothing unless it is told to."""
    name, _, port = server.host.partition(":")
    plain = socket.create_connection((name, int(port)), 20)
    plain.sendall(
        f"GET /ws HTTP/1.1\r\nHost: {server.host}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
    )
    assert plain.recv(12) == b"HTTP/1.1 101"
    return plain


def test_a_client_that_takes_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answers do not pile up: the stream ends when one cannot be sent."""
    from fastgen.serve import stream as module

    monkeypatch.setattr(module, "_SEND_SECONDS", 0.4)
    frame = picture(800, 600)
    with running(max_clients=1) as server, by_hand(server) as plain:
        plain.settimeout(0.2)
        assert eventually(lambda: server.hub.streams == 1)
        number = 0
        end = time.monotonic() + 60
        while server.hub.streams and time.monotonic() < end:
            header = {"type": "frame", "id": number, "style": STYLE, **raw(frame)}
            message = protocol.pack(header, frame)
            head = b"\x82\xff" + struct.pack(">Q", len(message)) + bytes(4)  # a mask of zeros
            number += 1
            try:
                plain.sendall(head + message)
            except OSError:  # cut off, or the server reads no more from it either
                break
        assert eventually(lambda: server.hub.streams == 0)
        with Stream(server.host) as other:
            assert other.hello["type"] == "hello"


def test_foreign_pages_may_not_open_a_stream(server: Running) -> None:
    from websockets.exceptions import InvalidStatus

    for options in (
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"additional_headers": {"Cookie": "x"}, "origin": f"http://{server.host}.evil.example"},
    ):
        with pytest.raises(InvalidStatus) as caught:
            Stream(server.host, **options)
        assert caught.value.response.status_code == 403
    with Stream(server.host, origin=f"http://{server.host}") as stream:
        assert stream.hello["type"] == "hello"


def test_too_many_new_streams_are_told_so() -> None:
    from websockets.exceptions import InvalidStatus

    with running(rate=4) as server:
        with Stream(server.host):
            pass
        with pytest.raises(InvalidStatus) as caught, Stream(server.host):
            pass
        response = caught.value.response
        assert response.status_code == 429
        assert response.headers["retry-after"] == "10"
        assert json.loads(response.body) == {"detail": "more than 4 streams a minute; slow down"}


def test_a_stream_needs_the_token() -> None:
    from websockets.exceptions import InvalidStatus

    token = "0123456789abcdef"
    with running(token=token) as server:
        for value in ("", "Bearer wrong-wrong", f"Basic {token}"):
            with pytest.raises(InvalidStatus) as caught:
                Stream(server.host, additional_headers={"Authorization": value})
            assert caught.value.response.status_code == 401
        with Stream(server.host, additional_headers={"Authorization": f"Bearer {token}"}) as one:
            assert one.hello["type"] == "hello"
        login = httpx.get(f"{server.url}/?token={token}", trust_env=False)
        cookie = login.headers["set-cookie"].partition(";")[0]
        with Stream(server.host, additional_headers={"Cookie": cookie}) as two:
            assert two.hello["type"] == "hello"


# ---------------------------------------------------------------------------- the end


def test_who_says_nothing_does_not_hold_up_the_end(capfd: pytest.CaptureFixture[str]) -> None:
    with running(grace=0.2) as server, Stream(server.host) as idle:
        name, _, port = server.host.partition(":")
        half = socket.create_connection((name, int(port)), 20)
        half.sendall(b"POST /stylize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nabc")
        silent = socket.create_connection((name, int(port)), 20)
        assert eventually(lambda: server.hub.photos == 1)
        server.server.handle_exit(signal.SIGTERM, None)
        assert closed(idle) == 1001
        assert eventually(lambda: not server.thread.is_alive(), 30)  # uvicorn would wait for ever
        half.close()
        silent.close()
    assert capfd.readouterr().err == ""  # nor is it a fault to report


def test_sigterm_finishes_what_is_in_hand() -> None:
    with process("--style", "great_wave") as (child, url):
        host = url.removeprefix("http://")
        frame = picture(64, 48)
        large = coded(Image.new("RGB", (1600, 1200), (90, 120, 200)))
        responses: list[httpx.Response] = []

        def post() -> None:
            responses.append(
                httpx.post(f"{url}/stylize", content=large, timeout=60, trust_env=False)
            )

        def waiting() -> bool:
            text = httpx.get(f"{url}/metrics", trust_env=False).text
            return "fastgen_waiting 1.0" in text

        with Stream(host) as stream:
            photo = threading.Thread(target=post)
            photo.start()
            number = 0
            while not waiting():  # until the photo has the engine, and a frame stands behind it
                number += 1
                stream.send(frame, id=number, **raw(frame, style="great_wave"))
                time.sleep(0.05)
            child.send_signal(signal.SIGTERM)
            answers = {}
            while number not in answers:
                header, _ = stream.answer()
                answers[header["id"]] = header["type"]
            assert answers[number] == "frame"
            assert closed(stream) == 1001
            photo.join(60)
        assert child.wait(60) == 0
        assert [r.status_code for r in responses] == [200]
        assert child.stderr is not None
        assert child.stderr.read() == ""
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/healthz", trust_env=False)
