"""The expression language of a spec's `require` and `when`.

    config.loss.warmup_epochs < config.train.epochs - config.train.early_stopping_patience
    config.loss.kind in ["focal", "dice"] and not config.loss.use_free_bits
    0 < max(config.loss.beta, 0.1 * config.loss.alpha) <= 4

Python's `ast` parses the text; a whitelist turns it into the node classes below, and only those are ever evaluated.
A name is `config.<path>`; the rest is numbers, texts, true / false, null, lists, comparison chains, and / or / not
(which stop at the first operand that decides), + - * / // %, in / not in, min, max and abs. Every fault is a `BadInput`
that quotes the offending piece and its column.
"""

from __future__ import annotations

import ast
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from pathlib import PurePath
from typing import Any

from buttress.errors import BadInput

ACCEPTED_SYNTAX = (
    "config.<path>, numbers, texts, true, false, null, lists, comparisons, in, and / or / not, "
    "+ - * / // %, min, max, abs"
)
MAX_LENGTH = 2000
_LITERALS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}
_ARITHMETIC: dict[type[ast.AST], tuple[str, Callable[[Any, Any], Any]]] = {
    ast.Add: ("+", operator.add),
    ast.Sub: ("-", operator.sub),
    ast.Mult: ("*", operator.mul),
    ast.Div: ("/", operator.truediv),
    ast.FloorDiv: ("//", operator.floordiv),
    ast.Mod: ("%", operator.mod),
}
_EQUALITY: dict[type[ast.AST], tuple[str, Callable[[Any, Any], bool]]] = {
    ast.Eq: ("==", operator.eq),
    ast.NotEq: ("!=", operator.ne),
}
_ORDERING: dict[type[ast.AST], tuple[str, Callable[[Any, Any], bool]]] = {
    ast.Lt: ("<", operator.lt),
    ast.LtE: ("<=", operator.le),
    ast.Gt: (">", operator.gt),
    ast.GtE: (">=", operator.ge),
}
_MEMBERSHIP: dict[type[ast.AST], tuple[str, Callable[[Any, Any], bool]]] = {
    ast.In: ("in", lambda value, among: value in among),
    ast.NotIn: ("not in", lambda value, among: value not in among),
}
_COMPARISONS = _EQUALITY | _ORDERING | _MEMBERSHIP
_UNARY_OPERATORS: dict[type[ast.AST], str] = {ast.USub: "-", ast.UAdd: "+", ast.Not: "not"}
_FUNCTIONS: dict[str, Callable[..., Any]] = {"min": min, "max": max, "abs": abs}


@dataclass(frozen=True)
class Node:
    """A part of an expression.

    Attributes:
        source: its text.
        column: where that begins, from 1.
    """

    source: str
    column: int


@dataclass(frozen=True)
class Constant(Node):
    value: Any


@dataclass(frozen=True)
class ConfigValue(Node):
    path: str


@dataclass(frozen=True)
class Compound(Node):
    items: tuple[Node, ...]


@dataclass(frozen=True)
class ListLiteral(Compound):
    pass


@dataclass(frozen=True)
class BooleanOperation(Compound):
    """`and` or `or` (`name`) of the items."""

    name: str


@dataclass(frozen=True)
class Operation(Compound):
    """A unary or binary operator, or a call: `name` applied to numbers (`not`: to a boolean)."""

    name: str
    function: type[ast.AST] | None = None


@dataclass(frozen=True)
class Comparison(Compound):
    """`items[0] operators[0] items[1] operators[1] items[2] ...`"""

    operators: tuple[type[ast.AST], ...]


@dataclass(frozen=True)
class Expression:
    """A parsed expression.

    Attributes:
        text: the expression on one line.
        root: its tree.
        reads: the config paths that it reads, without `config.`, in order of appearance.
    """

    text: str
    root: Node
    reads: tuple[str, ...]

    def evaluate(self, config: Any) -> Any:
        """The value of the expression.

        Args:
            config: a nested mapping, a flat one with dotted keys, or a pydantic model.

        Raises:
            BadInput: for a path that `config` lacks and for operands that do not fit their operator.
        """
        return _value(self.root, config, self.text)

    def holds(self, config: Any) -> bool:
        """The value of a condition; raises `BadInput` where it is not true or false."""
        return _truth(self.root, config, self.text)


