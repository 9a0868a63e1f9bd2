"""Amounts of resources, such as `500m` and `2Gi`, and what may not be between two of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal

from midwatch.model import Json

from .refusals import Cause

_AMOUNT = re.compile(r"([0-9]+(?:\.[0-9]+)?)(m|[kMGTPE]|[KMGTPE]i)?")
_UNITS = {"": Decimal(1), "m": Decimal("0.001")}
_UNITS |= {unit: Decimal(1000) ** n for n, unit in enumerate("kMGTPE", 1)}
_UNITS |= {f"{unit}i": Decimal(1024) ** n for n, unit in enumerate("KMGTPE", 1)}


def amount(value: object) -> Decimal | None:
    """None if it is not one of the usual forms."""
    found = _AMOUNT.fullmatch(str(value))
    return Decimal(found[1]) * _UNITS[found[2] or ""] if found else None


def amount_faults(resources: Json, path: str) -> Iterator[Cause]:
    """Requests above their limits."""
    limits = resources.get("limits") or {}
    for name, wanted in (resources.get("requests") or {}).items():
        asked, most = amount(wanted), amount(limits.get(name))
        if asked is not None and most is not None and asked > most:
            said = f'Invalid value: "{wanted}": must be less than or equal to {name} limit of {limits[name]}'
            yield Cause(f"{path}.requests", said)
