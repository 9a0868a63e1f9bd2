"""A diagnosis for people: pleasant to read, and nothing in it live whatever a model wrote."""

from __future__ import annotations

import re
from datetime import UTC, datetime

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
from midwatch.model import Evidence

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

Session 4242 holds a lock that 31 others wait for.

- **Cause identified**, confidence **medium**, severity **critical**
- Lowered from “cause identified, high”: 2 of 4 claims could not be found in the evidence cited.
- Reason given: The blocking tree shows it.
- Claims found in the evidence: 2 of 4
- Affected: accounts
- Explains tickets: 3, 4

### Root cause

✔ pid 4242 is idle in a transaction on public.accounts. (E1)

### Timeline

- ✘ 11:55: it began (unverified; E2: that evidence was unavailable)

### Metrics

- ✔ waiting: 31 (E1)

### Supporting evidence

- ✘ It is alone. (unverified; no citation given)

### Recommended actions

**1.** End the session (**not reversible**; risk: its work is lost)

```text
SELECT pg_terminate_backend(4242);
```

### Alternatives considered

- Deadlock (against: no cycle; conclusion: no)

### Risks

- More sessions queue.

### What is missing

- The log.

### Evidence

- E1 Activity (pg_stat_activity, 2024-05-03 12:00:00 UTC)
- E2 Log tail (server log, 2024-05-03 12:00:00 UTC, unavailable)
"""


def test_it_reads_well() -> None:
    evidence = [ACTIVITY, LOG]
    grounding = ground(ANSWER, evidence)
    assert diagnosis_markdown(ANSWER, grounding, evidence) == EXPECTED
    first_aid = first_aid_markdown(ANSWER, grounding, evidence)
    assert first_aid == EXPECTED.replace("## Diagnosis", "## First aid", 1)


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
    *("inline", "text", "code_inline", "fence"),
}


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
    plain = "".join(token.content for token in flat if token.type == "text")
    assert not re.search(r"://|(?i:www)\.|\S@\S", plain)
    commands = [
        command for action in output.recommended_actions for command in action.commands
    ]
    assert sum(token.type == "fence" for token in flat) == len(commands)
    headings = [token for token in flat if token.type == "heading_open"]
    assert len(headings) <= 11
