"""How a checkpoint is quantised, as weight formats: ``quantization_config`` and ``hf_quant_config.json``.

A scheme is rules, each a format and the modules that have it, and the modules that are left out. Every tensor of every layer
is asked which rule it falls under; roles whose tensors agree get that format, the others the bytes that come out.

References
----------
Hugging Face transformers, ``utils/quantization_config.py``; compressed-tensors, ``QuantizationConfig``; NVIDIA ModelOpt,
``hf_quant_config.json``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from planner.checkpoint.modules import Patterns, names_of
from planner.formats import WeightFormats, blend
from planner.model import ModelSpec
from planner.precision import FORMATS, Format, find_format, grouped_int
from planner.tensors import Role, Tensor

Table = Mapping[str, Any]


@dataclass(frozen=True)
class Rule:
    """A format and the modules that have it; ``None`` is every linear layer."""

    format: Format
    modules: Patterns | None = None


@dataclass(frozen=True)
class Scheme:
    """Rules in order, the modules left out of all, and whether the head counts as a linear layer."""

    rules: tuple[Rule, ...] = ()
    left_out: Patterns = field(default_factory=lambda: Patterns(()))
    head: bool = False
    notes: tuple[str, ...] = ()

    def format_of(self, layer: int, tensor: Tensor, base: Format) -> Format:
        """The format of a tensor of a layer (-1 outside the layers)."""
        if not (tensor.role.linear or (tensor.role is Role.HEAD and self.head)):
            return base
        names = names_of(tensor.name, tensor.role in (Role.FFN, Role.EXPERT))
        if (
            tensor.role is Role.EXPERT and self.left_out.routers
        ):  # experts stand beside the feed-forward module (Gemma 4)
            names = tuple(dict.fromkeys(name.partition(".")[2] for name in names))
        if self.left_out.match(layer, names):
            return base
        return next((r.format for r in self.rules if r.modules is None or r.modules.match(layer, names)), base)


def released_formats(config: Table, separate: Table | None, model: ModelSpec) -> tuple[WeightFormats, tuple[str, ...]]:
    """Formats of a checkpoint as its configuration says, with what a reader should know.

    Parameters
    ----------
    config
        ``config.json``.
    separate
        ``hf_quant_config.json``, if there is one.
    """
    base, notes = _base(config)
    table = _table_of(config, separate)
    if not table:
        return WeightFormats(default=base.id), notes
    scheme = scheme_of(table, config)
    if not scheme.rules:
        return WeightFormats(default=base.id), (*notes, *scheme.notes)
    return _by_role(scheme, base, model), (*notes, *scheme.notes)


def declared_cache(config: Table, separate: Table | None) -> str:
    """Format of the cache that a quantised checkpoint carries scales for; empty if it declares none.

    >>> declared_cache({"quantization_config": {"kv_cache_scheme": {"num_bits": 8, "type": "float"}}}, None)
    'fp8'
    """
    table = _table_of(config, separate)
    scheme = table.get("kv_cache_scheme")
    if isinstance(scheme, dict):
        declared = f"{scheme.get('type')}{scheme.get('num_bits')}"
        return {"float8": "fp8", "float4": "nvfp4", "int8": "int8"}.get(declared, "")
    algorithm = table.get("kv_cache_quant_algo") or _dict(table, "quantization").get("kv_cache_quant_algo")
    return {"fp8": "fp8", "nvfp4": "nvfp4", "int8": "int8"}.get(str(algorithm).lower(), "")


def _table_of(config: Table, separate: Table | None) -> Table:
    """The table that says how a checkpoint is quantised; empty if it is not."""
    inner = config.get("text_config")
    nested = inner.get("quantization_config") if isinstance(inner, dict) else None
    table = separate or config.get("quantization_config") or nested
    return table if isinstance(table, dict) else {}


def _base(config: Table) -> tuple[Format, tuple[str, ...]]:
    """The 16-bit format of what is not quantised."""
    inner = config.get("text_config")
    nested = inner if isinstance(inner, dict) else {}
    named = next(
        (t[k] for t in (config, nested) for k in ("dtype", "torch_dtype") if isinstance(t.get(k), str)), "bfloat16"
    )
    word = named.removeprefix("torch.")
    if word == "float32":
        return FORMATS["bf16"], ("The checkpoint is in fp32, which engines load in 16 bit; --weights fp32 keeps it.",)
    return FORMATS["fp16" if word == "float16" else "bf16"], ()


def _by_role(scheme: Scheme, base: Format, model: ModelSpec) -> WeightFormats:
    """A scheme tensor by tensor: one format where a role's tensors agree, counted bytes where they do not."""
    tensors = list(model.placed_tensors())
    formats: dict[Role, dict[str, int]] = {}
    for layer, tensor, count in tensors:
        held = formats.setdefault(tensor.role, {})
        name = scheme.format_of(layer, tensor, base).id
        held[name] = held.get(name, 0) + count * tensor.parameters
    mixed = {role for role, held in formats.items() if len(held) > 1}
    nbytes = (
        blend((t for t in tensors if t[1].role in mixed), lambda layer, t: scheme.format_of(layer, t, base))
        if mixed
        else {}
    )
    prevailing = {role: max(held, key=lambda name: held[name]) for role, held in formats.items()}
    linear: dict[str, int] = {}
    for role, held in formats.items():
        for name, n in held.items() if role.linear else ():
            linear[name] = linear.get(name, 0) + n
    default = max(linear, key=lambda name: linear[name])
    fields = {
        "attention": Role.ATTENTION,
        "ffn": Role.FFN,
        "experts": Role.EXPERT,
        "head": Role.HEAD,
        "embedding": Role.EMBEDDING,
    }
    usual = WeightFormats(default=default).by_role()
    named = {
        f: prevailing[role]
        for f, role in fields.items()
        if role in prevailing and usual[role].bits != find_format(prevailing[role]).bits
    }
    return WeightFormats(default=default, nbytes=nbytes, **named)


