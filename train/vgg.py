"""The loss network: VGG weights from a file, with the file's own input convention, checked."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

CAFFE_MEAN = (123.68, 116.779, 103.939)
TORCHVISION_VGG16 = "https://download.pytorch.org/models/vgg16-397923af.pth"


@dataclass(frozen=True)
class InputConvention:
    """How RGB images in 0..255 enter a loss network: (x * scale - mean) / std, channels reordered.

    Attributes:
        scale: Factor on 0..255 values, 1 or 1/255.
        mean: Subtracted after scaling, in R, G, B order.
        std: Divisor, in R, G, B order.
        bgr: The network wants blue first.
        ceil_mode: Pools round partial windows up.
        pool: "max" or "avg".
        source: Where this was read from.
    """

    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    bgr: bool
    ceil_mode: bool
    pool: str
    source: str

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary, for provenance."""
        return asdict(self)


CONVENTIONS = {
    "caffe": InputConvention(
        1.0, CAFFE_MEAN, (1.0, 1.0, 1.0), False, True, "max", "original Oxford weights, RGB filters"
    ),
    "torchvision": InputConvention(
        1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), False, False, "max", "torchvision"
    ),
}

# Files without metadata that are known: first 8 hex digits of the sha256, which torchvision also
# writes into the names of its published files.
KNOWN_FILES = {"397923af": "torchvision", "dcbb9e9d": "torchvision"}

# Mean of relu3_1 and relu4_1 on the probe picture. The original weights grow to several hundred;
# networks fed with unit-variance input stay near one. A factor of 58 lies between the conventions.
PLAUSIBLE_MEANS = {
    "caffe": {"relu3_1": (25.0, 1000.0), "relu4_1": (100.0, 5000.0)},
    "torchvision": {"relu3_1": (0.005, 3.0), "relu4_1": (0.005, 6.0)},
}


class LossNetworkError(ValueError):
    """The loss network cannot be used; the message is one line."""


def _numbers(text: str) -> tuple[float, float, float] | None:
    found = [float(v) for v in re.findall(r"[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?", text)]
    return (found[0], found[1], found[2]) if len(found) == 3 else None


def parse_convention(metadata: Mapping[str, str], source: str) -> InputConvention | None:
    """Reads the input convention from a file's metadata.

    Understood: a sentence under ``input`` such as ``RGB, float 0..255, subtract mean [a,b,c]
    (R,G,B), no std division`` (ranges ``0..255`` or ``0..1``, optional ``std [a,b,c]``, lists are
    in R,G,B order unless followed by ``(B,G,R)``) and one under ``pooling`` that says max or
    average and optionally ``ceil_mode=True``.

    Args:
        metadata: String pairs of the safetensors header.
        source: Name for error messages.

    Returns:
        The convention, or None when the metadata has no ``input``.

    Raises:
        LossNetworkError: ``input`` is present but cannot be understood.
    """
    text = metadata.get("input")
    if text is None:
        return None
    span = re.search(r"(?<![\d.])0(?:\.0)?\s*(?:\.\.|-|to|,)\s*(255|1)(?:\.0)?(?!\d)", text)
    if span is None:
        raise LossNetworkError(
            f"{source}: metadata 'input' names no range 0..1 or 0..255 ({text[:80]!r}); "
            "use --assume-normalisation"
        )

    def triple(word: str, default: tuple[float, float, float]) -> tuple[float, float, float]:
        pattern = rf"\b{word}\w*\s*[=:]?\s*[\[(]([^\])]*)[\])]\s*(\(\s*B\s*,\s*G\s*,\s*R\s*\))?"
        match = re.search(pattern, text, re.IGNORECASE)
        if match is None:
            return default
        values = _numbers(match[1])
        if values is None:
            raise LossNetworkError(
                f"{source}: metadata 'input' has a {word} that is not three numbers "
                f"({match[1][:60]!r}); use --assume-normalisation"
            )
        return (values[2], values[1], values[0]) if match[2] else values

    mean = triple("mean", (0.0, 0.0, 0.0))
    std = triple("std", (1.0, 1.0, 1.0))
    if min(std) <= 0:
        raise LossNetworkError(f"{source}: metadata 'input' has std {std}; it must be positive")
    order = re.search(r"\b(RGB|BGR)\b", text)
    pooling = metadata.get("pooling", "")
    return InputConvention(
        scale=1.0 if span[1] == "255" else 1 / 255,
        mean=mean,
        std=std,
        bgr=order is not None and order[1] == "BGR",
        ceil_mode=bool(
            re.search(r"ceil_mode\s*=?\s*true|\bceil\b(?!_mode)", pooling, re.IGNORECASE)
        ),
        pool="avg" if re.search(r"\b(avg|average)", pooling, re.IGNORECASE) else "max",
        source="metadata of the file",
    )


