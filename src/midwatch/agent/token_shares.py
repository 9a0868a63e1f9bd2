"""What the parts of a prompt get of a budget of tokens (pure)."""

from __future__ import annotations

from collections.abc import Sequence

OVERHEAD = 40
"""Tokens of the prompt for the number, time and delimiters of one piece of evidence."""
LEAST_SHARE = 120
"""Fewest tokens of a shortened text that is still useful: below it, a source is left out instead."""


def fair_shares(needs: Sequence[int], budget: int) -> list[int]:
    """Return the tokens for each text: short ones have all that they need, long ones equal shares of the rest."""
    shares = [0] * len(needs)
    left = budget
    for position, index in enumerate(sorted(range(len(needs)), key=needs.__getitem__)):
        shares[index] = min(needs[index], left // (len(needs) - position))
        left -= shares[index]
    return shares
