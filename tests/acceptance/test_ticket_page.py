"""The page of a ticket at night: its order and length, commands to copy, and first aid that a diagnosis contradicts."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from midwatch.agent.diagnosis import Step, conclude
from midwatch.agent.grounding import ground
from midwatch.agent.report import first_aid_markdown
from midwatch.diagnosis_schema import DiagnosisOutput, Kind, Reply
from midwatch.markdown import blocks
from midwatch.model import Context, Evidence, Origin, Severity, Ticket
from midwatch.redaction import Redactor
from midwatch.store.protocol import Budget
from midwatch.store.sql import SqlStore
from midwatch.testing.fakes import answer, open_tickets

from .cli import in_store, on_a_terminal, said, said_json
from .test_cli_width import cells, plain

AT = datetime(2026, 3, 4, 3, 10, tzinfo=UTC)
EVIDENCE = (
    Evidence(
        "E1",
        "Blocking tree",
        "pg_blocking_pids",
        AT,
        "pid 5151: idle in transaction 12 min, role billing, application invoice-export, holds AccessExclusiveLock on public.orders\n"
        "pid 4242: waits 11 min, ALTER TABLE public.orders ADD COLUMN note text\n31 sessions wait behind pid 4242",
    ),
    Evidence(
        "E2",
        "Server log",
        "postgresql.log",
        AT,
        "03:01:12 LOG: process 4242 still waiting for AccessExclusiveLock on relation 16411 after 1000.1 ms",
        origin=Origin.REPORTED,
    ),
    Evidence("E3", "Release", "git", AT, "no answer within 5 s", available=False),
)
LONG = (
    "psql 'host=orders-db.internal dbname=orders' -c \"SELECT pid, usename, application_name, state, xact_start FROM "
    'pg_stat_activity WHERE pid IN (5151, 4242) ORDER BY xact_start" --expanded --no-psqlrc'
)
COMMANDS = [
    [LONG],
    ["SELECT pg_terminate_backend(5151);"],
    ["ALTER ROLE billing SET idle_in_transaction_session_timeout = '60s';"],
    ["SET lock_timeout = '3s';\nALTER TABLE public.orders ADD COLUMN note text;"],
]


def cited(*quotes: str, number: str = "E1") -> list[dict[str, str]]:
    return [{"evidence_id": number, "quote": quote} for quote in quotes]


def usual(ids: list[int]) -> DiagnosisOutput:
    """An answer as they are: every list has what is usual."""
    what = (
        "See what both do",
        "End the idle session",
        "Keep it from happening again",
        "Run the migration again",
    )
    risks = (
        "none: it only reads",
        "its work since 02:58 is lost",
        "None.",
        "it waits at most 3 s",
    )
    written = answer(
        "Session 5151 (role billing, application invoice-export) is idle in a transaction and holds the lock on public.orders, "
        "for which the ALTER TABLE of session 4242 waits, and 31 sessions behind it",
        explains=[*ids[:2], 4711],
        root_cause_citations=cited(
            "pid 5151: idle in transaction 12 min, role billing, application invoice-export",
            "31 sessions wait behind pid 4242",
        ),
        confidence="medium",
        confidence_reason="why the export stopped inside its transaction is not visible",
        timeline=[
            {"at": "03:01:12", "what": "the migration waits", "citations": cited("process 4242 still waiting", number="E2")},
            {"at": "02:58", "what": "the export probably began", "citations": cited("idle in transaction 12 min")},
        ],
        affected_components=["public.orders"],
        metric_readings=[{"name": "waiting sessions", "value": "31", "citation": cited("31 sessions wait behind pid 4242")[0]}],
        supporting_evidence=[{"statement": "The release is not the cause", "citations": cited("released at 02:00", number="E3")}],
        alternatives_considered=[
            {"hypothesis": "The migration itself is slow", "supporting": "it runs for 11 min", "contradicting": "it waits, it does not run", "conclusion": "ruled out"},
        ],
        recommended_actions=[
            {"what": one, "commands": commands, "risk": risk, "reversible": n != 1}
            for n, (one, commands, risk) in enumerate(zip(what, COMMANDS, risks, strict=True))
        ],
        risks=["Each further minute adds waiting sessions until the connections run out."],
        missing=["Why the export stopped inside its transaction", "The log of the application invoice-export"],
    )  # fmt: skip
    return DiagnosisOutput.model_validate(written)


def first_aid(output: DiagnosisOutput) -> dict[str, object]:
    """First aid that blames the migration."""
    steps = [
        {"what": "See first whether it still waits", "commands": [LONG], "risk": "", "reversible": True},
        {"what": "End the session", "commands": ["SELECT pg_terminate_backend(4242);"], "risk": "its work is lost", "reversible": False},
    ]  # fmt: skip
    cause = "pid 4242 holds the lock that 31 sessions wait for"
    note = output.model_copy(update={"root_cause": cause})
    note = DiagnosisOutput.model_validate(
        {**note.model_dump(), "recommended_actions": steps}
    )
    grounding = ground(note, EVIDENCE)
    return {
        "summary": note.summary,
        "verdict": "suspected",
        "markdown": first_aid_markdown(note, grounding, EVIDENCE),
        "answer": note.model_dump(mode="json"),
    }


async def diagnose(
    store: SqlStore, tickets: list[Ticket], output: DiagnosisOutput
) -> None:
    [claim] = await store.claim("agent", lease=60)
    call = await store.begin(
        claim, model="m", prompt_version="1", reserve_usd=0, budget=Budget(None)
    )
    assert call is not None
    context = Context(tuple(tickets), EVIDENCE, AT)
    reply = Reply(Kind.ANSWERED, output, model="m")
    assert await store.finish(
        claim, call, conclude(reply, Step(context, 1), Redactor())
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tickets 1 and 2 of an incident have a diagnosis, and first aid that it contradicts; 3 was left out."""
    made = tmp_path_factory.mktemp("page")

    async def seed(store: SqlStore) -> None:
        tickets = await open_tickets(
            store, "public.orders", "connections", "checkpoints", subject="orders-db", severity=Severity.CRITICAL
        )  # fmt: skip
        output = usual([one.id for one in tickets])
        await store.save_first_aid([one.id for one in tickets], first_aid(output))
        await diagnose(store, tickets, output)

    in_store(made, seed)
    return made


