"""Quotes are found where they stand and nowhere else; what fails lowers the confidence."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midwatch.agent import grounding, quotes
from midwatch.agent.grounding import ground
from midwatch.diagnosis_schema import (
    Citation,
    DiagnosisOutput,
    Finding,
    MetricReading,
    Moment,
)
from midwatch.model import Evidence, Grounded, Origin
from midwatch.subjects.http_evidence import SERVER_TEXT
from midwatch.subjects.postgres.evidence import CLIENT_TEXT
from midwatch.text import mark_matches, put_marks, reported, take_marks

AT = datetime(2024, 5, 3, 12, 0, tzinfo=UTC)


def evidence(text: str, number: int = 1, *, available: bool = True) -> Evidence:
    return Evidence(f"E{number}", "Activity", "pg_stat_activity", AT, text, available)


def cite(quote: str, number: str = "E1") -> Citation:
    return Citation(evidence_id=number, quote=quote)


def answer(**given: Any) -> DiagnosisOutput:
    whole: dict[str, Any] = {
        "summary": "A lock pile-up.",
        "verdict": "identified",
        "root_cause": "pid 4242 holds a lock",
        "root_cause_citations": [],
        "confidence": "high",
        "confidence_reason": "seen directly",
        "explained_tickets": [1],
        "timeline": [],
        "affected_components": [],
        "metric_readings": [],
        "supporting_evidence": [],
        "alternatives_considered": [],
        "recommended_actions": [],
        "severity": "critical",
        "risks": [],
        "missing": [],
    }
    return DiagnosisOutput(**{**whole, **given})


def reason(quote: str, text: str) -> str:
    output = answer(root_cause_citations=[cite(quote)])
    return ground(output, [evidence(text)]).claims[0].reason


SAID = "pid 4242 is “idle in transaction” – since\n 12.5 s, blocked by {4250,4251} of 1,234"


@pytest.mark.parametrize(
    "quote",
    [
        SAID,
        'pid 4242 is "idle in transaction" - since 12.5 s',
        "transaction” – since 12.5 s",
        "  is\t“idle  in ",
        "blocked by {4250",
        "4251} of 1,234",
        "pid 4242 … since 12.5 s",
        "pid 4242 is [...] since ...",
        "4242",
    ],
)
def test_a_true_quote_is_found(quote: str) -> None:
    assert reason(quote, SAID) == ""


@pytest.mark.parametrize(
    ("quote", "why"),
    [
        ("pid 424", quotes.NOT_FOUND),
        ("242 is “idle", quotes.NOT_FOUND),
        ("since 12", quotes.NOT_FOUND),
        ("5 s, blocked", quotes.NOT_FOUND),
        ("{4250,4251} of 1", quotes.NOT_FOUND),
        ("234 pid 42", quotes.NOT_FOUND),
        ("PID 4242", quotes.NOT_FOUND),
        ("pid 4243 is", quotes.NOT_FOUND),
        ("idle in trans", quotes.NOT_FOUND),
        ("since … pid 4242", quotes.NOT_FOUND),
        ("pid … of 9,999", quotes.NOT_FOUND),
        ("pid … s", quotes.NOT_FOUND),
        ("is", quotes.TOO_SHORT),
        ("…", quotes.TOO_SHORT),
        ("", quotes.TOO_SHORT),
        ("x" * 9000, quotes.TOO_LONG),
    ],
)
def test_a_quote_that_does_not_check(quote: str, why: str) -> None:
    assert reason(quote, SAID) == why


@pytest.mark.parametrize(
    ("quote", "text", "there"),
    [
        ("offset 12 ms", "offset -12 ms", False),
        ("12 ms of lag", "-12 ms of lag", False),
        ("at 05-03 12:00, ok", "at 2024-05-03 12:00, ok", False),
        ("up 05-03 12:00, ok", "up 05-03 12:00, ok", True),
        ("at 10.0.0.1", "at 10.0.0.12", False),
        ("takes 12 ms.", "it takes 12 ms. Then", True),
        ("事务长时间", "发现事务长时间未提交", True),
        ("start … finish", "start" + " x" * 400 + " finish", False),
        ("SELECT ... FROM", "query: SELECT ... FROM t", True),
        ("pid 1 blocks pid 2", "there is no evidence that pid 1 blocks pid 2", False),
        ("session that waits", "without any session that waits", False),
        ("5 replicas are ready", "0 of 5 replicas are ready", False),
        ("5 replicas are ready", "10 of 5 replicas are ready", True),
        ("pid 1 waits for a lock", "pid 1 waits for a lock: no", False),
        ("slot s1 is", "slot s1 is no longer active", False),
        ("disk is … full", "the disk is far from full", False),
        ("fatal: /spool/mail", "fatal: /spool/mail: No such file", True),
        ("state | pid", "state | pid\nidle | 4", False),
        ("foo  active", "name  state\nfoo  active\nbar  12", True),
    ],
)
def test_bounds(quote: str, text: str, there: bool) -> None:
    assert (reason(quote, text) == "") is there


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


@settings(deadline=None)
@given(st.lists(words, min_size=1, max_size=30), st.data())
def test_words_taken_from_evidence_always_check(
    parts: list[str], data: st.DataObject
) -> None:
    text = " ".join(parts)
    tokens = text.split()
    start = data.draw(st.integers(0, len(tokens)))
    end = data.draw(st.integers(start, len(tokens)))
    quote = " \n".join(tokens[start:end])
    assert reason(quote, text) in ("", quotes.TOO_SHORT)


@pytest.mark.parametrize(
    "number", ["E1", "[e1]", "E1 (the log)", "Evidence: E1", "Evidence #1", "E01", "1"]
)
def test_a_number_is_read_in_any_form(number: str) -> None:
    output = answer(root_cause_citations=[cite("pid 4242", number)])
    assert ground(output, [evidence("pid 4242")]).claims[0].verified


def test_paths_and_reasons() -> None:
    output = answer(
        root_cause_citations=[cite("pid 4242"), cite("pid 4242", "[e1]")],
        timeline=[Moment(at="12:00", what="it began", citations=[])],
        metric_readings=[
            MetricReading(
                name="waiting", value="31 sessions", citation=cite("waiting: 31")
            ),
            MetricReading(name="waiting", value="97", citation=cite("waiting: 31")),
            MetricReading(
                name="lock", value="42.", citation=cite("it waits for 42, and")
            ),
        ],
        supporting_evidence=[
            Finding(statement="a", citations=[cite("pid 4242"), cite("pid 9999")]),
            Finding(statement="b", citations=[cite("log line", "E2")]),
            Finding(statement="c", citations=[cite("anything", "E9")]),
        ],
    )
    seen = ground(
        output,
        [
            evidence("pid 4242\nwaiting: 31\nit waits for 42, and for 7"),
            evidence("log line", 2, available=False),
        ],
    )
    assert [(claim.path, claim.reason) for claim in seen.claims] == [
        ("root_cause", ""),
        ("timeline[0]", grounding.NO_CITATION),
        ("metric_readings[0]", ""),
        ("metric_readings[1]", grounding.OTHER_VALUE),
        ("metric_readings[2]", ""),
        ("supporting_evidence[0]", quotes.NOT_FOUND),
        ("supporting_evidence[1]", grounding.UNAVAILABLE),
        ("supporting_evidence[2]", grounding.UNKNOWN),
    ]
    assert [check.path for check in seen.citations if not check.verified] == [
        "supporting_evidence[0].citations[1]",
        "supporting_evidence[1].citations[0]",
        "supporting_evidence[2].citations[0]",
    ]
    assert seen.citations[1].path == "root_cause_citations[1]"
    assert seen.grounded == Grounded(verified=3, total=8)
    assert (seen.verdict, seen.confidence) == ("identified", "low")


@pytest.mark.parametrize(
    ("root", "good", "bad", "stated", "verdict", "confidence"),
    [
        (True, 2, 0, "high", "identified", "high"),
        (True, 2, 1, "high", "identified", "medium"),
        (True, 2, 1, "medium", "identified", "low"),
        (True, 0, 2, "high", "identified", "low"),
        (True, 0, 1, "high", "identified", "medium"),
        (False, 9, 0, "high", "suspected", "low"),
    ],
)
def test_what_fails_lowers_the_confidence(
    root: bool, good: int, bad: int, stated: str, verdict: str, confidence: str
) -> None:
    findings = [Finding(statement="x", citations=[cite("pid 4242")])] * good
    findings += [Finding(statement="y", citations=[cite("pid 1111")])] * bad
    output = answer(
        root_cause_citations=[cite("pid 4242" if root else "pid 1111")],
        supporting_evidence=findings,
        confidence=stated,
    )
    seen = ground(output, [evidence("pid 4242")])
    assert (seen.verdict, seen.confidence) == (verdict, confidence)
    assert bool(seen.lowered) is ((verdict, confidence) != ("identified", stated))


def test_an_answer_without_claims() -> None:
    nothing = answer(verdict="insufficient_data", root_cause="", confidence="medium")
    assert ground(nothing, []).confidence == "medium"
    well = answer(verdict="no_fault", root_cause="", confidence="high")
    assert (ground(well, []).confidence, ground(well, []).total) == ("low", 0)
    unsaid = ground(answer(root_cause=""), [])
    assert (unsaid.verdict, unsaid.total) == ("suspected", 1)


@pytest.mark.parametrize(
    ("quote", "text"),
    [
        ("a" * 7999, "a" * 1_000_000),
        ("aaa ... " * 900, "aaa " * 250_000),
        ("aaaa…bbbb", "aaaa " * 200_000),
        ("1,111" * 1000, "1,111" * 200_000),
    ],
)
def test_hostile_repetition_ends(quote: str, text: str) -> None:
    citations = [cite(quote)] * 20
    output = answer(supporting_evidence=[Finding(statement="x", citations=citations)])
    assert ground(output, [evidence(text)]).total == 2


PAGE = """first seen: 2026-11-28 14:00:00 UTC
status: open, held
facts:
  pid: 4711
