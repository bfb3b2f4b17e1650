"""The ``torch`` backend: the graph as a trainable ``nn.Module`` of plain PyTorch layers.

This is the reference that every other backend is compared with, and what training optimises.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastgen.backends import ImageIO, check_image_batch, padded_size, reflect_index
from fastgen.errors import BackendUnavailable, GraphError
from fastgen.graph import Graph, Node

__all__ = [
    "PRECISIONS",
    "GraphModule",
    "auto_precision",
    "compile",
    "precision_why_not",
    "why_not",
]


def why_not() -> str | None:
    """None when PyTorch is installed, else the reason and the remedy."""
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed; pip install 'fastgen[torch]'"
    return None


if why_not() is not None:
    raise BackendUnavailable(f"backend 'torch': {why_not()}")

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def precision_why_not(precision: str) -> str | None:
    """None: PyTorch runs every precision of this backend everywhere.

    Raises:
        ValueError: unknown precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(
            f"backend 'torch' has no precision {precision!r}; has {sorted(PRECISIONS)}"
        )
    return None


def auto_precision() -> tuple[str, str]:
    """What ``precision="auto"`` is here, and one sentence that says why."""
    return "fp32", "this backend is the reference"


class GraphModule(nn.Module):
    """A graph as a module; ``state_dict`` keys are the checkpoint's weight names.

    ``forward`` is a static loop over the nodes, so ``torch.export`` and
    ``torch.compile(fullgraph=True)`` accept it. Convolutions and linear layers start with
    PyTorch's default initialisation, norms with scale 1 and shift 0.

    Args:
        graph: the network.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        shapes = graph.infer_shapes(graph.smallest_shapes())
        for node in graph.nodes:
            layer = _layer(node, [shapes[s] for s in node.inputs])
            if layer is not None:
                self.add_module(node.name, layer)

    def forward(self, *args: Tensor, **inputs: Tensor) -> Any:
        """Runs the graph.

        Args:
            *args: the graph's inputs in order, and/or
            **inputs: the graph's inputs by name; NCHW (or NF) tensors.

        Returns:
            The output tensor, or a dict ``{output name: tensor}`` when there are several.
        """
        values: dict[str, Tensor] = {}
        for item, tensor in zip(self.graph.inputs, args, strict=False):
            values[item.name] = tensor
        values.update(inputs)
        for node in self.graph.nodes:
            layer = self._modules.get(node.name)
            operands = [values[s] for s in node.inputs]
            values[node.name] = layer(*operands) if layer is not None else _call(node, operands)
        outputs = {name: values[value] for name, value in self.graph.outputs.items()}
        return next(iter(outputs.values())) if len(outputs) == 1 else outputs

    def load_weights(self, weights: Mapping[str, np.ndarray]) -> GraphModule:
        """Copies numpy weights by name; every weight must be there with its shape.

        Raises:
            GraphError: missing, unknown or wrongly shaped weights.
        """
        expected = self.graph.weight_shapes()
        missing, unknown = (
            sorted(set(expected) - set(weights)),
            sorted(set(weights) - set(expected)),
        )
        if missing or unknown:
            raise GraphError(f"weights missing: {missing[:5]}, unknown: {unknown[:5]}")
        state = self.state_dict()
        with torch.no_grad():
            for key, shape in expected.items():
                value = np.asarray(weights[key])
                if value.shape != shape:
                    raise GraphError(f"weight {key!r} has the shape {value.shape}, must be {shape}")
                state[key].copy_(torch.from_numpy(np.array(value, dtype=np.float32)))
        return self

    def export_weights(self) -> dict[str, np.ndarray]:
        """Weights by name as float32 numpy arrays (copies)."""
        state = self.state_dict()
        return {
            key: state[key].detach().to("cpu", torch.float32).numpy().copy()
            for key in self.graph.weight_shapes()
        }


class _ConstantNorm(nn.Module):
    """Normalisation with statistics given as inputs: ``(x - mean) / sqrt(var + eps)``."""

    def __init__(self, channels: int, eps: float, affine: bool) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None

    def forward(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        axes = mean.shape + (1,) * (x.dim() - 2)
        scale = torch.rsqrt(var + self.eps)
        if self.weight is None or self.bias is None:
            return (x - mean.reshape(axes)) * scale.reshape(axes)
        scale = scale * self.weight
        shift = self.bias - mean * scale
        return x * scale.reshape(axes) + shift.reshape(axes)


class _BatchNorm(nn.BatchNorm2d):
    """BatchNorm for (N,C,H,W) and (N,C); without the batch counter, which no graph stores."""

    def __init__(self, channels: int, eps: float, affine: bool) -> None:
        super().__init__(channels, eps=eps, affine=affine)
        del self.num_batches_tracked
        self.num_batches_tracked = None

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        # BatchNorm2d's own adds the counter to a state dict of plain tensors (a saved run).
        nn.Module._load_from_state_dict(self, *args, **kwargs)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() not in (2, 4):
            raise ValueError(f"batch norm takes (N,C) or (N,C,H,W), not {tuple(input.shape)}")


class _Affine(nn.Module):
    """``x*scale + shift`` with constants that are part of the graph, not weights."""

    def __init__(self, scale: Any, shift: Any) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale), persistent=False)
        self.register_buffer("shift", torch.tensor(shift), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        axes = (-1,) + (1,) * (x.dim() - 2)
        scale, shift = self.get_buffer("scale"), self.get_buffer("shift")
        scale = scale.reshape(axes) if scale.dim() else scale
        shift = shift.reshape(axes) if shift.dim() else shift
        return x * scale.to(x.dtype) + shift.to(x.dtype)


def _layer(node: Node, shapes: list[tuple[int, ...]]) -> nn.Module | None:
    """The PyTorch layer of a node with weights or constants; None for a plain function."""
    a, channels = node.attrs, shapes[0][1]
    if node.op == "conv":
        return nn.Conv2d(
            channels,
            a["out_channels"],
            a["kernel"],
            a["stride"],
            a["padding"],
            groups=a["groups"],
            bias=a["bias"],
            padding_mode=a["padding_mode"],
        )
    if node.op == "conv_transpose":
        return nn.ConvTranspose2d(
            channels,
            a["out_channels"],
            a["kernel"],
            a["stride"],
            a["padding"],
            a["output_padding"],
            bias=a["bias"],
        )
    if node.op == "linear":
        return nn.Linear(channels, a["out_features"], bias=a["bias"])
    if node.op == "norm":
        if a["kind"] == "instance":
            return nn.InstanceNorm2d(channels, eps=a["eps"], affine=a["affine"])
        if a["kind"] == "batch":
            return _BatchNorm(channels, a["eps"], a["affine"])
        return _ConstantNorm(channels, a["eps"], a["affine"])
    if node.op == "affine":
        return _Affine(a["scale"], a["shift"])
    return None


def _call(node: Node, x: list[Tensor]) -> Tensor:
    """A node without weights."""
    a = node.attrs
    if node.op == "activation":
        if a["kind"] == "relu":
            return F.relu(x[0])
        if a["kind"] == "leaky_relu":
            return F.leaky_relu(x[0], a["slope"])
        return torch.tanh(x[0]) if a["kind"] == "tanh" else torch.sigmoid(x[0])
    if node.op == "upsample":
        return F.interpolate(x[0], scale_factor=a["scale"], mode="nearest")
    if node.op == "pool":
        if a["kind"] == "global_avg":
            return x[0].mean(dim=(2, 3), keepdim=True)
        if a["kind"] == "max":
            return F.max_pool2d(x[0], a["kernel"], a["stride"], a["padding"])
        return F.avg_pool2d(x[0], a["kernel"], a["stride"], a["padding"], count_include_pad=False)
    if node.op == "concat":
        return torch.cat(x, dim=1)
    if node.op == "add":
        return x[0] + x[1]
    if node.op == "mul":
        return x[0] * x[1]
    if node.op == "pad":
        mode = "constant" if a["mode"] == "zeros" else "reflect"
        return F.pad(x[0], a["padding"], mode=mode)
    if node.op == "crop":
        left, right, top, bottom = a["crop"]
        height, width = x[0].shape[2:]
        return x[0][:, :, top : height - bottom, left : width - right]
    if node.op == "broadcast":
        return x[0].reshape(x[0].shape[0], -1, 1, 1).expand(-1, -1, *x[1].shape[2:])
    if node.op == "reshape":
        return x[0].reshape(x[0].shape[0], *a["shape"])
    raise GraphError(f"node {node.name!r}: op {node.op!r} has no torch implementation")


def _tensor(array: np.ndarray) -> Tensor:
    """A tensor of an array's memory; of a copy where PyTorch could not take the memory."""
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


