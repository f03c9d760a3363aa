"""Weights that an engine holds beyond the checkpoint: copies for absorbed MLA, and padding of experts.

Both are data of the engine's profile (`engine.Setup`); what a model has that they apply to is read off its rows.
"""

from __future__ import annotations

from planner.attention import LatentAttention
from planner.formats import Formats
from planner.setup import Setup
from planner.stage import Sharding, Stage
from planner.tensors import Role, ceil_div


def copied_bytes(stage: Stage, formats: Formats, sharding: Sharding, setup: Setup) -> int:
    """What one rank of a stage holds beyond its share of the checkpoint [B]."""
    return _absorbed(stage, sharding, setup) + _padding(stage, formats, sharding, setup)


def _absorbed(stage: Stage, sharding: Sharding, setup: Setup) -> int:
    """Up-projections of keys and values, kept a second time in 16 bit so that decoding can multiply with the latent.

    DeepSeek-V2, arXiv:2405.04434, section 2.1; vLLM, process_weights_after_loading of MLAAttention: W_UK and W_UV are copies
    beside kv_b_proj.
    """
    found = 0
    for group, count in stage.groups:
        for row in group.attention:
            if isinstance(row, LatentAttention):
                each = row.kv_lora_rank * (row.qk_nope_head_dim + row.v_head_dim)
                found += count * row.local_heads(sharding.tp) * each * setup.absorbed_bytes
    return found


def _padding(stage: Stage, formats: Formats, sharding: Sharding, setup: Setup) -> int:
    """Experts whose kernels need widths and hidden sizes in multiples."""
    width_step, hidden_step = setup.expert_steps.get(formats[Role.EXPERT].id, (1, 1))
    found = 0
    for group, count in stage.groups:
        if group.ffn is None or not group.ffn.experts:
            continue
        ranks = 1 if sharding.whole_experts else sharding.ranks
        width = ceil_div(group.ffn.width, ranks)
        for t in group.tensors:
            if t.role is Role.EXPERT:
                padded = _up(width, width_step) * _up(t.unit_size, hidden_step)
                found += count * formats[t.role].nbytes(
                    sharding.held(t) * (padded - width * t.unit_size) // (width * t.unit_size)
                )
    return found


def _up(size: int, step: int) -> int:
    return ceil_div(size, step) * step
