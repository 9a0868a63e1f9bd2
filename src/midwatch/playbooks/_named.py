"""First aid for the kinds `prometheus` and `command`, whose invariants have names of their own (pure)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from midwatch.answer import Citation, DiagnosisOutput
from midwatch.model import Context, Ticket
from midwatch.playbooks._lines import line, starting
from midwatch.playbooks.drafting import finding, step, word, write


class Every(tuple[str, ...]):
    """Stands for all invariants of a kind whose subject names them itself."""

    def __contains__(self, invariant: object) -> bool:
        return isinstance(invariant, str)


class PrometheusAlert:
    """An alert or a rule of ours: the series that broke it, and targets that are down."""

    kind = "prometheus"
    invariants: Sequence[str] = Every()

    def first_aid(
        self, tickets: Sequence[Ticket], context: Context
    ) -> DiagnosisOutput | None:
        shown = [self._series(ticket, context) for ticket in tickets[:5]]
        down = next(filter(None, (self._down(one, context) for one in tickets)), None)
        title = f"Definition of {tickets[0].key.invariant}"
        rule = starting(context, title, "expr: ")
        about = tickets[0].message
        cause = (
            f"a target cannot be scraped: {down.quote}"
            if down
            else f"the expression of {tickets[0].key.invariant} holds for "
            f"{tickets[0].key.component}; what lies behind it is not seen"
        )
        return write(
            tickets,
            summary=f"{about}." + (f" {down.quote}" if down else ""),
            cause=cause,
            cited=[down] if down else [*shown, rule],
            verdict="suspected",
            confidence="medium" if down else "low",
            reason="the series are seen, the system behind them is not",
            findings=[
                finding("what is broken", *shown),
                finding("what the rule asks", rule),
            ],
            actions=[
                step("Look at the series over a longer time in Prometheus"),
                step("Look at the component that the labels name, and its log"),
            ],
            missing=["The log of the component."],
        )

    def _series(self, ticket: Ticket, context: Context) -> Citation | None:
        name = ticket.key.invariant
        labels = ticket.key.component.split(", ")

        def names(text: str) -> bool:
            return all(label in text for label in labels)

        if not name.startswith("alert:"):
            return line(context, f"{name}: values now", names)
        alert = word(ticket, "alertname", name.removeprefix("alert:"))
        return line(
            context,
            "Firing and pending alerts",
            lambda text: f" {alert} since " in text
            and (names(text) or alert in labels),
        )

    def _down(self, ticket: Ticket, context: Context) -> Citation | None:
        instance = word(ticket, "label_instance")
        if not instance:
            return None
        wanted = re.compile(rf"(?:^|[ ,])instance={re.escape(instance)}(?:[,:]|$)")
        return line(
            context,
            "Scrape targets that are down",
            lambda text: text.startswith("down ") and wanted.search(text) is not None,
        )


class CommandSays:
    """What the user's own command said."""

    kind = "command"
    invariants: Sequence[str] = Every()

    def first_aid(
        self, tickets: Sequence[Ticket], context: Context
    ) -> DiagnosisOutput | None:
        cited = [self._said(ticket, context) for ticket in tickets[:5]]
        return write(
            tickets,
            summary=f"{tickets[0].message}.",
            cause=f"the command reports {tickets[0].key.invariant} for {tickets[0].key.component}; it "
            "does not say what lies behind it",
            cited=cited,
            verdict="suspected",
            confidence="low",
            reason="the command was run again and says the same",
            actions=[step("Run the command by hand and follow what it names")],
            missing=["What lies behind the report."],
        )

    def _said(self, ticket: Ticket, context: Context) -> Citation | None:
        wanted = f" {ticket.key.invariant} {ticket.key.component}: "
        return line(context, "says now", lambda text: wanted in text)
