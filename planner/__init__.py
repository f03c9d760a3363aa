"""kvplan: how much memory a language model needs on a GPU, what batch and context fit, and how fast it decodes.

>>> from planner import plan
>>> plan("llama3-70b", "4xh100", context=8192, batch=16).memory.kv_bytes_per_token
327680
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planner.catalog import gpu_ids, load_gpu, model_ids
    from planner.checkpoint.load import load_model
    from planner.errors import CardError, InputError, KvplanError, OutputError, UnknownNameError
    from planner.gpu import GpuSpec
    from planner.model import ModelSpec
    from planner.result import Plan
    from planner.verbs.compare import compare
    from planner.verbs.explain import explain
    from planner.verbs.plan import plan
    from planner.verbs.roofline import roofline_of
    from planner.verbs.sweep import sweep

__version__ = "0.1.0"

# Where each public name lives. They load on first use, so that ``import planner`` costs next to nothing.
_HOME = {
    "gpu_ids": "catalog",
    "load_gpu": "catalog",
    "load_model": "checkpoint.load",
    "model_ids": "catalog",
    "compare": "verbs.compare",
    "CardError": "errors",
    "InputError": "errors",
    "KvplanError": "errors",
    "OutputError": "errors",
    "UnknownNameError": "errors",
    "explain": "verbs.explain",
    "GpuSpec": "gpu",
    "ModelSpec": "model",
    "plan": "verbs.plan",
    "Plan": "result",
    "roofline_of": "verbs.roofline",
    "sweep": "verbs.sweep",
}

__all__ = [
    "CardError",
    "GpuSpec",
    "InputError",
    "KvplanError",
    "ModelSpec",
    "OutputError",
    "Plan",
    "UnknownNameError",
    "compare",
    "explain",
    "gpu_ids",
    "load_gpu",
    "load_model",
    "model_ids",
    "plan",
    "roofline_of",
    "sweep",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'planner' has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"planner.{_HOME[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
