"""A GGUF file as a model: rows from its tensors and metadata, weight bytes from its tensors, nothing from their data.

Where metadata and tensors disagree the tensors win, and the model's note says so.

References
----------
llama.cpp, ``src/llama-model.cpp`` and ``src/models``: what each architecture reads, and which layers have windows;
``include/llama.h``, ``llama_ftype``: names of file types.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from planner.checkpoint.ggufheader import GgufHeader, GgufTensor, read_header
from planner.checkpoint.gguflayer import Heads, attention_of, feedforward_of
from planner.checkpoint.ggufparts import Facts, Layer, Ledger, Part, merged_experts
from planner.checkpoint.ggufstate import state_of
from planner.checkpoint.template import at_of
from planner.errors import CardError
from planner.formats import WeightFormats
from planner.model import ModelSpec
from planner.precision import FORMATS
from planner.row import MAX_LAYERS, Row, Source, one_line
from planner.tensors import Role

_MAX_KINDS = 512
"""Rows of one kind that a model may have; layers that differ in more ways are no model's."""


@dataclass(frozen=True, slots=True)
class Sliding:
    """Which layers of an architecture have a window, where the file does not say.

    Attributes
    ----------
    period
        The last of so many layers keeps all tokens; 1 for no window at all.
    full_first
        Whether it is the first of them instead.
    window
        Tokens of a window if the file names none.
    fixed
        Whether that holds whatever the file names, unless it names 0.
    layers
        The number of layers that a model with windows has; 0 for any.
    """

    period: int
    full_first: bool = False
    window: int = 0
    fixed: bool = False
    layers: int = 0


_SLIDING = {
    "afmoe": Sliding(4), "cohere2": Sliding(4), "exaone-moe": Sliding(4), "exaone4": Sliding(4, window=4096, layers=64),
    "gemma2": Sliding(2, window=4096), "gemma3": Sliding(6), "gemma3n": Sliding(5), "gpt-oss": Sliding(2),
    "laguna": Sliding(4, full_first=True), "llama4": Sliding(4, window=8192, fixed=True), "olmo2": Sliding(4),
    "phi3": Sliding(1), "plamo3": Sliding(8), "smallthinker": Sliding(4, full_first=True, window=4096),
}  # fmt: skip
"""``set_swa_pattern`` and ``n_swa`` of each architecture's loader in llama.cpp."""

_OWN_CACHE = {"gemma3n": 20}
"""Layers with a cache of their own, from the first on, where the file does not say (``n_layer_kv_from_start``)."""

_REFUSED = {
    "clip": "holds the part that turns images into embeddings; name the language model's file",
    **dict.fromkeys(("t5", "t5encoder"), "is an encoder-decoder's; name its config.json instead"),
    **dict.fromkeys(
        ("bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "jina-bert-v2", "jina-bert-v3", "eurobert",
         "gemma-embedding", "llama-embed"),
        "is an encoder's, which generates nothing and keeps no cache",
    ),
    "wavtokenizer-dec": "turns tokens into sound and keeps no cache; name the language model's file",
}  # fmt: skip

_KNOWN = frozenset({
    "afmoe", "apertus", "arcee", "arctic", "arwkv7", "baichuan", "bailingmoe", "bailingmoe2", "bitnet", "bloom",
    "chameleon", "chatglm", "codeshell", "cogvlm", "cohere2", "cohere2moe", "command-r", "dbrx", "deci", "deepseek",
    "deepseek2", "deepseek2-ocr", "deepseek32", "dots1", "dream", "ernie4_5", "ernie4_5-moe", "exaone", "exaone-moe",
    "exaone4", "falcon", "falcon-h1", "gemma", "gemma2", "gemma3", "gemma3n", "gemma4", "glm-dsa", "glm4", "glm4moe",
    "gpt-oss", "gpt2", "gptj", "gptneox", "granite", "granitehybrid", "granitemoe", "grok", "grovemoe",
    "hunyuan-dense", "hunyuan-moe", "hunyuan_vl", "hy_v3", "internlm2", "jais", "jais2", "jamba", "kimi-linear",
    "laguna", "lfm2", "lfm2moe", "llada", "llada-moe", "llama", "llama4", "maincoder", "mamba", "mamba2", "mellum",
    "mimo2", "minicpm", "minicpm3", "minimax-m2", "mistral3", "mistral4", "mpt", "nemotron", "nemotron_h",
    "nemotron_h_moe", "olmo", "olmo2", "olmoe", "openelm", "orion", "paddleocr", "pangu-embedded", "phi2", "phi3",
    "phimoe", "plamo", "plamo2", "plamo3", "plm", "qwen", "qwen2", "qwen2moe", "qwen2vl", "qwen3", "qwen35",
    "qwen35moe", "qwen3moe", "qwen3next", "qwen3vl", "qwen3vlmoe", "refact", "rnd1", "rwkv6", "rwkv6qwen2", "rwkv7",
    "seed_oss", "smallthinker", "smollm3", "stablelm", "starcoder", "starcoder2", "step35", "talkie", "xverse",
})  # fmt: skip
"""Architectures of llama.cpp (``LLM_ARCH_NAMES``) that generate text."""

