"""The cuda backend on a GPU; skipped where there is none."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from cuda_cases import STYLE, picture, style_weights

import fastgen
from fastgen import backends, models
from fastgen.backends import _cuda_runner, cuda
from fastgen.metrics import psnr

torch = pytest.importorskip("torch")

gpu = pytest.mark.skipif(cuda.why_not() is not None, reason=str(cuda.why_not()))


@gpu
@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("name", fastgen.list_styles())
def test_gpu_shipped_styles(name: str, precision: str, tmp_path: Path) -> None:
    style = fastgen.load_style(name)
    reference = backends.get("torch").compile(style.graph, style.weights, "fp32", None)
    ours = _cuda_runner.Runner(style.graph, style.weights, precision, tiles=tmp_path)
    for size in ((1, 257, 383), (2, 64, 100), (1, 540, 960), (1, 5, 3)):
        photo = picture(*size)
        expected = reference.run(photo, STYLE)
        for _ in range(3):
            assert psnr(expected, ours.run(photo, STYLE)) >= (40 if precision != "fp32" else 55)


@gpu
def test_gpu_tensors_and_streams(tmp_path: Path) -> None:
    """Tensors in place on the current stream, in both layouts, from two threads."""
    graph = models.create("transformer_net", width=16, blocks=2)
    ours = _cuda_runner.Runner(graph, style_weights(graph), "fp16", tiles=tmp_path)
    photos = [np.roll(picture(1, 96, 128), 7 * i, 2) for i in range(8)]
    expected = [ours.run(photo, STYLE) for photo in photos]
    failures: list[str] = []

    def work() -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for photo, right in zip(photos, expected, strict=True):
                on_card = torch.from_numpy(photo).cuda()
                planes = on_card.permute(0, 3, 1, 2).contiguous()
                results = [ours.run(on_card, STYLE), ours.run_planar(planes, STYLE)]
                rows = [results[0], results[1].permute(0, 2, 3, 1)]
                if not all(np.array_equal(r.cpu().numpy(), right) for r in rows):
                    failures.append("a result is not what the host got")

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    got = list(ours.frames(photos, STYLE))
    assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))


@gpu
def test_gpu_part_of_the_callers_graph(tmp_path: Path) -> None:
    graph = models.create("compact_net", width=8, blocks=1)
    ours = _cuda_runner.Runner(graph, style_weights(graph), "fp16", tiles=tmp_path)
    x = torch.rand(1, 3, 64, 64, device="cuda") * 255
    expected = ours.run(x)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    out = torch.empty_like(expected)
    with torch.cuda.stream(side):
        ours.run(x, out=out)
    torch.cuda.current_stream().wait_stream(side)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        ours.run(x, out=out)
    out.zero_()
    captured.replay()
    assert torch.equal(out, expected)


@gpu
def test_gpu_memory_does_not_grow(tmp_path: Path) -> None:
    graph = models.create("transformer_net", width=16, blocks=2)
    ours = _cuda_runner.Runner(graph, style_weights(graph), "fp16", tiles=tmp_path)
    native = cuda._extension()
    photo = picture(1, 240, 320)
    first = [ours.run(photo, STYLE) for _ in range(3)][-1]
    before = native.memory_info(0)[0]
    for _ in range(200):
        last = ours.run(photo, STYLE)
    assert np.array_equal(first, last)
    assert native.memory_info(0)[0] >= before - (1 << 20)
