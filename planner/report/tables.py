"""Results as tables: what every renderer walks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from planner.axes import thinned
from planner.columns import (
    ASKED_COLUMNS,
    BUDGET_COLUMNS,
    CAPACITY_COLUMNS,
    COMPARE_COLUMNS,
    DECODE_COLUMNS,
    ENGINE_COLUMNS,
    ERROR_COLUMNS,
    EXPLAIN_COLUMNS,
    FRONTIER_COLUMNS,
    GPU_COLUMNS,
    KERNEL_COLUMNS,
    KNOB_COLUMNS,
    LOAD_COLUMNS,
    LOG_COLUMNS,
    MODEL_COLUMNS,
    REMEDY_COLUMNS,
    ROOFLINE_COLUMNS,
    RUN_COLUMNS,
    RUN_ERROR_COLUMNS,
    SERVING_COLUMNS,
    SWEEP_COLUMNS,
    TIME_COLUMNS,
    TIME_ERROR_COLUMNS,
    Column,
)
from planner.memory import cache_curve
from planner.precision import find_kv
from planner.report.words import interval
from planner.result import DecodePlan, Plan, ServingPoint
from planner.stage import stages_of
from planner.units import GIB, format_gib, format_seconds

if TYPE_CHECKING:
    from planner.engine import Engine
    from planner.gpu import GpuSpec
    from planner.model import ModelSpec
    from planner.verbs.calibrate import KernelFit
    from planner.verbs.checklog import LogReport
    from planner.verbs.compare import Comparison
    from planner.verbs.explain import Explanation
    from planner.verbs.roofline import OperatorTime, Roofline, RooflineStep
    from planner.verbs.validate import LogCheck
    from planner.verbs.validate_serving import ServingCheck
    from planner.verbs.validate_times import TimeCheck

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """Rows under declared columns."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Record, ...]

    def shown(self) -> list[list[str]]:
        """Cells as people read them."""
        return [[column.show(row[column.name]) for column in self.columns] for row in self.rows]


def plan_row(plan: Plan) -> Table:
    """A plan as one row of a sweep, column for column."""
    memory, decode, deployment = plan.memory, plan.decode, plan.deployment
    row = {
        "model": plan.model.id,
        "gpu": plan.gpu.id,
        "gpus": plan.gpu.count,
        "tensor_parallel": deployment.tensor_parallel,
        "pipeline_parallel": deployment.pipeline_parallel,
        "weights": deployment.weights,
        "kv": deployment.kv,
        "engine": deployment.engine_label,
        "batch": plan.workload.batch,
        "context_tokens": plan.workload.context,
        "weight_bytes": memory.weight_bytes,
        "weight_bytes_per_gpu": memory.weight_bytes_per_gpu,
        "kv_bytes_per_token": memory.kv_bytes_per_token,
        "kv_bytes_per_sequence": memory.kv_bytes_per_sequence,
        "kv_bytes": memory.kv_bytes_per_sequence * plan.workload.batch,
        "kv_pool_bytes_per_gpu": memory.kv_pool_bytes_per_gpu,
        "fits": memory.fits,
        "max_batch": memory.max_batch,
        "max_context_tokens": memory.max_context,
        "decode_ideal_step_s": decode.ideal_step_s,
        "decode_step_s": decode.step_s,
        "decode_step_low_s": decode.interval_s[0],
        "decode_step_high_s": decode.interval_s[1],
        "decode_origin": decode.origin,
        "decode_bound": decode.bound,
        "decode_tokens_per_s": decode.tokens_per_s,
        "arithmetic_intensity_flop_per_byte": decode.arithmetic_intensity,
    }
    if plan.serving is None:
        return Table("Plan", SWEEP_COLUMNS, (row,))
    served = plan.serving
    prefill, decoding = served.workers or (None, None)
    load = {
        **_serving_row(served),
        "ttft_ideal_s": served.ideal_ttft_s,
        "tpot_ideal_s": served.ideal_tpot_s,
        "prefill_workers": prefill,
        "decode_workers": decoding,
    }
    return Table("Plan", SWEEP_COLUMNS + LOAD_COLUMNS + ASKED_COLUMNS, ({**load, **row, "gpus": served.gpus},))