_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE", 39: "NVFP4",
    40: "Q1_0",
}  # fmt: skip
_GUESSED = 1024


def read_gguf(path: Path) -> ModelSpec:
    """Read a GGUF file as a model.

    Parameters
    ----------
    path
        The file, or any part of one in parts.

    Raises
    ------
    CardError
        If the file is damaged, or holds no model that can be planned.
    """
    header = read_header(path)
    facts = Facts(header.metadata, re.sub(r"[^\x20-\x7e\xa0-\uffff]", "?", path.name)[:120])
    _check(header, facts)
    day = datetime.fromtimestamp(path.stat().st_mtime, UTC).date().isoformat()
    locator = re.sub(r"[\x00-\x1f\x7f-\x9f]", "?", str(path))[-500:]
    source = Source(title=f"header of {facts.where}", locator=locator, date=day)
    try:
        return _model(header, facts, path, source)
    except ValidationError as error:
        raise CardError(f"{facts.where}: {one_line(error)} (read as {facts.arch[:40]}); is the file whole?") from None


def _check(header: GgufHeader, facts: Facts) -> None:
    """Whether the file holds a language model that generates."""
    if facts.arch in _REFUSED:
        facts.refuse(_REFUSED[facts.arch])
    kind = header.metadata.get("general.type", "model")
    if kind != "model":
        facts.refuse(f"holds a {str(kind)[:40]}, not a model; name the model's file")
    if facts.value("attention.causal") is False:
        facts.refuse("is an encoder's, which generates nothing and keeps no cache")
    if facts.arch not in _KNOWN:
        facts.note(f"Architecture {facts.arch[:60]!r} is not known: planned as its keys and tensors look")


# -- the stack ---------------------------------------------------------------------------------------------------------


def _model(header: GgufHeader, facts: Facts, path: Path, source: Source) -> ModelSpec:
    outside, inside = _sorted_out(header.tensors, facts)
    embedding = outside.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        facts.refuse("has no token_embd.weight, the embedding; name the language model's file")
    hidden, vocab = embedding.shape
    if facts.number("embedding_length", hidden) != hidden:
        facts.note(f"The tensors have width {hidden:,} rather than {facts.number('embedding_length'):,}")
    layers, drafted = _layer_count(inside, facts)
    ledger = Ledger()
    stack = _stack(inside[:layers], facts, hidden, ledger, outside)
    ends = _ends(outside, ledger, hidden, vocab, stack["norm_bias"])
    card: dict[str, Any] = {
        **stack, **ends, "hidden": hidden, "vocab": vocab, "layers": layers, "context_limit": facts.need("context_length"),
        "weights": _formats(ledger, header, ends["tied"]), "source": (source,),
    }  # fmt: skip
    drafts = sum(t.elements for layer in inside[layers : layers + drafted] for t in layer.values())
    if drafts:
        card["drafter"] = {"layers": drafted, "parameters": drafts}
    model = ModelSpec.derived(
        id=re.sub(r"[^a-z0-9._+-]+", "-", _stem(path).lower()).strip("-")[:120] or "model",
        name=_name(header, path), family=facts.arch[:100], note=_note(facts, layers), **card,
    )  # fmt: skip
    total = sum(t.elements for t in header.tensors) - drafts
    if model.parameters != total:
        facts.refuse(f"holds {total:,} parameters, but its rows derive {model.parameters:,}; please report the file")
    return model


