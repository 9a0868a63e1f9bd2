"""What stands in a pull request: whole, within the limit, and without anything that acts at a forge."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import pytest
from markdown_it import MarkdownIt

from midwatch.model import Diagnosis, Evidence, Key, Severity, Ticket, TicketStatus
from midwatch.pull_requests.description import (
    BEGIN,
    END,
    Description,
    neutral_page,
    spliced,
    title_of,
)
from midwatch.redaction import Redactor
from midwatch.text import markdown_escape

AT = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)
HOSTILE = (
    "@ada fixes #1, closes: o/r#2 resolve GH-3 close https://forge.example/o/r/issues/4 !5 &6 %7 $8 ~bug www.evil.example"
    " <img src=x onerror=alert(1)> [x](javascript:alert(1)) ![y](https://evil.example/z) </details> `"
)
LIVE = re.compile(
    r"(?<![\w.+-])@\w|[#!%&$]\d|~\w|GH-\d|://(?!midwatch\.example)|www\.", re.I
)


def ticket(message: str = HOSTILE, component: str = "/assign @ada") -> Ticket:
    key = Key("orders-db", "alive", component)
    values: dict[str, Any] = dict.fromkeys(
        ("first_seen_at", "opened_at", "last_seen_at"), AT
    )
    return Ticket(
        id=12,
        key=key,
        severity=Severity.CRITICAL,
        status=TicketStatus.OPEN,
        message=message,
        batch=1,
        held=False,
        facts={},
        occurrence_count=1,
        **values,
    )


def diagnosis(markdown: str, *texts: str) -> Diagnosis:
    pieces = tuple(
        Evidence(f"E{number}", HOSTILE, "pg_stat_activity", AT, text)
        for number, text in enumerate(texts, 1)
    )
    return Diagnosis(
        id=1,
        batch=1,
        outcome="answered",
        model="m",
        prompt_version="1",
        started_at=AT,
        markdown=markdown,
        evidence=pieces,
    )


def described(
    found: Diagnosis | None, longest: int = 65_536, evidence: bool = True, **more: Any
) -> str:
    one = Description(
        ticket=ticket(),
        diagnosis=found,
        answer=f"/close\n{HOSTILE}\n```\n{HOSTILE}",
        session="s-1",
        page="https://midwatch.example/tickets/12",
        evidence=evidence,
        others=more.get("others", ()),
        noun="pull request",
    )
    return one.markdown(Redactor(["hunter2hunter2"]), longest)


def outside_of_fences(page: str) -> str:
    tokens = MarkdownIt("commonmark", {"html": True}).parse(page)
    return "\n".join(one.content for one in tokens if one.type != "fence")


def test_nothing_in_it_acts() -> None:
    page = described(
        diagnosis(f"## Diagnosis\n\n{markdown_escape(HOSTILE)}", f"log: {HOSTILE}")
    )
    assert not LIVE.search(outside_of_fences(page)), page
    # A squashed commit has it as plain text.
    assert not re.search(r"(?i)(fixes|closes:|resolve|close) \S*(#|GH-|://)\d", page)
    assert "fixes #1" not in page and "o/r#2" not in page.replace("\u200b", "\0")
    html = MarkdownIt("commonmark", {"html": True}).render(page)
    assert re.findall(r'(?:href|src)="([^"]*)"', html) == [
        "https://midwatch.example/tickets/12"
    ]
    assert "<img" not in html and html.count("<details>") == html.count("</details>")
    assert not re.search(r"(?m)^\s*/\w", outside_of_fences(page))
    title = title_of(ticket(), Redactor(), evidence=True)
    assert "@ada" not in title and "#1" not in title and len(title) < 256
    assert (
        title_of(ticket(), Redactor(), evidence=False) == "Ticket 12: orders-db alive"
    )


@pytest.mark.parametrize("longest", [65_536, 4000])
def test_it_fits_and_says_what_is_left_out(longest: int) -> None:
    long = "ü" * 50_000 + "\n"
    found = diagnosis(f"## Diagnosis\n\n{long * 3}", "short: seen", long, long)
    page = described(found, longest, others=["https://midwatch.example/other"])
    assert len(page.encode()) <= longest
    assert page.startswith(BEGIN) and page.endswith(END)
    assert "Left out, as the description would be too long" in page
    assert "does not change the ticket" in page and "/other" in page
    html = MarkdownIt("commonmark", {"html": True}).render(page)
    assert html.count("<details>") == html.count("</details>")


def test_secrets_and_what_is_not_for_everyone_stay_out() -> None:
    found = diagnosis(
        "## Diagnosis\n\nthe password is hunter2hunter2", "x hunter2hunter2"
    )
    assert "hunter2" not in described(found)
    public = described(found, evidence=False)
    assert "Diagnosis" not in public and "fixes" not in public and "E1" not in public
    assert "https://midwatch.example/tickets/12" in public


def test_what_a_person_wrote_stays() -> None:
    part = f"{BEGIN}\nnew\n{END}"
    assert (
        spliced(f"Hers.\n{BEGIN}\nold\n{END}\nMore.", part) == f"Hers.\n{part}\nMore."
    )
    assert spliced(f"Hers.\n{part}", part) is None
    assert spliced("She removed it.", part) is None


def test_code_that_is_to_be_copied_stays() -> None:
    page = "Run:\n\n```sh\ncurl -d @body.json https://db.example/#1\n```\n\n@ada"
    shown = neutral_page(page)
    assert "curl -d @body.json https://db.example/#1" in shown and "\n@ada" not in shown
