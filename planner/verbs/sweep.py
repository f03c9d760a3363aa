"""The verb `sweep`: every combination of models, GPUs, degrees, formats, batches and contexts, as one tidy table.

The same engine as `plan` evaluates a whole grid of batches and contexts at once; Python loops only over deployments, and
rows exist as arrays, a chunk at a time.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np

from planner.axes import parse_axis, parse_names
from planner.cached import UNBOUNDED
from planner.checkpoint.load import load_model
from planner.columns import LOAD_COLUMNS, SWEEP_COLUMNS, Column
from planner.deployment import Deployment
from planner.errors import InputError
from planner.evaluate import Evaluation, evaluate, interval_s
from planner.files import writing
from planner.gpu import GpuSpec
from planner.measured import find_gpu
from planner.memory import weight_bytes
from planner.model import ModelSpec
from planner.roofline import BOUNDS
from planner.serving import Load, serve
from planner.settle import MAX_BATCH, MAX_GPUS, deploy, parse_gpu, told_tokens
from planner.units import MAX_TOKENS, parse_tokens
from planner.verbs.plan import check_context
from planner.verbs.traffic import read_ask

if TYPE_CHECKING:
    import pandas as pd

    from planner.arrays import IntArray

MAX_ROWS = 10**9
CHUNK_ROWS = 2**16

T = TypeVar("T")
Many: TypeAlias = T | Iterable[T]
"""One value or several."""

Chunk = dict[str, Any]
"""A deployment's constants and, for each varying column, an array with one element a row."""


