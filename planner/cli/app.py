"""The command line: parse, call a verb, render. ``kvplan MODEL ...`` is short for ``kvplan plan MODEL ...``."""

from __future__ import annotations

import gc
import io
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from planner.cli import bench, checks, commands, listings, timings
from planner.cli.settings import EngineCommand
from planner.errors import KvplanError

OK, BAD_INPUT, INTERNAL, STOPPED = 0, 2, 70, 130


class _DefaultVerb(TyperGroup):
    """A group whose first word may be left out when it is the default."""

    default = "plan"

    def list_commands(self, ctx: Any) -> list[str]:
        """Commands as they are registered, groups among them: the listings beside each other."""
        names = super().list_commands(ctx)
        groups = [name for name in names if isinstance(self.commands[name], TyperGroup)]
        plain = [name for name in names if name not in groups]
        at = plain.index("models") + 1 if "models" in plain else len(plain)
        return plain[:at] + groups + plain[at:]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        own = {name for parameter in self.get_params(ctx) for name in parameter.opts}
        if args and args[0] not in self.commands and args[0] not in own:
            args = [self.default, *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        found = super().shell_complete(ctx, incomplete)
        name = next(p for p in self.commands[self.default].params if p.param_type_name == "argument")
        return found + name.shell_complete(ctx, incomplete)


class _Gpus(_DefaultVerb):
    """``kvplan gpus [NAME]`` is ``kvplan gpus list [NAME]``."""

    default = "list"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args or ([] if ctx.resilient_parsing else [self.default]))


app = typer.Typer(
    cls=_DefaultVerb,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.callback()(commands.top)
gpus = typer.Typer(cls=_Gpus)
gpus.command("list")(listings.gpus)
gpus.command("new")(listings.new_gpu)
for verb in (commands.plan, commands.compare, commands.sweep, commands.explain, commands.roofline):
    app.command(cls=EngineCommand)(verb)
app.command()(bench.bench)
for listing in (listings.models, listings.engines, listings.card, checks.validate, timings.calibrate):
    app.command()(listing)
app.add_typer(
    gpus,
    name="gpus",
    help="List the GPU catalogue, or show one device: kvplan gpus \\[NAME]; start an entry of one's own.",
)
app.command("check-log", cls=EngineCommand)(checks.check_log)


def main() -> NoReturn:
    """Run the command. No traceback reaches a user: whatever goes wrong is one line on standard error."""
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # looking for plugins costs as much as a card
    gc.disable()  # a command is over before a cycle matters; collecting while modules load costs some 5 % of it
    sys.stdout = sys.stdout or Path(os.devnull).open()  # noqa: SIM115 - closed from the start: writing fails
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):  # a terminal that cannot show a sign shows '?'
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    for number in (signal.SIGTERM, signal.SIGHUP):  # clean up as after Ctrl-C
        signal.signal(number, _interrupt)
    try:
        code = app(sys.argv[1:] or ["--help"], prog_name="kvplan", standalone_mode=False)
        sys.stdout.flush()
    except KvplanError as error:
        _fail(str(error), BAD_INPUT)
    except (KeyboardInterrupt, typer.Abort):
        _fail("stopped", STOPPED)
    except typer.Exit as leave:
        sys.exit(leave.exit_code)
    except SystemExit:  # how the parser answers a closed pipe: whoever read our output has seen enough
        _forget_output()
        sys.exit(OK)
    except OSError as error:
        _forget_output()
        if isinstance(error, BrokenPipeError):
            sys.exit(OK)
        _fail(f"cannot write standard output: {error.strerror or error}; send it elsewhere", BAD_INPUT)
    except Exception as error:
        if hasattr(error, "format_message"):  # the parser's own complaint: unknown option, missing argument
            _fail(f"{error.format_message().rstrip('.')}; 'kvplan --help' shows how", BAD_INPUT)
        if os.environ.get("KVPLAN_DEBUG"):
            raise
        _fail(
            f"internal error, please report it: {type(error).__name__}: {error} (KVPLAN_DEBUG=1 shows more)", INTERNAL
        )
    if code == STOPPED:
        _fail("stopped", STOPPED)
    sys.exit(code if isinstance(code, int) else OK)


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _forget_output() -> None:
    """Nothing more can be written; let the interpreter's last flush go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int) -> NoReturn:
    line = "".join(sign if sign.isprintable() else " " for sign in " ".join(message.split()))
    print("kvplan: " + (line if len(line) <= 600 else line[:597] + "..."), file=sys.stderr)
    sys.exit(code)