@lru_cache(maxsize=512)
def parse(text: str) -> Expression:
    """Parses an expression; raises `BadInput`, with the piece and its column, for anything outside the language.

    >>> parse("config.train.epochs - 2 > 3 * config.loss.warmup").reads
    ('train.epochs', 'loss.warmup')
    """
    if not isinstance(text, str):
        raise BadInput("an expression is a text", value=text, accepted=ACCEPTED_SYNTAX)
    line = " ".join(text.split("\n")).strip()
    if not line:
        raise BadInput("an expression is empty", value=text, accepted=ACCEPTED_SYNTAX)
    if len(line) > MAX_LENGTH:
        raise BadInput(f"an expression may have {MAX_LENGTH} characters, this one has {len(line)}", value=line)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(line, mode="eval")
        if line.encode()[tree.body.end_col_offset :].strip(b" )\t"):
            raise BadInput("an expression holds no comment", value=line)  # it would swallow the lines after it
        root = _Translator(line).node(tree.body)
    except SyntaxError as error:
        place = f"at column {error.offset}" if error.offset and error.offset <= len(line) else "at its end"
        problem = f"not an expression {place}: {error.msg}"
        raise BadInput(problem, value=line, accepted=ACCEPTED_SYNTAX) from None
    except (RecursionError, MemoryError):
        raise BadInput("an expression is nested too deeply", value=line) from None
    except ValueError as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"not an expression: {error}", value=line, accepted=ACCEPTED_SYNTAX) from None
    reads = dict.fromkeys(node.path for node in _walk(root) if isinstance(node, ConfigValue))
    return Expression(line, root, tuple(reads))


class _Translator:
    """Translates Python's syntax tree of one line into nodes, refusing whatever is not part of the language."""

    def __init__(self, line: str) -> None:
        self.line = line

    def node(self, tree: ast.expr) -> Node:
        at = self.source(tree)
        match tree:
            case ast.Constant(value=value) if value is None or isinstance(value, bool | int | float | str):
                return Constant(*at, value)
            case ast.Name(id=name) if name in _LITERALS:
                return Constant(*at, _LITERALS[name])
            case ast.Name(id=name):
                raise self.error(tree, "is not a name", "config.<path>, true, false, null")
            case ast.Attribute():
                return ConfigValue(*at, self.path(tree))
            case ast.List(elts=items) | ast.Tuple(elts=items):
                return ListLiteral(*at, self.nodes(items))
            case ast.BoolOp(op=op, values=items):
                return BooleanOperation(*at, self.nodes(items), "and" if isinstance(op, ast.And) else "or")
            case ast.UnaryOp(op=op, operand=item) if type(op) in _UNARY_OPERATORS:
                return Operation(*at, self.nodes([item]), _UNARY_OPERATORS[type(op)])
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
                return Operation(*at, self.nodes([left, right]), _ARITHMETIC[type(op)][0], type(op))
            case ast.Compare(left=left, ops=ops, comparators=rest) if all(type(op) in _COMPARISONS for op in ops):
                return Comparison(*at, self.nodes([left, *rest]), tuple(type(op) for op in ops))
            case ast.Call(func=ast.Name(id=name), args=items, keywords=[]) if name in _FUNCTIONS and items:
                if name == "abs" and len(items) != 1:
                    raise self.error(tree, f"gives abs {len(items)} values", "abs(x)")
                return Operation(*at, self.nodes(items), name)
        raise self.error(tree, _REASONS.get(type(tree), "is not part of the language"), ACCEPTED_SYNTAX)

    def nodes(self, trees: list[ast.expr]) -> tuple[Node, ...]:
        return tuple(self.node(tree) for tree in trees)

    def path(self, tree: ast.expr) -> str:
        names: list[str] = []
        part = tree
        while isinstance(part, ast.Attribute):
            names.append(part.attr)
            part = part.value
        if not isinstance(part, ast.Name) or part.id != "config":
            raise self.error(tree, "is not a name", "config.<path>")
        return ".".join(reversed(names))

    def source(self, tree: ast.expr) -> tuple[str, int]:
        start = len(self.line.encode()[: tree.col_offset].decode())  # ast counts bytes
        return ast.get_source_segment(self.line, tree) or "", start + 1

    def error(self, tree: ast.expr, problem: str, accepted: str) -> BadInput:
        piece, column = self.source(tree)
        return BadInput(f"`{piece}` at column {column} {problem}", value=self.line, accepted=accepted)


