"""Read as much of a PromQL expression as evidence needs: what is compared with which limit, and the metrics (pure).

The grammar is that of https://prometheus.io/docs/prometheus/latest/querying/operators/. Nothing is evaluated but
products of numbers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

_TOKEN = re.compile(
    r"""(?P<text>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|`[^`]*`)|(?P<comment>\#[^\n]*)|(?P<open>[(\[{])|(?P<close>[)\]}])"""
    r"""|(?P<set>\b(?:and|or|unless)\b)|(?P<compare>==|!=|>=|<=|>|<)|(?P<word>[A-Za-z_:][\w:.]*)|(?P<other>.)""",
    re.DOTALL,
)
_MATCHING = re.compile(
    r"\s*(?:bool\b|(?:on|ignoring|group_left|group_right)\b\s*(?:\([^)]*\))?)\s*"
)
_FLIPPED = {">": "<", "<": ">", ">=": "<=", "<=": ">=", "==": "==", "!=": "!="}
_DEEPEST = 20
_MOST = 4


@dataclass(frozen=True, slots=True)
class Compared:
    """An expression that a larger one compares. `limit` is None where it is not compared with a number."""

    expr: str
    operator: str = ""
    limit: float | None = None

    def holds(self, value: float) -> bool:
        """Return whether the comparison is true of a value."""
        limit = self.limit
        if limit is None or math.isnan(value):
            return False
        return {
            ">": value > limit,
            ">=": value >= limit,
            "<": value < limit,
            "<=": value <= limit,
            "==": value == limit,
            "!=": value != limit,
        }.get(self.operator, False)


def compared(expr: str) -> list[Compared]:
    """Return the expressions without their comparisons, in order; the whole one where nothing is compared."""
    found = dict.fromkeys(_compared(_uncommented(expr), 0))
    return list(found)[:_MOST]


def _compared(expr: str, depth: int) -> Iterator[Compared]:
    expr = _bare(expr)
    if depth > _DEEPEST or not expr:
        return
    parts = _split(expr, "set")
    if len(parts) > 1:
        for _, part in parts:
            yield from _compared(
                _MATCHING.sub("", part, 1) if _MATCHING.match(part) else part, depth + 1
            )
        return
    sides = _split(expr, "compare")
    if len(sides) < 2:
        inner = re.fullmatch(r"absent(?:_over_time)?\s*\((.*)\)", expr, re.DOTALL)
        yield Compared(_bare(inner[1]) if inner else expr)
        return
    (_, left), (operator, right) = sides[0], sides[1]
    while match := _MATCHING.match(right):
        right = right[match.end() :]
    left, right = _bare(left), _bare(right)
    if (limit := _number(right)) is not None:
        yield Compared(left, operator, limit)
    elif (limit := _number(left)) is not None:
        yield Compared(right, _FLIPPED[operator], limit)
    else:
        yield Compared(left)
        yield Compared(right)


def _uncommented(expr: str) -> str:
    tokens = _TOKEN.finditer(expr)
    return "".join(one[0] for one in tokens if one.lastgroup != "comment")


def _split(expr: str, kind: str) -> list[tuple[str, str]]:
    """Split at the operators of a kind outside all brackets. Each part comes with the operator before it."""
    parts: list[tuple[str, str]] = []
    depth, start, before = 0, 0, ""
    for token in _TOKEN.finditer(expr):
        if token.lastgroup == "open":
            depth += 1
        elif token.lastgroup == "close":
            depth -= 1
        elif token.lastgroup == kind and depth == 0:
            parts.append((before, expr[start : token.start()]))
            start, before = token.end(), token[0]
    return [*parts, (before, expr[start:])]


def _bare(expr: str) -> str:
    """Return an expression without brackets and spaces around all of it."""
    expr = expr.strip()
    while expr.startswith("(") and _closes_at(expr) == len(expr) - 1:
        expr = expr[1:-1].strip()
    return expr


def _closes_at(expr: str) -> int:
    """Return where the bracket at the beginning closes, or -1."""
    depth = 0
    for token in _TOKEN.finditer(expr):
        depth += (token.lastgroup == "open") - (token.lastgroup == "close")
        if depth == 0 and token.lastgroup == "close":
            return token.start()
    return -1


def _number(text: str) -> float | None:
    """Return the value of a number, or of a product or quotient of numbers: `0.9`, `5 * 60`, `1e9 / 2`."""
    parts = re.split(r"([*/])", text.replace("_", ""))
    try:
        value = float(parts[0])
        for operator, factor in zip(parts[1::2], parts[2::2], strict=True):
            value = value * float(factor) if operator == "*" else value / float(factor)
    except (ValueError, ZeroDivisionError):
        return None
    return value


_NO_METRIC = ("(", "by", "without")  # behind the name of a function
_KEYWORDS = frozenset(
    "and or unless by without on ignoring group_left group_right bool offset start end inf nan".split()
)


def metrics(expr: str) -> list[str]:
    """Return the names of the metrics in an expression, in order."""
    found: dict[str, None] = {}
    labels = 0
    tokens = [one for one in _TOKEN.finditer(_uncommented(expr)) if one[0].strip()]
    for number, token in enumerate(tokens):
        following = tokens[number + 1][0] if number + 1 < len(tokens) else ""
        if token[0] in "{[":
            labels += 1
        elif token[0] in "}]":
            labels -= 1
        elif token.lastgroup == "word" and not labels and following not in _NO_METRIC:
            grouped = (
                number >= 2
                and tokens[number - 1][0] in "(,"
                and _in_grouping(tokens, number)
            )
            if token[0].lower() not in _KEYWORDS and not grouped:
                found[token[0]] = None
    return [name for name in found if len(name) > 1]


def _in_grouping(tokens: list[re.Match[str]], number: int) -> bool:
    """Return whether a word is a label in `by (…)`, `on (…)` and the like."""
    for before in range(number - 1, 0, -1):
        if tokens[before][0] == "(":
            return tokens[before - 1][0].lower() in _KEYWORDS
        if tokens[before][0] != "," and tokens[before].lastgroup != "word":
            return False
    return False


_AGGREGATED = re.compile(r"\b(?:sum|avg|min|max|count|quantile|topk|bottomk|stddev)\b")
_SELECTOR = re.compile(
    r"([A-Za-z_:][\w:.]*)\s*(\{(?:\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'|[^{}\"'])*\})?\s*(\[[^\]]*\])?"
)


def parts_of(expr: str) -> str:
    """Return an expression for the largest series that an aggregating one adds up, or "" for one that does not.

    It takes the first metric; a counter, or what has a range, as its rate.
    """
    expr = _uncommented(expr)
    known = metrics(expr)
    if not known or not _AGGREGATED.search(expr):
        return ""
    for match in _SELECTOR.finditer(expr):
        if match[1] == known[0]:
            selector = match[1] + (match[2] or "")
            rated = match[3] or re.search(r"_(?:total|count|sum)$", match[1])
            value = f"rate({selector}{match[3] or '[5m]'})" if rated else selector
            return f"topk(10, {value} > 0)"
    return ""
