"""The part of the store protocol that the on-call stack needs.

What is said of `midwatch.store.protocol` holds here too.
"""

from __future__ import annotations

from typing import Protocol


class OnCallStore(Protocol):
    """The feed of changes, silences, pushed alerts, deliveries, tokens and investigations."""

    # -------------------------------------------------- the feed of changes

    # -------------------------------------------------- silences

    # -------------------------------------------------- pushed alerts

    # -------------------------------------------------- deliveries

    # -------------------------------------------------- tokens

    # -------------------------------------------------- investigations and idempotent requests
