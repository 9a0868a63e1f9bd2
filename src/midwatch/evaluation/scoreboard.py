"""Show scores: rows of a table, and the report as Markdown (pure)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from midwatch.evaluation.exchange import HAND
from midwatch.evaluation.scenario import Scenario
from midwatch.evaluation.score import Grade, Score, Totals, totals

HEADINGS = ("scenario", "first aid", "evidence", "tokens", "answer", "claims", "notes")
AIMS: dict[str, tuple[str, Callable[[Totals], bool]]] = {
    "first aid right": ("≥ 70 %", lambda sums: _least(sums.first_aid_right, 0.7)),
    "first aid wrong": ("0", lambda sums: not sums.first_aid_wrong),
    "evidence sufficient": ("≥ 90 %", lambda sums: _least(sums.sufficient, 0.9)),
    "false alarms": ("0", lambda sums: not sums.false_alarms),
    "right answers marked down": ("0", lambda sums: not sums.marked_down),
    "mean tokens of a prompt": ("≤ 5,000", lambda sums: sums.mean_tokens <= 5000),
}
"""By the name of a figure: the aim, and whether the figures reach it."""


def _least(share: float | None, aim: float) -> bool:
    return share is None or share >= aim


def missed(sums: Totals) -> list[str]:
    """Return the names of the aims that the figures miss."""
    return [name for name, (_, reached) in AIMS.items() if not reached(sums)]


def row(score: Score) -> tuple[str, ...]:
    """Return the cells of a score, in the order of `HEADINGS`."""
    if score.state != "scored":
        return (score.scenario, score.state, "", "", "", "", score.why)
    if score.lacking is None:
        quiet = "false alarm" if score.false_alarms else "no ticket"
        return (score.scenario, quiet, "", "", "", "", ", ".join(score.false_alarms))
    claims = f"{score.verified}/{score.total}" if score.answer else ""
    return (
        score.scenario,
        score.first_aid or "none",
        "lacking" if score.lacking else "sufficient",
        f"{score.tokens:,}",
        score.answer or "",
        claims,
        "; ".join(notes(score)),
    )


def notes(score: Score) -> Iterator[str]:
    """Yield what is not as it should be."""
    if score.false_alarms:
        yield f"false alarm: {', '.join(score.false_alarms)}"
    if score.first_aid_why:
        yield f"first aid {', '.join(score.first_aid_why)}"
    if score.lacking:
        yield f"the prompt lacks {', '.join(score.lacking)}"
    if score.answer_why:
        yield f"the answer {', '.join(score.answer_why)}"
    if score.lowered and not score.lacking:
        down = "a right answer was marked down" if score.marked_down else "lowered"
        yield f"{down} from {score.lowered}"
    yield from score.page


def summary(sums: Totals) -> list[tuple[str, str]]:
    """Return the figures of all scenarios by their name."""
    found = [
        ("scenarios scored", f"{sums.scored}"),
        ("skipped, failed", f"{sums.skipped}, {sums.failed}"),
        ("first aid right", _percent(sums.first_aid_right)),
        ("first aid wrong", f"{sums.first_aid_wrong}"),
        ("evidence sufficient", _percent(sums.sufficient)),
        ("false alarms", f"{sums.false_alarms}"),
        ("mean tokens of a prompt", f"{sums.mean_tokens:,}"),
    ]
    if sums.answers:
        found += [
            ("answers by", ", ".join(sums.answered_by)),
            ("answers right", _percent(sums.answers_right)),
            ("answers wrong", f"{sums.answers_wrong}"),
            ("claims found in the evidence", _percent(sums.claims_verified)),
            ("right answers marked down", f"{sums.marked_down}"),
            (
                "calls, seconds, dollars",
                f"{sums.calls}, {sums.seconds:.0f}, {sums.cost_usd:.2f}",
            ),
        ]
    return found


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"


def report(scenarios: Sequence[Scenario], scores: Sequence[Score], how: str) -> str:
    """Return the report as Markdown.

    Args:
        scenarios: What was run.
        scores: Their scores, in the same order.
        how: One sentence: whether the systems were live or recorded.
    """
    sums = totals(scores)
    short = missed(sums)
    lines = [
        "# The evaluation",
        "",
        "`midwatch eval --report FILE` writes this page: scenarios with real faults, scored by rules and not by a model.",
        "[evaluating.md](evaluating.md) says how to run it, what the columns mean, and how to add a scenario.",
        "",
        f"{how} {_answered(sums)}",
        "",
        "| figure | value | aim |",
        "|---|---|---|",
        *(
            f"| {name} | {value} | {_aim(name, short)} |"
            for name, value in summary(sums)
        ),
        "",
        f"| {' | '.join(HEADINGS)} |",
        f"|{'---|' * len(HEADINGS)}",
        *(_markdown_row(score) for score in scores),
        "",
        "What each scenario is:",
        "",
        *(f"- `{one.name}` ({one.kind}): {one.title}" for one in scenarios),
        "",
    ]
    return "\n".join(lines)


def _aim(name: str, short: Sequence[str]) -> str:
    aim, _ = AIMS.get(name, ("", None))
    return f"{aim}: missed" if name in short else aim


def _answered(sums: Totals) -> str:
    by_hand = "a person wrote the answers by hand, and no Claude was asked"
    if not sums.answers:
        return "First aid answered; no Claude was asked."
    models = [one for one in sums.answered_by if one != HAND]
    if not models:
        return f"First aid answered as it does at once; {by_hand}. Answers by hand show the checks and the page, not a model."
    return f"First aid and {', '.join(models)} answered" + (
        f"; where no model did, {by_hand}." if HAND in sums.answered_by else "."
    )


def _markdown_row(score: Score) -> str:
    cells = [cell.replace("|", "\\|").replace("\n", " ") for cell in row(score)]
    cells[0], cells[-1] = f"`{cells[0]}`", f"`{cells[-1]}`" if cells[-1] else ""
    return f"| {' | '.join(cells)} |"


def style(score: Score) -> Grade:
    """Return how a score stands as a whole."""
    if score.bad:
        return Grade.WRONG
    fine = score.state == "scored" and not list(notes(score))
    return Grade.RIGHT if fine else Grade.OPEN