@dataclass(frozen=True)
class Sweep:
    """A table that is computed as it is read.

    Attributes
    ----------
    deployments
        Every combination of model, GPU, degrees and formats that is possible.
    batches
        Batches [sequences].
    contexts
        Contexts of each deployment, those within its model's limit [tokens].
    skipped
        Combinations that cannot be, in words, such as a degree that does not divide the heads.
    load
        What requests ask for, where they were described; batches are then numbers of requests in the system.
    """

    deployments: tuple[Deployment, ...]
    batches: IntArray
    contexts: tuple[IntArray, ...]
    skipped: tuple[str, ...]
    load: Load | None = None

    @property
    def columns(self) -> tuple[Column, ...]:
        """Columns of the table."""
        return SWEEP_COLUMNS + LOAD_COLUMNS if self.load else SWEEP_COLUMNS

    def __len__(self) -> int:
        """Number of rows."""
        return sum(len(self.batches) * len(c) for c in self.contexts)

    def chunks(self) -> Iterator[Chunk]:
        """Rows in chunks of at most `CHUNK_ROWS`, each a mapping of column to value or array."""
        for deployment, contexts in zip(self.deployments, self.contexts, strict=True):
            step = max(1, CHUNK_ROWS // max(1, len(contexts)))
            for start in range(0, len(self.batches), step):
                batches = self.batches[start : start + step]
                yield _chunk(deployment, batches[:, None], contexts[None, :], self.load)

    def to_pandas(self) -> pd.DataFrame:
        """The whole table as a pandas DataFrame; a limit that memory does not set is missing."""
        import pandas as pd

        names = [c.name for c in self.columns]
        frame = pd.concat([pd.DataFrame(chunk) for chunk in self.chunks()], ignore_index=True)[names]
        limits = {name: "Int64" for name in ("max_batch", "max_context_tokens") if frame[name].dtype == object}
        return frame.astype(limits)

    def write_csv(self, stream: IO[str], progress: Callable[[int], object] = lambda rows: None) -> None:
        """Write the table as CSV, a chunk at a time; ``progress`` is told the rows of each."""
        stream.write(",".join(c.name for c in self.columns) + "\n")
        for chunk in self.chunks():
            stream.writelines(csv_lines(chunk, self.columns))
            progress(len(chunk["batch"]))

    def write_json(self, stream: IO[str], progress: Callable[[int], object] = lambda rows: None) -> None:
        """Write the table as an array of objects, a chunk at a time."""
        names = [c.name for c in self.columns]
        comma = "[\n"
        for chunk in self.chunks():
            for row in _records(chunk, self.columns):
                stream.write(comma + json.dumps(dict(zip(names, row, strict=True)), allow_nan=False))
                comma = ",\n"
            progress(len(chunk["batch"]))
        stream.write("\n]\n")

    def write_markdown(self, stream: IO[str], progress: Callable[[int], object] = lambda rows: None) -> None:
        """Write the table as Markdown, a chunk at a time."""
        stream.write("| " + " | ".join(c.label for c in self.columns) + " |\n")
        stream.write("|" + "|".join(" ---: " if c.unit else " --- " for c in self.columns) + "|\n")
        for chunk in self.chunks():
            for row in _records(chunk, self.columns):
                cells = (c.show(value) for c, value in zip(self.columns, row, strict=True))
                stream.write("| " + " | ".join(cells) + " |\n")
            progress(len(chunk["batch"]))

    def head(self, rows: int) -> list[dict[str, Any]]:
        """The first rows, as mappings of column to value."""
        names = [c.name for c in self.columns]
        every = (row for chunk in self.chunks() for row in _records(chunk, self.columns))
        return [dict(zip(names, row, strict=True)) for row in itertools.islice(every, rows)]

    def to_csv(self, path: str | Path) -> None:
        """Write the table to a file, whole or not at all."""
        with writing(path) as stream:
            self.write_csv(stream)


def sweep(
    models: Many[str | Path | ModelSpec], gpus: Many[str | Path | GpuSpec], *,
    tp: Many[int] | str | None = None, pp: Many[int] | str | None = None, weights: Many[str | None] = None,
    kv: Many[str | None] = None, batch: Many[int | str] = 1, context: Many[int | str] | None = None,
    input: int | str | None = None, output: int | str | None = None, engine: str = "vllm",
    memory_fraction: float | str | None = None, settings: Mapping[str, Any] | None = None,
) -> Sweep:  # fmt: skip
    """Every combination of the axes given; each is one value, several, or text as on the command line.

    Parameters
    ----------
    models, gpus
        Names or specs; a GPU may carry a count, ``"4xh100"``.
    tp, pp
        Degrees. A degree that does not divide a model's heads is skipped for that model and named in ``skipped``. Without
        any, each deployment has the smallest that leaves room for one sequence of its longest context.
    weights, kv
        Formats; ``None`` is the checkpoint's own and 16 bit.
    batch
        Sequences decoded together: ``range(1, 513)`` or ``"1:512"``.
    context
        Tokens that each holds, ``"1k:128k:x2"``; those above a model's limit are skipped for it. By default 8,192 or the
        model's limit.

    input, output
        Tokens of a prompt and of an answer: adds what requests would see, ``batch`` of them in the system at once. A
        sequence then holds both, and no context is given.

    Returns
    -------
    Sweep
        Iterate over ``chunks()``, or call ``to_pandas()`` or ``to_csv(path)``.

    Raises
    ------
    KvplanError
        If a name is unknown, a number impossible, or nothing is left to sweep.

    >>> table = sweep(["llama3-70b"], ["h100"], tp=[4, 8], batch=range(1, 513), context=[8192])
    >>> len(table), len(table.deployments)
    (1024, 2)
    """
    specs = [load_model(m) for m in _several(models)]
    devices = [_device(g) for g in _several(gpus)]
    degrees: list[list[Any]] = [_numbers(axis, what, MAX_GPUS) or [None] for axis, what in ((tp, "--tp"), (pp, "--pp"))]
    formats = [_several(axis) or [None] for axis in (weights, kv)]
    batches = np.unique(np.array(_numbers(batch, "batch", MAX_BATCH), dtype=np.int64))
    if not batches.size or not specs or not devices:
        raise InputError("nothing to sweep: give at least one model, one GPU and one batch")
    if context is not None and (input is not None or output is not None):
        raise InputError("a sequence of --input and --output holds both; leave --context out")
    ask = read_ask(None, input=input, output=output)
    wanted = None if context is None else sorted(set(_numbers(context, "context", MAX_TOKENS)))
    if ask is not None:
        wanted = [ask.tokens]
    found: list[Deployment] = []
    contexts: list[IntArray] = []
    skipped: list[str] = []
    if ask is not None:
        skipped += [f"{m.id}: an encoder reads its prompts, which --input is not of" for m in specs if m.encoder]
        specs = [m for m in specs if not m.encoder]
    for model, gpu, tp_, pp_, weights_, kv_ in itertools.product(specs, devices, *degrees, *formats):
        tokens = _contexts(model, wanted, skipped, told_tokens(engine, settings))
        if not tokens.size:
            continue
        try:
            d = deploy(
                model, gpu, context=int(tokens[-1]), tp=tp_, pp=pp_, weights=weights_, kv=kv_, engine=engine,
                memory_fraction=memory_fraction, settings=settings,
            )  # fmt: skip
        except InputError as error:
            skipped.append(f"{model.id} on {getattr(gpu, 'id', gpu)}: {error}")
            continue
        if d.curve.amount(int(tokens[-1])) * int(batches[-1]) >= 2**62:
            raise InputError(f"{model.id}: {batches[-1]:,} sequences of {tokens[-1]:,} tokens are beyond counting")
        found.append(d)
        contexts.append(tokens)
    if not found:
        raise InputError("nothing to sweep: " + (skipped[0] if skipped else "give at least one context"))
    load = ask.load if ask is not None else None
    table = Sweep(tuple(found), batches, tuple(contexts), tuple(dict.fromkeys(skipped)), load)
    if len(table) > MAX_ROWS:
        raise InputError(f"{len(table):,} rows are more than {MAX_ROWS:,}; give a larger step, such as 1:512:8")
    return table


def _several(values: Any) -> list[Any]:
    """An axis as a list: one value, several, or names separated by commas."""
    if values is None:
        return []
    if isinstance(values, str):
        return list(parse_names(values))
    if isinstance(values, (Path, ModelSpec, GpuSpec, bytes)) or not isinstance(values, Iterable):
        return [values]
    return list(values)


def _numbers(values: Any, what: str, most: int) -> list[int]:
    """An axis of whole numbers."""
    if isinstance(values, str):
        return [parse_tokens(n, what, most) for n in parse_axis(values, what)]
    return [parse_tokens(n, what, most) for n in _several(values) if n is not None]


def _device(gpu: str | Path | GpuSpec) -> str | Path | GpuSpec:
    """Check the name now, so that a bad one fails before a long sweep starts."""
    find_gpu(parse_gpu(gpu)[1] if isinstance(gpu, str) else gpu)
    return gpu


def _contexts(model: ModelSpec, wanted: list[int] | None, skipped: list[str], told: int | None) -> IntArray:
    """Contexts within the model's limit."""
    if wanted is None:
        return np.array([check_context(model, None, told)], dtype=np.int64)
    within = [c for c in wanted if c <= model.context_limit]
    if len(within) < len(wanted):
        skipped.append(f"{model.id}: contexts above its limit of {model.context_limit:,} tokens")
    return np.array(within, dtype=np.int64)


def _chunk(d: Deployment, batch: IntArray, context: IntArray, load: Load | None) -> Chunk:
    """One deployment over a grid, flattened to rows."""
    found = evaluate(d, batch, context)
    shape = np.broadcast_shapes(batch.shape, context.shape)

    def rows(values: Any) -> Any:
        return np.broadcast_to(values, shape).reshape(-1)

    varying = _varying(d, found, batch, context)
    if load is not None:
        varying |= _served(d, replace(load, concurrency=batch.astype(float)))
    return {**_constants(d), **{name: rows(values) for name, values in varying.items()}}


def _served(d: Deployment, load: Load) -> Chunk:
    """What requests see, by how many are in the system."""
    found = serve(d, load)
    low, high = d.efficiency.interval
    first_low, first_high = d.efficiency.first_interval
    return {
        "concurrency": np.asarray(load.concurrency).astype(np.int64),
        "input_tokens": np.asarray(load.input_tokens),
        "output_tokens": np.asarray(load.output_tokens),
        "running": np.floor(found.running).astype(np.int64),
        "ttft_ideal_s": found.ideal_ttft_s,
        "ttft_s": found.ttft_s,
        "ttft_low_s": np.maximum(found.ttft_s * first_low, found.ideal_ttft_s),
        "ttft_high_s": found.ttft_s * first_high,
        "tpot_ideal_s": found.ideal_tpot_s,
        "tpot_s": found.tpot_s,
        "tpot_low_s": np.maximum(found.tpot_s * low, found.ideal_tpot_s),
        "tpot_high_s": found.tpot_s * high,
        "requests_per_s": found.requests_per_s,
        "tokens_per_s_per_gpu": found.requests_per_s * load.output_tokens / d.count,
    }


def _constants(d: Deployment) -> Chunk:
    return {
        "model": d.model.id,
        "gpu": d.gpu.id,
        "gpus": d.count,
        "tensor_parallel": d.tp,
        "pipeline_parallel": d.pp,
        "weights": d.weights_label,
        "kv": d.precision.kv.id,
        "engine": d.engine.label,
        "weight_bytes": weight_bytes(d.model.all_tensors(), d.precision.weights),
        "weight_bytes_per_gpu": max(d.stage_weight_bytes),
        "kv_pool_bytes_per_gpu": max(0, min(b.pool for b in d.budgets)),
        "kv_bytes_per_token": d.curve.growing,
        "decode_origin": d.efficiency.origin,
    }


def _varying(d: Deployment, found: Evaluation, batch: IntArray, context: IntArray) -> Chunk:
    step = found.expected.step_s
    low, high = interval_s(d, step, found.ideal.step_s)
    return {
        "batch": batch,
        "context_tokens": context,
        "kv_bytes_per_sequence": found.kv_bytes_per_sequence,
        "kv_bytes": found.kv_bytes_per_sequence * batch,
        "fits": found.fits,
        "max_batch": _limit(found.max_batch),
        "max_context_tokens": _limit(found.max_context),
        "decode_ideal_step_s": found.ideal.step_s,
        "decode_step_s": step,
        "decode_step_low_s": low,
        "decode_step_high_s": high,
        "decode_bound": np.array(BOUNDS)[found.expected.bound],
        "decode_tokens_per_s": batch / step,
        "arithmetic_intensity_flop_per_byte": found.expected.arithmetic_intensity,
    }


def _limit(values: IntArray) -> Any:
    """Whole numbers, or ``None`` where memory sets no limit."""
    if not np.any(values >= UNBOUNDED):
        return values
    limited = values.astype(object)
    limited[values >= UNBOUNDED] = None
    return limited


def _records(chunk: Chunk, columns: Iterable[Column]) -> Iterator[tuple[Any, ...]]:
    """Rows of a chunk as plain Python values, in the order of the columns."""
    rows, found = len(chunk["batch"]), [chunk[c.name] for c in columns]
    return zip(*(v.tolist() if isinstance(v, np.ndarray) else itertools.repeat(v, rows) for v in found), strict=True)


def csv_lines(chunk: Chunk, columns: Iterable[Column] = SWEEP_COLUMNS) -> Iterator[str]:
    """Lines of CSV for a chunk. Constants are formatted once; floats have nine significant digits."""
    pattern, arrays = [], []
    for column in columns:
        value = chunk[column.name]
        if not isinstance(value, np.ndarray):
            pattern.append(str(value).replace("%", "%%"))
            continue
        pattern.append({"i": "%d", "f": "%.9g"}.get(value.dtype.kind, "%s"))
        arrays.append(["" if v is None else v for v in value.tolist()] if value.dtype == object else value.tolist())
    line = ",".join(pattern) + "\n"
    return (line % row for row in zip(*arrays, strict=True))
