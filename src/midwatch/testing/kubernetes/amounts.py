"""What may not be between the amounts that a container requests and those that it is limited to."""

from __future__ import annotations

from collections.abc import Iterator

from midwatch.kube.rules import QUANTITY, fits, quantity
from midwatch.model import Json

from .refusals import Cause


def amount_faults(resources: Json, path: str) -> Iterator[Cause]:
    """Requests above their limits; of what cannot be overcommitted, also below. Unusual forms of amounts pass."""
    limits = resources.get("limits") or {}
    for name, wanted in (resources.get("requests") or {}).items():
        most = limits.get(name, "")
        if not all(fits(QUANTITY, str(one)) for one in (wanted, most)):
            continue
        asked, allowed = quantity(wanted), quantity(most)
        must = ""
        if asked != allowed and not _is_overcommitted(name):
            must = "equal to"
        elif asked > allowed:
            must = "less than or equal to"
        if must:
            said = f'Invalid value: "{wanted}": must be {must} {name} limit of {most}'
            yield Cause(f"{path}.requests", said)


def _is_overcommitted(name: str) -> bool:
    """Whether more of it may be promised than there is."""
    native = "/" not in name or "kubernetes.io/" in name
    return native and not name.startswith("hugepages-")
