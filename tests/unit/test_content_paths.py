"""Paths that are refused, and tokens: the two things that keep a session in its folder."""

from __future__ import annotations

import os
import posixpath
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from midwatch.content import errors
from midwatch.content.errors import PathRefused, TokenRefused
from midwatch.content.server.http import STATUS
from midwatch.content.tokens import issue, read_keys, verify
from midwatch.content.tree import Entry, check_folder, check_path, check_tree
from midwatch.errors import MidwatchError, SettingsError

NOW = datetime(2026, 11, 21, 22, 0, tzinfo=UTC)
KEY, OTHER = b"k" * 32, b"o" * 40
FILE, LINK, FOLDER = Entry("file"), Entry("symlink", 0o777, target="x"), Entry("folder")

paths = st.text(
    st.sampled_from(["/", ".", "a", "é", "\0", "\\", "\n", "%", "\udcc3", "\udca9"])
    | st.characters(),
    max_size=12,
)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/etc/passwd",
        "..",
        "../x",
        "a/../b",
        "a/..",
        ".",
        "./a",
        "a/./b",
        "a//b",
        "a/",
        "a\0b",
        "x" * 256,
        "é" * 128,
        "a/" * 2048 + "a",
        "\ud800",
        "\udcc3\udca9",  # the escaped bytes of é: a second name of the same file
    ],
)
def test_refused_paths(path: str) -> None:
    with pytest.raises(PathRefused) as refused:
        check_path(path)
    assert refused.value.one_line().isascii()


@pytest.mark.parametrize(
    "path",
    [
        "a",
        ".git/HEAD",
        "...",
        "a..b/-rf",
        "A/a",
        "x" * 255,
        "é" * 127,
        "\N{LATIN SMALL LETTER E WITH ACUTE}",
        "e\N{COMBINING ACUTE ACCENT}",
        "caf\udce9",
        "back\\slash",
        "new\nline",
        "%2e%2e",
        "C:",
    ],
)
def test_paths_that_a_file_system_has(path: str) -> None:
    check_path(path)


@given(paths)
def test_what_is_accepted_is_one_file_inside(path: str) -> None:
    try:
        check_path(path)
    except PathRefused:
        return
    assert posixpath.normpath(path) == path and not path.startswith(("/", ".."))
    assert os.fsdecode(os.fsencode(path)) == path
    assert Path("/root", path).is_relative_to("/root") and "\0" not in path


@pytest.mark.parametrize("above", [FILE, LINK])
def test_nothing_is_below_what_is_no_folder(above: Entry) -> None:
    check_tree({"a": FOLDER, "a/b/c": FILE})  # b is there because of c
    with pytest.raises(PathRefused):
        check_tree({"a": above, "a/b/c": FILE})


@pytest.mark.parametrize("target", ["", "a\0b", "x" * 4096, "\ud800"])
def test_symlinks_to_what_cannot_be_written(target: str) -> None:
    check_tree({"a": Entry("symlink", 0o777, target="../../etc/passwd")})
    with pytest.raises(PathRefused):
        check_tree({"a": Entry("symlink", 0o777, target=target)})


@pytest.mark.parametrize(
    "folder",
    ["", "a", "a/", "/a", "a/..", "../a", "a/b/c", "a/b..c", "A/b", "a/b\n", "a/%2e"],
)
def test_what_is_no_folder(folder: str) -> None:
    assert check_folder("team-a/fix.0123abcd") == "team-a/fix.0123abcd"
    with pytest.raises(PathRefused):
        check_folder(folder)
    with pytest.raises(PathRefused):
        issue(KEY, folder, now=NOW)


# ------------------------------------------------------------------ tokens


def test_a_token_says_what_may_be_done() -> None:
    grant = verify(KEY, issue(KEY, "ns/a.1", ["ns/b.2"], now=NOW), now=NOW)
    assert grant.may_write("ns/a.1") and grant.may_read("ns/a.1")
    assert grant.may_read("ns/b.2") and not grant.may_write("ns/b.2")
    assert not grant.may_read("ns/c.3")


def test_either_key_holds_while_they_change(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(b"\n" + OTHER + b"\n" + KEY + b"\n")
    assert read_keys(file) == (OTHER, KEY)
    old = issue(KEY, "ns/a.1", now=NOW)
    assert verify(read_keys(file), old, now=NOW).folder == "ns/a.1"
    with pytest.raises(TokenRefused, match="another key"):
        verify(OTHER, old, now=NOW)


def test_short_and_absent_keys(tmp_path: Path) -> None:
    (tmp_path / "short").write_text("secret\n")
    (tmp_path / "empty").write_text("\n")
    for name in ("short", "empty", "none"):
        with pytest.raises(SettingsError):
            read_keys(tmp_path / name)
    with pytest.raises(SettingsError):
        issue(b"short", "ns/a.1", now=NOW)


def test_times_are_those_of_the_injected_clock() -> None:
    token = issue(KEY, "ns/a.1", now=NOW, expires=NOW + timedelta(hours=1))
    verify(KEY, token, now=NOW + timedelta(minutes=59))
    with pytest.raises(TokenRefused, match="expired"):
        verify(KEY, token, now=NOW + timedelta(hours=2))
    with pytest.raises(TokenRefused, match="future"):
        verify(KEY, token, now=NOW - timedelta(hours=1))


@pytest.mark.parametrize(
    "change",
    [
        {"iss": "another"},
        {"iss": None},
        {"sub": "../etc"},
        {"sub": None},
        {"sub": 7},
        {"iat": None},
        {"iat": "now"},
        {"exp": "never"},
        {"read": "ns/b.2"},
        {"read": ["/"]},
    ],
)
def test_claims_that_do_not_hold(change: dict[str, object]) -> None:
    claims = {"iss": "midwatch", "sub": "ns/a.1", "iat": 0, "read": []} | change
    given = {name: value for name, value in claims.items() if value is not None}
    with pytest.raises(TokenRefused):
        verify(KEY, jwt.encode(given, KEY, algorithm="HS256"), now=NOW)


def test_the_algorithm_is_not_the_tokens_choice() -> None:
    claims = {"iss": "midwatch", "sub": "ns/a.1", "iat": 0}
    none = jwt.encode(claims, None, algorithm="none")
    other = jwt.encode(claims, KEY * 2, algorithm="HS512")
    for token in (none, other, "", "x", "a.b.c", "e" * 10_000):
        with pytest.raises(TokenRefused):
            verify([KEY, KEY * 2], token, now=NOW)


# ------------------------------------------------------------------ errors


def test_every_error_has_a_status() -> None:
    own = [
        found
        for found in vars(errors).values()
        if isinstance(found, type)
        and issubclass(found, MidwatchError)
        and found.__module__ == errors.__name__
    ]
    assert own
    for kind in own:
        assert any(issubclass(kind, known) for known, _ in STATUS), kind
