"""What a start-up log printed, in base units, and the reductions that engines themselves make over ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache

MAX_VALUES = 4096
MOST = 2**62
_ZERO_IS_A_VALUE = frozenset({"non_torch_bytes", "activation_bytes", "graph_bytes", "graph_estimate_bytes"})
_SHARES = frozenset({"memory_fraction"})


@dataclass(frozen=True, slots=True, kw_only=True)
class StartLog:
    """What one start of an engine printed; what it did not print is ``None`` or empty.

    Settings are the last ones printed. Measurements keep every value, in the order printed: one or more a rank, device
    or engine replica.

    Attributes
    ----------
    engine
        ``vllm``, ``sglang``, ``trtllm`` or ``llamacpp``.
    served_model
        Name that the model is served under.
    gpu
        Device name as printed.
    attention_dp
        Attention runs data-parallel inside the tensor-parallel group.
    kv_memory_bytes
        Cache memory that was asked for, in place of a share of the device [B].
    max_num_batched_tokens
        Most tokens of one forward pass.
    speculative_tokens
        Drafted tokens of a step, by the engine's own count.
    legacy
        Lines are those of the engine's first generation.
    gpu_layers, model_layers
        Layers that devices hold, and layers in all.
    total_bytes, free_bytes, weight_bytes
        Device memory, what of it was free at the start, and weights, of each rank [B].
    consumed_bytes
        Weights and memory outside PyTorch together, where they are not told apart [B].
    host_weight_bytes
        Weights in the memory of the host [B].
    kv_bytes, k_bytes, v_bytes
        Memory for the cache, or the pool that was allocated [B].
    missing_bytes
        What the memory for the cache lacks to be nothing [B].
    kv_tokens, blocks, swa_tokens
        Tokens and blocks of the pool; tokens that sliding-window layers keep.
    token_bytes
        Cache of one token [B].
    concurrency, concurrency_len
        Sequences of a length that fit at once, and that length.
    needed_bytes, needed_len
        Cache that one sequence of a length needs, from the complaint that it does not fit [B].
    graph_bytes, graph_estimate_bytes
        CUDA graphs as captured, and as reserved for before [B].
    state_slots, state_bytes
        Sequences that the pool of recurrent state holds, and the pool [B].
    """

    engine: str | None = None
    version: str | None = None
    model: str | None = None
    served_model: str | None = None
    draft_model: str | None = None
    gpu: str | None = None
    dtype: str | None = None
    quantization: str | None = None
    kv_cache_dtype: str | None = None
    tensor_parallel: int | None = None
    pipeline_parallel: int | None = None
    data_parallel: int | None = None
    context_parallel: int | None = None
    expert_parallel: bool | None = None
    attention_dp: bool | None = None
    max_model_len: int | None = None
    memory_fraction: float | None = None
    kv_memory_bytes: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    block_size: int | None = None
    padding_layers: int | None = None
    enforce_eager: bool | None = None
    prefix_caching: bool | None = None
    speculative_tokens: int | None = None
    legacy: bool | None = None
    gpu_layers: int | None = None
    model_layers: int | None = None
    total_bytes: tuple[int, ...] = ()
    free_bytes: tuple[int, ...] = ()
    weight_bytes: tuple[int, ...] = ()
    host_weight_bytes: tuple[int, ...] = ()
    consumed_bytes: tuple[int, ...] = ()
    non_torch_bytes: tuple[int, ...] = ()
    activation_bytes: tuple[int, ...] = ()
    graph_bytes: tuple[int, ...] = ()
    graph_estimate_bytes: tuple[int, ...] = ()
    kv_bytes: tuple[int, ...] = ()
    missing_bytes: tuple[int, ...] = ()
    k_bytes: tuple[int, ...] = ()
    v_bytes: tuple[int, ...] = ()
    kv_tokens: tuple[int, ...] = ()
    swa_tokens: tuple[int, ...] = ()
    blocks: tuple[int, ...] = ()
    token_bytes: tuple[int, ...] = ()
    concurrency: tuple[float, ...] = ()
    concurrency_len: tuple[int, ...] = ()
    needed_bytes: tuple[int, ...] = ()
    needed_len: tuple[int, ...] = ()
    state_slots: tuple[int, ...] = ()
    state_bytes: tuple[int, ...] = ()

    @property
    def device_bytes(self) -> int | None:
        """Memory of the smallest device [B]."""
        return min(self.total_bytes, default=None)

    @property
    def pool_bytes(self) -> int | None:
        """Cache memory of the rank that has least [B]."""
        return min(self.kv_bytes, default=None)

    @property
    def missing(self) -> int | None:
        """Memory that the rank that lacks most lacks before there is any for the cache [B]."""
        return max(self.missing_bytes, default=None)

    @property
    def pool_tokens(self) -> int | None:
        """Tokens that fit: the smallest pool printed, else the fewest blocks times their size.

        >>> StartLog(blocks=(1952, 1950), block_size=16).pool_tokens
        31200
        """
        if self.kv_tokens:
            return min(self.kv_tokens)
        return min(self.blocks) * self.block_size if self.blocks and self.block_size else None

    @property
    def pool_sequences(self) -> float | None:
        """Sequences of the longest length that fit at once."""
        return min(self.concurrency, default=None)

    @property
    def slots(self) -> int | None:
        """Sequences whose recurrent state fits."""
        return min(self.state_slots, default=None)

    @property
    def rank_weight_bytes(self) -> int | None:
        """Weights of the fullest rank [B]."""
        return max(self.weight_bytes, default=None)

    @property
    def rank_activation_bytes(self) -> int | None:
        """Peak of activations of the fullest rank [B]."""
        return max(self.activation_bytes, default=None)

    @property
    def rank_non_torch_bytes(self) -> int | None:
        """Memory outside PyTorch of the fullest rank [B]."""
        return max(self.non_torch_bytes, default=None)

    @property
    def rank_graph_bytes(self) -> int | None:
        """CUDA graphs of the fullest rank [B]."""
        return max(self.graph_bytes, default=None)


@cache
def kinds() -> Mapping[str, tuple[type, bool]]:
    """Type of every field that a line may fill, and whether it keeps many values."""
    types: dict[str, type] = {"str": str, "int": int, "float": float, "bool": bool}
    found = {}
    for field in fields(StartLog):
        text = str(field.type)
        many = text.startswith("tuple[")
        found[field.name] = types[text.removeprefix("tuple[").split(",")[0].split(" ")[0]], many
    return {name: kind for name, kind in found.items() if name != "engine"}


def plausible(field: str, value: float) -> bool:
    """Whether a number can be what the field says.

    >>> plausible("kv_tokens", 33504), plausible("kv_tokens", 0), plausible("graph_bytes", 0), plausible("blocks", 2**63)
    (True, False, True, False)
    """
    if not math.isfinite(value) or value < 0 or value > (1 if field in _SHARES else MOST):
        return False
    return value > 0 or field in _ZERO_IS_A_VALUE
