"""Ways to run attention that read each key and value once, whatever the number of query heads that share it.

Query heads of a group are rows of one product with their key, so that MHA, GQA and MQA differ in bytes and not in
arithmetic; or the fused kernel takes the groups natively. None expands keys and values in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from planner.bench.device import Device

Attend = Callable[..., Any]
"""``attend(q, k, v, length)``: queries (batch, heads, 1, dim), keys and values (batch, kv_heads, room, dim), tokens kept."""

ROWS, NATIVE, PRODUCT = "rows", "native", "product"
WAYS = {
    "flash, groups as rows": ("FLASH_ATTENTION", ROWS),
    "flash, native GQA": ("FLASH_ATTENTION", NATIVE),
    "cuDNN, groups as rows": ("CUDNN_ATTENTION", ROWS),
    "cuDNN, native GQA": ("CUDNN_ATTENTION", NATIVE),
    "memory-efficient, groups as rows": ("EFFICIENT_ATTENTION", ROWS),
    "grouped products": ("", PRODUCT),
    "as torch chooses": ("", NATIVE),
}
"""Ways, with torch's name of the kernel and how groups are given to it."""
FUSED = tuple(name for name, (backend, _) in WAYS.items() if backend)
ANY = "as torch chooses"
"""For prompts only: in decoding it may expand keys and values."""


@contextmanager
def kernel(torch: Any, backend: str) -> Iterator[None]:
    """Only this kernel of scaled_dot_product_attention, so that none expands in silence; any of them without a name."""
    if not backend:
        yield
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel([getattr(SDPBackend, backend)]):
        yield


def decoder(way: str, device: Device) -> Attend:
    """Attention of one new token, in the given way."""
    backend, how = WAYS[way]
    torch = device.torch
    fused = torch.nn.functional.scaled_dot_product_attention

    def product(q: Any, k: Any, v: Any, length: int) -> Any:
        batch, heads, _, dim = q.shape
        grouped = q.view(batch, k.shape[1], heads // k.shape[1], dim)
        scores = torch.matmul(grouped, k.transpose(-1, -2))
        if length < k.shape[2]:
            scores[..., length:] = -torch.inf
        return torch.matmul(torch.softmax(scores * dim**-0.5, -1), v).view(batch, heads, 1, -1)

    def rows(q: Any, k: Any, v: Any, length: int) -> Any:
        batch, heads, _, dim = q.shape
        grouped = q.view(batch, k.shape[1], heads // k.shape[1], dim)
        with kernel(torch, backend):
            return fused(grouped, k[:, :, :length], v[:, :, :length]).reshape(batch, heads, 1, -1)

    def native(q: Any, k: Any, v: Any, length: int) -> Any:
        with kernel(torch, backend):
            return fused(q, k[:, :, :length], v[:, :, :length], enable_gqa=True)

    return {PRODUCT: product, ROWS: rows, NATIVE: native}[how]


def prefiller(way: str, device: Device) -> Attend:
    """Causal attention of a prompt, in the given way: (batch, heads, tokens, dim)."""
    torch = device.torch
    fused = torch.nn.functional.scaled_dot_product_attention

    def prompt(q: Any, k: Any, v: Any) -> Any:
        with kernel(torch, WAYS[way][0]):
            return fused(q, k, v, is_causal=True, enable_gqa=True)

    return prompt


def latent(q: Any, cache: Any, rank: int, torch: Any) -> Any:
    """Absorbed latent attention: q (batch, heads, width), a cache (batch, tokens, width) of which ``rank`` are values."""
    scores = torch.bmm(q, cache.transpose(1, 2)) * q.shape[-1] ** -0.5
    return torch.bmm(torch.softmax(scores, -1), cache)[..., :rank]
