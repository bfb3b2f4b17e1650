"""gram_matrix and concat_features of the C++ extension, against numpy in float64."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from cpu_cases import ISAS, need_isa
from hypothesis import given
from hypothesis import strategies as st

_C = pytest.importorskip("fastgen._C", reason="the C++ extension is not built")
from fastgen.ops import _array, _cpu  # noqa: E402

DTYPES = ("float32", "float16", "bfloat16")
SHAPES = [
    (1, 1, 1, 1),
    (2, 3, 5, 7),
    (1, 4, 1, 19),
    (1, 13, 37, 41),
    (3, 17, 16, 1),
    (1, 16, 8, 8),
    (2, 100, 3, 3),
    (1, 5, 600, 3),
    (1, 300, 1, 1),
    (1, 260, 20, 30),
    (1, 61, 23, 29),
    (2, 48, 9, 15),
]


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> str:
    need_isa(request.param)
    return request.param


def make(shape: tuple[int, ...], dtype: str, last: bool = False, seed: int = 0) -> Any:
    """A numpy array, or for bfloat16 a torch tensor."""
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    if last and len(shape) == 4:
        values = np.ascontiguousarray(values.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    if dtype != "bfloat16":
        return values.astype(dtype)  # keeps the memory order
    torch = pytest.importorskip("torch", reason="numpy has no bfloat16")
    return torch.from_numpy(values).to(torch.bfloat16)


def to_numpy(x: Any) -> np.ndarray:
    return x.astype(np.float64) if isinstance(x, np.ndarray) else x.double().numpy()


def gram64(x: Any) -> np.ndarray:
    features = to_numpy(x)
    n, c, h, w = features.shape
    features = features.reshape(n, c, h * w)
    return features @ features.transpose(0, 2, 1) / (c * h * w)


def concat64(content: Any, style: Any) -> np.ndarray:
    a, b = to_numpy(content), to_numpy(style)
    b = b[:, :, None, None] if b.ndim == 2 else b
    return np.concatenate([a, np.broadcast_to(b, (len(a), b.shape[1], *a.shape[2:]))], 1)


def is_last(x: Any) -> bool | None:
    return _array.channels_last(x.shape, _array.describe(x)[2])


# ---------------------------------------------------------------------- gram_matrix


@pytest.mark.parametrize("dtype", DTYPES)
def test_gram(isa: str, dtype: str) -> None:
    for shape in SHAPES:
        for last in (False, True):
            x = make(shape, dtype, last)
            got = _cpu.gram_matrix(x, isa=isa)
            assert type(got) is type(x)
            assert str(got.dtype).endswith("float32")
            assert tuple(got.shape) == (shape[0], shape[1], shape[1])
            expected = gram64(x)
            bound = 1e-6 * np.abs(expected).max()
            np.testing.assert_allclose(to_numpy(got), expected, rtol=0, atol=bound)
            values = to_numpy(got)
            np.testing.assert_array_equal(values, values.transpose(0, 2, 1))


def test_gram_special_values(isa: str) -> None:
    """Every float16 that there is, as the only value of its channel pair."""
    bits = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    x = np.stack([bits, np.ones_like(bits)], 1).reshape(1 << 16, 2, 1, 1)
    got = _cpu.gram_matrix(x, isa=isa)[:, 0, 1]
    with np.errstate(invalid="ignore"):  # signalling NaN
        expected = bits.astype(np.float32) / 2
    np.testing.assert_array_equal(got, expected)
    x = np.ones((1, 20, 10, 10), np.float32)
    x[0, 7, 3, 3] = np.nan
    got = _cpu.gram_matrix(x, isa=isa)[0]
    assert np.isnan(got[7]).all()
    assert np.isnan(got).sum() == 39  # one row and one column
    np.testing.assert_allclose(np.delete(np.delete(got, 7, 0), 7, 1), 1 / 20, rtol=1e-6)


def test_gram_of_long_sums_stays_accurate(isa: str) -> None:
    """The error is that of one block of positions, whatever their number.

    Equal values are the worst case: every addition of a block rounds the same way.
    """
    errors = []
    for positions in (1 << 12, 1 << 20):
        x = np.full((1, 3, 1, positions), np.float32(0.1))
        x[0, 1] = np.random.default_rng(0).uniform(0, 1, positions)
        expected = gram64(x)
        errors.append(np.abs(_cpu.gram_matrix(x, isa=isa) / expected - 1).max())
    assert max(errors) < 3e-6
    assert errors[1] < 2 * errors[0] + 2e-7


def test_gram_of_a_large_map(isa: str) -> None:
    plane = np.random.default_rng(0).random((1, 1, 1024, 1024), np.float32)
    got = _cpu.gram_matrix(np.broadcast_to(plane, (1, 64, 1024, 1024)), isa=isa)
    expected = np.square(plane.astype(np.float64)).sum() / plane.size / 64
    np.testing.assert_allclose(got, np.full((1, 64, 64), expected), rtol=2e-7)


def test_gram_of_any_strides(isa: str) -> None:
    base = make((2, 40, 22, 30), "float32")
    for view in (
        base[:, ::2],
        base[:, :, ::2],
        base[:, :, :, ::2],
        base[:, :, 3:9, 5:],
        base[:, :, ::-1],
        base[..., :1],
        base.transpose(0, 3, 2, 1),
        base.transpose(2, 0, 1, 3),
        np.broadcast_to(base[:1], (3, 40, 22, 30)),
        np.broadcast_to(base[:, :1], (2, 5, 22, 30)),
        np.broadcast_to(base[..., :1], (2, 40, 22, 30)),
    ):
        expected = gram64(view)
        bound = 1e-6 * np.abs(expected).max()
        np.testing.assert_allclose(_cpu.gram_matrix(view, isa=isa), expected, rtol=0, atol=bound)


# ---------------------------------------------------------------------- concat_features

PAIRS = [
    ((1, 1, 1, 1), (1, 1)),
    ((2, 3, 5, 7), (2, 4, 5, 7)),
    ((2, 3, 5, 7), (1, 4, 5, 7)),
    ((2, 17, 9, 11), (2, 33)),
    ((3, 16, 9, 11), (1, 32)),
    ((2, 130, 12, 12), (2, 66, 12, 12)),
    ((1, 33, 1, 70), (1, 20, 1, 70)),
    ((1, 20, 70, 1), (1, 33, 70, 1)),
    ((2, 64, 64, 48), (1, 80, 64, 48)),
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_concat(isa: str, dtype: str) -> None:
    for content_shape, style_shape in PAIRS:
        for last in (False, True):
            for style_last in (False, True):
                content = make(content_shape, dtype, last)
                style = make(style_shape, dtype, style_last, seed=1)
                got = _cpu.concat_features(content, style, isa=isa)
                assert type(got) is type(content)
                assert got.dtype == content.dtype
                assert is_last(got) is not None
                if min(content_shape) > 1:
                    assert is_last(got) is last
                np.testing.assert_array_equal(to_numpy(got), concat64(content, style))


@pytest.mark.parametrize("last", [False, True])
def test_concat_of_a_result_larger_than_the_caches(isa: str, last: bool) -> None:
    """Such a result is written past the caches, from addresses of any alignment."""
    for channels, style in ((33, 31), (32, 32)):
        content = make((1, channels, 300, 260), "float32", last)
        for b in (make((1, style), "float32"), make((1, style, 300, 260), "float32", last)):
            got = _cpu.concat_features(content, b, isa=isa)
            np.testing.assert_array_equal(got, concat64(content, b))


def test_concat_of_any_strides(isa: str) -> None:
    base = make((2, 40, 22, 30), "float16")
    style = make((2, 24), "float16")
    for view in (base[:, ::2], base[:, :, ::2], base[:, :, ::-1], base.transpose(0, 3, 2, 1)):
        for vector in (style, style[:, ::2], style[:1], np.broadcast_to(style[:, :1], (2, 9))):
            got = _cpu.concat_features(view, vector, isa=isa)
            np.testing.assert_array_equal(got, concat64(view, vector))
        got = _cpu.concat_features(base[:, ::3], base[:1, ::2], isa=isa)
        np.testing.assert_array_equal(got, concat64(base[:, ::3], base[:1, ::2]))


# ---------------------------------------------------------------------- both


@given(
    n=st.integers(1, 3),
    c=st.integers(1, 70),
    h=st.integers(1, 40),
    w=st.integers(1, 40),
    other=st.integers(1, 20),
    dtype=st.sampled_from(("float32", "float16")),
    isa=st.sampled_from(_C.isa_available()),
    last=st.booleans(),
    other_last=st.booleans(),
)
def test_random_shapes(
    n: int, c: int, h: int, w: int, other: int, dtype: str, isa: str, last: bool, other_last: bool
) -> None:
    x = make((n, c, h, w), dtype, last)
    expected = gram64(x)
    got = _cpu.gram_matrix(x, isa=isa)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    style = make((n, other, h, w), dtype, other_last, seed=1)
    np.testing.assert_array_equal(_cpu.concat_features(x, style, isa=isa), concat64(x, style))


def test_the_same_bits_on_every_call_and_for_any_number_of_threads() -> None:
    script = (
        "import sys, hashlib, numpy as np\n"
        "from fastgen.ops import _cpu\n"
        "h = hashlib.sha256()\n"
        "for shape in ((1, 64, 64, 64), (3, 40, 30, 31), (1, 300, 40, 40)):\n"
        "    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)\n"
        "    first = _cpu.gram_matrix(x)\n"
        "    assert all((_cpu.gram_matrix(x) == first).all() for _ in range(5))\n"
        "    h.update(first.tobytes())\n"
        "print(h.hexdigest())\n"
    )
    seen = set()
    for threads in ("1", "2", "5"):
        done = subprocess.run(
            [sys.executable, "-P", "-c", script],
            env=os.environ | {"FASTGEN_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        seen.add(done.stdout)
    assert len(seen) == 1


def test_the_environment_chooses_the_instruction_set() -> None:
    script = (
        "import numpy as np\nfrom fastgen.ops import _cpu\n"
        "_cpu.gram_matrix(np.ones((1, 1, 1, 1), np.float32))\n"
    )

    def run(isa: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"FASTGEN_CPU_ISA": isa}
        return subprocess.run(
            [sys.executable, "-P", "-c", script],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    assert run("scalar").returncode == 0
    done = run("mmx")
    assert done.returncode != 0
    assert "FASTGEN_CPU_ISA is 'mmx', must be one of" in done.stderr


def _child(queue: Any) -> None:
    x = make((2, 64, 64, 64), "float32")
    queue.put((_cpu.gram_matrix(x), _cpu.concat_features(x, x)))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_can_use_them() -> None:
    x = make((2, 64, 64, 64), "float32")
    expected = _cpu.gram_matrix(x), _cpu.concat_features(x, x)  # starts the threads
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_child, args=(queue,))
    child.start()
    got = queue.get(timeout=60)
    child.join(timeout=60)
    assert child.exitcode == 0
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_two_threads_at_once() -> None:
    inputs = [make((2, 64, 48, 48), "float32", seed=seed) for seed in range(4)]
    expected = [(_cpu.gram_matrix(x), _cpu.concat_features(x, x)) for x in inputs]

    def work(index: int) -> None:
        for _ in range(10):
            gram, both = expected[index]
            x = inputs[index]
            np.testing.assert_array_equal(_cpu.gram_matrix(x), gram)
            np.testing.assert_array_equal(_cpu.concat_features(x, x), both)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


def test_torch_tensors_keep_their_kind() -> None:
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(make((2, 6, 5, 7), "float32"))
    for tensor in (x, x.to(memory_format=torch.channels_last), x[:, :, ::2]):
        got = _cpu.concat_features(tensor, x[:, :3, 0, 0])
        style = x[:, :3, 0, 0][:, :, None, None].expand(-1, -1, *tensor.shape[2:])
        assert torch.equal(got, torch.cat([tensor, style], 1))
        last = tensor.is_contiguous(memory_format=torch.channels_last)
        assert got.is_contiguous(memory_format=torch.channels_last) is last
        gram = _cpu.gram_matrix(tensor)
        np.testing.assert_allclose(gram.numpy(), gram64(tensor), rtol=0, atol=1e-6)


# ---------------------------------------------------------------------- arguments


def test_index_arithmetic_beyond_32_bits() -> None:
    """Offsets of a tensor of 2^42 elements, which no test could allocate."""
    shape, strides = (64, 1 << 12, 1 << 12, 1 << 12), (1 << 36, 1 << 24, 1 << 12, 1)
    last = tuple(size - 1 for size in shape)
    assert _C.element_offset(shape, strides, last) == (1 << 42) - 1
    assert _C.element_offset(shape, strides, (1, 200, 3, 4)) == (1 << 36) + (200 << 24) + 12292
    huge = (1 << 50, 1 << 50, 1, 1)
    with pytest.raises(ValueError, match="address space"):
        _C.element_offset(huge, (1 << 50, 1, 1, 1), (0, 0, 0, 0))
    with pytest.raises(ValueError, match="4 sizes"):
        _C.element_offset((1, 2, 3), (6, 3, 1), (0, 0, 0, 0))


def _call(shape: Any = (1, 2, 3, 4), strides: Any = (24, 12, 4, 1), dtype: int = 0, **more: Any):
    x, out = np.zeros(64, np.float32), np.zeros(64, np.float32)
    at = more.get("at", _C.array_address(x))
    to = more.get("to", _C.array_address(out))
    _C.gram_matrix(at, shape, strides, dtype, to, more.get("isa", ""))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"shape": (1, 0, 3, 4)}, "size 0"),
        ({"shape": (1, -2, 3, 4)}, "size -2"),
        ({"shape": (1, 1 << 40, 1 << 40, 4)}, "address space"),
        ({"shape": (1, 1 << 62, 1 << 62, 4)}, "address space"),
        ({"shape": (1 << 70, 2, 3, 4)}, "64-bit"),
        ({"shape": (1, 1 << 21, 1, 1), "strides": (0, 0, 1, 1)}, "2097152 channels"),
        ({"strides": (24, 12, 4, 1 << 62)}, "address space"),
        ({"strides": (24, 12, -4, 1)}, "negative"),
        ({"strides": (24, 12, 5, 1)}, "other strides"),
        ({"strides": (24, 2, 16, 4)}, "other strides"),
        ({"shape": (1, 2, 3)}, "4 sizes"),
        ({"dtype": 7}, "dtype code 7"),
        ({"at": 0}, "no memory"),
        ({"to": 0}, "no memory"),
        ({"isa": "mmx"}, "must be one of"),
    ],
)
def test_raw_gram_rejects_what_cannot_be(arguments: dict, text: str) -> None:
    """The extension itself checks sizes: no Python mistake may become a crash."""
    _call()
    with pytest.raises(ValueError, match=text):
        _call(**arguments)


def test_raw_concat_rejects_what_cannot_be() -> None:
    x, out = np.zeros((1, 2, 3, 4), np.float32), np.zeros((1, 4, 3, 4), np.float32)
    at, to = _C.array_address(x), _C.array_address(out)
    good = (at, (1, 2, 3, 4), (24, 12, 4, 1), 0)
    _C.concat_features(*good, *good, to, False, "")
    for bad, text in (
        ((at, (2, 2, 3, 4), (24, 12, 4, 1), 0), "batch or image"),
        ((at, (1, 2, 4, 3), (24, 12, 3, 1), 0), "batch or image"),
        ((at, (1, 2, 3, 4), (24, 12, 4, 1), 1), "different dtypes"),
        ((at, (1, 2, 3, 4), (24, 12, 5, 1), 0), "other strides"),
        ((at, (1, 2, 3, 4), (24, 12, 0, 1), 0), "other strides"),
        ((at, (1, 0, 3, 4), (24, 12, 4, 1), 0), "size 0"),
        ((0, (1, 2, 3, 4), (24, 12, 4, 1), 0), "no memory"),
    ):
        with pytest.raises(ValueError, match=text):
            _C.concat_features(*good, *bad, to, False, "")
    with pytest.raises(ValueError, match="no memory"):
        _C.concat_features(*good, *good, 0, False, "")


def test_adapter() -> None:
    x = make((2, 3, 4, 5), "float32")
    assert _array.describe(x)[1:] == ((2, 3, 4, 5), (60, 20, 5, 1), 0)
    assert _array.describe(x.astype(np.float16))[3] == 1
    assert _array.describe(x)[0] == x.ctypes.data == _array.address(x)
    for wrong in (np.float64, np.int32, ">f4"):
        with pytest.raises(TypeError, match=r"the dtype is .*float32"):
            _array.describe(x.astype(wrong))
    record = np.zeros((1, 2, 3, 4), np.dtype([("a", "u1"), ("b", np.float32)]))["b"]
    with pytest.raises(ValueError, match="no multiple"):
        _array.describe(record)
    for shape in ((2, 3, 4, 5), (1, 3, 4, 5), (2, 1, 4, 5), (2, 3, 1, 1), (1, 1, 4, 4)):
        assert is_last(np.zeros(shape, np.float32)) is False
        turned = _array.empty(x, shape, True)
        assert turned.shape == shape
        assert is_last(turned) in (True, None if min(shape) == 0 else shape[1] != 1)
    assert is_last(x[:, :, ::2]) is None
    assert _cpu.why_not("gram_matrix") is None


def test_strides_of_axes_of_size_one_mean_nothing(isa: str) -> None:
    for shape in (
        (1, 3, 4, 5),
        (2, 1, 4, 5),
        (2, 3, 1, 5),
        (2, 3, 4, 1),
        (1, 1, 1, 1),
        (1, 5, 1, 1),
    ):
        for last in (False, True):
            x = make(shape, "float32", last)
            for odd in (-4, 0, 4 << 40):
                strides = tuple(odd if s == 1 else t for s, t in zip(shape, x.strides, strict=True))
                turned = np.lib.stride_tricks.as_strided(x, shape, strides)
                got = _cpu.gram_matrix(turned, isa=isa)
                np.testing.assert_array_equal(got, _cpu.gram_matrix(x, isa=isa))
                for a, b in ((turned, x), (x, turned), (turned, turned)):
                    got = _cpu.concat_features(a, b, isa=isa)
                    np.testing.assert_array_equal(got, np.concatenate([x, x], 1))
