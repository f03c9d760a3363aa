"""What a reader of GGUF files works with: checked metadata, a layer's tensors, and a ledger of what was claimed.

Every tensor is claimed by the row that it makes up, with its role; what no row claims becomes extra weights by its own name.
So parameters and bytes of the rows are those of the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from planner.checkpoint.ggufheader import GgufTensor, Value
from planner.errors import CardError
from planner.tensors import Role, Tensor

Part = tuple[Role, str, int]
"""Role, name and parameters of weights that no row explains."""


class Facts:
    """Metadata of the model's architecture, checked on reading; `notes` gathers what a reader should know."""

    def __init__(self, metadata: Mapping[str, Value], where: str) -> None:
        self._metadata, self.where = metadata, where
        self.notes: dict[str, list[int]] = {}
        arch = metadata.get("general.architecture")
        if not isinstance(arch, str) or not arch:
            self.refuse("lacks general.architecture; it holds no model that can be planned")
        self.arch = arch

    def refuse(self, why: str) -> NoReturn:
        raise CardError(f"{self.where}: {why}")

    def note(self, text: str, layer: int = -1) -> None:
        """Say something once, with the layers that it is said of."""
        layers = self.notes.setdefault(text, [])
        if layer >= 0 and layer not in layers[-1:]:
            layers.append(layer)

    def value(self, key: str) -> Value | None:
        return self._metadata.get(f"{self.arch}.{key}")

    def number(self, key: str, default: int = 0) -> int:
        """A whole number, or the largest of an array of them."""
        found = self.value(key)
        return default if found is None else max(self._numbers(key, found), default=default)

    def need(self, key: str) -> int:
        found = self.number(key)
        if not found:
            self.refuse(f"lacks {self.arch}.{key}; the file cannot be planned without it")
        return found

    def each(self, key: str, layers: int, default: int = 0) -> list[int]:
        """A number for each layer, whether the file gives one or an array."""
        found = self.value(key)
        if found is None:
            return [default] * layers
        numbers = self._numbers(key, found)
        if not isinstance(found, list):
            return numbers * layers
        if len(numbers) < layers:
            self.refuse(f"{self.arch}.{key} has {len(numbers)} numbers for {layers} layers; download it again")
        return numbers[:layers]

    def _numbers(self, key: str, found: Value) -> list[int]:
        listed = found if isinstance(found, list) else [found]
        numbers = [int(n) for n in listed if isinstance(n, int) and 0 <= n < 2**40]
        if len(numbers) < len(listed):
            self.refuse(f"{self.arch}.{key} is {str(found)[:40]}, not a whole number; download the file again")
        return numbers


@dataclass
class Ledger:
    """Elements and bytes of what was claimed, by role, and elements by role and type."""

    elements: dict[Role, int] = field(default_factory=dict)
    nbytes: dict[Role, int] = field(default_factory=dict)
    types: dict[Role, dict[str, int]] = field(default_factory=dict)

    def add(self, role: Role, tensor: GgufTensor) -> None:
        self.elements[role] = self.elements.get(role, 0) + tensor.elements
        self.nbytes[role] = self.nbytes.get(role, 0) + tensor.nbytes
        held = self.types.setdefault(role, {})
        held[tensor.type] = held.get(tensor.type, 0) + tensor.elements


class Layer:
    """The tensors of one layer that no row has claimed yet, by their names without ``blk.N.``.

    ``claimed`` holds the elements by role that were claimed since the last row was settled.
    """

    def __init__(self, index: int, tensors: dict[str, GgufTensor], facts: Facts, hidden: int, ledger: Ledger) -> None:
        self.index, self.facts, self.hidden = index, facts, hidden
        self._left, self._ledger = dict(tensors), ledger
        self.claimed: dict[Role, int] = {}

    def has(self, *names: str) -> bool:
        """Whether all of them are there."""
        return all(name in self._left for name in names)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor without trailing ones; empty if there is none."""
        if name not in self._left:
            return ()
        shape = self._left[name].shape
        while len(shape) > 1 and shape[-1] == 1:
            shape = shape[:-1]
        return shape

    def outputs(self, name: str) -> int:
        """Outputs of a projection; 0 if there is none."""
        return self.shape(name)[1] if len(self.shape(name)) > 1 else 0

    def inputs(self, name: str) -> int:
        """Inputs of a projection; 0 if there is none."""
        return self.shape(name)[0] if len(self.shape(name)) > 1 else 0

    def elements(self, name: str) -> int:
        """Elements of a tensor; 0 if there is none."""
        return self._left[name].elements if name in self._left else 0

    def claim(self, role: Role, *names: str) -> None:
        """Count those of the tensors that are there as weights of a role."""
        for name in names:
            if tensor := self._left.pop(name, None):
                self._ledger.add(role, tensor)
                self.claimed[role] = self.claimed.get(role, 0) + tensor.elements

    def settle(self, tensors: tuple[Tensor, ...], what: str) -> Iterator[Part]:
        """Compare what was claimed with what a row derives: what there is beyond it, as extra weights."""
        derived: dict[Role, int] = {}
        for t in tensors:
            derived[t.role] = derived.get(t.role, 0) + t.parameters
        claimed, self.claimed = self.claimed, {}
        for role in {**derived, **claimed}:
            gap = claimed.get(role, 0) - derived.get(role, 0)
            if gap < 0 or (gap and role in (Role.EXPERT, Role.ROUTER)):
                self.refuse(
                    f"has {claimed.get(role, 0):,} weights of {what} ({role}) where its shape needs {derived.get(role, 0):,}"
                )
            if gap:
                yield role, f"further {what}", gap

    def rest(self) -> Iterator[Part]:
        """Claim what is left, each tensor by its own name."""
        for name, tensor in sorted(self._left.items()):
            role = default_role(name, self.shape(name))
            self._ledger.add(role, tensor)
            yield role, name.removesuffix(".weight"), tensor.elements
        self._left.clear()

    def names(self) -> list[str]:
        """What is left."""
        return sorted(self._left)

    def projects_attention(self) -> bool:
        """Whether projections of attention are left, beyond the one matrix that some layers have in its place."""
        left = [n for n in self._left if n.startswith("attn_") and len(self.shape(n)) > 1]
        return bool(left) and left != ["attn_output.weight"]

    def refuse(self, why: str) -> NoReturn:
        self.facts.refuse(
            f"layer {self.index} {why}; the file is damaged, or of an architecture that kvplan does not know"
        )


def default_role(name: str, shape: tuple[int, ...]) -> Role:
    """What a tensor of a layer looks like by its name and shape."""
    if len(shape) < 2 or name.endswith((".bias", ".scale")) or "norm" in name or "conv1d" in name:
        return Role.VECTOR
    return Role.FFN if name.startswith(("ffn", "channel_mix")) else Role.ATTENTION


def merged_experts(tensors: dict[str, GgufTensor]) -> dict[str, GgufTensor]:
    """The tensors of a layer, experts that lie apart (``ffn_up.3.weight``) put together as in files written since 2024."""
    found: dict[str, GgufTensor] = {}
    apart: dict[str, list[GgufTensor]] = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        if len(parts) == 3 and parts[0] in ("ffn_gate", "ffn_up", "ffn_down") and parts[1].isdecimal():
            apart.setdefault(f"{parts[0]}_exps.weight", []).append(tensor)
        else:
            found[name] = tensor
    for name, each in apart.items():
        if name not in found and len({t.shape for t in each}) == 1:
            first = each[0]
            found[name] = GgufTensor(name, (*first.shape, len(each)), first.type, sum(t.nbytes for t in each))
        else:
            found |= {t.name: t for t in each}
    return found
