"""Runbooks: which of them match a ticket and in which order, what is refused, how one is shortened."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midwatch.agent.runbook_evidence import noted
from midwatch.model import Key, Origin, Severity, Ticket, TicketStatus
from midwatch.redaction import Redactor
from midwatch.runbooks.excerpt import excerpt, first_steps, words_of
from midwatch.runbooks.folder import Listing, SourceUnavailable, read_folder
from midwatch.runbooks.html_text import html_to_markdown
from midwatch.runbooks.library import Found
from midwatch.runbooks.matching import Hit, RunbookIndex
from midwatch.runbooks.runbook import (
    MAX_BYTES,
    NoFrontMatter,
    Runbook,
    RunbookError,
    parse_page,
    parse_runbook,
)
from midwatch.subjects.http_transport import is_public
from midwatch.text import estimate_tokens

from ..hostile import put

AT = datetime(2024, 5, 3, 12, 0, tzinfo=UTC)
SECRET = "ghp_0123456789abcdefghijklmnopqrstuvwxyz"


def ticket(number: int = 1, **given: Any) -> Ticket:
    whole: dict[str, Any] = {
        "id": number,
        "key": Key("orders-db", "alert:DiskFull", "instance=db-1:9100"),
        "severity": Severity.CRITICAL,
        "status": TicketStatus.OPEN,
        "held": False,
        "message": "DiskFull: /data is at 97%",
        "facts": {"alertname": "DiskFull", "label_team": "db", "label_mount": "/data"},
        "first_seen_at": AT,
        "opened_at": AT,
        "last_seen_at": AT,
        "occurrence_count": 1,
        "batch": 1,
    }
    return Ticket(**{**whole, **given})


def runbook(match: str, body: str = "Do it.", path: str = "one.md") -> Runbook:
    text = f"---\nmatch: {match}\n---\n{body}\n"
    return parse_runbook(text.encode(), "/books", path, Redactor().text)


# ------------------------------------------------------------------ matching


@pytest.mark.parametrize(
    ("match", "points"),
    [
        ("{kinds: prometheus}", 2),
        ("{kinds: [host, prometheus]}", 2),
        ("{kinds: host}", None),
        ("{invariants: 'alert:DiskFull'}", 10),
        ("{invariants: [disk, 'alert:DiskFull', '*']}", 10),
        ("{invariants: 'alert:*'}", 3),
        ("{invariants: '*'}", 0),
        ("{invariants: 'alert:diskfull'}", None),
        ("{subjects: orders-db}", 8),
        ("{subjects: 'orders-*'}", 3),
        ("{subjects: 'orders-[ab]b'}", None),
        ("{subjects: [shop, 'orders-d?']}", 3),
        ("{subjects: orders}", None),
        ("{severity: critical}", 1),
        ("{severity: [WARNING, info]}", None),
        ("{labels: 'team=\"db\"'}", 4),
        ('{labels: \'{team="db", mount=~"/da.*"}\'}', 6),
        ("{labels: ['team=db', 'env!=test']}", 5),
        ("{labels: 'team=~\"d\"'}", None),
        ("{labels: 'env=\"\"'}", 4),
        ('{labels: \'alertname="DiskFull", component=~"instance=.*"\'}', 6),
        ("{kinds: prometheus, subjects: 'orders-*', invariants: 'alert:DiskFull'}", 15),
        ("{kinds: prometheus, subjects: shop, invariants: 'alert:DiskFull'}", None),
    ],
)
def test_a_runbook_matches_where_all_of_its_conditions_hold(
    match: str, points: int | None
) -> None:
    found = RunbookIndex([runbook(match)]).best(ticket(), "prometheus", 5)
    assert [one.points for one in found] == ([] if points is None else [points])


def test_the_most_specific_come_first_and_equal_ones_in_the_order_of_their_paths() -> (
    None
):
    matches = {
        "a.md": "{invariants: '*'}",
        "b.md": "{kinds: prometheus}",
        "c.md": "{invariants: 'alert:*'}",
        "d.md": "{invariants: 'alert:Disk*'}",
        "e.md": "{subjects: orders-db}",
        "f.md": "{invariants: 'alert:DiskFull'}",
        "g.md": "{invariants: 'alert:DiskFull'}",
        "h.md": "{invariants: 'alert:DiskFull', labels: 'team=db'}",
    }
    books = [runbook(one, path=path) for path, one in matches.items()]
    found = RunbookIndex(books).best(ticket(), "prometheus", 100)
    assert "".join(one.runbook.path[0] for one in found) == "hfgedcba"
    few = RunbookIndex(books).best(ticket(), "prometheus", 2)
    assert few == found[:2]
    assert found[0].reason == 'invariant alert:DiskFull, label team="db"'
    # A subject that is not in the settings any more has no kind.
    gone = RunbookIndex(books).best(ticket(), "", 100)
    assert "b.md" not in [one.runbook.path for one in gone]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                "{kinds: host}",
                "{kinds: prometheus, severity: critical}",
                "{invariants: disk}",
                "{invariants: ['alert:DiskFull', disk]}",
                "{invariants: ['alert:DiskFull', 'disk*']}",
                "{subjects: [orders-db, shop]}",
                "{subjects: 'o*', kinds: prometheus}",
                "{labels: 'team=db'}",
                "{severity: info}",
            ]
        ),
        max_size=12,
    )
)
def test_the_index_finds_what_a_look_at_each_runbook_finds(matches: list[str]) -> None:
    books = [runbook(one, path=f"{at:02}.md") for at, one in enumerate(matches)]
    each = [
        hit
        for one in books
        for hit in RunbookIndex([one]).best(ticket(), "prometheus", 1)
    ]
    found = RunbookIndex(books).best(ticket(), "prometheus", 100)
    assert sorted(one.runbook.path for one in found) == [
        one.runbook.path for one in each
    ]
    assert [one.points for one in found] == sorted(
        (one.points for one in each), reverse=True
    )


# ------------------------------------------------------------------ what is refused

_BOMB = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"# A page\n", "no front matter"),
        (b"---\nmatch: {kinds: host}\nno end\n", "has no end"),
        (b"---\n" + b"# x\n" * 9000 + b"---\n", "has no end"),
        (b"---\ntitle: x\n---\nbody\n", "no field `match`"),
        (b"---\n- a\n---\nbody\n", "no field `match`"),
        (b"---\nmatch: {}\n---\nbody\n", "no condition"),
        (b"---\nmatch: {kinds: []}\n---\nbody\n", "no condition"),
        (b"---\nmatch: host\n---\nbody\n", "not a group"),
        (b"---\nmatch: {kind: host}\n---\nbody\n", "did you mean kinds"),
        (b"---\nmatch: {severity: urgent}\n---\nbody\n", "'urgent' is not critical"),
        (b"---\nmatch: {labels: 'team~db'}\n---\nbody\n", "match.labels"),
        (b"---\nmatch: {labels: 'team=~\"(\"'}\n---\nbody\n", "regular expression"),
        (b"---\nmatch: {kinds: host}\n---\n \n", "no text"),
        (b"---\nmatch: {kinds: [host\n---\nbody\n", "not YAML"),
        (b"---\nmatch: {kinds: host}\nmatch: {}\n---\nbody\n", "given twice"),
        (f"---\n{_BOMB}match: *i\n---\nbody\n".encode(), "aliases"),
        (b"---\nmatch: &m {kinds: *m}\n---\nbody\n", "refers to itself"),
        (b"---\nmatch: " + b"[" * 900 + b"\n---\nbody\n", "deep"),
        (b"---\nmatch: !!python/object:os.system {}\n---\nx\n", "not YAML"),
        ("---\nmatch: {kinds: host}\n---\nbody\n".encode("utf-16"), "not text"),
        (b"---\nmatch: {kinds: host}\n---\n\xff\xfe\n", "is not UTF-8 text (byte 29)"),
        (b"\x7fELF\0\0", "NUL"),
        (b"---\nmatch: {kinds: host}\n---\n" + b"x" * MAX_BYTES, "larger than"),
        (b"---\nmatch: {kinds: ['" + b"x" * 300 + b"']}\n---\nx\n", "too long"),
    ],
)
def test_what_is_no_runbook_says_why_in_one_line(data: bytes, says: str) -> None:
    with pytest.raises(RunbookError) as caught:
        parse_runbook(data, "/books", "x.md", Redactor().text)
    line = caught.value.one_line()
    assert says in line and "\n" not in line and len(line) < 400
    assert isinstance(caught.value, NoFrontMatter) == (says == "no front matter")


def test_fields_of_other_programs_line_ends_and_a_byte_order_mark_are_fine() -> None:
    text = (
        "\ufeff---\r\nlayout: page\r\ntags: [a]\r\nmatch:\r\n  kinds: host\r\n---\r\n"
        f"# The disk\r\n\r\nUse {SECRET}, then \x1b[31m\u202elook.\r\n"
    )
    found = parse_runbook(text.encode(), "/books", "x/y.md", Redactor().text, "ab12")
    assert found.title == "The disk" and "\r" not in found.text
    assert SECRET not in found.text and "[redacted:" in found.text
    assert "\x1b" not in found.text and "<U+202E>look" in found.text
    assert found.place == "x/y.md in /books at ab12"


def test_a_folder_with_anything_in_it_gives_a_line_each_and_its_runbooks(
    tmp_path: Path,
) -> None:
    root, good = tmp_path / "books", b"---\nmatch: {kinds: host}\n---\nDo it.\n"
    (root / "deep" / "er").mkdir(parents=True)
    (tmp_path / "secret.md").write_bytes(good)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "book.md").write_bytes(good)
    (root / "deep" / "er" / "good.md").write_bytes(good)
    (root / "README.md").write_text("# Read me\n")
    (root / "notes.txt").write_text("no runbook")
    (root / ".hidden.md").write_bytes(b"\0")
    (root / "huge.md").write_bytes(b"x" * 5_000_000)
    (root / "bad.md").write_bytes(b"---\nmatch: [\n---\n")
    (root / "out.md").symlink_to("../secret.md")
    (root / "etc.md").symlink_to("/etc/passwd")
    (root / "away").symlink_to("../outside")
    (root / "circle").symlink_to(".")
    (root / "self.md").symlink_to("self.md")
    (root / "nowhere.md").symlink_to("gone.md")
    put("pipe", root / "pipe.md")
    put("socket", root / "socket.md")
    # As Kubernetes mounts a ConfigMap.
    (root / "..2024").mkdir()
    (root / "..2024" / "mounted.md").write_bytes(good)
    (root / "..data").symlink_to("..2024")
    (root / "mounted.md").symlink_to("..data/mounted.md")

    found = read_folder(root, Redactor().text, {})
    assert [one.path for one in found.runbooks] == ["deep/er/good.md", "mounted.md"]
    assert found.unmarked == ["README.md"]
    assert {one.path: one.text.split(":")[0] for one in found.problems} == {
        "away": "is a symbolic link that leads out of it",
        "bad.md": "its front matter is not YAML",
        "etc.md": "is a symbolic link that leads out of it",
        "huge.md": "is larger than 256,000 bytes",
        "nowhere.md": "is a symbolic link that leads nowhere",
        "out.md": "is a symbolic link that leads out of it",
        "pipe.md": "is not a regular file",
        "self.md": "is a symbolic link that leads nowhere",
        "socket.md": "is not a regular file",
    }
    with pytest.raises(SourceUnavailable, match="No such file"):
        read_folder(tmp_path / "missing", Redactor().text, {})


def test_a_file_is_parsed_again_when_it_changes(tmp_path: Path) -> None:
    file, asked = tmp_path / "a.md", []

    def redact(text: str) -> str:
        asked.append(text)
        return text

    def read(known: Listing) -> Listing:
        return read_folder(tmp_path, redact, known.known)

    file.write_text("---\nmatch: {kinds: host}\n---\nFirst.\n")
    (tmp_path / "bad.md").write_text("---\nmatch: {}\n---\n")
    first = read(Listing())
    parsed = len(asked)
    assert parsed and read(first).runbooks == first.runbooks
    assert len(asked) == parsed and read(first).problems == first.problems
    file.write_text("---\nmatch: {kinds: host}\n---\nOther.\n")
    os.utime(file, ns=(1, 1))
    [changed] = read(first).runbooks
    assert changed.text == "Other."
    file.unlink()
    assert read(first).runbooks == []


# ------------------------------------------------------------------ shorter

LONG = f"""\
Written by the storage team.

