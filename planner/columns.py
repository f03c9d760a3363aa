"""Columns, declared once: name with its base unit for data, label and unit for people. Every renderer walks them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from planner.units import format_bytes, format_count, format_flop, format_seconds, format_tokens

Unit = Literal[
    "",
    "B",
    "s",
    "tokens",
    "sequences",
    "tokens/s",
    "FLOP/B",
    "count",
    "number",
    "rate",
    "x",
    "%",
    "share",
    "B/s",
    "FLOP/s",
    "FLOP",
]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes
    ----------
    name
        Name in CSV and JSON; carries the base unit where there is one.
    label
        Heading for people.
    unit
        Decides how people see the value.
    """

    name: str
    label: str
    unit: Unit = ""

    def show(self, value: object) -> str:
        """The value as people read it.

        >>> Column("kv_bytes", "KV cache", "B").show(2**30), Column("fits", "fits").show(True)
        ('1.00 GiB', 'yes')
        """
        if value is None:
            return {"tokens": "no limit", "sequences": "no limit", "share": "-"}.get(self.unit, "unknown")
        if isinstance(value, bool):
            return "yes" if value else "no"
        if not isinstance(value, (int, float)):
            return str(value)
        match self.unit:
            case "B":
                return format_bytes(value)
            case "s":
                return format_seconds(value)
            case "tokens":
                return format_tokens(int(value))
            case "sequences":
                return f"{value:,}"
            case "tokens/s":
                return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
            case "FLOP/B":
                return f"{value:.1f}"
            case "count":
                return format_count(value)
            case "number":
                return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"
            case "rate":
                return f"{value:#,.3g}".rstrip(".") if value < 100 else f"{value:,.0f}"
            case "%":
                return (
                    f"{value:+.1%}"
                    if value < 0 or self.name == "error" or self.name.endswith("_error")
                    else f"{value:.1%}"
                )
            case "share":
                return f"{value:.0%}"
            case "x":
                return f"{value:,.3g}×"
            case "B/s":
                return f"{value / 1e9:,.0f} GB/s"
            case "FLOP/s":
                return f"{value / 1e12:,.4g} TFLOP/s"
            case "FLOP":
                return format_flop(value)
        return str(value)


SWEEP_COLUMNS = (
    Column("model", "Model"),
    Column("gpu", "GPU"),
    Column("gpus", "GPUs"),
    Column("tensor_parallel", "TP"),
    Column("pipeline_parallel", "PP"),
    Column("weights", "Weights"),
    Column("kv", "KV"),
    Column("engine", "Engine"),
    Column("batch", "Batch", "sequences"),
    Column("context_tokens", "Context", "tokens"),
    Column("weight_bytes", "Weights", "B"),
    Column("weight_bytes_per_gpu", "Weights/GPU", "B"),
    Column("kv_bytes_per_token", "KV/token", "B"),
    Column("kv_bytes_per_sequence", "KV/sequence", "B"),
    Column("kv_bytes", "KV cache", "B"),
    Column("kv_pool_bytes_per_gpu", "KV pool/GPU", "B"),
    Column("fits", "Fits"),
    Column("max_batch", "Max batch", "sequences"),
    Column("max_context_tokens", "Max context", "tokens"),
    Column("decode_ideal_step_s", "Ideal step", "s"),
    Column("decode_step_s", "Expected step", "s"),
    Column("decode_step_low_s", "low", "s"),
    Column("decode_step_high_s", "high", "s"),
    Column("decode_origin", "Origin"),
    Column("decode_bound", "Bound by"),
    Column("decode_tokens_per_s", "Tokens/s", "tokens/s"),
    Column("arithmetic_intensity_flop_per_byte", "FLOP/B", "FLOP/B"),
)

