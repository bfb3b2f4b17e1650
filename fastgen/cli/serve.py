"""``fastgen serve``: the styles in a browser and over HTTP."""

from __future__ import annotations

import ipaddress
import math
from pathlib import Path
from typing import Any

import click

from fastgen.cli._app import report, style_error

__all__ = ["serve"]


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: a free one."
)
@click.option(
    "-s",
    "--style",
    "styles",
    multiple=True,
    help="Style, pattern or checkpoint to offer (repeatable); all shipped ones unless given.",
)
@click.option("--token", envvar="FASTGEN_TOKEN", help="What clients must show ($FASTGEN_TOKEN).")
@click.option("--ssl-certfile", type=click.Path(path_type=Path), help="PEM file: serve https.")
@click.option("--ssl-keyfile", type=click.Path(path_type=Path), help="PEM file of its key.")
@click.option("--allow-host", "hosts", multiple=True, help="Name that this server is reached by.")
@click.option("--allow-origin", "origins", multiple=True, help="Foreign origin that may use it.")
@click.option("--max-clients", type=click.IntRange(1), default=16, show_default=True)
@click.option(
    "--max-body", type=float, default=20.0, show_default=True, help="Megabytes of a photo's file."
)
@click.option(
    "--max-pixels",
    type=click.IntRange(1),
    default=16_777_216,
    show_default=True,
    help="Of a photo.",
)
@click.option(
    "--max-frame-pixels",
    type=click.IntRange(1),
    default=2_097_152,
    show_default=True,
    help="Of a frame of a stream.",
)
@click.option(
    "--max-fps", type=float, default=120.0, show_default=True, help="Frames read from a stream."
)
@click.option(
    "--rate", type=float, default=240.0, show_default=True, help="Photos a minute of an address."
)
@click.option("--timeout", type=float, default=30.0, show_default=True, help="Seconds of a photo.")
@click.option(
    "--idle", type=float, default=300.0, show_default=True, help="Seconds of a silent stream."
)
@click.option("--backend", default="auto", show_default=True, help="auto, cpu or torch.")
@click.option("--precision", default="auto", show_default=True, help="auto, fp32, bf16, ...")
@click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads of the network.")
def serve(
    host: str,
    port: int,
    ssl_certfile: Path | None,
    ssl_keyfile: Path | None,
    max_body: float,
    **options: Any,
) -> int:
    """Serve the styles: a page for photos, videos and the camera, and an HTTP interface.

    Only this machine is listened to unless --host says otherwise.
    """
    if ssl_keyfile is not None and ssl_certfile is None:
        raise click.UsageError("--ssl-keyfile needs --ssl-certfile")
    from fastgen.serve import Settings, run

    if not math.isfinite(max_body):
        raise click.UsageError(f"--max-body is {max_body:g}, must be a number of megabytes")
    try:
        settings = Settings(max_body=round(max_body * 1e6), **options)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    kind = "https" if ssl_certfile is not None else "http"
    shown = f"[{host}]" if ":" in host else host

    def started(actual: int) -> None:
        query = "?token=..." if settings.token else ""
        click.echo(f"fastgen serves on {kind}://{shown}:{actual}/{query}  (Ctrl-C stops)")
        if settings.token is None and not _is_loopback(host):
            report("anyone who reaches this address can use it; --token TOKEN keeps others out")

    try:
        return run(
            settings,
            host=host,
            port=port,
            ssl_certfile=ssl_certfile,
            ssl_keyfile=ssl_keyfile,
            started=started,
        )
    except ValueError as error:
        raise style_error(error) from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
