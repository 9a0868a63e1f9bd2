"""How something is to be deleted: `DeleteOptions`, from a body or from the query."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from midwatch.model import Json

from .kinds import Kind
from .refusals import Refused, conflict

ORPHAN, FOREGROUND = "orphan", "foregroundDeletion"


@dataclass(frozen=True, slots=True)
class DeleteOptions:
    """`grace` is in seconds; None is the pod's own. `policy` is the propagation policy."""

    policy: str | None = None
    grace: int | None = None
    uid: str = ""
    revision: str = ""

    @classmethod
    def read(cls, body: Any, query: Mapping[str, str]) -> DeleteOptions:
        """Raises Refused (400)."""
        body = body if isinstance(body, dict) else {}
        wanted = body.get("preconditions") or {}
        policy = body.get("propagationPolicy") or query.get("propagationPolicy")
        if policy not in (None, "Orphan", "Background", "Foreground"):
            raise Refused(400, f"invalid propagationPolicy: {policy!r}")
        grace = body.get("gracePeriodSeconds", query.get("gracePeriodSeconds"))
        try:
            seconds = None if grace is None else int(grace)
        except ValueError:
            raise Refused(400, f"invalid gracePeriodSeconds: {grace!r}") from None
        return cls(
            policy, seconds, wanted.get("uid", ""), wanted.get("resourceVersion", "")
        )

    def check(self, kind: Kind, meta: Json) -> None:
        """Raises Refused (409) where a precondition does not hold."""
        for wanted, name in ((self.uid, "uid"), (self.revision, "resourceVersion")):
            if wanted and wanted != meta[name]:
                why = f"the {name} in the precondition ({wanted}) does not match the {name} in record ({meta[name]})"
                raise conflict(kind.plural, kind.group, meta["name"], why)

    def finalizers(self, kind: Kind, present: list[str]) -> list[str]:
        """The object's finalizers once it is marked, those of the garbage collector with them.

        A Job that is deleted without a policy leaves its pods behind, as it has always been.
        """
        policy = self.policy
        if policy is None and kind.resource == ("batch", "jobs"):
            policy = "Orphan"
        kept = [name for name in present if name not in (ORPHAN, FOREGROUND)]
        added = {"Orphan": [ORPHAN], "Foreground": [FOREGROUND]}.get(policy or "")
        if added is None and policy is None:
            return present
        return kept + (added or [])