SECTIONS = (
    *("Ticket 1: critical", "Diagnosis", "Root cause", "What to do now"),
    *("What it explains", "Doubts", "Timeline", "First aid, contradicted"),
)


def order(lines: list[str]) -> list[int]:
    """The line in which each section begins."""
    starts = [line.lstrip("#▸ ").removeprefix("<details><summary>") for line in lines]
    return [
        next(at for at, line in enumerate(starts) if line.startswith(section))
        for section in SECTIONS
    ]


@pytest.mark.parametrize("columns", [60, 80, 100, 132])
def test_the_page_on_a_terminal(folder: Path, columns: int) -> None:
    lines = plain(on_a_terminal(folder, "tickets", "show", "1", columns=columns))
    assert order(lines) == sorted(order(lines))
    code = [line for commands in COMMANDS for line in "\n".join(commands).split("\n")]
    assert [line for line in lines if line in code] == code, "whole, and alone"
    assert max(cells(line) for line in lines if line not in code) <= columns
    # A longer command takes several rows of the terminal; a usual page still fits.
    rows = [-(-cells(line) // columns) or 1 for line in lines[: order(lines)[-2]]]
    assert sum(rows) <= (60 if columns >= 80 else 75)
    shown = "\n".join(lines)
    assert "E1: pid 5151: idle in transaction" in shown
    assert "risk: its work since 02:58 is lost" in " ".join(shown.split())
    assert "none" not in shown.casefold() and "process 4242 still waiting" not in shown
    assert "midwatch tickets show 1 --all" in shown


@pytest.mark.parametrize("columns", [60, 132])
def test_everything_can_be_opened(folder: Path, columns: int) -> None:
    shown = plain(
        on_a_terminal(folder, "tickets", "show", "1", "--all", columns=columns)
    )
    text = " ".join(" ".join(shown).split())
    assert "process 4242 still waiting" in text and "--all" not in text
    assert "Hypothesis: 02:58: the export probably began" in text
    contradicted = (
        "(the diagnosis does not advise it) SELECT pg_terminate_backend(4242);"
    )
    assert contradicted in text
    assert shown.count(LONG) == 2


def test_the_page_in_a_file(folder: Path) -> None:
    lines = said(folder, "tickets", "show", "1").splitlines()
    assert order(lines) == sorted(order(lines))
    before = "\n".join(lines[: order(lines)[-2]])
    shown = [one.text for one in blocks(before) if one.kind != "fold"]
    assert before.count("<details>") == 1 and len("\n\n".join(shown).split("\n")) <= 60
    assert lines.count(LONG) == 2 and not any(line.endswith(" ") for line in lines)


def test_a_ticket_shows_which_diagnosis_settled_it_or_left_it_out(folder: Path) -> None:
    first, third = (
        " ".join(said(folder, "tickets", "show", id_).split()) for id_ in "13"
    )
    assert "settled by: diagnosis 1: its root cause explains this ticket" in first
    assert "left out: ticket 3" in first and "ignored: 4711" in first
    assert "left out by: diagnosis 1, which does not name this ticket; queued" in third
    assert third.index("## First aid") < third.index("Diagnosis 1, which does not name")
    document = said_json(folder, "tickets", "show", "1")
    because = document["diagnosis"]["settled_because"]
    assert because == "its root cause explains this ticket"
    assert document["diagnosis"]["answer"]["explained_tickets"] == [1, 2]
    left_out = said_json(folder, "tickets", "show", "3")
    assert (left_out["left_out_by"], left_out["diagnosis"]) == (1, None)
    assert document["first_aid"]["markdown"] in said(folder, "tickets", "show", "3")
