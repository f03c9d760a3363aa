"""GGUF files for tests, written by the official ``gguf`` package: a whole header, and data that is a hole in the file."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter

Type = GGMLQuantizationType
Shapes = dict[str, tuple[int, ...]]


def write(
    path: Path, arch: str, metadata: dict[str, Any], shapes: Shapes, types: Any = None, part: int = 0
) -> list[Path]:
    """Write a file, or several of ``part`` tensors each; matrices are bf16 unless ``types(name)`` says otherwise."""
    writer = GGUFWriter(path, arch, split_max_tensors=part)
    for key, value in metadata.items():
        name = key if key.startswith(("general.", "tokenizer.")) else f"{arch}.{key}"
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        else:
            writer.add_array(name, value)
    for name, shape in shapes.items():
        kind = (types(name) if types else None) or (Type.F32 if len(shape) == 1 else Type.BF16)
        block, size = GGML_QUANT_SIZES[kind]
        writer.add_tensor_info(name, shape[::-1], np.dtype(np.float32), prod(shape) // block * size, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    assert writer.fout is not None
    written = []
    for stream, tensors in zip(writer.fout, writer.tensors, strict=True):
        end = stream.tell()
        for info in tensors.values():
            end += -end % 32 + info.nbytes
        stream.truncate(end)
        written.append(Path(stream.name))
    writer.close()
    return written


def ends(hidden: int, vocab: int, tied: bool = False) -> Shapes:
    """Embedding, final norm and head."""
    head = {} if tied else {"output.weight": (hidden, vocab)}
    return {"token_embd.weight": (hidden, vocab), "output_norm.weight": (hidden,), **head}


def attention(hidden: int, heads: int, kv: int, key: int, bias: bool = False, norm: bool = False) -> Shapes:
    """Tensors of grouped-query attention."""
    found: Shapes = {
        "attn_norm.weight": (hidden,), "attn_q.weight": (hidden, heads * key), "attn_k.weight": (hidden, kv * key),
        "attn_v.weight": (hidden, kv * key), "attn_output.weight": (heads * key, hidden),
    }  # fmt: skip
    if bias:
        found |= {"attn_q.bias": (heads * key,), "attn_k.bias": (kv * key,), "attn_v.bias": (kv * key,)}
    if norm:
        found |= {"attn_q_norm.weight": (key,), "attn_k_norm.weight": (key,)}
    return found


def dense(hidden: int, width: int, ending: str = "") -> Shapes:
    """Tensors of a gated feed-forward."""
    return {
        **({} if ending else {"ffn_norm.weight": (hidden,)}), f"ffn_gate{ending}.weight": (hidden, width),
        f"ffn_up{ending}.weight": (hidden, width), f"ffn_down{ending}.weight": (width, hidden),
    }  # fmt: skip


def experts(hidden: int, width: int, count: int) -> Shapes:
    """Tensors of a mixture of experts."""
    return {
        "ffn_norm.weight": (hidden,), "ffn_gate_inp.weight": (hidden, count),
        "ffn_gate_exps.weight": (hidden, width, count), "ffn_up_exps.weight": (hidden, width, count),
        "ffn_down_exps.weight": (width, hidden, count),
    }  # fmt: skip


def mamba2(hidden: int, inner: int, state: int, heads: int, groups: int, kernel: int) -> Shapes:
    """Tensors of a Mamba-2 block."""
    channels = inner + 2 * groups * state
    return {
        "attn_norm.weight": (hidden,), "ssm_in.weight": (hidden, inner + channels + heads),
        "ssm_conv1d.weight": (kernel, channels), "ssm_conv1d.bias": (channels,), "ssm_dt.bias": (heads,),
        "ssm_a": (1, heads), "ssm_d": (1, heads), "ssm_norm.weight": (inner // groups, groups),
        "ssm_out.weight": (inner, hidden),
    }  # fmt: skip


def layers(count: int, *of: Shapes) -> Shapes:
    """Layers of tensors; the kinds take turns."""
    return {f"blk.{i}.{name}": shape for i in range(count) for name, shape in of[i % len(of)].items()}


def keys(hidden: int, count: int, context: int = 4096, heads: int = 0, kv: Any = 0, **more: Any) -> dict[str, Any]:
    """The keys that every architecture has."""
    found = {"block_count": count, "embedding_length": hidden, "context_length": context}
    if heads:
        found |= {"attention.head_count": heads, "attention.head_count_kv": kv or heads}
    return {**found, **{name.replace("__", "."): value for name, value in more.items()}}


def llama(
    hidden: int = 64, count: int = 4, heads: int = 8, kv: int = 2, width: int = 128, vocab: int = 96, **more: Any
) -> tuple[dict[str, Any], Shapes]:
    """A plain decoder with grouped queries: metadata and tensors."""
    layer = attention(hidden, heads, kv, hidden // heads) | dense(hidden, width)
    return keys(hidden, count, heads=heads, kv=kv, feed_forward_length=width, **more), ends(hidden, vocab) | layers(
        count, layer
    )
