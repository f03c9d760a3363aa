"""Feed-forward layers as rows: dense or gated, or a mixture of experts with shared ones beside them."""

from __future__ import annotations

from pydantic import model_validator

from planner.row import Count, Flag, Maybe, Row
from planner.tensors import Role, Tensor, ceil_div, vector


class FeedForward(Row):
    """A feed-forward layer: dense, or a mixture of experts."""

    at: str = ""
    width: Count
    """Columns of one expert, or of the dense layer."""
    gated: Flag = True
    """Gate, up and down projections (SwiGLU, GeGLU: Shazeer 2020, arXiv:2002.05202) rather than up and down."""
    bias: Flag = False
    experts: Maybe = 0
    top_k: Maybe = 0
    """Routed experts that one token is sent to."""
    shared_width: Maybe = 0
    """Columns of the shared experts together: those every token passes through."""
    shared_gate: Flag = False
    router_bias: Flag = False
    expert_bias: Flag = False
    """Biases on the experts only, where ``bias`` is not set."""
    shared_gated: Flag | None = None
    """Whether shared experts have a gate projection, where they differ from the others."""
    latent: Maybe = 0
    """Width that routed experts work in, where the hidden state is projected to it and back (Nemotron 3)."""
    router: Flag = True
    idle_experts: Maybe = 0
    """Further choices of the router that compute nothing (LongCat)."""
    distinct: Maybe = 0
    """How many sets of weights the row's layers have between them, where they share; 0 if each has its own."""
    extra: Maybe = 0
    """Small weights beyond those that the row derives; every rank holds them."""

    @model_validator(mode="after")
    def _check(self) -> FeedForward:
        if bool(self.experts) != bool(self.top_k) or self.top_k > self.experts:
            raise ValueError(f"experts = {self.experts} and top_k = {self.top_k} do not go together")
        if self.shared_width and not self.experts:
            raise ValueError("shared_width needs experts; a dense layer has only a width")
        return self

    def small_elements(self, ranks: int) -> int:
        """What the activation function of a dense layer, or of shared experts, reads and writes of one token [elements].

        With a gate it reads gate and up and writes their product; the columns are dealt out to ``ranks`` ranks.
        """
        gated = self.shared_gated if self.experts and self.shared_gated is not None else self.gated
        return (2 + gated) * ceil_div(self.shared_width if self.experts else self.width, ranks)

    def expert_elements(self, hidden: int, ranks: int, whole: bool) -> float:
        """The same of the routed experts of one token, whose outputs are read once more to sum them [elements].

        Each rank has all of a token's experts in slices, or its share of them whole.
        """
        columns, inside = (2 + self.gated) * self.width / ranks, self.latent or hidden
        return self.top_k * (columns + inside / (ranks if whole else 1)) + inside

    def tensors(self, hidden: int) -> tuple[Tensor, ...]:
        """Weights of one such layer."""
        rows = self._experts(hidden) if self.experts else _mlp("", Role.FFN, self.width, hidden, self.gated, self.bias)
        if self.extra:
            rows.append(vector("ffn_extra", self.extra))
        return tuple(t.shared(self.distinct) for t in rows) if self.distinct else tuple(rows)

    def _experts(self, hidden: int) -> list[Tensor]:
        choices, bias = self.experts + self.idle_experts, self.bias or self.expert_bias
        rows = [Tensor("router", Role.ROUTER, 1, choices * hidden)] if self.router else []
        if self.latent:
            rows += [Tensor(f"latent_{way}", Role.FFN, 1, hidden * self.latent) for way in ("down", "up")]
        inside = self.latent or hidden
        rows += _mlp("expert_", Role.EXPERT, self.width, inside, self.gated, bias, self.experts, self.top_k)
        if self.router_bias:
            rows.append(vector("router_bias", choices))
        if self.shared_width:
            gated = self.gated if self.shared_gated is None else self.shared_gated
            rows += _mlp("shared_", Role.FFN, self.shared_width, hidden, gated, self.bias)
        if self.shared_gate:
            rows.append(Tensor("shared_gate", Role.ROUTER, 1, hidden))
        return rows


def _mlp(
    prefix: str, role: Role, width: int, hidden: int, gated: bool, bias: bool, copies: int = 1, used: int = 1
) -> list[Tensor]:
    wide = ("gate_proj", "up_proj") if gated else ("up_proj",)
    rows = [Tensor(prefix + name, role, width, hidden, copies, used) for name in (*wide, "down_proj")]
    if bias:
        rows += [Tensor(f"{prefix}{name}_bias", Role.VECTOR, width, 1, copies, used) for name in wide]
        rows.append(Tensor(prefix + "down_bias", Role.VECTOR, 1, hidden, copies, used))
    return rows