# -- schemes -----------------------------------------------------------------------------------------------------------


def scheme_of(table: Table, config: Table) -> Scheme:
    """What a quantisation table says, by its method."""
    inner = table.get("quantization")
    table = {**table, **inner} if isinstance(inner, dict) else table
    method = str(table.get("quant_method") or table.get("quant_algo") or "").lower()
    if _dict(table, "config_groups") or _dict(table, "quantized_layers") or table.get("quant_algo"):
        return _grouped(table, config)
    reader = _METHODS.get(method)
    if reader is None:
        return Scheme(
            notes=(f"Quantisation method {method[:40]!r} is unknown: planned in 16 bit; --weights says otherwise.",)
        )
    return reader(table, config)


def _dict(table: Table, key: str) -> dict[str, Any]:
    found = table.get(key)
    return found if isinstance(found, dict) else {}


def _left_out(table: Table) -> Patterns:
    keys = ("modules_to_not_convert", "ignore", "exclude_modules", "ignored_layers", "llm_int8_skip_modules")
    return Patterns(p for key in keys if isinstance(table.get(key), list) for p in table[key])


def _int(table: Table, *keys: str, default: int = 0) -> int:
    found = next(
        (table[k] for k in keys if isinstance(table.get(k), int) and not isinstance(table.get(k), bool)), default
    )
    return found if -1 <= found <= 10**6 else default


def _fp8(table: Table, config: Table) -> Scheme:
    block = table.get("weight_block_size")
    rule = Rule(find_format("fp8-block128" if block else "fp8"))
    experts = (Rule(find_format("mxfp4"), Patterns(["*.experts.*"])),) if config.get("expert_dtype") == "fp4" else ()
    return Scheme((*experts, rule), _left_out(table))


def _mxfp4(table: Table, config: Table) -> Scheme:
    return Scheme((Rule(find_format("mxfp4"), Patterns(["*.experts.*"])),), _left_out(table))


def _gptq(table: Table, config: Table) -> Scheme:
    bits, group = _int(table, "bits", "w_bit", default=4), _int(table, "group_size", "q_group_size", default=128)
    zero = bool(table.get("zero_point")) if "zero_point" in table else True
    rule = Rule(grouped_int(bits if 2 <= bits <= 8 else 4, max(group, 0), zero))
    return Scheme((rule,), _left_out(table), head=table.get("lm_head") is True)


def _bitsandbytes(table: Table, config: Table) -> Scheme:
    if table.get("load_in_8bit") and not table.get("load_in_4bit"):
        return Scheme((Rule(find_format("int8")),), _left_out(table))
    return Scheme((Rule(find_format("nf4-dq" if table.get("bnb_4bit_use_double_quant") else "nf4")),), _left_out(table))


def _plain(name: str) -> Callable[[Table, Table], Scheme]:
    return lambda table, config: Scheme((Rule(find_format(name)),), _left_out(table))


