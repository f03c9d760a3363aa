"""A configuration against the tensors that are really there: where they disagree, the tensors win and a note says so.

Names of tensors are read by their parts, the same way for every architecture: embeddings, head, layers by number, and in a
layer attention, experts, shared experts, router, feed-forward and norms.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

from planner.checkpoint.template import Card
from planner.formats import WeightFormats
from planner.model import ModelSpec
from planner.tensors import Role

if TYPE_CHECKING:
    from planner.checkpoint.safetensors import Header

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.([0-9]{1,5})\.(.+)$")
_TOWER = re.compile(
    r"(?:^|\.)(?:vision\w*|visual\w*|audio\w*|image\w*|encoder|multi_modal_projector|mm_projector|connector|aligner)\."
)
_DRAFT = re.compile(r"(?:^|\.)(?:mtp\w*|eh_proj|nextn\w*|draft\w*)(?:\.|$)")
_SCALE = re.compile(
    r"(?:^|\.)(?:(?:weight|input|output|activation|q|k|v|kv)_(?:scale|shape)|"
    r"(?:(?:weight|input|output|activation|q|k|v|kv)_)?(?:scales|scale_inv|scale_\d|zeros|qzeros|zero_point|amax)|"
    r"g_idx|absmax|quant_map|nested_\w+|quant_state\S*)$"
)
_BUFFER = re.compile(
    r"inv_freq$|(?:^|\.)(?:attn|attention)\.(?:bias|masked_bias)$|position_ids$|e_score_correction_bias$|tid2eid$"
    r"|(?:slope_rate|(?:query|key|diagonal)_decay)$"
)
_EMBED = re.compile(
    r"(?:^|\.)(?:embed_tokens|shared|wte|word_embeddings|embed_in|tok_embeddings|embedding|embeddings|embed)\.weight$"
)
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out|output)\.weight$")

_PARTS = (
    (Role.VECTOR, re.compile(r"norm|\.bias$|sinks$|ln_\d|A_log$|dt_bias$|\.D$")),
    (Role.EXPERT, re.compile(r"(?:^|\.)experts\.")),
    (Role.FFN, re.compile(r"shared_expert|mlp\.(?:gate_|up_|down_|c_|fc|dense)|feed_forward\.w|shared_mlp")),
    (Role.ROUTER, re.compile(r"(?:mlp|ffn|block_sparse_moe|feed_forward|mixer)\.(?:gate|router)|router")),
    (Role.FFN, re.compile(r"(?:^|\.)(?:mlp|ffn|feed_forward|fc1|fc2)\b")),
)
_INTEGERS = ("I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64", "BOOL", "F4")


@dataclass
class Census:
    """Tensors of a checkpoint, counted by role.

    Attributes
    ----------
    elements, nbytes
        Parameters and bytes by role, draft layers left out [B].
    exact
        Whether every parameter is stored by itself, so that they can be counted; packed integers cannot.
    buffers
        Elements of tensors that most architectures do not count as parameters, such as corrections of the router.
    draft_bytes
        Bytes of layers that only speculative decoding loads [B].
    """

    elements: dict[Role, int] = field(default_factory=dict)
    nbytes: dict[Role, int] = field(default_factory=dict)
    exact: bool = True
    buffers: int = 0
    draft_bytes: int = 0
    embed: Sequence[int] = ()
    head: bool = False
    layers: int = 0
    key_rows: set[int] = field(default_factory=set)
    widths: set[int] = field(default_factory=set)


def take_census(headers: Iterable[Header], layers: int) -> Census:
    """Count tensors by role; layers from number ``layers`` on, and those named so, are draft layers."""
    found = Census()
    listed = tuple(headers)
    names = {h.name for h in listed}
    for h in listed:
        within = None if _TOWER.search(h.name) else _LAYER.search(h.name)
        if _DRAFT.search(h.name) or (within and int(within[1]) >= layers and _drafts(h.name)):
            found.draft_bytes += h.nbytes
            continue
        role = _role(h.name, within)
        found.nbytes[role] = found.nbytes.get(role, 0) + h.nbytes
        scale = h.name.endswith(".scale") and f"{h.name.removesuffix('.scale')}.weight" in names
        if scale or _SCALE.search(h.name):
            continue
        if _BUFFER.search(h.name):
            found.buffers += prod(h.shape)
            continue
        found.exact &= h.dtype not in _INTEGERS
        found.elements[role] = found.elements.get(role, 0) + prod(h.shape)
        _notice(found, h, within)
    return found


def _drafts(name: str) -> bool:
    """A layer beyond the configured ones is a draft layer; nothing else of that number is known."""
    return "layers." in name


def _role(name: str, within: re.Match[str] | None) -> Role:
    if within is None:
        if _EMBED.search(name) and not _TOWER.search(name):
            return Role.EMBEDDING
        if _HEAD.search(name):
            return Role.HEAD
        return Role.VECTOR if "norm" in name and not _TOWER.search(name) else Role.OTHER
    return next((role for role, part in _PARTS if part.search(within[2])), Role.ATTENTION)


def _notice(found: Census, h: Header, within: re.Match[str] | None) -> None:
    """Shapes that a configuration also states."""
    if len(h.shape) != 2 or h.dtype in _INTEGERS:
        return
    if within is None:
        if _EMBED.search(h.name) and not _TOWER.search(h.name) and "position" not in h.name:
            found.embed = found.embed or h.shape
        found.head |= bool(_HEAD.search(h.name))
        return
    found.layers = max(found.layers, int(within[1]) + 1)
    if re.search(r"attn\.k_proj\.weight$", within[2]):
        found.key_rows.add(h.shape[0])
    if re.search(r"mlp\.(?:gate|up)_proj\.weight$", within[2]):
        found.widths.add(h.shape[0])


def corrected(card: Card, census: Census, untied: bool = False) -> list[str]:
    """Put right in a card what the tensors show to be otherwise; what was changed, in words.

    Parameters
    ----------
    untied
        Whether the configuration says that the head is not the embedding. A head that is there counts only then: tied models
        may hold a copy, which is not loaded.
    """
    notes: list[str] = []

    def put(key: str, value: int | bool, what: str) -> None:
        if card.get(key, False) != value:
            notes.append(f"{what} {value:,} rather than {card.get(key):,}" if not isinstance(value, bool) else what)
            card[key] = value

    if len(census.embed) == 2 and "embedding_width" not in card:
        put("vocab", census.embed[0], "vocabulary")
        put("hidden", census.embed[1], "hidden width")
    if census.embed and not census.head and not card.get("tied"):
        put("tied", True, "no head of its own")
    if census.head and untied:
        put("tied", False, "a head of its own")
    rows = [r for r in card.get("attention", []) if r.get("kind", "heads") == "heads"]
    if len(census.key_rows) == 1 and len({(r["kv_heads"], r["head_dim"]) for r in rows}) == 1:
        heads, rest = divmod(next(iter(census.key_rows)), rows[0]["head_dim"])
        if not rest and heads and heads != rows[0]["kv_heads"]:
            notes.append(f"{heads} KV heads rather than {rows[0]['kv_heads']}")
            for row in rows:
                row["kv_heads"] = heads
    dense = [r for r in card.get("ffn", []) if not r.get("experts")]
    if (
        len(census.widths) == 1
        and len({r["width"] for r in dense}) == 1
        and not any("shared_width" in r for r in card["ffn"])
    ):
        width = next(iter(census.widths))
        if width != dense[0]["width"]:
            notes.append(f"feed-forward width {width:,} rather than {dense[0]['width']:,}")
            for row in dense:
                row["width"] = width
    return notes


def with_counted(model: ModelSpec, census: Census) -> tuple[ModelSpec, list[str]]:
    """The model with the bytes that are really there, and with weights that its rows do not explain."""
    notes: list[str] = []
    if census.exact:
        gap = sum(census.elements.values()) - model.total_parameters
        if gap > 0:
            unexplained = {"name": "weights that the configuration does not explain", "parameters": gap}
            fields = model.model_dump(exclude={"parameters", "parameters_within"}, exclude_none=True)
            model = ModelSpec.derived(**{**fields, "other": [*fields["other"], unexplained]})
            notes.append(f"{gap:,} parameters more than the configuration explains")
        elif gap < 0 and -gap != census.buffers:
            notes.append(f"{-gap:,} parameters fewer than the configuration derives")
    weights = model.weights.model_copy(update={"nbytes": _by_role(model, census)})
    assert isinstance(weights, WeightFormats)
    return model.model_copy(update={"weights": weights}), notes


def _by_role(model: ModelSpec, census: Census) -> dict[Role, int]:
    """Bytes of each role that sum to what is there [B].

    They are those counted where the tensors show the model's own roles. Names of another kind tell the sum only: then roles
    have the bytes that their formats give, and the largest takes the difference.
    """
    held = {role: n for role, n in census.nbytes.items() if n}
    parameters = {role: n for role, n in model.parameters_by_role.items() if n}
    if held.keys() == parameters.keys():
        return held
    formats, total = model.weight_formats(), sum(held.values())
    derived = {role: int(formats[role].nbytes(n)) for role, n in parameters.items()}
    largest = max(derived, key=lambda role: derived[role])
    rest = total - sum(n for role, n in derived.items() if role is not largest)
    if rest > 0:
        return {**derived, largest: rest}
    return {role: max(1, n * total // sum(derived.values())) for role, n in derived.items()}
