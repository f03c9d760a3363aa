"""Formats of a model's weights, by role: as released, as asked for, or mixed tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from fractions import Fraction

from pydantic import Field, model_validator

from planner.errors import KvplanError
from planner.precision import FORMATS, Format, find_format
from planner.row import Count, Row, Text
from planner.tensors import Role, Tensor

HIGH_PRECISION = ("fp32", "bf16", "fp16")

Formats = Mapping[Role, Format]


class WeightFormats(Row):
    """Formats of a checkpoint as it is released: one for the linear layers, and exceptions by role.

    A 16 or 32-bit default applies to every tensor; a quantised one leaves embeddings, head, router and vectors in 16 bit,
    as quantisation schemes do.

    Attributes
    ----------
    nbytes
        Bytes of all tensors of a role, where they were counted rather than derived from one format [B].
    label
        What people call the mixture, such as ``Q4_K_M``.
    """

    default: Text = "bf16"
    attention: Text | None = None
    ffn: Text | None = None
    experts: Text | None = None
    embedding: Text | None = None
    head: Text | None = None
    nbytes: dict[Role, Count] = Field(default_factory=dict)
    label: Text | None = None

    @model_validator(mode="after")
    def _check(self) -> WeightFormats:
        try:
            for name in (self.default, self.attention, self.ffn, self.experts, self.embedding, self.head):
                if name:
                    find_format(name)
        except KvplanError as error:
            raise ValueError(f"weights: {error}") from None
        return self

    def by_role(self) -> dict[Role, Format]:
        """The format of each role, counted bytes left aside."""
        default = find_format(self.default)
        rest = default if default.id in HIGH_PRECISION else FORMATS["bf16"]
        formats = {role: default if role.linear else rest for role in Role}
        exceptions = {
            Role.ATTENTION: self.attention, Role.SOURCE: self.attention, Role.FFN: self.ffn, Role.EXPERT: self.experts,
            Role.EMBEDDING: self.embedding, Role.HEAD: self.head,
        }  # fmt: skip
        return formats | {role: find_format(name) for role, name in exceptions.items() if name}


def counted(formats: Formats, nbytes: Mapping[Role, int], parameters: Mapping[Role, int]) -> dict[Role, Format]:
    """Formats whose bits are what was counted: bytes of a role over its parameters."""
    found = dict(formats)
    for role, size in nbytes.items():
        if parameters.get(role):
            found[role] = replace(formats[role], bits=Fraction(8 * size, parameters[role]))
    return found


def blend(tensors: Iterable[tuple[int, Tensor, int]], choose: Callable[[int, Tensor], Format]) -> dict[Role, int]:
    """Bytes of each role when every tensor of every layer has a format of its own [B].

    Parameters
    ----------
    tensors
        Layer (-1 outside the layers), tensor and how many of it.
    choose
        The format of a tensor of a layer.
    """
    elements: dict[Role, dict[str, tuple[Format, int]]] = {}
    for layer, tensor, count in tensors:
        form = choose(layer, tensor)
        held = elements.setdefault(tensor.role, {})
        held[form.id] = (form, held.get(form.id, (form, 0))[1] + count * tensor.parameters)
    return {role: sum(f.nbytes(n) for f, n in held.values()) for role, held in elements.items()}


def formats_label(formats: Formats) -> str:
    """Short name of a choice of weight formats: ``bf16``, or ``mxfp4+bf16`` where linear layers differ."""
    return "+".join(dict.fromkeys(formats[r].id for r in (Role.EXPERT, Role.FFN, Role.ATTENTION)))