def plan_tables(plan: Plan) -> list[Table]:
    """A plan as the tables that people see."""
    decode = Table(
        f"Decode step at context {plan.workload.context:,}",
        DECODE_COLUMNS,
        tuple(_decode_row(d) for d in plan.decode_by_batch),
    )
    frontier = Table("Largest batch by context", FRONTIER_COLUMNS, _records(plan.frontier))
    budget = Table("Memory of one GPU", BUDGET_COLUMNS, tuple(budget_parts(plan)))
    remedies = [Table("What would make it fit", REMEDY_COLUMNS, _records(plan.remedies))] if plan.remedies else []
    return [budget, *remedies, frontier, decode]


def serving_tables(plan: Plan) -> list[Table]:
    """What requests see, by how many are in the system, where requests were described."""
    if plan.serving is None or not plan.serving.by_concurrency:
        return []
    title = f"Requests of {plan.serving.input_tokens:,} tokens in and {plan.serving.output_tokens:,} out"
    return [Table(title, SERVING_COLUMNS, tuple(_serving_row(point) for point in plan.serving.by_concurrency))]


def _serving_row(point: ServingPoint) -> Record:
    bounds = {"ttft": point.ttft_interval_s, "tpot": point.tpot_interval_s}
    return {
        **point.to_dict(),
        **{f"{figure}_{end}_s": bounds[figure][i] for figure in bounds for i, end in enumerate(("low", "high"))},
    }


def budget_parts(plan: Plan) -> list[Record]:
    """What one GPU's memory goes to, line by line; the parts sum to what is usable and what is missing."""
    memory, one, engine = plan.memory, plan.memory.fullest_gpu, plan.deployment
    free = max(0, one.kv_pool_bytes - one.kv_bytes)
    rank = f"stage {one.stage + 1} of {engine.pipeline_parallel}" if engine.pipeline_parallel > 1 else ""
    shape = (
        f"peak of {engine.step_tokens:,} tokens, {engine.sequences:,} sequences sampled" if engine.step_tokens else ""
    )
    step = f"a pass of {engine.step_tokens:,} tokens"
    parts = [
        ("weights", one.weight_bytes, "; ".join(filter(None, (rank, _added(one.added_bytes))))),
        ("drafter", one.drafter_bytes, "weights of the draft layers"),
        ("KV cache", one.kv_bytes, f"this batch, of a pool of {format_gib(one.kv_pool_bytes)}"),
        ("free for KV", free, ""),
        ("activations", one.activation_bytes, shape if "activations" not in one.outside else step),
        ("graphs", one.graph_bytes, "captured decode steps"),
        ("other", one.other_bytes, "driver context, communication buffers"),
    ]
    rest = max(0, plan.gpu.usable_bytes + memory.missing_bytes_per_gpu - sum(size for _, size, _ in parts))
    share = f"outside the engine's share of {engine.memory_fraction:.3g}" if engine.memory_fraction < 1 else ""
    return [
        {"part": name, "bytes": size, "remark": _outside(remark, name in one.outside and size > 0)}
        for name, size, remark in [*parts, ("held back", rest, share)]
        if size or name not in ("drafter", "graphs")
    ]


def _added(nbytes: int) -> str:
    """What the engine holds of weights beyond the checkpoint, where it is worth a word."""
    return f"{format_gib(nbytes)} of them copies and padding of the engine" if nbytes >= GIB // 2 else ""


def _outside(remark: str, outside: bool) -> str:
    return "; ".join(filter(None, (remark, "outside the engine's share" if outside else "")))


def _decode_row(d: DecodePlan) -> Record:
    return {**d.to_dict(), "step_low_s": d.interval_s[0], "step_high_s": d.interval_s[1]}


def _records(results: Iterable[Any]) -> tuple[Record, ...]:
    return tuple(r.to_dict() for r in results)


def comparison_table(comparison: Comparison) -> Table:
    """Attention variants side by side."""
    load = comparison.workload
    title = f"{comparison.model.name} at batch {load.batch:,} and context {load.context:,}"
    return Table(title, COMPARE_COLUMNS, _records(comparison.variants))


def explanation_table(explanation: Explanation) -> Table:
    """One figure's derivation as a row."""
    return Table(explanation.quantity, EXPLAIN_COLUMNS, (explanation.to_dict(),))