class Runner:
    """A compiled graph on the torch backend; see ``fastgen.backends``."""

    backend = "torch"

    def __init__(
        self, graph: Graph, weights: Mapping[str, np.ndarray], precision: str, threads: int | None
    ) -> None:
        self.graph = graph
        self.precision = precision
        self.threads = threads or torch.get_num_threads()
        self._dtype = PRECISIONS[precision]
        self._module = GraphModule(graph).load_weights(weights).eval().requires_grad_(False)
        self._device: torch.device | None = None

    def close(self) -> None:
        """Releases the module."""
        self._module = nn.Module()  # type: ignore[assignment]

    def run(self, inputs: Any, io: ImageIO | None = None, out: Any = None) -> Any:
        """Runs the graph on numpy arrays or tensors; the result has the type that came in.

        Args:
            inputs: with ``io=None`` a float NCHW array or tensor (or a dict of them by input
                name) in the model's range; with ``io`` one image batch (N,H,W,3), uint8 or float.
            io: how to convert an image batch to the model's range and back.
            out: array or tensor to write the result into, of the result's shape and dtype.
        """
        with torch.inference_mode():
            if io is not None:
                result = self._run_image(inputs, io)
            else:
                result = self._run_tensors(inputs)
            if out is None:
                return result
            if not isinstance(result, np.ndarray | Tensor):
                raise ValueError("out= needs a graph with one output")
            if tuple(out.shape) != tuple(result.shape) or out.dtype != result.dtype:
                raise ValueError(
                    f"out has the shape {tuple(out.shape)} and dtype {out.dtype}, must be "
                    f"{tuple(result.shape)} and {result.dtype}"
                )
            out[...] = result
            return out

    def _forward(self, tensors: dict[str, Tensor]) -> Any:
        first = next(iter(tensors.values()))
        if self._device != first.device:
            self._module.to(first.device)
            self._device = first.device
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            if self._dtype == torch.float32:
                return self._module(**tensors)
            with torch.autocast(first.device.type, dtype=self._dtype):
                return self._module(**tensors)
        finally:
            torch.set_num_threads(before)

    def _run_tensors(self, inputs: Any) -> Any:
        named = inputs if isinstance(inputs, Mapping) else {self.graph.inputs[0].name: inputs}
        as_numpy = any(isinstance(v, np.ndarray) for v in named.values())
        self.graph.infer_shapes({k: tuple(v.shape) for k, v in named.items()})
        tensors = {k: _tensor(v) if isinstance(v, np.ndarray) else v for k, v in named.items()}
        result = self._forward({k: v.to(torch.float32) for k, v in tensors.items()})

        def give(tensor: Tensor) -> Any:
            tensor = tensor.to(torch.float32)
            return tensor.numpy() if as_numpy else tensor

        if isinstance(result, dict):
            return {k: give(v) for k, v in result.items()}
        if isinstance(inputs, Mapping):
            return {next(iter(self.graph.outputs)): give(result)}
        return give(result)

    def _run_image(self, image: Any, io: ImageIO) -> Any:
        check_image_batch(image)
        as_numpy = isinstance(image, np.ndarray)
        photo = _tensor(image) if as_numpy else image
        is_byte = photo.dtype == torch.uint8
        photo = photo.to(torch.float32) / (255.0 if is_byte else 1.0)
        if io.bgr:
            photo = photo.flip(-1)
        x = photo.permute(0, 3, 1, 2)
        height, width = x.shape[2:]
        rows, columns = padded_size(self.graph, height, width)
        device = x.device
        x = x.index_select(2, torch.from_numpy(reflect_index(height, rows)).to(device))
        x = x.index_select(3, torch.from_numpy(reflect_index(width, columns)).to(device))
        low, high = io.input_range
        y = self._forward({self.graph.inputs[0].name: x * (high - low) + low})
        low, high = io.output_range
        y = (y.to(torch.float32)[:, :, :height, :width] - low) / (high - low)
        y = y.nan_to_num(0.0, posinf=1.0, neginf=0.0).clamp(0.0, 1.0).permute(0, 2, 3, 1)
        if io.preserve_color:
            # Y of the stylised picture, Cb and Cr of the photo: in RGB that is adding the
            # difference of the lumas to every channel of the photo.
            luma = torch.tensor(ImageIO.LUMA, device=device)
            y = (photo + ((y - photo) @ luma).unsqueeze(-1)).clamp(0.0, 1.0)
        if io.strength != 1.0:
            y = photo + (y - photo) * io.strength
        if io.bgr:
            y = y.flip(-1)
        y = (y * 255.0).round().to(torch.uint8) if is_byte else y.to(image_dtype(image))
        return y.contiguous().numpy() if as_numpy else y.contiguous()


def image_dtype(image: Any) -> torch.dtype:
    """Torch dtype of a float image (array or tensor)."""
    return image.dtype if isinstance(image, Tensor) else torch.float32


def compile(
    graph: Graph,
    weights: Mapping[str, np.ndarray],
    precision: str = "fp32",
    threads: int | None = None,
    ranges: Mapping[str, Sequence[float]] | None = None,
) -> Runner:
    """Compiles a graph for this backend.

    Args:
        graph: the network.
        weights: float arrays by weight name.
        precision: ``"fp32"`` or ``"bf16"`` (autocast); ``"auto"`` is fp32.
        threads: CPU threads for PyTorch's operators during a run; None leaves PyTorch's setting.
        ranges: for int8, which this backend lacks.

    Raises:
        ValueError: an unknown precision.
    """
    del ranges
    if precision == "auto":
        precision, _ = auto_precision()
    precision_why_not(precision)
    return Runner(graph, weights, precision, threads)
