"""What is kept of a subject between two observations, across restarts: its own state, and members of the monitor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from midwatch.model import Json

SEEN, UNSEEN, CONFIGURATION = "_seen", "_unseen", "_configuration"
"""The members of the monitor in a subject's stored state: the invariants that were ever observed, for how many polls in a row
one has not been (`monitor --once` is a new process each time), and what was configured."""
_OURS = (SEEN, UNSEEN, CONFIGURATION)


def own_state(state: Json) -> Json:
    """Return what the subject itself left."""
    return {name: value for name, value in state.items() if name not in _OURS}


def kept_state(
    own: Json,
    seen: Iterable[str],
    unseen: Mapping[str, int],
    configuration: Json,
    most: int,
) -> Json:
    """Return the state to keep.

    Args:
        own: The subject's own.
        seen: The invariants that were ever observed.
        unseen: For how many polls in a row each invariant has not been.
        configuration: What `ObservedChanges` compares the next observation with.
        most: From which on `unseen` does not count on: each number is one more write.
    """
    counted = {name: min(count, most) for name, count in unseen.items()}
    return {
        **own,
        SEEN: sorted(seen),
        **({UNSEEN: counted} if counted else {}),
        **({CONFIGURATION: configuration} if configuration else {}),
    }
