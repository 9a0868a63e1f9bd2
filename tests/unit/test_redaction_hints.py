"""The scan that leaves rules of redaction out hides what all rules hide, and nothing else.

The reference runs every rule on every text. Texts are built from secrets, harmless texts, names, separators and values, in other
letters, cut, and with characters that Python takes for letters of ASCII.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from midwatch.redaction import HINTS, Redactor
from midwatch.redaction.hints import UNSCANNED, Hints
from midwatch.redaction.pairs import LONGEST_READ_NAME

HINTS.build()  # until it pays, the scan leaves no rule out
KNOWN = ("knownsecret", "password", "token]", 'h/nt r"2 ü+x')
CORPUS = Path(__file__).parent / "redaction_corpus"


class EveryRule(Redactor):
    """Runs all rules on all texts."""

    def __init__(self, *known: str) -> None:
        super().__init__(known)
        self._hints_of = lambda text: HINTS.all


def texts_of(name: str) -> list[str]:
    lines = (CORPUS / name).read_text("utf-8").splitlines()
    return [
        re.sub("[«»]", "", line.replace("⏎", "\n").replace("⇥", "\t").replace("·", ""))
        for line in lines
        if line and not line.startswith("#")
    ]


A = "a1B2c3D4e5F6g7H8i9J0"
RARE = [  # of rules that the corpus has no text for
    "requirepass foobared1",
    "insecure-password Xy12zz",
    "stats auth admin:Xy12zz",
    f"a1B2c3D4e5F6g7.atlasv1.{A * 2}",
    f"https://x.office.com/webhookb2/{A}@x/IncomingWebhook/{A}",
    "Proxy said Basic dXNlcjpwYXNzd29yZA== twice",
    f"ASP.NET_SessionId={A}; connect.sid={A}; _session={A}",
    f"{{'kty': 'oct', 'k': '{A}'}}",
    "SELECT md5('hunter2') AS x, 'hunter2'::text AS password_hash",
    "INSERT INTO keystore VALUES ('hunter2', 3)",
]
TEXTS = [*texts_of("secrets.txt"), *texts_of("harmless.txt"), *RARE]
NAMES = (
    "password passwd DB_PASSWORD dbPassword pass token api_key apiKey secret clientSecret secretAccessKey key cred creds psk pw otp"
    " wachtwoord contraseña contrasena kennwort parola senha heslo haslo пароль ПАРОЛЬ 密码 パスワード --password -token tokenHash"
    " token_old passe passed bypass requirepass masterauth secret.key DB_PASSWORD_ORDERS key_otp"
).split()
SEPARATORS = [
    *('=": ":"=>":=":" : " is " was " set to ", ",";"|" | "%3D"\\u003d"：" as " to "~" in (\'').split('"'),
    *("\t", " ", "  ", "\n", "\r\n", "\n\n", ":\n  ", '":"', '": "', "'=>'", '\\":\\"', "&quot;:&quot;"),
    *(") = (", ") VALUES ('", " LIKE '", " <> '", "!='", " AS '", "] ", '")', ">", '", "value": "', "`", '", "', "\v)"),
]  # fmt: skip
VALUES = [
    *("hunter2", "hunter", "foo bar", "abc def ghi", "null", "'x1y2z3'", '"s3cr3t!"'),
    *("a1b2c3d4e5f6", "$1", "[redacted:password]", "[redacted:token]x", "[redacted:foo]"),
    *('"[redacted:jwt]"', "'[redacted:secret]\"q'", "7 0822455D0A16", "P@ss w0rd", "x;y", "\0", "Ünï1"),
]  # fmt: skip
BEFORE = [
    *("machine x ", "login y ", "value=", "name: ", "INSERT INTO t(", "into api_"),
    *(
        "curl -u ",
        "mysql ",
        "export ",
        "a,",
        "a|",
        "'x' AS ",
        "kind: Secret\ndata:\n  ",
    ),
    *("Authorization: Bearer ", "postgres://u:", "://u:[redacted:url-password]@"),
]
CHARACTERS = ["\u212a", "ſ", "ı", "İ", "é", "ß", "\u2028", "\x85", "\xa0", "\ud800", "٣"]  # fmt: skip
CHANGES: list[Callable[[str], str]] = [
    str.upper,
    str.lower,
    str.title,
    json.dumps,
    lambda text: text.replace("k", "\u212a").replace("s", "ſ"),
    lambda text: text.replace("i", "ı").replace("I", "İ"),
    lambda text: text[len(text) // 2 :],
    lambda text: text[: len(text) // 2],
    lambda text: f"{text} {text}",
    *[lambda text: text] * 9,
]
PIECE = st.one_of(
    st.sampled_from(TEXTS),
    st.tuples(*map(st.sampled_from, (["", *BEFORE], NAMES, SEPARATORS, VALUES))).map(
        "".join
    ),
    st.sampled_from([*BEFORE, *NAMES, *SEPARATORS, *VALUES, *CHARACTERS]),
)
CHANGED = st.tuples(PIECE, st.sampled_from(CHANGES)).map(lambda one: one[1](one[0]))
JOINED = st.tuples(
    st.sampled_from(["", "\n", " ", ", "]), st.lists(CHANGED, min_size=1, max_size=7)
).map(lambda one: one[0].join(one[1]))


@settings(max_examples=1500, deadline=None)
@given(JOINED)
@example("password: [redacted:foo]")  # no marker of ours
@example("Authorization: Bearer [redacted:jwt]")
@example("secret_" + "x" * 39 + "_tokenizer=hunter2")  # a name that is cut
def test_the_scan_changes_nothing(text: str) -> None:
    assert Redactor(KNOWN).text(text) == EveryRule(*KNOWN).text(text)


@pytest.mark.parametrize("change", CHANGES[:9])
def test_the_scan_changes_nothing_in_texts_of_the_corpus(
    change: Callable[[str], str],
) -> None:
    ours, reference = Redactor(), EveryRule()
    wrong = [
        text for text in map(change, TEXTS) if ours.text(text) != reference.text(text)
    ]
    assert not wrong


def test_every_character_that_python_takes_for_a_letter_of_ascii_counts_as_one() -> (
    None
):
    letters = re.compile("[a-z]", re.IGNORECASE)
    like = [
        one
        for one in map(chr, range(128, sys.maxunicode + 1))
        if letters.match(one) or one.lower().isascii()
    ]
    assert like
    assert all(HINTS.of(f"a {one} b") == HINTS.all for one in like)


def test_what_is_hidden_already_is_no_hint() -> None:
    """So the second run over a text with thousands of secrets costs one scan."""
    text = (
        "password=[redacted:password] at postgres://bob:[redacted:url-password]@db:5432/x\n"
        'Authorization: Bearer [redacted:authorization], {"token": "[redacted:token]"}'
    )
    assert HINTS.of(text) == {"core"}


@pytest.mark.parametrize(
    "text",
    [
        "2026-05-03 12:00:01 UTC [42] LOG:  checkpoint complete: wrote 4321 buffers (26.4%)",
        '10.0.0.7 - - [03/May/2026:12:00:01 +0000] "GET /api/orders/42 HTTP/1.1" 200 "curl/8.1"',
        "connected to https://example.org:8443/path?x=1 as bob@example.org",
        "the secretary passed monkeys and keyboards; tokenizers and compasses",
    ],
)
def test_ordinary_lines_have_no_hint(text: str) -> None:
    assert not HINTS.of(text)


def test_a_name_that_is_cut_is_found() -> None:
    """What is read of it ends behind what names a secret, and so does no hint."""
    name = "_password".rjust(LONGEST_READ_NAME, "a")
    text = f"value: hunter2, name: {name}less"
    assert "core" not in HINTS.of(text)
    assert "hunter2" not in Redactor().text(text)


def test_the_scan_begins_once_it_pays() -> None:
    """Until then every rule runs, on few and short texts."""
    hints = Hints({"greeting": "hello"})
    assert hints.of("good bye") == hints.all
    assert not hints.of("good bye " * UNSCANNED)
    assert not hints.of("good bye")
    many = Hints({"greeting": "hello"})
    named = [bool(many.of("good bye")) for _ in range(UNSCANNED)]
    assert named[0] and not named[-1] and named == sorted(named, reverse=True)
