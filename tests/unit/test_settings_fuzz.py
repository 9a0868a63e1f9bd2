"""Any text is settings or one clear line: never another exception, never a value that may be secret."""

from __future__ import annotations

import tempfile
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from midwatch.config import load
from midwatch.errors import SettingsError
from midwatch.settings import Settings

SECRET = "hunter2s3cret"
LINES_WITH_SECRETS = [
    f"password: {SECRET}",
    f"database: postgres://u:{SECRET}@h/d",
    f"database: {{url: {SECRET}",
    f"headers: {{X-Key: {SECRET}",
    f"api_key: '{SECRET}",
    f"dsn: *{SECRET}",
    f"dsn: {SECRET}: x",
    f"token: !{SECRET} x",
    f"token: %{SECRET}",
    f"\tpassword: {SECRET}",
]
PIECES = [
    *"agent: monitor: subjects: database: api_key: name: kind: postgres http dsn: url: headers: password:".split(),
    *"- [ ] { } : , ' \" | > & * ! # % @ ` ? ~ << --- ... null true 1 0x1 1e999 90 &a *a !!int !!python/object".split(),
    *("\n", "\n  ", "\n    ", "\t", " ", "\r\n", "\ufeff", "\x00", "\x1b", "\u2028", "\u202e", "\u200b", "é", "${HOME}", "${X", "2026-13-45", "99999"),
    *("name: box", "kind: host", "limit: 90", "invariants: {disk: {limit: 90}}", "<<: *a", "a: &a [*a]", "9" * 5000, "[" * 100, "{a: " * 100),
]  # fmt: skip
LINES = [
    "agent:", "subjects:", "- name: db", "  kind: postgres", "anthropic:", "  api_key: x", "database: x", "  - a", "x y", "{", "}", "]", "'",
    "<<: *a", "&a", "...", "---", "!!int x", "a: b: c", "  database: 1", "\x00", "%", "@x", "name: [1",
]  # fmt: skip
DOCUMENTS = st.one_of(
    st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=8)), max_size=14).map(
        "".join
    ),
    st.lists(st.sampled_from(PIECES), max_size=14).map("\n".join),
    st.text(max_size=200),
)


def outcome(data: bytes, environ: dict[str, str]) -> Settings | SettingsError:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "midwatch.yaml"
        file.write_bytes(data)
        try:
            return load(environ, file)
        except SettingsError as error:
            return error


def check(found: Settings | SettingsError) -> None:
    if isinstance(found, SettingsError):
        line = found.one_line()
        assert line
        assert not {"Cc", "Cf", "Cs", "Zl", "Zp"} & set(
            map(unicodedata.category, line)
        ), line
        assert len(line) < 1000


@settings(max_examples=300, deadline=None)
@given(DOCUMENTS)
def test_any_text_is_settings_or_one_line(text: str) -> None:
    check(outcome(text.encode("utf-8", "surrogatepass"), {"HOME": "/root"}))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(LINES), max_size=6),
    st.sampled_from(LINES_WITH_SECRETS),
    st.sampled_from(["", "  ", "    ", "- "]),
    st.lists(st.sampled_from(LINES), max_size=6),
)
@example(
    ["subjects:", "- name: db", "  kind: postgres"], f"dsn: {SECRET}", "  ", ["x y"]
)
def test_no_error_repeats_the_line_that_it_is_about(
    before: list[str], secret: str, indent: str, after: list[str]
) -> None:
    """A line may hold a password, and the error goes to logs and terminals."""
    text = "\n".join([*before, indent + secret, *after])
    found = outcome(text.encode(), {})
    check(found)
    if isinstance(found, SettingsError):
        assert SECRET not in found.one_line()


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_settings_or_one_line(data: bytes) -> None:
    check(outcome(data, {}))


VARIABLES = [
    "MIDWATCH_AGENT", "MIDWATCH_AGENT__POLL_INTERVAL", "MIDWATCH_SUBJECTS", "MIDWATCH_DATABASE", "MIDWATCH_",
    "MIDWATCH___", "MIDWATCH_AGENT__", "MIDWATCH_AGENT__X__Y", "midwatch_agent__concurrency",
]  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(VARIABLES), DOCUMENTS, max_size=3))
def test_any_variable_is_a_setting_or_one_line(variables: dict[str, str]) -> None:
    check(outcome(b"", variables))


@pytest.mark.parametrize("depth", [50, 5_000, 200_000])
def test_nesting_ends_in_one_line(depth: int) -> None:
    found = outcome(b"agent: " + b"[" * depth + b"]" * depth, {})
    assert isinstance(found, SettingsError)
    check(found)


def test_anchors_that_explode_end_in_one_line() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    found = outcome("\n".join(lines).encode(), {})
    assert isinstance(found, SettingsError)
    assert "too large" in found.one_line()
