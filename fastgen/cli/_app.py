"""What all commands share: lazy loading, one-line errors and exit codes.

Exit codes: 0 done, 1 failed at run time, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, NoReturn

import click

__all__ = [
    "Commands",
    "Size",
    "debugging",
    "one_line",
    "progress",
    "report",
    "stabilize_option",
    "style_error",
]

# Packages that a command may need beyond the plain installation -> the extra that brings them.
_EXTRAS = {
    "torch": "torch",
    "torchvision": "train",
    "tensorboard": "train",
    "triton": "triton",
    "tensorrt": "tensorrt",
    "av": "video",
    "fastapi": "web",
    "prometheus_client": "web",
    "uvicorn": "web",
    "websockets": "web",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "ray": "ray",
    "matplotlib": "bench",
    "pytest_benchmark": "bench",
}


class Size(click.ParamType):
    """``WIDTHxHEIGHT`` on the command line; a tuple of two numbers."""

    name = "WIDTHxHEIGHT"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", str(value))
        if found is None or "0" in found.groups():
            self.fail(f"{value!r} is not WIDTHxHEIGHT, such as 1280x720", param, ctx)
        return int(found[1]), int(found[2])


# Of the commands that paint moving pictures.
stabilize_option = click.option(
    "--stabilize",
    is_flag=False,
    flag_value="0.5",
    default="0",
    type=click.FloatRange(0, 1),
    metavar="[STRENGTH]",
    help="Less flicker; 0 is off, 1 the steadiest, 0.5 without a number.",
)


class Commands(click.Group):
    """A group whose commands are imported when they are called.

    Args:
        name: the group's name.
        table: command -> ("module:attribute", one line of help). The help lines are here so that
            ``--help`` imports none of the commands.
        help: the group's help text.
    """

    def __init__(self, name: str, table: Mapping[str, tuple[str, str]], help: str) -> None:
        super().__init__(name, help=help, invoke_without_command=True, callback=_help)
        self._table = table
        if name == "fastgen":
            self.params = [
                click.Option(
                    ["--debug"], is_flag=True, help="Show tracebacks.", expose_value=False
                ),
                click.Option(
                    ["--version"],
                    is_flag=True,
                    is_eager=True,
                    expose_value=False,
                    callback=_version,
                    help="Show the version and exit.",
                ),
            ]

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._table:
            return None
        module, _, attribute = self._table[cmd_name][0].partition(":")
        return getattr(import_module(module), attribute)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self._table.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self._table and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(args[0], self._table, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"one of: {', '.join(self._table)}"
            ctx.fail(f"unknown command {args[0]!r}; {hint}")
        return super().resolve_command(ctx, args)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> NoReturn:
        """Runs the command line and exits; every error becomes one line on stderr."""
        words = list(sys.argv[1:] if args is None else args)
        end = words.index("--") if "--" in words else len(words)
        debug = "--debug" in words[:end]
        # The flag may stand anywhere, also behind a command that does not know it.
        words = [w for i, w in enumerate(words) if i >= end or w != "--debug"]
        extra.setdefault("obj", {"debug": debug})
        try:
            with warnings.catch_warnings():
                if not debug:
                    # Pillow warns about damage that does not keep it from reading a picture.
                    warnings.filterwarnings("ignore", module=r"PIL\.")
                code = super().main(words, prog_name or "fastgen", complete_var, False, **extra)
        except (click.Abort, KeyboardInterrupt):
            click.echo("interrupted", err=True)
            sys.exit(130)
        except click.ClickException as error:
            report(_usage_line(error))
            sys.exit(error.exit_code)
        except Exception as error:
            if debug:
                raise
            report(one_line(error))
            sys.exit(1)
        sys.exit(code if isinstance(code, int) else 0)


@click.pass_context
def _help(ctx: click.Context, **_: object) -> None:
    """A group that is called without a command shows its help."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        from fastgen import __version__

        click.echo(f"fastgen {__version__}")
        ctx.exit()


def _usage_line(error: click.ClickException) -> str:
    text = " ".join(error.format_message().split())
    ctx = getattr(error, "ctx", None)
    if isinstance(error, click.UsageError) and ctx is not None:
        text = f"{text.rstrip('.')} (see {ctx.command_path} --help)"
    return text


def one_line(error: BaseException) -> str:
    """One line for people: what is wrong, and for a missing package what to install."""
    from fastgen.errors import FastgenError

    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        if package in _EXTRAS:
            return f"this needs {package}: pip install 'fastgen[{_EXTRAS[package]}]'"
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        # Without Python's "[Errno 13]" in front.
        named = error.filename is not None
        text = f"{error.filename}: {error.strerror}" if named else error.strerror
        text = " ".join(text.split())
    if isinstance(error, MemoryError):
        return (
            f"not enough memory{': ' * bool(text)}{text}; a smaller image needs less (--max-side)"
        )
    if isinstance(error, ValueError | TypeError | OSError | FastgenError) and text:
        return text
    kind = type(error).__name__
    return f"{kind}: {text or 'no message'}; run again with --debug for the traceback"


def debugging() -> bool:
    """Whether the running command was called with ``--debug``."""
    ctx = click.get_current_context(silent=True)
    return ctx is not None and isinstance(ctx.obj, dict) and bool(ctx.obj.get("debug"))


def report(error: str | BaseException) -> None:
    """Writes ``error: ...`` to stderr as one line; with ``--debug`` the traceback before it."""
    if isinstance(error, BaseException) and debugging():
        click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
    text = error if isinstance(error, str) else one_line(error)
    click.echo(f"error: {_printable(text)}", err=True)


def _printable(text: str) -> str:
    """File names may hold bytes that are not text; those become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def style_error(error: ValueError) -> Exception:
    """A bad ``--style``, ``--backend`` or ``--precision`` is wrong usage; a bad file is not."""
    from fastgen.errors import FastgenError

    if isinstance(error, FastgenError) or debugging():
        return error
    return click.UsageError(str(error))


class progress:  # noqa: N801 (used like a function)
    """A line on stderr that is rewritten; silent when stderr is not a terminal.

    Args:
        total: number of steps.
        what: noun for the steps.
    """

    def __init__(self, total: int, what: str) -> None:
        self._total = total
        self._what = what
        self._live = total > 1 and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def step(self, number: int, text: str) -> None:
        """Shows that step ``number`` (from 1) has begun."""
        if self._live:
            line = f"{self._what} {number}/{self._total}: {text}"
            sys.stderr.write(f"\r\x1b[K{line[:78]}")
            sys.stderr.flush()

    def clear(self) -> None:
        """Removes the line before other output."""
        if self._live:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
