"""A diagnosis for people: pleasant to read, and nothing in it live whatever a model wrote."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from midwatch.agent.grounding import ground
from midwatch.agent.report import diagnosis_markdown, first_aid_markdown
from midwatch.diagnosis_schema import (
    Action,
    Alternative,
    Citation,
    DiagnosisOutput,
    Finding,
    MetricReading,
    Moment,
)
from midwatch.markdown import blocks
from midwatch.model import Evidence, Origin

AT = datetime(2024, 5, 3, 12, 0, tzinfo=UTC)
ACTIVITY = Evidence(
    "E1", "Activity", "pg_stat_activity", AT, "pid 4242 idle 310 s\nwaiting: 31"
)
LOG = Evidence(
    "E2", "Log tail", "server log", AT, "no answer within 5s", available=False
)


def cite(quote: str, number: str = "E1") -> Citation:
    return Citation(evidence_id=number, quote=quote)


ANSWER = DiagnosisOutput(
    summary="Session 4242 holds a lock that 31 others wait for.",
    verdict="identified",
    root_cause="pid 4242 is idle in a transaction on public.accounts.",
    root_cause_citations=[cite("pid 4242 idle 310 s"), cite("waiting: 31")],
    confidence="high",
    confidence_reason="The blocking tree shows it.",
    explained_tickets=[3, 4],
    timeline=[Moment(at="11:55", what="it began", citations=[cite("began", "E2")])],
    affected_components=["accounts"],
    metric_readings=[
        MetricReading(name="waiting", value="31", citation=cite("waiting: 31"))
    ],
    supporting_evidence=[Finding(statement="It is alone.", citations=[])],
    alternatives_considered=[
        Alternative(
            hypothesis="Deadlock",
            supporting="",
            contradicting="no cycle",
            conclusion="no",
        )
    ],
    recommended_actions=[
        Action(
            what="End the session",
            commands=["SELECT pg_terminate_backend(4242);"],
            risk="its work is lost",
            reversible=False,
        )
    ],
    severity="critical",
    risks=["More sessions queue."],
    missing=["The log."],
)

EXPECTED = """\
## Diagnosis

**Session 4242 holds a lock that 31 others wait for.**

**Cause identified**, confidence **medium**, severity **critical**; affected: accounts

### Root cause

pid 4242 is idle in a transaction on public.accounts. (quoted: E1)

<details><summary>Quotes</summary>

- E1: `pid 4242 idle 310 s`
- E1: `waiting: 31`

</details>

### What to do now

**1.** End the session (**cannot be undone**; risk: its work is lost)
```text
SELECT pg_terminate_backend(4242);
```

### What it explains

- tickets 3, 4

### Doubts

- Lowered from “cause identified, high”: 2 of 4 claims could not be found in the evidence cited.
- Confidence: The blocking tree shows it.
- Missing: The log.
- Risk: More sessions queue.
- Alternative: Deadlock (no)

<details><summary>Timeline (1 moment), evidence (2 sources; 2 of 4 claims quoted)</summary>

### Timeline

- 11:55: it began (**unverified**: E2: that evidence was unavailable)

### Metrics

- waiting: 31 (quoted: E1: `waiting: 31`)

### Findings

- It is alone. (**unverified**: no citation given)

### Alternatives considered

- Deadlock (against: no cycle)

### Evidence

- E1 Activity (pg_stat_activity, 2024-05-03 12:00:00 UTC)
- E2 Log tail (server log, 2024-05-03 12:00:00 UTC, unavailable)

