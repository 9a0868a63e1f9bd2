"""Matchers in Alertmanager's syntax: both of its grammars, and RE2."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midwatch.matchers import (
    InvalidMatcher,
    Matcher,
    match_all,
    parse_matchers,
)


def read(text: str) -> list[tuple[str, str, str]]:
    return [(one.name, one.op, one.value) for one in parse_matchers(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("{}", []),
        ("foo=bar", [("foo", "=", "bar")]),
        ("{foo=bar,}", [("foo", "=", "bar")]),
        (" { foo = bar , a!=b } ", [("foo", "=", "bar"), ("a", "!=", "b")]),
        ('foo=~"a.*",b!~[x-z]+', [("foo", "=~", "a.*"), ("b", "!~", "[x-z]+")]),
        ("foo=🙂bar", [("foo", "=", "🙂bar")]),
        ("føø=bår", [("føø", "=", "bår")]),
        # Quoted names: only the newer grammar has them, with the escapes of Go.
        ('"a b"="c d"', [("a b", "=", "c d")]),
        (r'{"foo"="\xf0\x9f\x99\x82"}', [("foo", "=", "🙂")]),
        (r'"foo"="\U0001f642é\101\t\""', [("foo", "=", '🙂éA\t"')]),
        # Where both grammars read it the classic one counts, as in Alertmanager.
        (r'foo="a\nb\\c\"d"', [("foo", "=", 'a\nb\\c"d')]),
        (r'foo="a\tb"', [("foo", "=", r"a\tb")]),
        (r'foo=~"a\.b\d"', [("foo", "=~", r"a\.b\d")]),
        # Only the classic one has these.
        ("foo=", [("foo", "=", "")]),
        ("foo==bar", [("foo", "=", "=bar")]),
        ("a=b c, d=e", [("a", "=", "b c"), ("d", "=", "e")]),
        (r"foo=~a\d+", [("foo", "=~", r"a\d+")]),
        ('a="x,y",b="}"', [("a", "=", "x,y"), ("b", "=", "}")]),
        ('a="line\nfeed"', [("a", "=", "line\nfeed")]),
    ],
)
def test_what_alertmanager_reads(
    text: str, expected: list[tuple[str, str, str]]
) -> None:
    assert read(text) == expected


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (",", "character 1"),
        ("{", "at the end"),
        ("}", "character 1"),
        ("{foo=bar", "at the end"),
        ("foo=bar}", "character 8"),
        ("foo=~a.{2}", "double quotes|character"),  # Alertmanager drops the brace
        ('{foo=:"bar"}', "character 7"),
        ("foo", "at the end"),
        ("=bar", "character 1"),
        ('foo="bar', "character 5"),
        ('foo=b"ar', "character 6"),
        (r'"foo"="\w"', "wrong escape"),
        (r'"foo"="\ud800"', "wrong escape"),
        (r'"foo"="\xf0\x9f"', "wrong escape"),
        ('"foo"="a\nb"', "line end"),
        ('""=a', "no label name"),
        ('foo=~"(a"', "missing \\)"),
        (r'foo=~"(?=a)"', "invalid perl operator"),
        (r'foo=~"(a)\\1"', "invalid escape sequence"),
        ("a=\0", "NUL"),
        ("a=" + "b" * 10_000, "longer than"),
        (",".join(["a=b"] * 101), "too many"),
    ],
)
def test_what_is_wrong_is_refused_with_the_place(text: str, where: str) -> None:
    with pytest.raises(InvalidMatcher, match=where) as caught:
        parse_matchers(text)
    assert len(caught.value.one_line()) < 400


@given(
    st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1),
    st.sampled_from(["=", "!="]),
    st.text(st.characters(exclude_characters="\0", codec="utf-8")),
)
def test_what_is_written_is_read_again(name: str, op: Any, value: str) -> None:
    one = Matcher(name, op, value)
    assert parse_matchers(str(one)) == (one,)
    assert parse_matchers(f"{{{one}, {one},}}") == (one, one)


@given(st.text(alphabet='{}!=~,\\"`a \n\U0001f642é0'))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        found = parse_matchers(text)
    except InvalidMatcher as error:
        assert error.hint or error.message
    else:
        assert parse_matchers(", ".join(map(str, found))) == found


def test_a_missing_label_is_the_empty_text() -> None:
    labels = {"team": "shop"}
    for text, expected in {
        'team=""': False,
        'other=""': True,
        "other!=x": True,
        'other=~".*"': True,
        'other=~".+"': False,
        'other!~".+"': True,
    }.items():
        assert match_all(parse_matchers(text), labels) is expected, text


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("disk", "disk-1", False),  # anchored at both ends
        ("disk.*", "disk-1", True),
        ("a|b", "ab", False),
        ("a|ab", "ab", True),
        ("(?i)DISK", "disk", True),
        ("a.b", "a\nb", False),
        ("(?s)a.b", "a\nb", True),
        (r"\pL+", "föö", True),
        ("", "", True),
    ],
)
def test_regular_expressions_are_those_of_re2(
    pattern: str, text: str, expected: bool
) -> None:
    assert Matcher("x", "=~", pattern).matches({"x": text}) is expected
    assert Matcher("x", "!~", pattern).matches({"x": text}) is not expected


@pytest.mark.parametrize("pattern", ["(a*)*b", "(a|aa)+$b", "(.*.*.*.*.*)*c", "(a+)+"])
def test_no_pattern_takes_long(pattern: str) -> None:
    """Python's engine would need longer than the universe is old for these."""
    text = "a" * 20_000 + "!"
    assert not Matcher("x", "=~", pattern).matches({"x": text})
