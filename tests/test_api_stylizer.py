"""``stylize``, ``Stylizer``, the style lists, and what importing fastgen costs."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from test_api_types import photo
from tiny import save_tiny, tiny_checkpoint

import fastgen
from fastgen import backends, styles


@pytest.fixture(scope="module")
def paint() -> fastgen.Stylizer:
    return fastgen.Stylizer(tiny_checkpoint())


def test_import_is_lazy() -> None:
    code = (
        "import sys, fastgen; "
        "print(sorted({'torch', 'numpy', 'PIL', 'safetensors', 'click'} & set(sys.modules))); "
        "fastgen.list_styles(); fastgen.Stylizer; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "False"]


def test_public_names() -> None:
    for name in fastgen.__all__:
        assert getattr(fastgen, name) is not None
        assert name in dir(fastgen)
    with pytest.raises(AttributeError, match="no attribute 'styllize'"):
        fastgen.styllize  # noqa: B018


def test_style_may_be_path_or_checkpoint(tmp_path: Path) -> None:
    path = save_tiny(tmp_path)
    image = photo()
    expected = fastgen.Stylizer(tiny_checkpoint())(image)
    for style in (path, str(path), tiny_checkpoint(), fastgen.load_style(path)):
        np.testing.assert_array_equal(fastgen.stylize(image, style), expected)


def test_replaced_file_is_loaded_again(tmp_path: Path) -> None:
    path = save_tiny(tmp_path, seed=0)
    image = photo()
    first = fastgen.stylize(image, path)
    np.testing.assert_array_equal(fastgen.stylize(image, path), first)
    save_tiny(tmp_path, seed=1)
    os.utime(path, ns=(1, 1))  # even a clock of coarse ticks must notice
    assert (fastgen.stylize(image, path) != first).any()


def test_options_reach_the_picture(tmp_path: Path, paint: fastgen.Stylizer) -> None:
    path = save_tiny(tmp_path)
    image = photo()
    np.testing.assert_array_equal(
        fastgen.stylize(image, path, strength=0.3, preserve_color=True, bgr=True),
        paint(image, strength=0.3, preserve_color=True, bgr=True),
    )


def test_info(tmp_path: Path) -> None:
    path = save_tiny(tmp_path)
    info = fastgen.Stylizer(path, backend="torch", precision="fp32", threads=1).info
    assert (info.style, info.model, info.backend) == ("tiny", "compact_net", "torch")
    assert (info.precision, info.threads, info.licence) == ("fp32", 1, "none")
    assert info.parameters == sum(w.size for w in tiny_checkpoint().weights.values())
    assert info.sha256 == fastgen.load_checkpoint(path).meta["sha256"]
    assert info.as_dict()["why"] == info.why != ""


def test_auto_takes_the_first_backend_that_can_run(paint: fastgen.Stylizer) -> None:
    able = [name for name in backends.names() if backends.why_not(name) is None]
    assert paint.info.backend == able[0]


def test_warmup(paint: fastgen.Stylizer) -> None:
    paint.warmup(40, 30)
    for width, height in ((0, 5), (5, -1), (2.0, 5), (True, 5)):
        with pytest.raises(ValueError, match="must be an integer of at least 1"):
            paint.warmup(width, height)  # type: ignore[arg-type]


def test_stream_is_lazy_and_in_order(paint: fastgen.Stylizer) -> None:
    frames = [photo(seed=s, height=20 + s) for s in range(4)]
    taken = []

    def source() -> Iterator[np.ndarray]:
        for i, frame in enumerate(frames):
            taken.append(i)
            yield frame

    stream = paint.stream(source(), strength=0.7)
    assert taken == []
    for i, result in enumerate(stream):
        assert taken == list(range(i + 1))
        np.testing.assert_array_equal(result, paint(frames[i], strength=0.7))
    assert taken == [0, 1, 2, 3]


def test_stream_closes_its_source(paint: fastgen.Stylizer) -> None:
    closed = []

    def source() -> Iterator[np.ndarray]:
        try:
            while True:
                yield photo()
        finally:
            closed.append(True)

    stream = paint.stream(source())
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert closed == [True]

    def broken() -> Iterator[object]:
        try:
            yield "no such file.jpg"
        finally:
            closed.append(True)

    with pytest.raises(FileNotFoundError):
        list(paint.stream(broken()))
    assert closed == [True, True]


def test_stream_checks_its_options_at_once(paint: fastgen.Stylizer) -> None:
    with pytest.raises(ValueError, match=r"strength is 2, must be in 0\.\.1"):
        paint.stream([], strength=2)
    with pytest.raises(TypeError):
        paint.stream(5)  # type: ignore[arg-type]


def test_threads_share_one_stylizer(paint: fastgen.Stylizer) -> None:
    images = [photo(40 + 8 * i, 60, seed=i) for i in range(6)]
    expected = [paint(image) for image in images]
    results: dict[int, np.ndarray] = {}

    def work(i: int) -> None:
        for _ in range(3):
            results[i] = paint(images[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(images))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, image in enumerate(expected):
        np.testing.assert_array_equal(results[i], image)


@pytest.mark.parametrize("backend", backends.names())
def test_every_backend_paints_the_same(backend: str) -> None:
    reason = backends.why_not(backend)
    if reason is not None:
        pytest.skip(reason)
    ckpt = tiny_checkpoint()
    image = photo(37, 50) / 255.0
    for options in ({}, {"strength": 0.4}, {"preserve_color": True}):
        wanted = fastgen.Stylizer(ckpt, backend="torch")(image, **options)
        result = fastgen.Stylizer(ckpt, backend=backend, precision="fp32")(image, **options)
        assert np.abs(result - wanted).max() <= 0.02 / 255


def test_result_is_what_the_network_computes() -> None:
    """The whole path against plain PyTorch: range, padding, crop, clamp, rounding."""
    from fastgen.backends.torch import GraphModule

    ckpt = tiny_checkpoint()
    network = GraphModule(ckpt.graph).load_weights(ckpt.weights).eval()
    image = photo(30, 42)
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    x = torch.nn.functional.pad(x, (0, 2, 0, 2), mode="reflect")
    with torch.no_grad():
        y = network(x)[0, :, :30, :42].clamp(0, 255).round().permute(1, 2, 0).numpy()
    assert np.abs(fastgen.Stylizer(ckpt, precision="fp32")(image) - y).max() <= 1


# ---------------------------------------------------------------------------- style lists


def test_list_styles_is_sorted_and_filtered() -> None:
    names = fastgen.list_styles()
    paintings = [name.partition(".")[0] for name in names]
    assert paintings == sorted(paintings)
    assert fastgen.list_styles("*.small") == [n for n in names if n.endswith(".small")]
    assert fastgen.list_styles("no such*") == []
    sizes = {p: [n.partition(".")[2] for n in names if n.partition(".")[0] == p] for p in paintings}
    assert all(s == sorted(s, key=["", "small", "full"].index) for s in sizes.values())


def test_every_shipped_style_loads_and_has_a_card() -> None:
    for name in fastgen.list_styles():
        ckpt = fastgen.load_style(name)
        card = styles.style_card(name)
        assert card["sha256"] == ckpt.meta["sha256"], name
        assert styles.style_path(name).stat().st_size < 4e6, name
        for key in ("title", "artist", "year", "terms"):
            assert card["painting"].get(key), f"{name}: {key}"
        for key in ("licence", "photos", "loss_network", "training"):
            assert card.get(key), f"{name}: {key}"


def test_load_style_returns_a_checkpoint_as_it_is() -> None:
    ckpt = tiny_checkpoint()
    assert fastgen.load_style(ckpt) is ckpt
