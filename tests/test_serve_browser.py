"""The page of ``fastgen serve`` in headless Chromium, with a camera that plays a file."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from serving import Running, running

import fastgen

pytest.importorskip("playwright", reason="drives a browser with playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("needs Chromium (Debian, Ubuntu: apt install chromium)", allow_module_level=True)

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

STYLE = "starry_night.small"
WIDTH, HEIGHT = 160, 120


def camera_file(path: Path) -> None:
    """A Y4M clip of one still picture: four fields of different grey and colour."""
    luma = np.full((HEIGHT, WIDTH), 60, np.uint8)
    luma[: HEIGHT // 2, WIDTH // 2 :] = 120
    luma[HEIGHT // 2 :, : WIDTH // 2] = 170
    luma[HEIGHT // 2 :, WIDTH // 2 :] = 210
    blue, red = (np.full((HEIGHT // 2, WIDTH // 2), 128, np.uint8) for _ in range(2))
    blue[:, : WIDTH // 4] = 180
    red[: HEIGHT // 4] = 190
    frame = b"FRAME\n" + luma.tobytes() + blue.tobytes() + red.tobytes()
    head = f"YUV4MPEG2 W{WIDTH} H{HEIGHT} F25:1 Ip A1:1 C420jpeg\n".encode()
    path.write_bytes(head + frame * 10)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(rate=100_000) as found:
        yield found


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    clip = tmp_path_factory.mktemp("camera") / "camera.y4m"
    camera_file(clip)
    switches = (
        "--no-sandbox --disable-gpu --use-fake-ui-for-media-stream "
        "--use-fake-device-for-media-stream --disable-background-networking "
        "--disable-component-update --disable-sync --no-first-run --mute-audio"
    ).split()
    with sync_playwright() as play:
        chromium = play.chromium.launch(
            executable_path=CHROMIUM,
            headless=True,
            args=[*switches, f"--use-file-for-fake-video-capture={clip}"],
        )
        yield chromium
        chromium.close()


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


class Tab:
    """A page that is open, and what its console said."""

    def __init__(self, browser: Browser, server: Running, **options: Any) -> None:
        options.setdefault("permissions", ["camera"])
        self.context = browser.new_context(**options)
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.said: list[str] = []
        self.page.on("console", lambda m: self.said.append(f"{m.type}: {m.text}"))
        self.page.on("pageerror", lambda e: self.said.append(f"error: {e}"))
        self.page.goto(server.url)
        self.page.wait_for_selector("#styles input")

    def canvas(self, name: str) -> np.ndarray:
        """The pixels of a canvas, RGB."""
        url = self.page.evaluate("(id) => document.getElementById(id).toDataURL('image/png')", name)
        data = base64.b64decode(url.partition(",")[2])
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    def slide(self, name: str, value: int) -> None:
        """Moves a slider as a hand does."""
        self.page.locator(f"#{name}").fill(str(value))

    def live(self) -> None:
        self.page.wait_for_selector('#status:has-text("painted live")')

    def complaint(self) -> str:
        self.page.wait_for_selector("#alert:not([hidden])")
        return self.page.inner_text("#alert-text")


@pytest.fixture
def tab(browser: Browser, server: Running) -> Iterator[Tab]:
    found = Tab(browser, server, viewport={"width": 1280, "height": 860})
    yield found
    found.context.close()
    assert found.said == []


def settled(tab: Tab, wanted: Any) -> tuple[np.ndarray, np.ndarray]:
    """Both canvases as soon as they satisfy a condition; the picture stands still."""
    for _ in range(200):
        before, after = tab.canvas("before"), tab.canvas("after")
        if wanted(before, after):
            return before, after
        tab.page.wait_for_timeout(50)
    pytest.fail("the canvases never showed what they should")


def test_the_camera_is_painted(tab: Tab, tmp_path: Path) -> None:
    tab.page.select_option("#transfer", "raw")  # so that every bit can be compared
    tab.slide("stabilize", 0)
    tab.page.click("#camera")
    tab.live()
    stylizer = fastgen.Stylizer(STYLE)

    def painted(before: np.ndarray, after: np.ndarray) -> bool:
        fields = len(np.unique(before.reshape(-1, 3), axis=0))  # a camera may begin with a blank
        return fields == 4 and bool((stylizer(before) == after).all())

    before, full = settled(tab, painted)
    assert before.shape == (HEIGHT, WIDTH, 3)
    assert tab.page.get_attribute("#camera", "aria-pressed") == "true"
    assert tab.page.inner_text("#connection") == "live"
    tab.slide("strength", 0)
    settled(tab, lambda before, after: bool((before == after).all()))
    tab.slide("strength", 50)
    _, half = settled(tab, lambda b, a: bool((stylizer(b, strength=0.5) == a).all()))
    assert (half != full).any()
    tab.slide("strength", 100)
    tab.page.check("#color")
    settled(tab, lambda b, a: bool((stylizer(b, preserve_color=True) == a).all()))
    tab.page.uncheck("#color")
    tab.page.check("input[value='great_wave.small']")
    wave = fastgen.Stylizer("great_wave.small")
    settled(tab, lambda b, a: bool((wave(b) == a).all()))
    # Two styles: the other one's slider appears with it.
    assert tab.page.is_hidden("#share")
    assert tab.page.locator("#second option:checked").inner_text() == "no other style"
    tab.page.select_option("#second", STYLE)
    mix = fastgen.Stylizer({"great_wave.small": 1, STYLE: 1})
    _, even = settled(tab, lambda b, a: bool((mix(b) == a).all()))
    tab.slide("share", 20)
    assert tab.page.inner_text("#share-value") == "20 %"
    blend = {"great_wave.small": 0.8, STYLE: 0.2}
    _, fifth = settled(tab, lambda b, a: bool((mix(b, blend=blend) == a).all()))
    assert (fifth != even).any()
    # Of a style that is chosen itself nothing is left to mix in.
    tab.page.check(f"input[value='{STYLE}']")
    settled(tab, lambda b, a: bool((stylizer(b) == a).all()))
    assert tab.page.input_value("#second") == ""
    assert tab.page.is_hidden("#share")
    tab.page.check("input[value='great_wave.small']")
    settled(tab, lambda b, a: bool((wave(b) == a).all()))
    # As JPEG both ways it looks the same, but is not equal to the last bit.
    tab.page.select_option("#transfer", "jpeg")
    _, coded = settled(tab, lambda b, a: bool((wave(b) != a).any()))
    assert np.abs(coded.astype(int) - wave(before)).mean() < 20
    tab.page.wait_for_selector("#fps:text-matches('^[0-9.]+$')")
    assert tab.page.inner_text("#latency").endswith(" ms")
    tab.page.screenshot(path=tmp_path / "camera.png")
    with tab.page.expect_download() as download:
        tab.page.click("#save")
    assert pixels_of(download.value.path()).shape == (HEIGHT, WIDTH, 3)
    tab.page.click("#camera")
    tab.page.wait_for_selector('#connection:has-text("ready")')


def test_a_photo_is_painted(tab: Tab, tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (6, 8, 3), np.uint8)
    photo = tmp_path / "photo.png"
    Image.fromarray(noise).resize((120, 90), Image.Resampling.BICUBIC).save(photo)
    tab.page.set_input_files("#file", photo)
    tab.page.wait_for_selector("#save:not([hidden])")
    expected = np.asarray(fastgen.stylize(photo, STYLE).convert("RGB"))
    np.testing.assert_array_equal(tab.canvas("after"), expected)
    np.testing.assert_array_equal(tab.canvas("before"), pixels_of(photo))
    with tab.page.expect_download() as download:
        tab.page.click("#save")
    assert download.value.suggested_filename == f"fastgen-{STYLE}.png"
    np.testing.assert_array_equal(pixels_of(download.value.path()), expected)
    tab.page.select_option("#second", "great_wave.small")
    tab.slide("share", 25)
    blend = {STYLE: 0.75, "great_wave.small": 0.25}
    mixed = np.asarray(fastgen.stylize(photo, blend).convert("RGB"))
    settled(tab, lambda before, after: bool((after == mixed).all()))
    tab.slide("strength", 0)
    settled(tab, lambda before, after: bool((before == after).all()))


def test_a_video_is_painted_and_recorded(tab: Tab, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    clip, seconds = tmp_path / "clip.webm", 1
    with av.open(str(clip), "w") as out:
        video = out.add_stream("libvpx", rate=15)
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        sound = out.add_stream("libopus", rate=48_000)
        for i in range(15 * seconds):
            picture = np.full((HEIGHT, WIDTH, 3), (40 + 8 * i, 90, 200 - 8 * i), np.uint8)
            out.mux(video.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        wave = (np.sin(np.arange(48_000 * seconds) / 20) * 8000).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(wave[None], "s16", "mono")
        frame.sample_rate, frame.time_base = 48_000, Fraction(1, 48_000)
        out.mux(sound.encode(frame))
        for stream in (video, sound):
            out.mux(stream.encode(None))
    tab.page.set_input_files("#file", clip)
    tab.live()
    assert tab.page.is_visible("#play")
    tab.page.click("#record")
    tab.page.wait_for_selector("#clip:not([hidden])")
    with tab.page.expect_download() as download:
        tab.page.click("#clip")
    with av.open(str(download.value.path())) as found:
        assert {s.type for s in found.streams} == {"video", "audio"}
        frames = list(found.decode(video=0))
        assert frames[0].width, frames[0].height == (WIDTH, HEIGHT)
        assert len(frames) > 1
    with av.open(str(download.value.path())) as found:
        heard = [np.abs(f.to_ndarray().astype(np.float32)).max() for f in found.decode(audio=0)]
        assert max(heard) > 0.1  # floats: as loud as it was, not silence


def test_errors_are_shown(tab: Tab, server: Running, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    tab.page.set_input_files("#file", broken)
    assert tab.complaint() == "This browser cannot read that picture."
    assert tab.page.get_attribute("#alert", "role") == "alert"
    tab.page.click("#alert-close")
    assert not tab.page.is_visible("#alert")
    tab.page.set_input_files("#file", Path(__file__))
    assert tab.complaint() == "That is neither a picture nor a video."
    # What the server says comes to the eye: a photo that waits behind too many.
    server.hub.photos += 100
    try:
        tab.page.click("#alert-close")
        tab.page.click("#example")
        assert "photos are waiting already" in tab.complaint()
    finally:
        server.hub.photos -= 100
    assert any("503" in text for text in tab.said)  # the browser's own note
    tab.said.clear()


def test_a_camera_that_is_refused_and_a_server_that_goes(browser: Browser) -> None:
    with running() as server:
        tab = Tab(browser, server, permissions=[])
        tab.page.evaluate(
            "() => { navigator.mediaDevices.getUserMedia = "
            "async () => { throw new DOMException('no', 'NotAllowedError'); }; }"
        )
        tab.page.click("#camera")
        assert tab.complaint().startswith("The camera was not allowed.")
        assert tab.said == []
        tab.context.close()
        tab = Tab(browser, server)
        tab.page.click("#camera")
        tab.live()
    assert "interrupted" in tab.complaint()
    assert tab.page.inner_text("#connection") == "not connected"
    tab.context.close()


NAMELESS = """() => [...document.querySelectorAll('input, button, select, a, canvas')]
  .filter((e) => e.checkVisibility())
  .filter((e) => !(e.labels?.length || e.ariaLabel || e.textContent.trim() || e.alt))
  .map((e) => e.outerHTML)"""


def test_keyboard_names_and_layouts(browser: Browser, server: Running, tmp_path: Path) -> None:
    for scheme, width, height in [("light", 1280, 860), ("dark", 360, 740)]:
        tab = Tab(browser, server, color_scheme=scheme, viewport={"width": width, "height": height})
        page = tab.page
        page.click("#example")
        page.wait_for_selector("#save:not([hidden])")
        assert page.evaluate(NAMELESS) == []
        overflow = "() => document.documentElement.scrollWidth - innerWidth"
        assert page.evaluate(overflow) <= 0
        paper = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
        red = int(paper.removeprefix("rgb(").partition(",")[0])
        assert (red > 128) == (scheme == "light")
        page.focus("#second")
        page.keyboard.press("ArrowDown")  # over the chosen style, which is disabled
        page.keyboard.press("Tab")
        assert page.evaluate("() => document.activeElement.id") == "share"
        page.keyboard.press("ArrowRight")
        assert page.inner_text("#share-value") == "51 %"
        assert page.evaluate(NAMELESS) == []
        assert page.evaluate(overflow) <= 0
        page.wait_for_selector('#status:has-text("Painted")')
        page.screenshot(path=tmp_path / f"{scheme}-{width}.png", full_page=True)
        if width > 1000:
            page.focus("#compare")
            page.keyboard.press("ArrowRight")
            assert page.input_value("#compare") == "1"
            page.focus("#styles input:checked")
            page.keyboard.press("ArrowDown")
            assert page.locator("#styles input:checked").input_value() == "great_wave.small"
            page.wait_for_selector('#status:has-text("Painted")')
            page.click("#theme")  # light by choice, whatever the system says
            assert page.evaluate("() => getComputedStyle(document.body).backgroundColor") == (
                "rgb(246, 244, 239)"
            )
        tab.context.close()
        assert tab.said == []
