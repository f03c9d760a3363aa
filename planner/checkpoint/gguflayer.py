"""One layer of a GGUF file as rows: its tensors say what it is made of, metadata only what they leave open.

Every tensor is claimed by the row that it makes up, with its role; what no row claims becomes extra weights by its own name. So
parameters and bytes of the rows are those of the file.

References
----------
llama.cpp, ``src/llama-arch.cpp`` (names of tensors and keys), ``src/llama-model.cpp`` and ``src/models`` (their shapes);
gguf 0.19 (PyPI), ``constants.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from planner.attention import AttentionRow, HeadAttention, LatentAttention
from planner.checkpoint.ggufheader import GgufTensor, Omitted, Value
from planner.errors import CardError
from planner.feedforward import FeedForward
from planner.state import DeltaNet, FixedState, Mamba, Mamba2, ShortConv, StateRow
from planner.tensors import Role, Tensor

Card = dict[str, Any]


class Facts:
    """Metadata of the model's architecture, checked on reading; `notes` gathers what a reader should know."""

    def __init__(self, metadata: Mapping[str, Value], where: str) -> None:
        self._metadata, self.where = metadata, where
        self.notes: dict[str, list[int]] = {}
        arch = metadata.get("general.architecture")
        if not isinstance(arch, str) or not arch:
            self.refuse("lacks general.architecture; it holds no model that can be planned")
        self.arch = arch

    def refuse(self, why: str) -> NoReturn:
        raise CardError(f"{self.where}: {why}")

    def note(self, text: str, layer: int = -1) -> None:
        """Say something once, with the layers that it is said of."""
        layers = self.notes.setdefault(text, [])
        if layer >= 0 and layer not in layers[-1:]:
            layers.append(layer)

    def value(self, key: str) -> Value | None:
        return self._metadata.get(f"{self.arch}.{key}")

    def number(self, key: str, default: int = 0) -> int:
        """A whole number, or the largest of an array of them."""
        found = self.value(key)
        return default if found is None else max(self._numbers(key, found), default=default)

    def need(self, key: str) -> int:
        found = self.number(key)
        if not found:
            self.refuse(f"lacks {self.arch}.{key}; the file cannot be planned without it")
        return found

    def each(self, key: str, layers: int, default: int = 0) -> list[int]:
        """A number for each layer, whether the file gives one or an array."""
        found = self.value(key)
        if found is None:
            return [default] * layers
        numbers = self._numbers(key, found)
        if not isinstance(found, list):
            return numbers * layers
        if len(numbers) < layers:
            self.refuse(f"{self.arch}.{key} has {len(numbers)} numbers for {layers} layers; download it again")
        return numbers[:layers]

    def _numbers(self, key: str, found: Value) -> list[int]:
        listed = found if isinstance(found, list) else [found]
        if isinstance(found, (str, Omitted)) or any(not isinstance(n, int) or not 0 <= n < 2**40 for n in listed):
            self.refuse(f"{self.arch}.{key} is {str(found)[:40]}, not a whole number; download the file again")
        return [int(n) for n in listed]


@dataclass
class Ledger:
    """Elements and bytes of what was claimed, by role, and elements by role and type."""

    elements: dict[Role, int] = field(default_factory=dict)
    nbytes: dict[Role, int] = field(default_factory=dict)
    types: dict[Role, dict[str, int]] = field(default_factory=dict)

    def add(self, role: Role, tensor: GgufTensor) -> None:
        self.elements[role] = self.elements.get(role, 0) + tensor.elements
        self.nbytes[role] = self.nbytes.get(role, 0) + tensor.nbytes
        held = self.types.setdefault(role, {})
        held[tensor.type] = held.get(tensor.type, 0) + tensor.elements