</details>
"""


def page_of(*evidence: Evidence, **changes: object) -> str:
    output = ANSWER.model_copy(update=changes)
    found = evidence or (ACTIVITY, LOG)
    return diagnosis_markdown(output, ground(output, found), found)


def test_it_reads_well() -> None:
    assert page_of() == EXPECTED
    asked = page_of(replace(ACTIVITY, command="SELECT pid FROM pg_stat_activity"), LOG)
    assert asked == EXPECTED.replace(
        "(pg_stat_activity, 2024-05-03 12:00:00 UTC)",
        "(pg_stat_activity, 2024-05-03 12:00:00 UTC): SELECT pid FROM pg_stat_activity",
    )
    evidence = [ACTIVITY, LOG]
    first_aid = first_aid_markdown(ANSWER, ground(ANSWER, evidence), evidence)
    assert first_aid == EXPECTED.replace("## Diagnosis", "## First aid", 1)


@pytest.mark.parametrize(
    ("cause", "marked"),
    [
        ("pid 4242 probably holds the lock.", True),
        ("pid 4242 appears to be idle, which may block others.", True),
        ("pid 4242 is idle; the log has “may be a deadlock”.", False),
        ("The error appears 30 times since 3 may 2024.", False),
        ("nginx could not connect to port 5432.", False),
        ("Its query could be the slow one.", True),
        ("No row could be found; it appears as idle.", False),
        ("This suggests that the job stopped.", True),
        ("The job cannot be ruled out.", True),
    ],
)
def test_a_hypothesis_is_marked_and_a_step_is_not(cause: str, marked: bool) -> None:
    step = ANSWER.recommended_actions[0].model_copy(update={"what": cause})
    page = page_of(root_cause=cause, recommended_actions=[step])
    assert page.count("Hypothesis: ") == marked
    assert ("Hypothesis: " in page.split("### What to do now")[0]) == marked


def test_a_suspicion_is_a_hypothesis() -> None:
    assert "Hypothesis: pid 4242 is idle" in page_of(verdict="suspected")


@pytest.mark.parametrize(
    ("risk", "shown"),
    [
        ("", False),
        ("none", False),
        ("None: it only reads.", False),
        ("no risk (read-only)", False),
        ("N/A", False),
        ("-", False),
        ("Read-only.", False),
        ("none: the statement changes nothing", False),
        ("None.  The session loses its update.", True),
        ("none: ends the transaction", True),
        ("none (blocks writers for a second)", True),
        ("None of the sessions survives", True),
        ("none, but it takes a lock", True),
        ("no risk of loss; it blocks writers", True),
        ("low", True),
    ],
)
def test_no_risk_is_not_repeated(risk: str, shown: bool) -> None:
    step = Action(what="Look", commands=["df -h"], risk=risk, reversible=True)
    page = page_of(recommended_actions=[step], risks=[risk])
    assert page.count("isk: ") == 2 * shown


def test_a_command_is_shown_without_marks_of_code() -> None:
    commands = ["", "```sql\nSELECT 1;\nSELECT 2;\n```", "`df -h`", "echo `date`"]
    step = Action(what="Look", commands=commands, risk="", reversible=True)
    page = page_of(recommended_actions=[step])
    shown = ["SELECT 1;\nSELECT 2;", "df -h", "echo `date`"]
    assert "".join(f"```text\n{one}\n```\n" for one in shown) in page


def test_a_doubt_is_stated_once() -> None:
    why = "The log of the application was not available."
    page = page_of(
        confidence="low",
        confidence_reason=why,
        missing=["the log of the application"],
        risks=["The log of the application was not available"],
    )
    assert page.count("log of the application") == 1
    root = page_of(root_cause_citations=[cite("pid 9 idle 310 s")])
    assert root.count("is not in that evidence") == 2  # at the quote, and as a doubt


def test_who_wrote_what_is_quoted_is_shown() -> None:
    for origin, mark in (
        (Origin.REPORTED, "quoted from what clients or logs say: E1"),
        (Origin.EARLIER, "quoted from an earlier diagnosis or note, which proves"),
    ):
        page = page_of(replace(ACTIVITY, origin=origin), LOG)
        cause = page.split("### Root cause")[1].split("###")[0]
        assert mark in cause and "(quoted: E1)" not in cause


def test_a_long_command_stays_whole() -> None:
    command = "SELECT '" + "x" * 9000 + "';\n\tSELECT 2;"
    step = Action(what="Look", commands=[command], risk="", reversible=True)
    page = page_of(recommended_actions=[step])
    assert [one.text for one in blocks(page) if one.kind == "code"] == [command]


PIECES = [
    "![x](http://evil/a.png)",
    "[a](javascript:x)",
    "[a]: http://evil",
    "<img src=x>",
    "<!--",
    "http://evil",
    "www.evil.example",
    "me@evil.example",
    "\n",
    "\n\n",
    "    ",
    "# ",
    "```",
    "````\n",
    "~~~",
    "`",
    "|-|",
    "\\",
    "\x1b[31m",
    "\u202e",
    "\0",
    "\ud800",
    "---",
    "**",
]
hostile = st.lists(
    st.one_of(st.sampled_from(PIECES), st.text(max_size=6)), max_size=8
).map("".join)
citations = st.lists(
    st.builds(Citation, evidence_id=hostile, quote=hostile), max_size=2
)
answers = st.builds(
    DiagnosisOutput,
    summary=hostile,
    root_cause=hostile,
    root_cause_citations=citations,
    confidence_reason=hostile,
    explained_tickets=st.lists(st.integers(), max_size=2),
    timeline=st.lists(
        st.builds(Moment, at=hostile, what=hostile, citations=citations), max_size=2
    ),
    affected_components=st.lists(hostile, max_size=2),
    metric_readings=st.lists(
        st.builds(
            MetricReading,
            name=hostile,
            value=hostile,
            citation=st.builds(Citation, evidence_id=hostile, quote=hostile),
        ),
        max_size=2,
    ),
    supporting_evidence=st.lists(
        st.builds(Finding, statement=hostile, citations=citations), max_size=2
    ),
    alternatives_considered=st.lists(
        st.builds(
            Alternative,
            hypothesis=hostile,
            supporting=hostile,
            contradicting=hostile,
            conclusion=hostile,
        ),
        max_size=2,
    ),
    recommended_actions=st.lists(
        st.builds(
            Action, what=hostile, commands=st.lists(hostile, max_size=2), risk=hostile
        ),
        max_size=2,
    ),
    risks=st.lists(hostile, max_size=2),
    missing=st.lists(hostile, max_size=2),
)
OURS = {
    *("heading", "paragraph", "bullet_list", "list_item", "strong"),
    *("inline", "text", "code_inline", "fence", "html_block"),
}
FOLD = re.compile(r"<details><summary>[\w ,;()]+</summary>\n?|</details>\n?")


@settings(max_examples=150, deadline=None)
@given(answers, hostile)
def test_nothing_of_a_model_is_live(output: DiagnosisOutput, title: str) -> None:
    evidence = [Evidence("E1", title, title, AT, title)]
    page = diagnosis_markdown(output, ground(output, evidence), evidence, heading=title)
    page.encode()
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", page)
    tokens = (
        MarkdownIt("commonmark", {"html": True})
        .enable(["table", "strikethrough"])
        .parse(page)
    )
    flat = tokens + [child for token in tokens for child in token.children or ()]
    assert {re.sub("_(open|close)$", "", token.type) for token in flat} <= OURS
    tags = [token.content for token in flat if token.type == "html_block"]
    assert all(map(FOLD.fullmatch, tags)) and len(tags) in (0, 2, 4)
    plain = "".join(token.content for token in flat if token.type == "text")
    assert not re.search(r"://|(?i:www)\.|\S@\S", plain)
    commands = [
        command
        for action in output.recommended_actions
        for command in action.commands
        if command.strip()
    ]
    assert sum(token.type == "fence" for token in flat) == len(commands)
    headings = [token for token in flat if token.type == "heading_open"]
    assert len(headings) <= 11