def roofline_table(answer: Roofline) -> Table:
    """Every operator at every batch."""
    constants = {
        "model": answer.model.id,
        "gpu": answer.gpu.id,
        "tensor_parallel": answer.deployment.tensor_parallel,
        "phase": answer.phase,
        "tokens": answer.tokens,
    }
    rows = ({**constants, **_operator_row(one)} for one in answer.operators)
    return Table("Operators on the roofline", ROOFLINE_COLUMNS, tuple(rows))


def _operator_row(one: OperatorTime) -> Record:
    return {**one.to_dict(), "arithmetic_intensity_flop_per_byte": one.arithmetic_intensity}


def roofline_tables(answer: Roofline, most: int = 8) -> list[Table]:
    """Operators as people see them: at the smallest and the largest batch, and their shares at up to so many batches."""
    ends = list(dict.fromkeys((answer.steps[0], answer.steps[-1])))
    shares = [_shares(answer, most)] if len(answer.steps) > 2 else []
    return [*(_step_table(answer, step) for step in ends), *shares]


_STEP = (
    "operator",
    "arithmetic_intensity_flop_per_byte",
    "achieved_flop_per_s",
    "ideal_s",
    "expected_s",
    "share",
    "bound",
)


def _step_table(answer: Roofline, step: RooflineStep) -> Table:
    """Operators of one step; a dash is where there is no such thing."""
    by_name = {column.name: column for column in ROOFLINE_COLUMNS}
    read = Column("read_bytes", "Read", "B")
    columns = [by_name[name] for name in _STEP]
    columns[2:3] = [read, Column("teraflops", "TFLOP/s", "number"), Column("of_roof", "Of roof", "%")]
    rows = (_step_row(one) for one in answer.operators if one.batch == step.batch)
    return Table(_step_title(answer, step), tuple(columns), tuple(rows))


def _step_title(answer: Roofline, step: RooflineStep) -> str:
    what = f"Prompt of {answer.tokens:,} tokens" if answer.phase == "prefill" else f"Batch {step.batch:,}"
    within = f" ({interval(step.interval_s)})" if step.interval_s else ""
    unfit = "" if step.fits else "; does not fit"
    return f"{what}: {format_seconds(step.step_s)} expected{within}, {format_seconds(step.ideal_step_s)} ideal{unfit}"


def _step_row(one: OperatorTime) -> Record:
    achieved, roof, read = one.achieved_flop_per_s, one.roof_flop_per_s, one.weight_bytes + one.cache_bytes
    intensity = one.arithmetic_intensity
    values = {
        "arithmetic_intensity_flop_per_byte": f"{intensity:,.{1 if intensity < 100 else 0}f}" if intensity else None,
        "read_bytes": read or None,
        "teraflops": None if achieved is None else _three_digits(achieved / 1e12),
        "of_roof": achieved / roof if achieved and roof else None,
    }
    return {**one.to_dict(), **{name: "–" if value is None else value for name, value in values.items()}}


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 999.5 else f"{value:#.3g}".rstrip(".")


def _shares(answer: Roofline, most: int) -> Table:
    """Shares of the expected time, operators by batches, over the whole step."""
    batches = thinned([step.batch for step in answer.steps], most)
    columns = (Column("operator", "Operator"), *(Column(str(b), f"{b:,}", "%") for b in batches))
    rows: dict[str, dict[str, str]] = {}
    for one in answer.operators:
        rows.setdefault(one.operator, {"operator": one.operator})[str(one.batch)] = f"{one.share:.0%}"
    steps = {str(step.batch): format_seconds(step.step_s) for step in answer.steps}
    return Table("Share of the expected time by batch", columns, (*rows.values(), {"operator": "step", **steps}))


def model_table(models: Iterable[ModelSpec]) -> Table:
    """The model catalogue; KV per token is in bf16 while windows fill."""
    return Table("Models", MODEL_COLUMNS, tuple(_model_row(m) for m in models))


def _model_row(m: ModelSpec) -> Record:
    curve = cache_curve(stages_of(m, 1)[0], find_kv("bf16"), 1, m.source_tokens)
    return {
        "id": m.id,
        "parameters": m.total_parameters,
        "active_parameters": m.active_parameters,
        "layers": m.layers,
        "variants": "; ".join(m.variants),
        "kv_bytes_per_token": curve.growing,
        "context_limit": m.context_limit,
        "name": m.name,
    }