def _layout(weights: Mapping[str, Tensor], source: str) -> list[tuple[str, int]]:
    """[("relu1_1", 0), ("relu1_2", 2), ("pool", 4), ...] from torchvision's Sequential indices."""
    indices = sorted(
        int(m[1]) for key in weights if (m := re.fullmatch(r"features\.(\d+)\.weight", key))
    )
    if not indices or indices[0] != 0:
        raise LossNetworkError(
            f"{source} has no features.0.weight; give a VGG-16 or VGG-19 in torchvision's names"
        )
    layout: list[tuple[str, int]] = []
    block, number, channels = 1, 1, 3
    for position, index in enumerate(indices):
        weight = weights[f"features.{index}.weight"]
        bias = weights.get(f"features.{index}.bias")
        if position:
            gap = index - indices[position - 1]
            if gap == 3:
                layout.append(("pool", index - 1))
                block, number = block + 1, 1
            elif gap != 2:
                raise LossNetworkError(
                    f"{source}: unexpected layer features.{index}; not a plain VGG"
                )
            else:
                number += 1
        if weight.dim() != 4 or tuple(weight.shape[1:]) != (channels, 3, 3) or bias is None:
            raise LossNetworkError(
                f"{source}: features.{index}.weight has shape {tuple(weight.shape)}, expected "
                f"(*, {channels}, 3, 3) with a bias; give a VGG without batch norm"
            )
        channels = weight.shape[0]
        if tuple(bias.shape) != (channels,):
            raise LossNetworkError(f"{source}: features.{index}.bias does not match its weight")
        layout.append((f"relu{block}_{number}", index))
    return layout


def probe_image(size: int = 128) -> np.ndarray:
    """Noise with the 1/f spectrum, contrast and colour correlation of a photo, always the same.

    Returns:
        (size, size, 3) float32 in 0..255.
    """
    rng = np.random.default_rng(20160327)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None])
    frequency[0, 0] = 1.0
    planes = [
        np.fft.ifft2(np.fft.fft2(rng.standard_normal((size, size))) / frequency).real
        for _ in range(4)
    ]
    image = np.stack([planes[0] + 0.3 * plane for plane in planes[1:]], axis=-1)
    image = (image - image.mean()) / image.std() * 55 + 118
    return np.clip(image, 0, 255).astype(np.float32)