_REASONS: dict[type[ast.AST], str] = {
    ast.Call: "calls something other than min, max or abs of values",
    ast.Subscript: "looks inside with [ ]; write config.<group>.<name>",
    ast.BinOp: "uses an operator that is not part of the language",
    ast.UnaryOp: "uses an operator that is not part of the language",
    ast.Compare: "uses a comparison that is not part of the language; write == or != for is and is not",
    ast.IfExp: "is a choice by if; write it with and / or",
    ast.Constant: "is a value that is not part of the language",
}


def _walk(node: Node) -> Iterator[Node]:
    yield node
    for item in node.items if isinstance(node, Compound) else ():
        yield from _walk(item)


def _value(node: Node, config: Any, text: str) -> Any:
    match node:
        case Constant(value=value):
            return value
        case ConfigValue():
            return _config_value(node, config, text)
        case ListLiteral(items=items):
            return [_value(item, config, text) for item in items]
        case BooleanOperation(name=name, items=items):
            decides = name == "or"
            return next((decides for item in items if _truth(item, config, text) is decides), not decides)
        case Comparison():
            return _compare(node, config, text)
        case Operation(name="not", items=(item,)):
            return not _truth(item, config, text)
        case Operation():
            return _apply(node, config, text)
    raise AssertionError(node)


def _apply(node: Operation, config: Any, text: str) -> Any:
    values = [(item, _value(item, config, text)) for item in node.items]
    if node.name in ("min", "max") and len(values) == 1 and isinstance(values[0][1], list):
        values = [(node.items[0], value) for value in values[0][1]]
        if not values:
            raise _evaluation_error(node, f"asks for the {node.name} of an empty list", text)
    for item, value in values:
        if not _is_number(value):
            raise _evaluation_error(item, f"is {_describe(value)}, and {node.name} takes numbers", text)
    numbers = [value for _, value in values]
    try:
        if node.name in _FUNCTIONS:
            return _FUNCTIONS[node.name](*numbers) if len(numbers) > 1 or node.name == "abs" else numbers[0]
        if node.function is None:
            return -numbers[0] if node.name == "-" else numbers[0]
        return _ARITHMETIC[node.function][1](*numbers)
    except ZeroDivisionError:
        raise _evaluation_error(node, "divides by zero", text) from None
    except ArithmeticError as error:
        raise _evaluation_error(node, f"cannot be computed ({error})", text) from None


def _compare(node: Comparison, config: Any, text: str) -> bool:
    left_node = node.items[0]
    left = _value(left_node, config, text)
    for kind, right_node in zip(node.operators, node.items[1:], strict=True):
        right = _value(right_node, config, text)
        name, compare = _COMPARISONS[kind]
        if kind in _MEMBERSHIP and not isinstance(right, list):
            raise _evaluation_error(right_node, f"is {_describe(right)}, and {name} takes a list", text)
        if kind in _ORDERING:
            for item, value in ((left_node, left), (right_node, right)):
                if not _is_number(value) and not isinstance(value, str):
                    raise _evaluation_error(item, f"is {_describe(value)}, and {name} compares numbers or texts", text)
            if isinstance(left, str) != isinstance(right, str):
                raise _evaluation_error(node, f"compares {_describe(left)} with {_describe(right)}", text)
        if not compare(left, right):
            return False
        left_node, left = right_node, right
    return True


def _truth(node: Node, config: Any, text: str) -> bool:
    value = _value(node, config, text)
    if not isinstance(value, bool):
        raise _evaluation_error(node, f"is {_describe(value)}, where true or false is needed", text)
    return value


def _config_value(node: ConfigValue, config: Any, text: str) -> Any:
    here, rest = config, node.path.split(".")
    while rest:
        name, joined = rest[0], ".".join(rest)
        if isinstance(here, Mapping):
            if joined in here:
                return _plain(here[joined])
            if name not in here:
                raise _evaluation_error(node, "is not in the config", text)
            here = here[name]
        elif name in getattr(type(here), "model_fields", {}):
            here = getattr(here, name)
        else:
            raise _evaluation_error(node, "is not in the config", text)
        rest = rest[1:]
    return _plain(here)


def _plain(value: Any) -> Any:
    """A config's value in the types of the language: lists for tuples and sets, an enum's value, a path's text."""
    if isinstance(value, Enum):
        return _plain(value.value)
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _describe(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return f"the text {value!r}"
    if isinstance(value, list):
        return "a list"
    return str(value) if isinstance(value, int | float) else "a group"


def _evaluation_error(node: Node, problem: str, text: str) -> BadInput:
    return BadInput(f"`{node.source}` at column {node.column} {problem}", value=text)
