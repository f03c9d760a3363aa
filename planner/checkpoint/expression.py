"""Small formulas over the keys of a configuration file, and the scope in which they are evaluated.

Architecture files (``architectures/*.toml``) give the rows of a model card as formulas, such as
``"num_attention_heads * head_dim"``. A formula is one Python expression of arithmetic, comparisons, conditions, indexing and
comprehensions; nothing else compiles. The names in it are keys of the configuration.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from types import CodeType
from typing import Any

from planner.errors import CardError
from planner.row import MAX_LAYERS

_NODES = (
    ast.Expression, ast.Constant, ast.Name, ast.Load, ast.Store, ast.Attribute, ast.Subscript, ast.Slice, ast.List,
    ast.Tuple, ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.UnaryOp, ast.USub,
    ast.Not, ast.BoolOp, ast.And, ast.Or, ast.Compare, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.In,
    ast.NotIn, ast.Is, ast.IsNot, ast.IfExp, ast.Call, ast.ListComp, ast.GeneratorExp, ast.comprehension,
)  # fmt: skip


class _Numeric(ast.NodeTransformer):
    """Products of numbers only: a text in a hostile file must not be repeated a billion times."""

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        if not isinstance(node.op, (ast.Mult, ast.Pow)):
            return node
        name = "_times" if isinstance(node.op, ast.Mult) else "_power"
        call = ast.Call(ast.Name(name, ast.Load()), [node.left, node.right], [])
        return ast.copy_location(call, node)


@lru_cache(maxsize=8192)
def compiled(text: str) -> tuple[CodeType, frozenset[str]]:
    """The code of a formula and the names in it.

    Raises
    ------
    CardError
        If it is not such an expression.
    """
    try:
        tree = ast.parse(" ".join(text.split("\n")), mode="eval")
    except SyntaxError as error:
        raise CardError(f"formula {text!r}: {error.msg}") from None
    names = set()
    for node in ast.walk(tree):
        if not isinstance(node, _NODES) or (isinstance(node, ast.Attribute) and node.attr.startswith("_")):
            raise CardError(f"formula {text!r}: {type(node).__name__} is not allowed")
        if isinstance(node, ast.Call) and not isinstance(node.func, ast.Name):
            raise CardError(f"formula {text!r}: only functions are called, not methods")
        if isinstance(node, ast.Name):
            names.add(node.id)
    return compile(ast.fix_missing_locations(_Numeric().visit(tree)), "<formula>", "eval"), frozenset(names)


def _number(value: Any) -> Any:
    if not isinstance(value, (int, float)) or (isinstance(value, int) and abs(value) > 10**30):
        raise TypeError(f"{str(value)[:40]!r} is not a number")
    return value


def _times(left: Any, right: Any) -> Any:
    return _number(left) * _number(right)


def _power(left: Any, right: Any) -> Any:
    if _number(right) > 4:
        raise TypeError(f"{str(right)[:40]!r} is too large a power")
    return _number(left) ** right


def _range(*bounds: int) -> range:
    found = range(*bounds)
    if len(found) > 4 * MAX_LAYERS:
        raise ValueError(f"{len(found):,} layers are more than {MAX_LAYERS:,}")
    return found


def _first(*values: Any) -> Any:
    return next((v for v in values if v is not None), None)


def _each(value: Any, layer: int) -> Any:
    """The layer's own value, where a key holds a list with one for each layer."""
    return value[layer] if isinstance(value, list) else value


_FUNCTIONS: dict[str, Any] = {
    "__builtins__": {}, "_times": _times, "_power": _power, "range": _range, "first": _first, "each": _each, "len": len,
    "min": min, "max": max, "sum": sum, "int": int, "ceil": math.ceil, "any": any, "all": all, "isqrt": math.isqrt,
    "round": round, "abs": abs,
}  # fmt: skip


class Scope(dict[str, Any]):
    """Names of a formula: what the architecture derives, keys of the configuration, defaults; ``None`` for any other.

    A nested table of the configuration is a scope of its own, whose keys are reached with a point.

    Parameters
    ----------
    config
        The configuration as read.
    derived, defaults
        Formulas that come before, and values or formulas that come after the configuration's keys.
    nested
        Makes the scope of a nested table, given its name and the table (empty where it is missing).
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        derived: Mapping[str, Any] | None = None,
        defaults: Mapping[str, Any] | None = None,
        nested: Callable[[str, Mapping[str, Any] | None], Scope | None] | None = None,
        functions: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(_FUNCTIONS)
        self.update(functions or {})
        self._config, self._derived, self._defaults, self._nested = config, derived or {}, defaults or {}, nested

    def __missing__(self, name: str) -> Any:
        if name in self._derived:
            self[name] = self._given(name)  # what a derivation of the same name starts from
            self[name] = self.value(self._derived[name])
        else:
            self[name] = self._given(name)
        return self[name]

    def _given(self, name: str) -> Any:
        if name in self._config:
            value = self._config[name]
            if isinstance(value, dict):
                return (self._nested and self._nested(name, value)) or Scope(value)
            return value
        if name in self._defaults:
            return self.value(self._defaults[name])
        return self._nested(name, None) if self._nested else None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self[name]

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)

    def value(self, formula: Any) -> Any:
        """What a formula comes to here; anything but text is itself."""
        if not isinstance(formula, str):
            return formula
        code, names = compiled(formula)
        try:
            return eval(code, self)
        except CardError:
            raise
        except Exception as error:
            raise CardError(f"cannot derive {formula!r} {self._told(names)}: {str(error)[:80]}") from None

    def _told(self, names: Iterable[str]) -> str:
        """What the names of a formula stand for, for a message."""
        given = sorted(
            n for n in names if n not in _FUNCTIONS and n not in ("i", "j") and not isinstance(self[n], Scope)
        )
        return "with " + ", ".join(f"{n} = {_short(self[n])}" for n in given) if given else ""


def _short(value: Any) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
