"""The launch command of an engine: exactly the flags that realise a deployment, in the words of its version."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from planner.deployment import Deployment
from planner.engine import Engine, Knob
from planner.errors import InputError

FILE = "kvplan-engine.yaml"
"""Settings file that is written where an engine has no flag for a setting."""


def launch_command(d: Deployment, batch: int, context: int, model: str) -> str:
    """The command that starts the engine so that ``batch`` sequences of ``context`` tokens run as planned.

    Parameters
    ----------
    model
        What the engine loads: a Hugging Face id or a path.

    Raises
    ------
    InputError
        If there is no engine to start.
    """
    engine = d.engine
    if not engine.launch:
        raise InputError("--engine none starts nothing; name one, such as --engine vllm")
    wanted = _wanted(d, batch, context)
    lines = [engine.launch.format(model=shlex.quote(model)), *_flags(engine, wanted)]
    settings = dict(_settings(engine, wanted))
    before = ""
    if settings:
        body = "\n".join(_yaml(settings))
        before = f"cat > {FILE} <<'EOF'\n{body}\nEOF\n"
        lines.append(f"{engine.settings_file} {FILE}")
    return before + " \\\n  ".join(lines)


def caveats(d: Deployment) -> Iterator[str]:
    """What a launch command takes for granted, because no flag says it."""
    if d.weights and not any(k.values.get(d.weights) for k in _knobs(d.engine, "weights")):
        yield f"Weights in {d.weights}: load a checkpoint that is quantised so; {d.engine.name} does not while loading."
    if d.engine.settings_file == "" and d.setup.layout == "cells":
        yield "Put the path of the GGUF file after --model."
    if d.pp > 1 and not _knobs(d.engine, "pp"):
        yield f"{d.pp} GPUs share by layer, which {d.engine.name} does by itself."
    kv = _wanted(d, 1, d.context).get("kv")
    if kv and not any(not k.values or kv in k.values for k in _knobs(d.engine, "kv")):
        yield f"A KV cache in {kv} is not {d.engine.label}'s: no setting says so, and it keeps its own format."
    if d.sharding.over_batch:
        yield f"{d.engine.name} has no setting that deals the cache out by sequence."


def flags(engine: Engine, values: Mapping[str, Any]) -> str:
    """Flags that set these fields or choices, where the engine has them; empty if it has not all of them."""
    found = list(_flags(engine, values))
    return " ".join(found) if len(found) == len(values) else ""


def _wanted(d: Deployment, batch: int, context: int) -> dict[str, Any]:
    """Choices and fields that differ from what the engine would do by itself."""
    local = -(-batch // d.sharding.batch_ranks)
    longest = d.setup.max_tokens or context
    wanted: dict[str, Any] = {
        "tp": d.sharding.ranks if d.setup.ranks_are_all else d.tp,
        "pp": d.pp,
        "dp": d.sharding.dp,
        "dp_attention": d.sharding.dp > 1,
        "ep": d.sharding.whole_experts,
        "ep_ranks": d.sharding.ranks if d.sharding.whole_experts else 1,
        "weights": d.weights,
        "kv": d.precision.kv.k.id,
        "kv_values": d.precision.kv.v.id,
        **d.given,
        **({"sequences": d.setup.sequences} if d.lifted_from is not None else {}),
        "max_tokens": longest,
        "all_tokens": longest * local,
        "slots": local,
    }
    idle = {"pp": 1, "dp": 1, "ep": False, "dp_attention": False, "ep_ranks": 1, "tp": 1, "weights": None}
    kept = {name: value for name, value in wanted.items() if name not in idle or value != idle[name]}
    if d.precision.kv.id in ("bf16", "fp16") and not (d.setup.follow_checkpoint and d.model.kv):
        del kept["kv"], kept["kv_values"]  # what "auto" gives
    return kept


def _flags(engine: Engine, values: Mapping[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        for knob in _knobs(engine, name):
            if flag := _flag(knob, value):
                yield flag


def _knobs(engine: Engine, name: str) -> list[Knob]:
    return [k for k in engine.knobs if k.sets.removeprefix("!") == name]


def _flag(knob: Knob, value: Any) -> str:
    """One flag with its value, or nothing where the engine does that by itself or cannot be told."""
    if knob.kind == "switch":
        on = bool(value) != knob.sets.startswith("!")
        return knob.flag if on else knob.off
    if not knob.flag:
        return ""
    if knob.values:
        return f"{knob.flag} {knob.values[value]}" if value in knob.values else ""
    return (
        f"{knob.flag} {shlex.quote(str(value))}"
        if knob.kind != "json"
        else f"{knob.flag} '{knob.meaning.format(value)}'"
    )


def _settings(engine: Engine, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Settings that go into a file."""
    for name, value in values.items():
        for knob in _knobs(engine, name):
            if knob.file_key and not knob.flag and (not knob.values or value in knob.values):
                yield (
                    knob.file_key,
                    str(knob.values.get(value, value)).lower()
                    if knob.kind == "switch"
                    else str(knob.values.get(value, value)),
                )


def _yaml(settings: Mapping[str, str]) -> Iterator[str]:
    """Dotted keys as nested YAML."""
    open_parts: list[str] = []
    for key in sorted(settings):
        *parents, last = key.split(".")
        for depth, parent in enumerate(parents):
            if open_parts[depth : depth + 1] != [parent]:
                open_parts = [*open_parts[:depth], parent]
                yield "  " * depth + parent + ":"
        yield "  " * len(parents) + f"{last}: {settings[key]}"
