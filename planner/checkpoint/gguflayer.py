"""Attention and feed-forward of a GGUF file's layer as rows: tensors say what there is, metadata only what they leave open.

References
----------
llama.cpp, ``src/llama-arch.cpp`` (names of tensors and keys), ``src/llama-model.cpp`` and ``src/models`` (their shapes);
gguf 0.19 (PyPI), ``constants.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from planner.attention import AttentionRow, HeadAttention, LatentAttention
from planner.checkpoint.ggufparts import Layer, Part
from planner.feedforward import FeedForward
from planner.tensors import Role

Card = dict[str, Any]


@dataclass(frozen=True)
class Heads:
    """Heads of one layer by metadata; 0 for what it does not say."""

    heads: int
    kv_heads: int
    key: int
    value: int
    window: int
    owner: bool


def attention_of(layer: Layer, given: Heads) -> tuple[AttentionRow | None, list[Part]]:
    """The attention row of a layer, if it has one, and what else its tensors hold."""
    if layer.has("attn_kv_a_mqa.weight"):
        card = _latent(layer, given)
    elif layer.has("attn_q.weight") or layer.has("attn_qkv.weight"):
        card = _by_heads(layer, given)
    else:
        return None, []
    if given.window:
        card["window"] = given.window
    row = (LatentAttention if "kv_lora_rank" in card else HeadAttention)(**card)
    return row, list(layer.settle(row.tensors(layer.hidden), "attention"))


def _by_heads(layer: Layer, given: Heads) -> Card:
    found, doubled = _fitted(layer, given)
    heads, kv, key, value = found
    fused = layer.has("attn_qkv.weight")
    k, v = fused or layer.has("attn_k.weight"), fused or layer.has("attn_v.weight")
    card: Card = {
        "heads": heads, "kv_heads": kv, "head_dim": key, "k_proj": k, "v_proj": v, "owner": given.owner and (k or v),
    }  # fmt: skip
    if value != key:
        card["v_head_dim"] = value
    if (width := layer.inputs("attn_q.weight")) and width != layer.hidden:
        card["input_width"] = width
    layer.claim(
        Role.ATTENTION, "attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_qkv.weight", "attn_output.weight"
    )
    card |= _biases(layer, found, k, v) | _qk_norms(layer, found, k)
    if layer.elements("attn_sinks.weight") == heads:
        layer.claim(Role.VECTOR, "attn_sinks.weight")
        card["sinks"] = True
    gate = layer.outputs("attn_gate.weight")
    if doubled or (gate in (heads, heads * value) and layer.inputs("attn_gate.weight") == layer.hidden):
        card["gate"] = "head" if gate == heads and not doubled else "element"
        if not doubled:
            layer.claim(Role.ATTENTION, "attn_gate.weight")
    return card


def _fitted(layer: Layer, given: Heads) -> tuple[tuple[int, int, int, int], bool]:
    """Heads, KV heads and widths of key and value that the projections have, and whether queries carry a gate.

    Metadata if it fits; else other numbers of heads of the same width, and last other widths.
    """
    q, k, v = (layer.outputs(f"attn_{name}.weight") for name in ("q", "k", "v"))
    fused, o = layer.outputs("attn_qkv.weight"), layer.inputs("attn_output.weight")

    def fits(heads: int, kv: int, key: int, value: int) -> bool:
        if min(heads, kv, key, value) < 1 or heads % kv or o != heads * value:
            return False
        if fused:
            return fused == heads * key + kv * (key + value)
        return q in (heads * key, 2 * heads * key) and k in (0, kv * key) and v in (0, kv * value)

    heads, kv = given.heads, given.kv_heads
    key = given.key or (heads and layer.hidden // heads)
    value = given.value or key
    tried = [(heads, kv, key, value)]
    widths = [(key, value)]
    norm = layer.shape("attn_k_norm.weight") or layer.shape("attn_q_norm.weight")
    if len(norm) == 1:
        widths.append((norm[0], norm[0]))
    for key, value in widths:
        if key and value:
            many = o // value
            tried.append(
                (many, (fused - many * key) // (key + value) if fused else k // key or v // value or kv, key, value)
            )
    if kv and k and v and not fused:
        tried.append((o // max(v // kv, 1), kv, k // kv, v // kv))
    if heads and kv:
        tried.append((heads, kv, q // heads or fused // (heads + 2 * kv), v // kv or o // heads))
    found = next((shape for shape in tried if fits(*shape)), None)
    if found is None:
        sizes = f"attn_qkv of {fused:,}" if fused else f"attn_q, attn_k and attn_v of {q:,}, {k:,} and {v:,}"
        layer.refuse(
            f"has {sizes} outputs and attn_output of {o:,} inputs, which do not fit {heads:,} heads and {kv:,} KV heads"
        )
    if found != tried[0] and given.heads and given.kv_heads:
        says = " and ".join(
            f"{now:,} {what} rather than {then:,}"
            for now, then, what in zip(
                found, tried[0], ("heads", "KV heads", "a head's key width", "value width"), strict=True
            )
            if now != then
        )
        layer.facts.note(f"The tensors have {says}", layer.index)
    return found, not fused and q == 2 * found[0] * found[2]


def _biases(layer: Layer, shape: tuple[int, int, int, int], k: bool, v: bool) -> Card:
    heads, kv, key, value = shape
    card: Card = {}
    q_bias, k_bias, v_bias = (layer.elements(f"attn_{name}.bias") for name in ("q", "k", "v"))
    if layer.has("attn_qkv.bias") and layer.elements("attn_qkv.bias") == qkv_width(shape):
        layer.claim(Role.VECTOR, "attn_qkv.bias")
        card["qkv_bias"] = True
    elif q_bias == heads * key and v_bias == v * kv * value and k_bias in (0, k * kv * key):
        layer.claim(Role.VECTOR, "attn_q.bias", "attn_k.bias", "attn_v.bias")
        card |= {"qkv_bias": True, "k_bias": bool(k_bias)}
    if layer.elements("attn_output.bias") == layer.hidden:
        layer.claim(Role.VECTOR, "attn_output.bias")
        card["o_bias"] = True
    return card


def qkv_width(shape: tuple[int, int, int, int]) -> int:
    """Outputs of queries, keys and values together.

    >>> qkv_width((8, 2, 16, 16))
    192
    """
    heads, kv, key, value = shape
    return heads * key + kv * (key + value)


def _qk_norms(layer: Layer, shape: tuple[int, int, int, int], k: bool) -> Card:
    heads, kv, key, _ = shape
    q_norm, k_norm = layer.elements("attn_q_norm.weight"), layer.elements("attn_k_norm.weight")
    for kind, q_wanted, k_wanted in (("head", key, key), ("full", heads * key, kv * key)):
        if q_norm == q_wanted and k_norm == k * k_wanted:
            layer.claim(Role.VECTOR, "attn_q_norm.weight", "attn_k_norm.weight")
            return {"qk_norm": kind}
    return {}


def _latent(layer: Layer, given: Heads) -> Card:
    """Multi-head latent attention, with the up-projection whole (``attn_kv_b``) or for keys and values apart."""
    heads, rank = given.heads, layer.elements("attn_kv_a_norm.weight") or layer.facts.number("attention.kv_lora_rank")
    if len(split := layer.shape("attn_k_b.weight")) == 3:
        heads = split[2]
    q = "attn_q_b.weight" if layer.has("attn_q_a.weight") else "attn_q.weight"
    latent = layer.outputs("attn_kv_a_mqa.weight")
    if not heads or layer.outputs(q) % heads or layer.inputs("attn_output.weight") % heads or not 0 < rank <= latent:
        layer.refuse(f"has latent attention that does not fit {heads:,} heads and a rank of {rank:,}")
    rope = latent - rank
    card: Card = {
        "kind": "latent", "heads": heads, "kv_lora_rank": rank, "qk_rope_head_dim": rope,
        "qk_nope_head_dim": max(layer.outputs(q) // heads - rope, 0), "q_lora_rank": layer.outputs("attn_q_a.weight"),
        "v_head_dim": layer.inputs("attn_output.weight") // heads,
    }  # fmt: skip
    if given.heads and heads != given.heads:
        layer.facts.note(f"The tensors have {heads:,} heads rather than {given.heads:,}", layer.index)
    up = ("attn_kv_b.weight",) if layer.has("attn_kv_b.weight") else ("attn_k_b.weight", "attn_v_b.weight")
    layer.claim(Role.ATTENTION, "attn_kv_a_mqa.weight", "attn_q_a.weight", q, "attn_output.weight", *up)
    layer.claim(Role.VECTOR, "attn_kv_a_norm.weight", "attn_q_a_norm.weight")
    return card | _indexer(layer, card["q_lora_rank"])


def _indexer(layer: Layer, q_rank: int) -> Card:
    weights = ("indexer.attn_q_b.weight", "indexer.attn_k.weight")
    if not layer.has(*weights, "indexer.proj.weight"):
        return {}
    width, heads = layer.outputs(weights[1]), layer.outputs("indexer.proj.weight")
    norms = (layer.elements("indexer.k_norm.weight") + layer.elements("indexer.k_norm.bias")) // max(width, 1)
    layer.claim(Role.ATTENTION, *weights)
    layer.claim(Role.ROUTER, "indexer.proj.weight")
    layer.claim(Role.VECTOR, "indexer.k_norm.weight", "indexer.k_norm.bias")
    top_k = layer.facts.need("attention.indexer.top_k")
    return {"indexer": {"heads": heads, "head_dim": width, "top_k": top_k, "q_rank": q_rank, "norm_vectors": norms}}


# -- feed-forward ------------------------------------------------------------------------------------------------------


def feedforward_of(layer: Layer) -> tuple[FeedForward | None, list[Part]]:
    """The feed-forward row of a layer, if it has one, and what else its tensors hold."""
    if layer.has("ffn_down_exps.weight"):
        row = FeedForward(**_mixture(layer))
    elif layer.has("ffn_up.weight", "ffn_down.weight"):
        row = FeedForward(**_dense(layer, "", Role.FFN))
    else:
        return None, []
    return row, list(layer.settle(row.tensors(layer.hidden), "feed-forward"))


def _dense(layer: Layer, ending: str, role: Role) -> Card:
    """Up, down and perhaps gate, the gate by itself or in one tensor with up."""
    names = [f"ffn_{part}{ending}" for part in ("gate", "up", "down")]
    width = layer.inputs(f"{names[2]}.weight")
    doubled = layer.outputs(f"{names[1]}.weight") == 2 * width and not layer.has(f"{names[0]}.weight")
    gated = doubled or layer.has(f"{names[0]}.weight")
    layer.claim(role, *(f"{name}.weight" for name in names))
    card: Card = {"width": width, "gated": gated}
    sizes = {names[0]: width * gated, names[1]: width * (1 + doubled), names[2]: layer.hidden}
    if doubled:
        del sizes[names[0]]
    if all(layer.elements(f"{name}.bias") == size for name, size in sizes.items()):
        layer.claim(Role.VECTOR, *(f"{name}.bias" for name in sizes))
        card["bias"] = True
    return card


def _mixture(layer: Layer) -> Card:
    shape = layer.shape("ffn_down_exps.weight")
    width, inside, experts = (*shape, 1, 1)[:3]
    known = layer.facts.number("expert_count")
    if known and known != experts:
        layer.facts.note(f"The tensors have {experts:,} experts rather than {known:,}", layer.index)
    gated = layer.has("ffn_gate_exps.weight") or layer.has("ffn_gate_up_exps.weight")
    top_k = layer.facts.need("expert_used_count")
    card: Card = {"width": width, "gated": gated, "experts": experts, "top_k": min(top_k, experts)}
    layer.claim(Role.EXPERT, *(f"ffn_{part}_exps.weight" for part in ("gate", "up", "gate_up", "down")))
    card["router"] = layer.has("ffn_gate_inp.weight")
    layer.claim(Role.ROUTER, "ffn_gate_inp.weight")
    for name in ("exp_probs_b.bias", "ffn_gate_inp.bias"):
        if layer.elements(name) == experts and not card.get("router_bias"):
            layer.claim(Role.VECTOR, name)
            card["router_bias"] = True
    wide = ("gate", "up") if gated else ("up",)
    if all(layer.elements(f"ffn_{part}_exps.bias") == experts * width for part in wide) and (
        layer.elements("ffn_down_exps.bias") == experts * inside
    ):
        layer.claim(Role.VECTOR, *(f"ffn_{part}_exps.bias" for part in (*wide, "down")))
        card["expert_bias"] = True
    if inside != layer.hidden:
        layer.claim(Role.FFN, "ffn_latent_down.weight", "ffn_latent_up.weight")
        card["latent"] = inside
    return card | _shared(layer)


def _shared(layer: Layer) -> Card:
    """Experts that every token passes: those so called, or a dense feed-forward beside the routed ones."""
    ending = "_shexp" if layer.has("ffn_down_shexp.weight") else ""
    if not layer.has(f"ffn_up{ending}.weight", f"ffn_down{ending}.weight"):
        return {}
    beside = _dense(layer, ending, Role.FFN)
    card: Card = {"shared_width": beside["width"], "shared_gated": beside["gated"]}
    if layer.elements("ffn_gate_inp_shexp.weight") == layer.hidden:
        layer.claim(Role.ROUTER, "ffn_gate_inp_shexp.weight")
        card["shared_gate"] = True
    return card
