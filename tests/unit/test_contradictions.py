"""First aid beside a diagnosis: what is contradicted is marked, and what is borne out is not."""

from __future__ import annotations

import pytest

from midwatch.agent.contradictions import Contradiction, contradictions, marked
from midwatch.diagnosis_schema import Action, DiagnosisOutput
from midwatch.testing.fakes import answer

LOOK = Action(
    what="Look",
    commands=["SELECT * FROM pg_stat_activity WHERE pid = 4242;"],
    risk="none",
    reversible=True,
)
END = Action(
    what="End the session",
    commands=["SELECT pg_terminate_backend(4242);"],
    risk="its work is lost",
    reversible=False,
)
DROP = Action(
    what="Drop the slot",
    commands=["SELECT pg_drop_replication_slot('standby_1');"],
    risk="the standby has to be built again",
    reversible=False,
)


def output(cause: str, *steps: Action, **changes: object) -> DiagnosisOutput:
    written = answer(cause, **{"summary": "", **changes})
    found = DiagnosisOutput.model_validate(written)
    return found.model_copy(update={"recommended_actions": list(steps)})


AID = output("pid 4242 (billing) is idle in a transaction on public.orders", LOOK, END)


def points(aid: DiagnosisOutput, diagnosis: DiagnosisOutput) -> list[str]:
    return list(map(str, contradictions(aid, diagnosis)))


@pytest.mark.parametrize(
    "command",
    [
        "SELECT pg_terminate_backend(4242);",
        "select pg_catalog.pg_terminate_backend(4242)",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = 4242",
        "psql -c 'SELECT pg_terminate_backend(4242)' orders",
    ],
)
def test_what_the_diagnosis_bears_out_is_not_marked(command: str) -> None:
    end = END.model_copy(update={"commands": [command]})
    assert not points(AID, output("Session 4242 left its transaction open", end))


@pytest.mark.parametrize(
    ("diagnosis", "expected"),
    [
        (output("", LOOK, verdict="no_fault"), ["finds no fault", "does not advise step 2"]),
        (output("", verdict="insufficient_data"), ["finds no proof of a cause", "does not advise step 2"]),
        (output("Session 5151 holds the lock", END), ["names another cause"]),
        (output("Session 5151 blocks session 4242", LOOK), ["does not advise step 2"]),
        (output("4242 waits", END.model_copy(update={"commands": ["SELECT pg_cancel_backend(4242)"]})), ["does not advise step 2"]),
        (output("4242 waits", END.model_copy(update={"commands": ["SELECT pg_terminate_backend(5151)"]})), ["does not advise step 2"]),
        (output("The migration waits", END, risks=["Do not end pid 4242: it only waits."]), ["warns against step 1", "warns against step 2"]),
    ],
)  # fmt: skip
def test_what_it_contradicts_is_named(
    diagnosis: DiagnosisOutput, expected: list[str]
) -> None:
    assert points(AID, diagnosis) == expected


def test_a_slot_whose_reader_cannot_log_in_is_not_for_dropping() -> None:
    aid = output("slot 'standby_1' keeps 40 GB", DROP)
    password = Action(
        what="Renew the password rather than dropping standby_1",
        commands=["ALTER ROLE replicator PASSWORD 'new';"],
        risk="",
        reversible=True,
    )
    cause = "The password of replicator, which reads slot standby_1, has expired"
    assert points(aid, output(cause, password)) == ["warns against step 1"]


@pytest.mark.parametrize(
    ("blamed", "cause"),
    [
        ("/var is full", "/var/log/app.log grows since 03:00"),
        ("waits for public.orders", '"orders" is locked by its owner'),
        ("the disk is full", "pid 99 writes"),
        ("pid 99 writes", "a full disk"),
        ("31 sessions wait for 120 s on 12.5 GB", "the export of billing_app"),
    ],
)
def test_two_texts_that_can_mean_the_same_are_no_contradiction(
    blamed: str, cause: str
) -> None:
    assert not points(output(blamed), output(cause))


def test_the_points_are_marked_where_they_stand() -> None:
    page = "### Root cause\n\npid 1\n\n**1.** Look\n\n**2.** End it (risk: x)\n"
    found = [Contradiction(0, "finds no fault"), Contradiction(2, "does not advise")]
    assert marked(page, found).splitlines() == [
        "### Root cause (**the diagnosis finds no fault**)",
        *("", "pid 1", "", "**1.** Look", ""),
        "**2.** End it (risk: x) (**the diagnosis does not advise it**)",
    ]