LOAD_COLUMNS = (
    Column("concurrency", "In the system", "number"),
    Column("input_tokens", "Input", "tokens"),
    Column("output_tokens", "Output", "tokens"),
    Column("running", "Running", "number"),
    Column("ttft_ideal_s", "Ideal TTFT", "s"),
    Column("ttft_s", "TTFT", "s"),
    Column("ttft_low_s", "low", "s"),
    Column("ttft_high_s", "high", "s"),
    Column("tpot_ideal_s", "Ideal TPOT", "s"),
    Column("tpot_s", "TPOT", "s"),
    Column("tpot_low_s", "low", "s"),
    Column("tpot_high_s", "high", "s"),
    Column("requests_per_s", "Requests/s", "rate"),
    Column("tokens_per_s_per_gpu", "Tokens/s a GPU", "tokens/s"),
)
"""What a sweep over requests has besides; the batch is then the number of requests in the system."""

ASKED_COLUMNS = (
    Column("prefix_hits", "Prefix hits", "%"),
    Column("drafted", "Drafted", "number"),
    Column("tokens_per_step", "Tokens a step", "number"),
    Column("rounds", "Rounds", "number"),
    Column("asked_requests_per_s", "Asked", "rate"),
    Column("highest_requests_per_s", "Highest", "rate"),
    Column("sustained", "Sustained"),
    Column("prefill_workers", "Prefill workers", "number"),
    Column("decode_workers", "Decode workers", "number"),
)
"""What a plan of requests has besides; its batch is what runs at once."""

COMPARE_COLUMNS = (
    Column("attention", "Attention"),
    Column("variant", "Variant"),
    Column("parameters", "Params", "count"),
    Column("kv_bytes_per_token", "KV/token", "B"),
    Column("kv_bytes_per_sequence", "KV/seq", "B"),
    Column("factor_vs_mha", "vs MHA", "x"),
    Column("factor_vs_published", "vs own", "x"),
    Column("fits", "Fits"),
    Column("max_batch", "Max batch", "sequences"),
    Column("max_context", "Max context", "tokens"),
    Column("decode_ideal_step_s", "Ideal", "s"),
    Column("decode_step_s", "Expected", "s"),
    Column("decode_step_low_s", "Low", "s"),
    Column("decode_step_high_s", "High", "s"),
    Column("decode_origin", "Origin"),
    Column("decode_bound", "Bound by"),
)

DECODE_COLUMNS = (
    Column("batch", "Batch", "sequences"),
    Column("ideal_step_s", "Ideal", "s"),
    Column("step_s", "Expected", "s"),
    Column("step_low_s", "Low", "s"),
    Column("step_high_s", "High", "s"),
    Column("tokens_per_s_per_sequence", "Tok/s each", "tokens/s"),
    Column("tokens_per_s", "Tok/s all", "tokens/s"),
    Column("bound", "Bound by"),
)

SERVING_COLUMNS = (
    Column("concurrency", "Requests", "number"),
    Column("running", "Running", "number"),
    Column("ideal_ttft_s", "Ideal TTFT", "s"),
    Column("ttft_s", "TTFT", "s"),
    Column("ttft_low_s", "Low", "s"),
    Column("ttft_high_s", "High", "s"),
    Column("ideal_tpot_s", "Ideal TPOT", "s"),
    Column("tpot_s", "TPOT", "s"),
    Column("tpot_low_s", "Low", "s"),
    Column("tpot_high_s", "High", "s"),
    Column("requests_per_s", "Requests/s", "rate"),
    Column("tokens_per_s_per_user", "Tok/s each", "tokens/s"),
    Column("tokens_per_s_per_gpu", "Tok/s a GPU", "tokens/s"),
    Column("tokens_per_s", "Tok/s all", "tokens/s"),
)

BUDGET_COLUMNS = (Column("part", "Part"), Column("bytes", "One GPU", "B"), Column("remark", ""))

FRONTIER_COLUMNS = (Column("context", "Context", "tokens"), Column("max_batch", "Max batch", "sequences"))

REMEDY_COLUMNS = (
    Column("change", "Change"),
    Column("option", "Option"),
    Column("engine_option", "Engine's own flags"),
    Column("max_batch", "Max batch", "sequences"),
    Column("step_s", "Expected step", "s"),
)