class LossNetwork(nn.Module):
    """Convolutions of a VGG up to the last layer that is needed; nothing in it is trained.

    Args:
        weights: ``features.N.weight`` and ``.bias`` tensors.
        convention: How 0..255 RGB enters.
        layers: Names of the relu layers that :meth:`forward` may be asked for.
        dtype: Precision of the convolutions.
        info: File name, sha256 and such, kept for provenance.

    Raises:
        LossNetworkError: Unknown layer or weights that are not a plain VGG.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        convention: InputConvention,
        layers: Sequence[str],
        dtype: torch.dtype = torch.float32,
        info: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.info = dict(info or {})
        source = self.info.get("file", "the loss network")
        layout = _layout(weights, source)
        names = [name for name, _ in layout]
        for layer in layers:
            if layer not in names:
                known = ", ".join(n for n in names if n != "pool")
                raise LossNetworkError(f"{source} has no layer {layer!r}; it has {known}")
        last = max(names.index(layer) for layer in layers)
        self.steps = layout[: last + 1]
        self.convention, self.dtype = convention, dtype
        for name, index in self.steps:
            if name == "pool":
                continue
            weight = weights[f"features.{index}.weight"].to(dtype)
            bias = weights[f"features.{index}.bias"].to(dtype)
            if not (torch.isfinite(weight).all() and torch.isfinite(bias).all()):
                raise LossNetworkError(f"{source}: features.{index} holds NaN or infinity")
            if index == 0 and convention.bgr:
                weight = weight.flip(1)  # the filters now read RGB
            # channels_last weights let the CPU and the tensor cores keep that layout throughout
            self.register_buffer(
                f"weight{index}", weight.contiguous(memory_format=torch.channels_last)
            )
            self.register_buffer(f"bias{index}", bias)
        self.register_buffer("mean", torch.tensor(convention.mean).view(1, 3, 1, 1))
        std = torch.tensor(convention.std).view(1, 3, 1, 1)
        self.register_buffer("gain", convention.scale / std)
        self.register_buffer("shift", -torch.tensor(convention.mean).view(1, 3, 1, 1) / std)

    def forward(self, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Features of the named relu layers.

        Args:
            images: (N, 3, H, W) RGB in 0..255.
            layers: Names such as ``relu2_2``; the network stops at the last of them.

        Returns:
            {name: (N, C, h, w)} in the network's precision.
        """
        wanted = set(layers)
        x = images * self.get_buffer("gain") + self.get_buffer("shift")
        x = x.to(self.dtype).contiguous(memory_format=torch.channels_last)
        found: dict[str, Tensor] = {}
        for name, index in self.steps:
            if name == "pool":
                pool = F.max_pool2d if self.convention.pool == "max" else F.avg_pool2d
                x = pool(x, 2, 2, ceil_mode=self.convention.ceil_mode)
                continue
            weight, bias = getattr(self, f"weight{index}"), getattr(self, f"bias{index}")
            x = F.relu(F.conv2d(x, weight, bias, padding=1), inplace=True)
            if name in wanted:
                found[name] = x
                if len(found) == len(wanted):
                    break
        return found


def _default_file() -> Path:
    data = os.environ.get("FASTGEN_DATA")
    if data:
        for folder in ("vgg16", "vgg19"):
            files = sorted((Path(data) / folder).glob("*.safetensors"))
            if files:
                return files[0]
    target = Path(torch.hub.get_dir()) / "checkpoints" / TORCHVISION_VGG16.rsplit("/", 1)[1]
    if not target.exists():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(
                TORCHVISION_VGG16, str(target), hash_prefix="397923af", progress=False
            )
        except (OSError, RuntimeError) as error:
            raise LossNetworkError(
                f"no loss network: {TORCHVISION_VGG16} cannot be fetched ({error}); give --vgg "
                "FILE with VGG-16 or VGG-19 weights, or set FASTGEN_DATA to a folder with "
                "vgg19/*.safetensors"
            ) from error
    return target


def _read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if path.is_dir() or not path.exists():
        raise LossNetworkError(
            f"{path} is not a file; --vgg wants VGG weights, .safetensors or .pth"
        )
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                keys = [key for key in file.keys() if key.startswith("features.")]  # noqa: SIM118
                return {key: file.get_tensor(key) for key in keys}, dict(file.metadata() or {})
        except (SafetensorError, OSError) as error:
            raise LossNetworkError(
                f"{path} is not a readable safetensors file ({error})"
            ) from error
    import pickle

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError, ValueError) as error:
        reason = str(error).split("\n")[0][:120]
        raise LossNetworkError(f"{path} is not a readable weights file ({reason})") from error
    if not isinstance(state, dict):
        raise LossNetworkError(
            f"{path} holds a {type(state).__name__}, not a dictionary of weights"
        )
    state = state.get("state_dict", state)
    return {k: v for k, v in state.items() if k.startswith("features.") and torch.is_tensor(v)}, {}


