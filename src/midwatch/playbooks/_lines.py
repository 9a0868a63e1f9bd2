"""Lines of evidence that the general playbooks cite (pure)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from midwatch.answer import Citation, MetricReading
from midwatch.model import Context
from midwatch.playbooks.base import bounded
from midwatch.playbooks.drafting import reading


def lines(context: Context, title: str) -> Iterator[tuple[str, str]]:
    """Evidence id and text of each line of the evidence whose title has these words.

    Other evidence is left out: what a page or a log says must not pass for a measurement.
    """
    for evidence in context.evidence:
        if evidence.available and title in evidence.title:
            for line in evidence.text.splitlines():
                yield evidence.id, line.strip()


def line(
    context: Context, title: str, matches: Callable[[str], bool]
) -> Citation | None:
    """The first such line that matches."""
    for evidence_id, text in lines(context, title):
        if matches(text):
            return Citation(evidence_id=evidence_id, quote=bounded(text))
    return None


def starting(context: Context, title: str, start: str) -> Citation | None:
    return line(context, title, lambda text: text.startswith(start))


def measured(context: Context, title: str, name: str) -> MetricReading | None:
    """The value after `name:` in the evidence of this title."""
    found = starting(context, title, f"{name}: ")
    return reading(name, found.quote.partition(": ")[2] if found else "", found)
