"""``fastgen serve`` over HTTP: results, limits, and who is let in."""

from __future__ import annotations

import io
import re
import shutil
import socket
import ssl
import struct
import subprocess
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from serving import Running, Stream, httpx, process, running

import fastgen

STYLE = "starry_night.small"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(max_pixels=300_000, max_body=400_000, rate=100_000, timeout=10.0) as found:
        yield found


@pytest.fixture(scope="module")
def web(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def stylizer() -> fastgen.Stylizer:
    return fastgen.Stylizer(STYLE)


def photo(width: int = 61, height: int = 43, mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(5).integers(0, 256, (8, 8, len(mode)), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def coded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(response: httpx.Response) -> np.ndarray:
    assert response.status_code == 200, response.text
    return np.asarray(Image.open(io.BytesIO(response.content)))


def problem(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert set(response.json()) == {"detail"}
    assert "\n" not in response.json()["detail"]
    return response.json()["detail"]


# ---------------------------------------------------------------------------- results


@pytest.mark.parametrize(
    "options", [{}, {"strength": 0.4}, {"preserve_color": True}, {"style": "great_wave.small"}]
)
def test_a_photo_is_what_fastgen_makes_of_it(web: httpx.Client, options: dict[str, Any]) -> None:
    expected = fastgen.stylize(photo(), **{"style": STYLE, **options})
    response = web.post("/stylize", params=options, content=coded(photo()))
    assert response.headers["content-type"] == "image/png"
    np.testing.assert_array_equal(pixels(response), np.asarray(expected))


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ({"second": "great_wave.small"}, (0.5, 0.5)),
        ({"second": "great_wave.small", "share": 0.25}, (0.75, 0.25)),
        ({"second": "great_wave.small", "share": 0}, (1, 0)),
        ({"second": "great_wave.small", "share": 1, "strength": 0.5}, (0, 1)),
        ({"second": STYLE, "share": 0.7}, (1, 0)),  # with itself
    ],
)
def test_blends(web: httpx.Client, options: dict[str, Any], weights: tuple[float, float]) -> None:
    look = dict(zip((STYLE, "great_wave.small"), weights, strict=True))
    expected = fastgen.stylize(photo(), look, strength=options.get("strength", 1.0))
    response = web.post("/stylize", params=options, content=coded(photo()))
    np.testing.assert_array_equal(pixels(response), np.asarray(expected))


def drawing() -> Image.Image:
    return Image.fromarray(np.linspace(0, 255, 61 * 43).reshape(43, 61).astype(np.uint8))


@pytest.mark.parametrize(
    ("options", "styles"),
    [
        ({}, ["none", STYLE]),
        ({"second": "great_wave.small", "feather": 5}, [STYLE, "great_wave.small"]),
    ],
)
def test_masks(web: httpx.Client, options: dict[str, Any], styles: list[str]) -> None:
    files = {"photo": ("a.png", coded(photo())), "mask": ("m.png", coded(drawing()))}
    mask = np.asarray(drawing(), np.float32) / 255
    expected = fastgen.stylize(photo(), styles, mask=mask, feather=options.get("feather", 0))
    found = pixels(web.post("/stylize", params=options, files=files)).astype(int)
    assert np.abs(found - np.asarray(expected)).max() <= 1  # the grey of a file is a sum of three
    del files["mask"]
    alone = pixels(web.post("/stylize", files=files))
    np.testing.assert_array_equal(alone, np.asarray(fastgen.stylize(photo(), STYLE)))


def test_forms_that_are_none(web: httpx.Client) -> None:
    kind = {"content-type": "multipart/form-data; boundary=b"}

    def part(name: str, data: bytes = b"x") -> bytes:
        head = f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'
        return head.encode() + data + b"\r\n"

    two = part("photo", coded(photo()))
    for body, message in (
        (b"", "a form has one or two parts"),
        (two, "a form has one or two parts"),  # no end
        (part("mask") + b"--b--", "a form without a part called 'photo'"),
        (part("path") + b"--b--", "a part called 'path', must be photo or mask"),
        (two + two + b"--b--", "two parts called 'photo'"),
        (two * 9 + b"--b--", "a form has one or two parts"),
        (b"--b\r\n" + b"x" * 5000 + b"\r\n\r\n\r\n--b--", "a part of a form without a header"),
        (two + part("mask", b"no picture") + b"--b--", "mask:"),
        (part("photo", b"no picture") + b"--b--", "photo:"),
    ):
        found = problem(web.post("/stylize", content=body, headers=kind), 415)
        assert found.startswith(message)
    plain = {"content-type": "multipart/form-data"}
    assert "boundary" in problem(web.post("/stylize", content=two, headers=plain), 415)


def test_formats_transparency_and_orientation(web: httpx.Client) -> None:
    for kind, suffix in [("JPEG", "jpeg"), ("PNG", "png"), ("WEBP", "webp")]:
        response = web.post("/stylize", content=coded(photo(), kind))
        assert response.headers["content-type"] == f"image/{suffix}"
        assert Image.open(io.BytesIO(response.content)).format == kind
    clear = photo(mode="RGBA")
    painted = pixels(web.post("/stylize", content=coded(clear)))
    np.testing.assert_array_equal(painted[..., 3], np.asarray(clear)[..., 3])
    assert pixels(web.post("/stylize?format=jpeg", content=coded(clear))).shape == (43, 61, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    turned = web.post("/stylize", content=coded(photo(), "JPEG", exif=exif))
    assert pixels(turned).shape == (61, 43, 3)


def test_styles_thumbnails_and_page(web: httpx.Client) -> None:
    body = web.get("/styles").json()
    assert [s["name"] for s in body["styles"]] == [STYLE, "great_wave.small"]
    assert body["styles"][0]["title"] == "The Starry Night"
    assert (body["max_pixels"], body["max_body"]) == (300_000, 400_000)
    seen = set()
    for style in body["styles"]:
        picture = web.get(style["thumbnail"])
        assert pixels(picture).shape == (128, 192, 3)
        seen.add(picture.content)
    assert len(seen) == 2
    page = web.get("/")
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    # What the page names is there, and nothing comes from elsewhere.
    for path in re.findall(r'(?:src|href)="(/[^"]*)"', page.text):
        assert web.get(path).status_code == 200, path
    for path in Path(fastgen.__file__).parent.joinpath("serve", "page").iterdir():
        if path.suffix in {".html", ".js", ".css"}:
            text = path.read_text("utf-8")
            assert not re.findall(r"https?://(?!www\.w3\.org)", text), path.name
            for name in re.findall(r'from "(/page/[a-z]+\.js)"', text):
                assert web.get(name).status_code == 200


def test_health_metrics_and_description(web: httpx.Client) -> None:
    assert web.get("/healthz").json() == {"status": "ok"}

    def value(name: str) -> float:
        lines = web.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    photos = value(f'fastgen_photos_total{{style="{STYLE}"}}')
    bad = value('fastgen_http_responses_total{status="415"}')
    web.post("/stylize", content=coded(photo()))
    web.post("/stylize", content=b"no image")
    assert value(f'fastgen_photos_total{{style="{STYLE}"}}') == photos + 1
    assert value('fastgen_http_responses_total{status="415"}') == bad + 1
    paths = web.get("/openapi.json").json()["paths"]
    assert set(paths) == {
        *("/healthz", "/metrics", "/styles", "/styles/{name}/thumbnail", "/stylize"),
    }
    content = paths["/stylize"]["post"]["requestBody"]["content"]
    assert set(content) == {"image/jpeg", "image/png", "image/webp", "multipart/form-data"}


# ---------------------------------------------------------------------------- limits


def bomb(width: int, height: int) -> bytes:
    """A small PNG file that claims to be large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(200_000))
    body = chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_bad_photos(web: httpx.Client) -> None:
    post = lambda data: web.post("/stylize", content=data)  # noqa: E731
    assert "photo: empty" in problem(post(b""), 415)
    assert "no image that fastgen reads" in problem(post(b"GET / HTTP/1.1"), 415)
    assert "is TIFF, must be JPEG or PNG or WEBP" in problem(post(coded(photo(), "TIFF")), 415)
    assert "truncated or damaged" in problem(post(coded(photo(), "JPEG")[:300]), 415)
    detail = problem(post(bomb(50_000, 50_000)), 413)
    assert detail == "photo: 50000x50000 is 2,500,000,000 pixels, the limit is 300,000"
    assert problem(post(bytes(400_001)), 413) == "a body of 400,001 bytes, the limit is 400,000"

    scans = coded(photo(), "JPEG") + b"\xff\xda" * 200
    assert "photo: a JPEG of 201 scans, the limit is 100" in problem(post(scans), 415)

    def endless() -> Iterator[bytes]:
        for _ in range(50):
            yield bytes(20_000)

    assert "more than 400,000 bytes" in problem(web.post("/stylize", content=endless()), 413)
    assert pixels(post(coded(photo()))).shape == (43, 61, 3)  # and it goes on


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("strength=7", "strength is '7': must be less than or equal to 1"),
        ("second=gone", "second is 'gone'; GET /styles lists the names"),
        ("second=great_wave", "second is 'great_wave'; GET"),  # shipped, but not served
        ("second=great_wave.small&share=1.5", "share is '1.5': must be less"),
        ("share=nan", "share is 'nan'"),
        ("strength=nan", "strength is 'nan'"),
        ("strength=much", "strength is 'much'"),
        ("preserve_color=perhaps", "preserve_color is 'perhaps'"),
        ("format=tiff", "format is 'tiff'"),
        ("style=..%2F..%2Fetc%2Fpasswd", "style is '../../etc/passwd'"),
        ("style=http%3A%2F%2F127.0.0.1%2Fx", "style is 'http://127.0.0.1/x'"),
        ("style=%2Ftmp%2Fx.safetensors", "style is '/tmp/x.safetensors'"),
        ("style=a%0d%0aSet-Cookie:%20x", "style is 'a\\r\\nSet-Cookie: x'"),
    ],
)
def test_bad_values(web: httpx.Client, query: str, message: str) -> None:
    response = web.post(f"/stylize?{query}", content=coded(photo()))
    assert problem(response, 422).startswith(message)
    assert "set-cookie" not in response.headers


@pytest.mark.parametrize(
    "path",
    [
        "/page/../settings.py",
        "/page/..%2f..%2fsettings.py",
        "/page/%2e%2e/%2e%2e/stylizer.py",
        "/page//etc/passwd",
        "/page/index.html%00.js",
        "/styles/..%2f..%2fx/thumbnail",
        "/styles/starry_night/thumbnail",  # shipped, but not served
        "/docs",
    ],
)
def test_no_other_file_is_given(server: Running, path: str) -> None:
    # By hand: clients tidy paths up before they send them.
    answer = raw(server, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 404"), answer[:200]
    assert b"import" not in answer


def raw(server: Running, text: str | bytes, seconds: float = 60) -> bytes:
    """What comes back for these bytes, until the server closes."""
    host, _, port = server.host.partition(":")
    data = text.encode("latin-1") if isinstance(text, str) else text
    with socket.create_connection((host, int(port)), seconds) as sock:
        sock.sendall(data)
        parts = []
        while part := sock.recv(65536):
            parts.append(part)
    return b"".join(parts)


def test_methods(web: httpx.Client) -> None:
    for method, path in [("GET", "/stylize"), ("DELETE", "/styles"), ("POST", "/healthz")]:
        assert web.request(method, path).status_code == 405
    assert web.get("/nothing").status_code == 404


def test_slow_clients_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastgen.serve import server as module

    monkeypatch.setattr(module, "_HEAD_SECONDS", 0.3)
    with running(timeout=0.5) as server:
        for start in (b"", b"GET / HTTP/1.1\r\nHost: loc"):  # says nothing, or never finishes
            assert raw(server, start) == b""
        head = "POST /stylize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n"
        answer = raw(server, f"{head}Connection: close\r\n\r\nabc")
        assert answer.startswith(b"HTTP/1.1 408"), answer[:200]
        assert b"within 0.5 seconds" in answer
        large = "GET / HTTP/1.1\r\nHost: localhost\r\nX: " + "x" * 100_000
        assert raw(server, large).startswith((b"HTTP/1.1 400", b"HTTP/1.1 431", b""))
        assert httpx.get(f"{server.url}/healthz", trust_env=False).status_code == 200


def test_rate_and_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(rate=12.0, max_waiting=2) as server, httpx.Client(trust_env=False) as web:
        codes = [web.post(f"{server.url}/stylize", content=b"x").status_code for _ in range(5)]
        assert codes == [415, 415, 415, 429, 429]
        refused = web.post(f"{server.url}/stylize", content=b"x")
        assert refused.headers["retry-after"] == "10"
        monkeypatch.setattr(server.hub, "photos", 2)
        server.hub.rates = type(server.hub.rates)(10_000)
        detail = problem(web.post(f"{server.url}/stylize", content=b"x"), 503)
        assert detail == "2 photos are waiting already; try again later"
        assert web.get(f"{server.url}/styles").status_code == 200


def test_slow_uploads_of_one_client_leave_places_to_others() -> None:
    """Bodies that never end: a quarter of the places, whoever else comes has the rest."""
    head = b"POST /stylize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nabc"
    with running(max_waiting=8, rate=10_000.0) as server, httpx.Client(trust_env=False) as web:
        host, _, port = server.host.partition(":")
        slow = [socket.create_connection((host, int(port)), 60) for _ in range(2)]
        try:
            for sock in slow:
                sock.sendall(head)
            until = time.monotonic() + 30
            while server.hub.photos < 2 and time.monotonic() < until:
                time.sleep(0.01)
            refused = web.post(f"{server.url}/stylize", content=coded(photo()))
            assert refused.headers["retry-after"] == "5"
            text = "2 photos are on their way from here; send one after another"
            assert problem(refused, 429) == text
            # Another address of this machine.
            other = httpx.HTTPTransport(local_address="127.0.0.2")
            with httpx.Client(transport=other, trust_env=False) as neighbour:
                answer = neighbour.post(f"{server.url}/stylize", content=coded(photo()))
            assert answer.status_code == 200
        finally:
            for sock in slow:
                sock.close()
        until = time.monotonic() + 30
        while server.hub.photos and time.monotonic() < until:
            time.sleep(0.01)
        again = web.post(f"{server.url}/stylize", content=coded(photo()))
        assert again.status_code == 200


# ---------------------------------------------------------------------------- who is let in


def test_hosts_and_origins(server: Running, web: httpx.Client) -> None:
    port = server.host.partition(":")[2]
    own = socket.gethostname()
    for host in ("localhost", f"127.0.0.1:{port}", "[::1]:80", "192.168.1.9:8000", own):
        assert web.get("/healthz", headers={"host": host}).status_code == 200, host
    for host in ("evil.example", "localhost.evil.example", "a@localhost", "127.0.0.1.evil", "l:x"):
        assert "is not known as" in problem(web.get("/", headers={"host": host}), 403), host
    good = (f"http://127.0.0.1:{port}", f"https://127.0.0.1:{port}")
    for origin in good:
        assert web.get("/healthz", headers={"origin": origin}).status_code == 200
    bad = (
        "http://evil.example",
        "null",
        f"http://localhost:{port}",
        "http://127.0.0.1:1",
        "file://",
    )
    for origin in bad:
        response = web.post("/stylize", headers={"origin": origin}, content=coded(photo()))
        assert "may not use this server" in problem(response, 403), origin
    twice = "GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
    assert raw(server, twice).startswith(b"HTTP/1.1 400")


def test_allowed_names() -> None:
    with running(hosts=("Paint.example",), origins=("https://other.example/",)) as server:
        for name, value, status in [
            ("host", "paint.example", 200),
            ("host", "paint.example.evil", 403),
            ("origin", "https://other.example", 200),
            ("origin", "https://other.example.evil", 403),
        ]:
            found = httpx.get(f"{server.url}/healthz", headers={name: value}, trust_env=False)
            assert found.status_code == status, value


def test_token() -> None:
    token = "correct-horse-battery"
    with (
        running(token=token, rate=60.0) as server,
        httpx.Client(base_url=server.url, trust_env=False, timeout=60) as web,
    ):
        assert web.get("/healthz").status_code == 200  # for supervisors
        response = web.get("/styles")
        assert "needs its token" in problem(response, 401)
        assert response.headers["www-authenticate"] == "Bearer"
        assert web.get("/").status_code == 401
        assert web.get("/?token=wrong-horse-battery").status_code == 401
        assert web.get("/metrics", headers={"authorization": f"Bearer {token}x"}).status_code == 401
        bearer = {"authorization": f"Bearer {token}"}
        assert web.get("/metrics", headers=bearer).status_code == 200
        assert web.post("/stylize", headers=bearer, content=coded(photo())).status_code == 200
        login = web.get(f"/?token={token}")
        assert (login.status_code, login.headers["location"]) == (303, "/")
        cookie = login.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Strict" in cookie
        assert web.get("/").status_code == 200  # by the cookie that the client keeps now
        assert web.get("/styles").status_code == 200
        web.cookies.clear()
        codes = [web.get("/styles", headers={"cookie": "x=1"}).status_code for _ in range(20)]
        assert codes[-1] == 429  # guessing is slow
        assert web.get("/styles", headers=bearer).status_code == 200


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
def test_https(tmp_path: Path) -> None:
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "1", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert),
        ],
        check=True,
        capture_output=True,
    )
    trust = ssl.create_default_context(cafile=str(cert))
    options = ("--ssl-certfile", str(cert), "--ssl-keyfile", str(key), "--style", STYLE)
    with process(*options) as (child, url):
        assert url.startswith("https://")
        assert httpx.get(f"{url}/healthz", verify=trust, trust_env=False).status_code == 200
        with Stream(url.removeprefix("https://"), ssl=trust) as stream:
            assert stream.hello["type"] == "hello"
        child.terminate()
        assert child.wait(60) == 0
    from fastgen.serve import Settings
    from fastgen.serve.server import prepare

    with pytest.raises(ValueError, match="no certificate in PEM format, or not with this key"):
        prepare(Settings(), "127.0.0.1", 0, key, cert)
    with pytest.raises(FileNotFoundError):
        prepare(Settings(), "127.0.0.1", 0, tmp_path / "gone.pem")
