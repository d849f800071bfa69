"""``--where``: an expression on the fields of a row, such as ``width >= 512 and "cat" in text``, without ``eval``."""

import ast
import difflib
import operator
import re
import reprlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

from kcache.shards.errors import KcacheError, UsageError

Row = Mapping[str, Any]
Evaluate = Callable[[Row], Any]

_TAKES = "names of columns, numbers, text, ==, !=, <, <=, >, >=, in, is None, and, or, not, +, -, *, / and %"
_STRING_OR_QUOTED = re.compile(r"""("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')|`([^`]+)`""")
_COLUMN = "_column_{}_"


class Where:
    """A condition on rows, compiled once.

    A field that a row lacks, or that is null, is None: ``==``, ``!=``, ``is None`` and ``in (...)`` see it, ``<`` and
    its like are false with it, so is ``in`` it, and arithmetic with it gives None again. A name that is no Python name
    is put in backticks. UsageError for what is not understood.
    """

    def __init__(self, expression: str) -> None:
        self.expression = expression
        source, columns = _without_backticks(expression)
        try:
            tree = ast.parse(source.strip(), mode="eval")
            self._evaluate = _compile(tree.body, columns)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            cause = error.msg if isinstance(error, SyntaxError) else str(error)
            raise UsageError(f"--where '{expression}' is not understood ({cause}); it takes {_TAKES}") from None
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        self.names = frozenset(columns.get(name, name) for name in names)
        """The fields that the condition looks at."""

    def keeps(self, row: Row, place: str) -> bool:
        """Whether the condition holds for a row. KcacheError naming ``place`` and the values that do not compare."""
        try:
            return bool(self._evaluate(row))
        except (TypeError, ArithmeticError, RecursionError) as error:
            values = ", ".join(f"{name} = {reprlib.repr(row.get(name))}" for name in sorted(self.names))
            raise KcacheError(
                f"--where '{self.expression}' has no answer for {place} ({values}): {error};"
                " correct the row, or compare with a value of its type"
            ) from None

    def check(self, fields: Collection[str], source: str) -> None:
        """UsageError with "did you mean" for a name that is none of the fields of ``source``."""
        for name in sorted(self.names.difference(fields)):
            nearest = difflib.get_close_matches(name, fields, n=1)
            hint = f"; did you mean '{nearest[0]}'?" if nearest else ""
            have = ", ".join(sorted(fields)) or "nothing"
            raise UsageError(f"--where names '{name}', which {source} does not have (it has: {have}){hint}")


def _without_backticks(expression: str) -> tuple[str, dict[str, str]]:
    """The expression with a Python name for each ```a b``` outside of strings, and what these names stand for."""
    columns: dict[str, str] = {}

    def replace(match: re.Match[str]) -> str:
        if match[2] is None:
            return match[0]
        name = _COLUMN.format(len(columns))
        columns[name] = match[2]
        return name

    return _STRING_OR_QUOTED.sub(replace, expression), columns


def _compile(node: ast.expr, columns: Mapping[str, str]) -> Evaluate:
    """A function of a row for one node of the syntax tree: only what is listed here can be written."""
    match node:
        case ast.Constant(value=None | int() | float() | str() as value):
            return lambda row: value
        case ast.Name(id=name):
            column = columns.get(name, name)
            return lambda row: row.get(column)
        case ast.Tuple(elts=elements) | ast.List(elts=elements):
            parts = [_compile(element, columns) for element in elements]
            return lambda row: [part(row) for part in parts]
        case ast.BoolOp(op=op, values=operands):
            parts = [_compile(operand, columns) for operand in operands]
            combine = all if isinstance(op, ast.And) else any
            return lambda row: combine(part(row) for part in parts)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            inner = _compile(operand, columns)
            return lambda row: not inner(row)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            inner = _compile(operand, columns)
            return lambda row: _subtract(0, inner(row))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            calculate, a, b = _ARITHMETIC[type(op)], _compile(left, columns), _compile(right, columns)
            return lambda row: calculate(a(row), b(row))
        case ast.Compare():
            return _compile_comparison(node, columns)
    raise ValueError(f"'{_shown(node, columns)}' is not among what it takes")


def _shown(node: ast.expr, columns: Mapping[str, str]) -> str:
    text = ast.unparse(node)
    for name, column in columns.items():
        text = text.replace(name, f"`{column}`")
    return text


def _compile_comparison(node: ast.Compare, columns: Mapping[str, str]) -> Evaluate:
    """``a < b <= c``: every neighbouring pair compares, from left to right."""
    for op, right in zip(node.ops, node.comparators, strict=True):
        if isinstance(op, ast.Is | ast.IsNot) and not (isinstance(right, ast.Constant) and right.value is None):
            raise ValueError("'is' takes None only; write == for other values")
    compares = [_COMPARISONS[type(op)] for op in node.ops]
    parts = [_compile(part, columns) for part in (node.left, *node.comparators)]

    def holds(row: Row) -> bool:
        left = parts[0](row)
        for compare, part in zip(compares, parts[1:], strict=True):
            right = part(row)
            if not compare(left, right):
                return False
            left = right
        return True

    return holds


def _ordered(compare: Callable[[Any, Any], Any]) -> Callable[[Any, Any], bool]:
    return lambda a, b: a is not None and b is not None and bool(compare(a, b))


def _contains(part: Any, whole: Any) -> bool:
    return whole is not None and not (part is None and isinstance(whole, str)) and part in whole


_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.Lt: _ordered(operator.lt),
    ast.LtE: _ordered(operator.le),
    ast.Gt: _ordered(operator.gt),
    ast.GtE: _ordered(operator.ge),
    ast.In: _contains,
    ast.NotIn: lambda part, whole: not _contains(part, whole),
}


def _numeric(sign: str, calculate: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Arithmetic on numbers alone: Python's ``*`` and ``%`` on text would repeat and format it."""

    def apply(a: Any, b: Any) -> Any:
        if a is None or b is None:
            return None
        for value in (a, b):
            if isinstance(value, str | bytes | list | tuple | dict):
                raise TypeError(f"'{sign}' takes numbers, not {type(value).__name__}")
        return calculate(a, b)

    return apply


_subtract = _numeric("-", operator.sub)
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: _numeric("+", operator.add),
    ast.Sub: _subtract,
    ast.Mult: _numeric("*", operator.mul),
    ast.Div: _numeric("/", operator.truediv),
    ast.Mod: _numeric("%", operator.mod),
}
