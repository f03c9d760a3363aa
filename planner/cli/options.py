"""Options that several verbs share: their names, help texts, panels and completions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer


def _complete(names: Callable[[], list[str]]) -> Callable[[str], list[str]]:
    """Complete the last of a comma-separated list; a count before it, as in ``4xh100``, stays."""

    def completer(incomplete: str) -> list[str]:
        head, comma, last = incomplete.rpartition(",")
        count, times, rest = last.partition("x")
        if count.isdecimal() and times:
            head, comma, last = head + comma, count + times, rest
        return [head + comma + name for name in names() if name.lower().startswith(last.lower())]

    return completer


def _models() -> list[str]:
    from planner.catalog import aliases, model_ids
    from planner.model import ModelSpec

    return [*model_ids(), *aliases(ModelSpec)]


def _gpus() -> list[str]:
    from planner.catalog import aliases, gpu_ids
    from planner.gpu import GpuSpec
    from planner.measured import LATEST

    return [*gpu_ids(), *aliases(GpuSpec), LATEST]


def _variants() -> list[str]:
    return ["mha", "gqa", "gqa:8", "mqa", "mla"]


def _shards() -> list[str]:
    return ["heads", "batch"]


def _weight_formats() -> list[str]:
    from planner.precision import FORMATS

    return list(FORMATS)


def _kv_formats() -> list[str]:
    from planner.precision import KV_FORMATS

    return list(KV_FORMATS)


def _engines() -> list[str]:
    from planner.engine import engine_ids

    return engine_ids()


def _quantities() -> list[str]:
    from planner.verbs.explain import quantities

    return list(quantities())


complete_models, complete_gpus = _complete(_models), _complete(_gpus)
complete_engines = _complete(_engines)
complete_quantities, complete_variants = _complete(_quantities), _complete(_variants)

_OUTPUT = "Output (FILE, or - for standard output)"
_SOURCE = "Model"
_PARALLEL = "GPUs"
_FORMAT = "Formats and engine"
_WORK = "Workload"

Model = Annotated[
    str,
    typer.Argument(
        help="Model: id, Hugging Face id, config.json, checkpoint folder, GGUF file or card.",
        autocompletion=complete_models,
    ),
]
Revision = Annotated[
    str | None,
    typer.Option(help="Branch, tag or commit on the Hugging Face hub.", rich_help_panel=_SOURCE),
]
AssumeDecoder = Annotated[
    bool,
    typer.Option(
        "--assume-decoder", help="Plan an unknown architecture as a standard decoder.", rich_help_panel=_SOURCE
    ),
]
Gpu = Annotated[
    str,
    typer.Option(
        "--gpu",
        "-g",
        help="GPU, or 4xh100 for a replica of four; a file of your own, or 'measured' after kvplan bench.",
        autocompletion=complete_gpus,
        rich_help_panel=_PARALLEL,
    ),
]
Tp = Annotated[str | None, typer.Option("--tp", metavar="N", help="Tensor-parallel degree.", rich_help_panel=_PARALLEL)]
Pp = Annotated[
    str | None, typer.Option("--pp", metavar="N", help="Pipeline-parallel degree.", rich_help_panel=_PARALLEL)
]
Dp = Annotated[
    str | None,
    typer.Option("--dp", metavar="N", help="Data-parallel degree of attention.", rich_help_panel=_PARALLEL),
]
Ep = Annotated[bool, typer.Option("--ep", help="Deal routed experts out whole.", rich_help_panel=_PARALLEL)]
KvShard = Annotated[
    str,
    typer.Option(
        help="Deal the cache out by 'heads' or by 'batch'.",
        autocompletion=_complete(_shards),
        rich_help_panel=_PARALLEL,
    ),
]
PadHeads = Annotated[
    bool, typer.Option("--pad-heads", help="Allow a --tp that does not divide the heads.", rich_help_panel=_PARALLEL)
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="Weight format or GGUF mix; by default the checkpoint's own.",
        autocompletion=_complete(_weight_formats),
        rich_help_panel=_FORMAT,
    ),
]
Kv = Annotated[
    str | None,
    typer.Option(
        help="KV-cache format, or keys:values such as q8_0:q4_0; by default the engine's auto.",
        autocompletion=_complete(_kv_formats),
        rich_help_panel=_FORMAT,
    ),
]
Engine = Annotated[
    str,
    typer.Option(
        help="Engine whose memory budget applies, vllm or a version such as vllm@0.20; 'none' is the model's own need.",
        autocompletion=_complete(_engines),
        rich_help_panel=_FORMAT,
    ),
]
Fraction = Annotated[
    str | None,
    typer.Option(help="Share of a GPU's memory that the engine takes, 0.9 or 90%.", rich_help_panel=_FORMAT),
]
KvMemory = Annotated[
    str | None, typer.Option(help="Cache memory of one GPU, given instead of derived: 9.6GiB.", rich_help_panel=_FORMAT)
]
Attention = Annotated[
    str | None,
    typer.Option(
        help="What if the attention were mha, gqa, gqa:N, mqa or mla?",
        autocompletion=_complete(_variants),
        rich_help_panel=_FORMAT,
    ),
]
Context = Annotated[
    str | None,
    typer.Option("--context", "-c", help="Tokens a sequence holds: 8192 or 8k.", rich_help_panel=_WORK),
]
Batch = Annotated[
    str | None,
    typer.Option("--batch", "-b", help="Sequences decoded together; by default 1.", rich_help_panel=_WORK),
]
_LOAD = "Requests: what they would see"
Input = Annotated[
    str | None, typer.Option("--input", metavar="N", help="Tokens of a prompt, 1024 or 1k.", rich_help_panel=_LOAD)
]
Output = Annotated[
    str | None, typer.Option("--output", metavar="N", help="Tokens of an answer.", rich_help_panel=_LOAD)
]
Concurrency = Annotated[
    str | None, typer.Option(metavar="N", help="Requests in the system at once.", rich_help_panel=_LOAD)
]
Rate = Annotated[str | None, typer.Option(metavar="X", help="Or requests a second.", rich_help_panel=_LOAD)]
PrefixHits = Annotated[
    str | None,
    typer.Option(metavar="SHARE", help="Share of a prompt that the prefix cache has.", rich_help_panel=_LOAD),
]
Acceptance = Annotated[
    str | None,
    typer.Option(
        metavar="SHARE", help="Drafted tokens that are accepted, if the engine drafts.", rich_help_panel=_LOAD
    ),
]
Rounds = Annotated[
    str | None,
    typer.Option(metavar="N", help="Requests of a run for each at once, 10; inf is steady.", rich_help_panel=_LOAD),
]
Apart = Annotated[
    str | None,
    typer.Option(metavar="P:D", help="Workers of prefill and of decode, where apart: 2:1.", rich_help_panel=_LOAD),
]
SourceTokens = Annotated[
    str | None, typer.Option("--source", help="Source tokens of an encoder-decoder.", rich_help_panel=_WORK)
]
Json = Annotated[
    str | None, typer.Option("--json", metavar="FILE", help="Write JSON, base units.", rich_help_panel=_OUTPUT)
]
Csv = Annotated[
    str | None, typer.Option("--csv", metavar="FILE", help="Write CSV, base units.", rich_help_panel=_OUTPUT)
]
Md = Annotated[str | None, typer.Option("--md", metavar="FILE", help="Write Markdown.", rich_help_panel=_OUTPUT)]
Html = Annotated[
    str | None,
    typer.Option("--html", metavar="FILE", help="Draw a page that opens offline.", rich_help_panel=_OUTPUT),
]
Png = Annotated[str | None, typer.Option("--png", metavar="FILE", help="Draw a PNG.", rich_help_panel=_OUTPUT)]
Svg = Annotated[str | None, typer.Option("--svg", metavar="FILE", help="Draw an SVG.", rich_help_panel=_OUTPUT)]
