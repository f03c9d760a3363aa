"""Layers of fixed state as rows: what a sequence keeps however long it is, and the weights that update it.

Each row gives the widths of one mechanism. It answers how many elements of recurrent state and of convolution state one
layer keeps for a sequence, in which formats, and which weights it has. Nothing grows with the context.

References
----------
Mamba: Gu and Dao 2023, arXiv:2312.00752. Mamba-2: Dao and Gu 2024, arXiv:2405.21060. Gated delta net: Yang et al. 2024,
arXiv:2412.06464. Kimi delta attention: arXiv:2510.26692. Lightning attention: MiniMax-01, arXiv:2501.08313. RG-LRU: De et
al. 2024, arXiv:2402.19427. Short convolutions: Liquid AI, LFM2, arXiv:2511.23404.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Tag

from planner.precision import find_format
from planner.row import Count, Flag, Maybe, Row
from planner.tensors import Role, Tensor, ceil_div

StateFormat = Literal["fp32", "bf16", "fp16"]


class StateRow(Row):
    """What every mechanism answers. ``tp`` is the tensor-parallel degree."""

    reference: ClassVar[str] = ""
    """Where the state's shape comes from."""

    at: str = ""
    """Layers that have this row, as Python slices; empty for all that no other state row claims."""
    heads: Count = 1
    """Units that tensor parallelism deals out."""
    kernel: Maybe = 0
    """Width of the short convolution before the state; that many inputs are kept."""
    state_format: StateFormat = "fp32"
    conv_format: StateFormat = "bf16"
    extra: Maybe = 0
    """Small weights beyond those that the row derives."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Short name, such as ``Mamba-2``."""

    @property
    @abstractmethod
    def state_elements(self) -> int:
        """Recurrent state that one layer keeps for a sequence [elements]."""

    @property
    @abstractmethod
    def conv_channels(self) -> int:
        """Channels that pass the convolution."""

    @property
    @abstractmethod
    def output_width(self) -> int:
        """Width of what is read out of the state, before the output projection."""

    @property
    @abstractmethod
    def state_formula(self) -> str:
        """`state_elements` in numbers."""

    @abstractmethod
    def linears(self, hidden: int) -> tuple[int, int]:
        """Parameters of all projections of one layer, and their biases, norms and other vectors."""

    @property
    def conv_elements(self) -> int:
        """Inputs that the convolution keeps for a sequence [elements]."""
        return self.conv_channels * self.kernel

    def tensors(self, hidden: int) -> tuple[Tensor, ...]:
        """Weights of one such layer."""
        projections, vectors = self.linears(hidden)
        rows = [_split("state_proj", Role.ATTENTION, projections, self.heads)]
        if small := vectors + self.extra:
            rows.append(_split("state_vectors", Role.VECTOR, small, self.heads))
        return tuple(rows)

    def state_bytes(self, tp: int) -> int:
        """What one sequence keeps in one layer on the fullest rank [B]: recurrent state and inputs of the convolution."""
        parts = ((self.state_format, self.state_elements), (self.conv_format, self.conv_elements))
        return sum(find_format(form).nbytes(self.local(elements, tp)) for form, elements in parts)

    def small_elements(self, tp: int) -> int:
        """What the small kernels of one layer read and write of one token on one rank [elements].

        The convolution reads and writes its channels; the output is normed and multiplied by a gate, in one pass.
        """
        return self.local(2 * self.conv_channels * bool(self.kernel) + 3 * self.output_width, tp)

    def local(self, elements: int, tp: int) -> int:
        """The fullest rank's share of elements that are dealt out by head."""
        return ceil_div(elements * ceil_div(self.heads, tp), self.heads)

    def update_flops(self, tp: int) -> int:
        """Work of one token on the state of one layer on one rank [FLOP].

        Decay, add the token's outer product, and read out: three multiply-adds an element (arXiv:2405.21060, section 3).
        """
        return 6 * self.local(self.state_elements, tp) + 2 * self.local(self.conv_elements, tp)


