"""Where an observation enters: hostile text is made harmless before it becomes part of a ticket."""

from __future__ import annotations

from dataclasses import replace

from midwatch.model import Observation, Violation
from midwatch.redaction import Redactor
from midwatch.text import clean, one_line

_MESSAGE = 500
_COMPONENT = 200
_FACT = 2000


class Intake:
    """Cleans, redacts and bounds the text of observations.

    Component names are part of a ticket's key, so every one is tidied, and remembered, as
    a thousand of them may come in every cycle; messages are tidied when a ticket opens.
    """

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._components: dict[str, str] = {}

    def tidy(self, text: str, limit: int = _MESSAGE) -> str:
        """One printable line without secrets, of at most `limit` characters."""
        return one_line(self._redactor.text(clean(text)), limit)

    def observation(self, observation: Observation) -> Observation:
        """The observation with component names that are safe in a key."""
        if len(self._components) > 4 * len(observation.signals) + 1000:
            self._components.clear()
        signals = tuple(
            (
                signal
                if (name := self._component(signal.component)) == signal.component
                else replace(signal, component=name)
            )
            for signal in observation.signals
        )
        return replace(observation, signals=signals)

    def _component(self, raw: str) -> str:
        name = self._components.get(raw)
        if name is None:
            name = self._components[raw] = self.tidy(raw, _COMPONENT)
        return name

    def violation(self, violation: Violation) -> Violation:
        """The violation with a message and facts that can be stored and shown."""
        facts = {
            self.tidy(name, 100): (
                self.tidy(fact, _FACT) if isinstance(fact, str) else fact
            )
            for name, fact in violation.facts.items()
        }
        return replace(violation, message=self.tidy(violation.message), facts=facts)
