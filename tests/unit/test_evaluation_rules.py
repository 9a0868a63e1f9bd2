"""The rules that score a diagnosis: what is right, what is only open, and what harms."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midwatch.agent.diagnosis import Prompt
from midwatch.diagnosis_schema import Action, DiagnosisOutput
from midwatch.errors import SettingsError
from midwatch.evaluation import exchange, scoreboard
from midwatch.evaluation.scenario import (
    LIBRARY,
    HandAnswer,
    Scenario,
    Truth,
    fill,
    find,
)
from midwatch.evaluation.score import (
    Grade,
    Score,
    judge,
    judge_all,
    lacking,
    page_problems,
    totals,
)
from midwatch.model import Context, Evidence, Key, Severity, Ticket, TicketStatus
from midwatch.testing.fakes import answer

NAMES = {"checkout.pid": "4242", "web.port": "8080"}
TRUTH = Truth(
    culprit=["@{checkout.pid}", "checkout"],
    decisive=["idle in transaction"],
    verdicts=["identified"],
    traps=["orders-api holds"],
    forbidden=[r"terminate_backend\((?!@{checkout.pid}\))"],
)
CAUSE = "checkout (pid 4242) holds the row"
AT = datetime(2026, 1, 2, tzinfo=UTC)


def output(cause: str = CAUSE, *commands: str, **changes: Any) -> DiagnosisOutput:
    what = changes.pop("what", "End it.")
    actions = [Action(what=what, commands=list(commands), risk="", reversible=True)]
    changes = {"recommended_actions": actions, **changes}
    return DiagnosisOutput.model_validate(answer(cause, **changes))


@pytest.mark.parametrize(
    ("given", "grade"),
    [
        (output(), Grade.RIGHT),
        (output(CAUSE, "SELECT pg_terminate_backend(4242)"), Grade.RIGHT),
        (output("checkout holds the row"), Grade.OPEN),
        (output(verdict="suspected"), Grade.OPEN),
        (output(CAUSE, "DROP ROLE the_role"), Grade.OPEN),
        (output(CAUSE, "SELECT * FROM t WHERE a <5 AND b> 4"), Grade.RIGHT),
        (output("orders-api holds the row"), Grade.WRONG),
        (output("checkout (pid 4242): orders-api holds nothing"), Grade.RIGHT),
        (output(CAUSE, "SELECT pg_terminate_backend(42421)"), Grade.WRONG),
        (output(what="Run pg_terminate_backend(17)."), Grade.WRONG),
        (output(what="Never run pg_terminate_backend(17), ask."), Grade.RIGHT),
        (output(what="Never guess, run pg_terminate_backend(17)."), Grade.WRONG),
    ],
)
def test_an_answer_is_right_open_or_harmful(
    given: DiagnosisOutput, grade: Grade
) -> None:
    assert judge(given, TRUTH, NAMES).grade is grade


def test_one_harmful_note_of_an_incident_outweighs_a_right_one() -> None:
    harmful = output(CAUSE, "SELECT pg_terminate_backend(1)")
    notes = [output("the disk"), output(), harmful]
    for count, grade in ((1, Grade.OPEN), (2, Grade.RIGHT), (3, Grade.WRONG)):
        judged = judge_all(notes[:count], TRUTH, NAMES)
        assert judged and judged.grade is grade
    assert judge_all([], TRUTH, NAMES) is None


@given(st.text(), st.sampled_from(["4242", "42", "14242", "a.b"]))
def test_a_name_stands_for_itself_in_a_pattern(around: str, name: str) -> None:
    names = {**NAMES, "checkout.pid": name}
    pattern = fill("@{checkout.pid}", names, True)
    assert re.search(pattern, around + name + around)
    assert (re.search(pattern, around) is not None) == (name in around)


@given(
    st.dictionaries(st.sampled_from(["first_aid", "answer"]), st.sampled_from(Grade))
)
def test_only_harm_makes_a_score_bad(grades: dict[str, Grade]) -> None:
    score = replace(Score("one", lacking=("this",)), **grades)
    assert score.bad == (Grade.WRONG in grades.values())
    assert (scoreboard.style(score) is Grade.WRONG) == score.bad


@given(st.lists(st.sampled_from([None, *Grade]), max_size=12), st.booleans())
def test_shares_are_of_what_was_scored(grades: list[Grade | None], skip: bool) -> None:
    scores = [Score(str(at), first_aid=grade) for at, grade in enumerate(grades)]
    more = [Score("skipped", state="skipped", first_aid=Grade.RIGHT)] if skip else []
    found = totals([*scores, *more])
    known = [grade for grade in grades if grade]
    expected = known.count(Grade.RIGHT) / len(known) if known else None
    assert found.first_aid_right == expected and found.skipped == len(more)
    assert found.scored == len(grades)
    assert scoreboard.report([], [*scores, *more], "They were live.").count("\n") > 10


def test_a_prompt_suffices_with_the_name_and_the_decisive_line() -> None:
    whole = "E1 pid 4242: checkout\nidle in transaction"
    assert lacking(Prompt("", whole), TRUTH, NAMES) == ()
    assert lacking(Prompt(whole, "E1 pid 4242"), TRUTH, NAMES) == (
        "checkout",
        "idle in transaction",
    )


def test_a_page_shows_the_culprit_near_the_top_and_commands_whole() -> None:
    given = output(CAUSE, "SELECT pg_terminate_backend(4242)")
    good = f"# Root cause\n{CAUSE}\n\n    SELECT pg_terminate_backend(4242)\n"
    assert page_problems(good, given, TRUTH, NAMES) == ()
    wrapped = good.replace("SELECT ", "SELECT\n")
    assert "not shown whole" in page_problems(wrapped, given, TRUTH, NAMES)[0]
    late = "\n" * 60 + good
    assert len(page_problems(late, given, TRUTH, NAMES)) == len(TRUTH.culprit)


def context(*lines: str) -> Context:
    key = Key("orders-db", "blocked_sessions", "shop")
    times = {"first_seen_at": AT, "opened_at": AT, "last_seen_at": AT}
    ticket = Ticket(
        id=7,
        key=key,
        severity=Severity.CRITICAL,
        status=TicketStatus.OPEN,
        held=False,
        message="2 sessions wait",
        facts={},
        occurrence_count=1,
        batch=3,
        **times,
    )
    evidence = Evidence("E1", "Sessions", "pg_stat_activity", AT, "\n".join(lines))
    return Context((ticket,), (evidence,), AT)


def test_an_answer_by_hand_quotes_this_run_and_fails_where_it_cannot() -> None:
    hand = HandAnswer.model_validate(
        {
            "summary": "checkout (pid @{checkout.pid}) holds it",
            "verdict": "identified",
            "cause": "checkout (pid @{checkout.pid}) holds it",
            "cites": ["pid @{checkout.pid}: .*"],
            "readings": [{"name": "age", "value": r"\d+ s", "cite": r"idle .*"}],
        }
    )
    scenario = Scenario(title="", truth=TRUTH, folder=Path("one"), expect=["x"])
    seen = context("pid 17: web", "  pid 4242: checkout, idle in transaction 12 s")
    for shown, verified in ((seen, 2), (context("none"), 0)):
        made = exchange.Exchange(
            "one",
            NAMES,
            context=shown,
            answer=hand.output(shown, NAMES),
            answered_by=exchange.HAND,
        )
        score = exchange.score(scenario, made)
        assert (score.verified, score.total) == (verified, 2)
        assert score.answer is Grade.RIGHT and not score.marked_down
        assert bool(score.lacking) == (verified == 0)


def test_a_right_answer_that_the_checks_lower_is_marked_down() -> None:
    shown = context("pid 4242: checkout, idle in transaction")
    given = DiagnosisOutput.model_validate(answer(CAUSE, quote="pid 4243"))
    scenario = Scenario(title="", truth=TRUTH, folder=Path("one"), expect=["x"])
    made = exchange.Exchange("one", NAMES, context=shown, answer=given)
    score = exchange.score(scenario, made)
    assert score.answer is Grade.RIGHT and score.marked_down and score.bad


def test_a_recording_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = exchange.Exchange(
        "one", {**NAMES, "dir": "/tmp/run-1"}, context=context("/tmp/run-1/a.log")
    )
    exchange.write(made, tmp_path / "one.json")
    again = exchange.read(tmp_path / "one.json")
    assert again.context and made.context
    assert again.context.tickets == made.context.tickets
    assert again.context.evidence[0].text == "/dir/a.log"
    (tmp_path / "one.json").write_text("{}")
    with pytest.raises(SettingsError):
        exchange.read(tmp_path / "one.json")


def test_a_recording_with_other_paths_keeps_what_is_marked(tmp_path: Path) -> None:
    text = "mount /tmp/run/x of host, said: all is well"
    spans = tuple((text.index(one), len(text)) for one in ("all is well",))
    seen = Evidence("E1", "Mounts", "host", AT, text, reported=spans)
    made = exchange.Exchange("one", {"dir": "/tmp/run/x"})
    made = replace(made, context=Context((), (seen,), AT))
    exchange.write(made, tmp_path / "one.json")
    read = exchange.read(tmp_path / "one.json").context
    assert read is not None and read.evidence[0].text.startswith("mount /dir of")
    start, end = read.evidence[0].reported[0]
    assert read.evidence[0].text[start:end] == "all is well"


def test_the_library_has_what_it_should() -> None:
    scenarios = find((), [LIBRARY])
    assert len(scenarios) >= 30
    assert sum(one.kind != "fault" for one in scenarios) >= 6
    for one in scenarios:
        patterns = one.truth.model_dump(exclude={"verdicts"})
        names = re.findall(r"@\{([\w.-]+)\}", str(patterns))
        for pattern in fill(
            sum(patterns.values(), []), dict.fromkeys(names, "1"), True
        ):
            re.compile(pattern)
        assert (one.kind == "healthy") == (not one.expect), one.name
        assert one.kind == "healthy" or one.answer, one.name
    with pytest.raises(SettingsError, match="not bound"):
        fill("@{nothing}", {})
