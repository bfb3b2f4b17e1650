"""``fastgen serve`` on the command line: what is wrong is said in one line."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from serving import httpx, process

from fastgen.cli import app


def fails(code: int, text: str, *args: object) -> None:
    result = CliRunner().invoke(app, ["serve", "--port", "0", *map(str, args)])
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1, result.stderr
    assert text in result.stderr


def test_wrong_usage(tmp_path: Path) -> None:
    fails(2, "unknown style 'nope'", "--style", "nope")
    fails(2, "no style matches 'q*'", "--style", "q*")
    fails(2, "must be at least 8 printable ASCII characters", "--token", "short")
    fails(2, "max_fps is 0.0, must be in 1..1000", "--max-fps", 0)
    fails(2, "--ssl-keyfile needs --ssl-certfile", "--ssl-keyfile", tmp_path / "k.pem")
    fails(1, "No such file", "--ssl-certfile", tmp_path / "gone.pem")
    (tmp_path / "c.pem").write_text("no certificate")
    fails(2, "no certificate in PEM format", "--ssl-certfile", tmp_path / "c.pem")
    fails(1, "no such checkpoint", "--style", tmp_path / "gone.safetensors")
    fails(2, "--max-body is nan", "--max-body", "nan")
    fails(2, "--max-body is inf", "--max-body", "inf")
    fails(2, "host is empty", "--host", "")  # to a socket that is every address
    fails(1, "choose another --host", "--host", "192.0.2.1")  # for documentation, nobody's
    with socket.create_server(("127.0.0.1", 0)) as taken:
        fails(1, "cannot listen on 127.0.0.1", "--port", taken.getsockname()[1])


def test_a_key_with_a_password(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    path = tmp_path / "c.pem"
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -passout pass:secret -subj /CN=x"
    command = ["openssl", *words.split(), "-keyout", str(path), "-out", str(tmp_path / "d.pem")]
    subprocess.run(command, check=True, capture_output=True)
    with path.open("a") as file:
        file.write((tmp_path / "d.pem").read_text())
    fails(2, "c.pem: the key has a password", "--ssl-certfile", path)


def test_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.startswith(("uvicorn", "fastgen.serve.server"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    fails(1, "this needs uvicorn: pip install 'fastgen[web]'")


def test_a_checkpoint_of_ones_own_is_served_by_its_name(tmp_path: Path) -> None:
    from tiny import save_tiny

    mine = save_tiny(tmp_path)
    with process("--style", str(mine), "--style", "great_wave.small") as (child, url):
        styles = httpx.get(f"{url}/styles", trust_env=False, timeout=60).json()["styles"]
        assert [s["name"] for s in styles] == [mine.stem, "great_wave.small"]
        thumbnail = httpx.get(url + styles[0]["thumbnail"], trust_env=False, timeout=60)
        assert thumbnail.headers["content-type"] == "image/jpeg"
        assert str(tmp_path) not in str(styles)  # no path of this machine is told
        child.terminate()
        assert child.wait(60) == 0
