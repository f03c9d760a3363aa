"""Small models and devices for laws and oracles: every combination of variants, none of them real."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from planner.gpu import GpuSpec
from planner.model import ModelSpec

SOURCE = {"title": "made up for a test", "locator": "tests/specs.py", "date": "2026-11-23"}


def build(**fields: Any) -> ModelSpec:
    """A model whose published count is whatever its rows derive."""
    base: dict[str, Any] = {
        "id": "toy", "name": "Toy", "family": "toy", "hidden": 64, "vocab": 100, "layers": 4, "context_limit": 4096,
        "source": (SOURCE,), "parameters": 1, "parameters_within": 10**15,
        "attention": ({"heads": 8, "kv_heads": 2, "head_dim": 8},), "ffn": ({"width": 128},),
    }  # fmt: skip
    return ModelSpec(**{**base, **fields})


def device(**fields: Any) -> GpuSpec:
    """A device with round numbers: 1 GB, 100 GB/s, 10 TFLOP/s."""
    base: dict[str, Any] = {
        "id": "toy-gpu", "name": "Toy GPU", "vendor": "toy", "architecture": "toy", "year": 2026, "source": (SOURCE,),
        "memory": {"nominal_gb": 1, "type": "HBM", "bandwidth_gb_per_s": 100}, "peak_tflops": {"bf16": 10},
        "link": {"kind": "toy", "gb_per_s": 50, "devices": 8},
    }  # fmt: skip
    return GpuSpec(**{**base, **fields})


@st.composite
def attention_rows(draw: st.DrawFn, layers: int) -> tuple[dict[str, Any], ...]:
    """One kind of layer, or two: MHA, GQA, MQA or MLA, with and without windows."""
    heads = draw(st.sampled_from([4, 8, 16]))
    kind = draw(st.sampled_from(["heads", "latent"]))
    row: dict[str, Any] = {"kind": kind, "heads": heads}
    if kind == "latent":
        row |= {
            "kv_lora_rank": draw(st.integers(4, 64)), "qk_nope_head_dim": draw(st.integers(2, 16)),
            "qk_rope_head_dim": draw(st.integers(2, 16)), "v_head_dim": draw(st.integers(2, 16)),
            "q_lora_rank": draw(st.sampled_from([0, 24])),
        }  # fmt: skip
    else:
        row |= {
            "kv_heads": draw(st.sampled_from([h for h in (1, 2, 4, 8, 16) if heads % h == 0])),
            "head_dim": draw(st.integers(2, 32)), "v_head_dim": draw(st.sampled_from([None, 3, 16])),
            "qkv_bias": draw(st.booleans()), "o_bias": draw(st.booleans()), "sinks": draw(st.booleans()),
            "qk_norm": draw(st.sampled_from(["none", "head", "full"])),
        }  # fmt: skip
    window = draw(st.none() | st.integers(1, 64))
    if layers < 2 or draw(st.booleans()):
        return ({**row, "window": window},)
    period = draw(st.integers(2, max(2, layers)))
    return ({**row, "window": draw(st.integers(1, 64))}, {**row, "at": f"::{period}", "window": window})


@st.composite
def models(draw: st.DrawFn) -> ModelSpec:
    """A small decoder, dense or with experts, tied or not."""
    layers = draw(st.integers(1, 6))
    experts = draw(st.sampled_from([0, 4, 8]))
    ffn: dict[str, Any] = {
        "width": draw(st.sampled_from([16, 48, 64])), "gated": draw(st.booleans()), "bias": draw(st.booleans())
    }  # fmt: skip
    if experts:
        ffn |= {
            "experts": experts, "top_k": draw(st.integers(1, experts)), "shared_width": draw(st.sampled_from([0, 32])),
            "router_bias": draw(st.booleans()), "shared_gate": draw(st.booleans()),
        }  # fmt: skip
    return build(
        layers=layers, hidden=draw(st.sampled_from([16, 64])), vocab=draw(st.integers(10, 200)), tied=draw(st.booleans()),
        attention=draw(attention_rows(layers)), ffn=(ffn,), norms_per_layer=draw(st.integers(0, 4)),
        norm_bias=draw(st.booleans()), learned_positions=draw(st.sampled_from([0, 33])), head_bias=draw(st.booleans()),
    )  # fmt: skip


@st.composite
def state_rows(draw: st.DrawFn) -> dict[str, Any]:
    """One layer of fixed state of any mechanism."""
    kind = draw(st.sampled_from(["mamba", "mamba2", "delta", "linear", "rglru", "conv", "fixed"]))
    heads = draw(st.sampled_from([1, 2, 4, 8]))
    widths: dict[str, dict[str, Any]] = {
        "mamba": {"inner": 8 * heads, "state": 4, "dt_rank": 3},
        "mamba2": {"head_dim": 4, "state": 8, "groups": 1},
        "delta": {"k_heads": heads, "k_head_dim": 4, "v_head_dim": 6, "decay_rank": draw(st.sampled_from([0, 4]))},
        "linear": {"head_dim": 4},
        "rglru": {"width": 8 * heads},
        "conv": {"width": 16},
        "fixed": {"mechanism": "toy", "elements": 40, "channels": 5, "projections": 100, "vectors": 3},
    }
    return {"kind": kind, "heads": heads, "kernel": draw(st.sampled_from([0, 3, 4])), **widths[kind]}


@st.composite
def hybrids(draw: st.DrawFn) -> ModelSpec:
    """Layers of fixed state among or beside attention, layers that read another's cache, indexers, compressed caches."""
    layers = draw(st.integers(2, 6))
    head: dict[str, Any] = {
        "heads": 8,
        "kv_heads": draw(st.sampled_from([1, 2, 8])),
        "head_dim": draw(st.integers(2, 16)),
    }
    indexer = {"heads": 2, "head_dim": 4, "top_k": draw(st.integers(1, 300))}
    every = draw(st.sampled_from([0, 4, 128]))
    compressed: dict[str, Any] = {
        "kind": "compressed", "heads": 8, "head_dim": 16, "q_lora_rank": 8, "o_groups": 2, "o_lora_rank": 8, "window": 32,
        "every": every, "overlap": draw(st.booleans()), "indexer": indexer if every and draw(st.booleans()) else None,
    }  # fmt: skip
    first: dict[str, Any] = draw(
        st.sampled_from([head, {**head, "indexer": indexer}, {**head, "window": 20}, compressed])
    )
    rest: dict[str, Any] | None = draw(
        st.sampled_from([None, {**head, "owner": False, "k_proj": False, "v_proj": False, "qk_norm": "head"}])
    )
    attention = [{**first, "at": "0"}] + ([{**rest, "at": "1:"}] if rest else [])
    state = [] if rest else [{**draw(state_rows()), "at": draw(st.sampled_from(["1:", "0:"]))}]
    ffn = ({"width": 48, "at": draw(st.sampled_from(["0:", "1:"]))},)
    extra = draw(st.sampled_from([(), ({"name": "toy", "parameters": 7, "role": "ffn", "distinct": 1},)]))
    return build(layers=layers, attention=tuple(attention), state=tuple(state), ffn=ffn, extra=extra)


def any_models() -> st.SearchStrategy[ModelSpec]:
    """Decoders of every kind."""
    return models() | hybrids()
