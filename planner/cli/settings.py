"""Engines' own settings on kvplan's command line, under their own names: ``--max-num-seqs 64``.

Which there are is data (``engines/*.toml``), so they are taken out of the arguments before the parser sees them. Only
options that the command does not know itself are looked up.
"""

from __future__ import annotations

import difflib
from typing import Any

from typer.core import TyperCommand

from planner.errors import InputError


class EngineCommand(TyperCommand):
    """A command that takes engines' settings; they are in ``context.meta["settings"]``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        own = {"--help"} | {
            name for parameter in self.get_params(ctx) for name in (*parameter.opts, *parameter.secondary_opts)
        }
        ctx.meta["settings"], rest = take_settings(args, own)
        return super().parse_args(ctx, rest)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        formatter.write_paragraph()
        formatter.write_text(
            "An engine's own settings are options too, such as --max-num-seqs 64: see kvplan engines NAME."
        )


def take_settings(args: list[str], own: set[str]) -> tuple[dict[str, str], list[str]]:
    """Settings among arguments, by flag, and the arguments that are left.

    >>> take_settings(["llama3-8b", "--max-num-seqs", "64", "--enforce-eager"], set())
    ({'--max-num-seqs': '64', '--enforce-eager': 'true'}, ['llama3-8b'])

    Raises
    ------
    InputError
        If a setting has no value.
    """
    found: dict[str, str] = {}
    rest: list[str] = []
    unknown = [a for a in args if a.startswith("--") and a != "--" and a.partition("=")[0] not in own]
    kinds = _kinds() if unknown else {}
    waiting = list(args)
    while waiting:
        word = waiting.pop(0)
        name, equals, value = word.partition("=")
        if word == "--":
            return found, [*rest, word, *waiting]
        if name in own or name not in kinds:
            if word in unknown:
                raise _no_such(name, {*own, *kinds})
            rest.append(word)
        elif equals:
            found[name] = value
        elif kinds[name]:
            found[name] = "true"
        elif waiting and not waiting[0].startswith("--"):
            found[name] = waiting.pop(0)
        else:
            raise InputError(f"{name} needs a value")
    return found, rest


def _no_such(name: str, known: set[str]) -> InputError:
    near = difflib.get_close_matches(name, sorted(known), n=2)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return InputError(
        f"no such option: {name[:60]}; {hint}--help lists kvplan's, 'kvplan engines NAME' an engine's own"
    )


def _kinds() -> dict[str, bool]:
    """Every flag of every engine, and whether it stands alone."""
    from planner.engine import engine_ids, load_engine

    knobs = [knob for name in engine_ids() for knob in load_engine(name).knob]
    return {flag: knob.kind == "switch" for knob in knobs for flag in knob.flags}
