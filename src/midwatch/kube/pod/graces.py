"""What each of the last steps may take once the pod is ending: its grace, shared out."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Graces:
    """Seconds, of a pod that gets 60: all but `push` come one after the other, and leave some for the exit.

    `session` is what a turn gets to end, `wind_up` a push to the content proxy that is under way, `push` the
    one to the repositories: then the session is over already.
    """

    session: float = 10.0
    wind_up: float = 5.0
    push: float = 15.0
    look: float = 5.0
    save: float = 18.0
    ask: float = 4.0
    last_word: float = 15.0

    @classmethod
    def within(cls, seconds: float) -> Graces:
        """Those of a pod that gets so many seconds; more than 60 changes nothing."""
        share = min(1.0, seconds / 60.0)
        whole = cls()
        return cls(**{f.name: getattr(whole, f.name) * share for f in fields(cls)})