def _hqq(table: Table, config: Table) -> Scheme:
    inner = _dict(_dict(table, "quant_config"), "weight_quant_params")
    bits, group = _int(inner, "nbits", default=4), _int(inner, "group_size", default=64)
    return Scheme(
        (Rule(grouped_int(min(max(bits, 2), 8), max(group, 0), True)),), Patterns(table.get("skip_modules") or ())
    )


_METHODS: dict[str, Callable[[Table, Table], Scheme]] = {
    "fp8": _fp8,
    "deepseek_v4_fp8": _fp8,
    "fbgemm_fp8": _plain("fp8"),
    "mxfp4": _mxfp4,
    "gptq": _gptq,
    "gptq_marlin": _gptq,
    "awq": _gptq,
    "awq_marlin": _gptq,
    "auto-round": _gptq,
    "intel/auto-round": _gptq,
    "bitsandbytes": _bitsandbytes,
    "bitsandbytes_4bit": _bitsandbytes,
    "eetq": _plain("int8"),
    "hqq": _hqq,
}

_ALGORITHMS = {
    name: form
    for form, names in (
        ("fp8", "FP8 FP8_PER_CHANNEL_PER_TOKEN"),
        ("fp8-block128", "FP8_PB_WO FP8_PB_REAL FP8_BLOCK_SCALES"),
        ("nvfp4", "NVFP4 W4A16_NVFP4 NVFP4_AWQ W4A8_NVFP4_FP8"),
        ("mxfp8", "MXFP8"),
        ("mxfp4", "MXFP4 W4A8_MXFP4_FP8 W4A16_MXFP4"),
        ("int4", "W4A16_AWQ INT4_AWQ W4A8_AWQ"),
        ("int8", "W8A16 W8A8_SQ_PER_CHANNEL INT8_SQ"),
    )
    for name in names.split()
}
"""ModelOpt's names of formats."""


def _grouped(table: Table, config: Table) -> Scheme:
    """compressed-tensors and ModelOpt: groups with targets, formats by layer, or one format for all."""
    by_format: dict[str, list[str]] = {}
    for name, layer in _dict(table, "quantized_layers").items():
        algorithm = layer.get("quant_algo") if isinstance(layer, dict) else None
        if form := _ALGORITHMS.get(str(algorithm).upper()):
            by_format.setdefault(form, []).append(name)
    rules = [Rule(find_format(form), Patterns(names)) for form, names in by_format.items()]
    notes = []
    for group in _dict(table, "config_groups").values():
        weights = _dict(group, "weights") if isinstance(group, dict) else {}
        targets = group.get("targets") if isinstance(group, dict) else None
        if not weights:
            continue
        listed = [t for t in targets if isinstance(t, str)] if isinstance(targets, list) else ["Linear"]
        classes = any(t == "Linear" or t.endswith("Linear") or t.endswith("Experts") for t in listed)
        rules.append(Rule(_of_arguments(weights), None if classes else Patterns(listed)))
    algorithm = str(table.get("quant_algo") or "").upper()
    if not rules and algorithm in _ALGORITHMS:
        rules.append(Rule(find_format(_ALGORITHMS[algorithm])))
    if table.get("quant_method") == "fp8" and table.get("weight_block_size"):
        rules.append(Rule(find_format("fp8-block128")))  # what is not in a group of its own
        experts_only = Patterns(["*.experts.*"])
        rules[:-1] = [Rule(r.format, experts_only if r.modules is None else r.modules) for r in rules[:-1]]
        return Scheme(tuple(rules))
    if not rules:
        notes.append(f"Quantisation {algorithm[:40]!r} is unknown: planned in 16 bit; --weights says otherwise.")
    return Scheme(tuple(rules), _left_out(table), head=True, notes=tuple(notes))


def _of_arguments(weights: Table) -> Format:
    """The format that compressed-tensors' arguments of weights describe."""
    bits, group = _int(weights, "num_bits", default=8), _int(weights, "group_size")
    if weights.get("type") == "float":
        if bits == 4:
            return find_format("nvfp4" if group == 16 else "mxfp4")
        return find_format("fp8-block128" if weights.get("block_structure") else "mxfp8" if group == 32 else "fp8")
    if bits == 8 and group <= 0:
        return find_format("int8")
    return grouped_int(min(max(bits, 2), 8), max(group, 0), weights.get("symmetric") is False)