def _split(name: str, role: Role, parameters: int, heads: int) -> Tensor:
    """A tensor dealt out by head, or by as many slices as come out even."""
    units = math.gcd(parameters, heads)
    return Tensor(name, role, units, parameters // units)


class Mamba(StateRow):
    """Mamba: a state of ``state`` numbers for each of ``inner`` channels."""

    reference = "Mamba: Gu and Dao 2023, arXiv:2312.00752, section 3"
    kind: Literal["mamba"] = "mamba"
    inner: Count
    state: Count
    dt_rank: Count
    bias: Flag = False
    """On input and output projections."""
    conv_bias: Flag = True
    dt_norms: Flag = False
    """Norms of the step, B and C (Jamba)."""

    @property
    def name(self) -> str:
        return "Mamba"

    @property
    def state_elements(self) -> int:
        return self.inner * self.state

    @property
    def state_formula(self) -> str:
        return f"{self.inner} * {self.state}"

    @property
    def output_width(self) -> int:
        return self.inner

    @property
    def conv_channels(self) -> int:
        return self.inner

    def linears(self, hidden: int) -> tuple[int, int]:
        low = self.dt_rank + 2 * self.state
        projections = 3 * hidden * self.inner + self.inner * low + self.dt_rank * self.inner
        vectors = self.inner * (self.kernel + self.conv_bias) + self.inner + self.inner * self.state + self.inner
        vectors += (2 * self.inner + hidden) * self.bias + low * self.dt_norms
        return projections, vectors


class Mamba2(StateRow):
    """Mamba-2: a state of ``head_dim`` × ``state`` for each head; B and C are shared by ``groups``."""

    reference = "Mamba-2: Dao and Gu 2024, arXiv:2405.21060, section 7"
    kind: Literal["mamba2"] = "mamba2"
    head_dim: Count
    state: Count
    groups: Count = 1
    bias: Flag = False
    o_bias: Flag | None = None
    """On the output projection, where it differs from ``bias``."""
    conv_bias: Flag = True
    norm: Flag = True
    """A gated norm before the output projection."""

    @property
    def name(self) -> str:
        return "Mamba-2"

    @property
    def inner(self) -> int:
        """Width of what passes the state."""
        return self.heads * self.head_dim

    @property
    def state_elements(self) -> int:
        return self.inner * self.state

    @property
    def state_formula(self) -> str:
        return f"{self.heads} * {self.head_dim} * {self.state}"

    @property
    def output_width(self) -> int:
        return self.inner

    @property
    def conv_channels(self) -> int:
        return self.inner + 2 * self.groups * self.state

    def linears(self, hidden: int) -> tuple[int, int]:
        columns = self.inner + self.conv_channels + self.heads
        vectors = self.conv_channels * (self.kernel + self.conv_bias) + 3 * self.heads + self.inner * self.norm
        vectors += columns * self.bias + hidden * (self.bias if self.o_bias is None else self.o_bias)
        return hidden * (columns + self.inner), vectors


class DeltaNet(StateRow):
    """Gated delta net: a state of ``k_head_dim`` × ``v_head_dim`` for each value head (``heads``)."""

    reference = "Gated delta net: Yang et al. 2024, arXiv:2412.06464; Kimi delta attention: arXiv:2510.26692"
    kind: Literal["delta"] = "delta"
    k_heads: Count
    k_head_dim: Count
    v_head_dim: Count
    decay_rank: Maybe = 0
    """Kimi delta attention: decay by channel through a projection of this rank, and an output gate of the same rank."""

    @property
    def name(self) -> str:
        return "Kimi delta attention" if self.decay_rank else "gated delta net"

    @property
    def state_elements(self) -> int:
        return self.heads * self.k_head_dim * self.v_head_dim

    @property
    def state_formula(self) -> str:
        return f"{self.heads} * {self.k_head_dim} * {self.v_head_dim}"

    @property
    def output_width(self) -> int:
        return self.heads * self.v_head_dim

    @property
    def conv_channels(self) -> int:
        return 2 * self.k_heads * self.k_head_dim + self.heads * self.v_head_dim

    def linears(self, hidden: int) -> tuple[int, int]:
        key, value = self.k_heads * self.k_head_dim, self.heads * self.v_head_dim
        vectors = self.conv_channels * self.kernel + self.v_head_dim
        if self.decay_rank:
            low = 2 * hidden * self.decay_rank + self.decay_rank * (key + value)
            return hidden * (2 * key + 2 * value + self.heads) + low, vectors + self.heads + key
        return hidden * (2 * key + 3 * value + 2 * self.heads), vectors + 2 * self.heads

    def update_flops(self, tp: int) -> int:
        # Besides, what the state already says of the key is read and taken off: one multiply-add an element more.
        return super().update_flops(tp) + 2 * self.local(self.state_elements, tp)


class LinearAttention(StateRow):
    """Lightning attention: a state of ``head_dim`` × ``head_dim`` for each head, and a gated, normed output."""

    reference = "Lightning attention: MiniMax-01, arXiv:2501.08313"
    kind: Literal["linear"] = "linear"
    head_dim: Count
    state_format: StateFormat = "bf16"

    @property
    def name(self) -> str:
        return "lightning attention"

    @property
    def state_elements(self) -> int:
        return self.heads * self.head_dim * self.head_dim

    @property
    def state_formula(self) -> str:
        return f"{self.heads} * {self.head_dim} * {self.head_dim}"

    @property
    def output_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def conv_channels(self) -> int:
        return 0

    def linears(self, hidden: int) -> tuple[int, int]:
        return 5 * hidden * self.heads * self.head_dim, self.heads * self.head_dim


class Recurrence(StateRow):
    """RG-LRU: one number for each of ``width`` channels, with block-diagonal gates by head."""

    reference = "RG-LRU: De et al. 2024, arXiv:2402.19427, section 2"
    kind: Literal["rglru"] = "rglru"
    width: Count

    @property
    def name(self) -> str:
        return "RG-LRU"

    @property
    def state_elements(self) -> int:
        return self.width

    @property
    def state_formula(self) -> str:
        return f"{self.width}"

    @property
    def output_width(self) -> int:
        return self.width

    @property
    def conv_channels(self) -> int:
        return self.width

    @property
    def conv_elements(self) -> int:
        return self.width * max(self.kernel - 1, 0)  # the present input is not kept

    def linears(self, hidden: int) -> tuple[int, int]:
        gates = 2 * self.width * (self.width // self.heads)
        vectors = 2 * self.width + hidden + self.width * (self.kernel + 1) + self.width + 2 * self.width
        return 3 * hidden * self.width + gates, vectors


class ShortConv(StateRow):
    """A gated short convolution (LFM2): nothing is kept but its inputs."""

    reference = "Short convolutions: LFM2, arXiv:2511.23404"
    kind: Literal["conv"] = "conv"
    width: Count
    bias: Flag = False

    @property
    def name(self) -> str:
        return "short convolution"

    @property
    def state_elements(self) -> int:
        return 0

    @property
    def state_formula(self) -> str:
        return "0"

    @property
    def output_width(self) -> int:
        return self.width

    @property
    def conv_channels(self) -> int:
        return self.width

    def linears(self, hidden: int) -> tuple[int, int]:
        return 4 * hidden * self.width, self.width * self.kernel + (4 * self.width + hidden) * self.bias


class FixedState(StateRow):
    """Any other mechanism, given by its sizes: elements kept, channels convolved, and its weights."""

    reference = "Fixed state: the model's own configuration and code"
    kind: Literal["fixed"] = "fixed"
    mechanism: Annotated[str, "name for people, such as RWKV or mLSTM"] = "recurrent"
    elements: Maybe
    channels: Maybe = 0
    projections: Count
    vectors: Maybe = 0

    @property
    def name(self) -> str:
        return self.mechanism

    @property
    def state_elements(self) -> int:
        return self.elements

    @property
    def state_formula(self) -> str:
        return f"{self.elements}"

    @property
    def output_width(self) -> int:
        return self.channels

    @property
    def conv_channels(self) -> int:
        return self.channels

    def linears(self, hidden: int) -> tuple[int, int]:
        return self.projections, self.vectors


def _kind(row: Any) -> str:
    return str(row.get("kind", "")) if isinstance(row, dict) else str(row.kind)


State = Annotated[
    Annotated[Mamba, Tag("mamba")]
    | Annotated[Mamba2, Tag("mamba2")]
    | Annotated[DeltaNet, Tag("delta")]
    | Annotated[LinearAttention, Tag("linear")]
    | Annotated[Recurrence, Tag("rglru")]
    | Annotated[ShortConv, Tag("conv")]
    | Annotated[FixedState, Tag("fixed")],
    Discriminator(_kind),
]
