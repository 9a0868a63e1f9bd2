"""Which conversation of the program a run continues."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from midwatch.events import Spend


@dataclass(frozen=True, slots=True)
class Conversation:
    """`id` is a UUID. `resumed`: the program finds its transcript in its folder.

    `spent` is what the transcript says was spent before: the program counts on from there.
    `resume_turn`: the last turn was cut off, and the program begins with it by itself.
    `fork_of`: another conversation, of which this one is to be a copy.
    """

    id: str
    resumed: bool = False
    spent: Mapping[str, Spend] = field(default_factory=dict)
    resume_turn: bool = False
    fork_of: str | None = None
