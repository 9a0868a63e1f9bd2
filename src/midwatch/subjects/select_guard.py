"""What the guards of a SELECT share: one statement is parsed, and its names, texts and calls are looked at. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from itertools import pairwise

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from midwatch.subjects.tools import Refused
from midwatch.text import one_line

LONGEST = 4000
"""Characters of a statement."""
_DEEPEST = 40  # parentheses within each other
_BEGINS = re.compile(r"[\s(]*(select|with)\b", re.IGNORECASE)
_PLAIN = re.compile(r"\w{1,63}")


@dataclass(frozen=True, slots=True)
class Admitted:
    """A statement that may run: its text, and the tables that it reads, each as (schema or "", name)."""

    text: str
    tables: frozenset[tuple[str, str]]


def parse_query(statement: str, dialect: str) -> exp.Query:
    """Return the only SELECT of a text. Raises Refused."""
    if len(statement) > LONGEST or "\0" in statement:
        raise Refused(f"a statement has at most {LONGEST} characters")
    if not _BEGINS.match(statement):
        raise Refused("only a single SELECT is admitted; begin with SELECT or WITH")
    if _depth(statement) > _DEEPEST:
        raise Refused(f"at most {_DEEPEST} parentheses may stand within each other")
    try:
        if _has_split_number(statement, dialect):
            raise Refused(
                "write a number in plain decimal digits, and AS before a name"
            )
        found = sqlglot.parse(statement, read=dialect)
    except (SqlglotError, RecursionError) as error:
        raise Refused(f"it cannot be parsed: {one_line(str(error), 200)}") from None
    if len(found) != 1 or not isinstance(found[0], exp.Query):
        raise Refused("only a single SELECT is admitted")
    return found[0]


def _has_split_number(statement: str, dialect: str) -> bool:
    """Return whether a number ends in letters, as `1_000` does: the parser would read `1 AS _000`."""
    tokens = sqlglot.tokenize(statement, read=dialect)
    return any(
        one.token_type is sqlglot.TokenType.NUMBER and after.start == one.end + 1
        for one, after in pairwise(tokens)
        if after.token_type is sqlglot.TokenType.VAR
    )


def _depth(text: str) -> int:
    deepest = depth = 0
    for character in text:
        depth += (character in "([") - (character in ")]")
        deepest = max(deepest, depth)
    return deepest


def _names(node: exp.Expr) -> Iterator[str]:
    if isinstance(node, exp.Alias):
        yield node.alias
    else:
        yield from (one.name for one in node.find_all(exp.Identifier))


def _is_plain(name: str) -> bool:
    return not name or _PLAIN.fullmatch(name) is not None


def has_plain_names(node: exp.Alias | exp.TableAlias) -> bool:
    """Return whether the names after an AS have letters, digits and _ only."""
    return all(map(_is_plain, _names(node)))


def is_shown(
    literal: exp.Literal, takes_in: Callable[[exp.Expr, exp.Expr], bool]
) -> bool:
    """Return whether a text may be in the result: unless something on its way there is known to take it in."""
    node: exp.Expr = literal
    while (parent := node.parent) is not None:
        if isinstance(parent, exp.Query):
            return node.arg_key == "expressions"
        if takes_in(parent, node):
            return False
        node = parent
    return False


def folded(identifier: exp.Identifier) -> str:
    """Return a name as the server compares it: in small letters unless it is quoted."""
    return identifier.name if identifier.quoted else identifier.name.lower()


def check_calls(
    text: str, dialect: str, allowed: Set[str], *, quoted: bool = False
) -> None:
    """Raise Refused for a function in the text to run that is not on the list.

    Args:
        text: What was written again from the parse.
        dialect: Its dialect.
        allowed: Functions, and words that may stand before a parenthesis.
        quoted: Whether quoted names may stand there too, as an alias with columns does.
    """
    tokens = sqlglot.tokenize(text, read=dialect)
    for token, after in zip(tokens, tokens[1:], strict=False):
        if after.token_type is not sqlglot.TokenType.L_PAREN:
            continue
        if quoted and token.token_type in (
            sqlglot.TokenType.IDENTIFIER,
            sqlglot.TokenType.STRING,
        ):
            continue
        name = token.text.lower()
        if re.search(r"\w|[^\0-\x7f]", name) and name not in allowed:
            raise Refused(
                f"the function {one_line(name, 60)} is not on the list of those that only read"
            )
