"""An architecture and a configuration make the rows of a model card."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from planner.checkpoint.architecture import Architecture, find_architecture, load_architecture
from planner.checkpoint.expression import Scope, compiled
from planner.errors import CardError
from planner.model import Other, Stack
from planner.row import MAX_LAYERS, Count, Row, one_line

Card = dict[str, Any]

_WORDS = frozenset({"kind", "name", "role", "state_format", "conv_format", "mechanism"})
"""Keys whose text is a word, not a formula."""
_CHOICES = frozenset({"none", "head", "full", "element"})
"""Words that are choices, wherever they stand alone."""


class Tower(Stack):
    """Layers that only turn images or sound into embeddings, with what else is loaded beside them."""

    hidden: Count
    other: tuple[Other, ...] = ()

    @property
    def total_parameters(self) -> int:
        """All parameters."""
        return self.parameters_of(self.hidden) + sum(o.parameters for o in self.other)


def scope_of(arch: Architecture, config: Mapping[str, Any]) -> Scope:
    """The names that an architecture's formulas see."""

    def nested(name: str, table: Mapping[str, Any] | None) -> Scope | None:
        if name not in arch.configs:
            return None if table is None else Scope(table)
        if table is None and name == arch.decoder and "num_hidden_layers" in config:
            table = config  # older files of a wrapper have its decoder's keys at the top
        table = table or {}
        own = find_architecture([str(table.get("model_type") or "")], {})
        named = own if own and own != arch.name else arch.configs[name]  # some give a tower the name of the whole
        if not named:
            return Scope(table)
        inner = load_architecture(named)
        scope = scope_of(inner, table)
        scope["architecture"] = inner
        return scope

    return Scope(config, arch.derived, arch.defaults, nested, {"tower": _tower})


def _tower(scope: Scope) -> int:
    """Parameters of a nested configuration's layers and of what is beside them."""
    if scope is None:
        raise CardError("the configuration lacks a nested configuration that its architecture needs")
    tower: Tower = _validated(Tower, rows_of(scope["architecture"], scope))
    return tower.total_parameters


def _validated(kind: type[Row], fields: Card) -> Any:
    try:
        return kind(**fields)
    except ValidationError as error:
        raise CardError(one_line(error)) from None


def rows_of(arch: Architecture, scope: Scope) -> Card:
    """The rows of a card: what a model is made of, without its names and source.

    Raises
    ------
    CardError
        If a formula cannot be evaluated for this configuration.
    """
    if arch.decoder:
        inner = scope[arch.decoder]
        if not isinstance(inner, Scope) or "architecture" not in inner:
            raise CardError(f"the configuration lacks {arch.decoder}, which holds its layers")
        card = rows_of(inner["architecture"], inner)
    else:
        card = {}
    card |= _scalars(arch.model, scope)
    card |= _stack(arch.rows, scope, card)
    if arch.encoder is not None and (encoder := _encoder(arch.encoder, scope)):
        card["encoder"] = encoder
    others = [_row(row, scope, name) for name, row in arch.rows["other"].items() if _holds(row, scope)]
    card["other"] = [*card.get("other", []), *(o for o in others if o.get("parameters"))]
    if arch.drafter is not None and _holds(arch.drafter, scope):
        scope["layer"] = lambda i: _layer_parameters(card, i)
        drafter = _row(arch.drafter, scope)
        if drafter.get("layers") and drafter.get("parameters"):
            card["drafter"] = drafter
    return card


def _layer_parameters(card: Card, index: int) -> int:
    """Parameters of one layer of the card so far; negative numbers count from the end."""
    stack = _validated(Stack, {k: v for k, v in card.items() if k in Stack.model_fields})
    wanted = index % stack.layers
    return sum(t.parameters for g in stack.groups_of(card["hidden"]) if wanted in g.indices for t in g.tensors)


def _scalars(model: Mapping[str, Any], scope: Scope) -> Card:
    found = {key: scope.value(value) for key, value in model.items()}
    return {key: value for key, value in found.items() if value is not None}


def _encoder(table: Mapping[str, Any], scope: Scope) -> Card:
    """An encoder is a stack of its own, in the same scope."""
    if not _holds(table, scope):
        return {}
    rows = {
        kind: {n: r for n, r in table.get(kind, {}).items() if r is not False} for kind in ("attention", "ffn", "extra")
    }
    card = _scalars({k: v for k, v in table.items() if k not in (*rows, "where")}, scope)
    return card | _stack(rows, scope, card)


def _stack(rows: Mapping[str, Mapping[str, Mapping[str, Any]]], scope: Scope, card: Card) -> Card:
    """Rows of layers, each with the layers it is for."""
    found: Card = {}
    wanted = [kind for kind in ("attention", "state", "ffn", "extra") if rows.get(kind)]
    if not wanted:
        return found
    layers = card.get("layers")
    if not isinstance(layers, int) or isinstance(layers, bool) or not 1 <= layers <= MAX_LAYERS:
        shown = "missing" if layers is None else repr(layers)[:40]
        raise CardError(f"the number of layers is {shown}; a model has between 1 and {MAX_LAYERS:,}")
    for kind in wanted:
        found[kind] = [*card.get(kind, []), *_laid_out(kind, rows[kind], scope, layers)]
    return found


