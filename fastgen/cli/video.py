"""``fastgen video``: a clip in, the same clip painted."""

from __future__ import annotations

import json
import signal
import sys
import time
from typing import Any

import click

from fastgen.cli._app import Size, report, stabilize_option, style_error

__all__ = ["video"]

DEFAULT_STYLE = "starry_night.small"


@click.command()
@click.argument("source", metavar="SOURCE")
@click.option("-o", "--output", required=True, metavar="OUT", help="File, out/%05d.png, or -.")
@click.option(
    "-s",
    "--style",
    "styles",
    multiple=True,
    help=f"Name or checkpoint [default: {DEFAULT_STYLE}]; several with --mask.",
)
@click.option("--blend", metavar="A=W,B=W", help="Mix of several styles, by weights.")
@click.option(
    "--mask", "masks", multiple=True, help="Where each --style is seen: a picture or clip."
)
@click.option("--feather", type=float, default=0, metavar="PIXELS", help="Soft edges of the mask.")
@click.option("--stroke-size", type=float, help="Size of strokes in the picture; 1 as in training.")
@click.option(
    "--strength",
    default="1",
    show_default=True,
    help="0 clip, 1 painting; or SECONDS:VALUE,SECONDS:VALUE.",
)
@click.option("--preserve-color", is_flag=True, help="Keep the colours of the clip.")
@click.option("--color-keep", help="Keep a part of them: 0..1, or SECONDS:VALUE,SECONDS:VALUE.")
@click.option(
    "--keyframes", metavar="FILE", help="JSON: strength, preserve_color, blend over time."
)
@stabilize_option
@click.option("--start", type=click.FloatRange(0), help="Begin at this second of the clip.")
@click.option("--end", type=click.FloatRange(0), help="Stop before this second of the clip.")
@click.option("--fps", type=float, help="Another, constant frame rate.")
@click.option("--max-height", type=click.IntRange(2), help="Scale larger frames down to it.")
@click.option("--codec", help="FFmpeg's name of an encoder: libx265, h264_nvenc, ...")
@click.option("--quality", type=click.IntRange(0, 63), help="The encoder's crf; 0 is best.")
@click.option("--preset", help="The encoder's speed preset.")
@click.option("--no-sound", is_flag=True, help="Leave sound and subtitles out.")
@click.option("--resume", is_flag=True, help="Go on where the same command was interrupted.")
@click.option("--raw-size", type=Size(), help="SOURCE - is plain rgb24 of this size, not y4m.")
@click.option(
    "--pipe",
    type=click.Choice(["y4m", "rgb24"]),
    default="y4m",
    show_default=True,
    help="What OUT - is.",
)
@click.option("--hwaccel", help="Decode on this device type: cuda, vaapi, videotoolbox, ...")
@click.option("--backend", default="auto", show_default=True, help="auto, cpu or torch.")
@click.option("--precision", default="auto", show_default=True, help="auto, fp32, bf16, ...")
@click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads of the network.")
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
def video(
    source: str,
    output: str,
    styles: tuple[str, ...],
    blend: str | None,
    masks: tuple[str, ...],
    feather: float,
    stroke_size: float | None,
    strength: str,
    preserve_color: bool,
    color_keep: str | None,
    keyframes: str | None,
    backend: str,
    precision: str,
    threads: int | None,
    raw_size: tuple[int, int] | None,
    no_sound: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Paint every frame of a video; sound, subtitles and times stay as they are.

    SOURCE is a file, a URL, numbered pictures (frames/%05d.png) or - for standard input.
    """
    from fastgen._keyframes import read_keyframes
    from fastgen.cli._controls import choose, color, over_time
    from fastgen.stylizer import Stylizer
    from fastgen.video import stylize_video

    style, controls = choose(styles, DEFAULT_STYLE, blend, masks, feather, stroke_size, moving=True)
    options |= controls
    options["strength"] = over_time("--strength", strength)
    amount = None if color_keep is None else over_time("--color-keep", color_keep)
    options["preserve_color"] = color(preserve_color, amount)
    if keyframes is not None:
        options["keyframes"] = moving = read_keyframes(keyframes)
        if "blend" in moving:
            if styles or blend is not None:
                what = "--style" if styles else "--blend"
                raise click.UsageError(f"--keyframes has a blend, so {what} cannot be given, too")
            style = dict.fromkeys(moving["blend"], 1.0)
    try:
        stylizer = Stylizer(style, backend=backend, precision=precision, threads=threads)
    except ValueError as error:
        raise style_error(error) from None
    # A service manager's stop is a Ctrl-C: what is finished is kept.
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        result = stylize_video(
            source,
            output,
            stylizer,
            raw=raw_size,
            sound=not no_sound,
            progress=_Progress(),
            **options,
        )
    except KeyboardInterrupt:
        import os

        if os.path.isdir(f"{output}.parts"):
            report("interrupted; the same command with --resume goes on from here")
            return 130
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    for line in result.left_out:
        report(f"not copied: {line}")
    if result.damaged:
        report(f"{source}: {result.damaged} damaged packets were skipped")
    if as_json:
        record = {**stylizer.info.as_dict(), **vars(result), "fps": round(result.fps, 2)}
        click.echo(json.dumps(record, indent=2), err=output == "-")
    elif output != "-":
        click.echo(
            f"{click.format_filename(output)}  {result.width}x{result.height}  "
            f"{result.frames} frames in {result.seconds:.1f} s, {result.fps:.1f} fps"
        )
    return 0


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


class _Progress:
    """Frames, rate and time left on a terminal, twice a second."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()
        self._first: tuple[float, int] | None = None
        self._next = 0.0

    def __call__(self, done: int, total: int | None) -> None:
        now = time.perf_counter()
        if self._first is None:
            self._first = now, done
        if not self._shown or (now < self._next and done != total):
            return
        self._next = now + 0.5
        elapsed, frames = now - self._first[0], done - self._first[1]
        rate = frames / elapsed if elapsed > 0 else 0.0
        text = f"frame {done}" + (f"/{total}" if total else "") + f"  {rate:.1f} fps"
        if total and rate:
            left = round(max(0, total - done) / rate)
            text += f"  left {left // 60}:{left % 60:02d}"
        end = "\n" if total is not None and done == total else ""
        sys.stderr.write(f"\r{text:<60}{end}")
        sys.stderr.flush()
