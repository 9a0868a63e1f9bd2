"""Which sessions have what stands beside their Job: found out by creating it, and not again at every try."""

from __future__ import annotations

from collections import OrderedDict

from midwatch.kube.actions import CreateJob
from midwatch.kube.seen import Seen

LONGEST = 600.0
"""Seconds: what somebody deleted meanwhile is made again by a later try."""
MOST = 10_000
"""Sessions that are kept in mind; the oldest are forgotten."""


class Helpers:
    """In memory only: after a restart every object is created anew, which finds it."""

    def __init__(self, longest: float = LONGEST, most: int = MOST) -> None:
        self._longest, self._most = longest, most
        self._made: OrderedDict[str, float] = OrderedDict()

    def made(self, uid: str, now: float) -> None:
        """All of a session's are there, at this time of a clock that only goes forward."""
        self._made.pop(uid, None)
        self._made[uid] = now
        while len(self._made) > self._most:
            self._made.popitem(last=False)

    def forget(self, uid: str) -> None:
        """One may be missing."""
        self._made.pop(uid, None)

    def are_there(self, seen: Seen, action: CreateJob, now: float) -> bool:
        """Whether the Job of this attempt can do with what was made before.

        An attempt whose pod never ran may have lacked one of them.
        """
        since = self._made.get(seen.resource.uid)
        if since is None or now - since > self._longest:
            return False
        before = [pod for pod in seen.pods if pod.attempt == action.attempt - 1]
        # The runner tells the name of its pod, which takes all that it has.
        told = seen.status.get("podName") is not None
        ran = told or any(pod.exit_code is not None for pod in before)
        return action.attempt == 1 or ran