def _sorted_out(
    tensors: tuple[GgufTensor, ...], facts: Facts
) -> tuple[dict[str, GgufTensor], list[dict[str, GgufTensor]]]:
    """Tensors outside the layers by name, and those of each layer by name without its number."""
    outside: dict[str, GgufTensor] = {}
    inside: dict[int, dict[str, GgufTensor]] = {}
    for tensor in tensors:
        within = re.fullmatch(r"blk\.([0-9]{1,6})\.(.+)", tensor.name, re.DOTALL)
        if within:
            inside.setdefault(int(within[1]), {})[within[2]] = tensor
        else:
            outside[tensor.name] = tensor
    highest = max(inside, default=-1)
    if highest >= MAX_LAYERS:
        facts.refuse(f"has a layer {highest:,}, and a model has up to {MAX_LAYERS:,}; download it again")
    return outside, [merged_experts(inside.get(i, {})) for i in range(highest + 1)]


def _layer_count(inside: list[dict[str, GgufTensor]], facts: Facts) -> tuple[int, int]:
    """Layers of the model, and those after them that only speculative decoding loads."""
    said = facts.need("block_count")
    drafting = [i for i, layer in enumerate(inside) if any(name.startswith("nextn.") for name in layer)]
    layers = min(drafting, default=len(inside))
    if layers < len(inside) and len(drafting) != len(inside) - layers:
        facts.refuse("has layers of multi-token prediction between others; download it again")
    if said not in (len(inside), layers + facts.number("nextn_predict_layers")):
        facts.note(f"The tensors have {len(inside)} layers rather than {said:,}")
    if not layers:
        facts.refuse("has no layers (tensors named blk.0 and on); name the language model's file")
    empty = next((i for i, layer in enumerate(inside) if not layer), None)
    if empty is not None:
        facts.refuse(f"has no tensors of layer {empty}; download it again")
    return layers, len(inside) - layers


class _Kinds:
    """Rows of one kind with the layers that have them; like rows together."""

    def __init__(self) -> None:
        self._rows: dict[Any, tuple[Any, list[int]]] = {}

    def add(self, row: Any, layer: int) -> None:
        self._rows.setdefault(row, (row, []))[1].append(layer)

    def placed(self, layers: int, facts: Facts) -> tuple[Any, ...]:
        if len(self._rows) > _MAX_KINDS:
            facts.refuse(f"has layers of {len(self._rows):,} kinds, which no model has; download it again")
        return tuple(
            row.model_copy(update={"at": "" if len(of) == layers else at_of(of, layers)})
            for row, of in self._rows.values()
        )


class _Extra(Row):
    """Weights beside the rows, before they are placed."""

    at: str = ""
    name: str
    role: str
    parameters: int


def _stack(
    inside: list[dict[str, GgufTensor]], facts: Facts, hidden: int, ledger: Ledger, outside: dict[str, GgufTensor]
) -> dict[str, Any]:
    """Rows of all layers."""
    layers = len(inside)
    given = _heads(facts, layers, hidden)
    norms, biased = _norms(inside, hidden, outside)
    kinds = {what: _Kinds() for what in ("state", "attention", "ffn", "extra")}
    parallel = bool(facts.value("use_parallel_residual")) or _is_parallel(inside, hidden)
    for i, tensors in enumerate(inside):
        layer = Layer(i, tensors, facts, hidden, ledger)
        found = {"state": state_of(layer), "attention": attention_of(layer, given[i]), "ffn": feedforward_of(layer)}
        mixes = found["attention"][0] or found["state"][0]
        if not (mixes or found["ffn"][0]) or (not mixes and layer.projects_attention()):
            layer.refuse(f"has no attention by attn_q, attn_qkv or attn_kv_a_mqa, but {_few(layer.names())}")
        for name in norms[i]:
            layer.claim(Role.VECTOR, name, *((name.replace(".weight", ".bias"),) if biased else ()))
        for what, (row, _) in found.items():
            if row is not None:
                kinds[what].add(row, i)
        beside = [part for _, further in found.values() for part in further]
        for role, (name, parameters) in _by_role([*beside, *layer.rest()]).items():
            kinds["extra"].add(_Extra(name=name, role=role.value, parameters=parameters), i)
    rows = {what: kind.placed(layers, facts) for what, kind in kinds.items()}
    rows["extra"] = tuple(row.model_dump() for row in rows["extra"])
    return {**rows, "norms_per_layer": len(norms[0]), "norm_bias": biased, "parallel": parallel}