EXPLAIN_COLUMNS = (
    Column("quantity", "Quantity"),
    Column("meaning", "Meaning"),
    Column("formula", "Formula"),
    Column("substituted", "With numbers"),
    Column("result", "Result"),
    Column("unit", "Unit"),
    Column("shown", "Shown"),
)

ROOFLINE_COLUMNS = (
    Column("model", "Model"),
    Column("gpu", "GPU"),
    Column("tensor_parallel", "TP"),
    Column("phase", "Phase"),
    Column("tokens", "Tokens", "tokens"),
    Column("batch", "Batch", "sequences"),
    Column("operator", "Operator"),
    Column("format", "Format"),
    Column("flops", "Work", "FLOP"),
    Column("weight_bytes", "Weights", "B"),
    Column("cache_bytes", "Cache", "B"),
    Column("activation_bytes", "Activations", "B"),
    Column("sent_bytes", "Sent", "B"),
    Column("launches", "Launches", "number"),
    Column("arithmetic_intensity_flop_per_byte", "FLOP/B", "FLOP/B"),
    Column("ideal_s", "Ideal", "s"),
    Column("expected_s", "Expected", "s"),
    Column("share", "Share", "%"),
    Column("achieved_flop_per_s", "Achieved", "FLOP/s"),
    Column("roof_flop_per_s", "Roof", "FLOP/s"),
    Column("bound", "Bound by"),
)

MODEL_COLUMNS = (
    Column("id", "Model"),
    Column("parameters", "Params", "count"),
    Column("active_parameters", "Active", "count"),
    Column("layers", "Layers"),
    Column("variants", "Attention"),
    Column("kv_bytes_per_token", "KV/token", "B"),
    Column("context_limit", "Context", "tokens"),
    Column("name", "Name"),
)

GPU_COLUMNS = (
    Column("id", "GPU"),
    Column("usable_bytes", "Usable", "B"),
    Column("bandwidth_bytes_per_s", "Bandwidth", "B/s"),
    Column("bf16_flop_per_s", "bf16 dense", "FLOP/s"),
    Column("fp8_flop_per_s", "fp8 dense", "FLOP/s"),
    Column("link_bytes_per_s", "Link, one way", "B/s"),
    Column("devices", "Node"),
    Column("architecture", "Architecture"),
    Column("name", "Name"),
)

ENGINE_COLUMNS = (
    Column("id", "Engine"),
    Column("name", "Name"),
    Column("version", "Version"),
    Column("oldest", "Known from"),
    Column("settings", "Settings", "number"),
    Column("launch", "Started by"),
)

KNOB_COLUMNS = (
    Column("setting", "Setting"),
    Column("flag", "Flag"),
    Column("default", "Default on H100"),
    Column("meaning", "What it sets"),
)

LOG_COLUMNS = (
    Column("name", "Figure"),
    Column("printed", "Printed"),
    Column("predicted", "Predicted"),
    Column("error", "Error", "%"),
)

ERROR_COLUMNS = (
    Column("figure", "Figure"),
    Column("logs", "Logs"),
    Column("count", "Number", "number"),
    Column("within", "Within 0.5 %", "%"),
    Column("median", "Median", "%"),
    Column("p90", "90th percentile", "%"),
    Column("worst", "Worst", "%"),
)

CAPACITY_COLUMNS = (
    Column("id", "Log"),
    Column("engine", "Engine"),
    Column("version", "Version"),
    Column("model", "Model"),
    Column("gpu", "GPU"),
    Column("tensor_parallel", "TP"),
    Column("kind", "Kind"),
    Column("certain", "Certain"),
    Column("printed_token_bytes", "Printed B/token", "B"),
    Column("token_bytes", "Predicted B/token", "B"),
    Column("token_bytes_error", "Error", "%"),
    Column("printed_tokens", "Printed tokens", "number"),
    Column("tokens", "Predicted tokens", "number"),
    Column("tokens_error", "Error", "%"),
    Column("note", "Note"),
    Column("source", "Source"),
)

