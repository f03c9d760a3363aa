"""The peak of activations in one forward pass and the sampling after it: what an engine finds when it profiles itself.

An engine runs its largest pass once and keeps the rest for the cache. Two phases can be the peak. In the layers it is the
widest feed-forward beside a few hidden states; in sampling it is what the sampler holds of every sequence's logits, on every
rank:

    layers  = tokens * (1.5 * gate_and_up + 4 * hidden) * 2
    sampler = (bytes * sequences + 4 * rows) * vocabulary + (tokens + 2 * sequences) * hidden * 2

Experts add a workspace to the layers, and to sampling where the engine does not give it back; so do the inputs of a vision
tower, which live to the end of the pass.

References
----------
vLLM: profile_run in vllm/v1/worker/gpu_model_runner.py; the workspace of experts in
vllm/model_executor/layers/fused_moe/modular_kernel.py; rows in vllm/v1/sample/ops/topk_topp_triton.py. Factors 1.5 and 4 and
the bytes of each version's sampler were fitted to printed peaks: `validation/README.md`, Activations.
"""

from __future__ import annotations

from dataclasses import dataclass

from planner.attention import LatentAttention
from planner.feedforward import FeedForward
from planner.model import ModelSpec
from planner.setup import Setup
from planner.stage import Sharding
from planner.tensors import ceil_div
from planner.units import MIB

ELEMENT_BYTES = 2
"""Activations are 16 bit."""
VOCAB_MULTIPLE = 64
"""Logits are padded to a multiple of this (vllm/model_executor/layers/vocab_parallel_embedding.py)."""
PATCHES_PER_TOKEN = 4
"""Patches of an image that a tower merges into one token (Qwen3-VL: 2 x 2)."""
TOWER_LAYERS = 27
PIXELS_PER_TOKEN = 6144
"""Numbers of the image behind one token of a vision tower: 32 x 32 pixels of three colours, in two frames (Qwen3-VL)."""


@dataclass(frozen=True, slots=True)
class Peak:
    """What a pass holds at once on one rank [B].

    ``workspace + max(tower, images + max(layers + experts, sampler + kept))``; the workspace is cuBLAS's.
    """

    tower: int = 0
    images: int = 0
    layers: int = 0
    experts: int = 0
    sampler: int = 0
    kept: int = 0
    workspace: int = 0

    @property
    def nbytes(self) -> int:
        """The peak [B]."""
        return self.workspace + max(self.tower, self.images + max(self.layers + self.experts, self.sampler + self.kept))


def peak_of(model: ModelSpec, sharding: Sharding, setup: Setup) -> Peak:
    """Peak of activations on one rank; nothing where the engine's profile states no pass."""
    if not setup.step_tokens:
        return Peak()
    if setup.buffers == "ggml":
        return Peak(layers=_ggml(model, setup), sampler=_ggml_logits(model, setup))
    experts = max((_workspace(row, model.hidden, sharding, setup) for row in model.ffn if row.experts), default=0)
    kept = experts if setup.workspace_kept else 0
    return Peak(
        *_tower(model, setup),
        _layers(model, sharding, setup),
        experts,
        _sampler(model, setup),
        kept,
        setup.workspace_mib * MIB,
    )


def _ggml(model: ModelSpec, setup: Setup) -> int:
    """llama.cpp's compute buffer with flash attention [B]: the mask in 16 bit, and fp32 rows of one layer.

    Exact on small dense models that were built and measured on the CPU: ``mask + 3 ff + 3 hidden + max(hidden, heads)``,
    each times the micro-batch.
    """
    tokens, longest = setup.step_tokens, setup.max_tokens or min(model.context_limit, 8192)
    heads = max((row.heads * row.query_dim for row in model.attention), default=0)
    width = max((row.width * max(row.top_k, 1) + row.shared_width for row in model.ffn), default=0)
    return tokens * (2 * longest + 4 * (3 * width + 3 * model.hidden + max(model.hidden, heads)))


