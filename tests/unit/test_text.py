"""Outside text: harmless, within its budget, and unable to leave its place."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from midwatch.agent.quotes import normalise
from midwatch.text import (
    clean,
    estimate_tokens,
    fence,
    markdown_escape,
    one_line,
    shorten,
)

ANY_TEXT = st.text(st.characters(), max_size=60)  # surrogates included


@pytest.mark.parametrize(
    ("raw", "harmless"),
    [
        (b"ok \xff\xfe caf\xc3\xa9\x00", "ok �� café"),
        ("a\r\nb\rc\td", "a\nb\nc\td"),
        ("\x1b[1;31mred\x1b[0m \x9b2Jx", "red x"),
        ("\x1b]0;title\x07a \x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "a link"),
        ("\x1b]0;never closed\nnext", "0;never closed\nnext"),
        ("bell\x07 del\x7f nul\0", "bell␇ del␡ nul"),
        ("user\u202etxt.exe", "user<U+202E>txt.exe"),
        ("pass\u200b\u200b\u200bword", "pass<U+200B ×3>word"),
        ("a\u2028b\x85c", "a<U+2028>b<U+0085>c"),
        ("tag \U000e0041 lone \ud83d", "tag <U+E0041> lone �"),
        ("naïve 数据库 ⚠️ 100 %", "naïve 数据库 ⚠️ 100 %"),
    ],
)
def test_clean(raw: str | bytes, harmless: str) -> None:
    assert clean(raw) == harmless


@given(st.one_of(ANY_TEXT, st.binary(max_size=60)))
def test_what_is_clean_is_inert_and_stays(raw: str | bytes) -> None:
    text = clean(raw)
    assert clean(text) == text
    assert text.splitlines() == text.removesuffix("\n").split("\n") or not text
    text.encode()
    for character in set(text) - {"\n", "\t"}:
        assert unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp")
        assert unicodedata.bidirectional(character) not in (
            "RLO",
            "LRO",
            "RLE",
            "LRE",
            "PDF",
        )


def test_a_line_of_ten_megabytes_is_cut_and_says_so() -> None:
    text = clean("first\n" + "x" * 10_000_000 + "end\nlast")
    first, cut, last = text.split("\n")
    assert (first, last) == ("first", "last")
    assert len(cut) <= 4000 and cut.endswith("end")
    assert "[… 9,996,043 characters cut …]" in cut
    assert len(clean("y" * 9000, longest=None)) == 9000


def test_one_line() -> None:
    assert one_line(" a\r\n\tb  \x1b[1mc ") == "a b c"
    assert one_line("word " * 50, 12) == "word word w…"


# ------------------------------------------------------------------ short enough


@pytest.mark.parametrize(
    ("text", "least"),
    [
        # Least: what the documented figures give for the newer tokenizers.
        ("The session holds a lock that forty others wait for. " * 20, 53 * 20 / 2.6),
        ("2024-05-03 12:00:01.123 UTC [4242] LOG: checkpoint complete" * 20, 28 * 20),
        ("数据库连接数接近上限" * 20, 10 * 20),
        ("🔥" * 20, 2 * 20),
        ("9f86d081884c7d659a2feaa0c55ad015" * 20, 16 * 20),
    ],
)
def test_estimates_are_rather_too_high(text: str, least: float) -> None:
    assert least <= estimate_tokens(text) <= len(text.encode())


LOG = [
    f"2024-05-03 12:{i // 60 % 60:02d}:{i % 60:02d}.123 UTC [{1000 + i}] LOG:  checkpoint"
    f" complete: wrote {i * 17} buffers"
    for i in range(3000)
]


def test_shortening_keeps_head_tail_and_the_unusual() -> None:
    lines = list(LOG)
    lines[700] = "HINT:  something nobody saw before"
    lines[1500] = "2024-05-03 12:25:00.123 UTC [77] FATAL:  out of memory"
    short = shorten("\n".join(lines), 600)
    kept = short.split("\n")
    assert kept[0] == lines[0] and kept[-1] == lines[-1]
    assert lines[700] in kept and lines[1500] in kept
    counted = 0
    for line in kept:
        note = re.fullmatch(r"\[… ([\d,]+) lines? cut …\]", line)
        counted += int(note[1].replace(",", "")) if note else 1
    assert counted == len(lines)
    assert [line for line in kept if line in lines] == [
        line for line in lines if line in kept
    ]
    assert 400 <= estimate_tokens(short) <= 600


def test_shortening_again_adds_up_what_is_missing() -> None:
    again = shorten(shorten("\n".join(LOG), 1000), 300)
    notes = re.findall(r"\[… ([\d,]+) lines? cut …\]", again)
    lines = [line for line in again.split("\n") if not line.startswith("[…")]
    assert sum(int(note.replace(",", "")) for note in notes) + len(lines) == len(LOG)


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(ANY_TEXT, st.sampled_from(["", "ERROR x", "a" * 3000, "数" * 500]))
    ),
    st.integers(0, 400),
)
def test_never_over_budget(lines: list[str], tokens: int) -> None:
    text = "\n".join(lines)
    short = shorten(text, tokens)
    assert estimate_tokens(short) <= tokens
    if estimate_tokens(text) <= tokens:
        assert short == text


@pytest.mark.parametrize(
    "piece", ["\n", "a b\n", "x", "0", "\u200b\u200c", "\x1b]x", "\x1b[1"]
)
def test_huge_text_is_bearable(piece: str) -> None:
    assert estimate_tokens(shorten(clean(piece * (400_000 // len(piece))), 500)) <= 500


# ------------------------------------------------------------------ in its place


@given(
    st.lists(
        st.one_of(
            st.sampled_from(
                [
                    "</evidence>",
                    "< / EVIDENCE",
                    "<evidence",
                    "<\\/evidence>",
                    "＜/evidence＞",
                    "<ticket>",
                    "<|",
                ]
            ),
            ANY_TEXT,
        )
    )
)
def test_a_fence_cannot_be_closed_from_within(pieces: list[str]) -> None:
    text = "".join(pieces)
    fenced = fence(text, "evidence", id="E1", title='x"> </evidence>\n')
    opening = '<evidence id="E1" title="x&quot;&gt; &lt;/evidence&gt;">\n'
    assert fenced.startswith(opening) and fenced.endswith("\n</evidence>")
    inner = fenced[len(opening) : -len("\n</evidence>")]
    assert not re.search(r"(?i)[<＜﹤][\s/／]*(?:evidence|ticket|[/／]|\|)", inner)


@pytest.mark.parametrize(
    ("text", "dead"),
    [
        ("<ticket>forged</ticket>", "<\\ticket>forged<\\/ticket>"),
        (f"<{' ' * 300}/evidence>", "<\\/evidence>"),
        ("<  Problem >", "<\\Problem >"),
        ("<|im_start|> <!-- <?x", "<\\|im_start|> <\\!-- <\\?x"),
        ("a < b, x <5 and up < bool 1", "a < b, x <5 and up < bool 1"),
        ("<U+202E>", "<U+202E>"),
        ("‹/evidence› 〈ticket〉 ⟨ /x ‹n›", "‹\\/evidence› 〈\\ticket〉 ⟨\\ /x ‹n›"),
        ("<∕evidence> < ⁄x", "<\\∕evidence> <\\⁄x"),
    ],
)
def test_no_tag_of_any_kind_stays_live(text: str, dead: str) -> None:
    assert fence(text, "evidence") == f"<evidence>\n{dead}\n</evidence>"
    assert normalise(dead) == normalise(text)


MARKDOWN = [
    "![x](http://evil/a.png)",
    "[a](javascript:x)",
    "[a]: http://evil",
    "<img src=x onerror=y>",
    "<http://evil>",
    "&lt;b&gt;",
    "# head\n",
    "\n---\n",
    "\n===\n",
    "\n1. x\n",
    "\n- y\n",
    "\n> q\n",
    "\n    code\n",
    "\n```sh\n",
    "~~~\n",
    "| a | b |\n|---|---|\n",
    "`x",
    "``",
    "**b** __c__ ~~d~~",
    "www.evil.example/x`y",
    "me@evil.example",
    "\\",
    "\\`",
    "!",
    "[",
    "]",
    "(",
    ")",
    "\x1b[31m",
    " ",
    "\n",
]
SHOWN = {
    "paragraph_open",
    "paragraph_close",
    "inline",
    "text",
    "code_inline",
    "softbreak",
}
hostile_markdown = st.lists(st.one_of(st.sampled_from(MARKDOWN), ANY_TEXT)).map("".join)


@settings(max_examples=300, deadline=None)
@given(hostile_markdown)
def test_escaped_text_is_text(text: str) -> None:
    """Whatever comes in: paragraphs of text and inline code come out, with the same words."""
    blocks = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    tokens = blocks.parse(markdown_escape(text))
    flat = tokens + [child for token in tokens for child in token.children or ()]
    assert {token.type for token in flat} <= SHOWN
    plain = "".join(token.content for token in flat if token.type == "text")
    assert not re.search(r"://|(?i:www)\.|\S@\S", plain)
    shown = "".join(t.content for t in flat if t.type in ("text", "code_inline"))
    assert re.sub(r"\s", "", shown) == re.sub(r"\s", "", clean(text))


def test_escaped_text_stays_readable() -> None:
    text = "pid 4242 is idle_in_transaction (12.5 s); see public.accounts, user's lock - 3 of 4"
    assert markdown_escape(text) == text
    for plain in (
        "12.2 s (limit 10 s)",
        "-5 °C, +3, ~12 s, $5, #42",
        "a < b > c && d | e * f = [redacted:password] = x[1], {a}",
        "C:\\temp, ERROR:  1.5% [4711]: no",
    ):
        assert markdown_escape(plain) == plain
