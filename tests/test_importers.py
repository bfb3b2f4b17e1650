"""Foreign checkpoints: equal results, exact keys, safe reading."""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_api_types import photo
from tiny import save_tiny
from torch import Tensor, nn

import fastgen
from fastgen import importers
from fastgen.calibrate import activation_ranges


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Maps this small are slower on more threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# The two foreign networks, written down here from their description, not from fastgen's graph.


class Conv(nn.Module):
    """Reflection padding of half the kernel, then a convolution called ``conv2d``."""

    def __init__(self, i: int, o: int, k: int, stride: int = 1) -> None:
        super().__init__()
        self.pad = nn.ReflectionPad2d(k // 2)
        self.conv2d = nn.Conv2d(i, o, k, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2d(self.pad(x))


class Up(nn.Module):
    """Nearest x2, then a Conv one level deeper (gordicaleksa's naming)."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.conv2d = Conv(i, o, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2d(nn.functional.interpolate(x, scale_factor=2, mode="nearest"))


class Residual(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = Conv(c, c, 3), Conv(c, c, 3)
        self.in1, self.in2 = (nn.InstanceNorm2d(c, affine=True) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.in2(self.conv2(self.in1(self.conv1(x)).relu()))


class Foreign(nn.Module):
    """pytorch/examples with ``gordic=False``, gordicaleksa with ``gordic=True``."""

    def __init__(self, w: int, gordic: bool) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (
            Conv(3, w, 9),
            Conv(w, 2 * w, 3, 2),
            Conv(2 * w, 4 * w, 3, 2),
        )
        for i, c in enumerate((w, 2 * w, 4 * w, 2 * w, w), 1):
            setattr(self, f"in{i}", nn.InstanceNorm2d(c, affine=True))
        for i in range(1, 6):
            setattr(self, f"res{i}", Residual(4 * w))
        self.gordic = gordic
        if gordic:
            self.up1, self.up2, self.up3 = Up(4 * w, 2 * w), Up(2 * w, w), Conv(w, 3, 9)
        else:
            self.deconv1, self.deconv2 = Conv(4 * w, 2 * w, 3), Conv(2 * w, w, 3)
            self.deconv3 = Conv(w, 3, 9)

    def forward(self, x: Tensor) -> Tensor:
        for i, conv in enumerate((self.conv1, self.conv2, self.conv3), 1):
            x = getattr(self, f"in{i}")(conv(x)).relu()
        for i in range(1, 6):
            x = getattr(self, f"res{i}")(x)
        if self.gordic:
            x = self.in5(self.up2(self.in4(self.up1(x)).relu())).relu()
            return self.up3(x)
        for conv, norm in ((self.deconv1, self.in4), (self.deconv2, self.in5)):
            x = norm(conv(nn.functional.interpolate(x, scale_factor=2, mode="nearest"))).relu()
        return self.deconv3(x)


def network(gordic: bool, width: int = 6, seed: int = 0) -> Foreign:
    torch.manual_seed(seed)
    net = Foreign(width, gordic).eval()
    with torch.no_grad():
        for name, p in net.named_parameters():
            if re.search(r"\bin\d", name):
                p.uniform_(0.5, 1.5) if name.endswith("weight") else p.normal_(0, 0.3)
        last = net.up3 if gordic else net.deconv3
        last.conv2d.weight.mul_(1.0 if gordic else 60.0)
        last.conv2d.bias.add_(0.0 if gordic else 127.0)
    return net


def original(net: Foreign, image: np.ndarray) -> np.ndarray:
    """What the other project computes for RGB 0..255, on a 0..255 scale, before any clipping."""
    x = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    net = net.double()
    mean = torch.tensor([0.485, 0.456, 0.406]).double().view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).double().view(1, 3, 1, 1)
    with torch.no_grad():
        y = net((x / 255 - mean) / std) * std * 255 + mean * 255 if net.gordic else net(x)
    return y.numpy()


def computed(ckpt: fastgen.Checkpoint, image: np.ndarray) -> np.ndarray:
    from fastgen import backends

    runner = backends.get("torch").compile(ckpt.graph, ckpt.weights, "fp32")
    x = image.transpose(2, 0, 1)[None].astype(np.float32)
    return runner.run(x)


def states(net: Foreign) -> dict[str, dict[str, Any]]:
    """The state dict in every wrapping that exists of it."""
    plain = net.float().state_dict()
    legacy = OrderedDict(plain)
    for name, module in net.named_modules():
        if isinstance(module, nn.InstanceNorm2d):
            legacy[f"{name}.running_mean"] = torch.zeros(module.num_features)
            legacy[f"{name}.running_var"] = torch.ones(module.num_features)
    return {
        "plain": plain,
        "legacy": legacy,
        "parallel": {f"module.{k}": v for k, v in plain.items()},
        "wrapped": {"state_dict": plain, "content_weight": 1.0, "commit_hash": "abc"},
        "half": {k: v.half() for k, v in plain.items()},
    }


@pytest.mark.parametrize("gordic", [False, True])
@pytest.mark.parametrize("wrapping", ["plain", "legacy", "parallel", "wrapped"])
@pytest.mark.parametrize("zipped", [True, False])
def test_result_equals_the_original(
    tmp_path: Path, gordic: bool, wrapping: str, zipped: bool
) -> None:
    net = network(gordic)
    path = tmp_path / "candy.pth"
    torch.save(states(net)[wrapping], path, _use_new_zipfile_serialization=zipped)
    ckpt = importers.import_checkpoint(path)
    image = photo(32, 44)
    wanted = original(net, image)
    assert wanted.max() - wanted.min() > 50
    np.testing.assert_allclose(computed(ckpt, image), wanted, atol=0.01)
    assert ckpt.graph.name == "transformer_net"
    assert ckpt.meta["style"] == "candy"
    assert ckpt.meta["licence"] == "not stated"
    assert ckpt.meta["input_range"] == ckpt.meta["output_range"] == [0, 255]
    fastgen.save_checkpoint(tmp_path / "c.safetensors", ckpt, dtype="float32")
    again = fastgen.load_style(tmp_path / "c.safetensors")
    np.testing.assert_array_equal(computed(again, image), computed(ckpt, image))


def test_stylized_picture_equals_the_original(tmp_path: Path) -> None:
    net = network(gordic=False)
    torch.save(net.state_dict(), tmp_path / "a.pth")
    ckpt = importers.import_checkpoint(tmp_path / "a.pth", name="mine", licence="BSD-3")
    assert (ckpt.meta["style"], ckpt.meta["licence"]) == ("mine", "BSD-3")
    image = photo(32, 44)
    wanted = np.clip(original(net, image), 0, 255)[0].transpose(1, 2, 0) / 255.0
    ours = fastgen.stylize(image / 255.0, ckpt, precision="fp32")
    np.testing.assert_allclose(ours, wanted, atol=0.02 / 255)


def test_half_precision_weights(tmp_path: Path) -> None:
    net = network(gordic=False)
    torch.save(states(net)["half"], tmp_path / "a.pth")
    ckpt = importers.import_checkpoint(tmp_path / "a.pth")
    rounded = net.half().float().state_dict()
    np.testing.assert_array_equal(ckpt.weights["down0.weight"], rounded["conv1.conv2d.weight"])


def test_full_width_has_the_published_size(tmp_path: Path) -> None:
    torch.save(network(False, width=32).state_dict(), tmp_path / "a.pth")
    ckpt = importers.import_checkpoint(tmp_path / "a.pth")
    assert ckpt.graph.parameter_count() == 1_679_235


def without(state: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if k != key}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda s: without(s, "res3.conv1.conv2d.bias"),
            "missing weights: 'res3.conv1.conv2d.bias'",
        ),
        (lambda s: without(s, "conv1.conv2d.weight"), "'conv1.conv2d.weight' is missing"),
        (lambda s: s | {"extra.weight": torch.zeros(1)}, "unknown weights: 'extra.weight'"),
        (lambda s: s | {"res7.conv1.conv2d.bias": torch.zeros(24)}, "missing weights: 'res6.conv1"),
        (lambda s: s | {"in1.num_batches_tracked": torch.zeros(1)}, "unknown weights: 'in1.num_b"),
        (lambda s: s | {"bn1.running_mean": torch.zeros(6)}, "unknown weights: 'bn1.running_mean'"),
        (
            lambda s: s | {"in2.weight": torch.zeros(13)},
            r"'in2.weight' has the shape \(13,\), must be \(12,\)",
        ),
        (
            lambda s: s | {"conv1.conv2d.weight": torch.zeros(6, 3, 7, 7)},
            r"must be \(width, 3, 9, 9\)",
        ),
        (lambda s: s | {"in2.bias": torch.full((12,), torch.nan)}, "'in2.bias' contains NaN"),
        (lambda s: s | {"in2.bias": "text"}, "entry 'in2.bias' is a str, must be a tensor"),
        (
            lambda s: {"conv9.weight": torch.zeros(1)},
            "unknown format .*supported: pytorch/examples",
        ),
        (lambda s: {}, "holds a dict, not named weights"),
        (lambda s: [1, 2], "holds a list, not named weights"),
    ],
)
def test_refused_by_name(tmp_path: Path, change: Any, text: str) -> None:
    path = tmp_path / "a.pth"
    torch.save(change(dict(network(False).state_dict())), path)
    with pytest.raises(fastgen.CheckpointError, match=text) as caught:
        importers.import_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_nothing_is_executed(tmp_path: Path) -> None:
    marker = tmp_path / "executed"

    class Evil:
        """Unpickling this would create the marker."""

        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (marker,))

    for i, zipped in enumerate((True, False)):
        path = tmp_path / f"evil{i}.pth"
        torch.save({"conv1": Evil()}, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(fastgen.CheckpointError, match="not a file of weights only"):
            importers.import_checkpoint(path)
    (tmp_path / "raw.pkl").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(fastgen.CheckpointError):
        importers.import_checkpoint(tmp_path / "raw.pkl")
    assert not marker.exists()


def test_other_files(tmp_path: Path, example_photo: Path) -> None:
    supported = "supported: pytorch/examples fast_neural_style .*gordicaleksa"
    cases: list[tuple[Path, str]] = [
        (example_photo, f"not a file of torch.save; {supported}"),
        (save_tiny(tmp_path), "already a safetensors file"),
    ]
    for name, content, text in (
        ("empty.pth", b"", "empty file"),
        ("text.pth", b"hello world, hello", "not a file of torch.save"),
        ("zip.pth", b"PK\x03\x04" + bytes(60), "not a checkpoint that PyTorch can read"),
        ("pickle.pth", b"\x80\x02" + bytes(60), supported.lower()),
    ):
        (tmp_path / name).write_bytes(content)
        cases.append((tmp_path / name, text))
    torch.save(network(False).state_dict(), tmp_path / "cut.pth")
    whole = (tmp_path / "cut.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    cases.append((tmp_path / "cut.pth", "not a checkpoint that PyTorch can read"))
    for path, text in cases:
        with pytest.raises(fastgen.CheckpointError, match=f"(?i){text}") as caught:
            importers.import_checkpoint(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="no such file"):
        importers.import_checkpoint(tmp_path / "gone.pth")
    with pytest.raises(IsADirectoryError):
        importers.import_checkpoint(tmp_path)


def test_activation_ranges_are_those_of_the_original(tmp_path: Path) -> None:
    net = network(gordic=False)
    torch.save(net.state_dict(), tmp_path / "a.pth")
    ckpt = importers.import_checkpoint(tmp_path / "a.pth")
    photos = [photo(32, 44, seed=s) for s in range(2)]
    ranges = activation_ranges(ckpt, photos)
    seen: dict[str, list[float]] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen.setdefault(name, []).extend([float(inputs[0].min()), float(inputs[0].max())])

        return hook

    pairs = {"conv1": "down0", "conv3": "down2", "res2.conv2": "res1_conv2", "deconv3": "out"}
    for theirs in pairs:
        net.get_submodule(theirs).register_forward_hook(watch(theirs))
    for image in photos:
        original(net, image)
    for theirs, ours in pairs.items():
        assert ranges[ours] == pytest.approx((min(seen[theirs]), max(seen[theirs])), abs=1e-3)
    assert ranges["down0"] == (0.0, 255.0)
    assert set(ranges) == {n.name for n in ckpt.graph.nodes if n.op == "conv"}
    with pytest.raises(ValueError, match="no photos"):
        activation_ranges(ckpt, [])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (torch.zeros(3).to_sparse(), "torch.sparse_coo.* must be a dense tensor"),
        (torch.zeros(3, device="meta"), "meta; must be a dense tensor"),
        (torch.zeros(3, dtype=torch.complex64), "is complex64.* must be a dense tensor of real"),
        (torch.zeros(1).expand(10**12), r"has the shape \(10+,\), but the file stores 4 bytes"),
    ],
)
def test_tensors_that_are_no_weights(tmp_path: Path, value: Tensor, text: str) -> None:
    torch.save({"conv1.conv2d.weight": value}, tmp_path / "a.pth")
    with pytest.raises(fastgen.CheckpointError, match=text):
        importers.import_checkpoint(tmp_path / "a.pth")
    torch.save({7: torch.zeros(3)}, tmp_path / "b.pth")
    with pytest.raises(
        fastgen.CheckpointError, match=r"entry 7 is a Tensor, must be .* with a name"
    ):
        importers.import_checkpoint(tmp_path / "b.pth")