database is not accepting connections
[… 120 lines cut …]
2026-11-28 14:00:00.123 UTC [4711] ERROR:  could not extend file "base/1": No space left on device
pid 9 runs DROP TABLE orders; the backup was never completed
a long line [… 40 characters cut …] and its end
password: [redacted:password]
level=info msg="started worker"
[28/Nov/2026:14:00:00 +0000] GET / 200
… and 7 more
mount  size    used
/data  8.0 GB  8.0 GB"""


@pytest.mark.parametrize(
    "quote",
    [
        *("2026", "2026-11-28", "11-28 14:00", "14:00:00", "2026-11-28 14:00:00 UTC"),
        *(
            "28/Nov/2026",
            "at 14:00:00",
            "first seen",
            "first seen:",
            "status",
            "facts:",
        ),
        *("level", "level=", "120 lines cut", "[… 120 lines cut …]", "40 characters"),
        *("[redacted:password]", "redacted:password", "password: [redacted:password]"),
        *("… and 7 more", "and 7 more", "mount  size", "mount size used"),
    ],
)
def test_a_quote_that_says_nothing_fails(quote: str) -> None:
    assert reason(quote, PAGE) in (quotes.EMPTY, quotes.NOT_FOUND)


@pytest.mark.parametrize(
    "quote",
    [
        *("database is … accepting connections", "accepting connections"),
        *("pid: 4711 … DROP TABLE", "backup was [...] completed", "a long line … end"),
        *("pid 9 … completed", "first seen … status: open"),
    ],
)
def test_a_quote_that_turns_or_joins_lines_fails(quote: str) -> None:
    assert reason(quote, PAGE) in (quotes.TURNED, quotes.NOT_FOUND)


@pytest.mark.parametrize(
    "quote",
    [
        *("first seen: 2026-11-28 14:00:00 UTC", "status: open", "pid: 4711", "4711"),
        *("`database is not accepting connections`", "database is not accepting."),
        *('ERROR: could not extend file \\"base/1\\"', "… No space left on device"),
        *("pid 9 … TABLE orders", "a long line [… 40 characters cut …] and its end"),
        *('extend file "base/1": No space left on device', "level=info", "GET / 200"),
        "/data 8.0 GB",
    ],
)
def test_form_does_not_matter(quote: str) -> None:
    assert reason(quote, PAGE) == ""


def test_a_number_with_words_around_it_names_the_evidence() -> None:
    for named in ("[E1]", "e1", "E1 (Activity)", "Evidence E1"):
        output = answer(root_cause_citations=[cite("pid 4242", named)])
        assert ground(output, [evidence("pid 4242")]).claims[0].reason == ""


# ------------------------------------------------------------------ who wrote it


def marked(text: str, **given: Any) -> Evidence:
    plain, spans = take_marks(text)
    return replace(evidence(plain), reported=spans, **given)


SESSION = marked(
    f"pid 4711: idle in transaction, application {reported('web')}, last ran: {reported('the admin did it')}"
)


@pytest.mark.parametrize(
    ("quote", "origin"),
    [
        ("pid 4711: idle in transaction", Origin.SYSTEM),
        ("idle in transaction, application web, last ran: the admin", Origin.SYSTEM),
        ("the admin did it", Origin.REPORTED),
        ("last ran: the admin did it", Origin.REPORTED),
        ("application web, last ran: the admin did it", Origin.REPORTED),
    ],
)
def test_what_clients_wrote_cannot_carry_the_cause(quote: str, origin: Origin) -> None:
    seen = ground(answer(root_cause_citations=[cite(quote)]), [SESSION])
    assert (seen.claims[0].reason, seen.claims[0].origin) == ("", origin)
    expected = "high" if origin is Origin.SYSTEM else "medium"
    assert (seen.verdict, seen.confidence) == ("identified", expected)
    guess = answer(root_cause_citations=[cite(quote)], verdict="suspected")
    seen = ground(guess, [SESSION])
    assert (seen.verdict, seen.confidence) == ("suspected", "high")


def test_one_measured_quote_is_enough() -> None:
    citations = [cite("the admin did it"), cite("pid 4711: idle")]
    seen = ground(answer(root_cause_citations=citations), [SESSION])
    assert (seen.claims[0].origin, seen.confidence) == (Origin.SYSTEM, "high")


def test_an_earlier_diagnosis_proves_no_cause() -> None:
    past = replace(
        evidence("root cause: the vacuum was off\nnot verified: root cause: pid 4242"),
        origin=Origin.EARLIER,
    )
    seen = ground(answer(root_cause_citations=[cite("the vacuum was off")]), [past])
    assert (seen.claims[0].reason, seen.claims[0].origin) == ("", Origin.EARLIER)
    assert (seen.verdict, seen.confidence) == ("suspected", "medium")
    seen = ground(answer(root_cause_citations=[cite("root cause: pid 4242")]), [past])
    assert seen.claims[0].reason == quotes.UNPROVEN
    assert (seen.verdict, seen.confidence) == ("suspected", "low")
    both = [cite("root cause: pid 4242"), cite("pid 4242 waits", "E2")]
    now = evidence("pid 4242 waits", 2)
    seen = ground(answer(root_cause_citations=both), [past, now])
    assert (seen.verdict, seen.confidence) == ("identified", "high")


lines = st.text(st.characters(exclude_characters="\n"), max_size=20)


@given(st.lists(st.tuples(lines, lines), max_size=5), st.text(max_size=10))
def test_marks_come_and_go(rows: list[tuple[str, str]], hostile: str) -> None:
    """What is marked stays marked through any text of clients, and the text stays the same."""
    text = "\n".join(f"{a}{reported(b + hostile)}" for a, b in rows)
    plain, spans = take_marks(text)
    assert take_marks(put_marks(plain, spans)) == (plain, spans)
    covered = [plain[start:end] for start, end in spans]
    assert all(
        any(line.strip() in one for one in covered)
        for _, b in rows
        for line in take_marks(b + hostile)[0].split("\n")
        if line.strip()
    )


@pytest.mark.parametrize(
    ("patterns", "line", "measured", "written"),
    [
        (
            CLIENT_TEXT,
            "pid 9: idle for 3m, user app, application web, database d, client c, last ran: x, database y",
            ["pid 9: idle for 3m", "user app"],
            ["web", "x, database y", "y"],
        ),
        (
            CLIENT_TEXT,
            "pid 9: active for 3m, user app, application web, database d, client c, runs: x",
            ["pid 9: active for 3m", "user app", "database d, client c"],
            ["web", "x"],
        ),
        (
            CLIENT_TEXT,
            "usename=app application_name=web state=idle state=idle sessions=12",
            ["usename=app", "sessions=12"],
            ["web", "state=idle"],
        ),
        (
            SERVER_TEXT,
            "status: HTTP/1.1 503 It was me\nheader server: me\nbody: 3 bytes\n| status: HTTP/1.1 200",
            ["HTTP/1.1 503", "body: 3 bytes"],
            ["It was me", "header server: me", "| status: HTTP/1.1 200"],
        ),
    ],
)
def test_what_others_wrote_cannot_end_itself(
    patterns: tuple[re.Pattern[str], ...],
    line: str,
    measured: list[str],
    written: list[str],
) -> None:
    plain, spans = take_marks(mark_matches(line, patterns))
    assert plain == line
    foreign = [plain[start:end] for start, end in spans]
    assert not [part for part in measured if any(part in one for one in foreign)]
    assert not [part for part in written if not any(part in one for one in foreign)]