TIME_ERROR_COLUMNS = (
    Column("by", "By"),
    Column("group", "Times"),
    Column("count", "Number", "number"),
    Column("ideal_median", "Ideal: median", "%"),
    Column("ideal_mean", "Ideal: mean", "%"),
    Column("median", "Expected: median", "%"),
    Column("mean", "Expected: mean", "%"),
    Column("bias_error", "Bias", "%"),
    Column("inside", "Inside", "%"),
)

RUN_ERROR_COLUMNS = (TIME_ERROR_COLUMNS[0], TIME_ERROR_COLUMNS[1], Column("figure", "Figure"), *TIME_ERROR_COLUMNS[2:])

_RUN_FIGURES: tuple[tuple[str, str, Unit], ...] = (
    ("measured_{}_s", "Measured {}", "s"),
    ("{}_s", "{}", "s"),
    ("ideal_{}_s", "Ideal {}", "s"),
    ("{}_error", "{} error", "%"),
    ("ideal_{}_error", "Ideal {} error", "%"),
    ("{}_inside", "{} inside", ""),
)

RUN_COLUMNS = (
    Column("id", "Run"),
    Column("mode", "Workers"),
    Column("model", "Model"),
    Column("kind", "Kind"),
    Column("gpu", "GPU"),
    Column("gpus", "GPUs"),
    Column("engine", "Engine"),
    Column("version", "Version"),
    Column("weights", "Weights"),
    Column("input_tokens", "Input", "tokens"),
    Column("output_tokens", "Output", "tokens"),
    Column("concurrency", "Requests", "number"),
    Column("origin", "Origin"),
    *(
        Column(name.format(figure), label.format(figure.upper()), unit)
        for figure in ("ttft", "tpot")
        for name, label, unit in _RUN_FIGURES
    ),
    Column("reason", "Not planned because"),
    Column("note", "Note"),
    Column("source", "Source"),
)

TIME_COLUMNS = (
    Column("id", "Time"),
    Column("source_table", "From"),
    Column("model", "Model"),
    Column("gpu", "GPU"),
    Column("gpus", "GPUs"),
    Column("tensor_parallel", "TP"),
    Column("pipeline_parallel", "PP"),
    Column("data_parallel", "DP"),
    Column("weights", "Weights"),
    Column("kv", "KV"),
    Column("engine", "Engine"),
    Column("version", "Version"),
    Column("phase", "Phase"),
    Column("batch", "Batch", "sequences"),
    Column("input_tokens", "Input", "tokens"),
    Column("output_tokens", "Output", "tokens"),
    Column("quantity", "Published"),
    Column("value", "Value"),
    Column("measured_s", "Measured", "s"),
    Column("ideal_s", "Ideal", "s"),
    Column("expected_s", "Expected", "s"),
    Column("low_s", "Low", "s"),
    Column("high_s", "High", "s"),
    Column("ideal_error", "Ideal error", "%"),
    Column("error", "Error", "%"),
    Column("inside", "Inside"),
    Column("suspect", "Suspect"),
    Column("reason", "Not planned because"),
    Column("note", "Note"),
    Column("source", "Source"),
)

KERNEL_COLUMNS = (
    Column("kind", "Class"),
    Column("format", "Format"),
    Column("runs_in", "Products"),
    Column("engine", "Engine"),
    Column("kernel", "Kernel"),
    Column("windowed", "Window"),
    Column("degree", "GPUs"),
    Column("memory", "Memory", "share"),
    Column("compute", "Compute", "share"),
    Column("link", "Link", "share"),
    Column("launch_s", "Least", "s"),
    Column("points", "Fitted to", "number"),
    Column("held_out", "Judged on", "number"),
    Column("mean", "Error: mean", "%"),
    Column("median", "Error: median", "%"),
    Column("low", "80 % from", "x"),
    Column("high", "80 % to", "x"),
    Column("origin", "Origin"),
    Column("note", "Note"),
)
