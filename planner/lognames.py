"""Names that engines print, in kvplan's words: models behind paths and suffixes, formats, devices.

Everything here is a search among names that the catalogue has: what is not found is not guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from planner.catalog import aliases, gpu_ids, load_card, load_gpu, model_ids, normalise
from planner.errors import KvplanError
from planner.formats import HIGH_PRECISION, WeightFormats
from planner.gpu import GpuSpec
from planner.model import ModelSpec

SAME_MEMORY = 0.015
"""By how much drivers differ in what they report of one device."""

_WEIGHTS = {
    "awq": "int4", "gptq": "int4", "int4": "int4", "w4a16": "int4", "wna16": "int4", "auto_round": "int4", "4bit": "int4",
    "autoround": "int4", "w4a8": "int4", "int8": "int8", "w8a8": "int8", "w8a16": "int8", "8bit": "int8", "fp8": "fp8",
    "modelopt": "fp8", "mxfp8": "mxfp8", "bitsandbytes": "nf4", "bnb": "nf4", "nf4": "nf4", "nvfp4": "nvfp4",
    "nvfp4a16": "nvfp4", "fp4": "nvfp4", "mxfp4": "mxfp4",
}  # fmt: skip
"""Formats of weights, by the words that stand for them."""
_NOTHING = {
    "unsloth", "dynamic", "block", "marlin", "quantized", "quant", "gguf", "ud", "kv", "tensor", "channel", "g128", "128g",
    "gs128", "group", "sym", "asym", "mixed", "modelopt", "compressed", "tensors", "hf", "bf16", "fp16", "mlx", "v2",
    "mtp", "imatrix", "abliterated", "resharded", "text",
}  # fmt: skip
"""Words after a model's name that say nothing about which model it is."""
_GGUF = re.compile(r"(?i)[-_.](?:ud[-_])?((?:i?q[1-9]|tq[12])_[a-z0-9_]{1,6}|mxfp4(?:_moe)?|bf16|f16)$")
_FILE = re.compile(r"(?i)(?:-[0-9]{5}-of-[0-9]{5})?\.gguf$|:latest$")
_FTYPE = re.compile(r"(?i)(?:mostly )?((?:i?q[1-9]|tq[12])_[a-z0-9_]{1,6}|mxfp4|bf16|f16)(?: - (small|medium|large))?")
_KINDS = re.compile(r"(?i)[-_ ](?:instruct|chat|it|base|hf|preview|thinking|[0-9]{4})$")
_CAPACITY = re.compile(r"(?i)[0-9]{1,4}gb")
_HASH = re.compile(r"[0-9a-f]{20,64}|snapshots|main|[0-9]{1,3}")


@dataclass(frozen=True, slots=True)
class Found:
    """The card that a printed name stands for.

    Attributes
    ----------
    weights
        Format of the weights, where it is another than released.
    other
        Whether the card is of another quantised checkpoint of the same model.
    """

    model: ModelSpec
    weights: str | None
    other: bool = False


def find_model(names: Iterable[str | None], quantization: str | None) -> Found | None:
    """The card that a printed name or path stands for.

    >>> found = find_model(["/models/Qwen3-8B-AWQ"], "awq_marlin")
    >>> found.model.id, found.weights
    ('qwen3-8b', 'int4')
    """
    spelled = [one for name in names for one in _spellings(name or "")]
    for name, suffix in spelled:
        if (known := _names().get(_key(name))) is not None:
            model = load_card(known)
            return Found(model, suffix if suffix is not None else _applied(model, quantization))
    for name, suffix in spelled:
        if (known := _quantised().get(_key(name))) is not None:
            return Found(load_card(known), suffix or weight_format(quantization) or "bf16", other=True)
    return None


def weight_format(words: str | None) -> str | None:
    """kvplan's name of a format of weights that an engine prints.

    >>> weight_format("Q4_K - Medium"), weight_format("compressed-tensors"), weight_format("modelopt_fp4")
    ('q4_k_m', None, 'nvfp4')
    """
    text = (words or "").strip().lower()
    if match := _FTYPE.match(text):
        return _ggml(match[1], match[2])
    if text in ("gptq_marlin", "awq_marlin"):
        return "int4"
    parts = [_WEIGHTS[part] for part in re.split(r"[-_. ]", text) if part in _WEIGHTS]
    return _WEIGHTS.get(text) or (parts[-1] if parts else None)


def cache_format(name: str | None) -> str | None:
    """kvplan's name of a cache format that a log prints; ``None`` for "auto" and for what it does not know."""
    text = (name or "").lower().removeprefix("torch.")
    known = {
        "float8": "fp8", "fp8": "fp8", "bfloat16": "bf16", "bf16": "bf16", "float16": "fp16", "half": "fp16", "f16": "fp16",
        "int8": "int8", "int4": "int4", "nvfp4": "nvfp4", "q8_0": "q8_0", "q4_0": "q4_0", "q5_1": "q5_1", "q5_0": "q5_0",
        "q4_1": "q4_1", "iq4_nl": "iq4_nl",
    }  # fmt: skip
    return next((ours for start, ours in known.items() if text.startswith(start)), None)


