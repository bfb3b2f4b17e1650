"""The programs that are compared, and how each runs a network.

Each gets the same checkpoint, the same float32 inputs (N,C,H,W) in the network's range, the same
number of threads, and everything it has for being fast: weights packed or compiled beforehand for
this one size, and the memory layout that it likes best.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastgen.checkpoint import Checkpoint

__all__ = ["BY_NAME", "OURS", "PROGRAMS", "Program", "why_not"]

Call = Callable[[], np.ndarray]  # runs the network once and returns its output (N,C,H,W)
Inputs = Mapping[str, np.ndarray]  # by the graph's names
Build = Callable[[Checkpoint, Inputs, int], Call]


@dataclass(frozen=True)
class Program:
    """One way to run a network.

    Attributes:
        name: what the table calls it.
        precision: ``"fp32"``, ``"bf16"`` or ``"int8"``: what it is compared with, and its gate.
        build: (checkpoint, inputs, threads) -> what runs it.
        packages: what must be installed to import it.
    """

    name: str
    precision: str
    build: Build
    packages: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Name and precision."""
        return f"{self.name} {self.precision}"


def why_not(program: Program) -> str | None:
    """None when it can run here, else the reason with the remedy."""
    missing = [p for p in program.packages if importlib.util.find_spec(p) is None]
    if missing:
        return f"not installed: pip install {' '.join(missing)}"
    if program.name == OURS:
        from fastgen import backends

        reason = backends.why_not("cpu")
        return reason or backends.get("cpu").precision_why_not(program.precision)
    return None


def _ours(precision: str) -> Build:
    def build(ckpt: Checkpoint, inputs: Inputs, threads: int) -> Call:
        from fastgen import backends

        runner = backends.get("cpu").compile(
            ckpt.graph, ckpt.weights, precision, threads, ckpt.ranges
        )
        (output,) = ckpt.graph.outputs
        return lambda: runner.run(inputs)[output]

    return build


def _torch(precision: str, compiled: bool) -> Build:
    def build(ckpt: Checkpoint, inputs: Inputs, threads: int) -> Call:
        import torch

        from fastgen.backends.torch import GraphModule

        torch.set_num_threads(threads)
        module = GraphModule(ckpt.graph).load_weights(ckpt.weights).eval().requires_grad_(False)
        run: Any = module
        tensors = {name: torch.from_numpy(x) for name, x in inputs.items()}
        if compiled:
            import torch._inductor.config as inductor

            inductor.freezing = True  # weights are constants, packed once
            torch.compiler.reset()
            run = run.to(memory_format=torch.channels_last)
            for name, tensor in tensors.items():
                if tensor.ndim == 4:
                    tensors[name] = tensor.contiguous(memory_format=torch.channels_last)
            run = torch.compile(run, dynamic=False, fullgraph=True)

        def call() -> np.ndarray:
            # no_grad, because freezing does not know inference mode
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, precision == "bf16"):
                result: np.ndarray = run(**tensors).float().numpy()
            return result

        return call

    return build


def _onnx(ckpt: Checkpoint, inputs: Inputs) -> bytes:
    """The network for these sizes, as runtimes that read ONNX like it best."""
    from fastgen.exporters.onnx import onnx_model

    shapes = {name: x.shape for name, x in inputs.items()}
    data: bytes = onnx_model(ckpt.graph, ckpt.weights, shapes=shapes).SerializeToString()
    return data


def _onnxruntime(ckpt: Checkpoint, inputs: Inputs, threads: int) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    model = _onnx(ckpt, inputs)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, dict(inputs))[0]


def _openvino(hint: str) -> Build:
    def build(ckpt: Checkpoint, inputs: Inputs, threads: int) -> Call:
        import openvino

        model = _onnx(ckpt, inputs)
        core = openvino.Core()
        config = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": hint,
        }
        compiled = core.compile_model(core.read_model(model, b""), "CPU", config)
        used = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        if used not in (hint, {"f32": "float", "bf16": "bfloat16"}[hint]):
            raise RuntimeError(f"OpenVINO takes {used} instead of {hint} on this processor")
        request = compiled.create_infer_request()
        arrays = [inputs[item.name] for item in ckpt.graph.inputs]
        return lambda: request.infer(arrays, share_inputs=True, share_outputs=True)[0]

    return build


def _openvino_int8(ckpt: Checkpoint, inputs: Inputs, threads: int) -> Call:
    import nncf
    import openvino

    (x,) = inputs.values()
    core = openvino.Core()
    # Ranges of the very picture that is measured, and of its mirror images: the best it can get.
    photos = [
        np.ascontiguousarray(x[..., ::down, ::across]) for down in (1, -1) for across in (1, -1)
    ]
    quantised = nncf.quantize(
        core.read_model(_onnx(ckpt, inputs), b""), nncf.Dataset(photos), subset_size=len(photos)
    )
    config = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",  # of what is not quantised
    }
    request = core.compile_model(quantised, "CPU", config).create_infer_request()
    return lambda: request.infer([x], share_inputs=True, share_outputs=True)[0]


def _ncnn(ckpt: Checkpoint, inputs: Inputs, threads: int) -> Call:
    import ncnn

    from benchmarks.peers import to_ncnn

    net = ncnn.Net()
    net.opt.num_threads = threads
    for name in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
        setattr(net.opt, name, False)
    with tempfile.TemporaryDirectory() as folder:
        text, binary = to_ncnn.write(ckpt.graph, ckpt.weights, Path(folder))
        if net.load_param(str(text)) != 0 or net.load_model(str(binary)) != 0:
            raise RuntimeError("ncnn cannot read the network")
    source = ckpt.graph.inputs[0].name
    (output,) = ckpt.graph.outputs.values()
    image = ncnn.Mat(inputs[source][0]).clone()  # a Mat of an array does not keep the array

    def call() -> np.ndarray:
        extractor = net.create_extractor()
        extractor.input(source, image)
        code, result = extractor.extract(output)
        if code != 0:
            raise RuntimeError(f"ncnn failed with code {code}")
        return np.array(result)[None]

    return call


OURS = "fastgen"
PROGRAMS = (
    Program(OURS, "fp32", _ours("fp32")),
    Program(OURS, "bf16", _ours("bf16")),
    Program(OURS, "int8", _ours("int8")),
    Program("PyTorch eager", "fp32", _torch("fp32", False), ("torch",)),
    Program("PyTorch eager", "bf16", _torch("bf16", False), ("torch",)),
    Program("torch.compile", "fp32", _torch("fp32", True), ("torch",)),
    Program("torch.compile", "bf16", _torch("bf16", True), ("torch",)),
    Program("ONNX Runtime", "fp32", _onnxruntime, ("onnx", "onnxruntime")),
    Program("OpenVINO", "fp32", _openvino("f32"), ("onnx", "openvino")),
    Program("OpenVINO", "bf16", _openvino("bf16"), ("onnx", "openvino")),
    Program("OpenVINO", "int8", _openvino_int8, ("onnx", "openvino", "nncf")),
    Program("ncnn", "fp32", _ncnn, ("ncnn",)),
)
BY_NAME = {program.key: program for program in PROGRAMS}
