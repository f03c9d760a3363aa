"""How an engine is set up: the fields that its memory follows from, whatever the engine calls them.

`planner.engine` fills them from an engine's file, by version and device, and from what the caller gives.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from planner.row import Count, Flag, Maybe, Positive, Row
from planner.units import GIB

ALL_GRAPHS = 256
"""Sequences from which on an engine captures every batch that it ever does."""
Line = Literal["weights", "drafter", "other", "activations", "graphs"]
"""What a GPU holds besides the cache."""
Gib = Annotated[float, Field(ge=0, lt=64, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Reserve = Annotated[float, Field(ge=0, lt=1e6, allow_inf_nan=False)]


class Setup(Row):
    """How an engine is set up: everything that its memory follows from, beside model, device and degrees.

    Attributes
    ----------
    memory_fraction
        Share of memory that the budget starts from.
    before, inside
        What is taken off before the share is taken of the rest, and what must fit within the share beside the cache. What
        is in neither lives in what the share leaves.
    layout
        How the cache is laid out; see `planner.pool`.
    block_tokens
        Tokens in one block of the cache.
    max_tokens
        Longest sequence that the engine is started for [tokens]; ``None`` for the planned context.
    step_tokens, sequences
        Most tokens in one forward pass, and most sequences that run at once.
    whole_prompts
        Whether a pass takes at least one prompt of the longest length, because prompts are not cut into chunks.
    graphs, graph_sequences
        Whether decode steps are captured in graphs, and the largest batch that is.
    prefix_caching
        Whether blocks are kept for sequences that begin alike; a state is then kept for several lengths.
    group_windows
        Whether layers with a window hold their window only, in groups of like layers, rather than every token.
    group_chunks
        The same for layers of chunked attention.
    even_within
        How many times as many layers one kind may have as another for groups as large as the larger, with padding.
    passes
        Forward passes that are under way at once, whose tokens a window keeps room for.
    window_share, state_share
        Tokens of window layers for each token of full ones, and bytes of states for each byte of tokens, where they have
        pools of their own.
    draft_tokens
        Tokens that a drafter proposes at each step.
    follow_checkpoint
        Whether the cache takes the format that the checkpoint declares, unless told otherwise.
    tokens_are
        What the engine prints as the size of its cache: ``blocks`` of one group, or ``requests`` of the longest length.
    buffers
        Whose formula the peak of a pass follows; see `planner.activations`.
    sampler_bytes
        Peak of sampling for each sequence and vocabulary entry [B].
    sampler_rows
        Rows of the vocabulary in fp32 that sampling holds besides.
    workspace_mib
        cuBLAS's workspace [MiB].
    workspace_kept
        Whether the workspace of routed experts is held while sampling.
    latent_rows
        Most earlier tokens whose keys and values MLA expands at once in prefill.
    tower_tokens
        Tokens that a vision tower is profiled with.
    tower
        Whether towers are loaded.
    other_gib, graphs_gib
        Driver context, communication buffers and the like, and captured graphs, on one GPU [GiB].
    absorbed_bytes
        Bytes of each element of MLA's up-projections that is kept a second time, for absorbed decoding.
    expert_steps
        By format of experts, what their width on a rank and the hidden size are padded to multiples of.
    dense_over_all
        Whether data-parallel groups share dense layers, embedding and head; see `stage.Sharding`.
    past_inputs
        Whether a convolution keeps its past inputs only, rather than the present one as well.
    state_format, conv_format
        Formats of recurrent states and of a convolution's inputs, where they are not the model's own.
    state_copies, state_slots
        Slots for states that a running sequence takes, and slots in all, where they are given instead of derived.
    reserve_mib, reserve_token_mib, reserve_graph_mib, reserve_rank_mib, reserve_least_mib
        What the default share leaves, where it is derived: a constant, more for each token of a pass, sequence of a graph
        and rank, and the least that it may be [MiB].
    sequences_are_all
        Whether the most sequences that run at once are those of all data-parallel groups together.
    ranks_are_all
        Whether what the engine calls its tensor-parallel size counts all ranks, those of data-parallel groups too.
    index_format
        Format of an indexer's keys, where it is not that of the cache.
    sparse_latent_format
        Format that an 8-bit cache of MLA's latents has where only those that an indexer picks are read.
    compressed_format
        Format of attention that compresses what lies before its window, whether 8 or 16 bit are asked for.
    latent_step
        What the width of MLA's latents is padded to a multiple of [elements].
    kernel_us, expert_kernels, block_kernels
        What each kernel of a decode step costs at least, where the engine's own host adds to the device's [µs], and kernels
        beyond those that `planner.work` counts: of a layer of experts, and of a layer whose activations are quantised to
        blocks on the fly.
    first_s
        What passes until a first token is out, beside steps and prompts: scheduling, streaming [s].
    prompts_first
        Whether waiting prompts go before decode steps, so that requests of one length stay in step.
    whole_answers
        Whether a request is let in only when its cache has room for the whole answer.
    packing, packed_tokens, packed_step
        How large blocks are that pages of several sizes share (see `planner.packed`; empty where there are none), tokens of
        such a block, and what pages are padded to multiples of [B].
    """

    memory_fraction: Fraction = 1.0
    before: tuple[Line, ...] = ()
    inside: tuple[Line, ...] = ("weights", "drafter", "other", "activations", "graphs")
    layout: Literal["tokens", "blocks", "pools", "cells"] = "tokens"
    kv_memory: Maybe | None = None
    block_tokens: Count = 1
    max_tokens: Count | None = None
    step_tokens: Maybe = 0
    whole_prompts: Flag = False
    sequences: Maybe = 0
    graphs: Flag = False
    graph_sequences: Maybe = 0
    prefix_caching: Flag = False
    group_windows: Flag = True
    group_chunks: Flag = True
    even_within: Annotated[float, Field(ge=1, le=10)] = 1.0
    passes: Count = 1
    window_share: Fraction = 1.0
    state_share: Annotated[float, Field(gt=0, le=100)] = 1.0
    draft_tokens: Maybe = 0
    follow_checkpoint: Flag = False
    tokens_are: Literal["blocks", "requests"] = "blocks"
    buffers: Literal["profiled", "ggml"] = "profiled"
    sampler_bytes: Maybe = 0
    sampler_rows: Maybe = 0
    workspace_kept: Flag = False
    workspace_mib: Maybe = 0
    latent_rows: Maybe = 0
    tower_tokens: Maybe = 0
    tower: Flag = True
    other_gib: Gib = 0.0
    graphs_gib: Gib = 0.0
    absorbed_bytes: Maybe = 0
    expert_steps: dict[str, tuple[Count, Count]] = Field(default_factory=dict)
    dense_over_all: Flag = False
    past_inputs: Flag = False
    state_format: str = ""
    conv_format: str = ""
    state_copies: Count = 1
    state_slots: Count | None = None
    reserve_mib: Positive | None = None
    reserve_token_mib: Reserve = 0.0
    reserve_graph_mib: Reserve = 0.0
    reserve_rank_mib: Reserve = 0.0
    reserve_least_mib: Reserve = 0.0
    sequences_are_all: Flag = False
    ranks_are_all: Flag = False
    index_format: str = ""
    sparse_latent_format: str = ""
    compressed_format: str = ""
    latent_step: Count = 1
    kernel_us: Annotated[float, Field(ge=0, le=1000)] = 0.0
    expert_kernels: Annotated[float, Field(ge=0, le=100)] = 0.0
    block_kernels: Annotated[float, Field(ge=0, le=100)] = 0.0
    first_s: Annotated[float, Field(ge=0, le=10)] = 0.0
    prompts_first: Flag = False
    whole_answers: Flag = False
    packing: Literal["", "tuples", "slots", "widest"] = ""
    packed_tokens: Count = 1
    packed_step: Count = 1

    @property
    def other_bytes(self) -> int:
        """Driver context, communication buffers and the like [B]."""
        return int(self.other_gib * GIB)

    @property
    def graph_bytes(self) -> int:
        """Captured graphs [B]: fewer where the engine captures fewer batches, which go up to twice the sequences.

        That they grow with the root of it was fitted to printed figures: 0.19 GiB with 10 sequences, 0.6 with 256.
        """
        share = min(1.0, (self.sequences / ALL_GRAPHS) ** 0.5) if self.sequences else 1.0
        return int(self.graphs_gib * share * GIB) if self.graphs else 0