class Layer:
    """The tensors of one layer that no row has claimed yet, by their names without ``blk.N.``."""

    def __init__(self, index: int, tensors: dict[str, GgufTensor], facts: Facts, hidden: int, ledger: Ledger) -> None:
        self.index, self.facts, self.hidden = index, facts, hidden
        self._left, self._ledger = dict(tensors), ledger
        self._claimed: dict[Role, int] = {}

    def has(self, *names: str) -> bool:
        """Whether all of them are there."""
        return all(name in self._left for name in names)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor without trailing ones; empty if there is none."""
        if name not in self._left:
            return ()
        shape = self._left[name].shape
        while len(shape) > 1 and shape[-1] == 1:
            shape = shape[:-1]
        return shape

    def outputs(self, name: str) -> int:
        """Outputs of a projection; 0 if there is none."""
        return self.shape(name)[1] if len(self.shape(name)) > 1 else 0

    def inputs(self, name: str) -> int:
        """Inputs of a projection; 0 if there is none."""
        return self.shape(name)[0] if len(self.shape(name)) > 1 else 0

    def elements(self, name: str) -> int:
        """Elements of a tensor; 0 if there is none."""
        return self._left[name].elements if name in self._left else 0

    def claim(self, role: Role, *names: str) -> None:
        """Count those of the tensors that are there as weights of a role."""
        for name in names:
            if tensor := self._left.pop(name, None):
                self._ledger.add(role, tensor)
                self._claimed[role] = self._claimed.get(role, 0) + tensor.elements

    def settle(self, tensors: tuple[Tensor, ...], what: str) -> Iterator[tuple[Role, str, int]]:
        """Compare what was claimed with what a row derives: what there is beyond it, as extra weights."""
        derived: dict[Role, int] = {}
        for t in tensors:
            derived[t.role] = derived.get(t.role, 0) + t.parameters
        claimed, self._claimed = self._claimed, {}
        for role in {**derived, **claimed}:
            gap = claimed.get(role, 0) - derived.get(role, 0)
            if gap < 0 or (gap and role in (Role.EXPERT, Role.ROUTER)):
                self.refuse(f"has {claimed.get(role, 0):,} weights of {what} ({role}) where its shape needs {derived.get(role, 0):,}")
            if gap:
                yield role, f"further {what}", gap

    def rest(self) -> Iterator[tuple[Role, str, int]]:
        """Claim what is left, each tensor by its own name."""
        for name, tensor in sorted(self._left.items()):
            role = _default_role(name, self.shape(name))
            self._ledger.add(role, tensor)
            yield role, name.removesuffix(".weight"), tensor.elements
        self._left.clear()

    def names(self) -> list[str]:
        return sorted(self._left)

    def refuse(self, why: str) -> NoReturn:
        self.facts.refuse(f"layer {self.index} {why}; the file is damaged, or of an architecture that kvplan does not know")


def _default_role(name: str, shape: tuple[int, ...]) -> Role:
    if len(shape) < 2 or name.endswith((".bias", ".scale")) or "norm" in name or "conv1d" in name:
        return Role.VECTOR
    return Role.FFN if name.startswith(("ffn", "channel_mix")) else Role.ATTENTION


# -- attention ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Heads:
    """Heads of one layer by metadata; 0 for what it does not say."""

    heads: int
    kv_heads: int
    key: int
    value: int
    window: int
    owner: bool


def attention_of(layer: Layer, given: Heads) -> tuple[AttentionRow | None, list[tuple[Role, str, int]]]:
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
    layer.claim(Role.ATTENTION, "attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_qkv.weight", "attn_output.weight")
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
            tried.append((many, (fused - many * key) // (key + value) if fused else k // key or v // value or kv, key, value))
    if heads and kv:
        tried.append((heads, kv, k // kv or q // heads or fused // (heads + 2 * kv), v // kv or o // heads))
    found = next((shape for shape in tried if fits(*shape)), None)
    if found is None:
        sizes = f"attn_qkv of {fused:,}" if fused else f"attn_q, attn_k and attn_v of {q:,}, {k:,} and {v:,}"
        layer.refuse(f"has {sizes} outputs and attn_output of {o:,} inputs, which do not fit {heads:,} heads and {kv:,} KV heads")
    if found != tried[0] and given.heads and given.kv_heads:
        says = " and ".join(
            f"{now:,} {what} rather than {then:,}"
            for now, then, what in zip(found, tried[0], ("heads", "KV heads", "a head's key width", "value width"), strict=True)
            if now != then
        )
        layer.facts.note(f"The tensors have {says}", layer.index)
    return found, not fused and q == 2 * found[0] * found[2]


def _biases(layer: Layer, shape: tuple[int, int, int, int], k: bool, v: bool) -> Card:
    heads, kv, key, value = shape
    card: Card = {}
    q_bias, k_bias, v_bias = (layer.elements(f"attn_{name}.bias") for name in ("q", "k", "v"))
    if layer.has("attn_qkv.bias") and layer.elements("attn_qkv.bias") == layer_width(shape):
        layer.claim(Role.VECTOR, "attn_qkv.bias")
        card["qkv_bias"] = True
    elif q_bias == heads * key and v_bias == v * kv * value and k_bias in (0, k * kv * key):
        layer.claim(Role.VECTOR, "attn_q.bias", "attn_k.bias", "attn_v.bias")
        card |= {"qkv_bias": True, "k_bias": bool(k_bias)}
    if layer.elements("attn_output.bias") == layer.hidden:
        layer.claim(Role.VECTOR, "attn_output.bias")
        card["o_bias"] = True
    return card


def layer_width(shape: tuple[int, int, int, int]) -> int:
    """Outputs of queries, keys and values together.

    >>> layer_width((8, 2, 16, 16))
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
        "qk_nope_head_dim": max(layer.outputs(q) // heads - rope, 0), "v_head_dim": layer.inputs("attn_output.weight") // heads,
        "q_lora_rank": layer.outputs("attn_q_a.weight"),
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


# -- layers of fixed state ---------------------------------------------------------------------------------------------

_FP32 = {"state_format": "fp32", "conv_format": "fp32"}
"""llama.cpp keeps both in fp32 (``llama_memory_recurrent``)."""


def state_of(layer: Layer, heads: int) -> tuple[StateRow | None, list[tuple[Role, str, int]]]:
    """The state row of a layer, if it has one; where its kind's shape is not the tensors', one given by sizes alone."""
    for reader in (_short_conv, _kimi, _delta, _mamba, _mamba2, _rwkv):
        if row := reader(layer, heads):
            break
    else:
        return None, []
    claimed = {role: layer._claimed.get(role, 0) for role in (Role.ATTENTION, Role.VECTOR)}
    if any(need > claimed[role] for role, need in zip(claimed, row.linears(layer.hidden), strict=True)):
        row = FixedState(
            mechanism=row.name, heads=row.heads, kernel=row.kernel, elements=row.state_elements,
            channels=row.conv_channels, projections=max(claimed[Role.ATTENTION], 1), vectors=claimed[Role.VECTOR], **_FP32,
        )  # fmt: skip
    return row, list(layer.settle(row.tensors(layer.hidden), row.name))


def _short_conv(layer: Layer, heads: int) -> StateRow | None:
    if not layer.has("shortconv.conv.weight"):
        return None
    kernel, width = (*layer.shape("shortconv.conv.weight"), 0)[:2]
    layer.claim(Role.ATTENTION, "shortconv.in_proj.weight", "shortconv.out_proj.weight")
    layer.claim(Role.VECTOR, "shortconv.conv.weight")
    return ShortConv(width=width, kernel=kernel, **_FP32)


def _conv_channels(layer: Layer, name: str) -> tuple[int, int]:
    """Kernel and channels of a convolution, ``(kernel, channels)`` or ``(kernel, 1, channels)``."""
    shape = layer.shape(name)
    return (shape[0], shape[-1]) if len(shape) > 1 else (0, 0)


def _kimi(layer: Layer, heads: int) -> StateRow | None:
    if not layer.has("ssm_f_a.weight", "ssm_conv1d_q.weight"):
        return None
    width = layer.elements("ssm_norm.weight") or layer.facts.need("kda.head_dim")
    kernel, inner = _conv_channels(layer, "ssm_conv1d_q.weight")
    heads, rank = inner // width, layer.outputs("ssm_f_a.weight")
    layer.claim(Role.ATTENTION, *(f"attn_{n}.weight" for n in ("q", "k", "v", "output")), "attn_gate.weight")
    layer.claim(Role.ATTENTION, *(f"ssm_{n}.weight" for n in ("f_a", "f_b", "g_a", "g_b", "beta")))
    layer.claim(Role.VECTOR, *(f"ssm_conv1d_{n}.weight" for n in "qkv"), "ssm_a", "ssm_dt.bias", "ssm_norm.weight")
    return DeltaNet(
        heads=max(heads, 1), k_heads=max(heads, 1), k_head_dim=width, v_head_dim=width, decay_rank=rank, kernel=kernel, **_FP32
    )


def _delta(layer: Layer, heads: int) -> StateRow | None:
    if not (layer.has("ssm_ba.weight") or layer.has("ssm_beta.weight")):
        return None
    facts = layer.facts
    heads, key, k_heads = facts.need("ssm.time_step_rank"), facts.need("ssm.state_size"), facts.need("ssm.group_count")
    kernel, _ = _conv_channels(layer, "ssm_conv1d.weight")
    value = layer.elements("ssm_norm.weight") or facts.need("ssm.inner_size") // heads
    layer.claim(Role.ATTENTION, "attn_qkv.weight", "attn_gate.weight", "ssm_in.weight", "ssm_ba.weight", "ssm_beta.weight")
    layer.claim(Role.ATTENTION, "ssm_alpha.weight", "ssm_out.weight")
    layer.claim(Role.VECTOR, "ssm_conv1d.weight", "ssm_conv1d.bias", "ssm_a", "ssm_dt.bias", "ssm_norm.weight")
    return DeltaNet(heads=heads, k_heads=k_heads, k_head_dim=key, v_head_dim=max(value, 1), kernel=kernel, **_FP32)


def _mamba(layer: Layer, heads: int) -> StateRow | None:
    if not layer.has("ssm_x.weight", "ssm_a"):
        return None
    kernel, inner = _conv_channels(layer, "ssm_conv1d.weight")
    rank, norms = layer.inputs("ssm_dt.weight"), ("ssm_dt_norm.weight", "ssm_b_norm.weight", "ssm_c_norm.weight")
    state = layer.facts.number("ssm.state_size") or (layer.shape("ssm_a") or (0,))[0]
    bias, normed = layer.has("ssm_conv1d.bias"), layer.has(*norms)
    layer.claim(Role.ATTENTION, "ssm_in.weight", "ssm_x.weight", "ssm_dt.weight", "ssm_out.weight")
    layer.claim(Role.VECTOR, "ssm_conv1d.weight", "ssm_conv1d.bias", "ssm_dt.bias", "ssm_a", "ssm_d", *norms)
    if not (inner and rank and state):
        layer.refuse("has a Mamba block without ssm_conv1d or ssm_dt")
    return Mamba(inner=inner, state=state, dt_rank=rank, kernel=kernel, conv_bias=bias, dt_norms=normed, **_FP32)


def _mamba2(layer: Layer, heads: int) -> StateRow | None:
    if not layer.has("ssm_in.weight", "ssm_a"):
        return None
    facts = layer.facts
    kernel, channels = _conv_channels(layer, "ssm_conv1d.weight")
    heads = layer.elements("ssm_a")
    inner = layer.inputs("ssm_out.weight") or facts.need("ssm.inner_size")
    groups = facts.number("ssm.group_count", 1) or 1
    state = max(channels - inner, 0) // (2 * groups) or facts.need("ssm.state_size")
    bias, normed = layer.has("ssm_conv1d.bias"), layer.has("ssm_norm.weight")
    layer.claim(Role.ATTENTION, "ssm_in.weight", "ssm_out.weight")
    layer.claim(Role.VECTOR, "ssm_conv1d.weight", "ssm_conv1d.bias", "ssm_dt.bias", "ssm_a", "ssm_d", "ssm_norm.weight")
    return Mamba2(
        heads=heads, head_dim=max(inner // heads, 1), state=state, groups=groups, kernel=kernel, conv_bias=bias,
        norm=normed, **_FP32,
    )  # fmt: skip


def _rwkv(layer: Layer, heads: int) -> StateRow | None:
    mixing = [name for name in layer.names() if name.startswith("time_mix_")]
    if not mixing:
        return None
    size, hidden = layer.facts.need("wkv.head_size"), layer.hidden
    for name in mixing:
        layer.claim(_default_role(name, layer.shape(name)), name)
    claimed = [layer._claimed.get(role, 0) for role in (Role.ATTENTION, Role.VECTOR)]
    return FixedState(
        mechanism="RWKV", heads=max(hidden // size, 1), kernel=layer.facts.number("token_shift_count", 2),
        elements=hidden * size, channels=hidden, projections=max(claimed[0], 1), vectors=claimed[1], **_FP32,
    )  # fmt: skip


# -- feed-forward ------------------------------------------------------------------------------------------------------


def feedforward_of(layer: Layer) -> tuple[FeedForward | None, list[tuple[Role, str, int]]]:
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


def merged_experts(tensors: dict[str, GgufTensor]) -> dict[str, GgufTensor]:
    """The tensors of a layer with experts that lie apart (``ffn_up.3.weight``) put together, as files are written since 2024."""
    found: dict[str, GgufTensor] = {}
    apart: dict[str, list[GgufTensor]] = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        if len(parts) == 3 and parts[0] in ("ffn_gate", "ffn_up", "ffn_down") and parts[1].isdecimal():
            apart.setdefault(f"{parts[0]}_exps.weight", []).append(tensor)
        else:
            found[name] = tensor
    for name, each in apart.items():
        if name not in found and len({t.shape for t in each}) == 1:
            first = each[0]
            found[name] = GgufTensor(name, (*first.shape, len(each)), first.type, sum(t.nbytes for t in each))
        else:
            found |= {t.name: t for t in each}
    return found