def _by_role(parts: list[Part]) -> dict[Role, tuple[str, int]]:
    """Extra weights of a layer as one of each role, named after the parts."""
    found: dict[Role, tuple[list[str], int]] = {}
    for role, name, parameters in parts:
        names, total = found.get(role, ([], 0))
        found[role] = ([*names, name], total + parameters)
    return {role: (_few(names), total) for role, (names, total) in found.items()}


def _few(names: list[str]) -> str:
    """The first few of many names, as printable text.

    >>> _few(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return re.sub(r"[^\x20-\x7e\xa0-\uffff]", "?", ", ".join(n[:60] for n in names[:3])) + more


_INNER = ("attn_q", "attn_k", "ssm_", "indexer.")
"""Beginnings of norms within attention and state, however wide."""


def _norm_names(tensors: dict[str, GgufTensor], hidden: int) -> list[str]:
    """Norms of the hidden state in a layer, the two that most models have first."""
    usual = ("attn_norm.weight", "ffn_norm.weight")
    found = [
        name for name, t in tensors.items()
        if "norm" in name and name.endswith(".weight") and t.shape == (hidden,) and not name.startswith(_INNER)
    ]  # fmt: skip
    return sorted(found, key=lambda name: (name not in usual, name))


def _norms(
    inside: list[dict[str, GgufTensor]], hidden: int, outside: dict[str, GgufTensor]
) -> tuple[list[list[str]], bool]:
    """As many norms in each layer as all layers have, and whether all of them have a bias."""
    found = [_norm_names(tensors, hidden) for tensors in inside]
    fewest = min(len(names) for names in found)
    found = [names[:fewest] for names in found]
    last = [outside.get(f"output_norm.{part}") for part in ("weight", "bias")]
    biased = fewest > 0 and all(t is not None and t.shape == (hidden,) for t in last)
    for tensors, names in zip(inside, found, strict=True):
        for name in names:
            bias = tensors.get(name.replace(".weight", ".bias"))
            biased = biased and bias is not None and bias.shape == (hidden,)
    return found, biased


def _is_parallel(inside: list[dict[str, GgufTensor]], hidden: int) -> bool:
    """Whether attention and feed-forward share one norm, and so read the same input."""
    both = [t for t in inside if "ffn_down.weight" in t and "attn_output.weight" in t]
    shared = [
        t
        for t in both
        if [n for n in _norm_names(t, hidden) if n.startswith(("attn_norm.", "attn_norm_2."))] == _norm_names(t, hidden)
    ]
    return bool(both) and len(shared) == len(both) and all("attn_norm.weight" in t for t in both)


def _heads(facts: Facts, layers: int, hidden: int) -> list[Heads]:
    """Heads, windows and ownership of each layer's cache, as far as metadata say."""
    heads = facts.each("attention.head_count", layers)
    kv = facts.each("attention.head_count_kv", layers) if facts.value("attention.head_count_kv") is not None else heads
    windows = _windows(facts, layers)
    shared = facts.number("attention.shared_kv_layers", max(layers - _OWN_CACHE.get(facts.arch, layers), 0))
    found = []
    for i in range(layers):
        key, value = (facts.number(f"attention.{part}_length") for part in ("key", "value"))
        if windows[i]:
            key, value = (facts.number(f"attention.{p}_length_swa", n) for p, n in (("key", key), ("value", value)))
        found.append(Heads(heads[i], kv[i], key, value, windows[i], owner=i < layers - shared))
    return found