def _laid_out(kind: str, rows: Mapping[str, Mapping[str, Any]], scope: Scope, layers: int) -> list[Card]:
    """Named rows as rows with ``at``: for each layer those that hold, like ones together."""
    found: list[Card] = []
    for several in _claims(kind, rows, scope, layers).values():
        alike: dict[str, tuple[Card, list[int]]] = {}
        for name, indices in several:
            row = rows[name]
            each = any("i" in compiled(v)[1] for v in _formulas(row))
            for group in [[i] for i in indices] if each else [indices]:
                scope["i"] = group[0]
                made = _row(row, scope, name if kind == "extra" else "")
                if kind != "extra" or made.get("parameters"):
                    alike.setdefault(repr(made), (made, []))[1].extend(group)
        found += _placed([(made, sorted(indices)) for made, indices in alike.values()], layers, kind != "extra")
    return found


def _placed(made: list[tuple[Card, list[int]]], layers: int, exclusive: bool) -> list[Card]:
    """Rows with ``at``; where every layer has one and only one, the row that is longest to place takes the rest."""
    placed = [
        ({**row, "at": at_of(indices, layers)}, indices) for row, indices in sorted(made, key=lambda pair: pair[1][0])
    ]
    if sum(len(indices) for _, indices in placed) == layers and (exclusive or len(placed) == 1):
        rest = max(placed, key=lambda pair: (len(pair[0]["at"]), len(pair[1])))[0]
        del rest["at"]
    return [row for row, _ in placed]


def _claims(
    kind: str, rows: Mapping[str, Mapping[str, Any]], scope: Scope, layers: int
) -> dict[str, list[tuple[str, list[int]]]]:
    """Which layers have which rows. Cross-attention and extras stand beside others; of the rest one layer has one."""
    lanes: dict[str, dict[str, list[int]]] = {}
    for name in sorted(rows, key=lambda n: "where" not in rows[n]):
        row = rows[name]
        lane = name if kind == "extra" else "cross" if row.get("kind") == "cross" else "own"
        taken = {i for indices in lanes.get(lane, {}).values() for i in indices}
        indices = []
        for i in range(layers):
            scope["i"] = i
            if i not in taken and _holds(row, scope):
                indices.append(i)
        if indices:
            lanes.setdefault(lane, {})[name] = indices
    return {lane: list(found.items()) for lane, found in lanes.items()}


def _holds(row: Mapping[str, Any], scope: Scope) -> bool:
    return bool(scope.value(row.get("where", True)))


def _formulas(row: Mapping[str, Any]) -> Iterable[str]:
    """Formulas of a row's values, and of the tables in it with where those are."""
    for key, value in row.items():
        if isinstance(value, dict):
            yield from _formulas(value)
            yield str(value.get("where", True))
        elif _is_formula(key, value) and key != "where":
            yield value


def _is_formula(key: str, value: Any) -> bool:
    return isinstance(value, str) and key not in _WORDS and value not in _CHOICES


def _row(row: Mapping[str, Any], scope: Scope, name: str = "") -> Card:
    """A row with its formulas evaluated; what comes to nothing is left out."""
    found: Card = {"name": name.replace("_", " ")} if name else {}
    for key, value in row.items():
        if key == "where":
            continue
        if isinstance(value, dict):
            if _holds(value, scope):
                found[key] = _row(value, scope)
            continue
        made = scope.value(value) if _is_formula(key, value) else value
        if made is not None:
            found[key] = made
    return found


def at_of(indices: list[int], layers: int) -> str:
    """Layer numbers as a short list of slices.

    >>> at_of([5, 11, 17], 20), at_of([0, 1, 2, 19], 20), at_of([3, 4, 5], 6), at_of([0, 1, 3, 4, 6, 7], 9)
    ('5::6', ':3 19', '3:', '::3 1::3')
    """
    return min((_runs(indices, layers), *_periods(indices, layers)), key=len)


def _periods(indices: list[int], layers: int) -> Iterator[str]:
    """Layer numbers as every so many from some on, for each period that gives them all."""
    wanted = set(indices)
    for step in range(1, min(layers, 64)):
        starts = [i for i in indices if i - step not in wanted]
        if wanted == {i for start in starts for i in range(start, layers, step)}:
            yield " ".join(f"{start or ''}:{'' if step == 1 else f':{step}'}" for start in starts)


def _runs(indices: list[int], layers: int) -> str:
    """Layer numbers as runs and single ones."""
    parts: list[str] = []
    start = 0
    for k in range(1, len(indices) + 1):
        if k < len(indices) and indices[k] == indices[k - 1] + 1:
            continue
        first, last = indices[start], indices[k - 1]
        if last - first < 2:
            parts += [str(n) for n in range(first, last + 1)]
        else:
            parts.append(f"{first or ''}:{'' if last == layers - 1 else last + 1}")
        start = k
    return " ".join(parts)