def gpu_table(gpus: Iterable[GpuSpec]) -> Table:
    """The GPU catalogue."""
    return Table("GPUs", GPU_COLUMNS, tuple(_gpu_row(g) for g in gpus))


def _gpu_row(g: GpuSpec) -> Record:
    return {
        "id": g.id,
        "usable_bytes": g.usable_bytes,
        "bandwidth_bytes_per_s": g.bandwidth_bytes_per_s,
        "bf16_flop_per_s": g.peaks.get("bf16"),
        "fp8_flop_per_s": g.peaks.get("fp8"),
        "link_bytes_per_s": g.link_bytes_per_s,
        "devices": g.link.devices,
        "architecture": g.architecture,
        "name": g.name,
    }


def engine_table(engines: Iterable[Engine]) -> Table:
    """The engines there are."""
    rows = ({"id": e.id, "name": e.name, "version": e.version, "oldest": e.oldest or "-", "settings": len(e.knobs),
             "launch": e.launch.partition(" {")[0] or "-"} for e in engines)  # fmt: skip
    return Table("Engines", ENGINE_COLUMNS, tuple(rows))


def knob_table(engine: Engine) -> Table:
    """An engine's settings, each with its default on one H100 and a sequence of 8,192 tokens."""
    from planner.catalog import load_gpu
    from planner.engine import Situation

    setup = engine.setup(Situation(load_gpu("h100-sxm"), 1, "", False, 8192), {})
    rows = []
    for knob in engine.knobs:
        target = knob.sets.removeprefix("!")
        default = getattr(setup, target, None)
        if isinstance(default, bool):
            default = "on" if default != knob.sets.startswith("!") else "off"
        shown = "" if default is None or default == "" else f"{default:,}" if isinstance(default, int) else str(default)
        own = "--" + knob.name.replace("_", "-")
        flag = own if knob.kind == "json" else knob.flag.rpartition(" ")[2] or f"{knob.file_key} (file)"
        rows.append({"setting": knob.name, "flag": flag, "default": shown, "meaning": knob.meaning_in_words})
    return Table(f"{engine.name} {engine.version}", KNOB_COLUMNS, tuple(rows))


def log_table(report: LogReport) -> Table:
    """A start-up log, printed against predicted."""
    return Table("Printed against predicted", LOG_COLUMNS, tuple(f.to_dict() for f in report.figures))


def capacity_table(checks: Iterable[LogCheck]) -> Table:
    """Every start-up log, printed against predicted."""
    return Table("Start-up logs", CAPACITY_COLUMNS, tuple(check.to_dict() for check in checks))


def capacity_summary(checks: tuple[LogCheck, ...]) -> Table:
    """Errors by figure, kind of model and engine."""
    from planner.verbs.validate import summary

    return Table("Errors against start-up logs", ERROR_COLUMNS, tuple(row.to_dict() for row in summary(checks)))


def times_table(checks: Iterable[TimeCheck]) -> Table:
    """Every published time, measured against predicted."""
    return Table("Published times", TIME_COLUMNS, _records(checks))


def times_summary(checks: tuple[TimeCheck, ...]) -> Table:
    """Errors by source, phase, engine and device."""
    from planner.verbs.validate_times import summary

    return Table("Errors against published times", TIME_ERROR_COLUMNS, _records(summary(checks)))


def runs_table(checks: Iterable[ServingCheck]) -> Table:
    """Every serving run, measured against predicted."""
    return Table("Serving runs", RUN_COLUMNS, _records(checks))


def runs_summary(checks: tuple[ServingCheck, ...]) -> Table:
    """Errors of TPOT and TTFT, by workers, kind of model, engine, device and model."""
    from planner.verbs.validate_serving import summary

    return Table("Errors against serving runs", RUN_ERROR_COLUMNS, _records(summary(checks)))


def kernel_table(fits: Iterable[KernelFit], title: str) -> Table:
    """What kernels of a device reach of its peaks."""
    return Table(title, KERNEL_COLUMNS, _records(fits))
