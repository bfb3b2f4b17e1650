"""Model repositories for Triton Inference Server: the published schema, and a client."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from tiny import save_tiny

import fastgen
from fastgen import models
from fastgen.cli import app
from fastgen.exporters.triton_server import export_triton_server, model_config

ROOT = Path(__file__).resolve().parent.parent

# What model_config.proto (server 2.x) says of the fields that are written: single or repeated, and
# the type. https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto
SCHEMA: dict[str, dict[str, tuple[bool, Any]]] = {
    "ModelConfig": {
        "name": (False, str),
        "backend": (False, str),
        "default_model_filename": (False, str),
        "max_batch_size": (False, int),
        "input": (True, "ModelInput"),
        "output": (True, "ModelOutput"),
        "dynamic_batching": (False, "ModelDynamicBatching"),
        "parameters": (True, "ParametersEntry"),
    },
    "ModelInput": {
        "name": (False, str),
        "data_type": (False, {"TYPE_FP32", "TYPE_FP16", "TYPE_UINT8"}),
        "dims": (True, int),
    },
    "ModelOutput": {
        "name": (False, str),
        "data_type": (False, {"TYPE_FP32", "TYPE_FP16", "TYPE_UINT8"}),
        "dims": (True, int),
    },
    "ModelDynamicBatching": {"max_queue_delay_microseconds": (False, int)},
    "ParametersEntry": {"key": (False, str), "value": (False, "ModelParameter")},
    "ModelParameter": {"string_value": (False, str)},
}
TOKEN = re.compile(r'\s*(?:("(?:[^"\\\n]|\\.)*")|([A-Za-z_]\w*)|(-?\d+)|([{}\[\]:,]))')


def parse(text: str) -> dict[str, Any]:
    """Reads the text format strictly: unknown fields, types and repetitions are errors."""
    tokens, position = [], 0
    while text[position:].strip():
        found = TOKEN.match(text, position)
        assert found is not None, f"not the text format: {text[position : position + 40]!r}"
        tokens.append(found.group().strip())
        position = found.end()
    tokens.append("}")
    message = _message(tokens, "ModelConfig")
    assert not tokens
    return message


def _message(tokens: list[str], kind: str) -> dict[str, Any]:
    result: dict[str, Any] = {}
    while (name := tokens.pop(0)) != "}":
        repeated, of = SCHEMA[kind][name]
        if isinstance(of, str):
            if tokens[0] == ":":
                tokens.pop(0)
            assert tokens.pop(0) == "{"
            value: Any = _message(tokens, of)
        else:
            assert tokens.pop(0) == ":"
            value = _values(tokens, of) if tokens[0] == "[" else _scalar(tokens.pop(0), of)
        if repeated:
            result.setdefault(name, []).extend(value if isinstance(value, list) else [value])
        else:
            assert name not in result, f"{name} comes twice"
            result[name] = value
    return result


def _values(tokens: list[str], of: Any) -> list[Any]:
    assert tokens.pop(0) == "["
    result = [_scalar(tokens.pop(0), of)]
    while (token := tokens.pop(0)) != "]":
        assert token == ","
        result.append(_scalar(tokens.pop(0), of))
    return result


def _scalar(token: str, of: Any) -> Any:
    if of is int:
        return int(token)
    if of is str:
        assert token.startswith('"')
        return json.loads(token)
    assert token in of
    return token


def published_schema() -> ModuleType | None:
    """The server's own schema, compiled: a module of the package tritonclient."""
    spec = importlib.util.find_spec("tritonclient")
    if spec is None or importlib.util.find_spec("google.protobuf") is None:
        return None
    folder = next(iter(spec.submodule_search_locations or []))
    # By path: the package around it imports grpc, which is not needed.
    path = Path(folder) / "grpc" / "model_config_pb2.py"
    found = importlib.util.spec_from_file_location("model_config_pb2", path)
    if found is None or found.loader is None or not path.is_file():
        return None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_a_style() -> None:
    graph = models.create("transformer_net")
    config = parse(model_config(graph, "great_wave", max_batch=8, plan=False))
    assert config == {
        "name": "great_wave",
        "backend": "onnxruntime",
        "default_model_filename": "model.onnx",
        "max_batch_size": 8,
        "input": [{"name": "image", "data_type": "TYPE_FP32", "dims": [3, -1, -1]}],
        "output": [{"name": "stylized", "data_type": "TYPE_FP32", "dims": [3, -1, -1]}],
        "dynamic_batching": {"max_queue_delay_microseconds": 2000},
        "parameters": [
            {"key": "size_divisor", "value": {"string_value": "4"}},
            {"key": "size_minimum", "value": {"string_value": "8"}},
        ],
    }
    plan = parse(model_config(graph, "great_wave", max_batch=1, plan=True))
    assert (plan["backend"], plan["default_model_filename"]) == ("tensorrt", "model.plan")
    assert "dynamic_batching" not in plan


@pytest.mark.parametrize("plan", [False, True], ids=["onnx", "plan"])
@pytest.mark.parametrize("name", models.list_models())
def test_every_model_against_the_published_schema(name: str, plan: bool) -> None:
    graph = models.create(name)
    text = model_config(graph, name, max_batch=4, plan=plan)
    ours = parse(text)
    assert [v["name"] for v in ours["input"]] == [i.name for i in graph.inputs]
    assert [v["name"] for v in ours["output"]] == list(graph.outputs)
    schema = published_schema()
    if schema is None:
        pytest.skip("tritonclient is not installed: only checked against a copy of the fields")
    from google.protobuf import text_format

    config = text_format.Parse(text, schema.ModelConfig())
    assert config.name == name
    assert config.max_batch_size == 4
    assert [list(v.dims) for v in config.input] == [v["dims"] for v in ours["input"]]
    types = schema.ModelConfig.DESCRIPTOR.file.enum_types_by_name["DataType"]
    assert {v.data_type for v in (*config.input, *config.output)} == {
        types.values_by_name["TYPE_FP32"].number
    }