def _ggml_logits(model: ModelSpec, setup: Setup) -> int:
    """Logits of every token of a micro-batch, where llama.cpp reserves them, beside two hidden states [B]."""
    return setup.step_tokens * (setup.sampler_bytes * model.vocab + 8 * model.hidden) if setup.sampler_bytes else 0


def _layers(model: ModelSpec, sharding: Sharding, setup: Setup) -> int:
    """The widest layer of one pass [B]."""
    up = max((_columns(row, sharding) for row in model.ffn), default=0)
    state = max((3 * r.local(r.conv_channels or r.heads, sharding.tp) for r in model.state), default=0)
    mixer = max((row.local_heads(sharding.tp) * row.query_dim for row in model.attention), default=0)
    width = max(up + ceil_div(up, 2), state, 2 * mixer) + 4 * model.hidden
    return setup.step_tokens * width * ELEMENT_BYTES + _expanded(model, sharding, setup)


def _columns(row: FeedForward, sharding: Sharding) -> int:
    """Gate and up columns of a dense layer, or of shared experts, on one rank."""
    width = row.shared_width if row.experts else row.width
    return (2 if row.gated else 1) * ceil_div(width, sharding.tp)


def _workspace(row: FeedForward, hidden: int, sharding: Sharding, setup: Setup) -> int:
    """What routed experts hold of every token, gate and up before the activation and after [B]."""
    ranks = 1 if sharding.whole_experts else sharding.ranks
    after = ceil_div(row.width, ranks)
    before = (2 if row.gated else 1) * after
    tokens = setup.step_tokens * sharding.dp
    return tokens * row.top_k * (max(before, hidden) + max(after, hidden)) * ELEMENT_BYTES


def _expanded(model: ModelSpec, sharding: Sharding, setup: Setup) -> int:
    """Keys and values of earlier tokens that MLA expands for chunked prefill [B]."""
    rows = [row for row in model.attention if isinstance(row, LatentAttention)]
    if not rows or not setup.latent_rows:
        return 0
    each = max(row.local_heads(sharding.tp) * (row.qk_nope_head_dim + row.v_head_dim) + row.latent_dim for row in rows)
    longest = setup.max_tokens or model.context_limit
    wanted = max(8 * longest, 4 * setup.sequences * setup.block_tokens)
    return min(wanted, setup.latent_rows) * each * ELEMENT_BYTES


def _sampler(model: ModelSpec, setup: Setup) -> int:
    """Sampling the last token of every sequence [B]."""
    vocab = ceil_div(model.vocab, VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    sequences = min(setup.sequences, setup.step_tokens)
    hidden = (setup.step_tokens + 2 * sequences) * model.hidden * ELEMENT_BYTES
    if not setup.sampler_bytes:
        return 0
    return (setup.sampler_bytes * sequences + 4 * min(setup.sampler_rows, sequences)) * vocab + hidden


def _tower(model: ModelSpec, setup: Setup) -> tuple[int, int]:
    """What a vision tower holds while it runs, and what is left of its images and tokens until the pass is over [B].

    Its width follows from its parameters, 12 width² for each of some 27 layers (SigLIP so400m, Qwen3-VL), and its layers
    hold ten widths of each patch: 1.5 times the feed-forward's four and four hidden states.
    """
    towers = [other.parameters for other in model.other if other.is_tower]
    if not setup.tower or not setup.tower_tokens or not towers:
        return 0, 0
    tokens = max(setup.tower_tokens, setup.step_tokens)
    width = int((max(towers) / (12 * TOWER_LAYERS)) ** 0.5)
    running = tokens * (PIXELS_PER_TOKEN + PATCHES_PER_TOKEN * 10 * width) * ELEMENT_BYTES
    return running, tokens * (PIXELS_PER_TOKEN + model.hidden) * ELEMENT_BYTES