def _windows(facts: Facts, layers: int) -> list[int]:
    """Tokens that each layer keeps; 0 for all."""
    rule = _SLIDING.get(facts.arch)
    named = facts.value("attention.sliding_window") is not None
    window = facts.number("attention.sliding_window")
    if rule and rule.window and (not named or (rule.fixed and window)):
        window = rule.window
    pattern = facts.value("attention.sliding_window_pattern")
    if not window or (rule and rule.layers not in (0, layers)):
        return [0] * layers
    if isinstance(pattern, list):
        return [window * bool(slides) for slides in facts.each("attention.sliding_window_pattern", layers)]
    if rule is None and pattern is None:
        facts.note(f"The file names a window of {window:,} tokens but not the layers that have it: planned without")
        return [0] * layers
    period = facts.number("attention.sliding_window_pattern", rule.period if rule else 1)
    full = 0 if rule and rule.full_first else period - 1
    return [window * (not period or i % period != full) for i in range(layers)]


# -- what is outside the layers ----------------------------------------------------------------------------------------


def _ends(outside: dict[str, GgufTensor], ledger: Ledger, hidden: int, vocab: int, norm_bias: bool) -> dict[str, Any]:
    """Embedding, head, final norm, and whatever else is outside the layers."""
    left = dict(outside)
    ledger.add(Role.EMBEDDING, left.pop("token_embd.weight"))

    def take(name: str, shape: tuple[int, ...], role: Role) -> bool:
        if name not in left or left[name].shape != shape:
            return False
        ledger.add(role, left.pop(name))
        return True

    found: dict[str, Any] = {
        "tied": not take("output.weight", (hidden, vocab), Role.HEAD),
        "head_bias": take("output.bias", (vocab,), Role.VECTOR),
        "final_norm": take("output_norm.weight", (hidden,), Role.VECTOR),
    }
    if norm_bias:
        take("output_norm.bias", (hidden,), Role.VECTOR)
    positions = left.get("position_embd.weight")
    if (
        positions
        and len(positions.shape) == 2
        and take("position_embd.weight", (hidden, positions.shape[1]), Role.OTHER)
    ):
        found["learned_positions"] = positions.shape[1]
    for tensor in left.values():
        ledger.add(Role.OTHER, tensor)
    named = [(_few([name.removesuffix(".weight")]), t.elements) for name, t in sorted(left.items())]
    if len(named) > 32:
        named = [*named[:31], (f"{len(named) - 31:,} other tensors", sum(n for _, n in named[31:]))]
    return {**found, "other": tuple({"name": name, "parameters": n} for name, n in named)}


def _formats(ledger: Ledger, header: GgufHeader, tied: bool) -> WeightFormats:
    """The formats that prevail in each role, and the bytes that are there."""
    linear: dict[str, int] = {}
    for role, held in ledger.types.items():
        for name, elements in held.items() if role.linear else ():
            linear[name] = linear.get(name, 0) + elements
    default = _prevailing(linear)
    own = {role: _prevailing(held) for role, held in ledger.types.items()}
    kind = header.metadata.get("general.file_type")
    head = Role.EMBEDDING if tied else Role.HEAD
    return WeightFormats(
        default=default, attention=own.get(Role.ATTENTION), ffn=own.get(Role.FFN), experts=own.get(Role.EXPERT),
        embedding=own.get(Role.EMBEDDING), head=own.get(head), nbytes=ledger.nbytes,
        label=_FILE_TYPES.get(kind % _GUESSED) if isinstance(kind, int) else None,
    )  # fmt: skip


def _prevailing(held: dict[str, int]) -> str:
    """The format that most elements are in."""
    known = {name: n for name, n in held.items() if name in FORMATS}
    return max(known, key=lambda name: known[name], default="fp32")


def _stem(path: Path) -> str:
    """The file's name without its ending and the number of its part."""
    return re.sub(r"(-[0-9]{5}-of-[0-9]{5})?\.gguf$", "", path.name, flags=re.IGNORECASE)


def _name(header: GgufHeader, path: Path) -> str:
    named = header.metadata.get("general.name")
    text = named if isinstance(named, str) and named.strip() else _stem(path)
    return re.sub(r"[\x00-\x1f\x7f-\x9f]+", " ", text).strip()[:120] or "model"


def _note(facts: Facts, layers: int) -> str:
    """What was noticed, each once with the layers it was noticed in."""
    found = []
    for text, of in list(facts.notes.items())[:8]:
        where = "" if len(of) in (0, layers) else f" in layer {of[0]}" if len(of) == 1 else f" in {len(of)} layers"
        found.append(f"{text}{where}.")
    return " ".join(found)
