"""The loss network: input convention from the file, layers, and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_vgg import CHANNELS, INDICES, save_tiny_vgg, tiny_weights
from torch import nn

from fastgen.train.vgg import (
    CONVENTIONS,
    LossNetwork,
    LossNetworkError,
    load_loss_network,
    parse_convention,
    probe_image,
)

LAYERS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3")


def _sequential(weights: dict[str, torch.Tensor], ceil_mode: bool) -> nn.Sequential:
    """The same network built as torchvision builds its own."""
    layers: list[nn.Module] = []
    before = 3
    for index, channels in zip(INDICES, CHANNELS, strict=True):
        if index > len(layers):
            layers.append(nn.MaxPool2d(2, 2, ceil_mode=ceil_mode))
        assert index == len(layers)
        layers += [nn.Conv2d(before, channels, 3, padding=1), nn.ReLU()]
        before = channels
    network = nn.Sequential(*layers)
    network.load_state_dict({k.removeprefix("features."): v for k, v in weights.items()})
    return network


@pytest.mark.parametrize("ceil_mode", [True, False])
def test_features_equal_a_plain_sequential(tmp_path: Path, ceil_mode: bool) -> None:
    path = save_tiny_vgg(tmp_path, pooling=f"2x2 max, ceil_mode={ceil_mode}")
    network = load_loss_network(path, LAYERS)
    image = torch.rand(2, 3, 37, 29) * 255
    x = image - torch.tensor([120, 115.5, 100]).view(1, 3, 1, 1)
    outputs = {}
    for index, layer in enumerate(_sequential(tiny_weights(), ceil_mode)):
        x = layer(x)
        outputs[index] = x
    found = network(image, LAYERS)
    assert list(found) == list(LAYERS)
    for layer, index in zip(LAYERS, (3, 8, 15, 22), strict=True):
        torch.testing.assert_close(found[layer], outputs[index], rtol=1e-4, atol=1e-3)


def test_only_what_is_needed_is_built_and_nothing_is_trained(tmp_path: Path) -> None:
    network = load_loss_network(save_tiny_vgg(tmp_path), ("relu1_2", "relu2_1"))
    assert [name for name, _ in network.steps] == ["relu1_1", "relu1_2", "pool", "relu2_1"]
    assert not list(network.parameters())


SENTENCES = [
    (
        "RGB, float 0..255, subtract mean [123.68,116.779,103.939] (R,G,B), no std division. note",
        (1.0, (123.68, 116.779, 103.939), (1, 1, 1), False),
    ),
    (
        "BGR float 0-255, minus mean (103.939, 116.779, 123.68) (B,G,R)",
        (1.0, (123.68, 116.779, 103.939), (1, 1, 1), True),
    ),
    (
        "RGB 0..1, mean=[0.485, 0.456, 0.406] std=[0.229, 0.224, 0.225]",
        (1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), False),
    ),
    ("RGB in [0, 1]", (1 / 255, (0, 0, 0), (1, 1, 1), False)),
]


@pytest.mark.parametrize(("text", "expected"), SENTENCES)
def test_conventions_are_read_from_sentences(
    text: str, expected: tuple[float, tuple[float, ...], tuple[float, ...], bool]
) -> None:
    found = parse_convention({"input": text, "pooling": "avg"}, "file")
    assert found is not None
    assert (found.scale, found.mean, found.std, found.bgr) == expected
    assert (found.pool, found.ceil_mode) == ("avg", False)


@pytest.mark.parametrize(
    "text", ["natural images", "RGB 0..255 mean [1, 2]", "RGB 0..1 std [1, 0, 1]"]
)
def test_sentences_that_say_nothing_usable_are_refused(text: str) -> None:
    with pytest.raises(LossNetworkError, match="metadata 'input'"):
        parse_convention({"input": text}, "file")


def test_bgr_files_see_the_same_picture() -> None:
    weights = tiny_weights()
    swapped = {k: v.clone() for k, v in weights.items()}
    swapped["features.0.weight"] = weights["features.0.weight"].flip(1)
    rgb = parse_convention({"input": "RGB 0..255 mean [1,2,3]"}, "a")
    bgr = parse_convention({"input": "BGR 0..255 mean [3,2,1] (B,G,R)"}, "b")
    assert rgb is not None
    assert bgr is not None
    image = torch.rand(1, 3, 16, 16) * 255
    one = LossNetwork(weights, rgb, LAYERS[:1])(image, LAYERS[:1])["relu1_2"]
    two = LossNetwork(swapped, bgr, LAYERS[:1])(image, LAYERS[:1])["relu1_2"]
    torch.testing.assert_close(one, two)


def test_unknown_files_need_an_explicit_convention(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(tiny_weights(), path)
    with pytest.raises(LossNetworkError, match="--assume-normalisation"):
        load_loss_network(path, LAYERS)
    network = load_loss_network(path, LAYERS, assume="torchvision")
    assert network.convention == CONVENTIONS["torchvision"]
    with pytest.raises(LossNetworkError, match="'imagenet' is unknown"):
        load_loss_network(path, LAYERS, assume="imagenet")


def test_stated_activation_statistics_are_verified(tmp_path: Path) -> None:
    path = save_tiny_vgg(tmp_path)
    means = load_loss_network(path, LAYERS).info["activation_mean"]
    stated = json.dumps(means)
    load_loss_network(save_tiny_vgg(tmp_path / "right", activation_mean=stated), LAYERS)
    wrong = "RGB 0..1 mean [0.485,0.456,0.406] std [0.229,0.224,0.225]"
    path = save_tiny_vgg(tmp_path / "wrong", activation_mean=stated, input=wrong)
    with pytest.raises(LossNetworkError, match="does not fit these weights"):
        load_loss_network(path, LAYERS)
    load_loss_network(path, LAYERS, assume="caffe")  # the user's word counts


def test_the_real_vgg19_is_accepted_as_it_is_and_refused_as_torchvisions(
    fastgen_data: Path, tmp_path: Path
) -> None:
    source = next((fastgen_data / "vgg19").glob("*.safetensors"))
    network = load_loss_network(source, ("relu4_3",))
    assert network.convention.mean == (123.68, 116.779, 103.939)
    assert network.convention.std == (1, 1, 1)
    assert network.convention.ceil_mode
    with safe_open(source, "pt") as file:
        metadata = dict(file.metadata())
    metadata["input"] = "RGB 0..1, mean [0.485, 0.456, 0.406], std [0.229, 0.224, 0.225]"
    wrong = tmp_path / "wrong.safetensors"
    save_file(load_file(source), wrong, metadata=metadata)
    with pytest.raises(LossNetworkError, match=r"relu3_1 .*does not fit these weights"):
        load_loss_network(wrong, ("relu1_2",))


def test_files_that_are_no_vgg_are_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.safetensors"
    text.write_text("not weights")
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"\x80\x02garbage")
    foreign = tmp_path / "foreign.safetensors"
    save_file({"conv.weight": torch.zeros(3)}, foreign, metadata={"input": "RGB 0..255"})
    nan = tmp_path / "nan.safetensors"
    weights = tiny_weights()
    weights["features.2.bias"][0] = float("nan")
    save_file(weights, nan, metadata={"input": "RGB 0..255"})
    cases = [
        (tmp_path, "is not a file"),
        (tmp_path / "missing.pth", "is not a file"),
        (text, "not a readable safetensors"),
        (broken, "not a readable weights file"),
        (foreign, r"has no features\.0\.weight"),
        (nan, r"features\.2 holds NaN"),
    ]
    for path, message in cases:
        with pytest.raises(LossNetworkError, match=message) as error:
            load_loss_network(path, LAYERS)
        assert "\n" not in str(error.value)
    with pytest.raises(LossNetworkError, match="no layer 'relu9_9'"):
        load_loss_network(save_tiny_vgg(tmp_path / "ok"), ("relu9_9",))


def test_no_file_and_no_network_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("no route")

    monkeypatch.delenv("FASTGEN_DATA", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(LossNetworkError, match=r"give --vgg FILE.*FASTGEN_DATA"):
        load_loss_network(None, LAYERS)
    monkeypatch.setenv("FASTGEN_DATA", str(tmp_path))
    path = save_tiny_vgg(tmp_path / "vgg19")
    assert load_loss_network(None, LAYERS).info["file"] == path.name


def test_the_probe_looks_like_a_photo_and_never_changes() -> None:
    probe = probe_image()
    assert probe.shape == (128, 128, 3)
    assert probe.min() >= 0
    assert probe.max() <= 255
    assert 40 < probe.std() < 70
    assert (probe == probe_image()).all()
    assert abs(float(probe[:, 1:].mean() - probe[:, :-1].mean())) < 5