@pytest.mark.parametrize("name", ["../up", ".hidden", "", "a b", 'a"b'])
def test_names_that_are_no_folders(name: str) -> None:
    with pytest.raises(ValueError, match="model name"):
        model_config(models.create("compact_net"), name, max_batch=1, plan=False)


def test_numbers() -> None:
    with pytest.raises(ValueError, match="max_batch is 0, must be at least 1"):
        model_config(models.create("compact_net"), "a", max_batch=0, plan=False)


def test_a_plan_replaces_an_onnx_model(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    style = save_tiny(tmp_path)
    folder = export_triton_server(style, tmp_path / "repo")
    assert folder == tmp_path / "repo" / "tiny"
    assert _files(folder) == ["1/model.onnx", "config.pbtxt"]
    (tmp_path / "a.plan").write_bytes(b"engine")
    export_triton_server(style, tmp_path / "repo", plan=tmp_path / "a.plan", max_batch=2)
    assert _files(folder) == ["1/model.plan", "config.pbtxt"]
    assert (folder / "1" / "model.plan").read_bytes() == b"engine"
    assert parse((folder / "config.pbtxt").read_text())["max_batch_size"] == 2


def _files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_command(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    style = save_tiny(tmp_path)
    args = ["export", "triton-server", "-s", str(style), "-o", str(tmp_path / "repo")]
    done = CliRunner().invoke(app, [*args, "--name", "mine", "--fp16", "--max-batch", "3"])
    assert done.exit_code == 0, done.output
    config = parse((tmp_path / "repo" / "mine" / "config.pbtxt").read_text())
    assert (config["name"], config["max_batch_size"]) == ("mine", 3)
    wrong = CliRunner().invoke(app, [*args, "--plan", str(style), "--fp16"])
    assert wrong.exit_code == 2
    assert "--fp16 and --any-size are for ONNX models" in wrong.stderr
    wrong = CliRunner().invoke(app, [*args, "--plan", str(tmp_path / "gone.plan")])
    assert wrong.exit_code == 2
    assert "gone.plan" in wrong.stderr


class _Server(BaseHTTPRequestHandler):
    """Triton's HTTP protocol for one model of a repository, run by ONNX Runtime."""

    repository: Path

    def do_POST(self) -> None:
        import onnxruntime

        name = self.path.split("/")[3]
        folder = self.repository / name
        if not folder.is_dir():
            return self._answer(404, json.dumps({"error": f"unknown model '{name}'"}).encode())
        body = self.rfile.read(int(self.headers["Content-Length"]))
        size = int(self.headers["Inference-Header-Content-Length"])
        request = json.loads(body[:size])
        config = parse((folder / "config.pbtxt").read_text())
        inputs, position = {}, size
        for item, declared in zip(request["inputs"], config["input"], strict=True):
            count = item["parameters"]["binary_data_size"]
            data = np.frombuffer(body[position : position + count], np.float32)
            assert (item["name"], item["datatype"]) == (declared["name"], "FP32")
            assert item["shape"][0] <= config["max_batch_size"]
            inputs[item["name"]] = data.reshape(item["shape"])
            position += count
        assert position == len(body)
        model = folder / "1" / config["default_model_filename"]
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        (result,) = session.run([request["outputs"][0]["name"]], inputs)
        output = {"name": "stylized", "datatype": "FP32", "shape": list(result.shape)}
        output["parameters"] = {"binary_data_size": result.nbytes}
        header = json.dumps({"model_name": name, "outputs": [output]}).encode()
        return self._answer(200, header + result.tobytes(), len(header))

    def _answer(self, code: int, body: bytes, header: int | None = None) -> None:
        self.send_response(code)
        if header is not None:
            self.send_header("Inference-Header-Content-Length", str(header))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_the_client_example(tmp_path: Path) -> None:
    """The protocol's other side is written here; the numbers are those of the torch backend."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from PIL import Image

    style = save_tiny(tmp_path)
    export_triton_server(style, tmp_path / "repo", any_size=True)
    photo, out = tmp_path / "photo.png", tmp_path / "out.png"
    pixels = np.random.default_rng(0).integers(0, 256, (21, 18, 3), np.uint8)
    Image.fromarray(pixels).save(photo)
    handler = type("Handler", (_Server,), {"repository": tmp_path / "repo"})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            example = str(ROOT / "examples" / "triton_client.py")
            command = [sys.executable, example, str(photo), "-o", str(out), "--url", url]
            run = subprocess.run([*command, "--model", "tiny"], capture_output=True, text=True)
            unknown = subprocess.run([*command, "--model", "x"], capture_output=True, text=True)
        finally:
            server.shutdown()
            thread.join()
    assert run.returncode == 0, run.stderr
    expected = fastgen.stylize(pixels, style, backend="torch", precision="fp32")
    difference = np.abs(np.asarray(Image.open(out)).astype(int) - expected)
    assert difference.max() <= 1
    assert unknown.returncode == 1
    assert unknown.stderr.strip().endswith("unknown model 'x'\"}")