## Background

{"".join(f"Paragraph {at} tells how the volumes came to be, long ago." + chr(10) for at in range(80))}
## Immediate steps

1. Look which folder grows: `du -x --max-depth=2 /data`
   and note it.
2. [ ] Rotate the logs:

   ```sh
   logrotate --force /etc/logrotate.conf
   # not a heading
   ```
3. Call the owner.

## Snapshots of instance volumes

- A snapshot holds its blocks.

## References

{"".join(f"- https://wiki.example.org/page/{at}" + chr(10) for at in range(40))}
"""


def test_a_long_runbook_keeps_its_first_steps_and_the_sections_about_the_ticket() -> (
    None
):
    short = excerpt(LONG, 220, words_of("a snapshot fills the disk of an instance"))
    assert estimate_tokens(short) <= 220
    assert "1. Look which folder grows" in short and "# not a heading" in short
    assert "A snapshot holds its blocks." in short
    assert "Written by the storage team." in short
    few = excerpt(f"## Steps\n1. go on\n\n## Old\n{'long ago ' * 900}\n", 100)
    assert few.startswith("## Steps\n1. go on") and few.endswith(
        "\nSections left out: Old"
    )
    # Without the words the order of the text decides.
    plain = excerpt(LONG, 400)
    assert plain.index("Paragraph 0") < plain.index("Immediate steps")
    whole = set(LONG.split("\n"))
    notes = [line for line in plain.split("\n") if line not in whole]
    assert all(one.startswith(("[… ", "Sections left out: ")) for one in notes), notes


@settings(max_examples=100, deadline=None)
@given(
    st.text("ab # -1.\n`~>*\t", max_size=400) | st.sampled_from([LONG, "word " * 3000]),
    st.integers(30, 500),
)
def test_a_shortened_runbook_is_within_its_budget_and_no_word_is_cut(
    text: str, tokens: int
) -> None:
    short = excerpt(text, tokens)
    if estimate_tokens(text) <= tokens:
        assert short == text
        return
    assert estimate_tokens(short) <= tokens
    words = set(text.split())
    for line in short.split("\n"):
        if not line.startswith(("[… ", "Sections left out: ")):
            assert set(line.split()) <= words | {"…"}


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        (LONG, "Look which folder grows: `du -x --max-depth=2 /data`"),
        ("## Steps\n\n- first of all\n- then", "first of all"),
        (
            "# Runbook: the disk\n\n## Contacts\n- Ada\n\n## Fix\n* restart it",
            "restart it",
        ),
        ("## What to do\n\n### On a replica\n1) fail over", "fail over"),
        (
            "## Notes\n- a note\n\nThen\n\n1. do this first\n2. and that",
            "do this first",
        ),
        ("Steps\n=====\n\n- underlined", "underlined"),
        ("## Steps\n```\n1. in a fence\n```\n- a real one", "a real one"),
        ("## History of resolutions\n- none here\n\n## Links\n- nor here", ""),
        ("no list at all", ""),
    ],
)
def test_the_first_steps_are_the_list_under_a_heading_that_reads_so(
    text: str, steps: str
) -> None:
    assert "".join(first_steps(text)[:1]) == steps


def test_the_budget_is_shared_and_the_least_specific_are_left_out() -> None:
    books = [runbook("{kinds: host}", LONG, f"{at}.md") for at in range(3)]
    found = [
        Found(one, {1: Hit(one, 9 - at, ("kind host",))})
        for at, one in enumerate(books)
    ]
    three = noted(found, [ticket()], {}, 1500, AT)
    assert [one.id for one in three.evidence] == ["R1", "R2", "R3"]
    assert three.tokens <= 1500 and three.left_out == ()
    assert {one.origin for one in three.evidence} == {Origin.NOTE}
    assert three.evidence[0].text.startswith("A runbook for ticket 1 by kind host\n")
    one = noted(found, [ticket()], {}, 300, AT)
    assert len(one.evidence) == 1 and one.tokens <= 300
    assert one.left_out == (books[1].title, books[2].title)
    away = Runbook("wiki", "https://wiki/x", "x", "")
    [missing] = noted(
        [Found(away, {1: Hit(away, 1, ("the alert names it",))}, "refused")],
        [ticket()],
        {},
        300,
        AT,
    ).evidence
    assert not missing.available and missing.text.endswith("Unavailable: refused")


# ------------------------------------------------------------------ pages


def test_html_becomes_markdown_without_what_is_no_text() -> None:
    page = """<!doctype html><html><head><title>T</title><style>p {}</style></head><body><nav>menu</nav>
    <main><h1>Disk   full</h1><p>It &lt;fills&gt;.</p><h2>Steps</h2><ol><li>Look<ul><li>here</li></ul></li><li><p>Call</p></li></ol>
    <pre><code>df -h
  /data</code></pre><script>alert(1)</script><table><tr><td>a</td><td>b</td></tr></table><!-- hidden --></main>
    <footer>foot</footer></body></html>"""
    text = html_to_markdown(page)
    assert text.startswith("# Disk full\n\nIt <fills>.\n\n## Steps")
    assert "1. Look\n   - here" in text and "2. Call" in text
    assert "```\ndf -h\n  /data\n```" in text and "| a | b" in text
    assert not any(one in text for one in ("menu", "foot", "alert", "hidden", "p {}"))
    assert first_steps(text)[0] == "Look"


@settings(max_examples=100, deadline=None)
@given(st.text("<>/!-p reolihn1'\"=&;[]?", max_size=300))
def test_any_page_is_text(page: str) -> None:
    assert "\n\n\n" not in html_to_markdown(page)


def test_a_page_of_unclosed_tags_is_read_in_linear_time() -> None:
    for part in ("<!--", "<![CDATA[", "<?", "<ul><li>", "</", "<a b='", "<p><pre>"):
        html_to_markdown(part * (MAX_BYTES // len(part)))


def test_the_front_matter_of_a_page_is_left_out() -> None:
    text = "---\nmatch: {kinds: host}\n---\n# From the wiki\n\nLook.\n"
    found = parse_page(text, "wiki", "https://wiki/a/b?x=1", Redactor().text)
    assert (found.title, found.match) == ("From the wiki", None)
    assert found.text == "# From the wiki\n\nLook."
    with pytest.raises(RunbookError):
        parse_page(" \n", "wiki", "https://wiki/", Redactor().text)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
        ("64:ff9b::10.0.0.1", False),
        ("2002:7f00:1::", False),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_public(address) is public