def find_device(name: str) -> GpuSpec | None:
    """The catalogue's device of a printed name: its longest start that is one, or the only one that starts so.

    >>> find_device("NVIDIA H100 80GB HBM3").id, find_device("NVIDIA GeForce RTX 3070")
    ('h100-sxm', None)
    """
    text = re.sub(r"(?i)\((?:r|tm)\)|nvidia|tesla|geforce|\bamd\b|radeon|instinct|intel|graphics|_", " ", name)
    words = sorted(text.split()[:12], key=lambda word: bool(_CAPACITY.fullmatch(word)))
    for length in range(len(words), 0, -1):
        dropped = {word.lower() for word in words[length:]}
        if dropped & {"ti", "super", "laptop", "mobile", "max-q", "nvl", "pcie"}:
            return None
        spelled = "-".join(words[:length])
        try:
            return load_gpu(spelled)
        except KvplanError:
            starting = [i for i in gpu_ids() if i.startswith(spelled.lower() + "-")]
            if len(starting) == 1:
                return load_gpu(starting[0])
    return None


def devices_of(memory: int) -> list[GpuSpec]:
    """Devices that have so much memory [B], the nearest first."""
    close = [g for g in map(load_gpu, gpu_ids()) if abs(g.usable_bytes / memory - 1) < SAME_MEMORY]
    return sorted(close, key=lambda g: (abs(g.usable_bytes - memory), g.id))


def _applied(model: ModelSpec, quantization: str | None) -> str | None:
    """The format that an engine converts weights to when it loads them, if they are not quantised already."""
    released = model.weights
    plain = released.default in HIGH_PRECISION and released == WeightFormats(default=released.default)
    return weight_format(quantization) if plain else None


def _ggml(kind: str, size: str | None) -> str:
    plain = {"f16": "fp16", "mxfp4_moe": "mxfp4"}.get(kind.lower(), kind.lower())
    return f"{plain}_{size[0].lower()}" if size and re.fullmatch(r"q[1-9]_k", plain) else plain


def _key(name: str) -> str:
    """Spelling that printed names are compared in: dots do not count either."""
    return normalise(name).replace(".", "")


@lru_cache(maxsize=1)
def _names() -> dict[str, str]:
    """Every name of every card by its key; names without their owner where that is not ambiguous with an id."""
    known = [*model_ids(), *aliases(ModelSpec)]
    tails = {_key(name.rpartition("/")[2]): name for name in sorted(known, key=len, reverse=True)}
    return tails | {_key(name): name for name in reversed(known)}


@lru_cache(maxsize=1)
def _quantised() -> dict[str, str]:
    """Cards of checkpoints in a format of their own by the key of what is in it."""
    found: dict[str, str] = {}
    for name in [*model_ids(), *aliases(ModelSpec)]:
        *_, (base, _) = _rid_of_formats(name.rpartition("/")[2])
        found.setdefault(_key(base), name)
    return found


def _spellings(name: str) -> Iterator[tuple[str, str | None]]:
    """Names that a card may answer to, most likely first, each with the format that it was rid of."""
    parts = [part for part in re.split(r"[/\\]", name.strip()[:400]) if part not in ("", ".", "~")]
    parts = [part.removeprefix("models--").replace("--", "/") for part in parts if not _HASH.fullmatch(part)]
    for at in range(len(parts) - 1, -1, -1):
        part = parts[at]
        if at < len(parts) - 1 and not re.search(r"(?i)[0-9]", part):
            continue
        owner = parts[at - 1] + "/" if at else ""
        for spelled, form in _rid_of_formats(part):
            for whole in dict.fromkeys((owner + spelled, spelled, spelled.rpartition("/")[2])):
                yield whole, form
        for spelled, form in _rid_of_formats(part):
            while shorter := _KINDS.sub("", spelled):
                if shorter == spelled:
                    break
                spelled = shorter
                yield spelled, form


def _rid_of_formats(name: str) -> Iterator[tuple[str, str | None]]:
    """A name, then the same with words for formats taken off its end, one by one."""
    form = None
    name = _FILE.sub("", name)
    yield name, None
    if match := _GGUF.search(name):
        form, name = _ggml(match[1], None), name[: match.start()]
        yield name, form
    while match := re.search(r"[-_. ]([A-Za-z0-9]{1,16})$", name):
        word = match[1].lower()
        if word not in _WEIGHTS and word not in _NOTHING:
            return
        named = _WEIGHTS.get(word) if word != "modelopt" else None
        form = named if named and (form is None or word == "bnb") else form
        name = name[: match.start()]
        if name:
            yield name, form