def _check(network: LossNetwork, metadata: Mapping[str, str], overridden: bool) -> dict[str, float]:
    """Mean relu activations on the probe; refuses a convention that does not fit the weights."""
    names = [name for name, _ in network.steps if name != "pool"]
    device = network.get_buffer("mean").device
    probe = torch.from_numpy(probe_image()).permute(2, 0, 1)[None].to(device)
    with torch.no_grad():
        features = network(probe, names)
    means = {name: float(value.float().mean()) for name, value in features.items()}
    file = network.info.get("file", "the loss network")
    if overridden:
        return means
    limits: dict[str, tuple[float, float]] = {}
    if "activation_mean" in metadata:
        try:
            stated = {k: float(v) for k, v in json.loads(metadata["activation_mean"]).items()}
        except (ValueError, AttributeError, TypeError) as error:
            raise LossNetworkError(
                f"{file}: metadata 'activation_mean' is not a JSON table"
            ) from error
        limits = {k: (v / 4, v * 4) for k, v in stated.items()}
    elif network.get_buffer("weight0").shape[0] == 64:
        unit = network.convention.scale / min(network.convention.std) < 0.5
        limits = PLAUSIBLE_MEANS["torchvision" if unit else "caffe"]
    limits = {"relu1_1": (1e-6, 1e6), **limits}
    for name, (low, high) in limits.items():
        if name in means and not low <= means[name] <= high:
            raise LossNetworkError(
                f"{file}: mean of {name} is {means[name]:.3g}, expected {low:.3g}..{high:.3g}: the "
                f"input normalisation ({network.convention.source}) does not fit these weights; "
                "correct the metadata or use --assume-normalisation caffe|torchvision"
            )
    return means


def load_loss_network(
    path: Path | None,
    layers: Sequence[str],
    *,
    assume: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> LossNetwork:
    """Loads VGG weights, finds their input convention and verifies it.

    Args:
        path: ``.safetensors`` or ``.pth``; None takes ``$FASTGEN_DATA``, then torchvision's file.
        layers: relu layers that will be asked for.
        assume: "caffe" or "torchvision", overrules metadata, table and check.
        dtype: Precision of the convolutions.
        device: Where to put it.

    Returns:
        The network without gradients; ``info`` names file, sha256 and convention.

    Raises:
        LossNetworkError: No file, unknown convention, or activations that contradict it.
    """
    if assume is not None and assume not in CONVENTIONS:
        raise LossNetworkError(
            f"normalisation {assume!r} is unknown; use {' or '.join(CONVENTIONS)}"
        )
    path = Path(path) if path is not None else _default_file()
    weights, metadata = _read_weights(path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    convention: InputConvention | None
    if assume is not None:
        convention = CONVENTIONS[assume]
    else:
        convention = parse_convention(metadata, str(path))
        if convention is None and sha256[:8] in KNOWN_FILES:
            convention = CONVENTIONS[KNOWN_FILES[sha256[:8]]]
    if convention is None:
        raise LossNetworkError(
            f"{path} does not say how images enter it (no 'input' in its metadata, sha256 "
            f"{sha256[:8]} not known); use --assume-normalisation caffe|torchvision"
        )
    info = {
        "file": path.name,
        "sha256": sha256,
        "arch": metadata.get("arch", "VGG"),
        "input": convention.to_json(),
    }
    full = LossNetwork(weights, convention, _all_relu(weights, str(path)), torch.float32, info)
    means = _check(full, metadata, assume is not None)
    network = LossNetwork(weights, convention, layers, dtype, info)
    network.info["activation_mean"] = {k: float(f"{v:.4g}") for k, v in means.items()}
    return network.eval().requires_grad_(False).to(device)


def _all_relu(weights: Mapping[str, Tensor], source: str) -> list[str]:
    return [name for name, _ in _layout(weights, source) if name != "pool"]
