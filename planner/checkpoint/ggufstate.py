"""Layers of fixed state in a GGUF file as rows.

References
----------
llama.cpp, ``src/llama-model.cpp`` and ``src/models``: shapes of the tensors named ``ssm_*``, ``shortconv.*`` and
``time_mix_*``; ``src/llama-memory-recurrent.cpp``: states and inputs of convolutions are kept in fp32.
"""

from __future__ import annotations

from planner.checkpoint.ggufparts import Layer, Part, default_role
from planner.state import DeltaNet, FixedState, Mamba, Mamba2, ShortConv, StateRow
from planner.tensors import Role


def state_of(layer: Layer) -> tuple[StateRow | None, list[Part]]:
    """The state row of a layer, if it has one; where its kind's shape is not the tensors', one given by sizes alone."""
    for reader in (_short_conv, _kimi, _delta, _mamba, _mamba2, _rwkv):
        if row := reader(layer):
            break
    else:
        return None, []
    claimed = {role: layer.claimed.get(role, 0) for role in (Role.ATTENTION, Role.VECTOR)}
    if any(need > claimed[role] for role, need in zip(claimed, row.linears(layer.hidden), strict=True)):
        row = FixedState(
            mechanism=row.name, heads=row.heads, kernel=row.kernel, elements=row.state_elements,
            channels=row.conv_channels, projections=max(claimed[Role.ATTENTION], 1), vectors=claimed[Role.VECTOR],
            conv_format="fp32",
        )  # fmt: skip
    return row, list(layer.settle(row.tensors(layer.hidden), row.name))


def _short_conv(layer: Layer) -> StateRow | None:
    if not layer.has("shortconv.conv.weight"):
        return None
    kernel, width = (*layer.shape("shortconv.conv.weight"), 0)[:2]
    layer.claim(Role.ATTENTION, "shortconv.in_proj.weight", "shortconv.out_proj.weight")
    layer.claim(Role.VECTOR, "shortconv.conv.weight")
    return ShortConv(width=width, kernel=kernel, conv_format="fp32")


def _conv_channels(layer: Layer, name: str) -> tuple[int, int]:
    """Kernel and channels of a convolution, ``(kernel, channels)`` or ``(kernel, 1, channels)``."""
    shape = layer.shape(name)
    return (shape[0], shape[-1]) if len(shape) > 1 else (0, 0)


def _kimi(layer: Layer) -> StateRow | None:
    if not layer.has("ssm_f_a.weight", "ssm_conv1d_q.weight"):
        return None
    width = layer.elements("ssm_norm.weight") or layer.facts.need("kda.head_dim")
    kernel, inner = _conv_channels(layer, "ssm_conv1d_q.weight")
    heads, rank = inner // width, layer.outputs("ssm_f_a.weight")
    layer.claim(Role.ATTENTION, *(f"attn_{n}.weight" for n in ("q", "k", "v", "output")), "attn_gate.weight")
    layer.claim(Role.ATTENTION, *(f"ssm_{n}.weight" for n in ("f_a", "f_b", "g_a", "g_b", "beta")))
    layer.claim(Role.VECTOR, *(f"ssm_conv1d_{n}.weight" for n in "qkv"), "ssm_a", "ssm_dt.bias", "ssm_norm.weight")
    return DeltaNet(
        heads=max(heads, 1),
        k_heads=max(heads, 1),
        k_head_dim=width,
        v_head_dim=width,
        decay_rank=rank,
        kernel=kernel,
        conv_format="fp32",
    )


def _delta(layer: Layer) -> StateRow | None:
    if not (layer.has("ssm_ba.weight") or layer.has("ssm_beta.weight")):
        return None
    facts = layer.facts
    heads, key, k_heads = facts.need("ssm.time_step_rank"), facts.need("ssm.state_size"), facts.need("ssm.group_count")
    kernel, _ = _conv_channels(layer, "ssm_conv1d.weight")
    value = layer.elements("ssm_norm.weight") or facts.need("ssm.inner_size") // heads
    layer.claim(
        Role.ATTENTION, "attn_qkv.weight", "attn_gate.weight", "ssm_in.weight", "ssm_ba.weight", "ssm_beta.weight"
    )
    layer.claim(Role.ATTENTION, "ssm_alpha.weight", "ssm_out.weight")
    layer.claim(Role.VECTOR, "ssm_conv1d.weight", "ssm_conv1d.bias", "ssm_a", "ssm_dt.bias", "ssm_norm.weight")
    return DeltaNet(
        heads=heads, k_heads=k_heads, k_head_dim=key, v_head_dim=max(value, 1), kernel=kernel, conv_format="fp32"
    )


def _mamba(layer: Layer) -> StateRow | None:
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
    return Mamba(
        inner=inner, state=state, dt_rank=rank, kernel=kernel, conv_bias=bias, dt_norms=normed, conv_format="fp32"
    )


def _mamba2(layer: Layer) -> StateRow | None:
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
        norm=normed, conv_format="fp32",
    )  # fmt: skip


def _rwkv(layer: Layer) -> StateRow | None:
    mixing = [name for name in layer.names() if name.startswith("time_mix_")]
    if not mixing:
        return None
    size, hidden = layer.facts.need("wkv.head_size"), layer.hidden
    for name in mixing:
        layer.claim(default_role(name, layer.shape(name)), name)
    claimed = [layer.claimed.get(role, 0) for role in (Role.ATTENTION, Role.VECTOR)]
    return FixedState(
        mechanism="RWKV", heads=max(hidden // size, 1), kernel=layer.facts.number("token_shift_count", 2),
        elements=hidden * size, channels=hidden, projections=max(claimed[0], 1), vectors=claimed[1], conv_format="fp32",
    )  # fmt: skip
