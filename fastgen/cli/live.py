"""``fastgen live``: a camera, painted as it is seen."""

from __future__ import annotations

import json
import signal
import sys
import time
from typing import Any

import click

from fastgen.cli._app import Size, report, stabilize_option, style_error
from fastgen.cli._controls import choose

__all__ = ["live"]

DEFAULT_STYLE = "starry_night.small"


def _pair(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> dict[str, str]:
    pairs = [word.partition("=") for word in value]
    for name, sign, _ in pairs:
        if not name or not sign:
            raise click.BadParameter(f"{name!r} is not NAME=VALUE, such as input_format=mjpeg")
    return {name: text for name, _, text in pairs}


@click.command()
@click.argument("source", default="camera", metavar="[SOURCE]")
@click.option(
    "-o",
    "--output",
    default="window",
    show_default=True,
    metavar="SINK",
    help="window, virtual, a file, a URL, - or none.",
)
@click.option("-s", "--style", help=f"Name or checkpoint [default: {DEFAULT_STYLE}].")
@click.option("--blend", metavar="A=W,B=W", help="Mix of several styles, by weights.")
@click.option(
    "--strength", type=float, default=1.0, show_default=True, help="0 camera, 1 painting."
)
@click.option("--preserve-color", is_flag=True, help="Keep the colours of the camera.")
@stabilize_option
@click.option("--target-fps", type=float, help="Paint smaller pictures while this is not held.")
@click.option("--max-height", type=click.IntRange(2), help="Scale larger frames down to it.")
@click.option("--size", type=Size(), help="Ask the camera for this size.")
@click.option("--fps", type=float, help="Ask the camera for this rate.")
@click.option("--loop", is_flag=True, help="Play a file again and again.")
@click.option("--reconnect", is_flag=True, help="Wait for a source that is gone, and go on.")
@click.option("--duration", type=float, help="End after so many seconds.")
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="NAME=VALUE",
    callback=_pair,
    help="An option of FFmpeg's input; may be repeated.",
)
@click.option("--codec", help="FFmpeg's name of an encoder: libx265, h264_nvenc, ...")
@click.option("--quality", type=click.IntRange(0, 63), help="The encoder's crf; 0 is best.")
@click.option("--preset", help="The encoder's speed preset.")
@click.option("--backend", default="auto", show_default=True, help="auto, cpu or torch.")
@click.option("--precision", default="auto", show_default=True, help="auto, fp32, bf16, ...")
@click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads of the network.")
@click.option("--json", "as_json", is_flag=True, help="Print what was measured as JSON.")
def live(
    source: str,
    output: str,
    style: str | None,
    blend: str | None,
    backend: str,
    precision: str,
    threads: int | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Paint a camera or stream as it is seen; Ctrl-C ends it.

    SOURCE is camera, camera:1, a device file, a URL, or a video file, which plays in real time.
    """
    from fastgen.live import stylize_live
    from fastgen.stylizer import Stylizer, check_strength

    try:
        check_strength(options["strength"])
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    named = () if style is None else (style,)
    chosen, _ = choose(named, DEFAULT_STYLE, blend, (), 0, None, moving=False)
    try:
        stylizer = Stylizer(chosen, backend=backend, precision=precision, threads=threads)
    except ValueError as error:
        raise style_error(error) from None
    status = _Status()
    # A service manager's stop is a Ctrl-C: the file is completed.
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        stats = stylize_live(
            source,
            output,
            stylizer,
            progress=status,
            tell=status.line,
            **options,
        )
    finally:
        status.end()
        signal.signal(signal.SIGTERM, before)
    if as_json:
        record = {**stylizer.info.as_dict(), **stats.as_dict()}
        click.echo(json.dumps(record, indent=2), err=output == "-")
    else:
        click.echo(_summary(stats), err=output == "-")
    if stats.damaged:
        report(f"{source}: {stats.damaged} damaged packets were skipped")
    return 0


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _summary(stats: Any) -> str:
    painted = "{}x{}".format(*stats.painted)
    size = f"{stats.width}x{stats.height}"
    text = size if painted == size else f"{size} painted at {painted}"
    return (
        f"{text}  {stats.frames} frames, {stats.fps:.1f} fps, {stats.dropped} dropped, latency "
        f"{1e3 * stats.latency(50):.0f} ms (p95 {1e3 * stats.latency(95):.0f} ms)"
    )


class _Status:
    """A line on a terminal that is rewritten twice a second."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._next = 0.0
        self._shown = False

    def __call__(self, stats: Any) -> None:
        now = time.perf_counter()
        if not self._terminal or now < self._next:
            return
        self._next = now + 0.5
        self._shown = True
        sys.stderr.write(f"\r\x1b[K{_summary(stats)}")
        sys.stderr.flush()

    def line(self, text: str) -> None:
        """A line that stays."""
        self.end()
        click.echo(text, err=True)

    def end(self) -> None:
        """Ends the rewritten line."""
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            self._shown = False
